//! Access control lists as FreeBSD has them, in the text form of `acl_from_text(3)` with numbers for
//! users and groups: an entry after another with commas between them.
//!
//! A list that says no more than the mode is none: it is trivial, and comes with the mode.

#[cfg(target_os = "freebsd")]
pub(super) use calls::{Kind, get, list, remove, set, supported};

/// Brings a list into one line with numbers alone: comments and blanks go, and the number that bsdtar
/// adds to an entry takes the place of the name, which is somebody else's on this host.
#[cfg(any(test, target_os = "freebsd"))]
fn numeric(text: &str) -> String {
    let lines = text.lines().filter_map(|line| line.split('#').next());
    let entries = lines.flat_map(|line| line.split(','));
    let entries = entries.map(str::trim).filter(|entry| !entry.is_empty()).map(|entry| {
        let mut fields: Vec<&str> = entry.split(':').map(str::trim).collect();
        let named = matches!(fields.first(), Some(&("user" | "u" | "group" | "g")));
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // The number is the last field; before it there are the permissions, at least.
        if named
            && fields.len() > 3
            && let Some(id) = fields.last().copied().filter(is_number)
        {
            fields.pop();
            if let Some(name) = fields.get_mut(1).filter(|name| !name.is_empty()) {
                *name = id;
            }
        }
        fields.join(":")
    });
    entries.collect::<Vec<_>>().join(",")
}

#[cfg(target_os = "freebsd")]
mod calls {
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::ptr;

    use rustix::io::Errno;

    /// `acl_t` of `sys/acl.h`.
    type Acl = *mut c_void;

    /// `acl_type_t` of `sys/_types.h`.
    type AclType = u32;

    /// `ACL_TEXT_NUMERIC_IDS` of `sys/acl.h`.
    const NUMERIC_IDS: c_int = 2;

    /// `ACL_FIRST_ENTRY` of `sys/acl.h`.
    const FIRST_ENTRY: c_int = 0;

    // Of libc, declared in `sys/acl.h`.
    unsafe extern "C" {
        fn acl_get_fd_np(fd: c_int, kind: AclType) -> Acl;
        fn acl_set_fd_np(fd: c_int, acl: Acl, kind: AclType) -> c_int;
        fn acl_delete_fd_np(fd: c_int, kind: AclType) -> c_int;
        fn acl_get_entry(acl: Acl, which: c_int, entry: *mut *mut c_void) -> c_int;
        fn acl_is_trivial_np(acl: Acl, trivial: *mut c_int) -> c_int;
        fn acl_strip_np(acl: Acl, recalculate_mask: c_int) -> Acl;
        fn acl_to_text_np(acl: Acl, length: *mut isize, flags: c_int) -> *mut c_char;
        fn acl_from_text(text: *const c_char) -> Acl;
        fn acl_free(object: *mut c_void) -> c_int;
    }

