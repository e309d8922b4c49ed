//! Datasets as plain directories, for where there is no ZFS.
//!
//! ```text
//! ROOT/volumes/my-vol -> ../.kleene/datasets/ID/data      the dataset's name, a relative link
//! ROOT/projects/web/volumes/db                            the same, of a project
//! ROOT/projects/web/.kleene -> ../../.kleene              where these links go through
//! ROOT/.kleene/datasets/ID/data/                           its content
//!                          record                          its record
//!                          snapshots/NAME/{data/,about}    its snapshots: whole copies; `held` while held
//! ROOT/.kleene/new/ID/                                     what is being made
//! ROOT/.kleene/commit/ID/                                  changes that are decided and half made
//! ROOT/.kleene/dead/ID                                     what is being removed
//! ```
//!
//! A dataset exists when its link does. So it is made, renamed and destroyed by one call on the link,
//! whatever its size: `symlinkat(2)`, which fails where there is one already, and `renameat2(2)`
//! without replacement. Before that call everything is complete and durable; after it nothing is left
//! to decide, and what remains to be done [`open`] can do as well, see `recover`.
//!
//! Snapshots are read-only in that nothing here ever writes to one. Copies share their space where
//! the file system can (`copy`). The owner of the root keeps others out of `ROOT/.kleene` (mode 0700):
//! content holds set-id programs.

mod batch;
mod changes;
mod recover;
mod snapshot;
mod store;
mod stream;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kleened_sys::fs::{open_directory, space, sync_file_system};
use rustix::fs::{AtFlags, Dir as Listing, Gid, Mode, RawMode, Uid};
use rustix::io::Errno;

use super::fault::point;
use super::{
    Adopt, Area, Capabilities, Dataset, DatasetPath, DatasetSpec, Driver, Error, Folder, Result,
    Sources, Streams, Usage, Watch,
};
use crate::archive::{Place, Walk, identity};
use crate::copy;
use store::{DATA, Draft, Home, Link, RECORD, SNAPSHOTS, Store};

/// The driver. See the [module](self).
#[derive(Debug)]
pub struct Dir {
    store: Store,
    root: PathBuf,
    shares_space: bool,
}

/// Opens the root, and makes it where it is missing. What a crash left half done is finished or taken
/// back.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::Unsupported`] where a later version of this program made the root.
pub fn open(root: &Path) -> Result<Box<dyn Driver>> {
    let store = Store::open(root)?;
    recover::recover(&store)?;
    let shares_space = store.shares_space()?;
    Ok(Box::new(Dir { store, root: root.to_owned(), shares_space }))
}

impl Dir {
    fn look_at(&self, folder: BorrowedFd<'_>, path: &DatasetPath) -> Result<Option<Dataset>> {
        let Some(link) = self.store.look_up_in(folder, path)? else { return Ok(None) };
        let record = match link {
            Link::Dataset(id) => {
                let record = self.store.record(path, &id)?;
                if record.is_none() && self.store.is_gone(path, &id)? {
                    return Ok(None);
                }
                record
            }
            Link::Foreign => None,
        };
        Ok(Some(Dataset { path: path.clone(), record }))
    }

    /// Fills in what a spec says and makes the draft the dataset `path`.
    fn publish(&self, draft: Draft<'_>, path: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        let failed = |error: io::Error| Error::io("make", path, error);
        match draft.make_directory(SNAPSHOTS) {
            // An imported one has its snapshot already.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            other => other.map_err(failed)?,
        }
        draft.write(RECORD, spec.record.as_bytes()).map_err(failed)?;
        let data = open_directory(draft.fd(), DATA).map_err(failed)?;
        if let Some(owner) = spec.owner {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::fs::fchown(&data, Some(uid), Some(gid)).map_err(|e| failed(e.into()))?;
        }
        if let Some(mode) = spec.mode {
            let mode = Mode::from_raw_mode(mode.0 as RawMode);
            rustix::fs::fchmod(&data, mode).map_err(|e| failed(e.into()))?;
        }
        for fd in [data.as_fd(), draft.fd()] {
            rustix::fs::fsync(fd).map_err(|e| failed(e.into()))?;
        }
        point();
        self.store.link(draft, path)
    }
}

fn measure(path: &DatasetPath, home: BorrowedFd<'_>) -> Result<Usage> {
    let failed = |error| Error::io("measure", path, error);
    let data = open_directory(home, DATA).map_err(failed)?;
    let snapshots = open_directory(home, SNAPSHOTS).map_err(failed)?;
    let referenced = used(data.as_fd()).map_err(failed)?;
    // Without the folder that they are in.
    let folder = rustix::fs::fstat(&snapshots).map_err(|errno| failed(errno.into()))?;
    let folder = u64::try_from(folder.st_blocks).unwrap_or(0) * 512;
    let snapshots = used(snapshots.as_fd()).map_err(failed)?.saturating_sub(folder);
    let available = space(&data).map_err(failed)?.available;
    Ok(Usage { used: referenced + snapshots, referenced, available, snapshots, ..Usage::default() })
}

/// The space of a tree; of a file with several names once.
fn used(top: BorrowedFd<'_>) -> io::Result<u64> {
    let mut walk = Walk::new(top)?;
    let (mut bytes, mut seen) = (0u64, HashSet::new());
    while walk.advance()? {
        let Some(item) = walk.item() else { break };
        let linked = item.stat.st_nlink > 1 && matches!(item.at, Place::In(..));
        if !linked || seen.insert(identity(&item.stat)) {
            bytes += u64::try_from(item.stat.st_blocks).unwrap_or(0) * 512;
        }
    }
    Ok(bytes)
}

