//! Datasets of others that become volumes.

use std::sync::Arc;

use kleened_api::volume::AdoptConfig;
use kleened_api::{ProjectName, Timestamp, VolumeName};

use super::Engine;
use super::catalogue::{Fault, VolumeEntry};
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, VolumeRecord};
use crate::config::is_dataset;
use crate::error::{Error, Kind, Result};
use crate::storage::{self, DatasetPath};

impl Engine {
    /// The dataset is a volume, with all that it holds. Where it was adopted under that name before,
    /// nothing changed: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Taken`] where there is another volume of that name;
    /// [`Error::Unsupported`] where the storage driver has no datasets of others; a dataset that can't
    /// be adopted, with the reason.
    pub fn adopt_volume(
        self: &Arc<Self>,
        project: &ProjectName,
        config: AdoptConfig,
    ) -> Result<Pending<String>> {
        let dataset = config.dataset;
        if self.storage.adopt().is_none() {
            return Err(Error::Unsupported(format!(
                "the storage driver '{}' cannot adopt datasets: keep the root on ZFS",
                self.storage.name()
            )));
        }
        if !is_dataset(&dataset) {
            return Err(Error::Invalid(format!(
                "'{}' is no name of a dataset, as tank/data/pg",
                dataset.escape_default()
            )));
        }
        let last = dataset.rsplit('/').next().unwrap_or(&dataset);
        let name = match (&config.name, project.volume(last)) {
            (Some(name), _) => project.volume(name.as_str())?,
            (None, Ok(name)) => name,
            (None, Err(_)) => {
                return Err(Error::Invalid(format!(
                    "'{}' can't be the name of a volume: give one with --name",
                    last.escape_default()
                )));
            }
        };
        // It may be in the place of a volume already.
        let volume = self.volume_of_dataset(&dataset);
        let wanted = [Some(&name), volume.as_ref()].into_iter().flatten();
        let wanted =
            wanted.map(|name| (Key::Volume(name.to_string()), Access::Exclusive)).collect();
        let (what, subject) = (format!("adopt {dataset} as volume {name}"), name.to_string());
        Ok(self.begin(what, &subject, wanted, move |engine, _| {
            if !engine.is_adopted(&name, volume.as_ref(), &dataset)? {
                engine.adopt(&name, volume.as_ref(), dataset)?;
            }
            Ok(name.to_string())
        }))
    }

    /// The volume whose dataset it would be by its place.
    fn volume_of_dataset(&self, dataset: &str) -> Option<VolumeName> {
        let image = DatasetPath::volume(&"x".parse().ok()?);
        let root = self.storage.dataset(&image);
        let root = root.strip_suffix(&image.to_string())?;
        dataset.strip_prefix(root)?.parse::<DatasetPath>().ok()?.volume_name()
    }

    /// Whether the volume is there, made of that dataset.
    fn is_adopted(
        &self,
        name: &VolumeName,
        volume: Option<&VolumeName>,
        dataset: &str,
    ) -> Result<bool> {
        for name in [Some(name), volume].into_iter().flatten() {
            self.notice(name)?;
        }
        let catalogue = self.catalogue();
        let is_volume = |entry: &&VolumeEntry| !matches!(entry.fault, Some(Fault::Foreign(_)));
        let entry = |name: &VolumeName| catalogue.volumes.get(name.as_str());
        if let Some(volume) = volume.filter(|volume| *volume != name)
            && entry(volume).filter(is_volume).is_some()
        {
            return Err(Error::Invalid(format!("{dataset} is volume {volume} already")));
        }
        let in_place = volume == Some(name);
        match entry(name) {
            None => Ok(false),
            Some(there) if in_place && !is_volume(&there) => Ok(false),
            Some(there) if there.fault.is_none() && in_place => Ok(true),
            Some(there)
                if there.fault.is_none() && there.record.adopted.as_deref() == Some(dataset) =>
            {
                Ok(true)
            }
            Some(there) => match &there.fault {
                Some(fault) => {
                    Err(Error::Invalid(format!("volume {name} exists and cannot be used: {fault}")))
                }
                None => {
                    let by = self.storage.dataset(&DatasetPath::volume(name));
                    Err(Error::Taken { kind: Kind::Volume, name: name.to_string(), by })
                }
            },
        }
    }

    fn adopt(&self, name: &VolumeName, volume: Option<&VolumeName>, dataset: String) -> Result<()> {
        let Some(adopting) = self.storage.adopt() else { return Err(Error::Failed) };
        let adopted = Some(dataset.clone());
        let record = VolumeRecord { adopted, ..VolumeRecord::new(Timestamp::now()) };
        let text = record::write(&record);
        let done = adopting.adopt(&dataset, &DatasetPath::volume(name), &text);
        done.map_err(|error| match error {
            storage::Error::NotFound(_) => Error::NotFound { kind: Kind::Dataset, name: dataset },
            // It says so itself.
            storage::Error::Invalid(reason) => Error::Invalid(reason),
            error => Error::storage("adopt dataset", dataset)(error),
        })?;
        let mut catalogue = self.catalogue();
        if let Some(volume) = volume {
            catalogue.volumes.remove(volume.as_str());
        }
        catalogue.volumes.insert(name.to_string(), record.into());
        Ok(())
    }
}
