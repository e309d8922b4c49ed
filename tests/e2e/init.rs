//! Roots that `kleened init` makes, and the daemon on them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use kleene_tests::harness::{Ran, binary, eventually, has};
use kleene_tests::pool::{Root, pool, zfs};
use tempfile::TempDir;

/// A configuration for `init`, a daemon with it, and a pool of its own, if it is made.
struct Room {
    pool: String,
    home: TempDir,
    daemon: Option<Child>,
}

impl Room {
    /// `None` where there is no ZFS.
    fn new(pool_name: &str) -> Option<Self> {
        if !has("zfs", pool().is_some()) {
            return None;
        }
        let home = tempfile::Builder::new().prefix("kl").tempdir().unwrap();
        let room = Self { pool: format!("{pool_name}{}", std::process::id()), home, daemon: None };
        let text = format!("socket = {:?}\nrun_dir = {:?}\n", room.path("sock"), room.path("run"));
        fs::write(room.path("toml"), text).unwrap();
        Some(room)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn kleened(&self) -> Command {
        let mut command = Command::new(binary("kleened"));
        command.arg("--config").arg(self.path("toml")).stdin(Stdio::null());
        command
    }

    fn init(&self, arguments: &str) -> Ran {
        self.kleened().arg("init").args(arguments.split(' ')).output().unwrap().into()
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        self.daemon = Some(self.kleened().stderr(log).spawn().unwrap());
        let socket = self.path("sock");
        eventually("the start", || UnixStream::connect(&socket).is_ok());
    }

    fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success());
    }

    fn klee(&self, arguments: &str) -> Ran {
        let mut command = Command::new(binary("klee"));
        command
            .env("KLEE_HOST", self.path("sock"))
            .env("KLEE_PROJECT", "default")
            .args(arguments.split(' '));
        command.output().unwrap().into()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if zpool(&["list", "-H", &self.pool]).status.success() {
            zpool(&["destroy", "-f", &self.pool]);
        }
        let _ = fs::remove_dir(Path::new("/").join(&self.pool).join("kleene"));
        let _ = fs::remove_dir(Path::new("/").join(&self.pool));
    }
}

fn zpool(arguments: &[&str]) -> Output {
    Command::new("zpool").args(arguments).output().unwrap()
}

fn value(dataset: &str, property: &str) -> String {
    zfs(&["get", "-H", "-o", "value", property, dataset]).trim_end().to_owned()
}

#[test]
fn a_pool_on_a_file_is_made_used_exported_and_found_again() {
    let Some(mut room) = Room::new("klinit") else { return };
    let (name, file) = (room.pool.clone(), room.path("disk").display().to_string());
    let root = format!("{name}/kleene");
    let made = room.init(&format!("--pool {name} --file {file} --size 96M")).ok();
    assert!(made.contains(&format!("{root} at /{root}")), "{made}");
    let written = fs::read_to_string(room.path("toml")).unwrap();
    assert!(written.ends_with(&format!("root = \"{root}\"\nstorage = \"zfs\"\n")), "{written}");
    let acls = if cfg!(target_os = "linux") { "posix" } else { "nfsv4" };
    for (property, is) in [("compression", "on"), ("atime", "off"), ("acltype", acls)] {
        assert_eq!(value(&root, property), is, "{property}");
    }
    assert_eq!(
        (value(&name, "mountpoint"), value(&name, "canmount")),
        ("none".into(), "off".into())
    );
    let feature = zpool(&["get", "-H", "-o", "value", "feature@block_cloning", &name]);
    assert_ne!(String::from_utf8_lossy(&feature.stdout).trim(), "disabled");
    // A repeat, in whatever way it is asked for.
    for again in [
        format!("--pool {name} --file {file} --size 96M"),
        format!("--pool {name}"),
        format!("--root {root}"),
    ] {
        assert_eq!(room.init(&again).ok(), made.trim_end(), "{again}");
    }
    assert_eq!(fs::read_to_string(room.path("toml")).unwrap(), written);

    room.start();
    room.klee("volume create v --label a=b").ok();
    // One that is mounted nowhere.
    zfs(&["create", &format!("{name}/old")]);
    assert_eq!(room.klee(&format!("volume adopt {name}/old --name data")).ok(), "data");
    let data = format!("{root}/volumes/data");
    assert_eq!(value(&data, "mounted"), "yes");
    zfs(&["rename", &data, &format!("{name}/old")]);
    let error = room.klee("volume create data").fails(2);
    assert!(error.contains(&format!("its dataset {data} is gone")), "{error}");
    room.klee("volume rm data").ok();
    let volume = Path::new("/").join(&root).join("volumes/v");
    fs::write(volume.join("precious"), "x").unwrap();
    room.stop();
    assert!(zpool(&["export", &name]).status.success());

    let refused: Ran = room.kleened().output().unwrap().into();
    let error = refused.fails(1);
    assert!(error.contains(&format!("zpool import {name}")), "{error}");
    let error = room.init(&format!("--pool {name} --file {file} --size 96M")).fails(1);
    assert!(
        error.contains(&format!("zpool import -d {} {name}", room.home.path().display())),
        "{error}"
    );
    let error = room.init(&format!("--pool {name}")).fails(1);
    assert!(error.contains(&format!("there is no pool {name}")), "{error}");

    let folder = room.home.path().display().to_string();
    assert!(zpool(&["import", "-N", "-d", &folder, &name]).status.success());
    // Nothing is mounted; the daemon does that.
    room.start();
    assert_eq!(
        room.klee("volume ls --format {{.Name}}:{{.Labels.a}}:{{.State}}").ok(),
        "v:b:available"
    );
    assert_eq!(fs::read_to_string(volume.join("precious")).unwrap(), "x");
    room.stop();
}

