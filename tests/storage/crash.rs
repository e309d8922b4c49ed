//! A process that is killed between any two steps of a driver: after the next start every verb has
//! happened or has not, and nothing is left over.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use kleened::storage::fault::VARIABLE;
use kleened::storage::{Area, DRIVERS, DatasetPath, DatasetSpec, Driver, DriverEntry, Result};

use crate::fixture::{in_memory, volume};
use crate::place::{Place, drivers};

/// Names the root in the process that is to be killed.
const ROOT: &str = "KLEENE_TEST_CRASH_ROOT";

/// Names its driver.
const DRIVER: &str = "KLEENE_TEST_CRASH_DRIVER";

/// Says which step it is to make.
const STEP: &str = "KLEENE_TEST_CRASH_STEP";

/// The step of taking over the dataset whose name follows.
pub(crate) const ADOPT: &str = "adopt ";

type Step = fn(&dyn Driver) -> Result<()>;

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

fn draft() -> DatasetPath {
    DatasetPath::scratch(&"0123456789ab".parse().unwrap())
}

fn write(driver: &dyn Driver, path: &DatasetPath, text: &str) -> Result<()> {
    fs::write(driver.mountpoint(path).join("file"), text).unwrap();
    Ok(())
}

fn stream(driver: &dyn Driver, name: &str, base: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let snapshot = volume("a").snapshot(name);
    driver.streams().unwrap().export(&snapshot, base, &mut bytes).unwrap();
    bytes
}

/// Each verb once. A step that was made already is made again, and may then fail.
const STEPS: &[Step] = &[
    |d| d.create(&volume("a"), &spec("one")),
    |d| write(d, &volume("a"), "1"),
    |d| d.create(&volume("b"), &spec("b")),
    |d| d.set(&volume("a"), "two"),
    |d| d.snapshot(&[volume("a").snapshot("s")], ""),
    |d| write(d, &volume("a"), "2"),
    |d| d.snapshot(&[volume("a").snapshot("t"), volume("b").snapshot("t")], "both"),
    |d| d.rename_snapshot(&volume("b").snapshot("t"), "u"),
    |d| d.hold(&volume("b").snapshot("u"), true),
    |d| d.hold(&volume("b").snapshot("u"), false),
    |d| d.clone_from(&volume("a").snapshot("s"), &volume("clone"), &spec("clone")),
    |d| {
        let stream = stream(d, "s", None);
        d.streams().unwrap().import(&volume("copy"), &spec("copy"), &mut &*stream)
    },
    |d| {
        let stream = stream(d, "t", Some("s"));
        d.streams().unwrap().import_onto(&volume("copy"), &mut &*stream)
    },
    |d| write(d, &volume("a"), "3"),
    |d| d.rollback(&volume("a").snapshot("t")),
    |d| write(d, &volume("a"), "4"),
    |d| d.snapshot(&[volume("a").snapshot("u")], ""),
    |d| d.rollback(&volume("a").snapshot("s")),
    |d| d.rollback(&volume("a").snapshot("u")),
    |d| d.rollback(&volume("a").snapshot("t")),
    |d| d.destroy_snapshot(&volume("a").snapshot("t")).map(drop),
    |d| d.rename(&volume("a"), &volume("web:c")),
    |d| d.create(&draft(), &spec("draft")),
    |d| d.rename(&draft(), &volume("web:named")),
    |d| d.destroy(&volume("web:named")).map(drop),
    |d| d.destroy(&volume("web:c")).map(drop),
    |d| d.destroy(&volume("clone")).map(drop),
    |d| d.destroy(&volume("copy")).map(drop),
];

/// All that can be seen of the datasets.
fn state(driver: &dyn Driver) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for dataset in Area::ALL.into_iter().flat_map(|area| driver.list(area).unwrap()) {
        let path = &dataset.path;
        let snapshots: Vec<_> = driver
            .snapshots(path)
            .unwrap()
            .into_iter()
            .map(|s| (s.name, s.record, s.held))
            .collect();
        let mut contents = Vec::new();
        for entry in fs::read_dir(driver.mountpoint(path)).unwrap() {
            let path = entry.unwrap().path();
            contents.push((path.file_name().unwrap().to_owned(), fs::read(path).unwrap()));
        }
        // What is in the snapshots shows by rolling back, which `opened` does at the end.
        let text = format!("{:?} {contents:?} {snapshots:?}", dataset.record);
        found.insert(path.to_string(), text);
    }
    found
}

