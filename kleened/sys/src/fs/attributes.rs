//! What a file is, in one call.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps};

use super::Flags;

/// What a directory entry is, and who may do what with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attributes {
    /// The type.
    pub kind: FileType,
    /// The twelve bits that `chmod(2)` sets.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many names it has.
    pub links: u64,
    /// The length in bytes.
    pub size: u64,
    /// The bytes that are allocated for it.
    pub allocated: u64,
    /// The bytes of a block. ZFS gives a small file one block of its own size, in steps of 512 bytes.
    pub block: u64,
    /// The file system's device, and the number in it: the same for all names of one file.
    pub id: (u64, u64),
    /// The device that a device node stands for.
    pub node: u64,
    /// When it was read and when its content changed last.
    pub times: Timestamps,
    /// Its flags: immutable and the like.
    pub flags: Flags,
    /// Whether something is mounted here: it is the root of a mount. On FreeBSD, where no call tells,
    /// always false; there the device differs from the directory's.
    pub mounted: bool,
}

/// The attributes of an open file.
///
/// # Errors
///
/// What `statx(2)` or `fstat(2)` says.
pub fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    look(file, c"", AtFlags::EMPTY_PATH)
}

/// The attributes of a name in a directory, itself and not what it links to.
///
/// # Errors
///
/// What `statx(2)` or `fstatat(2)` says.
pub fn attributes_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Attributes> {
    look(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(target_os = "linux")]
fn look(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> io::Result<Attributes> {
    use rustix::fs::{StatxAttributes, StatxFlags};
    let flags = flags | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    let time =
        |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Ok(Attributes {
        kind: FileType::from_raw_mode(found.stx_mode.into()),
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        links: found.stx_nlink.into(),
        size: found.stx_size,
        allocated: found.stx_blocks.saturating_mul(512),
        block: found.stx_blksize.into(),
        id: (rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino),
        node: rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor),
        times: Timestamps {
            last_access: time(found.stx_atime),
            last_modification: time(found.stx_mtime),
        },
        flags: Flags::of(found.stx_attributes),
        mounted: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

#[cfg(target_os = "freebsd")]
fn look(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> io::Result<Attributes> {
    let found = rustix::fs::statat(dir, name, flags)?;
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    Ok(Attributes {
        kind: FileType::from_raw_mode(found.st_mode),
        mode: u32::from(found.st_mode) & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        links: found.st_nlink,
        size: u64::try_from(found.st_size).unwrap_or_default(),
        allocated: u64::try_from(found.st_blocks).unwrap_or_default().saturating_mul(512),
        block: u64::try_from(found.st_blksize).unwrap_or_default(),
        id: (found.st_dev, found.st_ino),
        node: found.st_rdev,
        times: Timestamps {
            last_access: time(found.st_atime, found.st_atime_nsec),
            last_modification: time(found.st_mtime, found.st_mtime_nsec),
        },
        flags: Flags::of(found.st_flags),
        mounted: false,
    })
}

/// `name` in `dir` has this mode. A link is not followed.
///
/// # Errors
///
/// EOPNOTSUPP for a link where links have no modes. Otherwise what `fchmodat(2)` says.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode as rustix::fs::RawMode);
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsFd;

        use rustix::fs::OFlags;

        // `fchmodat(2)` with a flag is only there since Linux 6.6.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        // Some file systems would set the mode of a link, which then shows everywhere.
        if attributes(file.as_fd())?.kind == FileType::Symlink {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        let path = super::proc_path(file.as_fd());
        Ok(rustix::fs::chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())?)
    }
    #[cfg(target_os = "freebsd")]
    Ok(rustix::fs::chmodat(dir, name, mode, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What this thread makes from now on has exactly the mode that it asks for: its umask is 0 and its
/// own. False where threads have no umask of their own and nothing changed.
///
/// # Source
///
/// `unshare(2)` with `CLONE_FS`, which also gives the thread a working directory of its own.
#[must_use]
pub fn unmask_thread() -> bool {
    #[cfg(target_os = "linux")]
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_ok() {
        rustix::process::umask(Mode::empty());
        return true;
    }
    false
}
