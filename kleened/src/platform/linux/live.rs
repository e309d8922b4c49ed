//! A mount more or less in the mount namespace of a container that runs.
//!
//! What is needed of the host is opened before this process moves into the namespace. Inside, everything
//! goes by descriptor: the container's processes rename and link what they like meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use kleened_sys::fs::resolve_in_root;
use kleened_sys::mount::{attach, clone_tree, mount_id};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;

use super::container::{self, Part};
use super::kernel::{self, Mounted};
use crate::platform::live::{Change, Target, Verb};
use crate::platform::mountpoint::{Source, busy, failed, refused};
use crate::platform::supervisor::Failure;
use crate::platform::{Error, Mount};

/// How often a path may change between looking it up and unmounting it before that is an error.
const MAX_RACES: u32 = 1000;

/// The container, from inside.
struct Inside {
    root: OwnedFd,
    /// Its mount table.
    table: File,
    /// This process's descriptors, of which the container's `/proc` knows nothing.
    descriptors: OwnedFd,
}

/// See [`Make`](crate::platform::live::Make).
pub(super) fn change(target: &Target, change: &Change) -> Result<bool, Failure> {
    let container = format_args!("container {}", target.container);
    let fail = |verb, error: io::Error| Failure::from(Error::io(verb, container, error));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| fail("protect", errno.into()))?;
    rustix::process::umask(Mode::empty());
    let not_running = || Failure::from(Error::NotRunning(target.container.clone()));
    let (jid, birth) = (target.state.jid, target.state.birth);
    let init = kernel::open_process(jid, birth).map_err(|error| fail("find", error))?;
    let init = init.ok_or_else(not_running)?;
    let table = File::open(format!("/proc/{jid}/mountinfo"));
    // The number was this process's when the table was opened, because it still is.
    if kernel::has_ended(&init).map_err(|error| fail("look at", error))? {
        return Err(not_running());
    }
    let table = table.map_err(|error| fail("list the mounts of", error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| {
        rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| Error::io("open", path, errno))
    };
    let descriptors = open("/proc/self/fd")?;
    let enter = || {
        rustix::thread::move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)
            .map_err(|errno| fail("enter", errno.into()))?;
        Ok::<_, Failure>(open("/")?)
    };
    match change.verb {
        Verb::Attach => {
            let part = Part::open(&change.mount)?;
            let inside = Inside { root: enter()?, table, descriptors };
            Ok(inside.attach(&part, change)?)
        }
        Verb::Detach => {
            let source = Source::open(&change.mount)?;
            let shown = kernel::shown(&source.file).map_err(|error| fail("look at", error))?;
            drop(source);
            let inside = Inside { root: enter()?, table, descriptors };
            Ok(inside.detach(&shown, change)?)
        }
    }
}

impl Inside {
    fn attach(mut self, part: &Part, change: &Change) -> Result<bool, Error> {
        let mount = &change.mount;
        let fail = |reason: String| failed(mount, reason);
        let look = |error: io::Error| fail(format!("can't look at the destination: {error}"));
        let there = resolve_in_root(self.root(), &mount.destination, OFlags::PATH);
        if let Ok(there) = there
            && mount_id(&there).map_err(look)?.is_root
            && identity(&there).map_err(look)? == identity(&part.source.file).map_err(look)?
        {
            return Ok(false);
        }
        let place = part.source.place(self.root(), mount)?;
        let path = self.path_of(place.as_fd()).map_err(look)?;
        let below = |at: &Path| at.starts_with(&path) && *at != path;
        let mut mounts = self.mounts().map_err(look)?.into_iter();
        if let Some(hidden) = mounts.find(|it| below(&it.entry.destination)) {
            return Err(fail(format!(
                "it would hide what is mounted at {}: detach that first, or stop the container",
                hidden.entry.destination.display()
            )));
        }
        let mut made = self.ids(&change.others);
        made.push(container::id(self.root()).map_err(look)?);
        let mounted = container::mount_at(self.root(), part, &place, &made);
        mounted.map(|_| true).map_err(|error| self.taken_off(&part.tree, error))
    }

