//! Extended attributes, of what is open and of what is not.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// What has the attributes.
#[derive(Debug, Clone, Copy)]
pub enum Node<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// What a descriptor of `O_PATH` stands for, a link itself included.
    Place(BorrowedFd<'a>),
    /// A name in a directory, itself and not what it links to.
    At(BorrowedFd<'a>, &'a CStr),
}

/// `names` is the names of all attributes that the caller may see, each ended by a NUL. On FreeBSD
/// they begin with their namespace, `user.` or `system.`; and there the access control lists of files
/// and directories that say more than the mode are attributes, too, with a text for a value:
/// `acl.nfs4`, `acl.access`, `acl.default`.
///
/// # Errors
///
/// EOPNOTSUPP where the file system has no attributes. Otherwise what `listxattr(2)` says.
pub fn list_xattrs(node: Node<'_>, names: &mut Vec<u8>) -> io::Result<()> {
    names.clear();
    platform::list(node, names)
}

/// `value` is the attribute's value.
///
/// # Errors
///
/// ENODATA (ENOATTR on FreeBSD) where there is no such attribute. Otherwise what `getxattr(2)` says.
pub fn get_xattr(node: Node<'_>, name: &CStr, value: &mut Vec<u8>) -> io::Result<()> {
    value.clear();
    platform::get(node, name, value)
}

/// The attribute has this value, whether it existed or not.
///
/// # Errors
///
/// What `setxattr(2)` says.
pub fn set_xattr(node: Node<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    platform::set(node, name, value)
}

/// There is no such attribute. False where there was none: a repeat is safe.
///
/// # Errors
///
/// What `removexattr(2)` says.
pub fn remove_xattr(node: Node<'_>, name: &CStr) -> io::Result<bool> {
    platform::remove(node, name)
}

#[cfg(target_os = "linux")]
mod platform {
    use std::ffi::{CStr, CString};
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::fs::{self, XattrFlags};
    use rustix::io::Errno;

    use super::Node;
    use crate::fs::proc_path;

    /// The kernel's limit of both a list and a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
    const MAX: usize = 65536;

    /// A path of `name` in `dir` that no link is in the way of: `/proc/self/fd/N` leads to the
    /// directory itself, and the calls with `l` don't follow the last component.
    fn path(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<CString> {
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        Ok(CString::new(path)?)
    }

    /// Enough for nearly all. The kernel allocates what it is offered, in every call.
    const SHORT: usize = 512;

    /// Fills a buffer by a call: a short one first.
    fn fill(
        buffer: &mut Vec<u8>,
        mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
    ) -> io::Result<()> {
        buffer.resize(SHORT, 0);
        let mut length = call(buffer);
        if length == Err(Errno::RANGE) {
            buffer.resize(MAX, 0);
            length = call(buffer);
        }
        buffer.truncate(length.unwrap_or_default());
        Ok(length.map(drop)?)
    }

    pub(super) fn list(node: Node<'_>, names: &mut Vec<u8>) -> io::Result<()> {
        match node {
            Node::Open(fd) => fill(names, |buffer| fs::flistxattr(fd, buffer)),
            // Where the path is the descriptor itself, the kernel goes where it stands and no further.
            Node::Place(fd) => {
                let path = proc_path(fd);
                fill(names, |buffer| fs::listxattr(&path, buffer))
            }
            Node::At(dir, name) => {
                let path = path(dir, name)?;
                fill(names, |buffer| fs::llistxattr(&path, buffer))
            }
        }
    }

    pub(super) fn get(node: Node<'_>, name: &CStr, value: &mut Vec<u8>) -> io::Result<()> {
        match node {
            Node::Open(fd) => fill(value, |buffer| fs::fgetxattr(fd, name, buffer)),
            Node::Place(fd) => {
                let path = proc_path(fd);
                fill(value, |buffer| fs::getxattr(&path, name, buffer))
            }
            Node::At(dir, at) => {
                let path = path(dir, at)?;
                fill(value, |buffer| fs::lgetxattr(&path, name, buffer))
            }
        }
    }

    pub(super) fn set(node: Node<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
        match node {
            Node::Open(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty())?,
            Node::Place(fd) => fs::setxattr(proc_path(fd), name, value, XattrFlags::empty())?,
            Node::At(dir, at) => fs::lsetxattr(path(dir, at)?, name, value, XattrFlags::empty())?,
        }
        Ok(())
    }

    pub(super) fn remove(node: Node<'_>, name: &CStr) -> io::Result<bool> {
        let removed = match node {
            Node::Open(fd) => fs::fremovexattr(fd, name),
            Node::Place(fd) => fs::removexattr(proc_path(fd), name),
            Node::At(dir, at) => fs::lremovexattr(path(dir, at)?, name),
        };
        match removed {
            Ok(()) => Ok(true),
            Err(Errno::NODATA) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(target_os = "freebsd")]
mod platform {
    use std::ffi::{CStr, c_int, c_void};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::ptr;

    use rustix::fs::{FileType, Mode, OFlags};
    use rustix::io::Errno;

    use super::Node;
    use crate::fs::{acl, reopen};

    /// The namespaces of `extattr(9)`, with the prefix that names them here.
    const NAMESPACES: [(c_int, &[u8]); 2] =
        [(libc::EXTATTR_NAMESPACE_USER, b"user."), (libc::EXTATTR_NAMESPACE_SYSTEM, b"system.")];

    /// Where the file systems keep the access control lists: `sys/acl.h`.
    const HIDDEN: [&[u8]; 3] = [b"posix1e.acl_access", b"posix1e.acl_default", b"nfs4.acl"];

    /// A node, opened as far as that can be done without doing anything.
    enum Opened<'a> {
        Borrowed(BorrowedFd<'a>),
        Owned(OwnedFd),
    }

    impl AsFd for Opened<'_> {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self {
                Self::Borrowed(fd) => *fd,
                Self::Owned(fd) => fd.as_fd(),
            }
        }
    }

