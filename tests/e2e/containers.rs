//! Containers, end to end: the real binaries, namespaces and processes.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

use kleene_tests::harness::{Daemon, eventually};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_container_for_once_goes_where_its_client_is_interrupted() {
    let mut daemon = Daemon::with_image();
    assert!(daemon.stop().success());
    daemon.set_environment("KLEENED_FAULT", Some("rename:1:before:stop"));
    daemon.boot();
    let mut client = daemon.client();
    client.args(["run", "--rm", "-m", "site:/usr/share/site", "base", "sleep", "1000"]);
    let mut client = client.stderr(Stdio::piped()).spawn().unwrap();
    daemon.wait_until_stopped();
    kill_process(Pid::from_child(&client), Signal::INT).unwrap();
    daemon.go_on();
    let mut said = String::new();
    client.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("the container is removed again"), "{said}");
    assert_eq!(daemon.run("container ls -aq").ok(), "");
}

#[test]
fn output_and_exit_status_come_through() {
    let daemon = Daemon::with_image();
    let ran =
        daemon.klee(["run", "--name", "c", "base", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ran.stdout, "out\n");
    assert!(ran.stderr.contains("err\n"), "{ran:?}");
    let id = daemon.inspect("container", "c")["container"]["id"].as_str().unwrap().to_owned();
    assert!(ran.stderr.starts_with(&id), "{ran:?}");
    assert!(ran.stderr.contains("created execution instance"), "{ran:?}");
    assert!(
        ran.stderr.trim_end().ends_with("and its container exited with exit-code 7"),
        "{ran:?}"
    );
    assert_eq!(ran.code, 7);
    assert_eq!(daemon.inspect("container", "c")["container"]["exit_code"], 7);
    assert_eq!(daemon.run("wait c").ok(), "7");
}

#[test]
fn what_runs_is_not_started_again() {
    let daemon = Daemon::with_image();
    daemon.klee(["run", "-d", "--name", "c", "base", "sleep", "1000"]).ok();
    let sleeping = || daemon.klee(["exec", "c", "sh", "-c", "ps ax | grep -c '[s]leep 1'"]).ok();
    let before = sleeping();
    assert!(daemon.run("start -d c").fails(125).contains("container c is running already"));
    daemon.run("start c").fails(125);
    assert_eq!(sleeping(), before);
}

#[test]
fn a_signal_is_an_exit_status() {
    let daemon = Daemon::with_image();
    daemon.klee(["run", "base", "sh", "-c", "kill -9 $$"]).fails(137);
}

#[test]
fn what_cannot_be_started_is_told_apart() {
    let daemon = Daemon::with_image();
    assert!(daemon.run("run base no-such-program").fails(127).contains("no-such-program"));
    assert!(daemon.run("run base /etc/passwd").fails(126).contains("/etc/passwd"));
    assert!(daemon.run("run -u ghost base true").code >= 125);
    assert!(daemon.run("run --workdir /nowhere base true").code >= 125);
    assert!(daemon.run("run nosuch true").stderr.contains("no such image"));
    // Nothing is left running or mounted by any of them.
    assert_eq!(daemon.run("container ls -q").ok(), "");
    daemon.run("container prune -f").ok();
    assert!(daemon.litter().is_empty());
}

#[test]
fn user_environment_directory_and_host_name() {
    let daemon = Daemon::with_image();
    let run = |arguments: &[&str], script: &str| {
        daemon.klee([&["run", "--rm"], arguments, &["base", "sh", "-c", script]].concat()).ok()
    };
    assert_eq!(
        run(&["-u", "www"], "id -un; id -gn; id -G; echo $HOME"),
        "www\nwww\n80 20\n/usr/share/site"
    );
    assert_eq!(run(&["-u", "1234"], "id -u"), "1234");
    assert_eq!(run(&["-u", "80:20"], "id -u; id -g"), "80\n20");
    assert_eq!(run(&["-e", "A=1 2", "-e", "B=x=y"], "echo \"$A|$B\""), "1 2|x=y");
    assert_eq!(run(&["--workdir", "/var/empty"], "pwd"), "/var/empty");
    assert_eq!(run(&["--hostname", "box.example"], "hostname"), "box.example");
    if cfg!(target_os = "linux") {
        let interfaces = run(&["-l", "disabled"], "ls /proc/sys/net/ipv4/conf");
        assert_eq!(interfaces.lines().collect::<Vec<_>>(), ["all", "default", "lo"]);
    }
}

/// What a process in a container may not do to the host.
#[cfg(target_os = "linux")]
const FORBIDDEN: &[&str] = &[
    "mount -t tmpfs none /mnt",
    "umount /proc",
    "mknod /tmp/sda b 8 0",
    "hostname stolen",
    "echo x > /proc/sysrq-trigger",
    "echo x > /proc/sys/kernel/core_pattern",
    "cat /proc/1/root/bin/busybox > /dev/null && cat /proc/kcore",
    "unshare -m true",
    ": >> /proc/1/exe",
];

#[cfg(target_os = "freebsd")]
const FORBIDDEN: &[&str] = &[
    "mount -t tmpfs tmpfs /mnt",
    "mount -t nullfs /bin /mnt",
    "umount /dev",
    "sysctl kern.maxfiles=1000",
    "sysctl kern.corefile=/stolen",
    "ifconfig lo0 alias 127.0.0.77",
    "head -c 1 /dev/mem",
    "head -c 1 /dev/kmem",
    "chflags schg /bin/sh",
];

#[test]
fn it_is_a_container() {
    let daemon = Daemon::with_image();
    let run = |script: &str| daemon.klee(["run", "--rm", "base", "sh", "-c", script]);
    let libraries = if cfg!(target_os = "linux") { "" } else { "lib\nlibexec\n" };
    let own = format!("bin\ndev\netc\n{libraries}mnt\nproc\nroot\ntmp\nusr\nvar");
    assert_eq!(run("ls /").ok(), own);
    assert!(run("ps | wc -l").ok().trim().parse::<u32>().unwrap() < 8);
    assert_eq!(run("echo x > /dev/null && head -c 4 /dev/zero | wc -c").ok().trim(), "4");
    for forbidden in FORBIDDEN {
        assert_ne!(run(forbidden).code, 0, "{forbidden} was allowed");
    }
}

#[test]
fn pipes_are_binary_safe_both_ways() {
    let daemon = Daemon::with_image();
    daemon.run("run -d --name c -m data:/data base sleep 600").ok();
    let mut noise = vec![0; 8 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    let output = daemon
        .klee_with(["exec", "-i", "c", "sh", "-c", "cat > /data/noise; cat /data/noise"], &noise);
    assert!(output.status.success());
    assert!(output.stdout == noise, "{} bytes came back", output.stdout.len());
    assert!(fs::read(daemon.volume("data").join("noise")).unwrap() == noise);

    // tar cf - . | klee exec -i c tar xf - -C /data
    let archive = kleene_tests::image::busybox();
    let ran: kleene_tests::harness::Ran =
        daemon.klee_with(["exec", "-i", "c", "tar", "xf", "-", "-C", "/data"], &archive).into();
    ran.ok();
    assert!(daemon.volume("data").join("usr/share/site/img/logo.svg").exists());
}

#[test]
fn a_reader_that_goes_away_ends_klee_quietly() {
    let daemon = Daemon::with_image();
    let mut child = daemon
        .client()
        .args(["run", "--name", "c", "base", "sh", "-c", "while echo y; do :; done"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = [0; 1000];
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked") && !said.contains("klee:"), "{said}");
    daemon.run("container rm -f c").ok();
}

#[test]
fn signals_reach_the_process() {
    let daemon = Daemon::with_image();
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = daemon
        .client()
        .args(["run", "base", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn stop_asks_first_and_then_insists() {
    let daemon = Daemon::with_image();
    daemon
        .klee([
            "run",
            "-d",
            "--name",
            "kind",
            "base",
            "sh",
            "-c",
            "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done",
        ])
        .ok();
    daemon
        .klee([
            "run",
            "-d",
            "--name",
            "deaf",
            "base",
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 0.05; done",
        ])
        .ok();
    for name in ["kind", "deaf"] {
        eventually("it is ready", || daemon.run(&format!("logs {name}")).ok() == "ready");
    }
    daemon.run("stop kind").ok();
    assert_eq!(daemon.inspect("container", "kind")["container"]["exit_code"], 4);
    daemon.run("stop --time 1 deaf").ok();
    assert_eq!(daemon.inspect("container", "deaf")["container"]["exit_code"], 137);
    assert!(daemon.run("stop deaf").fails(6).contains("not running"));
}

#[test]
fn stop_needs_no_answer_of_the_supervisor() {
    let mut daemon = Daemon::with_image();
    let id = daemon.run("run -d --name c base sleep 600").ok();
    fs::remove_file(daemon.root().join("run").join(&id).join("sup.sock")).unwrap();
    daemon.run("container stop --time 0 c").ok();
    assert_eq!(daemon.run("container ls -q").ok(), "");
    daemon.run("container rm c").ok();

    // A crash that left how a removed one ended.
    assert!(daemon.stop().success());
    let left = daemon.root().join("run").join(&id);
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("exit.json"), "{}").unwrap();
    daemon.boot();
    assert!(!left.exists());
}

#[test]
fn a_container_lives_until_its_last_process() {
    let daemon = Daemon::with_image();
    let ran = daemon.klee([
        "run",
        "--name",
        "c",
        "base",
        "sh",
        "-c",
        "sleep 600 >/dev/null 2>&1 & exit 5",
    ]);
    assert_eq!(ran.code, 5);
    assert!(ran.stderr.contains("has exited with exit-code 5"), "{ran:?}");
    assert!(!ran.stderr.contains("its container"), "{ran:?}");
    assert_eq!(daemon.inspect("container", "c")["container"]["running"], true);
    daemon.run("stop --time 0 c").ok();
    assert_eq!(daemon.inspect("container", "c")["container"]["running"], false);
}

#[test]
fn a_process_that_closes_its_output_goes_on() {
    let daemon = Daemon::with_image();
    let ran =
        daemon.klee(["run", "base", "sh", "-c", "echo before; exec >&- 2>&-; sleep 0.2; exit 6"]);
    assert_eq!((ran.stdout.as_str(), ran.code), ("before\n", 6));
}

#[test]
fn logs_are_kept_and_followed() {
    let daemon = Daemon::with_image();
    daemon
        .klee(["run", "--name", "c", "base", "sh", "-c", "seq 1 5; echo oops >&2; printf end"])
        .ok();
    let ran = daemon.run("logs c");
    assert_eq!(ran.stdout, "1\n2\n3\n4\n5\nend");
    assert_eq!(ran.stderr, "oops\n");
    assert_eq!(daemon.run("logs --tail 2 c").stdout, "end");
    assert!(daemon.run("logs --timestamps c").stdout.starts_with("20"));

    daemon
        .klee(["run", "-d", "--name", "follow", "base", "sh", "-c", "echo 1; sleep 0.3; echo 2"])
        .ok();
    assert_eq!(daemon.run("logs -f follow").stdout, "1\n2\n");
    daemon.run("container rm follow").ok();
    daemon.run("logs follow").fails(3);
}

#[test]
fn a_log_that_is_filled_stays_within_its_bounds() {
    let daemon =
        Daemon::start_with("container_log_max_size = \"1M\"\ncontainer_log_max_files = 2", &[]);
    daemon.import(&kleene_tests::image::busybox());
    daemon
        .klee(["run", "-d", "--name", "c", "base", "sh", "-c", "yes | head -c 50000000; echo last"])
        .ok();
    assert_eq!(daemon.run("wait c").ok(), "0");
    let size: u64 = fs::read_dir(daemon.root().join("log"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 3 << 20, "{size}");
    assert_eq!(daemon.run("logs --tail 1 c").stdout, "last\n");
}

#[test]
fn a_gibibyte_arrives_whole() {
    let daemon = Daemon::start_with("container_log_max_size = \"1M\"", &[]);
    daemon.import(&kleene_tests::image::busybox());
    let mut child = daemon
        .client()
        .args(["run", "base", "head", "-c", "1073741824", "/dev/zero"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0_u64;
    loop {
        match stdout.read(&mut buffer).unwrap() {
            0 => break,
            n => {
                assert!(buffer[..n].iter().all(|byte| *byte == 0));
                total += n as u64;
            }
        }
    }
    assert_eq!(total, 1 << 30);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_container_starts_again_while_somebody_still_reads_what_it_wrote() {
    const SIZE: usize = 900_000;
    let daemon = Daemon::with_image();
    // More than what is between the process and a client that does not read, but for what the
    // supervisor keeps.
    let script = format!(
        "test -e /again && echo again && exit; touch /again; head -c {SIZE} /dev/zero; exit 3"
    );
    let mut slow = daemon
        .client()
        .args(["run", "--name", "c", "base", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the container", || daemon.run("container inspect c").code == 0);
    eventually("the end", || daemon.inspect("container", "c")["container"]["exit_code"] == 3);
    assert_eq!(daemon.run("start c").ok(), "again");
    let mut said = Vec::new();
    slow.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(said.len(), SIZE);
    assert_eq!(slow.wait().unwrap().code(), Some(3));
}

#[test]
fn exec_runs_beside_the_first_process() {
    let daemon = Daemon::with_image();
    daemon.run("run -d --name c -e A=1 base sleep 600").ok();
    assert_eq!(
        daemon.klee(["exec", "-e", "B=2", "c", "sh", "-c", "echo $A$B; exit 9"]).stdout,
        "12\n"
    );
    assert_eq!(daemon.klee(["exec", "c", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(daemon.run("exec -u www c id -un").ok(), "www");
    daemon.run("exec c no-such-program").fails(127);
    daemon.run("exec -d c touch /tmp/was-here").ok();
    eventually("the detached process", || daemon.run("exec c test -e /tmp/was-here").code == 0);
    assert_eq!(daemon.inspect("container", "c")["container"]["running"], true);
    assert!(daemon.run("exec ghost true").fails(125).contains("no such container"));
}

#[test]
fn a_terminal_is_one() {
    let daemon = Daemon::with_image();
    // script(1) gives klee a terminal of its own.
    let klee = kleene_tests::harness::binary("klee");
    let script = "tty; stty size; read line; echo got:$line";
    let mut command = std::process::Command::new("script");
    if cfg!(target_os = "linux") {
        let inner = format!("{} run -it base sh -c '{script}'", klee.display());
        command.args(["-qec", &inner, "/dev/null"]);
    } else {
        command
            .args(["-q", "/dev/null"])
            .arg(klee)
            .args(["run", "-it", "base", "sh", "-c", script]);
    }
    let mut child = command
        .env("KLEE_HOST", daemon.socket())
        .env("KLEE_PROJECT", "default")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("/dev/pts/"), "{said}");
    assert!(said.contains("got:hello"), "{said}");
}

#[test]
fn names_updates_and_restarts() {
    let daemon = Daemon::with_image();
    let id = daemon
        .klee(["container", "create", "--name", "old", "-e", "A=1", "base", "sh", "-c", "echo $A"])
        .ok();
    daemon.run("container rename old new").ok();
    assert_eq!(daemon.inspect("container", "new")["container"]["env"][0], "A=1");
    assert!(daemon.run("container create --name new base").fails(4).contains(&id));
    daemon.run("container update -e A=2 new").ok();
    assert_eq!(daemon.run("start new").ok(), "2");
    // Renaming and updating keep what they don't name.
    assert_eq!(daemon.inspect("container", "new")["container"]["cmd"][2], "echo $A");
    daemon.klee(["container", "create", "--name", "long", "base", "sleep", "600"]).ok();
    daemon.run("start -d long").ok();
    let first = daemon.run("container ls -o json").ok();
    daemon.run("restart --time 0 long").ok();
    assert_ne!(daemon.run("container ls -o json").ok(), first);
    daemon.run("stop --time 0 long").ok();
    assert_eq!(daemon.run("container ls -q").ok(), "");
    let started = daemon.run("restart --time 0 long").ok();
    assert_eq!(daemon.run("container ls -q").ok(), started);
    assert_eq!(daemon.run("container prune -f").ok(), id);
    daemon.klee(["container", "inspect", &id]).fails(3);
}

#[test]
fn rm_removes_what_was_asked_for() {
    let daemon = Daemon::with_image();
    daemon.run("run -d --name c base sleep 600").ok();
    assert!(daemon.run("rmc c").fails(6).contains("running"));
    daemon.run("rmc -f c").ok();
    daemon.run("run --rm --name gone base true").ok();
    assert_eq!(daemon.run("lsc -a -q").ok(), "");
    daemon.run("run -d --rm --name later base true").ok();
    eventually("the removal", || daemon.run("lsc -a -q").ok().is_empty());
    assert_eq!(fs::read_dir(daemon.root().join("log")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(daemon.root().join("container")).unwrap().count(), 0);
}

#[test]
fn one_of_several_that_fails_does_not_keep_the_others() {
    let daemon = Daemon::with_image();
    for name in ["a", "b"] {
        daemon.klee(["create", "--name", name, "base", "sleep", "1000"]).ok();
    }
    let started = daemon.run("start -d -q a nope b");
    assert_eq!((started.code, started.stdout.as_str()), (125, "a\nb\n"), "{started:?}");
    let started = daemon.run("restart -t 0 nope a");
    assert_eq!((started.code, started.stdout.lines().count()), (3, 1), "{started:?}");
    // A container that runs and one that does not exist: the first failure counts.
    let removed = daemon.run("rmc a nope b");
    assert_eq!((removed.code, removed.stdout.as_str()), (6, ""), "{removed:?}");
    assert_eq!(removed.stderr.lines().count(), 3, "{removed:?}");
    let stopped = daemon.run("stop -t 0 nope a b");
    assert_eq!((stopped.code, stopped.stdout.lines().count()), (3, 2), "{stopped:?}");
    let refused = daemon.run("rmi base").fails(5);
    for part in ["base:latest", "container a (", "container b ("] {
        assert!(refused.contains(part), "{refused}");
    }
    let removed = daemon.run("rmc nope a b");
    assert_eq!((removed.code, removed.stdout.lines().count()), (3, 2), "{removed:?}");
}

#[test]
fn containers_outlive_the_daemon() {
    let mut daemon = Daemon::with_image();
    let script = "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); echo $i > /data/count; sleep 0.05; done; echo done; exit 8";
    daemon.klee(["run", "-d", "--name", "c", "-m", "data:/data", "base", "sh", "-c", script]).ok();
    daemon.run("run -d --name brief base sleep 0.5").ok();
    let count = || fs::read_to_string(daemon.volume("data").join("count")).unwrap_or_default();
    eventually("the first count", || !count().is_empty());
    daemon.kill();
    let before = fs::read_to_string(daemon.volume("data").join("count")).unwrap();
    eventually("a count without the daemon", || {
        fs::read_to_string(daemon.volume("data").join("count"))
            .is_ok_and(|now| !now.is_empty() && now != before)
    });
    daemon.boot();
    assert_eq!(daemon.inspect("container", "c")["container"]["running"], true);
    assert_eq!(daemon.inspect("volume", "data")["volume"]["state"], "mounted");
    assert_eq!(daemon.run("exec c cat /data/count").code, 0);
    assert_eq!(daemon.run("wait brief").ok(), "0");
    fs::write(daemon.volume("data").join("stop"), "").unwrap();
    assert_eq!(daemon.run("wait c").ok(), "8");
    assert_eq!(daemon.run("logs c").stdout, "done\n");
}

#[test]
fn what_was_to_be_removed_is_removed_after_a_power_failure() {
    let mut daemon = Daemon::with_image();
    daemon.run("run -d --rm --name ran base sleep 600").ok();
    daemon.run("run -d --name kept base sleep 600").ok();
    // Made to be removed when it ends, and never started. The answer waits until it is there.
    let created = daemon.raw(
        "POST /containers/create HTTP/1.1\r\nHost: k\r\nConnection: close\r\nPrefer: exact-status\r\n\
         Content-Type: application/json\r\nContent-Length: 54\r\n\r\n\
         {\"image\":\"base\",\"name\":\"unstarted\",\"auto_remove\":true}",
    );
    assert!(created.starts_with("HTTP/1.1 201"), "{created}");
    daemon.power_off();
    daemon.boot();
    let mut names: Vec<String> = daemon
        .klee(["container", "ls", "-a", "--format", "{{.name}}"])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    names.sort();
    assert_eq!(names, ["kept", "unstarted"]);
    assert_eq!(daemon.inspect("container", "kept")["container"]["running"], false);
    assert_eq!(fs::read_dir(daemon.root().join("container")).unwrap().count(), 2);
    daemon.run("start -d kept").ok();
}

#[test]
fn what_shall_start_with_the_daemon_does() {
    let mut daemon = Daemon::with_image();
    daemon.run("run -d --name c --restart on-startup base sleep 600").ok();
    daemon.run("stop --time 0 c").ok();
    assert!(daemon.stop().success());
    daemon.boot();
    eventually("the start", || daemon.inspect("container", "c")["container"]["running"] == true);
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let daemon = Daemon::start();
    let config = daemon.home().join("second.toml");
    fs::write(
        &config,
        format!("root = {:?}\nsocket = {:?}\n", daemon.root(), daemon.home().join("sock2")),
    )
    .unwrap();
    let output = std::process::Command::new(kleene_tests::harness::binary("kleened"))
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(daemon.root().to_str().unwrap()), "{said}");
    assert!(!daemon.home().join("sock2").exists());
}
