//! Snapshots as streams.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kleene_tests::tree::{assert_same, assert_same_description, describe, sample};
use kleened::storage::{Area, DatasetPath, DatasetSpec, Error};
use kleened_api::volume::{Mode, Owner};

use crate::fixture::{Fixture, volume};

fn export(f: &Fixture, path: &DatasetPath, name: &str, base: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    f.streams().export(&path.snapshot(name), base, &mut bytes).unwrap();
    bytes
}

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

pub(crate) fn full(f: &mut Fixture) {
    let (from, to) = (volume("from"), volume("to"));
    f.driver.create(&from, &spec("one")).unwrap();
    sample(&f.driver.mountpoint(&from));
    f.driver.snapshot(&[from.snapshot("s")], "").unwrap();
    let stream = export(f, &from, "s", None);
    fs::write(f.driver.mountpoint(&from).join("later"), "").unwrap();
    f.streams().import(&to, &spec("two"), &mut &*stream).unwrap();
    assert_eq!(f.driver.get(&to).unwrap().unwrap().record.as_deref(), Some("two"));
    assert_eq!(f.snapshots(&to), ["s"]);
    f.driver.rollback(&from.snapshot("s")).unwrap();
    assert_same(&f.driver.mountpoint(&from), &f.driver.mountpoint(&to));
    // So is the snapshot.
    fs::write(f.driver.mountpoint(&to).join("later"), "").unwrap();
    f.driver.rollback(&to.snapshot("s")).unwrap();
    assert_same(&f.driver.mountpoint(&from), &f.driver.mountpoint(&to));
    // An empty one, and one whose top gets an owner.
    let (empty, owned) = (volume("empty"), volume("owned"));
    f.driver.create(&empty, &spec("")).unwrap();
    f.driver.snapshot(&[empty.snapshot("s")], "").unwrap();
    let stream = export(f, &empty, "s", None);
    let owner = Owner { uid: 5, gid: 6 };
    let with =
        DatasetSpec { owner: Some(owner), mode: Some(Mode(0o711)), ..DatasetSpec::default() };
    f.streams().import(&owned, &with, &mut &*stream).unwrap();
    let stat = fs::metadata(f.driver.mountpoint(&owned)).unwrap();
    assert_eq!(stat.permissions().mode() & 0o7777, 0o711);
}

/// Every way in which a tree can differ from one that it was.
fn change(top: &Path) {
    fs::write(top.join("etc/hostname"), "other\n").unwrap();
    // Of the same size, at the same time: only the content tells, of both its names.
    let times = fs::metadata(top.join("same-size")).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(top.join("same-size")).unwrap();
    (&file).write_all(&[8; 200_000]).unwrap();
    file.set_modified(times).unwrap();
    // A new file where files inherit an ACL, which this one does not have.
    fs::write(top.join("acl/plain"), "").unwrap();
    // One of three names of a file becomes a file of its own; another file gets one more name.
    fs::remove_file(top.join("etc/one")).unwrap();
    fs::write(top.join("etc/one"), "alone").unwrap();
    fs::hard_link(top.join("etc/hostname"), top.join("usr/hostname")).unwrap();
    // Types change.
    fs::remove_dir_all(top.join("times")).unwrap();
    fs::write(top.join("times"), "a file").unwrap();
    fs::remove_file(top.join("etc/bin")).unwrap();
    fs::create_dir_all(top.join("etc/bin/deep/er")).unwrap();
    fs::write(top.join("etc/bin/deep/er/file"), "").unwrap();
    fs::remove_file(top.join("pipe")).unwrap();
    symlink("null", top.join("pipe")).unwrap();
    fs::remove_file(top.join("dangling")).unwrap();
    symlink("elsewhere", top.join("dangling")).unwrap();
    // Only metadata.
    fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(top.join("null"), Some(1), None).unwrap();
    #[cfg(target_os = "linux")]
    {
        rustix::fs::removexattr(top.join("acl/plain"), "system.posix_acl_access").unwrap();
        rustix::fs::removexattr(top.join("empty"), "user.dir").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(top.join("etc"), "user.new", b"\n", flags).unwrap();
    }
    // Names that sort around a directory's.
    fs::write(top.join("etc-"), "").unwrap();
    fs::write(top.join("etc0"), "").unwrap();
    fs::remove_dir_all(top.join("etc/alternatives")).unwrap();
    fs::rename(top.join("hole-last"), top.join("sticky/hole")).unwrap();
}

