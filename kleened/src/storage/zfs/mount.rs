//! Mounts and mount points, which go with the datasets.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use kleened_sys::zfs as sys;
use kleened_sys::zfs::Kind;

use super::super::fault::point;
use super::super::{Area, DatasetPath, Driver, Error, Folder, PROJECTS, Result};
use super::threads::on_threads;
use super::{IMPORT, NO_KEY, NvList, Zfs, destroy, failed};

/// The dataset that is mounted at the root's directory. An error where one should be, as the directory's
/// name says, and is not.
pub(super) fn root(zfs: &'static sys::Zfs, root: &Path) -> Result<Option<String>> {
    let look = |error: io::Error| Error::io("look for the dataset at", root.display(), error);
    match sys::dataset_mounted_at(root) {
        Ok(Some(dataset)) => return Ok(Some(dataset)),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(look(error)),
    }
    // A pool that was imported without mounting: a root that looks empty must not become one of `dir`.
    let Some(name) = root.to_str().and_then(|text| text.strip_prefix('/')) else { return Ok(None) };
    match zfs.properties(name, &["mountpoint"]) {
        Ok(found) if found.text("mountpoint").is_some_and(|at| Path::new(at) == root) => {}
        Ok(_) => return Ok(None),
        Err(error)
            if matches!(error.kind(), Kind::NotFound | Kind::Invalid | Kind::NameTooLong) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(look(error.into())),
    }
    Err(look(io::Error::other(format!("{name} is not mounted: 'zfs mount {name}' does it"))))
}

/// A directory to mount on. What is below it, should the mount be missing, is nobody's.
fn make_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Mounts a dataset; read-only where its pool is.
pub(super) fn mount(dataset: &str, target: &Path) -> io::Result<()> {
    match sys::mount_dataset(dataset, target, sys::MountFlags::default()) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => sys::mount_dataset(
            dataset,
            target,
            sys::MountFlags { read_only: true, ..Default::default() },
        ),
        other => other,
    }
}

impl Zfs {
    /// Every area is there and mounted, and what there is of each project.
    pub(super) fn make_areas(&self) -> Result<()> {
        let children = self.zfs.children(&self.root);
        let children: HashSet<String> =
            children.map_err(|error| failed("list", &self.root, error))?.into_iter().collect();
        let areas = Area::ALL.into_iter().map(Area::as_str);
        for part in areas.chain([PROJECTS]) {
            let new = !children.contains(&format!("{}/{part}", self.root));
            self.make_part(part, new)?;
        }
        for folder in self.folders(Area::Volumes)? {
            if let Some(project) = folder.project() {
                self.make_part(&format!("{PROJECTS}/{project}"), false)?;
                self.make_project(&folder)?;
            }
        }
        Ok(())
    }

    /// There is a place for what a project has. A repeat is safe.
    pub(super) fn make_project(&self, folder: &Folder) -> Result<()> {
        let Some(project) = folder.project() else { return Ok(()) };
        for part in [format!("{PROJECTS}/{project}"), folder.to_string()] {
            let name = format!("{}/{part}", self.root);
            let there = self.zfs.exists(&name).map_err(|error| failed("look for", &name, error))?;
            self.make_part(&part, !there)?;
        }
        Ok(())
    }

