//! A mount more or less below the root of a jail that runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kleened_sys::fs::resolve_in_root;
use kleened_sys::nmount::{self, Entry, FileSystemId};
use rustix::fs::{Mode, OFlags};

use super::container::{self, Part};
use crate::platform::live::{Change, Target, Verb};
use crate::platform::mountpoint::{busy, failed, refused};
use crate::platform::supervisor::Failure;
use crate::platform::{Error, Mount};

/// The jail's root.
struct Root {
    file: OwnedFd,
    path: PathBuf,
    /// The host's mounts, before anything changed.
    table: Vec<Entry>,
}

/// See [`Make`](crate::platform::live::Make).
pub(super) fn change(target: &Target, change: &Change) -> Result<bool, Failure> {
    rustix::process::umask(Mode::empty());
    if super::find(&target.container)? != Some(target.state.jid) {
        return Err(Error::NotRunning(target.container.clone()).into());
    }
    let fail = |error: io::Error| Error::io("open", target.root.display(), error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = rustix::fs::open(&target.root, flags, Mode::empty());
    let file = file.map_err(|errno| fail(errno.into()))?;
    let path = nmount::path_of(&file).map_err(fail)?;
    let table = nmount::table().map_err(|e| Error::io("list", "the host's mounts", e))?;
    let root = Root { file, path, table };
    let part = Part::open(&change.mount, &root.table)?;
    Ok(match change.verb {
        Verb::Attach => root.attach(&part, change)?,
        Verb::Detach => root.detach(&part, change)?,
    })
}

impl Root {
    fn attach(&self, part: &Part<'_>, change: &Change) -> Result<bool, Error> {
        let mount = &change.mount;
        let fail = |reason: String| failed(mount, reason);
        let is_source = |entry: &Entry| entry.kind == "nullfs" && entry.from == part.path;
        if self.mounted_at(&mount.destination).is_some_and(|entry| is_source(&entry)) {
            return Ok(false);
        }
        let place = part.source.place(self.file.as_fd(), mount)?;
        if let Ok(path) = nmount::path_of(&place) {
            let below = |entry: &&Entry| entry.at.starts_with(&path) && entry.at != path;
            if let Some(entry) = self.table.iter().find(below) {
                return Err(fail(format!(
                    "it would hide what is mounted at {}: detach that first, or stop the container",
                    self.seen(&entry.at).display()
                )));
            }
        }
        let made = self.ids(&change.others);
        let mounted = container::mount_at(self.root(), &self.path, part, &place, &made);
        mounted.inspect_err(|_| self.take_off(part)).map(|_| true)
    }

    fn detach(&self, part: &Part<'_>, change: &Change) -> Result<bool, Error> {
        let mount = &change.mount;
        let others = self.ids(&change.others);
        let at = self.mounted_at(&mount.destination).map(|entry| entry.id);
        let is_it = |entry: &&Entry| {
            self.has(entry)
                && entry.kind == "nullfs"
                && entry.from == part.path
                && !others.contains(&entry.id)
        };
        // Where its place was renamed, it is elsewhere.
        let found = self.table.iter().filter(is_it).min_by_key(|entry| Some(entry.id) != at);
        let Some(top) = found else {
            return match at {
                Some(at) if !others.contains(&at) => Err(failed(
                    mount,
                    "something else is mounted there: stop the container, and detach it then",
                )),
                _ => Ok(false),
            };
        };
        let below: Vec<_> = self.table.iter().filter(|it| it.at.starts_with(&top.at)).collect();
        if let Some(other) = below.iter().find(|entry| others.contains(&entry.id)) {
            let at = self.seen(&other.at);
            let reason = format!("the mount at {} is below it: detach that first", at.display());
            return Err(busy(mount, reason));
        }
        let mut gone: Vec<&Entry> = Vec::new();
        // The last one is on top.
        for entry in below.into_iter().rev() {
            let Err(error) = nmount::unmount(entry.id, false) else {
                gone.push(entry);
                continue;
            };
            let mut reason = refused(&error);
            for entry in gone.into_iter().rev() {
                if let Err(error) = self.put_back(part, top, entry) {
                    let at = self.seen(&entry.at);
                    reason += &format!("; and {} could not be put back: {error}", at.display());
                }
            }
            return Err(busy(mount, reason));
        }
        Ok(true)
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether it is mounted below the root.
    fn has(&self, entry: &Entry) -> bool {
        entry.at.starts_with(&self.path) && entry.at != self.path
    }

    /// A path of the host's as the container sees it.
    fn seen(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.path).unwrap_or(path))
    }

    /// What is mounted on the destination.
    fn mounted_at(&self, destination: &str) -> Option<Entry> {
        let there = resolve_in_root(self.root(), destination, OFlags::PATH).ok()?;
        let entry = nmount::of_file(&there).ok().filter(|entry| self.has(entry))?;
        // The name of a file can have been forgotten, but not that of one that was just looked up.
        (nmount::path_of(&there).ok()? == entry.at).then_some(entry)
    }

    fn ids(&self, mounts: &[Mount]) -> Vec<FileSystemId> {
        let at = |mount: &Mount| self.mounted_at(&mount.destination).map(|entry| entry.id);
        mounts.iter().filter_map(at).collect()
    }

    /// Nothing of it is mounted below the root that was not before.
    fn take_off(&self, part: &Part<'_>) {
        let Ok(mut table) = nmount::table() else { return };
        let ours = |entry: &Entry| {
            let source = Path::new(&entry.from);
            source == part.path || part.children.iter().any(|child| source == child)
        };
        table.retain(|entry| {
            self.has(entry)
                && entry.kind == "nullfs"
                && ours(entry)
                && !self.table.iter().any(|before| before.id == entry.id)
        });
        // The last one is on top.
        for entry in table.into_iter().rev() {
            let _ = nmount::unmount(entry.id, true);
        }
    }

    /// What was mounted below the mount on `top` is there again.
    fn put_back(&self, part: &Part<'_>, top: &Entry, child: &Entry) -> io::Result<()> {
        let at = top.at.strip_prefix(&self.path).map_err(io::Error::other)?;
        let there = resolve_in_root(self.root(), at, OFlags::PATH | OFlags::DIRECTORY)?;
        if nmount::of_file(&there)?.id != top.id {
            return Err(io::Error::other("its place has changed meanwhile"));
        }
        container::mount_child(part, &there, Path::new(&child.from)).map(drop)
    }
}
