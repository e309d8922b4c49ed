//! The daemon's own life: its socket, its configuration, its signals, a second one.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kleene_tests::harness::{Daemon, binary};
use rustix::process::{Signal, getegid, kill_process};
use serde_json::{Value, json};

use crate::wire::{Connection, EXACT, Socket, call, exact, until};

/// Runs kleened, which must end by itself: its exit status and what it said on standard error.
fn kleened(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary("kleened")).args(arguments).output().expect("run kleened");
    let [out, error] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), out, error)
}

#[test]
fn configtest_says_what_is_wrong_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kleened.toml");
    let name = file.to_str().unwrap();
    let sample = kleened(&["configtest", "--sample"]);
    assert_eq!((sample.0, sample.2.as_str()), (Some(0), ""));
    fs::write(&file, &sample.1).unwrap();
    assert_eq!(
        kleened(&["configtest", "--config", name]),
        (Some(0), format!("{name}: ok\n"), String::new())
    );
    for (text, says) in [
        ("\nsokcet = '/s'", "line 2: unknown key 'sokcet'; the nearest known one is 'socket'"),
        ("root = 7", "line 1: "),
        ("storage = 'paper'", "no driver 'paper'; known are auto, zfs, dir"),
        ("socket_group = 'no such group'", "no group 'no such group'"),
        ("read_only_users = ['no such user']", "no user 'no such user'"),
        ("copy_threads = 1000000", "line 1: "),
        ("socket = '/etc/passwd'", "/etc/passwd exists and is no socket"),
        ("root = '/etc/passwd'", "/etc/passwd is no directory"),
        (&format!("socket = '/{}'", "s".repeat(100)), "more than 95 bytes"),
    ] {
        fs::write(&file, text).unwrap();
        let (status, out, error) = kleened(&["configtest", "--config", name]);
        assert_eq!((status, out.as_str()), (Some(78), ""));
        assert!(error.starts_with("kleened: ") && error.contains(says), "{error}");
        // The daemon refuses it before it touches anything.
        let (status, _, error) = kleened(&["--config", name]);
        assert_eq!(status, Some(78));
        assert!(error.contains(says), "{error}");
    }
    let (status, _, error) = kleened(&["--config", "/no/such/file"]);
    assert_eq!(status, Some(78));
    assert!(error.contains("/no/such/file"), "{error}");
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let daemon = Daemon::start();
    let text = fs::read_to_string(daemon.home().join("kleened.toml")).unwrap();
    let file = daemon.home().join("second.toml");
    let other = text
        .replace(daemon.socket().to_str().unwrap(), daemon.home().join("sock2").to_str().unwrap());
    fs::write(&file, other).unwrap();
    let (status, _, error) = kleened(&["--config", file.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    let root = daemon.root();
    assert!(error.contains(root.to_str().unwrap()), "{error}");
    assert!(error.contains("another kleened, process "), "{error}");
    assert!(!daemon.home().join("sock2").exists());
    // Nor one with another root on the same socket.
    let other = text.replace(root.to_str().unwrap(), daemon.home().join("root2").to_str().unwrap());
    fs::write(&file, other).unwrap();
    let (status, _, error) = kleened(&["--config", file.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(error.contains("answers on the socket"), "{error}");
    assert_eq!(exact(&daemon, "GET /volumes/list", Value::Null).0, 200);
}

#[test]
fn a_stale_socket_is_replaced_and_taken_away_at_the_end() {
    let mut daemon = Daemon::start_with("socket_mode = '0606'\nsocket_group = '4711'", &[]);
    daemon.stop();
    drop(UnixListener::bind(daemon.socket()).unwrap());
    daemon.boot();
    let metadata = fs::metadata(daemon.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.gid()), (0o606, 4711));
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!daemon.socket().exists());
    daemon.boot();
    daemon.kill();
    assert!(daemon.socket().exists(), "nobody could take it away");
    daemon.boot();
    assert_eq!(exact(&daemon, "GET /info", Value::Null).0, 200);
}

#[test]
fn sigterm_finishes_what_is_under_way() {
    let mut daemon = Daemon::with_image();
    let mut runs = ready(&daemon, "runs", "echo ready; exec sleep 1000");
    // Without another process, which would end when it is asked to.
    let stubborn = "mkfifo /tmp/f; exec 3<>/tmp/f; trap 'echo asked' TERM; echo ready; \
        while :; do read line <&3; done";
    let mut stops = ready(&daemon, "stops", stubborn);
    let mut connection = Connection::new(&daemon.socket());
    let exact_status = [("Prefer", "exact-status"), ("Content-Length", "0")];
    connection.send("POST /containers/stops/stop?time=6", &exact_status, b"");
    assert_eq!(stops.text(), "asked\n");

    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(connection.answer().status, 200);
    for socket in [&mut runs, &mut stops] {
        let (_, code, reason) = socket.rest();
        assert_eq!(code, 1001);
        assert!(reason["message"].as_str().unwrap().contains("goes on"), "{reason}");
    }
    daemon.boot();
    let (_, list) = exact(&daemon, "GET /containers/list?all=true", Value::Null);
    let states: Vec<_> =
        list.as_array().unwrap().iter().map(|line| (&line["name"], &line["running"])).collect();
    assert_eq!(states, [(&json!("stops"), &json!(false)), (&json!("runs"), &json!(true))]);
}

/// Creates a container of that script, and starts it attached: it has said `ready`.
fn ready(daemon: &Daemon, name: &str, script: &str) -> Socket {
    let config = json!({"image": "base", "name": name, "cmd": ["/bin/sh", "-c", script]});
    assert_eq!(exact(daemon, "POST /containers/create", config).0, 201);
    let exec = call(daemon, "POST /exec/create", EXACT, &json!({"container_id": name}));
    let mut socket = Socket::open(daemon, "/exec/start", None);
    let start = json!({"exec_id": exec.json()["id"], "attach": true, "start_container": true});
    socket.send(start.to_string());
    while socket.text() != "ready\n" {}
    socket
}

#[test]
fn a_client_that_stalls_does_not_keep_the_daemon() {
    let mut daemon = Daemon::with_image();
    // More than the socket and the pipe behind it can hold.
    let script = "head -c 9000000 /dev/zero > /much; echo ready; exec sleep 1000";
    let mut attached = ready(&daemon, "runs", script);
    let mut silent = Socket::open(&daemon, "/exec/start", None);
    assert_eq!(exact(&daemon, "POST /containers/runs/save?name=much", Value::Null).0, 200);
    let mut follows = Connection::new(&daemon.socket());
    follows.send("GET /containers/runs/logs?follow=true", EXACT, b"");
    let mut first = [0; 1];
    follows.0.read_exact(&mut first).unwrap();
    let mut export = Connection::new(&daemon.socket());
    export.send("GET /images/much/export", EXACT, b"");
    export.0.read_exact(&mut first).unwrap();
    let mut import = Connection::new(&daemon.socket());
    let length = [("Content-Length", "1000000"), EXACT[0]];
    import.send("POST /images/import?name=part", &length, b"12345");
    let scratch = || fs::read_dir(daemon.root().join("scratch")).unwrap().count();
    until("the import", || scratch() == 1);

    assert_eq!(daemon.stop().code(), Some(0));
    let log = daemon.log();
    for limit in ["not waiting any longer", "panicked"] {
        assert!(!log.contains(limit), "{log}");
    }
    let (_, code, _) = attached.rest();
    assert_eq!(code, 1001);
    assert!(silent.0.read().is_err());
    let mut rest = Vec::new();
    let _ = export.0.read_to_end(&mut rest);
    assert!(rest.len() < 9_000_000 && !rest.ends_with(b"0\r\n\r\n"), "it was cut");
    let refused = import.answer();
    assert!(refused.text().contains("the daemon is stopping"), "{}", refused.text());
    assert_eq!(refused.status, 503);
    daemon.boot();
    let (_, images) = exact(&daemon, "GET /images/list", Value::Null);
    assert_eq!(images.as_array().unwrap().len(), 2, "{images}");
}

#[test]
fn who_only_listens_is_told_at_once_that_the_daemon_stops() {
    let mut daemon = Daemon::with_image();
    let mut attached = ready(&daemon, "runs", "echo ready; exec sleep 1000");
    let mut follows = Connection::new(&daemon.socket());
    follows.send("GET /containers/runs/logs?follow=true", EXACT, b"");
    follows.0.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(exact(&daemon, "GET /info", Value::Null).0, 200);
    kill_process(daemon.pid(), Signal::TERM).unwrap();
    let (_, code, _) = attached.rest();
    assert_eq!(code, 1001);
    drop(attached);
    let mut rest = Vec::new();
    follows.0.read_to_end(&mut rest).unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a log that goes on has no end");
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!daemon.log().contains("cutting connections"), "{}", daemon.log());
}

