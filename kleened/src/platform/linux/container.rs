//! What pid 1 of a new container makes around itself: namespaces, a root, `/proc`, `/dev`, and the
//! mounts that were asked for.
//!
//! Everything is mounted in the container's own mount namespace, by descriptor, and after the host's
//! root is gone from it: whatever links an image has, there is no way out that a mount could take.
//! The sources are opened before, on the host. Devices work nowhere but in `/dev`. Set-user-id
//! programs work, on mounts too unless they are told otherwise, as they do in a jail.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use kleened_api::container::NetworkDriver;
use kleened_api::mount::MountOptions;
use kleened_sys::fs::{ResolveError, make_directory_in_root, resolve_in_root};
use kleened_sys::mount::{Attributes, attach, clone_tree, mount_id, restrict};
use kleened_sys::process::Namespaces;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountPropagationFlags, UnmountFlags};

use crate::platform::mountpoint::{Source, failed, real_path};
use crate::platform::supervisor::Failure;
use crate::platform::{Error, Mount, Setup};

/// `proc`, from `linux/magic.h`.
const PROC: i64 = 0x9fa0;

/// What of `/proc` speaks of the whole machine and can't be written.
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What of `/proc` gives away the host's secrets, and is empty.
const MASKED: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// The devices of `/dev`: name, major and minor number.
const DEVICES: &[(&str, u32, u32)] = &[
    ("full", 1, 7),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// What is opened on the host for a container.
#[derive(Debug)]
pub(super) struct Parts {
    root: OwnedFd,
    /// The container's own terminals.
    pub(super) terminals: OwnedFd,
    mounts: Vec<Part>,
}

/// What is opened on the host for a mount.
#[derive(Debug)]
pub(super) struct Part {
    mount: Mount,
    pub(super) source: Source,
    /// The mount, attached nowhere yet.
    pub(super) tree: OwnedFd,
}

impl Parts {
    /// Everything that a container needs of the host. Nothing is mounted yet.
    pub(super) fn open(setup: &Setup) -> Result<Self, Error> {
        let root = open_root(setup)
            .and_then(|root| {
                let tree = clone_tree(root, false)?;
                restrict(&tree, Attributes::MOUNT_ATTR_NODEV, false)?;
                Ok(tree)
            })
            .map_err(|error| Error::io("open", setup.root.display(), error))?;
        let options = [(c"mode", c"0620"), (c"gid", c"5"), (c"ptmxmode", c"0666")];
        let harmless = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
        let terminals = new_mount(c"devpts", &options, harmless)
            .map_err(|error| Error::io("make", "a devpts", error))?;
        let mounts = setup.mounts.iter().map(Part::open).collect::<Result<_, _>>()?;
        Ok(Self { root, terminals, mounts })
    }

    /// What is open of it.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mounts =
            self.mounts.iter().flat_map(|part| [part.source.file.as_fd(), part.tree.as_fd()]);
        mounts.chain([self.root.as_fd(), self.terminals.as_fd()]).collect()
    }
}

impl Part {
    pub(super) fn open(mount: &Mount) -> Result<Self, Error> {
        let source = Source::open(mount)?;
        let tree = clone_tree(&source.file, true).and_then(|tree| {
            // All of it, or it fails.
            restrict(&tree, attributes(mount), true)?;
            Ok(tree)
        });
        let tree = tree.map_err(|error| {
            let source = mount.source.display();
            failed(mount, format!("the source {source} can't be mounted: {error}"))
        })?;
        Ok(Self { mount: mount.clone(), source, tree })
    }
}

fn attributes(mount: &Mount) -> Attributes {
    let MountOptions { nosuid, noexec, nosymfollow } = mount.options;
    let mut attributes = Attributes::MOUNT_ATTR_NODEV;
    attributes.set(Attributes::MOUNT_ATTR_RDONLY, mount.read_only);
    attributes.set(Attributes::MOUNT_ATTR_NOSUID, nosuid);
    attributes.set(Attributes::MOUNT_ATTR_NOEXEC, noexec);
    attributes.set(Attributes::MOUNT_ATTR_NOSYMFOLLOW, nosymfollow);
    attributes
}

/// This process is alone in its namespaces, its root is the container's, and everything is mounted.
pub(super) fn build(setup: &Setup, parts: Parts) -> Result<(), Failure> {
    let mut namespaces = Namespaces::NEWNS | Namespaces::NEWUTS | Namespaces::NEWIPC;
    if setup.network == NetworkDriver::Disabled {
        namespaces |= Namespaces::NEWNET;
    }
    let step = |verb, object: &str, result: io::Result<()>| {
        result.map_err(|error| Error::io(verb, object, error))
    };
    step("make", "namespaces", kleened_sys::process::unshare(namespaces))?;
    step("set", "the host name", set_hostname(&setup.hostname))?;
    if setup.network == NetworkDriver::Disabled {
        step("start", "the loopback interface", kleened_sys::network::start_loopback())?;
    }
    step("enter", &setup.root.display().to_string(), enter_root(setup, &parts.root))?;
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", "the container's root", errno))?;
    step("mount", "/dev", mount_dev(root.as_fd(), &parts.terminals))?;
    step("mount", "/proc", mount_proc(root.as_fd()))?;
    Ok(mount_all(root.as_fd(), parts.mounts)?)
}

fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

fn open_root(setup: &Setup) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(&setup.root, flags, Mode::empty())?)
}

