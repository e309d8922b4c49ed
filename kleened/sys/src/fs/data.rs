//! The bytes of a file into another file, in the cheapest way that the file systems have.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// What [`clone_or_copy`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that are in the target now.
    pub bytes: u64,
    /// Whether the two files share them, so that nothing was read and nothing written.
    pub cloned: bool,
}

/// What [`clone_file`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloned {
    /// The files share their content.
    Yes,
    /// These two files can't share.
    NotThese,
    /// No two files of these file systems can share.
    Never,
}

/// The whole content of `from` is that of `to`, shared until one of them is written to; or, where
/// that can't be, `to` is as it was.
///
/// # Errors
///
/// What `ioctl_ficlone(2)` says beyond "cannot": no room, a device that fails.
///
/// # Source
///
/// `ioctl_ficlone(2)`. FreeBSD clones in `copy_file_range(2)`, so there the answer is
/// [`Cloned::Never`].
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<Cloned> {
    #[cfg(target_os = "linux")]
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(Cloned::Yes),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV) => Ok(Cloned::Never),
        // Not aligned, not the same kind of storage, protected, used for swapping.
        Err(Errno::INVAL | Errno::BADF | Errno::ISDIR | Errno::PERM | Errno::TXTBSY) => {
            Ok(Cloned::NotThese)
        }
        Err(errno) => Err(errno.into()),
    }
    #[cfg(target_os = "freebsd")]
    {
        let _ = (from, to);
        Ok(Cloned::Never)
    }
}

/// The first `length` bytes of `from`, or as many as there are, are in `to`: cloned where that can
/// be, else as [`copy_range`] does it. `buffer` is only used where the kernel can't copy by itself.
///
/// # Errors
///
/// What the calls say; `to` then holds a part.
pub fn clone_or_copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
    buffer: &mut [u8],
) -> io::Result<Copied> {
    if clone_file(from, to)? == Cloned::Yes {
        return Ok(Copied { bytes: length, cloned: true });
    }
    Ok(Copied { bytes: copy_range(from, to, 0..length, buffer)?, cloned: false })
}

/// The bytes of `range` of `from` are in the same place of `to`, up to the end of `from` where that
/// comes first; tells how many. Neither file's position matters or moves. What is in `to` elsewhere
/// stays.
///
/// # Errors
///
/// What the calls say; `to` then holds a part.
///
/// # Source
///
/// `copy_file_range(2)`, which clones where the file system can, or copies in the kernel; `pread(2)`
/// and `pwrite(2)` through `buffer` where it can't.
pub fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: Range<u64>,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(MAX_CALL);
        match kernel_copy(from, to, at, wanted) {
            // The end; or a file system that makes its files up on reading and says nothing here.
            Ok(0) => break,
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => (),
            Err(
                Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::INVAL
                | Errno::XDEV
                | Errno::BADF
                | Errno::PERM
                | Errno::TXTBSY,
            ) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let rest = read_and_write(from, to, at..range.end, buffer)?;
    Ok(at - range.start + rest)
}

/// The kernels take no more at once.
const MAX_CALL: usize = 0x7fff_f000;

fn kernel_copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    at: u64,
    length: usize,
) -> rustix::io::Result<usize> {
    #[cfg(target_os = "linux")]
    {
        let (mut source, mut target) = (at, at);
        rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length)
    }
    #[cfg(target_os = "freebsd")]
    {
        let offset = i64::try_from(at).map_err(|_| Errno::OVERFLOW)?;
        let (mut source, mut target) = (offset, offset);
        nix::fcntl::copy_file_range(from, Some(&mut source), to, Some(&mut target), length)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }
}

fn read_and_write(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    range: Range<u64>,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
        let (buffer, _) = buffer.split_at_mut(wanted);
        let count = match rustix::io::pread(from, &mut *buffer, at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let (mut rest, _) = buffer.split_at(count);
        while !rest.is_empty() {
            match rustix::io::pwrite(to, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    (_, rest) = rest.split_at(written.min(rest.len()));
                }
                Err(Errno::INTR) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(at - range.start)
}

/// The first range at or after `offset` and before `end` that is no hole; `None` where the rest is
/// one. On a file system that knows no holes, everything. Moves the file's position.
///
/// # Errors
///
/// What `lseek(2)` says.
pub fn next_data(file: impl AsFd, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if offset >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        Ok(start) if start >= end => return Ok(None),
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(Some(offset..end)),
        Err(errno) => return Err(errno.into()),
    };
    match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
        // A file that shrinks meanwhile may answer anything.
        Ok(hole) if hole > start => Ok(Some(start..hole.min(end))),
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn files(content: &[u8]) -> (File, File) {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(content).unwrap();
        (from, tempfile::tempfile().unwrap())
    }

    fn content(mut file: &File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn both_ways_copy_the_range_and_nothing_else() {
        let bytes = pattern(100_000);
        for copy in [copy_range, read_and_write] {
            let (from, to) = files(&bytes);
            let mut buffer = vec![0; 4096];
            let copied = copy(from.as_fd(), to.as_fd(), 10..70_000, &mut buffer).unwrap();
            assert_eq!(copied, 69_990);
            let got = content(&to);
            assert_eq!(got.len(), 70_000);
            assert_eq!(got[..10], [0; 10]);
            assert_eq!(got[10..], bytes[10..70_000]);
            // More than there is: up to the end, and no waiting for more.
            assert_eq!(
                copy(from.as_fd(), to.as_fd(), 70_000..u64::MAX / 2, &mut buffer).unwrap(),
                30_000
            );
            assert_eq!(content(&to)[10..], bytes[10..]);
        }
    }

    #[test]
    fn files_that_the_kernel_makes_up_are_read() {
        let from = File::open("/proc/version").or_else(|_| File::open("/etc/passwd")).unwrap();
        let to = tempfile::tempfile().unwrap();
        let copied = clone_or_copy(from.as_fd(), to.as_fd(), 1 << 20, &mut [0; 512]).unwrap();
        assert!(copied.bytes > 0);
        assert_eq!(content(&to), content(&from));
    }

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().unwrap();
        let size = 8 << 20;
        file.set_len(size).unwrap();
        assert_eq!(next_data(&file, 0, size).unwrap(), None);
        rustix::io::pwrite(&file, &[1; 65536], 4 << 20).unwrap();
        let found = next_data(&file, 0, size).unwrap().unwrap();
        assert!(found.contains(&(4 << 20)) && found.contains(&((4 << 20) + 65535)), "{found:?}");
        assert_eq!(next_data(&file, found.end, size).unwrap(), None);
        assert_eq!(next_data(&file, size, size).unwrap(), None);
    }
}
