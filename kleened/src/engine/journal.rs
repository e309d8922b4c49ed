//! The journal: what a verb of several steps is about to do, written before the first step.
//!
//! One small file for each verb under way. At start every file that is left is replayed, which ends
//! in the state before the verb or in the state after it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kleened_api::Id;
use kleened_api::mount::MountPointConfig;
use kleened_sys::fs;
use serde::{Deserialize, Serialize};

/// What a verb is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Intent {
    /// Make a container, and these volumes for it. The container is there last: without it the
    /// volumes go again.
    CreateContainer { id: Id, volumes: Vec<String> },
    /// Take back a container that could not be made, whatever is left of it, and the volumes that were
    /// made for it.
    DiscardContainer { id: Id, volumes: Vec<String> },
    /// Put the filled dataset `fresh` into the place of the volume, which steps aside as `old`.
    Populate { volume: String, fresh: Id, old: Id },
    /// Mount it in a container that runs, which then has it.
    Attach { container: Id, mount: MountPointConfig },
    /// Unmount it in a container that runs, which then has it no more.
    Detach { container: Id, mount: MountPointConfig },
    /// Make an image of a snapshot of others' dataset, which is made for it and goes with it.
    CreateImage { id: Id, snapshot: String },
    /// Make a volume of what another has now, of which there is that snapshot meanwhile.
    CloneVolume { from: String, snapshot: String },
    /// Run freebsd-update in a container on an image that is being made.
    UpdateImage { id: Id },
}

/// The journal's directory.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    directory: File,
}

/// An intent that is written down. It stays written until [`done`](Self::done).
#[derive(Debug)]
#[must_use = "an entry that is not done is replayed at the next start"]
pub(super) struct Entry<'a> {
    journal: &'a Journal,
    name: String,
}

impl Journal {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned(), directory: File::open(path)? })
    }

    /// The intent survives a crash from now on.
    pub(super) fn begin(&self, id: &Id, intent: &Intent) -> io::Result<Entry<'_>> {
        let name = format!("{id}.json");
        let text = serde_json::to_vec(intent)?;
        fs::write_atomically(self.directory.as_fd(), &name, &text, 0o600)?;
        Ok(Entry { journal: self, name })
    }

    /// What was begun and not done when the daemon ended, each with its entry.
    pub(super) fn left(&self) -> io::Result<Vec<(Intent, Entry<'_>)>> {
        let mut left = Vec::new();
        for file in std::fs::read_dir(&self.path)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            // What write_atomically had not renamed yet was never begun.
            if !name.ends_with(".json") {
                std::fs::remove_file(file.path())?;
                continue;
            }
            let intent = serde_json::from_slice(&std::fs::read(file.path())?)?;
            left.push((intent, Entry { journal: self, name }));
        }
        Ok(left)
    }
}

impl Entry<'_> {
    /// The verb is at one of its ends, and the intent is forgotten for good: were it to come back
    /// after a power failure, it would be replayed on what others did since. A repeat is safe.
    pub(super) fn done(&self) -> io::Result<()> {
        match std::fs::remove_file(self.journal.path.join(&self.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.journal.directory.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_left() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path()).unwrap();
        let id = |text: &str| text.parse::<Id>().unwrap();
        let intent = |name: &str| Intent::CreateContainer {
            id: id("aaaaaaaaaaaa"),
            volumes: vec![name.into()],
        };
        let kept = journal.begin(&id("aaaaaaaaaaaa"), &intent("kept")).unwrap();
        journal.begin(&id("bbbbbbbbbbbb"), &intent("done")).unwrap().done().unwrap();
        std::mem::forget(kept);
        std::fs::write(home.path().join("half"), "{").unwrap();

        let journal = Journal::open(home.path()).unwrap();
        let mut left = journal.left().unwrap();
        let (found, entry) = left.pop().unwrap();
        assert_eq!((found, left.len()), (intent("kept"), 0));
        entry.done().unwrap();
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
