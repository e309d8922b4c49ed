//! Images made of what there is elsewhere.

use std::fs;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::Stdio;

use kleene_tests::harness::{Daemon, Ran, eventually, has};
use kleene_tests::image::{Archive, listing};
use kleene_tests::pool::{Root, pool, zfs};
use kleene_tests::site::{Page, Site};
use kleened::fetch::Summed;
use rustix::process::{Pid, Signal, kill_process};

/// A small root file system in a tar archive, packed by xz.
fn base() -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(&Archive::busybox().bytes()).unwrap();
    encoder.finish().unwrap()
}

fn sum(bytes: &[u8]) -> String {
    Summed::new(bytes).finish().unwrap().to_string()
}

fn manifest(name: &str, sum: &str) -> Page {
    let line = |name: &str, sum: &str| format!("{name}\t{sum}\t29\tbase\t\"Base system\"\ton\n");
    Page::Whole((line("kernel.txz", &"0".repeat(64)) + &line(name, sum)).into_bytes())
}

/// A daemon that no proxy of this machine's comes between.
fn daemon() -> Daemon {
    Daemon::start_with("", &[("NO_PROXY", "*"), ("no_proxy", "*")])
}

/// Fails, and leaves nothing.
#[track_caller]
fn refused(daemon: &Daemon, arguments: &str, code: i32) -> String {
    let error = daemon.run(&format!("image create {arguments}")).fails(code);
    nothing_left(daemon);
    error
}

#[track_caller]
fn nothing_left(daemon: &Daemon) {
    assert_eq!(daemon.run("lsi -q").ok(), "");
    for area in ["image", "scratch"] {
        assert_eq!(fs::read_dir(daemon.root().join(area)).unwrap().count(), 0, "{area}");
    }
}

/// The image's root, as the host sees it.
fn content(daemon: &Daemon, id: &str) -> std::path::PathBuf {
    daemon.root().join("image").join(id)
}

#[test]
fn a_fetched_archive_is_an_image() {
    let (daemon, base) = (daemon(), base());
    let site = Site::new([
        ("/r/base.txz", Page::Whole(base.clone())),
        ("/r/MANIFEST", manifest("base.txz", &sum(&base).to_uppercase())),
        ("/moved/base.txz", Page::Moved("/r/base.txz".into())),
        ("/moved/MANIFEST", Page::Moved("../r/MANIFEST".into())),
    ]);
    let ran = daemon.run(&format!("image create -t base:1 fetch {}", site.url("/r/base.txz")));
    assert!(ran.stderr.contains("the checksum is right"), "{ran:?}");
    let id = ran.ok();
    let image = daemon.inspect("image", "base:1");
    assert_eq!(image["id"], *id);
    assert_eq!(image["cmd"], serde_json::json!(["/bin/sh", "/etc/rc"]));
    assert_eq!((&image["user"], &image["env"]), (&"root".into(), &serde_json::json!([])));
    let root = content(&daemon, &id);
    for file in ["etc/resolv.conf", "etc/localtime"] {
        assert_eq!(fs::read(root.join(file)).ok(), fs::read(Path::new("/").join(file)).ok());
    }
    assert_eq!(daemon.run("run --rm base:1 cat /usr/share/site/.htaccess").ok(), "deny from none");

    let moved = site.url("/moved/base.txz");
    let ran = daemon.run(&format!("image create --no-dns --no-localtime fetch {moved}")).ok();
    let found = listing(&content(&daemon, &ran));
    assert!(!found.contains_key("etc/resolv.conf") && !found.contains_key("etc/localtime"));
    let image = daemon.inspect("image", &ran);
    assert_eq!((&image["name"], &image["tag"]), (&"".into(), &"".into()));
}

