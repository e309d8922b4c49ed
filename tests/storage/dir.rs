//! What only the `dir` driver has: its layout, what a person may do to it, and full disks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kleene_tests::mounts::{Mounted, bind, private, unmount};
use kleene_tests::tree::describe;
use kleened::storage::{Area, DatasetSpec, Driver, Error, dir};

use crate::fixture::{Fixture, volume};

fn fixture() -> Fixture {
    Fixture::of("dir", tempfile::tempdir().unwrap()).unwrap()
}

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

fn folders(root: &Path, folder: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(root.join(".kleene").join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

#[test]
fn the_layout() {
    let f = fixture();
    let path = volume("my-vol");
    f.make(&path);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    let root = f.root();
    let link = fs::read_link(root.join("volumes/my-vol")).unwrap();
    let home = root.join("volumes").join(&link).parent().unwrap().canonicalize().unwrap();
    assert!(link.starts_with("../.kleene/datasets") && link.ends_with("data"), "{link:?}");
    assert_eq!(fs::read_to_string(home.join("record")).unwrap(), path.to_string());
    assert_eq!(fs::read_to_string(home.join("snapshots/s/data/file")).unwrap(), path.to_string());
    assert_eq!(fs::metadata(root.join(".kleene")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(home.join("record")).unwrap().permissions().mode() & 0o777, 0o600);
    // It can be moved: nothing in it knows where it is.
    let elsewhere = f.beside("moved").join("root");
    fs::rename(&root, &elsewhere).unwrap();
    let driver = dir::open(&elsewhere).unwrap();
    assert_eq!(driver.list(Area::Volumes).unwrap().len(), 1);
    assert_eq!(
        fs::read_to_string(driver.mountpoint(&path).join("file")).unwrap(),
        path.to_string()
    );
}

/// Where no call renames without replacing, a crash can leave a link with both of its names.
#[test]
fn a_renaming_that_was_cut_off() {
    let mut f = fixture();
    for (old, new) in [("a", "z"), ("y", "b")] {
        let path = volume(old);
        f.make(&path);
        let volumes = f.root().join("volumes");
        fs::hard_link(volumes.join(old), volumes.join(new)).unwrap();
        f.open_again();
        let names: Vec<_> = f.names(Area::Volumes);
        let [name] = &*names else { panic!("{names:?}") };
        assert!([old, new].contains(&&**name), "{name}");
        let path = volume(name);
        assert_eq!(f.read(&path), volume(old).to_string());
        f.driver.destroy(&path).unwrap();
    }
}

/// What can't be found out is an error, and never "there is none".
#[test]
fn a_broken_root_is_not_an_empty_one() {
    let unknown = |f: &Fixture, what: &str| {
        let path = volume("v");
        let errors = [
            f.driver.list(Area::Volumes).map(drop),
            f.driver.get(&path).map(drop),
            f.driver.create(&path, &spec("")),
            f.driver.destroy(&path).map(drop),
            f.driver.destroy_snapshot(&path.snapshot("s")).map(drop),
            f.driver.set(&path, ""),
            f.driver.usage(&path).map(drop),
            f.driver.snapshots(&path).map(drop),
            f.driver.snapshot(&[path.snapshot("t")], ""),
            f.driver.rename(&path, &volume("w")),
            f.driver.rename(&volume("w"), &path),
        ];
        for (index, error) in errors.into_iter().enumerate() {
            assert!(matches!(error, Err(Error::Io { .. })), "{what}, {index}: {error:?}");
        }
    };
    for (what, sabotage) in [
        ("no area", (|area| fs::remove_dir_all(area).unwrap()) as fn(&Path)),
        ("a file for an area", |area| {
            fs::remove_dir_all(area).unwrap();
            fs::write(area, "").unwrap();
        }),
        ("a link for an area", |area| {
            fs::remove_dir_all(area).unwrap();
            symlink("/etc", area).unwrap();
        }),
    ] {
        let f = fixture();
        f.make(&volume("v"));
        sabotage(&f.root().join("volumes"));
        unknown(&f, what);
    }
    // The record and the snapshots of one dataset.
    let f = fixture();
    let (path, other) = (volume("v"), volume("other"));
    f.make(&path);
    f.make(&other);
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    let home = f.driver.mountpoint(&path).canonicalize().unwrap().parent().unwrap().to_owned();
    fs::write(home.join("snapshots/s/about"), "{").unwrap();
    assert!(matches!(f.driver.snapshots(&path), Err(Error::Io { .. })));
    assert!(matches!(f.driver.snapshot(&[path.snapshot("t")], ""), Err(Error::Io { .. })));
    for bytes in [&b"\xff"[..], b""] {
        fs::remove_file(home.join("record")).unwrap();
        if bytes.is_empty() {
            fs::create_dir(home.join("record")).unwrap();
        } else {
            fs::write(home.join("record"), bytes).unwrap();
        }
        assert!(matches!(f.driver.get(&path), Err(Error::Io { .. })));
        assert!(matches!(f.driver.list(Area::Volumes), Err(Error::Io { .. })));
    }
    assert!(f.exists(&other));
    // No record at all: somebody else's, which is known.
    fs::remove_dir(home.join("record")).unwrap();
    assert_eq!(f.driver.get(&path).unwrap().unwrap().record, None);
    f.driver.set(&path, "again").unwrap();
    assert_eq!(f.driver.get(&path).unwrap().unwrap().record.as_deref(), Some("again"));
}

/// What a person put into an area is shown, and left alone.
#[test]
fn what_somebody_else_put_there() {
    let mut f = fixture();
    let outside = f.beside("outside");
    fs::write(outside.join("file"), "precious").unwrap();
    f.make(&volume("ours"));
    let area = f.root().join("volumes");
    let ours = fs::read_link(area.join("ours")).unwrap();
    let id = ours.components().nth(3).unwrap().as_os_str().to_str().unwrap().to_owned();
    fs::create_dir(area.join("a-dir")).unwrap();
    fs::write(area.join("a-dir/file"), "precious").unwrap();
    fs::write(area.join("a-file"), "precious").unwrap();
    symlink(&outside, area.join("absolute")).unwrap();
    symlink("../../outside", area.join("relative")).unwrap();
    symlink(format!("../.kleene/datasets/{id}"), area.join("nearly")).unwrap();
    symlink(format!("../.kleene/datasets/../datasets/{id}/data"), area.join("round")).unwrap();
    symlink("../.kleene/datasets/../../../outside/data", area.join("escape")).unwrap();
    symlink("../.kleene/datasets/0123456789abcdeg/data", area.join("no-id")).unwrap();
    fs::write(area.join(".hidden"), "").unwrap();
    fs::write(area.join("not a name"), "").unwrap();
    let (before, before_outside) = (describe(&area), describe(&outside));
    let names = ["a-dir", "a-file", "absolute", "escape", "nearly", "no-id", "relative", "round"];
    for _ in 0..2 {
        for dataset in f.driver.list(Area::Volumes).unwrap() {
            let ours = dataset.path == volume("ours");
            assert_eq!(dataset.record.is_some(), ours, "{}", dataset.path);
        }
        assert_eq!(f.names(Area::Volumes).len(), names.len() + 1);
        for name in names {
            let path = volume(name);
            assert_eq!(f.driver.get(&path).unwrap().unwrap().record, None);
            let errors = [
                f.driver.destroy(&path).map(drop),
                f.driver.rename(&path, &volume("new")),
                f.driver.set(&path, "ours now"),
                f.driver.snapshot(&[path.snapshot("s")], ""),
                f.driver.rollback(&path.snapshot("s")),
                f.driver.usage(&path).map(drop),
            ];
            for (index, error) in errors.into_iter().enumerate() {
                let Err(Error::Unsupported(text)) = error else {
                    panic!("{name} {index}: {error:?}")
                };
                assert!(text.contains("was not made by this program"), "{text}");
            }
            assert!(matches!(f.driver.create(&path, &spec("")), Err(Error::Exists(_))));
            assert!(matches!(f.driver.rename(&volume("ours"), &path), Err(Error::Exists(_))));
        }
        f.open_again();
    }
    assert_eq!(before, describe(&area));
    assert_eq!(before_outside, describe(&outside));
    assert_eq!(f.read(&volume("ours")), "volumes/ours");
}

/// What is there after a crash or after a person's hand, and what the next start makes of it.
#[test]
fn recovery_does_not_guess() {
    let mut f = fixture();
    let (a, b, c) = (volume("a"), volume("b"), volume("c"));
    for path in [&a, &b, &c] {
        f.make(path);
    }
    let root = f.root();
    let home =
        |path| f.driver.mountpoint(path).canonicalize().unwrap().parent().unwrap().to_owned();
    let (home_a, home_b, home_c) = (home(&a), home(&b), home(&c));
    // A person removed the link of one, and linked another twice.
    let link = fs::read_link(root.join("volumes/a")).unwrap();
    fs::remove_file(root.join("volumes/a")).unwrap();
    symlink(fs::read_link(root.join("volumes/b")).unwrap(), root.join("volumes/b2")).unwrap();
    // A dead one that a person gave a name again.
    symlink(
        fs::read_link(root.join("volumes/c")).unwrap(),
        root.join(".kleene/dead/0123456789abcdef"),
    )
    .unwrap();
    // Something strange among the dead, and a draft of nothing, one with a file that resists.
    fs::create_dir_all(root.join(".kleene/new/0000000000000000/data/x")).unwrap();
    fs::write(root.join(".kleene/new/loose"), "").unwrap();
    fs::create_dir_all(root.join(".kleene/dead/1111111111111111/data")).unwrap();
    f.open_again();
    for home in [&home_a, &home_b, &home_c] {
        assert!(home.join("data/file").exists(), "{home:?}");
    }
    assert_eq!(f.names(Area::Volumes), ["b", "b2", "c"]);
    for folder in ["new", "commit", "dead"] {
        assert_eq!(folders(&root, folder), Vec::<PathBuf>::new());
    }
    // Linked again it is as before.
    symlink(link, root.join("volumes/a")).unwrap();
    assert_eq!(
        (f.read(&a), f.driver.get(&a).unwrap().unwrap().record),
        ("volumes/a".into(), Some("volumes/a".into()))
    );
    fs::remove_file(root.join("volumes/b2")).unwrap();
    // A link that leads nowhere is still a name, and can be destroyed.
    fs::remove_dir_all(&home_a).unwrap();
    assert_eq!(f.driver.get(&a).unwrap().unwrap().record, None);
    assert!(matches!(f.driver.usage(&a), Err(Error::Io { .. })));
    assert!(f.driver.destroy(&a).unwrap());
    assert!(!f.exists(&a));
    f.nothing_is_left_over();
}

#[test]
fn a_root_of_another_format_is_refused() {
    let f = fixture();
    fs::write(f.root().join(".kleene/format"), "kleene dir 2\n").unwrap();
    let error = dir::open(&f.root()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("'kleene dir 2'"), "{error}");
}

#[test]
fn changes_that_were_decided_are_made() {
    let mut f = fixture();
    let path = volume("v");
    f.make(&path);
    let id = f.driver.mountpoint(&path).canonicalize().unwrap();
    let id = id.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let commit = f.root().join(".kleene/commit/0123456789abcdef");
    // One whose dataset is gone since, and one that was made before.
    fs::create_dir_all(commit.join("0/data")).unwrap();
    let gone = r#"{"Snapshot":{"part":"0","dataset":"fedcba9876543210","name":"s"}}"#;
    let made = format!(r#"{{"Snapshot":{{"part":"1","dataset":"{id}","name":"s"}}}}"#);
    let content = format!(r#"{{"Content":{{"part":"0","dataset":"{id}","inode":1}}}}"#);
    fs::write(commit.join("steps"), format!("[{gone},{made},{content}]")).unwrap();
    f.open_again();
    assert_eq!((f.read(&path), f.snapshots(&path).len()), ("volumes/v".to_owned(), 0));
    f.nothing_is_left_over();
}

/// Runs in a thread with mounts of its own.
fn with_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if private() {
            test();
        }
    });
    if let Err(failure) = thread.join() {
        std::panic::resume_unwind(failure);
    }
}

#[test]
fn what_is_mounted_is_busy() {
    with_mounts(|| {
        let mut f = fixture();
        let path = volume("v");
        f.make(&path);
        f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
        let data = f.driver.mountpoint(&path);
        fs::create_dir(data.join("on")).unwrap();
        let elsewhere = f.beside("elsewhere");
        fs::write(elsewhere.join("precious"), "").unwrap();
        // The dataset somewhere else, and something else on it.
        for (source, target) in [(&data, &elsewhere), (&elsewhere, &data.join("on"))] {
            bind(source, target);
            for error in [f.driver.destroy(&path).map(drop), f.driver.rollback(&path.snapshot("s"))]
            {
                assert!(matches!(error, Err(Error::Busy(_))), "{error:?}");
            }
            assert_eq!(f.read(&path), path.to_string());
            unmount(target);
        }
        assert!(elsewhere.join("precious").exists());
        f.driver.rollback(&path.snapshot("s")).unwrap();
        f.nothing_is_left_over();
    });
}

/// What every verb does on a file system that has just so much room: it succeeds, or says that
/// there is no space, with everything as it was.
#[test]
fn a_full_disk() {
    with_mounts(|| {
        let mounted = Mounted::tmpfs("size=1m");
        let root = mounted.path().join("root");
        let driver = dir::open(&root).unwrap();
        let path = volume("v");
        driver.create(&path, &spec("")).unwrap();
        fs::write(driver.mountpoint(&path).join("file"), vec![1; 400 << 10]).unwrap();
        driver.snapshot(&[path.snapshot("s")], "").unwrap();
        let mut stream = Vec::new();
        driver.streams().unwrap().export(&path.snapshot("s"), None, &mut stream).unwrap();
        let full = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}");
            for folder in ["new", "commit", "dead"] {
                assert_eq!(folders(&root, folder), Vec::<PathBuf>::new());
            }
        };
        let new = volume("new");
        full(driver.snapshot(&[path.snapshot("t")], ""));
        full(driver.clone_from(&path.snapshot("s"), &new, &spec("")));
        full(driver.streams().unwrap().import(&new, &spec(""), &mut &*stream));
        full(driver.rollback(&path.snapshot("s")));
        // Until there is no room for anything.
        let filler = mounted.path().join("filler");
        let error = fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        full(driver.create(&new, &spec("record")));
        full(driver.set(&path, &"x".repeat(5000)));
        assert_eq!(driver.get(&path).unwrap().unwrap().record.as_deref(), Some(""));
        assert_eq!(driver.get(&new).unwrap(), None);
        assert_eq!(driver.snapshots(&path).unwrap().len(), 1);
        // To destroy makes room, and takes none.
        assert!(driver.destroy_snapshot(&path.snapshot("s")).unwrap());
        assert!(driver.destroy(&path).unwrap());
        driver.create(&new, &spec("record")).unwrap();
        fs::remove_file(filler).unwrap();
        assert_eq!(folders(&root, "datasets").len(), 1);
    });
}

