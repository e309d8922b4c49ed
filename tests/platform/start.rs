//! Processes start as they were asked for, or not at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use kleened::platform::Error;
#[cfg(target_os = "linux")]
use kleened_api::container::NetworkDriver;

use crate::sandbox::{Sandbox, id};

#[test]
fn exit_status_and_both_outputs() {
    let Some(sandbox) = Sandbox::new() else { return };
    let outcome = sandbox.shell("echo out; echo err >&2; exit 7");
    assert_eq!(
        (outcome.code, outcome.output.as_str(), outcome.errors.as_str()),
        (7, "out\n", "err\n")
    );
    assert_eq!(sandbox.shell("kill -9 $$").code, 128 + 9);
    assert_eq!(sandbox.shell("kill -TERM $$").code, 128 + 15);
}

#[test]
fn a_program_that_is_not_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    for program in ["no-such-program", "/bin/no-such-program", "/etc/passwd/x", "./x", ""] {
        match sandbox.run(&[program]) {
            Err(Error::Start { program: named, exit_code: 127, .. }) => assert_eq!(named, program),
            other => panic!("{program}: {other:?}"),
        }
    }
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert!(!sandbox.root().join("proc/self").exists(), "a mount was left");
}

#[test]
fn a_program_that_cannot_be_run() {
    let Some(sandbox) = Sandbox::new() else { return };
    let make = |name: &str, text: &str, mode| {
        let path = sandbox.root().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make("plain", "#!/bin/sh\n", 0o644);
    make("nonsense", "neither a script nor a program", 0o755);
    make("orphan", "#!/no/such/interpreter\n", 0o755);
    for (program, code, words) in [
        ("/plain", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
        ("/nonsense", 126, "Exec format error"),
        ("/orphan", 127, "interpreter"),
    ] {
        match sandbox.run(&[program]) {
            Err(Error::Start { reason, exit_code, .. }) => {
                assert_eq!(exit_code, code, "{program}: {reason}");
                assert!(reason.contains(words), "{program}: {reason}");
            }
            other => panic!("{program}: {other:?}"),
        }
    }
}

#[test]
fn the_path_is_the_environments() {
    let Some(sandbox) = Sandbox::new() else { return };
    let tool = sandbox.root().join("root/tool");
    fs::write(&tool, "#!/bin/sh\necho \"$0 $*\"\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let mut launch = sandbox.first(&["tool", "a b", ""]);
    launch.process.env = vec!["PATH=/nowhere:/root".to_owned()];
    assert_eq!(sandbox.run_launch(&launch).unwrap().output, "/root/tool a b \n");
}

#[test]
fn the_environment() {
    let Some(sandbox) = Sandbox::new() else { return };
    let environment = |user: &str, env: &[&str]| {
        let mut launch = sandbox.first(&["env"]);
        launch.process.user = user.to_owned();
        launch.process.env = env.iter().map(|&text| text.to_owned()).collect();
        let output = sandbox.run_launch(&launch).unwrap().output;
        let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(environment("", &[]), ["HOME=/root", path, "SHELL=/bin/sh", "USER=root"]);
    assert_eq!(
        environment("www", &["PATH=/bin", "HOME=/x", "A=b=c d", "EMPTY="]),
        ["A=b=c d", "EMPTY=", "HOME=/x", "PATH=/bin", "SHELL=/bin/sh", "USER=www"]
    );
    assert_eq!(environment("4711", &[]), ["HOME=/", path, "SHELL=/bin/sh"]);
}

#[test]
fn users_by_name_and_number() {
    let Some(sandbox) = Sandbox::new() else { return };
    for (user, expected) in [
        ("", "0 0 0"),
        ("www", "80 81 81 6"),
        ("80", "80 81 81 6"),
        ("www:staff", "80 50 50"),
        ("80:7", "80 7 7"),
        ("4711", "4711 0 0"),
        ("4711:4712", "4711 4712 4712"),
    ] {
        let script = "echo $(id -u) $(id -g) $(id -G); echo x > /dev/stdout";
        let mut launch = sandbox.first(&["sh", "-c", script]);
        launch.process.user = user.to_owned();
        let outcome = sandbox.run_launch(&launch).unwrap();
        assert_eq!(outcome.output, format!("{expected}\nx\n"), "{user} {}", outcome.errors);
    }
    for (user, missing) in [("joe", "joe"), ("www:none", "none"), ("-1", "-1")] {
        let mut launch = sandbox.first(&["true"]);
        launch.process.user = user.to_owned();
        match sandbox.run_launch(&launch) {
            Err(Error::Start { reason, exit_code: 126, .. }) => assert!(reason.contains(missing)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn hostile_user_files() {
    let Some(sandbox) = Sandbox::new() else { return };
    let passwd = sandbox.root().join("etc/passwd");
    for target in ["/proc/self/mem", "/dev/zero", "/etc/passwd", "../../../../etc/shadow"] {
        fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink(target, &passwd).unwrap();
        let mut launch = sandbox.first(&["true"]);
        launch.process.user = "www".to_owned();
        let error = sandbox.run_launch(&launch).unwrap_err();
        assert!(matches!(error, Error::Start { .. }), "{target}: {error:?}");
    }
    fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(sandbox.run(&["true"]).unwrap().code, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_daemons_fate_is_not_inherited() {
    let Some(sandbox) = Sandbox::new() else { return };
    let own = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(own).unwrap();
    fs::write(own, "500").unwrap();
    let outcome = sandbox.shell(&format!("cat {own}"));
    fs::write(own, before).unwrap();
    assert_eq!(outcome.output, "0\n");
}

#[test]
fn the_directory_to_start_in() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut launch = sandbox.first(&["pwd"]);
    launch.process.workdir = "/var/www".to_owned();
    assert_eq!(sandbox.run_launch(&launch).unwrap().output, "/var/www\n");
    for (workdir, words) in [("/no/such", "there is no directory /no/such"), ("/bin/sh", "/bin/sh")]
    {
        let mut launch = sandbox.first(&["pwd"]);
        launch.process.workdir = workdir.to_owned();
        match sandbox.run_launch(&launch) {
            Err(Error::Start { reason, exit_code: 126, .. }) => {
                assert!(reason.contains(words), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    fs::set_permissions(sandbox.root().join("root"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut launch = sandbox.first(&["pwd"]);
    launch.process.workdir = "/root".to_owned();
    launch.process.user = "www".to_owned();
    assert!(matches!(sandbox.run_launch(&launch), Err(Error::Start { .. })));
}

#[cfg(target_os = "linux")]
#[test]
fn the_host_name_and_the_network() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let outcome = sandbox.shell("hostname; ls /proc/sys/net/ipv4/conf; ping -c 1 127.0.0.1 >&2");
    assert_eq!(outcome.output, "sandbox\nall\ndefault\nlo\n");
    let listen =
        "nc -l -p 4711 & until echo hello | nc 127.0.0.1 4711 2> /dev/null; do :; done; wait";
    assert_eq!(sandbox.shell(listen).output, "hello\n");
    sandbox.network = NetworkDriver::Host;
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let seen = sandbox.shell("readlink /proc/self/ns/net").output;
    assert_eq!(seen.trim(), own.to_str().unwrap());
    assert_ne!(rustix::system::uname().nodename().to_str(), Ok("sandbox"));
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_not_supported_is_refused() {
    let Some(sandbox) = Sandbox::new() else { return };
    let check = |network, params: &[&str]| {
        let params: Vec<_> = params.iter().map(|&text| text.to_owned()).collect();
        sandbox.platform.check(network, &params)
    };
    check(NetworkDriver::Host, &["mount.devfs", "allow.raw_sockets=true", "exec.clean="]).unwrap();
    check(NetworkDriver::Disabled, &[]).unwrap();
    for network in [NetworkDriver::Ipnet, NetworkDriver::Vnet] {
        let error = check(network, &[]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("'host'")), "{error}");
    }
    sandbox.platform.check_limits(&[]).unwrap();
    let error = sandbox.platform.check_limits(&["maxproc=5".to_owned()]).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("rctl(8)")), "{error}");
    for bad in ["", "=x", "a b", "a..b", "-x", "a=\0"] {
        assert!(matches!(check(NetworkDriver::Host, &[bad]), Err(Error::Invalid(_))), "{bad:?}");
    }
}

#[test]
fn a_container_runs_once() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (client, first) = sandbox.start("");
    let error = sandbox.run(&["true"]).unwrap_err();
    assert!(matches!(&error, Error::Running(id) if *id == sandbox.container), "{error:?}");
    let running = sandbox.platform.running().unwrap();
    assert_eq!(running.iter().map(|r| &r.instance).collect::<Vec<_>>(), [&first]);
    drop(client);
}

#[test]
fn of_those_that_start_at_once_one_runs() {
    let Some(sandbox) = Sandbox::new() else { return };
    let launches: Vec<_> = (0..4).map(|_| sandbox.first(&["sleep", "1000"])).collect();
    let results = std::thread::scope(|scope| {
        let platform = &sandbox.platform;
        let threads: Vec<_> =
            launches.iter().map(|launch| scope.spawn(|| platform.launch(launch))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    for result in results {
        assert!(matches!(result, Ok(()) | Err(Error::Running(_))), "{result:?}");
    }
}

#[test]
fn a_process_joins_the_running_container() {
    let Some(sandbox) = Sandbox::new() else { return };
    let error = sandbox.run_launch(&sandbox.joined(&["true"])).unwrap_err();
    assert!(matches!(&error, Error::NotRunning(id) if *id == sandbox.container), "{error:?}");

    let (client, _) = sandbox.start("mkdir /tmp/x; cd /tmp/x; export A=b");
    let outcome = sandbox.exec("hostname; ls -d /tmp/x; echo \"$A\"; pwd; exit 3");
    assert_eq!((outcome.code, outcome.output.as_str()), (3, "sandbox\n/tmp/x\n\n/\n"));
    #[cfg(target_os = "linux")]
    {
        let pid = sandbox.platform.running().unwrap()[0].jid;
        for kind in ["mnt", "pid", "uts", "ipc", "net"] {
            let expected = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            let seen = sandbox.exec(&format!("readlink /proc/self/ns/{kind}")).output;
            assert_eq!(seen.trim(), expected.to_str().unwrap());
            assert_ne!(expected, fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
        }
    }
    let mut launch = sandbox.joined(&["id", "-u"]);
    launch.process.user = "www".to_owned();
    assert_eq!(sandbox.attach(&launch).unwrap().finish().output, "80\n");
    let missing = sandbox.joined(&["no-such-program"]);
    assert!(matches!(sandbox.platform.launch(&missing), Err(Error::Start { exit_code: 127, .. })));
    assert!(sandbox.platform.connect(&missing.instance).unwrap().is_none());
    drop(client);
}

#[test]
fn an_instance_that_is_not_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    assert!(sandbox.platform.connect(&id()).unwrap().is_none());
    assert_eq!(sandbox.platform.exited(&id()).unwrap(), None);
    sandbox.platform.forget(&id()).unwrap();
    assert!(!sandbox.platform.kill(&id()).unwrap());
    assert!(matches!(sandbox.platform.mounts(&id()), Err(Error::NotRunning(_))));
}
