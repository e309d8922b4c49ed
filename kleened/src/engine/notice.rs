//! What others do to datasets: reading what there is after a start, and noticing what changes behind
//! the daemon's back.
//!
//! Names are known at once after a start; records are read in the background, or earlier by a verb
//! that needs one. What the storage says later is compared with what is known, under the volume's
//! lock: what is gone is reported and not made again, what appears is shown.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kleened_api::{Timestamp, VolumeName};

use super::catalogue::{ContainerEntry, Fault, VolumeEntry};
use super::lock::{Access, Key};
use super::record::{self, Unreadable, VolumeRecord};
use super::{Engine, log_failure};
use crate::error::{Error, Result, one_line};
use crate::storage::{self, Area, Dataset, DatasetPath, Event, Told};

/// How many threads read records after a start, at most.
const READERS: usize = 8;

/// How far the records are that were there at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Being read.
    #[default]
    Begun,
    /// All were read.
    Done,
    /// The daemon stops before all were.
    Cut,
}

impl Engine {
    /// The record of the volume, where there is one, was read. A repeat is safe.
    ///
    /// # Errors
    ///
    /// It can't be read now; nothing is known about the volume but its name.
    pub(super) fn know(&self, name: &str) -> Result<()> {
        if !self.catalogue().unread.contains(name) {
            return Ok(());
        }
        let path = DatasetPath::volume(&name.parse()?);
        let dataset = self.storage.get(&path).map_err(Error::storage("read volume", name))?;
        // Of a name without a dataset, somebody must be told.
        let found = dataset.map_or_else(|| self.gone(name), |dataset| entry(&dataset));
        let mut catalogue = self.catalogue();
        // Unless somebody else knew it first, and may have changed it since.
        if catalogue.unread.remove(name) {
            catalogue.volumes.insert(name.to_owned(), found);
        }
        Ok(())
    }

    /// A volume of which nothing is known but that its dataset is gone.
    fn gone(&self, name: &str) -> VolumeEntry {
        let fault = self.fault_of_gone(name);
        tracing::error!("volume {name}: {fault}");
        VolumeEntry { fault: Some(fault), ..unknown() }
    }

    fn fault_of_gone(&self, name: &str) -> Fault {
        let dataset = name.parse().map(|name| self.storage.dataset(&DatasetPath::volume(&name)));
        Fault::Gone(format!(
            "its dataset {} is gone: it was destroyed or renamed, and not by kleened; put it back, or \
             forget the volume with 'klee volume rm {name}'",
            dataset.unwrap_or_default()
        ))
    }

    /// The volumes that containers name and that are not there are known as gone: nobody may take them
    /// for new ones.
    pub(super) fn miss_volumes(&self) {
        let missing: BTreeSet<String> = {
            let catalogue = self.catalogue();
            let named = catalogue.containers.values().flat_map(ContainerEntry::volumes);
            let named = named.map(|mount| mount.source.clone());
            named.filter(|name| catalogue.contains_volume(name).is_err()).collect()
        };
        for name in missing {
            let gone = self.gone(&name);
            self.catalogue().volumes.insert(name, gone);
        }
    }

    /// Returns when the records of all volumes were read that there were at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Stopping`] before.
    pub(super) async fn know_all(&self) -> Result<()> {
        let mut reading = self.reading.subscribe();
        let ended = reading.wait_for(|reading| *reading != Reading::Begun).await;
        match ended.as_deref() {
            Ok(Reading::Done) => Ok(()),
            _ => Err(Error::Stopping),
        }
    }

