//! Properties and their sources.

use kleened_sys::zfs::{Kind, PropertyValue, Source};

use crate::fixture::{Area, texts};

const RECORD: &str = "org.kleene:record";

#[test]
fn a_parents_property_is_not_ones_own() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.make("one");
    let inner = area.make("one/inner");
    let read =
        |name: &str| zfs.properties(name, &[RECORD, "used", "compression", "atime"]).unwrap();
    assert!(read(&one).get(RECORD).is_none());
    zfs.set(&one, &texts(&[(RECORD, "r"), ("atime", "off")])).unwrap();
    assert_eq!(read(&one).own_text(RECORD), Some("r"));
    assert_eq!(read(&one).get(RECORD).unwrap().source, Source::Local);
    let inherited = read(&inner);
    assert_eq!((inherited.text(RECORD), inherited.own_text(RECORD)), (Some("r"), None));
    assert_eq!(inherited.get(RECORD).unwrap().source, Source::Inherited(one.clone()));
    assert_eq!(inherited.get("used").unwrap().source, Source::Fact);
    assert_eq!(inherited.number("atime"), Some(0));
    zfs.snapshot(&[&format!("{one}@a")], &texts(&[])).unwrap();
    assert_eq!(read(&format!("{one}@a")).own_text(RECORD), None);
    zfs.inherit(&one, "atime", false).unwrap();
    // What nobody has set is not told.
    assert_eq!(read(&one).number("atime"), None);
    zfs.inherit(&one, RECORD, false).unwrap();
    assert!(read(&one).get(RECORD).is_none() && read(&inner).get(RECORD).is_none());
    // All of them.
    let all = zfs.properties(&one, &[]).unwrap();
    assert!(all.iter().count() > 15, "{all:?}");
    let guid = all.get("guid").unwrap();
    assert!(matches!(guid.value, PropertyValue::Number(_)) && guid.source == Source::Fact);
}

#[test]
fn values_have_limits() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let one = area.make("one");
    let most = "x".repeat(8191);
    zfs.set(&one, &texts(&[(RECORD, &most)])).unwrap();
    assert_eq!(zfs.properties(&one, &[RECORD]).unwrap().own_text(RECORD), Some(&*most));
    let more = "x".repeat(8192);
    let error = zfs.set(&one, &texts(&[(RECORD, &more)])).unwrap_err();
    assert!(matches!(error.kind(), Kind::Invalid | Kind::TooLarge), "{error}");
    let error = zfs.create(&area.at("two"), &texts(&[(RECORD, &more)])).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge, "{error}");
    // Many at once, or none of them.
    let many: Vec<String> = (0..20).map(|n| format!("{RECORD}.{n}")).collect();
    let pairs: Vec<(&str, &str)> = many.iter().map(|name| (&**name, &*most)).collect();
    zfs.set(&one, &texts(&pairs)).unwrap();
    let read = zfs.properties(&one, &[]).unwrap();
    assert!(many.iter().all(|name| read.own_text(name) == Some(&*most)));
    let bad = [(RECORD, "new"), ("recordsize", "3")];
    let error = zfs.set(&one, &texts(&bad)).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("recordsize"), "{error}");
    assert_eq!(zfs.properties(&one, &[RECORD]).unwrap().own_text(RECORD), Some(&*most));
}

#[test]
fn texts_become_what_create_takes() {
    let Some(area) = Area::new() else { return };
    let zfs = area.zfs;
    let pool = area.name.split('/').next().unwrap();
    let good = [
        ("recordsize", "8K"),
        ("atime", "off"),
        ("compression", "zstd"),
        ("quota", "1G"),
        (RECORD, "r"),
    ];
    let checked = zfs.check_properties(pool, good).unwrap();
    assert_eq!(checked.number("recordsize"), Some(8192));
    let one = area.at("one");
    zfs.create(&one, &checked).unwrap();
    let read = zfs.properties(&one, &[]).unwrap();
    assert_eq!((read.number("recordsize"), read.number("quota")), (Some(8192), Some(1 << 30)));
    assert_eq!((read.number("atime"), read.own_text(RECORD)), (Some(0), Some("r")));
    for (name, value) in [
        ("recordsize", "3"),
        ("atime", "maybe"),
        ("nosuch", "x"),
        ("used", "1"),
        ("quota", "-1"),
        ("a\0b:c", "x"),
        ("quota", "1G\0"),
        ("volsize", "1G"),
    ] {
        let result = zfs.check_properties(pool, [(name, value)]);
        let result = result.and_then(|list| zfs.create(&area.at("bad"), &list));
        let error = result.expect_err(&format!("{name}={value}"));
        assert_eq!(error.kind(), Kind::Invalid, "{name}={value}: {error}");
    }
    assert!(!zfs.exists(&area.at("bad")).unwrap());
    let error = zfs.check_properties("nosuchpool", good).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}
