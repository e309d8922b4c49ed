//! A mount more or less in a container that runs.
//!
//! Each change is the work of a process of its own, which is the daemon's program run anew: it moves into
//! the container's namespace, or from directory to directory, and the daemon's threads must not. It goes on
//! where the daemon is killed, and whoever comes next waits for it.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kleened_api::Id;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::supervisor::{self, Answer, Failure, RunDir, State};
use super::{Error, Mount, Result};

/// The subcommand that makes a program such a process: it is followed by the directory of the container's
/// first instance, and what is to change comes as its input.
pub const SUBCOMMAND: &str = "change-mounts";

/// What is to become of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verb {
    Attach,
    Detach,
}

/// A change.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) verb: Verb,
    pub(super) mount: Mount,
    /// The mounts that the container has beside.
    pub(super) others: Vec<Mount>,
}

/// The container.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) container: Id,
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "its namespace has its root"))]
    pub(super) root: PathBuf,
    pub(super) state: State,
}

/// How a platform makes a change. False where there was nothing to do.
pub(super) type Make = fn(&Target, &Change) -> std::result::Result<bool, Failure>;

/// The change is made in the running container. False where there was nothing to do.
///
/// # Errors
///
/// [`Error::NotRunning`]; what the process says.
pub(super) fn ask(
    run_dir: &RunDir,
    program: &OsStr,
    container: &Id,
    change: &Change,
) -> Result<bool> {
    let not_running = || Error::NotRunning(container.clone());
    let first = run_dir.holder(container)?.ok_or_else(not_running)?;
    let instance = run_dir.instance(&first)?.ok_or_else(not_running)?;
    let verb = "change the mounts of";
    let input = serde_json::to_vec(change)
        .map_err(|error| Error::io(verb, format_args!("container {container}"), error))?;
    supervisor::ask(program, SUBCOMMAND, instance.path(), &input)
        .map_err(|failure| failure.into_error(verb, container))
}

/// The body of the process. The answer to the daemon goes to standard output.
pub(super) fn main(dir: &Path, make: Make) -> ExitCode {
    let run = || -> io::Result<()> {
        kleened_sys::process::close_inherited()?;
        // What ends the daemon, with all that belong to it, must not end this half way.
        let mut ends = SigSet::empty();
        ends.extend([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
        ends.thread_block()?;
        let change: Change = serde_json::from_reader(io::stdin().lock())?;
        let made = carry_out(dir, &change, make);
        io::stdout().write_all(&serde_json::to_vec(&made)?)
    };
    if run().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn carry_out(dir: &Path, change: &Change, make: Make) -> Answer<bool> {
    let (_, _, instance) = supervisor::open_instance(dir)?;
    instance.lock_mounts()?;
    let ended = || Error::io("look at", dir.display(), io::ErrorKind::NotFound);
    let launch = instance.launch()?.ok_or_else(ended)?;
    let not_running = || Error::NotRunning(launch.container.clone());
    let state = instance.state()?.ok_or_else(not_running)?;
    let root = launch.setup.ok_or_else(ended)?.root;
    make(&Target { container: launch.container.clone(), root, state }, change)
}
