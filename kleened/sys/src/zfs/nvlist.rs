//! Lists of named, typed values: what every call takes and returns.

use std::borrow::Cow;
use std::ffi::{CString, c_char, c_int, c_uint};
use std::fmt;
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use libzfs_sys::{LoadError, NV_ENCODE_XDR, NV_UNIQUE_NAME, Nvpair, nvlist};

use super::error::{Error, c_text};
use super::list::{Iter, List, Value};

/// How deep lists may lie in each other. The kernel takes 20, and the libraries end the process where
/// it is more.
pub(super) const DEPTH: u8 = 16;

/// libnvpair, loaded once.
pub(super) fn library() -> Result<&'static Nvpair, LoadError> {
    static LIBRARY: OnceLock<Nvpair> = OnceLock::new();
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let loaded = Nvpair::load()?;
    // Another thread may have been first: the library is counted by the loader.
    Ok(LIBRARY.get_or_init(|| loaded))
}

/// A list of named, typed values, owned and freed when dropped. A name is there once: what is put
/// replaces what has the name.
pub struct NvList {
    pub(super) library: &'static Nvpair,
    pub(super) list: ptr::NonNull<nvlist>,
    /// How many lists lie in each other, this one included.
    pub(super) depth: u8,
}

// SAFETY: libnvpair keeps everything of a list in its memory, and nothing by thread.
unsafe impl Send for NvList {}
// SAFETY: changing a list takes `&mut`; reading one writes nothing but the caller's variables.
unsafe impl Sync for NvList {}

impl NvList {
    /// An empty list.
    ///
    /// # Errors
    ///
    /// libnvpair is not there, or no memory is.
    pub fn new() -> Result<Self, Error> {
        let library = library().map_err(|error| {
            Error::new("make a list of values", "", libc::ENOSYS).detail(error.to_string())
        })?;
        let mut list = ptr::null_mut();
        // SAFETY: `list` is a place for the pointer.
        let errno = unsafe { (library.nvlist_alloc)(&raw mut list, NV_UNIQUE_NAME, 0) };
        Self::own(library, list, errno)
    }

    /// Takes a list that a library has made for its caller.
    pub(super) fn own(
        library: &'static Nvpair,
        list: *mut nvlist,
        errno: c_int,
    ) -> Result<Self, Error> {
        let errno = if errno == 0 { libc::ENOMEM } else { errno };
        match ptr::NonNull::new(list) {
            Some(list) => Ok(Self { library, list, depth: 1 }),
            None => Err(Error::new("make a list of values", "", errno)),
        }
    }

    /// Takes a list that a call has returned, if it has.
    ///
    /// # Safety
    ///
    /// `list` is null, or a valid list that nobody else will free.
    pub(super) unsafe fn from_raw(library: &'static Nvpair, list: *mut nvlist) -> Option<Self> {
        let mut list = Self { library, list: ptr::NonNull::new(list)?, depth: 1 };
        list.depth = list.view().depth();
        Some(list)
    }

    pub(super) fn as_ptr(&self) -> *mut nvlist {
        self.list.as_ptr()
    }

