//! Processes: their input, output, signals, terminal and status.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use kleened_api::exec::ExecStart;
use kleened_api::stream::Channel;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocket};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::daemon;
use crate::server::{Reply, Run, Server, run};

pub(crate) type Socket = WebSocket<UnixStream>;

/// A daemon whose processes are `process`, which gets what the client asked for.
pub(crate) fn daemon(process: impl Fn(ExecStart, &mut Socket) + Send + Sync + 'static) -> Server {
    let process = Arc::new(process);
    Server::start(move |request| match request.path.as_str() {
        "/exec/start" => {
            let process = process.clone();
            Reply::WebSocket(Box::new(move |mut socket| {
                let Ok(Message::Text(start)) = socket.read() else { panic!("no text first") };
                process(serde_json::from_str(&start).unwrap(), &mut socket);
                let _ = socket.flush();
            }))
        }
        _ => daemon::answer(request),
    })
}

pub(crate) fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::text(message.to_string())).unwrap();
}

pub(crate) fn starting(socket: &mut Socket) {
    say(socket, &json!({"msg_type": "starting", "message": "", "data": ""}));
}

pub(crate) fn frame(channel: Channel, payload: &[u8]) -> Message {
    Message::binary([&[channel as u8], payload].concat())
}

pub(crate) fn send(socket: &mut Socket, channel: Channel, payload: &[u8]) {
    socket.send(frame(channel, payload)).unwrap();
}

pub(crate) fn exit(socket: &mut Socket, code: i32, container_ended: bool) {
    let exit = json!({"code": code, "container_ended": container_ended});
    send(socket, Channel::Exit, exit.to_string().as_bytes());
    close(socket, CloseCode::Normal, "closing", "ended");
}

fn close(socket: &mut Socket, code: CloseCode, kind: &str, message: &str) {
    let reason = json!({"msg_type": kind, "message": message, "data": ""}).to_string();
    socket.close(Some(CloseFrame { code, reason: reason.into() })).unwrap();
    while socket.read().is_ok() {}
}

/// The next frame of the client; `None` when it has gone.
pub(crate) fn receive(socket: &mut Socket) -> Option<(Channel, Vec<u8>)> {
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => {
                let (channel, payload) = bytes.split_first().unwrap();
                return Some((Channel::try_from(*channel).unwrap(), payload.to_vec()));
            }
            Ok(Message::Close(_))
            | Err(Error::ConnectionClosed | Error::Io(_) | Error::Protocol(_)) => {
                return None;
            }
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn ends_with(code: i32) -> Server {
    daemon(move |_, socket| {
        starting(socket);
        exit(socket, code, true);
    })
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn output_is_the_process_s_alone() {
    let daemon = daemon(|_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"out ");
        send(socket, Channel::Stderr, b"err ");
        send(socket, Channel::Stdout, b"more\n");
        exit(socket, 7, true);
    });
    let done = daemon.run(&["run", "FreeBSD", "uname", "-a"]);
    assert_eq!((done.status, done.stdout.as_str()), (7, "out more\n"));
    assert_eq!(
        done.stderr,
        "b595d12c5dc7\ncreated execution instance 5e27c191b3d7\nerr \n\
         executable 5e27c191b3d7 and its container exited with exit-code 7\n"
    );
    let requests = daemon.requests();
    let bodies: Vec<Value> =
        requests.iter().filter_map(|request| serde_json::from_slice(&request.body).ok()).collect();
    assert_eq!(bodies[0]["cmd"], json!(["uname", "-a"]));
    assert_eq!(
        bodies[1],
        json!({"container_id": "b595d12c5dc7", "cmd": [], "user": "", "env": [], "tty": false,
               "stdin": false})
    );
    assert_eq!(requests[2].header("sec-websocket-protocol"), Some("v1.stream.kleene"));

    let done = daemon.run(&["run", "-q", "FreeBSD"]);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out more\n", "err "));
}

