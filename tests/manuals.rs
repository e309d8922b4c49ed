//! What is written twice says the same: the manual page and the sample of the configuration, the service's script.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use kleened::config::KEYS;

#[test]
fn every_key_stands_in_the_manual_with_its_sample() {
    let page = include_str!("../man/kleened.conf.5");
    let written: BTreeMap<&str, String> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm ")?.split_once(" No = "))
        .map(|(key, value)| match value.strip_prefix("Qq ") {
            Some(text) => (key, format!("{text:?}")),
            None => (key, value.to_owned()),
        })
        .collect();
    // The page is FreeBSD's; the one default that differs is named in its text.
    assert!(page.contains(".Qq /var/lib/kleened ."));
    let known: BTreeMap<&str, String> =
        KEYS.iter().map(|key| (key.name, on_freebsd(key.sample))).collect();
    assert_eq!(written, known);
}

#[test]
fn the_manual_names_the_keys_that_need_a_restart() {
    let page = include_str!("../man/kleened.conf.5");
    for key in KEYS {
        let item = page.split(".It Cm ").find(|item| item.starts_with(&format!("{} ", key.name)));
        assert_eq!(item.unwrap().contains("Needs a restart."), !key.live, "{}", key.name);
    }
}

/// What Linux has at another place, as FreeBSD has it.
fn on_freebsd(text: &str) -> String {
    if cfg!(target_os = "freebsd") {
        return text.to_owned();
    }
    text.replace("/etc/kleened/", "/usr/local/etc/kleened/")
        .replace("/var/lib/kleened", "/var/db/kleened")
}

#[test]
fn the_sample_that_is_installed_is_the_one_that_is_printed() {
    let kept = include_str!("../etc/kleened/kleened.toml.sample");
    let printed = on_freebsd(&kleened::config::sample());
    let hint = "etc/kleened/kleened.toml.sample is not what `kleened configtest --sample` prints";
    assert!(kept == printed, "{hint} on FreeBSD:\n{printed}");
}

#[test]
fn the_port_has_the_service_script() {
    let ours = include_str!("../rc.d/kleened").replace("/usr/local", "%%PREFIX%%");
    let port = include_str!("../ports/sysutils/kleened/files/kleened.in");
    assert!(ours == port, "sed 's|/usr/local|%%PREFIX%%|g' rc.d/kleened makes files/kleened.in");
}
