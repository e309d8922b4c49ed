//! Snapshots of volumes, end to end.

use std::fs;

use kleene_tests::harness::Daemon;
use serde_json::{Value, json};

use crate::crash::{fail_at_every_call, kill_at_every_call};

fn listed(daemon: &Daemon, arguments: &str) -> Value {
    let text = daemon.run(&format!("volume snapshot ls -o json {arguments}")).ok();
    serde_json::from_str(&text).unwrap()
}

fn names(daemon: &Daemon, volume: &str) -> String {
    daemon.run(&format!("volume snapshot ls -q {volume}")).ok().replace('\n', " ")
}

/// As [`names`], where the call that is to fail may be one of these.
fn names_at_last(daemon: &Daemon, volume: &str) -> String {
    let first = daemon.run(&format!("volume snapshot ls -q {volume}"));
    if first.code == 0 { first.ok().replace('\n', " ") } else { names(daemon, volume) }
}

#[test]
fn snapshots_are_made_listed_and_removed() {
    let mut daemon = Daemon::start();
    daemon.run("volume create db").ok();
    daemon.run("volume create web").ok();
    fs::write(daemon.volume("db").join("file"), "one").unwrap();
    assert_eq!(daemon.run("volume snapshot create db").ok(), "db@v0");
    assert_eq!(daemon.run("volume snap create db").ok(), "db@v1");
    let create = ["volume", "snapshot", "create", "db", "v7", "-m", "before the upgrade"];
    assert_eq!(daemon.klee(create).ok(), "db@v7");
    // The next number after the highest, and --name before NAME.
    assert_eq!(daemon.run("volume snapshot create db").ok(), "db@v8");
    assert_eq!(daemon.run("volume snapshot create db a --name b-2").ok(), "db@b-2");
    assert_eq!(names(&daemon, "db"), "v0 v1 v7 v8 b-2");
    assert_eq!(names(&daemon, "web"), "");
    daemon.run("volume snapshot create web v0").ok();
    assert_eq!(names(&daemon, ""), "db@v0 db@v1 db@v7 db@v8 db@b-2 web@v0");

    assert!(daemon.stop().success());
    daemon.boot();
    let found = listed(&daemon, "db");
    assert_eq!(found[2]["name"], "v7");
    assert_eq!(found[2]["message"], "before the upgrade");
    assert_eq!(found[0]["message"], Value::Null);
    let table = daemon.run("volume snapshot ls db --theme simple").ok();
    assert!(table.starts_with(" SNAPSHOT NAME | CREATED"), "{table}");
    assert!(table.contains("before the upgrade"), "{table}");
    let table = daemon.run("volume snapshot ls --theme simple -s").ok();
    assert!(table.starts_with(" VOLUME | SNAPSHOT NAME | CREATED"), "{table}");
    assert_eq!(listed(&daemon, "db -s").as_array().unwrap().len(), 5);
    assert!(listed(&daemon, "db -s")[0]["used"].is_number());
    assert_eq!(daemon.run("volume snapshot ls -q db --filter name=v").ok(), "v0\nv1\nv7\nv8");
    assert_eq!(daemon.run("volume snapshot ls -q --filter message=upgrade").ok(), "db@v7");
    let formatted = ["volume", "snapshot", "ls", "db", "--format", "{{.Volume}}/{{.Name}}"];
    assert!(daemon.klee(formatted).ok().starts_with("db/v0\n"));
    daemon.run("volume snapshot ls --filter color=red").fails(2);
    let shown: Value =
        serde_json::from_str(&daemon.run("volume snapshot inspect db v7").ok()).unwrap();
    assert_eq!((&shown["volume"], &shown["name"]), (&json!("db"), &json!("v7")));
    assert!(shown["used"].is_number(), "{shown}");
    let volume = daemon.inspect("volume", "db");
    assert_eq!(volume["snapshots"].as_array().unwrap().len(), 5);
    assert_eq!(daemon.inspect("volume", "web")["snapshots"][0]["name"], "v0");

    assert_eq!(daemon.run("volume snapshot rm db v0 v7").ok(), "db@v0\ndb@v7");
    assert_eq!(names(&daemon, "db"), "v1 v8 b-2");
    assert!(daemon.run("volume snapshot rm db v0").fails(3).contains("no such snapshot: db@v0"));
    daemon.run("volume snapshot inspect db v0").fails(3);
    assert!(daemon.run("volume snapshot create nope").fails(3).contains("no such volume: nope"));
    assert!(daemon.run("volume snapshot ls nope").fails(3).contains("no such volume: nope"));
    daemon.run("volume snapshot rm nope v0").fails(3);
    let text = daemon.run("volume snapshot create db v1").fails(4);
    assert!(text.contains("snapshot db@v1 already exists"), "{text}");
}

