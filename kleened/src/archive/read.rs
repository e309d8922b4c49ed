//! The entries of a tar archive: v7, ustar, pax and GNU.
//!
//! Fields of headers are the `tar` crate's to parse. The walk from entry to entry is ours: extended
//! attributes hold any byte, newlines too, metadata must have a limit, the end marker must be there,
//! and GNU's sparse maps must be kept. Format: `pax(1)`, GNU tar's manual ("Storing Sparse Files"),
//! `tar(5)` of FreeBSD.

use std::collections::BTreeMap;
use std::io::{self, Read};

use kleened_sys::fs::Flags;
use rustix::fs::Timespec;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::decode::classify;
use super::pax::{self, Global, Records};
use super::sparse::{self, Segment};
use super::{Error, shown};

const BLOCK: u64 = 512;

/// The most bytes of metadata that belong to one entry: long names, attributes, sparse maps.
const MAX_METADATA: u64 = 16 << 20;

/// An entry, checked as far as that is possible without looking at the tree.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its path: components joined by `/`, none of them empty, `.` or `..`. Empty for the top.
    pub(crate) name: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky bits among them.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// When it was changed last.
    pub(crate) mtime: Timespec,
    /// Extended attributes.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// File flags, where this platform has them.
    pub(crate) flags: Flags,
    /// Pax records of its own that no standard knows, `VENDOR.name`.
    pub(crate) extra: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, whose content comes from [`Reader::data`].
    File {
        /// How long it is, holes counted.
        size: u64,
        /// Where the content goes; one segment where there are no holes.
        segments: Vec<Segment>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// Another name of the entry of this name.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A device node; a block device where the first is true.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// An archive that is read from its beginning to its end.
pub(crate) struct Reader<'a> {
    input: Box<dyn Read + 'a>,
    /// How many bytes of the archive, decompressed, are behind us.
    at: u64,
    /// Bytes of the present entry's content, and then of its padding, that are still to come.
    content: u64,
    padding: u64,
    global: Global,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("at", &self.at).finish_non_exhaustive()
    }
}

/// What the headers before an entry's own say about it.
#[derive(Default)]
struct Ahead {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    present: bool,
    size: u64,
}

impl<'a> Reader<'a> {
    /// Finds out the compression. Nothing is parsed yet.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] where there are no bytes; [`Error::Read`].
    pub(crate) fn new(input: &'a mut dyn Read) -> Result<Self, Error> {
        let input = super::decode::open(input)?;
        Ok(Self { input, at: 0, content: 0, padding: 0, global: Global::default() })
    }

    /// Pax records that hold for all entries from here on.
    pub(crate) fn global(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        self.global.records()
    }

