//! What there is, in memory: read once at start, and changed after the storage has changed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use kleened_api::container::{Container, ContainerSummary};
use kleened_api::image::Image;
use kleened_api::mount::{MountPoint, MountPointConfig, MountType};
use kleened_api::name::DEFAULT_PROJECT;
use kleened_api::volume::{AccessRule, Volume, VolumeFilter, VolumeState};
use kleened_api::{Id, ImageRef, ProjectName, VolumeName};
use tokio::sync::watch;

use super::record::{ContainerRecord, ImageRecord, VolumeRecord};
use crate::error::{Error, Kind, Result};
use crate::platform::{Exited, Running};
use crate::storage::{DatasetPath, Driver};

#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub volumes: BTreeMap<String, VolumeEntry>,
    /// The volumes of which only the names are known: their records are still being read.
    pub unread: BTreeSet<String>,
    pub images: BTreeMap<Id, ImageRecord>,
    pub containers: BTreeMap<Id, ContainerEntry>,
    /// The containers whose records can't be read. Nobody knows which volumes and images they use.
    pub unreadable: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct VolumeEntry {
    pub record: VolumeRecord,
    /// It is being filled.
    pub initializing: bool,
    /// Why it can't be used.
    pub fault: Option<Fault>,
}

/// Why a volume can't be used, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its dataset is gone, which was not the daemon's doing.
    Gone(String),
    /// It has no record: somebody else put it there.
    Foreign(String),
    /// Its record can't be read.
    Unusable(String),
    /// What was begun with it could be neither finished nor taken back. The next start tries again.
    Unsettled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(reason) | Self::Foreign(reason) | Self::Unusable(reason) => {
                f.write_str(reason)
            }
            Self::Unsettled => f.write_str(
                "a change of it failed and could not be taken back, the daemon's log says why; put \
                 that right and restart kleened, which tries again",
            ),
        }
    }
}

impl From<VolumeRecord> for VolumeEntry {
    fn from(record: VolumeRecord) -> Self {
        Self { record, initializing: false, fault: None }
    }
}

#[derive(Debug)]
pub(super) struct ContainerEntry {
    pub record: ContainerRecord,
    /// False while it is being made: it has its name and its volumes already.
    pub ready: bool,
    pub run: watch::Sender<Run>,
}

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Run {
    Stopped(Option<Exited>),
    Running(Running),
    /// It has ended, and is being removed because of that.
    Removing,
}

impl ContainerEntry {
    pub(super) fn new(record: ContainerRecord, ready: bool, run: Run) -> Self {
        Self { record, ready, run: watch::Sender::new(run) }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(*self.run.borrow(), Run::Running(_))
    }

    /// The volumes that it names.
    pub(super) fn volume_names(&self) -> BTreeSet<String> {
        self.volumes().map(|mount| mount.source.clone()).collect()
    }

    /// Its mounts of volumes.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &MountPointConfig> {
        self.record.mounts.iter().filter(|mount| mount.kind == MountType::Volume)
    }
}

/// A volume in a list: its name, what was read of it, and whether a container that names it runs.
type Shown<'a> = (&'a String, Option<&'a VolumeEntry>, Option<bool>);

impl Catalogue {
    /// The containers that name the volume, and how.
    pub(super) fn users(&self, volume: &str) -> Vec<(&Id, &ContainerEntry, &MountPointConfig)> {
        let of = |(id, entry): (_, _)| {
            let entry: &ContainerEntry = entry;
            entry
                .volumes()
                .filter(|mount| mount.source == volume)
                .map(move |mount| (id, entry, mount))
        };
        self.containers.iter().flat_map(of).collect()
    }

    /// That nobody uses the volume.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`], naming each container, where it has it, and how.
    pub(super) fn unused(&self, volume: &str) -> Result<()> {
        let users = self.users(volume).into_iter();
        let users = users.map(|(id, entry, mount)| user(id, entry, mount)).collect();
        self.refuse_users(Kind::Volume, volume, users)
    }

