//! Snapshots as streams.
//!
//! A stream is a pax archive in a zstd frame with a checksum, so that `tar --zstd -x` gets at the
//! content of a full one without this program. Global pax records say what it is:
//!
//! | record | |
//! | --- | --- |
//! | `KLEENE.stream` | the version of the format, `1` |
//! | `KLEENE.snapshot` | the snapshot's name |
//! | `KLEENE.guid` | what tells the snapshot from all others |
//! | `KLEENE.created` | when it was made |
//! | `KLEENE.base` | incremental: the guid of the snapshot that it builds on |
//!
//! An incremental stream has every directory, the entries that differ, and for each path that is to
//! be removed first an empty file with the record `KLEENE.removed`.

use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use kleened_sys::fs::open_directory;
use rustix::fs::{FileType, Stat};

use super::super::{DatasetPath, DatasetSpec, Driver, Error, Result, SnapshotPath, Streams};
use super::batch::{Step, commit};
use super::changes::{Change, compare};
use super::snapshot::{About, Kept, list, open_data, refuse_existing};
use super::store::{DATA, Draft, SNAPSHOTS};
use super::{Dir, copy_into, point, sync_file_system};
use crate::archive::{self, Extract, Extractor, Links, Reader, Walk, Writer, next};

const VERSION: &str = "1";

/// What a stream says about itself.
struct Header {
    snapshot: String,
    about: About,
    base: Option<String>,
}

impl Header {
    fn write<W: Write>(
        &self,
        writer: &mut Writer<'_, W>,
    ) -> std::result::Result<(), archive::Error> {
        let created = self.about.created.to_string();
        let mut records = vec![
            ("KLEENE.stream", VERSION),
            ("KLEENE.snapshot", &self.snapshot),
            ("KLEENE.guid", &self.about.guid),
            ("KLEENE.created", &created),
        ];
        records.extend(self.base.as_deref().map(|guid| ("KLEENE.base", guid)));
        writer.global(records)
    }

    /// After the first entry was read.
    fn read(reader: &Reader<'_>) -> Result<Self> {
        let text = |key: &str| {
            let value = reader.global().get(key.as_bytes())?;
            String::from_utf8(value.clone()).ok()
        };
        match text("KLEENE.stream").as_deref() {
            Some(VERSION) => (),
            Some(other) => {
                let reason =
                    format!("its format is '{}', this version knows '1'", other.escape_debug());
                return Err(Error::BadStream(reason));
            }
            None => return Err(bad("this is an archive, and no stream of a snapshot")),
        }
        let guid = text("KLEENE.guid").ok_or_else(|| bad("it does not say of what it is"))?;
        let snapshot = text("KLEENE.snapshot").filter(|name| kleened_api::name::is_name(name));
        let snapshot = snapshot.ok_or_else(|| bad("it has no valid name of a snapshot"))?;
        let created = text("KLEENE.created").and_then(|text| text.parse().ok());
        let created = created.ok_or_else(|| bad("it does not say when it was made"))?;
        let about = About { guid, created, sequence: 1, record: None };
        Ok(Self { snapshot, about, base: text("KLEENE.base") })
    }
}

fn bad(reason: &str) -> Error {
    Error::BadStream(reason.to_owned())
}

/// What a failure of the archive means for `object`.
fn failed(verb: &'static str, object: &SnapshotPath, error: archive::Error) -> Error {
    match error {
        archive::Error::Read(source) => Error::io("read the stream of", object, source),
        archive::Error::Write(source) => Error::io("write the stream of", object, source),
        archive::Error::Io { verb, entry, source } => {
            Error::io(verb, format!("'{entry}' of {object}"), source)
        }
        archive::Error::Cancelled => Error::io(verb, object, io::ErrorKind::Interrupted),
        other => Error::BadStream(other.to_string()),
    }
}

