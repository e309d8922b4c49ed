//! How a supervisor starts a process, in a new jail or in one that runs.
//!
//! The process is the supervisor's child, and attaches itself to the jail. A pipe that is closed when the
//! program is executed carries what went wrong before. Processes that lose their parent in the jail become
//! children of the host's `init(8)`, which waits for them.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kleened_api::Timestamp;
use kleened_sys::jail::param::Parameter;
use kleened_sys::process::{Fork, fork};
use kleened_sys::watch::Watch;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::pty::OpenptFlags;

use super::cage::Cage;
use super::process::READY;
use super::{container, kernel, process};
use crate::platform::jail_param::{Hook, Plan};
use crate::platform::program::exit_code;
use crate::platform::stdio::{Stdio, Terminal, open_streams};
use crate::platform::supervisor::{
    Event, Failure, Guest, KILLED, Started, State, Streams, read_all,
};
use crate::platform::{Error, Launch, Setup};

/// How long a process in a new jail may take until its program is executed: disks may have to wake up.
const CREATE_TIME: Duration = Duration::from_secs(60);

/// How long that may take in a running jail, whose superuser can stop the process on its way.
const JOIN_TIME: Duration = Duration::from_secs(10);

/// How long the other processes of a jail may take to be gone after one was killed, for both to be one
/// event.
const TOGETHER: Duration = Duration::from_millis(200);

/// So much of a terminal's output is read before there is somebody to take it.
const EARLY: usize = 256 * 1024;

/// How often it is looked whether a jail is gone that has no process, and stays all the same.
const LOOK: Duration = Duration::from_secs(1);

/// As soon as possible.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Starts the process of `launch`: in a new jail, or in the running one of that state.
pub(super) fn start(launch: &Launch, joined: Option<&State>) -> Result<Started<Inmate>, Failure> {
    rustix::process::umask(Mode::empty());
    match (&launch.setup, joined) {
        (Some(setup), _) => create(launch, setup),
        (None, Some(state)) => join(launch, state),
        (None, None) => Err(Error::NotRunning(launch.container.clone()).into()),
    }
}

fn create(launch: &Launch, setup: &Setup) -> Result<Started<Inmate>, Failure> {
    let plan = Plan::new(&setup.jail_param, setup.network, &setup.hostname);
    let plan = plan.map_err(Error::Invalid)?;
    let parameters = parameters(launch, setup, &plan)?;
    let rules = super::rules(&launch.container, &setup.limits)?;
    let mut launch = launch.clone();
    if let Some(user) = plan.user.clone().filter(|_| launch.process.user.is_empty()) {
        launch.process.user = user;
    }
    // Of one whose supervisor was killed.
    super::clear(&launch.container, &setup.root)?;

    // What is made from here on goes with this when something fails.
    let mut cage = Cage::new(&launch.container, &setup.root, plan);
    cage.run(Hook::Prepare)?;
    cage.add_addresses()?;
    container::build(setup, cage.plan())?;
    cage.run(Hook::Prestart)?;
    // They can be there before the jail is.
    super::limit(&rules)?;
    let jid = cage.make(&parameters)?;
    cage.run(Hook::Created)?;
    cage.hand_over(jid)?;
    let fib = cage.plan().fib;
    let terminal = launch.process.tty.then(open_terminal);
    let (mut streams, stdio) = open_streams(&launch.process, terminal.transpose())?;
    let process = Child::start(&launch, (jid, fib), stdio)?;
    if !cage.plan().persist {
        // From here on it goes with its last process, as in jail(8).
        cage.set(&[Parameter::flag("nopersist")])?;
    }
    cage.run_with(Hook::Poststart, &mut || read_early(&mut streams))?;
    let state = State { jid, birth: 0, started: Timestamp::now(), fib };
    let guest = Inmate::new(process, jid, Some(cage))?;
    Ok(Started { streams, guest, state: Some(state) })
}

