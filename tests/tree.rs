//! A tree with everything in it, and what two trees have in common.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};

use crate::manifest::{Manifest, differences, manifest};

/// What is in the tree, but for sockets.
#[must_use]
pub fn describe(top: &Path) -> Manifest {
    let mut found = manifest(top).unwrap();
    found.retain(|_, item| item.kind != "s");
    found
}

/// The two trees are equal, or the test fails and shows the first entries that differ.
#[track_caller]
pub fn assert_same(one: &Path, two: &Path) {
    assert_same_description(&describe(one), &describe(two));
}

/// As [`assert_same`], of trees that were described before.
#[track_caller]
pub fn assert_same_description(one: &Manifest, two: &Manifest) {
    let lines = differences(one, two);
    let shown: Vec<_> = lines.iter().take(10).map(String::as_str).collect();
    assert!(lines.is_empty(), "the trees differ:\n{}", shown.join("\n"));
}

/// How deep the tree is: what a path may be long, its place taken off, by names of a hundred bytes.
const LEVELS: usize = if cfg!(target_os = "linux") { 12 } else { 7 };

/// A tree with everything in it that a copy can lose. As root, on a file system with attributes and ACLs.
pub fn sample(top: &Path) {
    let file = |name: &str, text: &[u8]| fs::write(top.join(name), text).unwrap();
    for dir in ["etc/alternatives", "usr/bin", "empty", "closed", "sticky", "acl", "times"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    file("etc/hostname", b"sample\n");
    file(".hidden", b"");
    file("usr/bin/tool", &[7; 200_000]);
    symlink("/usr/bin/tool", top.join("etc/alternatives/tool")).unwrap();
    symlink("../usr/bin", top.join("etc/bin")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    symlink("a/".repeat(500), top.join("long-target")).unwrap();

    // Names.
    for name in [&b"new\nline"[..], b"$(id) %s 'q' \"", b" lead", b"\xff\xfe", "größe ✓".as_bytes()]
    {
        fs::write(top.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(top.join("n".repeat(255)), "long").unwrap();
    let mut deep = top.to_owned();
    for level in 0..LEVELS {
        deep.push(format!("{level}-{}", "d".repeat(100)));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "deep").unwrap();

    // Hard links: of a file, across directories, of a symbolic link.
    file("etc/one", b"linked");
    fs::hard_link(top.join("etc/one"), top.join("usr/two")).unwrap();
    fs::hard_link(top.join("etc/one"), top.join("zzz-three")).unwrap();
    fs::hard_link(top.join("dangling"), top.join("etc/dangling")).unwrap();

    // Holes: everywhere, at the beginning, in the middle, at the end.
    for (name, size, data) in [
        ("hole-all", 3 << 20, &[][..]),
        ("hole-first", 1 << 20, &[(1 << 20) - 5][..]),
        ("hole-middle", 1 << 20, &[0, (1 << 20) - 5][..]),
        ("hole-last", 1 << 20, &[0, 300_000][..]),
    ] {
        let sparse = File::create(top.join(name)).unwrap();
        for offset in data {
            sparse.write_all_at(b"data\n", *offset).unwrap();
        }
        sparse.set_len(size).unwrap();
    }

    // What is no file.
    let mode = Mode::from_raw_mode(0o640);
    for (name, kind, device) in [
        ("pipe", FileType::Fifo, 0),
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(253, 1_000_000)),
    ] {
        rustix::fs::mknodat(CWD, top.join(name), kind, mode, device).unwrap();
    }
    drop(std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap());

    attributes(top);

    // Owners and modes.
    file("usr/bin/su", b"#!");
    for (name, uid, gid, mode) in [
        ("usr/bin/su", 0, 0, 0o6755),
        ("etc/hostname", 1000, 1001, 0o600),
        ("etc/one", 65534, 4_294_967_294, 0o444),
        ("closed", 3_000_000, 5, 0o000),
        ("sticky", 0, 0, 0o1777),
        ("null", 5, 6, 0o666),
        (".", 770, 771, 0o2750),
    ] {
        let path = top.join(name);
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let (uid, gid) = (Uid::from_raw(12), Gid::from_raw(13));
    let link = top.join("etc/bin");
    rustix::fs::chownat(CWD, link, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();

    // Times, last of all: also long ago, before 1970, to the nanosecond.
    file("times/old", b"");
    for (name, tv_sec, tv_nsec) in [
        ("times/old", -1_000_000, 123_456_789),
        ("etc/hostname", 1_000_000_000, 1),
        ("etc/bin", 1_200_000_000, 999_999_999),
        ("pipe", 1_300_000_000, 5),
        ("times", 1_400_000_000, 500_000_000),
        ("etc", 1_500_000_000, 0),
        (".", 1_600_000_000, 42),
    ] {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, top.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Attributes and ACLs, which are binary: with newlines and zeros.
#[cfg(target_os = "linux")]
fn attributes(top: &Path) {
    let file = |name: &str, text: &[u8]| fs::write(top.join(name), text).unwrap();
    let set = |name: &str, attribute: &[u8], value: &[u8]| {
        let (path, flags) = (top.join(name), rustix::fs::XattrFlags::empty());
        rustix::fs::lsetxattr(path, OsStr::from_bytes(attribute), value, flags).unwrap();
    };
    set("etc/hostname", b"user.plain", b"value");
    set("etc/hostname", b"user.empty", b"");
    set("etc/hostname", b"user.binary", b"\n\0\xff12 path=x\n");
    set("etc/hostname", b"user.odd=%name%3D\n", b"odd");
    set("dangling", b"trusted.link", b"on a link");
    set("pipe", b"trusted.pipe", b"on a pipe");
    set("empty", b"user.dir", b"on a directory");
    set(".", b"user.top", b"on the top");
    // cap_net_raw=ep, as setcap(8) writes it.
    let capability = *b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    set("usr/bin/tool", b"security.capability", &capability);
    let acl = |user: u32| {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 7, user),
            (4, 5, u32::MAX),
            (0x10, 7, u32::MAX),
            (0x20, 4, u32::MAX),
        ] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    file("acl/before", b"");
    set("acl", b"system.posix_acl_default", &acl(10));
    set("acl", b"system.posix_acl_access", &acl(11));
    file("acl/inherited", b"");
    file("acl/own", b"");
    set("acl/own", b"system.posix_acl_access", &acl(12));
}

#[cfg(not(target_os = "linux"))]
fn attributes(top: &Path) {
    for name in ["before", "inherited", "own"] {
        fs::write(top.join("acl").join(name), "").unwrap();
    }
}
