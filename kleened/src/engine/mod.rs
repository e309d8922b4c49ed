//! The rules: what may be done, in which order, and undone how.
//!
//! Reading answers from memory. A changing verb checks what it can at once, then runs detached: it
//! waits for the locks of its objects, and does its work on a thread that may block, which holds the
//! locks until it is done. A client that goes away stops nothing between two steps. Verbs on
//! different objects run in parallel; the catalogue's own lock is never held across a call.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `volume`, `container`, `image`, `exec` | the verbs, a file for each kind of object |
//! | `lifecycle` | start, stop, wait, and what happens when a container ends |
//! | `create`, `update` | images made of what there is elsewhere |
//! | `snapshot`, `clone` | snapshots of volumes, and what is made of them |
//! | `adopt` | datasets of others that become volumes |
//! | `attach` | volumes of containers that are there |
//! | `populate` | first-use content |
//! | `profile` | properties for one kind of content |
//! | `recover` | the start: finding what there is, replaying the journal, finding what runs |
//! | `notice` | reading records after the start, and what others do to datasets |
//! | `catalogue` | what there is |
//! | `record`, `journal` | what is stored |
//! | `lock`, `operation` | verbs side by side, and verbs that take long |

mod adopt;
mod attach;
mod catalogue;
mod clone;
mod container;
mod create;
mod exec;
mod image;
mod journal;
mod lifecycle;
mod lock;
mod log;
mod notice;
mod operation;
mod populate;
mod profile;
mod record;
mod recover;
mod snapshot;
mod update;
mod volume;

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use kleened_api::operation::Operation;
use kleened_api::system::System;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::catalogue::Catalogue;
pub use self::create::Note;
pub use self::exec::Attached;
use self::journal::Journal;
use self::lock::{Access, Key, Locks};
pub use self::log::LogStream;
use self::operation::Operations;
pub use self::operation::{Pending, Reply};
pub use self::profile::profiles;
use crate::config::Config;
use crate::copy::{self, Progress};
use crate::error::{Error, Result, one_line};
use crate::platform::Platform;
pub use crate::platform::supervisor::wire;
use crate::storage::Driver;

/// The snapshot of an image that containers are clones of.
const IMAGE_SNAPSHOT: &str = "image";

/// The rules, over one storage driver and one platform.
#[derive(Debug)]
pub struct Engine {
    root: PathBuf,
    storage: Box<dyn Driver>,
    platform: Box<dyn Platform>,
    settings: RwLock<Settings>,
    catalogue: Mutex<Catalogue>,
    /// How far the records are of the volumes that there were at the start.
    reading: watch::Sender<notice::Reading>,
    locks: Locks,
    journal: Journal,
    operations: Operations,
    execs: exec::Execs,
    /// Counts the changes under way; closed when the daemon stops.
    changes: TaskTracker,
    runtime: Handle,
}

/// What can be changed while the daemon runs.
#[derive(Debug, Clone)]
struct Settings {
    stop_timeout: Duration,
    log_max_size: u64,
    log_max_files: u32,
    copy_threads: usize,
    image_devices: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            stop_timeout: config.stop_timeout,
            log_max_size: config.container_log_max_size,
            log_max_files: config.container_log_max_files,
            copy_threads: config.copy_threads,
            image_devices: config.image_devices,
        }
    }
}

impl Engine {
    /// What the daemon is and runs on.
    #[must_use]
    pub fn system(&self) -> System {
        System {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            storage: self.storage.name().to_owned(),
            platform: self.platform.name().to_owned(),
            root: self.root.to_string_lossy().into_owned(),
        }
    }

