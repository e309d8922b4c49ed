//! Snapshots as streams: those of `zfs send`, one snapshot each.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kleened_sys::fs::{Node, list_xattrs};
use kleened_sys::zfs::{ChangeKind, Error as SysError, Kind, NvList, Receive, SendFlags, pool_of};

use super::super::fault::point;
use super::super::{
    Area, DatasetPath, DatasetSpec, Driver, Error, Result, SnapshotPath, Snapshots, Streams,
};
use super::record::Pending;
use super::{IMPORT, Zfs, check_name, failed};

/// How snapshots are sent: with their blocks as they are on the disk. Not embedded ones: in such a stream
/// OpenZFS (2.3.9) loses what a file keeps in an embedded spill block, for example long symbolic links.
pub(super) const SEND: SendFlags =
    SendFlags { large_blocks: true, compressed: true, embedded: false, raw: false };

/// The first record of a stream, `struct drr_begin` in a `dmu_replay_record`, as far as it is needed.
pub(super) struct Begin {
    bytes: [u8; Self::LENGTH],
    /// `None` where it is none that a snapshot may have here.
    snapshot: Option<String>,
    /// Which snapshot it builds on.
    from: Option<u64>,
}

impl Begin {
    const LENGTH: usize = 312;
    const MAGIC: u64 = 0x2_f5ba_cbac;
    /// `DMU_SUBSTREAM`: one snapshot, and not a list of them.
    const SINGLE: u64 = 1;
    /// `DMU_OST_ZFS`.
    const FILE_SYSTEM: u32 = 2;

    pub(super) fn read(input: &mut dyn Read) -> Result<Self> {
        let mut bytes = [0; Self::LENGTH];
        input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("it ends before it has begun"),
            _ => Error::io("read", "the stream", error),
        })?;
        let big = match array(&bytes, 8).map(u64::from_le_bytes) {
            Some(Self::MAGIC) => false,
            Some(other) if other.swap_bytes() == Self::MAGIC => true,
            _ => return Err(bad("this is no stream of zfs send")),
        };
        let number = |at| {
            let number = array(&bytes, at).map_or(0, u64::from_le_bytes);
            if big { number.swap_bytes() } else { number }
        };
        let word = |at| {
            let word = array(&bytes, at).map_or(0, u32::from_le_bytes);
            if big { word.swap_bytes() } else { word }
        };
        if word(0) != 0 || number(16) & 3 != Self::SINGLE {
            return Err(bad(
                "it is of several datasets or has properties with it (zfs send -R or -p): send one \
                 snapshot without them, or receive it with zfs and adopt the dataset",
            ));
        }
        if word(32) != Self::FILE_SYSTEM {
            return Err(bad("it is not of a file system"));
        }
        let name = bytes.get(56..).unwrap_or_default().split(|byte| *byte == 0).next();
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let snapshot = name.and_then(|name| Some(name.split_once('@')?.1));
        let snapshot = snapshot.filter(|name| check_name(name).is_ok());
        let snapshot = snapshot.map(str::to_owned);
        let from = Some(number(48)).filter(|guid| *guid != 0);
        Ok(Self { bytes, snapshot, from })
    }

    fn snapshot(&self) -> Result<&str> {
        self.snapshot.as_deref().ok_or_else(|| bad("it has no valid name of a snapshot"))
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn bad(reason: &str) -> Error {
    Error::BadStream(reason.to_owned())
}

/// How a stream went into the kernel.
enum Fed {
    /// All of it.
    Whole,
    /// The kernel wanted no more of it.
    Refused,
    /// Its other side failed.
    Failed(io::Error),
}

fn interrupted() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the daemon stops")
}

/// Copies what comes to the kernel's pipe.
fn feed(begin: &Begin, input: &mut dyn Read, mut pipe: io::PipeWriter, stop: &AtomicBool) -> Fed {
    let mut buffer = vec![0; 1 << 17];
    let mut rest: &[u8] = &begin.bytes;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Fed::Failed(interrupted());
        }
        match pipe.write_all(rest) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Fed::Refused,
            Err(error) => return Fed::Failed(error),
        }
        rest = loop {
            match input.read(&mut buffer) {
                Ok(0) => return Fed::Whole,
                Ok(length) => break buffer.get(..length).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Fed::Failed(error),
            }
        };
    }
}

