//! Datasets, snapshots and clones.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;

use kleene_tests::tree::{assert_same, assert_same_description, describe, sample};
use kleened::storage::{Area, DatasetPath, DatasetSpec, Error};
use kleened_api::volume::{Mode, Owner};

use crate::fixture::{Fixture, mode_of, volume};

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

pub(crate) fn a_new_dataset(f: &mut Fixture) {
    let path = volume("my-vol");
    assert!(!f.driver.mountpoint(&path).exists());
    f.driver.create(&path, &spec("{\"a\":1}")).unwrap();
    let found = f.driver.get(&path).unwrap().unwrap();
    assert_eq!((found.path, found.record.as_deref()), (path.clone(), Some("{\"a\":1}")));
    let mountpoint = f.driver.mountpoint(&path);
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0);
    assert!(mountpoint.ends_with("volumes/my-vol"));
    let stat = fs::metadata(&mountpoint).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o755));
    fs::write(mountpoint.join("file"), "x").unwrap();
    assert_eq!(f.driver.snapshots(&path).unwrap(), []);
}

pub(crate) fn a_name_that_is_taken(f: &mut Fixture) {
    let (path, other) = (volume("taken"), volume("other"));
    f.make(&path);
    f.make(&other);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    let before = describe(&f.driver.mountpoint(&path));
    let errors = [
        f.driver.create(&path, &spec("another")),
        f.driver.clone_from(&path.snapshot("s"), &path, &spec("another")),
        f.driver.rename(&other, &path),
        f.driver.rename(&path, &path),
        f.driver.snapshot(&[path.snapshot("s")], ""),
        f.driver.snapshot(&[other.snapshot("t"), other.snapshot("t")], ""),
    ];
    for (index, error) in errors.into_iter().enumerate() {
        assert!(matches!(error, Err(Error::Exists(_))), "{index}: {error:?}");
    }
    assert_same_description(&before, &describe(&f.driver.mountpoint(&path)));
    assert_eq!(f.driver.get(&path).unwrap().unwrap().record.unwrap(), path.to_string());
    assert_eq!(f.names(Area::Volumes), ["other", "taken"]);
    assert_eq!((f.snapshots(&path), f.snapshots(&other)), (vec!["s".to_owned()], vec![]));
}

pub(crate) fn what_does_not_exist(f: &mut Fixture) {
    let (path, there) = (volume("absent"), volume("there"));
    f.make(&there);
    assert_eq!(f.driver.get(&path).unwrap(), None);
    assert!(!f.driver.destroy(&path).unwrap());
    assert!(!f.driver.destroy_snapshot(&path.snapshot("s")).unwrap());
    assert!(!f.driver.destroy_snapshot(&there.snapshot("s")).unwrap());
    let new = volume("new");
    let mut out = Vec::new();
    let errors = [
        f.driver.set(&path, "x"),
        f.driver.rename(&path, &new),
        f.driver.usage(&path).map(drop),
        f.driver.mount(&path),
        f.driver.snapshot(&[path.snapshot("s")], ""),
        f.driver.snapshot(&[there.snapshot("s"), path.snapshot("s")], ""),
        f.driver.snapshots(&path).map(drop),
        f.driver.rollback(&path.snapshot("s")),
        f.driver.rollback(&there.snapshot("s")),
        f.driver.clone_from(&path.snapshot("s"), &new, &spec("")),
        f.driver.clone_from(&there.snapshot("s"), &new, &spec("")),
        f.streams().export(&path.snapshot("s"), None, &mut out),
        f.streams().export(&there.snapshot("s"), None, &mut out),
    ];
    for (index, error) in errors.into_iter().enumerate() {
        assert!(matches!(error, Err(Error::NotFound(_))), "{index}: {error:?}");
    }
    assert!(!f.exists(&path) && !f.exists(&new));
    assert_eq!(f.snapshots(&there), Vec::<String>::new());
}

