//! Login classes and names, of the root directory that the process sees.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::transmute;
use std::ptr;

/// `login_cap_t` of `login_cap.h`, which nobody looks into here.
#[repr(C)]
struct LoginCap {
    _opaque: [u8; 0],
}

// setlogin(2)
unsafe extern "C" {
    fn setlogin(name: *const c_char) -> c_int;
}

// login_cap(3), login_class(3); the link names no release's library.
type GetClass = unsafe extern "C" fn(*const c_char, *const libc::passwd) -> *mut LoginCap;
type CloseClass = unsafe extern "C" fn(*mut LoginCap);
type SetContext =
    unsafe extern "C" fn(*mut LoginCap, *const libc::passwd, libc::uid_t, c_uint) -> c_int;

/// What the base system's `libutil` does with login classes.
#[derive(Debug, Clone, Copy)]
pub struct Classes {
    get: GetClass,
    close: CloseClass,
    set: SetContext,
}

/// The library's names, of the releases from 14 on.
const LIBRARIES: &[&CStr] = &[c"libutil.so.9", c"libutil.so.10"];

/// `LOGIN_SETPRIORITY`, `LOGIN_SETRESOURCES`, `LOGIN_SETUMASK`, `LOGIN_SETENV`, `LOGIN_SETCPUMASK` and
/// `LOGIN_SETLOGINCLASS` of `login_cap.h`.
const CLASS: c_uint = 0x0008 | 0x0010 | 0x0020 | 0x0080 | 0x0200 | 0x0400;

impl Classes {
    /// The library is loaded, from the root directory that the process sees now; `None` where it has none.
    #[must_use]
    pub fn load() -> Option<Self> {
        let library = LIBRARIES.iter().find_map(|name| {
            // SAFETY: the name is a C string, and the library the base system's: it runs nothing when it
            // is loaded.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
            (!library.is_null()).then_some(library)
        })?;
        let symbol = |name: &CStr| {
            // SAFETY: the library is loaded and never closed, and the name a C string.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        };
        let get = symbol(c"login_getclassbyname")?;
        let close = symbol(c"login_close")?;
        let set = symbol(c"setusercontext")?;
        // SAFETY: it is this function, `login_cap.h`.
        let get = unsafe { transmute::<*mut c_void, GetClass>(get) };
        // SAFETY: it is this function, `login_cap.h`.
        let close = unsafe { transmute::<*mut c_void, CloseClass>(close) };
        // SAFETY: it is this function, `login_cap.h`.
        let set = unsafe { transmute::<*mut c_void, SetContext>(set) };
        Some(Self { get, close, set })
    }

    /// The process has the limits, the priority, the mask of modes, the variables and the processors of
    /// this class of `/etc/login.conf`, and its name. Where there is no such class, those of `default`.
    /// In the variables' values `$` is the user's name, and `~` its home.
    ///
    /// # Errors
    ///
    /// What `setusercontext(3)` says; some of it may be so then.
    pub fn enter(self, name: &str, user: &str, home: &str) -> io::Result<()> {
        let (name, mut user) = (CString::new(name)?, CString::new(user)?.into_bytes_with_nul());
        let mut home = CString::new(home)?.into_bytes_with_nul();
        // SAFETY: zeros are a value of every member.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        (entry.pw_name, entry.pw_dir) = (user.as_mut_ptr().cast(), home.as_mut_ptr().cast());
        // SAFETY: the name is a C string; without a user, none of whose files is read.
        let class = unsafe { (self.get)(name.as_ptr(), ptr::null()) };
        if class.is_null() {
            return Err(io::Error::last_os_error());
        }
        // The number is nobody's: so the user's own file is not read.
        // SAFETY: the class is what the call before has returned, and for these flags the entry's name
        // and directory, which are C strings, are all that is looked at.
        let result = unsafe { (self.set)(class, &raw const entry, libc::uid_t::MAX, CLASS) };
        let error = io::Error::last_os_error();
        // SAFETY: the class is nobody else's, and not used any more.
        unsafe { (self.close)(class) };
        if result == 0 { Ok(()) } else { Err(error) }
    }
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
