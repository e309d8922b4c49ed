//! The process beside each process that runs in a container: it owns its input and output, keeps the
//! log, and records how it ended. It outlives the daemon.
//!
//! The daemon makes the instance's directory ([`RunDir::create`]) and starts itself anew
//! ([`spawn`]); the new process detaches itself ([`main`]), lets the platform start the process, says
//! so to the daemon, and carries bytes ([`relay`]) until nothing is left to do. It has one thread,
//! and no descriptor of the daemon's.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kleened_api::Id;
use kleened_sys::process::Fork;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod log;
mod records;
mod relay;
mod run_dir;
pub mod wire;

pub(crate) use records::{KILL_TIME, not_ended};
pub(crate) use run_dir::{Instance, RunDir, State};

use super::{Error, Launch, Result};
use log::LogWriter;
use relay::Relay;

/// The subcommand that makes a program a supervisor: it is followed by the instance's directory.
pub const SUBCOMMAND: &str = "supervise";

/// The exit status of what SIGKILL ended.
pub(crate) const KILLED: i32 = 128 + 9;

/// The supervisor's ends of a process's input and output.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Nothing where the process reads an empty input.
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: OwnedFd,
    /// Nothing with a terminal.
    pub(crate) errors: Option<OwnedFd>,
    pub(crate) terminal: bool,
    /// What was read of the output already.
    pub(crate) early: Vec<u8>,
}

/// What becomes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The process has ended, and with `last` the container with it.
    Exited {
        /// 0–255, or 128 and the signal's number.
        code: i32,
        last: bool,
    },
    /// There is nothing left to supervise: of a first process, the container is gone.
    Ended,
}

/// The process, as the platform knows it.
pub(crate) trait Guest {
    /// Readable when [`Guest::event`] has something to say.
    fn events(&self) -> BorrowedFd<'_>;

    /// What has happened, without waiting: [`Event::Exited`] once, and then [`Event::Ended`].
    fn event(&mut self) -> io::Result<Option<Event>>;

    /// The process gets the signal.
    fn signal(&self, number: i32) -> io::Result<()>;
}

/// A process that has been started.
#[derive(Debug)]
pub(crate) struct Started<G> {
    pub(crate) streams: Streams,
    pub(crate) guest: G,
    /// The container that was made for it, if one was.
    pub(crate) state: Option<State>,
}

/// How a platform starts a process: in a new container, or in the one with that state.
pub(crate) type Start<G> = fn(&Launch, Option<&State>) -> std::result::Result<Started<G>, Failure>;

/// What crosses a pipe when something could not be done: [`Error`] in a form that can.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Invalid(String),
    NotRunning(Id),
    Running(Id),
    Mount { mount: String, reason: String },
    Busy { mount: String, reason: String },
    Start { program: String, reason: String, exit_code: i32 },
    Unsupported(String),
    Io { what: String, errno: Option<i32> },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(text) => Self::Invalid(text),
            Error::NotRunning(id) => Self::NotRunning(id),
            Error::Running(id) => Self::Running(id),
            Error::Mount { mount, reason } => Self::Mount { mount, reason },
            Error::Busy { mount, reason } => Self::Busy { mount, reason },
            Error::Start { program, reason, exit_code } => {
                Self::Start { program, reason, exit_code }
            }
            Error::Unsupported(text) => Self::Unsupported(text),
            Error::Io { ref source, .. } => {
                let errno = source.raw_os_error();
                let cause = if errno.is_none() { format!(": {source}") } else { String::new() };
                Self::Io { what: format!("{error}{cause}"), errno }
            }
        }
    }
}

impl Failure {
    /// The error again, met when `verb` was tried on `container`.
    pub(crate) fn into_error(self, verb: &'static str, container: &Id) -> Error {
        match self {
            Self::Invalid(text) => Error::Invalid(text),
            Self::NotRunning(id) => Error::NotRunning(id),
            Self::Running(id) => Error::Running(id),
            Self::Mount { mount, reason } => Error::Mount { mount, reason },
            Self::Busy { mount, reason } => Error::Busy { mount, reason },
            Self::Start { program, reason, exit_code } => {
                Error::Start { program, reason, exit_code }
            }
            Self::Unsupported(text) => Error::Unsupported(text),
            Self::Io { what, errno } => {
                let source = match errno {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::other("the process that was to do it failed"),
                };
                Error::io(verb, format_args!("container {container}: {what}"), source)
            }
        }
    }
}

/// How long a process may take to answer. It has limits of its own, which are shorter.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// What a process answers to the daemon, once.
pub(crate) type Answer<T> = std::result::Result<T, Failure>;

/// The process of `launch` runs under a supervisor, which is `program` with [`SUBCOMMAND`].
///
/// # Errors
///
/// What the supervisor says; then nothing is left of it.
pub(crate) fn spawn(run_dir: &RunDir, program: &OsStr, launch: &Launch) -> Result<()> {
    let instance = run_dir.create(launch)?;
    ask(program, SUBCOMMAND, instance.path(), &[]).map_err(|failure| {
        // The reason counts, not what is left of the attempt: `release` clears that away.
        let _ = run_dir.remove(&launch.instance);
        failure.into_error("start a process in", &launch.container)
    })
}

