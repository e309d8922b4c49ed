//! Several changes as one: they are prepared in a draft, decided by one rename of it, and then made,
//! by this process or, after a crash, by the next.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use kleened_sys::fs::{open_directory, remove_tree, rename_noreplace, sync_dir};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::point;
use super::store::{DATA, Draft, SNAPSHOTS, Store};

const STEPS: &str = "steps";

/// A change. Each can be made again when it was made before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// The folder `part` becomes a snapshot.
    Snapshot {
        /// The folder in the draft.
        part: String,
        /// The id of the dataset.
        dataset: String,
        /// The snapshot's name.
        name: String,
    },
    /// The folder `part` becomes the dataset's content, and the present content takes its place.
    Content {
        /// The folder in the draft.
        part: String,
        /// The id of the dataset.
        dataset: String,
        /// Its inode number, which tells whether the two have changed places.
        inode: u64,
    },
}

impl Step {
    pub(super) fn content(draft: &Draft<'_>, part: &str, dataset: &str) -> io::Result<Self> {
        let inode = inode(draft.fd(), part)?.ok_or(Errno::NOENT)?;
        Ok(Self::Content { part: part.to_owned(), dataset: dataset.to_owned(), inode })
    }

    pub(super) fn dataset(&self) -> &str {
        match self {
            Self::Snapshot { dataset, .. } | Self::Content { dataset, .. } => dataset,
        }
    }

    /// Makes the change, in the dataset's own directory.
    fn make(&self, batch: BorrowedFd<'_>, home: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Snapshot { part, name, .. } => {
                let snapshots = open_directory(home, SNAPSHOTS)?;
                if inode(batch, part)?.is_some() {
                    rename_noreplace(batch, &**part, snapshots.as_fd(), &**name)?;
                }
                sync_dir(&snapshots)
            }
            Self::Content { part, inode: wanted, .. } => {
                if inode(batch, part)? == Some(*wanted) {
                    exchange(batch, part, home)?;
                }
                sync_dir(home)
            }
        }
    }

    /// Takes the change back, if it was made.
    fn undo(&self, batch: BorrowedFd<'_>, home: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Snapshot { part, name, .. } => {
                if inode(batch, part)?.is_none() {
                    let snapshots = open_directory(home, SNAPSHOTS)?;
                    rename_noreplace(snapshots.as_fd(), &**name, batch, &**part)?;
                }
                Ok(())
            }
            Self::Content { part, inode: wanted, .. } => {
                if inode(home, DATA)? == Some(*wanted) {
                    exchange(batch, part, home)?;
                }
                Ok(())
            }
        }
    }
}

/// All steps are made, durably. The callers hold the locks of their datasets.
///
/// # Errors
///
/// What the calls say; then none is made, or, where even that could not be brought about, all will
/// be at the next start.
pub(super) fn commit(store: &Store, mut draft: Draft<'_>, steps: &[Step]) -> io::Result<()> {
    draft.write(STEPS, &serde_json::to_vec(steps)?)?;
    sync_dir(draft.fd())?;
    point();
    rustix::fs::renameat(&store.new, &*draft.id, &store.commit, &*draft.id)?;
    let made = sync_dir(&store.commit)
        .and_then(|()| steps.iter().try_for_each(|step| make(store, draft.fd(), step)));
    if let Err(error) = made {
        let undone = steps.iter().rev().try_for_each(|step| {
            let home = open_directory(&store.datasets, step.dataset())?;
            step.undo(draft.fd(), home.as_fd())
        });
        // Back to the drafts, which are removed.
        let undone = undone.and_then(|()| {
            Ok(rustix::fs::renameat(&store.commit, &*draft.id, &store.new, &*draft.id)?)
        });
        if let Err(error) = undone {
            draft.placed = true;
            tracing::warn!(id = draft.id, %error, "cannot take changes back; the next start makes them");
        }
        return Err(error);
    }
    draft.placed = true;
    point();
    if let Err(error) = remove_tree(store.commit.as_fd(), &*draft.id) {
        tracing::warn!(id = draft.id, ?error, "cannot remove what is left of finished changes");
    }
    Ok(())
}

fn make(store: &Store, batch: BorrowedFd<'_>, step: &Step) -> io::Result<()> {
    point();
    step.make(batch, open_directory(&store.datasets, step.dataset())?.as_fd())
}

/// Makes what a crash kept from being made.
///
/// # Errors
///
/// What the calls say; a later start tries again.
pub(super) fn resume(store: &Store, id: &str) -> io::Result<()> {
    let batch = open_directory(&store.commit, id)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&batch, STEPS, flags, Mode::empty()) {
        Ok(file) => {
            let mut text = String::new();
            std::fs::File::from(file).read_to_string(&mut text)?;
            for step in serde_json::from_str::<Vec<Step>>(&text)? {
                match open_directory(&store.datasets, step.dataset()) {
                    Ok(home) => step.make(batch.as_fd(), home.as_fd())?,
                    // Destroyed since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                    Err(error) => return Err(error),
                }
            }
        }
        // All was made, and a part of this folder is removed already.
        Err(Errno::NOENT) => (),
        Err(errno) => return Err(errno.into()),
    }
    remove_tree(store.commit.as_fd(), id).map(drop)
}

/// The two directories change places.
fn exchange(batch: BorrowedFd<'_>, part: &str, home: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::RenameFlags;
        match rustix::fs::renameat_with(batch, part, home, DATA, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS) => (),
            other => return Ok(other?),
        }
    }
    // Where the kernel can't, there is a moment without content; after a crash in it, this goes on.
    let aside = format!("{part}.old");
    match rustix::fs::renameat(home, DATA, batch, &*aside) {
        Ok(()) | Err(Errno::NOENT) => (),
        Err(errno) => return Err(errno.into()),
    }
    rustix::fs::renameat(batch, part, home, DATA)?;
    match rustix::fs::renameat(batch, &*aside, batch, part) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[allow(clippy::useless_conversion, reason = "the widths differ from system to system")]
fn inode(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<u64>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_ino.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
