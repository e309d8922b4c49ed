//! A mount more or less in a container that runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kleene_tests::mounts;
use kleened::platform::{Error, Mount};
use kleened_api::mount::MountOptions;

use crate::mounts::{HOSTILE, listing, mount_tmpfs, volume};
use crate::sandbox::{Sandbox, mounted};

fn mount(source: &Path, destination: &str) -> Mount {
    let destination = destination.to_owned();
    let (source, options) = (source.to_owned(), MountOptions::default());
    Mount { source, subpath: None, destination, read_only: false, options }
}

/// What the kernel says is mounted at or below a path of the container, and whether it is read-only.
fn below(sandbox: &Sandbox, path: &str) -> Vec<(PathBuf, bool)> {
    let mounts = sandbox.platform.mounts(&sandbox.container).unwrap();
    let below = mounts.into_iter().filter(|entry| entry.destination.starts_with(path));
    below.map(|entry| (entry.destination, entry.read_only)).collect()
}

fn attach(sandbox: &Sandbox, mount: &Mount) {
    sandbox.platform.attach(&sandbox.container, mount, &sandbox.mounts).unwrap();
}

fn detach(sandbox: &Sandbox, mount: &Mount) -> bool {
    sandbox.platform.detach(&sandbox.container, mount, &sandbox.mounts).unwrap()
}

/// The reason why it can't be attached. Nothing changed.
fn refusal(sandbox: &Sandbox, mount: &Mount) -> String {
    let before = sandbox.platform.mounts(&sandbox.container).unwrap();
    let attached = sandbox.platform.attach(&sandbox.container, mount, &sandbox.mounts);
    let error = attached.expect_err("it was attached");
    assert!(matches!(error, Error::Mount { .. }), "{error:?}");
    assert_eq!(sandbox.platform.mounts(&sandbox.container).unwrap(), before);
    error.to_string()
}

/// The reason why it can't be detached. Nothing changed.
fn busy(sandbox: &Sandbox, mount: &Mount) -> String {
    let before = below(sandbox, "/").into_iter().collect::<std::collections::BTreeSet<_>>();
    let detached = sandbox.platform.detach(&sandbox.container, mount, &sandbox.mounts);
    let error = detached.expect_err("it was detached");
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert_eq!(below(sandbox, "/").into_iter().collect::<std::collections::BTreeSet<_>>(), before);
    error.to_string()
}

#[test]
fn a_directory_and_a_file() {
    let Some(sandbox) = Sandbox::new() else { return };
    let (_client, _) = sandbox.start("");
    let before = mounted(sandbox.dir.path()).len();
    let dir = volume(&sandbox, "dir");
    let file = sandbox.host("file");
    fs::write(&file, "of the host\n").unwrap();
    let mounts = [mount(&dir, "/a/new/place"), mount(&file, "/etc/new/file")];
    for mount in &mounts {
        attach(&sandbox, mount);
        // A repeat changes nothing.
        attach(&sandbox, mount);
        assert_eq!(below(&sandbox, &mount.destination).len(), 1);
    }
    let script = "cat /a/new/place/name /etc/new/file && echo made > /a/new/place/made";
    assert_eq!(sandbox.exec(script).output, "dir\nof the host\n");
    assert_eq!(fs::read_to_string(dir.join("made")).unwrap(), "made\n");
    for mount in &mounts {
        assert!(detach(&sandbox, mount));
        assert!(!detach(&sandbox, mount));
        assert_eq!(below(&sandbox, &mount.destination), []);
    }
    assert_eq!(sandbox.exec("ls /a/new/place; cat /etc/new/file").output, "");
    assert_eq!(mounted(sandbox.dir.path()).len(), before);
    assert!(dir.join("made").exists() && file.exists());
}

