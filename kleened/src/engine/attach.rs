//! Volumes that come to containers which are there, and go again.
//!
//! Of a container that runs the kernel's mounts are changed first, and its record then; the journal knows
//! of both.

use std::cmp::Reverse;
use std::os::fd::AsFd;
use std::slice;
use std::sync::Arc;

use kleened_api::attach::{AttachConfig, DetachConfig};
use kleened_api::mount::{self, MountError, MountOptions, MountPointConfig, MountType};
use kleened_api::{Id, VolumeName};

use super::catalogue::access;
use super::container::in_project;
use super::journal::{Entry, Intent};
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, ContainerRecord};
use super::{Engine, log_failure};
use crate::copy::Progress;
use crate::error::{Difference, Error, Result};
use crate::ident;
use crate::platform;
use crate::storage::DatasetPath;

impl Engine {
    /// The container has the volume at that path, at once where it runs; filled, where it is empty and
    /// never was, with what the container has there. Where the container had it so, nothing changed: a
    /// repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for either; a path that is not allowed; [`Error::Attached`] where the
    /// container has the volume otherwise; [`Error::PathInUse`]; [`Error::SingleWriter`]; a place that
    /// can't be had, and then nothing is mounted.
    pub fn attach_volume(
        self: &Arc<Self>,
        volume: &str,
        config: AttachConfig,
    ) -> Result<Pending<String>> {
        let mount = config.mount(volume)?;
        let (id, wanted) = self.both(volume, &config.container)?;
        let what = format!("attach volume {volume} to container {id} at {}", mount.destination);
        Ok(self.begin(what, volume, wanted, move |engine, progress| {
            engine.attach_to(&id, &mount, progress)?;
            Ok(mount.source)
        }))
    }

    /// The container has the volume no more: not at that path, or where none is given nowhere. Where it
    /// had it not, nothing changed: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for either; a path that is not absolute; what keeps the mount in use, and then
    /// it is there as it was.
    pub fn detach_volume(
        self: &Arc<Self>,
        volume: &str,
        config: DetachConfig,
    ) -> Result<Pending<String>> {
        let (id, wanted) = self.both(volume, &config.container)?;
        let normal = |path: String| match mount::normal_path(&path) {
            Some(path) => Ok(path),
            None => {
                let reason = "it must be an absolute path in the container without '..'";
                Err(MountError { text: path, reason: reason.into() })
            }
        };
        let at = config.destination.map(normal).transpose()?;
        let name = volume.to_owned();
        let what = format!("detach volume {volume} from container {id}");
        Ok(self.begin(what, volume, wanted, move |engine, _| {
            engine.detach_from(&id, &name, at.as_deref())?;
            Ok(name)
        }))
    }

    /// The container, and the locks for a change of both.
    fn both(&self, volume: &str, container: &str) -> Result<(Id, Vec<(Key, Access)>)> {
        let catalogue = self.catalogue();
        catalogue.contains_volume(volume)?;
        let id = catalogue.container(container)?;
        let keys = [Key::Container(id.clone()), Key::Volume(volume.to_owned())];
        Ok((id, keys.map(|key| (key, Access::Exclusive)).into()))
    }

    /// The container's record, and whether it runs.
    fn present(&self, id: &Id) -> Result<(ContainerRecord, bool)> {
        let catalogue = self.catalogue();
        let entry = catalogue.made(id)?;
        Ok((entry.record.clone(), entry.is_running()))
    }

    /// The caller holds the locks of both.
    fn attach_to(&self, id: &Id, mount: &MountPointConfig, progress: &Progress) -> Result<()> {
        let name: VolumeName = mount.source.parse()?;
        let fail = || Error::platform("attach volume", &name);
        // It may have gone while this waited for the locks.
        self.catalogue().contains_volume(name.as_str())?;
        let (record, running) = self.present(id)?;
        in_project(&name, &record.project)?;
        let is_there = is_there(&record, mount, running)?;
        if is_there && !running {
            return Ok(());
        }
        self.usable(&name)?;
        if is_there {
            // The kernel may say otherwise.
            let (own, others) = self.parted(&record, mount)?;
            return self.platform.attach(id, &own, &others).map_err(fail());
        }
        let mut after = record;
        after.mounts.push(mount.clone());
        self.catalogue().admits(name.as_str(), id, &after.mounts, false)?;
        self.check_record(&after)?;
        let path = DatasetPath::container(id);
        let root = self.open_root(&path).map_err(Error::storage("attach volume", &name))?;
        self.populate(id, &after.image_id, root.as_fd(), mount, progress)?;
        drop(root);
        if running {
            return self.attach_live(id, mount, &after);
        }
        let mounts = self.platform_mounts(slice::from_ref(mount))?;
        self.platform.prepare(&self.storage.mountpoint(&path), &mounts).map_err(fail())?;
        self.store_mounts(id, &after)
    }

