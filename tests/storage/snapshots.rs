//! Snapshots: their records, names, holds and sizes.

use std::fs;
use std::io::Read;

use kleened::storage::{DatasetPath, Error, Snapshot};

use crate::fixture::{Fixture, volume};

fn only(f: &Fixture, path: &DatasetPath) -> Snapshot {
    let mut all = f.driver.snapshots(path).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

pub(crate) fn records(f: &mut Fixture) {
    let (a, b) = (volume("a"), volume("b"));
    f.make(&a);
    f.make(&b);
    // The dataset's own record is none of the snapshot's.
    f.driver.snapshot(&[a.snapshot("none")], "").unwrap();
    assert_eq!(only(f, &a).record, None);
    f.driver.destroy_snapshot(&a.snapshot("none")).unwrap();
    let long = "✓".repeat(10_000);
    for record in ["{\"a\":1}", "#", &long] {
        f.driver.snapshot(&[a.snapshot("s"), b.snapshot("s")], record).unwrap();
        f.open_again();
        for path in [&a, &b] {
            let found = only(f, path);
            assert_eq!((found.record.as_deref(), found.held), (Some(record), false));
            assert!(f.driver.destroy_snapshot(&path.snapshot("s")).unwrap());
        }
    }
    assert_eq!(f.driver.get(&a).unwrap().unwrap().record, Some(a.to_string()));
}

pub(crate) fn renamed(f: &mut Fixture) {
    let path = volume("v");
    f.make(&path);
    for name in ["1", "2"] {
        f.driver.snapshot(&[path.snapshot(name)], name).unwrap();
    }
    let before = f.driver.snapshots(&path).unwrap();
    fs::write(f.file(&path), "newer").unwrap();
    f.driver.rename_snapshot(&path.snapshot("1"), "one").unwrap();
    // It has its place, its time, its record and its content.
    let after = f.driver.snapshots(&path).unwrap();
    assert_eq!(after[0], Snapshot { name: "one".into(), ..before[0].clone() });
    assert_eq!(after[1], before[1]);
    let clone = volume("clone");
    f.driver.clone_from(&path.snapshot("one"), &clone, &Default::default()).unwrap();
    assert_eq!(f.read(&clone), path.to_string());
    let refused = f.driver.rename_snapshot(&path.snapshot("one"), "2");
    assert!(matches!(refused, Err(Error::Exists(_))), "{refused:?}");
    for gone in [path.snapshot("1"), volume("absent").snapshot("1")] {
        let refused = f.driver.rename_snapshot(&gone, "3");
        assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    }
    for bad in ["", "..", "../x", "a/b", "a@b"] {
        assert!(f.driver.rename_snapshot(&path.snapshot("one"), bad).is_err(), "{bad:?}");
        assert!(f.driver.rename_snapshot(&path.snapshot(bad), "3").is_err(), "{bad:?}");
    }
    assert_eq!(f.snapshots(&path), ["one", "2"]);
}

pub(crate) fn held(f: &mut Fixture) {
    let path = volume("v");
    f.make(&path);
    let snapshot = path.snapshot("s");
    f.driver.snapshot(std::slice::from_ref(&snapshot), "").unwrap();
    f.driver.hold(&snapshot, false).unwrap();
    for _ in 0..2 {
        f.driver.hold(&snapshot, true).unwrap();
        f.open_again();
        assert!(only(f, &path).held);
    }
    for refused in [f.driver.destroy_snapshot(&snapshot), f.driver.destroy(&path)] {
        assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
    }
    assert_eq!((f.read(&path), f.snapshots(&path).len()), (path.to_string(), 1));
    // By whatever name.
    f.driver.rename_snapshot(&snapshot, "t").unwrap();
    assert!(only(f, &path).held);
    assert!(f.driver.destroy_snapshot(&path.snapshot("t")).is_err());
    for gone in [snapshot, volume("absent").snapshot("s")] {
        for held in [true, false] {
            let refused = f.driver.hold(&gone, held);
            assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
        }
    }
    for _ in 0..2 {
        f.driver.hold(&path.snapshot("t"), false).unwrap();
        assert!(!only(f, &path).held);
    }
    assert!(f.driver.destroy_snapshot(&path.snapshot("t")).unwrap());
}

pub(crate) fn measured(f: &mut Fixture) {
    let path = volume("v");
    f.make(&path);
    // What can't be compressed.
    let mut bytes = Vec::new();
    let random = fs::File::open("/dev/urandom").unwrap();
    random.take(4 << 20).read_to_end(&mut bytes).unwrap();
    fs::write(f.file(&path), bytes).unwrap();
    let snapshot = path.snapshot("s");
    f.driver.snapshot(std::slice::from_ref(&snapshot), "").unwrap();
    fs::remove_file(f.file(&path)).unwrap();
    // The kernel may free what was removed a little later.
    let mut used = 0;
    for _ in 0..100 {
        f.settle(&path);
        used = f.driver.snapshot_usage(&snapshot).unwrap();
        if used >= 4 << 20 {
            break;
        }
    }
    assert!((4 << 20..5 << 20).contains(&used), "{used} bytes");
    for gone in [path.snapshot("t"), volume("absent").snapshot("s")] {
        let refused = f.driver.snapshot_usage(&gone);
        assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    }
}

fn write(f: &Fixture, path: &DatasetPath, text: &str) {
    fs::write(f.file(path), text).unwrap();
}

fn content(f: &Fixture, path: &DatasetPath, name: &str) -> String {
    let probe = volume("probe");
    f.driver.clone_from(&path.snapshot(name), &probe, &Default::default()).unwrap();
    let text = f.read(&probe);
    assert!(f.driver.destroy(&probe).unwrap());
    text
}

/// A volume `v` with the snapshots `1`, `2` and `3`, and `4` as its content.
fn four_states(f: &Fixture) -> DatasetPath {
    let path = volume("v");
    f.make(&path);
    for name in ["1", "2", "3"] {
        write(f, &path, name);
        f.driver.snapshot(&[path.snapshot(name)], name).unwrap();
    }
    write(f, &path, "4");
    path
}

pub(crate) fn went_back(f: &mut Fixture) {
    let path = four_states(f);
    let snapshots = f.driver.snapshots(&path).unwrap();
    for name in ["1", "3", "2", "2", "1", "3"] {
        f.driver.rollback(&path.snapshot(name)).unwrap();
        for _ in 0..2 {
            assert_eq!(f.read(&path), name);
            assert_eq!(f.driver.snapshots(&path).unwrap(), snapshots);
            assert_eq!(f.driver.get(&path).unwrap().unwrap().record, Some(path.to_string()));
            f.open_again();
        }
        write(f, &path, "other");
        for name in ["1", "2", "3"] {
            assert_eq!(content(f, &path, name), name);
        }
    }
    // Those that come later are after all of them, and have names of their own.
    f.driver.rollback(&path.snapshot("1")).unwrap();
    for name in ["1", "2", "3"] {
        let refused = f.driver.snapshot(&[path.snapshot(name)], "");
        assert!(matches!(refused, Err(Error::Exists(_))), "{refused:?}");
    }
    write(f, &path, "5");
    f.driver.snapshot(&[path.snapshot("5")], "").unwrap();
    assert_eq!(f.snapshots(&path), ["1", "2", "3", "5"]);
    f.driver.rollback(&path.snapshot("2")).unwrap();
    // Each can do what it could.
    f.driver.rename_snapshot(&path.snapshot("3"), "three").unwrap();
    let refused = f.driver.rename_snapshot(&path.snapshot("5"), "three");
    assert!(matches!(refused, Err(Error::Exists(_))), "{refused:?}");
    f.driver.hold(&path.snapshot("three"), true).unwrap();
    assert!(matches!(f.driver.destroy_snapshot(&path.snapshot("three")), Err(Error::Busy(_))));
    assert!(matches!(f.driver.destroy(&path), Err(Error::Busy(_))));
    f.driver.hold(&path.snapshot("three"), false).unwrap();
    f.driver.snapshot_usage(&path.snapshot("5")).unwrap();
    f.driver.usage(&path).unwrap();
    f.streams().export(&path.snapshot("5"), None, &mut Vec::new()).unwrap();
    f.driver.rename(&path, &volume("w")).unwrap();
    let path = volume("w");
    assert_eq!(f.snapshots(&path), ["1", "2", "three", "5"]);
    for name in ["5", "1", "three"] {
        assert!(f.driver.destroy_snapshot(&path.snapshot(name)).unwrap());
        assert!(!f.driver.destroy_snapshot(&path.snapshot(name)).unwrap());
    }
    assert_eq!((f.read(&path), f.snapshots(&path)), ("2".to_owned(), vec!["2".to_owned()]));
    for gone in ["1", "nope"] {
        let refused = f.driver.rollback(&path.snapshot(gone));
        assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    }
}

pub(crate) fn went_back_and_went(f: &mut Fixture) {
    let path = four_states(f);
    for name in ["1", "3", "2"] {
        f.driver.rollback(&path.snapshot(name)).unwrap();
        write(f, &path, "other");
    }
    // All of it goes, and what is left is no clone's.
    let clones = ["1", "2", "3"].map(|name| (name, volume(&format!("clone-{name}"))));
    for (name, clone) in &clones {
        f.driver.clone_from(&path.snapshot(name), clone, &Default::default()).unwrap();
        f.driver.snapshot(&[clone.snapshot(name)], "").unwrap();
    }
    assert!(f.driver.destroy(&path).unwrap());
    f.open_again();
    assert!(!f.exists(&path) && !f.driver.mountpoint(&path).exists());
    for (name, clone) in &clones {
        assert_eq!((f.read(clone), f.snapshots(clone).concat()), ((*name).into(), (*name).into()));
    }
    f.make(&path);
    assert!(f.snapshots(&path).is_empty());
}

pub(crate) fn sources_go_before_clones(f: &mut Fixture) {
    let path = four_states(f);
    let (one, two, three) = (volume("one"), volume("two"), volume("three"));
    for (name, clone) in [("1", &one), ("1", &two), ("2", &three)] {
        f.driver.clone_from(&path.snapshot(name), clone, &Default::default()).unwrap();
        // A name that the source has, too.
        f.driver.snapshot(&[clone.snapshot("2")], "own").unwrap();
    }
    assert!(f.driver.destroy_snapshot(&path.snapshot("1")).unwrap());
    assert_eq!(f.snapshots(&path), ["2", "3"]);
    // Its name is free.
    write(f, &path, "new");
    f.driver.snapshot(&[path.snapshot("1")], "").unwrap();
    f.driver.rename_snapshot(&path.snapshot("1"), "renamed").unwrap();
    assert!(f.driver.destroy_snapshot(&path.snapshot("2")).unwrap());
    f.driver.rename_snapshot(&path.snapshot("renamed"), "2").unwrap();
    assert_eq!(
        (content(f, &path, "2"), f.snapshots(&path)),
        ("new".into(), vec!["3".into(), "2".into()])
    );
    assert!(f.driver.destroy(&path).unwrap());
    for (clone, text) in [(&one, "1"), (&two, "1"), (&three, "2")] {
        assert_eq!((f.read(clone), f.snapshots(clone).concat()), (text.into(), "2".into()));
        write(f, clone, "changed");
        f.driver.rollback(&clone.snapshot("2")).unwrap();
        assert_eq!(f.read(clone), text);
    }
    for clone in [&three, &one, &two] {
        assert!(f.driver.destroy(clone).unwrap());
    }
}
