//! The verbs of execution instances.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kleened_api::Id;
use kleened_api::exec::{ExecConfig, ExecStart};

use super::container::merge_env;
use super::lifecycle::Watched;
use super::lock::{Access, Key};
use super::{Engine, log_failure};
use crate::error::{Error, Kind, Result};
use crate::ident;
use crate::platform::supervisor::wire;
use crate::platform::{self, Launch, Process};

/// How long an instance that nobody starts is kept.
const UNSTARTED: Duration = Duration::from_secs(600);

/// The execution instances. They live in memory and end with their process.
#[derive(Debug, Default)]
pub(super) struct Execs(Mutex<HashMap<Id, Exec>>);

#[derive(Debug)]
struct Exec {
    config: ExecConfig,
    container: Id,
    created: Instant,
    /// The instance that the platform knows it as, once it was started.
    started: Option<Id>,
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Exec>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets those that ran as `instance`.
    pub(super) fn ended(&self, instance: &Id) {
        self.lock().retain(|_, exec| exec.started.as_ref() != Some(instance));
    }
}

/// A container's first process, and whether somebody will attach to it.
#[derive(Debug)]
pub(super) struct StartAs {
    pub process: Process,
    pub attach: bool,
}

/// A connection to a process's input and output.
#[derive(Debug)]
pub struct Attached {
    /// Frames of [`wire`], both ways.
    pub stream: UnixStream,
    /// The container, to wait for with [`Engine::settled`] when the process ended it.
    pub container: Id,
}

impl Engine {
    /// There is an execution instance, which is not started.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for the container; a variable that is not `NAME=VALUE`.
    pub fn create_exec(&self, config: ExecConfig) -> Result<String> {
        super::container::check_env(&config.env)?;
        if config
            .cmd
            .iter()
            .chain(&config.user)
            .chain(&config.workdir)
            .any(|text| text.contains('\0'))
        {
            return Err(Error::Invalid(
                "the command, user and directory must not hold a NUL byte".into(),
            ));
        }
        let container = self.catalogue().container(&config.container_id)?;
        let id = ident::new();
        let mut execs = self.execs.lock();
        execs.retain(|_, exec| exec.started.is_some() || exec.created.elapsed() < UNSTARTED);
        execs
            .insert(id.clone(), Exec { config, container, created: Instant::now(), started: None });
        Ok(id.to_string())
    }

    /// The process runs. Where `start.attach`, the answer is the connection to it, and none of its
    /// output was lost before.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] where it was started before, where the container does
    /// not run and is not to be started, and where it runs and this is to be its first process; as
    /// starting a container.
    pub async fn start_exec(self: &Arc<Self>, start: &ExecStart) -> Result<Option<Attached>> {
        let missing = || Error::NotFound { kind: Kind::Exec, name: start.exec_id.clone() };
        let exec: Id = start.exec_id.parse().map_err(|_| missing())?;
        let (config, container) = {
            let execs = self.execs.lock();
            let entry = execs.get(&exec).ok_or_else(missing)?;
            (entry.config.clone(), entry.container.clone())
        };
        let first = {
            let catalogue = self.catalogue();
            let entry = catalogue.entry(&container)?;
            let refused = match entry.is_running() {
                false if !start.start_container => Some("is not running"),
                true if start.first => Some("is running already"),
                _ => None,
            };
            if let Some(state) = refused {
                let name = entry.record.name.clone();
                return Err(Error::State { kind: Kind::Container, name, state });
            }
            !entry.is_running()
        };
        let process = self.process(&container, config, start.attach)?;
        let instance = if first { container.clone() } else { exec.clone() };
        match self.execs.lock().get_mut(&exec) {
            Some(Exec { started: started @ None, .. }) => *started = Some(instance.clone()),
            _ => {
                let name = start.exec_id.clone();
                return Err(Error::State {
                    kind: Kind::Exec,
                    name,
                    state: "has been started already",
                });
            }
        }
        let started = if first {
            match self.start_container(&container, StartAs { process, attach: start.attach }) {
                Ok(pending) => pending.done().await,
                Err(error) => Err(error),
            }
        } else {
            self.join(&exec, &container, process, start.attach).await
        };
        match started {
            Ok(stream) => Ok(stream.map(|stream| Attached { stream, container })),
            Err(error) => {
                self.execs.lock().remove(&exec);
                Err(error)
            }
        }
    }

