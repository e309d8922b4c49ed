//! What is in a directory.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: CString,
    /// Its type; `Unknown` where the file system doesn't say.
    pub kind: FileType,
    /// Its number in the file system, or, where something is mounted on it, that of what is below.
    pub inode: u64,
}

impl Entry {
    fn new(name: &CStr, kind: FileType, inode: u64) -> Option<Self> {
        (name != c"." && name != c"..").then(|| Self { name: name.to_owned(), kind, inode })
    }
}

/// Appends the next part of a directory's entries to `entries`, without `.` and `..`; no more than
/// fit into `buffer`, which must have room for a name of any length (a few KiB). Where to go on is
/// returned; `None` at the end, which is also where the directory is removed while it is open. Begins
/// at `position`, 0 for the start.
///
/// On FreeBSD everything comes as one part.
///
/// # Errors
///
/// What `getdents(2)` says.
pub fn list_part(
    dir: BorrowedFd<'_>,
    position: u64,
    buffer: &mut Vec<u8>,
    entries: &mut Vec<Entry>,
) -> io::Result<Option<u64>> {
    match rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(position)) {
        // ext4 gave the position, and does not know it any more when the directory is removed.
        Err(Errno::INVAL) if position > 0 => return Ok(None),
        sought => sought?,
    };
    #[cfg(target_os = "linux")]
    {
        buffer.clear();
        let mut listing = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
        let mut next = None;
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::NOENT) => return Ok(None),
                entry => entry?,
            };
            next = Some(entry.next_entry_cookie());
            entries.extend(Entry::new(entry.file_name(), entry.file_type(), entry.ino()));
            if listing.is_buffer_empty() {
                break;
            }
        }
        Ok(next)
    }
    #[cfg(target_os = "freebsd")]
    {
        let _ = buffer;
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            entries.extend(Entry::new(entry.file_name(), entry.file_type(), entry.ino()));
        }
        Ok(None)
    }
}
