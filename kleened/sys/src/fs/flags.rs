//! File flags: immutable, append-only, and what else a file system keeps of that kind.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// Flags of a file that can be set again on a copy of it. Those that a file system sets by itself are
/// left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, StatxAttributes};
    use rustix::io::Errno;

    use super::{BorrowedFd, CStr, Flags, io};

    /// What makes a file or directory hard to remove.
    const PROTECTING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

    impl Flags {
        /// Those that `statx(2)` shows.
        pub(in super::super) fn of(found: StatxAttributes) -> Self {
            let mut flags = IFlags::empty();
            flags.set(IFlags::IMMUTABLE, found.contains(StatxAttributes::IMMUTABLE));
            flags.set(IFlags::APPEND, found.contains(StatxAttributes::APPEND));
            flags.set(IFlags::NODUMP, found.contains(StatxAttributes::NODUMP));
            Self(flags.bits())
        }
    }

    pub(super) fn change(
        dir: BorrowedFd<'_>,
        name: &CStr,
        add: Flags,
        remove: IFlags,
    ) -> io::Result<()> {
        // Only files and directories have flags, and opening anything else could do something.
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let before = rustix::fs::ioctl_getflags(&file)?;
        let after = (before - remove) | IFlags::from_bits_retain(add.0);
        if after != before {
            rustix::fs::ioctl_setflags(&file, after)?;
        }
        Ok(())
    }

    pub(super) fn add(dir: BorrowedFd<'_>, name: &CStr, flags: Flags) -> io::Result<()> {
        change(dir, name, flags, IFlags::empty())
    }

    pub(super) fn unprotect(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        change(dir, name, Flags::default(), PROTECTING)
    }
}

#[cfg(target_os = "freebsd")]
mod platform {
    use std::os::fd::AsRawFd;

    use super::{BorrowedFd, CStr, Flags, io};

    /// Which flags are the file's own, and not the file system's report about it.
    const OWN: u32 = (libc::UF_NODUMP
        | libc::UF_IMMUTABLE
        | libc::UF_APPEND
        | libc::UF_OPAQUE
        | libc::UF_NOUNLINK
        | libc::UF_SYSTEM
        | libc::UF_HIDDEN
        | libc::UF_READONLY
        | libc::SF_IMMUTABLE
        | libc::SF_APPEND
        | libc::SF_NOUNLINK) as u32;

    impl Flags {
        /// Those that `fstat(2)` shows.
        pub(in super::super) fn of(found: u32) -> Self {
            Self(found & OWN)
        }
    }

    pub(super) fn add(dir: BorrowedFd<'_>, name: &CStr, flags: Flags) -> io::Result<()> {
        let nofollow = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `dir` is open and `name` ends with a NUL for the whole call.
        let set =
            unsafe { libc::chflagsat(dir.as_raw_fd(), name.as_ptr(), flags.0.into(), nofollow) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn unprotect(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        add(dir, name, Flags::default())
    }
}

/// `name` in `dir` has these flags too. A link is not followed. From then on it may not be possible to
/// change or remove it.
///
/// # Errors
///
/// EOPNOTSUPP or ENOTTY where it can have none. Otherwise what `FS_IOC_SETFLAGS`
/// (`ioctl_iflags(2const)`) or `chflags(2)` says.
pub fn add_flags(dir: BorrowedFd<'_>, name: &CStr, flags: Flags) -> io::Result<()> {
    platform::add(dir, name, flags)
}

/// Nothing protects `name` in `dir` against being changed and removed. A link is not followed.
///
/// # Errors
///
/// As [`add_flags`].
pub fn unprotect(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    platform::unprotect(dir, name)
}
