//! What the kernel says of a process, told apart from a later one with the same number.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::platform::MountEntry;

/// When the process began, in ticks since the machine did.
///
/// # Errors
///
/// `NotFound` where it is gone.
pub(super) fn birth(pid: Pid) -> io::Result<u64> {
    let text = match std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        // It ended between the opening and the reading.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
            return Err(io::ErrorKind::NotFound.into());
        }
        other => other?,
    };
    // The name, in parentheses, can hold anything; the 22nd field is the 20th after it.
    let after = text.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1);
    let fields = text.get(after..).and_then(|rest| str::from_utf8(rest).ok()).unwrap_or_default();
    let birth = fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    birth.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A descriptor of the process with this number that began at that time; `None` where it has ended.
pub(super) fn open_process(pid: i32, born: u64) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    let file = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(None),
        other => other?,
    };
    match birth(pid) {
        Ok(time) if time == born => (),
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(if has_ended(&file)? { None } else { Some(file) })
}

/// Whether the process that the descriptor stands for has ended.
pub(super) fn has_ended(process: impl AsFd) -> io::Result<bool> {
    ends_within(process, Duration::ZERO)
}

/// Whether the process that the descriptor stands for has ended, or does in that time.
pub(super) fn ends_within(process: impl AsFd, time: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    let time = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&time)))? > 0)
}

/// The root directory that the process sees.
pub(super) fn root(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty())?)
}

/// What is mounted below the root directory that the process sees, which is named as in `/proc`.
///
/// # Source
///
/// `/proc/PID/mountinfo`, `proc_pid_mountinfo(5)`.
pub(super) fn mounts(process: impl Display) -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    let entries = table(&text).into_iter().map(|mounted| mounted.entry);
    Ok(entries.filter(|entry| entry.destination.as_os_str() != "/").collect())
}

/// A line of a mount table.
#[derive(Debug)]
pub(super) struct Mounted {
    /// The kernel's number.
    pub(super) id: u64,
    /// What is mounted: the device, and the path in its file system.
    pub(super) shown: (String, PathBuf),
    pub(super) entry: MountEntry,
}

/// A mount table.
pub(super) fn table(text: &[u8]) -> Vec<Mounted> {
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// What would be [shown](Mounted::shown) of a mount of the open file.
pub(super) fn shown(file: &OwnedFd) -> io::Result<(String, PathBuf)> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let id = kleened_sys::mount::mount_id(file)?.id;
    let table = table(&std::fs::read("/proc/thread-self/mountinfo")?);
    let found = table.into_iter().find(|mounted| mounted.id == id);
    let Mounted { shown: (device, root), entry, .. } = found.ok_or(io::ErrorKind::NotFound)?;
    let inside = path.strip_prefix(&entry.destination).map_err(io::Error::other)?;
    // Without a slash at the end.
    Ok((device, root.components().chain(inside.components()).collect()))
}

/// A line `ID PARENT DEVICE ROOT DESTINATION OPTIONS [FIELD…] - TYPE SOURCE OPTIONS`.
fn mount(line: &[u8]) -> Option<Mounted> {
    use std::os::unix::ffi::OsStringExt;
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let read_only = |index: usize| {
        fields.get(index).is_some_and(|options| options.split(|b| *b == b',').any(|o| o == b"ro"))
    };
    let path = |index: usize| {
        let field = fields.get(index)?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
    };
    let text = |index: usize| str::from_utf8(fields.get(index)?).ok();
    Some(Mounted {
        id: text(0)?.parse().ok()?,
        shown: (text(2)?.to_owned(), path(3)?),
        entry: MountEntry {
            destination: path(4)?,
            read_only: read_only(5) || read_only(separator + 3),
        },
    })
}

/// The text without the octal numbers that stand for spaces, line ends and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let number = after.get(..3).filter(|_| *byte == b'\\');
        let number = number.and_then(|digits| str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root rw,errors=x";
        let Mounted { id, shown, entry } = mount(line).unwrap();
        assert_eq!((id, shown), (36, ("98:0".to_owned(), "/mnt1".into())));
        assert_eq!((entry.destination.to_str(), entry.read_only), (Some(r"/mnt 2\"), false));
        let line = b"36 35 98:0 / /data ro,noatime - ext3 /dev/root rw";
        assert!(mount(line).unwrap().entry.read_only);
        let line = b"36 35 98:0 / /data rw,noatime shared:5 master:2 - ext3 /dev/root ro";
        assert!(mount(line).unwrap().entry.read_only);
        assert!(mount(b"").is_none());
    }

    #[test]
    fn a_process_is_itself_only() {
        let own = rustix::process::getpid();
        let (pid, born) = (own.as_raw_nonzero().get(), birth(own).unwrap());
        assert!(open_process(pid, born).unwrap().is_some());
        assert!(open_process(pid, born + 1).unwrap().is_none());
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(open_process(pid, born).unwrap().is_none());
    }
}
