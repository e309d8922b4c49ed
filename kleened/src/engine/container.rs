//! The verbs of containers, but for those that start and stop them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use kleened_api::container::{ContainerConfig, ContainerInspect, ContainerSummary};
use kleened_api::mount::{self, MountPoint, MountPointConfig, MountType};
use kleened_api::{ContainerName, Id, ProjectName, Timestamp, VolumeName, check_variable};

use super::catalogue::{ContainerEntry, Fault, Run, VolumeEntry};
use super::journal::Intent;
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, ContainerRecord, VolumeRecord};
use super::{Engine, IMAGE_SNAPSHOT, Undo, log_failure};
use crate::copy::Progress;
use crate::error::{Error, Kind, Result};
use crate::ident;
use crate::platform;
use crate::storage::{DatasetPath, DatasetSpec};

/// The longest record. What is larger does not fit into a property of a dataset.
const MAX_RECORD: usize = 64 << 10;

impl Engine {
    /// The running containers of the project, or of any where that is `None`, newest first; or all of
    /// them.
    #[must_use]
    pub fn containers(&self, project: Option<&ProjectName>, all: bool) -> Vec<ContainerSummary> {
        self.catalogue().list_containers(&*self.storage, project, all)
    }

    /// The container of that id, name, or beginning of an id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; a beginning that several ids have.
    pub fn container(&self, reference: &str) -> Result<ContainerInspect> {
        let catalogue = self.catalogue();
        let id = catalogue.container(reference)?;
        let mounts = &catalogue.entry(&id)?.record.mounts;
        Ok(ContainerInspect {
            container: catalogue.show_container(&*self.storage, &id)?,
            container_endpoints: Vec::new(),
            container_mountpoints: mounts
                .iter()
                .map(|mount| MountPoint { container_id: id.to_string(), config: mount.clone() })
                .collect(),
        })
    }

    /// There is a container: a clone of the image, with a place for every mount, and with every
    /// volume that it names, made and filled where it was not there. When this fails, neither the
    /// container nor a volume that was made for it is left.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for the image, [`Error::Taken`] for the name; a mount, variable or
    /// parameter that is not allowed; the storage.
    pub fn create_container(
        self: &Arc<Self>,
        project: &ProjectName,
        config: ContainerConfig,
    ) -> Result<Pending<String>> {
        let id = ident::new();
        let record = self.new_record(&id, project, config)?;
        // From here on the name and the volumes are taken.
        {
            let mut catalogue = self.catalogue();
            if let Some(by) = catalogue.container_named(record.project.as_str(), &record.name) {
                let (name, by) = (record.name.clone(), by.to_string());
                return Err(Error::Taken { kind: Kind::Container, name, by });
            }
            let entry = ContainerEntry::new(record.clone(), false, Run::Stopped(None));
            catalogue.containers.insert(id.clone(), entry);
        }
        let mut wanted = vec![
            (Key::Image(record.image_id.clone()), Access::Shared),
            (Key::Container(id.clone()), Access::Exclusive),
        ];
        for mount in record.mounts.iter().filter(|mount| mount.kind == MountType::Volume) {
            wanted.push((Key::Volume(mount.source.clone()), Access::Exclusive));
        }
        let subject = id.to_string();
        let what = format!("create container {} ({id})", record.name);
        Ok(self.begin(what, &subject, wanted, move |engine, progress| {
            let mut undo = Undo::default();
            undo.push(|| _ = engine.catalogue().containers.remove(&id));
            engine.make_container(&id, &record, progress)?;
            undo.commit();
            if let Some(entry) = engine.catalogue().containers.get_mut(&id) {
                entry.ready = true;
            }
            Ok(id.to_string())
        }))
    }