#[test]
fn what_is_mounted_below_comes_along() {
    let Some(sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let dir = volume(&sandbox, "vol");
    let below_it = dir.join("below");
    fs::create_dir(&below_it).unwrap();
    mount_tmpfs(&below_it);
    fs::create_dir(below_it.join("deep")).unwrap();
    let deep = below_it.join("deep");
    mount_tmpfs(&deep);
    fs::write(deep.join("x"), "deep\n").unwrap();
    let (_client, _) = sandbox.start("");
    let mut data = mount(&dir, "/data");
    data.read_only = true;
    attach(&sandbox, &data);
    assert_eq!(below(&sandbox, "/data").iter().map(|(_, ro)| *ro).collect::<Vec<_>>(), [true; 3]);
    let outcome = sandbox.exec(
        "cat /data/below/deep/x; for d in /data /data/below /data/below/deep; do touch $d/t; done",
    );
    assert_eq!(outcome.output, "deep\n");
    assert_eq!(outcome.errors.matches("Read-only file system").count(), 3, "{}", outcome.errors);

    // The middle one is in use when the deepest is gone already.
    let (sleeper, _) = sleep_in(&sandbox, "/data/below");
    let reason = busy(&sandbox, &data);
    assert!(reason.contains("a process in the container has a file or directory in it open"));
    let again = sandbox.exec("cat /data/below/deep/x; touch /data/below/deep/t");
    assert_eq!(again.output, "deep\n");
    assert!(again.errors.contains("Read-only file system"), "{}", again.errors);
    sleeper.end();
    assert!(detach(&sandbox, &data));
    assert_eq!(below(&sandbox, "/data"), []);
    for path in [deep, below_it] {
        mounts::unmount(&path);
    }
}

/// Somebody who stands in a directory of the container until its input ends.
fn sleep_in(sandbox: &Sandbox, dir: &str) -> (crate::sandbox::Client, kleened_api::Id) {
    let mut launch = sandbox.joined(&["sh", "-c", &format!("cd {dir} && echo in; exec cat")]);
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    client.wait_for("in\n");
    (client, launch.instance)
}

#[test]
fn what_is_in_use_stays() {
    let Some(sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    let data = mount(&dir, "/data");
    let (_client, _) = sandbox.start("");
    attach(&sandbox, &data);
    let (sleeper, _) = sleep_in(&sandbox, "/data");
    let reason = busy(&sandbox, &data);
    assert!(reason.contains("/data") && reason.contains("open"), "{reason}");
    assert_eq!(sandbox.exec("cat /data/name").output, "vol\n");
    sleeper.end();
    assert!(detach(&sandbox, &data));
}

#[test]
fn only_of_a_container_that_runs() {
    let Some(sandbox) = Sandbox::new() else { return };
    let data = mount(&volume(&sandbox, "vol"), "/data");
    let not_running = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::NotRunning(_))), "{result:?}");
    };
    let both = || {
        not_running(sandbox.platform.attach(&sandbox.container, &data, &[]));
        not_running(sandbox.platform.detach(&sandbox.container, &data, &[]).map(drop));
    };
    both();
    let (client, _) = sandbox.start("");
    client.end();
    both();
    assert!(!sandbox.root().join("data").exists());
}

#[test]
fn a_place_that_is_taken() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    symlink("real", sandbox.root().join("link")).unwrap();
    symlink("/", sandbox.root().join("top")).unwrap();
    let [one, two] = ["one", "two"].map(|name| volume(&sandbox, name));
    sandbox.mount(&one, "/real");
    sandbox.mount(&one, "/deep/below");
    let (_client, _) = sandbox.start("");
    for (destination, words) in [
        ("/real", "on the same place"),
        ("/link", "on the same place"),
        ("/top", "would hide"),
        ("/deep", "would hide what is mounted at /deep/below"),
        ("/real/name", "the source is a directory"),
    ] {
        let reason = refusal(&sandbox, &mount(&two, destination));
        assert!(reason.contains(words), "{destination}: {reason}");
    }
    let made_up = if cfg!(target_os = "linux") { "/proc/sys" } else { "/dev" };
    refusal(&sandbox, &mount(&two, made_up));

    // One that others are below stays until they are gone.
    let outer = mount(&two, "/outer");
    attach(&sandbox, &outer);
    let inner = mount(&one, "/outer/inner");
    attach(&sandbox, &inner);
    sandbox.mounts.push(inner.clone());
    let reason = busy(&sandbox, &outer);
    assert!(reason.contains("the mount at /outer/inner is below it"), "{reason}");
    sandbox.mounts.pop();
    assert!(detach(&sandbox, &inner) && detach(&sandbox, &outer));

    // The same source elsewhere is not taken for it.
    let missing = mount(&one, "/elsewhere");
    assert!(!detach(&sandbox, &missing));
    assert_eq!(below(&sandbox, "/real").len() + below(&sandbox, "/deep").len(), 2);
    let other = mount(&two, "/real");
    sandbox.mounts.remove(0);
    let detached = sandbox.platform.detach(&sandbox.container, &other, &sandbox.mounts);
    assert!(detached.unwrap_err().to_string().contains("something else is mounted there"));
}

