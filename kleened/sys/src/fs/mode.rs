//! Modes of what is not open.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, RawMode};

/// `name` in `dir` has this mode. A link is not followed.
///
/// # Errors
///
/// EOPNOTSUPP for a link where links have no modes. Otherwise what `fchmodat(2)` says.
pub fn chmod_at(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    mode: u32,
) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode as RawMode);
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsFd;

        use rustix::fs::{FileType, OFlags};
        // `fchmodat(2)` with a flag is only there since Linux 6.6.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        // Some file systems would set the mode of a link, which then shows everywhere.
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Symlink {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        let path = super::proc_path(file.as_fd());
        Ok(rustix::fs::chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())?)
    }
    #[cfg(target_os = "freebsd")]
    Ok(rustix::fs::chmodat(dir, name, mode, AtFlags::SYMLINK_NOFOLLOW)?)
}