    /// That the volume's rule lets the container have it by these mounts, beside the others that have it;
    /// of these with `running` those alone that run. The caller holds the volume's lock.
    ///
    /// # Errors
    ///
    /// [`Error::SingleWriter`], naming each mount that is in the way.
    pub(super) fn admits(
        &self,
        volume: &str,
        container: &Id,
        mounts: &[MountPointConfig],
        running: bool,
    ) -> Result<()> {
        if self.volume(volume)?.record.access == AccessRule::Shared {
            return Ok(());
        }
        let is_its =
            |mount: &&MountPointConfig| mount.kind == MountType::Volume && mount.source == volume;
        let own: Vec<_> = mounts.iter().filter(is_its).collect();
        let writes = own.iter().any(|mount| !mount.read_only);
        // Of two that are being made together the first to have the lock gets it.
        let counts = |entry: &ContainerEntry| entry.ready && (!running || entry.is_running());
        let in_the_way = |(id, entry, mount): &(&Id, &ContainerEntry, &MountPointConfig)| {
            *id != container && counts(entry) && (writes || !mount.read_only)
        };
        let others = self.users(volume).into_iter().filter(in_the_way);
        let mut holders: Vec<String> =
            others.map(|(id, entry, mount)| user(id, entry, mount)).collect();
        if let [one, _, ..] = own[..]
            && writes
        {
            let at = &one.destination;
            holders.push(format!("the container itself has it at {at} too"));
        }
        if holders.is_empty() || own.is_empty() {
            return Ok(());
        }
        Err(Error::SingleWriter { volume: volume.to_owned(), holders })
    }

