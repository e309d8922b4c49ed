//! First-use content: what the image has at a mount's destination goes into a new volume.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_api::mount::MountPointConfig;
use kleened_api::volume::Populated;
use kleened_api::{Id, Timestamp, VolumeName};
use kleened_sys::fs;
use rustix::fs::OFlags;

use super::catalogue::{Catalogue, VolumeEntry};
use super::journal::Intent;
use super::record::VolumeRecord;
use super::{Engine, log_failure};
use crate::archive::Walk;
use crate::copy::{self, Progress};
use crate::error::{Error, Result};
use crate::ident;
use crate::storage::{self, DatasetPath, DatasetSpec};

impl Engine {
    /// There is the volume that a mount names and that was not there, made for that container: whole, with
    /// what the image has at the mount's destination. False where there is one, or nothing to fill it with;
    /// then nothing changed. The caller, who makes the container, holds the volume's lock.
    pub(super) fn make_filled(
        &self,
        container: &Id,
        image: &Id,
        root: BorrowedFd<'_>,
        mount: &MountPointConfig,
        progress: &Progress,
    ) -> Result<bool> {
        let name: VolumeName = mount.source.parse()?;
        let known = self.catalogue().contains_volume(name.as_str()).is_ok();
        if known || mount.nocopy || mount.subpath.is_some() {
            return Ok(false);
        }
        let path = &mount.destination;
        let fail = || Error::io::<io::Error>("fill volume", format!("{name} from {path}"));
        let source = match directory(root, path).map_err(fail())? {
            Some(source) if !is_empty(source.as_fd()).map_err(fail())? => source,
            _ => return Ok(false),
        };
        let record = VolumeRecord {
            made_for: Some(container.clone()),
            populated: Some(populated(image, path)),
            ..VolumeRecord::new(Timestamp::now())
        };
        let draft = DatasetPath::scratch(&ident::new());
        let made = self.make_copy(&draft, &name, source.as_fd(), path, &record, progress);
        let made = made.and_then(|()| {
            let named = self.storage.rename(&draft, &DatasetPath::volume(&name));
            named.map_err(Error::storage("create volume", &name))
        });
        if let Err(error) = made {
            // Where it has its name all the same, it goes with the container that it was made for.
            log_failure(format_args!("remove {draft}"), self.storage.destroy(&draft));
            return Err(error);
        }
        self.catalogue().volumes.insert(name.to_string(), record.into());
        Ok(true)
    }

    /// There is a dataset with that volume's record and a copy of the directory.
    fn make_copy(
        &self,
        draft: &DatasetPath,
        name: &VolumeName,
        source: BorrowedFd<'_>,
        path: &str,
        record: &VolumeRecord,
        progress: &Progress,
    ) -> Result<()> {
        let fail = || Error::storage("fill volume", name);
        // The content brings an owner and a mode.
        let spec = DatasetSpec { owner: None, mode: None, ..record.spec() };
        self.storage.create(draft, &spec).map_err(fail())?;
        let target = self.open_root(draft).map_err(fail())?;
        copy::tree(source, target.as_fd(), &self.copying(progress))
            .map_err(Error::io("fill volume", name))?;
        let io = || Error::io::<io::Error>("fill volume", format!("{name} from {path}"));
        override_root(&target, record).map_err(io())?;
        // It must not be on record as filled before it is on the disk.
        self.storage.flush(draft).map_err(fail())
    }

