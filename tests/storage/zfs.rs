//! What only the `zfs` driver has: properties, names, mounts, and what others do to its datasets. For
//! these `KLEENE_POOL` must name a pool in which tests may make datasets.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use kleene_tests::tree::describe;
use kleened::storage::{Area, DatasetPath, DatasetSpec, Error, Event, Told, Usage, zfs as driver};
use kleened_api::volume::{Mode, Owner};

use crate::fixture::{Fixture, in_memory, volume};
use crate::place::{Place, pool, zfs};

fn fixture() -> Option<Fixture> {
    Fixture::of("zfs", in_memory())
}

fn spec(record: &str) -> DatasetSpec {
    DatasetSpec { record: record.to_owned(), ..DatasetSpec::default() }
}

fn record(f: &Fixture, path: &DatasetPath) -> Option<String> {
    f.driver.get(path).unwrap().unwrap().record
}

/// A value of a user property is at most 8,191 bytes long; a record is not.
#[test]
fn long_records() {
    let Some(mut f) = fixture() else { return };
    let (path, long) =
        (volume("v"), |c: char, bytes: usize| c.to_string().repeat(bytes / c.len_utf8()));
    f.driver.create(&path, &spec(&long('a', 8192))).unwrap();
    assert_eq!(record(&f, &path), Some(long('a', 8192)));
    for text in [long('✓', 100_000), long('#', 8191), "short".to_owned(), long('b', 20_000)] {
        f.driver.set(&path, &text).unwrap();
        assert_eq!(record(&f, &path), Some(text.clone()));
        f.open_again();
        assert_eq!(f.driver.list(Area::Volumes).unwrap()[0].record, Some(text));
    }
    // A reader sees one or the other.
    let (one, two, over) = (long('1', 30_000), long('2', 9_000), AtomicBool::new(false));
    f.driver.set(&path, &one).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !over.load(Ordering::Relaxed) {
                let found = record(&f, &path).unwrap();
                assert!(found == one || found == two, "{} bytes, a mix", found.len());
                seen += 1;
            }
            seen
        });
        for _ in 0..10 {
            f.driver.set(&path, &two).unwrap();
            f.driver.set(&path, &one).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    f.nothing_is_left_over();
}

/// A property counts where the dataset itself has it. What has none is somebody else's: it is shown, and
/// stays as it is.
#[test]
fn what_others_made_is_left_alone() {
    let Some(mut f) = fixture() else { return };
    let root = f.place().dataset().to_owned();
    f.make(&volume("ours"));
    zfs(&["set", "org.kleene:record={\"inherited\":1}", &root]);
    zfs(&["set", "org.kleene:other=x", &root]);
    let (theirs, name) = (volume("theirs"), format!("{root}/volumes/theirs"));
    zfs(&["create", "-o", "org.kleene:other=y", "-o", "org.kleene:recor=z", &name]);
    fs::write(f.file(&theirs), "precious").unwrap();
    zfs(&["snapshot", &format!("{name}@s")]);
    zfs(&["create", "-V", "1M", "-s", &format!("{root}/volumes/block")]);
    zfs(&["create", "-u", &format!("{root}/volumes/not:a:name")]);
    let before = describe(&f.driver.mountpoint(&theirs));
    for _ in 0..2 {
        assert_eq!(record(&f, &volume("ours")).as_deref(), Some("volumes/ours"));
        assert_eq!(record(&f, &theirs), None);
        assert_eq!(f.names(Area::Volumes), ["ours", "theirs"]);
        let snapshot = theirs.snapshot("s");
        for (index, error) in [
            f.driver.destroy(&theirs).map(drop),
            f.driver.rename(&theirs, &volume("new")),
            f.driver.set(&theirs, "ours now"),
            f.driver.rollback(&snapshot),
            f.streams().import_onto(&theirs, &mut &b""[..]),
        ]
        .into_iter()
        .enumerate()
        {
            let Err(Error::Unsupported(text)) = error else { panic!("{index}: {error:?}") };
            assert!(text.contains("was not made by this program"), "{text}");
        }
        assert!(matches!(f.driver.create(&theirs, &spec("")), Err(Error::Exists(_))));
        assert!(matches!(f.driver.rename(&volume("ours"), &theirs), Err(Error::Exists(_))));
        f.open_again();
    }
    assert_eq!(before, describe(&f.driver.mountpoint(&theirs)));
    assert_eq!(f.snapshots(&theirs), ["s"]);
    for name in ["theirs", "block", "not:a:name"] {
        zfs(&["destroy", "-r", &format!("{root}/volumes/{name}")]);
    }
    f.nothing_is_left_over();
}

