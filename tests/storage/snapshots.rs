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
