//! A server of files, as good or as bad as a test wants it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What is at a path.
#[derive(Debug, Clone)]
pub enum Page {
    /// This.
    Whole(Vec<u8>),
    /// This, and then the connection is closed although more was promised.
    Cut(Vec<u8>),
    /// This, and then nothing more, until the client has gone.
    Stalls(Vec<u8>),
    /// Another place.
    Moved(String),
    /// An answer with that status.
    Status(u16),
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<String, Page>,
    asked: Vec<String>,
}

/// A server on the loopback interface. It answers until the test ends.
#[derive(Debug, Clone)]
pub struct Site {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Site {
    /// A server with these pages.
    ///
    /// # Panics
    ///
    /// When there is no port.
    #[must_use]
    pub fn new<const N: usize>(pages: [(&str, Page); N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let pages = pages.into_iter().map(|(path, page)| (path.to_owned(), page)).collect();
        let state = Arc::new(Mutex::new(State { pages, ..State::default() }));
        let site = Self { address, state };
        let server = site.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = server.clone();
                thread::spawn(move || site.answer(stream));
            }
        });
        site
    }

    /// The URL of a path, which begins with a slash.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked for, in that order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("the connection"));
        let (mut method, mut path) = request(&mut reader);
        self.lock().asked.push(path.clone());
        if method == "CONNECT" {
            // As a proxy, which is every server itself.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            (method, path) = request(&mut reader);
            self.lock().asked.push(path.clone());
        }
        assert!(method == "GET" || path.is_empty(), "{method} {path}");
        let page = self.lock().pages.get(&path).cloned();
        let head = |status: &str, length: usize| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n")
        };
        let (head, body) = match page.clone() {
            Some(Page::Whole(body)) => (head("200 OK", body.len()), body),
            Some(Page::Cut(body) | Page::Stalls(body)) => (head("200 OK", body.len() + 1), body),
            Some(Page::Moved(to)) => {
                (head("302 Found", 0) + &format!("Location: {to}\r\n"), vec![])
            }
            Some(Page::Status(status)) => (head(&format!("{status} So"), 0), vec![]),
            None => (head("404 Not Found", 0), vec![]),
        };
        // The client may have seen enough.
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        let _ = stream.write_all(&body);
        if let Some(Page::Stalls(_)) = page {
            let _ = reader.read_to_end(&mut Vec::new());
        }
    }
}

/// The method and the path of a request.
fn request(reader: &mut impl BufRead) -> (String, String) {
    let (mut first, mut line) = (String::new(), String::new());
    let _ = reader.read_line(&mut first);
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let mut words = first.split(' ').map(str::to_owned);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}
