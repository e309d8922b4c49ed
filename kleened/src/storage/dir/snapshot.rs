//! Snapshots: whole copies beside the data.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_api::Timestamp;
use kleened_api::name::is_name;
use kleened_sys::fs::{open_directory, remove_tree};
use rustix::fs::{AtFlags, Dir as Listing, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::{DatasetPath, Error, Result, SnapshotPath};
use super::batch::{Step, commit};
use super::store::{DATA, Draft, Home, SNAPSHOTS, random_name};
use super::{Dir, copy_into, point};

pub(super) const ABOUT: &str = "about";

/// What is kept with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// What tells it from all others, on this host or another.
    pub(super) guid: String,
    /// When it was made.
    pub(super) created: Timestamp,
    /// Its place among the dataset's snapshots: clocks may go back.
    pub(super) sequence: u64,
}

impl About {
    /// Of a new snapshot, after those that there are.
    pub(super) fn next(present: &[Kept]) -> Self {
        let sequence = present.last().map_or(0, |last| last.about.sequence) + 1;
        Self { guid: random_name(), created: Timestamp::now(), sequence }
    }

    /// Writes it into the folder `part` of a draft.
    pub(super) fn write(&self, draft: &Draft<'_>, part: &str) -> io::Result<()> {
        draft.write(&format!("{part}/{ABOUT}"), &serde_json::to_vec(self)?)
    }
}

/// A snapshot that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) about: About,
}

/// # Errors
///
/// [`Error::Io`] for a name that could lead elsewhere.
pub(super) fn check_name(snapshot: &SnapshotPath) -> Result<()> {
    if is_name(&snapshot.name) {
        return Ok(());
    }
    let reason = "a snapshot's name follows the rule of volume names";
    let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
    Err(Error::io("use the name", format!("{:?}", snapshot.name), source))
}

/// The snapshots in a dataset's own directory, oldest first.
pub(super) fn list(path: &DatasetPath, home: BorrowedFd<'_>) -> Result<Vec<Kept>> {
    let failed = |error: io::Error| Error::io("list the snapshots of", path, error);
    let dir = open_directory(home, SNAPSHOTS).map_err(failed)?;
    let mut found = Vec::new();
    for entry in Listing::read_from(&dir).map_err(|e| failed(e.into()))? {
        let entry = entry.map_err(|e| failed(e.into()))?;
        let name = entry.file_name().to_string_lossy();
        if !is_name(&name) {
            continue;
        }
        match read_about(dir.as_fd(), &name) {
            Ok(about) => found.push(Kept { name: name.into_owned(), about }),
            // Destroyed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => {
                return Err(Error::io("read about the snapshot", path.snapshot(&name), error));
            }
        }
    }
    found.sort_by_key(|kept| kept.about.sequence);
    Ok(found)
}

fn read_about(snapshots: BorrowedFd<'_>, name: &str) -> io::Result<About> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(snapshots, format!("{name}/{ABOUT}"), flags, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

/// The content of a snapshot.
///
/// # Errors
///
/// [`Error::NotFound`].
pub(super) fn open_data(snapshot: &SnapshotPath, home: BorrowedFd<'_>) -> Result<OwnedFd> {
    check_name(snapshot)?;
    open_directory(home, format!("{SNAPSHOTS}/{}/{DATA}", snapshot.name)).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(snapshot.to_string()),
            _ => Error::io("open", snapshot, error),
        }
    })
}

