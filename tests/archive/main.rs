//! Archives: nothing is lost on the way, and nothing hostile gets through.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod hostile;
mod make;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use kleene_tests::mounts::skip;
use kleene_tests::tree::{assert_same, assert_same_description, describe, sample};
use kleened::archive::{self, Error, Extract};
use kleened::copy::Progress;

use make::{COMPRESSIONS, DEVICES, Place, Tar, create, extract, extract_with, tar, zstd};

#[test]
fn everything_comes_back_from_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    sample(&from);
    let mut bytes = Vec::new();
    let top = File::open(&from).unwrap();
    let written = archive::create(top.as_fd(), &mut bytes, None).unwrap();
    assert_eq!(written.sockets, 1);
    // The holes are not in it.
    assert!(bytes.len() < 2 << 20, "{}", bytes.len());
    for (name, compress) in COMPRESSIONS {
        let to = dir.path().join(name);
        let read = extract_with(&compress(&bytes), &to, &DEVICES).unwrap();
        assert_same(&from, &to);
        assert_eq!((read.entries, read.bytes), (written.entries, written.bytes));
        // Equal trees make equal archives.
        assert!(create(&to) == bytes, "{name}");
    }
}

#[test]
fn a_root_file_system_comes_back() {
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        skip("busybox", "there is no /bin/busybox");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    for part in ["bin", "etc/alternatives", "usr/lib", "usr/share/man/man1", "proc", "tmp", "root"]
    {
        fs::create_dir_all(from.join(part)).unwrap();
    }
    fs::copy(busybox, from.join("bin/busybox")).unwrap();
    for tool in ["sh", "ls", "cat"] {
        symlink("busybox", from.join("bin").join(tool)).unwrap();
    }
    fs::hard_link(from.join("bin/busybox"), from.join("bin/init")).unwrap();
    for (link, target) in [
        ("lib", "usr/lib"),
        ("etc/mtab", "../proc/self/mounts"),
        ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
        ("etc/alternatives/awk", "/usr/bin/mawk"),
        ("usr/bin", "../bin"),
        ("usr/share/man/man1/awk.1", "/etc/alternatives/awk.1"),
    ] {
        symlink(target, from.join(link)).unwrap();
    }
    fs::set_permissions(from.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(from.join("root"), fs::Permissions::from_mode(0o700)).unwrap();
    let bytes = create(&from);
    for (name, compress) in COMPRESSIONS {
        let to = dir.path().join(name);
        extract(&compress(&bytes), &to).unwrap();
        assert_same(&from, &to);
    }
}

fn gnu_tar(arguments: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = std::thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    let _ = feed.join();
    output
}

fn is_gnu_tar() -> bool {
    let version = Command::new("tar").arg("--version").output();
    let gnu = version.is_ok_and(|v| v.stdout.starts_with(b"tar (GNU tar)"));
    if !gnu {
        eprintln!("skipped: there is no GNU tar");
    }
    gnu
}

#[test]
fn gnu_tar_reads_what_we_write() {
    if !is_gnu_tar() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    sample(&from);
    // It sets the ACLs' attributes in another order than the modes, and not at all without --acls.
    for path in ["acl", "acl/own", "acl/inherited"] {
        for kind in ["access", "default"] {
            let name = format!("system.posix_acl_{kind}");
            let _ = rustix::fs::removexattr(from.join(path), name);
        }
    }
    let options = ["-xf-", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*"];
    gnu_tar(&options, &to, &create(&from));
    assert_same(&from, &to);
}

#[test]
fn we_read_what_gnu_tar_writes() {
    if !is_gnu_tar() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    sample(&from);
    let pax = ["-cf-", "--format=posix", "--xattrs", "--xattrs-include=*", "."];
    for (name, options) in [
        ("pax", &[][..]),
        ("sparse-1.0", &["-S"][..]),
        ("sparse-0.1", &["-S", "--sparse-version=0.1"]),
    ] {
        let to = dir.path().join(name);
        let bytes = gnu_tar(&[options, &pax].concat(), &from, b"");
        extract_with(&bytes, &to, &DEVICES).unwrap();
        let (mut one, mut two) = (describe(&from), describe(&to));
        if options.is_empty() {
            for tree in [&mut one, &mut two] {
                tree.retain(|name, _| !name.starts_with(b"./hole"));
            }
        }
        assert_same_description(&one, &two);
    }
    // The older formats can't hold everything.
    let old = dir.path().join("old");
    fs::create_dir_all(old.join("a/b")).unwrap();
    fs::write(old.join("a/b/file"), "content").unwrap();
    fs::hard_link(old.join("a/b/file"), old.join("link")).unwrap();
    symlink("a/b", old.join("dir")).unwrap();
    for (path, _) in describe(&old) {
        let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let path = old.join(String::from_utf8(path).unwrap());
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    }
    for format in ["v7", "ustar", "oldgnu", "gnu"] {
        let to = dir.path().join(format);
        let bytes = gnu_tar(&["-cf-", &format!("--format={format}"), "."], &old, b"");
        extract(&bytes, &to).unwrap();
        assert_same(&old, &to);
    }
    // GNU's own maps of holes, and long names.
    let gnu = dir.path().join("gnu-all");
    let bytes = gnu_tar(&["-cSf-", "--format=gnu", "."], &from, b"");
    extract_with(&bytes, &gnu, &DEVICES).unwrap();
    for name in ["hole-all", "hole-first", "hole-middle", "hole-last"] {
        assert_eq!(fs::read(gnu.join(name)).unwrap(), fs::read(from.join(name)).unwrap());
        let stat = fs::metadata(gnu.join(name)).unwrap();
        assert!(stat.blocks() * 512 < stat.size(), "{name} has lost its holes");
    }
    assert_eq!(fs::read_link(gnu.join("long-target")).unwrap().as_os_str().len(), 1000);
    // More segments than fit into the header itself, and into one more block.
    let many = dir.path().join("many");
    fs::create_dir(&many).unwrap();
    let file = File::create(many.join("file")).unwrap();
    for index in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", index * 65536).unwrap();
    }
    for format in ["gnu", "posix"] {
        let to = dir.path().join("many").join(format);
        let bytes = gnu_tar(&["-cSf-", &format!("--format={format}"), "file"], &many, b"");
        extract(&bytes, &to).unwrap();
        assert_eq!(fs::read(to.join("file")).unwrap(), fs::read(many.join("file")).unwrap());
    }
}

#[test]
fn several_members_are_one_archive() {
    let bytes = tar().file("one", &"1".repeat(3000)).file("two", "2").end();
    let (first, rest) = bytes.split_at(700);
    for (name, compress) in COMPRESSIONS {
        let place = Place::new();
        extract(&[compress(first), compress(rest)].concat(), &place.to()).unwrap();
        assert_eq!(fs::read(place.to().join("two")).unwrap(), b"2", "{name}");
    }
    // What pzstd puts first.
    let skippable = [&b"\x50\x2a\x4d\x18\x04\0\0\0abcd"[..], &zstd(&bytes)].concat();
    extract(&skippable, &Place::new().to()).unwrap();
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one() {
    let place = Place::new();
    let outside = place.dir.path().join("outside/file");
    let bytes = tar()
        .file("a", "first")
        .file("a", "second")
        .link("link", outside.to_str().unwrap())
        .file("link", "a file now")
        .file("d", "a file")
        .dir("d")
        .file("d/inside", "x")
        .dir("d")
        .link("usr", "bin")
        .dir("usr")
        .file("usr/tool", "x")
        .file("h1", "linked")
        .hard("h2", "h1")
        .hard("h2", "h1")
        .hard("h1", "h2")
        .hard("h1", "h1")
        .hard("a", "h1")
        .end();
    extract(&bytes, &place.to()).unwrap();
    let read = |name: &str| fs::read_to_string(place.to().join(name)).unwrap();
    assert_eq!(read("link"), "a file now");
    assert_eq!(read("d/inside"), "x");
    assert_eq!(read("a"), "linked");
    assert_eq!(fs::metadata(place.to().join("h1")).unwrap().nlink(), 3);
    assert!(place.to().join("usr").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_to_string(outside).unwrap(), "untouched");
}

#[test]
fn global_records_hold_until_an_entry_has_its_own() {
    let archive = tar()
        .global(&[("mtime", b"5"), ("uid", b"7"), ("comment", b"x")])
        .file("global", "")
        .pax(&[("mtime", b"6"), ("uid", b"")])
        .file("own", "")
        .global(&[("mtime", b"")])
        .file("header", "");
    let place = Place::new();
    extract(&archive.end(), &place.to()).unwrap();
    let found = |name: &str| {
        let found = fs::symlink_metadata(place.to().join(name)).unwrap();
        (found.mtime(), found.uid())
    };
    assert_eq!(found("global"), (5, 7));
    assert_eq!(found("own"), (6, 0));
    assert_eq!(found("header"), (1_000_000_000, 7));
}

#[test]
fn parents_that_nobody_described_are_made() {
    let place = Place::new();
    extract(&tar().file("a/b/c", "x").end(), &place.to()).unwrap();
    for dir in ["a", "a/b"] {
        let stat = fs::metadata(place.to().join(dir)).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o755, 0, 0), "{dir}");
    }
    // A description that comes late still counts.
    let place = Place::new();
    let mut late = Tar::header(b'5', b"a", b"", 0);
    late.set_mode(0o700);
    late.set_uid(7);
    extract(&tar().file("a/b", "x").raw(late, b"").end(), &place.to()).unwrap();
    let stat = fs::metadata(place.to().join("a")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o700, 7, 1_000_000_000));
}