    /// A part of the root is there and mounted. Only root gets into a new one: content holds set-id
    /// programs.
    fn make_part(&self, part: &str, new: bool) -> Result<()> {
        let (name, directory) = (format!("{}/{part}", self.root), self.mountpoint.join(part));
        if new {
            let make = |error: sys::Error| failed("make", &name, error);
            let none = NvList::new().map_err(make)?;
            match self.zfs.create(&name, &none) {
                // Another volume of the project is just being made.
                Err(error) if error.kind() == Kind::Exists => {}
                other => other.map_err(make)?,
            }
            point();
        }
        self.mount_at(&name, &directory)?;
        if new {
            point();
        }
        // Also after a crash just before: what ZFS gives a directory, and nobody used it since.
        let close = |error| Error::io("close", directory.display(), error);
        let mode = fs::metadata(&directory).map_err(close)?.mode() & 0o7777;
        let is_empty =
            || fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none());
        if mode == 0o755 && (new || is_empty()) {
            match fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)) {
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                other => other.map_err(close)?,
            }
        }
        Ok(())
    }

    /// Mounts what is not mounted, and takes back what a crash left half done.
    pub(super) fn recover(&self) -> Result<()> {
        let mounted = sys::mounted().map_err(|error| Error::io("read", "the mounts", error))?;
        let mounted: HashSet<(String, PathBuf)> =
            mounted.into_iter().map(|mount| (mount.dataset, mount.at)).collect();
        self.unmount_renamed(&mounted);
        for area in Area::ALL {
            let paths = self.children(area)?;
            let (drafts, paths): (Vec<_>, Vec<_>) = paths
                .into_iter()
                .partition(|path| area == Area::Scratch && path.name().starts_with(IMPORT));
            for draft in &drafts {
                if let Err(error) = self.discard(draft) {
                    tracing::warn!(%draft, ?error, "cannot remove what was being received");
                }
            }
            let unmounted: Vec<_> = paths
                .iter()
                .filter(|path| !mounted.contains(&(self.dataset(path), self.mountpoint(path))))
                .collect();
            let problems = on_threads(&unmounted, |path| self.mount_at_home(path).err());
            for (path, error) in unmounted.iter().zip(problems) {
                if let Some(error) = error {
                    tracing::warn!(%path, ?error, "cannot mount");
                }
            }
            self.remove_stray_mountpoints(area, &paths)?;
            if area == Area::Volumes {
                *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(paths);
            }
        }
        Ok(())
    }

    /// What was renamed before it was unmounted, when the daemon was killed, is in the place of its old name.
    fn unmount_renamed(&self, mounted: &HashSet<(String, PathBuf)>) {
        let scratch = self.mountpoint.join(Area::Scratch.as_str());
        for (dataset, at) in mounted.iter().filter(|(_, at)| at.parent() == Some(&scratch)) {
            let ours = dataset.strip_prefix(&self.root).and_then(|rest| rest.strip_prefix('/'));
            let Some(path) = ours.and_then(|path| path.parse::<DatasetPath>().ok()) else {
                continue;
            };
            if self.mountpoint(&path) != *at
                && let Err(error) = sys::unmount(at, false)
            {
                tracing::warn!(%path, %error, "cannot unmount it from {}", at.display());
            }
        }
    }

    /// What a crash left of datasets that went. Only empty directories go.
    fn remove_stray_mountpoints(&self, area: Area, paths: &[DatasetPath]) -> Result<()> {
        let homes: HashSet<PathBuf> = paths.iter().map(|path| self.mountpoint(path)).collect();
        for folder in self.folders(area)? {
            let Ok(entries) = fs::read_dir(self.mountpoint.join(folder.to_string())) else {
                continue;
            };
            for entry in entries.flatten().map(|entry| entry.path()) {
                if !homes.contains(&entry) {
                    // A file, or not empty: somebody put it there.
                    let _ = fs::remove_dir(entry);
                }
            }
        }
        Ok(())
    }

    /// The dataset is mounted where it belongs. The caller holds its lock, or nobody else is there yet.
    pub(super) fn mount_at_home(&self, path: &DatasetPath) -> Result<()> {
        let (name, target) = (self.name(path)?, self.mountpoint(path));
        match self.mount_at(&name, &target) {
            Err(Error::NotFound(_)) => {
                // Nothing is left of the attempt.
                self.remove_mountpoint(path);
                Err(self.missing(path))
            }
            other => other,
        }
    }

    fn mount_at(&self, name: &str, target: &Path) -> Result<()> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(name.to_owned()),
            _ => Error::io("mount", name, error),
        };
        make_directory(target).map_err(|error| Error::io("make", target.display(), error))?;
        match sys::dataset_mounted_at(target).map_err(failed)? {
            Some(there) if there == name => return Ok(()),
            Some(other) => {
                return Err(Error::Busy(format!(
                    "{}, where {other} is mounted,",
                    target.display()
                )));
            }
            None => {}
        }
        point();
        mount(name, target).map_err(|error| match self.lacks_key(name, &error) {
            true => failed(io::Error::new(error.kind(), NO_KEY)),
            false => failed(error),
        })
    }

    /// Whether that came of a key that is not loaded.
    fn lacks_key(&self, name: &str, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::PermissionDenied
            && self.zfs.properties(name, &["keystatus"]).is_ok_and(|found| found.lacks_key())
    }

    /// The dataset is mounted again, after a change that did not come about.
    pub(super) fn mount_again(&self, path: &DatasetPath) {
        if let Err(error) = self.mount_at_home(path) {
            tracing::warn!(%path, ?error, "cannot mount it again; the next start will");
        }
    }

    /// The dataset is not mounted where it belongs.
    pub(super) fn unmount(&self, path: &DatasetPath) -> Result<()> {
        self.unmount_from(&self.name(path)?, path)
    }

    /// The dataset of that full name is not mounted where the one with that path belongs.
    pub(super) fn unmount_from(&self, name: &str, path: &DatasetPath) -> Result<()> {
        let target = self.mountpoint(path);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ResourceBusy => Error::Busy(path.to_string()),
            _ => Error::io("unmount", path, error),
        };
        destroy::patiently(|| match sys::dataset_mounted_at(&target) {
            Ok(Some(there)) if there == name => sys::unmount(&target, false).map_err(failed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        })
    }

    /// As [`unmount`](Self::unmount), of what is to be destroyed. On FreeBSD a jail that is dying holds its
    /// root as long as a connection of it is not closed down, and can't use it any more.
    pub(super) fn unmount_for_good(&self, path: &DatasetPath) -> Result<()> {
        match self.unmount(path) {
            Err(Error::Busy(_))
                if cfg!(target_os = "freebsd") && path.area() == Area::Container =>
            {
                sys::unmount(&self.mountpoint(path), true)
                    .map_err(|error| Error::io("unmount", path, error))
            }
            other => other,
        }
    }

    /// The directory that the dataset was mounted on is gone, unless somebody put something into it.
    pub(super) fn remove_mountpoint(&self, path: &DatasetPath) {
        match fs::remove_dir(self.mountpoint(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%path, %error, "cannot remove the directory it was mounted on");
            }
            _ => {}
        }
    }

    /// The dataset has this record, and no other property is touched.
    pub(super) fn set_record(&self, path: &DatasetPath, record: &str) -> Result<()> {
        let name = self.name(path)?;
        let failed = |error| self.failed("write the record of", path, error);
        let mut properties = NvList::new().map_err(failed)?;
        super::record::put(&mut properties, record).map_err(failed)?;
        self.zfs.set(&name, &properties).map_err(failed)
    }
}