pub(crate) fn incremental(f: &mut Fixture) {
    let (from, to) = (volume("from"), volume("to"));
    f.driver.create(&from, &spec("")).unwrap();
    let data = f.driver.mountpoint(&from);
    sample(&data);
    fs::write(data.join("same-size"), [7; 200_000]).unwrap();
    fs::hard_link(data.join("same-size"), data.join("same-size-too")).unwrap();
    f.driver.snapshot(&[from.snapshot("one")], "").unwrap();
    f.streams().import(&to, &spec("kept"), &mut &*export(f, &from, "one", None)).unwrap();
    change(&data);
    f.driver.snapshot(&[from.snapshot("two")], "").unwrap();
    let stream = export(f, &from, "two", Some("one"));
    let whole = export(f, &from, "two", None);
    assert!(stream.len() < whole.len(), "{} not less than {}", stream.len(), whole.len());
    f.streams().import_onto(&to, &mut &*stream).unwrap();
    assert_same(&data, &f.driver.mountpoint(&to));
    assert_eq!(f.snapshots(&to), ["one", "two"]);
    assert_eq!(f.driver.get(&to).unwrap().unwrap().record.as_deref(), Some("kept"));
    // The snapshot, not only the data.
    fs::write(f.driver.mountpoint(&to).join("later"), "").unwrap();
    f.driver.rollback(&to.snapshot("two")).unwrap();
    assert_same(&data, &f.driver.mountpoint(&to));
    // Nothing changed at all.
    f.driver.snapshot(&[from.snapshot("three")], "").unwrap();
    f.streams().import_onto(&to, &mut &*export(f, &from, "three", Some("two"))).unwrap();
    assert_same(&data, &f.driver.mountpoint(&to));
}

pub(crate) fn chain_after_import(f: &mut Fixture) {
    let (from, copy, third) = (volume("from"), volume("copy"), volume("third"));
    f.make(&from);
    f.driver.snapshot(&[from.snapshot("one")], "").unwrap();
    // Its top's owner belongs to the dataset, and is neither a change nor lost.
    let owner = Some(Owner { uid: 7, gid: 7 });
    let owned = DatasetSpec { owner, mode: None, ..DatasetSpec::default() };
    f.streams().import(&copy, &owned, &mut &*export(f, &from, "one", None)).unwrap();
    for (base, name) in [("one", "two"), ("two", "three")] {
        fs::write(f.file(&from), name).unwrap();
        f.driver.snapshot(&[from.snapshot(name)], "").unwrap();
        f.streams().import_onto(&copy, &mut &*export(f, &from, name, Some(base))).unwrap();
        let top = f.driver.mountpoint(&copy);
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(top).unwrap()), 7);
    }
    assert_eq!(f.read(&copy), "three");
    // A stream of the copy fits where one of the original does: a snapshot stays what it is.
    f.streams().import(&third, &spec(""), &mut &*export(f, &from, "two", None)).unwrap();
    f.streams().import_onto(&third, &mut &*export(f, &copy, "three", Some("two"))).unwrap();
    assert_eq!(f.read(&third), "three");
    // From the first to the third in one.
    let fourth = volume("fourth");
    f.streams().import(&fourth, &spec(""), &mut &*export(f, &from, "one", None)).unwrap();
    f.streams().import_onto(&fourth, &mut &*export(f, &from, "three", Some("one"))).unwrap();
    assert_eq!(
        (f.read(&fourth), f.snapshots(&fourth)),
        ("three".into(), vec!["one".into(), "three".into()])
    );
}