    /// The next entry; what was not read of the one before is skipped. `None` after the end marker,
    /// when nothing but zeros follows it and the compression's checksums hold.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`], [`Error::Refused`], [`Error::Read`].
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut ahead = Ahead::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                if ahead.present {
                    return Err(self.damaged("it ends where an entry was announced"));
                }
                self.end()?;
                return Ok(None);
            };
            match header.entry_type().as_byte() {
                // The second is what Solaris wrote before there was a standard.
                b'x' | b'X' => {
                    let bytes = self.metadata(&header, &mut ahead)?;
                    pax::parse(&bytes, &mut ahead.records)
                        .ok_or_else(|| self.damaged("a pax header makes no sense"))?;
                }
                b'g' => {
                    let bytes = self.metadata(&header, &mut ahead)?;
                    self.global.add(&bytes).map_err(|reason| self.damaged(reason))?;
                    // It announces no entry by itself.
                    ahead.present = !ahead.records.is_empty() || ahead.long_name.is_some();
                }
                b'L' => {
                    ahead.long_name = Some(until_nul(self.metadata(&header, &mut ahead)?));
                }
                b'K' => {
                    ahead.long_link = Some(until_nul(self.metadata(&header, &mut ahead)?));
                }
                // A volume label.
                b'V' => self.content = 0,
                _ => return self.entry(&header, ahead).map(Some),
            }
        }
    }

    /// The content of the present entry: of a file with holes only what is in its segments.
    pub(crate) fn data(&mut self) -> Data<'_, 'a> {
        Data(self)
    }

    /// The next header that is not zero; `None` at the end marker.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut header = Header::new_old();
        let read = read_full(&mut self.input, header.as_mut_bytes()).map_err(classify)?;
        let first = self.at == 0;
        if read < header.as_bytes().len() {
            return Err(match (first, read) {
                (false, 0) => self.damaged("it is cut off: the end marker is missing"),
                (false, _) => self.damaged("it is cut off"),
                (true, _) => not_tar(),
            });
        }
        self.at += BLOCK;
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum is of the header with its own field as spaces.
        let sum: u32 = header.as_bytes().iter().map(|b| u32::from(*b)).sum();
        let field: u32 = header.as_old().cksum.iter().map(|b| u32::from(*b)).sum();
        if header.cksum().ok() != Some(sum - field + 8 * u32::from(b' ')) {
            return Err(if first {
                not_tar()
            } else {
                self.damaged("a header's checksum does not hold")
            });
        }
        Ok(Some(header))
    }

    /// Puts an entry together from its own header and those before it.
    fn entry(&mut self, header: &Header, ahead: Ahead) -> Result<Entry, Error> {
        let mut records = ahead.records;
        let mut take = |key: &[u8]| self.global.take(&mut records, key);
        let own_name =
            take(b"path").or(ahead.long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let raw_name = take(b"GNU.sparse.name").unwrap_or(own_name);
        let fault = |reason: &str| Error::refused(&raw_name, reason);
        let link_name = take(b"linkpath")
            .or(ahead.long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));

        let bad_number = |_: io::Error| Error::refused(&raw_name, "has a number that is none");
        let id = |given: Option<Vec<u8>>, own: io::Result<u64>| {
            let id = match given {
                Some(text) => {
                    pax::decimal(&text).ok_or_else(|| fault("has an owner that is none"))?
                }
                None => own.map_err(bad_number)?,
            };
            // The last one means "leave as it is" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| fault("has an owner out of range"))
        };
        let uid = id(take(b"uid"), header.uid())?;
        let gid = id(take(b"gid"), header.gid())?;
        let mtime = match take(b"mtime") {
            Some(text) => pax::timestamp(&text).ok_or_else(|| fault("has a time that is none"))?,
            None => {
                Timespec { tv_sec: header.mtime().map_err(bad_number)?.cast_signed(), tv_nsec: 0 }
            }
        };
        let mode = header.mode().map_err(bad_number)? & 0o7777;
        let stored = match take(b"size") {
            Some(text) => pax::decimal(&text).ok_or_else(|| fault("has a size that is none"))?,
            None => header.entry_size().map_err(bad_number)?,
        };
        // What off_t can't hold no file system can.
        if i64::try_from(stored).is_err() {
            return Err(fault("has a size out of range"));
        }
        records.retain(|key, value| !pax::is_unset(key, value));

        let name = clean(&raw_name)?;
        let device = |block| -> Result<Kind, Error> {
            let number = |field: io::Result<Option<u32>>| {
                field.ok().flatten().ok_or_else(|| fault("has no device number"))
            };
            let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
            Ok(Kind::Device { block, major, minor })
        };
        let link = || link_name.filter(|l| !l.is_empty() && !l.contains(&0));
        let kind = match header.entry_type() {
            // Before POSIX a directory was a file whose name ended so.
            EntryType::Regular if raw_name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.set_content(stored);
                self.file(header, &mut records).map_err(|reason| match reason {
                    sparse::Fault::Read(error) => error,
                    sparse::Fault::Bad(reason) => fault(reason),
                })?
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                Kind::Symlink(link().ok_or_else(|| fault("is a link without a target"))?)
            }
            EntryType::Link => {
                let target = link().ok_or_else(|| fault("is a link without a target"))?;
                let inside = clean(&target).map_err(|_| {
                    let target = shown(&target);
                    fault(&format!("is a hard link to '{target}', which is outside the archive"))
                })?;
                Kind::HardLink(inside)
            }
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => device(false)?,
            EntryType::Block => device(true)?,
            other => {
                let byte = other.as_byte().escape_ascii().to_string();
                return Err(fault(&format!(
                    "is of type '{byte}', which this program can't extract"
                )));
            }
        };
        if name.is_empty() && kind != Kind::Directory {
            return Err(fault("stands for the top of the tree and is no directory"));
        }
        let xattrs = pax::take_attributes(&mut records).map_err(|reason| fault(&reason))?;
        let flags = records.remove(pax::FLAGS).unwrap_or_default();
        let flags = Flags::parse(&String::from_utf8_lossy(&flags));
        records.retain(|key, _| !key.starts_with(b"GNU.sparse.") && key.contains(&b'.'));
        Ok(Entry { name, kind, mode, uid, gid, mtime, xattrs, flags, extra: records })
    }

    /// A regular file, with the map of its holes where it has one.
    fn file(&mut self, header: &Header, records: &mut Records) -> Result<Kind, sparse::Fault> {
        let stored = self.content;
        let number = |records: &mut Records, key: &[u8]| {
            records
                .remove(key)
                .map(|text| pax::decimal(&text).ok_or(sparse::Fault::Bad(sparse::BAD_MAP)))
        };
        let (size, segments) = if let Some(gnu) =
            header.as_gnu().filter(|_| header.entry_type() == EntryType::GNUSparse)
        {
            let mut map = sparse::Map::default();
            gnu.sparse.iter().try_for_each(|s| map.push_header(s))?;
            let mut more = gnu.is_extended();
            while more {
                let mut block = GnuExtSparseHeader::new();
                self.read_metadata(block.as_mut_bytes())?;
                block.sparse().iter().try_for_each(|s| map.push_header(s))?;
                more = block.is_extended();
            }
            let size = gnu.real_size().map_err(|_| sparse::Fault::Bad(sparse::BAD_MAP))?;
            (size, map.finish(size, stored)?)
        } else if records.remove(&b"GNU.sparse.major"[..]).is_some_and(|v| v == b"1") {
            let size = number(records, b"GNU.sparse.realsize")
                .unwrap_or(Err(sparse::Fault::Bad(sparse::BAD_MAP)))?;
            let map = sparse::Map::read(&mut self.data())?;
            (size, map.finish(size, self.content)?)
        } else if let Some(text) = records.remove(&b"GNU.sparse.map"[..]) {
            let size = number(records, b"GNU.sparse.size")
                .unwrap_or(Err(sparse::Fault::Bad(sparse::BAD_MAP)))?;
            (size, sparse::Map::parse(&text)?.finish(size, stored)?)
        } else if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(sparse::Fault::Bad(
                "has holes in the format of GNU tar 1.14, which no later tar \
                                           writes; make the archive anew",
            ));
        } else {
            (stored, vec![Segment { offset: 0, length: stored }])
        };
        Ok(Kind::File { size, segments })
    }

    fn set_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    /// The content of a header that is about the next entry.
    fn metadata(&mut self, header: &Header, ahead: &mut Ahead) -> Result<Vec<u8>, Error> {
        let size =
            header.entry_size().map_err(|_| self.damaged("a header has a size that is none"))?;
        ahead.present = true;
        ahead.size = ahead.size.saturating_add(size);
        if ahead.size > MAX_METADATA {
            return Err(self.damaged("an entry has more than 16 MiB of metadata"));
        }
        self.set_content(size);
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes).map_err(classify)?;
        Ok(bytes)
    }

    /// Fills `block`, which stands between a header and its content.
    fn read_metadata(&mut self, block: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(block).map_err(classify)?;
        self.at += block.len() as u64;
        Ok(())
    }

    /// Passes over the rest of the present entry.
    fn skip(&mut self) -> Result<(), Error> {
        let rest = self.content + self.padding;
        let skipped =
            io::copy(&mut (&mut self.input).take(rest), &mut io::sink()).map_err(classify)?;
        self.at += skipped;
        if skipped < rest {
            return Err(self.damaged("it is cut off"));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads on to the very end, which a decoder needs to check its sums.
    fn end(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8192];
        loop {
            let read = read_full(&mut self.input, &mut buffer).map_err(classify)?;
            self.at += read as u64;
            let (read, _) = buffer.split_at(read);
            if read.is_empty() {
                return Ok(());
            }
            if read.iter().any(|b| *b != 0) {
                return Err(self.damaged("it goes on after its end marker"));
            }
        }
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::Damaged(format!("the archive is damaged near byte {}: {reason}", self.at))
    }
}

