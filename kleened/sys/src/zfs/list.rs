//! Reading lists of named, typed values.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::slice;

use libzfs_sys::{Nvpair, data_type, nvlist, nvpair};

use super::error::Error;
use super::nvlist::{DEPTH, NvList};

/// A list that is read: one of its own, or one in another.
#[derive(Clone, Copy)]
pub struct List<'a> {
    library: &'static Nvpair,
    list: ptr::NonNull<nvlist>,
    lifetime: PhantomData<&'a nvlist>,
}

impl<'a> List<'a> {
    /// What is in a list of its own.
    pub(super) fn of(list: &'a NvList) -> Self {
        Self { library: list.library, list: list.list, lifetime: PhantomData }
    }

    /// A list that someone else owns, if there is one.
    ///
    /// # Safety
    ///
    /// `list` is null, or a valid list that lives unchanged as long as `'a`.
    pub(super) unsafe fn from_raw(library: &'static Nvpair, list: *mut nvlist) -> Option<Self> {
        Some(Self { library, list: ptr::NonNull::new(list)?, lifetime: PhantomData })
    }

    /// A copy of its own.
    ///
    /// # Errors
    ///
    /// No memory is there.
    pub fn to_owned(self) -> Result<NvList, Error> {
        let mut list = ptr::null_mut();
        // SAFETY: the list is valid; `list` is a place for the pointer.
        let errno = unsafe { (self.library.nvlist_dup)(self.list.as_ptr(), &raw mut list, 0) };
        let mut copy = NvList::own(self.library, list, errno)?;
        copy.depth = self.depth();
        Ok(copy)
    }

    /// As [`NvList::get`].
    #[must_use]
    pub fn get(self, name: &str) -> Option<Value<'a>> {
        let name = CString::new(name).ok()?;
        let mut pair = ptr::null_mut();
        let lookup = self.library.nvlist_lookup_nvpair;
        // SAFETY: the list is valid, the name a C string, and `pair` a place for the pointer.
        let errno = unsafe { lookup(self.list.as_ptr(), name.as_ptr(), &raw mut pair) };
        (errno == 0).then(|| self.value(ptr::NonNull::new(pair)?))?
    }

    /// As [`NvList::text`].
    #[must_use]
    pub fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.text()
    }

    /// As [`NvList::number`].
    #[must_use]
    pub fn number(self, name: &str) -> Option<u64> {
        self.get(name)?.number()
    }

    /// Every name and value.
    #[must_use]
    pub fn iter(self) -> Iter<'a> {
        Iter { list: self, pair: ptr::null_mut() }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// How many lists lie in each other, this one included; more than [`DEPTH`] is one more.
    pub(super) fn depth(self) -> u8 {
        self.depth_below(DEPTH)
    }

    fn depth_below(self, left: u8) -> u8 {
        if left == 0 {
            return 1;
        }
        let below = self.iter().map(|(_, value)| match value {
            Value::List(list) => list.depth_below(left - 1),
            Value::Lists(lists) => {
                lists.into_iter().map(|list| list.depth_below(left - 1)).max().unwrap_or(0)
            }
            _ => 0,
        });
        below.max().unwrap_or(0) + 1
    }

    /// A list in this one.
    fn inner(self, list: *mut nvlist) -> Option<Self> {
        Some(Self { list: ptr::NonNull::new(list)?, ..self })
    }

    fn value(self, pair: ptr::NonNull<nvpair>) -> Option<Value<'a>> {
        let (library, pair) = (self.library, pair.as_ptr());
        // SAFETY: here and below, the pair is in the valid list, and each function writes a value of
        // its type only where the pair is of that type, and returns an error otherwise.
        let kind = unsafe { (library.nvpair_type)(pair) };
        macro_rules! read {
            ($function:ident, $initial:expr) => {{
                let mut value = $initial;
                // SAFETY: as above.
                let errno = unsafe { (library.$function)(pair, &raw mut value) };
                (errno == 0).then_some(value)?
            }};
            ($function:ident) => {{
                let (mut values, mut count) = (ptr::null_mut(), 0);
                // SAFETY: as above.
                let errno = unsafe { (library.$function)(pair, &raw mut values, &raw mut count) };
                let values = ptr::NonNull::new(values).unwrap_or(ptr::NonNull::dangling());
                // SAFETY: the pair has `count` aligned values, which live as long as the list; where
                // there is none, the pointer is not null and aligned.
                (errno == 0).then(|| unsafe { slice::from_raw_parts(values.as_ptr(), count as usize) })?
            }};
        }
        Some(match kind {
            data_type::BOOLEAN => Value::Flag,
            data_type::BOOLEAN_VALUE => Value::Bool(read!(nvpair_value_boolean_value, 0) != 0),
            data_type::BYTE => Value::Number(read!(nvpair_value_byte, 0).into()),
            data_type::UINT8 => Value::Number(read!(nvpair_value_uint8, 0).into()),
            data_type::UINT16 => Value::Number(read!(nvpair_value_uint16, 0).into()),
            data_type::UINT32 => Value::Number(read!(nvpair_value_uint32, 0).into()),
            data_type::UINT64 => Value::Number(read!(nvpair_value_uint64, 0)),
            data_type::INT8 => Value::Integer(read!(nvpair_value_int8, 0).into()),
            data_type::INT16 => Value::Integer(read!(nvpair_value_int16, 0).into()),
            data_type::INT32 => Value::Integer(read!(nvpair_value_int32, 0).into()),
            data_type::INT64 => Value::Integer(read!(nvpair_value_int64, 0)),
            data_type::STRING => Value::Text(c_str(read!(nvpair_value_string, ptr::null()))?),
            data_type::NVLIST => {
                Value::List(self.inner(read!(nvpair_value_nvlist, ptr::null_mut()))?)
            }
            data_type::BYTE_ARRAY => Value::Bytes(read!(nvpair_value_byte_array)),
            data_type::UINT8_ARRAY => Value::Bytes(read!(nvpair_value_uint8_array)),
            data_type::UINT64_ARRAY => Value::Numbers(read!(nvpair_value_uint64_array)),
            data_type::STRING_ARRAY => Value::Texts(
                read!(nvpair_value_string_array).iter().filter_map(|text| c_str(*text)).collect(),
            ),
            data_type::NVLIST_ARRAY => Value::Lists(
                read!(nvpair_value_nvlist_array)
                    .iter()
                    .filter_map(|list| self.inner(*list))
                    .collect(),
            ),
            other => Value::Other(other),
        })
    }
}