impl Dir {
    pub(super) fn make_snapshots(&self, snapshots: &[SnapshotPath]) -> Result<()> {
        // By id, so that all take their locks in the same order.
        let mut homes = BTreeMap::new();
        let mut ids = Vec::new();
        for snapshot in snapshots {
            check_name(snapshot)?;
            let Home { id, fd } = self.store.home(&snapshot.dataset)?;
            ids.push(id.clone());
            homes.insert(id, fd);
        }
        let locks: Vec<_> = homes.keys().map(|id| self.store.locks.of(id, "")).collect();
        let _locks: Vec<_> = locks.iter().map(|lock| lock.write()).collect();

        let draft = self.store.draft()?;
        let mut steps: Vec<Step> = Vec::new();
        for (index, (snapshot, id)) in snapshots.iter().zip(ids).enumerate() {
            let Some(home) = homes.get(&id) else { continue };
            self.store.refuse_gone(&snapshot.dataset, &id)?;
            refuse_existing(snapshot, home.as_fd())?;
            if snapshots.iter().take(index).any(|before| before == snapshot) {
                return Err(Error::Exists(snapshot.to_string()));
            }
            let mut about = About::next(&list(&snapshot.dataset, home.as_fd())?);
            // Those of the same dataset in this call come after each other, too.
            about.sequence += steps.iter().filter(|step| step.dataset() == id).count() as u64;
            let part = index.to_string();
            let data = open_directory(home, DATA)
                .map_err(|error| Error::io("open", &snapshot.dataset, error))?;
            draft
                .make_directory(&part)
                .and_then(|()| about.write(&draft, &part))
                .and_then(|()| copy_into(&draft, data.as_fd(), &format!("{part}/{DATA}")))
                .map_err(|error| Error::io("make the snapshot", snapshot, error))?;
            steps.push(Step::Snapshot { part, dataset: id, name: snapshot.name.clone() });
        }
        let what = snapshots.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        commit(&self.store, draft, &steps)
            .map_err(|error| Error::io("make the snapshot", what, error))
    }

    pub(super) fn remove_snapshot(&self, snapshot: &SnapshotPath) -> Result<bool> {
        check_name(snapshot)?;
        let failed = |error: io::Error| Error::io("destroy", snapshot, error);
        let home = match self.store.home(&snapshot.dataset) {
            Err(Error::NotFound(_)) => return Ok(false),
            other => other?,
        };
        let dead = {
            let lock = self.store.locks.of(&home.id, "");
            let _lock = lock.write();
            if self.store.is_gone(&snapshot.dataset, &home.id)? {
                return Ok(false);
            }
            let snapshots = open_directory(&home.fd, SNAPSHOTS).map_err(failed)?;
            self.store.discard(snapshots.as_fd(), &snapshot.name).map_err(failed)?
        };
        let Some(dead) = dead else { return Ok(false) };
        point();
        let lock = self.store.locks.of(&home.id, &snapshot.name);
        let _lock = lock.write();
        if let Err(error) = remove_tree(self.store.dead.as_fd(), &*dead) {
            tracing::warn!(%snapshot, ?error, "cannot remove what is left of a destroyed snapshot");
        }
        Ok(true)
    }

    pub(super) fn roll_back(&self, snapshot: &SnapshotPath) -> Result<()> {
        let home = self.store.home(&snapshot.dataset)?;
        let lock = self.store.locks.of(&home.id, "");
        let _lock = lock.write();
        self.store.refuse_gone(&snapshot.dataset, &home.id)?;
        let source = open_data(snapshot, home.fd.as_fd())?;
        let present = list(&snapshot.dataset, home.fd.as_fd())?;
        if let Some(last) = present.last().filter(|last| last.name != snapshot.name) {
            return Err(Error::Busy(format!(
                "{snapshot}, which has a newer snapshot, {},",
                last.name
            )));
        }
        self.store.refuse_mounted(&snapshot.dataset, &home.id)?;
        let failed = |error: io::Error| Error::io("roll back to", snapshot, error);
        let draft = self.store.draft()?;
        copy_into(&draft, source.as_fd(), "0").map_err(failed)?;
        let step = Step::content(&draft, "0", &home.id).map_err(failed)?;
        commit(&self.store, draft, &[step]).map_err(failed)
    }
}

pub(super) fn refuse_existing(snapshot: &SnapshotPath, home: BorrowedFd<'_>) -> Result<()> {
    let name = format!("{SNAPSHOTS}/{}", snapshot.name);
    match rustix::fs::statat(home, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Ok(_) => Err(Error::Exists(snapshot.to_string())),
        Err(errno) => Err(Error::io("look up", snapshot, errno)),
    }
}
