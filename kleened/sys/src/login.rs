//! Login classes and names, of the root directory that the process sees.

use std::ffi::{CString, c_char, c_int, c_uint};
use std::io;
use std::ptr;

/// `login_cap_t` of `login_cap.h`, which nobody looks into here.
#[repr(C)]
struct LoginCap {
    _opaque: [u8; 0],
}

// login_cap(3), login_class(3), setlogin(2); libutil and libc.
#[link(name = "util")]
unsafe extern "C" {
    fn login_getclassbyname(name: *const c_char, user: *const libc::passwd) -> *mut LoginCap;
    fn login_close(class: *mut LoginCap);
    fn setusercontext(
        class: *mut LoginCap,
        user: *const libc::passwd,
        uid: libc::uid_t,
        flags: c_uint,
    ) -> c_int;
}
unsafe extern "C" {
    fn setlogin(name: *const c_char) -> c_int;
}

/// `LOGIN_SETPRIORITY`, `LOGIN_SETRESOURCES`, `LOGIN_SETUMASK`, `LOGIN_SETCPUMASK` and
/// `LOGIN_SETLOGINCLASS` of `login_cap.h`.
const CLASS: c_uint = 0x0008 | 0x0010 | 0x0020 | 0x0200 | 0x0400;

/// The process has the limits, the priority, the mask of modes and the processors of this class of
/// `/etc/login.conf`, and its name. Where there is no such class, those of `default`.
///
/// # Errors
///
/// What `setusercontext(3)` says; some of it may be so then.
pub fn enter_class(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string; without a user, none of whose files is read.
    let class = unsafe { login_getclassbyname(name.as_ptr(), ptr::null()) };
    if class.is_null() {
        return Err(io::Error::last_os_error());
    }
    // The number is nobody's: so the user's own file is not read.
    // SAFETY: the class is what the call before has returned, and the flags need no user.
    let result = unsafe { setusercontext(class, ptr::null(), libc::uid_t::MAX, CLASS) };
    let error = io::Error::last_os_error();
    // SAFETY: the class is nobody else's, and not used any more.
    unsafe { login_close(class) };
    if result == 0 { Ok(()) } else { Err(error) }
}

/// The process's session has this login name.
///
/// # Errors
///
/// `EINVAL` where it is longer than the kernel's limit; what `setlogin(2)` says.
pub fn set_name(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string.
    let result = unsafe { setlogin(name.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
