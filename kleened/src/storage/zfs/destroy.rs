//! Removing a dataset with its snapshots, and trying again while something still lets go of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kleened_sys::zfs::{Error as SysError, Kind, Limits, NvList, pool_of};
use rustix::io::Errno;

use super::super::{DatasetPath, Error, Result};
use super::{Zfs, failed};

/// Destroys a file system and its snapshots in one transaction.
const PROGRAM: &str = include_str!("destroy.lua");

/// Says whether a file system that has snapshots is in use, see `destroy.lua`.
const IN_USE: &str = "local arguments = ... return { errno = zfs.check.rollback(arguments['fs']) }";

/// How long a dataset may stay in use by somebody who does not mean to use it: a container that is
/// starting has, for a moment, the host's mounts in its mount namespace, and the kernel takes file systems
/// apart after `umount(2)` has returned.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls again and again while the answer is that it is busy, until it has been for too long.
pub(super) fn patiently<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let (end, mut pause) = (Instant::now() + PATIENCE, Duration::from_millis(2));
    loop {
        match call() {
            Err(Error::Busy(_)) if Instant::now() < end => sleep(pause),
            other => return other,
        }
        pause = (2 * pause).min(Duration::from_millis(100));
    }
}

/// What the program says.
enum Answer {
    Gone,
    /// An error, and what it is about.
    Failed(Errno, String),
}

impl Zfs {
    /// Neither the unmounted dataset nor its snapshots exist, nor its mount point. Or all are as they
    /// were.
    pub(super) fn remove(&self, path: &DatasetPath) -> Result<()> {
        let name = self.name(path)?;
        let needed = patiently(|| match self.zfs.destroy(&name) {
            Ok(()) => Ok(None),
            Err(error) => match error.kind() {
                Kind::NotFound => Ok(None),
                // Mounted, or it has snapshots: this call does not tell.
                Kind::Busy | Kind::Exists => self.remove_all(path, &name),
                _ => Err(self.failed("destroy", path, error)),
            },
        })?;
        if let Some(object) = needed {
            // It stays so however long one waits.
            return Err(Error::Busy(match object.contains('@') {
                true => format!("{path} is needed by clones of {object}, so it"),
                false => format!("{path} has {object} below it, so it"),
            }));
        }
        self.remove_mountpoint(path);
        Ok(())
    }

    /// As [`remove`](Self::remove), of what may be mounted.
    pub(super) fn discard(&self, path: &DatasetPath) -> Result<()> {
        self.unmount(path)?;
        self.remove(path)
    }

    /// The unmounted dataset and its snapshots, which have no clones, are gone.
    pub(super) fn remove_with_snapshots(&self, name: &str) -> Result<()> {
        let done = |answer| match answer {
            Answer::Gone | Answer::Failed(Errno::NOENT, _) => Ok(()),
            Answer::Failed(Errno::BUSY | Errno::AGAIN | Errno::EXIST, object) => {
                Err(Error::Busy(object))
            }
            Answer::Failed(errno, object) => Err(Error::io("destroy", object, errno)),
        };
        let answer = self.run_program(PROGRAM, name);
        answer.map_err(|error| failed("destroy", name, error)).and_then(done)
    }

    /// Returns the snapshot that has clones or the dataset that is below, where there is one.
    fn remove_all(&self, path: &DatasetPath, name: &str) -> Result<Option<String>> {
        match self.run_program(PROGRAM, name).map_err(|error| failed("destroy", path, error))? {
            Answer::Gone | Answer::Failed(Errno::NOENT, _) => Ok(None),
            Answer::Failed(Errno::BUSY | Errno::AGAIN, _) => Err(Error::Busy(path.to_string())),
            Answer::Failed(Errno::EXIST, object) => Ok(Some(object)),
            Answer::Failed(errno, object) => Err(Error::io("destroy", object, errno)),
        }
    }

    /// That nobody has the dataset, which has snapshots, mounted anywhere.
    pub(super) fn refuse_in_use(&self, path: &DatasetPath) -> Result<()> {
        let name = self.name(path)?;
        let answer = self.run_program(IN_USE, &name);
        match answer.map_err(|error| failed("look into", path, error))? {
            Answer::Failed(Errno::BUSY | Errno::AGAIN, _) => Err(Error::Busy(path.to_string())),
            _ => Ok(()),
        }
    }

    fn run_program(&self, program: &str, name: &str) -> std::result::Result<Answer, SysError> {
        let mut arguments = NvList::new()?;
        arguments.put_text("fs", name)?;
        for (name, errno) in
            [("EBUSY", Errno::BUSY), ("EEXIST", Errno::EXIST), ("EAGAIN", Errno::AGAIN)]
        {
            arguments.put_integer(name, errno.raw_os_error().into())?;
        }
        let result = self.zfs.channel_program(
            pool_of(name),
            program,
            &arguments,
            Limits::default(),
            true,
        )?;
        let answer = result.list("return");
        let errno = answer.and_then(|answer| answer.number("errno")).unwrap_or_default();
        let object = answer.and_then(|answer| answer.text("object")).unwrap_or(name);
        Ok(match i32::try_from(errno).unwrap_or(Errno::IO.raw_os_error()) {
            0 => Answer::Gone,
            errno => Answer::Failed(Errno::from_raw_os_error(errno), object.to_owned()),
        })
    }
}