/// Starts this program as a process of another kind, and waits for its answer.
pub(crate) fn ask<T: DeserializeOwned>(
    program: &OsStr,
    subcommand: &str,
    dir: &Path,
    input: &[u8],
) -> Answer<T> {
    ask_process(program, subcommand, dir, input).unwrap_or_else(|error| {
        Err(Failure::Io {
            what: format!("cannot run '{subcommand}': {error}"),
            errno: error.raw_os_error(),
        })
    })
}

/// The answer comes as the process's output.
fn ask_process<T: DeserializeOwned>(
    program: &OsStr,
    subcommand: &str,
    dir: &Path,
    input: &[u8],
) -> io::Result<Answer<T>> {
    let mut command = Command::new(program);
    command.arg0("kleened").arg(subcommand).arg(dir).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut to) = child.stdin.take() {
        // One that does not read it has another reason to fail, which it says.
        let _ = to.write_all(input);
    }
    let answer = child.stdout.take().map(|output| read_all(output.into(), ANSWER_TIME));
    // It has detached itself long ago, or never will.
    let _ = child.kill();
    child.wait()?;
    let answer = answer.transpose()?.unwrap_or_default();
    if answer.is_empty() {
        return Err(io::Error::other("it ended without an answer"));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// What comes through a pipe until it is closed.
///
/// # Errors
///
/// `TimedOut` where it is not closed in that time.
pub(crate) fn read_all(from: OwnedFd, time: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + time;
    let mut from = std::fs::File::from(from);
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&from, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => (),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match from.read(&mut buffer)? {
            0 => return Ok(bytes),
            length => bytes.extend(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// The body of a supervisor: returns when there is nothing left to supervise.
///
/// Must be called before there is a second thread. The answer to the daemon goes to standard output.
pub(crate) fn main<G: Guest>(dir: &Path, start: Start<G>) -> ExitCode {
    let run = || -> io::Result<()> {
        let mut answer = detach()?;
        let answered = match Supervision::begin(dir, start) {
            Ok(supervision) => (Ok(()), Some(supervision)),
            Err(failure) => (Err(failure), None),
        };
        // Where the daemon is gone, the process runs all the same.
        let _ = answer.write_all(&serde_json::to_vec::<Answer<()>>(&answered.0)?);
        drop(answer);
        match answered.1 {
            Some(supervision) => supervision.go_on(),
            None => Ok(()),
        }
    };
    if run().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The process is nobody's child, has a session of its own, and no descriptor but the pipe to the
/// daemon, which is returned.
fn detach() -> io::Result<std::fs::File> {
    kleened_sys::process::close_inherited()?;
    let answer = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    if kleened_sys::process::fork()? != Fork::Child {
        kleened_sys::process::exit_now(0);
    }
    rustix::process::setsid()?;
    Ok(answer.into())
}

/// The instance that has this directory, with the directory of all.
pub(crate) fn open_instance(dir: &Path) -> Result<(RunDir, Id, Instance)> {
    let missing = || not_found(dir);
    let run_dir = RunDir::open(dir.parent().ok_or_else(missing)?)?;
    let name = dir.file_name().and_then(OsStr::to_str);
    let id: Id = name.and_then(|name| name.parse().ok()).ok_or_else(missing)?;
    let instance = run_dir.instance(&id)?.ok_or_else(missing)?;
    Ok((run_dir, id, instance))
}

fn not_found(dir: &Path) -> Error {
    Error::io("open", dir.display(), io::ErrorKind::NotFound)
}

/// A supervisor whose process runs.
struct Supervision<G> {
    instance: Instance,
    lock: OwnedFd,
    container: Option<(OwnedFd, LogWriter)>,
    listener: std::os::unix::net::UnixListener,
    started: Started<G>,
    attach: bool,
}

impl<G: Guest> Supervision<G> {
    fn begin(dir: &Path, start: Start<G>) -> std::result::Result<Self, Failure> {
        let missing = || not_found(dir);
        let (run_dir, id, instance) = open_instance(dir)?;
        let lock = run_dir.lock_instance(&instance)?.ok_or_else(missing)?;
        let launch = instance.launch()?.ok_or_else(missing)?;
        let listener = instance.listen()?;
        let (container, joined) = match &launch.setup {
            Some(setup) => {
                let claimed = run_dir.claim(&launch.container, &id)?;
                let claimed = claimed.ok_or_else(|| Error::Running(launch.container.clone()))?;
                let log = LogWriter::open(&setup.log)
                    .map_err(|error| Error::io("open", setup.log.path.display(), error))?;
                (Some((claimed, log)), None)
            }
            None => {
                let not_running = || Error::NotRunning(launch.container.clone());
                let first = run_dir.holder(&launch.container)?.ok_or_else(not_running)?;
                let first = run_dir.instance(&first)?.ok_or_else(not_running)?;
                (None, Some(first.state()?.ok_or_else(not_running)?))
            }
        };
        let started = start(&launch, joined.as_ref())?;
        // Dropping the guest ends it.
        instance.reserve_exit()?;
        if let Some(state) = &started.state {
            instance.set_state(state)?;
        }
        let attach = launch.attach;
        Ok(Self { instance, lock, container, listener, started, attach })
    }

    fn go_on(self) -> io::Result<()> {
        let Started { streams, guest, .. } = self.started;
        let (instance, attach) = (&self.instance, self.attach);
        let mut relay = Relay::new(instance, self.lock, self.listener, guest, streams, attach)?;
        if let Some((lock, log)) = self.container {
            relay.of_container(lock, log);
        }
        relay.run()
    }
}
