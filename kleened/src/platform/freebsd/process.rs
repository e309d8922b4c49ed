//! The last steps of a process before it is the program that was asked for.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use kleened_sys::jail;
use kleened_sys::login::Classes;
use nix::unistd::{Gid, Uid};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::platform::program::{self, give_up, is_abandoned, start_error};
use crate::platform::stdio::Stdio;
use crate::platform::supervisor::Failure;
use crate::platform::user::{self, User};
use crate::platform::{Error, Launch};

/// What is written to the line when nothing is left to do but to execute the program.
pub(super) const READY: u8 = b'+';

/// The group `tty`, by the number that it has everywhere.
const TTY: u32 = 4;

/// This process is the program, in the jail. What goes wrong goes over the line, which is closed
/// otherwise.
pub(super) fn execute(
    launch: &Launch,
    jail: (i32, Option<i32>),
    stdio: &Stdio,
    line: &OwnedFd,
) -> ! {
    let Err(failure) = become_program(launch, jail, stdio, line);
    give_up(line, failure)
}

fn become_program(
    launch: &Launch,
    (jid, fib): (i32, Option<i32>),
    stdio: &Stdio,
    line: &OwnedFd,
) -> Result<Infallible, Failure> {
    let process = &launch.process;
    let program = process.argv.first().map_or("", String::as_str);
    let fail = |reason: String| start_error(program, reason, 126);
    let step = |what: &'static str| {
        move |errno: Errno| Failure::from(Error::io(what, "the process", errno))
    };
    let system = |e: io::Error| Failure::from(Error::io("prepare", "the process", e));

    let standard = stdio.enter(line)?;
    // What is inside must neither trace this process nor look into it, until it is the program.
    kleened_sys::process::refuse_tracing().map_err(|error| match error.raw_os_error() {
        Some(EBUSY) => fail("kleened is being traced: end ktrace(1) or truss(1) of it".to_owned()),
        _ => Error::io("protect", "the process", error).into(),
    })?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("bind to its parent"))?;
    if is_abandoned(line) {
        return Err(Error::io("start", "the process", Errno::SRCH).into());
    }
    if let Some(fib) = fib {
        kleened_sys::process::set_fib(fib).map_err(|error| match error.raw_os_error() {
            Some(EINVAL) => fail(format!(
                "the kernel has no routing table {fib}: write net.fibs={} into /boot/loader.conf, \
                 and restart the system",
                fib.saturating_add(1)
            )),
            _ => system(error),
        })?;
    }
    // The host's, and no file of the container's.
    let classes = Classes::load();
    jail::attach(jid).map_err(|error| match error.raw_os_error() {
        Some(EINVAL) => Failure::NotRunning(launch.container.clone()),
        _ => Error::io("enter", format_args!("jail {jid}"), error).into(),
    })?;
    // From here on paths are the container's.
    rustix::process::chdir("/").map_err(step("enter the root with"))?;
    let user = User::of(process).map_err(fail)?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let class = user::login_class(&user, &user::read("/etc/master.passwd").map_err(fail)?);
    // As in login(1), what of it can't be had is not a reason to stay out.
    let name = user.name.as_deref().unwrap_or_default();
    let _ = classes.map(|classes| classes.enter(&class, name, &user.home));
    if stdio.terminal {
        for file in standard {
            let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(TTY));
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(step("give its terminal to"))?;
        }
    }
    become_user(&user).map_err(|errno| system(errno.into()))?;
    program::enter_directory(process)?;
    kleened_sys::process::close_rest_on_exec().map_err(system)?;
    kleened_sys::process::reset_signals().map_err(system)?;
    rustix::io::write(line, &[READY]).map_err(step("start"))?;
    // A supervisor is started without any: these are of the class.
    let class: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| {
            Some(format!("{}={}", name.into_string().ok()?, value.into_string().ok()?))
        })
        .collect();
    Err(program::run(process, &user, &class))
}

const EINVAL: i32 = Errno::INVAL.raw_os_error();
const EBUSY: i32 = Errno::BUSY.raw_os_error();

/// The process is the user's.
fn become_user(user: &User) -> nix::Result<()> {
    if let Some(name) = &user.name {
        // A name that is too long is none for the kernel.
        let _ = kleened_sys::login::set_name(name);
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // The first one is the effective group, setgroups(2).
    let groups: Vec<_> =
        std::iter::once(gid).chain(user.groups.iter().copied().map(Gid::from_raw)).collect();
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}