    /// The volume has what the image has at the mount's destination: all of it, or, where it was
    /// filled before, is not empty, or is mounted somewhere, what it had; also where somebody writes
    /// into it while it is filled. The directory's own owner and mode come along unless the volume was
    /// given some. The caller, who makes the container, holds the volume's lock.
    pub(super) fn populate(
        &self,
        container: &Id,
        image: &Id,
        root: BorrowedFd<'_>,
        mount: &MountPointConfig,
        progress: &Progress,
    ) -> Result<()> {
        let name: VolumeName = mount.source.parse()?;
        let volume = DatasetPath::volume(&name);
        let VolumeEntry { record, .. } = self.catalogue().volume(name.as_str())?.clone();
        let skip = record.populated.is_some()
            || record.adopted.is_some()
            || mount.nocopy
            || mount.subpath.is_some()
            || self.is_mounted(&name, record.made_for.as_ref() == Some(container))?;
        if skip {
            return Ok(());
        }
        let fail =
            || Error::io::<io::Error>("fill volume", format!("{name} from {}", mount.destination));
        let Some(source) = directory(root, &mount.destination).map_err(fail())? else {
            return Ok(());
        };
        let target = self.open_root(&volume).map_err(Error::storage("fill volume", &name))?;
        if !is_empty(target.as_fd()).map_err(fail())? {
            return Ok(());
        }
        // They hold what it had once, and would go with its dataset.
        let snapshots = self.storage.snapshots(&volume);
        if !snapshots.map_err(Error::storage("fill volume", &name))?.is_empty() {
            tracing::warn!("volume {name} has snapshots, so it has been in use: it is not filled");
            return Ok(());
        }
        if is_empty(source.as_fd()).map_err(fail())? {
            // Nothing to copy but the directory itself, so it is not used up as the first content.
            return take_after(&source, &target, &record).map_err(fail());
        }
        // A dataset in which something is open can't be unmounted, and so not change its place.
        drop(target);
        self.set_initializing(&name, true);
        let filled = self.fill(&name, image, source.as_fd(), &mount.destination, record, progress);
        self.set_initializing(&name, false);
        filled
    }

