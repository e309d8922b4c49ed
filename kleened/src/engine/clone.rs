//! Volumes that begin as what another has or had, and volumes that go back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kleened_api::snapshot::RestoreConfig;
use kleened_api::volume::{Origin, VolumeConfig};
use kleened_api::{ProjectName, Timestamp, VolumeName};

use super::journal::Intent;
use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::VolumeRecord;
use super::snapshot::{failed, split};
use super::{Engine, log_failure};
use crate::copy::Progress;
use crate::error::{Error, Result};
use crate::ident;
use crate::storage::{self, DatasetPath, DatasetSpec, INTERNAL, SnapshotPath};

impl Engine {
    /// The volume has what it had when the snapshot was made, and all its snapshots; or a new volume has it,
    /// and the volume is as it was. A repeat is safe. The answer is the volume that has it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InUse`] where a container has the volume that is to go back, and
    /// [`Error::Conflict`] where there is another of the new name; the storage.
    pub fn restore_snapshot(
        self: &Arc<Self>,
        project: &ProjectName,
        name: &str,
        config: RestoreConfig,
    ) -> Result<Pending<String>> {
        let (volume, snapshot) = split(name)?;
        self.catalogue().contains_volume(volume.as_str())?;
        if let Some(new) = config.new {
            let new = project.volume(new.as_str())?;
            let config = VolumeConfig {
                from: Some(volume.as_str().parse()?),
                from_snapshot: Some(snapshot),
                ..VolumeConfig::default()
            };
            return self.create_volume_from(new, Some(volume), config);
        }
        let what = format!("restore volume {volume} to snapshot {snapshot}");
        let subject = volume.to_string();
        let wanted = vec![(Key::Volume(volume.to_string()), Access::Exclusive)];
        Ok(self.begin(what, &subject, wanted, move |engine, _| {
            engine.usable(&volume)?;
            engine.find_snapshot(&volume, &snapshot)?;
            engine.catalogue().unused(volume.as_str())?;
            let back = engine.storage.rollback(&DatasetPath::volume(&volume).snapshot(&snapshot));
            back.map_err(failed("restore", &volume, &snapshot))?;
            Ok(volume.to_string())
        }))
    }

    /// There is a volume with what the source has, or had when the snapshot was made. It takes after the
    /// source in what `config` does not say. The caller holds the locks of both, and knows of none.
    pub(super) fn clone_volume(
        &self,
        name: &VolumeName,
        from: &VolumeName,
        config: &VolumeConfig,
        progress: &Progress,
    ) -> Result<()> {
        self.usable(from)?;
        if let Some(snapshot) = &config.from_snapshot {
            self.find_snapshot(from, snapshot)?;
        }
        let source = self.catalogue().volume(from.as_str())?.record.clone();
        let independent = config.independent.unwrap_or_default();
        let record = VolumeRecord {
            labels: config.labels.clone().unwrap_or(source.labels),
            owner: config.owner.or(source.owner),
            mode: config.mode.or(source.mode),
            size: config.size.or(source.size),
            reserve: config.reserve.or(source.reserve),
            profile: config.profile.clone().or(source.profile),
            properties: config.properties.clone().unwrap_or(source.properties),
            access: config.access.unwrap_or(source.access),
            populated: source.populated,
            origin: Some(Origin {
                volume: from.to_string(),
                snapshot: config.from_snapshot.clone(),
                created: source.created,
                independent,
            }),
            ..VolumeRecord::new(Timestamp::now())
        };
        // Where nothing else is asked for, the root directory is as it comes.
        let spec = DatasetSpec { owner: config.owner, mode: config.mode, ..record.spec() };
        let path = DatasetPath::volume(name);
        let made = self.with_source(from, config.from_snapshot.as_deref(), |snapshot| {
            match self.storage.sources() {
                Some(_) if independent => self.copy_snapshot(snapshot, &path, &spec, progress),
                _ => self.storage.clone_from(snapshot, &path, &spec),
            }
        });
        if let Err(error) = made {
            self.take_back_volume(name, &spec);
            return Err(error);
        }
        self.catalogue().volumes.insert(name.to_string(), record.into());
        Ok(())
    }

    /// Calls `make` with that snapshot of the volume; where there is none, with one of this moment, which
    /// goes when nothing needs it any more.
    fn with_source(
        &self,
        from: &VolumeName,
        snapshot: Option<&str>,
        make: impl FnOnce(&SnapshotPath) -> storage::Result<()>,
    ) -> Result<()> {
        let dataset = DatasetPath::volume(from);
        let fail = || Error::storage("clone volume", from);
        if let Some(snapshot) = snapshot {
            return make(&dataset.snapshot(snapshot)).map_err(fail());
        }
        let id = ident::new();
        let snapshot = dataset.snapshot(&format!("{INTERNAL}clone-{id}"));
        let intent =
            Intent::CloneVolume { from: from.to_string(), snapshot: snapshot.name.clone() };
        let entry = self.journal.begin(&id, &intent);
        let entry = entry.map_err(Error::io("write the journal for", from))?;
        let made = self.storage.snapshot(std::slice::from_ref(&snapshot), "");
        let made = made.and_then(|()| make(&snapshot)).map_err(fail());
        // It may be there also where it could not be made.
        let remove = || self.replay_clone(from, &snapshot.name);
        let gone = remove().or_else(|_| remove());
        if gone.is_ok() {
            log_failure(format_args!("write the journal for {from}"), entry.done());
        }
        log_failure(format_args!("remove {snapshot}"), gone);
        made
    }

    /// The snapshot that a clone was to be made of is gone. A repeat is safe.
    pub(super) fn replay_clone(&self, from: &VolumeName, snapshot: &str) -> Result<()> {
        let path = DatasetPath::volume(from).snapshot(snapshot);
        let gone = self.storage.destroy_snapshot(&path).map(drop);
        gone.map_err(Error::storage("remove snapshot", path))
    }

    /// A copy of the snapshot that shares nothing with it. What it is copied from is a clone, which goes
    /// again: the snapshot may go meanwhile.
    fn copy_snapshot(
        &self,
        snapshot: &SnapshotPath,
        to: &DatasetPath,
        spec: &DatasetSpec,
        progress: &Progress,
    ) -> storage::Result<()> {
        let unsupported = || storage::Error::Unsupported("this driver copies nothing".into());
        let sources = self.storage.sources().ok_or_else(unsupported)?;
        let scratch = DatasetPath::scratch(&ident::new());
        let copied = self.storage.clone_from(snapshot, &scratch, &DatasetSpec::default());
        let copied = copied.and_then(|()| {
            let marked = sources.mark(&self.storage.dataset(&scratch), "copy")?;
            sources.copy_of(&marked, to, spec, &mut |bytes| {
                progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                match progress.is_cancelled() {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                }
            })
        });
        log_failure(format_args!("remove {scratch}"), self.storage.destroy(&scratch));
        copied
    }
}
