//! Datasets of ZFS: one for each volume, image and container.
//!
//! ```text
//! zroot/kleene                          the root: the dataset that is mounted at the root's directory
//! zroot/kleene/volumes/my-vol           a dataset, mounted at ROOT/volumes/my-vol
//! zroot/kleene/volumes/my-vol@monday    a snapshot
//! zroot/kleene/projects/web/volumes/db  a dataset of a project
//! ```
//!
//! A dataset's record is a user property of it, see `record`. It is in the call that creates the dataset,
//! and so are its limits and other properties. The kernel makes each change whole but that one, see
//! `intent`. What goes with a change in the tree of files, the mount and its directory, [`open`] sets right
//! after a crash. Nothing is kept in memory but who works on what.

mod adopt;
mod changed;
mod destroy;
mod intent;
mod line;
mod lock;
mod mount;
mod record;
mod snapshot;
mod source;
mod stream;
mod threads;
mod usage;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kleened_api::ProjectName;
use kleened_api::name::is_name;
use kleened_sys::zfs::{self as sys, Kind, NAME_MAX, NvList, Source};

use super::fault::point;
use super::{
    Adopt, Area, Capabilities, Dataset, DatasetPath, DatasetSpec, Driver, Error, Folder, PROJECTS,
    Result, SnapshotPath, Sources, Streams, Usage, Watch,
};
use lock::Locks;
use record::{Pending, RECORD};
use threads::on_threads;
use usage::Measured;
use watch::Watched;

/// The driver. See the [module](self).
#[derive(Debug)]
pub struct Zfs {
    zfs: &'static sys::Zfs,
    /// The root's dataset.
    root: String,
    /// Where it is mounted.
    mountpoint: PathBuf,
    locks: Locks,
    /// That streams are to end.
    stop: AtomicBool,
    watched: Option<Mutex<Watched>>,
    /// The volumes that there were when the root was opened, until somebody asks for them.
    first: Mutex<Option<Vec<DatasetPath>>>,
    measured: Mutex<Option<Measured>>,
    /// Held while datasets and their clones change places.
    families: Mutex<()>,
}

/// Opens the root: the dataset that is mounted at that directory. What a crash left half done is finished
/// or taken back, and what is not mounted is.
///
/// # Errors
///
/// [`Error::Unsupported`] where there is no ZFS, no dataset, or a root of the `dir` driver; [`Error::Io`].
pub fn open(root: &Path) -> Result<Box<dyn Driver>> {
    let zfs = sys::Zfs::load().map_err(|error| Error::Unsupported(error.to_string()))?;
    if root.join(".kleene").exists() {
        let text = format!("{} is a root of the storage driver 'dir'", root.display());
        return Err(Error::Unsupported(text));
    }
    let Some(dataset) = mount::root(zfs, root)? else {
        let text = format!(
            "no ZFS dataset is mounted at {}: make a root with 'kleened init'",
            root.display()
        );
        return Err(Error::Unsupported(text));
    };
    let mountpoint = root.to_owned();
    let driver = Zfs {
        zfs,
        root: dataset,
        mountpoint,
        locks: Locks::default(),
        stop: AtomicBool::new(false),
        watched: watch::begin(zfs),
        first: Mutex::default(),
        measured: Mutex::default(),
        families: Mutex::default(),
    };
    driver.make_intents()?;
    driver.make_areas()?;
    driver.resume()?;
    driver.recover()?;
    Ok(Box::new(driver))
}

/// Why what is in a dataset can't be read, and what to do.
const NO_KEY: &str = "its key is not loaded: zfs load-key first";

/// What the names in the scratch area begin with of what is being received.
const IMPORT: &str = "import-";

/// What is read of a dataset.
#[derive(Debug)]
struct Found {
    record: Option<String>,
}

impl Zfs {
    fn folder_name(&self, folder: &Folder) -> String {
        format!("{}/{folder}", self.root)
    }

    /// What an area is made of, by name.
    fn folders(&self, area: Area) -> Result<Vec<Folder>> {
        let mut folders = vec![Folder::from(area)];
        if area == Area::Volumes {
            let name = format!("{}/{PROJECTS}", self.root);
            let children =
                self.zfs.children(&name).map_err(|error| Error::io("list", &name, error))?;
            let project = |child: &String| child.rsplit('/').next()?.parse::<ProjectName>().ok();
            let mut projects: Vec<_> = children.iter().filter_map(project).collect();
            projects.retain(|project| !project.is_default());
            projects.sort_unstable();
            folders.extend(projects.iter().map(Folder::volumes));
        }
        Ok(folders)
    }