/// ZFS takes 255 bytes for a name with all that is above it.
#[test]
fn names_at_the_limit() {
    let Some(pool) = pool() else { return };
    let top = format!("{pool}/test-{}-deep", std::process::id());
    let mut dataset = top.clone();
    while dataset.len() < 160 {
        dataset = format!("{dataset}/{}", "d".repeat(30));
    }
    // With it goes what is above.
    let above = Place::with("zfs", in_memory(), Some(top), &[]);
    let place = Place::with("zfs", in_memory(), Some(dataset), &[]);
    let driver = driver::open(&place.root()).unwrap();
    let room = 255 - place.dataset().len() - "/volumes/".len();
    assert!(room < 128);
    let (fits, too_long) = (volume(&"v".repeat(room)), volume(&"v".repeat(room + 1)));
    driver.create(&fits, &spec("{}")).unwrap();
    assert!(driver.mountpoint(&fits).is_dir());
    let other = volume("v");
    driver.create(&other, &spec("{}")).unwrap();
    driver.snapshot(&[other.snapshot(&"s".repeat(room - 2))], "").unwrap();
    for error in [
        driver.create(&too_long, &spec("{}")),
        driver.create(&volume(&"v".repeat(128)), &spec("{}")),
        driver.rename(&fits, &too_long),
        driver.rename(&other, &too_long),
        driver.snapshot(&[fits.snapshot("s")], ""),
        driver.snapshot(&[other.snapshot(&"s".repeat(room - 1))], ""),
        // Its snapshot would not fit.
        driver.rename(&other, &volume("vv")),
    ] {
        let Err(Error::Invalid(text)) = error else { panic!("{error:?}") };
        assert!(text.contains("too long"), "{text}");
        assert!(text.contains("255"), "{text}");
    }
    assert!(driver.mountpoint(&other).is_dir());
    place.holds_nothing_but(2);
    drop((place, above));
}

/// What somebody has open is in use.
#[test]
fn what_is_open_is_busy() {
    let Some(mut f) = fixture() else { return };
    for path in [volume("v"), DatasetPath::scratch(&"0123456789ab".parse().unwrap())] {
        f.make(&path);
        f.driver.snapshot(&[path.snapshot("s")], "").unwrap();
        let open = fs::File::open(f.file(&path)).unwrap();
        for error in [f.driver.destroy(&path).map(drop), f.driver.rename(&path, &volume("w"))] {
            assert!(matches!(error, Err(Error::Busy(_))), "{error:?}");
        }
        assert_eq!((f.read(&path), f.snapshots(&path).len()), (path.to_string(), 1));
        drop(open);
    }
    f.nothing_is_left_over();
}

