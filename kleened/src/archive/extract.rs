//! An archive into a tree.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kleened_sys::fs::{
    Flags, Node, add_flags, chmod_at, list_xattrs, open_directory, remove_tree, remove_xattr,
    set_xattr,
};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::create::is_unsupported;
use super::decode::classify;
use super::read::{Entry, Kind, Reader};
use super::sparse::Segment;
use super::walk::identity;
use super::{Error, Summary, check, count_bytes, count_file, shown};
use crate::copy::Progress;

/// The most bytes of directories' metadata that may wait for the end.
const MAX_DEFERRED: usize = 256 << 20;

/// What an archive may do, and who is told about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extract<'a> {
    /// Whether device nodes are made. Otherwise an archive that has one is refused.
    pub devices: bool,
    /// Counts entries other than directories, and bytes; can cancel.
    pub progress: Option<&'a Progress>,
}

/// All entries of the archive are below the directory `to`, which should be empty: with owners by
/// number, modes (set-id bits too), times to the nanosecond, extended attributes and, as those, ACLs,
/// hard links and holes; on FreeBSD with file flags. The metadata of the top is that of the archive's entry `./`, where it has one.
/// Directories get theirs at the end, flags come last of all. Parents that no entry describes are made with mode 0755. See the
/// [module](super) for what is refused and for what is never done.
///
/// # Errors
///
/// See [`Error`]. A part of the tree is then there: the caller throws it away.
pub fn extract(
    input: &mut dyn Read,
    to: BorrowedFd<'_>,
    options: &Extract<'_>,
) -> Result<Summary, Error> {
    let mut reader = Reader::new(input)?;
    let mut extractor = Extractor::new(to, *options);
    while let Some(entry) = reader.next()? {
        extractor.apply(entry, &mut reader.data())?;
    }
    extractor.finish()
}

/// Metadata of a directory, which what is made in it would change.
#[derive(Debug)]
struct Deferred {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<Timespec>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree that entries are added to.
#[derive(Debug)]
pub(crate) struct Extractor<'a> {
    top: BorrowedFd<'a>,
    options: Extract<'a>,
    directories: BTreeMap<Vec<u8>, Deferred>,
    /// Flags, which come when nothing is changed any more.
    flags: BTreeMap<Vec<u8>, Flags>,
    deferred: usize,
    /// The directory that was opened last: most often the next entry is in it, too.
    recent: Option<(Vec<u8>, OwnedFd)>,
    summary: Summary,
    buffer: Vec<u8>,
    names: Vec<u8>,
}

impl<'a> Extractor<'a> {
    /// Nothing is done yet.
    pub(crate) fn new(top: BorrowedFd<'a>, options: Extract<'a>) -> Self {
        Self {
            top,
            options,
            directories: BTreeMap::new(),
            flags: BTreeMap::new(),
            deferred: 0,
            recent: None,
            summary: Summary::default(),
            buffer: vec![0; 1 << 17],
            names: Vec::new(),
        }
    }

    /// The entry is in the tree, in place of what had its name.
    ///
    /// # Errors
    ///
    /// As [`extract`].
    pub(crate) fn apply(&mut self, entry: Entry, content: &mut dyn Read) -> Result<(), Error> {
        self.check()?;
        self.note_flags(&entry)?;
        if entry.kind == Kind::Directory {
            self.directory(entry)?;
        } else {
            let (parent, name) = split(&entry.name);
            let name = c_string(&entry.name, name)?;
            let dir = self.open_parent(parent)?;
            let made = self.make(&entry, &dir, &name, content);
            self.recent = Some(dir);
            made?;
            count_file(self.options.progress);
        }
        self.summary.entries += 1;
        Ok(())
    }

    /// The entry's flags wait; those of what had its name before are forgotten.
    fn note_flags(&mut self, entry: &Entry) -> Result<(), Error> {
        // The other names of a file share them.
        let Entry { name, flags, .. } = entry;
        if flags.is_empty() || matches!(entry.kind, Kind::HardLink(_)) {
            self.flags.remove(name);
            return Ok(());
        }
        self.deferred += name.len() + size_of::<Flags>();
        self.check_deferred(name)?;
        self.flags.insert(name.clone(), *flags);
        Ok(())
    }