    /// The node, and whether it can have access control lists: to open anything but a file or a
    /// directory could do something, and a descriptor of `O_PATH` is good for attributes alone.
    fn open(node: Node<'_>) -> io::Result<(Opened<'_>, bool)> {
        let kind = |fd: BorrowedFd<'_>| {
            Ok::<_, io::Error>(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
        };
        let place = match node {
            Node::Open(fd) => return Ok((Opened::Borrowed(fd), true)),
            Node::Place(fd) => Opened::Borrowed(fd),
            Node::At(dir, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Opened::Owned(rustix::fs::openat(dir, name, flags, Mode::empty())?)
            }
        };
        if matches!(kind(place.as_fd())?, FileType::RegularFile | FileType::Directory) {
            return Ok((Opened::Owned(reopen(place.as_fd(), OFlags::RDONLY)?), true));
        }
        Ok((place, false))
    }

    /// The namespace that a name begins with, and the rest of the name.
    fn split(name: &CStr) -> io::Result<(c_int, &CStr)> {
        let bytes = name.to_bytes_with_nul();
        NAMESPACES
            .iter()
            .find_map(|(space, prefix)| {
                let rest = bytes.strip_prefix(*prefix)?;
                Some((*space, CStr::from_bytes_with_nul(rest).ok()?))
            })
            .ok_or_else(|| Errno::OPNOTSUPP.into())
    }

    /// A kernel that takes no descriptor of `O_PATH` for attributes says EBADF.
    fn checked(result: isize) -> io::Result<usize> {
        usize::try_from(result).map_err(|_| match io::Error::last_os_error() {
            error if Errno::from_io_error(&error) == Some(Errno::BADF) => Errno::OPNOTSUPP.into(),
            error => error,
        })
    }

    /// Calls with no buffer for the size, then with one, until it fits.
    fn sized(mut call: impl FnMut(*mut c_void, usize) -> isize) -> io::Result<Vec<u8>> {
        loop {
            let size = checked(call(ptr::null_mut(), 0))?;
            // One more than needed: a full buffer could have been cut off.
            let mut buffer = vec![0; size + 1];
            let count = checked(call(buffer.as_mut_ptr().cast(), buffer.len()))?;
            if count <= size {
                buffer.truncate(count);
                return Ok(buffer);
            }
        }
    }

    pub(super) fn list(node: Node<'_>, names: &mut Vec<u8>) -> io::Result<()> {
        let (node, has_lists) = open(node)?;
        let fd = node.as_fd();
        if has_lists {
            let is_directory =
                FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory;
            for kind in acl::list(fd, is_directory)? {
                names.extend_from_slice(kind.name().to_bytes_with_nul());
            }
        }
        match list_extended(fd, names) {
            // Other nodes of the file system can have attributes all the same, or can have lists.
            Err(error)
                if error.kind() == io::ErrorKind::Unsupported
                    && (!has_lists || acl::supported(fd)) =>
            {
                Ok(())
            }
            listed => listed,
        }
    }