pub(crate) fn lists(f: &mut Fixture) {
    for area in Area::ALL {
        assert!(f.names(area).is_empty());
    }
    for name in ["b", "a", "B", "a.b", "a-b", "0"] {
        f.make(&volume(name));
    }
    let id = "0123456789ab".parse().unwrap();
    for path in [DatasetPath::image(&id), DatasetPath::container(&id), DatasetPath::scratch(&id)] {
        f.make(&path);
    }
    assert_eq!(f.names(Area::Volumes), ["0", "B", "a", "a-b", "a.b", "b"]);
    for area in [Area::Image, Area::Container, Area::Scratch] {
        assert_eq!(f.names(area), ["0123456789ab"]);
    }
    for dataset in f.driver.list(Area::Volumes).unwrap() {
        assert_eq!(dataset.record.unwrap(), dataset.path.to_string());
    }
    let paths = f.driver.names(Area::Volumes).unwrap();
    let names: Vec<_> = paths.iter().map(|path| path.name()).collect();
    assert_eq!(names, f.names(Area::Volumes));
    for path in paths {
        f.driver.mount(&path).unwrap();
        assert_eq!(f.read(&path), path.to_string());
    }
}

pub(crate) fn names(f: &mut Fixture) {
    let longest = "v".repeat(128);
    let names = [&*longest, "0", "a..", "a.tmp", "data", "record", "9_-.", "snapshots", "A", "a"];
    for name in names {
        f.make(&volume(name));
    }
    let mut sorted: Vec<_> = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(f.names(Area::Volumes), sorted);
    for name in names {
        let path = volume(name);
        // The names of ZFS are limited as a whole.
        let snapshot = if f.driver.name() == "zfs" { &longest[..80] } else { &longest };
        f.driver.snapshot(&[path.snapshot(snapshot)], "").unwrap();
        assert_eq!(f.snapshots(&path), [snapshot]);
        assert_eq!(f.read(&path), path.to_string());
        let renamed = volume(&format!("x{}", &name[1..]));
        f.driver.rename(&path, &renamed).unwrap();
        assert_eq!(f.read(&renamed), path.to_string());
        assert!(f.driver.destroy(&renamed).unwrap());
    }
}

pub(crate) fn records(f: &mut Fixture) {
    let path = volume("records");
    let largest = "ü".repeat(4095) + "x";
    assert_eq!(largest.len(), 8191);
    let controls: String =
        (1..32u8).map(char::from).chain(['\u{7f}', '\u{202e}', '✓', '"']).collect();
    let mut made = false;
    for record in ["", "{}", " lead and trail \n", &controls, "$(id) %s \\ '", &largest] {
        if made {
            f.driver.set(&path, record).unwrap();
        } else {
            f.driver.create(&path, &spec(record)).unwrap();
            made = true;
        }
        let found = f.driver.get(&path).unwrap().unwrap().record;
        assert_eq!(found.as_deref(), Some(record));
    }
    // Another dataset begins with one as large.
    f.driver.create(&volume("large"), &spec(&largest)).unwrap();
    f.open_again();
    assert_eq!(f.driver.get(&volume("large")).unwrap().unwrap().record, Some(largest.clone()));
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    f.driver.set(&path, "after").unwrap();
    f.driver.rollback(&path.snapshot("s")).unwrap();
    assert_eq!(f.driver.get(&path).unwrap().unwrap().record.as_deref(), Some("after"));
}

pub(crate) fn owner_and_mode(f: &mut Fixture) {
    let path = volume("owned");
    let owner = Owner { uid: 770, gid: 4_000_000_000 };
    let spec =
        DatasetSpec { owner: Some(owner), mode: Some(Mode(0o3770)), ..DatasetSpec::default() };
    f.driver.create(&path, &spec).unwrap();
    let stat = fs::metadata(f.driver.mountpoint(&path)).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (770, 4_000_000_000, 0o3770));
    // Only one of them.
    let clone = volume("clone");
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    let spec = DatasetSpec { owner: None, mode: Some(Mode(0o700)), ..DatasetSpec::default() };
    f.driver.clone_from(&path.snapshot("s"), &clone, &spec).unwrap();
    let stat = fs::metadata(f.driver.mountpoint(&clone)).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (770, 4_000_000_000, 0o700));
}