    fn attach_live(
        &self,
        id: &Id,
        mount: &MountPointConfig,
        after: &ContainerRecord,
    ) -> Result<()> {
        let (own, others) = self.parted(after, mount)?;
        let intent = Intent::Attach { container: id.clone(), mount: mount.clone() };
        let entry = self.intend(&intent)?;
        let fail = Error::platform("attach volume", &mount.source);
        let error = match self.platform.attach(id, &own, &others) {
            Ok(()) => match self.store_mounts(id, after) {
                Ok(()) => return is_done(&entry),
                Err(error) => error,
            },
            Err(error) if leaves_it(&error) => {
                log_failure("write the journal", entry.done());
                return Err(fail(error));
            }
            Err(error) => fail(error),
        };
        match self.platform.detach(id, &own, &others) {
            Ok(_) | Err(platform::Error::NotRunning(_)) => {
                log_failure("write the journal", entry.done());
            }
            Err(back) => {
                // The next start ends it. Until then nobody may take the volume away.
                log_failure::<(), _>(format_args!("take back {intent:?}"), Err(back));
                self.remember(id, after);
            }
        }
        Err(error)
    }

    /// The caller holds the locks of both.
    fn detach_from(&self, id: &Id, volume: &str, at: Option<&str>) -> Result<()> {
        let (record, _) = self.present(id)?;
        let is_meant = |mount: &MountPointConfig| {
            is_of(mount, volume) && at.is_none_or(|at| mount.destination == at)
        };
        let mut meant: Vec<_> = record.mounts.into_iter().filter(is_meant).collect();
        // One can be below another.
        meant.sort_by_key(|mount| Reverse(mount.destination.len()));
        let failed = meant.iter().filter_map(|mount| self.detach_one(id, mount).err());
        let mut errors: Vec<Error> = failed.collect();
        match (errors.len(), errors.pop()) {
            (_, None) => Ok(()),
            (1, Some(only)) => Err(only),
            (_, Some(last)) => {
                errors.push(last);
                Err(Error::Several(errors))
            }
        }
    }

    fn detach_one(&self, id: &Id, mount: &MountPointConfig) -> Result<()> {
        let (record, running) = self.present(id)?;
        let after = without(&record, mount);
        if !running {
            return self.store_mounts(id, &after);
        }
        let (own, others) = self.parted(&record, mount)?;
        let intent = Intent::Detach { container: id.clone(), mount: mount.clone() };
        let entry = self.intend(&intent)?;
        let fail = Error::platform("detach volume", &mount.source);
        let error = match self.platform.detach(id, &own, &others) {
            // It ended just now, and its mounts with it.
            Ok(_) | Err(platform::Error::NotRunning(_)) => match self.store_mounts(id, &after) {
                Ok(()) => return is_done(&entry),
                Err(error) => error,
            },
            Err(error) if leaves_it(&error) => {
                log_failure("write the journal", entry.done());
                return Err(fail(error));
            }
            Err(error) => fail(error),
        };
        match self.platform.attach(id, &own, &others) {
            Ok(()) | Err(platform::Error::NotRunning(_)) => {
                log_failure("write the journal", entry.done());
            }
            // The next start ends it.
            Err(back) => log_failure::<(), _>(format_args!("take back {intent:?}"), Err(back)),
        }
        Err(error)
    }

    /// The container has the mount, as the kernel says; or it runs no more or can't have it, and has it
    /// not.
    pub(super) fn replay_attach(&self, id: &Id, mount: &MountPointConfig) -> Result<()> {
        let Some((record, _)) = self.present(id).ok().filter(|(it, _)| !it.mounts.contains(mount))
        else {
            return Ok(());
        };
        self.usable(&mount.source.parse()?)?;
        let (own, others) = self.parted(&record, mount)?;
        match self.platform.attach(id, &own, &others) {
            Ok(()) => {
                let mut after = record;
                after.mounts.push(mount.clone());
                self.store_mounts(id, &after)
            }
            Err(platform::Error::NotRunning(_) | platform::Error::Mount { .. }) => Ok(()),
            Err(error) => Err(Error::platform("attach volume", &mount.source)(error)),
        }
    }

    /// The container has the mount no more; or somebody uses it by now, and it has it.
    pub(super) fn replay_detach(&self, id: &Id, mount: &MountPointConfig) -> Result<()> {
        let Some((record, _)) = self.present(id).ok().filter(|(it, _)| it.mounts.contains(mount))
        else {
            return Ok(());
        };
        let (own, others) = self.parted(&record, mount)?;
        match self.platform.detach(id, &own, &others) {
            Ok(_) | Err(platform::Error::NotRunning(_)) => {
                self.store_mounts(id, &without(&record, mount))
            }
            Err(platform::Error::Busy { .. }) => Ok(()),
            Err(error) => Err(Error::platform("detach volume", &mount.source)(error)),
        }
    }

