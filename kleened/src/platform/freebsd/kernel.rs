//! What the kernel says of jails and of the mounts below a directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kleened_sys::{jail, nmount, process};

use crate::platform::{Error, MountEntry, Result};

/// How long what is in use may stay mounted after its jail is gone. What a process had open is closed
/// before it is gone; connections and somebody on the host can hold a file system longer.
const BUSY_TIME: Duration = Duration::from_secs(3);

/// How often it is looked whether something has happened of which the kernel does not tell.
const STEP: Duration = Duration::from_millis(5);

/// Whether there is nothing that keeps the jail: no process, no jail inside, and it does not stay without.
/// Such a jail is dying, or will be in a moment.
pub(super) fn is_over(jid: i32) -> io::Result<bool> {
    Ok(process::of_jail(jid)?.is_empty()
        && jail::get_bool(jid, "persist")? != Some(true)
        && jail::get_bool(jid, "children.cur")? != Some(true))
}

/// Whether nothing of the jail and of those in it runs, in that time: it is removed. A repeat is safe.
pub(super) fn end_within(jid: i32, time: Duration) -> io::Result<bool> {
    let below = jail::descendants(jid, &jail::parents()?);
    jail::remove(jid)?;
    let until = Instant::now() + time;
    for jid in std::iter::once(jid).chain(below) {
        if !is_gone_within(jid, until.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the jail is gone or dying, and no process of it is left, in that time.
///
/// A jail that is dying can stay as a number, as long as a connection of it is not closed down: for a
/// minute and longer. Its name can be used again, and nothing runs in it.
pub(super) fn is_gone_within(jid: i32, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    loop {
        if jail::get_bool(jid, "persist")?.is_none() && process::of_jail(jid)?.is_empty() {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
}

/// Whether [`is_over`] is so, in that time.
pub(super) fn is_over_within(jid: i32, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    loop {
        if is_over(jid)? {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
}

/// The mounts below the directory, in the order in which they were made.
fn below(root: &Path) -> io::Result<Vec<nmount::Entry>> {
    // What is mounted is listed by its path without links.
    let root = match std::fs::canonicalize(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut table = nmount::table()?;
    table.retain(|entry| entry.at.starts_with(&root) && entry.at != root);
    Ok(table)
}

/// The mounts below the directory, as a container sees them whose root that is.
pub(super) fn mounts(root: &Path) -> io::Result<Vec<MountEntry>> {
    let root = std::fs::canonicalize(root)?;
    let inside = |entry: nmount::Entry| {
        let destination = Path::new("/").join(entry.at.strip_prefix(&root).ok()?);
        Some(MountEntry { destination, read_only: entry.has(nmount::Flags::MNT_RDONLY) })
    };
    Ok(below(&root)?.into_iter().filter_map(inside).collect())
}

/// Nothing is mounted below the directory. No jail may have its root there: what is still in use after a
/// while is unmounted all the same.
pub(super) fn unmount_below(root: &Path) -> Result<()> {
    let fail = |what: &Path, error: io::Error| Error::io("unmount", what.display(), error);
    let until = Instant::now() + BUSY_TIME;
    loop {
        let force = Instant::now() > until;
        let mut left: Option<(PathBuf, io::Error)> = None;
        // The last one is on top.
        for mount in below(root).map_err(|error| fail(root, error))?.into_iter().rev() {
            match nmount::unmount(mount.id, force) {
                Ok(_) => (),
                Err(error) if error.raw_os_error() == Some(EBUSY) && !force => {
                    left = Some((mount.at, error));
                }
                Err(error) => return Err(fail(&mount.at, error)),
            }
        }
        if left.is_none() {
            return Ok(());
        }
        std::thread::sleep(STEP);
    }
}

const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();
