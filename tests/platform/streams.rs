//! Input and output arrive whole, in order and apart.

use std::io::Write;
use std::time::{Duration, Instant};

use kleened::platform::supervisor::wire::{self, Kind};

use crate::sandbox::Sandbox;

#[test]
fn input_ends_where_the_client_says() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["cat"]);
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    client.input("one\n");
    client.wait_for("one\n");
    client.input("two");
    client.send(Kind::STDIN, b"");
    let outcome = client.finish();
    assert_eq!((outcome.code, outcome.output.as_str()), (0, "two"));
}

#[test]
fn without_input_it_is_empty() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert_eq!(sandbox.shell("cat; echo $?").output, "0\n");
}

#[test]
fn every_byte_arrives() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["cat"]);
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    // Every byte, in pieces of all sizes, and more than all buffers hold.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut stream = client.stream.try_clone().unwrap();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            for (index, piece) in sent.chunks(9973).enumerate() {
                // No empty one: that would be the end.
                let (one, two) = piece.split_at(1 + index % (piece.len() - 1));
                wire::write(&mut stream, Kind::STDIN, one).unwrap();
                wire::write(&mut stream, Kind::STDIN, two).unwrap();
            }
            wire::write(&mut stream, Kind::STDIN, b"").unwrap();
        });
        while client.take() {}
        client.output
    });
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
}

#[test]
fn a_gigabyte_arrives() {
    const SIZE: usize = 1 << 30;
    let Some(sandbox) = Sandbox::new() else { return };
    let script = format!("head -c {SIZE} /dev/zero; echo end >&2");
    let mut client = sandbox.attach(&sandbox.first(&["sh", "-c", &script])).unwrap();
    let mut received = 0;
    loop {
        received += client.output.len();
        assert!(client.output.iter().all(|byte| *byte == 0));
        client.output.clear();
        if !client.take() {
            break;
        }
    }
    assert_eq!((received, client.errors.as_slice()), (SIZE, b"end\n".as_slice()));
    assert_eq!(client.exit.unwrap().code, 0);
}

#[test]
fn a_slow_client_holds_the_process_back_and_loses_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut reader, first) = sandbox.start("mkfifo /tmp/fifo");
    let script =
        "i=0; while [ $i -lt 40 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /tmp/n; done";
    let client = sandbox.attach(&sandbox.joined(&["sh", "-c", script])).unwrap();
    // It stands still before it is through: what is between it and the client is full.
    let progress = || sandbox.exec("cat /tmp/n").output.trim().parse::<u32>().unwrap_or(0);
    let mut before = progress();
    loop {
        let after = sandbox.exec("sleep 0.3; cat /tmp/n").output.trim().parse().unwrap_or(0);
        if after == before && after > 0 {
            break;
        }
        before = after;
    }
    assert!(before < 40, "nothing held it back");
    let outcome = client.finish();
    assert_eq!((outcome.code, outcome.output.len()), (0, 40 * 65536));
    reader.send(Kind::STDIN, b"");
    reader.wait_for_end();
    assert_eq!(sandbox.platform.exited(&first).unwrap().unwrap().code, 0);
}

#[test]
fn a_client_that_pauses_at_the_end_loses_nothing() {
    const SIZE: usize = 300_000;
    let Some(sandbox) = Sandbox::new() else { return };
    // More than a socket holds, and less than what would hold the process back.
    let launch = sandbox.first(&["sh", "-c", &format!("head -c {SIZE} /dev/zero; exit 3")]);
    sandbox.platform.launch(&launch).unwrap();
    let mut watcher = sandbox.connect(&launch.instance, false);
    let client = sandbox.connect(&launch.instance, true);
    // Others don't wait for it.
    let begun = Instant::now();
    watcher.wait_for_end();
    assert!(!watcher.take());
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert_eq!(sandbox.platform.running().unwrap(), []);
    // Not to wait for something: longer than for anybody else.
    std::thread::sleep(Duration::from_secs(12));
    let outcome = client.finish();
    assert_eq!((outcome.code, outcome.output.len()), (3, SIZE));
}