    /// What has that name, and everything below it, is gone. False where there was nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<bool, Error> {
        self.check()?;
        let (parent, name) = split(path);
        let name = c_string(path, name)?;
        let dir = self.open_parent(parent)?;
        let removed = remove_tree(dir.1.as_fd(), &*name);
        removed.map_err(|error| Error::io("remove", path, error))
    }

    fn check(&self) -> Result<(), Error> {
        check(self.options.progress)
    }

    fn make(
        &mut self,
        entry: &Entry,
        parent: &(Vec<u8>, OwnedFd),
        name: &CStr,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let dir = parent.1.as_fd();
        match &entry.kind {
            // Dealt with before.
            Kind::Directory => Ok(()),
            Kind::File { size, segments } => self.file(entry, dir, name, *size, segments, content),
            Kind::HardLink(target) => self.hard_link(entry, parent, name, target),
            Kind::Symlink(target) => {
                if climbs_out(&entry.name, target) {
                    let reason = format!("is a link to '{}', which leads outside", shown(target));
                    return Err(Error::refused(&entry.name, reason));
                }
                let target = c_string(&entry.name, target)?;
                place(entry, dir, name, || rustix::fs::symlinkat(&*target, dir, name))?;
                self.metadata(entry, dir, name)
            }
            Kind::Fifo => {
                let mode = Mode::RUSR | Mode::WUSR;
                place(entry, dir, name, || {
                    rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0)
                })?;
                self.metadata(entry, dir, name)
            }
            Kind::Device { block, major, minor } => {
                if !self.options.devices {
                    let reason = "is a device node, which is not allowed here";
                    return Err(Error::refused(&entry.name, reason));
                }
                let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let device = rustix::fs::makedev(*major, *minor);
                let mode = Mode::RUSR | Mode::WUSR;
                place(entry, dir, name, || rustix::fs::mknodat(dir, name, kind, mode, device))?;
                self.metadata(entry, dir, name)
            }
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &CStr,
        size: u64,
        segments: &[Segment],
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let failed = |verb, error: io::Error| Error::io(verb, &entry.name, error);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = place(entry, dir, name, || rustix::fs::openat(dir, name, flags, mode))?;
        let mut end = 0;
        for segment in segments {
            let mut at = segment.offset;
            end = segment.offset + segment.length;
            while at < end {
                self.check()?;
                let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
                let (buffer, _) = self.buffer.split_at_mut(room);
                let read = content.read(buffer).map_err(classify)?;
                if read == 0 {
                    return Err(Error::refused(&entry.name, "is shorter than it says"));
                }
                let (read, _) = buffer.split_at(read);
                write_at(&file, read, at).map_err(|error| failed("write", error))?;
                at += read.len() as u64;
                self.summary.bytes += read.len() as u64;
                count_bytes(self.options.progress, read.len() as u64);
            }
        }
        if segments.last().is_none_or(|last| last.length == 0) || end != size {
            rustix::fs::ftruncate(&file, size).map_err(|error| failed("write", error.into()))?;
        }
        // In this order: a write and a change of the owner take set-id bits and capabilities away, and
        // a change of the mode changes the ACL.
        set_owner_and_mode(&file, entry.uid, entry.gid, entry.mode)
            .map_err(|error| failed("set the owner and mode of", error))?;
        self.attributes(&entry.name, Node::Open(file.as_fd()), &entry.xattrs)?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|error| failed("set the time of", error.into()))
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        parent: &(Vec<u8>, OwnedFd),
        name: &CStr,
        target: &[u8],
    ) -> Result<(), Error> {
        let dir = parent.1.as_fd();
        let missing = || {
            let reason =
                format!("is a hard link to '{}', which is no file before it", shown(target));
            Error::refused(&entry.name, reason)
        };
        let (target_parent, target_name) = split(target);
        let target_name = c_string(&entry.name, target_name)?;
        let target_dir =
            self.open(Some((&parent.0, dir)), target_parent, false)?.ok_or_else(missing)?;
        let stat = match rustix::fs::statat(&target_dir, &*target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            other => other.map_err(|errno| Error::io("look up", target, errno))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(missing());
        }
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Once more the same: to remove the one could remove both.
            Ok(present) if identity(&present) == identity(&stat) => return Ok(()),
            Ok(_) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(Error::io("look up", &entry.name, errno)),
        }
        place(entry, dir, name, || {
            rustix::fs::linkat(&target_dir, &*target_name, dir, name, AtFlags::empty())
        })
    }

    /// Owner, mode, attributes and time of what is neither file nor directory.
    fn metadata(&mut self, entry: &Entry, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Error> {
        let failed = |verb, error: io::Error| Error::io(verb, &entry.name, error);
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("set the owner of", errno.into()))?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            chmod_at(dir, name, entry.mode).map_err(|error| failed("set the mode of", error))?;
        }
        self.attributes(&entry.name, Node::At(dir, name), &entry.xattrs)?;
        rustix::fs::utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("set the time of", errno.into()))
    }

    /// The node has these attributes and no others: a new file may have inherited an ACL.
    fn attributes(
        &mut self,
        path: &[u8],
        node: Node<'_>,
        wanted: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<(), Error> {
        match list_xattrs(node, &mut self.names) {
            Err(error) if is_unsupported(&error) => self.names.clear(),
            other => other.map_err(|error| Error::io("list the attributes of", path, error))?,
        }
        for name in self.names.split_inclusive(|b| *b == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let bytes = name.to_bytes();
            // The host's security module put its label there by itself.
            let label = bytes.starts_with(b"security.") && bytes != b"security.capability";
            if !label && !wanted.contains_key(bytes) {
                remove_xattr(node, name)
                    .map_err(|error| Error::io("remove an attribute of", path, error))?;
            }
        }
        for (name, value) in wanted {
            set_xattr(node, &c_string(path, name)?, value).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Error::io("set an attribute of", path, error)
                }
                _ => {
                    let name = shown(name);
                    let reason = format!("has the attribute '{name}', which can't be set: {error}");
                    Error::refused(path, reason)
                }
            })?;
        }
        Ok(())
    }

    /// A directory, whose metadata waits.
    fn directory(&mut self, entry: Entry) -> Result<(), Error> {
        if !entry.name.is_empty() {
            let (parent, name) = split(&entry.name);
            let name = c_string(&entry.name, name)?;
            let dir = self.open_parent(parent)?;
            let made = make_directory(&entry.name, dir.1.as_fd(), &name);
            self.recent = Some(dir);
            made?;
        }
        let Entry { name, mode, uid, gid, mtime, xattrs, .. } = entry;
        self.defer(name, Deferred { mode, uid, gid, mtime: Some(mtime), xattrs })
    }

    fn defer(&mut self, path: Vec<u8>, metadata: Deferred) -> Result<(), Error> {
        let attributes: usize = metadata.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        self.deferred += path.len() + attributes + size_of::<Deferred>();
        self.check_deferred(&path)?;
        self.directories.insert(path, metadata);
        Ok(())
    }

    fn check_deferred(&self, path: &[u8]) -> Result<(), Error> {
        if self.deferred <= MAX_DEFERRED {
            return Ok(());
        }
        let reason = "is one directory too many: all directories' metadata is too much to hold";
        Err(Error::refused(path, reason))
    }

    /// Opens the directory that an entry is in, and makes what is missing.
    fn open_parent(&mut self, path: &[u8]) -> Result<(Vec<u8>, OwnedFd), Error> {
        let recent = self.recent.take();
        if let Some(recent) = recent.as_ref().filter(|recent| recent.0 != path) {
            let fd = self.open(Some((&recent.0, recent.1.as_fd())), path, true)?;
            return fd.map(|fd| (path.to_vec(), fd)).ok_or_else(|| gone(path));
        }
        match recent {
            Some(recent) => Ok(recent),
            None => {
                self.open(None, path, true)?.map(|fd| (path.to_vec(), fd)).ok_or_else(|| gone(path))
            }
        }
    }

    /// Opens the directory, component by component and through no link: from the top, or from a
    /// directory of the tree that is open where that is the shorter way. `None` where it does not
    /// exist and is not to be made.
    fn open(
        &mut self,
        from: Option<(&[u8], BorrowedFd<'_>)>,
        path: &[u8],
        make: bool,
    ) -> Result<Option<OwnedFd>, Error> {
        let components = || path.split(|b| *b == b'/').filter(|c| !c.is_empty());
        let (mut fd, shared) = match from.map(|(start, fd)| (way(start, path), fd)) {
            Some(((up, shared), start)) if up < shared => {
                let mut fd = open_directory(start, c".").map_err(|e| in_the_way(path, e))?;
                for _ in 0..up {
                    fd = open_directory(&fd, c"..").map_err(|e| in_the_way(path, e))?;
                }
                (fd, shared)
            }
            _ => (open_directory(self.top, c".").map_err(|e| in_the_way(b"", e))?, 0),
        };
        let mut done = Vec::with_capacity(path.len());
        for (index, component) in components().enumerate() {
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(component);
            if index < shared {
                continue;
            }
            let name = c_string(&done, component)?;
            fd = match open_directory(&fd, &*name) {
                Ok(next) => next,
                Err(error) if Errno::from_io_error(&error) != Some(Errno::NOENT) => {
                    return Err(in_the_way(&done, error));
                }
                Err(_) if !make => return Ok(None),
                Err(_) => {
                    let made = make_directory(&done, fd.as_fd(), &name)?;
                    let (mode, xattrs) = (0o755, BTreeMap::new());
                    let metadata = Deferred { mode, uid: 0, gid: 0, mtime: None, xattrs };
                    self.defer(done.clone(), metadata)?;
                    made
                }
            };
        }
        Ok(Some(fd))
    }

    /// The directories have their metadata.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Refused`].
    pub(crate) fn finish(mut self) -> Result<Summary, Error> {
        // From below: without privileges a directory may be closed to its owner afterwards.
        while let Some((path, metadata)) = self.directories.pop_last() {
            let recent = self.recent.take();
            let from = recent.as_ref().map(|recent| (&*recent.0, recent.1.as_fd()));
            let fd = self.open(from, &path, false)?.ok_or_else(|| gone(&path))?;
            let failed = |verb, error: io::Error| Error::io(verb, &path, error);
            set_owner_and_mode(&fd, metadata.uid, metadata.gid, metadata.mode)
                .map_err(|error| failed("set the owner and mode of", error))?;
            self.attributes(&path, Node::Open(fd.as_fd()), &metadata.xattrs)?;
            if let Some(mtime) = metadata.mtime {
                rustix::fs::futimens(&fd, &times(mtime))
                    .map_err(|errno| failed("set the time of", errno.into()))?;
            }
            self.recent = Some((path, fd));
        }
        for (path, flags) in std::mem::take(&mut self.flags) {
            let (parent, name) = split(&path);
            let recent = self.recent.take();
            let from = recent.as_ref().map(|recent| (&*recent.0, recent.1.as_fd()));
            let Some(fd) = self.open(from, parent, false)? else { continue };
            let name = if path.is_empty() { c".".to_owned() } else { c_string(&path, name)? };
            match add_flags(fd.as_fd(), &name, flags) {
                // A later entry of a stream has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                set => set.map_err(|error| Error::io("set the flags of", &path, error))?,
            }
            self.recent = Some((parent.to_vec(), fd));
        }
        Ok(self.summary)
    }
}

