//! Datasets, snapshots, holds, bookmarks and programs.

use std::fs::File;
use std::os::fd::AsFd;

use kleened_sys::zfs::{Kind, Limits, Value};

use crate::fixture::{Area, texts};

#[test]
fn a_dataset_lives() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let (one, two) = (area.at("one"), area.at("two"));
    let mut properties = texts(&[("org.kleene:record", "{}")]);
    properties.put_number("refquota", 64 << 20).unwrap();
    zfs.create(&one, &properties).unwrap();
    let read = zfs.properties(&one, &["refquota", "org.kleene:record"]).unwrap();
    assert_eq!(
        (read.number("refquota"), read.own_text("org.kleene:record")),
        (Some(64 << 20), Some("{}"))
    );
    assert_eq!(zfs.create(&one, &texts(&[])).unwrap_err().kind(), Kind::Exists);
    zfs.rename(&one, &two).unwrap();
    assert_eq!((zfs.exists(&one).unwrap(), zfs.exists(&two).unwrap()), (false, true));
    assert_eq!(zfs.children(&area.name).unwrap(), std::slice::from_ref(&two));
    let inner = format!("{two}/inner");
    zfs.create(&inner, &texts(&[])).unwrap();
    assert_eq!(zfs.destroy(&two).unwrap_err().kind(), Kind::Exists);
    zfs.destroy(&inner).unwrap();
    zfs.destroy(&two).unwrap();
    assert_eq!(zfs.destroy(&two).unwrap_err().kind(), Kind::NotFound);
    zfs.sync(area.name.split('/').next().unwrap()).unwrap();
}

#[test]
fn snapshots_are_taken_all_or_none() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let (one, two) = (area.make("one"), area.make("two"));
    let (a, b) = (format!("{one}@a"), format!("{two}@a"));
    zfs.snapshot(&[&a, &b], &texts(&[("org.kleene:why", "test")])).unwrap();
    let [first, second] = [&one, &two].map(|name| zfs.snapshots(name).unwrap().remove(0));
    assert_eq!((&*first.name, first.createtxg), ("a", second.createtxg));
    assert!(first.creation > 1_700_000_000 && first.guid != second.guid && first.guid != 0);
    assert_eq!(zfs.properties(&a, &[]).unwrap().own_text("org.kleene:why"), Some("test"));
    // One that is there spoils all.
    let (c, d) = (format!("{one}@c"), format!("{two}@a"));
    let error = zfs.snapshot(&[&c, &d], &texts(&[])).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(
        error.failed().iter().map(|i| (&*i.name, i.kind())).collect::<Vec<_>>(),
        [(&*d, Kind::Exists)]
    );
    assert!(error.to_string().contains(&d), "{error}");
    assert!(!zfs.exists(&c).unwrap());
    zfs.snapshot(&[], &texts(&[])).unwrap();
    // Going, those that are not there are passed over.
    zfs.destroy_snapshots(&[&a, &b, &c], false).unwrap();
    assert_eq!(zfs.snapshots(&one).unwrap(), []);
}

#[test]
fn held_and_cloned_snapshots_stay() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let (a, b) = (format!("{one}@a"), format!("{one}@b"));
    zfs.snapshot(&[&b], &texts(&[])).unwrap();
    zfs.hold(&[(&a, "tag"), (&a, "other")], None).unwrap();
    zfs.hold(&[(&a, "more")], None).unwrap();
    let mut tags: Vec<String> = zfs.holds(&a).unwrap().into_iter().map(|hold| hold.0).collect();
    tags.sort();
    assert!(tags.contains(&"more".to_owned()) && tags.contains(&"other".to_owned()), "{tags:?}");
    let error = zfs.destroy_snapshots(&[&a, &b], false).unwrap_err();
    assert_eq!((error.kind(), &*error.failed()[0].name), (Kind::Busy, &*a));
    assert!(zfs.exists(&b).unwrap());
    let error = zfs.hold(&[(&a, "more")], None).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    let error = zfs.hold(&[(&b, "x"), (&format!("{one}@no"), "x")], None).unwrap_err();
    assert_eq!((error.kind(), zfs.holds(&b).unwrap().len()), (Kind::NotFound, 1));
    assert_eq!(zfs.release(&[(&b, "y")]).unwrap_err().kind(), Kind::NotFound);
    zfs.release(&[(&b, "x")]).unwrap();
    let releases: Vec<(&str, &str)> = tags.iter().map(|tag| (&*a, &**tag)).collect();
    zfs.release(&releases).unwrap();
    assert_eq!(zfs.holds(&a).unwrap(), []);
    // A hold that goes with its descriptor.
    let device = File::options().read(true).write(true).open("/dev/zfs").unwrap();
    zfs.hold(&[(&a, "mine")], Some(device.as_fd())).unwrap();
    assert_eq!(zfs.holds(&a).unwrap().len(), 1);
    drop(device);
    assert_eq!(zfs.holds(&a).unwrap(), []);

    let clone = area.at("clone");
    zfs.clone_from(&clone, &a, &texts(&[("org.kleene:record", "clone")])).unwrap();
    let error = zfs.destroy_snapshots(&[&a], false).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert_eq!(zfs.properties(&clone, &["origin"]).unwrap().text("origin"), Some(&*a));
    zfs.promote(&clone).unwrap();
    assert_eq!(
        zfs.properties(&one, &["origin"]).unwrap().text("origin"),
        Some(&*format!("{clone}@a"))
    );
    assert_eq!(zfs.promote(&clone).unwrap_err().kind(), Kind::Invalid);
    zfs.promote(&one).unwrap();
    zfs.snapshot(&[&format!("{clone}@a")], &texts(&[])).unwrap();
    let error = zfs.promote(&clone).unwrap_err();
    assert_eq!((error.kind(), error.failed().len()), (Kind::Exists, 1), "{error}");
}

