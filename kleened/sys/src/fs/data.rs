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

/// The whole content of `from` is that of `to`, shared until one of them is written to. False where
/// the file systems can't do that; then `to` is as it was.
///
/// # Errors
///
/// What `ioctl_ficlone(2)` says beyond "cannot": no room, a device that fails.
///
/// # Source
///
/// `ioctl_ficlone(2)`. FreeBSD clones in `copy_file_range(2)`, so there this is always false.
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(true),
        Err(
            Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::XDEV
            | Errno::BADF
            | Errno::ISDIR
            | Errno::PERM
            | Errno::TXTBSY,
        ) => (),
        Err(errno) => return Err(errno.into()),
    }
    let _ = (from, to);
    Ok(false)
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
    if clone_file(from, to)? {
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
