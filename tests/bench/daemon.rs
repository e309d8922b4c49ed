//! The daemon and its client, whole processes: against programs that do a part of the same.
//!
//! Build them first: `cargo build --release --bins`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use kleene_tests::harness::{Daemon, binary};

use crate::race::{Side, race, timed};

/// How many volumes clients make together, and how many clients there are.
const VOLUMES: usize = 1_000;
const CLIENTS: usize = 16;

/// How many volumes are listed.
const LISTED: usize = 10_000;

pub(crate) fn run() {
    let daemon = Daemon::with_image();
    memory(&daemon, "idle, after one import");
    version();
    volume_create(&daemon);
    container_run(&daemon);
    many_clients(&daemon);
    list(&daemon);
    memory(&daemon, "after all that");
}

/// Runs a program that must succeed.
pub(crate) fn must(command: &mut Command) {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?} failed");
}

pub(crate) fn klee(daemon: &Daemon, arguments: &[&str]) {
    must(daemon.client().args(arguments));
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The memory of a process by the kernel's word, in KiB: all of it, and what it shares with no file.
fn memory(daemon: &Daemon, when: &str) {
    let status = format!("/proc/{}/status", daemon.pid().as_raw_nonzero());
    let status = fs::read_to_string(status).unwrap_or_default();
    let figure = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
    };
    let mib = |name| figure(name) / 1024.0;
    println!(
        "the daemon's memory, {when}\n    {:.1} MiB resident, {:.1} MiB of its own",
        mib("VmRSS"),
        mib("RssAnon")
    );
}

fn version() {
    let program = |name: &'static str, mut command: Command| {
        Side::new(name, move |_| timed(|| must(&mut command)))
    };
    let mut klee = Command::new(binary("klee"));
    klee.arg("--version");
    race(
        "start of the client",
        30,
        vec![program("klee --version", klee), program("true", Command::new("true"))],
    );
}

fn volume_create(daemon: &Daemon) {
    let mut sides = vec![
        Side::new("klee volume create", |round| {
            timed(|| klee(daemon, &["volume", "create", &format!("one-{round}")]))
        }),
        Side::new("mkdir, sync", |round| {
            let place = daemon.home().join(format!("directory-{round}"));
            timed(|| {
                must(Command::new("mkdir").arg(&place));
                must(Command::new("sync").arg(&place));
            })
        }),
    ];
    if installed("podman") {
        sides.push(Side::new("podman volume create", |round| {
            timed(|| {
                must(Command::new("podman").args([
                    "volume",
                    "create",
                    &format!("kleene-bench-{round}"),
                ]))
            })
        }));
    }
    race("one volume", 20, sides);
    for round in 0..=20 {
        if installed("podman") {
            must(Command::new("podman").args(["volume", "rm", &format!("kleene-bench-{round}")]));
        }
    }
}

fn container_run(daemon: &Daemon) {
    klee(daemon, &["container", "create", "--name", "again", "base", "true"]);
    race(
        "a container that does nothing",
        20,
        vec![
            Side::new("klee run --rm base true", |_| {
                timed(|| klee(daemon, &["run", "--rm", "base", "true"]))
            }),
            Side::new("klee start again", |_| timed(|| klee(daemon, &["start", "again"]))),
            Side::new("bare unshare true", |_| {
                timed(|| must(Command::new("unshare").args(["-mpuif", "--mount-proc", "true"])))
            }),
        ],
    );
}

fn many_clients(daemon: &Daemon) {
    let make = |prefix: &str, clients: usize| {
        timed(|| {
            thread::scope(|scope| {
                for client in 0..clients {
                    scope.spawn(move || {
                        for n in (client..VOLUMES).step_by(clients) {
                            klee(daemon, &["volume", "create", &format!("{prefix}-{n}")]);
                        }
                    });
                }
            });
        })
    };
    race(
        &format!("{VOLUMES} volumes"),
        1,
        vec![
            Side::new(&format!("{CLIENTS} clients at once"), |round| {
                make(&format!("many-{round}"), CLIENTS)
            }),
            Side::new("one after another", |round| make(&format!("loop-{round}"), 1)),
            Side::new("a loop of mkdir", |round| {
                let place = daemon.home().join(format!("loop-{round}"));
                must(Command::new("mkdir").arg(&place));
                timed(|| {
                    (0..VOLUMES)
                        .for_each(|n| must(Command::new("mkdir").arg(place.join(n.to_string()))))
                })
            }),
        ],
    );
}

fn list(daemon: &Daemon) {
    let there = daemon.run("volume ls -q").ok().lines().count();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for n in (client..LISTED.saturating_sub(there)).step_by(CLIENTS) {
                    klee(daemon, &["volume", "create", &format!("listed-{n}")]);
                }
            });
        }
    });
    let volumes = daemon.root().join("volumes");
    race(
        &format!("a list of {LISTED} volumes"),
        20,
        vec![
            Side::new("klee volume ls", |_| timed(|| klee(daemon, &["volume", "ls"]))),
            Side::new("klee volume ls -q", |_| timed(|| klee(daemon, &["volume", "ls", "-q"]))),
            Side::new("ls -l of as many", |_| {
                timed(|| must(Command::new("ls").arg("-l").arg(Path::new(&volumes))))
            }),
        ],
    );
}
