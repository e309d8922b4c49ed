//! Start, stop, wait, and what happens when a container ends.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kleened_api::container::{RestartPolicy, WaitReply};
use kleened_api::mount::MountType;
use kleened_api::stream::Exit;
use kleened_api::{Id, Timestamp};
use tokio::io::AsyncReadExt;

use super::catalogue::Run;
use super::exec::StartAs;
use super::lock::{Access, Key};
use super::operation::Pending;
use super::{Engine, log_failure};
use crate::error::{Error, Kind, Result};
use crate::platform::supervisor::wire;
use crate::platform::{self, Exited, Launch, LogConfig, Process, Running, Setup};
use crate::storage::DatasetPath;

impl Engine {
    /// The container runs, with `process` as its first. The answer is the connection to it, if
    /// somebody is to be attached.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; a volume that is gone or a mount that can't be made, and then nothing is
    /// mounted; a program, user or directory that the container has not.
    pub(super) fn start_container(
        self: &Arc<Self>,
        id: &Id,
        start: StartAs,
    ) -> Result<Pending<Option<UnixStream>>> {
        let mut wanted = vec![(Key::Container(id.clone()), Access::Exclusive)];
        let named = self.catalogue().entry(id)?.volume_names();
        wanted.extend(named.iter().map(|name| (Key::Volume(name.clone()), Access::Shared)));
        let (id, what) = (id.clone(), format!("start container {id}"));
        let subject = id.to_string();
        Ok(self.begin(what, &subject, wanted, move |engine, _| {
            let (now, name) = {
                let catalogue = engine.catalogue();
                let entry = catalogue.entry(&id)?;
                (entry.volume_names(), entry.record.name.clone())
            };
            if !now.is_subset(&named) {
                let state = "was given another volume just now: start it again";
                return Err(Error::State { kind: Kind::Container, name, state });
            }
            engine.launch_first(&id, start)
        }))
    }

    fn launch_first(self: &Arc<Self>, id: &Id, start: StartAs) -> Result<Option<UnixStream>> {
        self.refuse_running(id)?;
        let record = self.catalogue().entry(id)?.record.clone();
        for mount in record.mounts.iter().filter(|mount| mount.kind == MountType::Volume) {
            self.usable(&mount.source.parse()?)?;
            self.catalogue().admits(&mount.source, id, &record.mounts, true)?;
        }
        let settings = self.settings();
        // How the last process ended is of no use any more.
        self.platform.forget(id).map_err(Error::platform("start container", id))?;
        let launch = Launch {
            instance: id.clone(),
            container: id.clone(),
            setup: Some(Setup {
                root: self.storage.mountpoint(&DatasetPath::container(id)),
                hostname: record.hostname.clone(),
                network: record.network_driver,
                jail_param: record.jail_param.clone(),
                limits: record.limits.clone(),
                mounts: self.platform_mounts(&record.mounts)?,
                log: LogConfig {
                    path: self.log_path(id),
                    max_size: settings.log_max_size,
                    max_files: settings.log_max_files,
                },
            }),
            process: start.process,
            attach: start.attach,
        };
        self.platform.launch(&launch).map_err(Error::platform("start container", &record.name))?;
        // Before anybody can tidy up what may have ended already.
        let attached = start.attach.then(|| self.attach(id)).transpose();
        let running = Running {
            container: id.clone(),
            instance: id.clone(),
            jid: 0,
            started: Timestamp::now(),
        };
        let running = match self.platform.running() {
            Ok(list) => list.into_iter().find(|other| other.container == *id).unwrap_or(running),
            Err(error) => {
                log_failure::<(), _>("find what runs", Err(error));
                running
            }
        };
        self.note_running(running);
        attached
    }

    /// The catalogue says that the container runs, and its end will be noticed.
    pub(super) fn note_running(self: &Arc<Self>, running: Running) {
        let id = running.container.clone();
        if let Some(entry) = self.catalogue().containers.get(&id) {
            entry.run.send_replace(Run::Running(running.clone()));
        }
        let engine = Arc::clone(self);
        self.runtime.spawn(async move { engine.watch_over(&running).await });
    }

