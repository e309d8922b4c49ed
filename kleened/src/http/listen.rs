//! The socket: there only while the daemon answers on it, and never open to more than the
//! configuration says.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use kleened_api::volume::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::getegid;
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// How many connections may wait to be accepted; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// Its permission bits.
    pub mode: Mode,
    /// Its group; the daemon's own where there is none.
    pub group: Option<u32>,
}

/// The listening socket. Dropping it takes its file away.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Taken away with the socket.
    _file: File,
}

/// The file of a socket.
#[derive(Debug)]
struct File {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for File {
    fn drop(&mut self) {
        // Another daemon may have taken the place.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The socket is there, with that mode and group, and connections to it wait to be accepted. One that
/// nobody answers on is replaced. Needs a runtime.
///
/// # Errors
///
/// [`Error::Invalid`] where somebody answers on it, where something else is in its place, for a path
/// that is too long; [`Error::Io`].
pub fn bind(path: &Path, permit: Permit) -> Result<Listener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(unbound(path))?;
    }
    make_room(path)?;

    // Its place is taken in one step, when all is as it should be: nobody can connect to a socket
    // that does not listen.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let address = SocketAddrUnix::new(&new).map_err(|_| {
        Error::Invalid(format!("the path of the socket {} is too long", path.display()))
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(unbound(path))?;
    let _ = fs::remove_file(&new);
    rustix::net::bind(&socket, &address).map_err(unbound(path))?;
    let mut file = File { identity: identity(&new).map_err(unbound(path))?, path: new };
    self::permit(&file.path, permit)?;
    rustix::net::listen(&socket, BACKLOG).map_err(unbound(path))?;
    fs::rename(&file.path, path).map_err(unbound(path))?;
    file.path = path.to_owned();
    let socket = UnixListener::from_std(StdListener::from(socket)).map_err(unbound(path))?;
    Ok(Listener { socket, _file: file })
}

fn unbound<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Error {
    Error::io("listen on", path.display())
}

/// Whether a new socket may take the place.
fn make_room(path: &Path) -> Result<()> {
    if !is_socket(path)? {
        return Ok(());
    }
    match StdStream::connect(path) {
        Ok(_) => Err(Error::Invalid(format!(
            "somebody answers on the socket {} already: stop that daemon, or set 'socket' to another path",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(Error::io("look at", path.display())(error)),
    }
}

/// Whether a socket has the place, which else is free.
///
/// # Errors
///
/// [`Error::Invalid`] where something else is there; [`Error::Io`].
pub fn is_socket(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Error::Invalid(format!(
            "{} exists and is no socket: move it away, or set 'socket' to another path",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path.display())(error)),
    }
}

/// The socket has that mode and group. A repeat is safe.
///
/// # Errors
///
/// [`Error::Io`].
pub fn permit(socket: &Path, Permit { mode, group }: Permit) -> Result<()> {
    let fail = || Error::io("set the permissions of", socket.display());
    // Also without one: the socket may have the group of its folder, or of a configuration before.
    let group = group.unwrap_or_else(|| getegid().as_raw());
    chown(socket, None, Some(group)).map_err(fail())?;
    fs::set_permissions(socket, fs::Permissions::from_mode(mode.0)).map_err(fail())
}

impl Listener {
    /// The next connection. Where there are too few file descriptors for one, it waits for some.
    pub(super) async fn accept(&mut self) -> UnixStream {
        axum::serve::Listener::accept(&mut self.socket).await.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Permit = Permit { mode: Mode(0o604), group: Some(4711) };

    #[tokio::test]
    async fn a_socket_is_there_as_long_as_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/s");
        let listener = bind(&path, OPEN).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o604, 4711));
        assert_eq!(fs::read_dir(folder.path().join("made")).unwrap().count(), 1);
        permit(&path, Permit { mode: Mode(0o600), group: None }).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o600, getegid().as_raw()));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_answers_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let refusal = || bind(&path, OPEN).unwrap_err().to_string();
        drop(StdListener::bind(&path).unwrap());
        let first = bind(&path, OPEN).unwrap();
        assert!(refusal().contains("answers on the socket"));
        // Another one took the place: the first must leave it alone.
        fs::remove_file(&path).unwrap();
        let second = bind(&path, OPEN).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);

        fs::write(&path, "a file").unwrap();
        assert!(refusal().contains("is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[tokio::test]
    async fn what_is_refused_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("s".repeat(200));
        assert!(bind(&long, OPEN).unwrap_err().to_string().contains("too long"));
        let nobody = Permit { group: Some(u32::MAX - 1), ..OPEN };
        drop(bind(&folder.path().join("s"), nobody));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
