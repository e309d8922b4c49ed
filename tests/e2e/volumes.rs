//! Volumes, end to end: the real binaries, mounts and processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use kleene_tests::harness::{Daemon, eventually};
use kleene_tests::image::listing;
use serde_json::json;

#[test]
fn a_volume_is_made_shown_and_removed() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run("volume create my-vol").ok(), "my-vol");
    let shown = daemon.inspect("volume", "my-vol");
    let place = daemon.volume("my-vol");
    assert_eq!(shown["mountpoints"], json!([]));
    assert_eq!(shown["volume"]["name"], "my-vol");
    assert_eq!(shown["volume"]["state"], "available");
    assert_eq!(shown["volume"]["mountpoint"], place.to_str().unwrap());
    assert_eq!(shown["volume"]["dataset"], daemon.dataset("volumes/my-vol"));
    let listed = daemon.run("lsv").ok();
    assert!(listed.starts_with(" VOLUME NAME   CREATED"), "{listed}");
    assert_eq!(daemon.run("volume ls -q").ok(), "my-vol");
    assert_eq!(daemon.run("volume rm my-vol").ok(), "my-vol");
    assert!(!place.exists());
    daemon.run("volume inspect my-vol").fails(3);
}

#[test]
fn a_repeat_succeeds_and_a_difference_is_named() {
    let daemon = Daemon::start();
    let create = "volume create v --label tier=db --owner 70:71 --mode 0750";
    assert_eq!(daemon.run(create).ok(), "v");
    assert_eq!(daemon.run(create).ok(), "v");
    let meta = fs::metadata(daemon.volume("v")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (70, 71, 0o750));
    for (create, field) in [
        ("volume create v --label tier=web --owner 70:71 --mode 0750", "labels"),
        ("volume create v --label tier=db --owner 0:0 --mode 0750", "owner"),
        ("volume create v --label tier=db --owner 70:71 --mode 0700", "mode"),
    ] {
        let error = daemon.run(create).fails(4);
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn names_are_refused_on_both_sides() {
    let daemon = Daemon::start();
    let long = "v".repeat(129);
    for bad in ["", ".", "..", "-v", "a/b", "a b", "a\nb", "$(touch /pwned)", "%2e%2e", "ü", &long]
    {
        let error = daemon.klee(["volume", "create", "--", bad]).fails(2);
        assert!(error.contains("1 to 128 bytes"), "{bad:?}: {error}");
        let body = serde_json::to_string(&json!({ "name": bad })).unwrap();
        let answer = daemon.raw(&format!(
            "POST /volumes/create HTTP/1.1\r\nHost: x\r\nPrefer: exact-status\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 422"), "{bad:?}: {answer}");
        assert!(answer.contains("1 to 128 bytes"), "{bad:?}: {answer}");
    }
    let longest = "v".repeat(128);
    assert_eq!(daemon.klee(["volume", "create", &longest]).ok(), longest);
    assert_eq!(daemon.run("volume ls -q").ok(), longest);
}

#[test]
fn the_first_mount_fills_a_new_volume() {
    let daemon = Daemon::with_image();
    let ran = daemon.run("run --name web -m site:/usr/share/site base ls -A /usr/share/site");
    assert_eq!(ran.ok(), ".htaccess\ncurrent\nhome.html\nimg\nindex.html");

    let place = daemon.volume("site");
    let found = listing(&place);
    let expected = [
        (".htaccess", "deny from none\n"),
        ("current", "index.html"),
        ("home.html", "<h1>It works</h1>\n"),
        ("img", "/"),
        ("img/logo.svg", "<svg/>\n"),
        ("index.html", "<h1>It works</h1>\n"),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    let root = fs::metadata(&place).unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (80, 80, 0o750));
    let (index, home) = (place.join("index.html"), place.join("home.html"));
    assert_eq!(fs::metadata(index).unwrap().ino(), fs::metadata(home).unwrap().ino());
    assert_eq!(fs::metadata(place.join("img")).unwrap().mtime(), 1_700_000_000);

    let shown = daemon.inspect("volume", "site");
    let web = daemon.inspect("container", "web");
    let id = web["container"]["id"].as_str().unwrap();
    let mount = json!({
        "container_id": id, "destination": "/usr/share/site", "read_only": false, "source": "site", "type": "volume",
    });
    assert_eq!(shown["mountpoints"], json!([mount]));
    assert_eq!(web["container_mountpoints"], json!([mount]));
    assert_eq!(shown["volume"]["state"], "attached");
    assert_eq!(shown["volume"]["populated"]["path"], "/usr/share/site");
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

#[test]
fn an_explicit_volume_is_filled_and_keeps_the_owner_it_was_given() {
    let daemon = Daemon::with_image();
    daemon.run("volume create site --owner 70:71 --mode 0700 --label a=b").ok();
    daemon.run("container create -m site:/usr/share/site base").ok();
    let root = fs::metadata(daemon.volume("site")).unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (70, 71, 0o700));
    assert!(daemon.volume("site").join("index.html").exists());
    assert_eq!(daemon.inspect("volume", "site")["volume"]["labels"], json!({ "a": "b" }));
}

#[test]
fn existing_data_is_never_touched_and_a_volume_is_filled_once() {
    let daemon = Daemon::with_image();
    daemon.run("volume create data").ok();
    fs::write(daemon.volume("data").join("index.html"), "mine").unwrap();
    daemon.run("container create -m data:/usr/share/site base").ok();
    assert_eq!(listing(&daemon.volume("data")).len(), 1);
    assert_eq!(fs::read_to_string(daemon.volume("data").join("index.html")).unwrap(), "mine");

    // Emptied by its users: its first content was all that it gets.
    daemon
        .klee([
            "run",
            "--rm",
            "-m",
            "site:/usr/share/site",
            "base",
            "sh",
            "-c",
            "rm -rf /usr/share/site/* /usr/share/site/.h*",
        ])
        .ok();
    assert!(listing(&daemon.volume("site")).is_empty());
    daemon.run("container create -m site:/usr/share/site base").ok();
    assert!(listing(&daemon.volume("site")).is_empty());
}

#[test]
fn nocopy_keeps_a_volume_empty_for_now() {
    let daemon = Daemon::with_image();
    daemon.run("container create -m site:/usr/share/site:rw,nocopy base").ok();
    assert!(listing(&daemon.volume("site")).is_empty());
    daemon.run("container create --mount type=volume,source=site,target=/usr/share/site base").ok();
    assert!(!listing(&daemon.volume("site")).is_empty());
}

#[test]
fn an_empty_directory_gives_its_owner_and_mode_alone() {
    let daemon = Daemon::with_image();
    daemon.run("container create -m t:/tmp base").ok();
    assert_eq!(fs::metadata(daemon.volume("t")).unwrap().mode() & 0o7777, 0o1777);
    // Nothing was copied, so the volume has not had its first content.
    daemon.run("container create -m t:/usr/share/site base").ok();
    assert!(daemon.volume("t").join("index.html").exists());
}

#[test]
fn containers_made_together_fill_a_volume_once() {
    let daemon = Daemon::with_image();
    thread::scope(|scope| {
        let run =
            || daemon.run("run --rm -m site:/usr/share/site base ls /usr/share/site/img").ok();
        let runs: Vec<_> = (0..6).map(|_| scope.spawn(run)).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), "logo.svg");
        }
    });
    assert_eq!(daemon.log().matches("create volume site").count(), 0);
    assert!(daemon.litter().is_empty(), "{:?}", daemon.litter());
}