pub(crate) fn destroyed(f: &mut Fixture) {
    let path = volume("gone");
    f.driver.create(&path, &spec("")).unwrap();
    sample(&f.driver.mountpoint(&path));
    f.driver.snapshot(&[path.snapshot("one")], "").unwrap();
    f.driver.snapshot(&[path.snapshot("two")], "").unwrap();
    assert!(f.driver.destroy_snapshot(&path.snapshot("one")).unwrap());
    assert!(!f.driver.destroy_snapshot(&path.snapshot("one")).unwrap());
    assert_eq!(f.snapshots(&path), ["two"]);
    assert!(f.driver.destroy(&path).unwrap());
    assert!(!f.driver.destroy(&path).unwrap());
    assert!(!f.driver.mountpoint(&path).exists() && !f.exists(&path));
    // The name is free again, and nothing of the old one comes back.
    f.driver.create(&path, &spec("again")).unwrap();
    assert_eq!(fs::read_dir(f.driver.mountpoint(&path)).unwrap().count(), 0);
    assert_eq!(f.snapshots(&path), Vec::<String>::new());
}

pub(crate) fn renamed(f: &mut Fixture) {
    let (from, to) = (DatasetPath::scratch(&"0123456789ab".parse().unwrap()), volume("to"));
    f.driver.create(&from, &spec("record")).unwrap();
    sample(&f.driver.mountpoint(&from));
    f.driver.snapshot(&[from.snapshot("s")], "").unwrap();
    let before = describe(&f.driver.mountpoint(&from));
    f.driver.rename(&from, &to).unwrap();
    assert!(!f.exists(&from) && !f.driver.mountpoint(&from).exists());
    assert_eq!(f.driver.get(&to).unwrap().unwrap().record.as_deref(), Some("record"));
    assert_same_description(&before, &describe(&f.driver.mountpoint(&to)));
    assert_eq!(f.snapshots(&to), ["s"]);
    f.driver.rollback(&to.snapshot("s")).unwrap();
    assert_same_description(&before, &describe(&f.driver.mountpoint(&to)));
    // The old name is free.
    f.make(&from);
}

pub(crate) fn in_projects(f: &mut Fixture) {
    let all = |f: &Fixture| -> Vec<String> {
        let listed = f.driver.list(Area::Volumes).unwrap();
        let listed: Vec<_> = listed.into_iter().map(|dataset| dataset.path).collect();
        assert_eq!(f.driver.names(Area::Volumes).unwrap(), listed);
        listed.iter().map(ToString::to_string).collect()
    };
    let (own, web, shop) = (volume("db"), volume("web:db"), volume("shop:db"));
    // There is no such project.
    assert!(!f.exists(&web) && !f.driver.destroy(&web).unwrap());
    let missing = f.driver.usage(&web);
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
    let missing = f.driver.rename(&web, &own);
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
    f.make(&web);
    f.make(&own);
    f.make(&volume("web:a"));
    assert_eq!(all(f), ["volumes/db", "projects/web/volumes/a", "projects/web/volumes/db"]);
    assert_eq!(f.read(&web), "projects/web/volumes/db");
    f.driver.snapshot(&[own.snapshot("s"), web.snapshot("s")], "").unwrap();
    // From one project into another that there is not yet.
    f.driver.clone_from(&web.snapshot("s"), &volume("shop:clone"), &spec("c")).unwrap();
    f.driver.rename(&web, &shop).unwrap();
    assert!(!f.exists(&web));
    assert_eq!(f.read(&shop), "projects/web/volumes/db");
    f.driver.rename(&own, &web).unwrap();
    assert_eq!((f.read(&web), f.snapshots(&web)), ("volumes/db".into(), vec!["s".into()]));
    let taken = f.driver.rename(&web, &shop);
    assert!(matches!(taken, Err(Error::Exists(_))), "{taken:?}");
    let there = all(f);
    let of = |name: &str| there.iter().filter(|path| path.contains(name)).count();
    assert_eq!((of("projects/shop/volumes/"), of("projects/web/volumes/")), (2, 2), "{there:?}");
    f.open_again();
    assert_eq!(all(f), there);
    assert_eq!(f.read(&volume("shop:clone")), "projects/web/volumes/db");
    assert!(f.driver.destroy(&volume("shop:clone")).unwrap());
    for path in [&web, &shop, &volume("web:a")] {
        assert!(f.driver.destroy(path).unwrap(), "{path}");
    }
    f.open_again();
    assert_eq!(all(f), Vec::<String>::new());
}

