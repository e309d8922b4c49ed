//! The tree copier against `cp -a` and `rsync -aHAXS`, and against what may go wrong.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use kleene_tests::manifest::{differences, manifest};
use kleene_tests::mounts::{Mounted, private, skip};
use kleened::copy::{self, Options, Progress, Summary};
use kleened_sys::fs::{Node, set_xattr};
use rustix::fs::{AtFlags, FileType, Gid, IFlags, Mode, Timespec, Timestamps, Uid};

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn copy(from: &Path, to: &Path, options: &Options<'_>) -> Result<Summary, copy::Error> {
    fs::create_dir(to).unwrap();
    copy::tree(open(from).as_fd(), open(to).as_fd(), options)
}

/// A directory on a file system of its own, which is quick to be rid of; where there can be none, a
/// temporary one.
enum Scratch {
    Own(Mounted),
    Temporary(tempfile::TempDir),
}

impl Scratch {
    fn new() -> Self {
        match private().then(|| Mounted::image("ext4", 4096)).flatten() {
            Some(mounted) => Self::Own(mounted),
            None => Self::Temporary(tempfile::tempdir().unwrap()),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Own(mounted) => mounted.path(),
            Self::Temporary(dir) => dir.path().to_owned(),
        }
    }
}

fn run(program: &str, arguments: &[&OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Tells another thread to stop, also where this one panics.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(program, "not installed");
    }
    found
}

