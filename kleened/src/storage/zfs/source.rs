//! Datasets of others, as what new ones begin with.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;

use kleened_sys::zfs as sys;
use kleened_sys::zfs::{Kind, NvList};

use super::super::fault::point;
use super::super::{DatasetPath, DatasetSpec, Error, Result, Sources};
use super::stream::{Begin, SEND, draft};
use super::{NO_KEY, Zfs, failed, is_below};

/// What the snapshot is called here that a copy is received as, and that goes at once.
const RECEIVED: &str = "received";

fn refuse(dataset: &str, reason: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("{dataset}: {reason}"))
}

/// The dataset that a snapshot is of.
pub(super) fn dataset_of(snapshot: &str) -> &str {
    snapshot.split('@').next().unwrap_or(snapshot)
}

/// What comes through, and whoever is told of it.
struct Counted<'a, R> {
    input: R,
    moved: &'a mut dyn FnMut(usize) -> io::Result<()>,
    /// Why it is not to go on.
    stopped: Option<io::Error>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        (self.moved)(read).map_err(|error| {
            self.stopped = Some(error);
            // Not of a kind after which one reads again.
            io::ErrorKind::ConnectionAborted
        })?;
        Ok(read)
    }
}

impl Zfs {
    /// Makes sure that the dataset is a file system that can be read.
    fn is_source(&self, dataset: &str) -> Result<()> {
        let found = self.zfs.properties(dataset, &["type", "keystatus"]);
        let found = found.map_err(|error| match error.kind() {
            Kind::NotFound | Kind::Invalid | Kind::NameTooLong => {
                Error::NotFound(dataset.to_owned())
            }
            _ => failed("look up", dataset, error),
        })?;
        if !found.is_file_system() {
            return Err(refuse(dataset, "it is not a file system"));
        }
        if found.lacks_key() {
            return Err(refuse(dataset, NO_KEY));
        }
        Ok(())
    }

    /// Makes sure that there is such a snapshot of a file system that can be read.
    fn is_source_snapshot(&self, snapshot: &str) -> Result<()> {
        self.is_source(dataset_of(snapshot))?;
        match self.zfs.exists(snapshot) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::NotFound(snapshot.to_owned())),
            Err(error) => Err(failed("look up", snapshot, error)),
        }
    }

    /// The snapshot is received as `draft`.
    fn copy_to(
        &self,
        snapshot: &str,
        draft: &DatasetPath,
        properties: &NvList,
        moved: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<()> {
        let pipe = |error| Error::io("make", "a pipe", error);
        let (reader, writer) = io::pipe().map_err(pipe)?;
        let mut counted = Counted { input: reader, moved, stopped: None };
        let (sent, received) = thread::scope(|scope| {
            // The pipe ends with the thread.
            let sender = scope.spawn(|| {
                let writer = writer;
                self.zfs.send(snapshot, None, SEND, writer.as_fd())
            });
            let received = Begin::read(&mut counted).and_then(|begin| {
                let target = draft.snapshot(RECEIVED);
                self.receive(&target, &begin, properties, &mut counted)
            });
            let Counted { input, stopped, .. } = counted;
            // Where nothing was received, the sender is not to wait for it.
            drop(input);
            let received = match stopped {
                Some(error) => Err(Error::io("copy", snapshot, error)),
                None => received,
            };
            (sender.join(), received)
        });
        let sent = match sent {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (sent, received) {
            // It is why nothing was received.
            (Err(error), _) if error.kind() != Kind::BrokenPipe => {
                Err(failed("send", snapshot, error))
            }
            (_, received) => received,
        }
    }
}

impl Sources for Zfs {
    fn mark(&self, dataset: &str, name: &str) -> Result<String> {
        self.is_source(dataset)?;
        let snapshot = format!("{dataset}@{name}");
        let none = NvList::new().map_err(|error| failed("snapshot", dataset, error))?;
        let made = self.zfs.snapshot(&[&snapshot], &none);
        made.map_err(|error| match error.kind() {
            Kind::Exists => Error::Exists(snapshot.clone()),
            Kind::NotFound => Error::NotFound(dataset.to_owned()),
            _ => failed("snapshot", dataset, error),
        })?;
        Ok(snapshot)
    }

    fn unmark(&self, snapshot: &str) -> Result<()> {
        match self.zfs.destroy_snapshots(&[snapshot], true) {
            Err(error) if error.kind() != Kind::NotFound => Err(failed("destroy", snapshot, error)),
            _ => Ok(()),
        }
    }

    fn copy_of(
        &self,
        snapshot: &str,
        to: &DatasetPath,
        spec: &DatasetSpec,
        moved: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<()> {
        let name = self.name(to)?;
        let properties = self.properties(spec)?;
        let _held = self.locks.hold(&[to]);
        if self.look(to)?.is_some() {
            return Err(Error::Exists(to.to_string()));
        }
        self.is_source_snapshot(snapshot)?;
        let draft = draft()?;
        let taken_back = |error| {
            if let Err(error) = self.remove(&draft) {
                tracing::warn!(%draft, %error, "cannot remove a draft; the next start will");
            }
            error
        };
        self.copy_to(snapshot, &draft, &properties, moved).map_err(taken_back)?;
        point();
        let received = self.snapshot_name(&draft.snapshot(RECEIVED))?;
        let gone = self.zfs.destroy_snapshots(&[&received], false);
        gone.map_err(|error| failed("destroy", &received, error)).map_err(taken_back)?;
        point();
        self.make(to, spec, || {
            let renamed = self.zfs.rename(&self.name(&draft)?, &name);
            renamed.map_err(|error| self.failed("copy", to, error))
        })
        .map_err(taken_back)
    }

    fn clone_of(&self, snapshot: &str, to: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        let name = self.name(to)?;
        let properties = self.properties(spec)?;
        let dataset = dataset_of(snapshot);
        if sys::pool_of(dataset) != sys::pool_of(&self.root) {
            let reason = format!("it is in another pool than {}: copy it", self.root);
            return Err(refuse(dataset, reason));
        }
        if dataset == self.root || is_below(dataset, &self.root) {
            let reason = format!("it is a part of {}, which needs it itself: copy it", self.root);
            return Err(refuse(dataset, reason));
        }
        let _held = self.locks.hold(&[to]);
        self.is_source_snapshot(snapshot)?;
        self.make(to, spec, || {
            let made = self.zfs.clone_from(&name, snapshot, &properties);
            made.map_err(|error| self.not_made("clone", to, error))
        })
    }
}
