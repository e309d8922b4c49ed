//! FreeBSD: containers are jails, with the container's id as their name.
//!
//! | of a jail | is |
//! | --- | --- |
//! | its root | the container's file system, by `path` |
//! | its mounts | the host's, below the root: they are made before it, and unmounted after it |
//! | its end | when its last process has ended; it is created with `persist`, which is taken away when the first process runs |
//!
//! `cage` is a jail with what belongs to it, `container` mounts what is in it, `live` changes that while it runs,
//! `process` turns a process into a program in it, `start` is the supervisor's part, and this file is the
//! daemon's. FreeBSD 14 is needed.

mod cage;
mod container;
mod kernel;
mod live;
mod process;
mod start;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kleened_api::Id;
use kleened_api::container::NetworkDriver;
use kleened_sys::jail::param::{self, Parameter, Table};
use kleened_sys::jail::{self, Action};
use kleened_sys::login::Classes;
use kleened_sys::rctl;
use rustix::process::Signal;

use super::jail_param::{self, Hook, Plan};
use super::limit::Limit;
use super::live::{Change, Verb};
use super::supervisor::wire::{self, Kind};
use super::supervisor::{self, KILL_TIME, RunDir, State, not_ended};
use super::{
    Error, Exited, Launch, Mount, MountEntry, Platform, Process, Result, Running, Setup, mountpoint,
};
use crate::ident;

/// Containers on FreeBSD.
#[derive(Debug)]
pub struct FreeBsd {
    run_dir: RunDir,
    /// The program that supervisors are.
    program: PathBuf,
}

impl FreeBsd {
    /// The jails whose supervisors keep their records in `run_dir`, which is made where it is missing.
    /// Supervisors are `program`, which must call [`super::supervise`]; without one, they are this program.
    ///
    /// # Errors
    ///
    /// `run_dir` can't be made, or this program not be found.
    pub fn open(run_dir: &Path, program: Option<&Path>) -> Result<Self> {
        if jail::is_jailed().unwrap_or(false) {
            tracing::warn!(
                "this is a jail, where containers are not supported: run kleened on the host"
            );
        }
        if Classes::load().is_none() {
            tracing::warn!("there is no libutil: no process gets what /etc/login.conf says");
        }
        let program = match program {
            Some(program) => program.to_owned(),
            None => std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?,
        };
        Ok(Self { run_dir: RunDir::open(run_dir)?, program })
    }

    fn change(&self, verb: Verb, container: &Id, mount: &Mount, others: &[Mount]) -> Result<bool> {
        let change = Change { verb, mount: mount.clone(), others: others.to_vec() };
        super::live::ask(&self.run_dir, self.program.as_os_str(), container, &change)
    }

    /// Where the container runs: the instance of its first process, and its jail.
    fn jail(&self, container: &Id) -> Result<Option<(Id, State)>> {
        let Some((first, state)) = self.run_dir.state(container)? else { return Ok(None) };
        Ok((find(container)? == Some(state.jid)).then_some((first, state)))
    }

    /// What is to run in the container, or on the host, when it is stopped.
    fn plan(&self, first: &Id) -> Result<Option<(Setup, Plan)>> {
        let Some(setup) = self.run_dir.setup(first)? else { return Ok(None) };
        let plan = Plan::new(&setup.jail_param, setup.network, &setup.hostname);
        Ok(Some((setup, plan.map_err(Error::Invalid)?)))
    }

    /// Runs a command in the container, for at most that time.
    fn run_inside(
        &self,
        container: &Id,
        command: &str,
        user: Option<&str>,
        time: Duration,
    ) -> Result<()> {
        let fail = |error| Error::io("run", format_args!("'{command}' in {container}"), error);
        let instance = ident::new();
        let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let process = Process {
            argv,
            env: Vec::new(),
            user: user.unwrap_or_default().to_owned(),
            workdir: "/".to_owned(),
            tty: false,
            stdin: false,
        };
        let launch = Launch {
            instance: instance.clone(),
            container: container.clone(),
            setup: None,
            process,
            attach: false,
        };
        self.launch(&launch)?;
        let ended = match self.connect(&instance)? {
            Some(stream) => wait_for_exit(stream, time).map_err(fail)?,
            None => true,
        };
        // It goes on where it takes longer, until the jail ends; then it is forgotten with it.
        if ended { self.forget(&instance) } else { Ok(()) }
    }
}

