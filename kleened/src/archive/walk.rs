//! A tree, entry by entry.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_sys::fs::open_directory;
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

/// Directories that stay open at once. Further up the way back is `..`, checked.
const WINDOW: usize = 32;

/// The entries of a tree, each directory before what is in it, names in the order of their bytes.
/// The top comes first. Links are not followed. What vanishes meanwhile is left out. However deep the
/// tree is, a few dozen descriptors are enough.
#[derive(Debug)]
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// The path of the present entry, as in [`super::read::Entry::name`].
    path: Vec<u8>,
    /// What it is; its name where it is no directory. `None` before the first.
    current: Option<(Stat, Option<CString>)>,
}

#[derive(Debug)]
struct Level {
    fd: Option<OwnedFd>,
    id: (u64, u64),
    /// How much of the path is this directory's.
    path: usize,
    /// What is still to come, the next one last.
    names: Vec<CString>,
}

/// An entry of a tree.
#[derive(Debug)]
pub(crate) struct Item<'w> {
    /// Its path: components joined by `/`; empty for the top.
    pub(crate) path: &'w [u8],
    /// What `lstat(2)` says.
    pub(crate) stat: Stat,
    /// How to reach it.
    pub(crate) at: Place<'w>,
}

/// How to reach an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'w> {
    /// A directory, open.
    Directory(BorrowedFd<'w>),
    /// Anything else: its directory and its name there.
    In(BorrowedFd<'w>, &'w CStr),
}

impl Item<'_> {
    /// Its type.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

impl Walk {
    /// A walk through the directory `top`.
    ///
    /// # Errors
    ///
    /// What the calls say.
    pub(crate) fn new(top: BorrowedFd<'_>) -> io::Result<Self> {
        let level = Level::open(open_directory(top, c".")?, 0)?;
        Ok(Self { levels: vec![level], path: Vec::new(), current: None })
    }

    /// The path of the present entry, or that the last error is about.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Leaves out what is in the present entry, a directory.
    pub(crate) fn skip(&mut self) {
        if let Some(level) = self.levels.last_mut().filter(|l| l.path == self.path.len()) {
            level.names.clear();
        }
    }

    /// Goes on to the next entry; false at the end.
    ///
    /// # Errors
    ///
    /// What the calls say; [`path`](Self::path) tells about what.
    pub(crate) fn advance(&mut self) -> io::Result<bool> {
        if self.current.is_none() {
            let Some(fd) = self.here() else { return Ok(false) };
            self.current = Some((rustix::fs::fstat(fd)?, None));
            return Ok(true);
        }
        loop {
            let Some(name) = self.next_name()? else { return Ok(false) };
            let Some(dir) = self.here() else { return Ok(false) };
            let stat = match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.current = Some((stat, Some(name)));
                return Ok(true);
            }
            let fd = match open_directory(dir, &*name) {
                Ok(fd) => fd,
                Err(error) => match Errno::from_io_error(&error) {
                    // It is gone; what took its place is not for this walk.
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => continue,
                    _ => return Err(error),
                },
            };
            // Of what was opened, which may not be what was looked at.
            self.current = Some((rustix::fs::fstat(&fd)?, None));
            self.levels.push(Level::open(fd, self.path.len())?);
            if let Some(far) = self.levels.len().checked_sub(WINDOW + 1)
                && let Some(level) = self.levels.get_mut(far)
            {
                level.fd = None;
            }
            return Ok(true);
        }
    }

    /// The entry that [`advance`](Self::advance) went to.
    pub(crate) fn item(&self) -> Option<Item<'_>> {
        let (stat, name) = self.current.as_ref()?;
        let dir = self.here()?;
        let at = match name {
            Some(name) => Place::In(dir, name),
            None => Place::Directory(dir),
        };
        Some(Item { path: &self.path, stat: *stat, at })
    }

    fn here(&self) -> Option<BorrowedFd<'_>> {
        self.levels.last()?.fd.as_ref().map(|fd| fd.as_fd())
    }

    /// The next name, with the path set to it, on the way up where a directory is done.
    fn next_name(&mut self) -> io::Result<Option<CString>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.path);
            if let Some(name) = level.names.pop() {
                if !self.path.is_empty() {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name.as_bytes());
                return Ok(Some(name));
            }
            let Some(done) = self.levels.pop() else { return Ok(None) };
            let Some(parent) = self.levels.last_mut() else { return Ok(None) };
            if parent.fd.is_none() {
                let up = open_directory(done.fd.as_ref().ok_or(Errno::BADF)?, c"..")?;
                if identity(&rustix::fs::fstat(&up)?) != parent.id {
                    return Err(io::Error::other("it was moved while it was read"));
                }
                parent.fd = Some(up);
            }
        }
    }
}

impl Level {
    fn open(fd: OwnedFd, path: usize) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { id: identity(&rustix::fs::fstat(&fd)?), fd: Some(fd), path, names })
    }
}

/// What makes a file the same file.
#[allow(clippy::useless_conversion, reason = "the widths differ from system to system")]
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev.into(), stat.st_ino.into())
}
