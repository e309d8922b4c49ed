//! Images, names and clients that mean no good.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use kleene_tests::harness::{Daemon, Ran, eventually, has};
use kleene_tests::host::{mounts, seen_by};
use kleene_tests::image::{Archive, header, listing};
use kleene_tests::pool::pool;
use serde_json::json;
use tar::EntryType;

/// What is at a path, its times left out.
fn state_of(path: &str) -> Vec<(String, String)> {
    let entries = |path: &Path| match fs::read_dir(path) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
        Err(error) => vec![error.to_string()],
    };
    // Other tests' pools are mounted below `/`.
    let ours = |name: &String| name.starts_with("kl") || pool().as_ref() == Some(name);
    let names = entries(Path::new(path)).into_iter().filter(|name| !ours(name));
    let mut found: Vec<_> = names.map(|name| (path.to_owned(), name)).collect();
    found.sort();
    found
}

#[test]
fn links_in_the_image_never_lead_a_mount_to_the_host() {
    let daemon = Daemon::with_image();
    // An archive with links that climb is refused, so a container makes them for the image.
    let links = [
        ("/to-etc", "/etc"),
        ("/up", "../../../../../../.."),
        ("/chain-a", "/chain-b"),
        ("/chain-b", "usr/../../../chain-c"),
        ("/chain-c", "/to-etc"),
        ("/loop", "/loop"),
        ("/dangling", "/nowhere/at/all"),
    ];
    let script: Vec<String> =
        links.iter().map(|(link, target)| format!("ln -s {target} {link}")).collect();
    daemon.klee(["run", "--name", "evil", "base", "sh", "-ec", &script.join("; ")]).ok();
    daemon.run("image save evil evil").ok();
    let before = (state_of("/etc"), state_of("/"), state_of("/mnt"), mounts());
    for (place, seen) in [
        ("/to-etc/pwned", "/etc/pwned"),
        ("/up/pwned", "/pwned"),
        ("/chain-a/pwned", "/etc/pwned"),
        ("/up/up/etc/pwned", "/etc/pwned"),
    ] {
        let script = format!("echo in > {place}/file && cat {seen}/file");
        let ran =
            daemon.klee(["run", "--rm", "-m", &format!("v:{place}"), "evil", "sh", "-c", &script]);
        assert_eq!(ran.ok(), "in", "{place}");
        assert_eq!(
            listing(&daemon.volume("v")).into_keys().collect::<Vec<_>>(),
            ["file"],
            "{place}"
        );
    }
    // What a link hides is filled from the container's own directory, not from the host's.
    daemon.run("container create -m etc:/to-etc evil").ok();
    assert!(listing(&daemon.volume("etc")).contains_key("passwd"));
    assert!(!listing(&daemon.volume("etc")).contains_key("debian_version"));
    for place in ["/loop/x", "/dangling", "/etc/passwd", "/etc/passwd/x"] {
        let ran = daemon.klee(["container", "create", "-m", &format!("new:{place}"), "evil"]);
        assert!(
            ran.code != 0 && ran.stderr.contains(place.split('/').nth(1).unwrap()),
            "{place}: {ran:?}"
        );
        daemon.run("volume inspect new").fails(3);
    }
    let after = (state_of("/etc"), state_of("/"), state_of("/mnt"), mounts());
    assert_eq!(after, before);
}

#[test]
fn odd_destinations_are_taken_as_they_are() {
    let daemon = Daemon::with_image();
    for place in [
        "/a b",
        "/new\nline",
        "/$(touch /pwned)",
        "/%s%n",
        "/ünï",
        "/'\"\\",
        &format!("/{}", "x".repeat(255)),
    ] {
        let mount = format!("type=volume,source=v,target={place}");
        let ran = daemon.klee([
            "run",
            "--rm",
            "--mount",
            &mount,
            "base",
            "sh",
            "-c",
            "cd \"$1\" && pwd",
            "sh",
            place,
        ]);
        assert_eq!(ran.ok(), place.trim_end_matches('\n'), "{place:?}");
    }
    let deep = "/d".repeat(400);
    daemon.klee(["run", "--rm", "-m", &format!("v:{deep}"), "base", "true"]).ok();
    for bad in [
        format!("/{}", "x".repeat(256)),
        "/x".repeat(600),
        "/a/../b".into(),
        "/".into(),
        "relative".into(),
    ] {
        let ran = daemon.klee(["run", "-m", &format!("v:{bad}"), "base", "true"]);
        assert_eq!(ran.code, 125, "{bad}: {ran:?}");
        let body = json!({
            "image": "base", "mounts": [{ "type": "volume", "source": "v", "destination": bad }],
        })
        .to_string();
        let answer = daemon.raw(&format!(
            "POST /containers/create HTTP/1.1\r\nHost: x\r\nPrefer: exact-status\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 422"), "{bad}: {answer}");
    }
    assert!(!Path::new("/pwned").exists());
}

