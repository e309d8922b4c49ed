//! Archives from elsewhere, read as they come: from a server, or from a file of this host.
//!
//! A server is spoken to on a thread of its own, so that whoever reads can break off at any moment,
//! also where the server says nothing. What comes is never kept beside the tree that is made of it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Error as Http};

/// The list of sums beside the archives of a release of FreeBSD.
pub const MANIFEST: &str = "MANIFEST";

/// The longest list that is read.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// How long a server may take to be found and reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server may send nothing.
const IDLE: Duration = Duration::from_secs(60);

/// How often a reader that waits looks whether it is to go on.
const LOOK: Duration = Duration::from_millis(100);

/// How large a piece is, in bytes, and how many are under way.
const PIECE: usize = 64 << 10;
const PIECES: usize = 16;

/// What fetching can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Where it should come from makes no sense.
    #[error("'{}' {reason}", .given.escape_debug())]
    Source {
        /// As it was given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such file.
    #[error("there is no {0}")]
    Missing(String),
    /// It could not be fetched, or not to its end.
    #[error("cannot fetch {from}")]
    Failed {
        /// What.
        from: String,
        /// Why not.
        source: io::Error,
    },
    /// What came is not what should have come.
    #[error("{from} is damaged or was changed: its SHA256 is {found}, and should be {wanted}")]
    Sum {
        /// What came.
        from: String,
        /// Its sum.
        found: Sum,
        /// The right one.
        wanted: Sum,
    },
}

/// Where an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On this host.
    File(PathBuf),
    /// On a server.
    Http(Uri),
}

impl FromStr for Source {
    type Err = Error;

    /// Reads `http://…`, `https://…`, `file:///…` or an absolute path.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::Source { given: text.to_owned(), reason };
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("http://") || lower.starts_with("https://") {
            let uri: Uri = text.parse().map_err(|_| refuse("is no URL"))?;
            if uri.host().is_none_or(str::is_empty) {
                return Err(refuse("names no server"));
            }
            if uri.path().ends_with('/') {
                return Err(refuse("names no file: write the URL of the archive"));
            }
            return Ok(Self::Http(uri));
        }
        let path = if lower.starts_with("file:") {
            let rest = text.get("file:".len()..).unwrap_or_default();
            let rest = rest.strip_prefix("//localhost").unwrap_or(rest);
            decode(rest.strip_prefix("//").unwrap_or(rest))
                .ok_or_else(|| refuse("is no URL of a file"))?
        } else {
            text.to_owned()
        };
        if !path.starts_with('/') {
            let reason = "is none of http://…, https://…, file:///… and an absolute path on the \
                          daemon's host";
            return Err(refuse(reason));
        }
        if path.ends_with('/') || path.contains('\0') {
            return Err(refuse("names no file"));
        }
        Ok(Self::File(path.into()))
    }
}

/// The text with every `%XX` as the byte that it stands for.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Source {
    /// Without a name and password that are in the URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Http(uri) => {
                let authority = uri.authority().map_or("", |authority| authority.as_str());
                let server = authority.rsplit('@').next().unwrap_or(authority);
                write!(f, "{}://{server}{}", uri.scheme_str().unwrap_or_default(), uri.path())
            }
        }
    }
}