    fn new_record(
        &self,
        id: &Id,
        project: &ProjectName,
        config: ContainerConfig,
    ) -> Result<ContainerRecord> {
        let (project, name) = match &config.name {
            Some(name) => {
                let (project, name) = project.container(name.strip_prefix('/').unwrap_or(name))?;
                (project, name.parse::<ContainerName>()?.to_string())
            }
            None => (project.clone(), self.free_name(project)),
        };
        let image = config.image.as_deref().unwrap_or_default();
        let (image_id, image) = {
            let catalogue = self.catalogue();
            let id = catalogue.image(image)?;
            let record = catalogue.images.get(&id).cloned();
            let missing = || Error::NotFound { kind: Kind::Image, name: image.to_owned() };
            let record = record.ok_or_else(missing)?;
            (id, record)
        };
        if !config.public_ports.is_empty() {
            return Err(Error::Invalid(
                "cannot publish ports: a container with the network driver 'host' has all of the host's ports, \
                 one with 'disabled' has none"
                    .into(),
            ));
        }
        let mut mounts = mount::checked(config.mounts)?;
        for mount in mounts.iter_mut().filter(|mount| mount.kind == MountType::Volume) {
            if mount.anonymous {
                mount.source = ident::new().to_string();
            }
            let volume = project.volume(&mount.source)?;
            in_project(&volume, &project)?;
            mount.source = volume.into();
        }
        let record = ContainerRecord {
            created: Timestamp::now(),
            name,
            project,
            image_id,
            cmd: config.cmd.filter(|cmd| !cmd.is_empty()).unwrap_or(image.cmd),
            user: config.user.filter(|user| !user.is_empty()).unwrap_or(image.user),
            env: merge_env(&image.env, &config.env.unwrap_or_default())?,
            mounts,
            jail_param: config.jail_param.unwrap_or_default(),
            limits: config.limits.unwrap_or_default(),
            network_driver: config.network_driver.unwrap_or_default(),
            restart_policy: config.restart_policy.unwrap_or_default(),
            persist: config.persist.unwrap_or_default(),
            auto_remove: config.auto_remove.unwrap_or_default(),
            hostname: config.hostname.unwrap_or_else(|| id.to_string()),
            workdir: config.workdir.unwrap_or_else(|| "/".into()),
        };
        self.check_record(&record)?;
        Ok(record)
    }

    /// That the record can be stored and, as far as can be said before, started.
    pub(super) fn check_record(&self, record: &ContainerRecord) -> Result<()> {
        let name = &record.name;
        self.platform
            .check(record.network_driver, &record.jail_param)
            .and_then(|()| self.platform.check_limits(&record.limits))
            .map_err(Error::platform("create container", name))?;
        if record.cmd.iter().chain([&record.user, &record.workdir]).any(|text| text.contains('\0'))
        {
            return Err(Error::Invalid(
                "the command, user and directory must not hold a NUL byte".into(),
            ));
        }
        if !record.workdir.starts_with('/') {
            return Err(Error::Invalid(format!(
                "working directory '{}' is not an absolute path",
                record.workdir.escape_default()
            )));
        }
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if record.hostname.len() > 64 || !record.hostname.split('.').all(label) {
            return Err(Error::Invalid(format!(
                "host name '{}' is not allowed: it has at most 64 letters, digits, '-', '_' and '.'",
                record.hostname.escape_default()
            )));
        }
        if record::write(record).len() > MAX_RECORD {
            return Err(Error::Invalid(
                "the command, environment and mounts take more than 64 KiB together".into(),
            ));
        }
        Ok(())
    }

    fn free_name(&self, project: &ProjectName) -> String {
        let catalogue = self.catalogue();
        for _ in 0..16 {
            let name = ident::name();
            if catalogue.container_named(project.as_str(), &name).is_none() {
                return name;
            }
        }
        format!("{}_{}", ident::name(), ident::new())
    }

    /// The container appears as a whole, in the last step. Until then it is scratch, which the next
    /// start clears away; only the volumes made for it need the journal.
    fn make_container(&self, id: &Id, record: &ContainerRecord, progress: &Progress) -> Result<()> {
        // It may have gone while this waited for the locks.
        self.catalogue().show_image(&*self.storage, &record.image_id)?;
        check_sources(&record.mounts)?;
        let new: Vec<VolumeName> = {
            let catalogue = self.catalogue();
            let volumes = record.mounts.iter().filter(|mount| mount.kind == MountType::Volume);
            let mut new: Vec<VolumeName> = volumes
                .filter(|mount| catalogue.contains_volume(&mount.source).is_err())
                .map(|mount| mount.source.parse())
                .collect::<std::result::Result<_, _>>()?;
            new.sort();
            new.dedup();
            new
        };
        let journal = || Error::io("write the journal for container", id);
        let volumes = || new.iter().map(VolumeName::to_string).collect::<Vec<_>>();
        let entry = if new.is_empty() {
            None
        } else {
            let volumes = volumes();
            let intent = Intent::CreateContainer { id: id.clone(), volumes };
            Some(self.journal.begin(id, &intent).map_err(journal())?)
        };
        let done = || entry.as_ref().map_or(Ok(()), |entry| entry.done().map_err(journal()));
        let made = self.assemble(id, record, progress).and_then(|()| done());
        if made.is_err() {
            let taken_back = self.discard_container(id).and_then(|()| {
                self.take_back_volumes(id, &new)?;
                done()
            });
            if taken_back.is_err() {
                // It is tried again at the next start. Until then nobody may come to use what is left.
                log_failure("take back volumes", self.unsettle_left(&volumes()));
                let intent = Intent::DiscardContainer { id: id.clone(), volumes: volumes() };
                log_failure("write the journal", self.journal.begin(id, &intent));
            }
            log_failure(format_args!("take back container {id}"), taken_back);
        }
        made
    }

