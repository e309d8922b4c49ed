//! What a mount is made of, and what it is made on: the parts that every platform has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kleened_sys::fs::{make_directory_in_root, make_file_in_root, resolve_in_root};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Mount, Result};

/// The error for a mount.
pub(super) fn failed(mount: &Mount, reason: impl Into<String>) -> Error {
    let subpath = mount.subpath.as_deref().map(|path| format!("/{path}")).unwrap_or_default();
    let name = format!("{}{subpath} on {}", mount.source.display(), mount.destination);
    Error::Mount { mount: name, reason: reason.into() }
}

/// The error for a mount that can't be taken away.
pub(super) fn busy(mount: &Mount, reason: impl Into<String>) -> Error {
    match failed(mount, reason) {
        Error::Mount { mount, reason } => Error::Busy { mount, reason },
        other => other,
    }
}

/// Why the kernel does not take a mount away.
pub(super) fn refused(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) => {
            "a process in the container has a file or directory in it open: end it, or \
                              stop the container"
                .to_owned()
        }
        _ => format!("the kernel refuses it: {error}"),
    }
}

/// What a mount shows.
#[derive(Debug)]
pub(super) struct Source {
    /// A descriptor of `O_PATH`.
    pub(super) file: OwnedFd,
    pub(super) is_directory: bool,
}

impl Source {
    /// The mount's source on the host. Its subpath is followed inside it.
    pub(super) fn open(mount: &Mount) -> Result<Self> {
        let source = mount.source.display();
        let open = |fd: io::Result<OwnedFd>, what: &str| match fd {
            Ok(fd) => Ok(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(failed(mount, format!("{what} does not exist: make it first")))
            }
            Err(error) => Err(failed(mount, format!("cannot open {what}: {error}"))),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::open(&mount.source, flags, Mode::empty()).map_err(io::Error::from);
        let mut file = open(found, &format!("the source {source}"))?;
        if let Some(subpath) = &mount.subpath {
            let found = resolve_in_root(file.as_fd(), subpath, OFlags::PATH);
            file = open(found, &format!("{subpath} in the source {source}"))?;
        }
        let stat = rustix::fs::fstat(&file)
            .map_err(|errno| failed(mount, format!("cannot look at the source: {errno}")))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(Self { file, is_directory })
    }

    /// A place for the mount inside `root`, made where there was nothing.
    pub(super) fn place(&self, root: BorrowedFd<'_>, mount: &Mount) -> Result<OwnedFd> {
        let made = if self.is_directory {
            make_directory_in_root(root, &mount.destination)
        } else {
            make_file_in_root(root, &mount.destination)
        };
        made.map_err(|error| {
            let kind = if self.is_directory { "directory" } else { "file" };
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            let reason = format!(
                "the source is a {kind}, and the destination can't be one: in the container, \
                 {error}{cause}"
            );
            failed(mount, reason)
        })
    }
}

/// Where a destination is when every link is followed, as far as it is there already; `path_of` tells where
/// an open place is. What is above sorts before what is below.
pub(super) fn real_path(
    root: BorrowedFd<'_>,
    destination: &str,
    path_of: impl Fn(OwnedFd) -> io::Result<PathBuf>,
) -> PathBuf {
    let mut path = PathBuf::from(destination);
    let mut missing = Vec::new();
    loop {
        let place = resolve_in_root(root, &path, OFlags::PATH);
        if let Ok(mut found) = place.and_then(&path_of) {
            found.extend(missing.iter().rev());
            return found;
        }
        match path.file_name().map(std::ffi::OsStr::to_owned) {
            Some(name) => missing.push(name),
            None => return PathBuf::from(destination),
        }
        path.pop();
    }
}

/// See [`super::Platform::prepare`].
pub(super) fn prepare(root: &Path, mounts: &[Mount]) -> Result<()> {
    let dir =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", root.display(), errno))?;
    for mount in mounts {
        Source::open(mount)?.place(dir.as_fd(), mount)?;
    }
    Ok(())
}
