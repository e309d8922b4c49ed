//! The manual page of the configuration and the daemon's table of keys say the same.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use kleened::config::KEYS;

#[test]
fn every_key_stands_in_the_manual_with_its_sample() {
    let page = include_str!("../man/kleened.toml.5");
    let written: BTreeMap<&str, String> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm ")?.split_once(" No = "))
        .map(|(key, value)| match value.strip_prefix("Qq ") {
            Some(text) => (key, format!("{text:?}")),
            None => (key, value.to_owned()),
        })
        .collect();
    // The page is FreeBSD's; the one default that differs is named in its text.
    let linux = "\"/var/lib/kleened\"";
    assert!(page.contains(&format!(".Qq {} .", linux.trim_matches('"'))));
    let known: BTreeMap<&str, String> = KEYS
        .iter()
        .map(|key| (key.name, key.sample.replace(linux, "\"/var/db/kleened\"")))
        .collect();
    assert_eq!(written, known);
}

#[test]
fn the_manual_names_the_keys_that_need_a_restart() {
    let page = include_str!("../man/kleened.toml.5");
    for key in KEYS {
        let item = page.split(".It Cm ").find(|item| item.starts_with(&format!("{} ", key.name)));
        assert_eq!(item.unwrap().contains("Needs a restart."), !key.live, "{}", key.name);
    }
}
