//! Sending and receiving.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use kleened_sys::zfs::{Kind, Receive, SendFlags, Source};

use crate::fixture::{Area, texts};

const RECORD: &str = "org.kleene:record";

fn sent(area: &Area, snapshot: &str, from: Option<&str>) -> File {
    let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
    area.zfs.send(snapshot, from, SendFlags::FAST, file.as_fd()).unwrap();
    file.rewind().unwrap();
    file
}

fn content(area: &Area, dataset: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mount = area.mount(dataset);
    let files = fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn what_is_sent_is_received() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let (a, b) = (format!("{one}@a"), format!("{one}@b"));
    fs::write(area.mount(&one).path().join("more"), "more").unwrap();
    zfs.snapshot(&[&b], &texts(&[])).unwrap();
    let copy = area.at("copy");
    let how = Receive { local: Some(&texts(&[(RECORD, "copy")])), ..Receive::default() };
    let full = sent(&area, &a, None);
    let estimate = zfs.send_size(&a, None, SendFlags::FAST).unwrap();
    assert!(estimate > 0, "{estimate}");
    let length = full.metadata().unwrap().len();
    let received = zfs.receive(&format!("{copy}@a"), &how, full.as_fd()).unwrap();
    let guid = |name: &str| zfs.properties(name, &["guid"]).unwrap().number("guid").unwrap();
    assert_eq!(received.guid, guid(&a));
    assert!(received.bytes.abs_diff(length) <= 312, "{received:?} of {length}");
    assert_eq!(zfs.properties(&copy, &[RECORD]).unwrap().own_text(RECORD), Some("copy"));
    // The increment, also from a bookmark.
    zfs.bookmark(&[(&format!("{one}#a"), &a)]).unwrap();
    for from in [&a, &format!("{one}#a")] {
        let increment = sent(&area, &b, Some(from));
        assert!(increment.metadata().unwrap().len() < length);
        zfs.receive(&format!("{copy}@b"), &Receive::default(), increment.as_fd()).unwrap();
        assert_eq!(content(&area, &copy), content(&area, &one));
        zfs.rollback_to(&copy, &format!("{copy}@b")).unwrap();
        zfs.destroy(&format!("{copy}@b")).unwrap();
        zfs.rollback_to(&copy, &format!("{copy}@a")).unwrap();
    }
    // What does not fit.
    let again = sent(&area, &a, None);
    let error = zfs.receive(&format!("{copy}@a"), &Receive::default(), again.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    fs::write(area.mount(&copy).path().join("mine"), "x").unwrap();
    let increment = sent(&area, &b, Some(&a));
    let error =
        zfs.receive(&format!("{copy}@b"), &Receive::default(), increment.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error}");
    let increment = sent(&area, &b, Some(&a));
    let force = Receive { force: true, ..Receive::default() };
    zfs.receive(&format!("{copy}@b"), &force, increment.as_fd()).unwrap();
    let increment = sent(&area, &b, Some(&a));
    let error = zfs.receive(&area.at("no@b"), &Receive::default(), increment.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let error = zfs.send(&a, Some(&b), SendFlags::FAST, increment.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::CrossPool, "{error}");
}

#[test]
fn properties_go_in_front() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let a = format!("{one}@a");
    let mut properties = texts(&[(RECORD, "from afar")]);
    properties.put_number("recordsize", 8192).unwrap();
    let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
    zfs.send_with_properties(&a, None, SendFlags::FAST, &properties, file.as_fd()).unwrap();
    let length = file.stream_position().unwrap();
    file.rewind().unwrap();
    let copy = area.at("copy");
    zfs.receive(&format!("{copy}@a"), &Receive::default(), file.as_fd()).unwrap();
    assert_eq!(file.stream_position().unwrap(), length, "it was read to its end");
    let read = zfs.properties(&copy, &[RECORD, "recordsize"]).unwrap();
    assert_eq!(read.get(RECORD).unwrap().source, Source::Received);
    assert_eq!((read.own_text(RECORD), read.number("recordsize")), (Some("from afar"), Some(8192)));
    // As `zfs receive` reads it, and as `zfs send` writes it.
    let (theirs, back) = (area.at("theirs"), area.at("back"));
    file.rewind().unwrap();
    let mut receive = program(&["receive", "-u", &theirs]).stdin(file).spawn().unwrap();
    assert!(receive.wait().unwrap().success());
    let read = zfs.properties(&theirs, &[RECORD, "recordsize"]).unwrap();
    assert_eq!((read.own_text(RECORD), read.number("recordsize")), (Some("from afar"), Some(8192)));
    let out = tempfile::tempfile_in(area.dir.path()).unwrap();
    let snapshot = format!("{theirs}@a");
    let mut send =
        program(&["send", "-p", &snapshot]).stdout(out.try_clone().unwrap()).spawn().unwrap();
    assert!(send.wait().unwrap().success());
    (&out).rewind().unwrap();
    zfs.receive(&format!("{back}@a"), &Receive::default(), out.as_fd()).unwrap();
    assert_eq!(content(&area, &back), content(&area, &one));
    let read = zfs.properties(&back, &[RECORD, "recordsize"]).unwrap();
    assert_eq!((read.own_text(RECORD), read.number("recordsize")), (Some("from afar"), Some(8192)));
}

/// The `zfs` command.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new("zfs");
    command.args(arguments);
    command
}