impl Streams for Dir {
    fn export(
        &self,
        snapshot: &SnapshotPath,
        base: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<()> {
        let home = self.store.home(&snapshot.dataset)?;
        let names = [Some(&*snapshot.name), base];
        let locks = names.into_iter().flatten().map(|name| self.store.locks.of(&home.id, name));
        let locks: Vec<_> = locks.collect();
        let _kept: Vec<_> = locks.iter().map(|lock| lock.read()).collect();
        self.store.refuse_gone(&snapshot.dataset, &home.id)?;

        let present = list(&snapshot.dataset, home.fd.as_fd())?;
        let find = |name: &str| {
            let missing = || Error::NotFound(snapshot.dataset.snapshot(name).to_string());
            present.iter().find(|kept| kept.name == name).ok_or_else(missing)
        };
        let new = find(&snapshot.name)?;
        let old = base.map(find).transpose()?;
        if let Some(old) = old.filter(|old| old.about.sequence >= new.about.sequence) {
            let reason = format!("the base, {}, is not older than {}", old.name, new.name);
            let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
            return Err(Error::io("export", snapshot, source));
        }
        let header = Header {
            snapshot: new.name.clone(),
            about: new.about.clone(),
            base: old.map(|old| old.about.guid.clone()),
        };
        let data = open_data(snapshot, home.fd.as_fd())?;
        let base = match old {
            Some(old) => Some(open_data(&snapshot.dataset.snapshot(&old.name), home.fd.as_fd())?),
            None => None,
        };
        let base = base.as_ref().map(|fd| fd.as_fd());
        write(&header, base, data.as_fd(), out).map_err(|error| failed("export", snapshot, error))
    }

    fn import(&self, path: &DatasetPath, spec: &DatasetSpec, input: &mut dyn Read) -> Result<()> {
        spec.refuse_limits(self.name())?;
        self.store.refuse_existing(path)?;
        let unnamed = path.snapshot("?");
        let fault = |error| failed("import", &unnamed, error);
        let mut reader = Reader::new(input).map_err(fault)?;
        let mut entry = reader.next().map_err(fault)?;
        let mut header = Header::read(&reader)?;
        if header.base.take().is_some() {
            return Err(bad("it is incremental, and there is no dataset to receive it onto"));
        }
        let snapshot = path.snapshot(&header.snapshot);
        let fault = |error| failed("import", &snapshot, error);
        let made = |error: io::Error| Error::io("import", &snapshot, error);

        let draft = self.store.draft()?;
        let part = format!("{SNAPSHOTS}/{}", header.snapshot);
        let data = format!("{part}/{DATA}");
        for name in [SNAPSHOTS, &part, &data] {
            draft.make_directory(name).map_err(made)?;
        }
        let to = open_directory(draft.fd(), &*data).map_err(made)?;
        let mut extractor = Extractor::new(to.as_fd(), Extract { devices: true, progress: None });
        while let Some(present) = entry {
            extractor.apply(present, &mut reader.data()).map_err(fault)?;
            entry = reader.next().map_err(fault)?;
        }
        extractor.finish().map_err(fault)?;
        header.about.write(&draft, &part).map_err(made)?;
        copy_into(&draft, to.as_fd(), DATA).map_err(made)?;
        self.publish(draft, path, spec)
    }

    fn import_onto(&self, path: &DatasetPath, input: &mut dyn Read) -> Result<()> {
        let home = self.store.home(path)?;
        let unnamed = path.snapshot("?");
        let fault = |error| failed("import", &unnamed, error);
        let mut reader = Reader::new(input).map_err(fault)?;
        let mut entry = reader.next().map_err(fault)?;
        let mut header = Header::read(&reader)?;
        let snapshot = path.snapshot(&header.snapshot);
        let fault = |error| failed("import", &snapshot, error);
        let made = |error: io::Error| Error::io("import", &snapshot, error);

        let lock = self.store.locks.of(&home.id, "");
        let _lock = lock.write();
        self.store.refuse_gone(path, &home.id)?;
        let present = list(path, home.fd.as_fd())?;
        let base = find_base(&header, &present)?;
        if let Err(error) = refuse_existing(&snapshot, home.fd.as_fd()) {
            return Err(match error {
                Error::Exists(name) => Error::BadStream(format!("{name} exists already")),
                other => other,
            });
        }
        self.store.refuse_mounted(path, &home.id)?;
        let now = open_directory(&home.fd, DATA).map_err(made)?;
        let base_data = open_data(&path.snapshot(&base.name), home.fd.as_fd())?;
        let top = unchanged(path, &base.name, base_data.as_fd(), now.as_fd())?;

        let draft = self.store.draft()?;
        draft.make_directory("0").map_err(made)?;
        copy_into(&draft, base_data.as_fd(), "0/data").map_err(made)?;
        let to = open_directory(draft.fd(), "0/data").map_err(made)?;
        let mut extractor = Extractor::new(to.as_fd(), Extract { devices: true, progress: None });
        while let Some(present) = entry {
            if present.extra.contains_key(&b"KLEENE.removed"[..]) {
                extractor.remove(&present.name).map_err(fault)?;
            } else {
                extractor.apply(present, &mut reader.data()).map_err(fault)?;
            }
            entry = reader.next().map_err(fault)?;
        }
        extractor.finish().map_err(fault)?;
        header.about.sequence = base.about.sequence + 1;
        header.about.write(&draft, "0").map_err(made)?;
        copy_into(&draft, to.as_fd(), "1").map_err(made)?;
        if let Some(top) = top {
            keep_top(&draft, &top).map_err(made)?;
        }
        sync_file_system(&to).map_err(made)?;
        point();
        let steps = [
            Step::Snapshot { part: "0".into(), dataset: home.id.clone(), name: header.snapshot },
            Step::content(&draft, "1", &home.id).map_err(made)?,
        ];
        commit(&self.store, draft, &steps).map_err(made)
    }
}

/// The snapshot that the stream builds on: it must be the newest.
fn find_base<'p>(header: &Header, present: &'p [Kept]) -> Result<&'p Kept> {
    let Some(base) = &header.base else {
        return Err(bad("it is a full one; receive it as a new dataset"));
    };
    match present.last() {
        Some(last) if last.about.guid == *base => Ok(last),
        Some(last) if present.iter().any(|kept| kept.about.guid == *base) => Err(Error::BadStream(
            format!("its base is older than the newest snapshot, {}", last.name),
        )),
        Some(last) => Err(Error::BadStream(format!(
            "its base is not here; the newest snapshot is {}, made {}",
            last.name, last.about.created
        ))),
        None => Err(bad("its base is not here; there are no snapshots")),
    }
}

