//! What the kernel says happened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use libzfs_sys::{ZEVENT_NONBLOCK, ZEVENT_SEEK_END, ZFS_DEV};

use super::Zfs;
use super::error::Error;
use super::handle::made;
use super::nvlist::NvList;

/// The events from when it was made on.
#[derive(Debug)]
pub struct Events {
    zfs: &'static Zfs,
    device: File,
}

/// Something happened.
#[derive(Debug)]
pub struct Event {
    /// As `zpool events` shows it, as in `sysevent.fs.zfs.history_event`.
    pub class: String,
    /// How many events before it were lost, because they were not read in time.
    pub lost: u64,
    /// Everything it says. A change of a dataset has its name in `history_dsname`, and in
    /// `history_internal_name` what was done.
    pub fields: NvList,
}

impl Zfs {
    /// The events from now on.
    ///
    /// # Errors
    ///
    /// What opening `/dev/zfs` says.
    pub fn events(&'static self) -> Result<Events, Error> {
        const VERB: &str = "watch events of";
        let failed = |error: io::Error| Error::from_io(VERB, ZFS_DEV, &error);
        let device = File::options().read(true).write(true).open(ZFS_DEV).map_err(failed)?;
        let handle = self.handle(VERB)?;
        let seek = handle.library().zpool_events_seek;
        // SAFETY: the handle is valid and this thread's, the device open.
        let result = unsafe { seek(handle.as_ptr(), ZEVENT_SEEK_END, device.as_raw_fd()) };
        if result != 0 {
            return Err(handle.error(VERB, ZFS_DEV));
        }
        Ok(Events { zfs: self, device })
    }
}

impl Events {
    /// The next event; `None` where there is none yet, and with `wait` only when the module goes away.
    ///
    /// # Errors
    ///
    /// `Interrupted` by a signal, and others. Safe to repeat.
    pub fn next(&mut self, wait: bool) -> Result<Option<Event>, Error> {
        const VERB: &str = "watch events of";
        let handle = self.zfs.handle(VERB)?;
        let next = handle.library().zpool_events_next;
        let (mut list, mut lost) = (ptr::null_mut(), 0);
        let flags = if wait { 0 } else { ZEVENT_NONBLOCK };
        let (pointer, device) = (handle.as_ptr(), self.device.as_raw_fd());
        // SAFETY: the handle is valid and this thread's, the device open; the others are places for a list
        // and a number.
        let result = unsafe { next(pointer, &raw mut list, &raw mut lost, flags, device) };
        let list = made(self.zfs, list);
        if result != 0 {
            return Err(handle.error(VERB, ZFS_DEV));
        }
        Ok(list.map(|fields| Event {
            class: fields.text("class").unwrap_or_default().to_owned(),
            lost: u64::try_from(lost).unwrap_or(0),
            fields,
        }))
    }
}
