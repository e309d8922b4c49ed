//! The verbs of snapshots of volumes.

use std::collections::BTreeSet;
use std::sync::Arc;

use kleened_api::snapshot::{
    MAX_MESSAGE, Snapshot, SnapshotConfig, SnapshotFilter, SnapshotProtect, SnapshotRename, path,
};
use kleened_api::volume::VolumeFilter;
use kleened_api::{NameError, ProjectName, Size, Timestamp, VolumeName};

use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, SnapshotRecord};
use super::{Engine, log_failure};
use crate::error::{Error, Kind, Result};
use crate::storage::{self, DatasetPath, INTERNAL, SnapshotPath};

impl Engine {
    /// The snapshots that the filter lets through, by volume, oldest first; where that names no volume,
    /// those of all of the project.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for the volume that the filter names; the storage can't be read;
    /// [`Error::Stopping`].
    pub async fn snapshots(
        self: &Arc<Self>,
        project: &ProjectName,
        filter: SnapshotFilter,
    ) -> Result<Vec<Snapshot>> {
        let all = filter.volume.is_none();
        let mut volumes = match &filter.volume {
            Some(volume) => vec![volume.clone()],
            None => self.volume_names(project, &VolumeFilter::default()).await?,
        };
        volumes.sort_unstable();
        let find = move |engine: &Self| {
            let mut found = Vec::new();
            for volume in &volumes {
                match engine.snapshots_of(volume, filter.size) {
                    Ok(snapshots) => found.extend(snapshots),
                    // It went meanwhile, or its dataset is gone.
                    Err(Error::NotFound { .. }) if all => {}
                    Err(error) => return Err(error),
                }
            }
            found.retain(|snapshot| {
                let has = |text: &Option<String>, part: &str| {
                    text.as_ref().is_some_and(|text| text.contains(part))
                };
                filter.name.as_ref().is_none_or(|part| snapshot.name.contains(part))
                    && filter.message.as_ref().is_none_or(|part| has(&snapshot.message, part))
                    && filter.protected.is_none_or(|wanted| wanted == snapshot.protected)
            });
            Ok(found)
        };
        self.look(find).await?
    }

    /// The snapshot, with how much space it takes.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; the storage can't be read.
    pub async fn snapshot(self: &Arc<Self>, name: &str) -> Result<Snapshot> {
        let (volume, name) = split(name)?;
        let find = move |engine: &Self| {
            let mut found = engine.find_snapshot(&volume, &name)?;
            let path = DatasetPath::volume(&volume).snapshot(&name);
            let used = engine.storage.snapshot_usage(&path);
            found.used = Some(Size(used.map_err(failed("measure", &volume, &name))?));
            Ok(found)
        };
        self.look(find).await?
    }

    /// There is a snapshot of each volume, all of that name. The answer lists them as `VOLUME@NAME`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for a volume; [`Error::Exists`] for a snapshot; the storage. Then none was
    /// made.
    pub fn create_snapshots(
        self: &Arc<Self>,
        project: &ProjectName,
        config: SnapshotConfig,
    ) -> Result<Pending<Vec<String>>> {
        let SnapshotConfig { volumes, name, message } = config;
        if message.as_ref().is_some_and(|message| message.len() > MAX_MESSAGE) {
            let text = format!("the message is too long: it may have {MAX_MESSAGE} bytes");
            return Err(Error::Invalid(text));
        }
        let volumes = volumes.iter().map(|volume| project.volume(volume.as_str()));
        let volumes: BTreeSet<VolumeName> = volumes.collect::<std::result::Result<_, _>>()?;
        if volumes.is_empty() {
            return Err(Error::Invalid("name the volumes to make snapshots of".into()));
        }
        for volume in &volumes {
            self.catalogue().contains_volume(volume.as_str())?;
        }
        let wanted = volumes.iter().map(key).collect();
        let listed: Vec<&str> = volumes.iter().map(VolumeName::as_str).collect();
        let (what, subject) = (format!("snapshot {}", listed.join(", ")), listed.join(","));
        Ok(self.begin(what, &subject, wanted, move |engine, _| {
            for volume in &volumes {
                engine.usable(volume)?;
            }
            let name = match name {
                Some(name) => name.to_string(),
                None => engine.next_name(&volumes)?,
            };
            let record = record::write(&SnapshotRecord { created: Timestamp::now(), message });
            let paths: Vec<SnapshotPath> =
                volumes.iter().map(|volume| DatasetPath::volume(volume).snapshot(&name)).collect();
            if let Err(error) = engine.storage.snapshot(&paths, &record) {
                engine.take_back_snapshots(&paths, &record);
                return Err(match error {
                    storage::Error::Exists(_) => engine.taken(&volumes, &name),
                    error => Error::storage("snapshot", listed_paths(&volumes, &name))(error),
                });
            }
            Ok(volumes.iter().map(|volume| path(volume.as_str(), &name)).collect())
        }))
    }

