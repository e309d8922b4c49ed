//! The daemon on a ZFS pool, against `zfs` and `cp`: whole processes, in one run.
//!
//! On an emulated processor everything is slow, the other side too: read the ratios. What bounds a
//! comparison is said below it: how busy the processor was, and how many transaction groups went by.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use kleene_tests::harness::Daemon;
use kleene_tests::image::header;
use kleene_tests::pool::{pool, zfs};

use crate::daemon::{klee, must};
use crate::race::{Side, race, timed};

const CLIENTS: usize = 16;

/// How many volumes are listed, unless `KLEENE_BENCH_VOLUMES` has another number; a tenth of them are made in a race.
const LISTED: usize = 10_000;

fn to_list() -> usize {
    let wanted = std::env::var("KLEENE_BENCH_VOLUMES").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(LISTED)
}

pub(crate) fn run(topic: fn(&str)) {
    match pool() {
        Some(pool) => topic(&pool),
        None => println!("zfs: not here, there is no pool; tests/vm/bench has one"),
    }
}

/// What `zfs create` is given, so that both sides' datasets are mounted in memory's file system.
fn create(name: &str) -> Command {
    let mut command = Command::new("zfs");
    command.args(["create", "-o", &format!("mountpoint=/tmp/{name}"), name]);
    command
}

pub(crate) fn one(pool: &str) {
    let daemon = Daemon::start();
    let parent = format!("{pool}/one");
    must(&mut create(&parent));
    let sides = vec![
        Side::new("klee volume create", |round| {
            timed(|| klee(&daemon, &["volume", "create", &format!("v{round}")]))
        }),
        Side::new("zfs create", |round| {
            timed(|| must(Command::new("zfs").args(["create", &format!("{parent}/v{round}")])))
        }),
        // A volume has its record there.
        Side::new("…, with a user property", |round| {
            let name = format!("{parent}/p{round}");
            timed(|| must(Command::new("zfs").args(["create", "-o", "org.kleene:x=y", &name])))
        }),
    ];
    race("one volume", 20, sides);
    zfs(&["destroy", "-r", &parent]);
}

/// What a call had of the processor and of transaction groups.
fn bounds(pool: &str, call: impl FnOnce()) -> Duration {
    let processor = || -> (u64, u64) {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let times: Vec<u64> = stat
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .filter_map(|t| t.parse().ok())
            .collect();
        // Idle, and waiting for the disk.
        (times[3] + times[4], times.iter().sum())
    };
    let groups = || -> u64 {
        let text = fs::read_to_string(format!("/proc/spl/kstat/zfs/{pool}/txgs")).unwrap();
        let last = text.lines().last().and_then(|line| line.split_whitespace().next());
        last.and_then(|group| group.parse().ok()).unwrap()
    };
    let ((idle, all), group) = (processor(), groups());
    let took = timed(call);
    let ((idle_after, all_after), group_after) = (processor(), groups());
    let busy = 100 - 100 * (idle_after - idle) / (all_after - all).max(1);
    println!(
        "    {:.1} s: processor {busy} % busy, {} transaction groups",
        took.as_secs_f64(),
        group_after - group
    );
    took
}

/// That many volumes from so many clients.
fn make(daemon: &Daemon, prefix: &str, volumes: usize) {
    at_once(volumes, |n| klee(daemon, &["volume", "create", &format!("{prefix}-{n}")]));
}

/// Calls it with each number from several threads.
fn at_once(count: usize, call: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let call = &call;
            scope.spawn(move || (client..count).step_by(CLIENTS).for_each(call));
        }
    });
}

pub(crate) fn many(pool: &str) {
    let daemon = Daemon::start();
    let volumes = to_list() / 10;
    let parent = format!("{pool}/many");
    must(&mut create(&parent));
    let zfs_create = |name: String| must(Command::new("zfs").args(["create", &name]));
    // A round is long enough to need no other before it.
    let volumes_in = |round: usize| if round > 0 { volumes } else { 0 };
    let sides = vec![
        Side::new("klee, 16 clients", |round| {
            bounds(pool, || make(&daemon, &format!("v{round}"), volumes_in(round)))
        }),
        Side::new("a loop of zfs create", |round| {
            let create = |n| zfs_create(format!("{parent}/v{n}"));
            bounds(pool, || (0..volumes_in(round)).for_each(create))
        }),
        Side::new("16 loops of zfs create", |round| {
            let create = |n| zfs_create(format!("{parent}/w{n}"));
            bounds(pool, || at_once(volumes_in(round), create))
        }),
    ];
    race(&format!("{volumes} volumes"), 1, sides);
    zfs(&["destroy", "-r", &parent]);
}

/// Writes an image with `small`, 5,000 files, and `large`, a file of 1 GiB.
fn image(out: impl Write) {
    let mut archive = tar::Builder::new(out);
    let mut append = |name: String, content: &[u8]| {
        let mut header = header(tar::EntryType::Regular, 0o644, content.len());
        archive.append_data(&mut header, name, content).unwrap();
    };
    let noise: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for n in 0..5_000_usize {
        append(format!("small/{}/{n}", n / 50), &noise[..100 + (n * 7919) % 16_000]);
    }
    let mut large = header(tar::EntryType::Regular, 0o644, 1 << 30);
    let chunks = (0..1024).map(|_| &noise[..]);
    let content = chunks
        .fold(Box::new(std::io::empty()) as Box<dyn std::io::Read>, |before, chunk| {
            Box::new(std::io::Read::chain(before, chunk))
        });
    archive.append_data(&mut large, "large/file", content).unwrap();
    archive.finish().unwrap();
}

