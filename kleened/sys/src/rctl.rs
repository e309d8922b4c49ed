//! Rules for what processes may use: `rctl(8)`.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::ptr;

// rctl_add_rule(2), <sys/rctl.h>
unsafe extern "C" {
    fn rctl_add_rule(
        input: *const c_char,
        input_length: usize,
        output: *mut c_char,
        output_length: usize,
    ) -> c_int;
    fn rctl_remove_rule(
        input: *const c_char,
        input_length: usize,
        output: *mut c_char,
        output_length: usize,
    ) -> c_int;
}

/// Whether this kernel counts what processes use.
///
/// # Errors
///
/// What `sysctlbyname(3)` says.
pub fn is_enabled() -> io::Result<bool> {
    // Of the size that the kernel likes: it was an `int`, and is a `bool`.
    let mut enabled = 0_u64;
    let mut size = size_of_val(&enabled);
    let name = c"kern.racct.enable";
    // SAFETY: the name is a C string, and the buffer has that size.
    let result = unsafe {
        libc::sysctlbyname(name.as_ptr(), (&raw mut enabled).cast(), &raw mut size, ptr::null(), 0)
    };
    if result == 0 {
        return Ok(enabled != 0);
    }
    match io::Error::last_os_error() {
        // It was built without.
        error if error.kind() == io::ErrorKind::NotFound => Ok(false),
        error => Err(error),
    }
}

/// The rule holds, also for a jail that will be made with that name. A repeat is safe.
///
/// # Errors
///
/// `ENOSYS` where [`is_enabled`] says no; `EOPNOTSUPP` for an action that the resource has not; what
/// `rctl_add_rule(2)` says.
pub fn add(rule: &str) -> io::Result<()> {
    let rule = CString::new(rule)?;
    let length = rule.as_bytes_with_nul().len();
    // SAFETY: the text has that length with its zero byte, and nothing is asked for.
    match unsafe { rctl_add_rule(rule.as_ptr(), length, ptr::null_mut(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// No rule holds that this filter matches. A repeat is safe.
///
/// # Errors
///
/// What `rctl_remove_rule(2)` says.
pub fn remove(filter: &str) -> io::Result<()> {
    let filter = CString::new(filter)?;
    let length = filter.as_bytes_with_nul().len();
    // SAFETY: the text has that length with its zero byte, and nothing is asked for.
    if unsafe { rctl_remove_rule(filter.as_ptr(), length, ptr::null_mut(), 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // No rule, no such jail, or no rules at all.
        Some(libc::ESRCH | libc::ENOENT | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}
