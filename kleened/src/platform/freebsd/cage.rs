//! A jail with what belongs to it, from the first mount to the last.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kleened_api::Id;
use kleened_sys::jail::param::Parameter;
use kleened_sys::jail::{self, Action};
use kleened_sys::process::{Fork, exit_now, fork};
use kleened_sys::zfs::Zfs;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use super::kernel;
use crate::platform::jail_param::{Hook, Plan};
use crate::platform::supervisor::{KILL_TIME, not_ended};
use crate::platform::{Error, Result};

/// What the user's commands are written for.
const SHELL: &str = "/bin/sh";

/// What `jail(8)` runs, too: options that stand after an address are this program's.
const IFCONFIG: &str = "/sbin/ifconfig";

/// Where the host's commands are.
const PATH: &str = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin";

/// A jail that this process makes and ends. Dropping it ends it: nothing of it runs, and nothing is
/// mounted below its root.
#[derive(Debug)]
pub(super) struct Cage {
    container: Id,
    root: PathBuf,
    plan: Plan,
    jid: Option<i32>,
    keeper: Option<Keeper>,
    /// How many addresses of the plan are on the host's interfaces.
    added: usize,
    ended: bool,
}

impl Cage {
    pub(super) fn new(container: &Id, root: &Path, plan: Plan) -> Self {
        let (container, root) = (container.clone(), root.to_owned());
        Self { container, root, plan, jid: None, keeper: None, added: 0, ended: false }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The jail is there. It goes with this process, even where that is killed.
    pub(super) fn make(&mut self, parameters: &[Parameter]) -> Result<i32> {
        let fail = |error: io::Error| {
            Error::io("make", format_args!("the jail of container {}", self.container), error)
        };
        let keeper = Keeper::start(&self.container).map_err(fail)?;
        let keeper = self.keeper.insert(keeper);
        let jid = jail::set(parameters, Action::Create).map_err(|e| fail(e.into()))?;
        self.jid = Some(jid);
        keeper.tell(jid).map_err(fail)?;
        Ok(jid)
    }

    /// The host's interfaces have the addresses of the jail.
    pub(super) fn add_addresses(&mut self) -> Result<()> {
        for alias in &self.plan.aliases {
            ifconfig(&alias.arguments(true))?;
            self.added += 1;
        }
        Ok(())
    }

    /// The host's interfaces have them no more.
    fn remove_addresses(&mut self) -> Result<()> {
        let added = std::mem::take(&mut self.added);
        let aliases = self.plan.aliases.iter().take(added).rev();
        let mut first = Ok(());
        for alias in aliases {
            first = first.and(ifconfig(&alias.arguments(false)));
        }
        first
    }

    /// The datasets and interfaces that the jail is to have are the jail's. The kernel takes them back when it is
    /// gone.
    pub(super) fn hand_over(&self, jid: i32) -> Result<()> {
        for dataset in &self.plan.datasets {
            Zfs::load()
                .map_err(io::Error::from)
                .and_then(|zfs| Ok(zfs.jail(dataset, jid)?))
                .map_err(|error| Error::io("give the jail", dataset, error))?;
        }
        for interface in &self.plan.vnet_interfaces {
            ifconfig(&[interface, "vnet", &jid.to_string()])?;
        }
        Ok(())
    }

    /// The jail has these parameters.
    pub(super) fn set(&self, parameters: &[Parameter]) -> Result<()> {
        let Some(jid) = self.jid else { return Ok(()) };
        let mut all = vec![Parameter::int("jid", jid)];
        all.extend_from_slice(parameters);
        let jail = format_args!("the jail of container {}", self.container);
        jail::set(&all, Action::Update)
            .map(drop)
            .map_err(|error| Error::io("change", jail, io::Error::from(error)))
    }

    /// The host's commands for that time were run, each with success.
    pub(super) fn run(&self, hook: Hook) -> Result<()> {
        self.run_with(hook, &mut || ())
    }

    /// As [`run`](Self::run), doing something meanwhile, over and over.
    pub(super) fn run_with(&self, hook: Hook, meanwhile: &mut dyn FnMut()) -> Result<()> {
        let about = About { container: &self.container, root: &self.root, jid: self.jid };
        for command in self.plan.hook(hook) {
            run(command, self.plan.timeout, &about, meanwhile)
                .map_err(|error| Error::io("run", format_args!("'{command}'"), error))?;
        }
        Ok(())
    }

    /// Nothing of the jail runs, and nothing is mounted below its root. A repeat is safe.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        let gone = self.jid.map_or(Ok(true), |jid| kernel::end_within(jid, KILL_TIME));
        let jail = format_args!("the jail of container {}", self.container);
        match gone {
            Ok(true) => (),
            Ok(false) => return Err(Error::io("end", jail, not_ended())),
            Err(error) => return Err(Error::io("end", jail, error)),
        }
        self.keeper = None;
        // Each of them, as in jail(8): one that fails is not a reason not to clean up.
        let mut first = Ok(());
        for done in [
            self.run(Hook::Poststop),
            super::unlimit(&self.container),
            kernel::unmount_below(&self.root),
            self.remove_addresses(),
            self.run(Hook::Release),
        ] {
            first = first.and(done);
        }
        first
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Changes an interface of the host's.
fn ifconfig(arguments: &[&str]) -> Result<()> {
    let done = Command::new(IFCONFIG).args(arguments).env_clear().stdin(Stdio::null()).output();
    let fail = |error| Error::io("run", format_args!("ifconfig {}", arguments.join(" ")), error);
    match done {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(fail(io::Error::other(said)))
        }
        Err(error) => Err(fail(error)),
    }
}

/// What a command of the host's is told of the jail that it is for.
pub(super) struct About<'a> {
    pub(super) container: &'a Id,
    pub(super) root: &'a Path,
    pub(super) jid: Option<i32>,
}

