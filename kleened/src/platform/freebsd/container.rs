//! What is mounted in a jail before it is made: its devices, and what was asked for.
//!
//! The kernel's call takes a path, and follows links in it as the caller's root says, which is the host's.
//! So a directory is never mounted on by its path: it is found by descriptors inside the container's root,
//! made this process's present directory, and mounted on as `.`. A file is mounted on by its last name, in
//! its directory. A process with another root than the host's never mounts: the kernel lists a mount on a
//! file by its path below the caller's root.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kleened_api::mount::MountOptions;
use kleened_sys::fs::{make_directory_in_root, resolve_in_root};
use kleened_sys::nmount::{self, FileSystemId, Flags};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::platform::jail_param::Plan;
use crate::platform::mountpoint::{Source, failed, real_path};
use crate::platform::supervisor::Failure;
use crate::platform::{Error, Mount, Setup};

/// What is no place for a mount, because the kernel makes up what is in it.
const MADE_UP: &[&str] = &["devfs", "fdescfs", "linprocfs", "linsysfs", "procfs"];

/// A device that every host has, and that no container should.
const SECRET: &str = "geom.ctl";

/// A source that was looked at before anything was mounted.
pub(super) struct Part<'s> {
    mount: &'s Mount,
    pub(super) source: Source,
    /// What the mount has.
    flags: Flags,
    /// Where it really is on the host.
    pub(super) path: PathBuf,
    /// What is mounted below it on the host, where, those above before those below.
    pub(super) children: Vec<PathBuf>,
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
    if plan.devfs && plan.devfs_ruleset != 0 {
        check_devices(root.as_fd(), plan.devfs_ruleset)?;
    }
    parts.sort_by_cached_key(|part| {
        real_path(root.as_fd(), &part.mount.destination, nmount::path_of)
    });
    mount_all(root.as_fd(), &root_path, &parts)?;
    Ok(())
}

impl<'s> Part<'s> {
    pub(super) fn open(mount: &'s Mount, table: &[nmount::Entry]) -> Result<Self, Error> {
        let source = Source::open(mount)?;
        let below = nmount::of_file(&source.file)
            .map_err(|e| failed(mount, format!("can't look at the source: {e}")))?;
        if MADE_UP.contains(&below.kind.as_str()) {
            let reason = format!(
                "the source is in the host's {}, where no ruleset hides anything: use mount.devfs, \
                 mount.fdescfs or mount.procfs",
                below.kind
            );
            return Err(failed(mount, reason));
        }
        let path = nmount::path_of(&source.file)
            .or_else(|error| match mount.subpath {
                // The kernel doesn't keep the names of all files.
                None => std::fs::canonicalize(&mount.source),
                Some(_) => Err(error),
            })
            .map_err(|e| failed(mount, format!("can't say where the source is: {e}")))?;
        let flags = flags(mount, &below);
        let below = table.iter().filter(|entry| entry.at.starts_with(&path) && entry.at != path);
        // Snapshots are mounted when somebody looks at them.
        // The host's devices and processes are not for containers.
        let below = below.filter(|entry| !MADE_UP.contains(&entry.kind.as_str()));
        let below = below
            .filter(|entry| entry.kind != "zfs" || !entry.from.as_encoded_bytes().contains(&b'@'));
        let mut children: Vec<_> = below.map(|entry| entry.at.clone()).collect();
        children.sort_unstable();
        children.dedup();
        Ok(Self { mount, source, flags, path, children })
    }
}