    /// The container's root is there, a step after all that it needs.
    fn assemble(&self, id: &Id, record: &ContainerRecord, progress: &Progress) -> Result<()> {
        let fail = || Error::storage("create container", &record.name);
        let scratch = DatasetPath::scratch(id);
        let image = DatasetPath::image(&record.image_id).snapshot(IMAGE_SNAPSHOT);
        let spec = DatasetSpec { record: record::write(record), ..DatasetSpec::default() };
        self.storage.clone_from(&image, &scratch, &spec).map_err(fail())?;
        let path = self.storage.mountpoint(&scratch);
        let root = File::open(&path).map_err(Error::io("create container", &record.name))?;
        for mount in record.mounts.iter().filter(|mount| mount.kind == MountType::Volume) {
            let (image, root) = (&record.image_id, root.as_fd());
            let whole = self.make_filled(id, image, root, mount, progress)?;
            if !whole {
                self.ensure_volume(&mount.source.parse()?, id)?;
            }
            self.catalogue().admits(&mount.source, id, &record.mounts, false)?;
            if !whole {
                self.populate(id, image, root, mount, progress)?;
            }
        }
        drop(root);
        self.platform
            .prepare(&path, &self.platform_mounts(&record.mounts)?)
            .map_err(Error::platform("create container", &record.name))?;
        self.storage.rename(&scratch, &DatasetPath::container(id)).map_err(fail())
    }

    /// Nothing is left of the root of a container that could not be made. A repeat is safe.
    pub(super) fn discard_container(&self, id: &Id) -> Result<()> {
        for path in [DatasetPath::scratch(id), DatasetPath::container(id)] {
            self.storage.destroy(&path).map_err(Error::storage("take back", &path))?;
        }
        Ok(())
    }

    /// None of these volumes is there that was made for this container, but for those that another
    /// container names or somebody has written into. A repeat is safe.
    pub(super) fn take_back_volumes(&self, container: &Id, names: &[VolumeName]) -> Result<()> {
        for name in names {
            let (path, fail) =
                (DatasetPath::volume(name), || Error::storage("take back volume", name));
            self.know(name.as_str())?;
            if self.catalogue().is_unsettled(name.as_str()) {
                // Its content may be on its way to it: it would come back.
                return Err(Error::Invalid(format!(
                    "cannot take back volume {name}: {}",
                    Fault::Unsettled
                )));
            }
            let Some(dataset) = self.storage.get(&path).map_err(fail())? else {
                self.forget_volume(name, container);
                continue;
            };
            let record = record::read::<VolumeRecord>(dataset.record.as_deref()).ok();
            let Some(record) = record.filter(|it| it.made_for.as_ref() == Some(container)) else {
                continue;
            };
            let named = {
                let catalogue = self.catalogue();
                let users = catalogue.users(name.as_str());
                users.iter().any(|(id, entry, _)| *id != container && entry.ready)
            };
            if named || !self.is_untouched(&path, &record).map_err(fail())? {
                tracing::warn!("volume {name} stays: it has been taken into use");
                let mut catalogue = self.catalogue();
                catalogue.volumes.entry(name.to_string()).or_insert_with(|| record.into());
                continue;
            }
            self.storage.destroy(&path).map_err(fail())?;
            self.forget_volume(name, container);
        }
        Ok(())
    }

    fn forget_volume(&self, name: &VolumeName, made_for: &Id) {
        let ours = |entry: &VolumeEntry| entry.record.made_for.as_ref() == Some(made_for);
        let mut catalogue = self.catalogue();
        if catalogue.volumes.get(name.as_str()).is_some_and(ours) {
            catalogue.volumes.remove(name.as_str());
        }
    }

    /// The mounts as the platform makes them.
    pub(super) fn platform_mounts(
        &self,
        mounts: &[MountPointConfig],
    ) -> Result<Vec<platform::Mount>> {
        let translate = |mount: &MountPointConfig| {
            Ok(platform::Mount {
                source: match mount.kind {
                    MountType::Nullfs => PathBuf::from(&mount.source),
                    MountType::Volume => {
                        let name: VolumeName = mount.source.parse()?;
                        self.storage.mountpoint(&DatasetPath::volume(&name))
                    }
                },
                subpath: mount.subpath.clone(),
                destination: mount.destination.clone(),
                read_only: mount.read_only,
                options: mount.options,
            })
        };
        mounts.iter().map(translate).collect()
    }

