//! What an exact client gets: the status that fits, the error whole, an operation to wait for.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use kleene_tests::harness::Daemon;
use kleene_tests::image;
use kleened_api::ErrorCode;
use serde_json::{Value, json};

use crate::wire::{ASYNC, Connection, EXACT, Socket, ask, call, exact, kleene, until};

#[track_caller]
fn refused(daemon: &Daemon, line: &str, body: Value, code: ErrorCode) -> String {
    let (status, body) = exact(daemon, line, body);
    assert_eq!((status, &body["code"]), (code.http_status(), &json!(code)), "{line}: {body}");
    body["message"].as_str().expect("a message").to_owned()
}

#[test]
fn statuses_say_what_is_wrong() {
    let daemon = Daemon::start();
    let create = "POST /volumes/create";
    assert_eq!(exact(&daemon, create, json!({"name": "v", "labels": {"a": "1"}})).0, 201);
    assert_eq!(exact(&daemon, create, json!({"name": "v"})).0, 201);
    let other = json!({"name": "v", "labels": {"a": "2"}});
    let text = refused(&daemon, create, other.clone(), ErrorCode::Conflict);
    assert!(text.contains("labels"), "{text}");
    let all = json!({"name": "v", "labels": {}, "owner": "1:2", "mode": "0750"});
    assert_eq!(
        refused(&daemon, create, all, ErrorCode::Conflict),
        "volume v exists with other labels: it has a=1, none was asked for; another owner: it has \
         none, 1:2 was asked for; another mode: it has none, 0750 was asked for"
    );
    // Kleene's client could only die of a 409.
    assert_eq!(kleene(&daemon, create, other).0, 500);

    let text = refused(&daemon, create, json!({"name": "a/b"}), ErrorCode::Invalid);
    assert!(text.contains("1 to 128 bytes"), "{text}");
    let text = refused(&daemon, create, json!({"name": 7}), ErrorCode::Invalid);
    assert!(text.starts_with("name: "), "{text}");
    refused(&daemon, "DELETE /volumes/nope", Value::Null, ErrorCode::NotFound);
    refused(&daemon, "GET /containers/nope/inspect", Value::Null, ErrorCode::NotFound);
    refused(&daemon, "GET /operations/0123456789ab", Value::Null, ErrorCode::NotFound);
    refused(&daemon, "POST /networks/create", json!({}), ErrorCode::Unsupported);
    let text = refused(&daemon, "GET /volumes/list?color=red", Value::Null, ErrorCode::Invalid);
    assert!(text.contains("color"), "{text}");
    refused(&daemon, "GET /volumes/list?dangling=maybe", Value::Null, ErrorCode::Invalid);
    refused(&daemon, "POST /containers/x/stop?time=-1", Value::Null, ErrorCode::Invalid);
}

