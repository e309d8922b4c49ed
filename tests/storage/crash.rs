//! A process that is killed between any two steps of the `dir` driver: after the next start every verb
//! has happened or has not, and nothing is left over.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kleened::copy;
use kleened::storage::fault::VARIABLE;
use kleened::storage::{Area, DatasetPath, DatasetSpec, Driver, dir};

use crate::fixture::{in_memory, volume};

/// Names the root in the process that is to be killed.
const ROOT: &str = "KLEENE_TEST_CRASH_ROOT";

type Step = fn(&dyn Driver);

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

fn write(driver: &dyn Driver, path: &DatasetPath, text: &str) {
    // Whole or not at all, as the verbs are.
    let mountpoint = driver.mountpoint(path);
    let beside = mountpoint.parent().unwrap().with_extension("text");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, mountpoint.join("file")).unwrap();
}

fn stream(driver: &dyn Driver, name: &str, base: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let snapshot = volume("a").snapshot(name);
    driver.streams().unwrap().export(&snapshot, base, &mut bytes).unwrap();
    bytes
}

/// Each verb once. A step that was made already is made again, and may then fail.
const STEPS: &[Step] = &[
    |d| drop(d.create(&volume("a"), &spec("one"))),
    |d| write(d, &volume("a"), "1"),
    |d| drop(d.create(&volume("b"), &spec("b"))),
    |d| drop(d.set(&volume("a"), "two")),
    |d| drop(d.snapshot(&[volume("a").snapshot("s")])),
    |d| write(d, &volume("a"), "2"),
    |d| drop(d.snapshot(&[volume("a").snapshot("t"), volume("b").snapshot("t")])),
    |d| drop(d.clone_from(&volume("a").snapshot("s"), &volume("clone"), &spec("clone"))),
    |d| {
        let stream = stream(d, "s", None);
        drop(d.streams().unwrap().import(&volume("copy"), &spec("copy"), &mut &*stream));
    },
    |d| {
        let stream = stream(d, "t", Some("s"));
        drop(d.streams().unwrap().import_onto(&volume("copy"), &mut &*stream));
    },
    |d| write(d, &volume("a"), "3"),
    |d| drop(d.rollback(&volume("a").snapshot("t"))),
    |d| drop(d.destroy_snapshot(&volume("a").snapshot("t"))),
    |d| drop(d.rename(&volume("a"), &volume("c"))),
    |d| drop(d.destroy(&volume("c"))),
    |d| drop(d.destroy(&volume("copy"))),
];

/// All that can be seen of the datasets.
fn state(driver: &dyn Driver) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for dataset in Area::ALL.into_iter().flat_map(|area| driver.list(area).unwrap()) {
        let path = &dataset.path;
        let snapshots: Vec<_> =
            driver.snapshots(path).unwrap().into_iter().map(|s| s.name).collect();
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
fn opened(root: &Path) -> (Box<dyn Driver>, BTreeMap<String, String>) {
    let driver = dir::open(root).unwrap();
    let state = state(&*driver);
    for folder in ["new", "commit", "dead"] {
        let left: Vec<_> = fs::read_dir(root.join(".kleene").join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "in {folder}: {left:?}");
    }
    assert_eq!(fs::read_dir(root.join(".kleene/datasets")).unwrap().count(), state.len());
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
fn killed(root: &Path, todo: &str, point: u32) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
        .env(ROOT, root)
        .env("KLEENE_TEST_CRASH_STEP", todo)
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
    let driver = dir::open(&root).unwrap();
    if let Ok(step) = std::env::var("KLEENE_TEST_CRASH_STEP").unwrap().parse::<usize>() {
        STEPS[step](&*driver);
    }
}

fn copy_root(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let (from, to) = (fs::File::open(from).unwrap(), fs::File::open(to).unwrap());
    copy::tree(from.as_fd(), to.as_fd(), &copy::Options::default()).unwrap();
}

#[test]
fn killed_between_any_two_steps() {
    let dir = in_memory();
    let before = dir.path().join("before");
    let mut points = 0;
    dir::open(&before).unwrap();
    for (index, step) in STEPS.iter().enumerate() {
        let was = opened(&before).1;
        let after = dir.path().join("after");
        copy_root(&before, &after);
        step(&*dir::open(&after).unwrap());
        let is = opened(&after).1;
        assert_ne!(was, is, "step {index} does nothing");
        for point in 1.. {
            let root = dir.path().join(format!("root-{index}-{point}"));
            copy_root(&before, &root);
            let killed_here = killed(&root, &index.to_string(), point);
            if killed_here {
                points += 1;
                // Killed once more while it recovers.
                for point in 1..4 {
                    killed(&root, "", point);
                }
                let (driver, now) = opened(&root);
                assert!(
                    now == was || now == is,
                    "step {index} point {point}:\n{was:#?}\n{now:#?}\n{is:#?}"
                );
                // The verb again, which then has happened.
                step(&*driver);
                drop(driver);
            }
            assert_eq!(opened(&root).1, is, "step {index} point {point}");
            fs::remove_dir_all(&root).unwrap();
            if !killed_here {
                break;
            }
        }
        fs::remove_dir_all(&before).unwrap();
        fs::rename(&after, &before).unwrap();
    }
    assert!(points >= 80, "only {points} points");
}