#[test]
fn rollback_goes_to_the_newest_only() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let mount = area.mount(&one);
    std::fs::remove_file(mount.path().join("file")).unwrap();
    drop(mount);
    zfs.rollback_to(&one, &format!("{one}@a")).unwrap();
    assert!(area.mount(&one).path().join("file").exists());
    zfs.snapshot(&[&format!("{one}@b")], &texts(&[])).unwrap();
    let error = zfs.rollback_to(&one, &format!("{one}@a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    let other = area.with_snapshot("other");
    assert!(zfs.rollback_to(&one, &format!("{other}@a")).is_err());
}

#[test]
fn bookmarks_remain() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.with_snapshot("one");
    let (snapshot, bookmark) = (format!("{one}@a"), format!("{one}#a"));
    let found = zfs.snapshots(&one).unwrap().remove(0);
    zfs.bookmark(&[(&bookmark, &snapshot)]).unwrap();
    let error = zfs.bookmark(&[(&bookmark, &snapshot)]).unwrap_err();
    assert_eq!((error.kind(), error.failed().len()), (Kind::Exists, 1));
    zfs.destroy(&snapshot).unwrap();
    let [mark] = zfs.bookmarks(&one).unwrap().try_into().unwrap();
    assert_eq!((&*mark.name, mark.guid, mark.createtxg), ("a", found.guid, found.createtxg));
    assert_eq!(mark.creation, found.creation);
    zfs.destroy_bookmarks(&[&bookmark, &format!("{one}#no")]).unwrap();
    assert_eq!(zfs.bookmarks(&one).unwrap(), []);
}

#[test]
fn programs_return_and_raise() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let pool = area.name.split('/').next().unwrap();
    let mut arguments = texts(&[]);
    arguments.put_texts("argv", &["a", "b"]).unwrap();
    let program = "args = ...; return {n = #args['argv'], first = args['argv'][1]}";
    let run =
        |text: &str, sync| zfs.channel_program(pool, text, &arguments, Limits::default(), sync);
    for sync in [false, true] {
        let result = run(program, sync).unwrap();
        let back = result.list("return").unwrap();
        assert_eq!((back.number("n"), back.text("first")), (Some(2), Some("a")));
    }
    let error = run("error('no reason')", false).unwrap_err();
    assert!(error.to_string().contains("no reason"), "{error}");
    assert_eq!(run("this is no program", false).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(run("\0", false).unwrap_err().kind(), Kind::Invalid);
    let limits = Limits { instructions: 1000, ..Limits::default() };
    let forever = zfs.channel_program(pool, "while true do end", &arguments, limits, false);
    assert!(forever.is_err());
    let memory = "local t = {}; while true do t[#t + 1] = string.rep('x', 1000) end";
    assert!(run(memory, false).is_err());
    // Destroys what snapshots would keep in one transaction.
    let one = area.with_snapshot("one");
    arguments.put_texts("argv", &[&one]).unwrap();
    let text = "args = ...; fs = args['argv'][1]
        for s in zfs.list.snapshots(fs) do assert(zfs.sync.destroy(s) == 0) end
        return zfs.sync.destroy(fs)";
    let back = zfs.channel_program(pool, text, &arguments, Limits::default(), true).unwrap();
    assert!(matches!(back.get("return"), Some(Value::Integer(0))), "{back:?}");
    assert!(!zfs.exists(&one).unwrap());
}

#[test]
fn threads_have_handles_of_their_own() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let names: Vec<String> = (0..8).map(|n| area.make(&format!("d{n}"))).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                for turn in 0..5 {
                    let value = format!("{name} {turn}");
                    zfs.set(name, &texts(&[("org.kleene:record", &value)])).unwrap();
                    let read = zfs.properties(name, &["org.kleene:record"]).unwrap();
                    assert_eq!(read.own_text("org.kleene:record"), Some(&*value));
                }
            });
        }
    });
    let mut listed = area.zfs.children(&area.name).unwrap();
    listed.sort();
    assert_eq!(listed, names);
    let described = area.zfs.describe_children(&area.name, &["org.kleene:record"]).unwrap();
    assert_eq!(described.len(), 8);
    for dataset in described {
        let value = format!("{} 4", dataset.name);
        assert_eq!(dataset.properties.own_text("org.kleene:record"), Some(&*value));
    }
}
