//! Websockets: nothing is lost, cut or made up, in either direction, however slow the other side is.

use std::thread;
use std::time::Duration;

use kleene_tests::harness::Daemon;
use kleened_api::stream::{Channel, SUBPROTOCOL};
use serde_json::{Value, json};
use tungstenite::Message;

use crate::wire::{EXACT, Socket, call, exact};

/// An execution instance of that command in a new container.
fn instance(daemon: &Daemon, name: &str, cmd: Value, tty: bool) -> Value {
    let config = json!({"image": "base", "name": name, "cmd": cmd});
    assert_eq!(exact(daemon, "POST /containers/create", config).0, 201);
    let exec = json!({"container_id": name, "tty": tty});
    call(daemon, "POST /exec/create", EXACT, &exec).json()["id"].clone()
}

fn attach(daemon: &Daemon, exec: &Value, protocol: Option<&str>) -> Socket {
    let mut socket = Socket::open(daemon, "/exec/start", protocol);
    socket.send(json!({"exec_id": exec, "attach": true, "start_container": true}).to_string());
    socket
}

/// A framed connection, begun.
fn framed(daemon: &Daemon, exec: &Value) -> Socket {
    let mut socket = attach(daemon, exec, Some(SUBPROTOCOL));
    assert_eq!(serde_json::from_str::<Value>(&socket.text()).unwrap()["msg_type"], "starting");
    socket
}

fn frame(channel: Channel, payload: &[u8]) -> Message {
    Message::binary([&[channel as u8], payload].concat())
}

/// What came on a channel.
fn channel(frames: &[Message], channel: Channel) -> Vec<u8> {
    let on = |frame: &Message| match frame {
        Message::Binary(bytes) if bytes.first() == Some(&(channel as u8)) => bytes[1..].to_vec(),
        _ => Vec::new(),
    };
    frames.iter().flat_map(on).collect()
}

#[test]
fn channels_are_kept_apart_and_the_end_is_told() {
    let daemon = Daemon::with_image();
    let cmd = json!(["/bin/sh", "-c", "cat; echo oh >&2; exit 3"]);
    let exec = instance(&daemon, "c", cmd, false);
    let mut socket = framed(&daemon, &exec);
    let every: Vec<u8> = (0..=255).collect();
    socket.send(frame(Channel::Stdin, &every));
    socket.send(frame(Channel::Stdin, b""));
    let (frames, code, _) = socket.rest();
    assert_eq!(channel(&frames, Channel::Stdout), every);
    assert_eq!(channel(&frames, Channel::Stderr), b"oh\n");
    let exit: Value = serde_json::from_slice(&channel(&frames, Channel::Exit)).unwrap();
    assert_eq!((code, exit), (1000, json!({"code": 3, "container_ended": true})));
    // Who was told may remove it at once.
    assert_eq!(exact(&daemon, "DELETE /containers/c", Value::Null).0, 200);
}

#[test]
fn text_is_text_and_anything_else_is_binary() {
    let daemon = Daemon::with_image();
    let script = r"printf 'gr\303'; sleep 0.2; printf '\274n\n'; printf '\377\376'";
    let exec = instance(&daemon, "c", json!(["/bin/sh", "-c", script]), false);
    let mut socket = attach(&daemon, &exec, None);
    socket.text();
    let (frames, code, _) = socket.rest();
    assert_eq!(code, 1000);
    let all: Vec<u8> = frames.iter().flat_map(|frame| frame.clone().into_data()).collect();
    assert_eq!(all, b"gr\xc3\xbcn\n\xff\xfe");
    assert!(frames.iter().all(|frame| frame.len() <= 1 << 20));
    assert!(matches!(frames.last(), Some(Message::Binary(_))));
}

#[test]
fn single_bytes_reach_a_terminal() {
    let daemon = Daemon::with_image();
    let exec = instance(&daemon, "c", json!(["/bin/sh"]), true);
    let mut socket = attach(&daemon, &exec, None);
    socket.text();
    for byte in b"stty -echo; echo $((6*7)); exit\r" {
        socket.send(Message::binary(vec![*byte]));
    }
    let (frames, code, _) = socket.rest();
    let all: Vec<u8> = frames.iter().flat_map(|frame| frame.clone().into_data()).collect();
    assert!(String::from_utf8_lossy(&all).contains("42"), "{}", String::from_utf8_lossy(&all));
    assert_eq!(code, 1000);
}

#[test]
fn a_slow_client_holds_the_process_up_and_loses_nothing() {
    let daemon = Daemon::with_image();
    let cmd = json!(["/bin/sh", "-c", "yes xxxxxxx | head -c 50000000; echo end >&2"]);
    let exec = instance(&daemon, "c", cmd, false);
    let mut socket = framed(&daemon, &exec);
    // Nothing waits for this: it only makes the client slow.
    thread::sleep(Duration::from_millis(300));
    let (frames, code, _) = socket.rest();
    assert_eq!((code, channel(&frames, Channel::Stdout).len()), (1000, 50_000_000));
    assert_eq!(channel(&frames, Channel::Stderr), b"end\n");
}