/// What the pool has given out, with everything written.
fn allocated(pool: &str) -> i64 {
    must(Command::new("zpool").args(["sync", pool]));
    let output =
        Command::new("zpool").args(["get", "-Hpo", "value", "allocated", pool]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

pub(crate) fn first_use(pool: &str) {
    let daemon = Daemon::with_image();
    let mut import = daemon.client();
    import.args(["image", "import", "-", "large"]);
    // Its progress would go to the machine's console, which is slow.
    import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut import = import.spawn().unwrap();
    image(import.stdin.take().unwrap());
    assert!(import.wait().unwrap().success());
    let listed = daemon.klee(["image", "ls", "--format", "{{.id}} {{.name}}"]).ok();
    let id = listed.lines().find_map(|line| line.strip_suffix(" large")).unwrap().to_owned();
    let image = daemon.dataset(&format!("image/{id}@image"));
    let parent = format!("{pool}/copies");
    must(&mut create(&parent));
    must(Command::new("zpool").args(["sync", pool]));
    for what in ["small", "large"] {
        let space = |what: &str, run: &dyn Fn()| {
            let before = allocated(pool);
            let took = timed(run);
            let new = (allocated(pool) - before) as f64 / f64::from(1 << 20);
            println!("    {what}: {new:.1} MiB of new space");
            took
        };
        let create = |name: &str, options: &str| {
            let mount = format!("{name}:/{what}{options}");
            let create = ["container", "create", "--name", name, "-m", &mount, "large"];
            space(&format!("klee{options}"), &|| klee(&daemon, &create))
        };
        // What a container takes without content, in the same round.
        let created: RefCell<Vec<(Duration, Duration)>> = RefCell::default();
        let both = |round: usize| {
            let mut created = created.borrow_mut();
            if created.len() == round {
                let name = format!("{what}{round}");
                created.push((create(&name, ""), create(&format!("{name}-bare"), ":rw,nocopy")));
            }
            created[round]
        };
        let copied = |round: usize, options: &'static [&'static str], then_sync: bool| {
            let (target, source) = (format!("{parent}/{what}{round}"), format!("{parent}/source"));
            // As klee's: the clone of an image, of which nothing is known in memory.
            zfs(&["clone", &image, &source]);
            let took = space(&format!("cp {}", options.join(" ")), &|| {
                must(Command::new("zfs").args(["create", &target]));
                let content = format!("/tmp/{source}/{what}");
                must(Command::new("cp").args(options).arg(content).arg(format!("/tmp/{target}/")));
                if then_sync {
                    must(Command::new("zpool").args(["sync", pool]));
                }
            });
            zfs(&["destroy", &target]);
            zfs(&["destroy", &source]);
            took
        };
        let sides = vec![
            Side::new("klee, the content alone", |round| {
                let (all, bare) = both(round);
                all.saturating_sub(bare)
            }),
            Side::new("klee container create", |round| both(round).0),
            Side::new("the same with nocopy", |round| both(round).1),
            Side::new("zfs create, cp -a", |round| copied(round, &["-a"], false)),
            // As klee's, which is on the disk when it is there.
            Side::new("…, zpool sync", |round| copied(round, &["-a"], true)),
            Side::new("…, not cloning", |round| copied(round, &["-a", "--reflink=never"], true)),
        ];
        race(&format!("first-use content, {what}"), 2, sides);
    }
    zfs(&["destroy", "-r", &parent]);
}

pub(crate) fn listed(_: &str) {
    let wanted = to_list();
    let mut daemon = Daemon::start();
    make(&daemon, "v", wanted);
    let all = daemon.dataset("volumes");
    must(Command::new("zpool").arg("sync"));
    let list =
        || must(Command::new("zfs").args(["list", "-Hp", "-r", "-o", "name,used,refer", &all]));
    let sides = vec![
        Side::new("klee volume ls -s", |_| timed(|| klee(&daemon, &["volume", "ls", "-s"]))),
        Side::new("…, after a change", |round| {
            fs::write(daemon.volume("v-0").join(round.to_string()), "changed").unwrap();
            must(Command::new("zpool").arg("sync"));
            timed(|| klee(&daemon, &["volume", "ls", "-s"]))
        }),
        Side::new("klee volume ls", |_| timed(|| klee(&daemon, &["volume", "ls"]))),
        Side::new("zfs list name,used,refer", |_| timed(list)),
    ];
    race(&format!("a list of {wanted} volumes with their sizes"), 3, sides);
    assert_eq!(daemon.run("volume ls -q").ok().lines().count(), wanted);

    let title = format!("the start with {wanted} volumes");
    let sides = vec![
        Side::new("kleened, first answer", |_| {
            assert!(daemon.stop().success());
            timed(|| {
                daemon.boot();
                klee(&daemon, &["volume", "ls", "-q"]);
            })
        }),
        Side::new("zfs list name", |_| {
            timed(|| must(Command::new("zfs").args(["list", "-Hr", "-o", "name", &all])))
        }),
    ];
    race(&title, 2, sides);
}