#[test]
fn exec_says_whether_the_container_lives_on() {
    let daemon = daemon(|start, socket| {
        assert!(start.attach && start.start_container);
        starting(socket);
        exit(socket, 0, false);
    });
    let done = daemon.run(&[
        "exec",
        "-e",
        "A=1",
        "-u",
        "ntpd",
        "--workdir",
        "/tmp",
        "-t",
        "web",
        "printenv",
        "-0",
    ]);
    assert_eq!((done.status, done.stdout.as_str()), (0, ""));
    assert_eq!(
        done.stderr,
        "created execution instance 5e27c191b3d7\n\n5e27c191b3d7 has exited with exit-code 0\n"
    );
    let body: Value = serde_json::from_slice(&daemon.requests()[0].body).unwrap();
    assert_eq!(
        body,
        json!({"container_id": "web", "cmd": ["printenv", "-0"], "user": "ntpd", "env": ["A=1"],
               "tty": true, "stdin": false, "workdir": "/tmp"})
    );
}

#[test]
fn detached_the_id_is_the_output() {
    let daemon = daemon(|start, socket| {
        assert!(!start.attach);
        close(socket, CloseCode::Away, "closing", "started");
    });
    let stderr = "created execution instance 5e27c191b3d7\n";
    for (args, stdout, stderr) in [
        (&["run", "-d", "FreeBSD"][..], "b595d12c5dc7\n", stderr),
        (&["run", "-dq", "FreeBSD"], "b595d12c5dc7\n", ""),
        (&["exec", "-d", "web", "true"], "5e27c191b3d7\n", stderr),
        (&["start", "-d", "web"], "web\n", stderr),
        (&["restart", "web"], "fa3f95145d92\n", stderr),
        (&["restart", "lucid_austin"], "5c9622d1b210\n", stderr),
    ] {
        let done = daemon.run(args);
        assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, stdout, stderr));
    }
    let done = daemon.run(&["start", "web", "db"]);
    assert_eq!(done.status, 2, "{done:?}");
}

#[test]
fn what_could_not_start_has_a_status_of_its_own() {
    let error = json!({"message": "cannot start nosuch", "code": "invalid",
                       "causes": ["no such program\u{1b}[2J"]});
    let refuse = |exit_code: Option<i32>| {
        let error = error.clone();
        daemon(move |_, socket| {
            say(socket, &error);
            if let Some(code) = exit_code {
                let exit = json!({"code": code, "container_ended": false}).to_string();
                send(socket, Channel::Exit, exit.as_bytes());
            }
            close(socket, CloseCode::Error, "error", "cannot start nosuch");
        })
    };
    for (code, status) in [(None, 125), (Some(126), 126), (Some(127), 127)] {
        let daemon = refuse(code);
        for args in [&["run", "--rm", "FreeBSD"][..], &["run", "--rm", "-d", "FreeBSD"]] {
            let Run { status: got, stderr, .. } = daemon.run(args);
            assert_eq!(got, status, "{stderr}");
            assert!(
                stderr.ends_with("klee: cannot start nosuch: no such program\\u{1b}[2J\n"),
                "{stderr}"
            );
            let last = daemon.requests().pop().unwrap();
            assert_eq!(
                (last.method.as_str(), last.path.as_str()),
                ("DELETE", "/containers/b595d12c5dc7")
            );
        }
        daemon.run(&["run", "FreeBSD"]);
        assert_eq!(daemon.requests().pop().unwrap().path, "/exec/start");
    }
}

