//! A tree into a pax archive.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_sys::fs::{Flags, Node, get_xattr, list_xattrs, next_data};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::pax::{FLAGS, LISTS};
use super::sparse::{MAX_SEGMENTS, Segment};
use super::walk::{Item, Place, Walk, identity};
use super::{Error, Summary, check, count_bytes, count_file};
use crate::copy::Progress;

const BLOCK: u64 = 512;

/// The largest numbers that the octal fields of a header can hold.
const MAX_ID: u32 = 0o7_777_777;
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// All of the tree `from` is in `out` as a pax archive, the top directory as `./`: owners by number,
/// modes, times to the nanosecond, extended attributes and, as those, ACLs, hard links, holes, device
/// nodes and pipes; on FreeBSD also file flags (`chflags(2)`), but for the one of files that are not
/// archived yet. Sockets are left out and counted. Names come in the order of their bytes, so that
/// equal trees make equal archives. Not kept: access times, Linux's file flags, and holes of a file
/// after the first 262,144.
///
/// # Errors
///
/// [`Error::Write`] where `out` fails; [`Error::Io`] for a file that can't be read or that changes
/// meanwhile; [`Error::Cancelled`]. What was written is then no whole archive.
pub fn create(
    from: BorrowedFd<'_>,
    out: &mut dyn Write,
    progress: Option<&Progress>,
) -> Result<Summary, Error> {
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 17, out), progress);
    let mut links = Links::default();
    let mut walk = Walk::new(from).map_err(|error| Error::io("read", b"", error))?;
    while let Some(item) = next(&mut walk)? {
        let first = links.first(&item);
        writer.entry(&item, first.as_deref())?;
    }
    writer.finish().map(|(_, summary)| summary)
}

/// The next entry of a walk, with an error that names it.
pub(crate) fn next(walk: &mut Walk) -> Result<Option<Item<'_>>, Error> {
    // In two steps because the entry borrows the walk.
    match walk.advance() {
        Ok(false) => Ok(None),
        Ok(true) => Ok(walk.item()),
        Err(error) => Err(Error::io("read", walk.path(), error)),
    }
}

/// Which names belong to one file.
#[derive(Debug, Default)]
pub(crate) struct Links(HashMap<(u64, u64), Vec<u8>>);

impl Links {
    /// The name under which the same file was met first; `None` where this is the first.
    pub(crate) fn first(&mut self, item: &Item<'_>) -> Option<Vec<u8>> {
        if item.stat.st_nlink < 2 || item.file_type() == FileType::Directory {
            return None;
        }
        match self.0.entry(identity(&item.stat)) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.get().clone()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(item.path.to_vec());
                None
            }
        }
    }
}

/// Pax records, as they are written.
#[derive(Debug, Default)]
struct Records(Vec<u8>);

impl Records {
    /// Adds `LENGTH KEYWORD=VALUE\n`; the length counts its own digits.
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn push_text(&mut self, key: &str, value: impl std::fmt::Display) {
        self.push(key.as_bytes(), value.to_string().as_bytes());
    }
}