/// A dataset that others depend on stays, with all its snapshots, and the error says who they are; but
/// clones of a volume get what they need.
#[test]
fn what_is_needed_is_not_destroyed() {
    let Some(mut f) = fixture() else { return };
    let (path, clone) = (volume("v"), volume("clone"));
    let image = DatasetPath::image(&"0123456789ab".parse().unwrap());
    f.make(&image);
    f.driver.snapshot(&[image.snapshot("s")], "").unwrap();
    f.driver.clone_from(&image.snapshot("s"), &clone, &spec("")).unwrap();
    let Err(Error::Busy(text)) = f.driver.destroy(&image) else { panic!("destroyed") };
    assert!(text.contains("image/0123456789ab@s"), "{text}");
    f.driver.destroy(&clone).unwrap();
    f.make(&path);
    f.driver.snapshot(&[path.snapshot("free")], "").unwrap();
    f.driver.snapshot(&[path.snapshot("needed")], "").unwrap();
    f.driver.clone_from(&path.snapshot("needed"), &clone, &spec("")).unwrap();
    let busy = |says: &str| {
        let Err(Error::Busy(text)) = f.driver.destroy(&path) else { panic!("destroyed") };
        assert!(text.contains(says), "{text}");
        assert_eq!((f.read(&path), f.snapshots(&path).len()), (path.to_string(), 2));
    };
    let name = format!("{}/volumes/v", f.place().dataset());
    zfs(&["create", &format!("{name}/below")]);
    zfs(&["unmount", &format!("{name}/below")]);
    busy("volumes/v/below");
    zfs(&["destroy", &format!("{name}/below")]);
    zfs(&["hold", "keep", &format!("{name}@free")]);
    busy("volumes/v");
    zfs(&["release", "keep", &format!("{name}@free")]);
    assert!(f.driver.destroy(&path).unwrap());
    f.nothing_is_left_over();
}

/// What is not mounted is mounted at the start and when asked for; mount points that nothing has go.
#[test]
fn mounts_follow_the_datasets() {
    let Some(mut f) = fixture() else { return };
    let root = f.place().dataset().to_owned();
    let paths = ["a", "b", "c"].map(volume);
    for path in &paths {
        f.make(path);
    }
    let [a, b, c] = &paths;
    zfs(&["unmount", &format!("{root}/volumes/a")]);
    assert!(!f.file(a).exists());
    f.driver.mount(a).unwrap();
    f.driver.mount(a).unwrap();
    assert_eq!(f.read(a), a.to_string());
    // Renamed and destroyed by others.
    zfs(&["rename", "-u", &format!("{root}/volumes/b"), &format!("{root}/volumes/d")]);
    zfs(&["destroy", "-f", &format!("{root}/volumes/c")]);
    let area = f.root().join("volumes");
    fs::create_dir_all(area.join("stray")).unwrap();
    fs::create_dir_all(area.join("full/precious")).unwrap();
    fs::write(area.join("file"), "").unwrap();
    assert_eq!(f.names(Area::Volumes), ["a", "d"]);
    assert!(!f.exists(b) && !f.exists(c));
    zfs(&["unmount", &root]);
    let opened = driver::open(&f.root());
    assert!(matches!(opened, Err(Error::Unsupported(_))), "{opened:?}");
    zfs(&["mount", &root]);
    f.open_again();
    assert_eq!((f.read(a), f.read(&volume("d"))), (a.to_string(), b.to_string()));
    assert!(!area.join("stray").exists() && area.join("full/precious").exists());
    fs::remove_dir_all(area.join("full")).unwrap();
    fs::remove_file(area.join("file")).unwrap();
    // Something else is mounted there.
    zfs(&["unmount", &format!("{root}/volumes/a")]);
    zfs(&[
        "create",
        "-o",
        &format!("mountpoint={}", area.join("a").display()),
        &format!("{root}/x"),
    ]);
    assert!(matches!(f.driver.mount(a), Err(Error::Busy(_))));
    zfs(&["destroy", &format!("{root}/x")]);
    f.driver.mount(a).unwrap();
    // A bind mount of the daemon's own tree would be none of ours; the old place of b is nothing's.
    let _ = fs::remove_dir(area.join("b"));
    f.nothing_is_left_over();
}

