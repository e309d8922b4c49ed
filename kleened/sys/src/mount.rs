//! Mounts by descriptor: what `rustix` lacks of Linux's mount calls.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

pub use rustix::mount::MountAttrFlags as Attributes;

/// A copy of the mount that `file` is on, with `file` as its root, which is attached nowhere. It is
/// gone when the descriptor is closed and it was not attached. With `recursive`, the mounts below are
/// part of it.
///
/// # Errors
///
/// What `open_tree(2)` says; `EINVAL` where `file` is on a mount of another mount namespace.
pub fn clone_tree(file: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(file, c"", flags)?)
}

/// The mount has these attributes beside those that it has, and mounts that are made elsewhere don't
/// appear in it. With `recursive`, so it is with all mounts below.
///
/// # Errors
///
/// What `mount_setattr(2)` says; then nothing changed.
pub fn restrict(mount: impl AsFd, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.bits().into(),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let mount = mount.as_fd().as_raw_fd();
    let path = c"".as_ptr();
    let (argument, size) = (&raw const argument, size_of::<libc::mount_attr>());
    // SAFETY: the path is a C string, and `argument` points to a structure of `size` bytes that the
    // kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, mount, path, flags, argument, size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The mount, which was attached nowhere or elsewhere, is on `place`.
///
/// # Errors
///
/// What `move_mount(2)` says; `ENOTDIR` where one is a directory and the other is not.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", place, c"", flags)?)
}

/// The mount that a file is on, and whether the file is its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountId {
    /// The kernel's number, the first field of `/proc/PID/mountinfo`.
    pub id: u64,
    /// Whether the file is what is mounted.
    pub is_root: bool,
}

/// The mount that the open file is on.
///
/// # Errors
///
/// What `statx(2)` says; `ENOSYS` before Linux 5.8.
pub fn mount_id(file: impl AsFd) -> io::Result<MountId> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let is_root = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(MountId { id: found.stx_mnt_id, is_root })
}