#[test]
fn what_a_driver_has_not_is_refused_before_anything_is_made() {
    let daemon = Daemon::start();
    let without_zfs = exact(&daemon, "GET /info", Value::Null).1["storage"] == "dir";
    let create = "POST /volumes/create";
    for (part, says) in [
        (json!({"size": "10G"}), "a size"),
        (json!({"reserve": 4096}), "a reserve"),
        (json!({"properties": {"recordsize": "16K"}}), "properties"),
        (json!({"profile": "postgres"}), "properties"),
    ] {
        if !without_zfs {
            continue;
        }
        let mut body = json!({"name": "v"});
        body.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let (status, reply) = exact(&daemon, create, body);
        assert_eq!((status, &reply["code"]), (501, &json!("unsupported")), "{reply}");
        let cause = reply["causes"][0].as_str().unwrap();
        assert!(cause.contains("'dir' cannot give a volume") && cause.contains(says), "{cause}");
    }
    for (part, says) in [
        (json!({"size": "10 apples"}), "powers of 1024"),
        (json!({"size": -1}), "a number of bytes"),
        (json!({"size": 0}), "a size of 0"),
        (json!({"size": "1G", "reserve": "2G"}), "a reserve of 2G for a volume of 1G"),
        (json!({"profile": "oracle"}), "known are postgres, mariadb, media, log"),
        (json!({"properties": {"": "1"}}), "NAME=VALUE"),
        (json!({"properties": {"a b": "1"}}), "NAME=VALUE"),
        (json!({"properties": {"a": "1\n"}}), "NAME=VALUE"),
    ] {
        let text = refused(&daemon, create, part, ErrorCode::Invalid);
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(exact(&daemon, "GET /volumes/list", Value::Null).1, json!([]));
}

#[test]
fn space_is_shown_where_it_is_asked_for() {
    let daemon = Daemon::start();
    let without_zfs = exact(&daemon, "GET /info", Value::Null).1["storage"] == "dir";
    for name in ["b", "a"] {
        assert_eq!(exact(&daemon, "POST /volumes/create", json!({"name": name})).0, 201);
    }
    std::fs::write(daemon.root().join("volumes/a/file"), vec![1; 1 << 20]).unwrap();
    std::fs::File::open(daemon.root().join("volumes/a/file")).unwrap().sync_all().unwrap();
    let (_, list) = exact(&daemon, "GET /volumes/list?size=true", Value::Null);
    let used = |n: usize| list[n]["usage"]["referenced"].as_u64().unwrap();
    assert_eq!(list[0]["name"], "a");
    assert!(used(0) >= 1 << 20 && used(1) < 1 << 20, "{list}");
    assert_eq!(list[0]["usage"]["snapshots"], 0);
    let inspect = "GET /volumes/a/inspect";
    let (_, shown) = exact(&daemon, &format!("{inspect}?size=true"), Value::Null);
    assert_eq!(shown["volume"]["usage"]["referenced"], used(0));
    let has_usage = |line| exact(&daemon, line, Value::Null).1.to_string().contains("\"usage\"");
    assert!(!has_usage("GET /volumes/list"));
    assert_eq!(has_usage(inspect), !without_zfs);
    let names = |query: &str| exact(&daemon, &format!("GET /volumes/names{query}"), Value::Null).1;
    assert_eq!(names(""), json!(["a", "b"]));
    assert_eq!(names("?name=b"), json!(["b"]));
    let (_, profiles) = exact(&daemon, "GET /volumes/profiles", Value::Null);
    assert_eq!(profiles[0]["name"], "postgres");
    assert_eq!(profiles[0]["properties"][0]["value"], "16K");
}

#[test]
fn a_volume_in_use_is_a_conflict_that_names_the_users() {
    let daemon = Daemon::with_image();
    let config = json!({
        "image": "base", "name": "web",
        "mounts": [{"type": "volume", "source": "v", "destination": "/srv", "read_only": true}],
    });
    assert_eq!(exact(&daemon, "POST /containers/create", config).0, 201);
    let text = refused(&daemon, "DELETE /volumes/v", Value::Null, ErrorCode::InUse);
    for part in ["web", "/srv", "read-only"] {
        assert!(text.contains(part), "{text}");
    }
    let mut config = json!({"image": "base", "name": "web"});
    refused(&daemon, "POST /containers/create", config.clone(), ErrorCode::Conflict);
    config["image"] = json!("nosuch");
    refused(&daemon, "POST /containers/create", config, ErrorCode::NotFound);
    refused(&daemon, "POST /containers/web/stop", Value::Null, ErrorCode::WrongState);
    refused(&daemon, "DELETE /images/base", Value::Null, ErrorCode::InUse);
}

#[test]
fn a_connection_can_be_kept() {
    let daemon = Daemon::start();
    let mut connection = Connection::new(&daemon.socket());
    for status in [200, 404, 200] {
        let name = if status == 200 { "list" } else { "nosuch/inspect" };
        connection.send(&format!("GET /volumes/{name}"), EXACT, b"");
        assert_eq!(connection.answer().status, status);
    }
}

#[test]
fn filters_and_dry_runs() {
    let daemon = Daemon::start();
    for (name, labels) in [("a1", json!({"x": "1"})), ("a2", json!({"x": "2"})), ("b", json!({}))] {
        let (status, _) =
            exact(&daemon, "POST /volumes/create", json!({"name": name, "labels": labels}));
        assert_eq!(status, 201);
    }
    for (query, names) in [
        ("", &["b", "a2", "a1"][..]),
        ("?name=a", &["a2", "a1"]),
        ("?label=x", &["a2", "a1"]),
        ("?label=x%3D1", &["a1"]),
        ("?dangling=true&name=b", &["b"]),
        ("?in_use=true", &[]),
    ] {
        let (_, list) = exact(&daemon, &format!("GET /volumes/list{query}"), Value::Null);
        let found: Vec<_> = list.as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
        assert_eq!(found, names, "{query}");
    }
    let (status, would) = exact(&daemon, "POST /volumes/prune?dry_run=true", Value::Null);
    assert_eq!((status, would.as_array().map(Vec::len)), (200, Some(3)));
    let (_, list) = exact(&daemon, "GET /volumes/list", Value::Null);
    assert_eq!(list.as_array().map(Vec::len), Some(3), "nothing was removed");
}

/// A client that says nothing more while the daemon does its part.
#[test]
fn a_change_that_takes_long_becomes_an_operation() {
    let daemon = Daemon::with_image();
    let config = json!({
        "image": "base", "name": "slow",
        // It does not listen to SIGTERM.
        "cmd": ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"],
    });
    let id = call(&daemon, "POST /containers/create", EXACT, &config).json()["id"].clone();
    for (manner, time) in [(ASYNC, 2), (&[][..], 6)] {
        let exec = call(&daemon, "POST /exec/create", EXACT, &json!({ "container_id": id }));
        let mut socket = Socket::open(&daemon, "/exec/start", None);
        let start = json!({"exec_id": exec.json()["id"], "attach": true, "start_container": true});
        socket.send(start.to_string());
        while socket.text() != "ready\n" {}
        let stop = format!("POST /containers/slow/stop?time={time}");
        let asked = Instant::now();
        let answer = call(&daemon, &stop, manner, &Value::Null);
        // Kleene's client waits for five seconds.
        assert!(asked.elapsed() < Duration::from_secs(5));
        if manner.is_empty() {
            assert_eq!((answer.status, answer.json()["id"].clone()), (200, id.clone()));
        } else {
            assert_eq!(answer.status, 202);
            let operation = answer.json();
            assert_eq!(operation["status"], "running");
            let path = format!("/operations/{}", operation["id"].as_str().unwrap());
            assert_eq!(answer.header("location"), Some(path.as_str()));
            let ended = exact(&daemon, &format!("GET {path}?wait=60"), Value::Null).1;
            assert_eq!(
                (&ended["status"], &ended["reply"]["id"]),
                (&json!("succeeded"), &json!("<id>"))
            );
        }
        let wait = exact(&daemon, "GET /containers/slow/wait", Value::Null);
        assert_eq!(wait, (200, json!({"id": "<id>", "exit_code": 137})));
    }
}

#[test]
fn clients_that_hang_up_stop_nothing() {
    let daemon = Daemon::with_image();
    let create = |name: &str| {
        json!({
            "image": "base", "name": name,
            "mounts": [
                {"type": "volume", "source": name, "destination": "/bin"},
                {"type": "volume", "source": "shared", "destination": "/usr/share/site"},
            ],
        })
    };
    thread::scope(|scope| {
        for name in ["gone0", "gone1", "gone2"] {
            let (daemon, body) = (&daemon, create(name).to_string());
            scope.spawn(move || {
                let mut connection = Connection::new(&daemon.socket());
                let length = body.len().to_string();
                let headers = [("Content-Type", "application/json"), ("Content-Length", &length)];
                connection.send("POST /containers/create", &headers, body.as_bytes());
                // It is under way when the volume is there.
                let volume = format!("GET /volumes/{name}/inspect");
                until(name, || exact(daemon, &volume, Value::Null).0 == 200);
            });
        }
    });
    // A later change of the same volume comes after them.
    let last = call(&daemon, "POST /containers/create", EXACT, &create("last"));
    assert_eq!(last.status, 201, "{}", last.text());
    let (_, list) = exact(&daemon, "GET /containers/list?all=true", Value::Null);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|line| line["name"].clone()).collect();
    for name in ["gone0", "gone1", "gone2"] {
        assert!(names.contains(&json!(name)), "{names:?}");
        assert!(daemon.volume(name).join("sh").exists());
    }
    assert!(daemon.volume("shared").join("index.html").exists());
    assert_eq!(daemon.litter(), [""; 0]);
}