/// A tree with everything in it that a file system can have.
fn everything(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |name: &str| root.join(name);
    let dir = open(root);

    for size in [0, 1, 4095, 4096, 4097, 300_000, 20_000_000] {
        let bytes: Vec<u8> = (0..size).map(|i: usize| (i * 7 % 253) as u8).collect();
        fs::write(at(&format!("size-{size}")), bytes).unwrap();
    }
    fs::write(at(".hidden"), "dot").unwrap();
    fs::create_dir_all(at(".hidden-dir/.deeper")).unwrap();

    // Names.
    let long = "n".repeat(255);
    let names: [&[u8]; 7] = [
        long.as_bytes(),
        b"new\nline",
        b"not \xff\xfe UTF-8",
        b"$(touch x) `y` %s \"'\\",
        b" ",
        "\u{fc}n\u{ef}c\u{f6}d\u{e9} \u{2713}".as_bytes(),
        b"-rf",
    ];
    for name in names {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }

    // Holes: at the start, between, at the end, nothing but a hole, and much of it.
    let sparse = |name: &str, size: u64, data: &[u64]| {
        let file = File::create(at(name)).unwrap();
        file.set_len(size).unwrap();
        for &offset in data {
            file.write_all_at(&[7; 65536], offset).unwrap();
        }
    };
    sparse("hole-start", 1 << 20, &[(1 << 20) - 65536]);
    sparse("hole-middle", 3 << 20, &[0, (3 << 20) - 65536]);
    sparse("hole-end", 1 << 20, &[0]);
    sparse("hole-only", 1 << 20, &[]);
    sparse("hole-small", 100_000, &[]);
    sparse("hole-huge", 1 << 30, &[1 << 20, 512 << 20, 700 << 20]);
    sparse("hole-odd", (1 << 20) + 17, &[131_072]);

    // Hard links: in one directory, across directories, of a link, of a node.
    fs::create_dir_all(at("links/a/b")).unwrap();
    fs::write(at("links/file"), "linked").unwrap();
    for name in ["links/again", "links/a/b/far", "zz-last"] {
        fs::hard_link(at("links/file"), at(name)).unwrap();
    }
    fs::write(at("links/partly-outside"), "x").unwrap();
    fs::hard_link(at("links/partly-outside"), root.with_extension("outside")).unwrap();

    // Links: dangling, absolute, to a directory, a long text, hard-linked, owned.
    symlink("nowhere", at("link-dangling")).unwrap();
    symlink("/etc/passwd", at("link-absolute")).unwrap();
    symlink("../../..", at("link-up")).unwrap();
    symlink("links", at("link-directory")).unwrap();
    symlink(OsStr::from_bytes(b"text\n\xff"), at("link-bytes")).unwrap();
    symlink("t/".repeat(500), at("link-long")).unwrap();
    rustix::fs::linkat(&dir, "link-long", &dir, "link-long-again", AtFlags::empty()).unwrap();
    std::os::unix::fs::lchown(at("link-absolute"), Some(12), Some(34)).unwrap();

    // Everything else that has a name.
    let mode = |bits| Mode::from_raw_mode(bits);
    let node = |name: &str, kind, bits, number| {
        rustix::fs::mknodat(&dir, name, kind, mode(bits), number).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).unwrap();
    };
    node("fifo", FileType::Fifo, 0o622, 0);
    node("socket", FileType::Socket, 0o755, 0);
    node("null", FileType::CharacterDevice, 0o666, rustix::fs::makedev(1, 3));
    node("whiteout", FileType::CharacterDevice, 0, rustix::fs::makedev(0, 0));
    node("block", FileType::BlockDevice, 0o4640, rustix::fs::makedev(240, 200_000));
    rustix::fs::linkat(&dir, "fifo", &dir, "fifo-again", AtFlags::empty()).unwrap();
    std::os::unix::fs::chown(at("null"), Some(5), Some(6)).unwrap();

    // Owners and modes; set-user-id must survive the change of the owner.
    for (name, bits, uid, gid) in [
        ("mode-0000", 0o000, 0, 0),
        ("mode-4755", 0o4755, 1000, 1000),
        ("mode-2711", 0o2711, 0, 50),
        ("mode-6755", 0o6755, 0, 0),
        ("mode-1644", 0o1644, 65534, 4_000_000_000),
        ("mode-0777", 0o777, 0, 0),
    ] {
        fs::write(at(name), "x").unwrap();
        std::os::unix::fs::chown(at(name), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).unwrap();
    }
    for (name, bits, gid) in [
        ("dir-sticky", 0o1777, 0),
        ("dir-group", 0o2775, 77),
        ("dir-read-only", 0o555, 0),
        ("dir-none", 0, 9),
    ] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("inside"), name).unwrap();
        fs::create_dir(at(name).join("below")).unwrap();
        std::os::unix::fs::chown(at(name).join("inside"), Some(3), Some(4)).unwrap();
        std::os::unix::fs::chown(at(name), None, Some(gid)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).unwrap();
    }

    // Extended attributes of every namespace, on everything that can have them.
    let xattr = |name: &str, attribute: &CStr, value: &[u8]| {
        let name = std::ffi::CString::new(name).unwrap();
        set_xattr(Node::At(dir.as_fd(), &name), attribute, value).unwrap();
    };
    fs::write(at("xattrs"), "x").unwrap();
    xattr("xattrs", c"user.empty", b"");
    xattr("xattrs", c"user.binary", b"\0\xff\n");
    xattr("xattrs", c"user.large", &[b'v'; 2000]);
    xattr("xattrs", c"trusted.t", b"trusted");
    xattr("links", c"user.of-directory", b"d");
    xattr("link-absolute", c"trusted.of-link", b"l");
    xattr("fifo", c"trusted.of-fifo", b"f");
    xattr("null", c"trusted.of-device", b"n");
    // cap_net_raw=ep, which a change of the owner and every write take away.
    fs::write(at("capable"), "#!").unwrap();
    std::os::unix::fs::chown(at("capable"), Some(10), Some(10)).unwrap();
    fs::set_permissions(at("capable"), fs::Permissions::from_mode(0o755)).unwrap();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr("capable", c"security.capability", &capability);

    // Access control lists; a default one must not reach what is copied into its directory.
    fs::create_dir(at("acl")).unwrap();
    fs::write(at("acl/before"), "x").unwrap();
    fs::write(at("acl-file"), "x").unwrap();
    run("setfacl", &["-m".as_ref(), "u:1:rw,g:2:r,m:rwx".as_ref(), at("acl-file").as_ref()]);
    run("setfacl", &["-m".as_ref(), "d:u:5:rwx,d:g:6:---,u:7:x".as_ref(), at("acl").as_ref()]);
    fs::write(at("acl/after"), "x").unwrap();
    fs::create_dir(at("acl/sub")).unwrap();

    // One directory with more names than one read of it gives, and directories among them.
    fs::create_dir(at("wide")).unwrap();
    for i in 0..800 {
        let name = at("wide").join(format!("{i}-{}", "w".repeat(i % 160)));
        if i % 10 == 0 {
            fs::create_dir(name).unwrap()
        } else {
            fs::write(name, i.to_string()).unwrap()
        }
    }

    // Times, to the nanosecond, before 1970 and far ahead; of directories last.
    let times = |sec, nsec| Timestamps {
        last_access: Timespec { tv_sec: sec + 1, tv_nsec: nsec },
        last_modification: Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    for (name, sec, nsec) in [
        ("size-1", 1_000_000_000, 123_456_789),
        ("size-0", -86_400, 999_999_999),
        ("link-dangling", 77, 1),
        ("fifo", 1_234_567_890, 5),
        ("socket", 2_000_000_000, 0),
        ("null", 1, 2),
        ("links/a/b", 3, 4),
        ("links/a", 5, 6),
        ("links", 7, 8),
        ("dir-read-only", 4_000_000_000, 7),
        ("acl", 9, 10),
        ("wide", 11, 12),
        (".", 13, 14),
    ] {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&dir, name, &times(sec, nsec), nofollow).unwrap();
    }
    rustix::fs::chownat(
        &dir,
        ".",
        Some(Uid::from_raw(21)),
        Some(Gid::from_raw(22)),
        AtFlags::empty(),
    )
    .unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o3751)).unwrap();
    rustix::fs::utimensat(&dir, ".", &times(13, 14), AtFlags::empty()).unwrap();
}

