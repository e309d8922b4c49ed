//! The verbs of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use kleened_api::volume::{
    InspectQuery, Volume, VolumeConfig, VolumeFilter, VolumeInspect, VolumeUsage,
};
use kleened_api::{Id, ProjectName, Ratio, Size, Timestamp, VolumeName};

use super::catalogue::{Fault, VolumeEntry, split};
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::VolumeRecord;
use super::{Engine, log_failure, profile};
use crate::error::{Difference, Error, Kind, Result};
use crate::ident;
use crate::storage::{self, DatasetPath, DatasetSpec, Usage};

impl Engine {
    /// The volumes that the filter lets through, newest first.
    ///
    /// # Errors
    ///
    /// How much space they take can't be read; [`Error::Stopping`].
    pub async fn volumes(
        self: &Arc<Self>,
        project: &ProjectName,
        filter: VolumeFilter,
    ) -> Result<Vec<Volume>> {
        self.know_all().await?;
        let mut volumes = self.catalogue().list_volumes(&*self.storage, project, &filter);
        if !filter.size || volumes.is_empty() {
            return Ok(volumes);
        }
        let path = |volume: &Volume| Ok(DatasetPath::volume(&volume.project.volume(&volume.name)?));
        let paths: Vec<DatasetPath> = volumes.iter().map(path).collect::<Result<_>>()?;
        let measured = self.look(move |engine| engine.storage.usages(&paths)).await?;
        let usages = measured.map_err(Error::storage("measure", "volumes"))?;
        for (volume, usage) in volumes.iter_mut().zip(&usages) {
            volume.usage = usage.as_ref().map(show);
        }
        Ok(volumes)
    }

    /// The names of the volumes that the filter lets through, newest first; last, by name, those whose
    /// records are still being read after a start. Waits for nothing unless the filter asks for labels.
    ///
    /// # Errors
    ///
    /// [`Error::Stopping`].
    pub async fn volume_names(
        &self,
        project: &ProjectName,
        filter: &VolumeFilter,
    ) -> Result<Vec<String>> {
        if filter.label.is_some() {
            self.know_all().await?;
        }
        Ok(self.catalogue().volume_names(project, filter))
    }

    /// The volume, and the containers that name it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; how much space it takes can't be read.
    pub async fn volume(
        self: &Arc<Self>,
        name: &str,
        query: InspectQuery,
    ) -> Result<VolumeInspect> {
        self.catalogue().contains_volume(name)?;
        let (wanted, held) = (name.parse()?, self.locks.try_share(Key::Volume(name.to_owned())));
        let noticed = self.look(move |engine| match held {
            Some(_held) => engine.notice(&wanted),
            // Somebody is changing it, so its dataset may be on its way.
            None => engine.know(wanted.as_str()),
        });
        noticed.await??;
        let (mut volume, mountpoints) = self.catalogue().inspect_volume(&*self.storage, name)?;
        let measure = query.size || self.storage.capabilities().usage_is_known;
        if measure && volume.error.is_none() {
            let path = DatasetPath::volume(&name.parse()?);
            let spec = self.catalogue().volume(name)?.record.spec();
            let seen = self.look(move |engine| {
                let usage = engine.storage.usage(&path)?;
                Ok((usage, engine.storage.changed(&path, &spec)?))
            });
            match seen.await? {
                Ok((usage, changed)) => {
                    (volume.usage, volume.changed) = (Some(show(&usage)), changed);
                }
                // It is on its way, or went just now.
                Err(storage::Error::NotFound(_)) => {}
                Err(error) => return Err(Error::storage("measure volume", name)(error)),
            }
        }
        let known = name.to_owned();
        let snapshots = match volume.error {
            Some(_) => Vec::new(),
            None => match self.look(move |engine| engine.snapshots_of(&known, query.size)).await? {
                // It is on its way, or went just now.
                Err(Error::NotFound { .. }) => Vec::new(),
                snapshots => snapshots?,
            },
        };
        let clones = self.catalogue().clones_of(name);
        Ok(VolumeInspect { volume, mountpoints, snapshots, clones })
    }

