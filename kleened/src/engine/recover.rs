//! The start: reading the records, replaying the journal, finding what runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use kleened_api::{Id, Timestamp, VolumeName};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::catalogue::{Catalogue, ContainerEntry, Run};
use super::exec::Execs;
use super::journal::{Intent, Journal};
use super::lock::Locks;
use super::operation::Operations;
use super::record::{self, ContainerRecord, ImageRecord};
use super::{Engine, log_failure, notice};
use crate::config::Config;
use crate::error::{Error, Result, one_line};
use crate::platform::{self, Platform, Running};
use crate::storage::{Area, Dataset, DatasetPath, Driver};

impl Engine {
    /// The engine over what is there: every verb that a crash left half done is at one of its ends,
    /// every container that runs is watched, and those that are to start with the daemon are being
    /// started. Every volume has its name, and its record is being read. Nothing else changed.
    ///
    /// Blocks, on a thread of the runtime on which what is detached is to run.
    ///
    /// # Errors
    ///
    /// The storage or the platform can't be read. What exists is never guessed at.
    pub fn open(
        config: &Config,
        storage: Box<dyn Driver>,
        platform: Box<dyn Platform>,
    ) -> Result<Arc<Self>> {
        let root = config.root.clone();
        make_directory(&root.join("log"))?;
        let journal = Journal::open(&root.join("journal"))
            .map_err(Error::io("open the journal in", root.display()))?;
        let catalogue = read_all(&*storage)?;
        let engine = Arc::new(Self {
            root,
            storage,
            platform,
            settings: RwLock::new(config.into()),
            catalogue: Mutex::new(catalogue),
            reading: watch::Sender::default(),
            locks: Locks::default(),
            journal,
            operations: Operations::default(),
            execs: Execs::default(),
            changes: TaskTracker::new(),
            runtime: Handle::current(),
        });
        let unsettled = engine.replay()?;
        engine.clear_scratch(&unsettled)?;
        engine.settle_names()?;
        engine.miss_volumes();
        engine.find_running()?;
        engine.forget_unknown();
        engine.remove_orphaned_logs();
        engine.watch_storage();
        engine.read_rest();
        engine.start_on_startup();
        Ok(engine)
    }

    /// Every verb that the journal knows is at one of its ends, or the volumes that it is about can't be
    /// used. The answer is what it must find again then.
    fn replay(&self) -> Result<Vec<DatasetPath>> {
        let mut unsettled = Vec::new();
        let left = self.journal.left();
        let mut left = left.map_err(Error::io("read the journal in", self.root.display()))?;
        // A volume has to be in its place before it can be taken back.
        left.sort_by_key(|(intent, _)| !matches!(intent, Intent::Populate { .. }));
        for (intent, entry) in left {
            tracing::warn!("finishing what was cut off: {intent:?}");
            let replayed = match &intent {
                Intent::CreateContainer { id, volumes } => self.replay_create(id, volumes),
                Intent::DiscardContainer { id, volumes } => self.replay_discard(id, volumes),
                Intent::Populate { volume, fresh, old } => self.replay_populate(volume, fresh, old),
                Intent::Attach { container, mount } => self.replay_attach(container, mount),
                Intent::Detach { container, mount } => self.replay_detach(container, mount),
                Intent::CreateImage { id, snapshot } => self.replay_create_image(id, snapshot),
                Intent::UpdateImage { id } => self.end_update(id),
                Intent::CloneVolume { from, snapshot } => from
                    .parse()
                    .map_err(Error::from)
                    .and_then(|from| self.replay_clone(&from, snapshot)),
            };
            if let Err(error) = replayed {
                tracing::error!("cannot finish {intent:?}: {}", one_line(&error));
                match &intent {
                    Intent::CreateContainer { volumes, .. }
                    | Intent::DiscardContainer { volumes, .. } => self.unsettle_left(volumes)?,
                    Intent::Populate { volume, fresh, old } => {
                        unsettled.extend([fresh, old].map(DatasetPath::scratch));
                        self.unsettle(&volume.parse()?);
                    }
                    Intent::Attach { mount, .. } | Intent::Detach { mount, .. } => {
                        self.unsettle_left(std::slice::from_ref(&mount.source))?;
                    }
                    Intent::CreateImage { .. }
                    | Intent::UpdateImage { .. }
                    | Intent::CloneVolume { .. } => {}
                }
                continue;
            }
            entry.done().map_err(Error::io("write the journal in", self.root.display()))?;
        }
        Ok(unsettled)
    }

    fn replay_create(&self, id: &Id, volumes: &[String]) -> Result<()> {
        // The container is the last thing that is made: where it is, all is.
        if self.catalogue().containers.contains_key(id) {
            return Ok(());
        }
        if !self.catalogue().unreadable.is_empty() {
            // It may be one of them, or one of them may name the volumes.
            tracing::warn!(
                "these volumes stay, because some containers' records can't be read: {}",
                volumes.join(", ")
            );
            return Ok(());
        }
        let names: Vec<VolumeName> =
            volumes.iter().map(|name| name.parse()).collect::<std::result::Result<_, _>>()?;
        self.take_back_volumes(id, &names)
    }

    fn replay_discard(&self, id: &Id, volumes: &[String]) -> Result<()> {
        {
            let mut catalogue = self.catalogue();
            catalogue.containers.remove(id);
            catalogue.unreadable.retain(|name| name != id.as_str());
        }
        self.discard_container(id)?;
        self.replay_create(id, volumes)
    }