    /// The kinds of lists, by the names of the attributes that stand for them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::fs) enum Kind {
        /// Of NFSv4, as ZFS has them.
        Nfs4,
        /// Of POSIX.1e, as UFS may have them.
        Access,
        /// What is made in a directory gets it.
        Default,
    }

    impl Kind {
        const ALL: [Self; 3] = [Self::Nfs4, Self::Access, Self::Default];

        pub(in crate::fs) fn name(self) -> &'static CStr {
            match self {
                Self::Nfs4 => c"acl.nfs4",
                Self::Access => c"acl.access",
                Self::Default => c"acl.default",
            }
        }

        pub(in crate::fs) fn of(name: &CStr) -> Option<Self> {
            Self::ALL.into_iter().find(|kind| kind.name() == name)
        }

        /// `ACL_TYPE_*` of `sys/acl.h`.
        fn number(self) -> AclType {
            match self {
                Self::Access => 2,
                Self::Default => 3,
                Self::Nfs4 => 4,
            }
        }
    }

    /// What libc allocated.
    struct Owned(*mut c_void);

    impl Owned {
        fn new(object: *mut c_void) -> io::Result<Self> {
            if object.is_null() { Err(io::Error::last_os_error()) } else { Ok(Self(object)) }
        }
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: libc allocated it, and nobody else frees it.
            unsafe { acl_free(self.0) };
        }
    }

    fn done(result: c_int) -> io::Result<()> {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether the file system of an open file has what `fpathconf(2)` asks for.
    fn has(file: BorrowedFd<'_>, what: c_int) -> bool {
        // SAFETY: `file` is open.
        unsafe { libc::fpathconf(file.as_raw_fd(), what) == 1 }
    }

    /// Whether what is on this file system can have lists.
    pub(in crate::fs) fn supported(file: BorrowedFd<'_>) -> bool {
        has(file, libc::_PC_ACL_NFS4) || has(file, libc::_PC_ACL_EXTENDED)
    }

    fn read(file: BorrowedFd<'_>, kind: Kind) -> io::Result<Owned> {
        // SAFETY: `file` is open.
        Owned::new(unsafe { acl_get_fd_np(file.as_raw_fd(), kind.number()) })
    }

    /// Whether the list says anything.
    fn is_something(acl: &Owned, kind: Kind) -> io::Result<bool> {
        if kind == Kind::Default {
            let mut entry = ptr::null_mut();
            // SAFETY: `acl` is a list, and `entry` a place for a pointer into it.
            return match unsafe { acl_get_entry(acl.0, FIRST_ENTRY, &mut entry) } {
                1 => Ok(true),
                0 => Ok(false),
                _ => Err(io::Error::last_os_error()),
            };
        }
        let mut trivial = 0;
        // SAFETY: `acl` is a list, and `trivial` a place for a number.
        done(unsafe { acl_is_trivial_np(acl.0, &mut trivial) })?;
        Ok(trivial == 0)
    }

    /// The lists of an open file or directory that are not trivial.
    pub(in crate::fs) fn list(file: BorrowedFd<'_>, is_directory: bool) -> io::Result<Vec<Kind>> {
        let kinds: &[Kind] = match () {
            () if has(file, libc::_PC_ACL_NFS4) => &[Kind::Nfs4],
            () if !has(file, libc::_PC_ACL_EXTENDED) => &[],
            () if is_directory => &[Kind::Access, Kind::Default],
            () => &[Kind::Access],
        };
        let mut found = Vec::new();
        for kind in kinds {
            if is_something(&read(file, *kind)?, *kind)? {
                found.push(*kind);
            }
        }
        Ok(found)
    }

    /// The list as text; ENOATTR where it is trivial.
    pub(in crate::fs) fn get(file: BorrowedFd<'_>, kind: Kind) -> io::Result<Vec<u8>> {
        let acl = read(file, kind)?;
        if !is_something(&acl, kind)? {
            return Err(Errno::NOATTR.into());
        }
        // SAFETY: `acl` is a list; its length is not asked for.
        let text = unsafe { acl_to_text_np(acl.0, ptr::null_mut(), NUMERIC_IDS) };
        let text = Owned::new(text.cast())?;
        // SAFETY: libc's text ends with a NUL, and lives as long as `text`.
        let bytes = unsafe { CStr::from_ptr(text.0.cast()) };
        Ok(super::numeric(&bytes.to_string_lossy()).into_bytes())
    }

    /// The file has the list that the text says.
    pub(in crate::fs) fn set(file: BorrowedFd<'_>, kind: Kind, text: &[u8]) -> io::Result<()> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
        let text = CString::new(super::numeric(text))?;
        // SAFETY: `text` ends with a NUL.
        let acl = Owned::new(unsafe { acl_from_text(text.as_ptr()) })?;
        // SAFETY: `file` is open, and `acl` is a list.
        done(unsafe { acl_set_fd_np(file.as_raw_fd(), acl.0, kind.number()) })
    }

    /// The file has no such list but the trivial one. False where it had none.
    pub(in crate::fs) fn remove(file: BorrowedFd<'_>, kind: Kind) -> io::Result<bool> {
        let acl = match read(file, kind) {
            // There are none of that kind here.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::INVAL | Errno::OPNOTSUPP)
                ) =>
            {
                return Ok(false);
            }
            other => other?,
        };
        if !is_something(&acl, kind)? {
            return Ok(false);
        }
        if kind == Kind::Default {
            // SAFETY: `file` is open.
            done(unsafe { acl_delete_fd_np(file.as_raw_fd(), kind.number()) })?;
            return Ok(true);
        }
        // SAFETY: `acl` is a list.
        let stripped = Owned::new(unsafe { acl_strip_np(acl.0, 0) })?;
        // SAFETY: `file` is open, and `stripped` is a list.
        done(unsafe { acl_set_fd_np(file.as_raw_fd(), stripped.0, kind.number()) })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::numeric;

    #[test]
    fn one_line_and_no_names() {
        for (text, expected) in [
            // getfacl(1), acl_to_text(3).
            (
                "            owner@:rw-p--aARWcCos:-------:allow\n         user:1001:r-x---a-R-c--s:fd----I:allow\n",
                "owner@:rw-p--aARWcCos:-------:allow,user:1001:r-x---a-R-c--s:fd----I:allow",
            ),
            (
                "user::rw-\nuser:7:rwx\t\t# effective: r--\nmask::r--\n",
                "user::rw-,user:7:rwx,mask::r--",
            ),
            // bsdtar.
            (
                "owner@:rwx::allow,user:alice:r-x:fd:deny:1001,group:1:r::allow:1",
                "owner@:rwx::allow,user:1001:r-x:fd:deny,group:1:r::allow",
            ),
            (
                "user::rwx,user:alice:r-x:1000,group::r-x,group:staff:---:20,mask::rwx,other::r--",
                "user::rwx,user:1000:r-x,group::r-x,group:20:---,mask::rwx,other::r--",
            ),
            // Of a user whose name nobody knew.
            ("user:1000:r-x", "user:1000:r-x"),
            ("", ""),
        ] {
            assert_eq!(numeric(text), expected);
            assert_eq!(numeric(expected), expected);
        }
    }
}
