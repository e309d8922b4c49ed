//! OpenZFS: its libraries, loaded when first used, made safe.
//!
//! Everything blocks, may be called from any thread, and names objects in full, as in
//! `tank/data@monday`. libzfs_core comes first: its calls are atomic. What it lacks comes from libzfs,
//! through a handle that the calling thread has to itself.

mod dataset;
mod diff;
mod error;
mod event;
mod group;
mod handle;
#[cfg(target_os = "freebsd")]
mod jail;
mod list;
mod mount;
mod nvlist;
mod pool;
mod property;
mod record;
mod stream;

use std::fmt;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use libzfs_sys::{Core, Libzfs, Nvpair, ZFS_DEV};

pub use dataset::{Bookmark, Limits};
pub use diff::{Change, ChangeKind};
pub use error::{Error, Item, Kind, NAME_MAX};
pub use event::{Event, Events};
pub use group::{Groups, Mark};
pub use list::{Iter, List, Value};
pub use mount::{MountFlags, Mounted, dataset_mounted_at, mount_dataset, mounted, unmount};
pub use nvlist::NvList;
pub use property::{Described, Properties, Property, PropertyValue, Snapshot, Source};
pub use stream::{Receive, Received, ResumePoint, SendFlags};

/// The pool that a dataset of that name is in.
#[must_use]
pub fn pool_of(dataset: &str) -> &str {
    dataset.split_once('/').map_or(dataset, |(pool, _)| pool)
}

/// ZFS, ready for use.
#[derive(Debug)]
pub struct Zfs {
    nvpair: &'static Nvpair,
    core: Core,
    libzfs: Libzfs,
}

/// Why there is no ZFS on this host, as far as this process can use it.
#[derive(Debug)]
pub enum LoadError {
    /// A library is missing, or too old.
    Library(libzfs_sys::LoadError),
    /// The libraries are there, but the kernel does not answer.
    Device(io::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let install = if cfg!(target_os = "freebsd") {
            "it is part of the base system: see pkg which, or a jail that lacks /lib"
        } else {
            "install zfsutils-linux, or what your distribution calls it"
        };
        match self {
            Self::Library(error) => write!(f, "{error}; {install}"),
            Self::Device(error) if error.kind() == io::ErrorKind::NotFound => {
                let load = if cfg!(target_os = "freebsd") { "kldload zfs" } else { "modprobe zfs" };
                write!(f, "ZFS is installed, but {ZFS_DEV} is not there; load the module: {load}")
            }
            Self::Device(error) => write!(f, "cannot open {ZFS_DEV} ({error}); run as root"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<LoadError> for io::Error {
    fn from(error: LoadError) -> Self {
        Self::new(io::ErrorKind::Unsupported, error.to_string())
    }
}

impl Zfs {
    /// ZFS, which is loaded by the first call that can. The libraries stay loaded, and `/dev/zfs` open,
    /// until the process ends.
    ///
    /// # Errors
    ///
    /// There is no ZFS here; the text says what was looked for. Safe to repeat, once there is.
    pub fn load() -> Result<&'static Self, LoadError> {
        static ZFS: OnceLock<Zfs> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());
        if let Some(zfs) = ZFS.get() {
            return Ok(zfs);
        }
        let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zfs) = ZFS.get() {
            return Ok(zfs);
        }
        let zfs = Self {
            nvpair: nvlist::library().map_err(LoadError::Library)?,
            core: Core::load().map_err(LoadError::Library)?,
            libzfs: Libzfs::load().map_err(LoadError::Library)?,
        };
        // Every other call of the library ends the process before this one.
        // SAFETY: it has no arguments, and may be called by any thread.
        match unsafe { (zfs.core.libzfs_core_init)() } {
            0 => Ok(ZFS.get_or_init(|| zfs)),
            errno => Err(LoadError::Device(io::Error::from_raw_os_error(errno))),
        }
    }
}