/// The kernel sets a dataset's properties after it has made it. A machine that stops between leaves a
/// dataset without a record, and one a step later a root directory without its owner.
#[test]
fn what_the_machine_left_half_made() {
    let Some(mut f) = fixture() else { return };
    let root = f.place().dataset().to_owned();
    let making = f.root().join(".making");
    let begin =
        |name: &str, text: &str| fs::write(making.join(format!("volumes,{name}")), text).unwrap();
    // Not even made.
    begin("none", "1:2:700");
    // Made, without a record.
    begin("half", "");
    zfs(&["create", "-u", &format!("{root}/volumes/half")]);
    // Somebody's, made since, with content.
    begin("content", "");
    zfs(&["create", &format!("{root}/volumes/content")]);
    fs::write(f.root().join("volumes/content/file"), "precious").unwrap();
    // Whole but for its owner; and but for the end.
    f.make(&volume("owned"));
    begin("owned", "7:8:750");
    f.make(&volume("whole"));
    begin("whole", "");
    // Somebody's, from before, or with snapshots.
    zfs(&["create", &format!("{root}/volumes/theirs")]);
    zfs(&["create", &format!("{root}/volumes/kept")]);
    zfs(&["snapshot", &format!("{root}/volumes/kept@s")]);
    begin("kept", "");
    begin("theirs", "");
    let late = fs::File::options().write(true).open(making.join("volumes,theirs")).unwrap();
    let time = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    late.set_modified(time).unwrap();
    // Clones without a record, of a snapshot that was made while the log of intents was in use: the kernel
    // has written a block of each. The second is somebody's, with content.
    f.make(&volume("origin"));
    fs::File::open(f.file(&volume("origin"))).unwrap().sync_all().unwrap();
    let origin = format!("{root}/volumes/origin@s");
    zfs(&["snapshot", &origin]);
    for name in ["clone", "changed"] {
        begin(name, "");
        zfs(&["clone", &origin, &format!("{root}/volumes/{name}")]);
    }
    assert_ne!(zfs(&["get", "-Hpo", "value", "written", &format!("{root}/volumes/clone")]), "0\n");
    fs::write(f.root().join("volumes/changed/more"), "precious").unwrap();
    // What was being received.
    zfs(&[
        "create",
        "-o",
        "org.kleene:record=x",
        &format!("{root}/scratch/import-0123456789abcdef"),
    ]);
    fs::write(making.join("strange"), "").unwrap();
    f.open_again();
    assert_eq!(
        f.names(Area::Volumes),
        ["changed", "content", "kept", "origin", "owned", "theirs", "whole"]
    );
    assert_eq!(f.names(Area::Scratch), Vec::<String>::new());
    let stat = fs::metadata(f.driver.mountpoint(&volume("owned"))).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (7, 8, 0o750));
    assert_eq!(
        (f.read(&volume("owned")), f.read(&volume("whole"))),
        ("volumes/owned".into(), "volumes/whole".into())
    );
    fs::remove_file(making.join("strange")).unwrap();
    assert_eq!(f.read(&volume("content")), "precious");
    for name in ["changed", "content", "kept", "theirs"] {
        zfs(&["destroy", "-r", &format!("{root}/volumes/{name}")]);
    }
    f.nothing_is_left_over();
}

#[test]
fn roots_that_are_none() {
    let Some(f) = fixture() else { return };
    // A directory in the dataset, and one of no dataset at all.
    let refuse = |root: &Path, says: &str| {
        let Err(Error::Unsupported(text)) = driver::open(root) else { panic!("opened {root:?}") };
        assert!(text.contains(says), "{text}");
    };
    let inside = f.root().join("inside");
    fs::create_dir(&inside).unwrap();
    refuse(&inside, "no ZFS dataset is mounted at");
    refuse(&f.beside("elsewhere"), "no ZFS dataset is mounted at");
    refuse(&f.beside("elsewhere").join("missing"), "no ZFS dataset is mounted at");
    fs::remove_dir(inside).unwrap();
    fs::create_dir(f.root().join(".kleene")).unwrap();
    refuse(&f.root(), "'dir'");
}