/// The paths of the datasets in a folder, by name.
fn names_in(folder: &Folder, dir: &OwnedFd) -> Result<Vec<DatasetPath>> {
    let failed = |errno: Errno| Error::io("list", folder, errno);
    let mut found = Vec::new();
    for entry in Listing::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // What has no valid name can be no dataset, and nothing can ask for it.
        found.extend(folder.dataset(&entry.file_name().to_string_lossy()).ok());
    }
    found.sort_unstable();
    Ok(found)
}

/// The tree `from` is in the new directory `name` of the draft, and durable.
fn copy_into(draft: &Draft<'_>, from: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    draft.make_directory(name)?;
    let to = open_directory(draft.fd(), name)?;
    let progress = Some(draft.copies());
    copy::tree(from, to.as_fd(), &copy::Options { progress, ..copy::Options::default() })?;
    point();
    sync_file_system(&to)
}

impl Driver for Dir {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { clones_share_space: self.shares_space, ..Capabilities::default() }
    }

    fn mountpoint(&self, path: &DatasetPath) -> PathBuf {
        self.root.join(path.to_string())
    }

    fn dataset(&self, path: &DatasetPath) -> String {
        self.mountpoint(path).to_string_lossy().trim_start_matches('/').to_owned()
    }

    fn create(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        spec.refuse_limits(self.name())?;
        self.store.refuse_existing(path)?;
        let failed = |error: io::Error| Error::io("make", path, error);
        let draft = self.store.draft()?;
        draft.make_directory(DATA).map_err(failed)?;
        self.publish(draft, path, spec)
    }

    fn get(&self, path: &DatasetPath) -> Result<Option<Dataset>> {
        match self.store.folder(path.folder())? {
            Some(folder) => self.look_at(folder.as_fd(), path),
            None => Ok(None),
        }
    }

    fn list(&self, area: Area) -> Result<Vec<Dataset>> {
        let mut found = Vec::new();
        for (folder, dir) in self.store.folders(area)? {
            for path in names_in(&folder, &dir)? {
                // `None` where it was destroyed meanwhile.
                found.extend(self.look_at(dir.as_fd(), &path)?);
            }
        }
        Ok(found)
    }

    fn names(&self, area: Area) -> Result<Vec<DatasetPath>> {
        let mut found = Vec::new();
        for (folder, dir) in self.store.folders(area)? {
            found.extend(names_in(&folder, &dir)?);
        }
        Ok(found)
    }

    fn mount(&self, path: &DatasetPath) -> Result<()> {
        let home = self.store.home(path)?;
        let data = rustix::fs::statat(&home.fd, DATA, AtFlags::SYMLINK_NOFOLLOW);
        let failed = |errno: Errno| Error::io("find the content of", path, errno);
        self.store.settle(path, &home.id, data.map(drop).map_err(failed))
    }

    fn flush(&self, path: &DatasetPath) -> Result<()> {
        let home = self.store.home(path)?;
        let synced = sync_file_system(&home.fd);
        synced.map_err(|error| Error::io("write", path, error))
    }

    fn set(&self, path: &DatasetPath, record: &str) -> Result<()> {
        let home = self.store.home(path)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(path.to_string()),
            _ => Error::io("write the record of", path, error),
        };
        let draft = self.store.draft()?;
        draft.write(RECORD, record.as_bytes()).map_err(failed)?;
        point();
        rustix::fs::renameat(draft.fd(), RECORD, &home.fd, RECORD).map_err(|e| failed(e.into()))?;
        rustix::fs::fsync(&home.fd).map_err(|e| failed(e.into()))
    }

    fn destroy(&self, path: &DatasetPath) -> Result<bool> {
        match self.store.look_up(path)? {
            None => Ok(false),
            Some(Link::Foreign) => Err(store::foreign(path)),
            Some(Link::Dataset(id)) => {
                self.store.refuse_mounted(path, &id)?;
                match open_directory(&self.store.datasets, format!("{id}/{SNAPSHOTS}")) {
                    Ok(snapshots) => snapshot::refuse_held(path, snapshots.as_fd())?,
                    // Destroyed meanwhile, or it is a link to nothing.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("look into", path, error)),
                }
                self.store.unlink(path)
            }
        }
    }

    fn rename(&self, from: &DatasetPath, to: &DatasetPath) -> Result<()> {
        self.store.rename(from, to)
    }

    fn usage(&self, path: &DatasetPath) -> Result<Usage> {
        let Home { id, fd } = self.store.home(path)?;
        self.store.settle(path, &id, measure(path, fd.as_fd()))
    }

    fn usages(&self, paths: &[DatasetPath]) -> Result<Vec<Option<Usage>>> {
        let measure = |path| match self.usage(path) {
            Ok(usage) => Ok(Some(usage)),
            // Destroyed meanwhile, or never a dataset.
            Err(Error::NotFound(_) | Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(error),
        };
        paths.iter().map(measure).collect()
    }

    fn changed(&self, _: &DatasetPath, _: &DatasetSpec) -> Result<BTreeMap<String, String>> {
        // It has none of them.
        Ok(BTreeMap::new())
    }

    fn interrupt(&self) {
        self.store.copies.cancel();
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }
    fn adopt(&self) -> Option<&dyn Adopt> {
        None
    }

    fn sources(&self) -> Option<&dyn Sources> {
        None
    }

    fn watch(&self) -> Option<&dyn Watch> {
        None
    }
}