#[test]
fn a_change_that_takes_long_does_not_keep_the_daemon() {
    let mut daemon = Daemon::with_image();
    // Without another process, which would end when it is asked to.
    let stubborn = "mkfifo /tmp/f; exec 3<>/tmp/f; trap 'echo asked' TERM; echo ready; \
        while :; do read line <&3; done";
    let mut socket = ready(&daemon, "stops", stubborn);
    let mut connection = Connection::new(&daemon.socket());
    let exact_status = [("Prefer", "exact-status"), ("Content-Length", "0")];
    connection.send("POST /containers/stops/stop?time=3600", &exact_status, b"");
    assert_eq!(socket.text(), "asked\n");
    assert_eq!(daemon.stop().code(), Some(0));
    let log = daemon.log();
    assert!(log.contains("not waiting any longer") && !log.contains("panicked"), "{log}");
    daemon.boot();
    let (_, list) = exact(&daemon, "GET /containers/list", Value::Null);
    assert_eq!(list[0]["running"], true, "{list}");
}

#[test]
fn sighup_reads_the_configuration_again() {
    let daemon = Daemon::start_with("socket_mode = '0600'", &[]);
    let file = daemon.home().join("kleened.toml");
    let text = fs::read_to_string(&file).unwrap();
    let mode = || fs::metadata(daemon.socket()).unwrap().permissions().mode() & 0o777;
    let hangup = |expect: &str| {
        kill_process(daemon.pid(), Signal::HUP).unwrap();
        until(expect, || daemon.log().contains(expect));
    };
    assert_eq!(mode(), 0o600);
    fs::write(&file, format!("{}\nstorage_ = 1", text)).unwrap();
    hangup("keeping the old configuration");
    assert_eq!(mode(), 0o600);
    fs::write(&file, text.replace("0600", "0666").replace("sock\"", "sock2\"")).unwrap();
    hangup("was read again");
    assert!(daemon.log().contains("socket has changed: restart kleened"), "{}", daemon.log());
    assert_eq!(mode(), 0o666);
}

