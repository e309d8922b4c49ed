//! What differs between two trees.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_sys::fs::{Node, get_xattr, list_xattrs};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::archive::{Error, Item, Links, Place, Walk, next};

/// A difference, or an entry of the new tree that has none.
#[derive(Debug)]
pub(super) enum Change<'c> {
    /// This path is not in the new tree, nor is anything below it; or it is of another type there, and
    /// comes as an entry next.
    Removed(&'c [u8]),
    /// An entry of the new tree.
    Entry {
        /// The entry.
        item: &'c Item<'c>,
        /// The name under which the same file came before.
        first: Option<&'c [u8]>,
        /// Whether the old tree has it just so: type, owner, mode, time, attributes, links, content.
        same: bool,
    },
}

/// Goes through both trees together. Content is compared byte by byte: two writes within one tick of
/// the clock leave the same time behind.
///
/// # Errors
///
/// What the calls say about either tree, or what `each` says.
pub(super) fn compare(
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    each: &mut dyn FnMut(Change<'_>) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let walk = |dir| Walk::new(dir).map_err(|error| reading(b"", error));
    let (mut old_walk, mut new_walk) = (walk(old)?, walk(new)?);
    let (mut old_links, mut new_links) = (Links::default(), Links::default());
    let mut comparison = Comparison::default();
    let mut old_first = None;
    // First names of files that are not as they were: their other names follow them.
    let mut changed = HashSet::<Vec<u8>>::new();
    let (mut more_old, mut more_new) = (step(&mut old_walk)?, step(&mut new_walk)?);
    loop {
        let (old_item, new_item) =
            (old_walk.item().filter(|_| more_old), new_walk.item().filter(|_| more_new));
        let order = match (&old_item, &new_item) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => in_walk_order(old.path, new.path),
        };
        if let Some(old) = old_item.as_ref().filter(|_| order != Ordering::Greater) {
            old_first = old_links.first(old);
        }
        match (order, old_item, new_item) {
            (Ordering::Less, Some(old), _) => {
                if each(Change::Removed(old.path))?.is_break() {
                    return Ok(());
                }
                // Links that other names still have are met again by those names.
                old_walk.skip();
                more_old = step(&mut old_walk)?;
            }
            (Ordering::Equal, Some(old), Some(new)) if old.file_type() != new.file_type() => {
                if each(Change::Removed(old.path))?.is_break() {
                    return Ok(());
                }
                old_walk.skip();
                more_old = step(&mut old_walk)?;
            }
            (order, old, Some(new)) => {
                let first = new_links.first(&new);
                let same = match old.filter(|_| order == Ordering::Equal) {
                    Some(old) => {
                        old_first == first
                            && first.as_ref().is_none_or(|first| !changed.contains(first))
                            && comparison
                                .same(&old, &new, first.is_none())
                                .map_err(|error| reading(new.path, error))?
                    }
                    None => false,
                };
                if !same && first.is_none() && new.stat.st_nlink > 1 {
                    changed.insert(new.path.to_vec());
                }
                if each(Change::Entry { item: &new, first: first.as_deref(), same })?.is_break() {
                    return Ok(());
                }
                if order == Ordering::Equal {
                    more_old = step(&mut old_walk)?;
                }
                more_new = step(&mut new_walk)?;
            }
            (_, _, None) => return Ok(()),
        }
    }
}

fn reading(path: &[u8], error: io::Error) -> Error {
    Error::io("read", path, error)
}

fn step(walk: &mut Walk) -> Result<bool, Error> {
    next(walk).map(|item| item.is_some())
}

/// The order in which a walk gives paths: a directory, what is in it, then its next sibling.
fn in_walk_order(one: &[u8], two: &[u8]) -> Ordering {
    one.split(|b| *b == b'/').cmp(two.split(|b| *b == b'/'))
}

/// Room for comparing, used again and again.
#[derive(Debug)]
struct Comparison {
    buffers: [Vec<u8>; 2],
    names: Vec<u8>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self { buffers: [vec![0; 1 << 17], vec![0; 1 << 17]], names: Vec::new() }
    }
}

impl Comparison {
    /// Whether two entries of one type are the same, but for their links.
    fn same(&mut self, old: &Item<'_>, new: &Item<'_>, content: bool) -> io::Result<bool> {
        let (one, two) = (&old.stat, &new.stat);
        let plain = one.st_mode == two.st_mode
            && (one.st_uid, one.st_gid) == (two.st_uid, two.st_gid)
            && (one.st_mtime, one.st_mtime_nsec) == (two.st_mtime, two.st_mtime_nsec);
        if !plain {
            return Ok(false);
        }
        let kind = new.file_type();
        let special = match (kind, old.at, new.at) {
            (FileType::CharacterDevice | FileType::BlockDevice, ..) => one.st_rdev == two.st_rdev,
            (FileType::Symlink, Place::In(dir, name), Place::In(new_dir, new_name)) => {
                rustix::fs::readlinkat(dir, name, Vec::new())?
                    == rustix::fs::readlinkat(new_dir, new_name, Vec::new())?
            }
            (FileType::RegularFile, ..) => one.st_size == two.st_size,
            _ => true,
        };
        if !special || self.attributes(old.at)? != self.attributes(new.at)? {
            return Ok(false);
        }
        match (old.at, new.at) {
            (Place::In(dir, name), Place::In(new_dir, new_name))
                if kind == FileType::RegularFile && content =>
            {
                self.same_content(&open(dir, name)?, &open(new_dir, new_name)?)
            }
            _ => Ok(true),
        }
    }

    fn attributes(&mut self, at: Place<'_>) -> io::Result<HashMap<CString, Vec<u8>>> {
        let node = match at {
            Place::Directory(fd) => Node::Open(fd),
            Place::In(dir, name) => Node::At(dir, name),
        };
        match list_xattrs(node, &mut self.names) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                return Ok(HashMap::new());
            }
            other => other?,
        }
        let mut found = HashMap::new();
        for name in self.names.split_inclusive(|b| *b == 0) {
            let Ok(name) = CString::from_vec_with_nul(name.to_vec()) else { continue };
            let mut value = Vec::new();
            get_xattr(node, &name, &mut value)?;
            found.insert(name, value);
        }
        Ok(found)
    }

    fn same_content(&mut self, one: &OwnedFd, two: &OwnedFd) -> io::Result<bool> {
        let [first, second] = &mut self.buffers;
        let mut at = 0;
        loop {
            let read = read_at(one, first, at)?;
            if read != read_at(two, second, at)? || first.get(..read) != second.get(..read) {
                return Ok(false);
            }
            if read == 0 {
                return Ok(true);
            }
            at += read as u64;
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Fills the buffer, but for the end of the file.
fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file.as_fd(), rest, at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}
