//! Pools that are full, and pools that can't be written to.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

#[cfg(target_os = "linux")]
use kleene_tests::{harness::eventually, mounts::Mounted};
use kleened::storage::{Area, DatasetPath, DatasetSpec, Driver, Error, zfs as driver};

use crate::fixture::{Fixture, in_memory, volume};
use crate::place::{patiently, pool, zfs};

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

/// Writes until nothing more goes in.
fn fill(driver: &dyn Driver, name: &str) {
    let mut file = fs::File::create(driver.mountpoint(&volume(name)).join("all")).unwrap();
    let mut random = vec![0; 1 << 17];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    for _ in 0..4096 {
        if file.write_all(&random).and_then(|()| file.sync_data()).is_err() {
            return;
        }
    }
    panic!("512 MiB went in");
}

/// What is there can be read, and removed; what is new fails and leaves nothing.
#[test]
fn a_root_that_is_full() {
    let Some(mut f) = Fixture::of("zfs", in_memory()) else { return };
    f.make(&volume("kept"));
    f.driver.snapshot(&[volume("kept").snapshot("s")], "").unwrap();
    let mut stream = Vec::new();
    f.streams().export(&volume("kept").snapshot("s"), None, &mut stream).unwrap();
    f.make(&volume("full"));
    zfs(&["set", "quota=24M", f.place().dataset()]);
    fill(&*f.driver, "full");
    let (new, origin) = (volume("new"), volume("kept").snapshot("s"));
    for result in [
        f.driver.create(&new, &DatasetSpec { reserve: Some(1 << 26), ..spec("") }),
        f.driver.create(&new, &spec("")),
        f.driver.clone_from(&origin, &new, &spec("")),
        f.streams().import(&new, &spec(""), &mut &*stream),
    ] {
        // The little that it takes may still fit.
        match result {
            Ok(()) => assert!(f.driver.destroy(&new).unwrap()),
            Err(Error::NoSpace { .. }) => assert!(!f.exists(&new)),
            Err(error) => panic!("{error:?}"),
        }
    }
    f.open_again();
    assert_eq!(f.names(Area::Volumes), ["full", "kept"]);
    assert_eq!(f.read(&volume("kept")), "volumes/kept");
    f.driver.set(&volume("kept"), "record").unwrap();
    match f.driver.rename(&volume("kept"), &new) {
        Ok(()) => assert_eq!(f.read(&new), "volumes/kept"),
        Err(Error::NoSpace { .. }) => assert_eq!(f.read(&volume("kept")), "volumes/kept"),
        Err(error) => panic!("{error:?}"),
    }
    assert!(f.driver.destroy(&volume("full")).unwrap());
    f.make(&volume("full"));
    f.nothing_is_left_over();
}

/// What every change says of a dataset that has a snapshot `s`, and of a new one, which `stream` may become.
fn changes(
    driver: &dyn Driver,
    path: &DatasetPath,
    new: &DatasetPath,
    mut stream: &[u8],
) -> [Result<(), Error>; 9] {
    [
        driver.create(new, &spec("")),
        driver.set(path, "other"),
        driver.rename(path, new),
        driver.destroy(path).map(drop),
        driver.snapshot(&[path.snapshot("t")], ""),
        driver.destroy_snapshot(&path.snapshot("s")).map(drop),
        driver.rollback(&path.snapshot("s")),
        driver.clone_from(&path.snapshot("s"), new, &spec("")),
        driver.streams().unwrap().import(new, &spec(""), &mut stream),
    ]
}

/// A pool on a file.
struct OnFile<'p> {
    name: String,
    folder: &'p Path,
}

impl OnFile<'_> {
    fn zpool(&self, args: &[&str]) {
        let output = patiently("zpool", args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "zpool {}: {said}", args.join(" "));
    }

    /// It is there again, so.
    fn import(&self, how: &[&str]) {
        self.zpool(&["export", &self.name]);
        let folder = self.folder.to_str().unwrap();
        self.zpool(&[&["import", "-d", folder], how, &[&*self.name]].concat());
    }
}

impl Drop for OnFile<'_> {
    fn drop(&mut self) {
        let _ = Command::new("zpool").args(["destroy", "-f", &self.name]).output();
    }
}