    fn intend(&self, intent: &Intent) -> Result<Entry<'_>> {
        let id = ident::new();
        self.journal.begin(&id, intent).map_err(Error::io("write the journal as", id))
    }

    /// The mount, and the others that the container has, as the platform makes them.
    fn parted(
        &self,
        record: &ContainerRecord,
        mount: &MountPointConfig,
    ) -> Result<(platform::Mount, Vec<platform::Mount>)> {
        let others = self.platform_mounts(&without(record, mount).mounts)?;
        let own = self.platform_mounts(slice::from_ref(mount))?.pop().ok_or(Error::Failed)?;
        Ok((own, others))
    }

    /// The container's record is this.
    fn store_mounts(&self, id: &Id, record: &ContainerRecord) -> Result<()> {
        let (path, text) = (DatasetPath::container(id), record::write(record));
        if let Err(error) = self.storage.set(&path, &text) {
            // What counts is what is there now.
            let now = self.storage.get(&path).ok().flatten().and_then(|dataset| dataset.record);
            if now != Some(text) {
                return Err(Error::storage("change the mounts of container", id)(error));
            }
        }
        self.remember(id, record);
        Ok(())
    }

    fn remember(&self, id: &Id, record: &ContainerRecord) {
        if let Some(entry) = self.catalogue().containers.get_mut(id) {
            entry.record.mounts.clone_from(&record.mounts);
        }
    }
}

/// Whether nothing changed, for certain.
fn leaves_it(error: &platform::Error) -> bool {
    use platform::Error::{Busy, Mount, NotRunning};
    matches!(error, Busy { .. } | Mount { .. } | NotRunning(_))
}

fn is_done(entry: &Entry<'_>) -> Result<()> {
    entry.done().map_err(Error::io("write", "the journal"))
}

fn is_of(mount: &MountPointConfig, volume: &str) -> bool {
    mount.kind == MountType::Volume && mount.source == volume
}

fn without(record: &ContainerRecord, mount: &MountPointConfig) -> ContainerRecord {
    let mut record = record.clone();
    record.mounts.retain(|other| other != mount);
    record
}

/// Whether the container has the mount.
///
/// # Errors
///
/// [`Error::Attached`] where it has the volume otherwise; [`Error::PathInUse`] where something else is
/// there, or where it is `running` below it.
fn is_there(record: &ContainerRecord, mount: &MountPointConfig, running: bool) -> Result<bool> {
    let container = record.name.clone();
    let mounts = || record.mounts.iter();
    let here = mounts().find(|other| other.destination == mount.destination);
    let own = here
        .filter(|other| is_of(other, &mount.source))
        .or_else(|| mounts().find(|other| is_of(other, &mount.source)));
    if let Some(own) = own {
        let differences = differences(own, mount);
        return match differences.is_empty() {
            true => Ok(true),
            false => Err(Error::Attached { volume: mount.source.clone(), container, differences }),
        };
    }
    let named = |other: &MountPointConfig| match other.kind {
        MountType::Volume => format!("volume {}", other.source),
        MountType::Nullfs => other.source.clone(),
    };
    let path = mount.destination.clone();
    if let Some(here) = here {
        let by = format!("{} there", named(here));
        return Err(Error::PathInUse { path, container, by });
    }
    let below = format!("{path}/");
    match mounts().find(|other| running && other.destination.starts_with(&below)) {
        None => Ok(false),
        Some(hidden) => {
            let by = format!(
                "{} at {}, which it would hide: detach that first, or stop the container",
                named(hidden),
                hidden.destination
            );
            Err(Error::PathInUse { path, container, by })
        }
    }
}

/// In what the mount differs from the one that there is.
fn differences(present: &MountPointConfig, wanted: &MountPointConfig) -> Vec<Difference> {
    let part = |mount: &MountPointConfig| mount.subpath.clone().unwrap_or_else(|| "none".into());
    let fields = |mount: &MountPointConfig| {
        let access = access(mount).to_owned();
        let options = options(mount.options);
        [mount.destination.clone(), access, part(mount), options]
    };
    let names = ["path", "access", "subpath", "options"];
    let both = fields(present).into_iter().zip(fields(wanted));
    let all = names.into_iter().zip(both);
    all.filter(|(_, (present, wanted))| present != wanted)
        .map(|(field, (present, wanted))| Difference { field, present, wanted })
        .collect()
}

fn options(MountOptions { nosuid, noexec, nosymfollow }: MountOptions) -> String {
    let all = [(nosuid, "nosuid"), (noexec, "noexec"), (nosymfollow, "nosymfollow")];
    let given: Vec<_> = all.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
    if given.is_empty() { "none".into() } else { given.join(",") }
}
