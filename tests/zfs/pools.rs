//! Pools that are full or read-only, quotas, and a process that may do nothing.

use std::fs::{self, File};
use std::io;
use std::process::Command;

use kleened_sys::zfs::{self, Kind, MountFlags, Receive, SendFlags, Zfs};

use crate::fixture::{Area, pool, texts};

/// A small pool in a file, which is gone with it when this is dropped.
struct SmallPool {
    zfs: &'static Zfs,
    name: String,
    dir: tempfile::TempDir,
}

/// `zpool`, whose commands are no part of what is tested.
fn zpool(arguments: &[&str]) {
    let output = Command::new("zpool").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl SmallPool {
    fn new(name: &str) -> Option<Self> {
        let (zfs, _) = pool()?;
        let name = format!("zfs-test-{name}-{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        File::create_new(&file).unwrap().set_len(96 << 20).unwrap();
        zpool(&["create", "-O", "mountpoint=none", &name, file.to_str().unwrap()]);
        Some(Self { zfs, name, dir })
    }

    /// As it is seen after an export and an import.
    fn import(&self, options: &[&str]) {
        zpool(&["export", &self.name]);
        let dir = self.dir.path().to_str().unwrap();
        zpool(&[&["import", "-d", dir], options, &[&self.name]].concat());
    }
}

impl Drop for SmallPool {
    fn drop(&mut self) {
        let _ = zfs::unmount(&self.dir.path().join("mnt"), true);
        zpool(&["destroy", "-f", &self.name]);
    }
}

#[test]
fn a_pool_that_is_read_only_says_so() {
    let Some(pool) = SmallPool::new("read-only") else { return };
    let zfs = pool.zfs;
    let (one, two) = (format!("{}/one", pool.name), format!("{}/two", pool.name));
    let a = format!("{one}@a");
    zfs.create(&one, &texts(&[])).unwrap();
    zfs.snapshot(&[&a], &texts(&[])).unwrap();
    pool.import(&["-o", "readonly=on"]);
    assert!(zfs.exists(&a).unwrap());
    let none = texts(&[]);
    for result in [
        zfs.create(&two, &none),
        zfs.clone_from(&two, &a, &none),
        zfs.snapshot(&[&format!("{one}@b")], &none),
        zfs.destroy_snapshots(&[&a], false),
        zfs.destroy(&one),
        zfs.rename(&one, &two),
        zfs.rollback_to(&one, &a),
        zfs.hold(&[(&a, "tag")], None),
        zfs.bookmark(&[(&format!("{one}#a"), &a)]),
        zfs.set(&one, &texts(&[("org.kleene:record", "r")])),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::ReadOnly, "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn a_pool_that_is_full_says_so() {
    let Some(pool) = SmallPool::new("full") else { return };
    let zfs = pool.zfs;
    let one = format!("{}/one", pool.name);
    zfs.create(&one, &texts(&[])).unwrap();
    let at = pool.dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    zfs::mount_dataset(&one, &at, MountFlags::default()).unwrap();
    let noise = noise(1 << 20);
    let error = (0..200)
        .find_map(|n| fs::write(at.join(format!("f{n}")), &noise).err())
        .expect("it has 96 MiB");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let error = zfs.create(&format!("{}/two", pool.name), &texts(&[])).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(error.to_string().contains("remove data"), "{error}");
    // What makes room still works.
    zfs::unmount(&at, false).unwrap();
    zfs.destroy(&one).unwrap();
    zfs.sync(&pool.name).unwrap();
    zfs.create(&one, &texts(&[])).unwrap();
}

#[test]
fn what_is_received_counts_for_the_quota() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.make("one");
    fs::write(area.mount(&one).path().join("file"), noise(6 << 20)).unwrap();
    zfs.snapshot(&[&format!("{one}@a")], &texts(&[])).unwrap();
    let small = area.make("small");
    zfs.set(&small, &texts(&[("quota", "2M")])).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    std::thread::scope(|scope| {
        use std::os::fd::AsFd;
        scope.spawn(|| {
            let writer = writer;
            let _ = zfs.send(&format!("{one}@a"), None, SendFlags::FAST, writer.as_fd());
        });
        let target = format!("{small}/copy@a");
        let error = zfs.receive(&target, &Receive::default(), reader.as_fd()).unwrap_err();
        assert_eq!(error.kind(), Kind::QuotaExceeded, "{error}");
        assert!(error.to_string().contains("raise quota"), "{error}");
        drop(reader);
    });
    assert!(!zfs.exists(&format!("{small}/copy")).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn who_may_not_is_told() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let a = format!("{one}@a");
    // A thread has capabilities of its own, and they end with it.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let nothing = CapabilitySet::empty();
            set_capabilities(
                None,
                CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing },
            )
            .unwrap();
            let none = texts(&[]);
            for result in [
                zfs.create(&area.at("two"), &none),
                zfs.clone_from(&area.at("two"), &a, &none),
                zfs.snapshot(&[&format!("{one}@b")], &none),
                zfs.destroy_snapshots(&[&a], false),
                zfs.destroy(&one),
                zfs.rename(&one, &area.at("two")),
                zfs.rollback_to(&one, &a),
                zfs.hold(&[(&a, "tag")], None),
                zfs.set(&one, &texts(&[("org.kleene:record", "r")])),
            ] {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), Kind::NotPermitted, "{error}");
                assert!(error.to_string().contains("run as root"), "{error}");
            }
        });
    });
    zfs.destroy_snapshots(&[&a], false).unwrap();
}

/// Bytes that can't be compressed.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_le_bytes()[7]
    };
    (0..length).map(|_| next()).collect()
}