fn not_tar() -> Error {
    Error::Damaged(
        "this is no tar archive, neither plain nor compressed with gzip, xz or zstd".into(),
    )
}

/// The content of an entry.
#[derive(Debug)]
pub(crate) struct Data<'r, 'a>(&'r mut Reader<'a>);

impl Read for Data<'_, '_> {
    /// An archive that ends here gives an error of kind `UnexpectedEof`.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.0.content).unwrap_or(usize::MAX).min(buffer.len());
        let (buffer, _) = buffer.split_at_mut(room);
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.0.input.read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.content -= read as u64;
        self.0.at += read as u64;
        Ok(read)
    }
}

/// The path in its plain form.
///
/// # Errors
///
/// [`Error::Refused`] for one that is absolute, empty, or has `..` or NUL in it.
fn clean(raw: &[u8]) -> Result<Vec<u8>, Error> {
    if raw.is_empty() {
        return Err(Error::refused(raw, "has no name"));
    }
    if raw.contains(&0) {
        return Err(Error::refused(raw, "has a NUL in its name"));
    }
    if raw.starts_with(b"/") {
        return Err(Error::refused(
            raw,
            "has an absolute name; make the archive with names relative to its top",
        ));
    }
    let mut name = Vec::with_capacity(raw.len());
    for component in raw.split(|b| *b == b'/').filter(|c| !matches!(*c, b"" | b".")) {
        if component == b".." {
            return Err(Error::refused(raw, "has '..' in its name"));
        }
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(component);
    }
    Ok(name)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Reads until the buffer is full or the input ends.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let cases = [
            (&b"./"[..], Some(&b""[..])),
            (b"a//b/./c/", Some(b"a/b/c")),
            (b"..a/b..", Some(b"..a/b..")),
            (b"", None),
            (b"/a", None),
            (b"a/../b", None),
            (b"..", None),
            (b"a\0b", None),
        ];
        for (raw, expected) in cases {
            assert_eq!(clean(raw).ok().as_deref(), expected, "{}", raw.escape_ascii());
        }
    }
}
