//! Files and directories, by descriptor.
//!
//! Nothing here takes an absolute path: every name is looked up in a directory that the caller has
//! open. What `rustix` has already (`chownat`, `utimensat`, `mknodat`, …) is not wrapped again.

mod data;
mod entry;
mod mode;
mod remove;
mod resolve;
mod xattr;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

pub use data::{Copied, clone_file, clone_or_copy, copy_range, next_data};
pub use entry::{TEMPORARY_PREFIX, lock_file, rename_noreplace, sync_dir, write_atomically};
pub use mode::chmod_at;
pub use remove::remove_tree;
pub use resolve::{ResolveError, make_directory_in_root, make_file_in_root, resolve_in_root};
pub use xattr::{Node, get_xattr, list_xattrs, remove_xattr, set_xattr};

/// How much room a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What somebody without privileges can still write.
    pub available: u64,
}

/// The room on the file system of an open file.
///
/// # Errors
///
/// What `fstatvfs(3)` says.
pub fn space(file: impl AsFd) -> io::Result<Space> {
    let found = rustix::fs::fstatvfs(file)?;
    Ok(Space {
        total: found.f_blocks.saturating_mul(found.f_frsize),
        available: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

/// An open directory, to look names up in and to list. A link is not followed.
///
/// # Errors
///
/// What `openat(2)` says.
pub fn open_directory(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// What the descriptor, which may be one of `O_PATH`, stands for, opened anew.
///
/// # Errors
///
/// What `open(2)` says.
fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    #[cfg(target_os = "linux")]
    let opened = rustix::fs::open(proc_path(file), flags - OFlags::NOFOLLOW, Mode::empty());
    #[cfg(target_os = "freebsd")]
    let opened = rustix::fs::openat(file, c"", flags | OFlags::EMPTY_PATH, Mode::empty());
    Ok(opened?)
}

/// A path that leads the kernel to an open file, whatever its name is now.
#[cfg(target_os = "linux")]
fn proc_path(file: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