/// Snapshots and clones share their space where the file system can, and the driver knows it.
#[test]
fn copies_share_their_space_where_they_can() {
    with_mounts(|| {
        for (kind, shares) in [("xfs", true), ("btrfs", true), ("ext4", false)] {
            let Some(mounted) = Mounted::image(kind, 320) else { continue };
            let driver = dir::open(&mounted.path().join("root")).unwrap();
            assert_eq!(driver.capabilities().clones_share_space, shares, "{kind}");
            let (path, clone) = (volume("v"), volume("clone"));
            driver.create(&path, &spec("")).unwrap();
            fs::write(driver.mountpoint(&path).join("big"), vec![1; 20 << 20]).unwrap();
            // What is not on the disk yet is not counted everywhere.
            let top = fs::File::open(driver.mountpoint(&path)).unwrap();
            kleened_sys::fs::sync_file_system(&top).unwrap();
            let before = driver.usage(&path).unwrap().available;
            driver.snapshot(&[path.snapshot("s")], "").unwrap();
            driver.clone_from(&path.snapshot("s"), &clone, &spec("")).unwrap();
            kleene_tests::tree::assert_same(&driver.mountpoint(&path), &driver.mountpoint(&clone));
            let taken = before.saturating_sub(driver.usage(&path).unwrap().available);
            assert_eq!(taken < 20 << 20, shares, "{kind}: {taken} bytes taken");
        }
    });
}

