//! Requests that Kleene's client sends, as it was seen to send them, and answers that it digests.

use kleene_tests::harness::Daemon;
use kleene_tests::image;
use serde_json::{Value, json};

use crate::wire::{KLEENE, Socket, ask, call, kleene};

/// A daemon with an image `FreeBSD:latest`.
fn daemon() -> Daemon {
    let daemon = Daemon::start();
    let import = ask(&daemon, "POST /images/import?name=FreeBSD", KLEENE, &image::busybox());
    assert_eq!(import.status, 201, "{}", import.text());
    daemon
}

/// What `klee container create` sends for an image and a name.
fn container(image: &str, name: &str) -> Value {
    json!({
        "cmd": ["/bin/sleep", "1000"], "env": [], "image": image, "jail_param": [], "mounts": [],
        "name": name, "network_driver": "host", "persist": false, "public_ports": [],
        "restart_policy": "no", "user": "",
    })
}

#[track_caller]
fn created(daemon: &Daemon, config: &Value) -> String {
    let answer = call(daemon, "POST /containers/create", KLEENE, config);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["id"].as_str().expect("an id").to_owned()
}

/// Starts the container as `klee start -d` does.
#[track_caller]
fn start(daemon: &Daemon, container: &str) {
    let config = json!({"cmd": [], "container_id": container, "env": [], "tty": false, "user": ""});
    let answer = call(daemon, "POST /exec/create", KLEENE, &config);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let mut socket = Socket::open(daemon, "/exec/start", None);
    let start = json!({"exec_id": answer.json()["id"], "attach": false, "start_container": "true"});
    socket.send(start.to_string());
    let (frames, code, reason) = socket.rest();
    assert_eq!((frames.len(), code), (0, 1001), "{reason}");
    assert_eq!(
        reason,
        json!({
            "msg_type": "closing", "data": "",
            "message": "succesfully started execution instance in detached mode",
        })
    );
}

fn id(value: &str) -> Value {
    json!({ "id": value })
}

fn message(text: &str) -> Value {
    json!({ "message": text })
}

