//! Taking over datasets that others made.

use std::fs;

use kleene_tests::tree::{describe, sample};
use kleened::storage::{Area, DRIVERS, DatasetPath, Error};

use crate::crash::{self, ADOPT};
use crate::fixture::{Fixture, in_memory, volume};
use crate::place::{Place, zfs};

fn fixture() -> Option<Fixture> {
    Fixture::of("zfs", in_memory())
}

fn record(f: &Fixture, path: &DatasetPath) -> Option<String> {
    f.driver.get(path).unwrap().unwrap().record
}

/// What others made becomes a volume, with all that it has.
#[test]
fn adopted() {
    let Some(mut f) = fixture() else { return };
    let adopt = |f: &Fixture, dataset: &str, path: &DatasetPath, record: &str| {
        f.driver.adopt().unwrap().adopt(dataset, path, record)
    };
    let (other, path) = (Place::of("zfs", in_memory()).unwrap(), volume("v"));
    let (root, name) = (f.place().dataset().to_owned(), format!("{}/theirs", other.dataset()));
    let at = other.folder().join("elsewhere");
    let mountpoint = format!("mountpoint={}", at.display());
    zfs(&["create", "-o", &mountpoint, "-o", "recordsize=16K", "-o", "quota=1G", &name]);
    sample(&at);
    zfs(&["snapshot", &format!("{name}@s")]);
    let before = describe(&at);
    adopt(&f, &name, &path, "mine").unwrap();
    let check = |f: &Fixture, record_is: &str| {
        assert_eq!(before, describe(&f.driver.mountpoint(&path)));
        assert_eq!(f.snapshots(&path), ["s"]);
        assert_eq!(record(f, &path).as_deref(), Some(record_is));
        let names = "mountpoint,mounted,recordsize,quota";
        let set = zfs(&["get", "-Hpo", "value", names, &format!("{root}/volumes/v")]);
        let home = f.driver.mountpoint(&path);
        assert_eq!(set, format!("{}\nyes\n16384\n1073741824\n", home.display()));
        assert!(!at.exists() || fs::read_dir(&at).unwrap().next().is_none());
    };
    check(&f, "mine");
    // Again, under its old name and its new one.
    adopt(&f, &name, &path, "again").unwrap();
    check(&f, "again");
    f.open_again();
    adopt(&f, &format!("{root}/volumes/v"), &path, "once more").unwrap();
    check(&f, "once more");
    // One that somebody made in the root becomes one of it.
    zfs(&["create", "-u", "-o", &mountpoint, &format!("{root}/volumes/w")]);
    adopt(&f, &format!("{root}/volumes/w"), &volume("w"), "w").unwrap();
    assert_eq!(record(&f, &volume("w")).as_deref(), Some("w"));
    assert!(f.driver.destroy(&volume("w")).unwrap() && f.driver.destroy(&path).unwrap());
    f.nothing_is_left_over();
}

/// What is encrypted is taken over with its key, and says so where that is not loaded.
#[test]
fn encrypted() {
    let Some(mut f) = fixture() else { return };
    let (other, path) = (Place::of("zfs", in_memory()).unwrap(), volume("v"));
    let (top, below) =
        (format!("{}/top", other.dataset()), format!("{}/top/below", other.dataset()));
    let key = other.folder().join("key");
    fs::write(&key, [7; 32]).unwrap();
    let location = format!("keylocation=file://{}", key.display());
    zfs(&["create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", &location, &top]);
    zfs(&["create", &below]);
    let adopt = |f: &Fixture, name: &str| f.driver.adopt().unwrap().adopt(name, &path, "mine");
    let refused = |f: &Fixture, name: &str, why: &str| match adopt(f, name) {
        Err(Error::Invalid(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}"),
    };
    refused(&f, &below, "zfs change-key");
    assert_eq!(zfs(&["get", "-Ho", "value", "mounted", &below]), "yes\n");
    zfs(&["destroy", &below]);
    zfs(&["unmount", &top]);
    zfs(&["unload-key", &top]);
    refused(&f, &top, "zfs load-key");
    zfs(&["load-key", &top]);
    zfs(&["mount", &top]);
    fs::write(other.root().join("top/file"), "secret").unwrap();
    adopt(&f, &top).unwrap();
    assert_eq!(f.read(&path), "secret");
    // As after the host's start.
    let name = format!("{}/volumes/v", f.place().dataset());
    zfs(&["unmount", &name]);
    zfs(&["unload-key", &name]);
    f.open_again();
    assert_eq!(record(&f, &path).as_deref(), Some("mine"));
    let error = f.driver.mount(&path).unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("zfs load-key"), "{source}");
    zfs(&["load-key", &name]);
    f.driver.mount(&path).unwrap();
    assert_eq!(f.read(&path), "secret");
    f.nothing_is_left_over();
}