#[test]
fn a_file_of_the_host_is_an_image() {
    let (daemon, base) = (daemon(), base());
    let place = daemon.home().join("a dist");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("base.txz"), &base).unwrap();
    let url = format!("file://{}", place.join("base.txz").display()).replace(' ', "%20");
    let ran = daemon.klee(["image", "create", "fetch", &url]);
    assert!(ran.stderr.contains("no MANIFEST") && ran.code == 0, "{ran:?}");
    fs::write(place.join("MANIFEST"), format!("base.txz\t{}\n", sum(&base))).unwrap();
    let mut relative = daemon.client();
    relative.current_dir(&place).args(["image", "create", "fetch", "base.txz"]);
    let relative: Ran = relative.output().unwrap().into();
    assert!(relative.stderr.contains("the checksum is right"), "{relative:?}");
    assert_eq!(daemon.run("lsi -q").ok().lines().count(), 2);
    for (path, code, says) in [
        (daemon.home().join("none.txz"), 3, "there is no /"),
        (daemon.home().to_owned(), 2, "not a file"),
        (place.join("none.txz"), 2, "no SHA256 of none.txz"),
    ] {
        let ran = daemon.klee(["image", "create", "fetch", path.to_str().unwrap()]);
        assert!(ran.code == code && ran.stderr.contains(says), "{path:?}: {ran:?}");
    }
    assert_eq!(daemon.run("lsi -q").ok().lines().count(), 2);
}

#[test]
fn what_does_not_have_the_right_sum_leaves_nothing() {
    let (daemon, base) = (daemon(), base());
    let (right, wrong) = (sum(&base), "ab".repeat(32));
    let site = Site::new([
        ("/base.txz", Page::Whole(base.clone())),
        ("/MANIFEST", manifest("base.txz", &wrong)),
        ("/none/base.txz", Page::Whole(base.clone())),
        ("/other/base.txz", Page::Whole(base.clone())),
        ("/other/MANIFEST", manifest("src.txz", &right)),
        ("/bad/base.txz", Page::Whole(base[..base.len() / 2].to_vec())),
        ("/bad/MANIFEST", manifest("base.txz", &right)),
    ]);
    let url = site.url("/base.txz");
    let error = refused(&daemon, &format!("fetch {url}"), 2);
    assert!(error.contains(&right) && error.contains(&wrong), "{error}");
    let error = refused(&daemon, &format!("fetch {}", site.url("/none/base.txz")), 2);
    assert!(error.contains("no MANIFEST"), "{error}");
    let error = refused(&daemon, &format!("fetch {}", site.url("/other/base.txz")), 2);
    assert!(error.contains("no SHA256 of base.txz"), "{error}");
    let error = refused(&daemon, &format!("fetch {}", site.url("/bad/base.txz")), 2);
    assert!(error.contains("cut off"), "{error}");
    let error = refused(&daemon, &format!("fetch --sha256 {wrong} {url}"), 2);
    assert!(error.contains(&right) && error.contains(&wrong), "{error}");
    refused(&daemon, &format!("fetch --sha256 12 {url}"), 2);
    daemon.run(&format!("image create fetch --sha256 {right} {url}")).ok();
}

#[test]
fn a_server_that_fails_leaves_nothing() {
    let (daemon, base) = (daemon(), base());
    let sum = sum(&base);
    let site = Site::new([
        ("/base.txz", Page::Cut(base[..base.len() / 2].to_vec())),
        ("/MANIFEST", manifest("base.txz", &sum)),
        ("/end/base.txz", Page::Cut(base.clone())),
        ("/end/MANIFEST", manifest("base.txz", &sum)),
        ("/gone/MANIFEST", manifest("base.txz", &sum)),
        ("/loop/MANIFEST", manifest("base.txz", &sum)),
        ("/loop/base.txz", Page::Moved("/loop/base.txz".into())),
        ("/down/MANIFEST", Page::Status(503)),
        ("/denied/MANIFEST", Page::Status(403)),
    ]);
    for (path, code, says) in [
        ("/base.txz", 10, "broke off"),
        ("/end/base.txz", 10, "broke off"),
        ("/gone/base.txz", 3, "there is no http://"),
        ("/loop/base.txz", 10, "redirect"),
        ("/down/base.txz", 10, "status 503"),
        ("/denied/base.txz", 2, "status 403"),
    ] {
        let error = refused(&daemon, &format!("fetch {}", site.url(path)), code);
        assert!(error.contains(says), "{path}: {error}");
    }
    // Nobody listens there any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refused(&daemon, &format!("fetch http://{port}/base.txz"), 10);
    assert!(error.contains("refused"), "{error}");
    let error = refused(&daemon, "fetch http://server.invalid/base.txz", 10);
    assert!(error.contains("MANIFEST"), "{error}");
    refused(&daemon, "fetch ftp://server.invalid/base.txz", 2);
    refused(&daemon, "fetch", 2);
}

