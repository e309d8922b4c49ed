//! What went wrong, and what to do about it.

use std::ffi::CString;
use std::fmt;
use std::io;

use libc::c_int;
use libzfs_sys::zfs_error;

/// A call to ZFS that failed. What it would have changed is as it was, except where the call says
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    verb: &'static str,
    object: String,
    errno: c_int,
    detail: Option<String>,
    items: Vec<Item>,
}

/// One of many objects of a call, and what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The dataset, snapshot or bookmark.
    pub name: String,
    /// The error number.
    pub errno: c_int,
}

impl Item {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(self.errno)
    }
}

/// What kind of error it is: what a caller decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such pool, dataset, snapshot, bookmark, hold or parent.
    NotFound,
    /// The name is taken.
    Exists,
    /// Mounted, held, cloned, being received or otherwise in use.
    Busy,
    /// A quota is used up.
    QuotaExceeded,
    /// The pool is full.
    NoSpace,
    /// Not allowed to this process.
    NotPermitted,
    /// The pool or the dataset is read-only.
    ReadOnly,
    /// Bad name, property or argument.
    Invalid,
    /// A name is longer than 255 bytes.
    NameTooLong,
    /// A value or a list is too large.
    TooLarge,
    /// The objects are not in one pool, or a stream's base is missing.
    CrossPool,
    /// This version of OpenZFS, or this pool, has no such thing.
    Unsupported,
    /// The pool waits for a device.
    Suspended,
    /// The stream is damaged or ended early.
    BadStream,
    /// What receives the stream was changed since.
    Changed,
    /// The device failed, or data is damaged.
    Device,
    /// The other end of the pipe is gone.
    BrokenPipe,
    /// A signal came.
    Interrupted,
    /// Anything else.
    Other,
}

/// `EBADE`, which OpenZFS has for `ECKSUM` on Linux; on FreeBSD it is `EINTEGRITY`.
#[cfg(target_os = "linux")]
pub(super) const ECKSUM: c_int = libc::EBADE;
#[cfg(target_os = "freebsd")]
pub(super) const ECKSUM: c_int = libc::EINTEGRITY;

/// `zfs_errno_t` of `sys/fs/zfs.h`, as far as these calls return it.
mod zfs_errno {
    pub(super) const IOC_CMD_UNAVAIL: i32 = 1029;
    pub(super) const IOC_ARG_UNAVAIL: i32 = 1030;
    pub(super) const IOC_ARG_REQUIRED: i32 = 1031;
    pub(super) const IOC_ARG_BADTYPE: i32 = 1032;
    pub(super) const WRONG_PARENT: i32 = 1033;
    pub(super) const UNKNOWN_SEND_STREAM_FEATURE: i32 = 1037;
    pub(super) const EXPORT_IN_PROGRESS: i32 = 1038;
    pub(super) const BOOKMARK_SOURCE_NOT_ANCESTOR: i32 = 1039;
    pub(super) const STREAM_TRUNCATED: i32 = 1040;
    pub(super) const BADPROP: i32 = 1044;
}

impl Kind {
    pub(super) fn of(errno: c_int) -> Self {
        match errno {
            libc::ENOENT | libc::ESRCH => Self::NotFound,
            libc::EEXIST => Self::Exists,
            libc::EBUSY => Self::Busy,
            libc::EDQUOT => Self::QuotaExceeded,
            libc::ENOSPC => Self::NoSpace,
            libc::EPERM | libc::EACCES => Self::NotPermitted,
            libc::EROFS => Self::ReadOnly,
            libc::EINVAL
            | zfs_errno::IOC_ARG_REQUIRED
            | zfs_errno::IOC_ARG_BADTYPE
            | zfs_errno::WRONG_PARENT
            | zfs_errno::BOOKMARK_SOURCE_NOT_ANCESTOR
            | zfs_errno::BADPROP => Self::Invalid,
            libc::ENAMETOOLONG => Self::NameTooLong,
            libc::E2BIG | libc::ERANGE => Self::TooLarge,
            libc::EXDEV | libc::ENODEV => Self::CrossPool,
            libc::ENOTSUP
            | libc::ENOSYS
            | libc::ENOTTY
            | zfs_errno::IOC_CMD_UNAVAIL
            | zfs_errno::IOC_ARG_UNAVAIL
            | zfs_errno::UNKNOWN_SEND_STREAM_FEATURE => Self::Unsupported,
            libc::EAGAIN | zfs_errno::EXPORT_IN_PROGRESS => Self::Suspended,
            ECKSUM | zfs_errno::STREAM_TRUNCATED => Self::BadStream,
            libc::ETXTBSY => Self::Changed,
            libc::EIO | libc::ENXIO => Self::Device,
            libc::EPIPE => Self::BrokenPipe,
            libc::EINTR => Self::Interrupted,
            _ => Self::Other,
        }
    }