    /// The full name of a dataset.
    fn name(&self, path: &DatasetPath) -> Result<String> {
        let name = format!("{}/{path}", self.root);
        self.check_length(&name, path.name().len())?;
        Ok(name)
    }

    /// The full name of a snapshot.
    fn snapshot_name(&self, snapshot: &SnapshotPath) -> Result<String> {
        check_name(&snapshot.name)?;
        let name = format!("{}/{snapshot}", self.root);
        self.check_length(&name, snapshot.name.len())?;
        Ok(name)
    }

    fn check_length(&self, name: &str, last: usize) -> Result<()> {
        if name.len() <= NAME_MAX {
            return Ok(());
        }
        let room = NAME_MAX.saturating_sub(name.len() - last);
        Err(Error::Invalid(format!(
            "the name is too long: ZFS takes {NAME_MAX} bytes in all, and {name} has {}; use a name of \
             at most {room} bytes",
            name.len()
        )))
    }

    /// Why a dataset is not found: there is none, or not even its area, and then nothing is known.
    fn missing(&self, path: &DatasetPath) -> Error {
        // That a project has nothing here is known where there are projects.
        let area = match path.folder().project() {
            Some(_) => format!("{}/{PROJECTS}", self.root),
            None => self.folder_name(path.folder()),
        };
        match self.zfs.properties(&area, &["type"]) {
            Ok(_) => Error::NotFound(path.to_string()),
            Err(error) => Error::Io { verb: "find", object: area, source: error.into() },
        }
    }

    /// What the kernel's error means for a dataset.
    fn failed(&self, verb: &'static str, path: &DatasetPath, error: sys::Error) -> Error {
        match error.kind() {
            Kind::NotFound => self.missing(path),
            Kind::Exists => Error::Exists(path.to_string()),
            _ => failed(verb, path, error),
        }
    }

    /// `None` where there is certainly none.
    fn look(&self, path: &DatasetPath) -> Result<Option<Found>> {
        let name = self.name(path)?;
        let read = |wanted: &[&str]| match self.zfs.properties(&name, wanted) {
            Ok(properties) => Ok(Some(properties)),
            Err(error) => match self.failed("read", path, error) {
                Error::NotFound(_) => Ok(None),
                other => Err(other),
            },
        };
        // What is inherited comes from above. Where it seems to come from elsewhere, the dataset was renamed
        // while it was read.
        let mut properties = loop {
            let Some(found) = read(&[RECORD])? else { return Ok(None) };
            match found.get(RECORD).map(|property| &property.source) {
                Some(Source::Inherited(from)) if !is_below(&name, from) => {}
                _ => break found,
            }
        };
        if properties.own_text(RECORD).is_some_and(record::has_parts) {
            // All of them from one moment.
            let Some(all) = read(&[])? else { return Ok(None) };
            properties = all;
        }
        Ok(Some(Found { record: record::join(|name| properties.own_text(name)) }))
    }

    /// As [`look`](Self::look); one that is just being made is waited for, as it has no record yet.
    fn look_settled(&self, path: &DatasetPath) -> Result<Option<Found>> {
        match self.look(path)? {
            Some(found) if found.record.is_none() => {
                let _held = self.locks.hold(&[path]);
                self.look(path)
            }
            found => Ok(found),
        }
    }

    /// What is read of a dataset that the driver may change. The caller holds its lock.
    fn ours(&self, path: &DatasetPath) -> Result<Found> {
        let found = self.look(path)?.ok_or_else(|| Error::NotFound(path.to_string()))?;
        if found.record.is_some() {
            return Ok(found);
        }
        Err(Error::Unsupported(format!(
            "{path} was not made by this program: its dataset, {}/{path}, has no {RECORD} of its own",
            self.root
        )))
    }

