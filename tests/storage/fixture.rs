//! An open driver on a root of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kleened::storage::{
    Area, DRIVERS, DatasetPath, DatasetSpec, Driver, DriverEntry, Error, Streams,
};

use crate::place::{Place, drivers};

pub(crate) struct Fixture {
    pub(crate) driver: Box<dyn Driver>,
    entry: DriverEntry,
    place: Place,
}

/// Runs the case on every driver that can run here.
pub(crate) fn each_driver(case: fn(&mut Fixture)) {
    for entry in drivers() {
        // Shown where the case fails.
        println!("driver {}", entry.name);
        let Some(place) = Place::of(entry.name, tempfile::tempdir().unwrap()) else { continue };
        let mut fixture = Fixture::on(entry, place);
        case(&mut fixture);
        fixture.nothing_is_left_over();
    }
}

impl Fixture {
    /// Of the driver of that name; `None` where it can't run here.
    pub(crate) fn of(name: &str, dir: tempfile::TempDir) -> Option<Self> {
        let entry = DRIVERS.iter().find(|entry| entry.name == name).unwrap();
        Some(Self::on(entry, Place::of(name, dir)?))
    }

    fn on(entry: &DriverEntry, place: Place) -> Self {
        let driver = (entry.open)(&place.root()).unwrap();
        Self { driver, entry: *entry, place }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.place.root()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// A folder beside the root.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let path = self.place.folder().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// What was written is counted. A driver may count it only when it is on the disk.
    pub(crate) fn settle(&self, path: &DatasetPath) {
        let probe = path.snapshot("settle");
        self.driver.snapshot(std::slice::from_ref(&probe), "").unwrap();
        self.driver.destroy_snapshot(&probe).unwrap();
    }

    /// As after a restart of the daemon.
    pub(crate) fn open_again(&mut self) {
        self.driver = (self.entry.open)(&self.root()).unwrap();
    }

    pub(crate) fn streams(&self) -> &dyn Streams {
        self.driver.streams().unwrap()
    }

    /// A new dataset with a file in it.
    pub(crate) fn make(&self, path: &DatasetPath) {
        let spec = DatasetSpec { record: path.to_string(), ..DatasetSpec::default() };
        self.driver.create(path, &spec).unwrap();
        fs::write(self.file(path), path.to_string()).unwrap();
    }

    /// The file that [`make`](Self::make) puts there.
    pub(crate) fn file(&self, path: &DatasetPath) -> PathBuf {
        self.driver.mountpoint(path).join("file")
    }

    pub(crate) fn read(&self, path: &DatasetPath) -> String {
        fs::read_to_string(self.file(path)).unwrap()
    }

    pub(crate) fn exists(&self, path: &DatasetPath) -> bool {
        self.driver.get(path).unwrap().is_some()
    }

    pub(crate) fn snapshots(&self, path: &DatasetPath) -> Vec<String> {
        self.driver.snapshots(path).unwrap().into_iter().map(|s| s.name).collect()
    }

    pub(crate) fn names(&self, area: Area) -> Vec<String> {
        let all = self.driver.list(area).unwrap();
        all.into_iter().map(|dataset| dataset.path.name().to_owned()).collect()
    }

    /// Besides what the driver lists, the root holds nothing; and what it lists can be destroyed, after
    /// which it holds nothing at all.
    pub(crate) fn nothing_is_left_over(&mut self) {
        let all = || Area::ALL.into_iter().flat_map(|area| self.driver.list(area).unwrap());
        self.place.holds_nothing_but(all().count());
        for area in Area::ALL {
            // What others were cloned from is busy until they are gone.
            for _ in 0..self.names(area).len() {
                for path in self.driver.names(area).unwrap() {
                    match self.driver.destroy(&path) {
                        Ok(_) | Err(Error::Busy(_)) => (),
                        Err(error) => panic!("{path}: {error:?}"),
                    }
                }
            }
            assert!(self.names(area).is_empty());
        }
        self.place.holds_nothing_but(0);
    }
}

/// A folder in memory, where there is one: for tests that do very much and nothing that a disk would do
/// in another way.
pub(crate) fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.unwrap()
}

pub(crate) fn volume(name: &str) -> DatasetPath {
    DatasetPath::volume(&name.parse().unwrap())
}

pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}