/// The path of an archive on the daemon's host with a freebsd-update that does that.
fn updating(daemon: &Daemon, script: &str) -> String {
    let mut archive = Archive::busybox();
    let script = format!("#!/bin/sh\n{script}\n");
    archive.folder("usr/sbin", 0o755);
    archive.file("usr/sbin/freebsd-update", script.as_bytes(), 0o755);
    archive.file("usr/sbin/freebsd-version", b"#!/bin/sh\necho 14.1-RELEASE\n", 0o755);
    let path = daemon.home().join("update.tar");
    fs::write(&path, archive.bytes()).unwrap();
    path.display().to_string()
}

#[test]
fn an_image_is_updated_before_it_is_one() {
    let mut daemon = daemon();
    let path = updating(&daemon, "echo \"$@\"; echo new > /etc/new; printf 'no newline' >&2");
    let ran = daemon.run(&format!("image create -t new --update fetch {path}"));
    let said = "--not-running-from-cron --currently-running 14.1-RELEASE fetch install";
    assert!(ran.stderr.contains(said) && ran.stderr.contains("no newline"), "{ran:?}");
    ran.ok();
    assert_eq!(daemon.run("run --rm new cat /etc/new").ok(), "new");
    daemon.run("image rm new").ok();
    let path = updating(&daemon, "echo no network; exit 3");
    let error = refused(&daemon, &format!("--update fetch {path}"), 2);
    assert!(error.contains("status 3: no network"), "{error}");
    let path = daemon.home().join("none.tar");
    fs::write(&path, Archive::busybox().bytes()).unwrap();
    let error = refused(&daemon, &format!("--update fetch {}", path.display()), 2);
    assert!(error.contains("status 127"), "{error}");

    // Who goes away ends it.
    let path = updating(&daemon, "echo here; exec sleep 1000");
    let begin = || {
        let mut client = daemon.client();
        client.args(["image", "create", "--update", "fetch", &path]);
        let mut client = client.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = std::io::BufReader::new(client.stderr.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "here"));
        client
    };
    let mut client = begin();
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("the end", || fs::read_dir(daemon.root().join("scratch")).unwrap().count() == 0);
    nothing_left(&daemon);
    let mut client = begin();
    daemon.kill();
    client.wait().unwrap();
    daemon.boot();
    nothing_left(&daemon);
}

