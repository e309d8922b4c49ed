//! Terminals: raw while a process has them, and as they were before afterwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use kleened_api::stream::Channel;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use serde_json::{Value, json};

use crate::processes::{daemon, exit, receive, send, signal, starting};
use crate::server::Server;

/// A terminal of 30 lines and 100 columns.
struct Terminal {
    keyboard: File,
    screen: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let terminal = Self { keyboard: keyboard.into(), screen };
        terminal.resize(30, 100);
        terminal
    }

    fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.screen, size).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.screen).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn stdio(&self) -> Stdio {
        self.screen.as_fd().try_clone_to_owned().unwrap().into()
    }

    fn klee(&self, server: &Server, args: &[&str]) -> Child {
        let mut command = server.klee(args);
        command.stdin(self.stdio()).stdout(self.stdio()).stderr(self.stdio()).spawn().unwrap()
    }

    /// Reads from the screen until the text has appeared.
    fn await_text(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut buffer = [0; 1000];
            let count = self.keyboard.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8(seen).unwrap()
    }
}

/// A daemon whose process writes `ready`, ends when it reads `q`, and is lost when it reads `x`.
fn shell() -> (Server, Receiver<(Channel, Vec<u8>)>) {
    let (sender, receiver): (Sender<_>, _) = channel();
    let sender = Mutex::new(sender);
    let server = daemon(move |_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"ready\r\n");
        while let Some(frame) = receive(socket) {
            sender.lock().unwrap().send(frame.clone()).unwrap();
            match frame {
                (Channel::Stdin, key) if key == b"q" => return exit(socket, 3, false),
                (Channel::Stdin, key) if key == b"x" => return,
                _ => {}
            }
        }
    });
    (server, receiver)
}

fn size(received: &Receiver<(Channel, Vec<u8>)>) -> Value {
    let (channel, size) = received.recv().unwrap();
    assert_eq!(channel, Channel::Resize);
    serde_json::from_slice(&size).unwrap()
}

#[test]
fn keys_and_sizes_go_to_the_process() {
    let (server, received) = shell();
    let mut terminal = Terminal::new();
    let mut child = terminal.klee(&server, &["exec", "-it", "web", "sh"]);
    terminal.await_text("ready\r\n");
    assert_eq!(size(&received), json!({"rows": 30, "cols": 100}));
    terminal.resize(50, 132);
    signal(&child, Signal::WINCH);
    assert_eq!(size(&received), json!({"rows": 50, "cols": 132}));
    // ^C and ^Z are keys like others.
    for key in [b"\x03", b"\x1a", b"\r", b"a"] {
        terminal.keyboard.write_all(key).unwrap();
        assert_eq!(received.recv().unwrap(), (Channel::Stdin, key.to_vec()));
    }
    assert!(terminal.is_raw());
    terminal.keyboard.write_all(b"q").unwrap();
    // A line end of klee's own works again.
    let text = terminal.await_text("exit-code 3");
    assert!(text.contains("\r\n5e27c191b3d7 has exited"), "{text:?}");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_restored_however_klee_ends() {
    let (server, received) = shell();
    let mut terminal = Terminal::new();
    for way in ["lost", "terminated", "reader gone"] {
        let mut command = server.klee(&["exec", "-itq", "web", "sh"]);
        command.stdin(terminal.stdio()).stdout(Stdio::piped()).stderr(terminal.stdio());
        let mut child = command.spawn().unwrap();
        let mut ready = [0; 7];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut ready).unwrap();
        // The size, which comes from the other ends of klee.
        received.recv().unwrap();
        // klee takes a key only when the terminal is raw.
        while !terminal.is_raw() {
            std::thread::yield_now();
        }
        let expected = match way {
            "lost" => {
                terminal.keyboard.write_all(b"x").unwrap();
                125
            }
            "terminated" => {
                for _ in 0..2 {
                    signal(&child, Signal::TERM);
                    assert_eq!(received.recv().unwrap().0, Channel::Signal);
                }
                signal(&child, Signal::TERM);
                143
            }
            _ => {
                drop(stdout);
                terminal.keyboard.write_all(b"q").unwrap();
                3
            }
        };
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{way}");
        assert!(!terminal.is_raw(), "{way}");
        while received.try_recv().is_ok() {}
    }
}

#[test]
fn a_terminal_is_left_alone_without_interactive_and_tty() {
    let (server, received) = shell();
    for args in [&["exec", "-i", "web"][..], &["exec", "-t", "web"]] {
        let mut terminal = Terminal::new();
        let mut child = terminal.klee(&server, args);
        terminal.await_text("ready");
        assert!(!terminal.is_raw());
        if args[1] == "-t" {
            received.recv().unwrap();
        }
        for _ in 0..2 {
            signal(&child, Signal::INT);
            assert_eq!(received.recv().unwrap(), (Channel::Signal, b"INT".to_vec()));
        }
        signal(&child, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn what_a_terminal_would_act_on_is_escaped() {
    let daemon = crate::daemon::start();
    let mut terminal = Terminal::new();
    // What is written shall come as it is.
    let mut modes = tcgetattr(&terminal.screen).unwrap();
    modes.make_raw();
    tcsetattr(&terminal.screen, OptionalActions::Now, &modes).unwrap();
    for (args, expected) in [
        (&["lsv", "-q"][..], r"evil\u{1b}[2J\u{a}\u{202e}lov"),
        (&["lsv", "--format", "{{.Name}} end"], r"evil\u{1b}[2J\u{a}\u{202e}lov end"),
        (&["lsv", "--format", "{{json .Name}} end"], r#""evil\u001b[2J\n\u202elov" end"#),
        (&["lsv", "-o", "json"], r#""evil\u001b[2J\n\u202elov""#),
    ] {
        let mut child = terminal.klee(&daemon, args);
        let text = terminal.await_text(expected);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        child.wait().unwrap();
    }
    let mut child = terminal.klee(&daemon, &["image", "export", "FreeBSD"]);
    terminal.await_text("an archive is not for a terminal");
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let mut child = terminal.klee(&daemon, &["image", "import", "-", "x"]);
    terminal.await_text("an archive can't be typed");
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn a_slow_change_shows_how_far_it_is() {
    let server = Server::start(|request| {
        let operation = json!({"id": "0cec95145d92", "what": "create container web",
            "started": "2024-02-29T14:54:05.317207Z",
            "status": if request.path.ends_with("?wait=1") { "succeeded" } else { "running" },
            "progress": {"files": 1234, "bytes": 5 << 20}, "reply": {"id": "b595d12c5dc7"}});
        crate::server::Reply::Json(if request.method == "POST" { 202 } else { 200 }, operation)
    });
    let mut terminal = Terminal::new();
    let mut command = server.klee(&["create", "FreeBSD"]);
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(terminal.stdio());
    let child = command.spawn().unwrap();
    terminal.await_text("create container web: 1,234 files, 5.00 MiB");
    let done = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(done.stdout).unwrap(), "b595d12c5dc7\n");
}