#[test]
fn other_ways_not_to_start() {
    // What Kleene's daemon says.
    let kleene = daemon(|_, socket| {
        socket.send(Message::text("error: executable already started")).unwrap();
        close(socket, CloseCode::Error, "error", "error starting exec instance");
    });
    let silent = daemon(|_, _| {});
    let reason = daemon(|_, socket| close(socket, CloseCode::Error, "error", "only here"));
    let refused = Server::start(|request| match request.path.as_str() {
        "/exec/start" => Reply::Json(403, json!({"message": "not you", "code": "denied"})),
        _ => daemon::answer(request),
    });
    let other = Server::start(|request| match request.path.as_str() {
        "/exec/start" => Reply::Raw(101, "text/plain", Vec::new()),
        _ => daemon::answer(request),
    });
    for (daemon, text) in [
        (&other, "klee: kleened does not speak klee's protocol: "),
        (&kleene, "klee: executable already started\n"),
        (&silent, "klee: the connection to kleened ended: how the process ends is not known; "),
        (&reason, "klee: only here\n"),
        (&refused, "klee: not you\n"),
    ] {
        for args in [&["exec", "-q", "web"][..], &["start", "-qd", "web"]] {
            let done = daemon.run(args);
            assert_eq!(done.status, 125, "{done:?}");
            assert!(done.stderr.starts_with(text), "{done:?}");
        }
    }
    let done = kleene.run(&["run", "nosuch"]);
    assert_eq!((done.status, done.stderr.as_str()), (125, "klee: no such image: nosuch\n"));
    let done = kleene.run(&["exec", "zzz"]);
    assert_eq!((done.status, done.stderr.as_str()), (125, "klee: no such container: zzz\n"));
}

#[test]
fn a_lost_process_is_reported() {
    let lost = daemon(|_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"some");
    });
    let done = lost.run(&["run", "-q", "FreeBSD"]);
    assert_eq!((done.status, done.stdout.as_str()), (125, "some"));
    assert_eq!(
        done.stderr,
        "klee: the connection to kleened ended: how the process ends is not known; containers go on\n"
    );

    let stopping = daemon(|_, socket| {
        starting(socket);
        close(socket, CloseCode::Away, "closing", "the daemon is stopping, it goes on");
    });
    let done = stopping.run(&["run", "-q", "FreeBSD"]);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (125, "klee: the daemon is stopping, it goes on\n")
    );
}

#[test]
fn input_goes_through_whole_while_output_comes() {
    let daemon = daemon(|_, socket| {
        starting(socket);
        loop {
            match receive(socket) {
                Some((Channel::Stdin, bytes)) if bytes.is_empty() => break,
                Some((Channel::Stdin, bytes)) => send(socket, Channel::Stdout, &bytes),
                other => panic!("{other:?}"),
            }
        }
        exit(socket, 0, false);
    });
    // Every byte, and more than any buffer on the way holds.
    let input: Vec<u8> = (0..16_u32 << 20).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut command = daemon.klee(&["exec", "-iq", "web", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(output == input, "{} bytes of {}", output.len(), input.len());
}

#[test]
fn without_interactive_input_is_not_read() {
    let daemon = daemon(|_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"x");
        exit(socket, 0, false);
    });
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"for whoever comes next").unwrap();
    drop(writer);
    let mut left = reader.try_clone().unwrap();
    let status = daemon.klee(&["exec", "-q", "web"]).stdin(reader).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    let mut text = String::new();
    left.read_to_string(&mut text).unwrap();
    assert_eq!(text, "for whoever comes next");
}

/// A daemon with a process that never ends, and what it is sent.
fn endless() -> (Server, Receiver<(Channel, Vec<u8>)>) {
    let (sender, receiver): (Sender<_>, _) = channel();
    let sender = Mutex::new(sender);
    let server = daemon(move |_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"ready\n");
        while let Some(frame) = receive(socket) {
            sender.lock().unwrap().send(frame).unwrap();
        }
        sender.lock().unwrap().send((Channel::Exit, Vec::new())).unwrap();
    });
    (server, receiver)
}

fn await_ready(child: &mut Child) {
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
}