/// What a mount of something on the file system `source` has.
///
/// A nullfs doesn't ask the file system that it shows whether a program may be executed, and as whom.
fn flags(mount: &Mount, source: &nmount::Entry) -> Flags {
    let MountOptions { nosuid, noexec, nosymfollow } = mount.options;
    let mut flags = Flags::empty();
    flags.set(Flags::MNT_RDONLY, mount.read_only);
    for (flag, given) in [
        (Flags::MNT_NOSUID, nosuid),
        (Flags::MNT_NOEXEC, noexec),
        (Flags::MNT_NOSYMFOLLOW, nosymfollow),
    ] {
        flags.set(flag, given || source.has(flag));
    }
    flags
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
    let mut flags = Flags::MNT_NOSUID;
    // Memory of /dev/zero may be executed, which the mount's flag would forbid.
    flags.set(Flags::MNT_NOEXEC, name != "devfs");
    let path = mount_on(dir.as_fd(), kind, Path::new(name.as_ref()), options, flags)?;
    let there = nmount::of_file(resolve_in_root(root, place, OFlags::PATH)?)?;
    if there.kind != name || there.at != path {
        return Err(io::Error::other("something else is in its place"));
    }
    Ok(())
}

/// The rules that hide the host's devices are there: the kernel takes a ruleset that it hasn't for one
/// that hides nothing.
fn check_devices(root: BorrowedFd<'_>, ruleset: i32) -> Result<(), Error> {
    let dev = resolve_in_root(root, "/dev", OFlags::PATH)
        .map_err(|error| Error::io("look at", "the container's /dev", error))?;
    match rustix::fs::statat(&dev, SECRET, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("look at", "the container's /dev", errno)),
        Ok(_) => Err(Error::Unsupported(format!(
            "devfs ruleset {ruleset}, which is to hide the host's devices from the container, is not \
             loaded, or shows {SECRET}: with devfs_load_rulesets=\"YES\" in /etc/rc.conf, and the \
             ruleset in devfs.rules(5), run 'service devfs restart'"
        ))),
    }
}

fn mount_all(root: BorrowedFd<'_>, root_path: &Path, parts: &[Part<'_>]) -> Result<(), Error> {
    let mut made: Vec<FileSystemId> = Vec::new();
    for part in parts {
        let place = part.source.place(root, part.mount)?;
        made.extend(mount_at(root, root_path, part, &place, &made)?);
    }
    Ok(())
}

/// The mount, with those below it, is on its place, where its destination still leads then; the answer is
/// what was mounted. Nothing of `made` may be there. When this fails, some of it may be mounted.
pub(super) fn mount_at(
    root: BorrowedFd<'_>,
    root_path: &Path,
    part: &Part<'_>,
    place: &OwnedFd,
    made: &[FileSystemId],
) -> Result<Vec<FileSystemId>, Error> {
    let own = stat(root).map_err(|error| Error::io("look at", "the root", error))?;
    let fail = |reason: String| failed(part.mount, reason);
    let look = || -> io::Result<_> {
        Ok((nmount::of_file(place)?, nmount::path_of(place).ok(), stat(place.as_fd())?))
    };
    let (below, path, here) =
        look().map_err(|e| fail(format!("can't look at the destination: {e}")))?;
    if MADE_UP.contains(&below.kind.as_str()) {
        let seen = below.at.strip_prefix(root_path).unwrap_or(&below.at);
        return Err(fail(format!("nothing can be mounted in /{} of a container", seen.display())));
    }
    let is_mounted = path.is_some_and(|path| path == below.at) && made.contains(&below.id);
    if is_mounted || here == own {
        return Err(fail("another mount, or the root, is on the same place".into()));
    }
    let at = if part.source.is_directory {
        mount_on(place.as_fd(), c"nullfs", &part.path, &[], part.flags)
            .map_err(|e| fail(format!("the kernel refuses it: {e}")))?
    } else {
        mount_file(part, (root, root_path), place).map_err(|e| fail(refusal(&e)))?
    };
    // The word of the kernel on what is there now.
    let there = resolve_in_root(root, &part.mount.destination, OFlags::PATH);
    let there = there.map_err(|e| fail(format!("can't look at what was mounted: {e}")))?;
    let found = check(&there, below.id, &at, (&part.source.file, part.flags))
        .map_err(|e| fail(format!("can't look at what was mounted: {e}")))?
        .ok_or_else(|| fail("something else is on the destination".into()))?;
    let mut made = vec![found];
    for child in &part.children {
        let id = mount_child(part, &there, child).map_err(|error| {
            fail(format!("{}, which is mounted in it: {error}", child.display()))
        })?;
        made.push(id);
    }
    Ok(made)
}

