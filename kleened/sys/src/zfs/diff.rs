//! What changed between two snapshots, or since one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use libzfs_sys::{ZFS_DEV, diff_flag};

use super::Zfs;
use super::error::{Error, c_name};

/// A file that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// As `zfs diff -F` shows it: `F` a file, `/` a directory, `@` a link, and others.
    pub file_type: char,
    /// Its path, below where the dataset is mounted.
    pub path: PathBuf,
    /// What it is named now, where it was renamed.
    pub new_path: Option<PathBuf>,
}

/// How a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It is there no more.
    Removed,
    /// Its content, metadata or number of links.
    Modified,
    /// It has another name.
    Renamed,
}

impl Zfs {
    /// Calls `visit` with each file that changed from the snapshot `from` to the snapshot, or to the file
    /// system as it is, `to`. The file system must be mounted where this process sees it; for a clone
    /// against its origin, the origin's, too. Where `visit` breaks off, the rest is not looked at.
    ///
    /// # Errors
    ///
    /// `Invalid` where one is not before the other, or it is not mounted; `NotFound`.
    pub fn diff(
        &'static self,
        from: &str,
        to: &str,
        mut visit: impl FnMut(Change) + Send,
    ) -> Result<(), Error> {
        const VERB: &str = "compare";
        let (c_from, c_to) = (c_name(VERB, from)?, c_name(VERB, to)?);
        let failed = |error: io::Error| Error::from_io(VERB, from, &error);
        if !from.contains('@') {
            return Err(Error::new(VERB, from, libc::EINVAL).detail("it is no snapshot"));
        }
        let handle = self.handle(VERB)?;
        let dataset = handle.open(VERB, to)?;
        // The library ends the process where it can't open this a moment later.
        drop(File::options().read(true).write(true).open(ZFS_DEV).map_err(failed)?);
        let (reader, writer) = io::pipe().map_err(failed)?;
        let (result, read) = std::thread::scope(|scope| {
            let read = std::thread::Builder::new().spawn_scoped(scope, move || {
                let mut lines = BufReader::new(reader).split(b'\n');
                lines.try_for_each(|line| {
                    line.map(|line| parse(&line).into_iter().for_each(&mut visit))
                })
            });
            let read = match read {
                Ok(read) => read,
                Err(error) => return (0, Err(error)),
            };
            let out = Lent::new(writer);
            let (show, flags) =
                (handle.library().zfs_show_diffs, diff_flag::PARSEABLE | diff_flag::CLASSIFY);
            // SAFETY: the dataset is valid and this thread's, the names are C strings, and nobody else
            // uses the descriptor, which the library may close.
            let result =
                unsafe { show(dataset.as_ptr(), out.fd, c_from.as_ptr(), c_to.as_ptr(), flags) };
            drop(out);
            (result, read.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
        });
        drop(dataset);
        if result != 0 {
            return Err(handle.error(VERB, &format!("{from} and {to}")));
        }
        read.map_err(failed)
    }
}

/// The end of a pipe that libzfs closes where it succeeds, and else may leave open.
struct Lent {
    fd: RawFd,
    pipe: Option<rustix::fs::Stat>,
}

impl Lent {
    fn new(writer: PipeWriter) -> Self {
        let pipe = rustix::fs::fstat(writer.as_fd()).ok();
        Self { fd: OwnedFd::from(writer).into_raw_fd(), pipe }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: any number may be asked for, and `stat` is a place for the structure.
        let known = unsafe { libc::fstat(self.fd.as_raw_fd(), stat.as_mut_ptr()) } == 0;
        // SAFETY: all zeros is a value of it.
        let stat = unsafe { stat.assume_init() };
        // By now the number may be another thread's; the pipe, whose reader is still there, is not.
        let ours =
            self.pipe.is_some_and(|pipe| pipe.st_dev == stat.st_dev && pipe.st_ino == stat.st_ino);
        if known && ours {
            // SAFETY: the number is still that of the pipe's end, which nobody else has.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd) });
        }
    }
}

/// A line of `zfs diff -FH`: how, type, path, and the new path, with tabs between.
fn parse(line: &[u8]) -> Option<Change> {
    let mut fields = line.split(|byte| *byte == b'\t');
    let kind = match fields.next()? {
        b"+" => ChangeKind::Added,
        b"-" => ChangeKind::Removed,
        b"M" => ChangeKind::Modified,
        b"R" => ChangeKind::Renamed,
        _ => return None,
    };
    let file_type = char::from(*fields.next()?.first()?);
    let path = decode(fields.next()?);
    // Of a file with another number of links, that number follows.
    let new_path = fields.next().filter(|_| kind == ChangeKind::Renamed).map(decode);
    Some(Change { kind, file_type, path, new_path })
}

/// Bytes that are no printable ASCII, and backslashes, are a backslash and four octal digits.
fn decode(mut text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let octal = rest
            .get(..4)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        text = if octal.is_some() { rest.get(4..).unwrap_or_default() } else { rest };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let change = |line: &[u8]| parse(line).map(|c| (c.kind, c.file_type, c.path, c.new_path));
        let path = |path: &[u8]| PathBuf::from(OsString::from_vec(path.to_vec()));
        let renamed = change(b"R\tF\t/tank/a\\0040b\t/tank/\\0134\\0303\\0274").unwrap();
        let to = Some(path(b"/tank/\\\xc3\xbc"));
        assert_eq!(renamed, (ChangeKind::Renamed, 'F', path(b"/tank/a b"), to));
        let links = change(b"M\tF\t/tank/a\t(+1)").unwrap();
        assert_eq!(links, (ChangeKind::Modified, 'F', path(b"/tank/a"), None));
        assert_eq!(change(b"+\t/\t/tank/\\00").unwrap().2, path(b"/tank/\\00"));
        for bad in [b"".as_slice(), b"+", b"+\t", b"+\tF", b"?\tF\t/x", b"\t\t\t"] {
            assert_eq!(change(bad), None);
        }
    }
}
