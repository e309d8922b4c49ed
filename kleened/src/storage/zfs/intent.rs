//! What is being made, so that a crash leaves nothing half made.
//!
//! The kernel makes a dataset in one transaction and sets its properties in a later one, and the owner of
//! its root directory is set after that. So a file `ROOT/.making/AREA,NAME` is there from before the first
//! until after the last of these steps; it holds what the root directory is to be given. Nothing waits for
//! it: within a pool, what was changed first is on the disk first.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use kleened_api::volume::{Mode, Owner};

use super::super::fault::point;
use super::super::{Area, DatasetPath, Driver, Error, Result};
use super::record::Pending;
use super::{IMPORT, NvList, Zfs, adopt, failed, line};

const FOLDER: &str = ".making";

impl Zfs {
    fn intents(&self) -> PathBuf {
        self.mountpoint.join(FOLDER)
    }

    fn intent(&self, path: &DatasetPath) -> PathBuf {
        self.intents().join(path.to_string().replace('/', ","))
    }

    /// There is a folder for intents.
    pub(super) fn make_intents(&self) -> Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(self.intents()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // What is there can be read all the same.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            other => other.map_err(|error| Error::io("make", self.intents().display(), error)),
        }
    }

    /// From here on, until [`done`](Self::done), a crash takes back the dataset, or, where it has its
    /// record, gives its root directory what is pending.
    pub(super) fn intend(&self, path: &DatasetPath, pending: Option<Pending>) -> Result<()> {
        self.intend_text(path, &pending.map(|pending| pending.to_string()).unwrap_or_default())
    }

    pub(super) fn intend_text(&self, path: &DatasetPath, text: &str) -> Result<()> {
        fs::write(self.intent(path), text).map_err(|error| Error::io("prepare", path, error))?;
        point();
        Ok(())
    }

    pub(super) fn done(&self, path: &DatasetPath) {
        point();
        if let Err(error) = fs::remove_file(self.intent(path)) {
            tracing::warn!(%path, %error, "cannot forget what was being made; the next start will");
        }
    }

    /// What a crash left half made is made, or is not there. Of what can't be decided now, for example
    /// because the pool is read-only, the intent stays.
    pub(super) fn resume(&self) -> Result<()> {
        let read = |error: io::Error| Error::io("read", self.intents().display(), error);
        let entries = match fs::read_dir(self.intents()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(read)?,
        };
        let mut settled = true;
        for entry in entries {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            let path = name.to_str().and_then(|name| name.replace(',', "/").parse().ok());
            let Some(path) = path else { continue };
            match self.resume_one(&path, &entry) {
                Ok(()) => self.done(&path),
                Err(error) => {
                    settled = false;
                    tracing::warn!(%path, ?error, "cannot finish or take back");
                }
            }
        }
        if settled {
            self.tidy_history();
        }
        Ok(())
    }

    fn resume_one(&self, path: &DatasetPath, intent: &fs::DirEntry) -> Result<()> {
        let read = |error| Error::io("read", intent.path().display(), error);
        let text = fs::read_to_string(intent.path()).map_err(read)?;
        if let Ok(swap) = text.parse() {
            return self.resume_swap(path, &swap);
        }
        let Some(found) = self.look(path)? else { return Ok(()) };
        if text == line::DESTROY {
            self.unmount(path)?;
            self.dissolve_all(path)?;
            self.remove_mountpoint(path);
            return Ok(());
        }
        if text == adopt::INTENT {
            // It is taken over, or another; it has its new name last of all.
            return found.record.map_or(Ok(()), |_| self.finish_adopting(path));
        }
        if found.record.is_some() {
            self.mount_at_home(path)?;
            return text.parse().map_or(Ok(()), |pending| self.give(path, pending));
        }
        if !self.is_half_made(path, intent.metadata().map_err(read)?.mtime())? {
            tracing::warn!(%path, "has no record, and is left alone: it was made by others");
            return Ok(());
        }
        self.discard(path)
    }

    /// Whether a dataset without a record can only be what a crash left: it is not older than the intent,
    /// and holds nothing of its own.
    fn is_half_made(&self, path: &DatasetPath, began: i64) -> Result<bool> {
        let name = self.name(path)?;
        let unknown = |error| failed("look up", path, error);
        let found = self.zfs.properties(&name, &["creation", "origin", "written"]);
        let found = found.map_err(unknown)?;
        let created = found.number("creation").and_then(|at| i64::try_from(at).ok());
        if created.is_none_or(|at| at < began)
            || !self.zfs.snapshots(&name).map_err(unknown)?.is_empty()
            || !self.zfs.children(&name).map_err(unknown)?.is_empty()
        {
            return Ok(false);
        }
        if let Some(origin) = found.text("origin").filter(|origin| !origin.is_empty()) {
            return match found.number("written") {
                Some(0) => Ok(true),
                Some(written) => Ok(Some(written) == self.written_in_new_clone(origin)?),
                None => Ok(false),
            };
        }
        self.mount_at_home(path)?;
        let target = self.mountpoint(path);
        let mut entries =
            fs::read_dir(&target).map_err(|error| Error::io("read", target.display(), error))?;
        Ok(entries.next().is_none())
    }

    /// How much is written in a clone that nobody has written to: where the origin was snapshotted while its
    /// log of intents was in use, the kernel clears the clone's in its first block.
    fn written_in_new_clone(&self, origin: &str) -> Result<Option<u64>> {
        // What is left of it, the start removes.
        let name = format!("{}/{IMPORT}probe", Area::Scratch.as_str());
        let path = name.parse().map_err(|_| Error::Invalid(format!("{name} is no dataset")))?;
        self.discard(&path)?;
        let name = self.name(&path)?;
        let failed = |error| failed("clone", origin, error);
        let none = NvList::new().map_err(failed)?;
        self.zfs.clone_from(&name, origin, &none).map_err(failed)?;
        let written = self.zfs.properties(&name, &["written"]);
        self.remove(&path)?;
        Ok(written.map_err(failed)?.number("written"))
    }

    /// The root directory of the mounted dataset has what it was to be given.
    pub(super) fn give(&self, path: &DatasetPath, pending: Pending) -> Result<()> {
        give(&self.mountpoint(path), pending)
    }

    /// What the root directory of the mounted dataset has.
    pub(super) fn owner_and_mode(&self, path: &DatasetPath) -> Result<Pending> {
        let target = self.mountpoint(path);
        let found = fs::metadata(&target);
        let found = found.map_err(|error| Error::io("look up", target.display(), error))?;
        let owner = Some(Owner { uid: found.uid(), gid: found.gid() });
        Ok(Pending { owner, mode: Some(Mode(found.mode() & 0o7777)) })
    }
}

fn give(target: &Path, Pending { owner, mode }: Pending) -> Result<()> {
    let owned = owner.map_or(Ok(()), |owner| chown(target, Some(owner.uid), Some(owner.gid)));
    point();
    // After the owner, whose change takes set-id bits away.
    let set = |mode: Mode| fs::set_permissions(target, fs::Permissions::from_mode(mode.0));
    let given = owned.and_then(|()| mode.map_or(Ok(()), set));
    given.map_err(|error| Error::io("set the owner and mode of", target.display(), error))
}
