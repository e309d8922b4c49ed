//! Trees to copy, and where to.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use kleene_tests::mounts::{Mounted, private, skip};
use kleened::copy::{self, Options, Summary};
use kleened_sys::fs::{Node, set_xattr};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};

pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

pub(crate) fn copy(from: &Path, to: &Path, options: &Options<'_>) -> Result<Summary, copy::Error> {
    fs::create_dir(to).unwrap();
    copy::tree(open(from).as_fd(), open(to).as_fd(), options)
}

/// A directory on a file system of its own, which is quick to be rid of; where there can be none, a
/// temporary one.
pub(crate) enum Scratch {
    Own(Mounted),
    Temporary(tempfile::TempDir),
}

impl Scratch {
    pub(crate) fn new() -> Self {
        match private().then(|| Mounted::image("ext4", 4096)).flatten() {
            Some(mounted) => Self::Own(mounted),
            None => Self::Temporary(tempfile::tempdir().unwrap()),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Own(mounted) => mounted.path(),
            Self::Temporary(dir) => dir.path().to_owned(),
        }
    }
}

pub(crate) fn run(program: &str, arguments: &[&OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Tells another thread to stop, also where this one panics.
pub(crate) struct Stop<'s>(pub(crate) &'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(program, "not installed");
    }
    found
}

/// A tree with everything in it that a file system can have.
pub(crate) fn everything(root: &Path) {
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

/// A chain of directories, each with another beside it that waits meanwhile.
pub(crate) fn chain(root: &Path, levels: usize) {
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