#[test]
fn names_of_snapshots_follow_the_rule() {
    let daemon = Daemon::start();
    daemon.run("volume create v").ok();
    let long = "s".repeat(64);
    for bad in ["", "-a", "a-", "a--b", "A", "a_b", "a.b", "a/b", "a@b", "ü", "kleene--x", &long] {
        let error = daemon.klee(["volume", "snapshot", "create", "v", "--", bad]).fails(2);
        assert!(error.contains("1 to 63 characters"), "{bad:?}: {error}");
        let body = json!({"volumes": ["v"], "name": bad}).to_string();
        let answer = daemon.raw(&format!(
            "POST /snapshots/create HTTP/1.1\r\nHost: x\r\nPrefer: exact-status\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 422"), "{bad:?}: {answer}");
    }
    for bad in ["", "..", "../v0", "a/b", "x@y"] {
        let ran = daemon.klee(["volume", "snapshot", "rm", "v", "--", bad]);
        assert!(matches!(ran.code, 2 | 3), "{bad:?}: {ran:?}");
    }
    let message = "m".repeat(1001);
    daemon.klee(["volume", "snapshot", "create", "v", "-m", &message]).fails(2);
    daemon.klee(["volume", "snapshot", "create", "v", "-m", "\u{1b}[2J\n"]).ok();
    let table = daemon.run("volume snapshot ls v").ok();
    assert!(table.contains(r"\u{1b}[2J\u{a}"), "{table}");
    let longest = "s".repeat(63);
    assert_eq!(daemon.run(&format!("volume snapshot rename v v0 {longest}")).code, 0);
    assert_eq!(names(&daemon, "v"), longest);
}

#[test]
fn several_volumes_have_a_snapshot_together_or_not_at_all() {
    let daemon = Daemon::start();
    for volume in ["a", "b", "c"] {
        daemon.run(&format!("volume create {volume}")).ok();
    }
    assert_eq!(daemon.run("volume snapshot create b v4").ok(), "b@v4");
    let made = daemon.run("volume snapshot create a --also b,c -m all").ok();
    assert_eq!(made, "a@v5\nb@v5\nc@v5");
    let all = listed(&daemon, "--filter name=v5");
    let created: Vec<&Value> =
        all.as_array().unwrap().iter().map(|snapshot| &snapshot["created"]).collect();
    assert!(created.windows(2).all(|pair| pair[0] == pair[1]), "{created:?}");
    // One has it already; one is not there.
    let text = daemon.run("volume snapshot create c v4 --also a --also b").fails(4);
    assert!(text.contains("snapshot b@v4 already exists"), "{text}");
    daemon.run("volume snapshot create a new --also nope").fails(3);
    assert_eq!(names(&daemon, ""), "a@v5 b@v4 b@v5 c@v5");
}

