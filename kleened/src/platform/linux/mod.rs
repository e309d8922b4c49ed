//! Linux: containers are processes in namespaces of their own.
//!
//! | namespace | of the container's own |
//! | --- | --- |
//! | mount, pid, uts, ipc | always |
//! | net | with the network driver `disabled`, which has nothing but a loopback interface |
//! | user, cgroup | never: the superuser inside is the one outside, with fewer capabilities |
//!
//! `container` makes a container from inside, `live` changes the mounts of one that runs, `process` turns a
//! process into a program, `start` is the supervisor's part of both, and this file is the daemon's. Linux 5.12 is needed.

mod container;
mod kernel;
mod live;
mod process;
mod start;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use kleened_api::Id;
use kleened_api::container::NetworkDriver;
use kleened_sys::mount::{Attributes, clone_tree, restrict};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use super::live::{Change, Verb};
use super::supervisor::{self, KILL_TIME, RunDir, State, not_ended};
use super::{Error, Exited, Launch, Mount, MountEntry, Platform, Result, Running, mountpoint};

/// Containers on Linux.
#[derive(Debug)]
pub struct Linux {
    run_dir: RunDir,
    /// The program that supervisors are, in a form that nobody can write to.
    program: OwnedFd,
}

impl Linux {
    /// The containers whose supervisors keep their records in `run_dir`, which is made where it is
    /// missing. Supervisors are `program`, which must call [`super::supervise`]; without one, they
    /// are this program.
    ///
    /// # Errors
    ///
    /// `run_dir` can't be made or `program` not be opened; the kernel is too old.
    pub fn open(run_dir: &Path, program: Option<&Path>) -> Result<Self> {
        let program = program.unwrap_or(Path::new("/proc/self/exe"));
        let sealed = match seal(program) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let reason = "containers need Linux 5.12 or later";
                return Err(Error::Unsupported(reason.to_owned()));
            }
            sealed => sealed.map_err(|e| Error::io("open", program.display(), e))?,
        };
        Ok(Self { run_dir: RunDir::open(run_dir)?, program: sealed })
    }

    /// The program, as a path by which this process's children can execute it.
    fn program(&self) -> OsString {
        format!("/proc/self/fd/{}", self.program.as_raw_fd()).into()
    }

    fn change(&self, verb: Verb, container: &Id, mount: &Mount, others: &[Mount]) -> Result<bool> {
        let change = Change { verb, mount: mount.clone(), others: others.to_vec() };
        super::live::ask(&self.run_dir, &self.program(), container, &change)
    }

    /// Every process of the container is gone, by SIGKILL.
    fn end(&self, container: &Id, first: &Id, init: Option<&OwnedFd>) -> io::Result<()> {
        let watcher = self.run_dir.connect(first).map_err(io::Error::other)?;
        if let Some(init) = init {
            send(init, Signal::KILL)?;
        }
        self.run_dir.wait_until_ended(container, watcher)?;
        match init {
            Some(init) if !kernel::ends_within(init, KILL_TIME)? => Err(not_ended()),
            _ => Ok(()),
        }
    }
}

impl Platform for Linux {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn check(&self, network: NetworkDriver, jail_param: &[String]) -> Result<()> {
        match network {
            NetworkDriver::Host | NetworkDriver::Disabled => (),
            NetworkDriver::Ipnet | NetworkDriver::Vnet => {
                return Err(Error::Unsupported(format!(
                    "the network driver '{}' is not supported on Linux: use 'host' or 'disabled'",
                    network.as_str()
                )));
            }
        }
        for parameter in jail_param {
            let name = parameter.split('=').next().unwrap_or_default();
            let word = |word: &str| {
                word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            if !name.split('.').all(word) || parameter.contains('\0') {
                return Err(Error::Invalid(format!(
                    "'{}' is no jail parameter: write NAME or NAME=VALUE, with a name as in jail(8)",
                    parameter.escape_default()
                )));
            }
            tracing::warn!(parameter, "a jail parameter has no effect on Linux");
        }
        Ok(())
    }

    fn check_limits(&self, limits: &[String]) -> Result<()> {
        match limits {
            [] => Ok(()),
            _ => Err(Error::Unsupported(
                "limits of what a container may use are not supported on Linux: they are those of \
                 FreeBSD's rctl(8)"
                    .to_owned(),
            )),
        }
    }

    fn limit(&self, _container: &Id, limits: &[String]) -> Result<()> {
        self.check_limits(limits)
    }

    fn update(&self, _container: &Id, _jail_param: &[String]) -> Result<()> {
        // None of them has an effect.
        Ok(())
    }

    fn prepare(&self, root: &Path, mounts: &[Mount]) -> Result<()> {
        mountpoint::prepare(root, mounts)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        supervisor::spawn(&self.run_dir, &self.program(), launch)
    }

    fn connect(&self, instance: &Id) -> Result<Option<UnixStream>> {
        self.run_dir.connect(instance)
    }