#[test]
fn paths_longer_than_any_call_takes() {
    let dir = Scratch::new();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut deep = open(&source);
    for level in 0..40 {
        let name = format!("{level}-{}", "d".repeat(150));
        rustix::fs::mkdirat(&deep, &*name, Mode::RWXU).unwrap();
        deep = kleened_sys::fs::open_directory(&deep, &*name).unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let file = rustix::fs::openat(&deep, "file", flags, Mode::RUSR).unwrap();
        File::from(file).write_all(name.as_bytes()).unwrap();
        rustix::fs::linkat(&deep, "file", open(&source), format!("up-{level}"), AtFlags::empty())
            .unwrap();
    }
    let to = dir.path().join("copy");
    copy(&source, &to, &Options::default()).unwrap();
    let (from, to) = (manifest(&source).unwrap(), manifest(&to).unwrap());
    assert!(from.keys().any(|path| path.len() > 2 * 4096 - 2500), "not long enough");
    assert_eq!(differences(&from, &to), [""; 0]);
}

/// The copy shows no difference, and its summary says what is in it.
fn complete(dir: &Path) -> Summary {
    let source = dir.join("source");
    everything(&source);
    let before = manifest(&source).unwrap();
    let summary = copy(&source, &dir.join("ours"), &Options::default()).unwrap();
    assert_eq!(differences(&before, &manifest(&dir.join("ours")).unwrap()), [""; 0]);
    assert_eq!(differences(&before, &manifest(&source).unwrap()), [""; 0], "the source changed");

    let files = before.values().filter(|item| item.kind != "d").count() as u64;
    assert_eq!((summary.files, summary.directories), (files, before.len() as u64 - files));
    assert_eq!((summary.mounts, summary.vanished), (0, 0));
    summary
}

/// And so there is nothing that another program keeps and this one loses. What the others lose is
/// printed.
#[test]
fn everything_is_in_the_copy() {
    let dir = Scratch::new();
    let summary = complete(&dir.path());
    assert!(matches!(dir, Scratch::Temporary(_)) || summary.cloned_bytes == 0, "{summary:?}");
    let source = dir.path().join("source");
    let before = manifest(&source).unwrap();
    // Without `S` the other one fills all holes.
    for (program, options) in [("cp", "-a"), ("rsync", "-aHAXS")] {
        if !has(program) {
            continue;
        }
        let to = dir.path().join(program);
        let arguments =
            [OsStr::new(options).to_owned(), source.join(".").into(), to.clone().into()];
        let ended = Command::new(program).args(arguments).output().unwrap();
        let lost = differences(&before, &manifest(&to).unwrap());
        println!("{program} {options}: {}, {} entries differ", ended.status, lost.len());
        print!("{}", String::from_utf8_lossy(&ended.stderr));
        for line in lost.iter().take(20) {
            println!("    {}", line.chars().take(120).collect::<String>());
        }
    }
}

