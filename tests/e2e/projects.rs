//! Projects: what has a name, has it in one of them.

use std::fs;

use kleene_tests::harness::{Daemon, Ran};
use serde_json::{Value, json};

/// What lists of all projects say.
fn all(daemon: &Daemon) -> Vec<String> {
    let mut names: Vec<_> = daemon.run("volume ls -aq").ok().lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_volume_has_its_name_in_its_project() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run("volume create data").ok(), "data");
    assert_eq!(daemon.run("-p web volume create data --label tier=web").ok(), "data");
    assert_eq!(daemon.run("volume create shop:data --label tier=shop").ok(), "shop:data");
    assert_eq!(all(&daemon), ["default:data", "shop:data", "web:data"]);
    // What says no project means the command's.
    assert_eq!(daemon.run("volume ls -q").ok(), "data");
    assert_eq!(daemon.run("volume ls -q --project shop").ok(), "data");
    assert_eq!(daemon.run("volume ls -q --project none").ok(), "");
    for (command, tier) in [
        ("isv data", json!({})),
        ("isv web:data", json!({ "tier": "web" })),
        ("isv data -p shop", json!({ "tier": "shop" })),
        ("isv default:data -p shop", json!({})),
    ] {
        let shown: Value = serde_json::from_str(&daemon.run(command).ok()).unwrap();
        assert_eq!(shown["volume"]["labels"], tier, "{command}");
        assert_eq!(shown["volume"]["name"], "data");
    }
    let shown = daemon.inspect("volume", "web:data");
    let place = daemon.root().join("projects/web/volumes/data");
    assert_eq!(shown["volume"]["project"], "web");
    assert_eq!(shown["volume"]["dataset"], daemon.dataset("projects/web/volumes/data"));
    assert_eq!(shown["volume"]["mountpoint"], place.to_str().unwrap());
    assert!(place.is_dir());
    let table = daemon.run("volume ls --all").ok();
    assert!(table.starts_with(" VOLUME NAME   PROJECT   CREATED"), "{table}");
    // One goes, the others stay.
    assert_eq!(daemon.run("-p web rmv data").ok(), "data");
    daemon.run("isv web:data").fails(3);
    assert_eq!(all(&daemon), ["default:data", "shop:data"]);
    for (name, rule) in
        [("Web:a", "a project"), ("a--b:c", "a project"), ("a:b:c", "PROJECT:"), (":a", "PROJECT:")]
    {
        let error = daemon.run(&format!("volume create {name}")).fails(2);
        assert!(error.contains("PROJECT: of 1 to 63"), "{name}, {rule}: {error}");
    }
    let error = daemon.run("-p Web volume ls").fails(2);
    assert!(error.contains("1 to 63 characters"), "{error}");
}

#[test]
fn containers_belong_to_a_project_and_mount_only_its_volumes() {
    let daemon = Daemon::with_image();
    // The same name in two projects, and the same volume's name.
    for project in ["web", "shop"] {
        let command = format!("-p {project} run --name db -m data:/data base sh -c");
        let script = format!("echo {project} > /data/who");
        daemon.klee(command.split(' ').chain([script.as_str()])).ok();
    }
    let read = |project: &str| {
        let mountpoint = daemon.inspect("volume", &format!("{project}:data"));
        let mountpoint = mountpoint["volume"]["mountpoint"].as_str().unwrap().to_owned();
        fs::read_to_string(format!("{mountpoint}/who")).unwrap()
    };
    assert_eq!((read("web").as_str(), read("shop").as_str()), ("web\n", "shop\n"));
    assert_eq!(daemon.run("volume ls -q").ok(), "");
    assert_eq!(daemon.run("lsc -aq").ok(), "");
    let web = daemon.run("-p web lsc -aq").ok();
    assert_ne!(web, daemon.run("-p shop lsc -aq").ok());
    assert_eq!(daemon.run("lsc -aq --all-projects").ok().lines().count(), 2);
    let table = daemon.run("lsc -a --all-projects").ok();
    assert!(table.contains("PROJECT") && table.contains(" shop "), "{table}");
    // An id is unique anywhere, a name in its project.
    assert_eq!(daemon.inspect("container", &web)["container"]["project"], "web");
    assert_eq!(daemon.inspect("container", "web:db")["container"]["id"], web.as_str());
    daemon.run("isc db").fails(3);
    let error = daemon.run("-p web create --name db base true").fails(4);
    assert!(error.contains("db is taken"), "{error}");
    let named = daemon.inspect("volume", "web:data");
    assert_eq!(named["mountpoints"][0]["container_id"], web.as_str());

    for source in ["shop:data", "default:data"] {
        let error = daemon.run(&format!("-p web run -m {source}:/data base true")).fails(125);
        assert!(error.contains("not in the same project"), "{error}");
    }
    daemon.run("-p web run --rm -m web:data:/data:ro base cat /data/who").ok();
    let error = daemon.run("volume attach shop:data web:db --path /other").fails(2);
    assert!(error.contains("not in the same project"), "{error}");
    daemon.run("volume create web:more").ok();
    assert_eq!(daemon.run("-p web volume attach more db --path /more").ok(), "more");
    assert_eq!(daemon.run("volume detach web:more web:db").ok(), "web:more");
    daemon.run("volume rm web:more").ok();
    // Exec, logs and rename find them by name.
    let ran = daemon.run("-p shop exec db cat /data/who");
    assert_eq!(ran.ok(), "shop");
    daemon.run("-p shop stop db");
    assert_eq!(daemon.run("-p web rename db base").ok(), web);
    let error = daemon.run("rename web:base shop:base").fails(2);
    assert!(error.contains("stays in its project"), "{error}");

    // Prune takes what is the project's, unless it is told to take all.
    daemon.run("volume create left").ok();
    daemon.run("volume create web:left").ok();
    assert_eq!(daemon.run("-p web volume prune -f").ok(), "left");
    assert_eq!(all(&daemon), ["default:left", "shop:data", "web:data"]);
    assert_eq!(daemon.run("container prune -f").ok(), "");
    assert_eq!(daemon.run("container prune -f --all-projects").ok().lines().count(), 2);
    assert_eq!(daemon.run("volume prune -f --all-projects").ok().lines().count(), 3);
}

