//! Snapshots: whole copies beside the data.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_api::Timestamp;
use kleened_api::name::is_name;
use kleened_sys::fs::{open_directory, remove_tree, rename_noreplace, sync_dir};
use rustix::fs::{AtFlags, Dir as Listing, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::{
    DatasetPath, DatasetSpec, Driver, Error, Result, Snapshot, SnapshotPath, Snapshots,
};
use super::batch::{Step, commit};
use super::store::{DATA, Draft, Home, SNAPSHOTS, random_name};
use super::{Dir, copy_into, point, used};

pub(super) const ABOUT: &str = "about";

/// The file that is in a snapshot's folder while it is held.
const HELD: &str = "held";

/// What is kept with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// What tells it from all others, on this host or another.
    pub(super) guid: String,
    /// When it was made.
    pub(super) created: Timestamp,
    /// Its place among the dataset's snapshots: clocks may go back.
    pub(super) sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<String>,
}

impl About {
    /// Of a new snapshot, after those that there are.
    pub(super) fn next(present: &[Kept]) -> Self {
        let sequence = present.last().map_or(0, |last| last.about.sequence) + 1;
        Self { guid: random_name(), created: Timestamp::now(), sequence, record: None }
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
    held: bool,
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
            Ok(about) => {
                let held = is_held(dir.as_fd(), &name).map_err(failed)?;
                found.push(Kept { name: name.into_owned(), about, held });
            }
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

fn is_held(snapshots: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match rustix::fs::statat(snapshots, format!("{name}/{HELD}"), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// # Errors
///
/// [`Error::Busy`] where one of these snapshots of the dataset is held.
pub(super) fn refuse_held(path: &DatasetPath, snapshots: BorrowedFd<'_>) -> Result<()> {
    let failed = |errno: Errno| Error::io("list the snapshots of", path, errno);
    for entry in Listing::read_from(snapshots).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy();
        if is_name(&name)
            && is_held(snapshots, &name).map_err(|e| Error::io("look into", path, e))?
        {
            return Err(held(&path.snapshot(&name)));
        }
    }
    Ok(())
}

fn held(snapshot: &SnapshotPath) -> Error {
    Error::Busy(format!("{snapshot}, which is held,"))
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
    /// The folder of the snapshots of a dataset, in which there is this one.
    fn snapshots_with(&self, snapshot: &SnapshotPath, home: &Home) -> Result<OwnedFd> {
        check_name(snapshot)?;
        self.store.refuse_gone(&snapshot.dataset, &home.id)?;
        let failed = |error: io::Error| Error::io("look up", snapshot, error);
        let dir = open_directory(&home.fd, SNAPSHOTS).map_err(failed)?;
        match rustix::fs::statat(&dir, &*snapshot.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(dir),
            Err(Errno::NOENT) => Err(Error::NotFound(snapshot.to_string())),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

impl Snapshots for Dir {
    fn snapshot(&self, snapshots: &[SnapshotPath], record: &str) -> Result<()> {
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
            about.record = (!record.is_empty()).then(|| record.to_owned());
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

    fn snapshots(&self, path: &DatasetPath) -> Result<Vec<Snapshot>> {
        let home = self.store.home(path)?;
        let all = list(path, home.fd.as_fd());
        let all = self.store.settle(path, &home.id, all)?;
        let show = |Kept { name, about, held }| Snapshot {
            name,
            created: about.created,
            record: about.record,
            held,
        };
        Ok(all.into_iter().map(show).collect())
    }

    fn snapshot_usage(&self, snapshot: &SnapshotPath) -> Result<u64> {
        let home = self.store.home(&snapshot.dataset)?;
        let kept = self.store.locks.of(&home.id, &snapshot.name);
        let _kept = kept.read();
        let data = open_data(snapshot, home.fd.as_fd())?;
        used(data.as_fd()).map_err(|error| Error::io("measure", snapshot, error))
    }

    fn destroy_snapshot(&self, snapshot: &SnapshotPath) -> Result<bool> {
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
            if is_held(snapshots.as_fd(), &snapshot.name).map_err(failed)? {
                return Err(held(snapshot));
            }
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

    fn rename_snapshot(&self, snapshot: &SnapshotPath, to: &str) -> Result<()> {
        let new = snapshot.dataset.snapshot(to);
        check_name(&new)?;
        let home = self.store.home(&snapshot.dataset)?;
        let lock = self.store.locks.of(&home.id, "");
        let _lock = lock.write();
        let dir = self.snapshots_with(snapshot, &home)?;
        // Who copies it has found it by its old name, and must keep it by that.
        let kept = self.store.locks.of(&home.id, &snapshot.name);
        let _kept = kept.write();
        rename_noreplace(dir.as_fd(), &*snapshot.name, dir.as_fd(), to)
            .and_then(|()| sync_dir(&dir))
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists(new.to_string()),
                _ => Error::io("rename", snapshot, error),
            })
    }

    fn hold(&self, snapshot: &SnapshotPath, held: bool) -> Result<()> {
        let home = self.store.home(&snapshot.dataset)?;
        let lock = self.store.locks.of(&home.id, "");
        let _lock = lock.write();
        let dir = self.snapshots_with(snapshot, &home)?;
        let failed = |error: io::Error| Error::io("hold", snapshot, error);
        let dir = open_directory(&dir, &*snapshot.name).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let done = match held {
            true => rustix::fs::openat(&dir, HELD, flags, Mode::RUSR).map(drop),
            false => rustix::fs::unlinkat(&dir, HELD, AtFlags::empty()),
        };
        match done {
            Err(Errno::NOENT) if !held => Ok(()),
            done => done.map_err(io::Error::from).and_then(|()| sync_dir(&dir)).map_err(failed),
        }
    }

    fn rollback(&self, snapshot: &SnapshotPath) -> Result<()> {
        let home = self.store.home(&snapshot.dataset)?;
        let lock = self.store.locks.of(&home.id, "");
        let _lock = lock.write();
        self.store.refuse_gone(&snapshot.dataset, &home.id)?;
        let source = open_data(snapshot, home.fd.as_fd())?;
        self.store.refuse_mounted(&snapshot.dataset, &home.id)?;
        let failed = |error: io::Error| Error::io("roll back to", snapshot, error);
        let draft = self.store.draft()?;
        copy_into(&draft, source.as_fd(), "0").map_err(failed)?;
        let step = Step::content(&draft, "0", &home.id).map_err(failed)?;
        commit(&self.store, draft, &[step]).map_err(failed)
    }

    fn clone_from(
        &self,
        snapshot: &SnapshotPath,
        to: &DatasetPath,
        spec: &DatasetSpec,
    ) -> Result<()> {
        spec.refuse_limits(self.name())?;
        self.store.refuse_existing(to)?;
        let home = self.store.home(&snapshot.dataset)?;
        let kept = self.store.locks.of(&home.id, &snapshot.name);
        let _kept = kept.read();
        self.store.refuse_gone(&snapshot.dataset, &home.id)?;
        let source = open_data(snapshot, home.fd.as_fd())?;
        let draft = self.store.draft()?;
        copy_into(&draft, source.as_fd(), DATA)
            .map_err(|error| Error::io("clone", format!("{snapshot} to {to}"), error))?;
        self.publish(draft, to, spec)
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