/// An archive that is written from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Writer<'p, W> {
    out: W,
    progress: Option<&'p Progress>,
    summary: Summary,
    buffer: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl<'p, W: Write> Writer<'p, W> {
    /// Nothing is written yet.
    pub(crate) fn new(out: W, progress: Option<&'p Progress>) -> Self {
        let (names, value) = (Vec::new(), Vec::new());
        Self { out, progress, summary: Summary::default(), buffer: vec![0; 1 << 17], names, value }
    }

    /// Pax records that hold for all entries from here on.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(crate) fn global<'r>(
        &mut self,
        records: impl IntoIterator<Item = (&'r str, &'r str)>,
    ) -> Result<(), Error> {
        let mut all = Records::default();
        records.into_iter().for_each(|(key, value)| all.push_text(key, value));
        self.extended(EntryType::XGlobalHeader, &all)
    }

    /// An empty file `path` with one record of ours, which says what it stands for.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(crate) fn mark(&mut self, path: &[u8], key: &str, value: &str) -> Result<(), Error> {
        let mut header = Header::new_ustar();
        let mut records = Records::default();
        records.push_text(key, value);
        set_name(&mut header, &mut records, path);
        set_numbers(&mut header, &mut records, None);
        self.put(header, EntryType::Regular, &records, 0)
    }

    /// The entry, with its content. Where `first` is given, as a hard link to that name.
    ///
    /// # Errors
    ///
    /// As [`create`].
    pub(crate) fn entry(&mut self, item: &Item<'_>, first: Option<&[u8]>) -> Result<(), Error> {
        check(self.progress)?;
        let mut header = Header::new_ustar();
        let mut records = Records::default();
        let kind = item.file_type();
        let failed = |error: io::Error| Error::io("read", item.path, error);
        let mut path = if item.path.is_empty() { b"./".to_vec() } else { item.path.to_vec() };
        if kind == FileType::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }

        if let Some(first) = first {
            set_name(&mut header, &mut records, &path);
            set_numbers(&mut header, &mut records, Some(&item.stat));
            set_link(&mut header, &mut records, first);
            self.put(header, EntryType::Link, &records, 0)?;
        } else if kind == FileType::RegularFile {
            self.file(item, header, records)?;
        } else {
            let entry_type = match kind {
                FileType::Directory => EntryType::Directory,
                FileType::Symlink => EntryType::Symlink,
                FileType::Fifo => EntryType::Fifo,
                FileType::CharacterDevice => EntryType::Char,
                FileType::BlockDevice => EntryType::Block,
                FileType::Socket => {
                    self.summary.sockets += 1;
                    return Ok(());
                }
                _ => {
                    return Err(failed(io::Error::other("it is of a type that tar does not know")));
                }
            };
            set_name(&mut header, &mut records, &path);
            set_numbers(&mut header, &mut records, Some(&item.stat));
            push_flags(&mut records, &item.stat);
            match (entry_type, item.at) {
                (EntryType::Symlink, Place::In(dir, name)) => {
                    let target = rustix::fs::readlinkat(dir, name, Vec::new())
                        .map_err(|e| failed(e.into()))?;
                    set_link(&mut header, &mut records, target.as_bytes());
                }
                (EntryType::Char | EntryType::Block, _) => {
                    let (major, minor) = device(&item.stat);
                    if major > MAX_ID || minor > MAX_ID {
                        return Err(failed(io::Error::other(
                            "its device number is too large for tar",
                        )));
                    }
                    header.set_device_major(major).map_err(failed)?;
                    header.set_device_minor(minor).map_err(failed)?;
                }
                _ => (),
            }
            let node = match item.at {
                Place::Directory(fd) => Node::Open(fd),
                Place::In(dir, name) => Node::At(dir, name),
            };
            self.attributes(node, &mut records).map_err(failed)?;
            self.put(header, entry_type, &records, 0)?;
        }
        self.summary.entries += 1;
        if kind != FileType::Directory {
            count_file(self.progress);
        }
        Ok(())
    }

    /// A regular file, with the map of its holes where it has some (GNU's sparse format 1.0).
    fn file(
        &mut self,
        item: &Item<'_>,
        mut header: Header,
        mut records: Records,
    ) -> Result<(), Error> {
        let failed = |error: io::Error| Error::io("read", item.path, error);
        let Place::In(dir, name) = item.at else { return Ok(()) };
        let (file, stat) = open_file(dir, name).map_err(failed)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let segments = segments(&file, &stat, size).map_err(failed)?;
        self.attributes(Node::Open(file.as_fd()), &mut records).map_err(failed)?;
        set_numbers(&mut header, &mut records, Some(&stat));
        push_flags(&mut records, &stat);
        let stored: u64 = segments.iter().map(|s| s.length).sum();
        if stored == size {
            set_name(&mut header, &mut records, item.path);
            self.put(header, EntryType::Regular, &records, size)?;
        } else {
            records.push_text("GNU.sparse.major", 1);
            records.push_text("GNU.sparse.minor", 0);
            records.push(b"GNU.sparse.name", item.path);
            records.push_text("GNU.sparse.realsize", size);
            // Readers that don't know the format see a file of this name.
            set_name(&mut header, &mut records, &[b"GNUSparseFile.0/", item.path].concat());
            let mut map = format!("{}\n", segments.len());
            for Segment { offset, length } in &segments {
                map.push_str(&format!("{offset}\n{length}\n"));
            }
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
            self.put(header, EntryType::Regular, &records, map.len() as u64 + stored)?;
            self.out.write_all(&map).map_err(Error::Write)?;
        }
        for segment in &segments {
            self.content(&file, *segment, item.path)?;
        }
        self.pad(stored)
    }

    fn content(&mut self, file: &OwnedFd, segment: Segment, path: &[u8]) -> Result<(), Error> {
        let (mut at, end) = (segment.offset, segment.offset + segment.length);
        while at < end {
            check(self.progress)?;
            let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
            let (buffer, _) = self.buffer.split_at_mut(room);
            let read = match rustix::io::pread(file, &mut *buffer, at) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::io("read", path, errno)),
                Ok(0) => {
                    let error = io::Error::other("it became shorter while it was read");
                    return Err(Error::io("read", path, error));
                }
                Ok(read) => read,
            };
            let (read, _) = buffer.split_at(read);
            self.out.write_all(read).map_err(Error::Write)?;
            at += read.len() as u64;
            self.summary.bytes += read.len() as u64;
            count_bytes(self.progress, read.len() as u64);
        }
        Ok(())
    }

    /// Adds the extended attributes, under the keywords that GNU tar and star share.
    fn attributes(&mut self, node: Node<'_>, records: &mut Records) -> io::Result<()> {
        match list_xattrs(node, &mut self.names) {
            Err(error) if is_unsupported(&error) => return Ok(()),
            other => other?,
        }
        let mut names: Vec<_> = self.names.split_inclusive(|b| *b == 0).collect();
        names.sort_unstable();
        for name in names {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            match get_xattr(node, name, &mut self.value) {
                // It vanished; or it is one that can be listed and not read.
                Err(error) if is_missing(&error) || is_unsupported(&error) => continue,
                other => other?,
            }
            if let Some((_, record)) = LISTS.iter().find(|(list, _)| *list == name.to_bytes()) {
                records.push(record, &self.value);
                continue;
            }
            let mut key = b"SCHILY.xattr.".to_vec();
            for byte in name.to_bytes() {
                match byte {
                    b'%' => key.extend_from_slice(b"%25"),
                    b'=' => key.extend_from_slice(b"%3D"),
                    other => key.push(*other),
                }
            }
            records.push(&key, &self.value);
        }
        Ok(())
    }

    /// A header, the pax header before it where there are records, and its checksum.
    fn put(
        &mut self,
        mut header: Header,
        entry_type: EntryType,
        records: &Records,
        size: u64,
    ) -> Result<(), Error> {
        let mut long = Records::default();
        if size > MAX_OCTAL {
            long.push_text("size", size);
        }
        long.0.extend_from_slice(&records.0);
        if !long.0.is_empty() {
            self.extended(EntryType::XHeader, &long)?;
        }
        header.set_entry_type(entry_type);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(Error::Write)
    }

    fn extended(&mut self, entry_type: EntryType, records: &Records) -> Result<(), Error> {
        let mut header = Header::new_ustar();
        set_field(&mut header.as_old_mut().name, b"PaxHeader");
        set_numbers(&mut header, &mut Records::default(), None);
        header.set_entry_type(entry_type);
        header.set_size(records.0.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(Error::Write)?;
        self.out.write_all(&records.0).map_err(Error::Write)?;
        self.pad(records.0.len() as u64)
    }

    /// Fills the last block of a content of that length.
    fn pad(&mut self, length: u64) -> Result<(), Error> {
        let rest = length.next_multiple_of(BLOCK) - length;
        let zeros = [0; BLOCK as usize];
        let (zeros, _) = zeros.split_at(rest as usize);
        self.out.write_all(zeros).map_err(Error::Write)
    }

    /// The end marker is written and everything is flushed.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub(crate) fn finish(mut self) -> Result<(W, Summary), Error> {
        self.out.write_all(&[0; 2 * BLOCK as usize]).map_err(Error::Write)?;
        self.out.flush().map_err(Error::Write)?;
        Ok((self.out, self.summary))
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<(OwnedFd, Stat)> {
    // Not to wait where somebody put a pipe in its place.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it was replaced while it was read"));
    }
    Ok((file, stat))
}