/// Opens the root, looks at it, and makes sure that every snapshot is whole and nothing is left over.
fn opened(entry: &DriverEntry, place: &Place) -> (Box<dyn Driver>, BTreeMap<String, String>) {
    let driver = (entry.open)(&place.root()).unwrap();
    let state = state(&*driver);
    place.holds_nothing_but(state.len());
    for path in state.keys().map(|path| path.parse::<DatasetPath>().unwrap()) {
        for snapshot in driver.snapshots(&path).unwrap() {
            let probe = volume("probe");
            driver.clone_from(&path.snapshot(&snapshot.name), &probe, &spec("")).unwrap();
            driver.destroy(&probe).unwrap();
        }
    }
    (driver, state)
}

/// Runs this program again with only [`child`], to be killed at a point of the driver. Whether it was.
pub(crate) fn killed(entry: &DriverEntry, root: &Path, todo: &str, point: u32) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
        .env(ROOT, root)
        .env(DRIVER, entry.name)
        .env(STEP, todo)
        .env(VARIABLE, format!("point:{point}:before:kill"))
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}

/// Not a test: what the tests below run as a process of its own.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let name = std::env::var(DRIVER).unwrap();
    let entry = DRIVERS.iter().find(|entry| entry.name == name).unwrap();
    let driver = (entry.open)(&root).unwrap();
    let todo = std::env::var(STEP).unwrap();
    if let Some(dataset) = todo.strip_prefix(ADOPT) {
        driver.adopt().unwrap().adopt(dataset, &volume("adopted"), "adopted").unwrap();
    } else if let Ok(step) = todo.parse::<usize>() {
        let _ = STEPS[step](&*driver);
    }
}

/// A root on which the steps before this one were made.
fn prepared(entry: &DriverEntry, steps: usize) -> Option<Place> {
    let place = Place::of(entry.name, in_memory())?;
    let driver = (entry.open)(&place.root()).unwrap();
    for (index, step) in STEPS[..steps].iter().enumerate() {
        step(&*driver).unwrap_or_else(|error| panic!("{} step {index}: {error:?}", entry.name));
    }
    Some(place)
}

#[test]
fn killed_between_any_two_steps() {
    for entry in drivers() {
        let (next, points) = (AtomicUsize::new(0), AtomicU32::new(0));
        // They wait for the disk, each on a root of its own.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= STEPS.len() {
                            break;
                        }
                        points.fetch_add(killed_in_step(entry, index), Ordering::Relaxed);
                    }
                });
            }
        });
        let points = points.into_inner();
        let least = match entry.name {
            "dir" => 80,
            _ if Place::of(entry.name, in_memory()).is_none() => continue,
            _ => 20,
        };
        assert!(points >= least, "only {points} points of {}", entry.name);
    }
}

/// How many points there are from one at which a step is killed to the next: at most three, on a machine
/// that is slow, as `KLEENE_STRIDE` says. Steps that come after each other are killed at others.
fn stride() -> usize {
    let stride = std::env::var("KLEENE_STRIDE").ok().and_then(|text| text.parse().ok());
    stride.unwrap_or(1).clamp(1, 3)
}

/// Returns at how many points it could be killed.
fn killed_in_step(entry: &DriverEntry, index: usize) -> u32 {
    let Some(place) = prepared(entry, index) else { return 0 };
    let was = opened(entry, &place).1;
    STEPS[index](&*(entry.open)(&place.root()).unwrap()).unwrap();
    let is = opened(entry, &place).1;
    assert_ne!(was, is, "step {index} does nothing");
    for point in (1..).skip(index % stride()).step_by(stride()) {
        let Some(place) = prepared(entry, index) else { return 0 };
        let root = place.root();
        let killed_here = killed(entry, &root, &index.to_string(), point);
        if killed_here {
            // Killed once more while it recovers.
            for point in 1..4 {
                if !killed(entry, &root, "", point) {
                    break;
                }
            }
            let (driver, now) = opened(entry, &place);
            assert!(
                now == was || now == is,
                "{} step {index} point {point}:\n{was:#?}\n{now:#?}\n{is:#?}",
                entry.name
            );
            // The verb again, which then has happened, and may fail where it had before.
            let _ = STEPS[index](&*driver);
        }
        let end = opened(entry, &place).1;
        assert_eq!(end, is, "{} step {index} point {point}", entry.name);
        if !killed_here {
            return point - 1;
        }
    }
    0
}
