//! An open driver on a root of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kleened::storage::{Area, DRIVERS, DatasetPath, DatasetSpec, Driver, DriverEntry, Streams};

pub(crate) struct Fixture {
    pub(crate) driver: Box<dyn Driver>,
    entry: DriverEntry,
    dir: tempfile::TempDir,
}

/// Runs the case on every driver that can run here.
pub(crate) fn each_driver(case: fn(&mut Fixture)) {
    for entry in DRIVERS {
        // Shown where the case fails.
        println!("driver {}", entry.name);
        let dir = tempfile::tempdir().unwrap();
        let driver = (entry.open)(&dir.path().join("root")).unwrap();
        let mut fixture = Fixture { driver, entry: *entry, dir };
        case(&mut fixture);
        fixture.nothing_is_left_over();
    }
}

impl Fixture {
    /// Of the driver of that name.
    pub(crate) fn of(name: &str, dir: tempfile::TempDir) -> Self {
        let entry = *DRIVERS.iter().find(|entry| entry.name == name).unwrap();
        let driver = (entry.open)(&dir.path().join("root")).unwrap();
        Self { driver, entry, dir }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A folder beside the root.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
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
        if self.entry.name == "dir" {
            let kleene = self.root().join(".kleene");
            let mut datasets = 0;
            for area in Area::ALL {
                datasets += self.names(area).len();
            }
            for (folder, expected) in
                [("new", 0), ("commit", 0), ("dead", 0), ("datasets", datasets)]
            {
                let found = fs::read_dir(kleene.join(folder)).unwrap().count();
                assert_eq!(found, expected, "in {folder}");
            }
        }
        for area in Area::ALL {
            for name in self.names(area) {
                self.driver.destroy(&format!("{}/{name}", area.as_str()).parse().unwrap()).unwrap();
            }
            assert!(self.names(area).is_empty());
        }
        if self.entry.name == "dir" {
            let left = fs::read_dir(self.root().join(".kleene/datasets")).unwrap().count();
            assert_eq!(left, 0, "datasets");
        }
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