impl Platform for FreeBsd {
    fn name(&self) -> &'static str {
        "freebsd"
    }

    fn check(&self, network: NetworkDriver, jail_param: &[String]) -> Result<()> {
        if !matches!(network, NetworkDriver::Host | NetworkDriver::Disabled) {
            return Err(Error::Unsupported(format!(
                "the network driver '{}' is not supported yet: use 'host' or 'disabled'",
                network.as_str()
            )));
        }
        let plan = Plan::new(jail_param, network, "container").map_err(Error::Invalid)?;
        plan.encode(&table(jail_param)?).map(drop).map_err(Error::Invalid)
    }

    fn check_limits(&self, limits: &[String]) -> Result<()> {
        rules(&"", limits).map(drop)
    }

    fn limit(&self, container: &Id, limits: &[String]) -> Result<()> {
        let rules = rules(container, limits)?;
        unlimit(container)?;
        limit(&rules)
    }

    fn update(&self, container: &Id, jail_param: &[String]) -> Result<()> {
        let table = table(jail_param)?;
        let mut parameters = jail_param::changes(&table, jail_param).map_err(Error::Invalid)?;
        if parameters.is_empty() {
            return Ok(());
        }
        let (_, state) =
            self.jail(container)?.ok_or_else(|| Error::NotRunning(container.clone()))?;
        parameters.push(Parameter::int("jid", state.jid));
        jail::set(&parameters, Action::Update).map(drop).map_err(|error| {
            let jail = format_args!("the jail of container {container}");
            Error::io("change", jail, io::Error::from(error))
        })
    }

    fn prepare(&self, root: &Path, mounts: &[Mount]) -> Result<()> {
        mountpoint::prepare(root, mounts)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        supervisor::spawn(&self.run_dir, self.program.as_os_str(), launch)
    }

    fn connect(&self, instance: &Id) -> Result<Option<UnixStream>> {
        self.run_dir.connect(instance)
    }

    fn running(&self) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for container in self.run_dir.containers()? {
            if let Some((instance, State { jid, started, .. })) = self.jail(&container)? {
                running.push(Running { container, instance, jid, started });
            }
        }
        Ok(running)
    }

    fn exited(&self, instance: &Id) -> Result<Option<Exited>> {
        self.run_dir.exited(instance)
    }

    fn is_lost(&self, instance: &Id) -> Result<bool> {
        self.run_dir.is_lost(instance)
    }

    fn mounts(&self, container: &Id) -> Result<Vec<MountEntry>> {
        let not_running = || Error::NotRunning(container.clone());
        let (first, _) = self.jail(container)?.ok_or_else(not_running)?;
        let setup = self.run_dir.setup(&first)?.ok_or_else(not_running)?;
        kernel::mounts(&setup.root)
            .map_err(|e| Error::io("list the mounts of", format_args!("container {container}"), e))
    }

    fn attach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<()> {
        self.change(Verb::Attach, container, mount, others).map(drop)
    }

    fn detach(&self, container: &Id, mount: &Mount, others: &[Mount]) -> Result<bool> {
        self.change(Verb::Detach, container, mount, others)
    }

    fn terminate(&self, container: &Id, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        let Some((first, state)) = self.jail(container)? else { return Ok(false) };
        let left = || until.saturating_duration_since(Instant::now());
        if let Some((setup, plan)) = self.plan(&first)? {
            let about = cage::About { container, root: &setup.root, jid: Some(state.jid) };
            // As in jail(8), a command that fails is not a reason to go on running.
            for command in plan.hook(Hook::Prestop) {
                if let Err(error) = cage::run(command, plan.timeout.min(left()), &about, &mut || ())
                {
                    tracing::warn!(%container, command, %error, "exec.prestop");
                }
            }
            for command in plan.hook(Hook::Stop) {
                let time = plan.timeout.min(left());
                match self.run_inside(container, command, plan.user.as_deref(), time) {
                    Ok(()) | Err(Error::NotRunning(_)) => (),
                    Err(error) => tracing::debug!(%container, command, %error, "exec.stop"),
                }
            }
        }
        // By their numbers, as in jail(8).
        let fail = |error| Error::io("end", format_args!("container {container}"), error);
        for pid in kleened_sys::process::of_jail(state.jid).map_err(fail)? {
            // It may have ended just now.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        Ok(true)
    }

    fn kill(&self, container: &Id) -> Result<bool> {
        let fail = |error| Error::io("kill", format_args!("container {container}"), error);
        let jid = find(container)?;
        let (first, state) = match self.run_dir.state(container)? {
            Some(found) => found,
            None => match self.run_dir.remains(container)? {
                Some(found) => found,
                None => return Ok(false),
            },
        };
        let watcher = self.run_dir.connect(&first)?;
        let is_held = self.run_dir.holder(container)?.is_some();
        if jid != Some(state.jid) && !is_held {
            return Ok(false);
        }
        // The number alone may be another jail's by now.
        let gone = match jid == Some(state.jid) {
            true => kernel::end_within(state.jid, KILL_TIME),
            false => kernel::is_gone_within(state.jid, KILL_TIME),
        };
        if !gone.map_err(fail)? {
            return Err(fail(not_ended()));
        }
        self.run_dir.wait_until_ended(container, watcher).map_err(fail)?;
        if let Some(setup) = self.run_dir.setup(&first)? {
            kernel::unmount_below(&setup.root)?;
        }
        Ok(true)
    }

    fn release(&self, container: &Id, root: &Path) -> Result<()> {
        if !self.run_dir.release(container)? {
            return Err(Error::Running(container.clone()));
        }
        clear(container, root)?;
        self.run_dir.release_instances(container)
    }

    fn forget(&self, instance: &Id) -> Result<()> {
        self.run_dir.forget(instance)
    }

    fn sweep(&self, known: &dyn Fn(&Id) -> bool) -> Result<()> {
        self.run_dir.sweep(known)
    }
}

