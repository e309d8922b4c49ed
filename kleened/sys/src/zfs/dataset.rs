//! Datasets, snapshots, holds and bookmarks, by libzfs_core: each call is atomic, and safe from any
//! thread. Names are full ones, as in `tank/data@monday`.

use std::ffi::{c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libzfs_sys::{LZC_DATASET_TYPE_ZFS, nvlist};

use super::Zfs;
use super::error::{Error, Item, c_name, c_text};
use super::list::{List, Value};
use super::nvlist::NvList;

/// A bookmark: what remains of a snapshot, and what an increment can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// The part after `#`.
    pub name: String,
    /// Of the snapshot that it was made of.
    pub guid: u64,
    /// The transaction group of that snapshot.
    pub createtxg: u64,
    /// When that snapshot was made, in seconds since 1970.
    pub creation: u64,
}

/// What a channel program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Lua instructions, at most 100 million.
    pub instructions: u64,
    /// Bytes of memory, at most 100 MiB; as much is allocated for the result.
    pub memory: u64,
}

impl Default for Limits {
    /// Those of `zfs program`.
    fn default() -> Self {
        Self { instructions: 10_000_000, memory: 10 << 20 }
    }
}

impl Zfs {
    /// A file system is there, with these properties, and is not mounted. Numbers are numbers, in
    /// properties that are words, too: [`Zfs::check_properties`] makes them of text. User properties are
    /// text.
    ///
    /// # Errors
    ///
    /// `Exists`; `NotFound` without a parent; `Invalid` for a name or a property; `TooLarge` for a user
    /// property of more than 8,191 bytes; `QuotaExceeded`, `NoSpace`. Then nothing is there. Not safe to
    /// repeat blindly: one that took effect says `Exists`.
    pub fn create(&self, name: &str, properties: &NvList) -> Result<(), Error> {
        let c = c_name("create", name)?;
        let create = self.core.lzc_create;
        let properties = properties.as_ptr();
        // SAFETY: the name is a C string, the list is valid and only read, there is no key, and
        // libzfs_core was initialised.
        let errno =
            unsafe { create(c.as_ptr(), LZC_DATASET_TYPE_ZFS, properties, ptr::null_mut(), 0) };
        done("create", name, errno)
    }

    /// A file system is there that begins as the snapshot `origin`, with these properties.
    ///
    /// # Errors
    ///
    /// As [`Zfs::create`]; `CrossPool`.
    pub fn clone_from(&self, name: &str, origin: &str, properties: &NvList) -> Result<(), Error> {
        let (c, origin) = (c_name("clone to", name)?, c_name("clone", origin)?);
        let clone = self.core.lzc_clone;
        // SAFETY: as in `create`.
        let errno = unsafe { clone(c.as_ptr(), origin.as_ptr(), properties.as_ptr()) };
        done("clone to", name, errno)
    }

    /// All these snapshots are there, made in one transaction, with these user properties.
    ///
    /// # Errors
    ///
    /// `Exists` and others, with an item for each snapshot that is to blame; `CrossPool` where they are
    /// not of one pool. Then none is there.
    pub fn snapshot(&self, names: &[&str], properties: &NvList) -> Result<(), Error> {
        const VERB: &str = "snapshot";
        let set = set(VERB, names)?;
        let snapshot = self.core.lzc_snapshot;
        self.many(VERB, names, |failed| {
            // SAFETY: the lists are valid and only read; `failed` is a place for one.
            unsafe { snapshot(set.as_ptr(), properties.as_ptr(), failed) }
        })
    }

    /// The file system without children and snapshots, or the snapshot, is gone.
    ///
    /// # Errors
    ///
    /// `Busy` while it is mounted; `Exists` while it has children or snapshots; `NotFound`.
    pub fn destroy(&self, name: &str) -> Result<(), Error> {
        let c = c_name("destroy", name)?;
        // SAFETY: as in `create`.
        done("destroy", name, unsafe { (self.core.lzc_destroy)(c.as_ptr()) })
    }