    /// The properties that a new dataset gets.
    fn properties(&self, spec: &DatasetSpec) -> Result<NvList> {
        for name in spec.properties.keys() {
            let ours = ["mountpoint", "canmount"].contains(&name.as_str());
            if ours || name.starts_with("org.kleene:") {
                return Err(Error::Invalid(format!("the property {name} is kleened's own")));
            }
        }
        let invalid = |error: sys::Error| Error::Invalid(error.to_string());
        let pool = sys::pool_of(&self.root);
        let given = spec.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut list = match spec.properties.is_empty() {
            true => NvList::new(),
            false => self.zfs.check_properties(pool, given),
        }
        .map_err(invalid)?;
        let limits = [("refquota", spec.size), ("refreservation", spec.reserve)];
        for (name, value) in limits {
            if let Some(bytes) = value {
                list.put_number(name, bytes).map_err(invalid)?;
            }
        }
        record::put(&mut list, &spec.record).map_err(invalid)?;
        Ok(list)
    }

    /// Makes a dataset by `make`, mounted and as its spec says; or there is none. The caller holds its lock.
    fn make(
        &self,
        path: &DatasetPath,
        spec: &DatasetSpec,
        make: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.make_project(path.folder())?;
        // Whether its area is there the call itself tells.
        let there = self.zfs.exists(&self.name(path)?);
        if there.map_err(|error| failed("look for", path, error))? {
            return Err(Error::Exists(path.to_string()));
        }
        let pending = Pending::new(spec.owner, spec.mode);
        self.intend(path, pending)?;
        if let Err(error) = make() {
            self.done(path);
            return Err(error);
        }
        point();
        let finished = self.mount_at_home(path).and_then(|()| match pending {
            Some(pending) => self.give(path, pending),
            None => Ok(()),
        });
        if let Err(error) = finished {
            match self.discard(path) {
                Ok(()) => self.done(path),
                Err(error) => tracing::warn!(%path, ?error, "cannot take back what was made"),
            }
            return Err(error);
        }
        self.done(path);
        Ok(())
    }

    /// Why a dataset with that spec can't be made.
    fn not_made(&self, verb: &'static str, path: &DatasetPath, error: sys::Error) -> Error {
        match error.kind() {
            Kind::Invalid | Kind::TooLarge => Error::Invalid(error.to_string()),
            // There is no parent: the area is missing.
            Kind::NotFound => {
                let object = self.folder_name(path.folder());
                Error::Io { verb: "find", object, source: error.into() }
            }
            _ => self.failed(verb, path, error),
        }
    }

    /// The dataset paths of an area's children that have names of datasets.
    fn children(&self, area: Area) -> Result<Vec<DatasetPath>> {
        let mut paths = Vec::new();
        for folder in self.folders(area)? {
            paths.extend(self.children_in(&folder)?);
        }
        Ok(paths)
    }

    fn children_in(&self, folder: &Folder) -> Result<Vec<DatasetPath>> {
        let name = self.folder_name(folder);
        let children = match self.zfs.children(&name) {
            // The project went meanwhile.
            Err(error) if error.kind() == Kind::NotFound && folder.project().is_some() => {
                Vec::new()
            }
            other => other.map_err(|error| Error::io("list", &name, error))?,
        };
        let path = |child: String| folder.dataset(child.rsplit('/').next()?).ok();
        let mut paths: Vec<DatasetPath> = children.into_iter().filter_map(path).collect();
        paths.sort_unstable();
        Ok(paths)
    }
}

/// What the kernel's error means for an object of which it does not say that it is or is not there.
fn failed(verb: &'static str, object: impl fmt::Display, error: sys::Error) -> Error {
    match error.kind() {
        Kind::Busy => Error::Busy(object.to_string()),
        Kind::NameTooLong | Kind::TooLarge => Error::Invalid(error.to_string()),
        Kind::Unsupported => Error::Unsupported(error.to_string()),
        _ => Error::io(verb, object, error),
    }
}

/// Whether the dataset `name` is somewhere below `above`.
fn is_below(name: &str, above: &str) -> bool {
    name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{name:?}: a snapshot's name follows the rule of volume names")))
}

