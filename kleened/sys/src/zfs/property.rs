//! Properties, native and of users, and the datasets that have them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr;

use libzfs_sys::zfs_type;

use super::Zfs;
use super::error::{Error, c_name, c_text};
use super::handle::{Below, Dataset, made};
use super::list::{List, Value};
use super::nvlist::NvList;

/// A property of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// What it is.
    pub value: PropertyValue,
    /// Whence it is.
    pub source: Source,
}

/// The value of a property: numbers are numbers, and so are the words of native ones, as in
/// `compression`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// A number, or a word of a native property.
    Number(u64),
    /// A text. What is not UTF-8 is replaced.
    Text(String),
    /// A list, of a property that is none of these.
    Other,
}

/// Whence a property is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It can't be set: a fact.
    Fact,
    /// Nobody has set it.
    Default,
    /// It was set on this dataset.
    Local,
    /// It came to this dataset with a stream.
    Received,
    /// It is that of this dataset above.
    Inherited(String),
}

impl Source {
    /// Whether it is the dataset's own, and not a parent's.
    #[must_use]
    pub const fn is_own(&self) -> bool {
        matches!(self, Self::Local | Self::Received)
    }
}

/// The properties of a dataset, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Property>);

impl Properties {
    /// The property with that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Property> {
        self.0.get(name)
    }

    /// The number with that name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)?.value {
            PropertyValue::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The text with that name.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            PropertyValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the dataset is a file system, where `type` was read.
    #[must_use]
    pub fn is_file_system(&self) -> bool {
        /// `dmu_objset_type_t`.
        const FILE_SYSTEM: u64 = 2;
        self.number("type") == Some(FILE_SYSTEM)
    }

    /// Whether the dataset is encrypted and its key not loaded, where `keystatus` was read.
    #[must_use]
    pub fn lacks_key(&self) -> bool {
        /// `zfs_keystatus_t`.
        const UNAVAILABLE: u64 = 1;
        self.number("keystatus") == Some(UNAVAILABLE)
    }

    /// The text with that name, where it is the dataset's own, and not inherited.
    #[must_use]
    pub fn own_text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|property| property.source.is_own())?;
        self.text(name)
    }

    /// Every property, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Property)> {
        self.0.iter().map(|(name, property)| (name.as_str(), property))
    }

    /// What the library has of the dataset with that name, as far as it is wanted.
    fn read(dataset: &str, list: List<'_>, wanted: &[&str]) -> Self {
        let property = |name: &str, value: &Value<'_>| {
            let fields = value.list()?;
            Some((name.to_owned(), Property::read(dataset, fields)?))
        };
        if wanted.is_empty() {
            return Self(list.iter().filter_map(|(name, value)| property(&name, &value)).collect());
        }
        Self(wanted.iter().filter_map(|name| property(name, &list.get(name)?)).collect())
    }
}

impl Property {
    fn read(dataset: &str, fields: List<'_>) -> Option<Self> {
        let value = match fields.get("value")? {
            Value::Text(text) => PropertyValue::Text(text.to_string_lossy().into_owned()),
            value => value.number().map_or(PropertyValue::Other, PropertyValue::Number),
        };
        let source = match fields.get("source") {
            None => Source::Fact,
            Some(Value::Text(source)) => match source.to_string_lossy().as_ref() {
                "" => Source::Default,
                "$recvd" => Source::Received,
                source if source == dataset => Source::Local,
                source => Source::Inherited(source.to_owned()),
            },
            Some(_) => return None,
        };
        Some(Self { value, source })
    }
}

/// A dataset and its properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its full name.
    pub name: String,
    /// Its properties, as far as they were wanted.
    pub properties: Properties,
}