/// The id of the container's jail, where that is alive.
fn find(container: &Id) -> Result<Option<i32>> {
    jail::find(container.as_str()).map_err(|e| {
        Error::io("look for", format_args!("container {container}"), io::Error::from(e))
    })
}

/// The jail parameters of this host, with those of the modules that these parameters need, which are
/// loaded.
fn table(jail_param: &[String]) -> Result<Table> {
    let list =
        || jail::parameters().map_err(|e| Error::io("list", "the kernel's jail parameters", e));
    let table = list()?;
    let names = jail_param.iter().map(|text| param::split(text).0);
    let missing = names.filter(|name| table.find(name).is_none()).filter_map(param::module);
    // Where there is no such module, there is no such parameter.
    match missing.filter(|name| jail::load_module(name).is_ok()).count() {
        0 => Ok(table),
        _ => list(),
    }
}

/// The kernel's rules for these limits of a jail.
fn rules(jail: &dyn std::fmt::Display, limits: &[String]) -> Result<Vec<String>> {
    let rules = limits.iter().map(|text| Limit::new(text).map(|limit| limit.rule(jail)));
    let rules = rules.collect::<std::result::Result<Vec<_>, _>>().map_err(Error::Invalid)?;
    let is_enabled = rules.is_empty()
        || rctl::is_enabled()
            .map_err(|error| Error::io("look for", "the kernel's limits", error))?;
    if is_enabled {
        return Ok(rules);
    }
    Err(Error::Unsupported(
        "this system keeps no limits: write kern.racct.enable=1 into /boot/loader.conf, and restart it"
            .to_owned(),
    ))
}

/// The rules hold.
fn limit(rules: &[String]) -> Result<()> {
    for rule in rules {
        rctl::add(rule)
            .map_err(|error| Error::io("set", format_args!("the limit {rule}"), error))?;
    }
    Ok(())
}

/// No rule for the container's jail holds.
fn unlimit(container: &Id) -> Result<()> {
    rctl::remove(&format!("jail:{container}"))
        .map_err(|e| Error::io("remove", format_args!("the limits of container {container}"), e))
}

/// Nothing of a container without a supervisor runs, and nothing is mounted below its root.
fn clear(container: &Id, root: &Path) -> Result<()> {
    let fail = |error| Error::io("kill", format_args!("container {container}"), error);
    if let Some(jid) = find(container)?
        && !kernel::end_within(jid, KILL_TIME).map_err(fail)?
    {
        return Err(fail(not_ended()));
    }
    unlimit(container)?;
    kernel::unmount_below(root)
}

/// Whether the process whose supervisor this is ends in that time.
fn wait_for_exit(mut supervisor: UnixStream, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    wire::greet(&mut supervisor, false)?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        supervisor.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match wire::read(&mut supervisor) {
            Ok(Some((Kind::EXIT, _)) | None) => return Ok(true),
            Ok(Some(_)) => (),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(false),
                _ => return Ok(true),
            },
        }
    }
}

/// See [`super::supervise`].
pub(super) fn supervise(dir: &Path) -> ExitCode {
    supervisor::main(dir, start::start)
}

/// See [`super::change_mounts`].
pub(super) fn change_mounts(dir: &Path) -> ExitCode {
    super::live::main(dir, live::change)
}
