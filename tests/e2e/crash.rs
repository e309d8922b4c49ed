//! The daemon is killed at every step; afterwards nothing is between two states.

use kleene_tests::harness::Daemon;
use kleene_tests::image::{busybox, listing};

/// The exit status of a client that the daemon does not answer.
const UNREACHABLE: i32 = 10;

/// How many calls there are from one at which the daemon is killed to the next: `KLEENE_STRIDE`, for
/// machines that are slow.
fn stride() -> usize {
    std::env::var("KLEENE_STRIDE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Runs `verb` again and again, with the daemon killed at its 1st, 2nd, 3rd… storage call, before
/// the call and after it, and at each step inside the driver, until it comes to its end. After each kill
/// the daemon is started again and `check` looks at what is there; after the last, at the verb's success.
/// `reset` goes back.
pub(crate) fn kill_at_every_call(
    prepare: &str,
    verb: &str,
    check: impl Fn(&Daemon, Option<i32>),
    reset: &[&str],
) {
    for (method, moment) in [("*", "before"), ("*", "after"), ("point", "before")] {
        let mut daemon = Daemon::start();
        daemon.import(&busybox());
        for command in prepare.lines() {
            daemon.run(command.trim()).ok();
        }
        let mut kills = 0;
        for n in (1..).step_by(stride()) {
            assert!(n < 200, "it never ends");
            assert!(daemon.stop().success());
            daemon.set_environment("KLEENED_FAULT", Some(&format!("{method}:{n}:{moment}:kill")));
            // A client that loses the daemon in the middle says so.
            let code = daemon
                .try_boot()
                .then(|| daemon.run(verb).code)
                .filter(|code| *code != UNREACHABLE);
            let died = code.is_none();
            if daemon.runs() {
                daemon.kill();
            }
            daemon.set_environment("KLEENED_FAULT", None);
            daemon.boot();
            check(&daemon, code);
            assert!(daemon.litter().is_empty(), "{method} {n} {moment}: {:?}", daemon.litter());
            for command in reset {
                daemon.run(command);
            }
            if !died {
                break;
            }
            kills += 1;
        }
        // ZFS writes a record in one step.
        let steps = method != "point" || daemon.driver() != "zfs";
        assert!(kills * stride() > 1 || !steps, "only {kills} times {moment} {method}");
    }
}

/// The volume is not there, or whole; `Some` where the verb came to its end.
fn site(daemon: &Daemon) -> Option<usize> {
    let known = daemon.run("volume ls -q").ok().lines().any(|name| name == "site");
    assert_eq!(known, daemon.volume("site").exists());
    known.then(|| listing(&daemon.volume("site")).len())
}

#[test]
fn creating_a_container_with_a_new_volume() {
    kill_at_every_call(
        "",
        "container create --name c -m site:/usr/share/site base",
        |daemon, code| {
            let container = !daemon.run("container ls -aq").ok().is_empty();
            match site(daemon) {
                Some(files) => {
                    assert!(container && files == 6, "{files} files, container: {container}")
                }
                None => assert!(!container),
            }
            assert!(code != Some(0) || container);
            // What was cut off can be done again.
            if !container {
                daemon.run("container create --name c -m site:/usr/share/site base").ok();
                assert_eq!(site(daemon), Some(6));
            }
        },
        &["container rm c", "volume rm site"],
    );
}

#[test]
fn filling_a_volume_that_was_there() {
    kill_at_every_call(
        "volume create site --label kept=yes",
        "container create --name c -m site:/usr/share/site base",
        |daemon, code| {
            let files = site(daemon).expect("the volume is never lost");
            let volume = daemon.inspect("volume", "site");
            assert_eq!(volume["volume"]["labels"]["kept"], "yes");
            assert!(files == 0 || files == 6, "{files} files");
            assert_eq!(files == 6, volume["volume"]["populated"].is_object());
            assert!(code != Some(0) || files == 6);
        },
        &["container rm c", "volume rm site", "volume create site --label kept=yes"],
    );
}

#[test]
fn removing_volumes_containers_and_images() {
    kill_at_every_call(
        "volume create site",
        "volume rm site",
        |daemon, code| {
            assert!(code != Some(0) || site(daemon).is_none());
            assert!(matches!(site(daemon), None | Some(0)));
        },
        &["volume create site"],
    );
    kill_at_every_call(
        "container create --name c base",
        "container rm c",
        |daemon, code| {
            let there = !daemon.run("container ls -aq").ok().is_empty();
            assert!(code != Some(0) || !there);
            assert!(!there || daemon.run("start c").code == 0);
        },
        &["container create --name c base"],
    );
}

#[test]
fn making_an_image_of_an_archive() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), busybox()).unwrap();
    kill_at_every_call(
        "",
        &format!("image create -t made fetch {}", file.path().display()),
        |daemon, code| {
            let names = daemon.klee(["image", "ls", "--format", "{{.name}}"]).ok();
            let made = names.lines().filter(|name| *name == "made").count();
            assert!(made <= 1 && names.lines().count() == 1 + made, "{names}");
            assert!(code != Some(0) || made == 1);
            if made == 1 {
                assert_eq!(daemon.run("run --rm made cat /usr/share/site/.htaccess").code, 0);
            }
        },
        &["image rm made"],
    );
}