/// Only root reaches what is in an area: content holds set-id programs.
#[test]
fn areas_are_closed() {
    let Some(mut f) = fixture() else { return };
    let mode = |area: &str| fs::metadata(f.root().join(area)).unwrap().mode() & 0o7777;
    for area in Area::ALL {
        assert_eq!(mode(area.as_str()), 0o700);
    }
    assert_eq!(mode(".making"), 0o700);
    // A person may decide otherwise.
    f.make(&volume("v"));
    let area = f.root().join("volumes");
    fs::set_permissions(&area, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    f.open_again();
    assert_eq!(fs::metadata(area).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn properties_that_are_the_drivers_own() {
    let Some(mut f) = fixture() else { return };
    for name in ["mountpoint", "canmount", "org.kleene:record"] {
        let properties = [(name.to_owned(), "x".to_owned())].into();
        let spec = DatasetSpec { properties, ..spec("{}") };
        let refused = f.driver.create(&volume("v"), &spec);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{name}: {refused:?}");
    }
    let properties = [("recordsize", "16K"), ("atime", "off"), ("com.example:x", "y")];
    let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let owner = Some(Owner { uid: 1, gid: 2 });
    let spec = DatasetSpec {
        properties,
        owner,
        mode: Some(Mode(0o711)),
        size: Some(1 << 24),
        ..spec("{}")
    };
    f.driver.create(&volume("v"), &spec).unwrap();
    let name = format!("{}/volumes/v", f.place().dataset());
    let names = "recordsize,atime,com.example:x,refquota,org.kleene:record";
    let set = zfs(&["get", "-Hpo", "value,source", names, &name]);
    assert_eq!(set, "16384\tlocal\noff\tlocal\ny\tlocal\n16777216\tlocal\n{}\tlocal\n");
    f.nothing_is_left_over();
}

/// The streams that are under way end, and so do later ones; nothing has changed then.
#[test]
fn a_stop_ends_streams() {
    /// Interrupts when the first bytes come or are asked for.
    struct AtFirst<'f>(&'f Fixture, &'f [u8]);
    impl io::Write for AtFirst<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.driver.interrupt();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl io::Read for AtFirst<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.driver.interrupt();
            self.1.read(buffer)
        }
    }
    let Some(mut f) = fixture() else { return };
    let (from, to) = (volume("from"), volume("to"));
    f.make(&from);
    let mut random = vec![0; 1 << 20];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).unwrap();
    fs::write(f.driver.mountpoint(&from).join("random"), random).unwrap();
    f.driver.snapshot(&[from.snapshot("s")], "").unwrap();
    let mut stream = Vec::new();
    f.streams().export(&from.snapshot("s"), None, &mut stream).unwrap();
    let stopped = |result: Result<(), Error>| match result {
        Err(Error::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::Interrupted),
        other => panic!("{other:?}"),
    };
    stopped(f.streams().export(&from.snapshot("s"), None, &mut AtFirst(&f, &[])));
    stopped(f.streams().export(&from.snapshot("s"), None, &mut Vec::new()));
    f.open_again();
    stopped(f.streams().import(&to, &spec(""), &mut AtFirst(&f, &stream)));
    stopped(f.streams().import(&to, &spec(""), &mut &*stream));
    assert!(!f.exists(&to));
    f.open_again();
    f.streams().import(&to, &spec(""), &mut &*stream).unwrap();
    f.nothing_is_left_over();
}