#[test]
fn two_mounts_on_one_place_are_refused_on_both_sides() {
    let daemon = Daemon::with_image();
    daemon.run("run -m a:/data -m b:/data/ base true").fails(125);
    let body = r#"{"image":"base","mounts":[{"type":"volume","source":"a","destination":"/d"},{"type":"volume","source":"b","destination":"/d/"}]}"#;
    let request = |prefer: &str| {
        format!(
            "POST /containers/create HTTP/1.1\r\nHost: x\r\n{prefer}Connection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert!(daemon.raw(&request("Prefer: exact-status\r\n")).starts_with("HTTP/1.1 422"));
    // Kleene's client can read the reason only with 404.
    assert!(daemon.raw(&request("")).starts_with("HTTP/1.1 404"));
    assert_eq!(daemon.run("volume ls -q").ok(), "");
}

#[test]
fn hostile_archives_leave_nothing() {
    let daemon = Daemon::start();
    let file = |name: &str| {
        let mut archive = Archive::empty();
        archive.file(name, b"x", 0o644);
        archive
    };
    let linked = |kind, target: &str| {
        let mut archive = Archive::empty();
        archive.append(header(kind, 0o777, 0), "link", Some(target), &[]);
        archive.file("link/pwned", b"x", 0o644);
        archive
    };
    let device = |kind| {
        let mut archive = Archive::empty();
        let mut device = header(kind, 0o666, 0);
        device.set_device_major(8).unwrap();
        device.set_device_minor(0).unwrap();
        archive.append(device, "sda", None, &[]);
        archive
    };
    let mut cut = kleene_tests::image::busybox();
    cut.truncate(cut.len() / 2);
    for (what, bytes) in [
        ("an absolute name", file("/tmp/pwned").bytes()),
        ("a name that climbs", file("../pwned").bytes()),
        ("a name that climbs later", file("a/../../pwned").bytes()),
        ("a hard link to outside", linked(EntryType::Link, "../../../../etc/passwd").bytes()),
        ("a hard link to an absolute name", linked(EntryType::Link, "/etc/passwd").bytes()),
        ("a link that climbs", linked(EntryType::Symlink, "../../../../tmp").bytes()),
        ("a block device", device(EntryType::Block).bytes()),
        ("a character device", device(EntryType::Char).bytes()),
        ("a cut archive", cut),
        ("no archive", b"#!/bin/sh\necho hello\n".repeat(100)),
        ("nothing", Vec::new()),
    ] {
        let ran: Ran = daemon.klee_with(["image", "import", "-", "bad"], &bytes).into();
        assert_ne!(ran.code, 0, "{what} was accepted");
        assert!(ran.stderr.starts_with("klee: "), "{what}: {ran:?}");
        assert_eq!(daemon.run("image ls -q").ok(), "", "{what}");
        assert!(daemon.litter().is_empty(), "{what}: {:?}", daemon.litter());
    }
    assert!(!Path::new("/tmp/pwned").exists());
    // A link to an absolute place is data: what is written below it stays inside.
    let ran: Ran = daemon
        .klee_with(["image", "import", "-", "odd"], &linked(EntryType::Symlink, "/tmp").bytes())
        .into();
    assert!(!Path::new("/tmp/pwned").exists(), "{ran:?}");
}

#[test]
fn a_full_disk_leaves_the_state_before() {
    if !has("mount", rustix::process::geteuid().is_root()) {
        return;
    }
    let mut archive = Archive::busybox();
    archive.folder("big", 0o755);
    for n in 0..12 {
        let mut noise = vec![0; 1 << 20];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        archive.file(&format!("big/{n}"), &noise, 0o644);
    }
    let archive = archive.bytes();
    let size = archive.len() as u64 >> 20;
    // Room for a container, not for the volume too. Where nothing is shared, an image is there twice.
    let room = if cfg!(target_os = "linux") { 48 } else { 3 * size + 6 };
    let daemon = Daemon::start_within(if pool().is_some() { 1 << 20 } else { room });
    daemon.import(&archive);
    // On ZFS a container takes none.
    daemon.leave(8);
    let error = daemon.run("container create --name c -m v:/big base");
    assert_eq!(error.code, 9, "{error:?}");
    daemon.run("volume inspect v").fails(3);
    assert_eq!(daemon.run("container ls -aq").ok(), "");
    // Without the volume there is room, so nothing was left of the failure.
    daemon.run("container create --name c base").ok();
    daemon.run("container rm c").ok();
    daemon.run("volume create v").ok();
    assert!(listing(&daemon.volume_inside("v")).is_empty());
    let error = daemon.run("container create --name c -m v:/big base");
    assert_eq!(error.code, 9, "{error:?}");
    assert!(listing(&daemon.volume_inside("v")).is_empty());
    assert_eq!(daemon.inspect("volume", "v")["volume"]["state"], "available");
    assert_eq!(daemon.run("volume rm v").ok(), "v");
}

#[test]
fn a_client_that_hangs_up_stops_nothing() {
    let mut archive = Archive::busybox();
    archive.file("usr/share/site/large", &vec![1; 64 << 20], 0o644);
    let daemon = Daemon::start();
    daemon.import(&archive.bytes());
    let body = r#"{"image":"base","name":"orphan","mounts":[{"type":"volume","source":"site","destination":"/usr/share/site"}]}"#;
    let request = format!(
        "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    // It has its name from the first moment on.
    eventually("the creation", || daemon.run("container inspect orphan").code == 0);
    drop(stream);
    eventually("its end", || !daemon.run("container ls -aq").ok().is_empty());
    assert_eq!(fs::metadata(daemon.volume("site").join("large")).unwrap().len(), 64 << 20);
    assert!(daemon.volume("site").join("index.html").exists());
    assert!(daemon.litter().is_empty());

    // Half a request, and half an archive, change nothing.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(&request.as_bytes()[..request.len() - 10]).unwrap();
    drop(stream);
    let archive = kleene_tests::image::busybox();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = format!(
        "POST /images/import?name=half HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        archive.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&archive[..archive.len() / 2]).unwrap();
    drop(stream);
    eventually("the end of the import", || {
        daemon.log().contains("import image half") && daemon.litter().is_empty()
    });
    assert_eq!(daemon.run("image ls -o json").ok().matches("half").count(), 0);
    assert_eq!(daemon.run("container ls -aq").ok().lines().count(), 1);
}

#[test]
fn a_stop_cuts_long_copies_short() {
    for verb in ["image save c large", "container create --name d image"] {
        let Some(mut daemon) = Daemon::start_in_memory() else { return };
        daemon.import(&kleene_tests::image::busybox());
        daemon.run("run --name c base dd if=/dev/zero of=/large bs=1M count=600").ok();
        if verb.starts_with("container") {
            daemon.run("image save c image").ok();
        }
        let inside = seen_by(daemon.pid(), &daemon.root());
        let used = || {
            let found = rustix::fs::statvfs(&inside).unwrap();
            (found.f_blocks - found.f_bfree) * found.f_frsize
        };
        let before = used();
        let client = daemon
            .client()
            .args(verb.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while used() < before + (32 << 20) {
            std::thread::yield_now();
        }
        assert!(daemon.stop().success());
        let ran: Ran = client.wait_with_output().unwrap().into();
        assert_eq!(ran.stdout, "", "{verb} was not cut short");
        assert!(ran.stderr.contains("the daemon is stopping"), "{ran:?}");
        assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
        assert!(!daemon.log().contains("not waiting"), "{}", daemon.log());
    }
}

#[test]
fn what_a_jail_names_is_escaped() {
    let daemon = Daemon::with_image();
    let ran = daemon.klee(["run", "base", "sh", "-c", "exec /no/such\u{1b}[2Jprogram"]);
    assert_ne!(ran.code, 0);
    let ran = daemon.klee(["run", "base", "/no/such\u{1b}[2Jprogram"]);
    assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
}
