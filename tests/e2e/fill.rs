//! What others do with a volume while it is being filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use kleene_tests::harness::Daemon;
use kleene_tests::host::open_files;
use kleene_tests::image::{busybox, listing};

const CREATE: &str = "container create --name c -m site:/usr/share/site base";

/// A daemon that stops at these calls of storage, and a client that makes it come there.
fn begin(calls: &[&str]) -> (Daemon, Child) {
    let mut daemon = Daemon::start();
    daemon.import(&busybox());
    daemon.run("volume create site").ok();
    assert!(daemon.stop().success());
    let plans: Vec<String> = calls.iter().map(|call| format!("{call}:stop")).collect();
    daemon.set_environment("KLEENED_FAULT", Some(&plans.join(",")));
    daemon.boot();
    daemon.set_environment("KLEENED_FAULT", None);
    let client = daemon
        .client()
        .args(CREATE.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (daemon, client)
}

/// The datasets that wait for their place, without the container's.
fn waiting(daemon: &Daemon) -> Vec<PathBuf> {
    let scratch = fs::read_dir(daemon.root().join("scratch")).unwrap();
    let scratch = scratch.map(|entry| entry.unwrap().path());
    scratch.filter(|path| !path.join("bin").exists()).collect()
}

/// What the daemon has open below the directory.
fn open_below(daemon: &Daemon, directory: &Path) -> Vec<PathBuf> {
    let directory = fs::canonicalize(directory).unwrap();
    open_files(daemon.pid()).into_iter().filter(|path| path.starts_with(&directory)).collect()
}

#[test]
fn nothing_of_a_volume_is_open_when_it_changes_its_place() {
    let (daemon, mut client) = begin(&["rename:1:before", "rename:2:before"]);
    for renamed in [1, 2] {
        daemon.wait_until_stopped();
        let mut datasets = waiting(&daemon);
        if renamed == 1 {
            datasets.push(daemon.volume("site"));
        }
        assert_eq!(datasets.len(), 2);
        for dataset in datasets {
            assert_eq!(open_below(&daemon, &dataset), [] as [PathBuf; 0]);
        }
        daemon.go_on();
    }
    assert!(client.wait().unwrap().success());
    assert_eq!(listing(&daemon.volume("site")).len(), 6);
}

#[test]
fn what_the_host_writes_while_a_volume_is_filled_is_kept() {
    // Before the volume steps aside, when it did, and when the filled one has its place.
    for (call, survives) in [
        ("rename:1:before", true),
        ("rename:1:before", false),
        ("rename:1:after", true),
        ("rename:1:after", false),
        ("rename:2:after", true),
        ("rename:2:after", false),
    ] {
        let (mut daemon, mut client) = begin(&[call]);
        daemon.wait_until_stopped();
        let is_empty = |path: &PathBuf| fs::read_dir(path).unwrap().next().is_none();
        let place = match call {
            "rename:1:before" => daemon.volume("site"),
            _ => waiting(&daemon).into_iter().find(is_empty).unwrap(),
        };
        fs::write(place.join("kept"), "by the host").unwrap();
        if survives {
            daemon.go_on();
            assert!(client.wait().unwrap().success(), "{call}");
        } else {
            daemon.kill();
            assert!(!client.wait().unwrap().success());
            daemon.boot();
        }
        let files: Vec<String> = listing(&daemon.volume("site")).into_keys().collect();
        assert!(files.iter().any(|name| name.contains("kept")), "{call} {survives}: {files:?}");
        assert!(files.len() <= 2, "{call} {survives}: {files:?}");
        let volume = daemon.inspect("volume", "site");
        assert_eq!(volume["volume"]["populated"], serde_json::Value::Null);
        assert_eq!(volume["volume"]["error"], serde_json::Value::Null);
        assert_eq!(daemon.run("container ls -aq").ok().is_empty(), !survives);
        assert!(daemon.litter().is_empty(), "{call} {survives}: {:?}", daemon.litter());
    }
}
