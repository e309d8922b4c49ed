//! Files and directories, by descriptor.
//!
//! Nothing here takes an absolute path: every name is looked up in a directory that the caller has
//! open. What `rustix` has already (`chownat`, `utimensat`, `mknodat`, …) is not wrapped again.

#[cfg(any(test, target_os = "freebsd"))]
mod acl;
mod attributes;
mod data;
mod entry;
mod flags;
mod listing;
mod remove;
mod resolve;
mod xattr;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

pub use attributes::{Attributes, attributes, attributes_at, chmod_at, unmask_thread};
pub use data::{Cloned, Copied, clone_file, clone_or_copy, copy_range, next_data};
pub use entry::{TEMPORARY_PREFIX, lock_file, rename_noreplace, sync_dir, write_atomically};
#[cfg(target_os = "freebsd")]
pub use flags::set_flags;
pub use flags::{Flags, add_flags, unprotect};
pub use listing::{Entry, list_part};
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

/// A name in a directory, opened; nothing that is made by it, no link followed, and no mount entered.
///
/// # Errors
///
/// EXDEV where something is mounted on it, ELOOP (EMLINK on FreeBSD) for a link. Otherwise what
/// `openat(2)` says.
pub fn open_unmounted(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
    }
    #[cfg(target_os = "freebsd")]
    {
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let same = rustix::fs::fstat(&file)?.st_dev == rustix::fs::fstat(dir)?.st_dev;
        if same { Ok(file) } else { Err(rustix::io::Errno::XDEV) }
    }
}

/// What was written to the file system of an open file survives a power failure.
///
/// # Errors
///
/// What `syncfs(2)` says. FreeBSD has only `sync(2)`, which says nothing.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(file)?;
    #[cfg(target_os = "freebsd")]
    {
        let _ = file;
        rustix::fs::sync();
    }
    Ok(())
}

/// A socket has the name `name` in `dir`; nobody listens on it.
///
/// # Errors
///
/// What `mknodat(2)` says, on FreeBSD `bindat(2)`: there the name has at most 103 bytes.
pub fn make_socket(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::mknodat(dir, name, rustix::fs::FileType::Socket, mode, 0)?;
    #[cfg(target_os = "freebsd")]
    {
        crate::socket::bind(dir, name)?;
        rustix::fs::chmodat(dir, name, mode, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
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

/// Says that a test could not run, and fails it where `KLEENE_REQUIRE` names what it needs.
#[cfg(test)]
#[cfg(target_os = "linux")]
fn skip(thing: &str, why: impl std::fmt::Display) {
    let required = std::env::var("KLEENE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == thing), "{thing} is required: {why}");
    eprintln!("skipped: no {thing}: {why}");
}