    /// The container has what `config` gives, and keeps the rest. A running process keeps what it
    /// was started with. Mounts, image and network stay.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Taken`]; a value that is not allowed.
    pub fn update_container(
        self: &Arc<Self>,
        reference: &str,
        config: ContainerConfig,
    ) -> Result<Pending<String>> {
        let id = self.catalogue().container(reference)?;
        let subject = id.to_string();
        let wanted = vec![(Key::Container(id.clone()), Access::Exclusive)];
        Ok(self.begin(format!("update container {id}"), &subject, wanted, move |engine, _| {
            let before = engine.catalogue().made(&id)?.record.clone();
            let mut record = before.clone();
            if let Some(name) = &config.name {
                let name = name.strip_prefix('/').unwrap_or(name);
                let (project, name) = record.project.container(name)?;
                if project != record.project {
                    return Err(Error::Invalid(format!(
                        "a container stays in its project: {} can't move from {} to {project}",
                        record.name, record.project
                    )));
                }
                record.name = name.parse::<ContainerName>()?.to_string();
            }
            if let Some(cmd) = config.cmd.filter(|cmd| !cmd.is_empty()) {
                record.cmd = cmd;
            }
            if let Some(user) = config.user.filter(|user| !user.is_empty()) {
                record.user = user;
            }
            if let Some(env) = &config.env {
                record.env = merge_env(&[], env)?;
            }
            record.jail_param = config.jail_param.unwrap_or(record.jail_param);
            record.limits = config.limits.unwrap_or(record.limits);
            record.restart_policy = config.restart_policy.unwrap_or(record.restart_policy);
            record.persist = config.persist.unwrap_or(record.persist);
            record.auto_remove = config.auto_remove.unwrap_or(record.auto_remove);
            record.hostname = config.hostname.unwrap_or(record.hostname);
            record.workdir = config.workdir.unwrap_or(record.workdir);
            engine.check_record(&record)?;
            let running = engine.catalogue().entry(&id)?.is_running();
            let added = |text: &&String| running && !before.jail_param.contains(*text);
            if running && record.limits != before.limits {
                let limited = engine.platform.limit(&id, &record.limits);
                limited.map_err(Error::platform("update container", &id))?;
            }
            let added: Vec<_> = record.jail_param.iter().filter(added).cloned().collect();
            if !added.is_empty() {
                engine
                    .platform
                    .update(&id, &added)
                    .map_err(Error::platform("update container", &id))?;
            }
            engine.rename_entry(&id, &record.project, &record.name)?;
            let stored = engine
                .storage
                .set(&DatasetPath::container(&id), &record::write(&record))
                .map_err(Error::storage("update container", &id));
            let mut catalogue = engine.catalogue();
            if let Some(entry) = catalogue.containers.get_mut(&id) {
                entry.record = if stored.is_ok() { record } else { before };
            }
            stored.map(|()| id.to_string())
        }))
    }

    /// The name belongs to this container from now on, so that no other can take it meanwhile.
    fn rename_entry(&self, id: &Id, project: &ProjectName, name: &str) -> Result<()> {
        let mut catalogue = self.catalogue();
        match catalogue.container_named(project.as_str(), name) {
            Some(by) if by != id => Err(Error::Taken {
                kind: Kind::Container,
                name: name.to_owned(),
                by: by.to_string(),
            }),
            _ => {
                if let Some(entry) = catalogue.containers.get_mut(id) {
                    name.clone_into(&mut entry.record.name);
                }
                Ok(())
            }
        }
    }

    /// There is no such container any more: its root and its log are gone. Its volumes stay.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] while it runs.
    pub fn remove_container(self: &Arc<Self>, reference: &str) -> Result<Pending<String>> {
        let id = self.catalogue().container(reference)?;
        self.refuse_running(&id)?;
        let subject = id.to_string();
        let wanted = vec![(Key::Container(id.clone()), Access::Exclusive)];
        Ok(self.begin(format!("remove container {id}"), &subject, wanted, move |engine, _| {
            engine.destroy_container(&id)?;
            Ok(id.to_string())
        }))
    }

