//! A tree copied whole: first-use content of a volume, and clones where the storage has none.
//!
//! Everything is reached from the two directories that the caller has open, one component at a time,
//! and no link is ever followed; so nothing outside them is read or written, names are bytes, and a
//! path may be of any length.
//!
//! Several threads take work from each other: a directory to enter, a part of its listing, a batch of
//! its files. Each works depth first, so that what waits is bounded by the depth of the tree and not
//! by its size.

mod directory;
mod entry;
mod links;
mod metadata;
mod queue;
mod worker;

use std::borrow::Cow;
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kleened_sys::fs::Flags;

use directory::Directory;
use links::Links;
use queue::{Queue, Task, Work};
use worker::Worker;

/// How far a copy is, for another thread to look at, and the way to stop it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Entries that are done, directories left out.
    pub files: AtomicU64,
    /// Bytes of content that are done; of a file with holes, only its data.
    pub bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The copy ends with [`Error::Cancelled`] before its next file, or its next few MiB of a large
    /// one.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// How to copy.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How many threads; 0 for as many as there are processors, but a few at least: they wait for
    /// the disk more often than for each other.
    pub threads: usize,
    /// Where to count, and who may cancel.
    pub progress: Option<&'a Progress>,
    /// Whether what is mounted inside the tree stays out. In its place is an empty directory or file
    /// with the owner, mode and times that show there.
    pub one_file_system: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { threads: 0, progress: None, one_file_system: true }
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Entries that are not directories, further names of a file included.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Names that were linked to a file which another name had brought already.
    pub hard_links: u64,
    /// Bytes of content that are in the copy, holes left out.
    pub bytes: u64,
    /// Those of them that the copy shares with the source.
    pub cloned_bytes: u64,
    /// Mounts that were left out.
    pub mounts: u64,
    /// Entries that somebody removed or replaced between the listing and the copying, so that they are
    /// not in the copy.
    pub vanished: u64,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.directories += other.directories;
        self.hard_links += other.hard_links;
        self.bytes += other.bytes;
        self.cloned_bytes += other.cloned_bytes;
        self.mounts += other.mounts;
        self.vanished += other.vanished;
    }
}

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot copy {}: {call} failed", path.display())]
    Call {
        /// What was being copied, below the source; `.` is the source itself.
        path: PathBuf,
        /// The call.
        call: Cow<'static, str>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The target is in the source.
    #[error("cannot copy a directory into itself: the target is {}", path.display())]
    Inside {
        /// Where, below the source.
        path: PathBuf,
    },
    /// [`Progress::cancel`] was called.
    #[error("the copy was cancelled")]
    Cancelled,
}

impl From<Error> for io::Error {
    /// An error of the same kind with the copy's own as its content.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Call { source, .. } => source.kind(),
            Error::Inside { .. } => io::ErrorKind::InvalidInput,
            Error::Cancelled => io::ErrorKind::Interrupted,
        };
        Self::new(kind, error)
    }
}

/// `to`, an existing empty directory, holds everything that is in `from`, and has its owner, mode,
/// times and extended attributes: hard links, holes, links, fifos, sockets and device nodes as what
/// they are, extended attributes of every namespace that the process may see, access control lists,
/// flags, times to the nanosecond. Content is shared where the file system can, else copied.
///
/// `from` may change meanwhile, which never fails the copy: what is removed, replaced or renamed may
/// be missing, and a file that is written to may be of any state in between.
///
/// It is not durable yet: see [`kleened_sys::fs::sync_file_system`].
///
/// # Errors
///
/// The first error of any thread, after all have stopped. `to` then holds a part that is good for
/// nothing: the caller removes it. A repeat needs a new directory.
pub fn tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    options: &Options<'_>,
) -> Result<Summary, Error> {
    let root = Directory::root(from, to)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(0, usize::from).max(LEAST_THREADS),
        count => count,
    };
    let shared = Shared {
        options,
        target: root.target,
        born: root.born,
        links: Links::default(),
        flagged: Mutex::new(Vec::new()),
        queue: Queue::new(threads),
        device: root.directory.attributes.id.0,
        max_pairs: directory::max_pairs(),
        no_clones: AtomicBool::new(false),
        no_xattrs: AtomicBool::new(false),
        no_noatime: AtomicBool::new(false),
    };
    let first = Task { directory: root.directory.clone(), work: Work::List(0) };
    shared.queue.push(0, [first]);
    let mut summary = std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for me in 0..threads {
            let shared = &shared;
            let thread = std::thread::Builder::new().name(format!("copy-{me}"));
            match thread.spawn_scoped(scope, move || Worker::new(shared, me).run()) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    shared.queue.stop(Some(root.directory.failed("pthread_create", error)));
                }
            }
        }
        let mut all = Summary::default();
        for worker in workers {
            match worker.join() {
                Ok(summary) => all.add(&summary),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    if let Some(error) = shared.queue.take_error() {
        return Err(error);
    }
    let mut last = Worker::new(&shared, 0);
    last.add_flags()?;
    // The root last: nobody else gets in before.
    last.end(&root.directory)?;
    last.add_flags()?;
    summary.add(&last.summary);
    Ok(summary)
}

/// Threads that there are on the smallest machine.
const LEAST_THREADS: usize = 4;

/// An entry that gets flags when everything is made: no file that is immutable can be linked to.
struct Flagged {
    directory: Arc<Directory>,
    name: CString,
    flags: Flags,
}

/// What all threads of one copy share.
struct Shared<'a> {
    options: &'a Options<'a>,
    /// The root of the target, which is not to be found in the source.
    target: (u64, u64),
    /// Who owns what this process makes in the target.
    born: (u32, u32),
    links: Links,
    flagged: Mutex<Vec<Flagged>>,
    queue: Queue,
    /// The source's device.
    device: u64,
    /// Directories that may be open at once.
    max_pairs: usize,
    // What turned out not to be possible on the source's device, and is not tried again.
    no_clones: AtomicBool,
    no_xattrs: AtomicBool,
    no_noatime: AtomicBool,
}