#[test]
fn a_container_starts_again_while_a_client_still_reads_from_its_last_run() {
    const SIZE: usize = 300_000;
    let Some(sandbox) = Sandbox::new() else { return };
    for tidied in [true, false] {
        // More than a socket holds, and less than what would hold the process back.
        let mut launch = sandbox.first(&["sh", "-c", &format!("head -c {SIZE} /dev/zero; exit 3")]);
        sandbox.platform.launch(&launch).unwrap();
        let mut watcher = sandbox.connect(&launch.instance, false);
        let slow = sandbox.connect(&launch.instance, true);
        watcher.wait_for_end();
        if tidied {
            sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
        }
        sandbox.platform.forget(&launch.instance).unwrap();
        launch.process.argv = vec!["echo".into(), "again".into()];
        let again = sandbox.attach(&launch).unwrap().finish();
        assert_eq!((again.code, again.output.as_str()), (0, "again\n"));
        let slow = slow.finish();
        assert_eq!((slow.code, slow.output.len()), (3, SIZE));
        assert_eq!(sandbox.platform.exited(&launch.instance).unwrap().unwrap().code, 0);
        sandbox.platform.forget(&launch.instance).unwrap();
    }
}

#[test]
fn output_waits_for_the_client_that_was_announced() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launch = sandbox.first(&["sh", "-c", "echo early; echo bird >&2"]);
    sandbox.platform.launch(&launch).unwrap();
    let mut watcher = sandbox.connect(&launch.instance, false);
    watcher.wait_for_end();
    assert_eq!(watcher.output, b"");
    let outcome = sandbox.connect(&launch.instance, true).finish();
    assert_eq!((outcome.output.as_str(), outcome.errors.as_str()), ("early\n", "bird\n"));
}

#[test]
fn a_terminal_is_read_before_its_client_is_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    // More than the kernel keeps for a terminal.
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo end";
    let mut launch = sandbox.first(&["sh", "-c", script]);
    launch.process.tty = true;
    sandbox.platform.launch(&launch).unwrap();
    sandbox.connect(&launch.instance, false).wait_for_end();
    let outcome = sandbox.connect(&launch.instance, true).finish();
    assert_eq!(outcome.output.len(), 100_000 + 5);
    assert!(outcome.output.ends_with("xend\r\n"));
}

#[test]
fn detached_output_waits_for_nobody() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["head", "-c", "1073741824", "/dev/zero"]);
    launch.attach = false;
    sandbox.platform.launch(&launch).unwrap();
    if let Some(stream) = sandbox.platform.connect(&launch.instance).unwrap() {
        drop(stream);
        sandbox.connect(&launch.instance, false).wait_for_end();
    }
    assert_eq!(sandbox.platform.exited(&launch.instance).unwrap().unwrap().code, 0);
}

#[test]
fn a_client_that_hangs_up_does_not_stop_the_process() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "i=0; while [ $i -lt 100 ]; do head -c 65536 /dev/zero; i=$((i+1)); done; exit 5";
    let launch = sandbox.first(&["sh", "-c", script]);
    let mut client = sandbox.attach(&launch).unwrap();
    let mut watcher = sandbox.connect(&launch.instance, false);
    client.take();
    drop(client);
    assert_eq!(watcher.wait_for_exit().code, 5);
    watcher.wait_for_end();
}

#[test]
fn input_ends_with_its_last_client() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["sh", "-c", "cat; echo rest; exit 4"]);
    launch.process.stdin = true;
    let mut one = sandbox.attach(&launch).unwrap();
    let two = sandbox.connect(&launch.instance, true);
    let mut watcher = sandbox.connect(&launch.instance, false);
    drop(two);
    one.input("still there\n");
    one.wait_for("still there\n");
    drop(one);
    assert_eq!(watcher.wait_for_exit().code, 4);
}

#[test]
fn nonsense_is_cut_off() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut client, first) = sandbox.start("");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[1, 0, 0, 0, 0], &[6, 0, 0, 0, 2, b'{', b'}']] {
        let mut stream = sandbox.platform.connect(&first).unwrap().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(bytes).unwrap();
        assert!(matches!(wire::read(&mut stream), Ok(None) | Err(_)), "{bytes:?}");
    }
    client.input("here\n");
    client.wait_for("here\n");
}