    /// There is a volume of that name, empty or as another is or was. Where there was one with the same
    /// parameters, as far as they are given, nothing changed: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for what it is to begin as; [`Error::Conflict`] where there was one that
    /// differs; a parameter that is not allowed, or that this storage driver has not; the storage.
    pub fn create_volume(
        self: &Arc<Self>,
        project: &ProjectName,
        config: VolumeConfig,
    ) -> Result<Pending<String>> {
        let name = match &config.name {
            Some(name) => project.volume(name.as_str())?,
            None => project.volume(ident::new().as_str())?,
        };
        let from = config.from.as_ref().map(|from| project.volume(from.as_str())).transpose()?;
        self.create_volume_from(name, from, config)
    }

    /// As [`create_volume`](Self::create_volume), with the names resolved.
    pub(super) fn create_volume_from(
        self: &Arc<Self>,
        name: VolumeName,
        from: Option<VolumeName>,
        config: VolumeConfig,
    ) -> Result<Pending<String>> {
        check(&config)?;
        let subject = name.to_string();
        let mut wanted = vec![(Key::Volume(name.to_string()), Access::Exclusive)];
        if let Some(from) = &from {
            let refused = match (*from == name, from.project() == name.project()) {
                (true, _) => Some("it can't begin as itself"),
                (_, false) => Some("source and new volume must be in the same project"),
                _ => None,
            };
            if let Some(reason) = refused {
                return Err(Error::Invalid(format!(
                    "cannot make volume {name} of {from}: {reason}"
                )));
            }
            wanted.push((Key::Volume(from.to_string()), Access::Shared));
        }
        Ok(self.begin(
            format!("create volume {name}"),
            &subject,
            wanted,
            move |engine, progress| {
                let known = engine.catalogue().contains_volume(name.as_str()).is_ok();
                if known {
                    // Its dataset may be gone.
                    engine.notice(&name)?;
                    let origin = wanted_origin(from.as_ref(), &config);
                    same(&name, engine.catalogue().volume(name.as_str())?, &config, origin)?;
                    return Ok(name.to_string());
                }
                if let Some(from) = &from {
                    engine.catalogue().contains_volume(from.as_str())?;
                    engine.clone_volume(&name, from, &config, progress)?;
                    return Ok(name.to_string());
                }
                let record = VolumeRecord {
                    labels: config.labels.unwrap_or_default(),
                    owner: config.owner,
                    mode: config.mode,
                    size: config.size,
                    reserve: config.reserve,
                    profile: config.profile,
                    properties: config.properties.unwrap_or_default(),
                    access: config.access.unwrap_or_default(),
                    ..VolumeRecord::new(Timestamp::now())
                };
                engine.make_volume(&name, record)?;
                Ok(name.to_string())
            },
        ))
    }

    /// There is an empty volume with that record. The caller holds its lock and knows of none.
    pub(super) fn make_volume(&self, name: &VolumeName, record: VolumeRecord) -> Result<()> {
        let (path, spec) = (DatasetPath::volume(name), record.spec());
        if let Err(error) = self.storage.create(&path, &spec) {
            self.take_back_volume(name, &spec);
            return Err(Error::storage("create volume", name)(error));
        }
        self.catalogue().volumes.insert(name.to_string(), record.into());
        Ok(())
    }

    /// There is no volume with that spec: the call that was to make it failed, and may have made it all the
    /// same. What somebody else made there stays.
    pub(super) fn take_back_volume(&self, name: &VolumeName, spec: &DatasetSpec) {
        let path = DatasetPath::volume(name);
        let taken_back = match self.storage.get(&path) {
            Ok(Some(there)) if there.record.as_ref() == Some(&spec.record) => {
                self.storage.destroy(&path).map(drop)
            }
            there => there.map(drop),
        };
        log_failure(format_args!("take back {path}"), taken_back);
        log_failure(format_args!("look at {path}"), self.notice(name));
    }