pub(crate) fn refused(f: &mut Fixture) {
    let (from, to, other) = (volume("from"), volume("to"), volume("other"));
    f.make(&from);
    f.make(&other);
    for name in ["one", "two", "three"] {
        fs::write(f.file(&from), name).unwrap();
        f.driver.snapshot(&[from.snapshot(name)], "").unwrap();
    }
    f.driver.snapshot(&[other.snapshot("one")], "").unwrap();
    let full = export(f, &from, "one", None);
    let second = export(f, &from, "two", Some("one"));
    let third = export(f, &from, "three", Some("two"));
    f.streams().import(&to, &spec(""), &mut &*full).unwrap();
    let before = describe(&f.driver.mountpoint(&to));
    let bad = |result: Result<(), Error>, what: &str| {
        assert!(matches!(result, Err(Error::BadStream(_))), "{what}: {result:?}");
    };
    let new = volume("new");
    let exists = f.streams().import(&to, &spec(""), &mut &*full);
    assert!(matches!(exists, Err(Error::Exists(_))), "{exists:?}");
    let absent = f.streams().import_onto(&new, &mut &*second);
    assert!(matches!(absent, Err(Error::NotFound(_))), "{absent:?}");
    bad(f.streams().import(&new, &spec(""), &mut &*second), "incremental, as a new dataset");
    bad(f.streams().import_onto(&to, &mut &*full), "full, onto a dataset");
    bad(f.streams().import_onto(&to, &mut &*third), "a step left out");
    bad(f.streams().import_onto(&other, &mut &*second), "another dataset's snapshot of that name");
    bad(f.streams().import(&new, &spec(""), &mut &b"hello"[..]), "text");
    bad(f.streams().import(&new, &spec(""), &mut &b""[..]), "nothing");
    bad(f.streams().import_onto(&to, &mut &b""[..]), "nothing");
    assert_same_description(&before, &describe(&f.driver.mountpoint(&to)));
    // Changed since: a file of the same size and time, a new one, a removed one, an attribute.
    let file = f.file(&to);
    let times = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "eno").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(times).unwrap();
    bad(f.streams().import_onto(&to, &mut &*second), "changed content");
    assert_eq!(f.read(&to), "eno");
    f.driver.rollback(&to.snapshot("one")).unwrap();
    fs::write(f.driver.mountpoint(&to).join("new"), "").unwrap();
    bad(f.streams().import_onto(&to, &mut &*second), "a new file");
    f.driver.rollback(&to.snapshot("one")).unwrap();
    fs::remove_file(f.file(&to)).unwrap();
    bad(f.streams().import_onto(&to, &mut &*second), "a removed file");
    f.driver.rollback(&to.snapshot("one")).unwrap();
    f.driver.snapshot(&[to.snapshot("newer")], "").unwrap();
    bad(f.streams().import_onto(&to, &mut &*second), "a newer snapshot");
    f.driver.destroy_snapshot(&to.snapshot("newer")).unwrap();
    f.streams().import_onto(&to, &mut &*second).unwrap();
    bad(f.streams().import_onto(&to, &mut &*second), "once more");
    f.streams().import_onto(&to, &mut &*third).unwrap();
    assert_same(&f.driver.mountpoint(&from), &f.driver.mountpoint(&to));
    // A base that is none.
    let missing = f.streams().export(&from.snapshot("two"), Some("zero"), &mut Vec::new());
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
    for base in ["two", "three"] {
        assert!(f.streams().export(&from.snapshot("two"), Some(base), &mut Vec::new()).is_err());
    }
    assert!(!f.exists(&new));
}

/// A dataset with two snapshots, and another that has the first of them; streams of both.
fn pair(f: &Fixture) -> (DatasetPath, Vec<u8>, Vec<u8>) {
    let (from, to) = (volume("from"), volume("to"));
    f.make(&from);
    f.driver.snapshot(&[from.snapshot("one")], "").unwrap();
    let full = export(f, &from, "one", None);
    fs::write(f.file(&from), "x".repeat(3000)).unwrap();
    f.driver.snapshot(&[from.snapshot("two")], "").unwrap();
    let second = export(f, &from, "two", Some("one"));
    f.streams().import(&to, &spec(""), &mut &*full).unwrap();
    (to, full, second)
}

/// Every so many bytes of a stream; of a long one no more than some dozen times.
fn stride(stream: &[u8], least: usize) -> usize {
    (stream.len() / 40).max(least)
}

pub(crate) fn cut(f: &mut Fixture) {
    let (to, full, second) = pair(f);
    let new = volume("new");
    for length in (0..full.len()).step_by(stride(&full, 7)).chain(full.len() - 6..full.len()) {
        let result = f.streams().import(&new, &spec(""), &mut full.get(..length).unwrap());
        assert!(matches!(result, Err(Error::BadStream(_))), "{length}: {result:?}");
        assert!(!f.exists(&new));
    }
    for length in
        (0..second.len()).step_by(stride(&second, 7)).chain(second.len() - 6..second.len())
    {
        let result = f.streams().import_onto(&to, &mut second.get(..length).unwrap());
        assert!(matches!(result, Err(Error::BadStream(_))), "{length}: {result:?}");
    }
    assert_eq!((f.read(&to), f.snapshots(&to)), ("volumes/from".into(), vec!["one".into()]));
    // More than the stream.
    let longer = [&*full, b"x"].concat();
    let result = f.streams().import(&new, &spec(""), &mut &*longer);
    assert!(matches!(result, Err(Error::BadStream(_))), "{result:?}");
    f.streams().import_onto(&to, &mut &*second).unwrap();
}