/// What a terminal says is read at once: one whose process ends waits a second for that, and throws it away,
/// `tty_drain()` in `sys/kern/tty.c`.
fn read_early(streams: &mut Streams) {
    let mut buffer = [0; 4096];
    let is_open = streams.terminal && rustix::io::ioctl_fionbio(&streams.output, true).is_ok();
    while is_open && streams.early.len() < EARLY {
        match rustix::io::read(&streams.output, &mut buffer) {
            Ok(length) if length > 0 => {
                streams.early.extend_from_slice(buffer.get(..length).unwrap_or_default());
            }
            _ => return,
        }
    }
}

/// What the kernel is told of a new jail.
fn parameters(launch: &Launch, setup: &Setup, plan: &Plan) -> Result<Vec<Parameter>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let table = super::table(&setup.jail_param)?;
    let mut parameters = plan.encode(&table).map_err(Error::Invalid)?;
    if plan.ip_hostname {
        parameters.extend(addresses(plan.hostname().unwrap_or(&setup.hostname))?);
    }
    // It is the daemon's directory, and no link.
    parameters.extend([
        Parameter::text("path", setup.root.as_os_str().as_bytes()),
        Parameter::text("name", launch.container.as_str().as_bytes()),
        Parameter::flag("persist"),
    ]);
    Ok(parameters)
}

/// The addresses of a host name, as parameters.
fn addresses(hostname: &str) -> Result<Vec<Parameter>, Error> {
    let found = (hostname, 0).to_socket_addrs().map_err(|error| {
        Error::io("look up", format_args!("the addresses of {hostname}"), error)
    })?;
    let (mut ip4, mut ip6) = (Vec::new(), Vec::new());
    for address in found {
        match address.ip() {
            IpAddr::V4(address) if !ip4.contains(&address) => ip4.push(address),
            IpAddr::V6(address) if !ip6.contains(&address) => ip6.push(address),
            _ => (),
        }
    }
    let mut parameters = Vec::new();
    if !ip4.is_empty() {
        let bytes = ip4.iter().flat_map(std::net::Ipv4Addr::octets).collect();
        parameters.push(Parameter::bytes("ip4.addr", bytes));
    }
    if !ip6.is_empty() {
        let bytes = ip6.iter().flat_map(std::net::Ipv6Addr::octets).collect();
        parameters.push(Parameter::bytes("ip6.addr", bytes));
    }
    Ok(parameters)
}

fn join(launch: &Launch, state: &State) -> Result<Started<Inmate>, Failure> {
    let found = super::find(&launch.container)?;
    if found != Some(state.jid) {
        return Err(Error::NotRunning(launch.container.clone()).into());
    }
    let terminal = launch.process.tty.then(open_terminal);
    let (streams, stdio) = open_streams(&launch.process, terminal.transpose())?;
    let process = Child::start(launch, (state.jid, state.fib), stdio)?;
    let guest = Inmate::new(process, state.jid, None)?;
    Ok(Started { streams, guest, state: None })
}

/// A new terminal. It is the host's, and the processes of the jail that have it as theirs can open it in
/// their `/dev`: `devfs_prison_check()` in `sys/fs/devfs/devfs_vnops.c`.
fn open_terminal() -> io::Result<Terminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, Mode::empty())?;
    Ok(Terminal { master, slave })
}

/// A child of this process, until it is waited for. Dropping it kills it.
#[derive(Debug)]
struct Child(Option<Pid>);

