//! Nothing is lost.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use kleene_tests::manifest::{differences, manifest};
use kleene_tests::mounts::{Mounted, private, skip};
use kleened::copy::{self, Options, Summary};
use kleened_sys::fs::{Node, set_xattr};
use rustix::fs::{AtFlags, IFlags, Mode, Timespec, Timestamps};

use crate::fixture::*;

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
