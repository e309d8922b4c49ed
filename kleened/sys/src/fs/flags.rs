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
        /// Whether one of them is in the way of a change or a removal.
        #[must_use]
        pub fn protect(self) -> bool {
            !self.is_empty()
        }

        /// Those that `found` shows and an archive keeps: none.
        #[must_use]
        pub fn to_archive(_: &rustix::fs::Stat) -> Self {
            Self::default()
        }

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

    use rustix::fs::AtFlags;

    use super::names::{ARCHIVE, KNOWN, PROTECTING};
    use super::{BorrowedFd, CStr, Flags, io};

    impl Flags {
        /// Those that `fstat(2)` shows, without those that the file system only reports.
        pub(in super::super) fn of(found: u32) -> Self {
            Self(found & KNOWN)
        }

        /// Whether one of them is in the way of a change or a removal.
        #[must_use]
        pub fn protect(self) -> bool {
            self.0 & PROTECTING != 0
        }

        /// Those that `found` shows and an archive keeps. Whether a file has yet to be archived says
        /// nothing about a copy of it: that has.
        #[must_use]
        pub fn to_archive(found: &rustix::fs::Stat) -> Self {
            Self(found.st_flags & KNOWN & !ARCHIVE)
        }
    }

    /// `name` in `dir` has these flags and no others. A link is not followed.
    ///
    /// # Errors
    ///
    /// What `chflagsat(2)` says: EOPNOTSUPP where the file system does not keep one of them.
    pub fn set_flags(dir: BorrowedFd<'_>, name: &CStr, flags: Flags) -> io::Result<()> {
        let nofollow = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `dir` is open and `name` ends with a NUL for the whole call.
        let set =
            unsafe { libc::chflagsat(dir.as_raw_fd(), name.as_ptr(), flags.0.into(), nofollow) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn unprotect(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let present = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_flags;
        if present & PROTECTING == 0 {
            return Ok(());
        }
        set_flags(dir, name, Flags(present & !PROTECTING))
    }

    pub(super) fn add(dir: BorrowedFd<'_>, name: &CStr, flags: Flags) -> io::Result<()> {
        let present = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_flags;
        if present & flags.0 == flags.0 {
            return Ok(());
        }
        set_flags(dir, name, Flags(present & KNOWN | flags.0))
    }
}

#[cfg(target_os = "freebsd")]
pub use platform::set_flags;

/// FreeBSD's flags by name.
#[cfg(any(test, target_os = "freebsd"))]
mod names {
    /// The values of `sys/stat.h`, by the names that `strtofflags(3)` knows; of several for one flag the
    /// one that is written first. Those of snapshots of UFS, and of what no file system keeps, are left
    /// out: nobody can set them.
    const NAMES: &[(&str, u32)] = &[
        ("sappnd", 0x0004_0000),
        ("sappend", 0x0004_0000),
        ("arch", 0x0001_0000),
        ("archived", 0x0001_0000),
        ("schg", 0x0002_0000),
        ("schange", 0x0002_0000),
        ("simmutable", 0x0002_0000),
        ("sunlnk", 0x0010_0000),
        ("sunlink", 0x0010_0000),
        ("uappnd", 0x0000_0004),
        ("uappend", 0x0000_0004),
        ("uarch", ARCHIVE),
        ("uarchive", ARCHIVE),
        ("hidden", 0x0000_8000),
        ("uhidden", 0x0000_8000),
        ("uchg", 0x0000_0002),
        ("uchange", 0x0000_0002),
        ("uimmutable", 0x0000_0002),
        ("nodump", 0x0000_0001),
        ("opaque", 0x0000_0008),
        ("uunlnk", 0x0000_0010),
        ("uunlink", 0x0000_0010),
        ("offline", 0x0000_0200),
        ("uoffline", 0x0000_0200),
        ("rdonly", 0x0000_1000),
        ("urdonly", 0x0000_1000),
        ("readonly", 0x0000_1000),
        ("reparse", 0x0000_0400),
        ("ureparse", 0x0000_0400),
        ("sparse", 0x0000_0100),
        ("usparse", 0x0000_0100),
        ("system", 0x0000_0080),
        ("usystem", 0x0000_0080),
    ];

    /// `UF_ARCHIVE`.
    pub(super) const ARCHIVE: u32 = 0x0000_0800;

    /// All of them.
    pub(super) const KNOWN: u32 = 0x0017_9f9f;

    /// What makes a file hard to change or to remove: immutable, append only, not to be unlinked, for
    /// the owner or the system, and read-only in the manner of Windows.
    pub(super) const PROTECTING: u32 = 0x0016_1016;

    /// The bits that the text stands for, names with commas between them. Others, such as Linux's, are
    /// passed over.
    pub(super) fn parse(text: &str) -> u32 {
        let names = text.split([',', ' ', '\t']);
        let bits = names.filter_map(|name| NAMES.iter().find(|(known, _)| *known == name));
        bits.fold(0, |bits, (_, bit)| bits | bit)
    }

    /// The names of the bits, as `fflagstostr(3)` writes them.
    pub(super) fn text(mut bits: u32) -> String {
        let mut names = Vec::new();
        for (name, bit) in NAMES {
            if bits & bit != 0 {
                names.push(*name);
                bits &= !bit;
            }
        }
        names.join(",")
    }

    #[cfg(target_os = "freebsd")]
    const _: () = {
        use libc::*;
        let protecting = UF_IMMUTABLE | UF_APPEND | UF_NOUNLINK | UF_READONLY;
        let protecting = protecting | SF_IMMUTABLE | SF_APPEND | SF_NOUNLINK;
        let others = UF_NODUMP | UF_OPAQUE | UF_SYSTEM | UF_SPARSE | UF_OFFLINE | UF_REPARSE;
        let others = others | UF_ARCHIVE | UF_HIDDEN | SF_ARCHIVED;
        assert!(ARCHIVE as c_ulong == UF_ARCHIVE);
        assert!(PROTECTING as c_ulong == protecting);
        assert!(KNOWN as c_ulong == protecting | others);
    };

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_flag_has_a_name_that_is_read_again() {
            let all = NAMES.iter().fold(0, |all, (_, bit)| all | bit);
            assert_eq!((all, all & PROTECTING), (KNOWN, PROTECTING));
            assert_eq!(parse(&text(all)), all);
            for (name, bit) in NAMES {
                assert_eq!(parse(name), *bit);
                assert_eq!(parse(&text(*bit)), *bit);
            }
        }

        #[test]
        fn names_as_the_tools_write_them() {
            assert_eq!(parse("schg"), 0x0002_0000);
            assert_eq!(parse("uarch,schg nodump"), 0x0002_0801);
            assert_eq!((parse(""), parse("none"), parse("noatime,nodump")), (0, 0, 1));
            assert_eq!(text(0x0002_0801), "schg,uarch,nodump");
        }
    }
}

impl Flags {
    /// Those that FreeBSD's names stand for, with commas between them, as `chflags(1)` and tar have them.
    /// Other names are passed over; on Linux, which has other flags, all.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        #[cfg(target_os = "freebsd")]
        return Self(names::parse(text));
        #[cfg(target_os = "linux")]
        {
            let _ = text;
            Self::default()
        }
    }

    /// Their names, which [`parse`](Self::parse) reads; nothing on Linux.
    #[must_use]
    pub fn text(self) -> String {
        #[cfg(target_os = "freebsd")]
        return names::text(self.0);
        #[cfg(target_os = "linux")]
        String::new()
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
