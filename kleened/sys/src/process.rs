//! Processes: what `std::process` can't, because it always ends in another program.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use rustix::process::Pid;

/// Which of the two processes this is after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that was there, with the other's id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// There are two processes, alike but for the answer.
///
/// # Errors
///
/// `EBUSY` where the process has more than one thread: the others' locks would stay locked forever in
/// the child. FreeBSD can't say how many there are; there it is the caller's duty. Otherwise what
/// `fork(2)` says.
pub fn fork() -> io::Result<Fork> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        // One entry for each thread, and the two that every directory has.
        if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
    }
    // SAFETY: this is the only thread, so everything in memory is in a state that it left it in.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
        nix::unistd::ForkResult::Parent { child } => {
            let pid = Pid::from_raw(child.as_raw()).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Fork::Parent(pid))
        }
    }
}

/// The process ends at once: nothing that was registered to run at the end runs, nothing buffered is
/// written. What a forked child ends with.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it doesn't return, and touches no memory of this process.
    unsafe { libc::_exit(code) }
}

/// No descriptor from 3 on is open.
///
/// # Errors
///
/// What `close_range(2)` says.
pub fn close_inherited() -> io::Result<()> {
    close_range(3, u32::MAX, 0)
}

/// No descriptor but these is open.
///
/// # Errors
///
/// What `close_range(2)` says.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Every descriptor from 3 on is closed when the process executes a program.
///
/// # Errors
///
/// What `close_range(2)` says.
pub fn close_rest_on_exec() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let flag = libc::CLOSE_RANGE_CLOEXEC as i32;
    // CLOSE_RANGE_CLOEXEC of <sys/unistd.h>.
    #[cfg(target_os = "freebsd")]
    let flag = 1 << 2;
    close_range(3, u32::MAX, flag)
}

fn close_range(first: u32, last: u32, flags: i32) -> io::Result<()> {
    // SAFETY: the callers are about to end, to execute a program, or have just begun, some of them as
    // forked children that never return to where the numbers are known: nobody uses them any more, or
    // yet.
    let result = unsafe { libc::close_range(first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Nobody in a jail can trace this process or look into it, and on the host the superuser alone, until it
/// executes a program. A repeat is safe.
///
/// # Errors
///
/// `EBUSY` where somebody traces it already; what `procctl(2)` says.
#[cfg(target_os = "freebsd")]
pub fn refuse_tracing() -> io::Result<()> {
    let mut how = libc::PROC_TRACE_CTL_DISABLE;
    let data = (&raw mut how).cast();
    // SAFETY: the kernel reads one number there, and writes nothing.
    let result = unsafe { libc::procctl(libc::P_PID, 0, libc::PROC_TRACE_CTL, data) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The process uses this routing table for what it sends, and what it starts does.
///
/// # Errors
///
/// `EINVAL` where the kernel has not so many, `net.fibs`.
#[cfg(target_os = "freebsd")]
pub fn set_fib(number: i32) -> io::Result<()> {
    // setfib(2), of libc.
    unsafe extern "C" {
        fn setfib(fib: std::ffi::c_int) -> std::ffi::c_int;
    }
    // SAFETY: the number is all that it takes.
    if unsafe { setfib(number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every signal does what it does by default, and none is blocked.
///
/// # Errors
///
/// What `sigaction(2)` and `sigprocmask(2)` say.
pub fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default action runs no code of this process.
        unsafe { nix::sys::signal::sigaction(signal, &default) }?;
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// The process is this program from now on. Returns why it isn't.
#[must_use]
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// The number of a signal by its name, with or without `SIG`.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

/// The processes in the jail with this id, without those that have ended and were not waited for.
///
/// # Errors
///
/// What `sysctl(3)` says.
///
/// # Source
///
/// `kern.proc.proc`, `kvm_getprocs` in `lib/libkvm/kvm_proc.c`.
#[cfg(target_os = "freebsd")]
pub fn of_jail(jid: i32) -> io::Result<Vec<Pid>> {
    use std::mem::size_of;
    use std::ptr;
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PROC];
    loop {
        let mut size = 0;
        // SAFETY: the name has three parts; without a buffer the call only says how large one has to be.
        let sized = unsafe {
            libc::sysctl(name.as_ptr(), 3, ptr::null_mut(), &raw mut size, ptr::null(), 0)
        };
        if sized != 0 {
            return Err(io::Error::last_os_error());
        }
        // Some more, for processes that begin meanwhile.
        let room = size / size_of::<libc::kinfo_proc>() + 64;
        let mut list: Vec<libc::kinfo_proc> = Vec::with_capacity(room);
        let mut size = room * size_of::<libc::kinfo_proc>();
        let buffer = list.as_mut_ptr().cast();
        // SAFETY: the name has three parts, and the buffer `size` bytes.
        let filled =
            unsafe { libc::sysctl(name.as_ptr(), 3, buffer, &raw mut size, ptr::null(), 0) };
        if filled != 0 {
            match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOMEM) => continue,
                error => return Err(error),
            }
        }
        // SAFETY: the kernel has filled so many bytes with structures.
        unsafe { list.set_len(size / size_of::<libc::kinfo_proc>()) };
        let layout = i32::try_from(size_of::<libc::kinfo_proc>()).unwrap_or_default();
        if list.iter().any(|process| process.ki_structsize != layout) {
            return Err(io::Error::other("this kernel describes processes in another way"));
        }
        let alive =
            |process: &&libc::kinfo_proc| process.ki_jid == jid && process.ki_stat != libc::SZOMB;
        return Ok(list.iter().filter(alive).filter_map(|p| Pid::from_raw(p.ki_pid)).collect());
    }
}

/// As in `sys/user.h`: `tests/freebsd/abi.c` compares these with the header.
#[cfg(all(target_os = "freebsd", target_pointer_width = "64"))]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<libc::kinfo_proc>() == 1088);
    assert!(offset_of!(libc::kinfo_proc, ki_pid) == 72);
    assert!(offset_of!(libc::kinfo_proc, ki_stat) == 388);
    assert!(offset_of!(libc::kinfo_proc, ki_jid) == 592);
};

/// What [`unshare`] makes anew.
#[cfg(target_os = "linux")]
pub use rustix::thread::UnshareFlags as Namespaces;

/// The process has namespaces of its own. With `NEWPID`, its children have.
///
/// # Errors
///
/// `EINVAL` for flags that are no namespaces; what `unshare(2)` says.
#[cfg(target_os = "linux")]
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    if namespaces.intersects(Namespaces::FILES | Namespaces::FS | Namespaces::SYSVSEM) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the table of descriptors stays shared with the other threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names() {
        assert_eq!(signal_number("TERM"), Some(libc::SIGTERM));
        assert_eq!(signal_number("SIGKILL"), Some(libc::SIGKILL));
        assert_eq!(signal_number("term"), None);
        assert_eq!(signal_number("9"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_of_several_threads_does_not_fork() {
        // The test's own thread is one beside the main one.
        assert_eq!(fork().unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }
}
