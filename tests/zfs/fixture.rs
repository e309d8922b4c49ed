//! A dataset for each test, and what is in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kleene_tests::harness::has;
use kleened_sys::zfs::{self, MountFlags, NvList, Zfs};

/// A dataset of the pool that is gone, with all below, when this is dropped.
pub(crate) struct Area {
    pub(crate) zfs: &'static Zfs,
    pub(crate) name: String,
    pub(crate) dir: tempfile::TempDir,
}

/// The pool for the tests, if there is one.
pub(crate) fn pool() -> Option<(&'static Zfs, String)> {
    let pool = std::env::var("KLEENE_POOL").ok();
    let zfs = pool.as_ref().and_then(|_| match Zfs::load() {
        Ok(zfs) => Some(zfs),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    });
    has("zfs", zfs.is_some()).then(|| (zfs.unwrap(), pool.unwrap()))
}

impl Area {
    /// An area for a test, where there is a pool.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (zfs, pool) = pool()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{pool}/zfs-test-{}-{count}", std::process::id());
        zfs.create(&name, &texts(&[])).unwrap();
        Some(Self { zfs, name, dir: tempfile::tempdir().unwrap() })
    }

    /// The full name of something in it.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// A new dataset in it.
    pub(crate) fn make(&self, name: &str) -> String {
        let name = self.at(name);
        self.zfs.create(&name, &texts(&[])).unwrap();
        name
    }

    /// Mounts a dataset until the answer is dropped.
    pub(crate) fn mount(&self, dataset: &str) -> Mount {
        let path = self.dir.path().join(dataset.replace('/', "-"));
        std::fs::create_dir_all(&path).unwrap();
        zfs::mount_dataset(dataset, &path, MountFlags::default()).unwrap();
        Mount(path)
    }

    /// A dataset with a file in it, and a snapshot `@a` of that.
    pub(crate) fn with_snapshot(&self, name: &str) -> String {
        let name = self.make(name);
        let mount = self.mount(&name);
        std::fs::write(mount.path().join("file"), vec![7; 300_000]).unwrap();
        self.zfs.snapshot(&[&format!("{name}@a")], &texts(&[])).unwrap();
        name
    }

    /// Destroys a dataset with its clones elsewhere in the area gone before.
    fn remove(&self, name: &str) {
        for child in self.zfs.children(name).unwrap_or_default() {
            self.remove(&child);
        }
        let snapshots = self.zfs.snapshots(name).unwrap_or_default();
        let names: Vec<String> = snapshots.iter().map(|s| format!("{name}@{}", s.name)).collect();
        for snapshot in &names {
            for (tag, _) in self.zfs.holds(snapshot).unwrap_or_default() {
                let _ = self.zfs.release(&[(snapshot, &tag)]);
            }
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = self.zfs.destroy_snapshots(&names, true);
        let _ = self.zfs.destroy(name);
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // A clone goes before its origin, whose snapshot is destroyed with it.
        for _ in 0..3 {
            self.remove(&self.name);
        }
        if !std::thread::panicking() {
            assert!(!self.zfs.exists(&self.name).unwrap(), "{} is left", self.name);
        }
    }
}

/// A mounted dataset.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = zfs::unmount(&self.0, true);
    }
}

/// A list of texts.
pub(crate) fn texts(pairs: &[(&str, &str)]) -> NvList {
    let mut list = NvList::new().unwrap();
    for (name, value) in pairs {
        list.put_text(name, value).unwrap();
    }
    list
}