    fn fill(
        &self,
        name: &VolumeName,
        image: &Id,
        source: BorrowedFd<'_>,
        path: &str,
        mut record: VolumeRecord,
        progress: &Progress,
    ) -> Result<()> {
        let volume = DatasetPath::volume(name);
        let fail = || Error::storage("fill volume", name);
        let (fresh_id, old_id) = (ident::new(), ident::new());
        let (fresh, old) = (DatasetPath::scratch(&fresh_id), DatasetPath::scratch(&old_id));
        record.populated = Some(populated(image, path));
        let copied = self.make_copy(&fresh, name, source, path, &record, progress);
        let intent =
            Intent::Populate { volume: name.to_string(), fresh: fresh_id.clone(), old: old_id };
        let journal = || Error::io::<io::Error>("write the journal for", name);
        let entry = copied.and_then(|()| self.journal.begin(&fresh_id, &intent).map_err(journal()));
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                log_failure(format_args!("remove {fresh}"), self.storage.destroy(&fresh));
                return Err(error);
            }
        };
        let moved = self.storage.rename(&volume, &old);
        // Forwards or backwards: the same steps as after a crash.
        let settled = self.settle_populate(&volume, &fresh, &old);
        let again = if settled.is_ok() {
            Ok(())
        } else {
            // Where the fresh one can't take the place, the old one may.
            if let Ok(None) = self.storage.get(&volume) {
                log_failure(format_args!("put back {volume}"), self.storage.rename(&old, &volume));
            }
            self.settle_populate(&volume, &fresh, &old)
        };
        let swapped = moved.and(settled);
        if let Err(error) = again {
            self.unsettle(name);
            return Err(fail()(error));
        }
        // An entry that stays does no harm: nothing else ever has these names.
        log_failure(format_args!("write the journal for {volume}"), entry.done());
        // What counts is what is there now.
        let now = self.storage.get(&volume).map_err(fail())?.and_then(|dataset| dataset.record);
        if now.as_ref() != Some(&record.spec().record) {
            swapped.map_err(fail())?;
            tracing::warn!(
                "volume {name} was written to while it was filled: it keeps what it has"
            );
            return Ok(());
        }
        if let Some(entry) = self.catalogue().volumes.get_mut(name.as_str()) {
            entry.record = record;
        }
        Ok(())
    }

    /// The volume is there, filled or as it was, and neither of the two others is. A repeat is safe.
    ///
    /// The fresh dataset was whole before the volume stepped aside, so where the volume is missing
    /// the fresh one is it, and where both are missing the old one is. But what somebody wrote into the
    /// volume since it was found empty is worth more than what the image has: then the old one is it.
    pub(super) fn settle_populate(
        &self,
        volume: &DatasetPath,
        fresh: &DatasetPath,
        old: &DatasetPath,
    ) -> storage::Result<()> {
        if self.storage.get(volume)?.is_none() {
            let forwards = self.storage.get(fresh)?.is_some() && !self.has_content(old)?;
            self.storage.rename(if forwards { fresh } else { old }, volume)?;
        }
        // By a process that had it open, where that does not keep it from being moved.
        if self.has_content(old)? {
            self.storage.rename(volume, fresh)?;
            self.storage.rename(old, volume)?;
        }
        self.storage.destroy(fresh)?;
        self.storage.destroy(old)?;
        Ok(())
    }

    /// The root directory of a dataset, certainly not the empty one that it is mounted on.
    pub(super) fn open_root(&self, path: &DatasetPath) -> storage::Result<File> {
        self.storage.mount(path)?;
        let root = File::open(self.storage.mountpoint(path));
        root.map_err(|error| storage::Error::io("open", path, error))
    }

    /// Whether the dataset is there and holds anything.
    fn has_content(&self, path: &DatasetPath) -> storage::Result<bool> {
        let root = match self.open_root(path) {
            Err(storage::Error::NotFound(_)) => return Ok(false),
            root => root?,
        };
        let empty = is_empty(root.as_fd());
        empty.map(|empty| !empty).map_err(|error| storage::Error::io("look into", path, error))
    }

    /// Whether the dataset of a volume holds nothing but what it was filled with. Everything that is
    /// filled in has the image's times, which are older than the filling.
    pub(super) fn is_untouched(
        &self,
        path: &DatasetPath,
        record: &VolumeRecord,
    ) -> storage::Result<bool> {
        let root = self.open_root(path)?;
        let look = || -> io::Result<bool> {
            let Some(populated) = &record.populated else { return is_empty(root.as_fd()) };
            let at = populated.at.date_time().unix_timestamp_nanos();
            let older = |stat: &rustix::fs::Stat| {
                i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec) < at
            };
            if !older(&rustix::fs::fstat(&root)?) {
                return Ok(false);
            }
            let mut walk = Walk::new(root.as_fd())?;
            while walk.advance()? {
                if walk.item().is_some_and(|item| !older(&item.stat)) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        look().map_err(|error| storage::Error::io("look into", path, error))
    }

    /// Whether a container that runs has the volume, or may have it: nobody knows what those name
    /// whose records can't be read, but none of them names one that is `new`.
    fn is_mounted(&self, name: &VolumeName, new: bool) -> Result<bool> {
        let known = |catalogue: &Catalogue| {
            catalogue.users(name.as_str()).iter().any(|(_, entry, _)| entry.is_running())
        };
        {
            let catalogue = self.catalogue();
            if new || catalogue.unreadable.is_empty() || known(&catalogue) {
                return Ok(known(&catalogue));
            }
        }
        let running = self.platform.running().map_err(Error::platform("fill volume", name))?;
        let catalogue = self.catalogue();
        let unknown = running.iter().any(|it| !catalogue.containers.contains_key(&it.container));
        if unknown {
            tracing::warn!("volume {name} is not filled: a container may use it that is not known");
        }
        Ok(unknown)
    }

    fn set_initializing(&self, name: &VolumeName, initializing: bool) {
        if let Some(entry) = self.catalogue().volumes.get_mut(name.as_str()) {
            entry.initializing = initializing;
        }
    }
}

/// That a volume is being filled.
fn populated(image: &Id, path: &str) -> Populated {
    Populated { image_id: image.to_string(), path: path.to_owned(), at: Timestamp::now() }
}

/// The directory at `path` inside `root`; `None` where there is none.
fn directory(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match fs::resolve_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

fn is_empty(directory: BorrowedFd<'_>) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The volume's root has the owner and mode of the image's directory, or those it was given.
fn take_after(source: &OwnedFd, target: &File, record: &VolumeRecord) -> io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    let owner = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(target, Some(owner.0), Some(owner.1))?;
    rustix::fs::fchmod(target, rustix::fs::Mode::from_raw_mode(stat.st_mode))?;
    override_root(target, record)
}

fn override_root(target: &File, record: &VolumeRecord) -> io::Result<()> {
    if let Some(owner) = record.owner {
        let owner = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        rustix::fs::fchown(target, Some(owner.0), Some(owner.1))?;
    }
    if let Some(mode) = record.mode {
        let mode = rustix::fs::Mode::from_raw_mode(mode.0 as rustix::fs::RawMode);
        rustix::fs::fchmod(target, mode)?;
    }
    Ok(())
}
