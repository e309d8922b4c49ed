//! How long containers live, and what is left of them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use kleene_tests::mounts;
use kleened::platform::Error;
use kleened::platform::supervisor::wire::Kind;
use rustix::process::Signal;

use crate::sandbox::{self, Sandbox, is_gone, wait_for_container};

/// How long a container may take that is told to end.
const PATIENCE: Duration = Duration::from_secs(10);

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_container_ends_with_its_last_process() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "mkfifo /tmp/fifo; (read x < /tmp/fifo; echo late) & exit 2";
    let launch = sandbox.first(&["sh", "-c", script]);
    let mut client = sandbox.attach(&launch).unwrap();
    assert!(!client.wait_for_exit().container_ended);
    assert_eq!(sandbox.platform.running().unwrap().len(), 1);
    let exited = sandbox.platform.exited(&launch.instance).unwrap().unwrap();
    assert_eq!(exited.code, 2);
    sandbox.exec("echo > /tmp/fifo");
    client.wait_for_end();
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(sandbox.platform.exited(&launch.instance).unwrap().unwrap(), exited);
    assert!(fs::read_to_string(sandbox.log()).unwrap().contains("stdout F late\n"));
}

#[test]
fn a_joined_process_keeps_the_container() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut first, _) = sandbox.start("");
    let mut launch = sandbox.joined(&["cat"]);
    launch.process.stdin = true;
    let mut second = sandbox.attach(&launch).unwrap();
    first.send(Kind::STDIN, b"");
    let exit = first.wait_for_exit();
    assert_eq!((exit.code, exit.container_ended), (0, false));
    second.input("still here\n");
    second.wait_for("still here\n");
    assert_eq!(sandbox.exec("echo me too").output, "me too\n");
    assert_eq!(second.end().code, 0);
    first.wait_for_end();
    assert_eq!(sandbox.platform.running().unwrap(), []);
}

#[test]
fn an_ordinary_end_says_so() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut client = sandbox.attach(&sandbox.first(&["false"])).unwrap();
    let exit = client.wait_for_exit();
    assert_eq!((exit.code, exit.container_ended), (1, true));
    client.wait_for_end();
    assert!(!client.take());
}

#[test]
fn orphans_are_waited_for() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "i=0; while [ $i -lt 50 ]; do (sh -c 'true & exit' &); i=$((i+1)); done";
    let (client, _) = sandbox.start(script);
    sandbox.exec("while ps ax -o stat | grep -q ^Z; do :; done");
    drop(client);
}

#[test]
fn joined_processes_leave_no_zombie() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    for _ in 0..10 {
        sandbox.exec("true");
    }
    // The last one's parent may still be on its way.
    let wait = "n=0; while ps ax -o stat | grep -q ^Z; do n=$((n+1)); [ $n -lt 50 ] || exit 1; \
                sleep 0.1; done";
    assert_eq!(sandbox.exec(wait).code, 0);
    drop(client);
}

#[test]
fn who_stops_a_joining_process_stops_nobody_else() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut client, _) = sandbox.start(
        "{ until [ -e /tmp/go ]; do sleep 0.01; done; while :; do kill -STOP -1; done; } 2> /dev/null &",
    );
    // In a jail the first process is stopped as well, and had to say that it is there.
    std::fs::write(sandbox.root().join("tmp/go"), "").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let returned = std::thread::scope(|scope| {
        scope.spawn(|| sender.send(sandbox.platform.launch(&sandbox.joined(&["true"]))));
        let returned = receiver.recv_timeout(Duration::from_secs(40));
        // Where it hangs this ends it.
        sandbox.platform.kill(&sandbox.container).unwrap();
        returned
    });
    assert!(returned.is_ok(), "it did not return");
    client.wait_for_end();
}

