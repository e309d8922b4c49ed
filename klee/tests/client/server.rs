//! A daemon that answers as a test wants, and remembers what it was asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is to happen with a request.
pub(crate) enum Reply {
    /// An answer.
    Json(u16, Value),
    /// An answer of another media type.
    Raw(u16, &'static str, Vec<u8>),
    /// An answer that ends before its announced length.
    Cut(Vec<u8>),
    /// No answer: the connection closes.
    Drop,
    /// No answer, and the connection stays until klee closes it.
    Never,
    /// The connection becomes a websocket.
    WebSocket(Box<dyn FnOnce(WebSocket<UnixStream>) + Send>),
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A daemon on a socket of its own, which is gone when this is dropped.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let log = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (handler, log) = (handler.clone(), log.clone());
                thread::spawn(move || {
                    // A client may hang up whenever it likes.
                    let _ = serve(stream.unwrap(), &*handler, &log);
                });
            }
        });
        Self { folder, requests }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// `klee` for this daemon, with nothing of the test's environment.
    pub(crate) fn klee<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = klee(args);
        command.env("KLEE_HOST", self.socket());
        command
    }

    /// The same, run to its end.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Run {
        run(&mut self.klee(args), b"")
    }
}

/// The workspace's folder, or where `KLEENE_SOURCE` says that its files are.
pub(crate) fn source() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..").into();
    std::env::var_os("KLEENE_SOURCE").unwrap_or_else(built).into()
}

pub(crate) fn klee<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let built = || env!("CARGO_BIN_EXE_klee").into();
    let klee =
        std::env::var_os("KLEENE_BIN").map_or_else(built, |bin| Path::new(&bin).join("klee"));
    let mut command = Command::new(klee);
    command.args(args).env_clear().env("KLEE_PROJECT", "default");
    command
}

/// How a run of `klee` went.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(command: &mut Command, input: &[u8]) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        // It need not be read to its end.
        let _ = stdin.write_all(&input);
    });
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Run {
        status: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

fn serve(stream: UnixStream, handler: &Handler, log: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let Some(request) = read_request(&mut reader)? else { return Ok(()) };
        log.lock().unwrap().push(request.clone());
        match handler(&request) {
            Reply::Json(status, value) => {
                respond(&mut stream, status, "application/json", value.to_string().as_bytes())?;
            }
            Reply::Raw(status, kind, body) => respond(&mut stream, status, kind, &body)?,
            Reply::Cut(body) => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len() + 1)?;
                stream.write_all(&body)?;
                return stream.shutdown(Shutdown::Both);
            }
            Reply::Drop => return stream.shutdown(Shutdown::Both),
            Reply::Never => return reader.read_to_end(&mut Vec::new()).map(drop),
            Reply::WebSocket(talk) => {
                let key = request.header("sec-websocket-key").unwrap_or_default();
                write!(
                    stream,
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                     upgrade: websocket\r\nsec-websocket-accept: {}\r\n",
                    derive_accept_key(key.as_bytes())
                )?;
                if let Some(protocol) = request.header("sec-websocket-protocol") {
                    write!(stream, "sec-websocket-protocol: {protocol}\r\n")?;
                }
                stream.write_all(b"\r\n")?;
                talk(WebSocket::from_raw_socket(stream, Role::Server, None));
                return Ok(());
            }
        }
    }
}

fn respond(stream: &mut UnixStream, status: u16, kind: &str, body: &[u8]) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((key, value)) => headers.push((key.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length") {
        let length = length.parse().unwrap();
        reader.take(length).read_to_end(&mut request.body)?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim_end(), 16)
                .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            reader.take(size).read_to_end(&mut request.body)?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(Some(request))
}