impl Child {
    /// One that is the program of `launch`, in the jail with this id, using the routing table.
    ///
    /// From then on its ends of its input and output are its own alone: what is still in a terminal when
    /// its last end is closed is waited for, and thrown away when the kernel has to close it,
    /// `ttydev_close()` in `sys/kern/tty.c`.
    fn start(launch: &Launch, jail: (i32, Option<i32>), stdio: Stdio) -> Result<Self, Failure> {
        let fail = |error: io::Error| Error::io("start", "the process", error);
        let (from, line) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| Error::io("open", "a line to the container", errno))?;
        let child = match fork().map_err(|error| Error::io("fork", "the process", error))? {
            Fork::Child => process::execute(launch, jail, &stdio, &line),
            Fork::Parent(pid) => Self(Some(pid)),
        };
        drop((line, stdio));
        let time = if launch.setup.is_some() { CREATE_TIME } else { JOIN_TIME };
        let said = read_all(from, time).map_err(fail)?;
        let failure = match said.as_slice() {
            [READY] => return Ok(child),
            [READY, rest @ ..] => rest,
            // It was killed from outside, or the container that it was to join was.
            [] if launch.setup.is_none() => {
                return Err(Error::NotRunning(launch.container.clone()).into());
            }
            [] => {
                let killed = Error::io("start", "the process: it was killed", Errno::SRCH);
                return Err(killed.into());
            }
            failure => failure,
        };
        Err(serde_json::from_slice(failure).map_err(|error| fail(error.into()))?)
    }

    /// How it ended; `None` where it has not.
    fn wait(&mut self, options: WaitOptions) -> io::Result<Option<i32>> {
        let Some(pid) = self.0 else { return Ok(None) };
        match rustix::process::waitpid(Some(pid), options) {
            Ok(Some((_, status))) => {
                self.0 = None;
                Ok(Some(exit_code(status)))
            }
            Ok(None) | Err(Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // It was not waited for: the number is still its own.
        let pid = self.0.ok_or(Errno::SRCH)?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        while self.0.is_some() && self.wait(WaitOptions::empty()).is_ok() {}
    }
}

/// A process in a jail.
#[derive(Debug)]
pub(super) struct Inmate {
    process: Child,
    jid: i32,
    watch: Watch,
    /// The jail, of a first process.
    cage: Option<Cage>,
    /// Whether its end was reported.
    reported: bool,
}

impl Inmate {
    fn new(process: Child, jid: i32, cage: Option<Cage>) -> Result<Self, Failure> {
        let watch = || -> io::Result<_> {
            let watch = Watch::new()?;
            if let Some(pid) = process.0
                && !watch.exit_of(pid)?
            {
                watch.after(AT_ONCE)?;
            }
            Ok(watch)
        };
        let watch = watch().map_err(|error| Error::io("watch", "the process", error))?;
        Ok(Self { process, jid, watch, cage, reported: false })
    }

    /// Whether the jail went with the process.
    fn is_last(&self, code: i32) -> io::Result<bool> {
        match (&self.cage, code) {
            (_, KILLED) => kernel::is_over_within(self.jid, TOGETHER),
            (Some(_), _) => kernel::is_over(self.jid),
            (None, _) => Ok(false),
        }
    }

    /// Sees to it that there is an event when the jail is over, or may be.
    ///
    /// As long as any one process is there, the jail is: one is enough to watch.
    fn watch_jail(&self) -> io::Result<()> {
        for pid in kleened_sys::process::of_jail(self.jid)? {
            if self.watch.exit_of(pid)? {
                return Ok(());
            }
        }
        let over = kernel::is_over(self.jid)?;
        self.watch.after(if over { AT_ONCE } else { LOOK })
    }
}

impl Guest for Inmate {
    fn events(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    fn event(&mut self) -> io::Result<Option<Event>> {
        if !self.watch.take()? {
            return Ok(None);
        }
        if !self.reported {
            let Some(code) = self.process.wait(WaitOptions::NOHANG)? else {
                // The kernel tells it a moment before.
                self.watch.after(AT_ONCE)?;
                return Ok(None);
            };
            self.reported = true;
            // Where it can't be found out it is found out later.
            let last = self.is_last(code).unwrap_or(false);
            match self.cage {
                Some(_) => self.watch_jail()?,
                None => self.watch.after(AT_ONCE)?,
            }
            return Ok(Some(Event::Exited { code, last }));
        }
        let Some(cage) = &mut self.cage else { return Ok(Some(Event::Ended)) };
        if !kernel::is_over(self.jid)? {
            self.watch_jail()?;
            return Ok(None);
        }
        // What can't be unmounted now the daemon finds, and says so.
        let _ = cage.end();
        Ok(Some(Event::Ended))
    }

    fn signal(&self, number: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        self.process.signal(signal)
    }
}