    /// There is the volume that a mount names; made for that container where there was none.
    pub(super) fn ensure_volume(&self, name: &VolumeName, container: &Id) -> Result<()> {
        if self.catalogue().contains_volume(name.as_str()).is_ok() {
            return self.usable(name);
        }
        let made_for = Some(container.clone());
        let record = VolumeRecord { made_for, ..VolumeRecord::new(Timestamp::now()) };
        self.make_volume(name, record)
    }

    /// There is no such volume any more, and its data is gone.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InUse`], naming each container that has it, where, and how;
    /// [`Error::HasSnapshots`] unless `force` is with them.
    pub fn remove_volume(self: &Arc<Self>, name: &str, force: bool) -> Result<Pending<String>> {
        self.catalogue().contains_volume(name)?;
        let name: VolumeName = name.parse()?;
        let subject = name.to_string();
        let wanted = vec![(Key::Volume(name.to_string()), Access::Exclusive)];
        Ok(self.begin(format!("remove volume {name}"), &subject, wanted, move |engine, _| {
            engine.destroy_volume(&name, force)?;
            Ok(name.to_string())
        }))
    }

    fn destroy_volume(&self, name: &VolumeName, force: bool) -> Result<()> {
        // Another dataset may stand in its place, which is somebody else's.
        self.notice(name)?;
        {
            let mut catalogue = self.catalogue();
            match &catalogue.volume(name.as_str())?.fault {
                Some(Fault::Foreign(_) | Fault::Unusable(_)) => {
                    return Err(Error::Invalid(format!(
                        "volume {name} was not made by this kleened, or its record cannot be read; \
                         remove its dataset by hand if it is not needed"
                    )));
                }
                Some(fault @ Fault::Unsettled) => {
                    return Err(Error::Invalid(format!(
                        "volume {name} cannot be removed: {fault}"
                    )));
                }
                Some(Fault::Gone(_)) => {
                    catalogue.unused(name.as_str())?;
                    catalogue.volumes.remove(name.as_str());
                    return Ok(());
                }
                None => catalogue.unused(name.as_str())?,
            }
        }
        self.without_snapshots(name, force)?;
        match self.storage.destroy(&DatasetPath::volume(name)) {
            // Somebody took it away behind the daemon's back: it is gone all the same.
            Ok(_) | Err(storage::Error::NotFound(_)) => {
                self.catalogue().volumes.remove(name.as_str());
                Ok(())
            }
            Err(error) => Err(Error::storage("remove volume", name)(error)),
        }
    }

    /// No volume of the project, or of any where that is `None`, is left that no container names and that
    /// has no snapshots made here. The answer lists them; with `dry_run` it lists
    /// those that would go, and they stay. One that can't be removed does not keep the others.
    pub fn prune_volumes(
        self: &Arc<Self>,
        project: Option<ProjectName>,
        dry_run: bool,
    ) -> Pending<Vec<String>> {
        self.begin("prune volumes".into(), "", Vec::new(), move |engine, _| {
            engine.runtime.block_on(engine.know_all())?;
            let mut unused: Vec<String> = {
                let catalogue = engine.catalogue();
                let unused = |(name, entry): &(&String, &VolumeEntry)| {
                    let of = |project| project == split(name).0;
                    entry.fault.is_none()
                        && project.as_ref().is_none_or(|project| of(project.as_str()))
                        && catalogue.unused(name).is_ok()
                };
                catalogue.volumes.iter().filter(unused).map(|(name, _)| name.clone()).collect()
            };
            unused.retain(|name| {
                let free = name.parse().map_err(Error::from);
                let free = free.and_then(|name| engine.without_snapshots(&name, false));
                !matches!(free, Err(Error::HasSnapshots { .. }))
            });
            let key = |name: &String| Key::Volume(name.clone());
            engine.prune(unused, dry_run, key, |name| engine.destroy_volume(&name.parse()?, false))
        })
    }
}

