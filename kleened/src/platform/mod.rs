//! Where processes and mounts are: containers of the host's kernel.
//!
//! A container's processes are started by supervisors, which outlive the daemon. The truth about
//! what runs and what is mounted is the kernel's; nothing here counts.

#[cfg(target_os = "freebsd")]
pub mod freebsd;
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "Linux has no jails"))]
mod jail_address;
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "Linux has no jails"))]
mod jail_param;
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "Linux has no rctl"))]
mod limit;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod live;
mod mountpoint;
mod program;
mod stdio;
pub mod supervisor;
mod user;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kleened_api::container::NetworkDriver;
use kleened_api::mount::MountOptions;
use kleened_api::{Id, Timestamp};
use serde::{Deserialize, Serialize};

/// A result of a platform call.
pub type Result<T> = std::result::Result<T, Error>;

/// What a platform call can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something in the request can't be had on this platform, or is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(Id),
    /// The container runs already.
    #[error("container {0} is running already")]
    Running(Id),
    /// A mount could not be made; what was mounted before it was undone.
    #[error("cannot mount {mount}: {reason}")]
    Mount {
        /// `SOURCE on DESTINATION`.
        mount: String,
        /// What is wrong and with which path.
        reason: String,
    },
    /// A mount can't be taken away now; it is there as it was.
    #[error("cannot unmount {mount}: {reason}")]
    Busy {
        /// `SOURCE on DESTINATION`.
        mount: String,
        /// Who has it, and what to do.
        reason: String,
    },
    /// The process could not be started: no such program, user or directory in the container.
    #[error("cannot start {program}: {reason}")]
    Start {
        /// The first word of the command.
        program: String,
        /// What is wrong.
        reason: String,
        /// 127 where the program was not found, 126 where it can't be run.
        exit_code: i32,
    },
    /// This platform can't.
    #[error("{0}")]
    Unsupported(String),
    /// Everything else.
    #[error("cannot {verb} {object}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The error for a failed call on `object`.
    pub fn io(verb: &'static str, object: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self::Io { verb, object: object.to_string(), source: source.into() }
    }
}

/// A process to start, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The execution instance; names the supervisor's directory.
    pub instance: Id,
    /// The container.
    pub container: Id,
    /// The container to make, with this process as its first; `None` joins the running one.
    pub setup: Option<Setup>,
    /// The process.
    pub process: Process,
    /// Whether nothing of its output may be read before a client is attached.
    pub attach: bool,
}

/// A container to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Its root directory on the host.
    pub root: PathBuf,
    /// Its host name.
    pub hostname: String,
    /// Its network.
    pub network: NetworkDriver,
    /// Jail parameters, `NAME[=VALUE]`.
    pub jail_param: Vec<String>,
    /// Limits, `RESOURCE[:ACTION]=AMOUNT[/PER]`.
    #[serde(default)]
    pub limits: Vec<String>,
    /// Its mounts, in any order.
    pub mounts: Vec<Mount>,
    /// Where its log goes, and how large one file of it may be. Output of later processes is not
    /// logged.
    pub log: LogConfig,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file. An older part has `.1` after its name, and so on.
    pub path: PathBuf,
    /// Bytes after which a new file is begun.
    pub max_size: u64,
    /// How many files there are at most.
    pub max_files: u32,
}

/// A mount to make in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The directory or file on the host.
    pub source: PathBuf,
    /// A path below `source` that is mounted instead, resolved inside it.
    pub subpath: Option<String>,
    /// The absolute path in the container, resolved inside its root.
    pub destination: String,
    /// Whether nothing below it can be written.
    pub read_only: bool,
    /// What else can't be done below it.
    #[serde(default)]
    pub options: MountOptions,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The command: a program, looked up in the environment's `PATH` inside the container, and its
    /// arguments.
    pub argv: Vec<String>,
    /// The environment, `NAME=VALUE`. `PATH`, `HOME`, `USER`, `SHELL`, and with a terminal `TERM`,
    /// are added where they are missing.
    pub env: Vec<String>,
    /// `USER[:GROUP]` by name or number, looked up inside the container.
    pub user: String,
    /// The directory to start in.
    pub workdir: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its input comes from the attached client; otherwise it is empty.
    pub stdin: bool,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The container.
    pub container: Id,
    /// The execution instance of its first process.
    pub instance: Id,
    /// The jail's id; on Linux the process id of its first process, as the host sees it.
    pub jid: i32,
    /// Since when.
    pub started: Timestamp,
}

/// How a container's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// 0–255, or 128 and the signal's number.
    pub code: i32,
    /// When.
    pub at: Timestamp,
}

/// An entry of the kernel's mount table, as a container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where, inside the container.
    pub destination: PathBuf,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// A platform. Every call blocks and is safe to make from several threads at once.
pub trait Platform: Send + Sync + fmt::Debug {
    /// The name: `freebsd` or `linux`.
    fn name(&self) -> &'static str;

    /// Refuses what this platform can't do: a network driver, a jail parameter.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] or [`Error::Unsupported`], saying what to write instead.
    fn check(&self, network: NetworkDriver, jail_param: &[String]) -> Result<()>;

    /// Refuses limits that this platform can't keep.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] or [`Error::Unsupported`], saying what to write or to do instead.
    fn check_limits(&self, limits: &[String]) -> Result<()>;

