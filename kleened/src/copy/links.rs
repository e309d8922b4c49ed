//! Files with several names.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError};

use kleened_sys::fs::Attributes;

use super::directory::Directory;

/// Where the copies of files are that have further names to come.
#[derive(Default)]
pub(super) struct Links(Mutex<HashMap<(u64, u64), Link>>);

struct Link {
    directory: Arc<Directory>,
    name: CString,
    /// Names not seen yet; the entry goes with the last.
    left: u64,
}

/// The answer to a name of a file.
pub(super) enum Name<T> {
    /// The first one: made.
    First(T),
    /// A further one of the file that is at this name already.
    Further(Arc<Directory>, CString),
}

impl Links {
    /// Calls `make` for the first name of a file, under the lock: whoever comes with the next name
    /// finds the file there, if not its content, which the link does not need.
    pub(super) fn name<T, E>(
        &self,
        attributes: &Attributes,
        directory: &Arc<Directory>,
        name: &CStr,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Name<T>, E> {
        if attributes.links < 2 {
            return Ok(Name::First(make()?));
        }
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match links.entry(attributes.id) {
            Entry::Occupied(mut known) => {
                let link = known.get_mut();
                link.left -= 1;
                let (at, as_name) = (link.directory.clone(), link.name.clone());
                if link.left == 0 {
                    known.remove();
                }
                Ok(Name::Further(at, as_name))
            }
            Entry::Vacant(new) => {
                let made = make()?;
                let directory = directory.clone();
                new.insert(Link { directory, name: name.to_owned(), left: attributes.links - 1 });
                Ok(Name::First(made))
            }
        }
    }
}