pub(crate) fn a_snapshot_does_not_change(f: &mut Fixture) {
    let path = volume("v");
    f.driver.create(&path, &spec("")).unwrap();
    let data = f.driver.mountpoint(&path);
    sample(&data);
    let before = describe(&data);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    // Written in place, longer, shorter, removed, replaced, renamed, other metadata.
    fs::write(data.join("etc/hostname"), "other\n").unwrap();
    fs::write(data.join("etc/one"), "linked, and longer").unwrap();
    fs::OpenOptions::new().write(true).open(data.join("hole-first")).unwrap().set_len(1).unwrap();
    fs::remove_dir_all(data.join("usr")).unwrap();
    fs::rename(data.join("acl"), data.join("renamed")).unwrap();
    fs::write(data.join("new"), "").unwrap();
    std::os::unix::fs::chown(&data, Some(9), Some(9)).unwrap();
    let clone = volume("clone");
    f.driver.clone_from(&path.snapshot("s"), &clone, &spec("")).unwrap();
    assert_same_description(&before, &describe(&f.driver.mountpoint(&clone)));
    let times: Vec<_> = f.driver.snapshots(&path).unwrap();
    assert_eq!(times.len(), 1);
    assert!(times[0].created <= kleened_api::Timestamp::now());
}

pub(crate) fn several_snapshots(f: &mut Fixture) {
    let (a, b, c) = (volume("a"), volume("b"), volume("c"));
    for path in [&a, &b, &c] {
        f.make(path);
    }
    f.driver.snapshot(&[a.snapshot("1"), b.snapshot("1")], "").unwrap();
    f.driver.snapshot(&[a.snapshot("0")], "").unwrap();
    assert_eq!(
        (f.snapshots(&a), f.snapshots(&b)),
        (vec!["1".into(), "0".into()], vec!["1".into()])
    );
    // One that exists, one of nothing: none is made.
    for bad in [b.snapshot("1"), volume("absent").snapshot("2")] {
        let all = [c.snapshot("2"), bad, a.snapshot("2")];
        assert!(f.driver.snapshot(&all, "").is_err());
        assert_eq!((f.snapshots(&c).len(), f.snapshots(&a).len()), (0, 2));
    }
    f.driver.snapshot(&[], "").unwrap();
    for name in ["z", "y", "x"] {
        f.driver.snapshot(&[c.snapshot(name)], "").unwrap();
    }
    assert_eq!(f.snapshots(&c), ["z", "y", "x"], "not from the oldest to the newest");
}