/// A snapshot, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The part after `@`.
    pub name: String,
    /// Its number, which its copies on other pools share.
    pub guid: u64,
    /// The transaction group that it is from: they count up.
    pub createtxg: u64,
    /// When it was made, in seconds since 1970.
    pub creation: u64,
    /// Bytes that only it has.
    pub used: u64,
    /// Bytes that it refers to.
    pub referenced: u64,
    /// By how many tags it is held.
    pub holds: u64,
    /// It goes with the last of its holds and clones.
    pub deferred: bool,
    /// The full names of its clones.
    pub clones: Vec<String>,
    /// Its properties of users, also those that it inherits.
    pub user: Properties,
}

impl Zfs {
    /// The full names of the file systems right below, in no order. Fast: with OpenZFS 2.2 and later
    /// nothing is read of them but the name.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn children(&'static self, name: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let handle = self.handle("list")?;
        handle.each("list", name, &Below::Names, |dataset| {
            if dataset.is_filesystem() {
                names.push(dataset.name());
            }
        })?;
        Ok(names)
    }

    /// The file systems right below, with those of their properties that are wanted; all where none is
    /// named. One call of the kernel for each, one after another.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn describe_children(
        &'static self,
        name: &str,
        wanted: &[&str],
    ) -> Result<Vec<Described>, Error> {
        let mut found = Vec::new();
        let handle = self.handle("list")?;
        handle.each("list", name, &Below::Datasets, |dataset| {
            if dataset.is_filesystem() {
                found.push(self.described(dataset, wanted));
            }
        })?;
        Ok(found)
    }

    /// The properties of a dataset or snapshot, native and of users, each with its source. All where
    /// none is wanted by name. A native one that nobody has set, here or above, is not among them.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn properties(&'static self, name: &str, wanted: &[&str]) -> Result<Properties, Error> {
        let handle = self.handle("read the properties of")?;
        let dataset = handle.open("read the properties of", name)?;
        Ok(self.described(&dataset, wanted).properties)
    }

    fn described(&self, dataset: &Dataset<'_>, wanted: &[&str]) -> Described {
        let name = dataset.name();
        let list = dataset.properties(self.nvpair);
        let properties = list.map(|list| Properties::read(&name, list, wanted)).unwrap_or_default();
        Described { name, properties }
    }

    /// Whether there is such a dataset or snapshot. That it could not be found out is an error.
    ///
    /// # Errors
    ///
    /// All but `NotFound`.
    pub fn exists(&'static self, name: &str) -> Result<bool, Error> {
        let handle = self.handle("look for")?;
        match handle.open("look for", name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == super::Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The word that a number of a native property stands for, as `lz4` of `compression`; `None` where it
    /// is only a number, or can't be found out.
    pub fn word(&'static self, property: &str, number: u64) -> Option<String> {
        let c = CString::new(property).ok()?;
        // It has the library's tables filled.
        let handle = self.handle("look up a word of").ok()?;
        let library = handle.library();
        // SAFETY: the property is a C string.
        let property = unsafe { (library.zfs_name_to_prop)(c.as_ptr()) };
        if property < 0 {
            return None;
        }
        let mut word = ptr::null();
        // SAFETY: it is a property, and there is room for a pointer.
        let result = unsafe { (library.zfs_prop_index_to_string)(property, number, &raw mut word) };
        if result != 0 || word.is_null() {
            return None;
        }
        // SAFETY: it is a C string of the library's own.
        Some(unsafe { CStr::from_ptr(word) }.to_string_lossy().into_owned())
    }

    /// The snapshots of a file system, oldest first.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn snapshots(&'static self, name: &str) -> Result<Vec<Snapshot>, Error> {
        let mut found = Vec::new();
        let handle = self.handle("list the snapshots of")?;
        handle.each("list the snapshots of", name, &Below::Snapshots, |dataset| {
            let full = dataset.name();
            let Some((_, name)) = full.split_once('@') else { return };
            let properties = dataset.properties(self.nvpair);
            let number = |property: &str| {
                properties.and_then(|list| list.get(property)?.list()?.number("value")).unwrap_or(0)
            };
            let clones = || properties?.get("clones")?.list()?.get("value")?.list();
            let user = properties.iter().flat_map(|list| list.iter());
            let user = user.filter_map(|(name, value)| {
                name.contains(':').then_some(())?;
                Some((name.clone().into_owned(), Property::read(&full, value.list()?)?))
            });
            found.push(Snapshot {
                deferred: number("defer_destroy") != 0,
                clones: clones()
                    .map(|list| list.iter().map(|(name, _)| name.into_owned()).collect())
                    .unwrap_or_default(),
                user: Properties(user.collect()),
                name: name.to_owned(),
                guid: number("guid"),
                createtxg: number("createtxg"),
                creation: number("creation"),
                used: number("used"),
                referenced: number("referenced"),
                holds: number("userrefs"),
            });
        })?;
        found.sort_by_key(|snapshot| snapshot.createtxg);
        Ok(found)
    }

    /// The dataset has these properties, set in one call: values as `zfs set` takes them, as text. A
    /// changed `mountpoint` moves the mount.
    ///
    /// # Errors
    ///
    /// `Invalid`, with what is wrong as the detail; `NoSpace` for a quota or reservation that does not
    /// fit; `NotFound`. Then none is set, but where it says otherwise. Safe to repeat.
    pub fn set(&'static self, name: &str, properties: &NvList) -> Result<(), Error> {
        const VERB: &str = "set properties of";
        let handle = self.handle(VERB)?;
        let result = {
            let dataset = handle.open(VERB, name)?;
            let set = handle.library().zfs_prop_set_list;
            // SAFETY: the dataset is valid and this thread's; the list is valid and only read.
            unsafe { set(dataset.as_ptr(), properties.as_ptr()) }
        };
        let result = if result == 0 { Ok(()) } else { Err(handle.error(VERB, name)) };
        handle.forget_pools();
        result
    }

    /// The property is again what the parent has, or the default. With `received`, it is what came with
    /// the stream.
    ///
    /// # Errors
    ///
    /// `Invalid` for a property that is not inherited, and for a user property that was not there;
    /// `NotFound`.
    pub fn inherit(&'static self, name: &str, property: &str, received: bool) -> Result<(), Error> {
        const VERB: &str = "inherit properties of";
        let c = c_text(VERB, name, property)?;
        let handle = self.handle(VERB)?;
        let result = {
            let dataset = handle.open(VERB, name)?;
            let inherit = handle.library().zfs_prop_inherit;
            // SAFETY: the dataset is valid and this thread's; the property is a C string.
            unsafe { inherit(dataset.as_ptr(), c.as_ptr(), received.into()) }
        };
        let result = if result == 0 { Ok(()) } else { Err(handle.error(VERB, name)) };
        handle.forget_pools();
        result
    }

    /// Properties of a file system to be made in that pool, as [`Zfs::create`] takes them, of those that
    /// `zfs create -o` takes.
    ///
    /// # Errors
    ///
    /// `Invalid`, with what is wrong as the detail.
    pub fn check_properties<'a>(
        &'static self,
        pool: &str,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<NvList, Error> {
        const VERB: &str = "use these properties in";
        let mut texts = NvList::new()?;
        for (name, value) in properties {
            texts.put_text(name, value)?;
        }
        let c = c_name(VERB, pool)?;
        let handle = self.handle(VERB)?;
        let library = handle.library();
        // SAFETY: the handle is valid and this thread's, the name a C string.
        let open = unsafe { (library.zpool_open_canfail)(handle.as_ptr(), c.as_ptr()) };
        if open.is_null() {
            return Err(handle.error(VERB, pool));
        }
        let (check, list) = (library.zfs_valid_proplist, texts.as_ptr());
        let (kind, dataset, text) = (zfs_type::FILESYSTEM, ptr::null_mut(), c"".as_ptr());
        // SAFETY: the handle, the pool and the list are valid; there need be no dataset.
        let checked = unsafe { check(handle.as_ptr(), kind, list, 0, dataset, open, 0, text) };
        // SAFETY: the pool is valid, and not used any more.
        unsafe { (library.zpool_close)(open) };
        made(self, checked).ok_or_else(|| handle.error(VERB, pool))
    }
}
