//! Directory entries that change in one step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// How the names of files begin that [`write_atomically`] had not finished when the machine stopped.
/// They are worth nothing and can be removed.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// `from` has the name `to`, which was free.
///
/// # Errors
///
/// EEXIST where `to` exists; then nothing changed. Otherwise what `renameat(2)` says.
///
/// # Source
///
/// On Linux `renameat2(2)` with `RENAME_NOREPLACE`. FreeBSD has no such call: a file is linked to its
/// new name, then unlinked from the old, so that after a crash it can have both; for a directory the
/// new name is looked up first, so that an empty directory which somebody makes at that very moment
/// is replaced. Callers that need more keep others away with a lock. So it is on Linux, too, where the
/// file system can't.
pub fn rename_noreplace(
    from_dir: BorrowedFd<'_>,
    from: impl rustix::path::Arg + Copy,
    to_dir: BorrowedFd<'_>,
    to: impl rustix::path::Arg + Copy,
) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::RenameFlags;
        match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => (),
            other => return Ok(other?),
        }
    }
    match rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty()) {
        Ok(()) => return Ok(rustix::fs::unlinkat(from_dir, from, AtFlags::empty())?),
        // A directory, or a file system without links. Which errno it is differs.
        Err(Errno::PERM | Errno::ISDIR | Errno::NOTSUP | Errno::MLINK | Errno::ACCESS) => (),
        Err(errno) => return Err(errno.into()),
    }
    if super::resolve::exists(to_dir, to)? {
        return Err(Errno::EXIST.into());
    }
    Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
}

/// What was made, renamed and removed in the directory survives a power failure.
///
/// # Errors
///
/// What `fsync(2)` says. EBADF for a descriptor of `O_PATH`.
pub fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(dir)?)
}

/// `name` in `dir` is a file with exactly these bytes and this mode, and stays so after a power
/// failure. A reader sees either what was there before or the new file, never a part.
///
/// # Errors
///
/// What the calls say; then `name` is what it was, or, where only the last step failed (making the
/// change of the directory durable), the new file. A repeat is safe.
pub fn write_atomically(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    let (temporary, file) = temporary(dir)?;
    let written = write(file, bytes, mode)
        .and_then(|()| Ok(rustix::fs::renameat(dir, &*temporary, dir, name)?));
    if let Err(error) = written {
        // The first error counts; a file that stays is known by its name.
        let _ = rustix::fs::unlinkat(dir, &*temporary, AtFlags::empty());
        return Err(error);
    }
    sync_dir(dir)
}

fn write(file: OwnedFd, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    // The umask has no say.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode as rustix::fs::RawMode))?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    file.sync_all()
}

/// A new, empty file under a name that nobody has.
fn temporary(dir: BorrowedFd<'_>) -> io::Result<(String, OwnedFd)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY_PREFIX}{}-{count}", std::process::id());
        match rustix::fs::openat(dir, &*name, flags, Mode::RUSR | Mode::WUSR) {
            // Of an earlier process with this id; the counter goes on.
            Err(Errno::EXIST) => (),
            other => return Ok((name, other?)),
        }
    }
}

/// The lock on the file `name` in `dir`, made where it is missing, held until the descriptor is
/// dropped or the process ends in whatever way; `None` where another process holds it.
///
/// # Errors
///
/// What `openat(2)` and `flock(2)` say.
pub fn lock_file(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // Somebody may have replaced the file before we had the lock.
        let held = rustix::fs::fstat(&file)?;
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino) => {
                return Ok(Some(file));
            }
            Ok(_) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_rename_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("file"), "file").unwrap();
        for (from, to) in [("a", "b"), ("file", "a"), ("a", "file")] {
            let error = rename_noreplace(fd.as_fd(), from, fd.as_fd(), to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{from} to {to}");
        }
        rename_noreplace(fd.as_fd(), "a", fd.as_fd(), "c").unwrap();
        rename_noreplace(fd.as_fd(), "file", fd.as_fd(), "file2").unwrap();
        assert!(dir.path().join("c").is_dir() && !dir.path().join("a").exists());
        assert!(dir.path().join("file2").is_file() && !dir.path().join("file").exists());
        let error = rename_noreplace(fd.as_fd(), "missing", fd.as_fd(), "d").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_replaced_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        write_atomically(fd.as_fd(), "name", b"one", 0o640).unwrap();
        write_atomically(fd.as_fd(), "name", b"two", 0o666).unwrap();
        let path = dir.path().join("name");
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o666);
        // A directory can't be replaced by a file; nothing is left over.
        fs::create_dir(dir.path().join("taken")).unwrap();
        write_atomically(fd.as_fd(), "taken", b"", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        let held = lock_file(fd.as_fd(), "lock").unwrap();
        assert!(held.is_some());
        assert!(lock_file(fd.as_fd(), "lock").unwrap().is_none());
        drop(held);
        assert!(lock_file(fd.as_fd(), "lock").unwrap().is_some());
    }
}
