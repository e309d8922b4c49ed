//! What a crash left half done, finished or taken back.
//!
//! | found | means | done |
//! | --- | --- | --- |
//! | `commit/ID` | decided | made, then removed |
//! | `new/ID`, and a link to it | published | brought to its place |
//! | `new/ID` | nothing was decided | removed |
//! | `dead/ID` | destroyed | removed, with the dataset that the link is of |
//! | a dataset without a link | a person removed the link | left alone, logged |
//! | one link with two names | a renaming was cut off | the second name removed |
//! | two links to a dataset | a person copied one | left alone, logged |
//! | in an area, no link of ours | a person put it there | left alone |

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use kleened_sys::fs::{remove_tree, sync_dir};
use rustix::fs::{AtFlags, Dir as Listing};

use super::super::{Area, Error, Result};
use super::batch;
use super::store::{COMMIT, DATASETS, DEAD, Link, NEW, Store, read_link};

/// Nothing is half done afterwards. A repeat is safe, and so is a crash in it.
///
/// # Errors
///
/// [`Error::Io`]. What merely can't be removed is logged, and tried again at the next start.
pub(super) fn recover(store: &Store) -> Result<()> {
    for id in names(store.commit.as_fd(), COMMIT)? {
        batch::resume(store, &id)
            .map_err(|error| Error::io("finish the changes in", format!("{COMMIT}/{id}"), error))?;
    }
    let links = links(store)?;
    for (id, paths) in &links {
        if let [first, second, ..] = &**paths {
            tracing::warn!(id, first, second, "two names for one dataset; remove one link by hand");
        }
    }
    for id in names(store.new.as_fd(), NEW)? {
        if links.contains_key(&id) {
            rustix::fs::renameat(&store.new, &*id, &store.datasets, &*id)
                .map_err(|errno| Error::io("finish", format!("{NEW}/{id}"), errno))?;
            sync_dir(&store.datasets)
                .map_err(|error| Error::io("finish", format!("{NEW}/{id}"), error))?;
        } else if let Err(error) = remove_tree(store.new.as_fd(), &*id) {
            tracing::warn!(id, ?error, "cannot remove a draft");
        }
    }
    for name in names(store.dead.as_fd(), DEAD)? {
        if let Err(error) = remove_dead(store, &name, &links) {
            tracing::warn!(name, ?error, "cannot remove what is left of something destroyed");
        }
    }
    for id in names(store.datasets.as_fd(), DATASETS)? {
        if !links.contains_key(&id) && !is_dead(store, &id) {
            tracing::warn!(
                id,
                "a dataset has no name: somebody removed its link; link it again or remove it by hand"
            );
        }
    }
    Ok(())
}

fn remove_dead(store: &Store, name: &str, links: &HashMap<String, Vec<String>>) -> io::Result<()> {
    match read_link(store.dead.as_fd(), name)? {
        Some(Link::Dataset(id)) if !links.contains_key(&id) => store.bury(&id, name),
        // Somebody gave it a name again.
        Some(Link::Dataset(_)) => Ok(rustix::fs::unlinkat(&store.dead, name, AtFlags::empty())?),
        Some(Link::Foreign) => remove_tree(store.dead.as_fd(), name).map(drop),
        None => Ok(()),
    }
}

/// Whether it could not be removed just now, which was logged.
fn is_dead(store: &Store, id: &str) -> bool {
    let dead = names(store.dead.as_fd(), DEAD).unwrap_or_default();
    dead.iter().any(|name| {
        matches!(read_link(store.dead.as_fd(), name), Ok(Some(Link::Dataset(dead))) if dead == id)
    })
}

/// The names of every dataset that has any, by its id. Where `rename(2)` can't keep what is there, a
/// link gets its new name before it loses the old one: with both, it loses one now.
fn links(store: &Store) -> Result<HashMap<String, Vec<String>>> {
    let mut found = HashMap::<_, Vec<_>>::new();
    let mut seen = HashSet::new();
    let mut folders = Vec::new();
    for area in Area::ALL {
        folders.extend(store.folders(area)?);
    }
    for (folder, dir) in folders {
        for name in names(dir.as_fd(), &folder.to_string())? {
            let path = format!("{folder}/{name}");
            let failed = |error: io::Error| Error::io("look up", &path, error);
            let link = read_link(dir.as_fd(), &name).map_err(failed)?;
            if let Some(Link::Dataset(id)) = link {
                let about = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| failed(errno.into()))?;
                if !seen.insert((about.st_dev, about.st_ino)) {
                    rustix::fs::unlinkat(&dir, &*name, AtFlags::empty())
                        .map_err(|errno| Error::io("finish renaming", &path, errno))?;
                    sync_dir(&dir).map_err(failed)?;
                    continue;
                }
                found.entry(id).or_default().push(path);
            }
        }
    }
    Ok(found)
}

/// The names in a folder. What is no text is none of ours.
fn names(dir: BorrowedFd<'_>, what: &str) -> Result<Vec<String>> {
    let failed = |errno| Error::io("list", what, errno);
    let mut names = Vec::new();
    for entry in Listing::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.extend(
            entry
                .file_name()
                .to_str()
                .ok()
                .filter(|n| !matches!(*n, "." | ".."))
                .map(str::to_owned),
        );
    }
    Ok(names)
}