    /// That the container is there as a whole, and does not run.
    pub(super) fn refuse_running(&self, id: &Id) -> Result<()> {
        let catalogue = self.catalogue();
        let entry = catalogue.made(id)?;
        if entry.is_running() {
            let (name, state) = (entry.record.name.clone(), "is running: stop it first");
            return Err(Error::State { kind: Kind::Container, name, state });
        }
        Ok(())
    }

    /// The names of the volumes that the container's mounts got without asking for a name.
    pub(super) fn anonymous_volumes(&self, id: &Id) -> Vec<String> {
        let catalogue = self.catalogue();
        let mounts = catalogue.containers.get(id).map(|entry| &entry.record.mounts);
        let own = mounts.into_iter().flatten().filter(|mount| mount.anonymous);
        own.map(|mount| mount.source.clone()).collect()
    }

    /// The caller holds the container's lock.
    pub(super) fn destroy_container(&self, id: &Id) -> Result<()> {
        self.refuse_running(id)?;
        let container = DatasetPath::container(id);
        let root = self.storage.mountpoint(&container);
        // Never reach into a volume that is still mounted there.
        self.platform.release(id, &root).map_err(Error::platform("remove container", id))?;
        self.storage.destroy(&container).map_err(Error::storage("remove container", id))?;
        log_failure(format_args!("forget how {id} ended"), self.platform.forget(id));
        self.remove_log(id);
        self.catalogue().containers.remove(id);
        Ok(())
    }

    /// No container is left that does not run, but for those that are to persist. The answer lists
    /// them, oldest first; with `dry_run` it lists those that would go, and they stay.
    pub fn prune_containers(
        self: &Arc<Self>,
        project: Option<&ProjectName>,
        dry_run: bool,
    ) -> Pending<Vec<String>> {
        let mut unused: Vec<(Timestamp, Id)> = {
            let catalogue = self.catalogue();
            let unused = |(_, entry): &(&Id, &ContainerEntry)| {
                entry.ready
                    && !entry.record.persist
                    && !entry.is_running()
                    && project.is_none_or(|project| *project == entry.record.project)
            };
            catalogue
                .containers
                .iter()
                .filter(unused)
                .map(|(id, entry)| (entry.record.created, id.clone()))
                .collect()
        };
        unused.sort();
        let unused = unused.into_iter().map(|(_, id)| id).collect();
        self.begin("prune containers".into(), "", Vec::new(), move |engine, _| {
            let key = |id: &Id| Key::Container(id.clone());
            engine.prune(unused, dry_run, key, |id| engine.destroy_container(id))
        })
    }
}

/// That a container of that project may have the volume.
pub(super) fn in_project(volume: &VolumeName, project: &ProjectName) -> Result<()> {
    if volume.project() == *project {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "volume {volume} and a container of project {project} are not in the same project: a container \
         mounts only volumes of its own"
    )))
}

/// That each host path is there and can be mounted.
fn check_sources(mounts: &[MountPointConfig]) -> Result<()> {
    for mount in mounts.iter().filter(|mount| mount.kind == MountType::Nullfs) {
        let reason = match std::fs::metadata(&mount.source) {
            Ok(meta) if meta.is_dir() || meta.is_file() => continue,
            Ok(_) => "the source is neither a directory nor a regular file".to_owned(),
            Err(error) => format!("the source cannot be used: {error}"),
        };
        return Err(mount::MountError { text: mount.to_string(), reason }.into());
    }
    Ok(())
}

/// That every entry is `NAME=VALUE`.
pub(super) fn check_env(env: &[String]) -> Result<()> {
    for entry in env {
        check_variable(entry)?;
        if !entry.contains('=') || entry.contains('\0') {
            return Err(Error::Invalid(format!(
                "environment variable '{}' is not NAME=VALUE without a NUL byte",
                entry.escape_default()
            )));
        }
    }
    Ok(())
}

/// The variables of `over` put over those of `base`, sorted by name.
pub(super) fn merge_env(base: &[String], over: &[String]) -> Result<Vec<String>> {
    check_env(over)?;
    let merged: BTreeMap<&str, &String> = base
        .iter()
        .chain(over)
        .filter_map(|entry| entry.split_once('=').map(|(name, _)| (name, entry)))
        .collect();
    Ok(merged.into_values().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_come_sorted() {
        let list =
            |entries: &[&str]| entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
        let merged = merge_env(&list(&["B=1", "A=1"]), &list(&["C=3", "B=2=2", "C="])).unwrap();
        assert_eq!(merged, list(&["A=1", "B=2=2", "C="]));
        for bad in ["A", "=x", "A B=1", "A=\0"] {
            assert!(merge_env(&[], &list(&[bad])).is_err(), "{bad:?} was accepted");
        }
    }
}
