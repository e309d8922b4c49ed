//! A thread of a copy.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kleened_sys::fs::{self, Attributes, Entry};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::directory::{Directory, Pair, is_replaced};
use super::queue::{Task, Work};
use super::{Error, Shared, Summary};

/// What the kernel can't copy by itself goes through a buffer of this size; it fits into a processor's
/// second cache.
const BUFFER: usize = 256 * 1024;

/// Room for one part of a listing: some hundred names.
const LISTING: usize = 32 * 1024;

/// Files that one thread copies before another may take the next ones of the same directory.
const BATCH: usize = 32;

/// A thread of a copy, with the buffers that it uses again and again.
pub(super) struct Worker<'c> {
    pub(super) shared: &'c Shared<'c>,
    me: usize,
    /// Whether what is made has exactly the mode that it is made with.
    pub(super) exact_modes: bool,
    pub(super) summary: Summary,
    pub(super) buffer: Vec<u8>,
    listing: Vec<u8>,
    pub(super) names: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// What is being copied: its directory on both sides, and its name there.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    pub(super) directory: &'p Arc<Directory>,
    pub(super) pair: &'p Pair,
    pub(super) name: &'p CStr,
}

/// What an entry of the source is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// To be read.
    File,
    /// To be listed.
    Directory,
    /// Only to hold on to it, whatever it is.
    Place,
}

/// An entry of the source.
pub(super) enum Source {
    Open(OwnedFd, Attributes),
    /// Something that is to stay out is mounted on it.
    Mount(Attributes),
    /// Somebody removed it.
    Gone,
    /// It can't be opened like this: somebody put something else into its place.
    Replaced,
}

