//! A directory that is being copied, and the descriptors that it is reached by.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kleened_sys::fs::{self, Attributes};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::Error;

/// Directories that are open now, in all copies of this process: what the limit counts.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// The same directory on both sides.
pub(super) struct Pair {
    /// Nothing where somebody removed it.
    pub(super) from: Option<OwnedFd>,
    pub(super) to: OwnedFd,
}

impl Pair {
    pub(super) fn new(from: Option<OwnedFd>, to: OwnedFd) -> Arc<Self> {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { from, to })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many pairs are open in this process.
pub(super) fn open_pairs() -> usize {
    OPEN.load(Ordering::Relaxed)
}

/// How many there may be: half of the descriptors that the process may have.
pub(super) fn max_pairs() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).unwrap_or(usize::MAX).clamp(8, 4096)
}

/// A directory. It outlives its descriptors: what is needed later is found again by the names of the
/// directories above it.
pub(super) struct Directory {
    parent: Option<Arc<Directory>>,
    name: CString,
    pub(super) attributes: Attributes,
    open: Mutex<Option<Arc<Pair>>>,
    /// Tasks that make entries in it. Its times are set when there are none left.
    unfinished: AtomicUsize,
}

/// The root, and what is known of the target.
pub(super) struct Root {
    pub(super) directory: Arc<Directory>,
    /// The target's device and number.
    pub(super) target: (u64, u64),
    /// Who owns what is made in it.
    pub(super) born: (u32, u32),
}

impl Directory {
    /// Makes the target ready, so that nothing in it is inherited by what is made there, and nobody
    /// else looks in before the end.
    pub(super) fn root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Root, Error> {
        fn failed<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> Error {
            move |source| Error::Call { path: ".".into(), call: call.into(), source: source.into() }
        }
        let from = open_source(from, c".").map_err(failed("openat"))?;
        let to = fs::open_directory(to, c".").map_err(failed("openat"))?;
        let attributes = fs::attributes(from.as_fd()).map_err(failed("statx"))?;
        let target = fs::attributes(to.as_fd()).map_err(failed("statx"))?.id;
        if attributes.id == target {
            return Err(Error::Inside { path: ".".into() });
        }
        let (mut buffer, mut entries) = (Vec::with_capacity(4096), Vec::new());
        fs::list_part(to.as_fd(), 0, &mut buffer, &mut entries).map_err(failed("getdents"))?;
        if !entries.is_empty() {
            return Err(failed("mkdir")(Errno::NOTEMPTY));
        }
        #[cfg(target_os = "linux")]
        let lists = [c"system.posix_acl_default", c"system.posix_acl_access"];
        #[cfg(target_os = "freebsd")]
        let lists = [c"acl.default", c"acl.access", c"acl.nfs4"];
        for acl in lists {
            match fs::remove_xattr(fs::Node::Open(to.as_fd()), acl) {
                Err(e) if e.kind() != io::ErrorKind::Unsupported => {
                    return Err(failed("fremovexattr")(e));
                }
                _ => (),
            }
        }
        rustix::fs::fchmod(&to, Mode::RWXU).map_err(failed("fchmod"))?;
        // Who owns what is made here: file systems differ in whom they ask.
        let probe = c".tmp-probe";
        rustix::fs::mkdirat(&to, probe, Mode::RWXU).map_err(failed("mkdirat"))?;
        let made = fs::attributes_at(to.as_fd(), probe);
        rustix::fs::unlinkat(&to, probe, AtFlags::REMOVEDIR).map_err(failed("unlinkat"))?;
        let made = made.map_err(failed("statx"))?;
        let born = (made.uid, made.gid);
        let open = Mutex::new(Some(Pair::new(Some(from), to)));
        let name = c".".to_owned();
        // Two tasks at first: the listing, and the one of whoever waits for everything.
        let unfinished = AtomicUsize::new(2);
        let directory = Arc::new(Self { parent: None, name, attributes, open, unfinished });
        Ok(Root { directory, target, born })
    }

    pub(super) fn new(
        parent: Arc<Self>,
        name: CString,
        attributes: Attributes,
        pair: Arc<Pair>,
    ) -> Arc<Self> {
        let open = Mutex::new(Some(pair));
        let unfinished = AtomicUsize::new(1);
        Arc::new(Self { parent: Some(parent), name, attributes, open, unfinished })
    }

    fn open(&self) -> MutexGuard<'_, Option<Arc<Pair>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its descriptors; opened again where they were closed.
    pub(super) fn pair(&self) -> io::Result<Arc<Pair>> {
        let mut closed = Vec::new();
        let mut here = self;
        let mut pair = loop {
            if let Some(pair) = &*here.open() {
                break pair.clone();
            }
            closed.push(here.name.as_c_str());
            // The root is open until the end.
            here = here.parent.as_deref().ok_or(io::ErrorKind::NotFound)?;
        };
        for name in closed.into_iter().rev() {
            let from = match &pair.from {
                Some(above) => found(open_source(above.as_fd(), name))?,
                None => None,
            };
            pair = Pair::new(from, fs::open_directory(&pair.to, name)?);
        }
        Ok(pair)
    }

    /// Closes the descriptors; what waits in it opens them again.
    pub(super) fn close(&self) {
        if self.parent.is_some() {
            *self.open() = None;
        }
    }

    /// There are this many tasks more.
    pub(super) fn begin(&self, tasks: usize) {
        self.unfinished.fetch_add(tasks, Ordering::Relaxed);
    }

    /// A task is done; its descriptors, where it was the last.
    pub(super) fn end(&self) -> io::Result<Option<Arc<Pair>>> {
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(None);
        }
        let pair = self.pair()?;
        self.close();
        Ok(Some(pair))
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// The path of an entry below the source; of the directory itself for `.`.
    pub(super) fn path(&self, name: &CStr) -> PathBuf {
        let mut names = Vec::new();
        if name != c"." || self.parent.is_none() {
            names.push(name);
        }
        let mut here = self;
        while let Some(parent) = &here.parent {
            names.push(&here.name);
            here = parent;
        }
        names.into_iter().rev().map(|n| std::ffi::OsStr::from_bytes(n.to_bytes())).collect()
    }
}

impl Drop for Directory {
    /// One after another: the chain of parents may be longer than the stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(directory) = next {
            next = Arc::into_inner(directory).and_then(|mut d| d.parent.take());
        }
    }
}

/// Whether an entry of the source, looked up by its name, is gone or has become something else.
pub(super) fn is_replaced(error: Errno) -> bool {
    // The last is FreeBSD's word for a link.
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::MLINK)
}

fn found<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if Errno::from_io_error(&error).is_some_and(is_replaced) => Ok(None),
        other => other.map(Some),
    }
}

/// A directory of the source, opened so that listing it leaves no trace, where that may be.
fn open_source(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::OFlags;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner and the privileged may.
            Err(Errno::PERM) => (),
            other => return Ok(other?),
        }
    }
    fs::open_directory(dir, name)
}
