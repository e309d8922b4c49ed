//! Paths inside a root directory, followed so that no link and no `..` leads out of it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// As many links as the kernels follow in one path.
const MAX_LINKS: usize = 40;

/// How often a name may vanish between looking and making before that is an error.
const MAX_RACES: u32 = 100;

/// Why a path could not be followed or made inside a root directory. Paths in it are as seen from
/// that root.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResolveError {
    /// This has to be a directory, and is something else.
    NotDirectory(PathBuf),
    /// This has to be a file, and is a directory.
    IsDirectory(PathBuf),
    /// A link leads to something that is not there.
    Dangling {
        /// The link.
        link: PathBuf,
        /// Its text.
        target: PathBuf,
    },
    /// Everything else.
    Io {
        /// How far the path could be followed.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDirectory(path) => write!(f, "{} is not a directory", path.display()),
            Self::IsDirectory(path) => write!(f, "{} is a directory", path.display()),
            Self::Dangling { link, target } => {
                let (link, target) = (link.display(), target.display());
                write!(f, "{link} is a link to {target}, which leads nowhere")
            }
            Self::Io { path, .. } => write!(f, "cannot look up {}", path.display()),
        }
    }
}

impl std::error::Error for ResolveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<ResolveError> for io::Error {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotDirectory(_) => Errno::NOTDIR.into(),
            ResolveError::IsDirectory(_) => Errno::ISDIR.into(),
            ResolveError::Dangling { .. } => Errno::NOENT.into(),
            ResolveError::Io { source, .. } => source,
        }
    }
}

/// A descriptor of what `path` names inside `root`, opened with `flags` (`OFlags::PATH` for one that
/// only stands for the place; close-on-exec is added). Absolute links and `..` stay inside, as after
/// a `chroot(2)`; links that are no real ones (`/proc/*/fd/*`) never lead anywhere but where their
/// text says. Mounts inside `root` are crossed.
///
/// # Errors
///
/// What `openat(2)` says; EINVAL for flags that make something.
///
/// # Source
///
/// On Linux `openat2(2)` with `RESOLVE_IN_ROOT`. FreeBSD's `O_RESOLVE_BENEATH` refuses absolute
/// links, which images are full of, so there the path is walked one component at a time.
pub fn resolve_in_root(
    root: BorrowedFd<'_>,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    if flags.intersects(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC) {
        return Err(Errno::INVAL.into());
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..16 {
            match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
                // Something was renamed while the kernel stood below a `..`.
                Err(Errno::AGAIN) => (),
                // A sandbox that doesn't know the call.
                Err(Errno::NOSYS) => break,
                other => return Ok(other?),
            }
        }
    }
    walk(root, path, flags, Make::Nothing).map_err(Into::into)
}

/// `path` is a directory inside `root`: it was one, or it and the parents that were missing were
/// made with mode 0755. The descriptor is one of `O_PATH`. Links on the way are followed inside
/// `root`. A repeat is safe.
///
/// # Errors
///
/// [`ResolveError`] says which component is in the way. Parents that were made before stay.
pub fn make_directory_in_root(
    root: BorrowedFd<'_>,
    path: impl AsRef<Path>,
) -> Result<OwnedFd, ResolveError> {
    walk(root, path.as_ref(), OFlags::PATH, Make::Directory)
}

/// `path` is something other than a directory inside `root`: it was, or an empty file with mode 0644
/// and the parents that were missing were made. The descriptor is one of `O_PATH`. Links on the way,
/// the last component included, are followed inside `root`. A repeat is safe.
///
/// # Errors
///
/// [`ResolveError`] says which component is in the way. Parents that were made before stay.
pub fn make_file_in_root(
    root: BorrowedFd<'_>,
    path: impl AsRef<Path>,
) -> Result<OwnedFd, ResolveError> {
    walk(root, path.as_ref(), OFlags::PATH, Make::File)
}

