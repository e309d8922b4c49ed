//! What may go wrong, and what others may do meanwhile.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use kleene_tests::manifest::{differences, manifest};
use kleene_tests::mounts::{Mounted, private};
use kleened::copy::{self, Options, Progress};
use rustix::fs::{AtFlags, Mode};

use crate::fixture::*;

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
fn a_target_that_is_refused_is_not_touched() {
    let dir = Scratch::new();
    let (source, to) = (dir.path().join("source"), dir.path().join("to"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(to.join("precious"), "mine").unwrap();
    let before = manifest(&to).unwrap();
    let refused = |from: &Path| {
        let options = Options::default();
        let error = copy::tree(open(from).as_fd(), open(&to).as_fd(), &options).unwrap_err();
        assert_eq!(differences(&before, &manifest(&to).unwrap()), [""; 0]);
        std::io::Error::from(error).kind()
    };
    assert_eq!(refused(&source), std::io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(refused(&to), std::io::ErrorKind::InvalidInput);
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
            let to = dir.path().join(format!("copy-{i}"));
            copy(&source, &to, &Options::default()).unwrap();
            let copied = manifest(&to).unwrap();
            assert!(copied.keys().all(|path| !path.ends_with(b"secret")), "{:?}", copied.keys());
        }
    });
}

/// On a file system in memory what is made anew while its directory is listed is listed twice.
#[test]
fn what_is_replaced_meanwhile_does_not_fail_the_copy() {
    let scratch = Scratch::new();
    replaced_meanwhile(&scratch.path());
    if private() {
        replaced_meanwhile(&Mounted::tmpfs("size=1g").path());
    }
}

fn replaced_meanwhile(dir: &Path) {
    let source = dir.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for i in 0..100 {
        fs::write(source.join(format!("sub/kept-{i}")), "kept").unwrap();
    }
    let replace = |path: &Path, kind: usize| {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir_all(path);
        match kind {
            0 => fs::write(path, "file").unwrap(),
            1 => symlink("kept-1", path).unwrap(),
            2 => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            3 => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            4 => {
                fs::create_dir(path).unwrap();
                fs::write(path.join("inside"), "inside").unwrap();
            }
            5 => fs::hard_link(source.join("sub/kept-2"), path).unwrap(),
            _ => (),
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut kind = 0;
            while !stop.load(Relaxed) {
                for name in ["a", "sub/b", "sub/c", "sub/d", "sub/e", "sub/f", "g"] {
                    kind = (kind + 1) % 7;
                    replace(&source.join(name), kind);
                }
            }
        });
        let _stop = Stop(&stop);
        for i in 0..100 {
            let to = dir.join(format!("copy-{i}"));
            copy(&source, &to, &Options::default()).unwrap_or_else(|e| panic!("{i}: {e:?}"));
            for i in 0..100 {
                assert_eq!(fs::read(to.join(format!("sub/kept-{i}"))).unwrap(), b"kept");
            }
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
fn depth_needs_neither_stack_nor_descriptors() {
    const LEVELS: usize = 600;
    let name = "limits::depth_needs_neither_stack_nor_descriptors";
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
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
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