#[test]
fn a_root_deep_in_a_pool_is_made_with_all_that_it_is_in() {
    let Some(room) = Room::new("none") else { return };
    let Some(space) = Root::at(&room.path("space")) else { return };
    let (parent, root) = (format!("{}/a", space.name()), format!("{}/a/b", space.name()));
    let made = room.init(&format!("--root {root}")).ok();
    let place = room.path("space/a/b");
    assert!(Path::new(&format!("/{root}")).is_dir() && !place.exists(), "{made}");
    assert_eq!(
        (value(&parent, "mounted"), value(&parent, "canmount")),
        ("no".into(), "off".into())
    );
    assert_eq!(value(&root, "mounted"), "yes");
    let mode = || fs::metadata(format!("/{root}")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o700);
    // As where it was cut off before that.
    fs::set_permissions(format!("/{root}"), fs::Permissions::from_mode(0o755)).unwrap();
    room.init(&format!("--root {root}")).ok();
    assert_eq!(mode(), 0o700);

    // One that was there before, with a place of its own.
    let theirs = format!("{}/theirs", space.name());
    let mountpoint = format!("mountpoint={}", place.display());
    zfs(&["create", "-o", "atime=on", "-o", &mountpoint, &theirs]);
    fs::write(room.path("toml"), "").unwrap();
    let made = room.init(&format!("--root {theirs}")).ok();
    assert!(made.contains(&format!("{theirs} at {}\n", place.display())), "{made}");
    assert_eq!(value(&theirs, "atime"), "on");
    fs::remove_file(room.path("toml")).unwrap();
    zfs(&["set", "mountpoint=none", &theirs]);
    let error = room.init(&format!("--root {theirs}")).fails(1);
    assert!(error.contains(&format!("zfs set mountpoint=/{theirs} {theirs}")), "{error}");
    assert!(!room.path("toml").exists());
    let block = format!("{}/block", space.name());
    zfs(&["create", "-s", "-V", "1M", &block]);
    let error = room.init(&format!("--root {block}")).fails(1);
    assert!(error.contains("not a file system"), "{error}");

    zfs(&["destroy", &root]);
    let mut left = Path::new("/").join(&root);
    while left.parent() != Some(Path::new("/")) && fs::remove_dir(&left).is_ok() {
        left.pop();
    }
}

#[test]
fn what_makes_no_root_is_refused_and_nothing_is_made() {
    let Some(room) = Room::new("kl") else { return };
    let (name, home) = (room.pool.clone(), room.home.path().display().to_string());
    fs::write(room.path("full"), "precious").unwrap();
    let here = pool().unwrap();
    for (arguments, code, says) in [
        ("--pool nosuchpool".to_owned(), 1, "there is no pool nosuchpool"),
        ("--root nosuchpool/a/b".to_owned(), 1, "zpool create"),
        (format!("--root {here}"), 1, "zroot/kleene"),
        (format!("--root {here}/a@b"), 1, "zroot/kleene"),
        (format!("--pool {here} --size 1G"), 2, "--file"),
        (format!("--pool {name} --file {home}/f"), 1, "--size"),
        (format!("--pool {name} --file {home}/f --size 1M"), 1, "64M"),
        (format!("--pool {name} --file {home}/f --size 1X"), 2, "size"),
        (format!("--pool {name} --file {home}/none/f --size 64M"), 1, "No such file"),
        (format!("--pool {name} --file {home}/full --size 64M"), 1, "zpool import"),
        (format!("--pool {here} --file {home}/f --size 64M"), 1, "already"),
        (format!("--pool mirror --file {home}/f --size 64M"), 1, "mirror"),
    ] {
        let error = room.init(&arguments).fails(code);
        assert!(error.contains(says), "{arguments}: {error}");
    }
    fs::write(room.path("toml"), "root = \"/elsewhere\"\n").unwrap();
    let error = room.init(&format!("--pool {here}")).fails(1);
    assert!(error.contains("sets another root"), "{error}");
    assert!(!room.path("f").exists() && !zpool(&["list", &name]).status.success());
    assert_eq!(fs::read_to_string(room.path("full")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(room.path("toml")).unwrap(), "root = \"/elsewhere\"\n");
}
