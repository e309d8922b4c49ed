//! What happens behind the daemon's back, and what it says before it has read everything.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kleene_tests::harness::{Daemon, eventually, has};
use kleene_tests::pool::{pool, zfs};
use serde_json::{Value, json};

/// Takes the volume's dataset away, as somebody does who does not know the daemon.
fn take_away(daemon: &Daemon, name: &str) {
    if daemon.driver() == "dir" {
        fs::rename(daemon.volume(name), daemon.home().join(name)).unwrap();
    } else {
        let (from, to) = (daemon.dataset(&format!("volumes/{name}")), daemon.dataset(name));
        zfs(&["rename", &from, &to]);
    }
}

/// Puts it back.
fn put_back(daemon: &Daemon, name: &str) {
    if daemon.driver() == "dir" {
        fs::rename(daemon.home().join(name), daemon.volume(name)).unwrap();
    } else {
        let (from, to) = (daemon.dataset(name), daemon.dataset(&format!("volumes/{name}")));
        zfs(&["rename", &from, &to]);
    }
}

#[test]
fn a_dataset_that_vanishes_is_reported_and_not_made_again() {
    let daemon = Daemon::with_image();
    daemon.run("volume create v").ok();
    daemon.run("create --name web -m v:/data base true").ok();
    fs::write(daemon.volume("v").join("precious"), "x").unwrap();
    take_away(&daemon, "v");
    let error = daemon.run("volume create v").fails(2);
    assert!(error.contains("is gone"), "{error}");

    let shown = daemon.inspect("volume", "v");
    assert_eq!(shown["volume"]["state"], "error");
    let error = shown["volume"]["error"].as_str().unwrap();
    assert!(error.contains("is gone") && error.contains("klee volume rm v"), "{error}");
    assert!(daemon.log().contains("is gone"), "{}", daemon.log());
    for command in ["start web", "run --rm -m v:/data base true", "volume create v"] {
        let ran = daemon.run(command);
        assert!(ran.code != 0 && ran.stderr.contains("is gone"), "{command}: {ran:?}");
    }
    assert!(daemon.driver() != "dir" || !daemon.volume("v").exists());
    daemon.run("volume prune -f").ok();
    assert_eq!(daemon.run("lsv -q").ok(), "v");
    // It is used, so it is not forgotten.
    daemon.run("volume rm v").fails(5);

    put_back(&daemon, "v");
    let ran = daemon.run("run --rm -m v:/data base cat /data/precious");
    assert_eq!(ran.ok(), "x");
    assert_eq!(daemon.inspect("volume", "v")["volume"]["state"], "attached");

    take_away(&daemon, "v");
    daemon.run("container rm web").ok();
    daemon.run("volume rm v").ok();
    assert_eq!(daemon.run("lsv -q").ok(), "");
    daemon.run("volume create v").ok();
    assert_eq!(daemon.run("run --rm -m v:/data base ls /data").ok(), "");
    daemon.run("volume rm v").ok();
    // What was taken away is nobody's to destroy.
    put_back(&daemon, "v");
    assert_eq!(fs::read_to_string(daemon.volume("v").join("precious")).unwrap(), "x");
}

#[test]
fn a_dataset_that_vanishes_while_no_daemon_runs_is_missed_by_its_containers() {
    let mut daemon = Daemon::with_image();
    daemon.run("create --name web -m v:/data base cat /data/precious").ok();
    daemon.run("volume create idle").ok();
    fs::write(daemon.volume("v").join("precious"), "x").unwrap();
    daemon.stop();
    take_away(&daemon, "v");
    take_away(&daemon, "idle");
    daemon.boot();

    // Of one that no container names, nothing is left to know it by.
    assert_eq!(daemon.run("lsv --format {{.Name}}:{{.State}}").ok(), "v:error");
    for command in ["start web", "run --rm -m v:/data base true", "volume create v"] {
        let ran = daemon.run(command);
        assert!(ran.code != 0 && ran.stderr.contains("is gone"), "{command}: {ran:?}");
    }
    put_back(&daemon, "v");
    assert_eq!(daemon.run("start web").ok(), "x");
}

