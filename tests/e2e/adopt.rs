//! Datasets of others that become volumes.

use std::fs;
use std::path::Path;

use kleene_tests::harness::{Daemon, has};
use kleene_tests::pool::{Root, pool, zfs};

/// Something of somebody else's in the daemon's pool; `None` where there is no pool.
fn theirs(place: &Path) -> Option<Root> {
    if !has("zfs", pool().is_some()) {
        return None;
    }
    Root::at(place)
}

fn own(dataset: &str, property: &str) -> String {
    zfs(&["get", "-H", "-o", "value,source", property, dataset]).trim_end().replace('\t', " ")
}

#[test]
fn without_zfs_nothing_can_be_adopted() {
    let daemon = Daemon::start();
    if daemon.driver() == "dir" {
        let error = daemon.run("volume adopt tank/data").fails(8);
        assert!(error.contains("keep the root on ZFS"), "{error}");
    }
}

#[test]
fn a_dataset_becomes_a_volume_with_all_that_it_has() {
    let mut daemon = Daemon::with_image();
    let Some(room) = theirs(&daemon.home().join("theirs")) else { return };
    let theirs = format!("{}/pg", room.name());
    let place = daemon.home().join("elsewhere");
    let mountpoint = format!("mountpoint={}", place.display());
    zfs(&["create", "-o", "recordsize=16K", "-o", "refquota=64M", "-o", &mountpoint, &theirs]);
    fs::write(place.join("old"), "x").unwrap();
    zfs(&["snapshot", &format!("{theirs}@before")]);
    fs::write(place.join("precious"), "y").unwrap();

    assert_eq!(daemon.run(&format!("volume adopt {theirs}")).ok(), "pg");
    let volume = daemon.dataset("volumes/pg");
    let shown = daemon.inspect("volume", "pg")["volume"].clone();
    assert_eq!(shown["state"], "available");
    assert_eq!(
        (&shown["dataset"], &shown["adopted"]),
        (&volume.clone().into(), &theirs.clone().into())
    );
    assert_eq!(shown["usage"]["size"], 64 << 20, "{shown}");
    assert_eq!(fs::read_to_string(daemon.volume("pg").join("precious")).unwrap(), "y");
    assert!(!place.join("precious").exists());
    assert_eq!(own(&volume, "recordsize"), "16K local");
    assert!(
        own(&volume, "mountpoint").contains("inherited from"),
        "{}",
        own(&volume, "mountpoint")
    );
    assert_eq!(
        zfs(&["list", "-H", "-t", "snapshot", "-o", "name", &volume]).trim(),
        format!("{volume}@before")
    );

    // Again, and after a restart.
    assert_eq!(daemon.run(&format!("volume adopt {theirs}")).ok(), "pg");
    assert_eq!(daemon.run(&format!("volume adopt {volume}")).ok(), "pg");
    daemon.stop();
    daemon.boot();
    assert_eq!(daemon.run(&format!("volume adopt {theirs}")).ok(), "pg");
    assert_eq!(daemon.inspect("volume", "pg")["volume"]["adopted"], *theirs);
    let ran = daemon.run("run --rm -m pg:/usr/share/site base ls /usr/share/site");
    assert_eq!(ran.ok(), "old\nprecious");
    // Emptied it stays empty: it is not new.
    daemon.run("run --rm -m pg:/data base rm /data/old /data/precious").ok();
    assert_eq!(daemon.run("run --rm -m pg:/usr/share/site base ls /usr/share/site").ok(), "");
    daemon.run("volume rm pg").ok();
    assert_eq!(daemon.run("lsv -q").ok(), "");
}

#[test]
fn what_cannot_be_adopted_stays_as_it_was() {
    let daemon = Daemon::start();
    let Some(room) = theirs(&daemon.home().join("theirs")) else { return };
    let name = room.name().to_owned();
    let [busy, parent, block, taken] =
        ["busy", "parent", "block", "taken"].map(|last| format!("{name}/{last}"));
    for dataset in [&busy, &parent, &format!("{parent}/child"), &taken] {
        zfs(&["create", dataset]);
    }
    zfs(&["create", "-V", "1M", "-s", &block]);
    zfs(&["snapshot", &format!("{taken}@s")]);
    let open = fs::File::create(daemon.home().join("theirs/busy/open")).unwrap();
    daemon.run("volume create taken").ok();
    let root = name.split('/').next().unwrap();
    for (dataset, code, says) in [
        (format!("{name}/none"), 3, "no such dataset"),
        (busy.clone(), 5, "busy"),
        (parent.clone(), 2, "child is below it"),
        (block.clone(), 2, "not a file system"),
        (taken.clone(), 4, "taken"),
        (format!("{taken}@s"), 2, "no name of a dataset"),
        ("otherpool/data".to_owned(), 2, "another pool"),
        (root.to_owned(), 2, "no name of a dataset"),
        (daemon.dataset("volumes"), 2, "a part of"),
        (daemon.dataset("image"), 2, "a part of"),
    ] {
        let error = daemon.run(&format!("volume adopt {dataset}")).fails(code);
        assert!(error.contains(says), "{dataset}: {error}");
    }
    let named = daemon.run(&format!("volume adopt {parent}/child --name taken"));
    assert!(named.fails(4).contains("taken"));
    let left = zfs(&["list", "-H", "-r", "-o", "name", &name]);
    assert_eq!(left.lines().count(), 6, "{left}");
    assert_eq!(daemon.run("lsv -q").ok(), "taken");
    for dataset in [&busy, &parent, &taken] {
        assert_eq!(own(dataset, "org.kleene:record"), "- -");
        assert_eq!(own(dataset, "mounted"), "yes -");
    }
    drop(open);
    daemon.run(&format!("volume adopt {parent}/child --name child-2")).ok();
    daemon.run(&format!("volume adopt {busy}")).ok();
    assert_eq!(daemon.run("lsv -q").ok(), "busy\nchild-2\ntaken");
}

#[test]
fn what_others_put_among_the_volumes_can_be_adopted() {
    let daemon = Daemon::start();
    if !has("zfs", pool().is_some()) {
        return;
    }
    let dataset = daemon.dataset("volumes/theirs");
    zfs(&["create", &dataset]);
    fs::write(daemon.volume("theirs").join("file"), "x").unwrap();
    let shown = daemon.inspect("volume", "theirs")["volume"].clone();
    assert_eq!(shown["state"], "error");
    assert!(shown["error"].as_str().unwrap().contains("klee volume adopt"), "{shown}");
    assert_eq!(daemon.run(&format!("volume adopt {dataset}")).ok(), "theirs");
    assert_eq!(daemon.inspect("volume", "theirs")["volume"]["state"], "available");
    assert_eq!(fs::read_to_string(daemon.volume("theirs").join("file")).unwrap(), "x");
}
