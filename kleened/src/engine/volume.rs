//! The verbs of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use kleened_api::volume::{Volume, VolumeConfig, VolumeFilter, VolumeInspect};
use kleened_api::{Id, Timestamp, VolumeName};

use super::catalogue::VolumeEntry;
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, VolumeRecord};
use super::{Engine, ident, log_failure};
use crate::error::{Error, Kind, Result};
use crate::storage::{self, DatasetPath, DatasetSpec};

impl Engine {
    /// The volumes that the filter lets through, newest first.
    #[must_use]
    pub fn volumes(&self, filter: &VolumeFilter) -> Vec<Volume> {
        self.catalogue().list_volumes(&*self.storage, filter)
    }

    /// The volume, and the containers that name it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn volume(&self, name: &str) -> Result<VolumeInspect> {
        let (volume, mountpoints) = self.catalogue().inspect_volume(&*self.storage, name)?;
        Ok(VolumeInspect { volume, mountpoints })
    }

    /// There is a volume of that name. Where there was one with the same labels, owner and mode, as
    /// far as they are given, nothing changed: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] where there was one that differs; the name, a label or the storage.
    pub fn create_volume(self: &Arc<Self>, config: VolumeConfig) -> Result<Pending<String>> {
        for key in config.labels.iter().flat_map(BTreeMap::keys) {
            if key.is_empty() || key.contains(['=', ',']) || key.chars().any(char::is_control) {
                return Err(Error::Invalid(format!(
                    "label '{}' is not allowed: a label is KEY=VALUE, and KEY is not empty and holds no '=', ','  \
                     or control character",
                    key.escape_default()
                )));
            }
        }
        let name = match &config.name {
            Some(name) => name.clone(),
            None => ident::new().as_str().parse()?,
        };
        let subject = name.to_string();
        let wanted = vec![(Key::Volume(name.to_string()), Access::Exclusive)];
        Ok(self.begin(format!("create volume {name}"), &subject, wanted, move |engine, _| {
            if let Some(entry) = engine.catalogue().volumes.get(name.as_str()) {
                same(&name, entry, &config)?;
                return Ok(name.to_string());
            }
            let record = VolumeRecord {
                created: Timestamp::now(),
                labels: config.labels.unwrap_or_default(),
                owner: config.owner,
                mode: config.mode,
                populated: None,
                made_for: None,
            };
            engine.make_volume(&name, record)?;
            Ok(name.to_string())
        }))
    }

    /// There is an empty volume with that record. The caller holds its lock and knows of none.
    pub(super) fn make_volume(&self, name: &VolumeName, record: VolumeRecord) -> Result<()> {
        let spec = DatasetSpec {
            record: record::write(&record),
            owner: record.owner,
            mode: record.mode,
            ..DatasetSpec::default()
        };
        let path = DatasetPath::volume(name);
        if let Err(error) = self.storage.create(&path, &spec) {
            // It may be there all the same; but one that was there before is somebody's.
            if !matches!(error, storage::Error::Exists(_)) {
                log_failure(format_args!("take back {path}"), self.storage.destroy(&path));
            }
            return Err(Error::storage("create volume", name)(error));
        }
        self.catalogue().volumes.insert(name.to_string(), record.into());
        Ok(())
    }

    /// There is the volume that a mount names; made for that container where there was none.
    pub(super) fn ensure_volume(&self, name: &VolumeName, container: &Id) -> Result<()> {
        if let Some(entry) = self.catalogue().volumes.get(name.as_str()) {
            return match &entry.fault {
                Some(fault) => {
                    Err(Error::Invalid(format!("volume {name} cannot be used: {fault}")))
                }
                None => Ok(()),
            };
        }
        let record = VolumeRecord {
            created: Timestamp::now(),
            labels: BTreeMap::new(),
            owner: None,
            mode: None,
            populated: None,
            made_for: Some(container.clone()),
        };
        self.make_volume(name, record)
    }

    /// There is no such volume any more, and its data is gone.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InUse`], naming each container that has it, where, and how.
    pub fn remove_volume(self: &Arc<Self>, name: &str) -> Result<Pending<String>> {
        self.catalogue().volume(name)?;
        let name: VolumeName = name.parse()?;
        let subject = name.to_string();
        let wanted = vec![(Key::Volume(name.to_string()), Access::Exclusive)];
        Ok(self.begin(format!("remove volume {name}"), &subject, wanted, move |engine, _| {
            engine.destroy_volume(&name)?;
            Ok(name.to_string())
        }))
    }

    fn destroy_volume(&self, name: &VolumeName) -> Result<()> {
        {
            let catalogue = self.catalogue();
            if catalogue.volume(name.as_str())?.fault.is_some() {
                return Err(Error::Invalid(format!(
                    "volume {name} was not made by this kleened, or its record cannot be read; \
                     remove its dataset by hand if it is not needed"
                )));
            }
            catalogue.unused(name.as_str())?;
        }
        match self.storage.destroy(&DatasetPath::volume(name)) {
            // Somebody took it away behind the daemon's back: it is gone all the same.
            Ok(_) | Err(storage::Error::NotFound(_)) => {
                self.catalogue().volumes.remove(name.as_str());
                Ok(())
            }
            Err(error) => Err(Error::storage("remove volume", name)(error)),
        }
    }

    /// No volume is left that no container names. The answer lists them; with `dry_run` it lists
    /// those that would go, and they stay. One that can't be removed does not keep the others.
    pub fn prune_volumes(self: &Arc<Self>, dry_run: bool) -> Pending<Vec<String>> {
        let unused: Vec<String> = {
            let catalogue = self.catalogue();
            let unused = |(name, entry): &(&String, &VolumeEntry)| {
                entry.fault.is_none() && catalogue.unused(name).is_ok()
            };
            catalogue.volumes.iter().filter(unused).map(|(name, _)| name.clone()).collect()
        };
        self.begin("prune volumes".into(), "", Vec::new(), move |engine, _| {
            let key = |name: &String| Key::Volume(name.clone());
            engine.prune(unused, dry_run, key, |name| engine.destroy_volume(&name.parse()?))
        })
    }
}

/// That a volume which exists is what was asked for.
fn same(name: &VolumeName, entry: &VolumeEntry, config: &VolumeConfig) -> Result<()> {
    let record = &entry.record;
    let differs = |field, present: String, wanted: String| {
        Err(Error::Conflict { kind: Kind::Volume, name: name.to_string(), field, present, wanted })
    };
    if let Some(fault) = &entry.fault {
        return Err(Error::Invalid(format!("volume {name} exists and cannot be used: {fault}")));
    }
    if let Some(labels) = &config.labels
        && *labels != record.labels
    {
        return differs("labels", list(&record.labels), list(labels));
    }
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    if config.owner.is_some() && config.owner != record.owner {
        let text = |owner: Option<kleened_api::volume::Owner>| {
            or_none(owner.map(|owner| owner.to_string()))
        };
        return differs("owner", text(record.owner), text(config.owner));
    }
    if config.mode.is_some() && config.mode != record.mode {
        let text =
            |mode: Option<kleened_api::volume::Mode>| or_none(mode.map(|mode| mode.to_string()));
        return differs("mode", text(record.mode), text(config.mode));
    }
    Ok(())
}

fn list(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "none".into();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