    /// There is no such snapshot any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::State`] where it is protected; the storage.
    pub fn remove_snapshot(self: &Arc<Self>, name: &str) -> Result<Pending<String>> {
        let remove = |engine: &Self, volume: &VolumeName, name: &str| {
            if engine.find_snapshot(volume, name)?.protected {
                let state = "is protected: unprotect it first";
                return Err(Error::State {
                    kind: Kind::Snapshot,
                    name: path(volume.as_str(), name),
                    state,
                });
            }
            let removed =
                engine.storage.destroy_snapshot(&DatasetPath::volume(volume).snapshot(name));
            engine
                .unless(removed.map(drop), || engine.find_snapshot(volume, name).is_err())
                .map_err(failed("remove", volume, name))
        };
        self.change_snapshot("remove", name, remove)
    }

    /// The snapshot has that name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`]; the storage.
    pub fn rename_snapshot(
        self: &Arc<Self>,
        name: &str,
        rename: SnapshotRename,
    ) -> Result<Pending<String>> {
        let (volume, name) = split(name)?;
        self.catalogue().contains_volume(volume.as_str())?;
        let to = rename.name.to_string();
        let what = format!("rename snapshot {volume}@{name} to {to}");
        let subject = path(volume.as_str(), &to);
        Ok(self.begin(what, &subject, vec![key(&volume)], move |engine, _| {
            engine.find_snapshot(&volume, &name)?;
            let from = DatasetPath::volume(&volume).snapshot(&name);
            let renamed = engine.storage.rename_snapshot(&from, &to);
            let is_done = || {
                engine.find_snapshot(&volume, &name).is_err()
                    && engine.find_snapshot(&volume, &to).is_ok()
            };
            match engine.unless(renamed, is_done) {
                Err(storage::Error::Exists(_)) => {
                    Err(Error::Exists { kind: Kind::Snapshot, name: path(volume.as_str(), &to) })
                }
                renamed => renamed.map_err(failed("rename", &volume, &name)),
            }?;
            Ok(path(volume.as_str(), &to))
        }))
    }

    /// The snapshot can't be removed, nor its volume; or it can. A repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; the storage.
    pub fn protect_snapshot(
        self: &Arc<Self>,
        name: &str,
        SnapshotProtect { protected }: SnapshotProtect,
    ) -> Result<Pending<String>> {
        let verb = if protected { "protect" } else { "unprotect" };
        self.change_snapshot(verb, name, move |engine, volume, name| {
            engine.find_snapshot(volume, name)?;
            let held = engine.storage.hold(&DatasetPath::volume(volume).snapshot(name), protected);
            held.map_err(failed(verb, volume, name))
        })
    }