pub(crate) fn names_of_snapshots(f: &mut Fixture) {
    let path = volume("v");
    f.make(&path);
    f.driver.snapshot(&[path.snapshot("good")], "").unwrap();
    let too_long = "s".repeat(129);
    for bad in ["", ".", "..", "../../x", "a/b", "/etc", "a b", "a@b", "-a", "a\0b", &too_long] {
        let snapshot = path.snapshot(bad);
        let new = volume("new");
        assert!(f.driver.snapshot(std::slice::from_ref(&snapshot), "").is_err(), "{bad:?}");
        assert!(f.driver.destroy_snapshot(&snapshot).is_err(), "{bad:?}");
        assert!(f.driver.rollback(&snapshot).is_err(), "{bad:?}");
        assert!(f.driver.clone_from(&snapshot, &new, &spec("")).is_err(), "{bad:?}");
        assert!(f.streams().export(&snapshot, None, &mut Vec::new()).is_err(), "{bad:?}");
        assert!(f.streams().export(&path.snapshot("good"), Some(bad), &mut Vec::new()).is_err());
        assert!(!f.exists(&new));
    }
    assert_eq!(f.snapshots(&path), ["good"]);
    assert_eq!(f.read(&path), path.to_string());
}

pub(crate) fn a_clone_is_whole(f: &mut Fixture) {
    let (path, clone) = (volume("v"), volume("clone"));
    f.driver.create(&path, &spec("one")).unwrap();
    sample(&f.driver.mountpoint(&path));
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    f.driver.clone_from(&path.snapshot("s"), &clone, &spec("two")).unwrap();
    assert_same(&f.driver.mountpoint(&path), &f.driver.mountpoint(&clone));
    assert_eq!(mode_of(&f.driver.mountpoint(&clone)), 0o2750);
    let record = |path: &DatasetPath| f.driver.get(path).unwrap().unwrap().record.unwrap();
    assert_eq!((record(&path), record(&clone)), ("one".into(), "two".into()));
    assert_eq!(f.snapshots(&clone), Vec::<String>::new());
    // Sockets are part of it, too.
    let socket = |path: &Path| path.join("socket").symlink_metadata().unwrap().mode();
    assert_eq!(socket(&f.driver.mountpoint(&path)), socket(&f.driver.mountpoint(&clone)));
}

pub(crate) fn a_clone_is_apart(f: &mut Fixture) {
    let (path, one, two) = (volume("v"), volume("one"), volume("two"));
    f.make(&path);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    f.driver.clone_from(&path.snapshot("s"), &one, &spec("")).unwrap();
    fs::write(f.file(&one), "changed").unwrap();
    f.driver.clone_from(&path.snapshot("s"), &two, &spec("")).unwrap();
    assert_eq!((f.read(&path), f.read(&two)), (path.to_string(), path.to_string()));
    // Its origin may be needed, and is then busy; what must not happen is that the clone suffers.
    match f.driver.destroy(&path) {
        Ok(true) => (),
        Err(Error::Busy(_)) => assert_eq!(f.read(&path), path.to_string()),
        other => panic!("{other:?}"),
    }
    assert_eq!((f.read(&one), f.read(&two)), ("changed".to_owned(), path.to_string()));
    assert!(f.driver.destroy(&one).unwrap() && f.driver.destroy(&two).unwrap());
    f.driver.destroy(&path).unwrap();
    assert!(!f.exists(&path));
}

pub(crate) fn rolled_back(f: &mut Fixture) {
    let path = volume("v");
    f.driver.create(&path, &spec("")).unwrap();
    let data = f.driver.mountpoint(&path);
    sample(&data);
    let before = describe(&data);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    for _ in 0..2 {
        fs::remove_dir_all(data.join("etc")).unwrap();
        fs::write(data.join("new"), "").unwrap();
        f.driver.set(&path, "kept").unwrap();
        f.driver.rollback(&path.snapshot("s")).unwrap();
        assert_same_description(&before, &describe(&data));
    }
    assert_eq!(f.driver.get(&path).unwrap().unwrap().record.as_deref(), Some("kept"));
    fs::write(data.join("new"), "").unwrap();
    f.driver.snapshot(&[path.snapshot("newer")], "").unwrap();
    f.driver.rollback(&path.snapshot("s")).unwrap();
    assert_same_description(&before, &describe(&data));
    assert_eq!(f.snapshots(&path), ["s", "newer"]);
    f.driver.rollback(&path.snapshot("newer")).unwrap();
    assert!(data.join("new").exists());
}

