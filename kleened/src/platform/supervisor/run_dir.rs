//! What supervisors leave in the file system, so that containers are found by whoever comes later.
//!
//! ```text
//! run_dir/lock                       held for the moment in which another lock is taken or tried
//!         containers/CONTAINER       names the instance of the first process; locked while it runs
//!         INSTANCE/lock              locked while the supervisor is there
//!                  launch.json       what was asked for
//!                  state.json        what the kernel made of it; of first processes only
//!                  exit.json         how the process ended
//!                  sup.sock          where the supervisor listens
//! ```
//!
//! The kernel gives up a lock when its holder is gone, in whatever way. Nothing here is synced: after
//! a power failure no container runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kleened_api::{Id, Timestamp};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::platform::{Error, Exited, Launch, Result};

const LOCK: &str = "lock";
const CONTAINERS: &str = "containers";
const LAUNCH: &str = "launch.json";
const STATE: &str = "state.json";
const EXIT: &str = "exit.json";
const SOCKET: &str = "sup.sock";

/// What the kernel calls a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The jail's id, or the process id of pid 1 as the host sees it.
    pub(crate) jid: i32,
    /// What tells it from a later one with the same number.
    pub(crate) birth: u64,
    pub(crate) started: Timestamp,
    /// The routing table of its processes, where that is another than the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fib: Option<i32>,
}

/// The directory of all supervisors.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    dir: OwnedFd,
    containers: OwnedFd,
}