#[test]
fn volumes() {
    let daemon = Daemon::start();
    let none = json!([]);
    assert_eq!(kleene(&daemon, "GET /volumes/list", Value::Null), (200, none.clone()));
    for _ in 0..2 {
        let create = kleene(&daemon, "POST /volumes/create", json!({"name": "my-vol"}));
        assert_eq!(create, (201, id("my-vol")));
    }
    let (status, list) = kleene(&daemon, "GET /volumes/list", Value::Null);
    assert_eq!((status, list.as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(kleene(&daemon, "GET /volumes/my-vol/inspect", Value::Null).0, 200);
    let missing = (404, message("No such volume"));
    assert_eq!(kleene(&daemon, "GET /volumes/nope/inspect", Value::Null), missing);
    assert_eq!(kleene(&daemon, "DELETE /volumes/nope", Value::Null), missing);
    assert_eq!(kleene(&daemon, "DELETE /volumes/my-vol", Value::Null), (200, id("my-vol")));
    for name in ["v1", "v2"] {
        kleene(&daemon, "POST /volumes/create", json!({ "name": name }));
    }
    let (status, mut pruned) = kleene(&daemon, "POST /volumes/prune", Value::Null);
    pruned.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    assert_eq!((status, pruned), (200, json!(["v1", "v2"])));
    assert_eq!(kleene(&daemon, "POST /volumes/prune", Value::Null), (200, none));
}

#[test]
fn names_in_paths() {
    let daemon = Daemon::start();
    for path in ["a/b", "", "."] {
        let line = format!("DELETE /volumes/{path}");
        let line = line.trim_end_matches("/.");
        let answer = ask(&daemon, line, KLEENE, b"");
        assert_eq!((answer.status, answer.text().as_str()), (404, "not found"), "{line}");
    }
    let answer = ask(&daemon, "DELETE /", KLEENE, b"");
    assert_eq!((answer.status, answer.text().as_str()), (404, "not found"));
    for name in ["a%20b", "a%2Fb", "a?b=c", "a", "%C3%A6%C3%B8%C3%A5", "a@b", "a:b", "a;b", "%FF"] {
        let answer = ask(&daemon, &format!("DELETE /volumes/{name}"), KLEENE, b"");
        assert_eq!(answer.status, 404, "{name}");
        if name != "%FF" {
            assert_eq!(answer.json(), message("No such volume"), "{name}");
        }
    }
    // A name is never taken for a verb.
    for name in ["list", "create", "prune"] {
        assert_eq!(kleene(&daemon, "POST /volumes/create", json!({ "name": name })).0, 201);
        assert_eq!(
            kleene(&daemon, &format!("DELETE /volumes/{name}"), Value::Null),
            (200, id(name))
        );
    }
    // It can't show why.
    let (status, _) =
        kleene(&daemon, "POST /volumes/create", json!({"name": "a/b c;$(id)'\"\u{e9}"}));
    assert_eq!(status, 500);
    for line in ["GET /images/FreeBSD:latest@abc/inspect", "GET /images/nope/inspect"] {
        assert_eq!(kleene(&daemon, line, Value::Null), (404, message("image not found")));
    }
}

#[test]
fn images() {
    let daemon = daemon();
    let (status, list) = kleene(&daemon, "GET /images/list", Value::Null);
    assert_eq!(status, 200);
    for reference in ["FreeBSD", "FreeBSD:latest"] {
        let line = format!("GET /images/{reference}/inspect");
        assert_eq!(kleene(&daemon, &line, Value::Null), (200, list[0].clone()));
    }
    let tag = kleene(&daemon, "POST /images/FreeBSD/tag?nametag=other%3Anew", Value::Null);
    assert_eq!(tag, (200, id("<id>")));
    let missing = kleene(&daemon, "POST /images/nope/tag?nametag=other", Value::Null);
    assert_eq!(missing, (404, message("image not found")));
    let missing = kleene(&daemon, "DELETE /images/nope", Value::Null);
    assert_eq!(missing, (404, message("Error: No such image: nope\n")));
    let container = created(&daemon, &container("other:new", "user"));
    let (status, used) = kleene(&daemon, "DELETE /images/other:new", Value::Null);
    assert_eq!(status, 404);
    assert!(used["message"].as_str().unwrap().contains("user"), "{used}");
    assert_eq!(kleene(&daemon, &format!("DELETE /containers/{container}"), Value::Null).0, 200);
    assert_eq!(kleene(&daemon, "POST /images/prune?all=false", Value::Null), (200, json!([])));
    let removed = kleene(&daemon, "DELETE /images/other:new", Value::Null);
    assert_eq!(removed, (200, id("other:new")));
    assert_eq!(kleene(&daemon, "POST /images/prune?all=true", Value::Null), (200, json!([])));
}

#[test]
fn containers() {
    let daemon = daemon();
    assert_eq!(kleene(&daemon, "GET /containers/list?all=false", Value::Null), (200, json!([])));
    let web = created(
        &daemon,
        &json!({
            "cmd": ["/bin/sh", "-c", "ls -l /"], "env": ["A=1", "B=2"], "image": "FreeBSD:latest",
            "jail_param": [], "name": "web", "network_driver": "host", "persist": true,
            "public_ports": [], "restart_policy": "on-startup", "user": "www",
            "mounts": [
                {"destination": "/var/db", "read_only": false, "source": "data", "type": "volume"},
                {"destination": "/host", "read_only": true, "source": "/mnt", "type": "nullfs"},
                {"destination": "/var/log", "read_only": false, "source": "logs", "type": "volume"},
            ],
        }),
    );
    let (status, data) = kleene(&daemon, "GET /volumes/data/inspect", Value::Null);
    assert_eq!(status, 200);
    assert_eq!(
        data["mountpoints"],
        json!([{
            "container_id": "<id>", "destination": "/var/db", "read_only": false,
            "source": "data", "type": "volume",
        }])
    );
    let (status, used) = kleene(&daemon, "DELETE /volumes/data", Value::Null);
    assert_eq!(status, 404, "it shows no other");
    assert!(used["message"].as_str().unwrap().contains("web"), "{used}");
    assert_eq!(kleene(&daemon, "GET /containers/list?all=false", Value::Null), (200, json!([])));
    let (_, list) = kleene(&daemon, "GET /containers/list?all=true", Value::Null);
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    for reference in ["web", &web, &web[..4]] {
        let line = format!("GET /containers/{reference}/inspect");
        assert_eq!(kleene(&daemon, &line, Value::Null).0, 200, "{reference}");
    }

    let minimal = created(&daemon, &container("FreeBSD", "lucid_austin"));
    start(&daemon, &minimal);
    let (_, list) = kleene(&daemon, "GET /containers/list?all=false", Value::Null);
    assert_eq!(list[0]["jid"], "<jid>");
    let running = kleene(&daemon, &format!("DELETE /containers/{minimal}"), Value::Null);
    assert_eq!(running, (409, message("you cannot remove a running container")));
    let stop = format!("POST /containers/{minimal}/stop");
    assert_eq!(kleene(&daemon, &stop, Value::Null), (200, id("<id>")));
    assert_eq!(kleene(&daemon, &stop, Value::Null), (404, message("container not running")));

    let update = format!("POST /containers/{minimal}/update");
    let rename = json!({"mounts": [], "name": "renamed", "public_ports": []});
    assert_eq!(kleene(&daemon, &update, rename), (201, id("<id>")));
    let (_, renamed) = kleene(&daemon, "GET /containers/renamed/inspect", Value::Null);
    assert_eq!(renamed["container"]["cmd"], json!(["/bin/sleep", "1000"]), "rename keeps the rest");
    let change = json!({
        "container": minimal, "cmd": ["/bin/sleep", "10"], "env": ["TEST=lol"], "jail_param": [],
        "mounts": [], "name": null, "persist": false, "public_ports": [],
        "restart_policy": "on-startup", "user": null,
    });
    assert_eq!(kleene(&daemon, &update, change.clone()), (201, id("<id>")));
    let missing = kleene(&daemon, "POST /containers/zzz/update", change);
    assert_eq!(missing, (404, message("no such container 'zzz'")));

    assert_eq!(kleene(&daemon, "DELETE /containers/renamed", Value::Null), (200, id("<id>")));
    let missing = kleene(&daemon, "DELETE /containers/nope", Value::Null);
    assert_eq!(missing, (404, message("no such container")));
    for line in ["GET /containers/zzz/inspect", "POST /containers/zzz/stop"] {
        assert_eq!(kleene(&daemon, line, Value::Null), (404, message("container not found")));
    }
    created(&daemon, &container("FreeBSD", "/unused"));
    assert_eq!(kleene(&daemon, "GET /containers/unused/inspect", Value::Null).0, 200);
    assert_eq!(kleene(&daemon, "POST /containers/prune", Value::Null), (200, json!(["<id>"])));
}

#[test]
fn containers_that_are_refused() {
    let daemon = daemon();
    let refused = |config: Value| kleene(&daemon, "POST /containers/create", config);
    assert_eq!(
        refused(container("FreeBSD", ".bad")),
        (404, message(".bad does not match /?[a-zA-Z0-9][a-zA-Z0-9_.-]+$"))
    );
    assert_eq!(
        refused(container("nosuch", "nervous_bell")),
        (404, message("no such image 'nosuch'"))
    );
    for (field, value) in [
        ("mounts", json!([{"destination": "rel/dst", "source": "vv", "type": "volume"}])),
        ("mounts", json!([{"destination": "/dst", "source": "", "type": "volume"}])),
        ("network_driver", json!("ipnet")),
        ("public_ports", json!([{"host_port": "80"}])),
        ("env", json!(["no equals sign"])),
    ] {
        let mut config = container("FreeBSD", "bad");
        config[field] = value.clone();
        let (status, body) = refused(config);
        assert_eq!(status, 404, "{field} {value}");
        let text = body["message"].as_str().unwrap();
        assert!(!text.contains(['[', ']']), "{text}");
    }
    assert_eq!(kleene(&daemon, "GET /containers/list?all=true", Value::Null), (200, json!([])));
    assert_eq!(kleene(&daemon, "GET /volumes/list", Value::Null), (200, json!([])));
}

#[test]
fn processes() {
    let daemon = daemon();
    let missing =
        json!({"cmd": ["uname"], "container_id": "zzz", "env": [], "tty": false, "user": ""});
    assert_eq!(
        kleene(&daemon, "POST /exec/create", missing),
        (404, message("container not found"))
    );
    let mut config = container("FreeBSD", "once");
    config["cmd"] = json!(["/bin/sh", "-c", "echo out; echo error >&2; exit 7"]);
    let container = created(&daemon, &config);
    let config = json!({"cmd": [], "container_id": container, "env": [], "tty": false, "user": ""});
    let exec = call(&daemon, "POST /exec/create", KLEENE, &config).json()["id"].clone();
    let mut socket = Socket::open(&daemon, "/exec/start", None);
    socket.send(json!({"exec_id": exec, "attach": true, "start_container": true}).to_string());
    assert_eq!(socket.text(), r#"{"msg_type":"starting","message":"","data":""}"#);
    let (frames, code, reason) = socket.rest();
    let mut lines: Vec<String> = frames
        .iter()
        .flat_map(|frame| frame.to_text().unwrap().lines())
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["error", "out"]);
    let exec = exec.as_str().unwrap();
    let text = format!("executable {exec} and its container exited with exit-code 7");
    assert_eq!((code, reason["message"].as_str()), (1000, Some(text.as_str())));

    // Each of these is answered in a way that the client can show.
    for (start, code, text) in [
        (
            json!({"exec_id": exec, "attach": true}),
            1002,
            "invalid parameters: Missing field: start_container",
        ),
        (
            json!({"exec_id": "0123456789ab", "attach": true, "start_container": true}),
            1011,
            "error starting exec instance",
        ),
        (
            json!({"exec_id": "0123456789ab", "attach": false, "start_container": true}),
            1011,
            "error starting exec instance",
        ),
    ] {
        let mut socket = Socket::open(&daemon, "/exec/start", None);
        socket.send(start.to_string());
        let (frames, got, reason) = socket.rest();
        assert_eq!((got, reason["message"].as_str()), (code, Some(text)), "{start}");
        assert_eq!(reason["msg_type"], "error");
        if code == 1011 {
            let last = frames.last().unwrap().to_text().unwrap();
            assert_eq!(last, "error: could not find execution instance matching '0123456789ab'");
            assert_eq!(frames.len(), if start["attach"] == true { 2 } else { 1 });
        }
    }
    let mut socket = Socket::open(&daemon, "/exec/start", None);
    socket.send("{");
    let (_, code, reason) = socket.rest();
    assert_eq!(code, 1002);
    assert!(reason["message"].as_str().unwrap().starts_with("invalid json: "), "{reason}");
}

#[test]
fn images_are_created() {
    let daemon = Daemon::start();
    let file = daemon.home().join("base.txz");
    std::fs::write(&file, image::busybox()).unwrap();
    let config = |method: &str, url: &str, dataset: &str| json!({"method": method, "url": url, "zfs_dataset": dataset, "tag": "Create:Fetch", "dns": true, "localtime": true, "update": false, "autotag": true});
    let starting = r#"{"msg_type":"starting","message":"","data":""}"#;
    let create = |config: &Value| {
        let mut socket = Socket::open(&daemon, "/images/create", None);
        socket.send(config.to_string());
        socket.rest()
    };
    let url = format!("file://{}", file.display());
    let (frames, code, reason) = create(&config("fetch", &url, ""));
    let texts: Vec<_> = frames.iter().map(|frame| frame.to_text().unwrap()).collect();
    assert_eq!(texts[0], starting);
    assert!(texts.len() > 1 && texts[1..].iter().all(|text| text.ends_with('\n')), "{texts:?}");
    let id = &reason["data"];
    assert_eq!(
        (code, &reason),
        (1000, &json!({"message": "image created", "data": id, "msg_type": "closing"}))
    );
    let (status, image) = kleene(&daemon, "GET /images/Create:Fetch/inspect", Value::Null);
    assert_eq!((status, &image["cmd"]), (200, &json!(["/bin/sh", "/etc/rc"])));
    let by_id = format!("GET /images/{}/inspect", id.as_str().unwrap());
    assert_eq!(kleene(&daemon, &by_id, Value::Null), (200, image));

    let none = format!("file://{}/none.txz", daemon.home().display());
    let says = format!("there is no {}/none.txz", daemon.home().display());
    for (config, says) in [
        (config("fetch", &none, ""), says.as_str()),
        (config("fetch", "", ""), "fetch from where? Give a URL"),
        (config("fetch", "base.txz", ""), "'base.txz' is none of"),
        (
            config("zfs-clone", "", "/zroot/x/"),
            if daemon.driver() == "zfs" { "invalid dataset" } else { "the storage driver 'dir'" },
        ),
    ] {
        let (frames, code, reason) = create(&config);
        let texts: Vec<_> = frames.iter().map(|frame| frame.to_text().unwrap()).collect();
        assert_eq!((texts[0], texts.len(), code), (starting, 2, 1011), "{texts:?}");
        assert!(texts[1].starts_with(says), "{texts:?}");
        assert_eq!((&reason["msg_type"], &reason["data"]), (&json!("error"), &json!("")));
        let message = reason["message"].as_str().unwrap();
        let rest = message.strip_prefix("image creation failed: ").unwrap();
        assert!(texts[1].starts_with(rest), "{message}");
    }
    for config in [config("nosuch", "", ""), json!({}), json!({"method": "fetch", "dns": 1})] {
        let (frames, code, reason) = create(&config);
        assert_eq!(
            (frames.len(), code, &reason["message"]),
            (1, 1002, &json!("invalid parameters"))
        );
        let text = frames[0].to_text().unwrap();
        assert!(text.starts_with("invalid parameters: "), "{text}");
    }
    let (_, list) = kleene(&daemon, "GET /images/list", Value::Null);
    assert_eq!(list.as_array().map(Vec::len), Some(1));
}

#[test]
fn building_and_networks_are_not_there_yet() {
    let daemon = Daemon::start();
    let config = json!({"context": "/ctx", "dockerfile": "Dockerfile", "tag": "Parent", "quiet": "false", "cleanup": false, "buildargs": {}, "container_config": {}, "networks": []});
    let mut socket = Socket::open(&daemon, "/images/build", None);
    socket.send(config.to_string());
    assert_eq!(socket.text(), r#"{"msg_type":"starting","message":"","data":""}"#);
    assert!(socket.text().contains("klee image import"));
    let (_, code, reason) = socket.rest();
    assert_eq!((code, &reason["msg_type"]), (1011, &json!("error")));
    assert!(reason["message"].as_str().unwrap().starts_with("image build failed: "), "{reason}");
    let network = json!({"name": "testnet", "type": "loopback", "gateway": "", "gateway6": "", "icc": true, "interface": "", "internal": false, "nat": "<host-gateway>", "subnet": "10.13.37.0/24", "subnet6": ""});
    let connect = json!({"container": "x", "network": "nonet", "ip_address": "<auto>", "ip_address6": "<auto>"});
    for (line, body, status) in [
        ("GET /networks/list", Value::Null, 200),
        ("POST /networks/prune", Value::Null, 200),
        ("POST /networks/create", network, 409),
        ("POST /networks/connect", connect, 404),
        ("GET /networks/testnet/inspect", Value::Null, 404),
        ("DELETE /networks/testnet", Value::Null, 404),
        ("POST /networks/testnet/disconnect/netc", Value::Null, 404),
    ] {
        assert_eq!(kleene(&daemon, line, body).0, status, "{line}");
    }
}

#[test]
fn what_is_no_verb_is_a_bare_404() {
    let daemon = Daemon::start();
    for line in [
        "GET /",
        "GET /nosuch",
        "PUT /volumes/create",
        "POST /volumes/list",
        "GET /volumes/%2e%2e/x/y",
    ] {
        let answer = ask(&daemon, line, KLEENE, b"");
        assert_eq!((answer.status, answer.text().as_str()), (404, "not found"), "{line}");
    }
    for path in ["/exec/start", "/images/create", "/images/build"] {
        assert_eq!(ask(&daemon, &format!("GET {path}"), KLEENE, b"").status, 426);
        let malformed = [("Upgrade", "websocket"), ("Connection", "Upgrade")];
        assert_eq!(ask(&daemon, &format!("GET {path}"), &malformed, b"").status, 400);
    }
}

/// Requests that the client never sends, with what any other gets for them.
#[test]
fn malformed_requests() {
    let daemon = daemon();
    let schema = |pointer: &str, detail: &str| {
        let source = json!({ "pointer": pointer });
        json!({"errors": [{"title": "Invalid value", "source": source, "detail": detail}]})
    };
    let web = created(&daemon, &container("FreeBSD", "web"));
    let update = format!("POST /containers/{web}/update");
    for (line, body, pointer, detail) in [
        ("POST /volumes/create", json!({}), "/name", "Missing field: name"),
        ("POST /volumes/create", json!({"name": 1}), "/name", "Invalid string. Got: integer"),
        ("POST /volumes/create", json!([]), "/", "Invalid object. Got: array"),
        ("POST /volumes/create", json!("v"), "/", "Invalid object. Got: string"),
        (
            "POST /containers/create",
            json!({"mounts": [{"destination": "/dst", "source": "vv"}]}),
            "/mounts/0/type",
            "Missing field: type",
        ),
        (
            "POST /containers/create",
            json!({"mounts": [{"destination": "/dst", "source": "vv", "type": "tmpfs"}]}),
            "/mounts/0/type",
            "Invalid value for enum: 'tmpfs', expected 'volume' or 'nullfs'",
        ),
        (
            "POST /containers/create",
            json!({"network_driver": "lolnet"}),
            "/network_driver",
            "Invalid value for enum: 'lolnet', expected one of 'host', 'ipnet', 'vnet', 'disabled'",
        ),
        ("POST /containers/create", json!({"cmd": "ls"}), "/cmd", "Invalid array. Got: string"),
        (&update, json!({"persist": "maybe"}), "/persist", "Invalid boolean. Got: string"),
        (&update, json!({"env": [null]}), "/env/0", "null value where string expected"),
        ("POST /exec/create", json!({}), "/container_id", "Missing field: container_id"),
        (
            "POST /exec/create",
            json!({"container_id": "web", "tty": 1}),
            "/tty",
            "Invalid boolean. Got: integer",
        ),
        ("GET /containers/list?all=zz", Value::Null, "/all", "Invalid boolean. Got: string"),
        ("GET /containers/list?color=red", Value::Null, "/", "Unexpected field: color"),
        ("POST /images/prune?all=", Value::Null, "/all", "Invalid boolean. Got: string"),
        ("POST /images/FreeBSD/tag", Value::Null, "/nametag", "Missing field: nametag"),
        (
            "POST /containers/web/stop?time=soon",
            Value::Null,
            "/time",
            "invalid digit found in string",
        ),
        ("POST /exec/x/stop", Value::Null, "/force_stop", "Missing field: force_stop"),
        (
            "POST /exec/x/stop?force_stop=true&stop_container=1",
            Value::Null,
            "/stop_container",
            "Invalid boolean. Got: string",
        ),
    ] {
        let refused = (422, schema(pointer, detail));
        assert_eq!(kleene(&daemon, line, body.clone()), refused, "{line} {body}");
    }
    // Kleene looks at no query there.
    assert_eq!(kleene(&daemon, "GET /volumes/list?color=red", Value::Null), (200, json!([])));

    let long = json!({ "name": "x".repeat(8_000_001) }).to_string();
    for line in ["POST /volumes/create", "POST /containers/create", &update, "POST /exec/create"] {
        for (media, body, status) in [
            ("application/json", "", 400),
            ("application/json", "{", 400),
            ("application/json", "[", 400),
            ("application/json", "{} {}", 400),
            ("application/json", &long, 413),
            ("text/plain", "{}", 415),
            ("", "{}", 422),
        ] {
            let headers = [("Content-Type", media)];
            let headers = if media.is_empty() { &[][..] } else { &headers[..] };
            let answer = ask(&daemon, line, headers, body.as_bytes());
            assert_eq!(answer.status, status, "{line} {media}: {}", answer.text());
            if status == 422 {
                assert_eq!(answer.json(), schema("/", "Missing header: content-type"));
            } else {
                assert!(answer.json()["message"].is_string(), "{}", answer.text());
            }
        }
    }
    assert_eq!(kleene(&daemon, "GET /volumes/list", Value::Null), (200, json!([])));
}

/// The statuses that the client knows for each of its verbs; with any other it dies.
const DIGESTIBLE: &[(&str, &[u16])] = &[
    ("POST /volumes/create", &[201, 500]),
    ("GET /volumes/x/inspect", &[200, 404, 500]),
    ("DELETE /volumes/x", &[200, 404, 500]),
    ("POST /volumes/prune", &[200, 500]),
    ("POST /containers/create", &[201, 404, 500]),
    ("POST /containers/prune", &[200, 500]),
    ("GET /containers/x/inspect", &[200, 404, 500]),
    ("POST /containers/x/stop", &[200, 404, 500]),
    ("DELETE /containers/x", &[200, 404, 409, 500]),
    ("POST /containers/x/update", &[201, 404, 409, 500]),
    ("POST /exec/create", &[201, 404, 500]),
    ("GET /images/x/inspect", &[200, 404, 500]),
    ("POST /images/x/tag?nametag=a", &[200, 404, 500]),
    ("DELETE /images/x", &[200, 404, 500]),
];

#[test]
fn no_answer_kills_the_client() {
    let daemon = Daemon::start();
    for (line, known) in DIGESTIBLE {
        for name in ["", "\u{0}", "a b", "../x", "\u{e9}", &"x".repeat(5_000)] {
            let config = json!({
                "name": name, "image": name, "container_id": name, "cmd": [name], "user": name,
                "env": [name], "jail_param": [name],
                "mounts": [{"type": "volume", "source": name, "destination": name}],
            });
            let body = if line.starts_with("POST") { config } else { Value::Null };
            let answer = call(&daemon, line, KLEENE, &body);
            assert!(known.contains(&answer.status), "{line} {name:?}: {}", answer.status);
            answer.json();
        }
    }
}