#[test]
fn content_is_shared_on_xfs() {
    shares_content("xfs");
}

#[test]
fn content_is_shared_on_btrfs() {
    shares_content("btrfs");
}

fn shares_content(kind: &str) {
    if !private() {
        return;
    }
    let Some(mounted) = Mounted::image(kind, 512) else { return };
    let summary = complete(&mounted.path());
    assert!(summary.cloned_bytes > 20_000_000, "{summary:?}");
    // Shared until written to, and not after.
    let (from, to) =
        (mounted.path().join("source/size-300000"), mounted.path().join("ours/size-300000"));
    File::options().write(true).open(&to).unwrap().write_all(b"changed").unwrap();
    assert!(fs::read(to).unwrap().starts_with(b"changed"));
    assert!(!fs::read(from).unwrap().starts_with(b"changed"));
}

#[test]
fn from_one_kind_of_file_system_to_another() {
    if !private() {
        return;
    }
    let dir = Scratch::new();
    let tmpfs = Mounted::tmpfs("size=256m");
    let source = dir.path().join("source");
    everything(&source);
    // Not every kernel's tmpfs can have these.
    let probe = open(&tmpfs.path());
    if let Err(error) = set_xattr(Node::Open(probe.as_fd()), c"user.probe", b"") {
        return skip("tmpfs-xattr", error);
    }
    copy(&source, &tmpfs.path().join("copy"), &Options::default()).unwrap();
    let (from, to) = (manifest(&source).unwrap(), manifest(&tmpfs.path().join("copy")).unwrap());
    assert_eq!(differences(&from, &to), [""; 0]);
}

#[test]
fn what_is_protected_is_protected_in_the_copy() {
    let dir = Scratch::new();
    let (source, to) = (dir.path().join("source"), dir.path().join("copy"));
    fs::create_dir_all(source.join("fixed/below")).unwrap();
    for name in ["file", "appended", "not-dumped", "fixed/below/file"] {
        fs::write(source.join(name), name).unwrap();
    }
    // Its other name comes after it, in a directory that is protected, too.
    fs::hard_link(source.join("file"), source.join("fixed/again")).unwrap();
    let protected = [
        ("file", IFlags::IMMUTABLE),
        ("appended", IFlags::APPEND),
        ("not-dumped", IFlags::NODUMP),
        ("fixed", IFlags::IMMUTABLE),
        (".", IFlags::APPEND),
    ];
    for (name, flag) in protected {
        let file = open(&source.join(name));
        let set = rustix::fs::ioctl_getflags(&file)
            .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags | flag));
        if let Err(errno) = set {
            return skip("flags", errno);
        }
    }
    copy(&source, &to, &Options::default()).unwrap();
    let (from, copied) = (manifest(&source).unwrap(), manifest(&to).unwrap());
    assert_eq!(differences(&from, &copied), [""; 0]);
    assert_eq!(copied.values().filter(|item| !item.flags.is_empty()).count(), 6);
    fs::write(to.join("fixed/new"), "").unwrap_err();
    for name in ["source", "copy"] {
        kleened_sys::fs::remove_tree(open(&dir.path()).as_fd(), name).unwrap();
    }
}