#[test]
fn deep_and_long_paths() {
    let place = Place::new();
    let deep = "d/".repeat(2500);
    let bytes = tar().pax(&[("path", format!("{deep}file").as_bytes())]).file("x", "deep").end();
    extract(&bytes, &place.to()).unwrap();
    assert!(create(&place.to()).windows(4).any(|w| w == b"deep"));
    // Deeper than a path may be: the standard library's removal manages, from open directory to
    // open directory.
}

#[test]
fn devices_are_made_where_they_are_allowed() {
    let place = Place::new();
    let bytes = tar().entry(b'3', b"null", b"", b"").entry(b'6', b"pipe", b"", b"").end();
    extract_with(&bytes, &place.to(), &DEVICES).unwrap();
    let stat = place.to().join("null").symlink_metadata().unwrap();
    assert_eq!((stat.rdev(), stat.mode()), (rustix::fs::makedev(1, 3), 0o020_644));
}

#[test]
fn bsdtars_attributes() {
    let place = Place::new();
    let bytes = tar()
        .pax(&[("LIBARCHIVE.xattr.user.a%20b", b"AP8="), ("LIBARCHIVE.creationtime", b"1")])
        .file("a", "")
        .end();
    extract(&bytes, &place.to()).unwrap();
    let mut value = [9; 8];
    let length = rustix::fs::getxattr(place.to().join("a"), "user.a b", &mut value).unwrap();
    assert_eq!(value.get(..length).unwrap(), b"\0\xff");
}

#[test]
fn progress_counts_and_cancels() {
    let place = Place::new();
    let bytes = tar().dir("d").file("d/a", "12345").link("l", "d").end();
    let progress = Progress::default();
    let options = Extract { devices: false, progress: Some(&progress) };
    extract_with(&bytes, &place.to(), &options).unwrap();
    assert_eq!(progress.files.load(std::sync::atomic::Ordering::Relaxed), 2);
    assert_eq!(progress.bytes.load(std::sync::atomic::Ordering::Relaxed), 5);
    progress.cancel();
    let error = extract_with(&bytes, &place.to(), &options).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    let top = File::open(place.to()).unwrap();
    let error = archive::create(top.as_fd(), &mut io::sink(), Some(&progress)).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
}