    /// Returns when that run of the container has ended and is tidied up.
    async fn watch_over(self: &Arc<Self>, running: &Running) {
        let (id, mut pause) = (&running.container, Duration::from_secs(1));
        loop {
            let mut watched = Watched::default();
            let result = self.watch(&running.instance, &mut watched).await;
            log_failure(format_args!("watch {id}"), result);
            match self.tidy_up(running, watched.code).await {
                Ok(true) => return self.forget_removed(running, watched).await,
                // Only the connection to its supervisor broke.
                Ok(false) => {}
                Err(error) => log_failure::<(), _>(format_args!("tidy up {id}"), Err(error)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// Returns when the supervisor has said that the container ended, or has ended itself.
    pub(super) async fn watch(
        self: &Arc<Self>,
        instance: &Id,
        watched: &mut Watched,
    ) -> Result<()> {
        let fail = || Error::io::<std::io::Error>("watch", instance);
        let (engine, id) = (Arc::clone(self), instance.clone());
        let connect = move || engine.platform.connect(&id).map_err(Error::platform("watch", &id));
        let connected = tokio::task::spawn_blocking(connect).await.unwrap_or(Err(Error::Failed))?;
        let Some(mut stream) = connected else { return Ok(()) };
        let heard = async {
            wire::greet(&mut stream, false)?;
            stream.set_nonblocking(true)?;
            watched.until_ended(tokio::net::UnixStream::from_std(stream)?).await
        };
        match heard.await {
            // It ended before it had read the greeting.
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            heard => heard.map_err(fail()),
        }
    }

    /// The catalogue says that this run has ended, nothing of its mounts is left, and if the container
    /// was to be removed it is. False where it has not ended.
    async fn tidy_up(self: &Arc<Self>, running: &Running, code: Option<i32>) -> Result<bool> {
        let wanted = vec![(Key::Container(running.container.clone()), Access::Exclusive)];
        let held = self.locks.acquire(wanted).await;
        let (engine, running) = (Arc::clone(self), running.clone());
        let tidy = move || {
            let _held = held;
            engine.settle_ended(&running, code)
        };
        tokio::task::spawn_blocking(tidy).await.unwrap_or(Err(Error::Failed))
    }

    /// As [`tidy_up`](Self::tidy_up). The caller holds the container's lock.
    fn settle_ended(self: &Arc<Self>, running: &Running, code: Option<i32>) -> Result<bool> {
        let id = &running.container;
        let fail = || Error::platform("tidy up container", id);
        let (run, remove) = match self.catalogue().containers.get(id) {
            Some(entry) => (entry.run.clone(), entry.record.auto_remove),
            None => return Ok(true),
        };
        // Somebody else tidied up, and it may have been started again since.
        if !matches!(&*run.borrow(), Run::Running(known) if known == running) {
            return Ok(true);
        }
        if self.platform.running().map_err(fail())?.iter().any(|other| other.container == *id) {
            return Ok(false);
        }
        let root = self.storage.mountpoint(&DatasetPath::container(id));
        self.platform.release(id, &root).map_err(fail())?;
        let seen = code.map(|code| Exited { code, at: Timestamp::now() });
        let exited = self.platform.exited(id).map_err(fail())?.or(seen);
        self.execs.ended(id);
        tracing::info!(
            "container {id} ended{}",
            exited
                .as_ref()
                .map(|exited| format!(" with exit code {}", exited.code))
                .unwrap_or_default()
        );
        if remove {
            // Those who wait for it wait until it is gone.
            run.send_replace(Run::Removing);
            let own = self.anonymous_volumes(id);
            log_failure(format_args!("remove container {id}"), self.destroy_container(id));
            for name in own {
                // One that another container names by now stays.
                log_failure(format_args!("remove volume {name}"), self.remove_volume(&name, false));
            }
        }
        run.send_replace(Run::Stopped(exited));
        Ok(true)
    }

    /// Nothing is left of the last run of a container that was removed while its supervisor still had
    /// a slow reader.
    async fn forget_removed(self: &Arc<Self>, running: &Running, watched: Watched) {
        if self.catalogue().containers.contains_key(&running.container) {
            return;
        }
        watched.until_closed().await;
        let (engine, instance) = (Arc::clone(self), running.instance.clone());
        let forget = move || engine.platform.forget(&instance);
        let forgotten = tokio::task::spawn_blocking(forget).await;
        match forgotten {
            Ok(forgotten) => log_failure("forget a removed container", forgotten),
            Err(error) => log_failure::<(), _>("forget a removed container", Err(error)),
        }
    }

    /// The container does not run. Every process of it was sent SIGTERM, and what was left after `time`
    /// SIGKILL.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] where it did not run, or runs on in spite of SIGKILL.
    pub fn stop_container(
        self: &Arc<Self>,
        reference: &str,
        time: Option<Duration>,
    ) -> Result<Pending<String>> {
        let id = {
            let catalogue = self.catalogue();
            let id = catalogue.container(reference)?;
            let entry = catalogue.entry(&id)?;
            if !entry.is_running() {
                let name = entry.record.name.clone();
                return Err(Error::State { kind: Kind::Container, name, state: "is not running" });
            }
            id
        };
        let time = time.unwrap_or(self.settings().stop_timeout);
        let subject = id.to_string();
        // Without the container's lock: its end is what takes it.
        Ok(self.begin(format!("stop container {id}"), &subject, Vec::new(), move |engine, _| {
            engine.stop_and_wait(&id, time)?;
            Ok(id.to_string())
        }))
    }

    fn stop_and_wait(self: &Arc<Self>, id: &Id, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        if !time.is_zero() {
            log_failure(format_args!("send SIGTERM to {id}"), self.platform.terminate(id, time));
            if self.runtime.block_on(self.settled_by(id, Some(until))) {
                return Ok(());
            }
        }
        self.platform.kill(id).map_err(Error::platform("stop container", id))?;
        let run = self.catalogue().containers.get(id).map(|entry| entry.run.borrow().clone());
        if let Some(Run::Running(running)) = run
            && !self.runtime.block_on(self.tidy_up(&running, None))?
        {
            let name = self.catalogue().entry(id)?.record.name.clone();
            let state = "still runs after SIGKILL: see the daemon's log, and stop it again";
            return Err(Error::State { kind: Kind::Container, name, state });
        }
        Ok(())
    }

    /// The instance's process was sent that signal, or has ended.
    pub(super) fn signal(
        &self,
        instance: &Id,
        signal: &str,
    ) -> std::result::Result<(), platform::Error> {
        let Some(mut stream) = self.platform.connect(instance)? else { return Ok(()) };
        let send = |stream: &mut UnixStream| {
            wire::greet(stream, false)?;
            wire::write(stream, wire::Kind::SIGNAL, signal.as_bytes())?;
            stream.flush()
        };
        send(&mut stream).map_err(|error| platform::Error::io("signal", instance, error))
    }

    /// Returns when the catalogue says that the container does not run, and it is removed if it was
    /// to be.
    pub async fn settled(&self, container: &Id) {
        self.settled_by(container, None).await;
    }

    async fn settled_by(&self, id: &Id, until: Option<Instant>) -> bool {
        let run = self.catalogue().containers.get(id).map(|entry| entry.run.subscribe());
        let Some(mut run) = run else { return true };
        // An error means that the entry is gone.
        let stopped = async { _ = run.wait_for(|run| matches!(run, Run::Stopped(_))).await };
        match until {
            Some(until) => tokio::time::timeout_at(until.into(), stopped).await.is_ok(),
            None => {
                stopped.await;
                true
            }
        }
    }

    /// Returns when the container does not run, with how its first process ended. At once where it
    /// does not run now.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] where nobody knows, because it was never started or the
    /// machine went down under it.
    pub async fn wait_container(&self, reference: &str) -> Result<WaitReply> {
        let (id, name, mut run) = {
            let catalogue = self.catalogue();
            let id = catalogue.container(reference)?;
            let entry = catalogue.entry(&id)?;
            (id, entry.record.name.clone(), entry.run.subscribe())
        };
        let stopped =
            run.wait_for(|run| matches!(run, Run::Stopped(_))).await.map(|run| run.clone());
        // Where the entry is gone, its last word stands.
        let last = stopped.unwrap_or_else(|_| run.borrow().clone());
        match last {
            Run::Stopped(Some(exited)) => Ok(WaitReply { id, exit_code: exited.code }),
            _ => Err(Error::State {
                kind: Kind::Container,
                name,
                state: "has not run: start it first",
            }),
        }
    }

    /// The containers that are to start with the daemon run, or the log says why not.
    pub(super) fn start_on_startup(self: &Arc<Self>) {
        let mut wanted: VecDeque<(Timestamp, Id)> = self
            .catalogue()
            .containers
            .iter()
            .filter(|(_, entry)| {
                entry.record.restart_policy == RestartPolicy::OnStartup && !entry.is_running()
            })
            .map(|(id, entry)| (entry.record.created, id.clone()))
            .collect();
        wanted.make_contiguous().sort();
        let engine = Arc::clone(self);
        self.runtime.spawn(async move {
            while let Some((_, id)) = wanted.pop_front() {
                let started = match engine.own_process(&id).and_then(|process| {
                    engine.start_container(&id, StartAs { process, attach: false })
                }) {
                    Ok(pending) => pending.done().await,
                    Err(error) => Err(error),
                };
                log_failure(format_args!("start container {id} with the daemon"), started);
            }
        });
    }

    /// The container's own process.
    pub(super) fn own_process(&self, id: &Id) -> Result<Process> {
        let catalogue = self.catalogue();
        let record = &catalogue.entry(id)?.record;
        Ok(Process {
            argv: record.cmd.clone(),
            env: record.env.clone(),
            user: record.user.clone(),
            workdir: record.workdir.clone(),
            tty: false,
            stdin: false,
        })
    }
}

/// What a watcher has heard.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// How the process ended.
    code: Option<i32>,
    stream: Option<tokio::net::UnixStream>,
}

impl Watched {
    async fn until_ended(&mut self, stream: tokio::net::UnixStream) -> std::io::Result<()> {
        let stream = self.stream.insert(stream);
        loop {
            let mut header = [0; wire::Header::SIZE];
            match stream.read_exact(&mut header).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            let header = wire::Header::parse(header)?;
            let mut payload = vec![0; header.len];
            stream.read_exact(&mut payload).await?;
            match header.kind {
                wire::Kind::EXIT => {
                    self.code = serde_json::from_slice::<Exit>(&payload).ok().map(|exit| exit.code)
                }
                wire::Kind::Ended => return Ok(()),
                _ => {}
            }
        }
    }

    /// Returns when the supervisor has ended.
    async fn until_closed(self) {
        if let Some(mut stream) = self.stream {
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    }
}
