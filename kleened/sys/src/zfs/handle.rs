//! A handle to libzfs, which the calling thread has to itself.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use libzfs_sys::{Libzfs, libzfs_handle, zfs_handle, zfs_type};

use super::Zfs;
use super::error::{Error, c_name, errno_of_libzfs};
use super::list::List;
use super::nvlist::NvList;

/// How many handles wait for threads to come; those of more are closed.
const IDLE: usize = 8;

/// Handles whose threads have ended.
static WAITING: Mutex<Vec<Raw>> = Mutex::new(Vec::new());

/// The library writes its tables of properties, the same each time, when a handle is made.
static MAKING: Mutex<()> = Mutex::new(());

thread_local! {
    static MINE: RefCell<Mine> = const { RefCell::new(Mine(None)) };
}

/// A handle that nobody else has. It has no ties to a thread but that it may not be used by two.
#[derive(Debug)]
struct Raw(NonNull<libzfs_handle>, &'static Libzfs);

// SAFETY: libzfs keeps all state of a handle in it, and none by thread.
unsafe impl Send for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is valid and used no more, nor is any dataset that it opened.
        unsafe { (self.1.libzfs_fini)(self.0.as_ptr()) };
    }
}

/// The thread's handle, while it is not in use.
#[derive(Debug)]
struct Mine(Option<Raw>);

impl Drop for Mine {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < IDLE {
                waiting.push(handle);
            }
        }
    }
}

/// The thread's handle, in use.
#[derive(Debug)]
pub(super) struct Handle {
    raw: Option<Raw>,
    library: &'static Libzfs,
    pointer: NonNull<libzfs_handle>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let raw = self.raw.take();
        // While the thread ends, and in a call within a call, the handle is closed instead.
        let _ = MINE.try_with(|mine| {
            if let Ok(mut mine) = mine.try_borrow_mut()
                && mine.0.is_none()
            {
                mine.0 = raw;
            }
        });
    }
}

impl Zfs {
    /// The thread's handle.
    pub(super) fn handle(&'static self, verb: &'static str) -> Result<Handle, Error> {
        let mine = MINE.try_with(|mine| mine.try_borrow_mut().ok()?.0.take()).ok().flatten();
        let waiting = || WAITING.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let raw = match mine.or_else(waiting) {
            Some(raw) => raw,
            None => self.make(verb)?,
        };
        Ok(Handle { pointer: raw.0, raw: Some(raw), library: &self.libzfs })
    }

    fn make(&'static self, verb: &'static str) -> Result<Raw, Error> {
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: it has no arguments, and only one thread at a time is here.
        let handle = unsafe { (self.libzfs.libzfs_init)() };
        let Some(handle) = NonNull::new(handle) else {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            return Err(Error::new(verb, "", errno).detail("libzfs does not start"));
        };
        // SAFETY: the handle is valid, and only this thread has it.
        unsafe { (self.libzfs.libzfs_print_on_error)(handle.as_ptr(), 0) };
        Ok(Raw(handle, &self.libzfs))
    }
}

impl Handle {
    pub(super) fn library(&self) -> &'static Libzfs {
        self.library
    }

    pub(super) fn as_ptr(&self) -> *mut libzfs_handle {
        self.pointer.as_ptr()
    }

    /// Opens a dataset or snapshot, and reads its properties.
    pub(super) fn open(&self, verb: &'static str, name: &str) -> Result<Dataset<'_>, Error> {
        let c = c_name(verb, name)?;
        let types = zfs_type::FILESYSTEM | zfs_type::VOLUME | zfs_type::SNAPSHOT;
        // SAFETY: the handle is valid and this thread's, the name a C string.
        let dataset = unsafe { (self.library.zfs_open)(self.as_ptr(), c.as_ptr(), types) };
        match NonNull::new(dataset) {
            Some(dataset) => Ok(Dataset { library: self.library, dataset, handle: PhantomData }),
            None => Err(self.error(verb, name)),
        }
    }

    /// What went wrong in the last call.
    pub(super) fn error(&self, verb: &'static str, object: &str) -> Error {
        // SAFETY: the handle is valid and this thread's.
        let errno = unsafe { (self.library.libzfs_errno)(self.as_ptr()) };
        // SAFETY: as above.
        let text = unsafe { (self.library.libzfs_error_description)(self.as_ptr()) };
        let text = text_at(text);
        let known = errno_of_libzfs(errno);
        // What the handle knows of the pools may be why; not where the kernel knows of no such dataset.
        if known != libc::ENOENT {
            self.forget_pools();
        }
        let errno = match text.as_deref() {
            // Its number, `EZFS_POOLREADONLY`, is not the same in all versions.
            Some("pool is read-only") => libc::EROFS,
            _ => known,
        };
        let error = Error::new(verb, object, errno);
        match text {
            Some(text) => error.detail(text),
            None => error,
        }
    }

    /// The handle reads the pools' state anew when it next needs it.
    pub(super) fn forget_pools(&self) {
        // SAFETY: the handle is valid and this thread's. Open datasets have their pool's handle, too,
        // but use it in calls that change them alone; after those they are closed.
        unsafe { (self.library.zpool_free_handles)(self.as_ptr()) };
    }
}