/// The file system that `there` is on, if it is a nullfs that was not there before, in the right place,
/// shows the source, and has the flags.
fn check(
    there: &OwnedFd,
    before: FileSystemId,
    at: &Path,
    (source, flags): (&OwnedFd, Flags),
) -> io::Result<Option<FileSystemId>> {
    let mount = nmount::of_file(there)?;
    if !mount.has(flags) {
        return Err(io::Error::other("the kernel has not taken all of its options"));
    }
    let is_new = mount.kind == "nullfs" && mount.id != before;
    let is_there = mount.at == at;
    let is_source = rustix::fs::fstat(there)?.st_ino == rustix::fs::fstat(source)?.st_ino;
    Ok((is_new && is_there && is_source).then_some(mount.id))
}

/// What is mounted below the source on the host is mounted at the same place below the mount.
pub(super) fn mount_child(
    part: &Part<'_>,
    top: &OwnedFd,
    child: &Path,
) -> io::Result<FileSystemId> {
    let relative = child.strip_prefix(&part.path).map_err(io::Error::other)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let place = resolve_in_root(top.as_fd(), relative, flags)?;
    let before = nmount::of_file(&place)?.id;
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(child, open, Mode::empty())?;
    let of_mount = self::flags(part.mount, &nmount::of_file(&source)?);
    let at = mount_on(place.as_fd(), c"nullfs", child, &[], of_mount)?;
    let there = resolve_in_root(top.as_fd(), relative, flags)?;
    let found = check(&there, before, &at, (&source, of_mount))?;
    found.ok_or_else(|| io::Error::other("something else is in its place"))
}

/// The source, a file, is on the file that `place` is; the answer is where that is.
///
/// The kernel looks its name up once more, in the directory that it is in, and follows a link there: who
/// writes to that directory meanwhile, in a volume that a running jail has too, can have put one there. So
/// what is not where it belongs is undone.
fn mount_file(
    part: &Part<'_>,
    root: (BorrowedFd<'_>, &Path),
    place: &OwnedFd,
) -> io::Result<PathBuf> {
    let changed = || io::Error::other("the destination has changed meanwhile: try again");
    let (root, root_path) = root;
    let path = nmount::path_of(place)?;
    let inside = path.strip_prefix(root_path).map_err(|_| changed())?;
    let (Some(dir), Some(name)) = (inside.parent(), inside.file_name()) else {
        return Err(changed());
    };
    let dir = resolve_in_root(root, dir, OFlags::PATH | OFlags::DIRECTORY)?;
    let named = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if (named.st_dev, named.st_ino) != stat(place.as_fd())? {
        return Err(changed());
    }
    let at = nmount::path_of(&dir)?.join(name);
    let before = nmount::table()?;
    rustix::process::fchdir(&dir)?;
    let mounted = nmount::mount(c"nullfs", &part.path, Path::new(name), &[], part.flags);
    rustix::process::chdir("/")?;
    mounted?;
    let mut made = nmount::table()?;
    made.retain(|entry| {
        entry.from == part.path && !before.iter().any(|other| other.id == entry.id)
    });
    if made.iter().any(|entry| entry.at == at) {
        return Ok(at);
    }
    for entry in made {
        nmount::unmount(entry.id, true)?;
    }
    Err(changed())
}

/// Why a file could not be mounted.
fn refusal(error: &io::Error) -> String {
    match error.raw_os_error() {
        // vfs_domount_first() in sys/kern/vfs_mount.c.
        Some(EINVAL) => {
            "the kernel refuses it: the file at the destination may have no other hard link".into()
        }
        _ => format!("can't mount it: {error}"),
    }
}

const EINVAL: i32 = Errno::INVAL.raw_os_error();

/// What tells a file from all others.
fn stat(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}