#[test]
fn an_import_that_breaks_off_leaves_nothing() {
    let daemon = Daemon::start();
    let archive = image::busybox();
    let (half, _) = archive.split_at(archive.len() / 2);
    let length = archive.len().to_string();
    let mut connection = Connection::new(&daemon.socket());
    let counted = [("Content-Length", length.as_str())];
    connection.send("POST /images/import?name=cut", &counted, half);
    drop(connection);
    // With chunks, where nothing says how many bytes are to come.
    let mut connection = Connection::new(&daemon.socket());
    connection.send("POST /images/import?name=cut", &[("Transfer-Encoding", "chunked")], b"");
    write!(connection.0, "{:x}\r\n", half.len()).unwrap();
    connection.0.write_all(half).unwrap();
    connection.0.write_all(b"\r\n").unwrap();
    drop(connection);
    // One that is no archive is answered, however much of it there is.
    let noise = vec![b'x'; 20 << 20];
    let answer = ask(&daemon, "POST /images/import?name=noise", EXACT, &noise);
    assert_eq!(answer.status, 422, "{}", answer.text());
    let answer = ask(&daemon, "POST /images/import?name=whole", EXACT, &archive);
    assert_eq!(answer.status, 201, "{}", answer.text());
    // The daemon has seen the others' end when it has stopped, and finds nothing of them.
    let mut daemon = daemon;
    daemon.stop();
    assert_eq!(daemon.litter(), [""; 0]);
    daemon.boot();
    let (_, list) = exact(&daemon, "GET /images/list", Value::Null);
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|image| image["name"].clone()).collect();
    assert_eq!(names, ["whole"]);
}

#[test]
fn an_export_is_whole_or_breaks_off() {
    let daemon = Daemon::with_image();
    let answer = ask(&daemon, "GET /images/base/export", EXACT, b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-tar")));
    let again = ask(&daemon, "POST /images/import?name=again", EXACT, &answer.body);
    assert_eq!(again.status, 201, "{}", again.text());
    refused(&daemon, "GET /images/nope/export", Value::Null, ErrorCode::NotFound);
    // A client that goes away in the middle.
    let mut connection = Connection::new(&daemon.socket());
    connection.send("GET /images/base/export", EXACT, b"");
    drop(connection);
    assert_eq!(exact(&daemon, "GET /images/base/inspect", Value::Null).0, 200);
}