/// An open dataset or snapshot, with its properties as they were then.
#[derive(Debug)]
pub(super) struct Dataset<'h> {
    library: &'static Libzfs,
    dataset: NonNull<zfs_handle>,
    handle: PhantomData<&'h Handle>,
}

impl Drop for Dataset<'_> {
    fn drop(&mut self) {
        // SAFETY: the dataset is valid, ours, and not used any more.
        unsafe { (self.library.zfs_close)(self.as_ptr()) };
    }
}

impl Dataset<'_> {
    pub(super) fn as_ptr(&self) -> *mut zfs_handle {
        self.dataset.as_ptr()
    }

    pub(super) fn name(&self) -> String {
        // SAFETY: the dataset is valid.
        text_at(unsafe { (self.library.zfs_get_name)(self.as_ptr()) }).unwrap_or_default()
    }

    pub(super) fn is_filesystem(&self) -> bool {
        // SAFETY: the dataset is valid.
        let kind = unsafe { (self.library.zfs_get_type)(self.as_ptr()) };
        kind == zfs_type::FILESYSTEM
    }

    /// Its properties, each a list with `value` and maybe `source`.
    pub(super) fn properties(&self, nvpair: &'static libzfs_sys::Nvpair) -> Option<List<'_>> {
        // SAFETY: the dataset is valid.
        let list = unsafe { (self.library.zfs_get_all_props)(self.as_ptr()) };
        // SAFETY: the list is the dataset's, and lives as long.
        unsafe { List::from_raw(nvpair, list) }
    }
}

/// Which datasets below another are visited.
pub(super) enum Below {
    /// File systems and volumes, by name alone where the library can.
    Names,
    /// File systems and volumes with their properties.
    Datasets,
    /// Snapshots with their properties.
    Snapshots,
}

impl Handle {
    /// Calls `visit` with each dataset right below.
    pub(super) fn each(
        &self,
        verb: &'static str,
        name: &str,
        below: &Below,
        mut visit: impl FnMut(&Dataset<'_>),
    ) -> Result<(), Error> {
        let parent = self.open(verb, name)?;
        let mut visit: &mut dyn FnMut(&Dataset<'_>) = &mut |dataset| visit(dataset);
        let mut visitor = Visitor { library: self.library, visit: &mut visit };
        let data = (&raw mut visitor).cast::<c_void>();
        let (library, parent) = (self.library, parent.as_ptr());
        let result = match (below, library.zfs_iter_filesystems_v2) {
            (Below::Names, Some(iterate)) => {
                // SAFETY: the parent is valid and this thread's; `visited` gets `data`, which lives until
                // the call is over, and owns each dataset that it gets.
                unsafe { iterate(parent, libzfs_sys::ZFS_ITER_SIMPLE, visited, data) }
            }
            (Below::Names | Below::Datasets, _) => {
                // SAFETY: as above.
                unsafe { (library.zfs_iter_filesystems)(parent, visited, data) }
            }
            (Below::Snapshots, _) => {
                // SAFETY: as above.
                unsafe { (library.zfs_iter_snapshots)(parent, 0, visited, data, 0, 0) }
            }
        };
        if result == 0 { Ok(()) } else { Err(self.error(verb, name)) }
    }
}

/// What `visited` gets from `each`.
struct Visitor<'a> {
    library: &'static Libzfs,
    visit: &'a mut dyn FnMut(&Dataset<'_>),
}

/// The `zfs_iter_f` of all iterations.
unsafe extern "C" fn visited(dataset: *mut zfs_handle, data: *mut c_void) -> c_int {
    // SAFETY: `each` has passed a visitor that lives until it is over, and calls nothing else with it.
    let visitor = unsafe { &mut *data.cast::<Visitor<'_>>() };
    if let Some(dataset) = NonNull::new(dataset) {
        let dataset = Dataset { library: visitor.library, dataset, handle: PhantomData };
        (visitor.visit)(&dataset);
    }
    0
}

/// The text that a library returned, if it did.
pub(super) fn text_at(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the libraries' texts are C strings that live until their next call, and are copied here.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// A list that libzfs has made for its caller.
pub(super) fn made(zfs: &Zfs, list: *mut libzfs_sys::nvlist) -> Option<NvList> {
    // SAFETY: the callers pass what libzfs made for them, or its null.
    unsafe { NvList::from_raw(zfs.nvpair, list) }
}
