//! Mounts are where they belong and nowhere else.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kleene_tests::mounts;
use kleened::platform::Error;
#[cfg(target_os = "linux")]
use kleened::platform::Mount;
use kleened_api::mount::MountOptions;
#[cfg(target_os = "linux")]
use rustix::fs::{CWD, FileType, Mode};

use crate::sandbox::{Sandbox, mounted};

/// A directory of the host's with a file that names it.
pub(crate) fn volume(sandbox: &Sandbox, name: &str) -> PathBuf {
    let dir = sandbox.host(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("name"), format!("{name}\n")).unwrap();
    dir
}

/// A file system of its own is mounted on the directory.
pub(crate) fn mount_tmpfs(on: &Path) {
    let mut mount = std::process::Command::new("mount");
    assert!(mount.args(["-t", "tmpfs", "tmpfs"]).arg(on).status().unwrap().success());
}

/// The reason why a container with these mounts does not start. Nothing is left of it.
fn refusal(sandbox: &Sandbox) -> String {
    let before = mounted(sandbox.dir.path());
    let error = sandbox.run(&["true"]).expect_err("it started");
    assert!(matches!(error, Error::Mount { .. }), "{error:?}");
    assert_eq!(sandbox.platform.running().unwrap(), []);
    assert_eq!(mounted(sandbox.dir.path()), before);
    error.to_string()
}

#[test]
fn a_directory_and_a_file() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "dir");
    let file = sandbox.host("file");
    fs::write(&file, "of the host\n").unwrap();
    sandbox.mount(&dir, "/data");
    sandbox.mount(&file, "/etc/new/file");
    let outcome = sandbox.shell(
        "cat /data/name /etc/new/file; echo made > /data/new; echo changed > /etc/new/file; chown 80 /data/new",
    );
    assert_eq!(outcome.output, "dir\nof the host\n", "{}", outcome.errors);
    assert_eq!(fs::read_to_string(dir.join("new")).unwrap(), "made\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "changed\n");
    assert_eq!(fs::read_dir(sandbox.root().join("data")).unwrap().count(), 0);
}

#[test]
fn any_name() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let long = "l".repeat(255);
    let names = ["a b", "line\nend", "$(id)", "%41", "ünï", "back\\slash", "tab\t", "-rf", &long];
    for name in names {
        let dir = volume(&sandbox, name);
        sandbox.mount(&dir, &format!("/mnt/{name}"));
    }
    let mut launch =
        sandbox.first(&["sh", "-c", "for d in \"$@\"; do cat \"/mnt/$d/name\"; done; cat", "sh"]);
    launch.process.argv.extend(names.map(str::to_owned));
    launch.process.stdin = true;
    let mut client = sandbox.attach(&launch).unwrap();
    let expected: String = names.map(|name| format!("{name}\n")).concat();
    assert_eq!(client.wait_for(&format!("{long}\n")) + &long + "\n", expected);
    let listed = sandbox.platform.mounts(&sandbox.container).unwrap();
    for name in names {
        let destination = Path::new("/mnt").join(name);
        assert!(listed.iter().any(|m| m.destination == destination && !m.read_only), "{name:?}");
    }
}

#[test]
fn a_part_of_a_source() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/b/x"), "inner\n").unwrap();
    symlink("/a", dir.join("link")).unwrap();
    for (subpath, destination) in [("a/b", "/one"), ("link/b", "/two"), ("a/b/x", "/three")] {
        sandbox.mount(&dir, destination).subpath = Some(subpath.to_owned());
    }
    assert_eq!(sandbox.shell("cat /one/x /two/x /three").output, "inner\n".repeat(3));

    // A link in a volume is followed inside the volume.
    let outside = volume(&sandbox, "outside");
    for (link, target) in [("abs", outside.to_str().unwrap()), ("up", "../outside")] {
        symlink(target, dir.join(link)).unwrap();
        sandbox.mounts.clear();
        sandbox.mount(&dir, "/data").subpath = Some(link.to_owned());
        let reason = refusal(&sandbox);
        assert!(reason.contains(&format!("{link} in the source")), "{reason}");
    }
}