impl RunDir {
    /// The directory is there, for its owner alone.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open = || {
            make_dir(rustix::fs::CWD.as_fd(), path)?;
            let dir = kleened_sys::fs::open_directory(rustix::fs::CWD, path)?;
            make_dir(dir.as_fd(), CONTAINERS.as_ref())?;
            let containers = kleened_sys::fs::open_directory(&dir, CONTAINERS)?;
            Ok(Self { path: path.to_owned(), dir, containers })
        };
        open().map_err(|error: io::Error| Error::io("open", path.display(), error))
    }

    /// A new instance.
    pub(crate) fn create(&self, launch: &Launch) -> Result<Instance> {
        let path = self.path.join(launch.instance.as_str());
        rustix::fs::mkdirat(&self.dir, launch.instance.as_str(), Mode::RWXU)
            .map_err(|errno| Error::io("create", path.display(), errno))?;
        let instance = self.instance(&launch.instance)?;
        let instance = instance.ok_or_else(|| Error::io("open", path.display(), Errno::NOENT))?;
        match instance.write(LAUNCH, launch) {
            Ok(()) => Ok(instance),
            Err(error) => {
                self.remove(&launch.instance)?;
                Err(error)
            }
        }
    }

    /// The instance with this id; `None` where nothing is left of it.
    pub(crate) fn instance(&self, id: &Id) -> Result<Option<Instance>> {
        let path = self.path.join(id.as_str());
        match kleened_sys::fs::open_directory(&self.dir, id.as_str()) {
            Ok(dir) => Ok(Some(Instance { dir, path })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", path.display(), error)),
        }
    }

    /// Every instance of which something is left.
    pub(crate) fn instances(&self) -> Result<Vec<Id>> {
        ids(&self.dir).map_err(|error| Error::io("list", self.path.display(), error))
    }

    /// Nothing is left of the instance. A repeat is safe.
    pub(crate) fn remove(&self, id: &Id) -> Result<()> {
        kleened_sys::fs::remove_tree(self.dir.as_fd(), id.as_str())
            .map(drop)
            .map_err(|error| Error::io("remove", self.path.join(id.as_str()).display(), error))
    }

    /// The instance's lock; `None` where its supervisor is there.
    pub(crate) fn lock_instance(&self, instance: &Instance) -> Result<Option<OwnedFd>> {
        let lock = || {
            let _serial = self.serialise()?;
            kleened_sys::fs::lock_file(instance.dir.as_fd(), LOCK)
        };
        lock().map_err(|error| Error::io("lock", instance.path.display(), error))
    }

    /// The container's lock, which says that it runs with this instance's process as its first;
    /// `None` where it runs already.
    pub(crate) fn claim(&self, container: &Id, instance: &Id) -> Result<Option<OwnedFd>> {
        let claim = || -> io::Result<_> {
            let _serial = self.serialise()?;
            let Some(lock) =
                kleened_sys::fs::lock_file(self.containers.as_fd(), container.as_str())?
            else {
                return Ok(None);
            };
            rustix::fs::ftruncate(&lock, 0)?;
            rustix::io::write(&lock, instance.as_str().as_bytes())?;
            Ok(Some(lock))
        };
        claim().map_err(|error| Error::io("claim", format_args!("container {container}"), error))
    }

    /// The instance of the container's first process, while the container runs.
    pub(crate) fn holder(&self, container: &Id) -> Result<Option<Id>> {
        let look = || -> io::Result<_> {
            let _serial = self.serialise()?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match rustix::fs::openat(
                &self.containers,
                container.as_str(),
                flags,
                Mode::empty(),
            ) {
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => (),
                Ok(()) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            let text = io::read_to_string(std::fs::File::from(file))?;
            text.parse()
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        look().map_err(|error| Error::io("look for", format_args!("container {container}"), error))
    }

    /// Every container that runs or ran.
    pub(crate) fn containers(&self) -> Result<Vec<Id>> {
        ids(&self.containers).map_err(|error| Error::io("list", self.path.display(), error))
    }

    /// Nothing is left of the container; false where it runs. A repeat is safe.
    pub(crate) fn release(&self, container: &Id) -> Result<bool> {
        let release = || -> io::Result<_> {
            let _serial = self.serialise()?;
            let name = container.as_str();
            let Some(_lock) = kleened_sys::fs::lock_file(self.containers.as_fd(), name)? else {
                return Ok(false);
            };
            rustix::fs::unlinkat(&self.containers, name, AtFlags::empty())?;
            Ok(true)
        };
        release()
            .map_err(|error| Error::io("release", format_args!("container {container}"), error))
    }

    /// Trying a lock means to have it for a moment: others must not mistake that for its holder.
    fn serialise(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.dir, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    }
}

/// The directory of one supervisor.
#[derive(Debug)]
pub(crate) struct Instance {
    dir: OwnedFd,
    path: PathBuf,
}

impl Instance {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn launch(&self) -> Result<Option<Launch>> {
        self.read(LAUNCH)
    }

    pub(crate) fn state(&self) -> Result<Option<State>> {
        self.read(STATE)
    }

    pub(crate) fn set_state(&self, state: &State) -> Result<()> {
        self.write(STATE, state)
    }

    /// Whether the process was started. Of its state, the power may have failed before it was on the
    /// disk, but not its name.
    pub(crate) fn was_started(&self) -> Result<bool> {
        match rustix::fs::statat(&self.dir, STATE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io("read", self.path.join(STATE).display(), errno)),
        }
    }

    pub(crate) fn exited(&self) -> Result<Option<Exited>> {
        self.read(EXIT)
    }

    /// Nobody else changes the container's mounts until this is dropped, also where the daemon that asked
    /// for it was killed.
    pub(crate) fn lock_mounts(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&self.dir, FlockOperation::LockExclusive))
            .map_err(|errno| Error::io("lock", self.path.display(), errno))
    }

    pub(crate) fn set_exited(&self, exited: &Exited) -> Result<()> {
        self.write(EXIT, exited)
    }

    /// There is room on the disk for how the process will end, however full it is then.
    ///
    /// # Errors
    ///
    /// Of kind `NotFound` where the instance was given up meanwhile; what `write(2)` says.
    pub(crate) fn reserve_exit(&self) -> Result<()> {
        use std::io::Write;
        let reserve = || -> io::Result<()> {
            let file = self.open_temporary(EXIT)?;
            std::fs::File::from(file).write_all(&[b' '; 512])
        };
        reserve().map_err(|error| Error::io("write", self.path.join(EXIT).display(), error))
    }

    pub(crate) fn listen(&self) -> Result<UnixListener> {
        kleened_sys::socket::listen(self.dir.as_fd(), SOCKET)
            .map_err(|error| Error::io("listen in", self.path.display(), error))
    }

    /// A connection to the supervisor; `None` where it is gone.
    pub(crate) fn connect(&self) -> Result<Option<UnixStream>> {
        match kleened_sys::socket::connect(self.dir.as_fd(), SOCKET) {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io("connect to", self.path.display(), error)),
        }
    }

    /// Nothing is left but how the process ended. A repeat is safe.
    pub(crate) fn clear(&self) -> Result<()> {
        let reserved = temporary(EXIT);
        for name in [SOCKET, STATE, LAUNCH, LOCK, &reserved] {
            match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => (),
                Err(errno) => return Err(Error::io("clear", self.path.display(), errno)),
            }
        }
        Ok(())
    }

    /// `None` for a file that is not there or empty, as it can be after a power failure.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let read = || -> io::Result<_> {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            };
            let text = io::read_to_string(std::fs::File::from(file))?;
            if text.is_empty() { Ok(None) } else { Ok(serde_json::from_str(&text)?) }
        };
        read().map_err(|error| Error::io("read", self.path.join(name).display(), error))
    }

    /// The file has this value, or what it had before.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        use std::io::Write;
        let write = || -> io::Result<()> {
            let mut file = std::fs::File::from(self.open_temporary(name)?);
            let text = serde_json::to_vec(value)?;
            // Into the room that was reserved.
            file.write_all(&text)?;
            file.set_len(text.len() as u64)?;
            Ok(rustix::fs::renameat(&self.dir, temporary(name), &self.dir, name)?)
        };
        write().map_err(|error| Error::io("write", self.path.join(name).display(), error))
    }

    /// What is to replace the file with this name. One process writes here.
    fn open_temporary(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.dir, temporary(name), flags, Mode::RUSR | Mode::WUSR)?)
    }
}

fn temporary(name: &str) -> String {
    format!("{}{name}", kleened_sys::fs::TEMPORARY_PREFIX)
}

fn make_dir(dir: std::os::fd::BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The names in a directory that are ids.
fn ids(dir: &OwnedFd) -> io::Result<Vec<Id>> {
    let mut ids = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        ids.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<Id>().ok()));
    }
    Ok(ids)
}