#[test]
fn signals_go_to_the_process_until_patience_ends() {
    let (server, received) = endless();
    for (wanted, number) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = server.klee(&["run", "-q", "FreeBSD"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        await_ready(&mut child);
        for (wanted, name) in [
            (Signal::HUP, "HUP"),
            (Signal::QUIT, "QUIT"),
            (Signal::USR1, "USR1"),
            (Signal::USR2, "USR2"),
        ] {
            signal(&child, wanted);
            assert_eq!(received.recv().unwrap(), (Channel::Signal, name.into()));
        }
        for _ in 0..2 {
            signal(&child, wanted);
            assert_eq!(received.recv().unwrap().0, Channel::Signal);
        }
        signal(&child, wanted);
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(number));
        assert_eq!(
            String::from_utf8(done.stderr).unwrap(),
            "klee: interrupted: the process goes on\n"
        );
        assert_eq!(received.recv().unwrap(), (Channel::Exit, Vec::new()));
    }
}

#[test]
fn a_reader_that_goes_away_ends_quietly() {
    let (sender, received) = channel();
    let sender = Mutex::new(sender);
    let server = daemon(move |_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"ready\n");
        // Until klee takes no more.
        let chunk = frame(Channel::Stdout, &[b'x'; 60_000]);
        while socket.send(chunk.clone()).is_ok() {}
        sender.lock().unwrap().send(receive(socket)).unwrap();
    });
    let mut command = server.klee(&["exec", "-q", "web", "yes"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    await_ready(&mut child);
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(141), &b""[..]));
    assert_eq!(received.recv().unwrap(), Some((Channel::Signal, b"PIPE".to_vec())));
}

#[test]
fn an_output_that_is_full_ends_the_process() {
    let (sender, received) = channel();
    let sender = Mutex::new(sender);
    let server = daemon(move |_, socket| {
        starting(socket);
        send(socket, Channel::Stdout, b"y\n");
        sender.lock().unwrap().send(receive(socket)).unwrap();
    });
    for words in [&["run", "--rm", "-q", "FreeBSD"][..], &["exec", "-q", "web"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let done = server.klee(words).stdin(Stdio::null()).stdout(full).output().unwrap();
        assert_eq!(done.status.code(), Some(125));
        let error = String::from_utf8(done.stderr).unwrap();
        assert!(error.starts_with("klee: cannot write the process's output: No space"), "{error}");
        assert!(error.ends_with(": the process gets SIGPIPE\n"), "{error}");
        assert_eq!(received.recv().unwrap(), Some((Channel::Signal, b"PIPE".to_vec())));
    }
}

#[test]
fn a_status_of_a_signal_is_kept() {
    assert_eq!(ends_with(137).run(&["run", "-q", "FreeBSD"]).status, 137);
    assert_eq!(ends_with(0).run(&["start", "-q", "web"]).status, 0);
}

#[test]
fn what_a_newer_daemon_sends_is_passed_over() {
    let daemon = daemon(|_, socket| {
        starting(socket);
        socket.send(Message::binary(vec![9, 9, 9])).unwrap();
        socket.send(Message::binary(Vec::new())).unwrap();
        socket.send(Message::Ping(vec![1].into())).unwrap();
        say(socket, &json!({"msg_type": "closing", "message": "soon", "data": ""}));
        send(socket, Channel::Stdout, b"x");
        exit(socket, 0, false);
    });
    let done = run(&mut daemon.klee(&["exec", "-q", "web"]), b"");
    assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, "x", ""));
}

#[test]
fn an_output_that_does_not_block_is_waited_for() {
    let daemon = daemon(|_, socket| {
        starting(socket);
        for _ in 0..40 {
            send(socket, Channel::Stdout, &[b'x'; 50_000]);
        }
        exit(socket, 0, false);
    });
    let (mut reader, writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut command = daemon.klee(&["exec", "-q", "web"]);
    let mut child = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    drop(command);
    // A part of what comes fills the pipe.
    while rustix::io::ioctl_fionread(&reader).unwrap() < 60_000 {
        std::thread::yield_now();
    }
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(output.len(), 2_000_000);
}
