//! The shape of every answer, field by field: what a client relies on can't change unseen.

use kleene_tests::harness::Daemon;
use serde_json::{Value, json};

use crate::wire::exact;

#[track_caller]
fn shape(daemon: &Daemon, line: &str, body: Value, expected: (u16, Value)) {
    let (status, found) = exact(daemon, line, body);
    let root = daemon.root().to_string_lossy().into_owned();
    // A dataset's name is its mount point without the first slash.
    let text = found.to_string().replace(&root, "<root>").replace(&root[1..], "<dataset>");
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &found), (expected.0, &expected.1), "{line}: {found:#}");
}

#[test]
fn answers_have_their_shapes() {
    let daemon = Daemon::with_image();
    shape(
        &daemon,
        "GET /info",
        Value::Null,
        (
            200,
            json!({
                "version": env!("CARGO_PKG_VERSION"), "storage": "dir",
                "platform": std::env::consts::OS, "root": "<root>",
            }),
        ),
    );
    let config =
        json!({"name": "v", "labels": {"b": "2", "a": "1"}, "owner": "80:81", "mode": "0750"});
    shape(&daemon, "POST /volumes/create", config, (201, json!({"id": "v"})));
    let volume = json!({
        "name": "v", "project": "default", "dataset": "<dataset>/volumes/v", "mountpoint": "<root>/volumes/v",
        "created": "<time>", "labels": {"a": "1", "b": "2"}, "state": "available",
        "owner": "80:81", "mode": "0750", "access": "shared",
    });
    shape(&daemon, "GET /volumes/list", Value::Null, (200, json!([volume])));
    shape(
        &daemon,
        "GET /volumes/v/inspect",
        Value::Null,
        (200, json!({"volume": volume, "mountpoints": []})),
    );
    let image = json!({
        "id": "<id>", "name": "base", "tag": "latest", "user": "root", "cmd": ["/bin/sh"],
        "env": [], "instructions": [], "created": "<time>", "dataset": "<root>/image/<id>",
    });
    let (status, mut list) = exact(&daemon, "GET /images/list", Value::Null);
    // The id stands in the path too.
    assert!(list[0]["dataset"].is_string(), "{list}");
    list[0]["dataset"] = json!("<root>/image/<id>");
    assert_eq!((status, list), (200, json!([image])));

    let config = json!({
        "name": "web", "image": "base", "env": ["B=2", "A=1"], "user": "www",
        "cmd": ["/bin/sleep", "1000"], "hostname": "web.example", "workdir": "/tmp",
        "mounts": [
            {"type": "volume", "source": "new", "destination": "/usr/share/site"},
            {"type": "volume", "source": "v", "destination": "/srv", "read_only": true, "nocopy": true, "noexec": true},
        ],
    });
    shape(&daemon, "POST /containers/create", config, (201, json!({"id": "<id>"})));
    let mountpoints = json!([
        {"container_id": "<id>", "type": "volume", "source": "new", "destination": "/usr/share/site", "read_only": false},
        {"container_id": "<id>", "type": "volume", "source": "v", "destination": "/srv", "read_only": true, "nocopy": true, "noexec": true},
    ]);
    let mut container = json!({
        "id": "<id>", "name": "web", "project": "default", "image_id": "<id>", "cmd": ["/bin/sleep", "1000"],
        "user": "www", "env": ["A=1", "B=2"], "network_driver": "host", "public_ports": [],
        "jail_param": [], "restart_policy": "no", "persist": false, "created": "<time>",
        "running": false, "hostname": "web.example", "workdir": "/tmp", "auto_remove": false,
    });
    let (status, mut inspect) = exact(&daemon, "GET /containers/web/inspect", Value::Null);
    let dataset = inspect["container"].as_object_mut().unwrap().remove("dataset");
    assert!(dataset.unwrap().as_str().unwrap().contains("/container/"));
    assert_eq!(
        (status, inspect),
        (
            200,
            json!({
                "container": container, "container_endpoints": [],
                "container_mountpoints": mountpoints,
            })
        )
    );
    let (_, mut list) = exact(&daemon, "GET /containers/list?all=true", Value::Null);
    list[0].as_object_mut().unwrap().remove("dataset");
    container["image_name"] = json!("base");
    container["image_tag"] = json!("latest");
    container["jid"] = Value::Null;
    assert_eq!(list, json!([container]));

    let (_, mut new) = exact(&daemon, "GET /volumes/new/inspect", Value::Null);
    let populated = new["volume"]["populated"].take();
    assert_eq!(populated, json!({"image_id": "<id>", "path": "/usr/share/site", "at": "<time>"}));
    assert_eq!(new["volume"]["state"], "attached");

    shape(&daemon, "DELETE /containers/web", Value::Null, (200, json!({"id": "<id>"})));
    shape(&daemon, "DELETE /volumes/v", Value::Null, (200, json!({"id": "v"})));
    shape(&daemon, "POST /volumes/prune", Value::Null, (200, json!(["new"])));
    shape(&daemon, "POST /images/base/tag?nametag=b:1", Value::Null, (200, json!({"id": "<id>"})));
    shape(&daemon, "DELETE /images/b:1", Value::Null, (200, json!({"id": "b:1"})));
    shape(
        &daemon,
        "DELETE /volumes/nope",
        Value::Null,
        (404, json!({"message": "no such volume: nope", "code": "not_found"})),
    );
}