#[test]
fn naming_and_saving_images() {
    kill_at_every_call(
        "container create --name c base",
        "image save c new",
        |daemon, code| {
            let names = daemon.klee(["image", "ls", "--format", "{{.name}}"]).ok();
            let new = names.lines().filter(|name| *name == "new").count();
            assert!(new <= 1, "{names}");
            assert!(code != Some(0) || new == 1);
            if new == 1 {
                daemon.run("run --rm new true").ok();
            }
            // The name may only have moved.
            assert!(names.lines().any(|name| name == "base"), "{names}");
        },
        &["image rm new"],
    );
}

/// More storage calls than the start of a daemon and a verb make.
const CALLS: usize = 40;

/// Runs `verb` with its 1st, 2nd, 3rd… storage call failing, before it took effect and after, until
/// it succeeds. After each failure a repeat succeeds; `check` looks at what is there before it and
/// after it. `reset` goes back.
pub(crate) fn fail_at_every_call(
    prepare: &[&str],
    verb: &str,
    check: impl Fn(&Daemon, bool),
    reset: &[&str],
) {
    for moment in ["before", "after"] {
        let mut daemon = Daemon::start();
        daemon.import(&busybox());
        for command in prepare {
            daemon.run(command).ok();
        }
        let mut failures = 0;
        for n in 1.. {
            assert!(n < 200, "it never succeeds");
            assert!(daemon.stop().success());
            daemon.set_environment("KLEENED_FAULT", Some(&format!("*:{n}:{moment}:error")));
            if daemon.try_boot() {
                let failed = daemon.run(verb).code != 0;
                check(&daemon, !failed);
                assert!(daemon.litter().is_empty(), "call {n} {moment}: {:?}", daemon.litter());
                if failed {
                    failures += 1;
                    daemon.run(verb).ok();
                    check(&daemon, true);
                }
                for command in reset {
                    // It may be the one that fails.
                    if daemon.run(command).code != 0 {
                        daemon.run(command).ok();
                    }
                }
                // A call that fails after it took effect need not fail the verb.
                if !failed && (failures > 0 || moment == "after" && n > CALLS) {
                    break;
                }
            } else {
                daemon.set_environment("KLEENED_FAULT", None);
                daemon.boot();
            }
        }
        // What is in memory is what is there.
        daemon.set_environment("KLEENED_FAULT", None);
        assert!(daemon.stop().success());
        daemon.boot();
        check(&daemon, false);
    }
}

#[test]
fn a_failing_call_leaves_the_state_before() {
    fail_at_every_call(
        &[],
        "container create --name c -m site:/usr/share/site base",
        |daemon, made| {
            assert_eq!(!daemon.run("container ls -aq").ok().is_empty(), made);
            assert_eq!(site(daemon), made.then_some(6));
        },
        &["container rm c", "volume rm site"],
    );
    fail_at_every_call(
        &[],
        "volume create site",
        |daemon, made| assert_eq!(site(daemon), made.then_some(0)),
        &["volume rm site"],
    );
    fail_at_every_call(
        &["container create --name c base"],
        "image save c new",
        |daemon, made| {
            let names = daemon.klee(["image", "ls", "--format", "{{.name}}"]).ok();
            assert_eq!(
                names.lines().filter(|name| *name == "new").count(),
                usize::from(made),
                "{names}"
            );
        },
        &["image rm new"],
    );
}

/// Whether the container has the volume: its record says so, and the kernel.
fn has_site(daemon: &Daemon) -> bool {
    let shown = daemon.inspect("container", "c");
    let named = !shown["container_mountpoints"].as_array().unwrap().is_empty();
    daemon.run("exec -q c touch /usr/share/site/probe").ok();
    let mounted = daemon.volume("site").join("probe").exists();
    daemon.run("exec -q c rm /usr/share/site/probe").ok();
    assert_eq!(named, mounted);
    named
}

const ATTACH: &str = "volume attach site c --path /usr/share/site";

#[test]
fn attaching_to_a_container_that_runs() {
    kill_at_every_call(
        "volume create site\nrun -d --name c base sleep 1000",
        ATTACH,
        |daemon, code| {
            let attached = has_site(daemon);
            assert!(code != Some(0) || attached);
            daemon.run(ATTACH).ok();
            assert!(has_site(daemon));
            assert!(daemon.run("exec -q c ls -A /usr/share/site").ok().lines().count() == 5);
        },
        &["volume detach site c", "volume rm site", "volume create site"],
    );
}

#[test]
fn detaching_from_a_container_that_runs() {
    kill_at_every_call(
        "run -d --name c -m site:/usr/share/site base sleep 1000",
        "volume detach site c",
        |daemon, code| {
            let attached = has_site(daemon);
            assert!(code != Some(0) || !attached);
            daemon.run("volume detach site c").ok();
            assert!(!has_site(daemon));
        },
        &[ATTACH],
    );
}

#[test]
fn a_failing_call_leaves_the_mounts_before() {
    for run in ["run -d --name c base sleep 1000", "container create --name c base"] {
        let running = run.starts_with("run");
        let has = |daemon: &Daemon| match running {
            true => has_site(daemon),
            false => {
                let shown = daemon.inspect("container", "c");
                !shown["container_mountpoints"].as_array().unwrap().is_empty()
            }
        };
        fail_at_every_call(
            &["volume create site", run],
            ATTACH,
            |daemon, made| assert_eq!(has(daemon), made),
            &["volume detach site c"],
        );
        fail_at_every_call(
            &["volume create site", run, ATTACH],
            "volume detach site c",
            |daemon, made| assert_eq!(has(daemon), !made),
            &[ATTACH],
        );
    }
}
