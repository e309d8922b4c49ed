//! The last steps of a process before it is the program that was asked for.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use kleened_sys::seccomp::{self, Denied};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::platform::program::{self, give_up, start_error};
use crate::platform::stdio::Stdio;
use crate::platform::supervisor::Failure;
use crate::platform::user::User;
use crate::platform::{Error, Process};

/// The group `tty`, by the number that it has everywhere.
const TTY: u32 = 5;

/// What the superuser may do inside: what a program that changes users, owners or modes, or listens
/// on a low port, needs. Nothing that reaches the host: no mounts, no devices, no tracing, no raw
/// packets, no kernel settings.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE);

/// What no program inside may call: what would give it, in a user namespace of its own, the
/// capabilities that it lacks here; the host's keys, which no namespace keeps apart; and what only
/// ever served to get out. `clone3` looks as in an older kernel, because its flags can't be checked.
const DENIED: &[Denied] = &[
    Denied { bits: Some((0, seccomp::CLONE_NEWUSER.unsigned_abs())), ..denied(seccomp::SYS_clone) },
    Denied {
        bits: Some((0, seccomp::CLONE_NEWUSER.unsigned_abs())),
        ..denied(seccomp::SYS_unshare)
    },
    Denied { errno: seccomp::ENOSYS, ..denied(seccomp::SYS_clone3) },
    denied(seccomp::SYS_add_key),
    denied(seccomp::SYS_keyctl),
    denied(seccomp::SYS_request_key),
    denied(seccomp::SYS_bpf),
    denied(seccomp::SYS_io_uring_setup),
    denied(seccomp::SYS_open_by_handle_at),
    denied(seccomp::SYS_perf_event_open),
    denied(seccomp::SYS_userfaultfd),
];

const fn denied(call: i64) -> Denied {
    Denied { call, bits: None, errno: seccomp::EPERM }
}

/// This process is the program. What goes wrong goes over the line, which is closed otherwise.
pub(super) fn execute(process: &Process, stdio: &Stdio, line: &OwnedFd) -> ! {
    let Err(failure) = become_program(process, stdio, line);
    give_up(line, failure)
}

fn become_program(
    process: &Process,
    stdio: &Stdio,
    line: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    let program = process.argv.first().map_or("", String::as_str);
    let fail = |reason: String| start_error(program, reason, 126);
    let step = |what: &'static str| {
        move |errno: Errno| Failure::from(Error::io(what, "the process", errno))
    };

    let system = |e: io::Error| Failure::from(Error::io("prepare", "the process", e));
    // From here on paths of the container are looked up, and one may be a link into /proc/self/fd.
    let standard = stdio.enter(line)?;
    let user = User::of(process).map_err(fail)?;
    // The daemon may be dearer to the kernel. Where this can't be had, nothing is lost.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    seccomp::deny(DENIED).map_err(system)?;
    own_standard(standard, stdio.terminal, &user).map_err(step("give its input and output to"))?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    become_user(&user).map_err(step("change the user of"))?;
    // After the user changed, because that takes it back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("bind to its parent"))?;
    let workdir = program::enter_directory(process)?;
    // The kernel's word: it says "(unreachable)" of a directory outside of the root.
    let place = rustix::process::getcwd(Vec::new()).map_err(step("look for the directory of"))?;
    if !place.as_bytes().starts_with(b"/") {
        return Err(fail(format!("the directory {workdir} is not in the container")));
    }
    kleened_sys::process::close_rest_on_exec().map_err(system)?;
    kleened_sys::process::reset_signals().map_err(system)?;
    Err(program::run(process, &user, &[]))
}

/// The user can open what it got as input and output anew, as `/dev/stdout`.
fn own_standard(files: [BorrowedFd<'_>; 3], terminal: bool, user: &User) -> Result<(), Errno> {
    let group = if terminal { TTY } else { user.gid };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(group));
    for file in files {
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// The process is the user's and has no more capabilities than [`CAPABILITIES`], nor can get more.
fn become_user(user: &User) -> Result<(), Errno> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !CAPABILITIES.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => (),
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let own = if user.uid == 0 { CAPABILITIES } else { CapabilitySet::empty() };
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: own, permitted: own, inheritable };
    rustix::thread::set_capabilities(None, sets)
}

/// Besides these the process may nothing that the user may not who owns it.
pub(super) fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    rustix::thread::set_capabilities(None, sets)
}