impl Source {
    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        let path = match self {
            Self::File(path) => path.to_str().unwrap_or_default(),
            Self::Http(uri) => uri.path(),
        };
        path.rsplit('/').next().unwrap_or(path)
    }

    /// The file of that name in the same directory.
    ///
    /// # Errors
    ///
    /// [`Error::Source`]: never for a plain name.
    pub fn beside(&self, name: &str) -> Result<Self, Error> {
        match self {
            Self::File(path) => Ok(Self::File(path.with_file_name(name))),
            Self::Http(uri) => {
                let path = uri.path();
                let directory = path.rfind('/').and_then(|slash| path.get(..=slash));
                let mut parts = uri.clone().into_parts();
                parts.path_and_query = format!("{}{name}", directory.unwrap_or("/")).parse().ok();
                let beside = Uri::from_parts(parts).map(Self::Http);
                beside.map_err(|_| Error::Source {
                    given: self.to_string(),
                    reason: "is no URL of a file",
                })
            }
        }
    }

    /// The file, to be read as it comes. Reading fails with the kind `ConnectionAborted` once
    /// `cancelled` says so, and where the server breaks off.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Failed`].
    pub fn open<'a>(&self, cancelled: &'a dyn Fn() -> bool) -> Result<Fetched<'a>, Error> {
        let failed = |source| Error::Failed { from: self.to_string(), source };
        match self {
            Self::File(path) => match open_file(path) {
                Ok((file, size)) => {
                    let input = Input::File(file);
                    Ok(Fetched { input, cancelled, size: Some(size) })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(Error::Missing(self.to_string()))
                }
                Err(error) => Err(failed(error)),
            },
            Self::Http(uri) => {
                let (sender, pieces) = sync_channel(PIECES);
                let uri = uri.clone();
                let worker = move || download(&uri, &sender);
                thread::Builder::new().name("fetch".into()).spawn(worker).map_err(failed)?;
                let mut stream = Stream { pieces, current: Vec::new(), at: 0 };
                match stream.next(cancelled).map_err(failed)? {
                    Some(Piece::Begin(size)) => {
                        Ok(Fetched { input: Input::Stream(stream), cancelled, size })
                    }
                    Some(Piece::Missing) => Err(Error::Missing(self.to_string())),
                    _ => Err(failed(broken("the server did not answer"))),
                }
            }
        }
    }

    /// The sum that the MANIFEST beside the file says it has; `None` where there is no such list.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`], also where the list does not name the file.
    pub fn listed_sum(&self, cancelled: &dyn Fn() -> bool) -> Result<Option<Sum>, Error> {
        let list = self.beside(MANIFEST)?;
        let fetched = match list.open(cancelled) {
            Err(Error::Missing(_)) => return Ok(None),
            other => other?,
        };
        let failed = |source| Error::Failed { from: list.to_string(), source };
        let mut bytes = Vec::new();
        fetched.take(MANIFEST_LIMIT).read_to_end(&mut bytes).map_err(failed)?;
        let found = find_sum(&String::from_utf8_lossy(&bytes), self.name());
        found.map(Some).ok_or_else(|| {
            let text = format!("it has no SHA256 of {}", self.name().escape_debug());
            failed(io::Error::new(io::ErrorKind::InvalidData, text))
        })
    }
}

/// A file, which is no pipe or the like that one could wait for.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    Ok((File::open(path)?, metadata.len()))
}

/// The sum of the archive, from lines of its name, its SHA256 and more, separated by tabs.
fn find_sum(manifest: &str, name: &str) -> Option<Sum> {
    let mut lines = manifest.lines().map(|line| line.split('\t'));
    lines.find_map(|mut fields| match (fields.next(), fields.next()) {
        (Some(first), Some(sum)) if first.trim() == name => sum.trim().parse().ok(),
        _ => None,
    })
}

/// A SHA256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum([u8; 32]);

impl FromStr for Sum {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let digits = text.as_bytes();
        let mut sum = [0; 32];
        if digits.len() != 64 {
            return Err("a SHA256 has 64 hexadecimal digits");
        }
        for (byte, pair) in sum.iter_mut().zip(digits.chunks(2)) {
            let digit = |at: usize| {
                let digit = pair.get(at).and_then(|digit| char::from(*digit).to_digit(16));
                digit.and_then(|digit| u8::try_from(digit).ok())
            };
            let digits = digit(0).zip(digit(1));
            let (high, low) = digits.ok_or("a SHA256 has hexadecimal digits alone")?;
            *byte = high << 4 | low;
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is read passes through, and is summed up.
pub struct Summed<R> {
    input: R,
    context: Context,
}

impl<R> fmt::Debug for Summed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Summed").finish_non_exhaustive()
    }
}