/// The C string at `text`, which is in a list that outlives `'a`.
fn c_str<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: libnvpair's strings end with a zero byte within their pair, which it checks when it
    // unpacks one.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

impl fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for List<'a> {
    type Item = (Cow<'a, str>, Value<'a>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The names and values of a list. In names, what is not UTF-8 is replaced.
#[derive(Clone)]
pub struct Iter<'a> {
    list: List<'a>,
    pair: *mut nvpair,
}

impl fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Cow<'a, str>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let library = self.list.library;
        loop {
            // SAFETY: the list is valid, and the pair null or its last.
            let pair = unsafe { (library.nvlist_next_nvpair)(self.list.list.as_ptr(), self.pair) };
            let found = ptr::NonNull::new(pair)?;
            self.pair = pair;
            // SAFETY: the pair is valid.
            let name = c_str(unsafe { (library.nvpair_name)(pair) });
            if let (Some(name), Some(value)) = (name, self.list.value(found)) {
                return Some((name.to_string_lossy(), value));
            }
        }
    }
}

/// A value of a list.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// The name alone.
    Flag,
    /// True or false.
    Bool(bool),
    /// An unsigned number of any width.
    Number(u64),
    /// A signed number of any width.
    Integer(i64),
    /// A text, which need not be UTF-8.
    Text(&'a CStr),
    /// A list.
    List(List<'a>),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Numbers of 64 bits.
    Numbers(&'a [u64]),
    /// Texts.
    Texts(Vec<&'a CStr>),
    /// Lists.
    Lists(Vec<List<'a>>),
    /// A type that nothing here uses, by its number.
    Other(c_int),
}

impl<'a> Value<'a> {
    /// The text; `None` also where it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => text.to_str().ok(),
            _ => None,
        }
    }

    /// The number, if it is one, and not negative.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The list.
    #[must_use]
    pub const fn list(&self) -> Option<List<'a>> {
        match self {
            Self::List(list) => Some(*list),
            _ => None,
        }
    }
}