    /// Begins a change of one snapshot.
    fn change_snapshot(
        self: &Arc<Self>,
        verb: &'static str,
        name: &str,
        change: impl FnOnce(&Self, &VolumeName, &str) -> Result<()> + Send + 'static,
    ) -> Result<Pending<String>> {
        let (volume, name) = split(name)?;
        self.catalogue().contains_volume(volume.as_str())?;
        let subject = path(volume.as_str(), &name);
        let what = format!("{verb} snapshot {subject}");
        Ok(self.begin(what, &subject, vec![key(&volume)], move |engine, _| {
            change(engine, &volume, &name)?;
            Ok(path(volume.as_str(), &name))
        }))
    }

    /// The volume's snapshots, oldest first; with their sizes where those are known or asked for.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for the volume, also where its dataset is gone; the storage can't be read.
    pub(super) fn snapshots_of(&self, volume: &str, measure: bool) -> Result<Vec<Snapshot>> {
        self.catalogue().contains_volume(volume)?;
        let dataset = DatasetPath::volume(&volume.parse()?);
        let found = self.storage.snapshots(&dataset).map_err(|error| match error {
            storage::Error::NotFound(_) => {
                Error::NotFound { kind: Kind::Volume, name: volume.to_owned() }
            }
            error => Error::storage("list the snapshots of volume", volume)(error),
        })?;
        let measure = measure || self.storage.capabilities().usage_is_known;
        let mut snapshots = Vec::with_capacity(found.len());
        for found in found.into_iter().filter(|found| !found.name.starts_with(INTERNAL)) {
            let mut snapshot = show(volume, found);
            if measure {
                snapshot.used = match self.storage.snapshot_usage(&dataset.snapshot(&snapshot.name))
                {
                    Ok(bytes) => Some(Size(bytes)),
                    // It went just now, or has a name that only others give.
                    Err(storage::Error::NotFound(_) | storage::Error::Invalid(_)) => None,
                    Err(error) => {
                        return Err(Error::storage("measure snapshot", snapshot.path())(error));
                    }
                };
            }
            snapshots.push(snapshot);
        }
        Ok(snapshots)
    }

    /// The snapshot, without its size.
    pub(super) fn find_snapshot(&self, volume: &VolumeName, name: &str) -> Result<Snapshot> {
        self.catalogue().contains_volume(volume.as_str())?;
        let missing =
            || Error::NotFound { kind: Kind::Snapshot, name: path(volume.as_str(), name) };
        let found =
            self.storage.snapshots(&DatasetPath::volume(volume)).map_err(|error| match error {
                storage::Error::NotFound(_) => missing(),
                error => failed("look up", volume, name)(error),
            })?;
        let found = found.into_iter().find(|found| found.name == name);
        found.map(|found| show(volume.as_str(), found)).ok_or_else(missing)
    }

    /// That the volume can be removed with its snapshots: without `force` it has none that were made
    /// here. The caller holds its lock.
    ///
    /// # Errors
    ///
    /// [`Error::HasSnapshots`].
    pub(super) fn without_snapshots(&self, volume: &VolumeName, force: bool) -> Result<()> {
        let found = match self.storage.snapshots(&DatasetPath::volume(volume)) {
            Err(storage::Error::NotFound(_)) => return Ok(()),
            found => found.map_err(Error::storage("list the snapshots of volume", volume))?,
        };
        let names = |all: &dyn Fn(&storage::Snapshot) -> bool| -> Vec<String> {
            found.iter().filter(|found| all(found)).map(|found| found.name.clone()).collect()
        };
        let held = names(&|found| found.held);
        let made_here = names(&|found| found.record.is_some());
        let (snapshots, protected) = match (held.is_empty(), force) {
            (false, _) => (held, true),
            (true, false) => (made_here, false),
            (true, true) => return Ok(()),
        };
        if snapshots.is_empty() {
            return Ok(());
        }
        Err(Error::HasSnapshots { volume: volume.to_string(), snapshots, protected })
    }

    /// The first of `v0`, `v1` and so on after those that the volumes have.
    fn next_name(&self, volumes: &BTreeSet<VolumeName>) -> Result<String> {
        let mut next: u64 = 0;
        for volume in volumes {
            let found = self.storage.snapshots(&DatasetPath::volume(volume));
            let found = found.map_err(Error::storage("list the snapshots of volume", volume))?;
            let numbers = found.iter().filter_map(|found| number(&found.name));
            next = numbers.map(|number| number.saturating_add(1)).fold(next, u64::max);
        }
        Ok(format!("v{next}"))
    }