/// The parts of the file that are no holes. Where it ends in a hole, an empty part at its end.
fn segments(file: &OwnedFd, stat: &Stat, size: u64) -> io::Result<Vec<Segment>> {
    let whole = vec![Segment { offset: 0, length: size }];
    if u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK) >= size {
        return Ok(whole);
    }
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(range) = next_data(file, at, size)? {
        if found.len() + 2 >= MAX_SEGMENTS {
            found.push(Segment { offset: range.start, length: size - range.start });
            return Ok(found);
        }
        found.push(Segment { offset: range.start, length: range.end - range.start });
        at = range.end;
    }
    if at < size {
        found.push(Segment { offset: size, length: 0 });
    }
    Ok(found)
}

fn set_field(field: &mut [u8], value: &[u8]) {
    field.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}

/// Adds the file flags, under the keyword that star and bsdtar share.
fn push_flags(records: &mut Records, stat: &Stat) {
    let flags = Flags::to_archive(stat);
    if !flags.is_empty() {
        records.push(FLAGS, flags.text().as_bytes());
    }
}

fn set_name(header: &mut Header, records: &mut Records, path: &[u8]) {
    let field = &mut header.as_old_mut().name;
    set_field(field, path);
    if path.len() > field.len() {
        records.push(b"path", path);
    }
}

