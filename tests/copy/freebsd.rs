//! Nothing is lost of what FreeBSD's file systems keep: by a copy, and by an archive and back. What they lack is
//! left out of the tree, and said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use kleene_tests::manifest::{differences, manifest};
use kleene_tests::mounts::skip;
use kleened::archive::{self, Extract};
use kleened::copy::{self, Options};
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};

/// What a program prints; an error where it fails.
fn tried<A: AsRef<OsStr>>(program: &str, arguments: &[A], at: &Path) -> Result<String, String> {
    let output = Command::new(program).args(arguments).arg(at).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[track_caller]
fn ran<A: AsRef<OsStr>>(program: &str, arguments: &[A], at: &Path) -> String {
    tried(program, arguments, at).unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// A tree with everything; whether a flag protects part of it.
fn everything(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |name: &str| root.join(name);
    let dir = File::open(root).unwrap();
    for size in [0, 1, 131_072, 5_000_000] {
        let bytes: Vec<u8> = (0..size).map(|i: usize| (i * 7 % 253) as u8).collect();
        fs::write(at(&format!("size-{size}")), bytes).unwrap();
    }
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::write(at("a/file"), "linked").unwrap();
    fs::hard_link(at("a/file"), at("a/b/again")).unwrap();
    fs::hard_link(at("a/file"), at("z")).unwrap();
    symlink("nowhere", at("link")).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&[7; 131_072], 16 << 20).unwrap();
    rustix::fs::mknodat(&dir, "fifo", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    for (name, mode, uid, gid) in
        [("set-id", 0o6755, 1001, 1002), ("none", 0, 7, 8), ("a/b", 0o1777, 3, 4)]
    {
        if name != "a/b" {
            fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::chown(at(name), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    // Extended attributes of both namespaces.
    for name in ["attributes", "a/c"] {
        match name {
            "a/c" => fs::create_dir(at(name)).unwrap(),
            _ => fs::write(at(name), name).unwrap(),
        }
        for space in ["user", "system"] {
            match tried("setextattr", &[space, "kleene.test", "a value"], &at(name)) {
                Ok(_) => {}
                Err(error) => skip("extattr", error),
            }
        }
    }
    // Access control lists: of NFSv4, or of POSIX.1e.
    fs::create_dir(at("lists")).unwrap();
    fs::write(at("lists/file"), "x").unwrap();
    let nfs4 = ["-m", "user:1001:read_data/execute:file_inherit/dir_inherit:allow"];
    if tried("setfacl", &nfs4, &at("lists")).is_ok() {
        ran("setfacl", &["-m", "group:20:write_data::deny"], &at("lists/file"));
        fs::write(at("lists/inherits"), "x").unwrap();
    } else if let Err(error) = tried("setfacl", &["-m", "u:1001:rwx,m::rx"], &at("lists/file")) {
        skip("acl", error);
    } else {
        ran("setfacl", &["-d", "-m", "u::rwx,g::rx,o::-,u:1001:r,m::rx"], &at("lists"));
        fs::create_dir(at("lists/inherits")).unwrap();
    }
    // Flags. Not every file system keeps each.
    fs::create_dir(at("fixed")).unwrap();
    fs::write(at("fixed/inside"), "x").unwrap();
    fs::hard_link(at("fixed/inside"), at("outside")).unwrap();
    for (name, flag) in [
        ("size-0", "nodump"),
        ("size-1", "hidden"),
        ("set-id", "sappnd"),
        ("fixed/inside", "schg"),
        ("fixed", "sunlnk"),
        ("a/b/c", "uchg"),
    ] {
        if let Err(error) = tried("chflags", &[flag], &at(name)) {
            skip(&format!("flag-{flag}"), error);
        }
    }
    let times = |sec, nsec| Timestamps {
        last_access: Timespec { tv_sec: sec + 1, tv_nsec: nsec },
        last_modification: Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    for (name, sec, nsec) in
        [("size-131072", 1_000_000_000, 123_456_789), ("link", 77, 1), ("a", 5, 6), (".", 13, 14)]
    {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&dir, name, &times(sec, nsec), nofollow).unwrap();
    }
}

/// What the base system's own tools show of two trees is the same.
#[track_caller]
fn same_to_the_tools(one: &Path, other: &Path) {
    let shown = |root: &Path| {
        let script = "cd \"$0\" && find . -exec stat -f '%N %Sf %p %u %g' {} + | sort; \
            find . \\( -type f -o -type d \\) | sort | while read -r name; do \
            echo \"$name\"; getfacl -nq \"$name\"; \
            lsextattr -q user \"$name\"; lsextattr -q system \"$name\"; done";
        ran("sh", &["-c", script], root)
    };
    let (one, other) = (shown(one), shown(other));
    for (one, other) in one.lines().zip(other.lines()) {
        assert_eq!(one, other);
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

struct Trees(tempfile::TempDir);

impl Trees {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Trees {
    /// The protected ones, too.
    fn drop(&mut self) {
        let top = File::open(self.0.path()).unwrap();
        for entry in fs::read_dir(self.0.path()).unwrap() {
            kleened_sys::fs::remove_tree(top.as_fd(), entry.unwrap().file_name()).unwrap();
        }
    }
}

#[test]
fn everything_is_in_the_copy() {
    let trees = Trees::new();
    let (source, copy) = (trees.at("source"), trees.at("copy"));
    everything(&source);
    // New files have it on ZFS; the copy has it no more than the source.
    for name in ["none", "a/c"] {
        if let Err(error) = tried("chflags", &["nouarch"], &source.join(name)) {
            skip("flag-uarch", error);
        }
    }
    fs::create_dir(&copy).unwrap();
    let open = |path: &Path| File::open(path).unwrap();
    copy::tree(open(&source).as_fd(), open(&copy).as_fd(), &Options::default()).unwrap();
    assert_eq!(differences(&manifest(&source).unwrap(), &manifest(&copy).unwrap()), [""; 0]);
    same_to_the_tools(&source, &copy);
}

#[test]
fn what_the_target_inherits_is_not_in_the_copy() {
    let trees = Trees::new();
    let (source, copy) = (trees.at("source"), trees.at("copy"));
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "x").unwrap();
    fs::create_dir(&copy).unwrap();
    let nfs4 = ["-m", "user:1001:write_data:file_inherit/dir_inherit:allow"];
    if let Err(error) = tried("setfacl", &nfs4, &copy) {
        return skip("acl", error);
    }
    let open = |path: &Path| File::open(path).unwrap();
    copy::tree(open(&source).as_fd(), open(&copy).as_fd(), &Options::default()).unwrap();
    assert_eq!(differences(&manifest(&source).unwrap(), &manifest(&copy).unwrap()), [""; 0]);
    same_to_the_tools(&source, &copy);
}

#[test]
fn everything_is_in_the_archive_and_in_tars() {
    let trees = Trees::new();
    let (source, ours) = (trees.at("source"), trees.at("ours"));
    everything(&source);
    let before = manifest(&source).unwrap();
    let mut bytes = Vec::new();
    archive::create(File::open(&source).unwrap().as_fd(), &mut bytes, None).unwrap();
    let extract = |mut bytes: &[u8], to: &Path| {
        fs::create_dir(to).unwrap();
        archive::extract(&mut bytes, File::open(to).unwrap().as_fd(), &Extract::default()).unwrap();
        assert_eq!(differences(&before, &manifest(to).unwrap()), [""; 0], "{to:?}");
        same_to_the_tools(&source, to);
    };
    extract(&bytes, &ours);
    // Ours to tar, and tar's to us.
    fs::write(trees.at("ours.tar"), &bytes).unwrap();
    fs::create_dir(trees.at("tar")).unwrap();
    let tar = trees.at("tar");
    ran("tar", &[OsStr::new("-C"), tar.as_os_str(), OsStr::new("-xpf")], &trees.at("ours.tar"));
    same_to_the_tools(&source, &tar);
    let archive = trees.at("tar.tar");
    let arguments = ["--format", "pax", "-cf", archive.to_str().unwrap(), "-C"];
    let made = Command::new("tar").args(arguments).arg(&source).arg(".").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    extract(&fs::read(archive).unwrap(), &trees.at("tars"));
}
