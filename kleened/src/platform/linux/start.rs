//! How a supervisor starts a process, in a new container or in one that runs.
//!
//! The process has a parent inside the container: pid 1 of a new one, which ends with the last
//! process, or one that was moved into the running container and ends with the new process. The
//! parent reports over a socket: first a descriptor of the process, then how it ended. A pipe that is
//! closed when the program is executed carries what went wrong before.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use kleened_api::Timestamp;
use kleened_sys::fs::resolve_in_root;
use kleened_sys::process::{Fork, Namespaces, exit_now, fork};
use nix::sys::signal::{self, SigSet};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions};
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, ThreadNameSpaceType};

use super::container::{self, Parts};
use super::{kernel, process};
use crate::platform::program::{exit_code, give_up, is_abandoned};
use crate::platform::stdio::{Stdio, Terminal, open_streams};
use crate::platform::supervisor::{Event, Failure, Guest, KILLED, Started, State, read_all};
use crate::platform::{Error, Launch, Process, Setup};

/// How long a new container may take until its program is executed: disks may have to wake up.
const CREATE_TIME: Duration = Duration::from_secs(60);

/// How long that may take in a running container, whose superuser can stop the process on its way.
const JOIN_TIME: Duration = Duration::from_secs(10);

/// `devpts`, from `linux/magic.h`.
const DEVPTS: i64 = 0x1cd1;

/// Starts the process of `launch`: in a new container, or in the running one of that state.
pub(super) fn start(launch: &Launch, joined: Option<&State>) -> Result<Started<Inmate>, Failure> {
    // What is inside must neither trace this process nor look into it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| Error::io("protect", "the supervisor", errno))?;
    rustix::process::umask(Mode::empty());
    match (&launch.setup, joined) {
        (Some(setup), _) => create(launch, setup),
        (None, Some(state)) => join(launch, state),
        (None, None) => Err(Error::NotRunning(launch.container.clone()).into()),
    }
}

fn create(launch: &Launch, setup: &Setup) -> Result<Started<Inmate>, Failure> {
    let parts = Parts::open(setup)?;
    let terminal = launch.process.tty.then(|| open_terminal(parts.terminals.as_fd(), "ptmx"));
    let (streams, stdio) = open_streams(&launch.process, terminal.transpose())?;
    let (near, far) = open_line()?;
    kleened_sys::process::unshare(Namespaces::NEWPID)
        .map_err(|error| Error::io("make", "a pid namespace", error))?;
    let pid = match fork().map_err(|error| Error::io("fork", "pid 1", error))? {
        Fork::Child => be_init(setup, parts, &launch.process, &stdio, far),
        Fork::Parent(pid) => pid,
    };
    let init = Init(Some(pid));
    drop((parts, far));
    let process = near.wait_for_start(launch)?;
    let state = State {
        jid: pid.as_raw_nonzero().get(),
        birth: kernel::birth(pid).map_err(|error| Error::io("look at", "pid 1", error))?,
        started: Timestamp::now(),
        fib: None,
    };
    let guest = Inmate::new(near.report, process, init, None, stdio);
    Ok(Started { streams, guest, state: Some(state) })
}

fn join(launch: &Launch, state: &State) -> Result<Started<Inmate>, Failure> {
    let init = kernel::open_process(state.jid, state.birth)
        .map_err(|error| Error::io("find", format_args!("container {}", launch.container), error))?
        .ok_or_else(|| Error::NotRunning(launch.container.clone()))?;
    let terminal = launch.process.tty.then(|| {
        let root = kernel::root(state.jid)?;
        // The number was this process's when the root was opened, because it still is.
        if kernel::has_ended(&init)? {
            return Err(Errno::SRCH.into());
        }
        open_terminal(root.as_fd(), "dev/pts/ptmx")
    });
    let (streams, stdio) = open_streams(&launch.process, terminal.transpose())?;
    let (near, far) = open_line()?;
    let mover = match fork().map_err(|error| Error::io("fork", "a process", error))? {
        Fork::Child => enter(&init, &launch.process, &stdio, far),
        Fork::Parent(pid) => pid,
    };
    drop(far);
    rustix::process::waitpid(Some(mover), WaitOptions::empty())
        .map_err(|errno| Error::io("wait for", "a process", errno))?;
    let process = near.wait_for_start(launch).inspect_err(|_| near.kill_all())?;
    let guest = Inmate::new(near.report, process, Init(None), Some(init), stdio);
    Ok(Started { streams, guest, state: None })
}

