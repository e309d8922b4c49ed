//! HTTP and websockets as they are on the wire, without a client in between.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kleene_tests::harness::{Daemon, patience};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

/// What Kleene's client sends with every request.
pub const KLEENE: &[(&str, &str)] = &[
    ("Accept", "*/*"),
    ("Accept-Encoding", "gzip, deflate"),
    ("Connection", "keep-alive"),
    ("User-Agent", "python-httpx/0.27.2"),
];

/// What our own client sends.
pub const ASYNC: &[(&str, &str)] = &[("Prefer", kleened_api::routes::PREFER_EXACT)];

/// The same, but that it waits for what takes long, as it may anywhere on a busy machine.
pub const EXACT: &[(&str, &str)] = &[("Prefer", "exact-status")];

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text());
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// A connection to a daemon.
pub struct Connection(pub UnixStream);

impl Connection {
    pub fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connect");
        stream.set_read_timeout(Some(patience())).expect("set a limit");
        Self(stream)
    }

    /// Sends a request's head, and its body as it is.
    pub fn send(&mut self, line: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.0.write_all(head.as_bytes()).expect("send the head");
        // The daemon may answer before it has read everything.
        let _ = self.0.write_all(body);
    }

    /// Reads one answer.
    pub fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = self.bytes(1).unwrap_or_else(|| panic!("the answer broke off: {head:?}"));
            head.extend(byte);
        }
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut answer =
            Answer { status: status.parse().expect("a status"), headers, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a length");
            answer.body = self.bytes(length).expect("the whole body");
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        }
        answer
    }

    /// The next chunk of a chunked body; `None` after the last.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.bytes(1).expect("the body broke off"));
        }
        let size = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        let mut chunk = self.bytes(size + 2).expect("a whole chunk");
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).ok().map(|()| bytes)
    }
}

/// One request on a connection of its own.
pub fn ask(daemon: &Daemon, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut connection = Connection::new(&daemon.socket());
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    if !body.is_empty() || line.starts_with("POST") {
        headers.push(("Content-Length", &length));
    }
    connection.send(line, &headers, body);
    connection.answer()
}

/// One request with a body of JSON, or with none.
pub fn call(daemon: &Daemon, line: &str, manner: &[(&str, &str)], body: &Value) -> Answer {
    if body.is_null() {
        return ask(daemon, line, manner, b"");
    }
    let headers = [manner, &[("Content-Type", "application/json")]].concat();
    ask(daemon, line, &headers, body.to_string().as_bytes())
}

/// As Kleene's client: the status and the JSON, in which ids and times are replaced by words.
#[track_caller]
pub fn kleene(daemon: &Daemon, line: &str, body: Value) -> (u16, Value) {
    let answer = call(daemon, line, KLEENE, &body);
    (answer.status, plain(answer.json()))
}

/// As our own client, which waits.
#[track_caller]
pub fn exact(daemon: &Daemon, line: &str, body: Value) -> (u16, Value) {
    let answer = call(daemon, line, EXACT, &body);
    (answer.status, plain(answer.json()))
}

/// Returns when the condition holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + patience();
    while !condition() {
        assert!(Instant::now() < limit, "{what} does not come");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The JSON with `<id>`, `<time>` and `<jid>` in place of what is different each time.
pub fn plain(value: Value) -> Value {
    match value {
        Value::String(text) if text.parse::<kleened_api::Id>().is_ok() => json!("<id>"),
        Value::String(text) if text.parse::<kleened_api::Timestamp>().is_ok() => json!("<time>"),
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            let plain = |(name, value): (String, Value)| match value {
                Value::Number(_) if name == "jid" => (name, json!("<jid>")),
                value => (name, plain(value)),
            };
            Value::Object(fields.into_iter().map(plain).collect())
        }
        other => other,
    }
}

/// A websocket.
pub struct Socket(pub WebSocket<UnixStream>);

impl Socket {
    /// Connects, and offers that protocol.
    pub fn open(daemon: &Daemon, path: &str, protocol: Option<&str>) -> Self {
        let stream = UnixStream::connect(daemon.socket()).expect("connect");
        stream.set_read_timeout(Some(patience())).expect("set a limit");
        let mut request = format!("ws://localhost{path}").into_client_request().expect("a request");
        let headers = request.headers_mut();
        if let Some(protocol) = protocol {
            headers.insert("Sec-WebSocket-Protocol", protocol.parse().expect("a protocol"));
        }
        let extension = "permessage-deflate; client_max_window_bits";
        headers.insert("Sec-WebSocket-Extensions", extension.parse().expect("an extension"));
        let (socket, answer) = tungstenite::client(request, stream).expect("an upgrade");
        assert!(!answer.headers().contains_key("Sec-WebSocket-Extensions"), "{answer:?}");
        Self(socket)
    }

    pub fn send(&mut self, message: impl Into<Message>) {
        self.0.send(message.into()).expect("send");
    }

    /// The next frame with content.
    #[track_caller]
    pub fn next(&mut self) -> Message {
        loop {
            match self.0.read().expect("a frame") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next text frame.
    #[track_caller]
    pub fn text(&mut self) -> String {
        match self.next() {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("{other:?} is no text"),
        }
    }

    /// The frames up to the close frame, and that: its code and its reason, which is JSON.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<Message>, u16, Value) {
        let mut messages = Vec::new();
        loop {
            match self.next() {
                Message::Close(Some(CloseFrame { code, reason })) => {
                    let reason = serde_json::from_str(&reason).expect("the reason is JSON");
                    // The connection ends soon after.
                    while self.0.read().is_ok() {}
                    return (messages, code.into(), reason);
                }
                Message::Close(None) => panic!("closed without a reason after {messages:?}"),
                message => messages.push(message),
            }
        }
    }
}