#[test]
fn what_others_put_in_the_place_of_a_volume_is_not_destroyed() {
    let daemon = Daemon::start();
    daemon.run("volume create v").ok();
    take_away(&daemon, "v");
    let place = daemon.volume("v");
    if daemon.driver() == "dir" {
        fs::create_dir(&place).unwrap();
    } else {
        zfs(&["create", &daemon.dataset("volumes/v")]);
    }
    fs::write(place.join("theirs"), "x").unwrap();
    let error = daemon.run("volume rm v").fails(2);
    assert!(error.contains("not made by this kleened"), "{error}");
    daemon.run("volume prune -f").ok();
    assert_eq!(fs::read_to_string(place.join("theirs")).unwrap(), "x");
    assert_eq!(daemon.inspect("volume", "v")["volume"]["state"], "error");
    if daemon.driver() == "dir" {
        fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn a_volume_with_snapshots_is_never_replaced() {
    let daemon = Daemon::with_image();
    daemon.run("volume create site").ok();
    if daemon.driver() == "dir" {
        let data = fs::read_link(daemon.volume("site")).unwrap();
        let home = daemon.root().join("volumes").join(data).parent().unwrap().to_owned();
        fs::create_dir_all(home.join("snapshots/mine/data")).unwrap();
        let about =
            r#"{"guid":"0123456789abcdef","created":"2024-02-29T14:54:05.317207Z","sequence":1}"#;
        fs::write(home.join("snapshots/mine/about"), about).unwrap();
    } else {
        zfs(&["snapshot", &format!("{}@mine", daemon.dataset("volumes/site"))]);
    }
    let ran = daemon.run("run --rm -m site:/usr/share/site base ls -A /usr/share/site");
    assert_eq!(ran.ok(), "");
    assert!(daemon.log().contains("has snapshots"), "{}", daemon.log());
}

/// The file with the record of a volume of the `dir` driver.
pub(crate) fn record(daemon: &Daemon, name: &str) -> PathBuf {
    let data = fs::read_link(daemon.volume(name)).unwrap();
    daemon.root().join("volumes").join(data).parent().unwrap().join("record")
}

#[test]
fn names_are_known_before_the_records_are_read() {
    let mut daemon = Daemon::start();
    if daemon.driver() != "dir" {
        // A record that takes long to read can be had there alone.
        return;
    }
    for name in ["slow", "other", "third"] {
        daemon.run(&format!("volume create {name} --label a={name}")).ok();
    }
    daemon.stop();
    let file = record(&daemon, "slow");
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    // Who reads it waits until somebody writes it.
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    daemon.boot();

    // What was read comes first, and nobody knows how far that is.
    for command in ["lsv -q", "lsv -q --filter dangling=true"] {
        let listed = daemon.run(command).ok();
        let mut names: Vec<&str> = listed.lines().collect();
        assert_eq!(names.last(), Some(&"slow"), "{listed}");
        names.sort_unstable();
        assert_eq!(names, ["other", "slow", "third"]);
    }
    // What is about others does not wait.
    assert_eq!(daemon.inspect("volume", "other")["volume"]["labels"]["a"], "other");
    daemon.run("volume rm third").ok();
    daemon.run("volume create fourth").ok();
    // What needs all of them waits, and so does what is about this one.
    let mut waiting: Vec<_> = [
        vec!["volume", "ls", "--format", "{{.Name}} {{.Labels.a}}"],
        vec!["volume", "ls", "-q", "--filter", "label=a=slow"],
        vec!["volume", "prune", "-f"],
    ]
    .into_iter()
    .map(|arguments| {
        let mut command = daemon.client();
        command.args(arguments).stdout(std::process::Stdio::piped()).spawn().unwrap()
    })
    .collect();
    // A verb that came later has been answered, so none of them was there at once.
    daemon.run("volume create fifth").ok();
    for child in &mut waiting {
        assert_eq!(child.try_wait().unwrap(), None);
    }
    fs::write(&file, &text).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, &text).unwrap();
    let outputs: Vec<String> = waiting
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    assert!(outputs[0].contains("slow slow\n"), "{outputs:?}");
    assert_eq!(outputs[1], "slow\n");
    assert_eq!(outputs[2], "fifth\nfourth\nother\nslow\n");
}

#[test]
fn a_daemon_that_is_still_reading_stops_when_asked() {
    let mut daemon = Daemon::start();
    if daemon.driver() != "dir" {
        return;
    }
    for n in 0..40 {
        daemon.run(&format!("volume create v{n}")).ok();
    }
    daemon.kill();
    fs::write(record(&daemon, "v7"), "{").unwrap();
    daemon.boot();
    eventually("the reading", || daemon.inspect("volume", "v7")["volume"]["state"] == "error");
    assert_eq!(daemon.run("lsv --format {{.State}}").ok().matches("available").count(), 39);
    assert_eq!(daemon.stop().code(), Some(0));
}

/// What `lsv` shows of each volume. Nothing is looked at for that: it is what the daemon knows.
fn known(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.run("lsv --format {{.Name}}:{{.State}}").ok();
    let mut known: Vec<String> = listed.lines().map(str::to_owned).collect();
    known.sort_unstable();
    known
}

#[test]
fn what_plain_zfs_does_is_noticed_as_it_happens() {
    let daemon = Daemon::with_image();
    if !has("zfs", pool().is_some()) {
        return;
    }
    for name in ["a", "b"] {
        daemon.run(&format!("volume create {name}")).ok();
    }
    daemon.run("volume create c --size 64M --property recordsize=8K --property atime=on").ok();
    assert_eq!(daemon.inspect("volume", "c")["volume"]["changed"], Value::Null);
    daemon.run("create --name web -m a:/data base true").ok();
    let dataset = |name: &str| daemon.dataset(&format!("volumes/{name}"));
    assert!(!daemon.log().contains("not by kleened"), "{}", daemon.log());

    zfs(&["rename", &dataset("a"), &dataset("z")]);
    zfs(&["destroy", &dataset("b")]);
    zfs(&["create", &dataset("theirs")]);
    let after = ["a:error", "b:error", "c:available", "theirs:error", "z:available"];
    eventually("noticing", || known(&daemon) == after);
    assert!(daemon.run("start web").fails(125).contains("is gone"));
    daemon.run("volume rm b").ok();
    zfs(&["destroy", &dataset("theirs")]);
    zfs(&["rename", &dataset("z"), &dataset("a")]);
    // One that was never anybody's volume is not missed.
    eventually("noticing", || known(&daemon) == ["a:attached", "c:available", "z:error"]);
    assert_eq!(daemon.run("start web").ok(), "");
    daemon.run("volume rm z").ok();

    zfs(&["snapshot", &format!("{}@mine", dataset("c"))]);
    zfs(&["set", "refquota=32M", &dataset("c")]);
    zfs(&["set", "recordsize=16K", &dataset("c")]);
    for said in ["@mine", "refquota", "recordsize"] {
        let line =
            |log: &str| log.lines().any(|line| line.contains(&dataset("c")) && line.contains(said));
        eventually(said, || line(&daemon.log()));
    }
    let shown = daemon.inspect("volume", "c")["volume"].clone();
    assert_eq!((&shown["state"], &shown["usage"]["size"]), (&json!("available"), &json!(32 << 20)));
    assert_eq!(shown["changed"], json!({"refquota": "33554432", "recordsize": "16384"}));
    zfs(&["inherit", "recordsize", &dataset("c")]);
    zfs(&["set", "atime=off", "refquota=64M", &dataset("c")]);
    let changed = daemon.inspect("volume", "c")["volume"]["changed"].clone();
    assert_eq!(changed, json!({"recordsize": "default", "atime": "off"}));
    let record = zfs(&["get", "-H", "-o", "value", "org.kleene:record", &dataset("c")]);
    let changed = format!("the record of {} was changed", dataset("c"));
    assert!(!daemon.log().contains(&changed), "{}", daemon.log());
    zfs(&["set", "org.kleene:record=theirs", &dataset("c")]);
    eventually("noticing", || known(&daemon) == ["a:attached", "c:error"]);
    assert!(daemon.log().contains(&changed), "{}", daemon.log());
    zfs(&["set", &format!("org.kleene:record={}", record.trim_end()), &dataset("c")]);
    eventually("noticing", || known(&daemon) == ["a:attached", "c:available"]);
    // Its record goes, so nobody knows any more whose it is.
    zfs(&["inherit", "org.kleene:record", &dataset("c")]);
    eventually("noticing", || known(&daemon) == ["a:attached", "c:error"]);
    daemon.run("volume rm c").fails(2);
    zfs(&["list", &dataset("c")]);
}