    fn detach(mut self, shown: &(String, PathBuf), change: &Change) -> Result<bool, Error> {
        let mount = &change.mount;
        let look = |error: io::Error| failed(mount, format!("can't look at it: {error}"));
        let others = self.ids(&change.others);
        let at = self.id_at(&mount.destination);
        let mounts = self.mounts().map_err(look)?;
        let shows = |it: &&Mounted| it.shown == *shown && !others.contains(&it.id);
        // Where its place was renamed, it is elsewhere.
        let found = mounts.iter().filter(shows).min_by_key(|it| Some(it.id) != at);
        let Some(top) = found else {
            let root = container::id(self.root()).map_err(look)?;
            return match at {
                Some(at) if at != root && !others.contains(&at) => Err(failed(
                    mount,
                    "something else is mounted there: stop the container, and detach it then",
                )),
                _ => Ok(false),
            };
        };
        let top = &top.entry.destination;
        let mut below: Vec<_> =
            mounts.iter().filter(|it| it.entry.destination.starts_with(top)).collect();
        if let Some(other) = below.iter().find(|it| others.contains(&it.id)) {
            let at = other.entry.destination.display();
            return Err(busy(mount, format!("the mount at {at} is below it: detach that first")));
        }
        // Those below first; of two in one place the later one is on top.
        below.sort_by_key(|it| it.entry.destination.components().count());
        let mut gone: Vec<(&Path, OwnedFd)> = Vec::new();
        for it in below.into_iter().rev() {
            match self.unmount(it.id) {
                Ok(copy) => gone.push((&it.entry.destination, copy)),
                Err(error) => {
                    let mut reason = refused(&error);
                    for (at, copy) in gone.into_iter().rev() {
                        let place = resolve_in_root(self.root(), at, OFlags::PATH);
                        if let Err(error) = place.and_then(|place| attach(copy, place)) {
                            let at = at.display();
                            reason += &format!("; and {at} could not be put back: {error}");
                        }
                    }
                    return Err(busy(mount, reason));
                }
            }
        }
        Ok(true)
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn mounts(&mut self) -> io::Result<Vec<Mounted>> {
        let mut text = Vec::new();
        self.table.rewind()?;
        self.table.read_to_end(&mut text)?;
        Ok(kernel::table(&text))
    }

    /// The mount that is on the destination, if one is.
    fn id_at(&self, destination: &str) -> Option<u64> {
        let there = resolve_in_root(self.root(), destination, OFlags::PATH).ok()?;
        mount_id(there).ok().filter(|found| found.is_root).map(|found| found.id)
    }

    fn ids(&self, mounts: &[Mount]) -> Vec<u64> {
        mounts.iter().filter_map(|mount| self.id_at(&mount.destination)).collect()
    }

    /// The mount is not in its place any more; the answer is a copy of it, attached nowhere.
    fn unmount(&mut self, id: u64) -> io::Result<OwnedFd> {
        for _ in 0..MAX_RACES {
            let mounts = self.mounts()?;
            let it = mounts.into_iter().find(|it| it.id == id).ok_or(io::ErrorKind::NotFound)?;
            if let Some(copy) = self.unmount_at(id, &it.entry.destination)? {
                return Ok(copy);
            }
        }
        Err(io::Error::other("its path does not stay the same for long enough"))
    }

    /// As [`unmount`](Self::unmount); `None` where the mount is not at the path.
    fn unmount_at(&self, id: u64, at: &Path) -> io::Result<Option<OwnedFd>> {
        let (Some(dir), Some(name)) = (at.parent(), at.file_name()) else { return Ok(None) };
        let open = || -> io::Result<_> {
            let dir = resolve_in_root(self.root(), dir, OFlags::PATH | OFlags::DIRECTORY)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let there = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
            Ok((container::id(there.as_fd())? == id).then_some((dir, there)))
        };
        let Ok(Some((dir, there))) = open() else { return Ok(None) };
        let copy = clone_tree(&there, false)?;
        // It would be in use by this process.
        drop(there);
        rustix::process::fchdir(&dir)?;
        // Nobody inside can rename or remove what something is mounted on.
        let unmounted = rustix::mount::unmount(name, UnmountFlags::NOFOLLOW);
        rustix::process::chdir("/")?;
        unmounted?;
        Ok(Some(copy))
    }

    /// The mount is nowhere, wherever it was; the answer is the error that was the reason.
    fn taken_off(&self, tree: &OwnedFd, error: Error) -> Error {
        let unmount = || {
            rustix::process::fchdir(&self.descriptors)?;
            let name = tree.as_raw_fd().to_string();
            let unmounted = rustix::mount::unmount(name, UnmountFlags::DETACH);
            rustix::process::chdir("/")?;
            unmounted
        };
        match (unmount(), error) {
            // It was not mounted.
            (Ok(()) | Err(Errno::INVAL), error) => error,
            (Err(errno), Error::Mount { mount, reason }) => {
                let reason = format!("{reason}; and it could not be taken away again: {errno}");
                Error::Mount { mount, reason }
            }
            (Err(_), error) => error,
        }
    }

    /// Where an open file is.
    fn path_of(&self, file: BorrowedFd<'_>) -> io::Result<PathBuf> {
        let name = file.as_raw_fd().to_string();
        let path = rustix::fs::readlinkat(&self.descriptors, name, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(path.into_bytes()).into())
    }
}

/// What tells a file from all others.
fn identity(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}