impl Place<'_> {
    pub(super) fn to(&self) -> BorrowedFd<'_> {
        self.pair.to.as_fd()
    }

    /// The error of a call that failed for this entry.
    pub(super) fn failed(
        &self,
        call: impl Into<Cow<'static, str>>,
        source: impl Into<io::Error>,
    ) -> Error {
        let path = self.directory.path(self.name);
        Error::Call { path, call: call.into(), source: source.into() }
    }

    /// What was made; `None` where this very name was made before: an entry that is replaced while
    /// its directory is listed can be listed twice. A name that the target only takes for the same,
    /// as one in other letters, is an error still.
    pub(super) fn once<T>(&self, made: Result<T, Error>) -> Result<Option<T>, Error> {
        match made {
            Err(Error::Call { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists && self.is_made() =>
            {
                Ok(None)
            }
            made => made.map(Some),
        }
    }

    fn is_made(&self) -> bool {
        let listing = rustix::fs::Dir::read_from(self.to());
        listing.is_ok_and(|names| names.flatten().any(|entry| entry.file_name() == self.name))
    }
}

impl<'c> Worker<'c> {
    pub(super) fn new(shared: &'c Shared<'c>, me: usize) -> Self {
        Self {
            shared,
            me,
            exact_modes: false,
            summary: Summary::default(),
            buffer: vec![0; BUFFER],
            listing: Vec::with_capacity(LISTING),
            names: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Works until there is nothing left to do.
    pub(super) fn run(mut self) -> Summary {
        /// Wakes the others where this thread panics: they would wait for it.
        struct Bell<'c>(&'c Shared<'c>);
        impl Drop for Bell<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.queue.stop(None);
                }
            }
        }
        let bell = Bell(self.shared);
        self.exact_modes = fs::unmask_thread();
        while let Some(task) = self.shared.queue.next(self.me) {
            if let Err(error) = self.perform(task) {
                self.shared.queue.stop(Some(error));
            }
        }
        drop(bell);
        self.summary
    }

    fn perform(&mut self, task: Task) -> Result<(), Error> {
        let Task { directory, work } = task;
        let pair = directory.pair().map_err(|e| directory.failed("openat", e))?;
        match work {
            Work::List(position) => self.list(&directory, &pair, position)?,
            Work::Enter(name) => self.enter(&directory, &pair, name)?,
            Work::Entries(entries) => self.entries(&directory, &pair, &entries)?,
        }
        drop(pair);
        self.end(&directory)
    }

    /// A task of the directory is done. After the last one it gets what the making of entries would
    /// have changed.
    pub(super) fn end(&mut self, directory: &Arc<Directory>) -> Result<(), Error> {
        match directory.end() {
            Ok(None) => Ok(()),
            Ok(Some(pair)) => {
                self.summary.directories += 1;
                self.finish_directory(directory, &pair)
            }
            Err(error) => Err(directory.failed("openat", error)),
        }
    }

    /// Copies a part of a directory's entries, and leaves the rest and the directories in it as
    /// tasks.
    fn list(
        &mut self,
        directory: &Arc<Directory>,
        pair: &Pair,
        position: u64,
    ) -> Result<(), Error> {
        let mut entries = Vec::new();
        let Some(from) = &pair.from else { return Ok(()) };
        let next = fs::list_part(from.as_fd(), position, &mut self.listing, &mut entries)
            .map_err(|e| directory.failed("getdents", e))?;
        // The order of the inodes is that of the disk, as a rule; that of the names is not.
        entries.sort_unstable_by_key(|entry| entry.inode);
        let (directories, mut files): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.kind == FileType::Directory);
        let rest = files.split_off(files.len().min(BATCH));
        let mut rest = rest.into_iter();
        let batches = std::iter::from_fn(|| {
            let batch: Vec<_> = rest.by_ref().take(BATCH).collect();
            (!batch.is_empty()).then_some(Work::Entries(batch))
        });
        // The last is taken first: this part of the directory is finished before another is read, so
        // that no more than one part waits.
        let tasks: Vec<_> = next
            .map(Work::List)
            .into_iter()
            .chain(directories.into_iter().map(|entry| Work::Enter(entry.name)))
            .chain(batches)
            .map(|work| Task { directory: directory.clone(), work })
            .collect();
        if !tasks.is_empty() {
            directory.begin(tasks.len());
            self.shared.queue.push(self.me, tasks);
            if self.shared.too_many_open() {
                directory.close();
            }
        }
        self.entries(directory, pair, &files)
    }

    /// Makes a directory and begins with its entries.
    fn enter(&mut self, parent: &Arc<Directory>, pair: &Pair, name: CString) -> Result<(), Error> {
        let place = Place { directory: parent, pair, name: &name };
        self.check()?;
        let source = self.open(place, Access::Directory)?;
        let attributes = match &source {
            Source::Open(_, attributes) | Source::Mount(attributes) => attributes,
            Source::Gone => return Ok(()),
            Source::Replaced => {
                self.summary.vanished += 1;
                return Ok(());
            }
        };
        if attributes.id == self.shared.target {
            return Err(Error::Inside { path: parent.path(&name) });
        }
        let made = rustix::fs::mkdirat(place.to(), &*name, Mode::RWXU)
            .map_err(|e| place.failed("mkdirat", e));
        if place.once(made)?.is_none() {
            return Ok(());
        }
        let to = fs::open_directory(place.to(), &*name).map_err(|e| place.failed("openat", e))?;
        let Source::Open(from, attributes) = source else {
            self.summary.mounts += 1;
            self.summary.directories += 1;
            return self.finish(place, to.as_fd(), None, attributes);
        };
        let inside = Pair::new(Some(from), to);
        let directory = Directory::new(parent.clone(), name, attributes, inside.clone());
        self.list(&directory, &inside, 0)?;
        drop(inside);
        self.end(&directory)
    }

    /// Opens an entry of the source.
    pub(super) fn open(&mut self, place: Place<'_>, access: Access) -> Result<Source, Error> {
        let Some(from) = &place.pair.from else { return Ok(self.gone()) };
        let open = |flags| {
            if self.shared.options.one_file_system {
                return fs::open_unmounted(from.as_fd(), place.name, flags);
            }
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(from, place.name, flags, Mode::empty())
        };
        let flags = match access {
            Access::Place => OFlags::PATH,
            Access::File => OFlags::RDONLY | OFlags::NONBLOCK,
            Access::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
        };
        let noatime = self.shared.noatime();
        let opened = if access == Access::Place || noatime.is_empty() {
            open(flags)
        } else {
            match open(flags | noatime) {
                // Only the owner and the privileged may.
                Err(Errno::PERM) => {
                    self.shared.no_noatime.store(true, Ordering::Relaxed);
                    open(flags)
                }
                other => other,
            }
        };
        match opened {
            Ok(file) => {
                let attributes =
                    fs::attributes(file.as_fd()).map_err(|e| place.failed("statx", e))?;
                Ok(Source::Open(file, attributes))
            }
            Err(Errno::XDEV) => match fs::attributes_at(from.as_fd(), place.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.gone()),
                found => found.map(Source::Mount).map_err(|e| place.failed("statx", e)),
            },
            Err(Errno::NOENT) => Ok(self.gone()),
            // A socket, which nobody can open, is ENXIO (EOPNOTSUPP on FreeBSD).
            Err(Errno::NXIO | Errno::OPNOTSUPP) if access == Access::File => Ok(Source::Replaced),
            Err(errno) if is_replaced(errno) => Ok(Source::Replaced),
            Err(errno) => Err(place.failed("openat", errno)),
        }
    }

    fn gone(&mut self) -> Source {
        self.summary.vanished += 1;
        Source::Gone
    }

    /// One more task, made by an entry that turned out to be a directory.
    pub(super) fn push(&self, task: Task) {
        self.shared.queue.push(self.me, [task]);
    }

    fn entries(
        &mut self,
        directory: &Arc<Directory>,
        pair: &Pair,
        entries: &[Entry],
    ) -> Result<(), Error> {
        for entry in entries {
            self.check()?;
            let place = Place { directory, pair, name: &entry.name };
            self.entry(place, entry.kind)?;
        }
        Ok(())
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), Error> {
        let cancelled = self.shared.options.progress.is_some_and(super::Progress::is_cancelled);
        if cancelled || self.shared.queue.is_stopped() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl Directory {
    /// The error of a call that failed for the directory itself.
    pub(super) fn failed(&self, call: &'static str, source: io::Error) -> Error {
        Error::Call { path: self.path(c"."), call: call.into(), source }
    }
}

impl Shared<'_> {
    /// The flag that leaves the time of reading alone, while it may be used.
    fn noatime(&self) -> OFlags {
        #[cfg(target_os = "linux")]
        if !self.no_noatime.load(Ordering::Relaxed) {
            return OFlags::NOATIME;
        }
        OFlags::empty()
    }

    /// Whether half of the descriptors that the process may have are directories' now.
    fn too_many_open(&self) -> bool {
        super::directory::open_pairs() > self.max_pairs
    }
}
