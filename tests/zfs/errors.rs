//! What is said where something can't be done.

use std::io;

use kleened_sys::zfs::{Error, Kind, NvList, SendFlags};

use crate::fixture::{Area, pool, texts};
use crate::pools::noise;

/// Every call that takes one name, on that name.
fn calls(zfs: &'static kleened_sys::zfs::Zfs, name: &str) -> Vec<Result<(), Error>> {
    let none = NvList::new().unwrap();
    vec![
        zfs.create(name, &none),
        zfs.clone_from(name, name, &none),
        zfs.snapshot(&[name], &none),
        zfs.destroy(name),
        zfs.destroy_snapshots(&[name], false),
        zfs.rename(name, name),
        zfs.rollback_to(name, name),
        zfs.promote(name),
        zfs.hold(&[(name, "tag")], None),
        zfs.release(&[(name, "tag")]),
        zfs.holds(name).map(drop),
        zfs.bookmark(&[(name, name)]),
        zfs.bookmarks(name).map(drop),
        zfs.destroy_bookmarks(&[name]),
        zfs.send_size(name, None, SendFlags::FAST).map(drop),
        zfs.children(name).map(drop),
        zfs.describe_children(name, &[]).map(drop),
        zfs.properties(name, &[]).map(drop),
        zfs.snapshots(name).map(drop),
        zfs.set(name, &texts(&[("org.kleene:a", "b")])),
        zfs.inherit(name, "org.kleene:a", false),
        zfs.diff(&format!("{name}@a"), name, |_| ()),
    ]
}

#[test]
fn no_name_makes_a_call_end_the_process() {
    let Some((zfs, pool)) = pool() else { return };
    let long = format!("{pool}/{}", "x".repeat(252));
    let longer = format!("{pool}/{}", "x".repeat(5000));
    let deep = format!("{pool}/{}", "a/".repeat(120));
    for name in [
        "",
        "/",
        "@",
        "#",
        "a\0b",
        "\u{1}",
        "ü",
        "%",
        "a//b",
        "@a",
        "#a",
        "a@",
        "a#",
        "a@b@c",
        "a/../b",
        "-",
        " ",
        "nosuchpool/a",
        &long,
        &longer,
        &deep,
    ] {
        for (index, result) in calls(zfs, name).into_iter().enumerate() {
            let Err(error) = result else {
                // Nothing is there to be destroyed.
                assert!(matches!(index, 4 | 13), "call {index} of {name:?} succeeded");
                continue;
            };
            let text = error.to_string();
            assert!(text.starts_with("cannot ") && text.contains("; "), "{text}");
            assert!(!text.contains('\0'), "{text:?}");
        }
    }
    let error = zfs.create(&longer, &texts(&[])).unwrap_err();
    assert_eq!(error.kind(), Kind::NameTooLong);
    let error = zfs.create("a\0b", &texts(&[])).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn errors_have_kinds_and_say_what_to_do() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.make("one");
    let none = texts(&[]);
    let kind = |result: Result<(), Error>| result.unwrap_err().kind();
    assert_eq!(kind(zfs.create(&area.at("no/parent"), &none)), Kind::NotFound);
    assert_eq!(kind(zfs.create("nosuchpool/a", &none)), Kind::NotFound);
    assert_eq!(kind(zfs.create(&one, &none)), Kind::Exists);
    assert_eq!(kind(zfs.create(&area.at("b%d"), &none)), Kind::Invalid);
    assert_eq!(kind(zfs.create(&area.at("two"), &texts(&[("quota", "1G")]))), Kind::Invalid);
    assert_eq!(kind(zfs.rename(&one, "nosuchpool/a")), Kind::CrossPool);
    assert_eq!(kind(zfs.rename(&one, &area.at("no/parent"))), Kind::NotFound);
    let mount = area.mount(&one);
    let busy = zfs.destroy(&one).unwrap_err();
    assert_eq!(busy.kind(), Kind::Busy);
    assert!(busy.to_string().contains("unmount"), "{busy}");
    assert_eq!(io::Error::from(busy).kind(), io::ErrorKind::ResourceBusy);
    // Too large a reservation, and data beyond a quota.
    let error = zfs.set(&one, &texts(&[("refreservation", "900T")])).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    zfs.set(&one, &texts(&[("refquota", "1M")])).unwrap();
    let full = std::fs::write(mount.path().join("file"), noise(4 << 20)).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
    zfs.set(&area.name, &texts(&[("quota", "2M")])).unwrap();
    let mut small = texts(&[]);
    small.put_number("refreservation", 100 << 20).unwrap();
    let error = zfs.create(&area.at("two"), &small).unwrap_err();
    assert!(matches!(error.kind(), Kind::NoSpace | Kind::QuotaExceeded), "{error}");
    assert!(!zfs.exists(&area.at("two")).unwrap());
}