impl Driver for Zfs {
    fn name(&self) -> &'static str {
        "zfs"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { clones_share_space: true, snapshots_are_atomic: true, usage_is_known: true }
    }

    fn mountpoint(&self, path: &DatasetPath) -> PathBuf {
        self.mountpoint.join(path.to_string())
    }

    fn dataset(&self, path: &DatasetPath) -> String {
        format!("{}/{path}", self.root)
    }

    fn create(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        let name = self.name(path)?;
        let properties = self.properties(spec)?;
        let _held = self.locks.hold(&[path]);
        self.make(path, spec, || {
            let made = self.zfs.create(&name, &properties);
            made.map_err(|error| self.not_made("make", path, error))
        })
    }

    fn get(&self, path: &DatasetPath) -> Result<Option<Dataset>> {
        let found = self.look_settled(path)?;
        Ok(found.map(|found| Dataset { path: path.clone(), record: found.record }))
    }

    fn list(&self, area: Area) -> Result<Vec<Dataset>> {
        let paths = self.children(area)?;
        let found = on_threads(&paths, |path| self.look_settled(path));
        let mut datasets = Vec::with_capacity(paths.len());
        for (path, found) in paths.into_iter().zip(found) {
            // `None` where it was destroyed meanwhile.
            datasets.extend(found?.map(|found| Dataset { path, record: found.record }));
        }
        Ok(datasets)
    }

    fn names(&self, area: Area) -> Result<Vec<DatasetPath>> {
        self.children(area)
    }

    fn names_at_open(&self, area: Area) -> Result<Vec<DatasetPath>> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        match first.take_if(|_| area == Area::Volumes) {
            // Who is not told of changes since has to look again.
            Some(paths) if self.watched.is_some() => Ok(paths),
            _ => self.names(area),
        }
    }

    fn mount(&self, path: &DatasetPath) -> Result<()> {
        let _held = self.locks.hold(&[path]);
        self.mount_at_home(path)
    }

    fn flush(&self, _: &DatasetPath) -> Result<()> {
        // Within a pool, what was changed first is on the disk first. Anything else would write it to the log
        // of intents, too.
        Ok(())
    }

    fn set(&self, path: &DatasetPath, record: &str) -> Result<()> {
        let _held = self.locks.hold(&[path]);
        self.ours(path)?;
        self.set_record(path, record)
    }

    fn destroy(&self, path: &DatasetPath) -> Result<bool> {
        let _held = self.locks.hold(&[path]);
        match self.ours(path) {
            Err(Error::NotFound(_)) => return Ok(false),
            other => other?,
        };
        let entangled = path.area() == Area::Volumes && self.is_entangled(path)?;
        self.unmount_for_good(path)?;
        point();
        let removed = match entangled {
            true => self.intend_text(path, line::DESTROY).and_then(|()| {
                let dissolved = self.dissolve_all(path);
                if dissolved.is_ok() {
                    self.remove_mountpoint(path);
                }
                self.done(path);
                dissolved
            }),
            false => self.remove(path),
        };
        if let Err(error) = removed {
            self.mount_again(path);
            return Err(error);
        }
        Ok(true)
    }

    fn rename(&self, from: &DatasetPath, to: &DatasetPath) -> Result<()> {
        let (old, new) = (self.name(from)?, self.name(to)?);
        let _held = self.locks.hold(&[from, to]);
        // Before anything is unmounted.
        self.ours(from)?;
        if self.look(to)?.is_some() {
            return Err(Error::Exists(to.to_string()));
        }
        self.make_project(to.folder())?;
        // To unmount writes what is not on the disk yet to the log of intents, and waits. A renaming waits for
        // the same, so that nothing is left to write after it; but what may be in use is asked first.
        let asks = from.area() != Area::Scratch;
        if asks {
            self.unmount(from)?;
            point();
        }
        if let Err(error) = self.zfs.rename(&old, &new) {
            self.mount_again(from);
            return Err(self.failed("rename", to, error));
        }
        point();
        let moved = if asks { Ok(()) } else { self.unmount_from(&new, from) };
        if let Err(error) = moved.and_then(|()| {
            point();
            self.mount_at_home(to)
        }) {
            match self.zfs.rename(&new, &old) {
                Ok(()) => self.mount_again(from),
                Err(error) => tracing::warn!(%to, %error, "cannot take back a renaming"),
            }
            return Err(error);
        }
        point();
        self.remove_mountpoint(from);
        Ok(())
    }

    fn usage(&self, path: &DatasetPath) -> Result<Usage> {
        self.measure(path)
    }

    fn usages(&self, paths: &[DatasetPath]) -> Result<Vec<Option<Usage>>> {
        self.measure_all(paths)
    }

    fn changed(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<BTreeMap<String, String>> {
        self.differing(path, spec)
    }

    fn interrupt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }

    fn adopt(&self) -> Option<&dyn Adopt> {
        Some(self)
    }

    fn sources(&self) -> Option<&dyn Sources> {
        Some(self)
    }

    fn watch(&self) -> Option<&dyn Watch> {
        self.watched.as_ref().map(|_| self as &dyn Watch)
    }
}