    /// The records of all volumes are being read, on several threads.
    pub(super) fn read_rest(self: &Arc<Self>) {
        let rest = self.catalogue().unread.clone();
        if rest.is_empty() {
            self.reading.send_replace(Reading::Done);
            return;
        }
        let engine = Arc::clone(self);
        self.runtime.spawn_blocking(move || {
            // Beside them somebody is answered.
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let threads = (2 * processors).min(READERS).min(rest.len());
            let rest = Mutex::new(rest.into_iter());
            let next = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some(name) = next().filter(|_| !engine.changes.is_closed()) {
                            engine.know_or_say(&name);
                        }
                    });
                }
            });
            let all = engine.catalogue().unread.is_empty();
            engine.reading.send_replace(if all { Reading::Done } else { Reading::Cut });
        });
    }

    /// As [`know`](Self::know), where nobody waits for the answer.
    fn know_or_say(&self, name: &str) {
        let Err(error) = self.know(name) else { return };
        tracing::error!("{}", one_line(&error));
        let mut catalogue = self.catalogue();
        if catalogue.unread.remove(name) {
            let fault = Some(Fault::Unusable(one_line(&error)));
            catalogue.volumes.insert(name.to_owned(), VolumeEntry { fault, ..unknown() });
        }
    }

    /// What is known of the volume is what its dataset says now. The caller holds its lock.
    ///
    /// # Errors
    ///
    /// The dataset can't be looked at; then what was known stays.
    pub(super) fn notice(&self, name: &VolumeName) -> Result<()> {
        self.know(name.as_str())?;
        if self.catalogue().is_unsettled(name.as_str()) {
            return Ok(());
        }
        let path = DatasetPath::volume(name);
        let now = self.storage.get(&path).map_err(Error::storage("look at volume", name))?;
        let dataset = self.storage.dataset(&path);
        let mut catalogue = self.catalogue();
        let known = catalogue.volumes.get_mut(name.as_str());
        match (now.map(|now| entry(&now)), known) {
            (None, None) => {}
            // It was never a volume.
            (None, Some(VolumeEntry { fault: Some(Fault::Foreign(_)), .. })) => {
                catalogue.volumes.remove(name.as_str());
            }
            (None, Some(known)) => {
                if !matches!(known.fault, Some(Fault::Gone(_))) {
                    let fault = self.fault_of_gone(name.as_str());
                    tracing::error!("volume {name}: {fault}");
                    known.fault = Some(fault);
                }
            }
            (Some(now), Some(known)) => {
                // Of what can't be read nothing but the reason is known.
                let same =
                    now.fault == known.fault && (now.record == known.record || now.fault.is_some());
                if !same {
                    tracing::warn!(
                        "volume {name}: the record of {dataset} was changed, and not by kleened"
                    );
                    *known = VolumeEntry { initializing: known.initializing, ..now };
                }
            }
            (Some(now), None) => {
                tracing::warn!("volume {name}: {dataset} appeared, which was not kleened's doing");
                catalogue.volumes.insert(name.to_string(), now);
            }
        }
        Ok(())
    }

    /// Nobody can use the volume before the next start, which settles what was begun with it.
    pub(super) fn unsettle(&self, name: &VolumeName) {
        let mut catalogue = self.catalogue();
        catalogue.unread.remove(name.as_str());
        let entry = catalogue.volumes.entry(name.to_string()).or_insert_with(unknown);
        entry.fault = Some(Fault::Unsettled);
    }

    /// As [`unsettle`](Self::unsettle), those of the volumes that there may be.
    pub(super) fn unsettle_left(&self, names: &[String]) -> Result<()> {
        for name in names {
            let name = name.parse()?;
            if !matches!(self.storage.get(&DatasetPath::volume(&name)), Ok(None)) {
                self.unsettle(&name);
            }
        }
        Ok(())
    }

    /// That there is a volume of that name which can be mounted. The caller holds its lock.
    pub(super) fn usable(&self, name: &VolumeName) -> Result<()> {
        self.know(name.as_str())?;
        let faulty = self.catalogue().volume(name.as_str())?.fault.is_some();
        if faulty {
            // It may have been put right meanwhile.
            self.notice(name)?;
        } else {
            match self.storage.mount(&DatasetPath::volume(name)) {
                Ok(()) => return Ok(()),
                Err(storage::Error::NotFound(_)) => self.notice(name)?,
                Err(error) => return Err(Error::storage("mount volume", name)(error)),
            }
        }
        match &self.catalogue().volume(name.as_str())?.fault {
            Some(fault) => Err(Error::Invalid(format!("volume {name} cannot be used: {fault}"))),
            None => Ok(()),
        }
    }

    /// What happens to datasets is noticed from now on, where the storage driver says it.
    pub(super) fn watch_storage(self: &Arc<Self>) {
        if self.storage.watch().is_none() {
            return;
        }
        let engine = Arc::clone(self);
        // It ends with the process: it may be waiting in the kernel.
        let watching = thread::Builder::new().name("watch".into()).spawn(move || {
            while let Some(watch) = engine.storage.watch() {
                match watch.next() {
                    Ok(event) => engine.happened(event),
                    Err(error) => {
                        log_failure::<(), _>("watch the storage", Err(error));
                        return;
                    }
                }
            }
        });
        log_failure("watch the storage", watching);
    }

    fn happened(self: &Arc<Self>, event: Event) {
        match event {
            Event::Appeared(path) => self.compare(&path, |engine, path| !engine.knows(path)),
            Event::Vanished(path) => self.compare(&path, Self::knows),
            Event::Changed { path, what, record } => {
                // There only the daemon works, and its bookkeeping is no news.
                if path.area() != Area::Scratch && !what.contains("org.kleene:") {
                    tracing::info!("{}: {what}", self.storage.dataset(&path));
                }
                match record {
                    Told::Same => {}
                    Told::Is(record) => {
                        self.compare(&path, move |engine, path| {
                            !engine.knows_record(path, &record)
                        });
                    }
                    Told::Nothing => self.compare(&path, |_, _| true),
                }
            }
            Event::Lost => {
                let engine = Arc::clone(self);
                self.runtime.spawn_blocking(move || {
                    log_failure("compare the volumes with their datasets", engine.compare_all());
                });
            }
        }
    }

    /// What is known and what there is are compared, volume by volume.
    fn compare_all(self: &Arc<Self>) -> Result<()> {
        let paths = self.storage.names(Area::Volumes);
        let paths = paths.map_err(Error::storage("list", Area::Volumes.as_str()))?;
        let there = paths.iter().filter_map(DatasetPath::volume_name).map(String::from);
        let there: BTreeSet<String> = there.collect();
        let known = self.catalogue().every_volume().collect();
        for name in there.symmetric_difference(&known) {
            self.compare(&DatasetPath::volume(&name.parse()?), |_, _| true);
        }
        Ok(())
    }

    /// The dataset is looked at, once nothing else is done with its object, if what happened is `news` then
    /// and now.
    fn compare(
        self: &Arc<Self>,
        path: &DatasetPath,
        news: impl Fn(&Self, &DatasetPath) -> bool + Send + 'static,
    ) {
        let Some(key) = key(path).filter(|_| news(self, path)) else { return };
        let (engine, path) = (Arc::clone(self), path.clone());
        self.runtime.spawn(async move {
            let held = engine.locks.acquire(vec![(key, Access::Exclusive)]).await;
            // The daemon itself may have done it, and knows by now.
            if news(&engine, &path) {
                let looked = engine.look(move |engine| {
                    let _held = held;
                    match path.volume_name() {
                        Some(name) => engine.notice(&name),
                        None => engine.report(&path),
                    }
                });
                log_failure("look at a dataset", looked.await.and_then(|looked| looked));
            }
        });
    }

    /// Whether there is such a dataset, as far as is known.
    fn knows(&self, path: &DatasetPath) -> bool {
        let catalogue = self.catalogue();
        match key(path) {
            Some(Key::Volume(name)) => catalogue.has_dataset(&name),
            Some(Key::Image(id)) => catalogue.images.contains_key(&id),
            Some(Key::Container(id)) => {
                catalogue.containers.get(&id).is_some_and(|entry| entry.ready)
            }
            Some(Key::ImageNames) | None => false,
        }
    }

    /// Whether that is the record as far as is known; of an image or container nobody asks.
    fn knows_record(&self, path: &DatasetPath, record: &str) -> bool {
        let catalogue = self.catalogue();
        let same = |known: &VolumeEntry| {
            known.fault.is_none()
                && record::read::<VolumeRecord>(Some(record)).is_ok_and(|now| now == known.record)
        };
        path.volume_name().is_none_or(|name| catalogue.volumes.get(name.as_str()).is_some_and(same))
    }

    /// An image or container of which the dataset is gone is reported; it can't be used any more.
    fn report(&self, path: &DatasetPath) -> Result<()> {
        let there = self.storage.get(path).map_err(Error::storage("look at", path))?;
        if there.is_none() && self.knows(path) {
            let dataset = self.storage.dataset(path);
            tracing::error!("{dataset} is gone: it was destroyed or renamed, and not by kleened");
        }
        Ok(())
    }
}

/// What is locked by whoever changes the dataset.
fn key(path: &DatasetPath) -> Option<Key> {
    match path.area() {
        Area::Volumes => path.volume_name().map(|name| Key::Volume(name.into())),
        Area::Image => path.name().parse().ok().map(Key::Image),
        Area::Container => path.name().parse().ok().map(Key::Container),
        Area::Scratch => None,
    }
}

/// A volume of which nothing is known.
fn unknown() -> VolumeEntry {
    VolumeRecord::new(Timestamp::now()).into()
}

/// A volume whose record can't be read is shown, and can be neither used nor removed.
pub(super) fn entry(dataset: &Dataset) -> VolumeEntry {
    match record::read::<VolumeRecord>(dataset.record.as_deref()) {
        Ok(record) => record.into(),
        Err(error) => {
            tracing::error!("{} is left alone: {error}", dataset.path);
            let fault = match error {
                Unreadable::Missing => Fault::Foreign(error.to_string()),
                _ => Fault::Unusable(error.to_string()),
            };
            VolumeEntry { fault: Some(fault), ..unknown() }
        }
    }
}
