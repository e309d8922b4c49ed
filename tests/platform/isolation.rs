//! What is inside stays inside: the superuser of a container can't reach the host.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use kleene_tests::harness::binary;
use kleened::platform::{Error, Launch};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::sandbox::{Sandbox, wait_for};

#[test]
fn capabilities() {
    let Some(sandbox) = Sandbox::new() else { return };
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
    // sys_chroot, audit_write, setfcap
    let kept: u64 = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31].iter().map(|number| 1 << number).sum();
    let (none, kept) = (format!("{:016x}", 0), format!("{kept:016x}"));
    let (client, _) = sandbox.start("grep ^Cap /proc/self/status");
    drop(client);
    sandbox.platform.kill(&sandbox.container).unwrap();
    let (client, _) = sandbox.start("");
    for (user, own) in [("", &kept), ("www", &none)] {
        let mut launch = sandbox.joined(&["grep", "^Cap", "/proc/self/status"]);
        launch.process.user = user.to_owned();
        let outcome = sandbox.attach(&launch).unwrap().finish();
        let expected = format!(
            "CapInh:\t{none}\nCapPrm:\t{own}\nCapEff:\t{own}\nCapBnd:\t{kept}\nCapAmb:\t{none}\n"
        );
        assert_eq!(outcome.output, expected, "{user:?}");
    }
    drop(client);
    sandbox.platform.kill(&sandbox.container).unwrap();
    let outcome = sandbox.shell("grep ^Cap /proc/self/status");
    assert!(outcome.output.contains(&format!("CapBnd:\t{kept}")), "{}", outcome.output);
}

#[test]
fn what_would_reach_the_host_fails() {
    let Some(sandbox) = Sandbox::new() else { return };
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    let forbidden = [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /proc/sys",
        "mount --bind / /tmp",
        "umount /proc/sys",
        "umount /dev/shm",
        "mknod /tmp/disk b 8 0",
        "mknod /tmp/kmem c 1 2",
        "unshare -m true",
        "unshare -n true",
        "unshare -U true",
        "pivot_root / /tmp",
        "hostname other",
        "swapoff -a && swapon /etc/passwd",
        "reboot -f",
        "insmod /bin/busybox",
        "ip link set lo down",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo c > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 0 > /proc/irq/default_smp_affinity",
        "head -c 1 /proc/kcore | grep -q .",
        "grep -q . /proc/timer_list",
        "grep -q . /proc/keys",
        "readlink /proc/1/exe",
        "ls /proc/1/cwd/",
        "ls /proc/1/root/",
        "for fd in /proc/1/fd/*; do readlink $fd && exit 0; done; exit 1",
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "cat /proc/1/maps | grep -q .",
        "echo x > /proc/1/exe",
        "cp /bin/busybox /proc/1/exe",
        "ls /sys/kernel",
        "cat /dev/kmsg",
        "nsenter -t 1 -m true",
        "chown root /proc/1/oom_score_adj && echo -1000 > /proc/1/oom_score_adj",
    ];
    let (client, _) = sandbox.start("");
    for command in forbidden {
        let outcome = sandbox.exec(command);
        assert_ne!(outcome.code, 0, "{command}: {outcome:?}");
        assert_ne!(outcome.code, 127, "{command}: {outcome:?}");
    }
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    // From inside, pid 1 can't be killed; SIGTERM it passes on.
    assert_eq!(sandbox.exec("kill -9 1; kill -HUP 1; echo here").output, "here\n");
    assert_eq!(sandbox.exec("echo still").output, "still\n");
    drop(client);
}

#[test]
fn what_every_program_needs_works() {
    let Some(sandbox) = Sandbox::new() else { return };
    for command in [
        "chown 80:81 /tmp && chmod 1777 /tmp",
        "su www -c true",
        "chroot / true",
        "nc -l -p 80 -w 1 || true",
        "echo x > /dev/null && head -c 9 /dev/zero | wc -c | grep -q 9",
        "head -c 1 /dev/urandom > /dev/shm/x && test -s /dev/shm/x",
        "test -c /dev/tty -a -c /dev/full -a -c /dev/random -a -c /dev/ptmx",
        "echo out > /dev/stdout && echo err > /dev/stderr",
        "ps | grep -q ps && cat /proc/cpuinfo | grep -q .",
        "touch -d 2001-01-01 /tmp/x && ln /tmp/x /tmp/y && mkfifo /tmp/z",
        "ping -c 1 127.0.0.1 > /dev/null || true",
    ] {
        let outcome = sandbox.shell(command);
        assert_eq!(outcome.code, 0, "{command}: {outcome:?}");
    }
}