/// What to do about a component that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    Nothing,
    Directory,
    File,
}

/// A component that was gone through.
struct Passed {
    name: OsString,
    fd: OwnedFd,
    is_directory: bool,
}

/// A component still to go, with the link that it comes from.
struct Pending {
    name: OsString,
    link: Option<usize>,
}

struct Walk<'r> {
    root: BorrowedFd<'r>,
    /// The way from the root; `..` is a step back on it and never asked of the kernel.
    passed: Vec<Passed>,
    /// The next component is the last element.
    pending: Vec<Pending>,
    /// Links that were followed: where, and their text.
    links: Vec<(PathBuf, PathBuf)>,
}

fn walk(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    make: Make,
) -> Result<OwnedFd, ResolveError> {
    let mut walk = Walk { root, passed: Vec::new(), pending: Vec::new(), links: Vec::new() };
    if path.as_os_str().is_empty() {
        return Err(walk.error(Errno::NOENT));
    }
    walk.push(path.as_os_str(), None);
    while let Some(next) = walk.pending.pop() {
        let last = walk.pending.is_empty();
        walk.step(next, last && flags.contains(OFlags::NOFOLLOW), make)?;
    }
    let at = walk.at();
    let Some(end) = walk.passed.pop() else {
        if make == Make::File {
            return Err(ResolveError::IsDirectory(at));
        }
        return rustix::fs::openat(root, c".", flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| walk.error(errno));
    };
    let wants_directory = make == Make::Directory || flags.contains(OFlags::DIRECTORY);
    if wants_directory && !end.is_directory {
        return Err(ResolveError::NotDirectory(at));
    }
    if make == Make::File && end.is_directory {
        return Err(ResolveError::IsDirectory(at));
    }
    if flags.contains(OFlags::PATH) {
        return Ok(end.fd);
    }
    super::reopen(end.fd.as_fd(), flags).map_err(|source| ResolveError::Io { path: at, source })
}

impl Walk<'_> {
    /// Puts the components of a path in front of those still to go.
    fn push(&mut self, path: &OsStr, link: Option<usize>) {
        let components = path.as_bytes().split(|&b| b == b'/').rev();
        self.pending
            .extend(components.map(|c| Pending { name: OsStr::from_bytes(c).to_owned(), link }));
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.passed.last().map_or(self.root, |p| p.fd.as_fd())
    }

    /// Where the walk stands, as seen from the root.
    fn at(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        path.extend(self.passed.iter().map(|p| &p.name));
        path
    }

    fn error(&self, errno: Errno) -> ResolveError {
        ResolveError::Io { path: self.at(), source: errno.into() }
    }

    fn step(&mut self, next: Pending, stop_at_link: bool, make: Make) -> Result<(), ResolveError> {
        if self.passed.last().is_some_and(|p| !p.is_directory) {
            return Err(ResolveError::NotDirectory(self.at()));
        }
        match next.name.as_bytes() {
            b"" | b"." => return Ok(()),
            b".." => {
                self.passed.pop();
                return Ok(());
            }
            _ => (),
        }
        // A trailing slash or dot says that the component before it is a directory.
        let last = self.pending.is_empty();
        let fd = self.open_or_make(&next, if last { make } else { make.parents() })?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.error_below(&next.name, e))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink if !stop_at_link => {
                let text = rustix::fs::readlinkat(&fd, c"", Vec::new())
                    .map_err(|e| self.error_below(&next.name, e))?;
                if self.links.len() == MAX_LINKS {
                    return Err(self.error_below(&next.name, Errno::LOOP));
                }
                let text = OsString::from_vec(text.into_bytes());
                self.links.push((self.at().join(&next.name), PathBuf::from(&text)));
                if text.as_bytes().starts_with(b"/") {
                    self.passed.clear();
                }
                self.push(&text, Some(self.links.len() - 1));
            }
            kind => {
                let is_directory = kind == FileType::Directory;
                self.passed.push(Passed { name: next.name, fd, is_directory });
            }
        }
        Ok(())
    }

    fn error_below(&self, name: &OsStr, errno: Errno) -> ResolveError {
        ResolveError::Io { path: self.at().join(name), source: errno.into() }
    }

    /// A component, itself and not what it links to.
    fn open_or_make(&self, next: &Pending, make: Make) -> Result<OwnedFd, ResolveError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..MAX_RACES {
            match rustix::fs::openat(self.here(), &next.name, flags, Mode::empty()) {
                Err(Errno::NOENT) => (),
                other => return other.map_err(|e| self.error_below(&next.name, e)),
            }
            let made = match (make, next.link.and_then(|index| self.links.get(index))) {
                (Make::Nothing, _) => Err(Errno::NOENT),
                (_, Some((link, target))) => {
                    let (link, target) = (link.clone(), target.clone());
                    return Err(ResolveError::Dangling { link, target });
                }
                (Make::Directory, None) => {
                    rustix::fs::mkdirat(self.here(), &next.name, Mode::from_raw_mode(0o755))
                }
                (Make::File, None) => {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    rustix::fs::openat(self.here(), &next.name, flags, Mode::from_raw_mode(0o644))
                        .map(drop)
                }
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => (),
                Err(errno) => return Err(self.error_below(&next.name, errno)),
            }
        }
        Err(self.error_below(&next.name, Errno::NOENT))
    }
}