#[test]
fn much_input_goes_through_and_comes_back() {
    let daemon = Daemon::with_image();
    let exec = instance(&daemon, "c", json!(["/bin/cat"]), false);
    let mut socket = framed(&daemon, &exec);
    let sent: Vec<u8> = (0..20_000_000_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
    let stream = socket.0.get_ref().try_clone().unwrap();
    let mut writer = Socket(tungstenite::WebSocket::from_raw_socket(
        stream,
        tungstenite::protocol::Role::Client,
        None,
    ));
    let (frames, code, _) = thread::scope(|scope| {
        scope.spawn(|| {
            // Larger than a frame of the supervisor's.
            for piece in sent.chunks(300_000) {
                writer.send(frame(Channel::Stdin, piece));
            }
            writer.send(frame(Channel::Stdin, b""));
        });
        socket.rest()
    });
    assert_eq!(code, 1000);
    assert!(channel(&frames, Channel::Stdout) == sent, "what came back differs");
}

#[test]
fn sizes_and_signals() {
    let daemon = Daemon::with_image();
    let script = "trap 'stty size; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    let exec = instance(&daemon, "c", json!(["/bin/sh", "-c", script]), true);
    let mut socket = framed(&daemon, &exec);
    while !String::from_utf8_lossy(&socket.next().into_data()).contains("ready") {}
    socket.send(frame(Channel::Resize, br#"{"rows": 33, "cols": 44}"#));
    socket.send(frame(Channel::Signal, b"INT"));
    let (frames, _, _) = socket.rest();
    let output = channel(&frames, Channel::Stdout);
    assert!(String::from_utf8_lossy(&output).contains("33 44"), "{frames:?}");
    let exit: Value = serde_json::from_slice(&channel(&frames, Channel::Exit)).unwrap();
    assert_eq!(exit["code"], 5);
}

#[test]
fn a_process_outlives_its_client() {
    let daemon = Daemon::with_image();
    let script = "read line; echo $line > /line; sleep 1000";
    let exec = instance(&daemon, "c", json!(["/bin/sh", "-c", script]), false);
    let mut socket = framed(&daemon, &exec);
    socket.send(frame(Channel::Stdin, b"hello\n"));
    drop(socket);
    let check = json!({"container_id": "c", "cmd": ["/bin/sh", "-c", "until [ -s /line ]; do sleep 0.1; done; cat /line"]});
    let exec = call(&daemon, "POST /exec/create", EXACT, &check).json()["id"].clone();
    let (frames, _, _) = framed(&daemon, &exec).rest();
    assert_eq!(channel(&frames, Channel::Stdout), b"hello\n");
    let exit: Value = serde_json::from_slice(&channel(&frames, Channel::Exit)).unwrap();
    assert_eq!(exit, json!({"code": 0, "container_ended": false}));
}

#[test]
fn a_failed_start_is_told_in_the_clients_form() {
    let daemon = Daemon::with_image();
    for (cmd, code) in [("/bin/nosuch", 127), ("/etc/passwd", 126)] {
        let exec = instance(&daemon, &format!("c{code}"), json!([cmd]), false);
        let mut socket = attach(&daemon, &exec, Some(SUBPROTOCOL));
        let error: Value = serde_json::from_str(&socket.text()).unwrap();
        assert_eq!(error["code"], "invalid", "{error}");
        let (frames, close, reason) = socket.rest();
        let exit: Value = serde_json::from_slice(&channel(&frames, Channel::Exit)).unwrap();
        assert_eq!(
            (close, &exit["code"], &reason["msg_type"]),
            (1011, &json!(code), &json!("error"))
        );
    }
    let mut socket = attach(&daemon, &json!("0123456789ab"), Some(SUBPROTOCOL));
    let error: Value = serde_json::from_str(&socket.text()).unwrap();
    assert_eq!(error["code"], "not_found");
    let (frames, close, _) = socket.rest();
    assert_eq!((frames.len(), close), (0, 1011));
}

#[test]
fn nonsense_ends_the_connection_and_not_the_process() {
    let daemon = Daemon::with_image();
    for (n, nonsense) in [
        Message::binary(vec![]),
        Message::binary(vec![9, 1]),
        Message::binary(vec![Channel::Stdout as u8]),
        Message::text("x"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("c{n}");
        let exec = instance(&daemon, &name, json!(["/bin/sleep", "1000"]), false);
        let mut socket = framed(&daemon, &exec);
        socket.send(nonsense);
        let (_, code, _) = socket.rest();
        assert_eq!(code, 1002);
        let (_, inspect) = exact(&daemon, &format!("GET /containers/{name}/inspect"), Value::Null);
        assert_eq!(inspect["container"]["running"], true);
    }
}

#[test]
fn a_ping_is_answered_while_nothing_else_happens() {
    let daemon = Daemon::with_image();
    let exec = instance(&daemon, "c", json!(["/bin/sleep", "1000"]), false);
    let mut socket = attach(&daemon, &exec, None);
    socket.text();
    socket.send(Message::Ping(b"abcd".to_vec().into()));
    assert_eq!(socket.0.read().unwrap(), Message::Pong(b"abcd".to_vec().into()));
}