    fn process(&self, container: &Id, config: ExecConfig, attach: bool) -> Result<Process> {
        let own = self.own_process(container)?;
        Ok(Process {
            argv: if config.cmd.is_empty() { own.argv } else { config.cmd },
            env: merge_env(&own.env, &config.env)?,
            user: config.user.filter(|user| !user.is_empty()).unwrap_or(own.user),
            workdir: config.workdir.unwrap_or(own.workdir),
            tty: config.tty,
            stdin: attach && config.stdin.unwrap_or(true),
        })
    }

    /// The process runs in the running container. The answer is the connection to it, if somebody is
    /// to be attached.
    async fn join(
        self: &Arc<Self>,
        exec: &Id,
        container: &Id,
        process: Process,
        attach: bool,
    ) -> Result<Option<UnixStream>> {
        let launch = Launch {
            instance: exec.clone(),
            container: container.clone(),
            setup: None,
            process,
            attach,
        };
        let wanted = vec![(Key::Container(container.clone()), Access::Shared)];
        let what = format!("run {exec} in container {container}");
        let launched = self.begin(what, exec.as_str(), wanted, move |engine, _| {
            let program = launch.process.argv.first().map(String::as_str).unwrap_or_default();
            let fail =
                Error::platform("run", format!("{program} in container {}", launch.container));
            engine.platform.launch(&launch).map_err(fail)?;
            let attached = attach.then(|| engine.attach(&launch.instance)).transpose();
            engine.forget_when_ended(&launch.instance);
            attached
        });
        launched.done().await
    }

    /// Nothing is left of the instance once its process has ended.
    fn forget_when_ended(self: &Arc<Self>, instance: &Id) {
        let (engine, instance) = (Arc::clone(self), instance.clone());
        self.runtime.spawn(async move {
            let mut watched = Watched::default();
            let result = engine.watch(&instance, &mut watched).await;
            log_failure(format_args!("watch {instance}"), result);
            engine.execs.ended(&instance);
            let forget = move || {
                log_failure(format_args!("forget {instance}"), engine.platform.forget(&instance))
            };
            let forgotten = tokio::task::spawn_blocking(forget).await;
            log_failure("forget an instance", forgotten);
        });
    }

    /// A connection to the process, which nothing of its output has gone past.
    pub(super) fn attach(&self, instance: &Id) -> Result<UnixStream> {
        let fail = || Error::platform("attach to", instance);
        let mut stream = self
            .platform
            .connect(instance)
            .map_err(fail())?
            .ok_or_else(|| platform::Error::NotRunning(instance.clone()))
            .map_err(fail())?;
        wire::greet(&mut stream, true).map_err(Error::io("attach to", instance))?;
        Ok(stream)
    }

    /// The process was sent SIGTERM, with `force` SIGKILL; with `stop_container` its container was
    /// stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] where it has not been started.
    pub async fn stop_exec(
        self: &Arc<Self>,
        id: &str,
        force: bool,
        stop_container: bool,
    ) -> Result<String> {
        let missing = || Error::NotFound { kind: Kind::Exec, name: id.to_owned() };
        let exec: Id = id.parse().map_err(|_| missing())?;
        let (container, started) = {
            let execs = self.execs.lock();
            let entry = execs.get(&exec).ok_or_else(missing)?;
            (entry.container.clone(), entry.started.clone())
        };
        let Some(instance) = started else {
            return Err(Error::State {
                kind: Kind::Exec,
                name: id.to_owned(),
                state: "has not been started",
            });
        };
        if stop_container {
            let time = force.then_some(Duration::ZERO);
            match self.stop_container(container.as_str(), time) {
                Ok(pending) => pending.done().await?,
                Err(Error::State { .. }) => String::new(),
                Err(error) => return Err(error),
            };
        } else {
            let signal = if force { "KILL" } else { "TERM" };
            let pending = self.begin(format!("stop {exec}"), id, Vec::new(), move |engine, _| {
                engine.signal(&instance, signal).map_err(Error::platform("stop", &instance))
            });
            pending.done().await?;
        }
        Ok(id.to_owned())
    }
}