#[test]
fn a_full_disk_does_not_hide_how_a_process_ended() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let disk = mounts::Mounted::tmpfs("size=256k");
    let on_disk = sandbox::open(&disk.path().join("run"));
    let usual = std::mem::replace(&mut sandbox.platform, on_disk);
    let (client, first) = sandbox.start("");
    let full = fs::write(disk.path().join("ballast"), vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(client.end().code, 0);
    let exited = sandbox.platform.exited(&first).unwrap();
    assert_eq!(exited.map(|exited| exited.code), Some(0));
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    sandbox.platform = usual;
    drop(disk);
}

#[cfg(target_os = "linux")]
#[test]
fn a_supervisor_without_descriptors_waits_for_some() {
    use rustix::process::{Resource, Rlimit, prlimit};
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, first) = sandbox.start("");
    let pid = sandbox.supervisor();
    let used = || {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        let (_, fields) = text.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u32>().unwrap());
        ticks.sum::<u32>()
    };
    let before = rustix::process::getrlimit(Resource::Nofile);
    // As many as it has, and first enough that there is no gap: it polls no more than that.
    let count = || fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count();
    let wanted = count() + 16;
    let others: Vec<_> = (0..16).map(|_| sandbox.connect(&first, false)).collect();
    while count() < wanted {
        std::thread::yield_now();
    }
    let has = |fd: &u64| Path::new(&format!("/proc/{}/fd/{fd}", pid.as_raw_nonzero())).exists();
    let none = Rlimit { current: (0..).find(|fd| !has(fd)), maximum: before.maximum };
    prlimit(Some(pid), Resource::Nofile, none).unwrap();
    let mut watcher = sandbox.connect(&first, false);
    let start = used();
    // Not to wait for something, but as the time that is measured.
    std::thread::sleep(Duration::from_secs(2));
    let ticks = used() - start;
    assert!(ticks < 20, "{ticks} ticks of the processor's time");
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    watcher.send(Kind::SIGNAL, b"KILL");
    watcher.wait_for_end();
    client.drain();
    drop(others);
}

#[test]
fn kill_ends_what_ignores_every_signal() {
    let Some(sandbox) = Sandbox::new() else { return };
    let ignore = "trap '' TERM INT HUP QUIT";
    let script = format!("{ignore}; (while :; do sleep 1000; done) &");
    let (mut client, first) = sandbox.start(&script);
    let joined = sandbox.joined(&["sh", "-c", &format!("{ignore}; echo up; sleep 1000")]);
    let mut other = sandbox.attach(&joined).unwrap();
    other.wait_for("up\n");
    client.send(Kind::SIGNAL, b"TERM");
    client.input("alive\n");
    client.wait_for("alive\n");
    let init = sandbox.platform.running().unwrap()[0].jid;
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    // All of it is true when the call returns.
    assert!(is_gone(init));
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(sandbox.platform.exited(&first).unwrap().unwrap().code, 137);
    assert!(!sandbox.platform.kill(&sandbox.container).unwrap());
    assert_eq!(sandbox.shell("echo again").output, "again\n");
    for client in [&mut client, &mut other] {
        let exit = client.wait_for_exit();
        assert_eq!((exit.code, exit.container_ended), (137, true));
    }
}

#[test]
fn all_processes_are_told_to_end() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert!(!sandbox.platform.terminate(&sandbox.container, PATIENCE).unwrap());
    // The first process, one that outlives it, one that joined, and one of another user.
    let wait = |name: &str| {
        format!(
            "trap 'echo {name} ends; exit 0' TERM; echo {name} is up; while :; do sleep 0.01; done"
        )
    };
    let script = format!("({}) & exec cat", wait("left"));
    let mut launch = sandbox.first(&["sh", "-c", &script]);
    launch.process.stdin = true;
    let mut first = sandbox.attach(&launch).unwrap();
    first.wait_for("left is up\n");
    let mut others = Vec::new();
    for user in ["", "1000"] {
        let mut launch = sandbox.joined(&["sh", "-c", &wait("joined")]);
        launch.process.user = user.to_owned();
        let mut client = sandbox.attach(&launch).unwrap();
        client.wait_for("joined is up\n");
        others.push(client);
    }
    assert!(sandbox.platform.terminate(&sandbox.container, PATIENCE).unwrap());
    assert_eq!(first.wait_for_exit().code, 143);
    for mut client in others {
        client.wait_for("joined ends\n");
        assert_eq!(client.wait_for_exit().code, 0);
    }
    first.wait_for_end();
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert!(fs::read_to_string(sandbox.log()).unwrap().contains("stdout F left ends\n"));
}

