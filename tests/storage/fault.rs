//! Any one call fails, before it took effect or after: a retry succeeds and nothing is left over.

use std::fs;

use kleened::storage::fault::{Fault, Plan};
use kleened::storage::{Area, DRIVERS, DatasetSpec, Driver, Error, Result};

use crate::fixture::{in_memory, volume};
use crate::place::{Place, drivers};

/// Tries again once, as the engine does after a failure, and takes it well that the call before took
/// effect.
fn try_twice(mut call: impl FnMut() -> Result<()>) {
    if let Err(first) = call() {
        assert!(
            matches!(first, Error::Io { .. } | Error::NoSpace { .. } | Error::Busy(_)),
            "{first:?}"
        );
        match call() {
            Ok(()) | Err(Error::Exists(_) | Error::NotFound(_) | Error::BadStream(_)) => (),
            Err(second) => panic!("{second:?} after {first:?}"),
        }
    }
}

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

/// Every method, in an order in which each has something to do.
fn scenario(driver: &dyn Driver) {
    let (a, b, c, copy) = (volume("a"), volume("b"), volume("c"), volume("copy"));
    let streams = driver.streams().unwrap();
    try_twice(|| driver.create(&a, &spec("one")));
    fs::write(driver.mountpoint(&a).join("file"), "1").unwrap();
    try_twice(|| driver.flush(&a));
    try_twice(|| driver.set(&a, "two"));
    try_twice(|| driver.snapshot(&[a.snapshot("s")], ""));
    try_twice(|| driver.clone_from(&a.snapshot("s"), &b, &spec("clone")));
    let (mut full, mut second) = (Vec::new(), Vec::new());
    try_twice(|| {
        full.clear();
        streams.export(&a.snapshot("s"), None, &mut full)
    });
    fs::write(driver.mountpoint(&a).join("file"), "2").unwrap();
    try_twice(|| driver.snapshot(&[a.snapshot("t")], ""));
    try_twice(|| {
        second.clear();
        streams.export(&a.snapshot("t"), Some("s"), &mut second)
    });
    try_twice(|| streams.import(&copy, &spec("copy"), &mut &*full));
    try_twice(|| streams.import_onto(&copy, &mut &*second));
    fs::write(driver.mountpoint(&a).join("file"), "3").unwrap();
    try_twice(|| driver.rollback(&a.snapshot("t")));
    try_twice(|| driver.usage(&a).map(drop));
    try_twice(|| driver.snapshots(&a).map(drop));
    try_twice(|| driver.snapshot_usage(&a.snapshot("t")).map(drop));
    try_twice(|| driver.hold(&a.snapshot("t"), true));
    try_twice(|| driver.hold(&a.snapshot("t"), false));
    try_twice(|| driver.rename_snapshot(&a.snapshot("t"), "u"));
    try_twice(|| driver.rename_snapshot(&a.snapshot("u"), "t"));
    try_twice(|| driver.destroy(&b).map(drop));
    try_twice(|| driver.destroy_snapshot(&a.snapshot("s")).map(drop));
    try_twice(|| driver.rename(&a, &c));
    try_twice(|| driver.get(&c).map(drop));
    try_twice(|| driver.list(Area::Volumes).map(drop));
    try_twice(|| driver.names(Area::Volumes).map(drop));
    try_twice(|| driver.usages(std::slice::from_ref(&c)).map(drop));
    try_twice(|| driver.mount(&c));
}

fn end(driver: &dyn Driver) -> String {
    let mut text = String::new();
    for area in Area::ALL {
        for dataset in driver.list(area).unwrap() {
            let file = driver.mountpoint(&dataset.path).join("file");
            let content = fs::read_to_string(file).unwrap();
            let snapshots = driver.snapshots(&dataset.path).unwrap();
            let names: Vec<_> = snapshots.iter().map(|s| s.name.as_str()).collect();
            text += &format!("{} {:?} {content} {names:?}\n", dataset.path, dataset.record);
        }
    }
    text
}

const END: &str =
    "volumes/c Some(\"two\") 2 [\"t\"]\nvolumes/copy Some(\"copy\") 2 [\"s\", \"t\"]\n";

#[test]
fn every_call_can_fail() {
    for entry in drivers() {
        let run = |plan: Option<Plan>| {
            let place = Place::of(entry.name, in_memory())?;
            let root = place.root();
            let driver = Fault::new((entry.open)(&root).unwrap(), plan.clone());
            scenario(&driver);
            let calls = driver.calls();
            driver.restart(None);
            assert_eq!(end(&driver), END, "{} with {plan:?}", entry.name);
            drop(driver);
            let opened = (entry.open)(&root).unwrap();
            assert_eq!(end(&*opened), END, "{} with {plan:?}, opened again", entry.name);
            place.holds_nothing_but(2);
            Some(calls)
        };
        let Some(calls) = run(None) else { continue };
        // All methods that can fail are in it.
        assert_eq!(calls.len(), 23, "{calls:?}");
        for number in 1..=calls["*"] {
            for (when, what) in [("before", "error"), ("after", "full")] {
                let plan: Plan = format!("*:{number}:{when}:{what}").parse().unwrap();
                let faulty = run(Some(plan.clone())).unwrap();
                assert!(faulty["*"] > calls["*"], "{plan} did not happen");
            }
        }
    }
}

#[test]
fn a_plan_is_carried_out_once_and_where_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let entry = DRIVERS.iter().find(|entry| entry.name == "dir").unwrap();
    let open = |plan: &str| {
        Fault::new((entry.open)(&dir.path().join("root")).unwrap(), Some(plan.parse().unwrap()))
    };
    let driver = open("create:2:before:error");
    driver.create(&volume("a"), &spec("")).unwrap();
    assert!(matches!(driver.create(&volume("b"), &spec("")), Err(Error::Io { .. })));
    assert_eq!(driver.get(&volume("b")).unwrap(), None);
    driver.create(&volume("b"), &spec("")).unwrap();
    assert_eq!((driver.calls()["create"], driver.calls()["*"]), (3, 4));
    let driver = open("destroy:1:after:busy");
    assert!(matches!(driver.destroy(&volume("a")), Err(Error::Busy(_))));
    assert_eq!(driver.get(&volume("a")).unwrap(), None);
    assert!(!driver.destroy(&volume("a")).unwrap());
    // What fails by itself fails with its own reason.
    let driver = open("create:1:after:full");
    assert!(matches!(driver.create(&volume("b"), &spec("")), Err(Error::Exists(_))));
}
