//! The daemon's life: lock, open, serve, stop.

use std::error::Error as StdError;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, IsTerminal, Read, Write, stderr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Group, User};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Config, LogLevel};
use crate::engine::Engine;
use crate::error::{Error, one_line};
use crate::http::{self, Access, Permit, Server};
use crate::storage::fault::{self, Fault, Plan};
use crate::storage::{self, DRIVERS, Driver};

/// How long clients may take to read their answers when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a change under way may go on when the daemon stops. What is not finished then is finished
/// or taken back when the next daemon starts.
const LAST_CHANGES: Duration = Duration::from_secs(10);

/// How many files the daemon would like to have open: some for each running container.
const OPEN_FILES: u64 = 65_536;

/// A result whose error is only shown.
pub type Result<T, E = Box<dyn StdError + Send + Sync>> = std::result::Result<T, E>;

type LogFilter = reload::Handle<Targets, Registry>;

/// The configuration in `file`, or in the default one, in which everything exists that it names.
///
/// # Errors
///
/// As [`Config::read`]; a storage driver, a user or a group that there is not; a root that is no
/// directory, and a socket that is none.
pub fn configure(file: Option<&Path>) -> Result<Config> {
    let config = Config::read(file)?;
    drivers(&config)?;
    admission(&config)?;
    http::is_socket(&config.socket)?;
    if config.root.is_absolute() && config.root.metadata().is_ok_and(|root| !root.is_dir()) {
        return Err(Box::new(Error::Invalid(format!(
            "{} is no directory: set 'root' to another path",
            config.root.display()
        ))));
    }
    Ok(config)
}

/// Serves until SIGTERM or SIGINT. Then what is under way is finished or taken back, the socket is gone, and
/// containers go on running. SIGHUP reads `file` again.
///
/// # Errors
///
/// A root that another daemon keeps; a storage or platform that can't be opened; a socket that can't
/// be bound.
pub fn run(file: Option<&Path>, config: Config) -> Result<()> {
    let filter = log_to_stderr(config.log_level)?;
    umask(0o022.into());
    raise_open_files();
    let root = storage::root::directory(&config.root);
    let root = root.map_err(Error::storage("find", config.root.display()))?;
    // Held until the end.
    let lock = lock(&root)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(file, config, root, &filter));
    if let Ok(End::Unfinished) = served {
        // A thread still at work can't do without the runtime. It ends with the process, and so does
        // the lock.
        std::mem::forget((runtime, lock));
    } else {
        runtime.shutdown_timeout(FAREWELL);
    }
    served.map(|_| ())
}

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All changes under way have ended.
    Finished,
    /// Some have not.
    Unfinished,
}

async fn serve(
    file: Option<&Path>,
    mut config: Config,
    root: PathBuf,
    filter: &LogFilter,
) -> Result<End> {
    let mut stop = Stop::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (access, permit) = admission(&config)?;
    let opening = Config { root, ..config.clone() };
    let engine = tokio::task::spawn_blocking(move || open(&opening)).await??;
    let listener = http::bind(&config.socket, permit)?;
    let server = Server::new(Arc::clone(&engine), access);
    let serving = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.serve(listener).await }
    });
    tracing::info!("answering on {}", config.socket.display());
    loop {
        tokio::select! {
            name = stop.asked() => {
                tracing::info!("{name}: ending what is under way");
                break;
            }
            _ = hangup.recv() => match reload(file, &config, &engine, &server, filter) {
                Ok(new) => config = new,
                Err(error) => tracing::error!("keeping the old configuration: {}", one_line(&*error)),
            },
        }
    }
    server.stop();
    let end = tokio::select! {
        finished = tokio::time::timeout(LAST_CHANGES, engine.shutdown()) => match finished {
            Ok(()) => End::Finished,
            Err(_) => {
                tracing::warn!(
                    "not waiting any longer for changes under way; containers go on running"
                );
                End::Unfinished
            }
        },
        name = stop.asked() => {
            tracing::warn!("{name} again: not waiting");
            End::Unfinished
        }
    };
    if tokio::time::timeout(FAREWELL, serving).await.is_err() {
        tracing::warn!("cutting connections that stayed open");
    }
    Ok(end)
}

fn open(config: &Config) -> Result<Arc<Engine>, Error> {
    let mut storage = open_storage(config)?;
    let plans = Plan::from_environment().map_err(Error::Invalid)?;
    if !plans.is_empty() {
        for plan in &plans {
            tracing::warn!("{}={plan}: a storage call is going to fail", fault::VARIABLE);
        }
        storage = Box::new(Fault::new(storage, plans));
    }
    let platform = crate::platform::open(&config.run_dir())
        .map_err(Error::platform("open", config.run_dir().display()))?;
    Engine::open(config, storage, platform)
}

