//! Volumes that come to containers which are there, and go again.

use std::fs;

use kleene_tests::harness::{Daemon, eventually};
use kleene_tests::image::listing;
use serde_json::json;

use crate::behind::record;

/// What the container and the volume say of each other.
fn shown(daemon: &Daemon, volume: &str, container: &str) -> (String, Vec<String>) {
    let state = daemon.inspect("volume", volume)["volume"]["state"].clone();
    let mounts = daemon.inspect("container", container)["container_mountpoints"].clone();
    let mounts = mounts.as_array().unwrap().iter().map(|mount| {
        let how = if mount["read_only"] == true { "ro" } else { "rw" };
        format!(
            "{}:{}:{how}",
            mount["source"].as_str().unwrap(),
            mount["destination"].as_str().unwrap()
        )
    });
    (state.as_str().unwrap().to_owned(), mounts.collect())
}

fn is(state: &str, mounts: &[&str]) -> (String, Vec<String>) {
    (state.to_owned(), mounts.iter().map(|&mount| mount.to_owned()).collect())
}

#[test]
fn to_a_container_that_runs() {
    let mut daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("run -d --name web base sleep 1000").ok();
    assert_eq!(daemon.run("volume attach data web --path /srv/data").ok(), "data");
    assert_eq!(shown(&daemon, "data", "web"), is("mounted", &["data:/srv/data:rw"]));
    daemon.run("exec web touch /srv/data/made").ok();
    assert!(daemon.volume("data").join("made").exists());
    let error = daemon.run("volume rm data").fails(5);
    assert!(error.contains("running container web") && error.contains("/srv/data"), "{error}");
    assert_eq!(daemon.run("volume ls -q --filter in-use=true").ok(), "data");

    // It is a mount as any other: of the next daemon, and of the next start.
    daemon.kill();
    daemon.boot();
    assert_eq!(shown(&daemon, "data", "web"), is("mounted", &["data:/srv/data:rw"]));
    daemon.run("stop web").ok();
    assert_eq!(shown(&daemon, "data", "web").0, "attached");
    daemon.run("start -d web").ok();
    daemon.run("exec web ls /srv/data/made").ok();

    assert_eq!(daemon.run("volume detach data web").ok(), "data");
    assert_eq!(shown(&daemon, "data", "web"), is("available", &[]));
    assert_eq!(daemon.run("exec -q web ls /srv/data").ok(), "");
    daemon.run("volume rm data").ok();
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

#[test]
fn to_a_container_that_does_not_run() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("container create --name web base sleep 1000").ok();
    daemon.run("volume attach data web --path /srv/data --read-only").ok();
    assert_eq!(shown(&daemon, "data", "web"), is("attached", &["data:/srv/data:ro"]));
    daemon.run("start -d web").ok();
    let error = daemon.run("exec web touch /srv/data/x").fails(1);
    assert!(error.contains("Read-only file system"), "{error}");
    daemon.run("stop web").ok();
    daemon.run("volume detach data web --path /srv//data/").ok();
    assert_eq!(shown(&daemon, "data", "web"), is("available", &[]));
    daemon.run("start -d web").ok();
    daemon.run("exec web touch /srv/data/x").ok();
    assert!(listing(&daemon.volume("data")).is_empty());
}