    /// The running container has these limits, and no others.
    ///
    /// # Errors
    ///
    /// As [`check_limits`](Self::check_limits); what the kernel says, and then it may have some of them.
    fn limit(&self, container: &Id, limits: &[String]) -> Result<()>;

    /// The running container has these jail parameters besides those that it has. Those that only matter when
    /// it starts change nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`]; [`Error::Invalid`]; what the kernel says: not everything can be changed later.
    /// Then nothing changed.
    fn update(&self, container: &Id, jail_param: &[String]) -> Result<()>;

    /// Every mount has something to be mounted on in the container's root: a directory for a
    /// directory, a file for a file; made, with the parents that are missing, where there was
    /// nothing. Nothing outside `root` is touched, whatever links the image has. A repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::Mount`] where there is something of the wrong type, or the way there leads through a
    /// file or a link that leads nowhere.
    fn prepare(&self, root: &Path, mounts: &[Mount]) -> Result<()>;

    /// The process runs, in a new container or in a running one. When this fails nothing is left:
    /// no process, no mount.
    ///
    /// # Errors
    ///
    /// [`Error::Running`] and [`Error::NotRunning`]; [`Error::Mount`]; [`Error::Start`].
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// A connection to an execution instance's supervisor, which speaks
    /// `supervisor::wire`; `None` where it has ended.
    fn connect(&self, instance: &Id) -> Result<Option<UnixStream>>;

    /// The containers that run, by the kernel's word.
    fn running(&self) -> Result<Vec<Running>>;

    /// How the first process of that instance ended; `None` while it has not, and where nobody saw it
    /// (after a power failure).
    fn exited(&self, instance: &Id) -> Result<Option<Exited>>;

    /// Whether the instance's process was started and is gone for certain, and nobody saw how it ended:
    /// the power failed, or its supervisor was killed. [`release`](Self::release) forgets it.
    fn is_lost(&self, instance: &Id) -> Result<bool>;

    /// What is mounted in a running container below its root, by the kernel's word.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    fn mounts(&self, container: &Id) -> Result<Vec<MountEntry>>;

    /// The mount is in the running container, in a place made as [`prepare`](Self::prepare) makes it;
    /// `others` are the mounts that it has beside. Whatever its processes do to the path meanwhile, the
    /// mount is there or nowhere. Where it is there already nothing changes: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`]; [`Error::Mount`], and then nothing is mounted.
    fn attach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<()>;

    /// The mount is not in the running container any more, wherever its processes have moved it, nor is
    /// what is mounted below it because it is so on the host. False where it was not: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`]; [`Error::Busy`] where a process has something of it open, or one of the
    /// `others` is below it; [`Error::Mount`] where something else is in its place. Then it stays.
    fn detach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<bool>;

    /// What the container says that is to be run when it is stopped (`exec.stop`) was run, for at most that
    /// time, and then every process of it was sent SIGTERM. False where it did not run.
    fn terminate(&self, container: &Id, time: Duration) -> Result<bool>;

    /// Every process of the container is gone, by SIGKILL, and so are its mounts; also where its
    /// supervisor is gone or does not answer. False where it did not run: a repeat is safe.
    fn kill(&self, container: &Id) -> Result<bool>;

    /// Nothing is mounted below the root of a container that does not run, and nothing is left of
    /// its instances but the exit status of its first. A repeat is safe.
    fn release(&self, container: &Id, root: &Path) -> Result<()>;

    /// Nothing is left of an ended instance, its exit status included. A repeat is safe.
    fn forget(&self, instance: &Id) -> Result<()>;

    /// Nothing is left of the ended instances of containers that are not `known`: they were removed,
    /// and the daemon ended before it forgot them. A repeat is safe.
    fn sweep(&self, known: &dyn Fn(&Id) -> bool) -> Result<()>;
}

/// The platform of this host, which keeps what it needs to find containers again in `run_dir`.
///
/// # Errors
///
/// `run_dir` can't be made, or the kernel is too old.
pub fn open(run_dir: &Path) -> Result<Box<dyn Platform>> {
    open_with(run_dir, None)
}

/// As [`open`], with another program than this one to be the supervisors: it must call [`supervise`]
/// when it is run with [`supervisor::SUBCOMMAND`].
///
/// # Errors
///
/// As [`open`]; `program` can't be opened.
pub fn open_with(run_dir: &Path, program: Option<&Path>) -> Result<Box<dyn Platform>> {
    #[cfg(target_os = "linux")]
    return Ok(Box::new(linux::Linux::open(run_dir, program)?));
    #[cfg(target_os = "freebsd")]
    return Ok(Box::new(freebsd::FreeBsd::open(run_dir, program)?));
}

/// The body of a supervisor, which is this program run with [`supervisor::SUBCOMMAND`] and the
/// directory of the instance. Must be called before there is a second thread. Returns when the process
/// that it was started for has ended, and the container too, if it is that process's.
#[must_use]
pub fn supervise(dir: &Path) -> ExitCode {
    #[cfg(target_os = "linux")]
    return linux::supervise(dir);
    #[cfg(target_os = "freebsd")]
    return freebsd::supervise(dir);
}

/// The body of a process that changes the mounts of a running container, which is this program run with
/// [`live::SUBCOMMAND`] and the directory of the container's first instance.
#[must_use]
pub fn change_mounts(dir: &Path) -> ExitCode {
    #[cfg(target_os = "linux")]
    return linux::change_mounts(dir);
    #[cfg(target_os = "freebsd")]
    return freebsd::change_mounts(dir);
}