/// The tree is this process's root, and the host's is gone.
fn enter_root(setup: &Setup, tree: &OwnedFd) -> io::Result<()> {
    // What the host unmounts while this is going on goes away here, too; nothing that is mounted here
    // appears there.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream)?;
    attach(tree, open_root(setup)?)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty())?;
    rustix::process::fchdir(tree)?;
    // Both on the same place, the old one on top: pivot_root(2).
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(old)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// A new file system, attached nowhere.
fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], flags: Attributes) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&context, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// A directory in the root for a file system of the container's own.
fn directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    make_directory_in_root(root, path).map_err(|error| match error {
        ResolveError::Io { source, .. } => source,
        other => io::Error::other(other),
    })
}

fn mount_dev(root: BorrowedFd<'_>, terminals: &OwnedFd) -> io::Result<()> {
    let harmless = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    let dev = new_mount(c"tmpfs", &[(c"mode", c"0755"), (c"size", c"1m")], harmless)?;
    for (name, major, minor) in DEVICES {
        let number = rustix::fs::makedev(*major, *minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, *name, FileType::CharacterDevice, mode, number)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(*target, &dev, *name)?;
    }
    rustix::fs::mkdirat(&dev, "pts", Mode::from_raw_mode(0o755))?;
    rustix::fs::mkdirat(&dev, "shm", Mode::from_raw_mode(0o755))?;
    attach(&dev, directory(root, "/dev")?)?;
    attach(terminals, open_below(&dev, "pts")?)?;
    let options = [(c"mode", c"1777"), (c"size", c"64m")];
    let shm = new_mount(c"tmpfs", &options, harmless | Attributes::MOUNT_ATTR_NODEV)?;
    attach(shm, open_below(&dev, "shm")?)?;
    // The first terminal, where the first process has one.
    match open_below(terminals, "0") {
        Ok(terminal) => {
            rustix::fs::mknodat(&dev, "console", FileType::RegularFile, Mode::empty(), 0)?;
            attach(clone_tree(terminal, false)?, open_below(&dev, "console")?)
        }
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn mount_proc(root: BorrowedFd<'_>) -> io::Result<()> {
    let harmless = Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NOEXEC
        | Attributes::MOUNT_ATTR_NODEV;
    let proc = new_mount(c"proc", &[], harmless)?;
    attach(&proc, directory(root, "/proc")?)?;
    let null = resolve_in_root(root, "/dev/null", OFlags::PATH)?;
    // Not every kernel has all of these.
    let there = |name: &str| match open_below(&proc, name) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    for name in READ_ONLY {
        if let Some(place) = there(name)? {
            let tree = clone_tree(&place, true)?;
            restrict(&tree, harmless | Attributes::MOUNT_ATTR_RDONLY, true)?;
            attach(tree, place)?;
        }
    }
    for name in MASKED {
        if let Some(place) = there(name)? {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
            let nothing = if kind == FileType::Directory {
                let read_only = harmless | Attributes::MOUNT_ATTR_RDONLY;
                new_mount(c"tmpfs", &[(c"mode", c"0555"), (c"size", c"4k")], read_only)?
            } else {
                clone_tree(&null, false)?
            };
            attach(nothing, place)?;
        }
    }
    Ok(())
}

fn open_below(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Every mount is where it belongs, those above before those below. Pid 1 ends where this fails, and with
/// it all that was mounted.
fn mount_all(root: BorrowedFd<'_>, mut mounts: Vec<Part>) -> Result<(), Error> {
    mounts.sort_by_cached_key(|part| real_path(root, &part.mount.destination, path_of));
    let mut made = vec![id(root).map_err(|error| Error::io("look at", "the root", error))?];
    for part in &mounts {
        let place = part.source.place(root, &part.mount)?;
        made.push(mount_at(root, part, &place, &made)?);
    }
    Ok(())
}

/// The mount is on its place, where its destination still leads then; the answer is its number. Nothing of
/// `made` may be there. When this fails, it may be mounted somewhere inside the root.
pub(super) fn mount_at(
    root: BorrowedFd<'_>,
    part: &Part,
    place: &OwnedFd,
    made: &[u64],
) -> Result<u64, Error> {
    let fail = |reason: String| failed(&part.mount, reason);
    let look =
        || -> io::Result<_> { Ok((mount_id(place)?, rustix::fs::fstatfs(place)?.f_type == PROC)) };
    let (below, in_proc) =
        look().map_err(|e| fail(format!("can't look at the destination: {e}")))?;
    if in_proc {
        return Err(fail("nothing can be mounted in /proc of a container".into()));
    }
    if below.is_root && made.contains(&below.id) {
        return Err(fail("another mount, or the root, is on the same place".into()));
    }
    attach(&part.tree, place).map_err(|e| fail(format!("the kernel refuses it: {e}")))?;
    // The word of the kernel on what is there now.
    let there = resolve_in_root(root, &part.mount.destination, OFlags::PATH);
    let same = there.and_then(|there| {
        let (wanted, there) = (id(part.tree.as_fd())?, mount_id(there)?);
        Ok((wanted == there.id && there.is_root).then_some(wanted))
    });
    match same {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(fail("something else is on the destination".into())),
        Err(error) => Err(fail(format!("can't look at what was mounted: {error}"))),
    }
}

pub(super) fn id(file: BorrowedFd<'_>) -> io::Result<u64> {
    mount_id(file).map(|found| found.id)
}

/// Where an open file is.
fn path_of(file: OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