    /// All these snapshots are gone, in one transaction; ones that were not there are passed over. With
    /// `defer`, those that are held or cloned go with the last hold or clone.
    ///
    /// # Errors
    ///
    /// `Busy` (held) and `Exists` (cloned), with an item for each snapshot that is to blame. Then all are
    /// there.
    pub fn destroy_snapshots(&self, names: &[&str], defer: bool) -> Result<(), Error> {
        const VERB: &str = "destroy snapshots";
        let set = set(VERB, names)?;
        let destroy = self.core.lzc_destroy_snaps;
        self.many(VERB, names, |failed| {
            // SAFETY: as in `snapshot`.
            unsafe { destroy(set.as_ptr(), defer.into(), failed) }
        })
    }

    /// The dataset or snapshot has the new name, its children with it. Mounts stay where they are.
    ///
    /// # Errors
    ///
    /// `NotFound`, also for the new parent; `Exists`; `CrossPool`; `Invalid`.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (c, new) = (c_name("rename", from)?, c_name("rename to", to)?);
        // SAFETY: as in `create`.
        let errno = unsafe { (self.core.lzc_rename)(c.as_ptr(), new.as_ptr()) };
        done("rename", &format!("{from} to {to}"), errno)
    }

    /// The file system is as its snapshot `snapshot`, which is its newest.
    ///
    /// # Errors
    ///
    /// `Exists` where there is a newer snapshot or bookmark; `Invalid` where the snapshot is another's;
    /// `Busy`.
    pub fn rollback_to(&self, name: &str, snapshot: &str) -> Result<(), Error> {
        let (c, to) = (c_name("roll back", name)?, c_name("roll back to", snapshot)?);
        // SAFETY: as in `create`.
        let errno = unsafe { (self.core.lzc_rollback_to)(c.as_ptr(), to.as_ptr()) };
        done("roll back", &format!("{name} to {snapshot}"), errno)
    }

    /// The clone depends on its origin no more; the origin's file system depends on it instead.
    ///
    /// # Errors
    ///
    /// `Exists` where both have a snapshot of one name, which is the item; `Invalid` where it is no clone.
    pub fn promote(&self, name: &str) -> Result<(), Error> {
        let c = c_name("promote", name)?;
        let mut conflict = [0 as c_char; 256];
        let (buffer, size) = (conflict.as_mut_ptr(), conflict.len() as c_int);
        // SAFETY: the name is a C string, and the buffer has that size.
        let errno = unsafe { (self.core.lzc_promote)(c.as_ptr(), buffer, size) };
        let bytes: Vec<u8> = conflict.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
        let items = if errno == libc::EEXIST && !bytes.is_empty() {
            vec![Item { name: String::from_utf8_lossy(&bytes).into_owned(), errno }]
        } else {
            Vec::new()
        };
        done("promote", name, errno).map_err(|error| error.items(items))
    }

    /// Each of these snapshots is held under its tag, so that it can't be destroyed; all in one
    /// transaction. With `cleanup`, an open `/dev/zfs`, the holds go when that is closed.
    ///
    /// # Errors
    ///
    /// `Exists` and others, with an item for each that is to blame; then none is held. Snapshots that are
    /// not there are items of a `NotFound`; then the others are held.
    pub fn hold(
        &self,
        holds: &[(&str, &str)],
        cleanup: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        const VERB: &str = "hold";
        let mut list = NvList::new()?;
        for (snapshot, tag) in holds {
            c_name(VERB, snapshot)?;
            list.put_text(snapshot, tag)?;
        }
        let names: Vec<&str> = holds.iter().map(|hold| hold.0).collect();
        let fd = cleanup.map_or(-1, |fd| fd.as_raw_fd());
        let hold = self.core.lzc_hold;
        self.many(VERB, &names, |failed| {
            // SAFETY: as in `snapshot`.
            unsafe { hold(list.as_ptr(), fd, failed) }
        })
    }

    /// None of these snapshots is held under its tag; all in one transaction.
    ///
    /// # Errors
    ///
    /// Holds that are not there are items of a `NotFound`; then the others are released.
    pub fn release(&self, holds: &[(&str, &str)]) -> Result<(), Error> {
        const VERB: &str = "release";
        let mut list = NvList::new()?;
        for (snapshot, _) in holds {
            c_name(VERB, snapshot)?;
            let mut tags = NvList::new()?;
            for (_, tag) in holds.iter().filter(|hold| hold.0 == *snapshot) {
                tags.put_flag(tag)?;
            }
            list.put_list(snapshot, &tags)?;
        }
        let names: Vec<&str> = holds.iter().map(|hold| hold.0).collect();
        let release = self.core.lzc_release;
        self.many(VERB, &names, |failed| {
            // SAFETY: as in `snapshot`.
            unsafe { release(list.as_ptr(), failed) }
        })
    }

    /// The tags under which the snapshot is held, and since when, in seconds since 1970.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn holds(&self, snapshot: &str) -> Result<Vec<(String, u64)>, Error> {
        let c = c_name("list the holds of", snapshot)?;
        let get = self.core.lzc_get_holds;
        let list = self.list("list the holds of", snapshot, |list| {
            // SAFETY: the name is a C string, and `list` a place for a list.
            unsafe { get(c.as_ptr(), list) }
        })?;
        Ok(list.iter().filter_map(|(tag, at)| Some((tag.into_owned(), at.number()?))).collect())
    }

    /// Each bookmark (`tank/data#monday`) of a snapshot or another bookmark is there; all in one
    /// transaction.
    ///
    /// # Errors
    ///
    /// `Exists` and others, with an item for each that is to blame. Then none is there.
    pub fn bookmark(&self, bookmarks: &[(&str, &str)]) -> Result<(), Error> {
        const VERB: &str = "bookmark";
        let mut list = NvList::new()?;
        for (bookmark, source) in bookmarks {
            c_name(VERB, bookmark)?;
            c_name(VERB, source)?;
            list.put_text(bookmark, source)?;
        }
        let names: Vec<&str> = bookmarks.iter().map(|bookmark| bookmark.0).collect();
        let make = self.core.lzc_bookmark;
        self.many(VERB, &names, |failed| {
            // SAFETY: as in `snapshot`.
            unsafe { make(list.as_ptr(), failed) }
        })
    }

    /// The bookmarks of a file system.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn bookmarks(&self, name: &str) -> Result<Vec<Bookmark>, Error> {
        const VERB: &str = "list the bookmarks of";
        let c = c_name(VERB, name)?;
        let mut properties = NvList::new()?;
        for property in ["guid", "createtxg", "creation"] {
            properties.put_flag(property)?;
        }
        let get = self.core.lzc_get_bookmarks;
        let list = self.list(VERB, name, |list| {
            // SAFETY: the name is a C string, the list valid, and `list` a place for one.
            unsafe { get(c.as_ptr(), properties.as_ptr(), list) }
        })?;
        let bookmark = |(name, value): (std::borrow::Cow<'_, str>, Value<'_>)| {
            let properties = value.list()?;
            let number = |property| List::number(List::get(properties, property)?.list()?, "value");
            Some(Bookmark {
                name: name.into_owned(),
                guid: number("guid")?,
                createtxg: number("createtxg")?,
                creation: number("creation")?,
            })
        };
        Ok(list.iter().filter_map(bookmark).collect())
    }

    /// None of these bookmarks is there; ones that were not are passed over.
    ///
    /// # Errors
    ///
    /// With an item for each that is to blame. Then all are there.
    pub fn destroy_bookmarks(&self, names: &[&str]) -> Result<(), Error> {
        const VERB: &str = "destroy bookmarks";
        let set = set(VERB, names)?;
        let destroy = self.core.lzc_destroy_bookmarks;
        self.many(VERB, names, |failed| {
            // SAFETY: as in `snapshot`.
            unsafe { destroy(set.as_ptr(), failed) }
        })
    }

    /// What the channel program returned, under `return`. With `sync` it may change things, and all that
    /// it changes is one transaction; it holds up the others of the pool as long as it runs. What it
    /// gets as `...` is `arguments`.
    ///
    /// # Errors
    ///
    /// What the program raised, as the detail; what it changed before that stays changed. `Invalid` for
    /// one that is no program, `TooLarge` where its result is.
    pub fn channel_program(
        &self,
        pool: &str,
        program: &str,
        arguments: &NvList,
        limits: Limits,
        sync: bool,
    ) -> Result<NvList, Error> {
        const VERB: &str = "run a channel program in";
        let (c, text) = (c_name(VERB, pool)?, c_text(VERB, pool, program)?);
        // The library allocates as much as the limit says, and the kernel takes no more.
        let (instructions, memory) =
            (limits.instructions.min(100_000_000), limits.memory.clamp(1 << 16, 100 << 20));
        let run =
            if sync { self.core.lzc_channel_program } else { self.core.lzc_channel_program_nosync };
        let mut list = ptr::null_mut();
        let arguments = arguments.as_ptr();
        // SAFETY: the texts are C strings, the list is valid, and `list` a place for one.
        let errno = unsafe {
            run(c.as_ptr(), text.as_ptr(), instructions, memory, arguments, &raw mut list)
        };
        // SAFETY: the call has made the list for its caller, or left the null.
        let list = unsafe { NvList::from_raw(self.nvpair, list) };
        match list {
            Some(list) if errno == 0 => Ok(list),
            list => {
                let error = Error::new(VERB, pool, errno);
                let said = list.as_ref().and_then(|list| list.text("error"));
                Err(said.map_or(error.clone(), |said| error.detail(said)))
            }
        }
    }

    /// Everything that was changed in the pool before is on its devices.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn sync(&self, pool: &str) -> Result<(), Error> {
        let c = c_name("sync", pool)?;
        let mut arguments = NvList::new()?;
        // Not where nothing was changed.
        arguments.put_bool("force", false)?;
        let sync = self.core.lzc_sync;
        // SAFETY: the name is a C string, the list valid, and the result is not used by the call.
        done("sync", pool, unsafe { sync(c.as_ptr(), arguments.as_ptr(), ptr::null_mut()) })
    }

    /// Runs a call for many objects, and reads its list of those that failed.
    fn many(
        &self,
        verb: &'static str,
        names: &[&str],
        call: impl FnOnce(*mut *mut nvlist) -> c_int,
    ) -> Result<(), Error> {
        let mut failed = ptr::null_mut();
        let mut errno = call(&raw mut failed);
        // SAFETY: the call has made the list for its caller, or left the null.
        let failed = unsafe { NvList::from_raw(self.nvpair, failed) };
        let mut items: Vec<Item> = failed
            .iter()
            .flat_map(|list| list.view().iter())
            .flat_map(|(name, value)| items(&name, &value))
            .collect();
        if errno != libc::EAGAIN {
            // Two snapshots of a dataset don't go into one transaction group. The kernel tries again by
            // itself, and leaves the first try in the list.
            items.retain(|item| item.errno != libc::EAGAIN);
        }
        if errno == 0 {
            errno = items.first().map_or(0, |item| item.errno);
        }
        let object = match names {
            [] => String::new(),
            [name] => (*name).to_owned(),
            [name, others @ ..] => format!("{name} and {} more", others.len()),
        };
        done(verb, &object, errno).map_err(|error| error.items(items))
    }

    /// Runs a call that returns a list.
    fn list(
        &self,
        verb: &'static str,
        name: &str,
        call: impl FnOnce(*mut *mut nvlist) -> c_int,
    ) -> Result<NvList, Error> {
        let mut list = ptr::null_mut();
        let errno = call(&raw mut list);
        // SAFETY: the call has made the list for its caller, or left the null.
        let list = unsafe { NvList::from_raw(self.nvpair, list) };
        done(verb, name, errno)?;
        list.map_or_else(NvList::new, Ok)
    }
}

/// What failed under one name: an error number, or a list of them by tag.
fn items(name: &str, value: &Value<'_>) -> Vec<Item> {
    match value {
        Value::Integer(errno) => {
            vec![Item { name: name.to_owned(), errno: (*errno).try_into().unwrap_or(libc::EIO) }]
        }
        Value::List(tags) => {
            tags.iter().flat_map(|(tag, value)| items(&format!("{name} {tag}"), &value)).collect()
        }
        _ => Vec::new(),
    }
}

/// The names as a set.
fn set(verb: &'static str, names: &[&str]) -> Result<NvList, Error> {
    let mut list = NvList::new()?;
    for name in names {
        c_name(verb, name)?;
        list.put_flag(name)?;
    }
    Ok(list)
}

pub(super) fn done(verb: &'static str, object: &str, errno: c_int) -> Result<(), Error> {
    if errno == 0 { Ok(()) } else { Err(Error::new(verb, object, errno)) }
}