/// Copies what comes from the kernel's pipe.
fn drain(pipe: &mut io::PipeReader, out: &mut dyn Write, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        match pipe.read(&mut buffer) {
            Ok(0) => return out.flush(),
            Ok(length) => out.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Zfs {
    /// The stream is received as the snapshot of that full name. Whatever follows it is an error.
    pub(super) fn receive(
        &self,
        object: &SnapshotPath,
        begin: &Begin,
        properties: &NvList,
        input: &mut dyn Read,
    ) -> Result<()> {
        let name = self.snapshot_name(object)?;
        let how = Receive { local: Some(properties), ..Receive::default() };
        let pipe = |error| Error::io("make", "a pipe", error);
        let (reader, writer) = io::pipe().map_err(pipe)?;
        let (received, fed) = thread::scope(|scope| {
            // It ends, and with it the pipe, when the stream does or is of no use.
            let receiver = scope.spawn(|| {
                let reader = reader;
                let received = self.zfs.receive(&name, &how, reader.as_fd());
                // More than a stream: the kernel leaves it in the pipe.
                let more =
                    received.is_ok() && (&reader).read(&mut [0]).is_ok_and(|length| length > 0);
                received.map(|_| more)
            });
            let fed = feed(begin, input, writer, &self.stop);
            (receiver.join(), fed)
        });
        let received = match received {
            Ok(received) => received,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (received, fed) {
            (Ok(false), Fed::Whole) => Ok(()),
            (Ok(false), Fed::Failed(error)) | (Err(_), Fed::Failed(error)) => {
                Err(Error::io("read the stream of", object, error))
            }
            (Ok(_), _) => Err(bad("it goes on after its end")),
            (Err(error), _) => Err(self.not_received(object, error)),
        }
    }

    fn not_received(&self, object: &SnapshotPath, error: SysError) -> Error {
        match error.kind() {
            Kind::NoSpace | Kind::QuotaExceeded | Kind::Busy | Kind::Suspended | Kind::ReadOnly => {
                failed("receive", object, error)
            }
            Kind::NotPermitted | Kind::Interrupted => failed("receive", object, error),
            _ => Error::BadStream(error.to_string()),
        }
    }

    /// Makes sure that a snapshot is the newest and that nothing has changed since, but for the owner and
    /// mode of the root directory, which are returned where anything of that directory has.
    fn unchanged(&self, path: &DatasetPath, from: u64) -> Result<(String, Option<Pending>)> {
        let name = self.name(path)?;
        let all = self.zfs.snapshots(&name);
        let all = all.map_err(|error| self.failed("list the snapshots of", path, error))?;
        let Some(newest) = all.last() else {
            return Err(bad("its base is not here; there are no snapshots"));
        };
        if newest.guid != from {
            return Err(Error::BadStream(if all.iter().any(|snapshot| snapshot.guid == from) {
                format!("there are newer snapshots than its base; the newest is {}", newest.name)
            } else {
                format!("its base is not here; the newest snapshot is {}", newest.name)
            }));
        }
        let base = format!("{name}@{}", newest.name);
        let compare = |error| failed("compare", path, error);
        self.zfs.sync(pool_of(&name)).map_err(compare)?;
        let written = self.zfs.properties(&name, &["written"]).map_err(compare)?;
        if written.number("written") == Some(0) {
            return Ok((base, None));
        }
        let top = self.mountpoint(path);
        let mut changed = None;
        let compared = self.zfs.diff(&base, &name, |change| {
            if change.kind != ChangeKind::Modified || change.path != top {
                changed.get_or_insert(change.path);
            }
        });
        compared.map_err(compare)?;
        // Attributes and ACLs of the root directory would be lost.
        if changed.is_none() {
            let mut names = Vec::new();
            let listed =
                File::open(&top).and_then(|top| list_xattrs(Node::Open(top.as_fd()), &mut names));
            match listed {
                // The dataset has `xattr=off`.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => other
                    .map_err(|error| Error::io("list the attributes of", top.display(), error))?,
            }
            let mut names = names.split(|byte| *byte == 0);
            // The host's security module gives its own to everything.
            if names.any(|name| !name.is_empty() && !name.starts_with(b"security.")) {
                changed = Some(top);
            }
        }
        if let Some(changed) = changed {
            return Err(Error::BadStream(format!(
                "{path} has changed since its snapshot {}, for example {}; roll back to it first",
                newest.name,
                changed.display()
            )));
        }
        Ok((base, Some(self.owner_and_mode(path)?)))
    }
}

/// A new name for what is being received.
pub(super) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::io("get", "random bytes", io::Error::other(error)))?;
    Ok(u64::from_ne_bytes(bytes))
}

pub(super) fn draft() -> Result<DatasetPath> {
    let name = format!("{}/{IMPORT}{:016x}", Area::Scratch.as_str(), random()?);
    name.parse().map_err(|error| Error::io("name", name, io::Error::other(error)))
}

impl Streams for Zfs {
    fn export(
        &self,
        snapshot: &SnapshotPath,
        base: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let missing = || Error::NotFound(snapshot.to_string());
        let name = self.find(snapshot)?.ok_or_else(missing)?;
        let present = self.snapshots(&snapshot.dataset)?;
        let find = |name: &str| {
            let missing = || Error::NotFound(snapshot.dataset.snapshot(name).to_string());
            present.iter().position(|kept| kept.name == name).ok_or_else(missing)
        };
        let new = find(&snapshot.name)?;
        if let Some(base) = base {
            check_name(base)?;
            if find(base)? >= new {
                let reason = format!("the base, {base}, is not older than {}", snapshot.name);
                return Err(Error::Invalid(reason));
            }
        }
        let base = match base {
            Some(base) => self.find(&snapshot.dataset.snapshot(base))?,
            None => None,
        };
        let (mut reader, writer) =
            io::pipe().map_err(|error| Error::io("make", "a pipe", error))?;
        let (sent, copied) = thread::scope(|scope| {
            // The pipe ends with the thread.
            let sender = scope.spawn(|| {
                let writer = writer;
                self.zfs.send(&name, base.as_deref(), SEND, writer.as_fd())
            });
            let copied = drain(&mut reader, out, &self.stop);
            // Where `out` failed, the sender is not to wait for it.
            drop(reader);
            (sender.join(), copied)
        });
        let sent = match sent {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        copied.map_err(|error| Error::io("write the stream of", snapshot, error))?;
        sent.map_err(|error| failed("send", snapshot, error))
    }

    fn import(&self, path: &DatasetPath, spec: &DatasetSpec, input: &mut dyn Read) -> Result<()> {
        let name = self.name(path)?;
        let properties = self.properties(spec)?;
        let _held = self.locks.hold(&[path]);
        if self.look(path)?.is_some() {
            return Err(Error::Exists(path.to_string()));
        }
        let begin = Begin::read(input)?;
        if begin.from.is_some() {
            return Err(bad("it is incremental, and there is no dataset to receive it onto"));
        }
        let snapshot = begin.snapshot()?;
        self.snapshot_name(&path.snapshot(snapshot))?;
        // What is being received has a name already; it gets its own when it is whole.
        let draft = draft()?;
        let taken_back = |error| {
            if let Err(error) = self.remove(&draft) {
                tracing::warn!(%draft, %error, "cannot remove a draft; the next start will");
            }
            error
        };
        let received = self.receive(&draft.snapshot(snapshot), &begin, &properties, input);
        received.map_err(taken_back)?;
        point();
        self.make(path, spec, || {
            let renamed = self.zfs.rename(&self.name(&draft)?, &name);
            renamed.map_err(|error| self.failed("import", path, error))
        })
        .map_err(taken_back)
    }

    fn import_onto(&self, path: &DatasetPath, input: &mut dyn Read) -> Result<()> {
        let _held = self.locks.hold(&[path]);
        self.ours(path)?;
        self.mount_at_home(path)?;
        let begin = Begin::read(input)?;
        let from = begin.from.ok_or_else(|| bad("it is a full one, and a dataset is there"))?;
        let (base, pending) = self.unchanged(path, from)?;
        let name = self.name(path)?;
        let snapshot = path.snapshot(begin.snapshot()?);
        let none = NvList::new().map_err(|error| failed("import", path, error))?;
        if let Some(pending) = pending {
            // The kernel takes no change at all. A crash from here on gives the directory its owner back.
            self.intend(path, Some(pending))?;
            if let Err(error) = self.zfs.rollback_to(&name, &base) {
                self.done(path);
                return Err(failed("import", path, error));
            }
            point();
        }
        let mut received = self.receive(&snapshot, &begin, &none, input);
        if received.is_err() {
            // It may have been received whole, with more after it.
            let full = self.snapshot_name(&snapshot)?;
            if self.zfs.exists(&full).unwrap_or(false)
                && self.snapshots(path)?.last().is_some_and(|last| last.name == snapshot.name)
                && full != base
            {
                let undone = self.zfs.destroy_snapshots(&[&full], false);
                let undone = undone.and_then(|()| self.zfs.rollback_to(&name, &base));
                if let Err(error) = undone {
                    received = Err(failed("take back", &snapshot, error));
                }
            }
        }
        if let Some(pending) = pending {
            self.give(path, pending)?;
            self.done(path);
        }
        received
    }
}