/// Runs a command of the host's, with a shell and with `JID`, `JNAME` and `JPATH`, as `jail(8)` does.
pub(super) fn run(
    command: &str,
    time: Duration,
    about: &About<'_>,
    meanwhile: &mut dyn FnMut(),
) -> io::Result<()> {
    let mut shell = Command::new(SHELL);
    // A supervisor has none, so that what it makes has the modes that it says.
    let command = format!("umask 022\n{command}");
    shell.arg("-c").arg(command).env_clear().env("PATH", PATH).current_dir("/");
    shell.env("JNAME", about.container.as_str()).env("JPATH", about.root);
    shell.envs(about.jid.map(|jid| ("JID", jid.to_string())));
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = shell.spawn()?;
    let until = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait()? {
            return match status.success() {
                true => Ok(()),
                false => Err(io::Error::other(format!("it failed: {status}"))),
            };
        }
        if Instant::now() > until {
            // And what it started.
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long: exec.timeout"));
        }
        meanwhile();
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that ends the jail when the supervisor was killed. It has nothing open but a pipe, which is
/// closed then.
#[derive(Debug)]
struct Keeper {
    pid: Pid,
    line: OwnedFd,
}

impl Keeper {
    fn start(container: &Id) -> io::Result<Self> {
        let (from, line) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        match fork()? {
            Fork::Child => {
                drop(line);
                keep(container, &from)
            }
            Fork::Parent(pid) => Ok(Self { pid, line }),
        }
    }

    /// It knows which jail it is.
    fn tell(&self, jid: i32) -> io::Result<()> {
        rustix::io::write(&self.line, &jid.to_ne_bytes())?;
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        let wait = || rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        let _ = rustix::io::retry_on_intr(wait);
    }
}

fn keep(container: &Id, line: &OwnedFd) -> ! {
    use std::os::fd::AsFd;

    use nix::sys::signal::{SigSet, Signal};
    let _ = kleened_sys::process::close_all_but(&[line.as_fd()]);
    // What ends the supervisor must not end this first: it is for later.
    let mut ends = SigSet::empty();
    ends.extend([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    let _ = ends.thread_block();
    let mut told = None;
    let mut number = [0; 4];
    loop {
        match rustix::io::read(line, &mut number) {
            Ok(4) => told = Some(i32::from_ne_bytes(number)),
            Err(rustix::io::Errno::INTR) => (),
            _ => break,
        }
    }
    // Of the same name there may be a new one already.
    if let Ok(Some(jid)) = jail::find(container.as_str())
        && told.is_none_or(|told| told == jid)
    {
        let _ = jail::remove(jid);
    }
    exit_now(0)
}