/// What happens to datasets is told, whoever did it.
#[test]
fn watched() {
    let Some(mut f) = fixture() else { return };
    let (root, path) = (f.place().dataset().to_owned(), volume("v"));
    // It waits until the end of the process for what comes no more.
    let opened = driver::open(&f.root()).unwrap();
    let (sender, events) = mpsc::channel();
    std::thread::spawn(move || {
        let watch = opened.watch().unwrap();
        while sender.send(watch.next().unwrap()).is_ok() {}
    });
    let until = |wanted: &Event| {
        let mut seen = Vec::new();
        loop {
            match events.recv_timeout(Duration::from_secs(20)) {
                Ok(event) if event == *wanted => return seen,
                Ok(event) => seen.push(event),
                Err(_) => panic!("no {wanted:?} in {seen:?}"),
            }
        }
    };
    let changed = |what: &str| {
        let (path, what) = (path.clone(), what.to_owned());
        Event::Changed { path, what, record: Told::Same }
    };
    f.driver.create(&path, &spec("x")).unwrap();
    until(&Event::Appeared(path.clone()));
    let recorded = |record: &str| {
        let (path, what) = (path.clone(), format!("set org.kleene:record={record}"));
        Event::Changed { path, what, record: Told::Is(record.to_owned()) }
    };
    until(&recorded("x"));
    f.driver.set(&path, "y").unwrap();
    until(&recorded("y"));
    let name = format!("{root}/volumes/v");
    zfs(&["set", "readonly=on", &name]);
    until(&changed("set readonly=1"));
    zfs(&["inherit", "readonly", &name]);
    until(&changed("inherit readonly=0"));
    zfs(&["snapshot", &format!("{name}@s")]);
    until(&changed("snapshot @s"));
    zfs(&["rollback", &format!("{name}@s")]);
    until(&changed("rollback"));
    zfs(&["destroy", &format!("{name}@s")]);
    until(&changed("destroy @s"));
    zfs(&["rename", &name, &format!("{root}/volumes/w")]);
    assert!(!until(&Event::Vanished(path.clone())).contains(&Event::Lost));
    assert!(until(&Event::Appeared(volume("w"))).is_empty());
    zfs(&["rename", &format!("{root}/volumes/w"), &format!("{root}/x")]);
    until(&Event::Vanished(volume("w")));
    zfs(&["rename", &format!("{root}/x"), &name]);
    until(&Event::Appeared(path.clone()));
    zfs(&["set", "atime=on", &format!("{root}/volumes")]);
    until(&Event::Lost);
    // Of another root.
    let other = Place::of("zfs", in_memory()).unwrap();
    zfs(&["create", &format!("{}/volumes", other.dataset())]);
    zfs(&["create", &format!("{}/volumes/v", other.dataset())]);
    zfs(&["destroy", &name]);
    assert!(!until(&Event::Vanished(path.clone())).contains(&Event::Appeared(path.clone())));
    drop(other);
    let _ = fs::remove_dir(f.driver.mountpoint(&path));
    f.nothing_is_left_over();
}

#[test]
fn what_is_measured_again_is_what_there_is() {
    let Some(mut f) = fixture() else { return };
    let (path, root) = (volume("v"), f.place().dataset().to_owned());
    let name = format!("{root}/volumes/v");
    f.make(&path);
    // What is left in the pool, the other tests change.
    let own = |usage: Usage| Usage { available: 0, ..usage };
    let measured = || {
        loop {
            let before = own(f.driver.usage(&path).unwrap());
            let all = f.driver.usages(std::slice::from_ref(&path)).unwrap();
            // Nothing was written to it between them.
            if own(f.driver.usage(&path).unwrap()) == before {
                assert_eq!(
                    all.into_iter().map(|usage| usage.map(own)).collect::<Vec<_>>(),
                    [Some(before)]
                );
                return before;
            }
        }
    };
    f.settle(&path);
    let first = measured();
    assert_eq!(measured(), first);
    zfs(&["set", "refquota=64M", &name]);
    assert_eq!(measured().size, Some(64 << 20));
    fs::write(f.driver.mountpoint(&path).join("more"), vec![7; 1 << 20]).unwrap();
    zfs(&["snapshot", &format!("{name}@s")]);
    assert!(measured().referenced > first.referenced);
    fs::remove_file(f.driver.mountpoint(&path).join("more")).unwrap();
    // What is removed is freed a little later.
    let freed = || {
        zfs(&["snapshot", &format!("{name}@probe")]);
        zfs(&["destroy", &format!("{name}@probe")]);
        measured().snapshots > 0
    };
    assert!((0..100).any(|_| freed()));
    zfs(&["destroy", &format!("{name}@s")]);
    assert_eq!(measured().snapshots, 0);
    let both = [path, volume("w")];
    let there = || f.driver.usages(&both).unwrap().iter().map(Option::is_some).collect::<Vec<_>>();
    assert_eq!(there(), [true, false]);
    f.driver.create(&volume("w"), &spec("")).unwrap();
    assert_eq!(there(), [true, true]);
    f.driver.destroy(&both[0]).unwrap();
    assert_eq!(there(), [false, true]);
    f.driver.destroy(&both[1]).unwrap();
    f.nothing_is_left_over();
}