    /// That there are no users, and none that nobody knows of.
    pub(super) fn refuse_users(
        &self,
        kind: Kind,
        name: &str,
        mut users: Vec<String>,
    ) -> Result<()> {
        users.extend(self.unreadable.iter().map(|name| {
            format!(
                "container {name} may use it: its record can't be read, the daemon's log says why"
            )
        }));
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::InUse { kind, name: name.to_owned(), users })
    }

    /// That there is a volume of that name, whether it can be used or not.
    pub(super) fn contains_volume(&self, name: &str) -> Result<()> {
        if self.unread.contains(name) { Ok(()) } else { self.volume(name).map(drop) }
    }

    /// Whether there is a dataset of that volume, as far as is known.
    pub(super) fn has_dataset(&self, name: &str) -> bool {
        let gone = |entry: &VolumeEntry| matches!(entry.fault, Some(Fault::Gone(_)));
        self.unread.contains(name) || self.volumes.get(name).is_some_and(|entry| !gone(entry))
    }

    /// Whether something that was begun with the volume is left to the next start.
    pub(super) fn is_unsettled(&self, name: &str) -> bool {
        self.volumes.get(name).is_some_and(|entry| entry.fault == Some(Fault::Unsettled))
    }

    /// The volume, whose record was read.
    pub(super) fn volume(&self, name: &str) -> Result<&VolumeEntry> {
        self.volumes
            .get(name)
            .ok_or_else(|| Error::NotFound { kind: Kind::Volume, name: name.to_owned() })
    }

    /// The volumes that the filter lets through, newest first.
    pub(super) fn list_volumes(
        &self,
        storage: &dyn Driver,
        project: &ProjectName,
        filter: &VolumeFilter,
    ) -> Vec<Volume> {
        let shown = self.filtered(project, filter);
        let mut volumes: Vec<Volume> = shown
            .into_iter()
            .filter_map(|(name, entry, used)| Some(volume(storage, name, entry?, used)))
            .collect();
        let name = |volume: &Volume| (volume.name.clone(), volume.project.clone());
        volumes.sort_by_cached_key(|volume| (Reverse(volume.created), name(volume)));
        volumes
    }

    /// The names of the volumes that the filter lets through, newest first; last, by name, those whose
    /// records are still being read.
    pub(super) fn volume_names(&self, project: &ProjectName, filter: &VolumeFilter) -> Vec<String> {
        let mut volumes = self.filtered(project, filter);
        // `None` is the least, so the last.
        let created = |entry: Option<&VolumeEntry>| entry.map(|entry| entry.record.created);
        volumes.sort_by_key(|(name, entry, _)| (Reverse(created(*entry)), *name));
        volumes.into_iter().map(|(name, ..)| name.clone()).collect()
    }

    /// The names of all volumes.
    pub(super) fn every_volume(&self) -> impl Iterator<Item = String> {
        self.volumes.keys().chain(&self.unread).cloned()
    }

    /// The volumes that the filter lets through, with what was read of them, and where a container
    /// names one, whether one that names it runs.
    fn filtered(&self, project: &ProjectName, filter: &VolumeFilter) -> Vec<Shown<'_>> {
        // For each volume that is used: whether a running container uses it.
        let mut used: HashMap<&str, bool> = HashMap::new();
        for entry in self.containers.values() {
            let running = entry.is_running();
            for mount in entry.volumes() {
                *used.entry(&mount.source).or_default() |= running;
            }
        }
        let labels: Vec<(&str, Option<&str>)> = filter
            .label
            .iter()
            .flat_map(|labels| labels.split(','))
            .map(|label| {
                label.split_once('=').map_or((label, None), |(key, value)| (key, Some(value)))
            })
            .collect();
        let shown = |(name, entry, running): &Shown<'_>| {
            let (of, bare) = split(name);
            (filter.all_projects || of == project.as_str())
                && filter.name.as_ref().is_none_or(|part| bare.contains(part.as_str()))
                && filter.dangling.is_none_or(|dangling| dangling == running.is_none())
                && filter.in_use.is_none_or(|in_use| in_use == (*running == Some(true)))
                && labels.iter().all(|(key, value)| {
                    entry
                        .and_then(|entry| entry.record.labels.get(*key))
                        .is_some_and(|is| value.is_none_or(|wanted| is == wanted))
                })
        };
        let read = self.volumes.iter().map(|(name, entry)| (name, Some(entry)));
        let all = read.chain(self.unread.iter().map(|name| (name, None)));
        all.map(|(name, entry)| (name, entry, used.get(name.as_str()).copied()))
            .filter(shown)
            .collect()
    }

    /// The names of the volumes that began as this one.
    pub(super) fn clones_of(&self, name: &str) -> Vec<String> {
        let Some(source) = self.volumes.get(name) else { return Vec::new() };
        let is_clone = |entry: &VolumeEntry| {
            let origin = entry.record.origin.as_ref();
            origin.is_some_and(|origin| {
                origin.volume == name && origin.created == source.record.created
            })
        };
        let clones = self.volumes.iter().filter(|(_, entry)| is_clone(entry));
        clones.map(|(name, _)| name.clone()).collect()
    }

    /// The volume and who uses it.
    pub(super) fn inspect_volume(
        &self,
        storage: &dyn Driver,
        name: &str,
    ) -> Result<(Volume, Vec<MountPoint>)> {
        let entry = self.volume(name)?;
        let users = self.users(name);
        let running = users.iter().map(|(_, entry, _)| entry.is_running()).reduce(|a, b| a || b);
        let mounts = users
            .into_iter()
            .map(|(id, _, mount)| MountPoint {
                container_id: id.to_string(),
                config: mount.clone(),
            })
            .collect();
        Ok((volume(storage, name, entry, running), mounts))
    }

    /// The image's id: by its id, by its name and tag, or by the beginning of its id.
    pub(super) fn image(&self, reference: &str) -> Result<Id> {
        let missing = || Error::NotFound { kind: Kind::Image, name: reference.to_owned() };
        let wanted: ImageRef = reference.parse().map_err(|_| missing())?;
        // The one snapshot that an image has is @image, which is what is meant without one.
        if wanted.snapshot.as_deref().is_some_and(|snapshot| snapshot != super::IMAGE_SNAPSHOT) {
            return Err(missing());
        }
        let tag = wanted.tag_or_latest();
        let named =
            self.images.iter().find(|(_, image)| image.name == wanted.name && image.tag == tag);
        match named {
            Some((id, _)) => Ok(id.clone()),
            None if wanted.tag.is_none() => {
                by_prefix(Kind::Image, self.images.keys(), &wanted.name)?.ok_or_else(missing)
            }
            None => Err(missing()),
        }
    }

    /// The container's id: by its id, its name with its project, or the beginning of its id.
    pub(super) fn container(&self, reference: &str) -> Result<Id> {
        let (project, name) = split(reference.strip_prefix('/').unwrap_or(reference));
        if let Some(id) = self.container_named(project, name)
            && self.containers.keys().all(|other| other.as_str() != name)
        {
            return Ok(id.clone());
        }
        by_prefix(Kind::Container, self.containers.keys(), name)?
            .ok_or_else(|| Error::NotFound { kind: Kind::Container, name: reference.to_owned() })
    }

    pub(super) fn container_named(&self, project: &str, name: &str) -> Option<&Id> {
        let named = |(_, entry): &(&Id, &ContainerEntry)| {
            entry.record.name == name && entry.record.project.as_str() == project
        };
        self.containers.iter().find(named).map(|(id, _)| id)
    }

    pub(super) fn entry(&self, id: &Id) -> Result<&ContainerEntry> {
        self.containers
            .get(id)
            .ok_or_else(|| Error::NotFound { kind: Kind::Container, name: id.to_string() })
    }

    /// The container, if it is there as a whole.
    pub(super) fn made(&self, id: &Id) -> Result<&ContainerEntry> {
        let entry = self.entry(id)?;
        if entry.ready {
            return Ok(entry);
        }
        let (name, state) = (entry.record.name.clone(), "is being made: try again when it is");
        Err(Error::State { kind: Kind::Container, name, state })
    }

    /// The containers made from an image.
    pub(super) fn clones<'a>(
        &'a self,
        image: &'a Id,
    ) -> impl Iterator<Item = (&'a Id, &'a ContainerEntry)> {
        self.containers.iter().filter(move |(_, entry)| entry.record.image_id == *image)
    }

    pub(super) fn show_image(&self, storage: &dyn Driver, id: &Id) -> Result<Image> {
        let record = self
            .images
            .get(id)
            .ok_or_else(|| Error::NotFound { kind: Kind::Image, name: id.to_string() })?;
        Ok(image(storage, id, record))
    }

    pub(super) fn list_images(&self, storage: &dyn Driver) -> Vec<Image> {
        let mut images: Vec<Image> =
            self.images.iter().map(|(id, record)| image(storage, id, record)).collect();
        images.sort_by_key(|image| Reverse(image.created));
        images
    }

    pub(super) fn show_container(&self, storage: &dyn Driver, id: &Id) -> Result<Container> {
        Ok(container(storage, id, self.entry(id)?))
    }

    pub(super) fn list_containers(
        &self,
        storage: &dyn Driver,
        project: Option<&ProjectName>,
        all: bool,
    ) -> Vec<ContainerSummary> {
        let mut list: Vec<ContainerSummary> = self
            .containers
            .iter()
            .filter(|(_, entry)| entry.ready && (all || entry.is_running()))
            .filter(|(_, entry)| project.is_none_or(|project| *project == entry.record.project))
            .map(|(id, entry)| {
                let image = self.images.get(&entry.record.image_id);
                ContainerSummary {
                    container: container(storage, id, entry),
                    image_name: image.map(|image| image.name.clone()).unwrap_or_default(),
                    image_tag: image.map(|image| image.tag.clone()).unwrap_or_default(),
                    jid: match &*entry.run.borrow() {
                        Run::Running(running) => Some(running.jid),
                        Run::Stopped(_) | Run::Removing => None,
                    },
                }
            })
            .collect();
        list.sort_by_key(|summary| Reverse(summary.container.created));
        list
    }
}