/// What a pool holds is there after an import, with its mounts. Of one that is read-only, all can be read
/// and nothing changed; what waits to be finished waits.
#[test]
fn a_pool_that_moves_and_one_that_is_read_only() {
    if pool().is_none() {
        return;
    }
    let dir = in_memory();
    let file = dir.path().join("disk");
    fs::File::create(&file).unwrap().set_len(128 << 20).unwrap();
    let pool = OnFile { name: format!("kl{}", std::process::id()), folder: dir.path() };
    let root = dir.path().join("root");
    let mountpoint = format!("mountpoint={}", root.display());
    pool.zpool(&["create", "-O", &mountpoint, &pool.name, file.to_str().unwrap()]);
    let opened = driver::open(&root).unwrap();
    let path = volume("v");
    opened.create(&path, &spec("record")).unwrap();
    fs::write(opened.mountpoint(&path).join("file"), "content").unwrap();
    opened.snapshot(&[path.snapshot("s")], "").unwrap();
    let content = |driver: &dyn Driver| {
        assert_eq!(driver.get(&path).unwrap().unwrap().record.as_deref(), Some("record"));
        fs::read_to_string(driver.mountpoint(&path).join("file")).unwrap()
    };
    pool.import(&[]);
    let opened = driver::open(&root).unwrap();
    assert_eq!(content(&*opened), "content");
    // Without mounts but the root's.
    pool.import(&["-N"]);
    zfs(&["mount", &pool.name]);
    let opened = driver::open(&root).unwrap();
    assert_eq!(content(&*opened), "content");
    // With something to be finished.
    fs::write(root.join(".making/volumes,half"), "").unwrap();
    zfs(&["create", &format!("{}/volumes/half", pool.name)]);
    pool.import(&["-o", "readonly=on"]);
    let opened = driver::open(&root).unwrap();
    assert_eq!(content(&*opened), "content");
    assert_eq!(opened.snapshots(&path).unwrap().len(), 1);
    assert!(opened.usages(std::slice::from_ref(&path)).unwrap()[0].is_some());
    let mut out = Vec::new();
    opened.streams().unwrap().export(&path.snapshot("s"), None, &mut out).unwrap();
    let new = volume("new");
    for (index, result) in changes(&*opened, &path, &new, &out).into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Io { .. })), "{index}: {result:?}");
        assert_eq!(content(&*opened), "content", "after {index}");
    }
    drop(opened);
    pool.import(&[]);
    let opened = driver::open(&root).unwrap();
    assert_eq!(content(&*opened), "content");
    assert_eq!(opened.names(Area::Volumes).unwrap(), std::slice::from_ref(&path));
}

/// A pool that lost its device is suspended. Nothing waits for it that need not, every call says what is the
/// matter, and when the device is back all goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_pool_that_is_suspended() {
    if pool().is_none() {
        return;
    }
    // The device is a file that is larger than what it lies on.
    let dir = in_memory();
    // The kernel's own threads open it, too, so that it is not for this thread alone.
    let mounted = Mounted::tmpfs("size=80M");
    let file = mounted.path().join("file");
    fs::File::create(&file).unwrap().set_len(512 << 20).unwrap();
    let pool = OnFile { name: format!("ks{}", std::process::id()), folder: dir.path() };
    let root = dir.path().join("root");
    let mountpoint = format!("mountpoint={}", root.display());
    pool.zpool(&["create", "-O", &mountpoint, &pool.name, file.to_str().unwrap()]);
    let opened = driver::open(&root).unwrap();
    let path = volume("v");
    opened.create(&path, &spec("record")).unwrap();
    opened.snapshot(&[path.snapshot("s")], "").unwrap();
    let mut stream = Vec::new();
    opened.streams().unwrap().export(&path.snapshot("s"), None, &mut stream).unwrap();
    // Nothing here waits until it is on the disk.
    let large = opened.mountpoint(&path).join("large");
    let mut random = vec![0; 96 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    let writer = std::thread::spawn(move || fs::write(large, random));
    eventually("the pool is suspended", || {
        fs::read_to_string(format!("/proc/spl/kstat/zfs/{}/state", pool.name))
            .is_ok_and(|state| state.trim() == "SUSPENDED")
    });
    let new = volume("new");
    let reads = [opened.get(&path).map(drop), opened.usage(&path).map(drop)];
    let results = reads.into_iter().chain(changes(&*opened, &path, &new, &stream));
    let results: Vec<_> = results.collect();
    mounted.change("size=1G");
    pool.zpool(&["clear", &pool.name]);
    for (index, result) in results.into_iter().enumerate() {
        let Err(Error::Io { source, .. }) = &result else { panic!("{index}: {result:?}") };
        assert!(source.to_string().contains("zpool clear"), "{index}: {source}");
    }
    writer.join().unwrap().unwrap();
    assert_eq!(opened.get(&path).unwrap().unwrap().record.as_deref(), Some("record"));
    assert_eq!(fs::metadata(opened.mountpoint(&path).join("large")).unwrap().len(), 96 << 20);
    opened.create(&new, &spec("new")).unwrap();
    assert_eq!(opened.names(Area::Volumes).unwrap(), [new, path]);
    drop(opened);
    drop(pool);
    drop(mounted);
}