#[test]
fn read_only_is_so_for_everything_below() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let dir = volume(&sandbox, "vol");
    fs::create_dir(dir.join("below")).unwrap();
    let below = dir.join("below");
    mount_tmpfs(&below);
    fs::create_dir(below.join("deep")).unwrap();
    let deep = below.join("deep");
    mount_tmpfs(&deep);
    fs::write(deep.join("x"), "deep\n").unwrap();
    sandbox.mount(&dir, "/ro").read_only = true;
    sandbox.mount(&dir, "/rw");
    let script = "cat /ro/below/deep/x; for d in /ro /ro/below /ro/below/deep; do touch $d/t; done; \
                  echo y > /ro/name; rm /ro/name; chmod 777 /ro/below; touch /rw/below/deep/t";
    let (client, _) = sandbox.start(script);
    let listed = sandbox.platform.mounts(&sandbox.container).unwrap();
    let modes = |top: &str| {
        let below = listed.iter().filter(|m| m.destination.starts_with(top));
        below.map(|m| m.read_only).collect::<Vec<_>>()
    };
    assert_eq!(modes("/ro"), [true; 3]);
    assert_eq!(modes("/rw"), [false; 3]);
    let outcome = client.end();
    assert_eq!(outcome.errors.matches("Read-only file system").count(), 6, "{}", outcome.errors);
    assert!(!dir.join("t").exists() && !below.join("t").exists());
    assert!(deep.join("t").exists());
    for path in [deep, below] {
        mounts::unmount(&path);
    }
}

/// Fills the directory with a program, one that runs as its owner where it may and prints what only that
/// can read, and a link.
fn programs(sandbox: &Sandbox, dir: &Path) {
    let bin = sandbox.root().join("bin");
    let (cat, echo) = if cfg!(target_os = "linux") { ("su", "busybox") } else { ("cat", "echo") };
    fs::copy(bin.join(echo), dir.join("echo")).unwrap();
    fs::copy(bin.join(cat), dir.join("su")).unwrap();
    fs::set_permissions(dir.join("su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(dir.join("secret"), "as its owner\n").unwrap();
    fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/group", dir.join("link")).unwrap();
}

#[test]
fn what_a_mount_forbids_does_not_work_below_it() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    // Busybox gives up the rights of its owner but for a few programs, and this one asks for no password.
    let read = if cfg!(target_os = "linux") { "-c \"cat $d/secret\"" } else { "$d/secret" };
    fs::write(sandbox.root().join("etc/passwd"), "root::0:0:root:/root:/bin/sh\nwww:x:80:81::/:\n")
        .unwrap();
    // What it lies on may forbid something itself.
    let dir = volume(&sandbox, "vol");
    mount_tmpfs(&dir);
    let below = dir.join("below");
    fs::create_dir(&below).unwrap();
    mount_tmpfs(&below);
    for dir in [&dir, &below] {
        programs(&sandbox, dir);
    }
    let none = MountOptions::default();
    let cases = [
        ("/all", none, "runs, as its owner, followed"),
        ("/nosuid", MountOptions { nosuid: true, ..none }, "runs, followed"),
        ("/noexec", MountOptions { noexec: true, ..none }, "followed"),
        ("/nosymfollow", MountOptions { nosymfollow: true, ..none }, "runs, as its owner"),
    ];
    for (destination, options, _) in cases {
        sandbox.mount(&dir, destination).options = options;
    }
    let script = format!(
        "for d in \"$@\"; do for d in $d $d/below; do echo \"$d:\" $( \
         $d/echo runs; $d/su {read}; grep -q staff $d/link && echo followed); done; done"
    );
    let mut launch = sandbox.first(&["sh", "-c", &script, "sh"]);
    launch.process.argv.extend(cases.map(|(destination, ..)| destination.to_owned()));
    launch.process.user = "www".to_owned();
    let outcome = sandbox.run_launch(&launch).unwrap();
    let expected = cases.map(|(destination, _, works)| {
        let works = works.replace(',', "");
        format!("{destination}: {works}\n{destination}/below: {works}\n")
    });
    assert_eq!(outcome.output, expected.concat(), "{}", outcome.errors);
    mounts::unmount(&below);
    mounts::unmount(&dir);
}

#[cfg(target_os = "linux")]
#[test]
fn devices_work_nowhere_but_in_dev() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    for place in [dir.join("null"), sandbox.root().join("null")] {
        let number = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, &place, FileType::CharacterDevice, mode, number).unwrap();
        assert!(fs::metadata(place).unwrap().file_type().is_char_device());
    }
    sandbox.mount(&dir, "/data");
    let outcome = sandbox.shell("echo > /data/null; echo > /null; echo > /dev/null && echo fine");
    assert_eq!(outcome.errors.matches("Permission denied").count(), 2, "{}", outcome.errors);
    assert_eq!(outcome.output, "fine\n");
}