#[test]
fn sighup_gives_the_socket_its_group_and_takes_it_back() {
    let daemon = Daemon::start();
    let file = daemon.home().join("kleened.toml");
    let text = fs::read_to_string(&file).unwrap();
    let group = || fs::metadata(daemon.socket()).unwrap().gid();
    let own = getegid().as_raw();
    for (text, wanted) in [(format!("{text}\nsocket_group = '4711'"), 4711), (text, own)] {
        fs::write(&file, text).unwrap();
        kill_process(daemon.pid(), Signal::HUP).unwrap();
        until("the socket's group", || group() == wanted);
    }
}

#[test]
fn a_read_only_user_looks_and_changes_nothing() {
    let daemon = Daemon::start_with("socket_mode = '0666'\nread_only_users = ['4711']", &[]);
    // Into the folder, which is root's alone.
    fs::set_permissions(daemon.home(), fs::Permissions::from_mode(0o755)).unwrap();
    // So may be the folder that the client was built in.
    let client = daemon.home().join("klee");
    fs::copy(binary("klee"), &client).unwrap();
    let as_user = |uid: u32, arguments: &[&str]| {
        let mut command = Command::new(&client);
        command
            .env("KLEE_HOST", daemon.socket())
            .env("KLEE_PROJECT", "default")
            .stdin(Stdio::null());
        command.args(arguments).uid(uid).gid(4711).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (child.wait().unwrap().code(), error)
    };
    assert_eq!(as_user(4711, &["volume", "ls"]), (Some(0), String::new()));
    let (status, error) = as_user(4711, &["volume", "create", "v"]);
    assert_eq!(status, Some(7), "{error}");
    assert!(error.contains("look and change nothing, as 'read_only_users'"), "{error}");
    assert_eq!(as_user(4712, &["volume", "create", "v"]).0, Some(0));
}

#[test]
fn who_is_not_root_is_told_to_be() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, file) = (folder.path().join("kleened"), folder.path().join("kleened.toml"));
    fs::copy(binary("kleened"), &program).unwrap();
    let path = folder.path().display();
    fs::write(&file, format!("root = '{path}/root'\nsocket = '{path}/sock'")).unwrap();
    let output = Command::new(&program).arg("--config").arg(&file).uid(4711).gid(4711).output();
    let output = output.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("start it as root"), "{error}");
}
