//! A daemon with a few objects, which never change.

use std::sync::OnceLock;
use std::time::Duration;

use kleened_api::Timestamp;
use serde_json::{Value, json};

use crate::server::{Reply, Request, Server};

/// Names that no daemon accepts and that a broken one could send all the same.
const HOSTILE: &str = "evil\u{1b}[2J\n\u{202e}lov";

/// Moments so long ago, and what stands for them in transcripts.
fn moments() -> &'static [(String, &'static str); 3] {
    static MOMENTS: OnceLock<[(String, &str); 3]> = OnceLock::new();
    MOMENTS.get_or_init(|| {
        let ago = |seconds| {
            let then = Timestamp::now().date_time() - Duration::from_secs(seconds);
            Timestamp::from(then).to_string()
        };
        [
            (ago(6 * 60 + 20), "6-MINUTES-AGO"),
            (ago(3 * 3600), "3-HOURS-AGO"),
            (ago(3 * 86400), "3-DAYS-AGO"),
        ]
    })
}

/// The text with moments that don't depend on when the test runs.
pub(crate) fn settled(text: &str) -> String {
    moments().iter().fold(text.to_owned(), |text, (moment, stands)| text.replace(moment, stands))
}

fn moment(n: usize) -> &'static str {
    &moments()[n].0
}

/// Every field of a volume, for the lists of fields.
pub(crate) fn volumes() -> Value {
    json!([
        {"name": "my-vol", "dataset": "zroot/kleene/volumes/my-vol",
         "mountpoint": "/zroot/kleene/volumes/my-vol", "created": moment(0), "labels": {},
         "state": "available"},
        {"name": "data", "dataset": "zroot/kleene/volumes/data",
         "mountpoint": "/zroot/kleene/volumes/data", "created": moment(1),
         "labels": {"tier": "db", "team": "x"}, "state": "mounted", "owner": "770:771",
         "mode": "0750", "error": "none", "size": 10737418240_u64, "reserve": 1073741824,
         "profile": "postgres", "properties": {"recordsize": "8K"},
         "usage": {"used": 1572864, "referenced": 1048576, "available": 10736369664_u64,
                   "snapshots": 524288, "size": 10737418240_u64, "compress_ratio": 1.5},
         "populated": {"image_id": "13a38290f1b0", "path": "/var/db", "at": moment(1)}},
        {"name": HOSTILE, "dataset": "zroot/kleene/volumes/evil",
         "mountpoint": "/zroot/kleene/volumes/evil", "created": moment(2), "labels": {},
         "state": "available", "tomorrow": "a field of a newer daemon"},
    ])
}

pub(crate) fn containers() -> Value {
    json!([
        {"id": "fa3f95145d92", "name": "web", "image_id": "13a38290f1b0",
         "cmd": ["/bin/sh", "-c", "exec nginx -g 'daemon off;' -c /etc/nginx.conf"], "user": "root",
         "env": ["A=1"], "network_driver": "host", "public_ports": [], "jail_param": ["allow.mlock"],
         "restart_policy": "on-startup", "persist": true, "created": moment(0),
         "dataset": "zroot/kleene/container/fa3f95145d92", "running": true, "hostname": "web",
         "workdir": "/", "auto_remove": false, "started": moment(0), "finished": moment(1),
         "exit_code": 0, "image_name": "FreeBSD", "image_tag": "latest", "jid": 7},
        {"id": "5c9622d1b210", "name": "lucid_austin", "image_id": "9f88e60a3d20",
         "cmd": ["/bin/sh", "/etc/rc"], "user": "root", "env": [], "network_driver": "disabled",
         "public_ports": [], "jail_param": [], "restart_policy": "no", "persist": false,
         "created": moment(2), "dataset": "zroot/kleene/container/5c9622d1b210", "running": false,
         "image_name": "", "image_tag": "", "jid": null},
    ])
}