#[test]
fn a_target_inside_the_source_is_refused() {
    let dir = Scratch::new();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let error = copy(&dir.path(), &dir.path().join("sub/copy"), &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot copy a directory into itself: the target is sub/copy");
    let error =
        copy::tree(open(&dir.path()).as_fd(), open(&dir.path()).as_fd(), &Options::default());
    assert!(matches!(error, Err(copy::Error::Inside { .. })), "{error:?}");
}

#[test]
fn any_number_of_threads_gives_the_same() {
    let dir = Scratch::new();
    let source = dir.path().join("source");
    everything(&source);
    let before = manifest(&source).unwrap();
    let mut summaries = Vec::new();
    for threads in [1, 2, 16] {
        let to = dir.path().join(threads.to_string());
        summaries.push(copy(&source, &to, &Options { threads, ..Options::default() }).unwrap());
        assert_eq!(differences(&before, &manifest(&to).unwrap()), [""; 0], "{threads} threads");
    }
    assert!(summaries.windows(2).all(|two| two[0] == two[1]), "{summaries:?}");
}

#[test]
fn the_time_of_reading_is_kept_on_both_sides() {
    let dir = Scratch::new();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    symlink("file", source.join("link")).unwrap();
    let old = |sec| Timespec { tv_sec: sec, tv_nsec: 42 };
    let times = Timestamps { last_access: old(1000), last_modification: old(2000) };
    let names = ["file", "link", "."];
    for name in names {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(open(&source), name, &times, nofollow).unwrap();
    }
    let to = dir.path().join("copy");
    copy(&source, &to, &Options::default()).unwrap();
    for name in names {
        let read = |root: &Path| {
            let data = fs::symlink_metadata(root.join(name)).unwrap();
            (data.atime(), data.atime_nsec())
        };
        assert_eq!(read(&to), (1000, 42), "{name}");
        // Reading a link's text leaves a trace, whoever does it.
        assert!(name == "link" || read(&source) == (1000, 42), "{name}");
    }
}

#[test]
fn a_full_disk_is_named_with_the_file() {
    if !private() {
        return;
    }
    let dir = Scratch::new();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/large"), vec![1; 4 << 20]).unwrap();
    let failed = |mounted: &Mounted, from: &Path| {
        let error = copy(from, &mounted.path().join("copy"), &Options::default()).unwrap_err();
        let copy::Error::Call { path, call, source } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}: {source}");
        let seen = (path.clone(), call.to_string());
        // Callers that know only kinds see the same.
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::StorageFull);
        seen
    };
    let bytes = failed(&Mounted::tmpfs("size=1m"), &source);
    assert_eq!(bytes, (PathBuf::from("sub/large"), "copy_file_range".to_owned()));

    let many = dir.path().join("many");
    fs::create_dir(&many).unwrap();
    for i in 0..100 {
        fs::write(many.join(i.to_string()), "x").unwrap();
    }
    let (path, call) = failed(&Mounted::tmpfs("size=1m,nr_inodes=50"), &many);
    assert!(path.components().count() == 1 && call == "openat", "{path:?} {call}");

    let Some(small) = Mounted::image("ext4", 4) else { return };
    assert_eq!(failed(&small, &source).0, Path::new("sub/large"));
}

#[test]
fn without_privileges_what_may_not_be_read_is_named() {
    let dir = Scratch::new();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::create_dir(dir.path().join("to")).unwrap();
    fs::create_dir(dir.path().join("to2")).unwrap();
    for (name, mode) in [("sub/closed", 0o000), ("sub/open", 0o640), ("sub", 0o555), (".", 0o755)] {
        let path = source.join(name);
        if name.starts_with("sub/") {
            fs::write(&path, name).unwrap();
        }
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for to in ["to", "to2"] {
        std::os::unix::fs::chown(dir.path().join(to), Some(1000), Some(1000)).unwrap();
    }
    let [from, to, to2] = ["source", "to", "to2"].map(|name| open(&dir.path().join(name)));
    // Of this thread, and of those that it starts.
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(1000));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(1000));
    let copy_to = |to: &OwnedFd| copy::tree(from.as_fd(), to.as_fd(), &Options::default());
    let error = copy_to(&to).unwrap_err();
    assert_eq!(error.to_string(), "cannot copy sub/closed: openat failed");
    let copy::Error::Call { source: cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.kind(), std::io::ErrorKind::PermissionDenied);
    // The rest can be copied, a directory that can't be written to included.
    rustix::fs::chmodat(&from, "sub/closed", Mode::RUSR, AtFlags::empty()).unwrap();
    copy_to(&to2).unwrap();
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
    let (from, to) = (manifest(&source).unwrap(), manifest(&dir.path().join("to2")).unwrap());
    assert_eq!(differences(&from, &to), [""; 0]);
}