    /// The settings of `config` that can change while the daemon runs are in force.
    pub fn reload(&self, config: &Config) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = config.into();
    }

    /// No change is begun any more, and those under way have ended: what waits or copies is taken back
    /// and fails with [`Error::Stopping`]. Containers go on running.
    pub async fn shutdown(&self) {
        self.changes.close();
        self.operations.cancel();
        self.storage.interrupt();
        self.changes.wait().await;
    }

    /// The operation as it stands when it has ended or `wait` is over.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], also ten minutes after it ended.
    pub async fn operation(&self, id: &str, wait: Duration) -> Result<Operation> {
        self.operations.get(id, wait).await
    }

    fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copying<'a>(&self, progress: &'a Progress) -> copy::Options<'a> {
        copy::Options {
            threads: self.settings().copy_threads,
            progress: Some(progress),
            ..copy::Options::default()
        }
    }

    /// What `read` finds, on a thread that may block.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T> {
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || read(&engine)).await.map_err(|_| Error::Failed)
    }

    /// Runs `job` detached on a thread that may block, once the locks are held. Every change goes
    /// through here.
    fn begin<T: Reply>(
        self: &Arc<Self>,
        what: String,
        subject: &str,
        wanted: Vec<(Key, Access)>,
        job: impl FnOnce(&Arc<Self>, &Progress) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let progress = Arc::new(Progress::default());
        let (operation, state) = self.operations.begin(what.clone(), Arc::clone(&progress));
        let (cancelled, shown) = (Arc::clone(&progress), Arc::clone(&progress));
        let (sender, result) = tokio::sync::oneshot::channel();
        let engine = Arc::clone(self);
        let work = async move {
            // It is counted from before this question on, so that a stop waits for it or it does not
            // begin.
            let stopping = engine.changes.is_closed();
            let held = if stopping { None } else { Some(engine.locks.acquire(wanted).await) };
            let result = match held {
                Some(held) if !cancelled.is_cancelled() => {
                    let worker = Arc::clone(&engine);
                    let done = tokio::task::spawn_blocking(move || {
                        let _held = held;
                        job(&worker, &progress)
                    });
                    done.await.unwrap_or(Err(Error::Failed))
                }
                _ => Err(Error::Cancelled),
            };
            let result = result.map_err(|error| {
                let interrupted = cancelled.is_cancelled() && error.is_interrupted();
                match engine.changes.is_closed() {
                    true if interrupted => Error::Stopping,
                    false if interrupted => Error::Cancelled,
                    _ => error,
                }
            });
            match &result {
                Ok(_) => tracing::info!("{what}"),
                Err(error) => tracing::warn!("{what}: {}", error.body()),
            }
            engine.operations.end(&state, &result);
            // Nobody may be left who wants it.
            let _ = sender.send(result);
        };
        self.runtime.spawn(self.changes.track_future(work));
        Pending { operation, subject: subject.to_owned(), progress: shown, result }
    }
}

impl Engine {
    /// The names of those that `remove` removed, each under its lock; with `dry_run` of all. What was
    /// taken into use or removed since they were listed is left out; when some failed, the answer is
    /// all the errors.
    fn prune<T: Display>(
        &self,
        items: Vec<T>,
        dry_run: bool,
        key: impl Fn(&T) -> Key,
        remove: impl Fn(&T) -> Result<()>,
    ) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let mut errors = Vec::new();
        for item in items {
            let done = if dry_run {
                Ok(())
            } else {
                let wanted = vec![(key(&item), Access::Exclusive)];
                let _held = self.runtime.block_on(self.locks.acquire(wanted));
                remove(&item)
            };
            match done {
                Ok(()) => removed.push(item.to_string()),
                Err(
                    Error::InUse { .. }
                    | Error::State { .. }
                    | Error::HasSnapshots { .. }
                    | Error::NotFound { .. },
                ) => {}
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(removed) } else { Err(Error::Several(errors)) }
    }
}

/// What a verb has done so far and takes back, last first, unless it comes to its end.
#[derive(Default)]
struct Undo<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Undo<'a> {
    fn push(&mut self, step: impl FnOnce() + 'a) {
        self.0.push(Box::new(step));
    }

    fn commit(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.0.pop() {
            step();
        }
    }
}

/// Logs the failure of a step that takes back what was done: the first error is what the caller
/// hears.
fn log_failure<T, E: std::error::Error + 'static>(
    what: impl Display,
    result: std::result::Result<T, E>,
) {
    if let Err(error) = result {
        tracing::error!("{what}: {}", one_line(&error));
    }
}
