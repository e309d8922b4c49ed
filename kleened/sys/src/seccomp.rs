//! System calls that a process and its children can't make.

use std::io;
use std::mem::offset_of;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, c_long, seccomp_data, sock_filter, sock_fprog,
};

/// Numbers of calls, flags and errors that a rule can name.
pub use libc::{
    CLONE_NEWUSER, ENOSYS, EPERM, SYS_add_key, SYS_bpf, SYS_clone, SYS_clone3, SYS_io_uring_setup,
    SYS_keyctl, SYS_open_by_handle_at, SYS_perf_event_open, SYS_request_key, SYS_unshare,
    SYS_userfaultfd,
};

/// A call that fails.
#[derive(Debug, Clone, Copy)]
pub struct Denied {
    /// The call's number, `SYS_…`.
    pub call: c_long,
    /// Where it fails only with certain bits set in one of its first arguments: which argument, counted
    /// from 0, and the bits, of which one is enough.
    pub bits: Option<(usize, u32)>,
    /// What it fails with.
    pub errno: i32,
}

/// `AUDIT_ARCH_…` of this machine, from `linux/audit.h`.
const MACHINE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// The bit of a number of the x32 calls, which are others in disguise.
const X32: u32 = 0x4000_0000;

/// This process, what it starts and what it executes can't make these calls, nor any of another kind
/// of machine (such as those of 32-bit programs), which fail with `ENOSYS`. It can't be undone.
///
/// # Errors
///
/// `Unsupported` on a machine whose calls aren't known here; what `prctl(2)` with `PR_SET_SECCOMP`
/// says: `EACCES` without `CAP_SYS_ADMIN`.
pub fn deny(calls: &[Denied]) -> io::Result<()> {
    let machine = MACHINE.ok_or(io::ErrorKind::Unsupported)?;
    let mut program = vec![
        load(offset_of!(seccomp_data, arch)),
        jump(BPF_JEQ, machine, 1, 0),
        fail(libc::ENOSYS),
        load(offset_of!(seccomp_data, nr)),
    ];
    if cfg!(target_arch = "x86_64") {
        program.extend([jump(BPF_JGE, X32, 0, 1), fail(libc::ENOSYS)]);
    }
    for denied in calls {
        let number = u32::try_from(denied.call).map_err(|_| io::ErrorKind::InvalidInput)?;
        match denied.bits {
            None => program.extend([jump(BPF_JEQ, number, 0, 1), fail(denied.errno)]),
            Some((argument, bits)) => {
                let high = if cfg!(target_endian = "big") { 4 } else { 0 };
                let offset = offset_of!(seccomp_data, args) + argument * size_of::<u64>() + high;
                program.extend([
                    jump(BPF_JEQ, number, 0, 4),
                    load(offset),
                    jump(BPF_JSET, bits, 0, 1),
                    fail(denied.errno),
                    load(offset_of!(seccomp_data, nr)),
                ]);
            }
        }
    }
    program.push(statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the structure points to `len` instructions, all of which the kernel copies.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn statement(code: u32, k: u32) -> sock_filter {
    // Every code fits: they are less than 256.
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: usize) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset as u32)
}

fn fail(errno: i32) -> sock_filter {
    statement(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

/// Goes on after so many instructions where the condition holds, or does not.
fn jump(condition: u32, value: u32, holds: u8, fails: u8) -> sock_filter {
    let code = BPF_JMP | condition | BPF_K;
    sock_filter { jt: holds, jf: fails, ..statement(code, value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_call_fails_and_others_do_not() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        // It holds for the thread that asks, and those that it starts.
        std::thread::spawn(|| {
            let bits = Some((0, libc::CLONE_NEWUSER as u32));
            deny(&[
                Denied { call: libc::SYS_getpriority, bits: None, errno: libc::EDOM },
                Denied { call: libc::SYS_unshare, bits, errno: libc::EPERM },
            ])
            .unwrap();
            let error = rustix::process::getpriority_process(None).unwrap_err();
            assert_eq!(error, rustix::io::Errno::DOM);
            let unshare = |what| crate::process::unshare(what).map_err(|e| e.raw_os_error());
            assert_eq!(unshare(crate::process::Namespaces::NEWUSER), Err(Some(libc::EPERM)));
            assert_eq!(unshare(crate::process::Namespaces::NEWUTS), Ok(()));
        })
        .join()
        .unwrap();
        rustix::process::getpriority_process(None).unwrap();
    }
}