/// Makes something that must not exist yet, after taking away what is there and is no directory.
fn place<T>(
    entry: &Entry,
    dir: BorrowedFd<'_>,
    name: &CStr,
    make: impl Fn() -> rustix::io::Result<T>,
) -> Result<T, Error> {
    let failed = |errno: Errno| Error::io("make", &entry.name, errno);
    match make() {
        Err(Errno::EXIST) => (),
        other => return other.map_err(failed),
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Error::refused(&entry.name, "would take the place of a directory"));
    }
    rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
    make().map_err(failed)
}

/// The directory, new or as it was. What was there and is no directory is taken away.
fn make_directory(path: &[u8], dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Error> {
    let failed = |errno: Errno| Error::io("make", path, errno);
    // Closed to others until it has its owner and mode.
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed)?;
                rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(failed)?;
            }
        }
        other => other.map_err(failed)?,
    }
    open_directory(dir, name).map_err(|error| Error::io("open", path, error))
}

/// How many directories up from `start` the way to `path` turns, and how many components the two
/// share.
fn way(start: &[u8], path: &[u8]) -> (usize, usize) {
    let parts = |path| <[u8]>::split(path, |b: &u8| *b == b'/').filter(|c| !c.is_empty());
    let shared = parts(start).zip(parts(path)).take_while(|(one, two)| one == two).count();
    (parts(start).count() - shared, shared)
}