pub(crate) fn images() -> Value {
    json!([
        {"id": "13a38290f1b0", "name": "FreeBSD", "tag": "latest", "user": "root",
         "cmd": ["/bin/sh", "/etc/rc"], "env": ["LANG=C"], "instructions": [["FROM x", "@abc"]],
         "created": moment(1), "dataset": "zroot/kleene/image/13a38290f1b0"},
        {"id": "9f88e60a3d20", "name": "", "tag": "", "user": "root", "cmd": [], "env": [],
         "instructions": [], "created": moment(2), "dataset": "zroot/kleene/image/9f88e60a3d20"},
    ])
}

fn mount() -> Value {
    json!({"container_id": "fa3f95145d92", "type": "volume", "source": "data",
           "destination": "/var/db", "read_only": false})
}

fn refused(status: u16, code: &str, message: &str, causes: &[&str]) -> Reply {
    Reply::Json(status, json!({"message": message, "code": code, "causes": causes}))
}

/// The daemon.
pub(crate) fn start() -> Server {
    Server::start(answer)
}

/// The answer to a request, as the last part of its path and what it does to it say.
pub(crate) fn answer(request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let id = |id: &str| Reply::Json(200, json!({ "id": id }));
    let made = |id: &str| Reply::Json(201, json!({ "id": id }));
    match (request.method.as_str(), &parts[..]) {
        ("GET", ["info"]) => Reply::Json(
            200,
            json!({"version": "0.1.0", "storage": "zfs", "platform": "freebsd",
                   "root": "zroot/kleene"}),
        ),
        ("GET", ["volumes", "list"]) => Reply::Json(200, volumes()),
        ("GET", ["volumes", "names"]) => Reply::Json(200, json!(["data", HOSTILE, "my-vol"])),
        ("GET", ["volumes", "profiles"]) => Reply::Json(
            200,
            json!([{"name": "postgres", "about": "PostgreSQL", "properties": [
                {"name": "recordsize", "value": "16K", "why": "two pages"},
                {"name": "atime", "value": "off", "why": "reading must not write"}]},
                {"name": "none", "about": "nothing", "properties": []}]),
        ),
        ("GET", ["containers", "list"]) => Reply::Json(200, containers()),
        ("GET", ["images", "list"]) => Reply::Json(200, images()),
        ("GET", ["volumes", "data", "inspect"]) => {
            Reply::Json(200, json!({"volume": volumes()[1], "mountpoints": [mount()]}))
        }
        ("GET", ["containers", "web" | "fa3f", "inspect"]) => Reply::Json(
            200,
            json!({"container": containers()[0], "container_endpoints": [],
                   "container_mountpoints": [mount()]}),
        ),
        ("GET", ["containers", "lucid_austin", "inspect"]) => Reply::Json(
            200,
            json!({"container": containers()[1], "container_endpoints": [],
                   "container_mountpoints": []}),
        ),
        ("GET", ["images", "FreeBSD" | "FreeBSD:latest", "inspect"]) => {
            Reply::Json(200, images()[0].clone())
        }
        ("POST", ["volumes", "create"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            match body["name"].as_str() {
                Some("data") => refused(
                    409,
                    "conflict",
                    "volume data exists with another mode: it has 0750, 0700 was asked for",
                    &[],
                ),
                name => made(name.unwrap_or("amazing_albattani")),
            }
        }
        ("POST", ["volumes", "data", "attach"]) => refused(
            409,
            "conflict",
            "mount path /srv is already in use: container web has volume site there",
            &[],
        ),
        ("POST", ["volumes", "data", "detach"]) => refused(
            409,
            "in_use",
            "cannot detach volume data",
            &["cannot unmount /volumes/data on /srv: a process in the container has a file open"],
        ),
        ("POST", ["volumes", name, "attach" | "detach"]) => Reply::Json(200, json!({ "id": name })),
        ("POST", ["volumes", "adopt"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            match body["dataset"].as_str() {
                Some("other/pg") => refused(
                    422,
                    "invalid",
                    "cannot adopt dataset other/pg",
                    &["it is in the pool other, and the root in tank"],
                ),
                _ => made(body["name"].as_str().unwrap_or("pg")),
            }
        }
        ("POST", ["containers" | "images", "prune"]) if request.path.contains("dry_run=true") => {
            Reply::Json(200, json!([]))
        }
        ("POST", ["volumes", "prune"]) => Reply::Json(200, json!(["my-vol", "spare"])),
        ("POST", [_, "prune"]) => Reply::Json(200, json!([])),
        ("POST", ["containers", "create"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            if body["network_driver"] == "ipnet" {
                return refused(
                    501,
                    "unsupported",
                    "the network driver ipnet is not supported: use host or disabled",
                    &[],
                );
            }
            match body["image"].as_str() {
                Some("nosuch") => refused(404, "not_found", "no such image: nosuch", &[]),
                _ => made("b595d12c5dc7"),
            }
        }
        ("POST", ["exec", "create"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            match body["container_id"].as_str() {
                Some("zzz") => refused(404, "not_found", "no such container: zzz", &[]),
                _ => made("5e27c191b3d7"),
            }
        }
        ("POST", ["containers", "lucid_austin", "stop"]) => {
            refused(409, "wrong_state", "container lucid_austin is not running", &[])
        }
        ("POST", ["containers", "once", "stop"]) => id("0cec95145d92"),
        ("DELETE", ["containers", "once"]) => {
            refused(404, "not_found", "no such container: once", &[])
        }
        ("POST", ["containers", "web", "stop"]) | ("DELETE", ["containers", "web"]) => {
            id("fa3f95145d92")
        }
        ("POST", ["containers", "web", "update"]) => made("fa3f95145d92"),
        ("GET", ["containers", "web", "wait"]) => {
            Reply::Json(200, json!({"id": "fa3f95145d92", "exit_code": 7}))
        }
        ("GET", ["containers", "web", "logs"]) => Reply::Raw(
            200,
            kleened_api::stream::LOG_MEDIA_TYPE,
            b"\x01\0\0\0\0\0\0\x04out\n\x02\0\0\0\0\0\0\x04err\n".to_vec(),
        ),
        ("POST", ["containers", "web", "save"]) => id("d61014e49a97"),
        ("DELETE", ["containers", "lucid_austin"]) => id("5c9622d1b210"),
        ("POST", ["images", "import"]) => made("d17fccf6f510"),
        ("POST", ["images", "FreeBSD", "tag"]) => id("13a38290f1b0"),
        ("GET", ["images", "FreeBSD", "export"]) => {
            Reply::Raw(200, "application/x-tar", b"an archive\n".to_vec())
        }
        ("DELETE", ["images", "FreeBSD"]) => {
            refused(409, "in_use", "image FreeBSD is in use: container web", &[])
        }
        ("DELETE", ["images", name]) => id(name),
        ("DELETE", ["volumes", "data"]) => refused(
            409,
            "in_use",
            "volume data is in use: container web mounts it at /var/db, read-write",
            &[],
        ),
        ("DELETE", ["volumes", "broken"]) => refused(
            500,
            "internal",
            "cannot remove volume broken",
            &["destroy of zroot/kleene/volumes/broken", "I/O error \u{1b}[31mred\u{202e}"],
        ),
        ("DELETE", ["volumes", "my-vol"]) => id("my-vol"),
        ("DELETE", ["volumes", "kleenes"]) => {
            Reply::Json(404, json!({"message": "No such volume\n"}))
        }
        ("DELETE", ["volumes", "schema"]) => Reply::Json(
            422,
            json!({"errors": [{"title": "Invalid value", "source": {"pointer": "/name"},
                               "detail": "Missing field: name"}]}),
        ),
        ("DELETE", ["volumes", "html"]) => Reply::Raw(500, "text/html", b"<h1>oh</h1>".to_vec()),
        ("DELETE", ["volumes", "strange"]) => {
            Reply::Json(418, json!({"message": "a code of a newer daemon", "code": "teapot"}))
        }
        ("DELETE", ["volumes", "nojson"]) => Reply::Raw(200, "application/json", b"{x".to_vec()),
        ("DELETE", ["volumes", "dropped"]) => Reply::Drop,
        ("DELETE", ["volumes", "cut"]) => Reply::Cut(b"{\"id\":".to_vec()),
        (_, ["volumes", name, ..]) => {
            refused(404, "not_found", &format!("no such volume: {name}"), &[])
        }
        _ => Reply::Raw(404, "text/plain", b"not found".to_vec()),
    }
}
