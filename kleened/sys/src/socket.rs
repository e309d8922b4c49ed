//! Unix sockets by directory and name, whose path may be longer than an address can hold.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};

/// A socket with this name in the directory, which accepts connections.
///
/// # Errors
///
/// `EADDRINUSE` where the name is taken; what `bind(2)` and `listen(2)` say.
pub fn listen(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixListener> {
    host::listen(dir, name)
}

/// A connection to the socket with this name in the directory.
///
/// # Errors
///
/// `ENOENT` where there is none, `ECONNREFUSED` where nobody accepts, and what else `connect(2)` says.
pub fn connect(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixStream> {
    host::connect(dir, name)
}

/// A socket that has this name in the directory.
#[cfg(target_os = "freebsd")]
pub(crate) use host::bind;

#[cfg(target_os = "linux")]
mod host {
    use super::{BorrowedFd, UnixListener, UnixStream, io};
    use std::os::fd::AsRawFd;

    pub(super) fn listen(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixListener> {
        UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
    }

    pub(super) fn connect(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
    }
}

#[cfg(target_os = "freebsd")]
mod host {
    use super::{BorrowedFd, UnixListener, UnixStream, io};
    use nix::NixPath;
    use nix::sys::socket::{SockaddrLike, UnixAddr};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use std::os::fd::{AsRawFd, OwnedFd};

    // bindat(2), connectat(2)
    unsafe extern "C" {
        fn bindat(
            dir: libc::c_int,
            socket: libc::c_int,
            address: *const libc::sockaddr,
            length: libc::socklen_t,
        ) -> libc::c_int;
        fn connectat(
            dir: libc::c_int,
            socket: libc::c_int,
            address: *const libc::sockaddr,
            length: libc::socklen_t,
        ) -> libc::c_int;
    }

    fn socket() -> io::Result<OwnedFd> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
    }

    pub(crate) fn bind<N: NixPath + ?Sized>(dir: BorrowedFd<'_>, name: &N) -> io::Result<OwnedFd> {
        let (socket, address) = (socket()?, UnixAddr::new(name)?);
        let (dir, fd) = (dir.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: the address is valid for its length, and the kernel only reads it.
        let result = unsafe { bindat(dir, fd, address.as_ptr().cast(), address.len()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    pub(super) fn listen(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixListener> {
        let socket = bind(dir, name)?;
        rustix::net::listen(&socket, 128)?;
        Ok(socket.into())
    }

    pub(super) fn connect(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixStream> {
        let (socket, address) = (socket()?, UnixAddr::new(name)?);
        let (dir, fd) = (dir.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: the address is valid for its length, and the kernel only reads it.
        let result = unsafe { connectat(dir, fd, address.as_ptr().cast(), address.len()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn the_path_may_be_longer_than_an_address() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let dir = std::fs::File::open(&deep).unwrap();
        let listener = listen(dir.as_fd(), "sock").unwrap();
        assert_eq!(listen(dir.as_fd(), "sock").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut client = connect(dir.as_fd(), "sock").unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(connect(dir.as_fd(), "none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