impl<R: Read> Summed<R> {
    /// Nothing is read yet.
    pub fn new(input: R) -> Self {
        Self { input, context: Context::new(&SHA256) }
    }

    /// The sum of all that there is, what nobody has read yet included.
    ///
    /// # Errors
    ///
    /// The input's.
    pub fn finish(mut self) -> io::Result<Sum> {
        io::copy(&mut self, &mut io::sink())?;
        let mut sum = [0; 32];
        sum.iter_mut().zip(self.context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Ok(Sum(sum))
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.context.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// A file that is read as it comes.
pub struct Fetched<'a> {
    input: Input,
    cancelled: &'a dyn Fn() -> bool,
    /// How long it is, in bytes, where that is known.
    pub size: Option<u64>,
}

impl fmt::Debug for Fetched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("size", &self.size).finish_non_exhaustive()
    }
}

enum Input {
    File(File),
    Stream(Stream),
}

impl Read for Fetched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.input {
            _ if (self.cancelled)() => Err(cancelled()),
            Input::File(file) => file.read(buffer),
            Input::Stream(stream) => stream.read(buffer, self.cancelled),
        }
    }
}

/// Not of the kind `Interrupted`, after which readers read again.
fn cancelled() -> io::Error {
    broken("it was cancelled")
}

fn broken(why: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why.to_string())
}

/// What the thread that speaks to the server says.
enum Piece {
    /// It begins, and is that long.
    Begin(Option<u64>),
    /// There is none.
    Missing,
    Data(Vec<u8>),
    End,
    Failed(io::Error),
}

struct Stream {
    pieces: Receiver<Piece>,
    current: Vec<u8>,
    at: usize,
}

impl Stream {
    /// The next piece; `None` after the last.
    fn next(&mut self, is_cancelled: &dyn Fn() -> bool) -> io::Result<Option<Piece>> {
        loop {
            return match self.pieces.recv_timeout(LOOK) {
                Ok(Piece::Failed(error)) => Err(error),
                Ok(Piece::End) => Ok(None),
                Ok(piece) => Ok(Some(piece)),
                Err(RecvTimeoutError::Timeout) if is_cancelled() => Err(cancelled()),
                Err(RecvTimeoutError::Timeout) => continue,
                // What was said last was its end.
                Err(RecvTimeoutError::Disconnected) => Ok(None),
            };
        }
    }

    fn read(&mut self, buffer: &mut [u8], cancelled: &dyn Fn() -> bool) -> io::Result<usize> {
        while self.at >= self.current.len() {
            match self.next(cancelled)? {
                Some(Piece::Data(bytes)) => (self.current, self.at) = (bytes, 0),
                _ => return Ok(0),
            }
        }
        let rest = self.current.get(self.at..).unwrap_or_default();
        let taken = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..taken), rest.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.at += taken;
        Ok(taken)
    }
}

/// Sends on what the server sends, until that ends or nobody wants it any more.
fn download(uri: &Uri, pieces: &SyncSender<Piece>) {
    let end = match stream(uri, pieces) {
        Ok(()) => Piece::End,
        Err(Http::StatusCode(404 | 410)) => Piece::Missing,
        Err(error) => Piece::Failed(explain(error)),
    };
    // Nobody may be left.
    let _ = pieces.send(end);
}

fn stream(uri: &Uri, pieces: &SyncSender<Piece>) -> Result<(), Http> {
    let config = Agent::config_builder()
        .timeout_resolve(Some(PATIENCE))
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(IDLE))
        // What was asked for by https is not taken over http from elsewhere.
        .https_only(uri.scheme_str() == Some("https"))
        .tls_config(TlsConfig::builder().root_certs(trusted()).build())
        .accept_encoding("identity")
        .user_agent(concat!("kleened/", env!("CARGO_PKG_VERSION")))
        .max_idle_connections(0)
        .build();
    let response = config.new_agent().get(uri.clone()).call()?;
    let body = response.into_body();
    let size = body.content_length();
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let mut wanted = pieces.send(Piece::Begin(size)).is_ok();
    while wanted {
        let mut bytes = vec![0; PIECE];
        match reader.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => bytes.truncate(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        }
        wanted = pieces.send(Piece::Data(bytes)).is_ok();
    }
    Ok(())
}