fn set_link(header: &mut Header, records: &mut Records, target: &[u8]) {
    let field = &mut header.as_old_mut().linkname;
    set_field(field, target);
    if target.len() > field.len() {
        records.push(b"linkpath", target);
    }
}

/// Mode, owner and time; all zero without a `stat`.
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_cast,
    reason = "the widths differ from system to system"
)]
fn set_numbers(header: &mut Header, records: &mut Records, stat: Option<&Stat>) {
    let (mut mode, mut uid, mut gid, mut mtime) = (0, 0, 0, 0);
    if let Some(stat) = stat {
        mode = u32::from(stat.st_mode) & 0o7777;
        (uid, gid) = (stat.st_uid, stat.st_gid);
        let seconds: i64 = stat.st_mtime;
        let nanoseconds = stat.st_mtime_nsec as i64;
        mtime = u64::try_from(seconds).unwrap_or(0).min(MAX_OCTAL);
        if nanoseconds != 0 || u64::try_from(seconds).ok() != Some(mtime) {
            records.push_text("mtime", Moment(seconds, nanoseconds));
        }
        if uid > MAX_ID {
            records.push_text("uid", uid);
        }
        if gid > MAX_ID {
            records.push_text("gid", gid);
        }
    }
    header.set_mode(mode);
    header.set_uid(uid.min(MAX_ID).into());
    header.set_gid(gid.min(MAX_ID).into());
    header.set_mtime(mtime);
}

/// Seconds and nanoseconds as pax writes them: a decimal fraction, negative before 1970.
struct Moment(i64, i64);

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self(seconds, 0) => write!(f, "{seconds}"),
            Self(seconds @ 0.., nanoseconds) => write!(f, "{seconds}.{nanoseconds:09}"),
            Self(seconds, nanoseconds) => {
                write!(f, "-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
            }
        }
    }
}

fn device(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

/// Whether the file system has no attributes, or none of that kind.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOSYS))
}

fn is_missing(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    let missing = Errno::NODATA;
    #[cfg(not(target_os = "linux"))]
    let missing = Errno::NOATTR;
    Errno::from_io_error(error) == Some(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_round_to_nothing() {
        let cases = [
            ((0, 0), "0"),
            ((5, 1), "5.000000001"),
            ((-1, 0), "-1"),
            ((-2, 750_000_000), "-1.250000000"),
            ((-1, 1), "-0.999999999"),
        ];
        for ((seconds, nanoseconds), expected) in cases {
            assert_eq!(Moment(seconds, nanoseconds).to_string(), expected);
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for size in [0, 1, 90, 91, 92, 93, 94, 95, 96, 990, 991, 992, 993, 994, 995, 9990, 9999] {
            let mut records = Records::default();
            records.push(b"k", &vec![b'v'; size]);
            let text = String::from_utf8(records.0).unwrap();
            let (length, _) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), text.len());
        }
    }
}
