//! Lists of values, which need libnvpair and no kernel.

use kleene_tests::harness::has;
use kleened_sys::zfs::{Kind, NvList, Value};

use crate::fixture::texts;

pub(crate) fn libnvpair() -> bool {
    has("libnvpair", NvList::new().is_ok())
}

/// One of everything.
pub(crate) fn full() -> NvList {
    let mut list = texts(&[("text", "tëxt")]);
    list.put_flag("flag").unwrap();
    list.put_bool("bool", true).unwrap();
    list.put_number("number", u64::MAX).unwrap();
    list.put_integer("integer", -1).unwrap();
    list.put_numbers("numbers", &[1, 2, 3]).unwrap();
    list.put_numbers("none", &[]).unwrap();
    list.put_texts("texts", &["a", "b"]).unwrap();
    let inner = texts(&[("value", "v")]);
    list.put_list("list", &inner).unwrap();
    list.put_lists("lists", &[inner, texts(&[])]).unwrap();
    list
}

fn check(list: &NvList) {
    assert_eq!(list.text("text"), Some("tëxt"));
    assert!(matches!(list.get("flag"), Some(Value::Flag)));
    assert!(matches!(list.get("bool"), Some(Value::Bool(true))));
    assert_eq!(list.number("number"), Some(u64::MAX));
    assert!(matches!(list.get("integer"), Some(Value::Integer(-1))));
    assert!(matches!(list.get("numbers"), Some(Value::Numbers([1, 2, 3]))));
    assert!(matches!(list.get("none"), Some(Value::Numbers([]))));
    assert!(matches!(list.get("texts"), Some(Value::Texts(texts)) if texts == [c"a", c"b"]));
    assert_eq!(list.list("list").unwrap().text("value"), Some("v"));
    let Some(Value::Lists(lists)) = list.get("lists") else { panic!("{list:?}") };
    assert_eq!((lists.len(), lists[0].text("value"), lists[1].is_empty()), (2, Some("v"), true));
    assert_eq!(list.iter().count(), 10);
    // Of another type, or not there.
    assert_eq!(
        (list.number("text"), list.text("number"), list.number("integer")),
        (None, None, None)
    );
    assert!(
        list.get("no").is_none() && list.get("te\0xt").is_none() && list.list("flag").is_none()
    );
}

#[test]
fn what_is_put_is_there() {
    if !libnvpair() {
        return;
    }
    let mut list = full();
    check(&list);
    check(&list.try_clone().unwrap());
    check(&NvList::unpack(&list.pack().unwrap()).unwrap());
    // A name is there once, whatever the type.
    list.put_number("text", 5).unwrap();
    assert_eq!((list.text("text"), list.number("text"), list.iter().count()), (None, Some(5), 10));
    list.remove("text");
    list.remove("text");
    list.remove("te\0xt");
    assert!(list.get("text").is_none() && list.iter().count() == 9);
}

#[test]
fn zero_bytes_and_long_names_are_refused() {
    if !libnvpair() {
        return;
    }
    let mut list = texts(&[]);
    let long = "n".repeat(40_000);
    for result in [
        list.put_flag("a\0b"),
        list.put_bool("a\0b", true),
        list.put_number("a\0b", 1),
        list.put_integer("a\0b", 1),
        list.put_text("a\0b", ""),
        list.put_text("a", "b\0c"),
        list.put_texts("a", &["b", "b\0c"]),
        list.put_numbers("a\0b", &[1]),
        list.put_list("a\0b", &texts(&[])),
        list.put_flag(&long),
        list.put_text(&long, "a"),
    ] {
        assert_eq!(result.unwrap_err().kind(), Kind::Invalid);
    }
    assert!(list.is_empty());
    list.put_text("long", &long).unwrap();
    assert_eq!(list.text("long"), Some(&*long));
}

#[test]
fn lists_lie_in_each_other_only_so_deep() {
    if !libnvpair() {
        return;
    }
    let mut list = texts(&[]);
    for depth in 2..=16 {
        let mut outer = texts(&[]);
        outer.put_list("inner", &list).unwrap_or_else(|error| panic!("{depth}: {error}"));
        list = outer;
    }
    let mut outer = texts(&[]);
    assert_eq!(outer.put_list("inner", &list).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(outer.put_lists("inner", &[list]).unwrap_err().kind(), Kind::Invalid);
    assert!(outer.is_empty());
}

/// Numbers that look like chance, the same each time.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Reads everything that is in a list.
fn read(list: &NvList) -> usize {
    list.iter().map(|(name, value)| name.len() + format!("{value:?}").len()).sum()
}

#[test]
fn bytes_of_anyone_are_no_harm() {
    if !libnvpair() {
        return;
    }
    let good = full().pack().unwrap();
    for length in 0..good.len() {
        if let Ok(list) = NvList::unpack(&good[..length]) {
            read(&list);
        }
    }
    let (mut seed, mut read_ones) = (7, 0);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(&mut seed) % 4 {
            let at = usize::try_from(random(&mut seed)).unwrap() % bytes.len();
            bytes[at] = random(&mut seed).to_le_bytes()[0];
        }
        if let Ok(list) = NvList::unpack(&bytes) {
            read(&list);
            read_ones += 1;
        }
    }
    assert!(read_ones > 100, "most were refused: the test tests nothing");
    let native = [&[0], &good[1..]].concat();
    assert!(NvList::unpack(&native).is_err() && NvList::unpack(&[1]).is_err());
}