#[test]
fn it_is_found_where_its_place_was_moved_to() {
    let Some(sandbox) = Sandbox::new() else { return };
    let data = mount(&volume(&sandbox, "vol"), "/a/b/data");
    let (_client, _) = sandbox.start("");
    attach(&sandbox, &data);
    sandbox.exec("mv /a /c && mkdir -p /a/b/data");
    assert_eq!(sandbox.exec("cat /c/b/data/name").output, "vol\n");
    assert!(detach(&sandbox, &data));
    assert_eq!(sandbox.exec("ls /a/b/data /c/b/data").output, "/a/b/data:\n\n/c/b/data:\n");
}

#[test]
fn no_link_leads_out() {
    for (links, destination, place) in HOSTILE {
        let Some(sandbox) = Sandbox::new() else { return };
        for (name, target) in *links {
            symlink(target, sandbox.root().join(name)).unwrap();
        }
        let data = mount(&volume(&sandbox, "vol"), destination);
        let (_client, _) = sandbox.start("");
        let (etc, beside) = (listing(Path::new("/etc")), listing(sandbox.dir.path()));
        match place {
            Some(place) => {
                attach(&sandbox, &data);
                assert_eq!(
                    sandbox.exec(&format!("cat /{place}/name")).output,
                    "vol\n",
                    "{links:?}"
                );
                assert!(detach(&sandbox, &data));
            }
            None => drop(refusal(&sandbox, &data)),
        }
        assert_eq!(listing(Path::new("/etc")), etc, "{links:?}");
        assert_eq!(listing(sandbox.dir.path()), beside, "{links:?}");
    }
}

/// How often it is tried while the path changes.
const TRIES: usize = 60;

#[test]
fn nothing_is_mounted_elsewhere_while_the_path_changes() {
    let Some(sandbox) = Sandbox::new() else { return };
    let root = sandbox.root();
    let outside = sandbox.host("outside");
    fs::create_dir_all(outside.join("data")).unwrap();
    for place in ["real/data", "etc/data", "data"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    // Where /a leads by turns.
    let targets = ["real", "/etc", "../../../../..", outside.to_str().unwrap(), "/proc/1/root"];
    symlink("real", root.join("a")).unwrap();
    let data = mount(&volume(&sandbox, "vol"), "/a/data");
    let (_client, _) = sandbox.start("");
    let outsiders = mounted(sandbox.dir.path());
    let before = below(&sandbox, "/");
    let ended = AtomicBool::new(false);
    let (mut attached, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for target in targets.iter().cycle() {
                symlink(target, root.join("next")).unwrap();
                fs::rename(root.join("next"), root.join("a")).unwrap();
                fs::rename(root.join("real"), root.join("moved")).unwrap();
                fs::rename(root.join("moved"), root.join("real")).unwrap();
                if ended.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        // Without one that waits for the other, whatever fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..TRIES {
                let new = |entry: &(PathBuf, bool)| !before.contains(entry);
                match sandbox.platform.attach(&sandbox.container, &data, &[]) {
                    Ok(()) => {
                        attached += 1;
                        let made: Vec<_> = below(&sandbox, "/").into_iter().filter(new).collect();
                        let places = ["/real/data", "/moved/data", "/etc/data", "/data"];
                        let places = places.map(Path::new);
                        assert_eq!(made.len(), 1, "{made:?}");
                        assert!(places.contains(&made[0].0.as_path()), "{made:?}");
                        // It is found again, wherever it is now.
                        assert!(detach(&sandbox, &data));
                    }
                    Err(Error::Mount { .. }) => refused += 1,
                    Err(error) => panic!("{error:?}"),
                }
                let left: Vec<_> = below(&sandbox, "/").into_iter().filter(new).collect();
                assert!(left.is_empty(), "{left:?}");
            }
        }));
        ended.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    println!("{attached} attached, {refused} refused");
    assert_eq!(mounted(sandbox.dir.path()), outsiders);
    assert_eq!(listing(&outside), [outside.join("data")]);
    assert_eq!(listing(&outside.join("data")), Vec::<PathBuf>::new());
    assert!(attached + refused == TRIES && attached > 0, "{attached} attached");
}