#[test]
fn a_cancelled_copy_ends() {
    let dir = Scratch::new();
    let (many, large) = (dir.path().join("many"), dir.path().join("large"));
    for i in 0..40 {
        fs::create_dir_all(many.join(i.to_string())).unwrap();
        for j in 0..50 {
            fs::write(many.join(i.to_string()).join(j.to_string()), "x").unwrap();
        }
    }
    fs::create_dir(&large).unwrap();
    fs::write(large.join("file"), vec![1; 256 << 20]).unwrap();
    let cancelled = |from: &Path, to: &str, when: fn(&Progress) -> bool| {
        let progress = Progress::new();
        let options = Options { progress: Some(&progress), ..Options::default() };
        let to = dir.path().join(to);
        std::thread::scope(|scope| {
            let copying = scope.spawn(|| copy(from, &to, &options));
            while !when(&progress) && !copying.is_finished() {
                std::thread::yield_now();
            }
            progress.cancel();
            let result = copying.join().unwrap();
            assert!(matches!(result, Err(copy::Error::Cancelled)), "{result:?}");
        });
        progress
    };
    let progress = cancelled(&many, "at-once", |_| true);
    assert!(progress.files.load(Relaxed) < 2000);
    let progress = cancelled(&many, "in-between", |p| p.files.load(Relaxed) > 100);
    assert!((101..2000).contains(&progress.files.load(Relaxed)));
    let progress = cancelled(&large, "in-a-file", |p| p.bytes.load(Relaxed) > 0);
    assert!((1..256 << 20).contains(&progress.bytes.load(Relaxed)));
}

#[test]
fn files_that_change_meanwhile_do_no_harm() {
    let dir = Scratch::new();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut size = 0;
            while !stop.load(Relaxed) {
                size = (size * 7 + 100_003) % 5_000_000;
                for i in 0..10 {
                    let path = source.join(i.to_string());
                    let file = File::options().create(true).append(true).open(&path).unwrap();
                    file.set_len(size).unwrap();
                    (&file).write_all(&[1; 5000]).unwrap();
                    if i % 3 == 0 {
                        let _ = fs::rename(&path, source.join(format!("{i}-moved")));
                    }
                    let link = source.join(format!("{i}-link"));
                    if fs::remove_file(&link).is_err() {
                        symlink("text", link).unwrap();
                    }
                    if i % 5 == 0 {
                        let _ = fs::remove_file(source.join(format!("{i}-moved")));
                    }
                }
            }
        });
        let _stop = Stop(&stop);
        for i in 0..30 {
            copy(&source, &dir.path().join(format!("copy-{i}")), &Options::default()).unwrap();
        }
    });
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let dir = Scratch::new();
    let (source, outside) = (dir.path().join("source"), dir.path().join("outside"));
    for i in 0..20 {
        fs::create_dir_all(source.join(format!("{i}/below"))).unwrap();
        symlink("../outside", source.join(format!("link-{i}"))).unwrap();
    }
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::write(outside.join("below/secret"), "secret").unwrap();
    let fd = open(&source);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for i in 0..20 {
                    let (a, b) = (i.to_string(), format!("link-{i}"));
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&fd, &a, &fd, &b, exchange).unwrap();
                }
            }
        });
        let _stop = Stop(&stop);
        for i in 0..60 {
            // What it can't make sense of it may refuse.
            let to = dir.path().join(format!("copy-{i}"));
            let _ = copy(&source, &to, &Options::default());
            let copied = manifest(&to).unwrap();
            assert!(copied.keys().all(|path| !path.ends_with(b"secret")), "{:?}", copied.keys());
        }
    });
}

