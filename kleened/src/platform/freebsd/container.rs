//! What is mounted in a jail before it is made: its devices, and what was asked for.
//!
//! The kernel's call takes a path, and follows links in it as the caller's root says, which is the host's.
//! So a directory is never mounted on by its path: it is found by descriptors inside the container's root,
//! made this process's present directory, and mounted on as `.`. For a file, whose name has to be looked up
//! again, another process has the container's root as its root.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kleened_sys::fs::{make_directory_in_root, resolve_in_root};
use kleened_sys::nmount::{self, FileSystemId, Flags};
use kleened_sys::process::{Fork, exit_now, fork};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::WaitOptions;

use crate::platform::jail_param::{JAIL_RULESET, Plan};
use crate::platform::mountpoint::{Source, failed};
use crate::platform::program::give_up;
use crate::platform::supervisor::{Failure, read_all};
use crate::platform::{Error, Mount, Setup};

/// What is no place for a mount, because the kernel makes up what is in it.
const MADE_UP: &[&str] = &["devfs", "fdescfs", "linprocfs", "linsysfs", "procfs"];

/// A device that every host has, and that no container should.
const SECRET: &str = "geom.ctl";

/// How long a mount may take: disks may have to wake up.
const MOUNT_TIME: Duration = Duration::from_secs(60);

/// A source that was looked at before anything was mounted.
struct Part<'s> {
    mount: &'s Mount,
    source: Source,
    /// Where it really is on the host.
    path: PathBuf,
    /// What is mounted below it on the host, where, those above before those below.
    children: Vec<PathBuf>,
}

/// Everything is mounted below the container's root. When this fails, some of it may be.
pub(super) fn build(setup: &Setup, plan: &Plan) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&setup.root, flags, Mode::empty())
        .map_err(|errno| Error::io("open", setup.root.display(), errno))?;
    let root_path = nmount::path_of(&root)
        .map_err(|error| Error::io("look for", setup.root.display(), error))?;
    let table = nmount::table().map_err(|e| Error::io("list", "the host's mounts", e))?;
    let parts = setup.mounts.iter().map(|mount| Part::open(mount, &table));
    let mut parts = parts.collect::<Result<Vec<_>, Error>>()?;

    let mount = |kind: &CStr, place: &str, options: &[(&CStr, &CStr)]| {
        mount_own(root.as_fd(), kind, place, options)
            .map_err(|error| Error::io("mount", place, error))
    };
    if plan.devfs {
        let ruleset = CString::new(plan.devfs_ruleset.to_string()).unwrap_or_default();
        mount(c"devfs", "/dev", &[(c"ruleset", &ruleset)])?;
    }
    if plan.fdescfs {
        mount(c"fdescfs", "/dev/fd", &[])?;
    }
    if plan.procfs {
        mount(c"procfs", "/proc", &[])?;
    }
    if plan.devfs && plan.devfs_ruleset == JAIL_RULESET {
        check_devices(root.as_fd())?;
    }
    parts.sort_by_cached_key(|part| real_path(root.as_fd(), &part.mount.destination));
    mount_all(root.as_fd(), &root_path, &parts)?;
    Ok(())
}

impl<'s> Part<'s> {
    fn open(mount: &'s Mount, table: &[nmount::Entry]) -> Result<Self, Error> {
        let source = Source::open(mount)?;
        let path = nmount::path_of(&source.file)
            .or_else(|error| match mount.subpath {
                // The kernel doesn't keep the names of all files.
                None => std::fs::canonicalize(&mount.source),
                Some(_) => Err(error),
            })
            .map_err(|e| failed(mount, format!("can't say where the source is: {e}")))?;
        let below = table.iter().filter(|entry| entry.at.starts_with(&path) && entry.at != path);
        // Snapshots are mounted when somebody looks at them.
        let below = below
            .filter(|entry| entry.kind != "zfs" || !entry.from.as_encoded_bytes().contains(&b'@'));
        let mut children: Vec<_> = below.map(|entry| entry.at.clone()).collect();
        children.sort_unstable();
        children.dedup();
        Ok(Self { mount, source, path, children })
    }

    fn flags(&self) -> Flags {
        if self.mount.read_only { Flags::MNT_RDONLY } else { Flags::empty() }
    }
}