/// What can't be taken over is left as it is, mounts included.
#[test]
fn not_adopted() {
    let Some(mut f) = fixture() else { return };
    let (other, root) = (Place::of("zfs", in_memory()).unwrap(), f.place().dataset().to_owned());
    let top = other.dataset().to_owned();
    f.make(&volume("taken"));
    f.make(&volume("v"));
    let name = |last: &str| format!("{top}/{last}");
    for last in ["above", "above/below", "used", "given", "free"] {
        zfs(&["create", &name(last)]);
    }
    zfs(&["set", "zoned=on", &name("given")]);
    zfs(&["create", "-V", "1M", "-s", &name("block")]);
    zfs(&["snapshot", &name("free@s")]);
    let open = fs::File::create(other.root().join("used/file")).unwrap();
    let list = || zfs(&["list", "-Hrt", "all", "-o", "name,mounted,mountpoint", &top]);
    let records = || zfs(&["get", "-Hr", "-s", "local", "-o", "name,property", "all", &top]);
    let before = (list(), records());
    let adopt = |dataset: &str, to: &str| {
        let error = f.driver.adopt().unwrap().adopt(dataset, &volume(to), "mine").unwrap_err();
        assert_eq!((list(), records()), before, "{dataset}");
        error
    };
    for (dataset, says) in [
        (&*name("above"), "above/below is below it"),
        (&*name("block"), "not a file system"),
        (&*name("given"), "jail"),
        (&*name("free@s"), "not the name of a dataset"),
        ("", "another pool"),
        ("/", "another pool"),
        ("no-such-pool/x", "another pool"),
        (&*format!("{top}/"), "not the name of a dataset"),
        (&*format!("{top}/a b\n"), ""),
        (&*root, "is a part of"),
        (&root[..root.rfind('/').unwrap()], "above it"),
        (&*format!("{root}/volumes"), "is a part of"),
        (&*format!("{root}/volumes/v"), "is a part of"),
    ] {
        match adopt(dataset, "new") {
            Error::Invalid(text) => assert!(text.contains(says), "{dataset}: {text}"),
            Error::NotFound(_) if says.is_empty() => (),
            error => panic!("{dataset}: {error:?}"),
        }
    }
    assert!(matches!(adopt(&name("used"), "new"), Error::Busy(_)));
    assert!(matches!(adopt(&name("none"), "new"), Error::NotFound(_)));
    assert!(matches!(adopt(&name("none"), "v"), Error::NotFound(_)));
    assert!(matches!(adopt(&name("free"), "taken"), Error::Exists(_)));
    let long = "v".repeat(128);
    zfs(&["snapshot", &format!("{}@{}", name("free"), "s".repeat(200 - top.len()))]);
    let before = (list(), records());
    let error = f.driver.adopt().unwrap().adopt(&name("free"), &volume(&long), "mine");
    assert!(matches!(error, Err(Error::Invalid(_))), "{error:?}");
    assert_eq!((list(), records()), before);
    drop(open);
    assert_eq!(f.names(Area::Volumes), ["taken", "v"]);
    f.nothing_is_left_over();
}

/// Killed between any two steps of taking a dataset over: it is taken over, mounts and all, or stays where
/// it was; and a repeat finishes it.
#[test]
fn adoption_that_is_cut_off() {
    let entry = DRIVERS.iter().find(|entry| entry.name == "zfs").unwrap();
    let path = volume("adopted");
    for point in 1.. {
        let Some(mut f) = fixture() else { return };
        let other = Place::of("zfs", in_memory()).unwrap();
        let (name, at) = (format!("{}/theirs", other.dataset()), other.folder().join("theirs"));
        zfs(&["create", "-o", &format!("mountpoint={}", at.display()), &name]);
        fs::write(at.join("file"), "precious").unwrap();
        let killed = crash::killed(entry, &f.root(), &format!("{ADOPT}{name}"), point);
        f.open_again();
        let adopted = |f: &Fixture| {
            assert_eq!(record(f, &path).as_deref(), Some("adopted"), "point {point}");
            assert_eq!(f.read(&path), "precious");
            let new = format!("{}/volumes/adopted", f.place().dataset());
            let source = zfs(&["get", "-Ho", "source", "mountpoint", &new]);
            assert!(source.starts_with("inherited from"), "point {point}: {source}");
        };
        if f.exists(&path) {
            adopted(&f);
        } else {
            assert!(killed);
            zfs(&["list", &name]);
        }
        f.driver.adopt().unwrap().adopt(&name, &path, "adopted").unwrap();
        adopted(&f);
        f.nothing_is_left_over();
        if !killed {
            assert!(point > 5, "only {point} points");
            return;
        }
    }
}