#[test]
fn mounts_stay_out_unless_asked_for() {
    use nix::mount::{MsFlags, mount};
    if !private() {
        return;
    }
    let dir = Scratch::new();
    let (source, host) = (dir.path().join("source"), dir.path().join("host"));
    fs::create_dir_all(source.join("on/dir")).unwrap();
    fs::create_dir(&host).unwrap();
    fs::write(source.join("on/file"), "below").unwrap();
    fs::write(host.join("inside"), "mounted").unwrap();
    // A file of the tree itself that is mounted elsewhere in it is not one of its names there.
    fs::write(source.join("on/again"), "").unwrap();
    fs::write(source.join("own"), "own").unwrap();
    fs::hard_link(source.join("own"), source.join("zz-own")).unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o711)).unwrap();
    // Of the same file system: the device's number says nothing.
    let none = None::<&str>;
    let inside = host.join("inside");
    for (from, to) in [(&host, "on/dir"), (&inside, "on/file"), (&source.join("own"), "on/again")] {
        mount(Some(from), &source.join(to), none, MsFlags::MS_BIND, none).unwrap();
    }
    let to = dir.path().join("without");
    let summary = copy(&source, &to, &Options::default()).unwrap();
    assert_eq!((summary.mounts, summary.bytes, summary.hard_links), (3, 3, 1));
    assert_eq!(fs::read_dir(to.join("on/dir")).unwrap().count(), 0);
    assert_eq!(fs::metadata(to.join("on/dir")).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(fs::metadata(to.join("on/file")).unwrap().len(), 0);
    assert_eq!(fs::metadata(to.join("on/again")).unwrap().len(), 0);
    for name in ["own", "zz-own"] {
        assert_eq!(fs::read(to.join(name)).unwrap(), b"own");
        assert_eq!(fs::metadata(to.join(name)).unwrap().nlink(), 2);
    }

    let to = dir.path().join("with");
    let options = Options { one_file_system: false, ..Options::default() };
    assert_eq!(copy(&source, &to, &options).unwrap().mounts, 0);
    assert_eq!(fs::read(to.join("on/dir/inside")).unwrap(), b"mounted");
    assert_eq!(fs::read(to.join("on/file")).unwrap(), b"mounted");
}

#[test]
fn what_the_target_inherits_is_not_in_the_copy() {
    let dir = Scratch::new();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir_all(source.join("sub/sub")).unwrap();
    fs::write(source.join("sub/file"), "x").unwrap();
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::chown(&target, None, Some(99)).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o2777)).unwrap();
    run("setfacl", &["-m".as_ref(), "d:u:5:rwx,d:g::---,u:5:x".as_ref(), target.as_ref()]);
    copy::tree(open(&source).as_fd(), open(&target).as_fd(), &Options::default()).unwrap();
    let (from, to) = (manifest(&source).unwrap(), manifest(&target).unwrap());
    assert_eq!(differences(&from, &to), [""; 0]);
}

/// A chain of directories, each with another beside it that waits meanwhile.
fn chain(root: &Path, levels: usize) {
    fs::create_dir(root).unwrap();
    let mut at = open(root);
    for _ in 0..levels {
        for name in ["deeper", "beside"] {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            let below = kleened_sys::fs::open_directory(&at, name).unwrap();
            rustix::fs::symlinkat("text", &below, "link").unwrap();
        }
        at = kleened_sys::fs::open_directory(&at, "deeper").unwrap();
    }
}

#[test]
fn depth_needs_neither_stack_nor_descriptors() {
    const LEVELS: usize = 600;
    let name = "depth_needs_neither_stack_nor_descriptors";
    if std::env::var_os("KLEENE_FEW_DESCRIPTORS").is_none() {
        // Of a process with few, and of this test alone.
        let me = std::env::current_exe().unwrap();
        let limited = "ulimit -n 64 && exec \"$0\" --exact --nocapture \"$1\"";
        let child = Command::new("sh")
            .args(["-c", limited])
            .args([me.as_os_str(), name.as_ref()])
            .env("KLEENE_FEW_DESCRIPTORS", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}");
        return;
    }
    let dir = Scratch::new();
    let (source, to) = (dir.path().join("source"), dir.path().join("copy"));
    chain(&source, LEVELS);
    let summary = copy(&source, &to, &Options { threads: 3, ..Options::default() }).unwrap();
    assert_eq!(summary.directories, 2 * LEVELS as u64 + 1);
    assert_eq!(summary.files, 2 * LEVELS as u64);
    let mut at = open(&to);
    for _ in 0..LEVELS {
        assert!(rustix::fs::statat(&at, "beside/link", AtFlags::SYMLINK_NOFOLLOW).is_ok());
        at = kleened_sys::fs::open_directory(&at, "deeper").unwrap();
    }
    drop(at);
    // What the standard library would remove it with overflows.
    for name in ["source", "copy"] {
        kleened_sys::fs::remove_tree(open(&dir.path()).as_fd(), name).unwrap();
    }
}