impl Make {
    /// What to make of a component that is not the last.
    fn parents(self) -> Self {
        if self == Self::Nothing { Self::Nothing } else { Self::Directory }
    }
}

/// Whether `name` in `dir` is there, itself and not what it links to.
pub(super) fn exists(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn same(one: &OwnedFd, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let (one, two) = (rustix::fs::fstat(one).unwrap(), fs::symlink_metadata(path).unwrap());
        (one.st_dev, one.st_ino) == (two.dev(), two.ino())
    }

    /// `root` and, beside it, what must not be reached.
    fn fixture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc/sub")).unwrap();
        fs::create_dir_all(dir.path().join("etc/outside")).unwrap();
        fs::write(root.join("etc/file"), "in").unwrap();
        fs::write(dir.path().join("etc/file"), "out").unwrap();
        for (link, text) in [
            ("absolute", "/etc"),
            ("up", "../../../../etc"),
            ("etc/sub/back", "../.."),
            ("etc/sub/from-the-root", "/etc/file"),
            ("chain", "absolute/sub/back/up/sub"),
            ("loop", "loop"),
            ("dangling", "/nowhere/at/all"),
            ("to-file", "etc/file"),
            ("slash", "etc/file/"),
            ("magic", "/proc/self/root/etc"),
        ] {
            symlink(text, root.join(link)).unwrap();
        }
        dir
    }

    const PATHS: &[&str] = &[
        "",
        "/",
        ".",
        "..",
        "../..",
        "/../etc",
        "etc",
        "/etc/",
        "etc/.",
        "etc/..",
        "etc//sub",
        "etc/file",
        "etc/file/",
        "etc/file/.",
        "etc/file/..",
        "etc/file/x",
        "etc/missing",
        "missing/..",
        "absolute",
        "absolute/",
        "absolute/sub",
        "absolute/../etc",
        "up",
        "up/outside",
        "up/sub",
        "chain",
        "chain/..",
        "etc/sub/from-the-root",
        "loop",
        "loop/x",
        "dangling",
        "dangling/",
        "to-file",
        "to-file/",
        "slash",
        "etc/sub/back/etc/sub/back/up",
        "magic",
        "etc/../../../etc/outside",
    ];

    /// The walk, which FreeBSD depends on, answers as the Linux kernel does.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_walk_agrees_with_the_kernel() {
        use rustix::fs::{ResolveFlags, openat2};
        let dir = fixture();
        let root = open(&dir.path().join("root"));
        for flags in [
            OFlags::PATH,
            OFlags::PATH | OFlags::NOFOLLOW,
            OFlags::PATH | OFlags::DIRECTORY,
            OFlags::RDONLY,
        ] {
            for path in PATHS {
                let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let kernel = openat2(&root, *path, flags, Mode::empty(), inside)
                    .map(|fd| identity(&fd))
                    .map_err(|errno| errno.raw_os_error());
                let walked = walk(root.as_fd(), Path::new(path), flags, Make::Nothing)
                    .map(|fd| identity(&fd))
                    .map_err(|error| error_number(error.into()));
                assert_eq!(walked, kernel, "{path:?} {flags:?}");
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn identity(fd: &OwnedFd) -> (u64, u64) {
        let stat = rustix::fs::fstat(fd).unwrap();
        (stat.st_dev, stat.st_ino)
    }

    #[cfg(target_os = "linux")]
    fn error_number(error: io::Error) -> i32 {
        error.raw_os_error().unwrap()
    }

    #[test]
    fn nothing_leads_out() {
        let dir = fixture();
        let root = open(&dir.path().join("root"));
        for path in PATHS {
            let Ok(found) = resolve_in_root(root.as_fd(), path, OFlags::PATH) else { continue };
            for outside in ["", "etc", "etc/outside", "etc/file"] {
                assert!(!same(&found, &dir.path().join(outside)), "{path:?}");
            }
            assert!(!same(&found, Path::new("/")), "{path:?}");
            assert!(!same(&found, Path::new("/etc")), "{path:?}");
        }
    }

    #[test]
    fn directories_are_made_inside_the_root() {
        let dir = fixture();
        let path = dir.path().join("root");
        let root = open(&path);
        let made = make_directory_in_root(root.as_fd(), "/up/a/../b/c").unwrap();
        assert!(same(&made, &path.join("etc/b/c")));
        assert!(path.join("etc/a").is_dir());
        assert!(!dir.path().join("etc/a").exists());
        // Again, and what is there stays.
        assert!(same(
            &make_directory_in_root(root.as_fd(), "etc/b/c/").unwrap(),
            &path.join("etc/b/c")
        ));
        assert!(same(&make_directory_in_root(root.as_fd(), "/").unwrap(), &path));
        let file = make_file_in_root(root.as_fd(), "absolute/x/y").unwrap();
        assert!(same(&file, &path.join("etc/x/y")));
        assert!(same(&make_file_in_root(root.as_fd(), "to-file").unwrap(), &path.join("etc/file")));
        assert_eq!(fs::read(path.join("etc/file")).unwrap(), b"in");
    }

    #[test]
    fn the_component_in_the_way_is_named() {
        let dir = fixture();
        let root = open(&dir.path().join("root"));
        let text = |result: Result<OwnedFd, ResolveError>| result.unwrap_err().to_string();
        let directory = |path| text(make_directory_in_root(root.as_fd(), path));
        let file = |path| text(make_file_in_root(root.as_fd(), path));
        assert_eq!(directory("absolute/file/x"), "/etc/file is not a directory");
        assert_eq!(directory("to-file"), "/etc/file is not a directory");
        assert_eq!(
            directory("dangling/x"),
            "/dangling is a link to /nowhere/at/all, which leads nowhere"
        );
        assert_eq!(file("dangling"), "/dangling is a link to /nowhere/at/all, which leads nowhere");
        assert_eq!(file("up/sub"), "/etc/sub is a directory");
        assert_eq!(file("/"), "/ is a directory");
        assert_eq!(file("new/"), "/new is a directory");
        assert_eq!(directory("loop"), "cannot look up /loop");
        assert!(!dir.path().join("root/nowhere").exists());
    }

    #[test]
    fn flags_that_make_something_are_refused() {
        let dir = fixture();
        let root = open(dir.path());
        let error =
            resolve_in_root(root.as_fd(), "new", OFlags::CREATE | OFlags::RDWR).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