#[test]
fn a_stream_that_was_cut_off_goes_on() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.make("one");
    let mount = area.mount(&one);
    for n in 0..20u8 {
        fs::write(mount.path().join(format!("f{n}")), [n].repeat(200_000)).unwrap();
    }
    drop(mount);
    let a = format!("{one}@a");
    zfs.snapshot(&[&a], &texts(&[])).unwrap();
    // Uncompressed, so that there is something to cut.
    let mut whole = tempfile::tempfile_in(area.dir.path()).unwrap();
    zfs.send(&a, None, SendFlags::default(), whole.as_fd()).unwrap();
    whole.rewind().unwrap();
    let mut bytes = Vec::new();
    whole.read_to_end(&mut bytes).unwrap();
    let copy = area.at("copy");
    let part = |length: usize| {
        let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
        file.write_all(&bytes[..length]).unwrap();
        file.rewind().unwrap();
        file
    };
    let target = format!("{copy}@a");
    let error =
        zfs.receive(&target, &Receive::default(), part(bytes.len() / 2).as_fd()).unwrap_err();
    assert_eq!((error.kind(), zfs.exists(&copy).unwrap()), (Kind::BadStream, false), "{error}");
    let how = || Receive { resumable: true, ..Receive::default() };
    let error = zfs.receive(&target, &how(), part(bytes.len() / 2).as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadStream, "{error}");
    let token = zfs.properties(&copy, &["receive_resume_token"]).unwrap();
    let token = token.text("receive_resume_token").unwrap();
    let point = zfs.resume_point(token).unwrap();
    assert!(point.snapshot == a && point.from_guid.is_none() && point.bytes > 100_000, "{point:?}");
    let mut rest = tempfile::tempfile_in(area.dir.path()).unwrap();
    zfs.send_resume(&a, None, &point, rest.as_fd()).unwrap();
    rest.rewind().unwrap();
    assert!(rest.metadata().unwrap().len() < bytes.len() as u64 * 3 / 4);
    zfs.receive(&target, &how(), rest.as_fd()).unwrap();
    assert_eq!(content(&area, &copy), content(&area, &one));
    for bad in [
        "",
        "1",
        "1-2-3-4",
        "-",
        "1-abc-10-zz",
        "1-e-",
        &"f".repeat(20_000),
        "1-1-ffffffffffffff-00",
    ] {
        assert_eq!(zfs.resume_point(bad).unwrap_err().kind(), Kind::Invalid, "{bad}");
    }
    let (head, tail) = token.split_at(token.len() - 4);
    let damaged = format!("{head}{}", if tail == "0000" { "1111" } else { "0000" });
    assert_eq!(zfs.resume_point(&damaged).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn pipes_and_sockets_and_ends_that_go_away() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let a = format!("{one}@a");
    let (reader, writer) = io::pipe().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let ends: [(std::os::fd::OwnedFd, std::os::fd::OwnedFd); 2] =
        [(writer.into(), reader.into()), (here.into(), there.into())];
    for (number, (to, from)) in ends.into_iter().enumerate() {
        let target = area.at(&format!("copy{number}@a"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                zfs.send(&a, None, SendFlags::FAST, to.as_fd()).unwrap();
                drop(to);
            });
            zfs.receive(&target, &Receive::default(), from.as_fd()).unwrap();
        });
        assert_eq!(content(&area, &area.at(&format!("copy{number}"))), content(&area, &one));
    }
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let error = zfs.send(&a, None, SendFlags::default(), writer.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::BrokenPipe, "{error}");
    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    let error = zfs.send(&a, None, SendFlags::default(), here.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::BrokenPipe, "{error}");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = zfs.send(&a, None, SendFlags::default(), full.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    let read_only = File::open("/dev/zero").unwrap();
    assert!(zfs.send(&a, None, SendFlags::default(), read_only.as_fd()).is_err());
}

