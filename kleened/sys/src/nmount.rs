//! Mounts on FreeBSD: `nmount(2)` with its message, and the kernel's mount table.

use std::ffi::{CStr, CString, OsString, c_char};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use nix::mount::MntFlags as Flags;
use nix::mount::Nmount;

/// What identifies a mounted file system as long as it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileSystemId([i32; 2]);

/// An entry of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What identifies it.
    pub id: FileSystemId,
    /// The type: `nullfs`, `zfs`.
    pub kind: String,
    /// What is mounted.
    pub from: OsString,
    /// Where.
    pub at: PathBuf,
    flags: u64,
}

impl Entry {
    /// Whether it has all of these flags. A nullfs also has those of the file system that it shows.
    #[must_use]
    pub fn has(&self, flags: Flags) -> bool {
        u64::try_from(flags.bits()).is_ok_and(|flags| self.flags & flags == flags)
    }
}

/// Flags that are options as well, `nmount(2)`.
const NAMES: [(Flags, &CStr); 4] = [
    (Flags::MNT_RDONLY, c"ro"),
    (Flags::MNT_NOSUID, c"nosuid"),
    (Flags::MNT_NOEXEC, c"noexec"),
    (Flags::MNT_NOSYMFOLLOW, c"nosymfollow"),
];

/// The file system is mounted at `at`, which for the kernel's lookup is a path like any other: relative
/// to the present directory, links followed.
///
/// # Errors
///
/// What `nmount(2)` says, in its words where it has some: `ENOENT` for either path; `ENOTDIR` where one is
/// a directory and the other is not; `EDEADLK` where a nullfs would be on itself; `EBUSY` for a file that
/// has a mount.
pub fn mount(
    kind: &CStr,
    from: &Path,
    at: &Path,
    options: &[(&CStr, &CStr)],
    flags: Flags,
) -> io::Result<()> {
    let from = CString::new(from.as_os_str().as_bytes())?;
    let at = CString::new(at.as_os_str().as_bytes())?;
    let mut call = Nmount::new();
    call.str_opt(c"fstype", kind).str_opt(c"fspath", &at).str_opt(c"from", &from);
    for (name, value) in options {
        call.str_opt(name, value);
    }
    // Also by name, as mount(8) says them: ZFS looks at no flags, `zfs_register_callbacks()`.
    for (flag, name) in NAMES {
        if flags.contains(flag) {
            call.null_opt(name);
        }
    }
    call.nmount(flags).map_err(|error| {
        let errno = error.error();
        match error.errmsg() {
            Some(text) => {
                let kind = io::Error::from(errno).kind();
                io::Error::new(kind, format!("{text}: {}", errno.desc()))
            }
            None => errno.into(),
        }
    })
}

/// The file system is not mounted any more. False where it was not. With `force`, also where files of it
/// are open, which can't be used any more then.
///
/// # Errors
///
/// `EBUSY` where it is in use; what `unmount(2)` says.
pub fn unmount(id: FileSystemId, force: bool) -> io::Result<bool> {
    let FileSystemId([one, two]) = id;
    let mut flags = Flags::MNT_BYFSID;
    flags.set(Flags::MNT_FORCE, force);
    match nix::mount::unmount(format!("FSID:{one}:{two}").as_str(), flags) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The kernel's mount table, in the order in which the mounts were made.
///
/// # Errors
///
/// What `getfsstat(2)` says.
pub fn table() -> io::Result<Vec<Entry>> {
    loop {
        // SAFETY: without a buffer the call only counts.
        let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        // Some more, for mounts that are made meanwhile.
        let room = count + 16;
        let mut table: Vec<libc::statfs> = Vec::with_capacity(room);
        let size = room.saturating_mul(size_of::<libc::statfs>());
        let size = size.try_into().map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: the buffer has that size.
        let filled = unsafe { libc::getfsstat(table.as_mut_ptr(), size, libc::MNT_NOWAIT) };
        let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
        if filled < room {
            // SAFETY: the kernel has filled that many, fewer than there is room for.
            unsafe { table.set_len(filled) };
            return Ok(table.iter().map(Entry::from).collect());
        }
    }
}

/// The mount that an open file is on.
///
/// # Errors
///
/// What `fstatfs(2)` says.
pub fn of_file(file: impl AsFd) -> io::Result<Entry> {
    Ok(Entry::from(&rustix::fs::fstatfs(file)?))
}

impl From<&libc::statfs> for Entry {
    fn from(found: &libc::statfs) -> Self {
        let id = (&raw const found.f_fsid).cast::<[i32; 2]>();
        // SAFETY: `fsid_t` is a structure of two numbers of this type, `sys/_types.h`.
        let id = unsafe { id.read_unaligned() };
        Self {
            id: FileSystemId(id),
            kind: String::from_utf8_lossy(&text(&found.f_fstypename)).into_owned(),
            from: OsString::from_vec(text(&found.f_mntfromname)),
            at: PathBuf::from(OsString::from_vec(text(&found.f_mntonname))),
            flags: found.f_flags,
        }
    }
}

/// As in `sys/mount.h` and `sys/user.h`: `tests/freebsd/abi.c` compares these with the headers.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<libc::statfs>() == 2344);
    assert!(offset_of!(libc::statfs, f_flags) == 8);
    assert!(offset_of!(libc::statfs, f_fsid) == 192);
    assert!(offset_of!(libc::statfs, f_mntonname) == 1320);
    assert!(libc::KINFO_FILE_SIZE == 1392 && size_of::<libc::kinfo_file>() == 1392);
    assert!(offset_of!(libc::kinfo_file, kf_path) == 368);
};

/// The text in a buffer that ends with a zero byte, or is full.
fn text(buffer: &[c_char]) -> Vec<u8> {
    buffer.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect()
}

/// Where an open file is now, as the kernel knows it.
///
/// # Errors
///
/// `ENOENT` where it can't say: the file was removed, or, if it is no directory, has not been looked up of
/// late. What `fcntl(2)` with `F_KINFO` says.
pub fn path_of(file: impl AsFd) -> io::Result<PathBuf> {
    let mut info = MaybeUninit::<libc::kinfo_file>::zeroed();
    // SAFETY: zeros are a value of every member.
    let info = unsafe { info.assume_init_mut() };
    info.kf_structsize = libc::KINFO_FILE_SIZE;
    let info: *mut libc::kinfo_file = &raw mut *info;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the structure has the size that it says, and is ours alone.
    if unsafe { libc::fcntl(fd, libc::F_KINFO, info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it.
    let path = text(unsafe { &(*info).kf_path });
    if path.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}