pub(crate) fn damaged(f: &mut Fixture) {
    let (to, full, second) = pair(f);
    let new = volume("new");
    let flip = |bytes: &[u8], index: usize| {
        let mut bytes = bytes.to_vec();
        *bytes.get_mut(index).unwrap() ^= 1 << (index % 8);
        bytes
    };
    let (mut taken, mut whole) = (0, 0);
    for index in (0..full.len()).step_by(stride(&full, 5)) {
        match f.streams().import(&new, &spec(""), &mut &*flip(&full, index)) {
            Err(Error::BadStream(_)) => assert!(!f.exists(&new)),
            // A bit of the format that means nothing.
            Ok(()) => {
                taken += 1;
                assert_eq!(f.read(&new), "volumes/from");
                f.driver.destroy(&new).unwrap();
            }
            Err(other) => panic!("{index}: {other:?}"),
        }
        whole += 1;
    }
    assert!(taken * 4 < whole, "{taken} of {whole} damaged streams were taken");
    for index in (0..second.len()).step_by(stride(&second, 11)) {
        let result = f.streams().import_onto(&to, &mut &*flip(&second, index));
        assert!(
            result.is_ok() || matches!(result, Err(Error::BadStream(_))),
            "{index}: {result:?}"
        );
        if result.is_ok() {
            return;
        }
        assert_eq!((f.read(&to), f.snapshots(&to)), ("volumes/from".into(), vec!["one".into()]));
    }
}

pub(crate) fn failing_sides(f: &mut Fixture) {
    struct Broken(usize);
    impl Write for Broken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    struct Reset<'a>(&'a [u8]);
    impl Read for Reset<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                read => Ok(read),
            }
        }
    }
    let (to, full, second) = pair(f);
    for room in [0, 10, full.len() - 1] {
        let from = volume("from").snapshot("one");
        let Err(Error::Io { source, .. }) = f.streams().export(&from, None, &mut Broken(room))
        else {
            panic!("exported into {room} bytes");
        };
        assert_eq!(source.kind(), io::ErrorKind::BrokenPipe);
    }
    let new = volume("new");
    for length in [0, 10, full.len() / 2, full.len() - 1] {
        let part = &mut Reset(full.get(..length).unwrap());
        let Err(Error::Io { source, .. }) = f.streams().import(&new, &spec(""), part) else {
            panic!("imported {length} bytes");
        };
        assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
        assert!(!f.exists(&new));
    }
    let part = &mut Reset(second.get(..second.len() / 2).unwrap());
    assert!(matches!(f.streams().import_onto(&to, part), Err(Error::Io { .. })));
    assert_eq!(f.names(Area::Volumes), ["from", "to"]);
}

/// A snapshot that is destroyed while it is exported is gone at once, and the stream is whole all the
/// same; or the driver refuses to destroy it.
pub(crate) fn destroyed_meanwhile(f: &mut Fixture) {
    /// Calls the function once, when the first bytes come.
    struct AtFirst<'f>(Vec<u8>, Option<Box<dyn FnOnce() + 'f>>);
    impl Write for AtFirst<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.take().into_iter().for_each(|call| call());
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let driver = &*f.driver;
    for whole in [true, false] {
        let (path, copy) = (volume("v"), volume("copy"));
        f.make(&path);
        let mut random = fs::File::open("/dev/urandom").unwrap();
        for name in ["a", "b", "c"] {
            let mut bytes = vec![0; 1 << 20];
            random.read_exact(&mut bytes).unwrap();
            fs::write(driver.mountpoint(&path).join(name), bytes).unwrap();
        }
        driver.snapshot(&[path.snapshot("s")], "").unwrap();
        let before = describe(&driver.mountpoint(&path));
        // The data goes later than the snapshot does, and shows when that begins.
        let last = driver.mountpoint(&path).canonicalize().unwrap().join("c");
        let over = AtomicBool::new(false);
        let stream = std::thread::scope(|scope| {
            let (path, last, over) = (&path, &last, &over);
            let destroy = move || {
                scope.spawn(move || {
                    let destroyed = if whole {
                        driver.destroy(path)
                    } else {
                        driver.destroy_snapshot(&path.snapshot("s"))
                    };
                    over.store(true, Ordering::Relaxed);
                    assert!(matches!(destroyed, Ok(true) | Err(Error::Busy(_))), "{destroyed:?}");
                });
                // Until it is decided; then, should nobody wait, for a while until it is done.
                let there = || match driver.snapshots(path) {
                    Ok(snapshots) => !snapshots.is_empty(),
                    Err(_) => false,
                };
                for _ in 0..100_000 {
                    if over.load(Ordering::Relaxed) || !there() {
                        break;
                    }
                    std::thread::yield_now();
                }
                for _ in 0..20_000 {
                    if over.load(Ordering::Relaxed) || (whole && !last.exists()) {
                        break;
                    }
                    std::thread::yield_now();
                }
            };
            let mut out = AtFirst(Vec::new(), Some(Box::new(destroy)));
            f.streams().export(&path.snapshot("s"), None, &mut out).unwrap();
            out.0
        });
        f.streams().import(&copy, &spec(""), &mut &*stream).unwrap();
        assert_same_description(&before, &describe(&driver.mountpoint(&copy)));
        driver.destroy(&copy).unwrap();
        driver.destroy(&path).unwrap();
    }
}