#[test]
fn a_project_is_there_after_a_restart_and_known_by_its_repository() {
    let mut daemon = Daemon::start();
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("My_Shop/src");
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(folder.path().join("My_Shop/.git")).unwrap();
    let klee = |daemon: &Daemon, project: Option<&str>| -> Ran {
        let mut command = daemon.client();
        command.env_remove("KLEE_PROJECT").envs(project.map(|name| ("KLEE_PROJECT", name)));
        command.args(["volume", "ls", "-q"]).current_dir(&inside).output().unwrap().into()
    };
    daemon.run("volume create my-shop:data").ok();
    daemon.run("volume create web:other").ok();
    assert_eq!(klee(&daemon, None).ok(), "data");
    assert_eq!(klee(&daemon, Some("")).ok(), "data");
    assert_eq!(klee(&daemon, Some("web")).ok(), "other");
    let error = klee(&daemon, Some("No Name")).fails(2);
    assert!(error.contains("KLEE_PROJECT"), "{error}");
    daemon.stop();
    daemon.boot();
    assert_eq!(all(&daemon), ["my-shop:data", "web:other"]);
    assert_eq!(klee(&daemon, None).ok(), "data");
    // A daemon hears it in a header, from whomever.
    let answer = |project: &str| {
        daemon.raw(&format!(
            "GET /volumes/list HTTP/1.1\r\nHost: x\r\nPrefer: exact-status\r\nConnection: close\r\n\
             Kleened-Project: {project}\r\n\r\n"
        ))
    };
    assert!(answer("web").contains("\"other\""), "{}", answer("web"));
    assert!(answer("A B").starts_with("HTTP/1.1 422"), "{}", answer("A B"));
}

#[test]
fn snapshots_are_of_volumes_in_projects() {
    let daemon = Daemon::start();
    daemon.run("volume create data").ok();
    daemon.run("volume create web:data").ok();
    assert_eq!(daemon.run("-p web volume snapshot create data one").ok(), "data@one");
    assert_eq!(daemon.run("volume snapshot create web:data two").ok(), "web:data@two");
    daemon.run("volume snapshot ls data -q").ok();
    assert_eq!(daemon.run("volume snapshot ls -q").ok(), "");
    assert_eq!(daemon.run("-p web volume snapshot ls -q").ok(), "data@one\ndata@two");
    assert_eq!(daemon.run("volume snapshot ls -q web:data").ok(), "one\ntwo");
    assert_eq!(daemon.run("-p web volume create twin --from data").ok(), "twin");
    let shown = daemon.inspect("volume", "web:data");
    assert_eq!(shown["clones"], json!(["web:twin"]), "{shown}");
    assert_eq!(daemon.inspect("volume", "data")["clones"], Value::Null);
    daemon.run("volume rm web:twin").ok();
    let error = daemon.run("volume rm web:data").fails(6);
    assert!(error.contains("one"), "{error}");
    assert_eq!(daemon.run("-p web volume snapshot rm data one two").ok(), "data@one\ndata@two");
    daemon.run("-p web volume rm data").ok();
}