#[test]
fn kill_needs_no_answer_of_the_supervisor() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (_client, first) = sandbox.start("sleep 1000 &");
    let init = sandbox.platform.running().unwrap()[0].jid;
    fs::remove_file(sandbox.run_dir().join(first.as_str()).join("sup.sock")).unwrap();
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    assert!(is_gone(init));
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(sandbox.platform.exited(&first).unwrap().unwrap().code, 137);
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
}

#[test]
fn pid_1_is_gone_before_its_container_is_released() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (_client, _) = sandbox.start("sleep 1000 &");
    let init = sandbox.platform.running().unwrap()[0].jid;
    // It has no time to notice.
    rustix::process::kill_process(sandbox.supervisor(), Signal::KILL).unwrap();
    while let Err(error) = sandbox.platform.release(&sandbox.container, &sandbox.root()) {
        assert!(matches!(error, Error::Running(_)), "{error}");
    }
    #[cfg(target_os = "linux")]
    {
        let state = fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    #[cfg(target_os = "freebsd")]
    assert!(is_gone(init));
}

#[test]
fn what_is_left_of_unknown_containers_is_swept_away() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut client, _) = sandbox.start("");
    let sweep = |known: bool| sandbox.platform.sweep(&|_| known).unwrap();
    sweep(false);
    // What runs is nobody's to sweep.
    assert_eq!(sandbox.platform.running().unwrap().len(), 1);
    client.send(Kind::STDIN, b"");
    client.wait_for_end();
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    sweep(true);
    assert_eq!(names(&sandbox.run_dir()).len(), 3);
    sweep(false);
    assert_eq!(names(&sandbox.run_dir()), ["containers", "lock"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_whose_parent_is_killed() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    let mut joined =
        sandbox.attach(&sandbox.joined(&["sh", "-c", "echo $PPID; sleep 1000"])).unwrap();
    let parent = joined.wait_for("\n");
    sandbox.exec(&format!("kill -9 {parent}"));
    let exit = joined.wait_for_exit();
    assert_eq!((exit.code, exit.container_ended), (137, false));
    sandbox.exec("while pgrep sleep; do :; done");
    drop(client);
}

#[test]
fn a_client_that_takes_nothing_does_not_keep_a_container() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launch = sandbox.first(&["head", "-c", "500000", "/dev/zero"]);
    sandbox.platform.launch(&launch).unwrap();
    let stuck = sandbox.connect(&launch.instance, true);
    let mut watcher = sandbox.connect(&launch.instance, false);
    watcher.wait_for_end();
    // The supervisor still has something for it, and yet nothing is held up.
    assert!(sandbox.platform.connect(&launch.instance).unwrap().is_some());
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    sandbox.platform.forget(&launch.instance).unwrap();
    assert_eq!(sandbox.shell("echo again").output, "again\n");
    assert_eq!(stuck.finish().output.len(), 500_000);
}

#[test]
fn a_container_goes_with_its_supervisor() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (mut client, first) = sandbox.start("sleep 1000 &");
    let init = sandbox.platform.running().unwrap()[0].jid;
    rustix::process::kill_process(sandbox.supervisor(), Signal::KILL).unwrap();
    assert!(!client.take());
    wait_for_container(init);
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(sandbox.platform.exited(&first).unwrap(), None);
    assert!(sandbox.platform.connect(&first).unwrap().is_none());
    assert!(!sandbox.platform.kill(&sandbox.container).unwrap());
    sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
    assert_eq!(names(&sandbox.run_dir()), ["containers", "lock"]);
    assert_eq!(sandbox.shell("echo again").output, "again\n");
}