    fn list_extended(fd: BorrowedFd<'_>, names: &mut Vec<u8>) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        for (space, prefix) in NAMESPACES {
            let listed = sized(|buffer, size| {
                // SAFETY: `fd` is open, and `buffer` has room for `size` bytes or is null with 0.
                unsafe { libc::extattr_list_fd(fd, space, buffer, size) }
            });
            let listed = match listed {
                // Without privileges the system namespace is not for us to see.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => continue,
                other => other?,
            };
            // Each name has its length before it, and no NUL.
            let mut rest = listed.as_slice();
            while let Some((&length, tail)) = rest.split_first() {
                let Some((name, tail)) = tail.split_at_checked(length.into()) else { break };
                rest = tail;
                if space == libc::EXTATTR_NAMESPACE_SYSTEM && HIDDEN.contains(&name) {
                    continue;
                }
                names.extend_from_slice(prefix);
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        Ok(())
    }

    /// The node for one attribute; a list, where the name is of one.
    fn find<'a>(node: Node<'a>, name: &CStr) -> io::Result<(Opened<'a>, Option<acl::Kind>)> {
        let (node, has_lists) = open(node)?;
        match acl::Kind::of(name) {
            Some(_) if !has_lists => Err(Errno::OPNOTSUPP.into()),
            kind => Ok((node, kind)),
        }
    }

    pub(super) fn get(node: Node<'_>, name: &CStr, value: &mut Vec<u8>) -> io::Result<()> {
        let (node, list) = find(node, name)?;
        if let Some(kind) = list {
            *value = acl::get(node.as_fd(), kind)?;
            return Ok(());
        }
        let fd = node.as_fd().as_raw_fd();
        let (space, name) = split(name)?;
        *value = sized(|buffer, size| {
            // SAFETY: `fd` is open, `name` ends with a NUL, and `buffer` has room for `size` bytes
            // or is null with 0.
            unsafe { libc::extattr_get_fd(fd, space, name.as_ptr(), buffer, size) }
        })?;
        Ok(())
    }

    pub(super) fn set(node: Node<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
        let (node, list) = find(node, name)?;
        if let Some(kind) = list {
            return acl::set(node.as_fd(), kind, value);
        }
        let fd = node.as_fd().as_raw_fd();
        let (space, name) = split(name)?;
        let data = value.as_ptr().cast();
        // SAFETY: `fd` is open, `name` ends with a NUL, and `data` has `value.len()` bytes.
        let set = unsafe { libc::extattr_set_fd(fd, space, name.as_ptr(), data, value.len()) };
        checked(set).map(drop)
    }

    pub(super) fn remove(node: Node<'_>, name: &CStr) -> io::Result<bool> {
        let (node, list) = find(node, name)?;
        if let Some(kind) = list {
            return acl::remove(node.as_fd(), kind);
        }
        let fd = node.as_fd().as_raw_fd();
        let (space, name) = split(name)?;
        // SAFETY: `fd` is open and `name` ends with a NUL.
        let removed = unsafe { libc::extattr_delete_fd(fd, space, name.as_ptr()) };
        match checked(removed as isize) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOATTR) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn names(node: Node<'_>) -> Vec<u8> {
        let mut names = Vec::new();
        list_xattrs(node, &mut names).unwrap();
        names
    }

    #[test]
    fn attributes_of_files_and_of_links_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let file = std::fs::File::create(dir.path().join("file")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let (open, link) = (Node::Open(file.as_fd()), Node::At(fd.as_fd(), c"link"));
        let mut value = Vec::new();
        set_xattr(open, c"user.a", b"one").unwrap();
        set_xattr(open, c"user.a", b"two\0").unwrap();
        get_xattr(Node::At(fd.as_fd(), c"file"), c"user.a", &mut value).unwrap();
        assert_eq!(value, b"two\0");
        // Links only have attributes for the privileged.
        match set_xattr(link, c"trusted.b", b"") {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return super::super::skip("trusted", error);
            }
            other => other.unwrap(),
        }
        get_xattr(link, c"trusted.b", &mut value).unwrap();
        assert_eq!(value, b"");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
        let place = rustix::fs::openat(&fd, c"link", flags, rustix::fs::Mode::empty()).unwrap();
        let place = Node::Place(place.as_fd());
        assert_eq!(names(place), b"trusted.b\0");
        set_xattr(place, c"trusted.c", b"c").unwrap();
        get_xattr(link, c"trusted.c", &mut value).unwrap();
        assert_eq!(value, b"c");
        assert!(remove_xattr(place, c"trusted.c").unwrap());
        assert_eq!(names(open), b"user.a\0");
        assert_eq!(names(link), b"trusted.b\0");
        assert!(remove_xattr(link, c"trusted.b").unwrap());
        assert!(!remove_xattr(link, c"trusted.b").unwrap());
        assert_eq!(names(link), b"");
    }
}