/// A container that has a volume, and how.
fn user(id: &Id, entry: &ContainerEntry, mount: &MountPointConfig) -> String {
    let state = if entry.is_running() { "running" } else { "stopped" };
    let how = access(mount);
    format!("{state} container {} ({id}) has it at {} {how}", entry.record.name, mount.destination)
}

/// Whether it can be written.
pub(super) fn access(mount: &MountPointConfig) -> &'static str {
    if mount.read_only { "read-only" } else { "read-write" }
}

/// The project and the name in it.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or((DEFAULT_PROJECT, name))
}

/// The one id that begins with `prefix`.
fn by_prefix<'a>(
    kind: Kind,
    ids: impl Iterator<Item = &'a Id>,
    prefix: &str,
) -> Result<Option<Id>> {
    let hits: Vec<&Id> =
        ids.filter(|id| !prefix.is_empty() && id.as_str().starts_with(prefix)).collect();
    match hits[..] {
        [] => Ok(None),
        [id] => Ok(Some(id.clone())),
        _ => {
            let hits: Vec<&str> = hits.iter().map(|id| id.as_str()).collect();
            Err(Error::Invalid(format!(
                "{kind} {prefix} is ambiguous: write more of one of {}",
                hits.join(", ")
            )))
        }
    }
}

fn volume(storage: &dyn Driver, name: &str, entry: &VolumeEntry, used: Option<bool>) -> Volume {
    // A dataset that somebody else put there may have a name that no volume can have.
    let path = name.parse::<VolumeName>().map(|name| DatasetPath::volume(&name));
    let mountpoint = path.as_ref().map(|path| storage.mountpoint(path));
    let record = entry.record.clone();
    let (project, name) = split(name);
    Volume {
        name: name.to_owned(),
        project: project.parse().unwrap_or_default(),
        dataset: path.as_ref().map(|path| storage.dataset(path)).unwrap_or_default(),
        mountpoint: mountpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        created: record.created,
        labels: record.labels,
        state: match used {
            _ if entry.fault.is_some() => VolumeState::Error,
            _ if entry.initializing => VolumeState::Initializing,
            Some(true) => VolumeState::Mounted,
            Some(false) => VolumeState::Attached,
            None => VolumeState::Available,
        },
        owner: record.owner,
        mode: record.mode,
        size: record.size,
        reserve: record.reserve,
        profile: record.profile,
        properties: record.properties,
        access: record.access,
        changed: BTreeMap::new(),
        usage: None,
        populated: record.populated,
        adopted: record.adopted,
        origin: record.origin,
        error: entry.fault.as_ref().map(Fault::to_string),
    }
}

