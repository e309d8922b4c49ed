//! Volumes that go back to snapshots, and volumes that begin as others, end to end.

use std::fs;

use kleene_tests::harness::Daemon;
use kleene_tests::image::listing;
use kleene_tests::pool;
use serde_json::json;

use crate::crash::{fail_at_every_call, kill_at_every_call};

fn write(daemon: &Daemon, volume: &str, text: &str) {
    fs::write(daemon.volume(volume).join("file"), text).unwrap();
}

fn read(daemon: &Daemon, volume: &str) -> String {
    fs::read_to_string(daemon.volume(volume).join("file")).unwrap()
}

fn snapshots(daemon: &Daemon, volume: &str) -> String {
    daemon.run(&format!("volume snapshot ls -q {volume}")).ok().replace('\n', " ")
}

/// What is in the storage of it, beside its volumes: nothing that nobody sees.
fn nothing_hidden(daemon: &Daemon, volumes: &[&str]) {
    if let Some(pool) = pool::pool() {
        let root = daemon.dataset("volumes").replace("/volumes", "");
        assert!(root.starts_with(&pool));
        let list = ["list", "-Hr", "-t", "filesystem,snapshot", "-o", "name", &root];
        let list = std::process::Command::new("zfs").args(list).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let is_hidden = |name: &&str| name.contains("kleene--") || name.contains("/history/");
        assert_eq!(list.lines().find(is_hidden), None, "{list}");
    }
    let mut found: Vec<_> = daemon.run("volume ls -q").ok().lines().map(str::to_owned).collect();
    found.sort_unstable();
    assert_eq!(found, volumes);
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

/// A volume `v` with the snapshots `one`, `two` and `three`, and `four` as its content.
fn four_states(daemon: &Daemon) {
    daemon.run("volume create v --label kept=yes").ok();
    for name in ["one", "two", "three"] {
        write(daemon, "v", name);
        daemon.run(&format!("volume snapshot create v {name} -m {name}")).ok();
    }
    write(daemon, "v", "four");
}

#[test]
fn a_volume_goes_back_and_keeps_every_snapshot() {
    let mut daemon = Daemon::start();
    four_states(&daemon);
    let listed =
        daemon.run("volume snapshot ls v --format {{.Name}}:{{.Message}}:{{.Created}}").ok();
    for name in ["one", "three", "two", "three"] {
        assert_eq!(daemon.run(&format!("volume restore v {name}")).ok(), "v");
        for _ in 0..2 {
            assert_eq!(read(&daemon, "v"), name);
            let now =
                daemon.run("volume snapshot ls v --format {{.Name}}:{{.Message}}:{{.Created}}");
            assert_eq!(now.ok(), listed);
            assert_eq!(daemon.inspect("volume", "v")["volume"]["labels"]["kept"], "yes");
            assert!(daemon.stop().success());
            daemon.boot();
        }
        write(&daemon, "v", "other");
    }
    // What comes later has the next place; and what is aside is as good as any.
    daemon.run("volume restore v one").ok();
    assert_eq!(daemon.run("volume snapshot create v").ok(), "v@v0");
    assert!(daemon.run("volume snapshot create v three").fails(4).contains("already exists"));
    assert_eq!(daemon.run("volume restore v three --as w").ok(), "w");
    assert_eq!((read(&daemon, "v"), read(&daemon, "w")), ("one".into(), "three".into()));
    daemon.run("volume snapshot rename v three last").ok();
    daemon.run("volume snapshot protect v last").ok();
    daemon.run("volume snapshot rm v last").fails(6);
    daemon.run("volume rm -f v").fails(6);
    daemon.run("volume snapshot unprotect v last").ok();
    assert_eq!(daemon.run("volume snapshot rm v last two").ok(), "v@last\nv@two");
    assert_eq!(snapshots(&daemon, "v"), "one v0");
    daemon.run("volume restore v two").fails(3);
    daemon.run("volume restore nope one").fails(3);
    assert_eq!(daemon.run("volume rm -f v").ok(), "v");
    assert_eq!(read(&daemon, "w"), "three");
    assert_eq!(daemon.run("volume rm w").ok(), "w");
    nothing_hidden(&daemon, &[]);
}

#[test]
fn a_volume_that_a_container_names_does_not_go_back() {
    let daemon = Daemon::with_image();
    four_states(&daemon);
    let id = daemon.run("container create --name web -m v:/data:ro base sleep 600").ok();
    for state in ["stopped", "running"] {
        let text = daemon.run("volume restore v one").fails(5);
        for part in ["volume v is in use", state, "web", &id, "/data", "read-only"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert_eq!(daemon.run(&format!("volume restore v one --as {state}")).ok(), state);
        assert_eq!((read(&daemon, "v"), read(&daemon, state)), ("four".into(), "one".into()));
        if state == "stopped" {
            daemon.run("start -d web").ok();
        }
    }
    daemon.run("container rm -f web").ok();
    daemon.run("volume restore v one").ok();
    assert_eq!(daemon.run("run --rm -m v:/data base cat /data/file").ok(), "one");
}

#[test]
fn a_volume_begins_as_another_or_its_snapshot() {
    let mut daemon = Daemon::with_image();
    four_states(&daemon);
    daemon.run("run -d --name c -m v:/data base sleep 600").ok();
    assert_eq!(daemon.run("volume create live --from v").ok(), "live");
    assert_eq!(
        daemon.run("volume create old --from v --from-snapshot one --label a=b").ok(),
        "old"
    );
    assert_eq!(
        daemon.run("volume create own --from v --from-snapshot two --independent").ok(),
        "own"
    );
    assert_eq!(daemon.run("volume create all --from v --independent").ok(), "all");
    let random = daemon.run("volume create --from v").ok();
    daemon.run(&format!("volume rm {random}")).ok();
    for _ in 0..2 {
        for (volume, text) in [("live", "four"), ("old", "one"), ("own", "two"), ("all", "four")] {
            assert_eq!(read(&daemon, volume), text, "{volume}");
            assert_eq!(snapshots(&daemon, volume), "");
        }
        assert_eq!(snapshots(&daemon, "v"), "one two three");
        let v = daemon.inspect("volume", "v");
        assert_eq!(v["clones"], json!(["all", "live", "old", "own"]));
        let old = daemon.inspect("volume", "old");
        assert_eq!(old["volume"]["origin"]["volume"], "v");
        assert_eq!(old["volume"]["origin"]["snapshot"], "one");
        assert_eq!(old["volume"]["labels"], json!({"a": "b"}));
        let live = daemon.inspect("volume", "live");
        assert_eq!(live["volume"]["labels"], json!({"kept": "yes"}));
        assert_eq!(live["volume"]["origin"].get("snapshot"), None);
        assert_eq!(daemon.inspect("volume", "own")["volume"]["origin"]["independent"], true);
        daemon.run("container rm -f c").ok();
        assert!(daemon.stop().success());
        daemon.boot();
        daemon.run("run -d --name c -m v:/data base sleep 600").ok();
    }
    daemon.run("container rm -f c").ok();
    // A repeat, and a difference.
    daemon.run("volume create live --from v").ok();
    daemon.run("volume create old --from v --from-snapshot one").ok();
    let text = daemon.run("volume create old --from v --from-snapshot two").fails(4);
    assert!(text.contains("another origin: it has v@one, v@two was asked for"), "{text}");
    assert!(daemon.run("volume create v --from old").fails(4).contains("origin"));
    daemon.run("volume create x --from v --from-snapshot nope").fails(3);
    daemon.run("volume create x --from nope").fails(3);
    daemon.run("volume create x --from x").fails(2);
    daemon.run("volume create x --from-snapshot one").fails(2);
    let text = daemon.run("volume create web:x --from v").fails(2);
    assert!(text.contains("must be in the same project"), "{text}");
    daemon.run("volume restore v one --as web:x").fails(2);
    daemon.run("volume create x --independent").fails(2);

    // A snapshot and a source that clones need can go; another of that name is none of theirs.
    assert_eq!(daemon.run("volume snapshot rm v one").ok(), "v@one");
    assert_eq!(daemon.run("volume snapshot create v one").ok(), "v@one");
    assert_eq!(daemon.run("volume rm -f v").ok(), "v");
    daemon.run("volume create v").ok();
    assert_eq!(daemon.inspect("volume", "v").get("clones"), None);
    for (volume, text) in [("live", "four"), ("old", "one"), ("own", "two"), ("all", "four")] {
        assert_eq!(read(&daemon, volume), text, "{volume}");
        assert_eq!(daemon.run(&format!("volume snapshot create {volume} one")).code, 0);
        write(&daemon, volume, "changed");
        daemon.run(&format!("volume restore {volume} one")).ok();
        assert_eq!(read(&daemon, volume), text, "{volume}");
    }
    daemon.run("volume rm -f live own old all v").ok();
    nothing_hidden(&daemon, &[]);
}

#[test]
fn a_project_has_its_own() {
    let daemon = Daemon::start();
    for prefix in ["", "-p web "] {
        daemon.run(&format!("{prefix}volume create v")).ok();
        daemon.run(&format!("{prefix}volume snapshot create v one")).ok();
    }
    fs::write(daemon.root().join("projects/web/volumes/v/file"), "web").unwrap();
    daemon.run("-p web volume snapshot create v two").ok();
    assert_eq!(daemon.run("-p web volume create w --from v --from-snapshot two").ok(), "w");
    daemon.run("-p web volume restore v one").ok();
    assert_eq!(daemon.run("-p web volume restore v two --as x").ok(), "x");
    daemon.run("volume restore v two").fails(3);
    for volume in ["w", "x"] {
        let file = daemon.root().join("projects/web/volumes").join(volume).join("file");
        assert_eq!(fs::read_to_string(file).unwrap(), "web");
    }
    assert!(!daemon.root().join("projects/web/volumes/v/file").exists());
    assert_eq!(daemon.run("-p web volume rm -f v").ok(), "v");
    assert_eq!(daemon.run("volume ls -q").ok(), "v");
}

#[test]
fn what_is_cloned_is_not_filled_again() {
    let daemon = Daemon::with_image();
    daemon.run("run --rm -m site:/usr/share/site base true").ok();
    daemon.run("volume create copy --from site").ok();
    assert_eq!(listing(&daemon.volume("copy")), listing(&daemon.volume("site")));
    for entry in listing(&daemon.volume("copy")).into_keys().filter(|name| !name.contains('/')) {
        let path = daemon.volume("copy").join(entry);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    daemon.run("run --rm -m copy:/usr/share/site base true").ok();
    assert!(listing(&daemon.volume("copy")).is_empty());
}

/// A volume `v` in which the empty files `one` and `two` came one after the other, with a snapshot each.
const FILES: &str = "volume create v
    volume snapshot create v none
    run --rm -m v:/data:rw,nocopy base touch /data/one
    volume snapshot create v one
    run --rm -m v:/data:rw,nocopy base touch /data/two
    volume snapshot create v two";

fn files(daemon: &Daemon, volume: &str) -> String {
    listing(&daemon.volume(volume)).into_keys().collect::<Vec<_>>().join(" ")
}

#[test]
fn killed_while_a_volume_goes_back() {
    kill_at_every_call(
        FILES,
        "volume restore v none",
        |daemon, code| {
            let files = files(daemon, "v");
            assert!(files.is_empty() || files == "one two", "{files}");
            assert!(code != Some(0) || files.is_empty());
            assert_eq!(snapshots(daemon, "v"), "none one two");
        },
        &["volume restore v two"],
    );
}

#[test]
fn killed_while_a_volume_is_cloned() {
    kill_at_every_call(
        FILES,
        "volume create new --from v --independent",
        |daemon, code| {
            let there = daemon.run("volume ls -q --filter name=new").ok() == "new";
            assert!(code != Some(0) || there);
            assert!(!there || files(daemon, "new") == "one two");
            assert_eq!(snapshots(daemon, "v"), "none one two");
            if !there {
                nothing_hidden(daemon, &["v"]);
            }
        },
        &["volume rm new"],
    );
}

#[test]
fn killed_while_a_source_is_removed() {
    kill_at_every_call(
        &format!("{FILES}\nvolume restore v one\nvolume create new --from v --from-snapshot two"),
        "volume rm -f v",
        |daemon, code| {
            let there = daemon.run("volume ls -q --filter name=v").ok() == "v";
            assert!(code != Some(0) || !there);
            assert_eq!(files(daemon, "new"), "one two");
            if !there {
                assert_eq!(snapshots(daemon, "new"), "");
                daemon.run("volume create v --from new").ok();
            }
        },
        &["volume snapshot create v one", "volume snapshot create v two", "volume restore v one"],
    );
}

#[test]
fn a_failing_call_goes_back_or_clones_not_or_wholly() {
    let prepare: Vec<&str> = FILES.lines().map(str::trim).collect();
    fail_at_every_call(
        &prepare,
        "volume create new --from v",
        |daemon, made| {
            let files = made.then(|| files(daemon, "new"));
            assert_eq!(files.as_deref(), made.then_some("one two"));
            assert_eq!(daemon.volume("new").exists(), made);
        },
        &["volume rm new"],
    );
}