    /// Which of these is there already.
    fn taken(&self, volumes: &BTreeSet<VolumeName>, name: &str) -> Error {
        let taken = volumes.iter().find(|volume| self.find_snapshot(volume, name).is_ok());
        let name = match taken.or(volumes.first()) {
            Some(volume) => path(volume.as_str(), name),
            None => name.to_owned(),
        };
        Error::Exists { kind: Kind::Snapshot, name }
    }

    /// None of these snapshots is there with that record, which no other has: the call that was to make
    /// them failed, and may have made them all the same.
    fn take_back_snapshots(&self, paths: &[SnapshotPath], record: &str) {
        for path in paths {
            let found = self.storage.snapshots(&path.dataset).unwrap_or_default();
            let ours = found
                .iter()
                .any(|found| found.name == path.name && found.record.as_deref() == Some(record));
            if ours {
                log_failure(format_args!("take back {path}"), self.storage.destroy_snapshot(path));
            }
        }
    }

    /// The result of a call that may have failed after it took effect, which `is_done` then tells.
    fn unless(
        &self,
        result: storage::Result<()>,
        is_done: impl FnOnce() -> bool,
    ) -> storage::Result<()> {
        match result {
            Err(storage::Error::Io { .. }) if is_done() => Ok(()),
            result => result,
        }
    }
}

/// The number of a name that was given by counting.
fn number(name: &str) -> Option<u64> {
    let number: u64 = name.strip_prefix('v')?.parse().ok()?;
    (format!("v{number}") == name).then_some(number)
}

fn key(volume: &VolumeName) -> (Key, Access) {
    (Key::Volume(volume.to_string()), Access::Exclusive)
}

/// The volume and the name of what is written `VOLUME@NAME`.
pub(super) fn split(text: &str) -> Result<(VolumeName, String)> {
    let rule = || NameError {
        what: "snapshot",
        text: text.to_owned(),
        rule: "a snapshot of a volume is VOLUME@NAME",
    };
    let (volume, name) = text.split_once('@').ok_or_else(rule)?;
    Ok((volume.parse()?, name.to_owned()))
}

fn show(volume: &str, found: storage::Snapshot) -> Snapshot {
    let foreign = found.record.is_none();
    // Of a record that can't be read, the snapshot is as good as any.
    let record = found.record.and_then(|text| record::read::<SnapshotRecord>(Some(&text)).ok());
    Snapshot {
        volume: volume.to_owned(),
        name: found.name,
        created: record.as_ref().map_or(found.created, |record| record.created),
        message: record.and_then(|record| record.message),
        protected: found.held,
        foreign,
        used: None,
    }
}

fn listed_paths(volumes: &BTreeSet<VolumeName>, name: &str) -> String {
    let paths: Vec<String> = volumes.iter().map(|volume| path(volume.as_str(), name)).collect();
    paths.join(", ")
}

/// The error of a storage call on a snapshot.
pub(super) fn failed(
    verb: &'static str,
    volume: &VolumeName,
    name: &str,
) -> impl FnOnce(storage::Error) -> Error {
    let name = path(volume.as_str(), name);
    move |error| match error {
        storage::Error::NotFound(_) => Error::NotFound { kind: Kind::Snapshot, name },
        error => Error::storage(verb, format!("snapshot {name}"))(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_were_counted_count() {
        for (name, expected) in [
            ("v0", Some(0)),
            ("v17", Some(17)),
            ("v", None),
            ("v01", None),
            ("v+1", None),
            ("w1", None),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
    }

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        let (volume, name) = split("db@v0").unwrap();
        assert_eq!((volume.as_str(), name.as_str()), ("db", "v0"));
        for bad in ["db", "@v0", "a/b@v0"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