/// The file system is on the directory, however that is called now; the answer is where that is.
fn mount_on(
    place: BorrowedFd<'_>,
    kind: &CStr,
    from: &Path,
    options: &[(&CStr, &CStr)],
    flags: Flags,
) -> io::Result<PathBuf> {
    let path = nmount::path_of(place)?;
    rustix::process::fchdir(place)?;
    let mounted = nmount::mount(kind, from, Path::new("."), options, flags);
    rustix::process::chdir("/")?;
    mounted.map(|()| path)
}

fn mount_own(
    root: BorrowedFd<'_>,
    kind: &CStr,
    place: &str,
    options: &[(&CStr, &CStr)],
) -> io::Result<()> {
    let dir = make_directory_in_root(root, place).map_err(io::Error::from)?;
    let name = kind.to_string_lossy();
    let flags = Flags::MNT_NOSUID | Flags::MNT_NOEXEC;
    let path = mount_on(dir.as_fd(), kind, Path::new(name.as_ref()), options, flags)?;
    let there = nmount::of_file(resolve_in_root(root, place, OFlags::PATH)?)?;
    if there.kind != name || there.at != path {
        return Err(io::Error::other("something else is in its place"));
    }
    Ok(())
}

/// The rules that hide the host's devices are there: the kernel takes a ruleset that it hasn't for one
/// that hides nothing.
fn check_devices(root: BorrowedFd<'_>) -> Result<(), Error> {
    let dev = resolve_in_root(root, "/dev", OFlags::PATH)
        .map_err(|error| Error::io("look at", "the container's /dev", error))?;
    match rustix::fs::statat(&dev, SECRET, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("look at", "the container's /dev", errno)),
        Ok(_) => Err(Error::Unsupported(format!(
            "devfs ruleset {JAIL_RULESET}, which hides the host's devices from containers, is not \
             loaded: run 'service devfs restart' with devfs_load_rulesets=\"YES\" in /etc/rc.conf"
        ))),
    }
}

fn mount_all(root: BorrowedFd<'_>, root_path: &Path, parts: &[Part<'_>]) -> Result<(), Error> {
    let own = stat(root).map_err(|error| Error::io("look at", "the root", error))?;
    let mut made: Vec<FileSystemId> = Vec::new();
    for part in parts {
        let fail = |reason: String| failed(part.mount, reason);
        let place = part.source.place(root, part.mount)?;
        let look = || -> io::Result<_> {
            Ok((nmount::of_file(&place)?, nmount::path_of(&place).ok(), stat(place.as_fd())?))
        };
        let (below, path, here) =
            look().map_err(|e| fail(format!("can't look at the destination: {e}")))?;
        if MADE_UP.contains(&below.kind.as_str()) {
            let seen = below.at.strip_prefix(root_path).unwrap_or(&below.at);
            return Err(fail(format!(
                "nothing can be mounted in /{} of a container",
                seen.display()
            )));
        }
        let is_mounted = path.is_some_and(|path| path == below.at) && made.contains(&below.id);
        if is_mounted || here == own {
            return Err(fail("another mount, or the root, is on the same place".into()));
        }
        let at = if part.source.is_directory {
            mount_on(place.as_fd(), c"nullfs", &part.path, &[], part.flags())
                .map(Some)
                .map_err(|e| fail(format!("the kernel refuses it: {e}")))?
        } else {
            mount_file(part, root_path)?;
            None
        };
        // The word of the kernel on what is there now.
        let there = resolve_in_root(root, &part.mount.destination, OFlags::PATH);
        let there = there.map_err(|e| fail(format!("can't look at what was mounted: {e}")))?;
        let found = check(&there, below.id, at.as_deref(), &part.source.file)
            .map_err(|e| fail(format!("can't look at what was mounted: {e}")))?
            .ok_or_else(|| fail("something else is on the destination".into()))?;
        made.push(found);
        for child in &part.children {
            let id = mount_child(part, &there, child).map_err(|error| {
                fail(format!("{}, which is mounted in it: {error}", child.display()))
            })?;
            made.push(id);
        }
    }
    Ok(())
}

