//! What the records of the supervisors say of containers and their processes, whatever the platform.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kleened_api::Id;

use super::run_dir::{Instance, RunDir, State};
use super::wire::{self, Kind};
use crate::platform::{Error, Exited, Result, Setup};

/// How long processes may take to be gone after SIGKILL.
pub(crate) const KILL_TIME: Duration = Duration::from_secs(30);

impl RunDir {
    /// Where the container runs.
    pub(crate) fn state(&self, container: &Id) -> Result<Option<(Id, State)>> {
        let Some(first) = self.holder(container)? else { return Ok(None) };
        let Some(instance) = self.instance(&first)? else { return Ok(None) };
        Ok(instance.state()?.map(|state| (first, state)))
    }

    /// The container's first instance and its pid 1, which may be there still where the supervisor is
    /// gone.
    pub(crate) fn remains(&self, container: &Id) -> Result<Option<(Id, State)>> {
        for id in self.instances()? {
            let Some(instance) = self.instance(&id)? else { continue };
            let Some(launch) = instance.launch()? else { continue };
            if launch.container == *container
                && launch.setup.is_some()
                && let Some(state) = instance.state()?
            {
                return Ok(Some((id, state)));
            }
        }
        Ok(None)
    }

    /// Whether the instance's process runs, or, if it is the first one, its container. A supervisor that
    /// is still there because a client has not taken everything does not count.
    pub(crate) fn is_running(&self, id: &Id, instance: &Instance) -> Result<bool> {
        if self.lock_instance(instance)?.is_some() {
            return Ok(false);
        }
        let Some(launch) = instance.launch()? else { return Ok(false) };
        let is_first = self.holder(&launch.container)?.as_ref() == Some(id);
        Ok(is_first || instance.exited()?.is_none())
    }

    /// What the container of this first instance was made of.
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "mounts go with their namespace"))]
    pub(crate) fn setup(&self, first: &Id) -> Result<Option<Setup>> {
        let Some(instance) = self.instance(first)? else { return Ok(None) };
        Ok(instance.launch()?.and_then(|launch| launch.setup))
    }

    /// See [`Platform::connect`](crate::platform::Platform::connect).
    pub(crate) fn connect(&self, instance: &Id) -> Result<Option<UnixStream>> {
        match self.instance(instance)? {
            Some(instance) => instance.connect(),
            None => Ok(None),
        }
    }

    /// See [`Platform::exited`](crate::platform::Platform::exited).
    pub(crate) fn exited(&self, instance: &Id) -> Result<Option<Exited>> {
        match self.instance(instance)? {
            Some(instance) => instance.exited(),
            None => Ok(None),
        }
    }

    /// See [`Platform::is_lost`](crate::platform::Platform::is_lost).
    pub(crate) fn is_lost(&self, instance: &Id) -> Result<bool> {
        let Some(found) = self.instance(instance)? else { return Ok(false) };
        Ok(found.was_started()?
            && found.exited()?.is_none()
            && self.lock_instance(&found)?.is_some())
    }

    /// See [`Platform::forget`](crate::platform::Platform::forget).
    pub(crate) fn forget(&self, instance: &Id) -> Result<()> {
        let Some(found) = self.instance(instance)? else { return Ok(()) };
        if self.is_running(instance, &found)? {
            let what = format_args!("execution instance {instance}: it has not ended");
            return Err(Error::io("forget", what, io::ErrorKind::ResourceBusy));
        }
        self.remove(instance)
    }

    /// See [`Platform::sweep`](crate::platform::Platform::sweep).
    pub(crate) fn sweep(&self, known: &dyn Fn(&Id) -> bool) -> Result<()> {
        for id in self.instances()? {
            let Some(instance) = self.instance(&id)? else { continue };
            // Of a first process that has ended only its name is left, which is the container's.
            let container = instance.launch()?.map_or_else(|| id.clone(), |it| it.container);
            if !known(&container) && !self.is_running(&id, &instance)? {
                self.remove(&id)?;
            }
        }
        for container in self.containers()? {
            if !known(&container) {
                self.release(&container)?;
            }
        }
        Ok(())
    }

    /// Nothing is left of the instances of a container that does not run, but how its first process
    /// ended.
    pub(crate) fn release_instances(&self, container: &Id) -> Result<()> {
        for id in self.instances()? {
            let Some(instance) = self.instance(&id)? else { continue };
            let Some(launch) = instance.launch()? else { continue };
            if launch.container != *container {
                continue;
            }
            if self.is_running(&id, &instance)?
                && let Some(supervisor) = instance.connect()?
            {
                // Its process went with the container, and it is about to say so.
                wait_for_end(supervisor)
                    .map_err(|e| Error::io("wait for", format_args!("instance {id}"), e))?;
            }
            match instance.exited()? {
                Some(_) if launch.setup.is_some() => instance.clear()?,
                _ => self.remove(&id)?,
            }
        }
        Ok(())
    }

    /// The supervisor of the container's first process has seen the end of the container; `watcher` is a
    /// connection to it from before that end, where there could be one.
    ///
    /// # Errors
    ///
    /// `TimedOut` where that takes too long.
    pub(crate) fn wait_until_ended(
        &self,
        container: &Id,
        watcher: Option<UnixStream>,
    ) -> io::Result<()> {
        match watcher {
            Some(watcher) => wait_for_end(watcher),
            // It can't be asked, but it gives up its lock.
            None => {
                let until = Instant::now() + KILL_TIME;
                while self.holder(container).map_err(io::Error::other)?.is_some() {
                    if Instant::now() > until {
                        return Err(not_ended());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
        }
    }
}

/// Processes that can't be killed.
pub(crate) fn not_ended() -> io::Error {
    let text = "its processes did not end; the kernel may be waiting for a device";
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Returns when the container whose supervisor this is has ended and is recorded as ended.
fn wait_for_end(mut supervisor: UnixStream) -> io::Result<()> {
    supervisor.set_read_timeout(Some(KILL_TIME))?;
    // It may be gone already, which is what is waited for.
    let _ = wire::greet(&mut supervisor, false);
    loop {
        match wire::read(&mut supervisor) {
            Ok(Some((Kind::Ended, _)) | None) => return Ok(()),
            Ok(Some(_)) => (),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    return Err(not_ended());
                }
                _ => return Ok(()),
            },
        }
    }
}
