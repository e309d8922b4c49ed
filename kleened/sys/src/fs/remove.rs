//! A tree, removed.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::{fmt, io};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

/// Descriptors that stay open at once. Further up the way back is `..`, checked.
const WINDOW: usize = 32;

/// How often a directory may be found filled again, or moved away, by somebody else.
const MAX_RACES: u32 = 1000;

/// Which path below the tree could not be removed.
#[derive(Debug)]
struct RemoveError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot remove {}", self.path.display())
    }
}

impl std::error::Error for RemoveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Nothing has the name `name` in `dir`, and everything that was below it is gone. Links are removed,
/// never followed; marks against removal (immutable, append-only) are taken off. False where there
/// was nothing: a repeat is safe. However deep the tree is, a few dozen descriptors are enough.
///
/// # Errors
///
/// Names the path that is in the way. A mount point anywhere in the tree is one (EBUSY): nothing
/// that is mounted there is touched. What was removed before stays removed.
pub fn remove_tree(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<bool> {
    let name = name.into_c_str()?.into_owned();
    let kind = match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    let mut removal = Removal { dir, levels: Vec::new(), races: 0 };
    if kind == FileType::Directory || removal.unlink(dir, &name)? == Unlinked::IsDirectory {
        removal.run(&name)?;
    }
    Ok(true)
}

#[derive(PartialEq, Eq)]
enum Unlinked {
    Gone,
    IsDirectory,
}

/// A directory on the way down, with the directories in it that are still to be removed.
struct Level {
    name: CString,
    id: (u64, u64),
    fd: Option<OwnedFd>,
    directories: Vec<CString>,
}

struct Removal<'d> {
    dir: BorrowedFd<'d>,
    levels: Vec<Level>,
    races: u32,
}

impl Removal<'_> {
    fn run(&mut self, top: &CStr) -> io::Result<()> {
        self.enter(top)?;
        self.empty(top)
    }

    /// Removes what was entered.
    fn empty(&mut self, top: &CStr) -> io::Result<()> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(()) };
            if let Some(child) = level.directories.pop() {
                self.enter(&child)?;
                continue;
            }
            let Some(done) = self.levels.pop() else { return Ok(()) };
            if !self.come_back(&done)? {
                // The directory was moved from below us: what is left is found from the top.
                self.race(&done.name)?;
                self.levels.clear();
                self.enter(top)?;
                continue;
            }
            drop(done.fd);
            let parent = self.here()?;
            let removed = match rustix::fs::unlinkat(parent, &*done.name, AtFlags::REMOVEDIR) {
                Err(Errno::PERM) => {
                    unprotect(parent, &done.name);
                    rustix::fs::unlinkat(parent, &*done.name, AtFlags::REMOVEDIR)
                }
                other => other,
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => (),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
                    self.race(&done.name)?;
                    self.enter(&done.name)?;
                }
                Err(errno) => return Err(self.error(&done.name, errno)),
            }
        }
    }

    /// The directory that holds what is dealt with next.
    fn here(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        let Some(level) = self.levels.last() else { return Ok(self.dir) };
        // Whoever goes back to a level opens it first.
        level.fd.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::BADF)
    }

    /// Makes sure that the last level, whose child is done, is open. False where it can't be reached.
    fn come_back(&mut self, child: &Level) -> io::Result<bool> {
        let Some(level) = self.levels.last_mut() else { return Ok(true) };
        if level.fd.is_some() {
            return Ok(true);
        }
        let Some(from) = &child.fd else { return Ok(false) };
        let fd = super::open_directory(from, c"..")?;
        if identity(fd.as_fd())? != level.id {
            return Ok(false);
        }
        level.fd = Some(fd);
        Ok(true)
    }

    /// Removes everything in the directory `name` but directories, which become the next level.
    fn enter(&mut self, name: &CStr) -> io::Result<()> {
        let fd = match super::open_unmounted(self.here()?, name, OFlags::RDONLY | OFlags::DIRECTORY)
        {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => {
                return match self.unlink(self.here()?, name)? {
                    Unlinked::Gone => Ok(()),
                    Unlinked::IsDirectory => {
                        self.race(name)?;
                        self.enter(name)
                    }
                };
            }
            Err(errno) => return Err(self.error(name, errno)),
        };
        let id = identity(fd.as_fd()).map_err(|e| self.wrap(name, e))?;
        let mut directories = Vec::new();
        // The listing has a descriptor of its own: it would move the position of ours.
        let listing = Dir::read_from(&fd).map_err(|e| self.error(name, e))?;
        let name = name.to_owned();
        self.levels.push(Level { name, id, fd: Some(fd), directories: Vec::new() });
        for entry in listing {
            let entry = entry.map_err(|e| self.error(c".", e))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory
                || self.unlink(self.here()?, name)? == Unlinked::IsDirectory
            {
                directories.push(name.to_owned());
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.directories = directories;
        }
        if let Some(above) = self.levels.len().checked_sub(WINDOW + 1)
            && let Some(level) = self.levels.get_mut(above)
        {
            level.fd = None;
        }
        Ok(())
    }

    /// Removes what is not a directory.
    fn unlink(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Unlinked> {
        let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            // Protected; or, as POSIX has it, a directory.
            Err(Errno::PERM) => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory) {
                    return Ok(Unlinked::IsDirectory);
                }
                unprotect(dir, name);
                rustix::fs::unlinkat(dir, name, AtFlags::empty())
            }
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
            Err(Errno::ISDIR) => Ok(Unlinked::IsDirectory),
            Err(errno) => Err(self.error(name, errno)),
        }
    }

    fn race(&mut self, name: &CStr) -> io::Result<()> {
        self.races += 1;
        if self.races > MAX_RACES { Err(self.error(name, Errno::NOTEMPTY)) } else { Ok(()) }
    }

    fn error(&self, name: &CStr, errno: Errno) -> io::Error {
        // Where a mount is in the way, both kernels call it busy elsewhere.
        let errno = if errno == Errno::XDEV { Errno::BUSY } else { errno };
        self.wrap(name, errno.into())
    }

    fn wrap(&self, name: &CStr, source: io::Error) -> io::Error {
        let names = self.levels.iter().map(|l| l.name.as_c_str()).chain([name]);
        let path = names.map(|n| OsStr::from_bytes(n.to_bytes())).collect();
        io::Error::new(source.kind(), RemoveError { path, source })
    }
}

fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Takes protection off `name` and off the directory that it is in, as far as that can be done. Whether
/// it helped shows in the next try.
fn unprotect(dir: BorrowedFd<'_>, name: &CStr) {
    for name in [c".", name] {
        let _ = super::unprotect(dir, name);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{Mode, mkdirat};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("kept")).unwrap();
        fs::write(dir.path().join("kept/file"), "").unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        symlink("../../kept", tree.join("a/link")).unwrap();
        symlink(dir.path(), tree.join("a/b/absolute")).unwrap();
        let fd = open(dir.path());
        assert!(remove_tree(fd.as_fd(), "tree").unwrap());
        assert!(!remove_tree(fd.as_fd(), "tree").unwrap());
        assert!(dir.path().join("kept/file").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A link itself, and a file.
        symlink("kept", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(remove_tree(fd.as_fd(), "link").unwrap());
        assert!(remove_tree(fd.as_fd(), "file").unwrap());
        assert!(dir.path().join("kept/file").exists());
    }

    #[test]
    fn depth_needs_neither_stack_nor_descriptors() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let few = Some(limit.current.map_or(400, |soft| soft.min(400)));
        setrlimit(Resource::Nofile, Rlimit { current: few, maximum: limit.maximum }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        let mut at = open(dir.path());
        for _ in 0..3000 {
            for name in ["deeper", "beside"] {
                mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = super::super::open_directory(&at, "deeper").unwrap();
        }
        drop(at);
        assert!(remove_tree(fd.as_fd(), "deeper").unwrap());
        assert!(remove_tree(fd.as_fd(), "beside").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn somebody_who_goes_on_writing_does_not_stop_it() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for i in 0..200 {
            fs::create_dir_all(tree.join(format!("{i}/x"))).unwrap();
        }
        let (started, stop) = (std::sync::Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.wait();
                for i in 0..200 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = fs::write(tree.join(format!("{i}/x/new")), "");
                    let _ = fs::rename(tree.join(format!("{i}/x")), tree.join("moved"));
                }
            });
            started.wait();
            let fd = open(dir.path());
            assert!(remove_tree(fd.as_fd(), "tree").unwrap());
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!tree.exists());
    }

    #[test]
    fn the_way_back_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        let mut deep = PathBuf::from("tree");
        let mut removal = Removal { dir: fd.as_fd(), levels: Vec::new(), races: 0 };
        let depth = WINDOW + 10;
        for level in 0..depth {
            fs::create_dir_all(dir.path().join(&deep).join("beside")).unwrap();
            if level + 1 < depth {
                deep.push("deeper");
            }
        }
        removal.enter(c"tree").unwrap();
        for _ in 1..depth {
            let children = &mut removal.levels.last_mut().unwrap().directories;
            children.retain(|name| name.as_c_str() != c"deeper");
            removal.enter(c"deeper").unwrap();
        }
        // Meanwhile somebody moves a part, the way back of which was closed, to a directory that has
        // the same names.
        fs::create_dir_all(dir.path().join("other/beside/precious")).unwrap();
        let moved = dir.path().join("tree/deeper/deeper");
        fs::rename(moved, dir.path().join("other/deeper")).unwrap();
        removal.empty(c"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(dir.path().join("other/beside/precious").exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn marks_against_removal_are_taken_off() {
        use rustix::fs::IFlags;
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("fixed/below")).unwrap();
        fs::write(tree.join("fixed/file"), "").unwrap();
        for (path, flag) in [("fixed/file", IFlags::APPEND), ("fixed", IFlags::IMMUTABLE)] {
            let file = open(&tree.join(path));
            let set = rustix::fs::ioctl_getflags(&file)
                .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags | flag));
            if let Err(errno) = set {
                return super::super::skip("flags", errno);
            }
        }
        fs::remove_dir_all(&tree).unwrap_err();
        assert!(remove_tree(open(dir.path()).as_fd(), "tree").unwrap());
        assert!(!tree.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_mounted_in_the_tree_is_not_touched() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        use nix::sched::{CloneFlags, unshare};
        // Of this thread alone.
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            return super::super::skip("mount", errno);
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
        fs::create_dir_all(tree.join("a/mounted")).unwrap();
        fs::create_dir(&host).unwrap();
        fs::write(host.join("precious"), "").unwrap();
        mount(Some(&host), &tree.join("a/mounted"), none, MsFlags::MS_BIND, none).unwrap();
        let error = remove_tree(open(dir.path()).as_fd(), "tree").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(error.to_string(), "cannot remove tree/a/mounted");
        assert!(host.join("precious").exists());
        umount2(&tree.join("a/mounted"), MntFlags::empty()).unwrap();
        assert!(remove_tree(open(dir.path()).as_fd(), "tree").unwrap());
    }
}