fn gone(path: &[u8]) -> Error {
    Error::io("open", path, io::Error::other("somebody removed it meanwhile"))
}

/// Why a component on the way to an entry can't be opened.
fn in_the_way(path: &[u8], error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => Error::refused(
            path,
            "is a link or a file, and a later entry is below it; nothing is written through links",
        ),
        _ => Error::io("open", path, error),
    }
}

/// Whether a relative link's text climbs above the top of the tree. Links on the way count as
/// directories: what they lead to depends on where the tree will be.
fn climbs_out(name: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let mut depth = name.iter().filter(|b| **b == b'/').count();
    for component in target.split(|b| *b == b'/') {
        match component {
            b"" | b"." => (),
            b".." => match depth.checked_sub(1) {
                Some(up) => depth = up,
                None => return true,
            },
            _ => depth += 1,
        }
    }
    false
}

/// The directory part, empty for the top, and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => {
            let (parent, name) = path.split_at(slash);
            (parent, name.strip_prefix(b"/").unwrap_or(name))
        }
        None => (b"", path),
    }
}

fn c_string(path: &[u8], text: &[u8]) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::refused(path, "has a NUL where there can be none"))
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                (_, bytes) = bytes.split_at(written.min(bytes.len()));
            }
            Err(Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn set_owner_and_mode(file: &OwnedFd, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode as RawMode))?)
}