pub(crate) fn usage_grows(f: &mut Fixture) {
    let path = volume("v");
    f.make(&path);
    f.settle(&path);
    let first = f.driver.usage(&path).unwrap();
    let big = f.driver.mountpoint(&path).join("big");
    // What can't be compressed.
    let mut bytes = vec![0; 4 << 20];
    let mut random = fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
    let mut file = fs::File::create(&big).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::hard_link(&big, big.with_extension("link")).unwrap();
    f.settle(&path);
    let second = f.driver.usage(&path).unwrap();
    let grown = second.referenced - first.referenced;
    assert!((4 << 20..5 << 20).contains(&grown), "{grown} bytes more");
    assert!(second.used >= second.referenced && second.available > 0);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    fs::remove_file(&big).unwrap();
    fs::remove_file(big.with_extension("link")).unwrap();
    // The kernel may free what was removed a little later.
    let mut third = second;
    for _ in 0..100 {
        f.settle(&path);
        third = f.driver.usage(&path).unwrap();
        if third.referenced < second.referenced {
            break;
        }
    }
    assert!(third.referenced < second.referenced, "{third:?}");
    assert!(third.used >= 4 << 20, "the snapshot's space is not counted: {third:?}");
    assert!(third.snapshots >= 4 << 20, "what only the snapshot holds: {third:?}");
    f.make(&volume("other"));
    let all = f.driver.usages(&[volume("other"), path, volume("none")]).unwrap();
    let snapshots: Vec<_> = all.iter().map(|usage| Some((*usage)?.snapshots)).collect();
    assert_eq!(snapshots, [Some(0), Some(third.snapshots), None]);
    assert!(f.driver.usages(&[]).unwrap().is_empty());
}

pub(crate) fn opened_again(f: &mut Fixture) {
    let (path, clone) = (volume("v"), volume("clone"));
    f.driver.create(&path, &spec("one")).unwrap();
    sample(&f.driver.mountpoint(&path));
    f.driver.snapshot(&[path.snapshot("b")], "").unwrap();
    f.driver.snapshot(&[path.snapshot("a")], "").unwrap();
    f.driver.clone_from(&path.snapshot("a"), &clone, &spec("two")).unwrap();
    let before = (f.driver.list(Area::Volumes).unwrap(), f.driver.snapshots(&path).unwrap());
    let tree = describe(&f.driver.mountpoint(&path));
    for _ in 0..2 {
        f.open_again();
        let now = (f.driver.list(Area::Volumes).unwrap(), f.driver.snapshots(&path).unwrap());
        assert_eq!(before, now);
        assert_same_description(&tree, &describe(&f.driver.mountpoint(&path)));
    }
}

pub(crate) fn one_name_many_threads(f: &mut Fixture) {
    let (driver, start) = (&*f.driver, Barrier::new(8));
    for round in 0..10 {
        let path = volume(&format!("v{round}"));
        let won = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (path, start) = (&path, &start);
                    scope.spawn(move || {
                        start.wait();
                        match driver.create(path, &spec(&thread.to_string())) {
                            Ok(()) => Some(thread),
                            Err(Error::Exists(_)) => None,
                            Err(other) => panic!("{other:?}"),
                        }
                    })
                })
                .collect();
            let won: Vec<_> = threads.into_iter().filter_map(|t| t.join().unwrap()).collect();
            won
        });
        let [winner] = &*won else { panic!("{won:?} all made it") };
        assert_eq!(driver.get(&path).unwrap().unwrap().record, Some(winner.to_string()));
    }
}

pub(crate) fn many_names_many_threads(f: &mut Fixture) {
    let driver = &*f.driver;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for index in 0..12 {
                    let path = volume(&format!("v-{thread}-{index}"));
                    driver.create(&path, &spec(&path.to_string())).unwrap();
                    assert_eq!(driver.get(&path).unwrap().unwrap().record, Some(path.to_string()));
                }
            });
        }
    });
    let all = driver.list(Area::Volumes).unwrap();
    assert_eq!(all.len(), 96);
    assert!(all.iter().all(|dataset| dataset.record == Some(dataset.path.to_string())));
}