    fn replay_populate(&self, volume: &str, fresh: &Id, old: &Id) -> Result<()> {
        let name: VolumeName = volume.parse()?;
        let path = DatasetPath::volume(&name);
        let fail = || Error::storage("fill volume", &name);
        let (fresh, old) = (DatasetPath::scratch(fresh), DatasetPath::scratch(old));
        // Where none of the three is, the volume was removed after it was filled.
        let mut there = false;
        for dataset in [&path, &fresh, &old] {
            there |= self.storage.get(dataset).map_err(fail())?.is_some();
        }
        if !there {
            return Ok(());
        }
        self.settle_populate(&path, &fresh, &old).map_err(fail())?;
        if let Some(dataset) = self.storage.get(&path).map_err(fail())? {
            let mut catalogue = self.catalogue();
            catalogue.unread.remove(name.as_str());
            catalogue.volumes.insert(name.to_string(), notice::entry(&dataset));
        }
        Ok(())
    }

    /// Nothing is left of what was being made or taken away, but for `unsettled`, and what somebody has
    /// in use: that goes at the next start.
    fn clear_scratch(&self, unsettled: &[DatasetPath]) -> Result<()> {
        let fail = || Error::storage("clear", Area::Scratch.as_str());
        for dataset in self.storage.list(Area::Scratch).map_err(fail())? {
            if !unsettled.contains(&dataset.path) {
                let path = &dataset.path;
                log_failure(format_args!("remove {path}"), self.storage.destroy(path));
            }
        }
        Ok(())
    }

    /// Nothing is left of what ran in containers that are gone.
    fn forget_unknown(&self) {
        let known = |id: &Id| {
            let catalogue = self.catalogue();
            catalogue.containers.contains_key(id)
                || catalogue.unreadable.iter().any(|name| name == id.as_str())
        };
        log_failure("forget containers that are gone", self.platform.sweep(&known));
    }

    /// The catalogue says of every container what the kernel says.
    fn find_running(self: &Arc<Self>) -> Result<()> {
        let fail = || Error::platform("find", "running containers");
        let mut running: BTreeMap<Id, Running> = self
            .platform
            .running()
            .map_err(fail())?
            .into_iter()
            .map(|running| (running.container.clone(), running))
            .collect();
        let known: Vec<(Id, bool)> = self
            .catalogue()
            .containers
            .iter()
            .map(|(id, entry)| (id.clone(), entry.record.auto_remove))
            .collect();
        for (id, auto_remove) in known {
            if let Some(running) = running.remove(&id) {
                self.note_running(running);
                continue;
            }
            let lost = self.platform.is_lost(&id).map_err(fail())?;
            let root = self.storage.mountpoint(&DatasetPath::container(&id));
            match self.platform.release(&id, &root) {
                // Its supervisor is about to say that it ended.
                Err(platform::Error::Running(_)) => {
                    let (instance, started) = (id.clone(), Timestamp::now());
                    self.note_running(Running { container: id, instance, jid: 0, started });
                    continue;
                }
                released => released.map_err(fail())?,
            }
            let exited = self.platform.exited(&id).map_err(fail())?;
            let ended = exited.is_some() || lost;
            if let Some(entry) = self.catalogue().containers.get(&id) {
                entry.run.send_replace(Run::Stopped(exited));
            }
            if auto_remove && ended {
                log_failure(format_args!("remove container {id}"), self.destroy_container(&id));
            }
        }
        for id in running.into_keys() {
            tracing::error!(
                "container {id} runs, and no record of it can be read: it is left alone"
            );
            let mut catalogue = self.catalogue();
            if !catalogue.unreadable.iter().any(|name| name == id.as_str()) {
                catalogue.unreadable.push(id.to_string());
            }
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("make", path.display()))
}

/// Finds what there is: the names of the volumes and the records of the rest, the areas side by side.
fn read_all(storage: &dyn Driver) -> Result<Catalogue> {
    let list = |area: Area| storage.list(area).map_err(Error::storage("read", area.as_str()));
    let names =
        |area: Area| storage.names_at_open(area).map_err(Error::storage("list", area.as_str()));
    let (volumes, containers, images) = thread::scope(|scope| {
        let volumes = scope.spawn(|| names(Area::Volumes));
        let containers = scope.spawn(|| list(Area::Container));
        let images = list(Area::Image);
        (volumes.join(), containers.join(), images)
    });
    let volumes = volumes.unwrap_or(Err(Error::Failed))?;
    let containers = containers.unwrap_or(Err(Error::Failed))?;
    let unread = volumes.iter().filter_map(DatasetPath::volume_name).map(String::from).collect();
    let mut catalogue = Catalogue { unread, ..Catalogue::default() };
    for dataset in images? {
        if let Some((id, record)) = read::<ImageRecord>(&dataset) {
            catalogue.images.insert(id, record);
        }
    }
    for dataset in containers {
        match read::<ContainerRecord>(&dataset) {
            Some((id, record)) => {
                let entry = ContainerEntry::new(record, true, Run::Stopped(None));
                catalogue.containers.insert(id, entry);
            }
            None => catalogue.unreadable.push(dataset.path.name().to_owned()),
        }
    }
    Ok(catalogue)
}

/// The id and record, or a line in the log: what can't be read is left alone.
fn read<T: DeserializeOwned>(dataset: &Dataset) -> Option<(Id, T)> {
    let id = dataset
        .path
        .name()
        .parse()
        .map_err(|error| tracing::error!("{}: {error}", dataset.path))
        .ok()?;
    match record::read(dataset.record.as_deref()) {
        Ok(record) => Some((id, record)),
        Err(error) => {
            tracing::error!("{} is left alone: {error}", dataset.path);
            None
        }
    }
}
