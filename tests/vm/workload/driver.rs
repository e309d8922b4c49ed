//! A caller of the storage driver: what it can do and no verb of the daemon does yet, renaming, snapshots
//! and rolling back among it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use kleened::storage::{Area, DRIVERS, DatasetPath, DatasetSpec, Driver, Error};

use crate::Worker;
use crate::journal::Rng;

/// Where the driver's root is; also its dataset's name in the pool.
pub(crate) const ROOT: &str = "/driver";

pub(crate) struct Storage(Box<dyn Driver>);

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Dataset {
    record: String,
    text: String,
    /// Each with the text that it has; oldest first.
    snapshots: Vec<(String, String)>,
    /// The number of the dataset that it is a clone of, which stays when names change.
    origin: Option<String>,
    number: String,
}

type State = BTreeMap<String, Dataset>;

fn path(name: &str) -> DatasetPath {
    DatasetPath::volume(&name.parse().unwrap())
}

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

/// The text, which is on the disk when this returns.
fn write(place: &Path, text: &str) {
    let mut file = File::create(place.join("new")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.sync_all().unwrap();
    fs::rename(place.join("new"), place.join("text")).unwrap();
    File::open(place).unwrap().sync_all().unwrap();
}

impl Storage {
    pub(crate) fn open() -> Self {
        let entry = DRIVERS.iter().find(|entry| entry.name == "zfs").unwrap();
        Self((entry.open)(Path::new(ROOT)).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let all = self.0.list(Area::Volumes).unwrap();
        all.into_iter().map(|dataset| dataset.path.name().to_owned()).collect()
    }

    /// All datasets and snapshots, by their paths below the root.
    pub(crate) fn datasets(&self) -> Vec<String> {
        let mut datasets = Vec::new();
        for name in self.names() {
            for snapshot in self.0.snapshots(&path(&name)).unwrap() {
                datasets.push(path(&name).snapshot(&snapshot.name).to_string());
            }
            datasets.push(path(&name).to_string());
        }
        datasets
    }

    /// There is no dataset.
    pub(crate) fn clear(&self) {
        // Clones go before what they are clones of.
        for _ in self.names() {
            for name in self.names() {
                match self.0.destroy(&path(&name)) {
                    Ok(_) | Err(Error::Busy(_)) => {}
                    Err(error) => panic!("{name}: {error:?}"),
                }
            }
        }
        assert!(self.names().is_empty(), "{:?}", self.names());
    }

    fn text(&self, path: &DatasetPath) -> String {
        fs::read_to_string(self.0.mountpoint(path).join("text")).unwrap_or_default()
    }
}

impl Worker for Storage {
    type State = State;

    fn choose(&self, state: &State, rng: &mut Rng) -> String {
        let names: Vec<_> = state.keys().cloned().collect();
        let has_clones =
            |number: &str| state.values().any(|other| other.origin.as_deref() == Some(number));
        let free: Vec<_> =
            names.iter().filter(|name| !has_clones(&state[*name].number)).cloned().collect();
        let number = rng.below(1_000_000);
        loop {
            let operation = match rng.below(if names.len() > 5 { 8 } else { 10 }) {
                0 => rng.pick(&free).map(|name| format!("destroy {name}")),
                1 => rng.pick(&names).map(|name| format!("rename {name} d{number}")),
                2 | 3 => rng.pick(&names).map(|name| format!("write {name} {number}")),
                4 => rng.pick(&names).map(|name| format!("set {name} {number}")),
                5 => rng
                    .pick(&names)
                    .filter(|name| state[name].snapshots.len() < 3)
                    .map(|name| format!("snapshot {name} s{number}")),
                6 => {
                    let newest = |name: String| {
                        Some(format!("rollback {name} {}", state[&name].snapshots.last()?.0))
                    };
                    rng.pick(&names).and_then(newest)
                }
                7 => {
                    let oldest = |name: String| {
                        Some(format!("forget {name} {}", state[&name].snapshots.first()?.0))
                    };
                    rng.pick(&free).and_then(oldest)
                }
                8 => {
                    let newest = |name: String| {
                        Some(format!("clone {name} {} d{number}", state[&name].snapshots.last()?.0))
                    };
                    rng.pick(&names).and_then(newest)
                }
                _ => Some(format!("create d{number}")),
            };
            if let Some(operation) = operation {
                return operation;
            }
        }
    }

    fn apply(&self, state: &mut State, operation: &str) {
        match operation.split(' ').collect::<Vec<_>>()[..] {
            ["create", name] => {
                let dataset = Dataset {
                    record: name.to_owned(),
                    number: name.to_owned(),
                    ..Dataset::default()
                };
                state.insert(name.to_owned(), dataset);
            }
            ["destroy", name] => _ = state.remove(name),
            ["rename", from, to] => {
                let dataset = state.remove(from).unwrap();
                state.insert(to.to_owned(), dataset);
            }
            ["write", name, text] => state.get_mut(name).unwrap().text = text.to_owned(),
            ["set", name, record] => state.get_mut(name).unwrap().record = record.to_owned(),
            ["snapshot", name, snapshot] => {
                let dataset = state.get_mut(name).unwrap();
                dataset.snapshots.push((snapshot.to_owned(), dataset.text.clone()));
            }
            ["rollback", name, snapshot] => {
                let dataset = state.get_mut(name).unwrap();
                let (_, text) =
                    dataset.snapshots.iter().find(|(name, _)| name == snapshot).unwrap();
                dataset.text = text.clone();
            }
            ["forget", name, snapshot] => {
                state.get_mut(name).unwrap().snapshots.retain(|(name, _)| name != snapshot);
            }
            ["clone", from, snapshot, to] => {
                let origin = &state[from];
                let (_, text) = origin.snapshots.iter().find(|(name, _)| name == snapshot).unwrap();
                let clone = Dataset {
                    record: to.to_owned(),
                    text: text.clone(),
                    snapshots: Vec::new(),
                    origin: Some(origin.number.clone()),
                    number: to.to_owned(),
                };
                state.insert(to.to_owned(), clone);
            }
            _ => panic!("{operation}?"),
        }
    }

    fn carry_out(&self, operation: &str) {
        let driver = &*self.0;
        match operation.split(' ').collect::<Vec<_>>()[..] {
            ["create", name] => driver.create(&path(name), &spec(name)).unwrap(),
            ["destroy", name] => assert!(driver.destroy(&path(name)).unwrap()),
            ["rename", from, to] => driver.rename(&path(from), &path(to)).unwrap(),
            ["write", name, text] => write(&driver.mountpoint(&path(name)), text),
            ["set", name, record] => driver.set(&path(name), record).unwrap(),
            ["snapshot", name, snapshot] => {
                driver.snapshot(&[path(name).snapshot(snapshot)], "").unwrap()
            }
            ["rollback", name, snapshot] => {
                driver.rollback(&path(name).snapshot(snapshot)).unwrap()
            }
            ["forget", name, snapshot] => {
                assert!(driver.destroy_snapshot(&path(name).snapshot(snapshot)).unwrap());
            }
            ["clone", from, snapshot, to] => {
                driver.clone_from(&path(from).snapshot(snapshot), &path(to), &spec(to)).unwrap();
            }
            _ => panic!("{operation}?"),
        }
    }

    fn look(&self) -> State {
        let mut state = State::new();
        for dataset in self.0.list(Area::Volumes).unwrap() {
            let mut snapshots = Vec::new();
            for snapshot in self.0.snapshots(&dataset.path).unwrap() {
                let probe = path("probe");
                self.0
                    .clone_from(&dataset.path.snapshot(&snapshot.name), &probe, &spec(""))
                    .unwrap();
                snapshots.push((snapshot.name, self.text(&probe)));
                self.0.destroy(&probe).unwrap();
            }
            let record = dataset.record.unwrap_or_else(|| panic!("{} has no record", dataset.path));
            let text = self.text(&dataset.path);
            let found = Dataset { record, text, snapshots, ..Dataset::default() };
            state.insert(dataset.path.name().to_owned(), found);
        }
        state
    }

    fn visible(&self, mut state: State) -> State {
        for dataset in state.values_mut() {
            (dataset.origin, dataset.number) = (None, String::new());
        }
        state
    }
}