/// Where hosts keep the certificates that they trust, in one file: FreeBSD, its packages, Debian.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/cert.pem", "/usr/local/etc/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"];

/// The certificates that the host trusts; Mozilla's, as of when this was built, where it has no such file.
fn trusted() -> RootCerts {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = named.into_iter().chain(CERTIFICATES.map(PathBuf::from));
    for file in files {
        let Ok(pem) = std::fs::read(&file) else { continue };
        let items = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = items.collect();
        if !certificates.is_empty() {
            return certificates.into();
        }
    }
    RootCerts::WebPki
}

/// What the client's error means, for a person.
fn explain(error: Http) -> io::Error {
    match error {
        Http::StatusCode(code) => {
            let text = format!("the server answered with status {code}");
            match code {
                400..=499 => io::Error::new(io::ErrorKind::InvalidInput, text),
                _ => broken(text),
            }
        }
        Http::Timeout(what) => broken(format_args!("the server took too long ({what})")),
        Http::HostNotFound => broken("there is no server of that name"),
        Http::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            broken("the server broke off")
        }
        Http::Io(error) => broken(error),
        error => broken(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, Error> {
        text.parse()
    }

    #[test]
    fn sources() {
        for (text, shown, name, manifest) in [
            ("/tmp/base.txz", "/tmp/base.txz", "base.txz", "/tmp/MANIFEST"),
            ("file:///tmp/a%20b.txz", "/tmp/a b.txz", "a b.txz", "/tmp/MANIFEST"),
            ("FILE://localhost/b.txz", "/b.txz", "b.txz", "/MANIFEST"),
            ("http://h/b.txz?x=1", "http://h/b.txz", "b.txz", "http://h/MANIFEST"),
            ("https://u:p@h:8/d/b.txz", "https://h:8/d/b.txz", "b.txz", "https://h:8/d/MANIFEST"),
        ] {
            let found = source(text).unwrap();
            assert_eq!((found.to_string().as_str(), found.name()), (shown, name), "{text}");
            assert_eq!(found.beside(MANIFEST).unwrap().to_string(), manifest, "{text}");
        }
        for text in [
            "",
            "base.txz",
            "./base.txz",
            "ftp://h/base.txz",
            "http://",
            "http:///base.txz",
            "https://h/",
            "file://host/base.txz",
            "file:///",
            "/tmp/",
            "file:///a%zz",
            "file:///a%+1",
            "file:///a%2",
            "file:///a%00b",
            "http://h/a b",
        ] {
            assert!(matches!(source(text), Err(Error::Source { .. })), "{text}");
        }
    }

    #[test]
    fn sums_are_found() {
        let sum = "0123456789abcdefABCDEF0123456789abcdefabcdef0123456789abcdef0123";
        let list = format!(
            "kernel.txz\tff\t3\nbase-dbg.txz\t{0}\nbase.txz\t{sum}\t29\tbase\t\"Base\"\ton\n",
            sum.replace('0', "1")
        );
        let found = find_sum(&list, "base.txz").unwrap();
        assert_eq!(found.to_string(), sum.to_ascii_lowercase());
        assert_eq!(find_sum(&list, "kernel.txz"), None);
        assert_eq!(find_sum(&list, "ports.txz"), None);
        for text in ["", "00", &"g".repeat(64), &format!("{}é", "a".repeat(62)), &"é".repeat(32)]
        {
            assert!(text.parse::<Sum>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_not_read_is_summed_up_too() {
        let mut summed = Summed::new(&b"abc"[..]);
        assert_eq!(summed.read(&mut [0]).unwrap(), 1);
        assert_eq!(
            summed.finish().unwrap().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
