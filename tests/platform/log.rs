//! A container's log holds what its first process wrote, and never stops it.

use std::fs;

use kleene_tests::mounts;
use kleened::platform::supervisor::log::LogReader;
use kleened_api::stream::Channel;

use rustix::process::Signal;

use crate::sandbox::{Sandbox, wait_for_container};

#[test]
fn what_the_first_process_writes_is_logged() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) =
        sandbox.start("echo out; echo err >&2; printf 'a\\0\\377b'; echo; printf end");
    sandbox.exec("echo not logged");
    client.end();
    let mut reader = LogReader::open(&sandbox.log(), None).unwrap();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    while let Some(entry) = reader.next_entry().unwrap() {
        let stream = if entry.stream == Channel::Stderr { &mut errors } else { &mut output };
        stream.extend(entry.bytes);
        stream.extend((!entry.partial).then_some(b'\n'));
    }
    assert_eq!(output, b"out\na\0\xffb\nendready\n");
    assert_eq!(errors, b"err\n");
}

#[test]
fn a_log_is_replaced_by_size_and_read_while_it_is() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    sandbox.log_size = 20_000;
    let mut launch = sandbox.first(&["seq", "1", "5000"]);
    launch.attach = false;
    let mut reader = LogReader::open(&sandbox.log(), None).unwrap();
    sandbox.platform.launch(&launch).unwrap();
    let mut last = 0;
    while last < 5000 {
        while let Some(entry) = reader.next_entry().unwrap() {
            let number: u32 = String::from_utf8(entry.bytes).unwrap().parse().unwrap();
            assert!(number > last, "{number} after {last}");
            last = number;
        }
    }
    for name in ["log", "log.1", "log.2"] {
        assert!(fs::metadata(sandbox.dir.path().join(name)).unwrap().len() <= 20_000, "{name}");
    }
    assert!(!sandbox.dir.path().join("log.3").exists());
    let mut tail = LogReader::open(&sandbox.log(), Some(500)).unwrap();
    assert_eq!(tail.next_entry().unwrap().unwrap().bytes, b"4501");
}

#[test]
fn a_log_is_complete_when_the_container_has_ended() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    sandbox.log_size = 1 << 24;
    let script = "mkfifo /tmp/fifo; (read x < /tmp/fifo; yes | head -c 60000; printf end) & exit 0";
    let launch = sandbox.first(&["sh", "-c", script]);
    let mut client = sandbox.attach(&launch).unwrap();
    client.wait_for_exit();
    // It hears of the last output and of the end at once.
    let supervisor = sandbox.supervisor();
    let init = sandbox.platform.running().unwrap()[0].jid;
    rustix::process::kill_process(supervisor, Signal::STOP).unwrap();
    sandbox.exec("echo > /tmp/fifo");
    wait_for_container(init);
    rustix::process::kill_process(supervisor, Signal::CONT).unwrap();
    client.wait_for_end();
    let log = fs::read_to_string(sandbox.log()).unwrap();
    assert_eq!(log.matches(" F y\n").count(), 30_000);
    assert!(log.ends_with(" P end\n"));
}

#[test]
fn a_full_disk_does_not_stop_the_container() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let disk = mounts::Mounted::tmpfs("size=64k");
    sandbox.log_size = 1 << 30;
    let log = disk.path().join("log");
    let script =
        "head -c 300000 /dev/zero | tr '\\0' x; echo; echo full; read x; echo more; exec cat";
    let mut launch = sandbox.first(&["sh", "-c", script]);
    launch.process.stdin = true;
    launch.setup.as_mut().unwrap().log.path = log.clone();
    fs::write(disk.path().join("ballast"), [0; 8192]).unwrap();
    let mut client = sandbox.attach(&launch).unwrap();
    client.wait_for("full\n");
    fs::remove_file(disk.path().join("ballast")).unwrap();
    // There is room again for whole entries, and the torn one is gone.
    client.input("go on\n");
    client.wait_for("more\n");
    client.end();
    let mut reader = LogReader::open(&log, None).unwrap();
    let mut last = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        last = entry.bytes;
    }
    assert_eq!(last, b"more");
    drop(disk);
}

#[test]
fn a_log_that_cannot_be_opened_fails_the_start() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["true"]);
    launch.setup.as_mut().unwrap().log.path = sandbox.host("no/such/log");
    let error = sandbox.run_launch(&launch).unwrap_err();
    assert!(error.to_string().contains("no/such/log"), "{error}");
    assert_eq!(sandbox.platform.running().unwrap(), []);
}
