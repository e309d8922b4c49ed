//! Waiting for the end of processes, whoever their parents are, by a `kqueue(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use rustix::process::Pid;

/// Tells of the end of processes, and of time that has gone by. Its descriptor is readable when it has
/// something to tell; a forked child doesn't have it.
#[derive(Debug)]
pub struct Watch(Kqueue);

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watch {
    /// One that watches nothing.
    ///
    /// # Errors
    ///
    /// What `kqueue(2)` says.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Kqueue::new()?))
    }

    /// It tells when the process has ended, once; also where it has ended and was not waited for. False
    /// where there is no such process.
    ///
    /// # Errors
    ///
    /// What `kevent(2)` says.
    pub fn exit_of(&self, pid: Pid) -> io::Result<bool> {
        let ident = usize::try_from(pid.as_raw_nonzero().get());
        let ident = ident.map_err(|_| io::ErrorKind::InvalidInput)?;
        match self.add(ident, EventFilter::EVFILT_PROC, FilterFlag::NOTE_EXIT, 0) {
            Err(Errno::ESRCH) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// It tells when that time has gone by, once. Takes the place of another time.
    ///
    /// # Errors
    ///
    /// What `kevent(2)` says.
    pub fn after(&self, time: Duration) -> io::Result<()> {
        let data = isize::try_from(time.as_millis()).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.add(0, EventFilter::EVFILT_TIMER, FilterFlag::empty(), data.max(1))?)
    }

    fn add(
        &self,
        ident: usize,
        filter: EventFilter,
        flags: FilterFlag,
        data: isize,
    ) -> nix::Result<()> {
        let how = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
        let change = [KEvent::new(ident, filter, how, flags, data, 0)];
        // Without room for events, an error is the call's.
        self.0.kevent(&change, &mut [], None).map(drop)
    }

    /// Whether it had something to tell, which is taken.
    ///
    /// # Errors
    ///
    /// What `kevent(2)` says.
    pub fn take(&self) -> io::Result<bool> {
        let nothing =
            KEvent::new(0, EventFilter::EVFILT_TIMER, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut events = [nothing; 16];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        match self.0.kevent(&[], &mut events, Some(now)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}
