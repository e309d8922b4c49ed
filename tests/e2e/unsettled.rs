//! What could be neither finished nor taken back: the next start settles it, and nobody's data goes.

use std::fs;
use std::path::PathBuf;

use kleene_tests::harness::Daemon;
use kleene_tests::image::{busybox, listing};

const CREATE: &str = "container create --name c -m site:/usr/share/site base";

/// A daemon with an image, in which these calls of storage fail.
fn failing(prepare: &str, calls: &[&str]) -> Daemon {
    let mut daemon = Daemon::start();
    daemon.import(&busybox());
    for command in prepare.lines() {
        daemon.run(command).ok();
    }
    reboot(&mut daemon, calls);
    daemon
}

fn reboot(daemon: &mut Daemon, calls: &[&str]) {
    assert!(daemon.stop().success());
    let plans: Vec<String> = calls.iter().map(|call| format!("{call}:error")).collect();
    let plans = (!plans.is_empty()).then(|| plans.join(","));
    daemon.set_environment("KLEENED_FAULT", plans.as_deref());
    daemon.boot();
}

fn assert_unusable(daemon: &Daemon) {
    let volume = daemon.inspect("volume", "site");
    assert_eq!(volume["volume"]["state"], "error", "{volume}");
    for command in ["container create --name d -m site:/mnt base", "volume rm site"] {
        let ran = daemon.run(command);
        assert!(ran.code != 0 && ran.stderr.contains("restart kleened"), "{ran:?}");
    }
}

#[test]
fn a_volume_that_could_not_be_taken_back_waits_for_the_next_start() {
    for calls in [
        // The container's root does not get its place, and the volume, or the root, does not go.
        ["rename:2:before", "destroy:3:before"],
        ["rename:2:before", "destroy:1:before"],
        ["rename:2:after", "destroy:2:before"],
    ] {
        let mut daemon = failing("", &calls);
        assert_ne!(daemon.run(CREATE).code, 0);
        assert_unusable(&daemon);
        assert_eq!(daemon.run("container ls -aq").ok(), "");
        reboot(&mut daemon, &[]);
        assert_eq!(daemon.run("container ls -aq").ok(), "", "{calls:?}");
        assert_eq!(daemon.run("volume ls -q").ok(), "", "{calls:?}");
        assert!(daemon.litter().is_empty(), "{calls:?}: {:?}", daemon.litter());
        daemon.run(CREATE).ok();
        assert_eq!(listing(&daemon.volume("site")).len(), 6);
    }
}

#[test]
fn a_volume_that_lost_its_place_gets_it_back() {
    // Neither the filled one nor the one that was there before gets the place.
    let calls = ["rename:2:before", "rename:3:before", "rename:4:before"];
    let mut daemon = failing("volume create site --label kept=yes", &calls);
    assert_ne!(daemon.run(CREATE).code, 0);
    assert_unusable(&daemon);
    // It does not keep the daemon from starting, and nothing of it goes.
    reboot(&mut daemon, &["rename:1:before"]);
    assert_unusable(&daemon);
    reboot(&mut daemon, &[]);
    assert_eq!(daemon.run("container ls -aq").ok(), "");
    assert_eq!(daemon.run("volume ls -q").ok(), "site");
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
    daemon.run(CREATE).ok();
    assert_eq!(listing(&daemon.volume("site")).len(), 6);
    assert_eq!(daemon.inspect("volume", "site")["volume"]["labels"]["kept"], "yes");
}

#[test]
fn a_new_volume_that_gets_no_name_is_not_there() {
    for calls in [&["rename:1:before"][..], &["rename:1:before", "destroy:1:before"]] {
        let mut daemon = failing("", calls);
        assert_ne!(daemon.run(CREATE).code, 0);
        assert_eq!(daemon.run("volume ls -q").ok(), "");
        assert_eq!(daemon.run("container ls -aq").ok(), "");
        reboot(&mut daemon, &[]);
        assert!(daemon.litter().is_empty(), "{calls:?}: {:?}", daemon.litter());
        daemon.run(CREATE).ok();
        assert_eq!(listing(&daemon.volume("site")).len(), 6);
    }
}

/// The journal says that the creation of `c` and its volume was cut off.
fn cut_off(daemon: &Daemon, id: &str) {
    let intent = format!(r#"{{"create_container":{{"id":"{id}","volumes":["site"]}}}}"#);
    fs::write(daemon.root().join("journal").join(format!("{id}.json")), intent).unwrap();
}

#[test]
fn only_what_nobody_uses_is_taken_back() {
    for (used, kept) in [("", false), ("by another", true), ("by the host", true)] {
        let mut daemon = Daemon::with_image();
        let id = daemon.run(CREATE).ok();
        match used {
            "by another" => {
                daemon.run("container create --name d -m site:/mnt base").ok();
            }
            "by the host" => fs::write(daemon.volume("site").join("new"), "").unwrap(),
            _ => {}
        }
        daemon.run("container rm c").ok();
        assert!(daemon.stop().success());
        cut_off(&daemon, &id);
        daemon.boot();
        assert_eq!(daemon.volume("site").exists(), kept, "used {used}");
        assert_eq!(daemon.run("volume ls -q").ok().is_empty(), !kept, "used {used}");
        assert!(daemon.litter().is_empty());
    }
}

/// Damages the record of a container, where it is a file.
fn damage(daemon: &Daemon, id: &str) -> bool {
    let link: PathBuf = daemon.root().join("container").join(id);
    if daemon.driver() != "dir" {
        return false;
    }
    fs::write(fs::canonicalize(link).unwrap().with_file_name("record"), "{").unwrap();
    true
}

#[test]
fn a_container_whose_record_cannot_be_read_may_use_everything() {
    let mut daemon = Daemon::with_image();
    let id = daemon.run(CREATE).ok();
    daemon.run("volume create empty").ok();
    let runs = daemon.run("run -d --name runs -m empty:/mnt base sleep 1000").ok();
    assert!(daemon.stop().success());
    if !damage(&daemon, &id) || !damage(&daemon, &runs) {
        return;
    }
    cut_off(&daemon, &id);
    daemon.boot();
    assert_eq!(listing(&daemon.volume("site")).len(), 6);
    daemon.run("container create --name new -m empty:/usr/share/site base").ok();
    assert_eq!(fs::read_dir(daemon.volume("empty")).unwrap().count(), 0);
    // A new one can't be in use.
    daemon.run("container create --name newer -m fresh:/usr/share/site base").ok();
    assert_eq!(listing(&daemon.volume("fresh")).len(), 6);
}