#[test]
fn a_protected_snapshot_stays_whatever_its_name() {
    let mut daemon = Daemon::start();
    daemon.run("volume create v").ok();
    daemon.run("volume snapshot create v a -m kept").ok();
    daemon.run("volume snapshot create v b").ok();
    for _ in 0..2 {
        assert_eq!(daemon.run("volume snapshot protect v a").ok(), "v@a");
    }
    assert!(daemon.run("volume snapshot rm v a").fails(6).contains("unprotect it first"));
    assert_eq!(daemon.run("volume snapshot rename v a c").ok(), "v@c");
    assert_eq!(daemon.run("volume snapshot rename v b c").fails(4).matches("exists").count(), 1);
    assert!(daemon.stop().success());
    daemon.boot();
    assert_eq!(listed(&daemon, "--filter protected=true")[0]["name"], "c");
    assert_eq!(listed(&daemon, "--filter protected=true")[0]["message"], "kept");
    daemon.run("volume snapshot rm v c").fails(6);
    let text = daemon.run("volume rm -f v").fails(6);
    assert!(text.contains("protected snapshots, c:"), "{text}");
    daemon.run("volume snapshot protect v nope").fails(3);
    for _ in 0..2 {
        assert_eq!(daemon.run("volume snapshot unprotect v c").ok(), "v@c");
    }
    assert_eq!(daemon.run("volume snapshot rm v c").ok(), "v@c");
}

#[test]
fn a_volume_goes_with_its_snapshots_only_by_force() {
    let daemon = Daemon::start();
    for volume in ["kept", "free", "foreign"] {
        daemon.run(&format!("volume create {volume}")).ok();
    }
    daemon.run("volume snapshot create kept one").ok();
    daemon.run("volume snapshot create kept two").ok();
    let text = daemon.run("volume rm kept").fails(6);
    assert!(text.contains("volume kept has snapshots, one, two: remove them first"), "{text}");
    if daemon.driver() == "zfs" {
        // Those of others go with their volume, as ever.
        let name = format!("{}@auto", daemon.dataset("volumes/foreign"));
        let made = std::process::Command::new("zfs").args(["snapshot", &name]).status().unwrap();
        assert!(made.success());
        assert_eq!(listed(&daemon, "foreign")[0]["foreign"], true);
    }
    assert_eq!(daemon.run("volume prune --dry-run").ok(), "foreign\nfree");
    assert_eq!(daemon.run("volume prune -f").ok(), "foreign\nfree");
    assert_eq!(daemon.run("volume ls -q").ok(), "kept");
    assert_eq!(daemon.run("volume rm -f kept").ok(), "kept");
    assert_eq!(daemon.run("volume ls -q").ok(), "");
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

#[test]
fn a_volume_in_use_has_snapshots_too() {
    let daemon = Daemon::with_image();
    daemon.run("run -d --name c -m data:/data base sleep 600").ok();
    daemon.run("exec c touch /data/one").ok();
    assert_eq!(daemon.run("volume snapshot create data").ok(), "data@v0");
    daemon.run("exec c touch /data/two").ok();
    assert_eq!(daemon.inspect("volume", "data")["volume"]["state"], "mounted");
    assert_eq!(daemon.run("volume snapshot rm data v0").ok(), "data@v0");
}

#[test]
fn killed_while_snapshots_are_made_and_removed() {
    let both = |daemon: &Daemon| names(daemon, "--filter name=s");
    kill_at_every_call(
        "volume create a
         volume create b",
        "volume snapshot create a s --also b -m together",
        |daemon, code| {
            let found = both(daemon);
            assert!(found == "a@s b@s" || found.is_empty(), "{found}");
            assert!(code != Some(0) || !found.is_empty());
            for snapshot in listed(daemon, "").as_array().unwrap() {
                assert_eq!(snapshot["message"], "together");
            }
        },
        &["volume snapshot rm a s", "volume snapshot rm b s"],
    );
    kill_at_every_call(
        "volume create a
         volume snapshot create a s",
        "volume snapshot rm a s",
        |daemon, code| assert!(code != Some(0) || both(daemon).is_empty()),
        &["volume snapshot create a s"],
    );
}

#[test]
fn a_failing_call_makes_no_snapshot() {
    fail_at_every_call(
        &["volume create a", "volume create b"],
        "volume snapshot create a s --also b",
        |daemon, made| {
            assert_eq!(names_at_last(daemon, ""), if made { "a@s b@s" } else { "" });
        },
        &["volume snapshot rm a s", "volume snapshot rm b s"],
    );
    fail_at_every_call(
        &["volume create a", "volume snapshot create a s"],
        "volume snapshot rename a s t",
        |daemon, made| assert_eq!(names_at_last(daemon, "a"), if made { "t" } else { "s" }),
        &["volume snapshot rename a t s"],
    );
}