#[test]
fn nothing_of_the_host_is_mounted() {
    let Some(sandbox) = Sandbox::new() else { return };
    let table = sandbox.shell("cut -d ' ' -f 5 /proc/self/mountinfo").output;
    for line in table.lines() {
        let own = line == "/" || line.starts_with("/proc") || line.starts_with("/dev");
        assert!(own, "{line} is mounted");
    }
    assert!(!table.contains(sandbox.dir.path().to_str().unwrap()));
    let listed = sandbox.shell("ls / && ls /dev").output;
    let names: BTreeSet<_> = listed.lines().collect();
    let expected = "bin dev etc proc root tmp var fd full null ptmx pts random shm stderr stdin \
                    stdout tty urandom zero";
    assert_eq!(names, expected.split(' ').collect());
}

#[test]
fn only_its_own_processes_are_seen() {
    let Some(sandbox) = Sandbox::new() else { return };
    let outcome = sandbox.shell("set -- /proc/[0-9]*; echo $#; echo $$");
    // Pid 1 and the shell, which looks itself.
    assert_eq!(outcome.output, "2\n2\n");
}

#[test]
fn no_descriptor_is_inherited() {
    let Some(sandbox) = Sandbox::new() else { return };
    // What this process leaves open by mistake.
    let leaked = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    // The last one is the directory that is listed.
    let script = "ls -1 /proc/self/fd; for n in 0 1 2; do readlink /proc/self/fd/$n; done";
    let (client, _) = sandbox.start("");
    let outcome = sandbox.exec(script);
    let lines: Vec<_> = outcome.output.lines().collect();
    assert_eq!(lines[..4], ["0", "1", "2", "3"]);
    assert!(lines[4..].iter().all(|line| line.starts_with("pipe:")), "{lines:?}");
    assert_eq!(lines.len(), 7);
    // Neither pid 1 nor the supervisor has one of the host's files open.
    let init = sandbox.platform.running().unwrap()[0].jid;
    let open = |pid: i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = fds.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
        targets.map(|target| target.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let of_init = open(init);
    assert!(of_init.iter().all(|target| target.starts_with("socket:")), "{of_init:?}");
    assert_eq!(of_init.len(), 1);
    let own = sandbox.dir.path().to_str().unwrap();
    for target in open(sandbox.supervisor().as_raw_nonzero().get()) {
        let known = ["socket:", "pipe:", "anon_inode:[pidfd]", "pidfd:", "/dev/null", own];
        assert!(known.iter().any(|known| target.starts_with(known)), "{target}");
    }
    drop((client, leaked));
}

#[test]
fn signals_and_modes_are_the_usual_ones() {
    let Some(sandbox) = Sandbox::new() else { return };
    let outcome = sandbox.shell("grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; umask; ulimit -c");
    let mut lines = outcome.output.lines();
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = lines.next().unwrap();
        let signals = line.strip_prefix(name).unwrap().trim_start_matches(":\t");
        // Above are those that the C library keeps for itself.
        assert_eq!(u64::from_str_radix(signals, 16).unwrap() & 0x7fff_ffff, 0, "{line}");
    }
    assert_eq!(lines.next(), Some("0022"));
}