#[test]
fn read_only_is_read_only_for_one_and_not_for_another() {
    let daemon = Daemon::with_image();
    daemon.run("run --name rw -m site:/usr/share/site base touch /usr/share/site/new").ok();
    let error = daemon
        .run("run --name ro -m site:/usr/share/site:ro base touch /usr/share/site/newer")
        .fails(1);
    assert!(error.contains("Read-only file system"), "{error}");
    assert!(daemon.volume("site").join("new").exists());
    assert!(!daemon.volume("site").join("newer").exists());
    let mounts = daemon.inspect("container", "ro")["container_mountpoints"].clone();
    assert_eq!(mounts[0]["read_only"], true);
}

#[test]
fn a_volume_in_use_stays_and_the_message_says_who_has_it() {
    let daemon = Daemon::with_image();
    let id = daemon.run("container create --name web -m site:/www:ro base sleep 600").ok();
    let error = daemon.run("volume rm site").fails(5);
    for part in ["site", "web", &id, "/www", "read-only", "stopped"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    assert_eq!(daemon.run("volume prune -f").ok(), "");
    daemon.run("start -d web").ok();
    assert!(daemon.run("volume rm site").fails(5).contains("running"));
    assert_eq!(daemon.inspect("volume", "site")["volume"]["state"], "mounted");
    daemon.run("container rm -f web").ok();
    assert_eq!(daemon.run("volume rm site").ok(), "site");
}

#[test]
fn prune_takes_what_nobody_names() {
    let daemon = Daemon::with_image();
    daemon.run("container create -m kept:/data base").ok();
    daemon.run("volume create a").ok();
    daemon.run("volume create b").ok();
    assert_eq!(daemon.run("volume prune --dry-run").ok(), "a\nb");
    assert_eq!(daemon.run("volume ls -q --filter dangling=true").ok(), "b\na");
    let asked: kleene_tests::harness::Ran = daemon.klee_with(["volume", "prune"], b"n\n").into();
    let question = "WARNING! This will remove all unused volumes:\n  a\n  b\nAre you sure";
    assert!(asked.stdout.starts_with(question), "{asked:?}");
    asked.fails(1);
    assert_eq!(daemon.run("volume prune -f").ok(), "a\nb");
    assert_eq!(daemon.run("volume ls -q").ok(), "kept");
}

#[test]
fn a_mount_without_a_name_has_a_volume_of_its_own() {
    let daemon = Daemon::with_image();
    let mount = "type=volume,target=/usr/share/site";
    daemon.klee(["run", "--name", "kept", "-m", mount, "base", "true"]).ok();
    let name = daemon.run("lsv -q").ok();
    assert!(name.parse::<kleened_api::VolumeName>().is_ok(), "{name:?}");
    // It is filled as any other, and stays with the container.
    assert!(daemon.volume(&name).join("index.html").exists());
    let inspect = daemon.inspect("container", "kept");
    assert_eq!(inspect["container_mountpoints"][0]["source"], name.as_str());
    daemon.klee(["run", "--rm", "-m", mount, "base", "ls", "/usr/share/site/index.html"]).ok();
    eventually("the removal", || daemon.run("lsv -q").ok() == name);
    daemon.run("rmc kept").ok();
    assert_eq!(daemon.run("volume prune -f").ok(), name);
    let refused = daemon.klee(["run", "-m", "type=bind,target=/x", "base", "true"]).fails(125);
    assert!(refused.contains("the source is missing"), "{refused}");
}

#[test]
fn filters_choose() {
    let daemon = Daemon::with_image();
    daemon.run("volume create db --label tier=db --label env=prod").ok();
    daemon.run("volume create web --label tier=web").ok();
    daemon.run("run -d --name c -m used:/data base sleep 600").ok();
    let list = |filter: &str| daemon.run(&format!("volume ls -q {filter}")).ok();
    assert_eq!(list("--filter label=tier"), "web\ndb");
    assert_eq!(list("--filter label=tier=db"), "db");
    assert_eq!(list("--filter label=tier=db --filter label=env=test"), "");
    assert_eq!(list("--filter name=eb"), "web");
    assert_eq!(list("--filter dangling=false"), "used");
    assert_eq!(list("--filter in-use=true"), "used");
    let json: serde_json::Value =
        serde_json::from_str(&daemon.run("volume ls -o json --filter name=db").ok()).unwrap();
    assert_eq!(json[0]["labels"]["env"], "prod");
    assert_eq!(
        daemon
            .klee(["volume", "ls", "--filter", "name=db", "--format", "{{.name}} {{.state}}"])
            .ok(),
        "db available"
    );
}

#[test]
fn parents_are_mounted_before_children_in_any_order() {
    let daemon = Daemon::with_image();
    let ran = daemon.klee([
        "run",
        "-m",
        "inner:/data/sub",
        "-m",
        "outer:/data",
        "base",
        "sh",
        "-c",
        "echo o > /data/o && echo i > /data/sub/i && ls /data /data/sub",
    ]);
    assert_eq!(ran.ok(), "/data:\no\nsub\n\n/data/sub:\ni");
    assert_eq!(listing(&daemon.volume("inner")).into_keys().collect::<Vec<_>>(), ["i"]);
}

#[test]
fn a_part_of_a_volume_can_be_mounted() {
    let daemon = Daemon::with_image();
    daemon.run("volume create v").ok();
    fs::create_dir_all(daemon.volume("v").join("a/b")).unwrap();
    fs::write(daemon.volume("v").join("a/b/file"), "deep").unwrap();
    let mount = "type=volume,source=v,target=/data,readonly,volume-subpath=a/b";
    assert_eq!(daemon.klee(["run", "--mount", mount, "base", "cat", "/data/file"]).ok(), "deep");
    std::os::unix::fs::symlink("/etc", daemon.volume("v").join("escape")).unwrap();
    let mount = "type=volume,source=v,target=/data,volume-subpath=escape";
    let ran = daemon.klee(["run", "--mount", mount, "base", "ls", "/data"]);
    assert_ne!(ran.code, 0, "{ran:?}");
}

#[test]
fn host_directories_and_files_can_be_mounted() {
    let daemon = Daemon::with_image();
    let host = daemon.home().join("host dir");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host").unwrap();
    let mount = format!("{}:/mnt/h", host.display());
    assert_eq!(
        daemon.klee(["run", "-m", &mount, "base", "cat", "/mnt/h/file"]).ok(),
        "from the host"
    );
    let mount = format!("{}:/etc/motd:ro", host.join("file").display());
    assert_eq!(
        daemon.klee(["run", "-m", &mount, "base", "cat", "/etc/motd"]).ok(),
        "from the host"
    );
    let mount = format!("{}:/mnt/h", daemon.home().join("missing").display());
    let error = daemon.klee(["run", "-m", &mount, "base", "true"]);
    assert_ne!(error.code, 0);
    assert!(error.stderr.contains("missing"), "{error:?}");
}

#[test]
fn without_the_mount_the_images_own_files_are_there_again() {
    let daemon = Daemon::with_image();
    daemon
        .klee([
            "run",
            "--name",
            "c",
            "-m",
            "site:/usr/share/site",
            "base",
            "sh",
            "-c",
            "echo x > /usr/share/site/x",
        ])
        .ok();
    let shown = daemon.inspect("container", "c");
    let id = shown["container"]["id"].as_str().unwrap();
    assert_eq!(shown["container"]["dataset"], daemon.dataset(&format!("container/{id}")));
    let own = listing(&daemon.root().join("container").join(id).join("usr/share/site"));
    assert!(own.contains_key("index.html") && !own.contains_key("x"), "{own:?}");
}

#[test]
fn everything_is_found_again_after_a_restart() {
    let mut daemon = Daemon::with_image();
    daemon.run("run --name web -m site:/usr/share/site base true").ok();
    daemon.run("volume create v --label a=b").ok();
    let shown = |daemon: &Daemon| {
        let things = [("volume", "v"), ("volume", "site"), ("container", "web"), ("image", "base")];
        things.map(|(kind, name)| {
            let mut shown = daemon.inspect(kind, name);
            if let Some(volume) = shown["volume"].as_object_mut() {
                // What the pool has left is shared by all that use it.
                volume.remove("usage");
            }
            shown
        })
    };
    let before = shown(&daemon);
    assert!(daemon.stop().success());
    assert!(!daemon.socket().exists());
    daemon.boot();
    assert_eq!(shown(&daemon), before);
}
