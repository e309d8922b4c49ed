//! Changes that take long, are interrupted, or move much data.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use kleened_api::ErrorCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::processes::signal;
use crate::server::{Reply, Server, run};

fn operation(status: &str, more: Value) -> Value {
    let mut operation = json!({"id": "0cec95145d92", "what": "remove volume big\u{1b}[2J",
                               "started": "2024-02-29T14:54:05.317207Z", "status": status});
    operation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    operation
}

/// A daemon that takes a few questions for a change, which then ends so.
fn slow(end: Value) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |request| match request.path.as_str() {
        "/operations/0cec95145d92?wait=60" => match asked.fetch_add(1, Ordering::SeqCst) {
            0..2 => Reply::Json(
                200,
                operation("running", json!({"progress": {"files": 3, "bytes": 9}})),
            ),
            _ => Reply::Json(200, end.clone()),
        },
        _ => Reply::Json(202, operation("running", json!({}))),
    })
}

#[test]
fn an_operation_is_waited_for() {
    let daemon = slow(operation("succeeded", json!({"reply": {"id": "big"}})));
    let done = daemon.run(&["rmv", "big"]);
    assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, "big\n", ""));
    assert_eq!(daemon.requests().len(), 4);
}

#[test]
fn an_operation_s_error_is_the_verb_s() {
    let daemon = slow(operation(
        "failed",
        json!({"error": {"message": "cannot remove volume big", "code": "no_space", "causes": ["full"]}}),
    ));
    let done = daemon.run(&["rmv", "big"]);
    assert_eq!(done.status, i32::from(ErrorCode::NoSpace.exit_status()));
    assert_eq!(done.stderr, "klee: cannot remove volume big: full\n");
}

#[test]
fn interrupted_klee_says_what_the_daemon_does() {
    for (under_way, says) in [
        (false, "klee: interrupted: kleened finishes what it was asked to do\n"),
        (
            true,
            "klee: interrupted: kleened goes on with operation 0cec95145d92: remove volume \
             big\\u{1b}[2J\n",
        ),
    ] {
        let (sender, asked) = channel();
        let sender = Mutex::new(sender);
        let daemon = Server::start(move |request| {
            if request.method == "DELETE" && under_way {
                return Reply::Json(202, operation("running", json!({})));
            }
            sender.lock().unwrap().send(()).unwrap();
            Reply::Never
        });
        for (wanted, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let mut command = daemon.klee(&["rmv", "big"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            asked.recv().unwrap();
            signal(&child, wanted);
            let done = child.wait_with_output().unwrap();
            assert_eq!(done.status.code(), Some(status));
            assert_eq!(String::from_utf8(done.stderr).unwrap(), says);
        }
    }
}

#[test]
fn an_import_that_is_refused_early_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (gone_through, all_gone) = channel();
    let (deaf, nobody_reads) = channel();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        // klee learns that nobody reads before there is an answer.
        stream.shutdown(std::net::Shutdown::Read).unwrap();
        deaf.send(()).unwrap();
        all_gone.recv().unwrap();
        let body = json!({"message": "image name base is taken", "code": "conflict"}).to_string();
        let _ = write!(stream, "HTTP/1.1 409 X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    });
    let mut command = crate::server::klee(&["image", "import", "-", "base"]);
    command.env("KLEE_HOST", &socket).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who waits for room in the connection's buffer is not told.
    nobody_reads.recv().unwrap();
    // No buffers on the way hold so much.
    let _ = stdin.write_all(&vec![b'x'; 8 << 20]);
    gone_through.send(()).unwrap();
    drop(stdin);
    let done = child.wait_with_output().unwrap();
    server.join().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert_eq!(
        (done.status.code(), stderr.as_str()),
        (Some(4), "klee: image name base is taken\n")
    );
}

#[test]
fn a_start_that_takes_long_can_be_left() {
    let (sender, asked) = channel();
    let sender = Mutex::new(sender);
    let daemon = Server::start(move |request| {
        if request.path != "/exec/start" {
            return crate::daemon::answer(request);
        }
        sender.lock().unwrap().send(()).unwrap();
        Reply::Never
    });
    for args in [&["run", "-q", "FreeBSD"][..], &["start", "-dq", "web"]] {
        let mut command = daemon.klee(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        asked.recv().unwrap();
        signal(&child, Signal::INT);
        let done = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(130));
        assert_eq!(stderr, "klee: interrupted: kleened goes on starting the process\n");
    }
}

#[test]
fn an_import_of_an_unreadable_file_breaks_off() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Server::start(|_| Reply::Json(201, json!({"id": "x"})));
    // A folder can be opened, and not read.
    let done = run(daemon.klee(&["image", "import"]).arg(folder.path()).arg("base"), b"");
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.contains("Is a directory"), "{done:?}");
    assert!(daemon.requests().is_empty(), "the request was completed");
}