#[test]
fn who_goes_away_takes_the_image_back() {
    let (mut daemon, base) = (daemon(), base());
    let site = Site::new([
        ("/base.txz", Page::Stalls(base[..base.len() / 2].to_vec())),
        ("/MANIFEST", manifest("base.txz", &sum(&base))),
    ]);
    let url = site.url("/base.txz");
    let begin = || {
        let mut client = daemon.client();
        client.args(["image", "create", "fetch", &url]);
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the beginning", || {
            fs::read_dir(daemon.root().join("scratch")).unwrap().count() > 0
        });
        client
    };
    for (signal, status) in [(Signal::KILL, None), (Signal::INT, Some(130))] {
        let mut client = begin();
        kill_process(Pid::from_child(&client), signal).unwrap();
        assert_eq!(client.wait().unwrap().code(), status);
        let mut said = String::new();
        client.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.is_none() || said.contains("no image is created"), "{said}");
        eventually("the end", || fs::read_dir(daemon.root().join("scratch")).unwrap().count() == 0);
    }
    nothing_left(&daemon);

    let client = begin();
    assert!(daemon.stop().success());
    let said: Ran = client.wait_with_output().unwrap().into();
    assert!(said.fails(10).contains("the daemon is stopping"));
    daemon.boot();
    nothing_left(&daemon);

    // A power failure in the middle.
    let client = {
        let mut client = daemon.client();
        client.args(["image", "create", "fetch", &url]).stderr(Stdio::null()).spawn().unwrap()
    };
    eventually("the beginning", || {
        fs::read_dir(daemon.root().join("scratch")).unwrap().count() > 0
    });
    daemon.kill();
    assert_eq!(client.wait_with_output().unwrap().status.code(), Some(10));
    daemon.boot();
    nothing_left(&daemon);
}

#[test]
fn the_environment_s_proxy_is_used() {
    let base = base();
    let site = Site::new([
        ("/base.txz", Page::Whole(base.clone())),
        ("/MANIFEST", manifest("base.txz", &sum(&base))),
    ]);
    let proxy = site.url("");
    let daemon = Daemon::start_with("", &[("http_proxy", &proxy), ("HTTP_PROXY", &proxy)]);
    daemon.run("image create fetch http://far.invalid/base.txz").ok();
    let through = ["far.invalid:80", "/MANIFEST", "far.invalid:80", "/base.txz"];
    assert_eq!(site.asked(), through);
}

#[test]
fn what_this_host_has_not_is_refused() {
    let daemon = daemon();
    if cfg!(target_os = "linux") {
        let error = refused(&daemon, "fetch-auto", 8);
        assert!(error.contains("Linux") && error.contains("base.txz"), "{error}");
    }
    refused(&daemon, "fetch-auto somewhere", 2);
    let error = refused(&daemon, "zfs-copy", 2);
    assert!(error.contains("The SOURCE argument is needed"), "{error}");
    refused(&daemon, "nosuch x", 2);
    if daemon.driver() == "dir" {
        for method in ["zfs-copy", "zfs-clone"] {
            let error = refused(&daemon, &format!("{method} tank/base"), 8);
            assert!(error.contains("keep the root on ZFS"), "{error}");
        }
    }
}

/// A dataset of somebody else's, `NAME/base`, with a root file system; `None` where there is no pool.
fn theirs(daemon: &Daemon) -> Option<Root> {
    if !has("zfs", pool().is_some()) {
        return None;
    }
    let room = Root::at(&daemon.home().join("theirs"))?;
    zfs(&["create", &format!("{}/base", room.name())]);
    let place = daemon.home().join("theirs/base");
    tar::Archive::new(&*Archive::busybox().bytes()).unpack(&place).unwrap();
    fs::write(place.join("etc/mark"), "theirs").unwrap();
    Some(room)
}

fn snapshots(dataset: &str) -> String {
    zfs(&["list", "-H", "-t", "snapshot", "-o", "name", dataset]).trim().to_owned()
}

