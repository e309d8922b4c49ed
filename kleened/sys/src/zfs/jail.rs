//! Datasets that a jail manages.

use std::ffi::c_int;

use super::{Error, Zfs};

impl Zfs {
    /// The jail manages the file system and those below, as long as it is there: the kernel forgets it when the
    /// jail is gone.
    ///
    /// # Errors
    ///
    /// `Invalid` for a file system that is not `jailed`; `NotFound` for either; `Exists` where the jail manages
    /// it already; what libzfs says.
    ///
    /// # Source
    ///
    /// `zfs_jail()` in libzfs, `module/os/freebsd/spl/spl_zone.c`; `IP_ZFS_DATASET` in `usr.sbin/jail/command.c`.
    pub fn jail(&'static self, name: &str, jid: c_int) -> Result<(), Error> {
        const VERB: &str = "jail";
        if self.properties(name, &["jailed"])?.number("jailed") != Some(1) {
            let error = Error::new(VERB, name, libc::EINVAL);
            return Err(error
                .detail(format!("it has not the property jailed=on: zfs set jailed=on {name}")));
        }
        let handle = self.handle(VERB)?;
        let Some(jail) = handle.library().zfs_jail else {
            return Err(Error::new(VERB, name, libc::ENOTSUP));
        };
        let dataset = handle.open(VERB, name)?;
        // SAFETY: the dataset is valid and this thread's.
        let result = unsafe { jail(dataset.as_ptr(), jid, 1) };
        if result == 0 { Ok(()) } else { Err(handle.error(VERB, name)) }
    }
}