#[test]
fn options_and_parts() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    fs::create_dir_all(daemon.volume("data").join("a/b")).unwrap();
    fs::write(daemon.volume("data").join("a/b/run"), "#!/bin/sh\n").unwrap();
    daemon.run("run -d --name web base sleep 1000").ok();
    daemon.run("volume attach data web --path /data --subpath a/b --noexec --read-only").ok();
    let error = daemon.run("exec web sh -c /data/run").code;
    assert_eq!(error, 126);
    let mount = daemon.inspect("container", "web")["container_mountpoints"][0].clone();
    assert_eq!((&mount["subpath"], &mount["noexec"]), (&json!("a/b"), &json!(true)));
    let error = daemon.run("volume attach data web --path /data").fails(4);
    for part in ["another access", "another subpath", "other options"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_repeat_succeeds_and_a_difference_is_named() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("volume create other").ok();
    for run in ["container create --name c base sleep 1000", "run -d --name c base sleep 1000"] {
        daemon.run(run).ok();
        let attach = "volume attach data c --path /srv/data";
        daemon.run(attach).ok();
        daemon.run(attach).ok();
        for (other, part) in [
            (
                "data c --path /elsewhere",
                "data is already attached to container c with another path: it has /srv/data, /elsewhere was asked for",
            ),
            (
                "data c --path /srv/data --read-only",
                "with another access: it has read-write, read-only was asked for",
            ),
            (
                "other c --path /srv/data",
                "mount path /srv/data is already in use: container c has volume data there",
            ),
        ] {
            let error = daemon.run(&format!("volume attach {other}")).fails(4);
            assert!(error.contains(part), "{error}");
        }
        // Where it does not run the one above is mounted first.
        let above = daemon.run("volume attach other c --path /srv");
        if run.starts_with("run") {
            let error = above.fails(4);
            assert!(error.contains("volume data at /srv/data, which it would hide"), "{error}");
        } else {
            above.ok();
            daemon.run("volume detach other c").ok();
        }
        daemon.run("volume detach data c --path /elsewhere").ok();
        assert_eq!(shown(&daemon, "data", "c").1, ["data:/srv/data:rw"]);
        daemon.run("volume detach data c").ok();
        daemon.run("volume detach data c").ok();
        assert_eq!(shown(&daemon, "data", "c").1, Vec::<String>::new());
        daemon.run("container rm -f c").ok();
    }
    daemon.run("container create --name c base").ok();
    for (missing, what) in [
        ("volume attach none c --path /d", "no such volume: none"),
        ("volume attach data none --path /d", "no such container: none"),
        ("volume detach none c", "no such volume: none"),
        ("volume detach data none", "no such container: none"),
    ] {
        let error = daemon.run(missing).fails(3);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn paths_are_refused_on_both_sides() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("run -d --name c base sleep 1000").ok();
    for (path, part) in [
        ("", "absolute"),
        ("data", "absolute"),
        ("/..", "'..'"),
        ("/a/../..", "'..'"),
        ("/", "root"),
        ("//./", "root"),
        ("/dev/", "/dev"),
        ("/dev/shm", "/dev"),
        ("/proc/1", "/proc"),
        ("/sys", "/sys"),
    ] {
        let error = daemon.klee(["volume", "attach", "data", "c", "--path", path]).fails(2);
        assert!(error.contains(part), "{path:?}: {error}");
        let body = json!({ "container": "c", "destination": path }).to_string();
        let answer = daemon.raw(&format!(
            "POST /volumes/data/attach HTTP/1.1\r\nHost: x\r\nPrefer: exact-status\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 422"), "{path:?}: {answer}");
        assert!(answer.contains(part), "{path:?}: {answer}");
    }
    assert_eq!(shown(&daemon, "data", "c"), is("available", &[]));
}

#[test]
fn a_volume_is_filled_with_what_the_container_has_there_now() {
    let daemon = Daemon::with_image();
    for name in ["one", "two", "three"] {
        daemon.run(&format!("volume create {name}")).ok();
    }
    daemon.run("run -d --name c base sleep 1000").ok();
    daemon.run("exec c rm -r /usr/share/site/img").ok();
    daemon.run("exec c touch /usr/share/site/new").ok();
    daemon.run("volume attach three c --path /usr/share/site --nocopy").ok();
    assert!(listing(&daemon.volume("three")).is_empty());
    daemon.run("volume detach three c").ok();
    daemon.run("volume attach one c --path /usr/share/site").ok();
    let filled = listing(&daemon.volume("one"));
    assert!(filled.contains_key("new") && filled.contains_key(".htaccess"), "{filled:?}");
    assert!(!filled.contains_key("img"), "{filled:?}");
    let populated = daemon.inspect("volume", "one")["volume"]["populated"].clone();
    assert_eq!(populated["path"], "/usr/share/site");

    // It has content now, and keeps it.
    daemon.run("volume detach one c").ok();
    daemon.run("exec c touch /usr/share/site/newer").ok();
    daemon.run("volume attach one c --path /usr/share/site").ok();
    assert_eq!(listing(&daemon.volume("one")), filled);
    daemon.run("container create --name stopped base").ok();
    daemon.run("volume attach two stopped --path /usr/share/site").ok();
    assert!(listing(&daemon.volume("two")).contains_key("img/logo.svg"));
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

#[test]
fn what_is_in_use_is_not_detached() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("run -d --name c base sleep 1000").ok();
    daemon.run("volume attach data c --path /data").ok();
    let script = "cd /data && touch in && while test ! -e /end; do sleep 0.01; done";
    daemon.klee(["exec", "-d", "c", "sh", "-c", script]).ok();
    eventually("somebody in it", || daemon.volume("data").join("in").exists());
    let error = daemon.run("volume detach data c").fails(5);
    assert!(error.contains("/data") && error.contains("open"), "{error}");
    assert_eq!(shown(&daemon, "data", "c"), is("mounted", &["data:/data:rw"]));
    daemon.run("exec c ls /data/in").ok();
    daemon.run("exec c touch /end").ok();
    eventually("the end", || daemon.run("volume detach data c").code == 0);
    assert_eq!(shown(&daemon, "data", "c"), is("available", &[]));
}

#[test]
fn one_writer_or_many_readers() {
    let daemon = Daemon::with_image();
    let create = "volume create data --access single-writer";
    daemon.run(create).ok();
    daemon.run(create).ok();
    let error = daemon.run("volume create data --access shared").fails(4);
    assert!(error.contains("another access: it has single-writer"), "{error}");
    assert_eq!(daemon.inspect("volume", "data")["volume"]["access"], "single-writer");
    daemon.run("volume create free").ok();
    assert_eq!(daemon.inspect("volume", "free")["volume"]["access"], "shared");

    daemon.run("container create --name writer -m data:/data base sleep 1000").ok();
    let refused = |command: &str, holder: &str| {
        let error = daemon.run(command).fails(5);
        assert!(error.contains("volume data is single-writer"), "{command}: {error}");
        assert!(error.contains(&format!("container {holder} (")), "{command}: {error}");
    };
    refused("container create --name b -m data:/data base", "writer");
    refused("container create --name b -m data:/data:ro base", "writer");
    assert_eq!(daemon.run("container ls -aq").ok().lines().count(), 1);
    daemon.run("run -d --name reader base sleep 1000").ok();
    refused("volume attach data reader --path /data", "writer");
    refused("volume attach data reader --path /data --read-only", "writer");
    daemon.run("start -d writer").ok();
    daemon.run("volume detach data writer").ok();
    daemon.run("volume attach data reader --path /data --read-only").ok();
    daemon.run("volume attach data writer --path /data --read-only").ok();
    daemon.run("volume detach data writer").ok();
    refused("volume attach data writer --path /data", "reader");
    let error = daemon.run("container create --name b -m data:/one:ro -m data:/two base").fails(5);
    assert!(error.contains("container reader"), "{error}");
    daemon.run("volume detach data reader").ok();
    let error = daemon.run("container create --name b -m data:/one:ro -m data:/two base").fails(5);
    assert!(error.contains("the container itself has it at /one too"), "{error}");
    daemon.run("container create --name b -m data:/one:ro -m data:/two:ro base").ok();
}

#[test]
fn the_rule_holds_at_the_start_too() {
    let mut daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    for name in ["a", "b"] {
        daemon.run(&format!("container create --name {name} -m data:/data base sleep 1000")).ok();
    }
    if daemon.driver() == "zfs" {
        return;
    }
    // As it would be where the rule could be changed later.
    assert!(daemon.stop().success());
    let record = record(&daemon, "data");
    let text = fs::read_to_string(&record).unwrap();
    let ruled = text.replacen('{', r#"{"access":"single-writer","#, 1);
    fs::write(&record, ruled).unwrap();
    daemon.boot();
    daemon.run("start -d a").ok();
    let error = daemon.run("start -d b").fails(125);
    assert!(error.contains("running container a ("), "{error}");
    daemon.run("stop a").ok();
    daemon.run("start -d b").ok();
}

#[cfg(target_os = "linux")]
#[test]
fn what_somebody_else_unmounted_is_mounted_again() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    daemon.run("run -d --name web base sleep 1000").ok();
    let attach = "volume attach data web --path /srv/data";
    daemon.run(attach).ok();
    daemon.run("exec -q web touch /srv/data/made").ok();
    let pid = daemon.klee(["container", "ls", "--format", "{{.jid}}"]).ok();
    let unmount = || {
        let mut nsenter = std::process::Command::new("nsenter");
        nsenter.args(["--mount", "--target", &pid, "busybox", "umount", "/srv/data"]);
        assert!(nsenter.status().unwrap().success());
        daemon.run("exec -q web ls /srv/data/made").fails(1);
    };
    unmount();
    daemon.run(attach).ok();
    daemon.run("exec -q web ls /srv/data/made").ok();
    unmount();
    daemon.run("volume detach data web").ok();
    assert_eq!(shown(&daemon, "data", "web"), is("available", &[]));
}