fn open_storage(config: &Config) -> Result<Box<dyn Driver>, Error> {
    let fail = || Error::storage("open", config.root.display());
    let mut unsupported = storage::Error::Unsupported("no storage driver works here".into());
    for driver in drivers(config)? {
        match (driver.open)(&config.root) {
            Err(error @ storage::Error::Unsupported(_)) => unsupported = error,
            opened => return opened.map_err(fail()),
        }
    }
    Err(fail()(unsupported))
}

/// The drivers that the configuration lets the daemon try, best first.
fn drivers(config: &Config) -> Result<Vec<&'static storage::DriverEntry>, Error> {
    let wanted =
        |driver: &&storage::DriverEntry| config.storage == "auto" || config.storage == driver.name;
    let found: Vec<_> = DRIVERS.iter().filter(wanted).collect();
    if found.is_empty() {
        let known: Vec<_> = DRIVERS.iter().map(|driver| driver.name).collect();
        return Err(Error::Invalid(format!(
            "storage: there is no driver '{}'; known are auto, {}",
            config.storage.escape_default(),
            known.join(", ")
        )));
    }
    Ok(found)
}

/// Who may connect, and who may do what then: the configuration's users and group, looked up.
fn admission(config: &Config) -> Result<(Access, Permit), Error> {
    let missing = |key: &str, what: &str, name: &str| {
        Error::Invalid(format!("{key}: there is no {what} '{}'", name.escape_default()))
    };
    let user = |name: &String| match name.parse() {
        Ok(uid) => Ok(uid),
        Err(_) => match User::from_name(name).map_err(Error::io("look up user", name))? {
            Some(user) => Ok(user.uid.as_raw()),
            None => Err(missing("read_only_users", "user", name)),
        },
    };
    let group = |name: &String| match name.parse() {
        Ok(gid) => Ok(gid),
        Err(_) => match Group::from_name(name).map_err(Error::io("look up group", name))? {
            Some(group) => Ok(group.gid.as_raw()),
            None => Err(missing("socket_group", "group", name)),
        },
    };
    let read_only = config.read_only_users.iter().map(user).collect::<Result<_, Error>>()?;
    let group = config.socket_group.as_ref().map(group).transpose()?;
    Ok((Access::new(read_only), Permit { mode: config.socket_mode, group }))
}

/// What can change without a restart is as the file says now; for the rest the log asks for one.
fn reload(
    file: Option<&Path>,
    old: &Config,
    engine: &Engine,
    server: &Server,
    filter: &LogFilter,
) -> Result<Config> {
    let mut new = configure(file)?;
    for key in new.differences(old) {
        if key.live {
            tracing::info!("{} has changed", key.name);
        } else {
            tracing::warn!("{} has changed: restart kleened for it to take effect", key.name);
        }
    }
    // The socket is where it was made.
    new.socket.clone_from(&old.socket);
    let (access, permit) = admission(&new)?;
    http::permit(&new.socket, permit)?;
    server.set_access(access);
    engine.reload(&new);
    filter.reload(targets(new.log_level))?;
    tracing::info!("the configuration was read again");
    Ok(new)
}

/// Nobody else works on the root as long as the file is open.
fn lock(root: &Path) -> Result<File, Error> {
    let fail = || {
        move |error: std::io::Error| {
            if error.kind() == ErrorKind::PermissionDenied && !geteuid().is_root() {
                let root = root.display();
                return Error::Denied(format!("kleened may not write to {root}: start it as root"));
            }
            Error::io("lock", root.display())(error)
        }
    };
    // A set-user-ID program in an image must not be within reach of the host's users.
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(fail())?;
    let path = root.join("kleened.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Without it the message is poorer.
            let _ = file.read_to_string(&mut pid);
            return Err(Error::Invalid(format!(
                "another kleened, process {}, works on {}: stop it, or set 'root' to another directory",
                pid.trim().escape_default(),
                root.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(fail()(error)),
    }
    file.set_len(0).map_err(fail())?;
    writeln!(file, "{}", std::process::id()).map_err(fail())?;
    Ok(file)
}

/// The signals that ask the daemon to stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns the name of the next one.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn log_to_stderr(level: LogLevel) -> Result<LogFilter> {
    let (filter, handle) = reload::Layer::new(targets(level));
    let lines =
        fmt::layer().with_writer(stderr).with_target(false).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(handle)
}

/// Our own messages from that level on, and the warnings of the libraries.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level)
}

fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = OPEN_FILES.min(maximum.unwrap_or(OPEN_FILES));
    if current.is_some_and(|current| current < wanted) {
        // With fewer it works as well, for fewer containers.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}