fn write(
    header: &Header,
    base: Option<BorrowedFd<'_>>,
    data: BorrowedFd<'_>,
    out: &mut dyn Write,
) -> std::result::Result<(), archive::Error> {
    let write = archive::Error::Write;
    let mut encoder = zstd::Encoder::new(&mut *out, 1).map_err(write)?;
    encoder.include_checksum(true).map_err(write)?;
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 17, encoder), None);
    header.write(&mut writer)?;
    match base {
        None => {
            let mut walk = Walk::new(data).map_err(|e| archive::Error::io("read", b"", e))?;
            let mut links = Links::default();
            while let Some(item) = next(&mut walk)? {
                let first = links.first(&item);
                writer.entry(&item, first.as_deref())?;
            }
        }
        Some(base) => compare(base, data, &mut |change| {
            match change {
                Change::Removed(path) => writer.mark(path, "KLEENE.removed", "1")?,
                // To make something in a directory changes it, so all have to come.
                Change::Entry { item, first, same } => {
                    if !same || item.file_type() == FileType::Directory {
                        writer.entry(item, first)?;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?,
    }
    let (out, _) = writer.finish()?;
    let encoder = out.into_inner().map_err(|error| write(error.into_error()))?;
    encoder.finish().and_then(|out| out.flush()).map_err(write)
}

/// Makes sure that the data is that of the snapshot. Its top directory's owner and mode, which a spec may
/// have set, may differ; they are given back then.
fn unchanged(
    path: &DatasetPath,
    base: &str,
    snapshot: BorrowedFd<'_>,
    data: BorrowedFd<'_>,
) -> Result<Option<Stat>> {
    let mut difference = None;
    compare(snapshot, data, &mut |change| {
        match change {
            Change::Removed(path) => difference = Some(path.to_vec()),
            Change::Entry { item, same, .. } if !same && !item.path.is_empty() => {
                difference = Some(item.path.to_vec());
            }
            Change::Entry { .. } => return Ok(ControlFlow::Continue(())),
        }
        Ok(ControlFlow::Break(()))
    })
    .map_err(|error| failed("compare", &path.snapshot(base), error))?;
    if let Some(entry) = difference {
        return Err(Error::BadStream(format!(
            "'{}' of {path} has changed since the snapshot {base}; roll back to it first",
            entry.escape_ascii()
        )));
    }
    let stat = |fd| rustix::fs::fstat(fd).map_err(|errno| Error::io("look up", path, errno));
    let (was, is) = (stat(snapshot)?, stat(data)?);
    let differs = (was.st_mode, was.st_uid, was.st_gid) != (is.st_mode, is.st_uid, is.st_gid);
    Ok(differs.then_some(is))
}

/// Gives the new content the owner and mode of the present one.
fn keep_top(draft: &Draft<'_>, top: &Stat) -> io::Result<()> {
    let fd = open_directory(draft.fd(), "1")?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(top.st_uid), rustix::fs::Gid::from_raw(top.st_gid));
    rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(top.st_mode))?)
}