#[test]
fn a_process_that_ends_is_reported_before_its_children_close_its_output() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launch = sandbox.first(&["sh", "-c", "sleep 1000 & echo begun; exit 6"]);
    let mut client = sandbox.attach(&launch).unwrap();
    let begun = Instant::now();
    let exit = client.wait_for_exit();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!((exit.code, exit.container_ended), (6, false));
    assert_eq!(client.output, b"begun\n");
    assert!(!client.ended);
    assert_eq!(sandbox.platform.exited(&launch.instance).unwrap().unwrap().code, 6);
    assert_eq!(sandbox.platform.running().unwrap().len(), 1);
    // Who comes later learns it, too.
    assert_eq!(sandbox.connect(&launch.instance, true).wait_for_exit().code, 6);
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    client.wait_for_end();
}

#[test]
fn a_process_that_closes_its_output_goes_on() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "echo bye; exec >&- 2>&- <&-; read x < /tmp/fifo; exit 9";
    let (reader, _) = sandbox.start("mkfifo /tmp/fifo");
    let mut client = sandbox.attach(&sandbox.joined(&["sh", "-c", script])).unwrap();
    client.wait_for("bye\n");
    sandbox.exec("echo go > /tmp/fifo");
    assert_eq!(client.finish().code, 9);
    drop(reader);
}

#[test]
fn signals_reach_the_process() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "trap 'echo got; exit 11' HUP; echo ready; while :; do sleep 1000 & wait; done";
    let launch = sandbox.first(&["sh", "-c", script]);
    let mut client = sandbox.attach(&launch).unwrap();
    client.wait_for("ready\n");
    // From a connection of its own: behind input that nobody reads it would not arrive.
    sandbox.connect(&launch.instance, false).send(Kind::SIGNAL, b"HUP");
    client.wait_for("got\n");
    assert_eq!(client.wait_for_exit().code, 11);
    sandbox.platform.kill(&sandbox.container).unwrap();
    client.drain();
}

/// On Linux a container has terminals of its own, on FreeBSD the host's numbers.
fn is_terminal(name: &str) -> bool {
    match name.strip_prefix("/dev/pts/") {
        Some(number) if cfg!(target_os = "linux") => number == "0",
        Some(number) => number.parse::<u32>().is_ok(),
        None => false,
    }
}

#[test]
fn a_terminal() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "tty; stty size; stty -echo; echo \"$TERM\"; trap 'stty size' WINCH; echo ready; \
                  while :; do read line && echo \"<$line>\"; done";
    let mut launch = sandbox.first(&["sh", "-c", script]);
    (launch.process.tty, launch.process.stdin) = (true, true);
    let mut client = sandbox.attach(&launch).unwrap();
    let begun = client.wait_for("ready\r\n");
    let (name, rest) = begun.split_once("\r\n").unwrap();
    assert!(is_terminal(name), "{name}");
    assert_eq!(rest, "24 80\r\nxterm\r\n");
    client.resize(50, 132);
    client.wait_for("50 132\r\n");
    client.input("hello\n");
    client.wait_for("<hello>\r\n");
    // The terminal's own character for SIGINT.
    client.input("\u{3}");
    assert_eq!(client.wait_for_exit().code, 128 + 2);
    assert_eq!(client.errors, b"");
    client.drain();
}

#[test]
fn a_terminal_in_a_running_container() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    for number in 0..2 {
        let mut launch =
            sandbox.joined(&["sh", "-c", "tty; test -t 0 -a -t 1 -a -t 2; echo $?; cat"]);
        (launch.process.tty, launch.process.stdin) = (true, true);
        launch.process.user = "www".to_owned();
        let mut other = sandbox.attach(&launch).unwrap();
        let name = other.wait_for("\r\n0\r\n");
        assert!(is_terminal(&name), "{name}");
        // An end of input is a character here.
        other.send(Kind::STDIN, b"");
        assert_eq!(other.finish().code, 0, "the time {number}");
    }
    drop(client);
}

#[test]
fn the_last_words_on_a_terminal() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch =
        sandbox.first(&["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo end"]);
    launch.process.tty = true;
    let outcome = sandbox.run_launch(&launch).unwrap();
    assert_eq!(outcome.output.len(), 200_000 + 5);
    assert!(outcome.output.ends_with("xend\r\n"));
}