/// That a volume which exists is what was asked for.
fn same(
    name: &VolumeName,
    entry: &VolumeEntry,
    config: &VolumeConfig,
    origin: Option<String>,
) -> Result<()> {
    let record = &entry.record;
    if let Some(fault) = &entry.fault {
        return Err(Error::Invalid(format!("volume {name} exists and cannot be used: {fault}")));
    }
    let maps = [
        ("labels", &record.labels, &config.labels),
        ("properties", &record.properties, &config.properties),
    ];
    let maps = maps.into_iter().filter_map(|(field, present, wanted)| {
        let wanted = wanted.as_ref().filter(|wanted| *wanted != present)?;
        Some(Difference { field, present: list(present), wanted: list(wanted) })
    });
    let fields = [
        ("owner", text(&record.owner), text(&config.owner)),
        ("mode", text(&record.mode), text(&config.mode)),
        ("size", text(&record.size), text(&config.size)),
        ("reserve", text(&record.reserve), text(&config.reserve)),
        ("profile", text(&record.profile), text(&config.profile)),
        ("access", Some(record.access.to_string()), text(&config.access)),
        ("origin", text(&record.origin), origin),
    ];
    let fields = fields.into_iter().filter_map(|(field, present, wanted)| {
        let wanted = wanted.filter(|wanted| Some(wanted) != present.as_ref())?;
        Some(Difference { field, present: present.unwrap_or_else(|| "none".into()), wanted })
    });
    let differences: Vec<Difference> = maps.chain(fields).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Conflict { kind: Kind::Volume, name: name.to_string(), differences })
}

fn text<T: ToString>(value: &Option<T>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

/// What the volume is to begin as, as [`Origin`](kleened_api::volume::Origin) is written.
fn wanted_origin(from: Option<&VolumeName>, config: &VolumeConfig) -> Option<String> {
    let from = from?;
    Some(match &config.from_snapshot {
        Some(snapshot) => kleened_api::snapshot::path(from.as_str(), snapshot),
        None => from.to_string(),
    })
}

/// That what is asked for can be a volume.
fn check(config: &VolumeConfig) -> Result<()> {
    if config.from.is_none() && (config.from_snapshot.is_some() || config.independent.is_some()) {
        let text = "a snapshot to begin as, or to be independent, needs the volume that it is of";
        return Err(Error::Invalid(text.into()));
    }
    for key in config.labels.iter().flat_map(BTreeMap::keys) {
        if key.is_empty() || key.contains(['=', ',']) || key.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "label '{}' is not allowed: a label is KEY=VALUE, and KEY is not empty and holds no '=', ','  \
                 or control character",
                key.escape_default()
            )));
        }
    }
    for (key, value) in config.properties.iter().flatten() {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ":_.-".contains(c);
        if key.is_empty() || !key.chars().all(known) || value.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "property '{}={}' is not allowed: a property is NAME=VALUE, NAME holds only a-z 0-9 : _ . -, \
                 and VALUE no control character",
                key.escape_default(),
                value.escape_default()
            )));
        }
    }
    if let Some(name) = &config.profile {
        profile::check(name)?;
    }
    for (what, size) in [("size", config.size), ("reserve", config.reserve)] {
        if size == Some(Size(0)) {
            return Err(Error::Invalid(format!("a {what} of 0 is not allowed: leave it out")));
        }
    }
    match (config.size, config.reserve) {
        (Some(size), Some(reserve)) if reserve > size => Err(Error::Invalid(format!(
            "a reserve of {reserve} for a volume of {size} is not allowed: a reserve is at most the size"
        ))),
        _ => Ok(()),
    }
}

fn show(usage: &Usage) -> VolumeUsage {
    VolumeUsage {
        used: Size(usage.used),
        referenced: Size(usage.referenced),
        available: Size(usage.available),
        snapshots: Size(usage.snapshots),
        size: usage.size.map(Size),
        compress_ratio: usage.compress_ratio.map(Ratio),
    }
}

fn list(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "none".into();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