#[test]
fn a_dataset_is_copied_or_cloned() {
    let mut daemon = daemon();
    let Some(room) = theirs(&daemon) else { return };
    let theirs = format!("{}/base", room.name());
    let place = daemon.home().join("theirs/base/etc/mark");

    let copy = daemon.run(&format!("image create -t copy zfs-copy {theirs}")).ok();
    assert_eq!(snapshots(&theirs), "");
    let clone = daemon.run(&format!("image create -t clone zfs-clone {theirs}")).ok();
    assert_eq!(snapshots(&theirs), format!("{theirs}@{clone}"));
    zfs(&["snapshot", &format!("{theirs}@odd:name-1.2")]);
    fs::write(&place, "changed").unwrap();
    let snapshot = format!("{theirs}@odd:name-1.2");
    let of_snapshot = daemon.run(&format!("image create -t old zfs-copy {snapshot}")).ok();
    let cloned = daemon.run(&format!("image create zfs-clone {snapshot}")).ok();
    for (image, id) in
        [("copy", &copy), ("clone", &clone), ("old", &of_snapshot), (&cloned, &cloned)]
    {
        assert_eq!(
            daemon.run(&format!("run --rm {image} cat /etc/mark")).ok(),
            "theirs",
            "{image}"
        );
        let dataset = daemon.dataset(&format!("image/{id}"));
        assert_eq!(snapshots(&dataset), format!("{dataset}@image"));
        let resolv = content(&daemon, id).join("etc/resolv.conf");
        assert_eq!(fs::read(resolv).ok(), fs::read("/etc/resolv.conf").ok());
    }
    assert_eq!(fs::read_to_string(&place).unwrap(), "changed");
    let origin = |id: &str| {
        let dataset = daemon.dataset(&format!("image/{id}"));
        zfs(&["get", "-H", "-o", "value", "origin", &dataset]).trim().to_owned()
    };
    assert_eq!((origin(&copy), origin(&clone)), ("-".into(), format!("{theirs}@{clone}")));
    daemon.stop();
    daemon.boot();
    daemon.run(&format!("image rm copy clone old {cloned}")).ok();
    nothing_left(&daemon);
    // Theirs is as it was: the snapshot that was made went with its clone.
    assert_eq!(snapshots(&theirs), snapshot);
}

#[test]
fn a_crash_leaves_nothing_of_others_datasets_changed() {
    let mut daemon = daemon();
    let Some(room) = theirs(&daemon) else { return };
    let theirs = format!("{}/base", room.name());
    for (method, plan) in [
        ("zfs-copy", "mark:1:after:kill"),
        ("zfs-copy", "copy_of:1:after:kill"),
        ("zfs-clone", "clone_of:1:after:kill"),
        ("zfs-clone", "unmark:1:before:kill"),
    ] {
        daemon.stop();
        daemon.set_environment("KLEENED_FAULT", Some(plan));
        daemon.boot();
        assert_eq!(daemon.run(&format!("image create {method} {theirs}")).code, 10, "{plan}");
        daemon.ended();
        daemon.set_environment("KLEENED_FAULT", None);
        daemon.boot();
        nothing_left(&daemon);
        assert_eq!(snapshots(&theirs), "", "{plan}");
    }
}

#[test]
fn what_is_no_dataset_is_no_image() {
    let daemon = daemon();
    let Some(room) = theirs(&daemon) else { return };
    let name = room.name().to_owned();
    zfs(&["create", "-V", "1M", "-s", &format!("{name}/block")]);
    daemon.run("volume create own").ok();
    for (method, source, code, says) in [
        ("zfs-copy", format!("{name}/none"), 3, "no such dataset"),
        ("zfs-copy", format!("{name}/base@none"), 3, "no such dataset"),
        ("zfs-copy", format!("/{name}/base"), 3, "no such dataset"),
        ("zfs-clone", format!("{name}/base; reboot"), 3, "no such dataset"),
        ("zfs-clone", format!("{name}/base@"), 3, "no such dataset"),
        ("zfs-copy", format!("{name}/block"), 2, "not a file system"),
        ("zfs-clone", format!("{name}/block"), 2, "not a file system"),
        ("zfs-clone", daemon.dataset("volumes/own"), 2, "is a part of"),
    ] {
        let ran = daemon.klee(["image", "create", method, &source]);
        assert!(ran.code == code && ran.stderr.contains(says), "{source}: {ran:?}");
        nothing_left(&daemon);
    }
    for dataset in [format!("{name}/base"), format!("{name}/block"), daemon.dataset("volumes/own")]
    {
        assert_eq!(snapshots(&dataset), "");
    }
    daemon.run(&format!("image create zfs-copy {}", daemon.dataset("volumes/own"))).ok();
}