#[test]
fn those_above_come_before_those_below() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    fs::create_dir_all(sandbox.root().join("z")).unwrap();
    symlink("z", sandbox.root().join("a")).unwrap();
    let [one, two, three, four] = ["one", "two", "three", "four"].map(|n| volume(&sandbox, n));
    // The order in which they are given and the order of their names both mislead: /a is a link to /z.
    sandbox.mount(&four, "/data/x/y/z");
    sandbox.mount(&two, "/a/deep");
    sandbox.mount(&three, "/data/x");
    sandbox.mount(&one, "/z");
    let outcome = sandbox.shell("cat /z/name /z/deep/name /data/x/name /data/x/y/z/name");
    assert_eq!(outcome.output, "one\ntwo\nthree\nfour\n", "{}", outcome.errors);
    assert!(one.join("deep").is_dir() && three.join("y/z").is_dir());

    sandbox.mounts.clear();
    sandbox.mount(&one, "/ro").read_only = true;
    sandbox.mount(&two, "/ro/missing");
    assert!(refusal(&sandbox).contains("Read-only file system"));
    assert!(!one.join("missing").exists());
}

#[test]
fn one_place_takes_one_mount() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    fs::create_dir(sandbox.root().join("real")).unwrap();
    symlink("real", sandbox.root().join("link")).unwrap();
    symlink("/", sandbox.root().join("top")).unwrap();
    for destinations in [&["/real", "/link"][..], &["/top"], &["/data", "/./data"]] {
        sandbox.mounts.clear();
        for destination in destinations {
            sandbox.mount(&dir, destination);
        }
        let reason = refusal(&sandbox);
        assert!(reason.contains("on the same place"), "{destinations:?}: {reason}");
    }
    let made_up: &[&str] =
        if cfg!(target_os = "linux") { &["/proc", "/proc/sys", "/proc/1"] } else { &["/dev"] };
    for destination in made_up {
        sandbox.mounts.clear();
        sandbox.mount(&dir, destination);
        let reason = refusal(&sandbox);
        let top = if cfg!(target_os = "linux") { "/proc" } else { "/dev" };
        assert!(reason.contains(&format!("mounted in {top} of")), "{destination}: {reason}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    let missing = sandbox.host("missing");
    let cases: &[(&Path, Option<&str>, &str, &[&str])] = &[
        (&missing, None, "/data", &["the source", "missing", "does not exist"]),
        (&dir, Some("no/such"), "/data", &["no/such in the source", "does not exist"]),
        (
            &dir,
            None,
            "/etc/passwd",
            &["the source is a directory", "/etc/passwd is not a directory"],
        ),
        (&dir.join("name"), None, "/etc", &["the source is a file", "/etc is a directory"]),
        (&dir, None, "/etc/passwd/x", &["/etc/passwd is not a directory"]),
    ];
    for (source, subpath, destination, words) in cases {
        sandbox.mounts.clear();
        sandbox.mount(source, destination).subpath = subpath.map(str::to_owned);
        let reason = refusal(&sandbox);
        for word in words.iter().chain(&[*destination]) {
            assert!(reason.contains(word), "{word:?} is not in {reason:?}");
        }
        let error = sandbox.platform.prepare(&sandbox.root(), &sandbox.mounts).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
}

#[test]
fn a_mount_that_fails_fails_the_start() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    sandbox.mount(&dir, "/one");
    sandbox.mount(&dir, "/two");
    sandbox.mount(&dir, "/etc/passwd");
    refusal(&sandbox);
    sandbox.mounts.pop();
    assert_eq!(sandbox.shell("cat /one/name /two/name").output, "vol\nvol\n");
}

#[test]
fn places_are_made_once() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    let dir = volume(&sandbox, "vol");
    sandbox.mount(&dir, "/a/b/c");
    sandbox.mount(&dir.join("name"), "/a/file");
    for _ in 0..2 {
        sandbox.platform.prepare(&sandbox.root(), &sandbox.mounts).unwrap();
        assert!(sandbox.root().join("a/b/c").is_dir());
        assert_eq!(fs::read(sandbox.root().join("a/file")).unwrap(), b"");
        fs::set_permissions(sandbox.root().join("a/b/c"), fs::Permissions::from_mode(0o700))
            .unwrap();
    }
    let mode = fs::metadata(sandbox.root().join("a/b/c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

pub(crate) type Links = &'static [(&'static str, &'static str)];

/// Links and files in an image that try to lead a mount out, the destination, and where inside it is
/// then mounted; nothing where it is refused.
pub(crate) const HOSTILE: &[(Links, &str, Option<&str>)] = &[
    (&[("data", "/etc")], "/data", Some("etc")),
    (&[("data", "/etc")], "/data/new", Some("etc/new")),
    (&[("data", "../../../../../../../../etc")], "/data", Some("etc")),
    (&[("data", "../../..")], "/data/etc/deep", Some("etc/deep")),
    (
        &[("data", "two"), ("two", "/three/../two2"), ("two2", "..//../etc"), ("three", "tmp")],
        "/data",
        Some("etc"),
    ),
    (&[("data", "/proc/1/root/etc")], "/data", None),
    (&[("data", "/proc/self/cwd")], "/data", None),
    (&[("data", "/dev/fd/3")], "/data", None),
    (&[("data", "nowhere")], "/data", None),
    (&[("data", "/no/where")], "/data/x", None),
    (&[("data", "data")], "/data", None),
    (&[("data", "/etc/passwd")], "/data", None),
    (&[("data", "/bin/sh")], "/data/x", None),
];

#[test]
fn no_link_leads_out() {
    for (links, destination, place) in HOSTILE {
        let Some(mut sandbox) = Sandbox::new() else { return };
        for (name, target) in *links {
            symlink(target, sandbox.root().join(name)).unwrap();
        }
        let dir = volume(&sandbox, "vol");
        sandbox.mount(&dir, destination);
        let etc = listing(Path::new("/etc"));
        let beside = listing(sandbox.dir.path());
        let prepared = sandbox.platform.prepare(&sandbox.root(), &sandbox.mounts);
        match place {
            Some(place) => {
                prepared.unwrap();
                assert!(sandbox.root().join(place).is_dir());
                let script = format!("cat /{place}/name");
                assert_eq!(sandbox.shell(&script).output, "vol\n", "{links:?}");
            }
            None => {
                let error = prepared.unwrap_err();
                assert!(matches!(error, Error::Mount { .. }), "{links:?}: {error:?}");
                refusal(&sandbox);
            }
        }
        fs::remove_file(sandbox.log()).unwrap();
        assert_eq!(listing(Path::new("/etc")), etc, "{links:?}");
        assert_eq!(listing(sandbox.dir.path()), beside, "{links:?}");
    }
}

pub(crate) fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn hostile_places_for_what_every_container_has() {
    for (name, target) in
        [("proc", "/etc"), ("dev", "../../../dev"), ("proc", "nowhere"), ("dev", "/proc/1/root")]
    {
        let Some(sandbox) = Sandbox::new() else { return };
        fs::remove_dir(sandbox.root().join(name)).unwrap();
        symlink(target, sandbox.root().join(name)).unwrap();
        let before = mounted(sandbox.dir.path());
        // Whether it starts is the image's affair.
        let _ = sandbox.run(&["true"]);
        assert_eq!(mounted(sandbox.dir.path()), before);
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        #[cfg(target_os = "linux")]
        assert!(Path::new("/proc/self/exe").exists());
    }
}

#[test]
fn what_somebody_mounted_below_a_root_is_gone_after_the_release() {
    let Some(sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    for place in ["tmp", "tmp/deep", "root"] {
        let place = sandbox.root().join(place);
        fs::create_dir_all(&place).unwrap();
        mount_tmpfs(&place);
    }
    let ours = || mounted(&sandbox.root()).len();
    assert_eq!(ours(), 3);
    for _ in 0..2 {
        sandbox.platform.release(&sandbox.container, &sandbox.root()).unwrap();
        assert_eq!(ours(), 0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_host_mount_that_comes_later_does_not_appear() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let dir = volume(&sandbox, "vol");
    fs::create_dir(dir.join("later")).unwrap();
    let change = |flags| rustix::mount::mount_change("/", flags).unwrap();
    let recursive = rustix::mount::MountPropagationFlags::REC;
    change(rustix::mount::MountPropagationFlags::SHARED | recursive);
    sandbox.mount(&dir, "/data");
    let (client, _) = sandbox.start("");
    let flags = rustix::mount::MountFlags::empty();
    let later = dir.join("later");
    rustix::mount::mount("tmpfs", &later, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    fs::write(later.join("x"), "").unwrap();
    assert_eq!(sandbox.exec("ls /data/later").output, "");
    drop(client);
    rustix::mount::unmount(&later, rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn mounts_go_with_the_container() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    if !mounts::private() {
        return;
    }
    let disk = mounts::Mounted::tmpfs("size=1m");
    fs::write(disk.path().join("name"), "disk\n").unwrap();
    let mount = Mount {
        source: disk.path(),
        subpath: None,
        destination: "/disk".to_owned(),
        read_only: false,
        options: MountOptions::default(),
    };
    sandbox.mounts.push(mount);
    let (client, _) = sandbox.start("exec 5> /disk/open; sleep 1000 < /disk/name &");
    let busy = rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::empty());
    // It is mounted in two namespaces: it goes away here, and stays there.
    busy.unwrap();
    assert_eq!(sandbox.exec("cat /disk/name").output, "disk\n");
    assert!(sandbox.platform.kill(&sandbox.container).unwrap());
    client.drain();
}