/// The access time stays as it is.
fn times(mtime: Timespec) -> Timestamps {
    let last_access = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access, last_modification: mtime }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_from_one_directory_to_another() {
        let cases = [
            ("", "", (0, 0)),
            ("a/b", "a/b", (0, 2)),
            ("a/b", "a", (1, 1)),
            ("a", "a/b/c", (0, 1)),
            ("a/b/c", "a/x", (2, 1)),
            ("ab", "a", (1, 0)),
            ("a", "", (1, 0)),
        ];
        for (start, path, expected) in cases {
            assert_eq!(way(start.as_bytes(), path.as_bytes()), expected, "{start} to {path}");
        }
    }

    #[test]
    fn links_climb_out_or_not() {
        let cases = [
            ("link", "..", true),
            ("link", "a/../..", true),
            ("a/link", "..", false),
            ("a/link", "../..", true),
            ("a/b/link", "../../c/../..", true),
            ("a/b/link", "../../etc", false),
            ("a/b/link", "../../../etc", true),
            ("link", "/../../etc", false),
            ("link", "./a/./..", false),
            ("link", "...", false),
        ];
        for (name, target, expected) in cases {
            let found = climbs_out(name.as_bytes(), target.as_bytes());
            assert_eq!(found, expected, "{name} -> {target}");
        }
    }
}