/// The file system that `there` is on, if it is a nullfs that was not there before, in the right place,
/// and shows the source.
fn check(
    there: &OwnedFd,
    before: FileSystemId,
    at: Option<&Path>,
    source: &OwnedFd,
) -> io::Result<Option<FileSystemId>> {
    let mount = nmount::of_file(there)?;
    let is_new = mount.kind == "nullfs" && mount.id != before;
    let is_there = at.is_none_or(|at| mount.at == at);
    let is_source = rustix::fs::fstat(there)?.st_ino == rustix::fs::fstat(source)?.st_ino;
    Ok((is_new && is_there && is_source).then_some(mount.id))
}

/// What is mounted below the source on the host is mounted at the same place below the mount.
fn mount_child(part: &Part<'_>, top: &OwnedFd, child: &Path) -> io::Result<FileSystemId> {
    let relative = child.strip_prefix(&part.path).map_err(io::Error::other)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let place = resolve_in_root(top.as_fd(), relative, flags)?;
    let before = nmount::of_file(&place)?.id;
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(child, open, Mode::empty())?;
    let at = mount_on(place.as_fd(), c"nullfs", child, &[], part.flags())?;
    let there = resolve_in_root(top.as_fd(), relative, flags)?;
    let found = check(&there, before, Some(&at), &source)?;
    found.ok_or_else(|| io::Error::other("something else is in its place"))
}

/// The file is mounted on the destination, which a process looks up whose root is the container's.
fn mount_file(part: &Part<'_>, root: &Path) -> Result<(), Error> {
    let fail = |reason: String| failed(part.mount, reason);
    let start = || -> io::Result<_> {
        let (from, line) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pid = match fork()? {
            Fork::Child => match mount_inside(part, root) {
                Ok(()) => exit_now(0),
                Err(error) => give_up(&line, error),
            },
            Fork::Parent(pid) => pid,
        };
        drop(line);
        let said = read_all(from, MOUNT_TIME);
        if said.is_err() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(pid), WaitOptions::empty())
        })?;
        Ok((said?, status.and_then(|(_, status)| status.exit_status())))
    };
    let (said, status) = start().map_err(|e| fail(format!("can't mount it: {e}")))?;
    match (said.as_slice(), status) {
        ([], Some(0)) => Ok(()),
        ([], _) => Err(fail("the process that mounts it was killed".into())),
        (said, _) => match serde_json::from_slice(said) {
            Ok(Failure::Mount { mount, reason }) => Err(Error::Mount { mount, reason }),
            _ => Err(fail("the process that mounts it failed".into())),
        },
    }
}

fn mount_inside(part: &Part<'_>, root: &Path) -> Result<(), Error> {
    let fail = |reason: String| failed(part.mount, reason);
    let mount = || -> io::Result<()> {
        let (Some(dir), Some(name)) = (part.path.parent(), part.path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // Outside of what will be the root: the source is found there, by a name without a slash.
        rustix::process::chdir(dir)?;
        rustix::process::chroot(root)?;
        let at = Path::new(&part.mount.destination);
        nmount::mount(c"nullfs", Path::new(name), at, &[], part.flags())
    };
    mount().map_err(|error| {
        let reason = match error.raw_os_error() {
            // vfs_domount_first() in sys/kern/vfs_mount.c.
            Some(EINVAL) => {
                "the kernel refuses it: the file at the destination may have no other hard link"
                    .to_owned()
            }
            _ => format!("the kernel refuses it: {error}"),
        };
        fail(reason)
    })
}

const EINVAL: i32 = Errno::INVAL.raw_os_error();

/// What tells a file from all others.
fn stat(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Where a destination is when every link is followed, as far as it is there already. What is above
/// sorts before what is below.
fn real_path(root: BorrowedFd<'_>, destination: &str) -> PathBuf {
    let mut path = PathBuf::from(destination);
    let mut missing = Vec::new();
    loop {
        let place = resolve_in_root(root, &path, OFlags::PATH).ok();
        if let Some(mut found) = place.and_then(|place| nmount::path_of(&place).ok()) {
            found.extend(missing.iter().rev());
            return found;
        }
        match path.file_name().map(std::ffi::OsStr::to_owned) {
            Some(name) => missing.push(name),
            None => return PathBuf::from(destination),
        }
        path.pop();
    }
}