/// Pid 1 of a container, until it is waited for. Dropping it ends it, and with it everything inside.
#[derive(Debug)]
struct Init(Option<Pid>);

impl Init {
    /// It is gone, and everything inside with it.
    fn wait(&mut self) {
        if let Some(pid) = self.0.take() {
            // It is this process's child and was not waited for: nothing can fail.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            self.wait();
        }
    }
}

/// How long a container may take to be gone after one of its processes was, for both to be one event.
const TOGETHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A process in a container.
#[derive(Debug)]
pub(super) struct Inmate {
    report: OwnedFd,
    process: OwnedFd,
    /// Of a first process.
    init: Init,
    /// Pid 1, where the process joined.
    joined: Option<OwnedFd>,
    /// Whether its end was reported.
    reported: bool,
    /// The process's end of its terminal: while it is open, the terminal stays, even where the process
    /// has closed it for a moment.
    _terminal: Option<OwnedFd>,
}

impl Inmate {
    fn new(
        report: OwnedFd,
        process: OwnedFd,
        init: Init,
        joined: Option<OwnedFd>,
        stdio: Stdio,
    ) -> Self {
        let _terminal = stdio.into_terminal();
        Self { report, process, init, joined, reported: false, _terminal }
    }
}

impl Guest for Inmate {
    fn events(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    fn event(&mut self) -> io::Result<Option<Event>> {
        let mut report = [0; Report::SIZE];
        match rustix::net::recv(&self.report, &mut report[..], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Ok((Report::SIZE, _)) => {
                let Report { code, last } = Report::from_bytes(report);
                self.reported = true;
                return Ok(Some(Event::Exited { code, last }));
            }
            _ => (),
        }
        self.init.wait();
        if self.reported {
            return Ok(Some(Event::Ended));
        }
        // The parent inside was killed, and with it the process.
        self.reported = true;
        let last = match &self.joined {
            None => true,
            Some(init) => {
                let mut fds = [PollFd::from_borrowed_fd(init.as_fd(), PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&TOGETHER)) == Ok(1)
            }
        };
        Ok(Some(Event::Exited { code: KILLED, last }))
    }

    fn signal(&self, number: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(rustix::process::pidfd_send_signal(&self.process, signal)?)
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        // The parent in the container ends with it.
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// A new terminal, by its multiplexer below `dir`.
fn open_terminal(dir: BorrowedFd<'_>, multiplexer: &str) -> io::Result<Terminal> {
    let place = resolve_in_root(dir, multiplexer, OFlags::PATH)?;
    // Opening anything else that a container has put there could do harm.
    if rustix::fs::fstatfs(&place)?.f_type != DEVPTS {
        return Err(io::Error::other("there is no terminal file system on /dev/pts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve_in_root(dir, multiplexer, flags)?;
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok(Terminal { master, slave })
}

/// The supervisor's end of what connects it with the inside.
struct Near {
    report: OwnedFd,
    failure: OwnedFd,
}

/// The end inside.
struct Far {
    report: OwnedFd,
    failure: OwnedFd,
}

fn open_line() -> Result<(Near, Far), Error> {
    let open = || -> io::Result<_> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Near { report: near, failure: from }, Far { report: far, failure: to }))
    };
    open().map_err(|error| Error::io("open", "a line to the container", error))
}

impl Near {
    /// The process, once its program is executed.
    fn wait_for_start(&self, launch: &Launch) -> Result<OwnedFd, Failure> {
        let wait = || -> io::Result<_> {
            let time = if launch.setup.is_some() { CREATE_TIME } else { JOIN_TIME };
            let failure = read_all(self.failure.try_clone()?, time)?;
            if failure.is_empty() {
                if launch.setup.is_none() {
                    // Its parent, which comes first.
                    receive_process(self.report.as_fd())?;
                }
                receive_process(self.report.as_fd()).map(Ok)
            } else {
                Ok(Err(serde_json::from_slice(&failure)?))
            }
        };
        match wait() {
            Ok(Ok(Some(process))) => Ok(process),
            Ok(Err(failure)) => Err(failure),
            // It was killed from outside, or the container that it was to join was.
            Ok(Ok(None)) if launch.setup.is_none() => {
                Err(Error::NotRunning(launch.container.clone()).into())
            }
            Ok(Ok(None)) => {
                Err(Error::io("start", "the process: it was killed", Errno::SRCH).into())
            }
            Err(error) => Err(Error::io("start", "the process", error).into()),
        }
    }
}

impl Near {
    /// What was handed over is killed: somebody inside may have stopped it.
    fn kill_all(&self) {
        while let Ok(Some(process)) = receive_process_with(self.report.as_fd(), RecvFlags::DONTWAIT)
        {
            let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

/// How the process ended.
struct Report {
    code: i32,
    last: bool,
}

impl Report {
    const SIZE: usize = 5;

    fn bytes(&self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.code.to_ne_bytes();
        [a, b, c, d, self.last.into()]
    }

    fn from_bytes([a, b, c, d, last]: [u8; Self::SIZE]) -> Self {
        Self { code: i32::from_ne_bytes([a, b, c, d]), last: last != 0 }
    }

    fn send(&self, to: &OwnedFd) {
        // Without a supervisor there is nobody to tell.
        let _ = rustix::net::send(to, &self.bytes(), SendFlags::NOSIGNAL);
    }
}

fn send_process(to: &OwnedFd, process: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [process];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(to, &[IoSlice::new(b"p")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_process(from: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    receive_process_with(from, RecvFlags::empty())
}

fn receive_process_with(from: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(from, &mut buffers, &mut control, flags))?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// Pid 1 of a new container: makes it, starts the process in it, and takes care of every process that
/// has lost its parent. What it is sent as SIGTERM it sends to all of them. It ends when there is none
/// left, and everything inside ends with it.
fn be_init(setup: &Setup, parts: Parts, process: &Process, stdio: &Stdio, line: Far) -> ! {
    let Far { report, failure } = line;
    let signals =
        [signal::Signal::SIGTERM, signal::Signal::SIGCHLD].into_iter().collect::<SigSet>();
    let begun = (|| -> Result<Pid, Failure> {
        close_supervisors(&parts.descriptors(), stdio, &report, &failure)?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| Error::io("protect", "pid 1", errno))?;
        if is_abandoned(&failure) {
            return Err(Error::io("start", "pid 1", Errno::SRCH).into());
        }
        container::build(setup, parts)?;
        // Of pid 1 only what is blocked is kept, and does not get lost.
        signals.thread_block().map_err(|errno| Error::io("protect", "pid 1", errno))?;
        run(process, stdio, &report, &failure)
    })();
    let pid = begun.unwrap_or_else(|error| give_up(&failure, error));
    // Whoever it is that gets the signal.
    settle(&[report.as_fd()], CapabilitySet::KILL);
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if ended == pid => {
                Report { code: exit_code(status), last: reap_all() }.send(&report);
            }
            Ok(Some(_)) | Err(Errno::INTR) => (),
            Ok(None) => {
                if signals.wait() == Ok(signal::Signal::SIGTERM) {
                    // There may be nobody any more.
                    let _ = signal::kill(nix::unistd::Pid::from_raw(-1), signal::Signal::SIGTERM);
                }
            }
            Err(_) => exit_now(0),
        }
    }
}

/// This process, which was forked from the supervisor, has nothing of it open but these, the standard
/// ones (of no use to anybody) and the line: what is of the host would be a way out for a process
/// inside that reaches it through `/proc`.
fn close_supervisors(
    keep: &[BorrowedFd<'_>],
    stdio: &Stdio,
    report: &OwnedFd,
    failure: &OwnedFd,
) -> Result<(), Error> {
    let mut keep = keep.to_vec();
    keep.extend([rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]);
    keep.extend(stdio.descriptors());
    keep.extend([report.as_fd(), failure.as_fd()]);
    kleened_sys::process::close_all_but(&keep)
        .map_err(|error| Error::io("close", "the supervisor's files", error))
}

/// Waits for every child that has ended. Whether there is none left.
fn reap_all() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => (),
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// Moves into a container and starts the process there, below a parent that pid 1 adopts and waits
/// for: so the container does not end before the process.
fn enter(init: &OwnedFd, process: &Process, stdio: &Stdio, line: Far) -> ! {
    let Far { report, failure } = line;
    // It is the program that is to hear of it.
    SigSet::from(signal::Signal::SIGTERM)
        .thread_block()
        .unwrap_or_else(|errno| give_up(&failure, Error::io("protect", "a process", errno)));
    close_supervisors(&[init.as_fd()], stdio, &report, &failure)
        .unwrap_or_else(|error| give_up(&failure, error));
    let enter = |spaces| {
        rustix::thread::move_into_thread_name_spaces(init.as_fd(), spaces)
            .unwrap_or_else(|errno| give_up(&failure, Error::io("enter", "the container", errno)));
    };
    // It is the children that this moves; the container's /proc doesn't know this process. Pid 1 adopts
    // those whose parent was inside.
    enter(ThreadNameSpaceType::PROCESS_ID);
    for outside in [true, false] {
        match fork() {
            Ok(Fork::Child) => (),
            Ok(Fork::Parent(child)) => {
                let process = rustix::process::pidfd_open(child, PidfdFlags::empty());
                match process {
                    // It ends at once, unless somebody inside stops it.
                    Ok(process) if outside => end_in_time(child, &process),
                    // The supervisor kills it where it does not get on.
                    Ok(process) => drop(send_process(&report, process.as_fd())),
                    Err(_) => (),
                }
                exit_now(0);
            }
            // There are no new processes where pid 1 has ended.
            Err(error) if error.raw_os_error() == Some(Errno::NOMEM.raw_os_error()) => exit_now(0),
            Err(error) => give_up(&failure, Error::io("fork", "a process", error)),
        }
    }
    enter(
        ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK,
    );
    let pid = run(process, stdio, &report, &failure);
    let pid = pid.unwrap_or_else(|error| give_up(&failure, error));
    let Ok(child) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { exit_now(1) };
    settle(&[report.as_fd(), child.as_fd()], CapabilitySet::empty());
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(report.as_fd(), PollFlags::empty()),
        ];
        let [ended, abandoned] = match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => exit_now(1),
            Ok(_) => fds.each_ref().map(|fd| !fd.revents().is_empty()),
        };
        if ended {
            if let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::empty())
            {
                Report { code: exit_code(status), last: false }.send(&report);
            }
            exit_now(0);
        }
        if abandoned {
            // The process goes with its parent.
            exit_now(1);
        }
    }
}

/// The child has ended by itself, or was killed.
fn end_in_time(child: Pid, process: &OwnedFd) {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let time = rustix::event::Timespec { tv_sec: JOIN_TIME.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&time)));
    if ended != Ok(1) {
        let _ = rustix::process::kill_process(child, Signal::KILL);
    }
    let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
}

/// Starts the process, and hands it to the supervisor.
fn run(
    process: &Process,
    stdio: &Stdio,
    report: &OwnedFd,
    failure: &OwnedFd,
) -> Result<Pid, Failure> {
    let pid = match fork().map_err(|error| Error::io("fork", "the process", error))? {
        Fork::Child => process::execute(process, stdio, failure),
        Fork::Parent(pid) => pid,
    };
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(|child| send_process(report, child.as_fd()))
        .map_err(|error| Error::io("hand over", "the process", error))?;
    Ok(pid)
}

/// The process needs nothing any more but these descriptors and capabilities.
fn settle(keep: &[BorrowedFd<'_>], capabilities: CapabilitySet) {
    // Each of these is a precaution: what is inside can't reach this process.
    let _ = process::keep_capabilities(capabilities);
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"init");
    let _ = kleened_sys::process::close_all_but(keep);
}