fn image(storage: &dyn Driver, id: &Id, record: &ImageRecord) -> Image {
    let record = record.clone();
    Image {
        id: id.clone(),
        name: record.name,
        tag: record.tag,
        user: record.user,
        cmd: record.cmd,
        env: record.env,
        instructions: Vec::new(),
        created: record.created,
        dataset: storage.dataset(&DatasetPath::image(id)),
    }
}

fn container(storage: &dyn Driver, id: &Id, entry: &ContainerEntry) -> Container {
    let record = entry.record.clone();
    let run = entry.run.borrow().clone();
    Container {
        id: id.clone(),
        name: record.name,
        project: record.project,
        image_id: record.image_id.to_string(),
        cmd: record.cmd,
        user: record.user,
        env: record.env,
        network_driver: record.network_driver,
        public_ports: Vec::new(),
        jail_param: record.jail_param,
        limits: record.limits,
        restart_policy: record.restart_policy,
        persist: record.persist,
        created: record.created,
        dataset: storage.dataset(&DatasetPath::container(id)),
        running: matches!(run, Run::Running(_)),
        hostname: record.hostname,
        workdir: record.workdir,
        auto_remove: record.auto_remove,
        started: match &run {
            Run::Running(running) => Some(running.started),
            Run::Stopped(_) | Run::Removing => None,
        },
        finished: match &run {
            Run::Stopped(Some(exited)) => Some(exited.at),
            _ => None,
        },
        exit_code: match &run {
            Run::Stopped(Some(exited)) => Some(exited.code),
            _ => None,
        },
    }
}