    fn running(&self) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for container in self.run_dir.containers()? {
            let Some((instance, state)) = self.run_dir.state(&container)? else { continue };
            let alive = kernel::open_process(state.jid, state.birth)
                .map_err(|e| Error::io("look for", format_args!("container {container}"), e))?;
            if alive.is_some() {
                let State { jid, started, .. } = state;
                running.push(Running { container, instance, jid, started });
            }
        }
        Ok(running)
    }

    fn exited(&self, instance: &Id) -> Result<Option<Exited>> {
        self.run_dir.exited(instance)
    }

    fn is_lost(&self, instance: &Id) -> Result<bool> {
        self.run_dir.is_lost(instance)
    }

    fn mounts(&self, container: &Id) -> Result<Vec<MountEntry>> {
        let not_running = || Error::NotRunning(container.clone());
        let (_, state) = self.run_dir.state(container)?.ok_or_else(not_running)?;
        let look = || -> io::Result<_> {
            let Some(init) = kernel::open_process(state.jid, state.birth)? else { return Ok(None) };
            let mounts = kernel::mounts(state.jid);
            // The number was this process's all the time, because it still is.
            if kernel::has_ended(init)? { Ok(None) } else { mounts.map(Some) }
        };
        look()
            .map_err(|e| Error::io("list the mounts of", format_args!("container {container}"), e))?
            .ok_or_else(not_running)
    }

    fn attach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<()> {
        self.change(Verb::Attach, container, mount, others).map(drop)
    }

    fn detach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<bool> {
        self.change(Verb::Detach, container, mount, others)
    }

    fn terminate(&self, container: &Id, _time: Duration) -> Result<bool> {
        let Some((_, state)) = self.run_dir.state(container)? else { return Ok(false) };
        // Pid 1 passes it on to all.
        kernel::open_process(state.jid, state.birth)
            .and_then(|init| init.map_or(Ok(false), |init| send(&init, Signal::TERM)))
            .map_err(|e| Error::io("end", format_args!("container {container}"), e))
    }

    fn kill(&self, container: &Id) -> Result<bool> {
        let fail = |error| Error::io("kill", format_args!("container {container}"), error);
        let open = |state: &State| kernel::open_process(state.jid, state.birth).map_err(fail);
        let (first, init) = match self.run_dir.state(container)? {
            Some((first, state)) => (first, open(&state)?),
            None => match self.run_dir.remains(container)? {
                Some((first, state)) => match open(&state)? {
                    Some(init) => (first, Some(init)),
                    None => return Ok(false),
                },
                None => return Ok(false),
            },
        };
        self.end(container, &first, init.as_ref()).map_err(fail)?;
        Ok(true)
    }

    fn release(&self, container: &Id, root: &Path) -> Result<()> {
        if !self.run_dir.release(container)? {
            return Err(Error::Running(container.clone()));
        }
        // Its pid 1 goes with its supervisor, but that can take a while.
        self.kill(container)?;
        unmount_below(root)?;
        self.run_dir.release_instances(container)
    }

    fn forget(&self, instance: &Id) -> Result<()> {
        self.run_dir.forget(instance)
    }

    fn sweep(&self, known: &dyn Fn(&Id) -> bool) -> Result<()> {
        self.run_dir.sweep(known)
    }
}

/// The process was sent the signal. False where it has ended.
fn send(process: &OwnedFd, signal: Signal) -> io::Result<bool> {
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Nothing is mounted below the directory, as this process sees it.
fn unmount_below(root: &Path) -> Result<()> {
    let fail = |what: &Path, error: io::Error| Error::io("unmount", what.display(), error);
    // What is mounted is listed by its path without links.
    let root = match std::fs::canonicalize(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| fail(root, error))?,
    };
    let mounts = kernel::mounts("thread-self").map_err(|error| fail(&root, error))?;
    // The last one is on top.
    for mount in mounts.iter().rev() {
        let path = &mount.destination;
        if path.starts_with(&root) && *path != root {
            rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)
                .map_err(|errno| fail(path, errno.into()))?;
        }
    }
    Ok(())
}

/// The program, to be executed by its descriptor. A container whose processes get hold of it through
/// `/proc/PID/exe` can't write to the host's copy (CVE-2019-5736).
fn seal(program: &Path) -> io::Result<OwnedFd> {
    let file = rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let tree = clone_tree(&file, false).and_then(|tree| {
        restrict(&tree, Attributes::MOUNT_ATTR_RDONLY, false)?;
        Ok(tree)
    });
    match tree {
        Ok(tree) => Ok(tree),
        // Not even the calls are there.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(error),
        // It is on a mount of another namespace, or was removed.
        Err(_) => copy_to_memory(program),
    }
}

fn copy_to_memory(program: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("kleened", flags)?;
    let mut copy = std::fs::File::from(memory);
    io::copy(&mut std::fs::File::open(program)?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    // What is open for writing can't be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// See [`super::supervise`].
pub(super) fn supervise(dir: &Path) -> ExitCode {
    supervisor::main(dir, start::start)
}

/// See [`super::change_mounts`].
pub(super) fn change_mounts(dir: &Path) -> ExitCode {
    super::live::main(dir, live::change)
}