    /// What is so, and what to do.
    const fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::NotFound => (
                "no such pool, dataset or snapshot",
                "check the name; a parent must be there first",
            ),
            Self::Exists => ("it exists already", "choose another name or remove what has it"),
            Self::Busy => (
                "it is in use",
                "unmount it, and look for holds (zfs holds), clones (zfs get clones) and transfers",
            ),
            Self::QuotaExceeded => (
                "a quota is used up",
                "raise quota or refquota of the dataset or its parents, or remove data or snapshots",
            ),
            Self::NoSpace => (
                "no space is left in the pool",
                "remove data or snapshots, lower reservations, or add a device",
            ),
            Self::NotPermitted => (
                "not permitted",
                "run as root, delegate it with zfs allow, or in a jail give the jail the dataset",
            ),
            Self::ReadOnly => (
                "the pool or dataset is read-only",
                "import the pool without readonly=on, or set readonly=off",
            ),
            Self::Invalid => (
                "invalid name, property or argument",
                "see zfsprops(7) for properties; names have letters, digits and _ - . : only",
            ),
            Self::NameTooLong => (
                "the name is too long",
                "choose names that make at most 255 bytes with all parents",
            ),
            Self::TooLarge => (
                "a value is too large",
                "values of user properties have at most 8,191 bytes; ask for fewer at once",
            ),
            Self::CrossPool => (
                "not in one pool, or the stream's base is not there",
                "name datasets of one pool, or send a full stream",
            ),
            Self::Unsupported => (
                "not supported",
                "it needs a newer OpenZFS, or a feature that zpool upgrade enables",
            ),
            Self::Suspended => (
                "the pool is suspended",
                "see zpool status; bring the device back, then zpool clear",
            ),
            Self::BadStream => (
                "the stream is damaged or ended early",
                "send it again, or resume it where it was received as resumable",
            ),
            Self::Changed => (
                "the dataset was changed since its last snapshot",
                "roll it back, or force the receive",
            ),
            Self::Device => ("input or output error", "see zpool status"),
            Self::BrokenPipe => ("the other end is gone", "start the transfer again"),
            Self::Interrupted => ("interrupted by a signal", "try again"),
            Self::Other => ("it failed", "see the number of the error and zpool status"),
        }
    }
}

impl Error {
    pub(super) fn new(verb: &'static str, object: impl Into<String>, errno: c_int) -> Self {
        Self { verb, object: object.into(), errno, detail: None, items: Vec::new() }
    }

    /// What the library or the check says about it.
    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(super) fn items(mut self, items: Vec<Item>) -> Self {
        self.items = items;
        self
    }

    /// What was done, as in "create".
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        self.verb
    }

    /// The dataset, snapshot, bookmark or pool.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The error number: of `errno(2)`, or from 1024 on of OpenZFS's own.
    #[must_use]
    pub const fn errno(&self) -> c_int {
        self.errno
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(self.errno)
    }

    /// Of a call for many objects: those that were to blame. The others are as they were, too, except
    /// where the call says otherwise.
    #[must_use]
    pub fn failed(&self) -> &[Item] {
        &self.items
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, advice) = self.kind().texts();
        write!(f, "cannot {}", self.verb)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        match &self.detail {
            Some(detail) => write!(f, ": {reason} ({detail})")?,
            None => write!(f, ": {reason}")?,
        }
        if self.kind() == Kind::Other {
            write!(f, ", error {}", self.errno)?;
        }
        write!(f, "; {advice}")?;
        for item in &self.items {
            write!(f, "; {}: {}", item.name, item.kind().texts().0)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    /// The kind is that of the error number; the text and the items stay.
    fn from(error: Error) -> Self {
        Self::new(Self::from_raw_os_error(error.errno).kind(), error)
    }
}

/// The longest name of a dataset, snapshot or bookmark: `ZFS_MAX_DATASET_NAME_LEN` without its end.
pub const NAME_MAX: usize = 255;

/// A text as C has it.
pub(super) fn c_text(verb: &'static str, object: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| {
        Error::new(verb, object.escape_default().to_string(), libc::EINVAL)
            .detail("it contains a zero byte")
    })
}

/// A name as C has it, no longer than the libraries' buffers, which cut longer ones off.
pub(super) fn c_name(verb: &'static str, name: &str) -> Result<CString, Error> {
    if name.len() > NAME_MAX {
        let start: String = name.chars().take(40).collect();
        return Err(Error::new(verb, format!("{start}..."), libc::ENAMETOOLONG));
    }
    if name.is_empty() {
        return Err(Error::new(verb, "", libc::EINVAL).detail("the name is empty"));
    }
    c_text(verb, name, name)
}

/// The error number for one of libzfs's own.
pub(super) const fn errno_of_libzfs(error: c_int) -> c_int {
    match error {
        zfs_error::NOMEM => libc::ENOMEM,
        zfs_error::BADPROP
        | zfs_error::PROPREADONLY
        | zfs_error::PROPTYPE
        | zfs_error::PROPNONINHERIT
        | zfs_error::BADTYPE
        | zfs_error::INVALIDNAME
        | zfs_error::BADPATH => libc::EINVAL,
        zfs_error::BADVERSION | zfs_error::NOTSUP => libc::ENOTSUP,
        zfs_error::PROPSPACE | zfs_error::NOSPC => libc::ENOSPC,
        zfs_error::BUSY | zfs_error::UMOUNTFAILED => libc::EBUSY,
        zfs_error::EXISTS => libc::EEXIST,
        zfs_error::NOENT => libc::ENOENT,
        zfs_error::BADSTREAM => ECKSUM,
        zfs_error::DSREADONLY => libc::EROFS,
        zfs_error::POOLUNAVAIL => libc::EAGAIN,
        zfs_error::CROSSTARGET => libc::EXDEV,
        zfs_error::ZONED | zfs_error::PERM => libc::EPERM,
        zfs_error::INTR => libc::EINTR,
        zfs_error::NAMETOOLONG => libc::ENAMETOOLONG,
        _ => libc::EIO,
    }
}
