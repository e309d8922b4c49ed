//! FreeBSD: containers are jails. Not there yet: every call says so.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use kleened_api::Id;
use kleened_api::container::NetworkDriver;

use super::supervisor::{self, Event, Failure, Guest, RunDir, Started, State};
use super::{Error, Exited, Launch, Mount, MountEntry, Platform, Result, Running};

/// Containers on FreeBSD.
#[derive(Debug)]
pub struct FreeBsd {
    _run_dir: RunDir,
}

fn not_yet() -> Error {
    Error::Unsupported("containers are not supported on FreeBSD yet".to_owned())
}

impl FreeBsd {
    /// The jails whose supervisors keep their records in `run_dir`, which is made where it is missing.
    ///
    /// # Errors
    ///
    /// `run_dir` can't be made.
    pub fn open(run_dir: &Path, _program: Option<&Path>) -> Result<Self> {
        Ok(Self { _run_dir: RunDir::open(run_dir)? })
    }
}

impl Platform for FreeBsd {
    fn name(&self) -> &'static str {
        "freebsd"
    }

    fn check(&self, _network: NetworkDriver, _jail_param: &[String]) -> Result<()> {
        Err(not_yet())
    }

    fn prepare(&self, _root: &Path, _mounts: &[Mount]) -> Result<()> {
        Err(not_yet())
    }

    fn launch(&self, _launch: &Launch) -> Result<()> {
        Err(not_yet())
    }

    fn connect(&self, _instance: &Id) -> Result<Option<UnixStream>> {
        Err(not_yet())
    }

    fn running(&self) -> Result<Vec<Running>> {
        Err(not_yet())
    }

    fn exited(&self, _instance: &Id) -> Result<Option<Exited>> {
        Err(not_yet())
    }

    fn is_lost(&self, _instance: &Id) -> Result<bool> {
        Err(not_yet())
    }

    fn mounts(&self, _container: &Id) -> Result<Vec<MountEntry>> {
        Err(not_yet())
    }

    fn terminate(&self, _container: &Id) -> Result<bool> {
        Err(not_yet())
    }

    fn kill(&self, _container: &Id) -> Result<bool> {
        Err(not_yet())
    }

    fn release(&self, _container: &Id, _root: &Path) -> Result<()> {
        Err(not_yet())
    }

    fn forget(&self, _instance: &Id) -> Result<()> {
        Err(not_yet())
    }

    fn sweep(&self, _known: &dyn Fn(&Id) -> bool) -> Result<()> {
        Err(not_yet())
    }
}

/// A process in a jail.
enum Inmate {}

impl Guest for Inmate {
    fn events(&self) -> std::os::fd::BorrowedFd<'_> {
        match *self {}
    }

    fn event(&mut self) -> std::io::Result<Option<Event>> {
        match *self {}
    }

    fn signal(&self, _number: i32) -> std::io::Result<()> {
        match *self {}
    }
}

fn start(
    _launch: &Launch,
    _joined: Option<&State>,
) -> std::result::Result<Started<Inmate>, Failure> {
    Err(not_yet().into())
}

/// See [`super::supervise`].
pub(super) fn supervise(dir: &Path) -> ExitCode {
    supervisor::main(dir, start)
}