#[test]
fn a_joined_process_goes_with_its_supervisor_and_the_container_stays() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    let launch = sandbox.joined(&["sh", "-c", "echo up; exec sleep 1000"]);
    let mut joined = sandbox.attach(&launch).unwrap();
    joined.wait_for("up\n");
    let supervisor = sandbox.supervisor_of(&launch.instance);
    rustix::process::kill_process(supervisor, Signal::KILL).unwrap();
    assert!(!joined.take());
    sandbox.exec("while pgrep sleep; do :; done");
    drop(client);
}

#[test]
fn another_daemon_finds_everything() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, first) = sandbox.start("echo $$ > /tmp/pid");
    let joined = sandbox.joined(&["sh", "-c", "read x; exit 8"]);
    let joined = {
        let mut launch = joined;
        launch.process.stdin = true;
        sandbox.platform.launch(&launch).unwrap();
        launch
    };
    let found = sandbox.platform.running().unwrap();
    let listed = sandbox.platform.mounts(&sandbox.container).unwrap();
    let other = sandbox::open(&sandbox.run_dir());
    assert_eq!(other.running().unwrap(), found);
    assert_eq!(found[0].instance, first);
    assert_eq!(other.mounts(&sandbox.container).unwrap(), listed);
    let mut again = sandbox.connect(&joined.instance, true);
    again.input("go on\n");
    assert_eq!(again.finish().code, 8);
    assert_eq!(other.exited(&joined.instance).unwrap().unwrap().code, 8);
    assert!(other.kill(&sandbox.container).unwrap());
    assert_eq!(sandbox.platform.running().unwrap(), []);
    drop(client);
}

#[test]
fn nothing_is_left() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, first) = sandbox.start("");
    let joined = sandbox.joined(&["false"]);
    sandbox.attach(&joined).unwrap().finish();
    for refused in [
        sandbox.platform.release(&sandbox.container, &sandbox.root()),
        sandbox.platform.forget(&first),
    ] {
        assert!(matches!(refused, Err(Error::Running(_) | Error::Io { .. })), "{refused:?}");
    }
    assert_eq!(client.end().code, 0);
    for _ in 0..2 {
        sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
        // How a joined process ended is of no use without its container.
        assert!(!sandbox.run_dir().join(joined.instance.as_str()).exists());
        assert_eq!(names(&sandbox.run_dir().join(first.as_str())), ["exit.json"]);
        assert_eq!(sandbox.platform.exited(&first).unwrap().unwrap().code, 0);
    }
    assert_eq!(names(&sandbox.run_dir().join("containers")), [""; 0]);
    for _ in 0..2 {
        for instance in [&first, &joined.instance] {
            sandbox.platform.forget(instance).unwrap();
            assert_eq!(sandbox.platform.exited(instance).unwrap(), None);
        }
    }
    assert_eq!(names(&sandbox.run_dir()), ["containers", "lock"]);
}

#[test]
fn an_instance_is_launched_once() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launch = sandbox.first(&["true"]);
    sandbox.attach(&launch).unwrap().finish();
    let again = sandbox.platform.launch(&launch);
    assert!(matches!(again, Err(Error::Io { .. })), "{again:?}");
    assert_eq!(sandbox.platform.exited(&launch.instance).unwrap().unwrap().code, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_supervisor_is_small_and_nobodys_child() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, _) = sandbox.start("");
    let pid = sandbox.supervisor();
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!((field("PPid").as_str(), field("Threads").as_str()), ("1", "1"));
    // From proc(5), as getsid(2) answers 0 for a session that another pid namespace leads: ours, when
    // the tests are started in a new one.
    let session = |process: &str| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let its = session(&pid.to_string());
    assert_ne!(its, 0);
    assert_eq!(
        Some(its),
        rustix::process::getpgid(Some(pid)).ok().map(rustix::process::Pid::as_raw_pid)
    );
    assert_ne!(its, session("self"));
    let anonymous: u32 = field("RssAnon").split(' ').next().unwrap().parse().unwrap();
    assert!(anonymous < 2048, "{anonymous} KiB");
    drop(client);
}