#[test]
fn encrypted_blocks_go_as_they_are() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let (secret, copy) = (area.at("secret"), area.at("copy"));
    let key = area.dir.path().join("key");
    fs::write(&key, [7; 32]).unwrap();
    let location = format!("keylocation=file://{}", key.display());
    let with_key = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", &location];
    let run = |arguments: &[&str]| assert!(program(arguments).status().unwrap().success());
    run(&[&["create", "-o", "mountpoint=none"], &with_key[..], &[&secret]].concat());
    fs::write(area.mount(&secret).path().join("file"), b"plain".repeat(50_000)).unwrap();
    let a = format!("{secret}@a");
    zfs.snapshot(&[&a], &texts(&[])).unwrap();
    let expected = content(&area, &secret);
    // Without the key.
    run(&["unload-key", &secret]);
    let raw = SendFlags { raw: true, ..SendFlags::FAST };
    let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
    let error = zfs.send(&a, None, SendFlags::FAST, file.as_fd()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotPermitted, "{error}");
    assert!(zfs.send_size(&a, None, raw).unwrap() > 0);
    file.set_len(0).unwrap();
    file.rewind().unwrap();
    zfs.send_with_properties(&a, None, raw, &texts(&[(RECORD, "raw")]), file.as_fd()).unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(!bytes.windows(5).any(|part| part == b"plain"));
    file.rewind().unwrap();
    zfs.receive(&format!("{copy}@a"), &Receive::default(), file.as_fd()).unwrap();
    assert_eq!(zfs.properties(&copy, &[RECORD]).unwrap().own_text(RECORD), Some("raw"));
    run(&["load-key", "-L", &format!("file://{}", key.display()), &copy]);
    assert_eq!(content(&area, &copy), expected);
}

#[test]
fn damaged_streams_are_no_harm() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
    let properties = texts(&[(RECORD, "r")]);
    zfs.send_with_properties(&format!("{one}@a"), None, SendFlags::FAST, &properties, file.as_fd())
        .unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let copy = area.at("copy");
    let receive = |bytes: &[u8]| {
        let mut file = tempfile::tempfile_in(area.dir.path()).unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        zfs.receive(&format!("{copy}@a"), &Receive::default(), file.as_fd())
    };
    let mut bad: Vec<Vec<u8>> = vec![Vec::new(), vec![0; 1000], b"no stream".repeat(100)];
    // In the record, the list and its sum, of what is in front.
    for at in [0, 4, 7, 8, 16, 17, 320, 340, 400, 450] {
        let mut copy = bytes.clone();
        copy[at] ^= 0x40;
        bad.push(copy);
    }
    for length in [10, 312, 400, 700, bytes.len() / 2] {
        bad.push(bytes[..length].to_vec());
    }
    for (number, bytes) in bad.iter().enumerate() {
        let error = receive(bytes).expect_err(&format!("number {number}"));
        assert!(matches!(error.kind(), Kind::BadStream | Kind::Invalid), "{number}: {error}");
    }
    assert!(!zfs.exists(&copy).unwrap());
    receive(&bytes).unwrap();
}