/// Verbs on few names from many threads: each succeeds, or fails with what the contract says; what is
/// listed is whole.
pub(crate) fn everything_at_once(f: &mut Fixture) {
    let driver = &*f.driver;
    std::thread::scope(|scope| {
        for thread in 0..6u32 {
            scope.spawn(move || {
                for round in 0..25u32 {
                    let pick = |of: u32, by: u32| (thread * 7 + round * by) % of;
                    let path = volume(&format!("v{}", pick(3, 5)));
                    let other = volume(&format!("v{}", pick(3, 11)));
                    let done = match pick(7, 3) {
                        0 => driver.create(&path, &spec("whole")),
                        1 => driver.destroy(&path).map(drop),
                        2 => driver.rename(&path, &other),
                        3 if path == other => driver.snapshot(&[path.snapshot("s")], ""),
                        3 => driver.snapshot(&[path.snapshot("s"), other.snapshot("t")], ""),
                        4 => driver.clone_from(&path.snapshot("s"), &other, &spec("whole")),
                        5 => driver.destroy_snapshot(&path.snapshot("s")).map(drop),
                        _ => driver.set(&path, "whole"),
                    };
                    if let Err(Error::Io { .. } | Error::Unsupported(_)) = done {
                        panic!("{done:?}");
                    }
                    for dataset in driver.list(Area::Volumes).unwrap() {
                        assert_eq!(dataset.record.as_deref(), Some("whole"));
                    }
                }
            });
        }
    });
}

/// A driver that has no limits or properties refuses them before anything is made; one that has them
/// makes what was asked for.
pub(crate) fn limits(f: &mut Fixture) {
    let path = volume("limited");
    let record = || "record".to_owned();
    let size = DatasetSpec { record: record(), size: Some(8 << 20), ..DatasetSpec::default() };
    let reserve = DatasetSpec { record: record(), reserve: Some(1 << 20), ..Default::default() };
    let properties = [("recordsize".to_owned(), "16K".to_owned())].into();
    let properties = DatasetSpec { record: record(), properties, ..DatasetSpec::default() };
    f.make(&volume("source"));
    f.driver.snapshot(&[volume("source").snapshot("s")], "").unwrap();
    let snapshot = volume("source").snapshot("s");
    for spec in [&size, &reserve, &properties] {
        for clone in [false, true] {
            let made = match clone {
                false => f.driver.create(&path, spec),
                true => f.driver.clone_from(&snapshot, &path, spec),
            };
            if f.driver.name() == "dir" {
                assert!(matches!(made, Err(Error::Unsupported(_))), "{made:?}");
                assert!(!f.exists(&path));
                continue;
            }
            made.unwrap();
            assert_eq!(f.driver.get(&path).unwrap().unwrap().record.as_deref(), Some("record"));
            assert_eq!(f.driver.usage(&path).unwrap().size, spec.size);
            assert!(f.driver.destroy(&path).unwrap());
        }
    }
    if f.driver.name() == "dir" {
        return;
    }
    for (key, value) in [("recordsize", "3"), ("no-such-property", "1"), ("used", "1")] {
        let properties = [(key.to_owned(), value.to_owned())].into();
        let bad = DatasetSpec { record: record(), properties, ..DatasetSpec::default() };
        let refused = f.driver.create(&path, &bad);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{key}={value}: {refused:?}");
        assert!(!f.exists(&path));
    }
    f.driver.create(&path, &size).unwrap();
    // What can't be compressed.
    let mut random = fs::File::open("/dev/urandom").unwrap().take(16 << 20);
    let mut file = fs::File::create(f.file(&path)).unwrap();
    let written = io::copy(&mut random, &mut file).and_then(|_| file.sync_all());
    assert!(written.is_err(), "16 MiB went into 8");
}