/// A tree as deep as a hostile container can make it is measured, copied, exported and removed.
#[test]
fn a_very_deep_tree() {
    let mut f = fixture();
    let (path, clone, copy) = (volume("deep"), volume("clone"), volume("copy"));
    f.driver.create(&path, &spec("")).unwrap();
    let mut here = rustix::fs::open(
        f.driver.mountpoint(&path),
        rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    for _ in 0..600 {
        rustix::fs::mkdirat(&here, "deeper", rustix::fs::Mode::RWXU).unwrap();
        here = kleened_sys::fs::open_directory(&here, "deeper").unwrap();
    }
    f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
    f.driver.clone_from(&path.snapshot("s"), &clone, &spec("")).unwrap();
    let mut stream = Vec::new();
    f.streams().export(&path.snapshot("s"), None, &mut stream).unwrap();
    f.streams().import(&copy, &spec(""), &mut &*stream).unwrap();
    let used = |path| f.driver.usage(path).unwrap().referenced;
    assert_eq!(used(&path), used(&copy));
    assert!(used(&path) >= 600 * 512 || used(&path) == 0);
    f.nothing_is_left_over();
}

#[test]
fn modes_of_the_root_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
    let driver: Box<dyn Driver> = dir::open(&root).unwrap();
    assert_eq!(driver.name(), "dir");
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o711);
}