    /// What is in it, to be read.
    #[must_use]
    pub fn view(&self) -> List<'_> {
        List::of(self)
    }

    /// The value with that name. Names with a zero byte have none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Value<'_>> {
        self.view().get(name)
    }

    /// The text with that name; `None` also where the value is no text, or not UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.text()
    }

    /// The number with that name, of any width; `None` also where the value is none, or negative.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.number()
    }

    /// The list with that name.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<List<'_>> {
        self.get(name)?.list()
    }

    /// Every name and value.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        self.view().iter()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.view().is_empty()
    }

    /// The name alone is in it, as in a set.
    ///
    /// # Errors
    ///
    /// As all that put something: a zero byte in a text, a name of more than 32,766 bytes, or no memory.
    pub fn put_flag(&mut self, name: &str) -> Result<(), Error> {
        let c = self.name(name)?;
        // SAFETY: the list is valid and ours; the name is a C string that is copied.
        let errno = unsafe { (self.library.nvlist_add_boolean)(self.as_ptr(), c.as_ptr()) };
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_bool(&mut self, name: &str, value: bool) -> Result<(), Error> {
        let c = self.name(name)?;
        let add = self.library.nvlist_add_boolean_value;
        // SAFETY: as in `put_flag`.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), value.into()) };
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_number(&mut self, name: &str, value: u64) -> Result<(), Error> {
        let c = self.name(name)?;
        // SAFETY: as in `put_flag`.
        let errno = unsafe { (self.library.nvlist_add_uint64)(self.as_ptr(), c.as_ptr(), value) };
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_integer(&mut self, name: &str, value: i64) -> Result<(), Error> {
        let c = self.name(name)?;
        // SAFETY: as in `put_flag`.
        let errno = unsafe { (self.library.nvlist_add_int64)(self.as_ptr(), c.as_ptr(), value) };
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_text(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let (c, value) = (self.name(name)?, c_text("put the value", name, value)?);
        let add = self.library.nvlist_add_string;
        // SAFETY: as in `put_flag`; the value is a C string that is copied, too.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), value.as_ptr()) };
        Self::put(name, errno)
    }

    /// A copy of `value` is in it.
    ///
    /// # Errors
    ///
    /// As [`Self::put_flag`], and where more than 16 lists would lie in each other.
    pub fn put_list(&mut self, name: &str, value: &Self) -> Result<(), Error> {
        let depth = value.depth.saturating_add(1);
        let c = self.name_at(name, depth)?;
        let add = self.library.nvlist_add_nvlist;
        // SAFETY: as in `put_flag`; `value` is another list, which is copied.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), value.as_ptr()) };
        self.depth = self.depth.max(depth);
        Self::put(name, errno)
    }

    /// Copies of `values` are in it.
    ///
    /// # Errors
    ///
    /// As [`Self::put_list`].
    pub fn put_lists(&mut self, name: &str, values: &[Self]) -> Result<(), Error> {
        let depth = values.iter().map(|v| v.depth).max().unwrap_or(0).saturating_add(1);
        let c = self.name_at(name, depth)?;
        let pointers: Vec<*const nvlist> = values.iter().map(|v| v.as_ptr().cast_const()).collect();
        let count = count(name, pointers.len())?;
        let add = self.library.nvlist_add_nvlist_array;
        // SAFETY: as in `put_flag`; the array has `count` valid lists, which are copied.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), pointers.as_ptr(), count) };
        self.depth = self.depth.max(depth);
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_numbers(&mut self, name: &str, values: &[u64]) -> Result<(), Error> {
        let (c, count) = (self.name(name)?, count(name, values.len())?);
        let add = self.library.nvlist_add_uint64_array;
        // SAFETY: as in `put_flag`; the array has `count` numbers, which are copied.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), values.as_ptr(), count) };
        Self::put(name, errno)
    }

    /// # Errors
    ///
    /// As [`Self::put_flag`].
    pub fn put_texts(&mut self, name: &str, values: &[&str]) -> Result<(), Error> {
        let (c, count) = (self.name(name)?, count(name, values.len())?);
        let texts: Vec<CString> = values
            .iter()
            .map(|text| c_text("put the value", name, text))
            .collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let add = self.library.nvlist_add_string_array;
        // SAFETY: as in `put_flag`; the array has `count` C strings, which are copied.
        let errno = unsafe { add(self.as_ptr(), c.as_ptr(), pointers.as_ptr(), count) };
        Self::put(name, errno)
    }

    /// Nothing has that name.
    pub fn remove(&mut self, name: &str) {
        if let Ok(c) = CString::new(name) {
            // SAFETY: as in `put_flag`. That nothing has the name is its only error.
            unsafe { (self.library.nvlist_remove_all)(self.as_ptr(), c.as_ptr()) };
        }
    }

    /// A copy.
    ///
    /// # Errors
    ///
    /// No memory is there.
    pub fn try_clone(&self) -> Result<Self, Error> {
        self.view().to_owned()
    }

    /// The bytes of the list as it is in streams: the same on every machine.
    ///
    /// # Errors
    ///
    /// No memory is there.
    pub fn pack(&self) -> Result<Vec<u8>, Error> {
        let (mut bytes, mut size) = (ptr::null_mut(), 0);
        let pack = self.library.nvlist_pack;
        // SAFETY: the list is valid; where `bytes` is null, the library allocates it.
        let errno = unsafe { pack(self.as_ptr(), &raw mut bytes, &raw mut size, NV_ENCODE_XDR, 0) };
        if errno != 0 || bytes.is_null() {
            return Err(Error::new("pack a list of values", "", errno));
        }
        // SAFETY: the library has allocated and filled that many bytes.
        let packed = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), size) }.to_vec();
        // SAFETY: it came from the default allocator, which is malloc, and is not used any more.
        unsafe { libc::free(bytes.cast()) };
        Ok(packed)
    }

    /// The list that these bytes are, which may come from anyone.
    ///
    /// # Errors
    ///
    /// They are none, or lists lie too deep in each other.
    pub fn unpack(bytes: &[u8]) -> Result<Self, Error> {
        let empty = Self::new()?;
        let bad = |why: &str| Error::new("unpack a list of values", "", libc::EINVAL).detail(why);
        // The first byte is the encoding. The machine's own is as trustworthy as the kernel, no stream is.
        if bytes.first() != Some(&1) || bytes.len() < 12 {
            return Err(bad("it is not in the encoding of streams"));
        }
        // Aligned for any type.
        let mut copy: Vec<u64> = bytes.chunks(8).map(word).collect();
        let mut list = ptr::null_mut();
        let unpack = empty.library.nvlist_unpack;
        // SAFETY: `copy` has that many bytes, and is the library's to change; nothing of it stays in
        // the list.
        let errno = unsafe { unpack(copy.as_mut_ptr().cast(), bytes.len(), &raw mut list, 0) };
        if errno != 0 {
            return Err(bad("it is damaged"));
        }
        // SAFETY: the library has made the list, and only this function has it.
        let list = unsafe { Self::from_raw(empty.library, list) };
        list.filter(|list| list.depth <= DEPTH)
            .ok_or_else(|| bad("lists lie too deep in each other"))
    }

    fn name(&self, name: &str) -> Result<CString, Error> {
        c_text("put a value named", name, name)
    }

    fn name_at(&self, name: &str, depth: u8) -> Result<CString, Error> {
        if depth > DEPTH {
            let error = Error::new("put the list", name, libc::EINVAL);
            return Err(error.detail("more than 16 lists lie in each other"));
        }
        self.name(name)
    }

    fn put(name: &str, errno: c_int) -> Result<(), Error> {
        if errno == 0 { Ok(()) } else { Err(Error::new("put the value", name, errno)) }
    }
}

/// Up to eight bytes, in memory as they are.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_ne_bytes(word)
}

fn count(name: &str, length: usize) -> Result<c_uint, Error> {
    c_uint::try_from(length).map_err(|_| Error::new("put the value", name, libc::E2BIG))
}

impl Drop for NvList {
    fn drop(&mut self) {
        // SAFETY: the list is valid, ours, and not used any more.
        unsafe { (self.library.nvlist_free)(self.as_ptr()) };
    }
}

impl fmt::Debug for NvList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

impl<'a> IntoIterator for &'a NvList {
    type Item = (Cow<'a, str>, Value<'a>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}