#[test]
fn the_supervisors_program_cannot_be_written() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    // A program of its own: nobody else executes it.
    let program = sandbox.host("kleened");
    fs::copy(binary("kleened"), &program).unwrap();
    sandbox.platform = kleened::platform::open_with(&sandbox.run_dir(), Some(&program)).unwrap();
    let (client, _) = sandbox.start("");
    let init = sandbox.platform.running().unwrap()[0].jid;
    // Not even the host's superuser can, who may look into pid 1.
    let path = format!("/proc/{init}/exe");
    let error = rustix::fs::openat(CWD, &path, OFlags::WRONLY, Mode::empty()).unwrap_err();
    assert!(matches!(error, Errno::ROFS | Errno::TXTBSY), "{error}");
    let place = rustix::fs::openat(CWD, &path, OFlags::PATH, Mode::empty()).unwrap();
    let supervisor = sandbox.supervisor();
    sandbox.platform.kill(&sandbox.container).unwrap();
    client.drain();
    wait_for(supervisor);
    // Nor later, when nobody executes it any more.
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let error = fs::OpenOptions::new().write(true).open(path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn the_hosts_null_device_is_out_of_reach() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(sandbox) = Sandbox::new() else { return };
    let before = fs::metadata("/dev/null").unwrap();
    let script = "for f in /proc/self/fd/0 /proc/self/fd/1 /dev/null /dev/stdin; do chmod 000 $f; chown 80 $f; done";
    sandbox.shell(script);
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!(
        (after.permissions().mode(), after.uid()),
        (before.permissions().mode(), before.uid())
    );
}

#[test]
fn a_terminal_is_not_the_hosts() {
    let Some(sandbox) = Sandbox::new() else { return };
    let script = "tty; ls -1 /dev/pts; readlink /proc/self/fd/0; ls -l /dev/console | cut -c 1; \
                  stat -c %u:%g /dev/pts/0";
    let mut launch = sandbox.first(&["sh", "-c", script]);
    launch.process.tty = true;
    launch.process.user = "www".to_owned();
    let outcome = sandbox.run_launch(&launch).unwrap();
    let expected = "/dev/pts/0\r\n0\r\nptmx\r\n/dev/pts/0\r\nc\r\n80:5\r\n";
    assert_eq!(outcome.output, expected);
}

#[test]
fn no_link_of_an_image_leads_through_what_the_supervisor_has_open() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let Some(sandbox) = Sandbox::new() else { return };
    let (root, host) = (sandbox.root(), sandbox.dir.path());
    // Beside and above all that a supervisor has open.
    for dir in [host.to_owned(), sandbox.run_dir()] {
        fs::write(dir.join("passwd"), "intruder:x:0:0::/:/bin/sh\n").unwrap();
        fs::write(dir.join("program"), "#!/bin/sh\necho out\n").unwrap();
        fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir(root.join("links")).unwrap();
    for n in 3..64 {
        let place = |what: &str| format!("/proc/self/fd/{n}{what}");
        symlink(place(""), root.join(format!("links/dir{n}"))).unwrap();
        symlink(place("/../program"), root.join(format!("links/program{n}"))).unwrap();
        for pid in ["self", "1"] {
            let target = format!("/proc/{pid}/fd/{n}/../passwd");
            symlink(target, root.join(format!("links/passwd-{pid}-{n}"))).unwrap();
        }
    }
    let refused = |launch: &Launch, what: &str| match sandbox.platform.launch(launch) {
        Err(Error::Start { .. }) => (),
        other => panic!("{what}: {other:?}"),
    };
    let attempts = |make: &dyn Fn(&[&str]) -> Launch| {
        for n in 3..64 {
            let mut launch = make(&["ls", "-a"]);
            launch.process.workdir = format!("/links/dir{n}");
            refused(&launch, &launch.process.workdir);
            refused(&make(&[&format!("/links/program{n}")]), "a program");
            for pid in ["self", "1"] {
                fs::rename(root.join(format!("links/passwd-{pid}-{n}")), root.join("etc/passwd"))
                    .unwrap();
                let mut launch = make(&["true"]);
                launch.process.user = "intruder".to_owned();
                refused(&launch, &format!("{pid} {n}"));
                fs::rename(root.join("etc/passwd"), root.join(format!("links/passwd-{pid}-{n}")))
                    .unwrap();
            }
        }
    };
    attempts(&|argv| sandbox.first(argv));
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    let (client, _) = sandbox.start("");
    attempts(&|argv| sandbox.joined(argv));
    drop(client);
}