#[test]
fn a_large_import_arrives_whole() {
    let daemon = Server::start(|_| Reply::Json(201, json!({"id": "d17fccf6f510"})));
    let archive: Vec<u8> = (0..5_u32 << 20).map(|n| (n ^ (n >> 8)) as u8).collect();
    let done = run(&mut daemon.klee(&["image", "import", "-", "base"]), &archive);
    assert_eq!(
        (done.status, done.stdout.as_str(), done.stderr.as_str()),
        (0, "d17fccf6f510\n", "")
    );
    assert!(daemon.requests()[0].body == archive);
}

#[test]
fn an_export_is_whole_or_not_there() {
    let whole = Server::start(|_| Reply::Raw(200, "application/x-tar", vec![b'a'; 1 << 20]));
    let cut = Server::start(|_| Reply::Cut(vec![b'a'; 1 << 20]));
    let gone = Server::start(|_| {
        Reply::Json(404, json!({"message": "no such image", "code": "not_found"}))
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("base.tar");
    let export = |server: &Server, file: &std::path::Path| {
        run(server.klee(&["image", "export", "base", "-o"]).arg(file), b"")
    };
    let entries = || fs::read_dir(folder.path()).unwrap().count();

    assert_eq!(export(&cut, &file).status, 10);
    assert_eq!(export(&gone, &file).status, 3);
    assert_eq!(entries(), 0);
    assert_eq!(export(&whole, &file).status, 0);
    assert_eq!(fs::read(&file).unwrap(), vec![b'a'; 1 << 20]);
    fs::write(&file, "before").unwrap();
    assert_eq!(export(&cut, &file).status, 10);
    assert_eq!((fs::read(&file).unwrap().as_slice(), entries()), (&b"before"[..], 1));

    // What is no file is written to, not replaced.
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::read(pipe).unwrap().len())
    };
    assert_eq!(export(&whole, &pipe).status, 0);
    if pipe.metadata().unwrap().is_file() {
        // Its reader would wait for ever.
        panic!("the pipe was replaced");
    }
    assert_eq!(reader.join().unwrap(), 1 << 20);
    assert_eq!(export(&whole, &folder.path().join("no/folder")).status, 1);
}

#[test]
fn a_closed_output_is_no_error_of_a_list_and_one_of_a_stream() {
    let daemon = crate::daemon::start();
    for (args, status) in [
        (&["lsv", "-q"][..], 0),
        (&["rmv", "my-vol", "my-vol"], 0),
        (&["logs", "web"], 141),
        (&["image", "export", "FreeBSD"], 141),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = daemon.klee(args);
        let done = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn();
        let done = done.unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), stderr.as_str()), (Some(status), ""), "{args:?}");
        daemon.requests();
    }
    let full = fs::File::options().write(true).open("/dev/full");
    if let Ok(full) = full {
        let mut command = daemon.klee(&["lsv"]);
        let done = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(done.wait_with_output().unwrap().status.code(), Some(1));
    }
}
