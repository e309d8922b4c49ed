//! Side by side with the programs that people use today, in one run, alternating.
//!
//! `cargo bench -p kleene-tests -- [TOPIC...]`; as root, for file systems of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what can't be measured is not measured")]

#[cfg(target_os = "linux")]
mod copy;
#[cfg(target_os = "linux")]
mod daemon;
#[cfg(target_os = "linux")]
mod race;
#[cfg(target_os = "linux")]
mod zfs;

/// What is measured, by the name that the command line picks it by.
const TOPICS: &[(&str, fn())] = &[
    #[cfg(target_os = "linux")]
    ("copy", copy::run),
    #[cfg(target_os = "linux")]
    ("daemon", daemon::run),
    #[cfg(target_os = "linux")]
    ("zfs-one", || zfs::run(zfs::one)),
    #[cfg(target_os = "linux")]
    ("zfs-many", || zfs::run(zfs::many)),
    #[cfg(target_os = "linux")]
    ("zfs-copy", || zfs::run(zfs::first_use)),
    #[cfg(target_os = "linux")]
    ("zfs-list", || zfs::run(zfs::listed)),
];

/// Whether that may follow the name of a group of topics, as `zfs`.
fn is_rest(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('-')
}

fn main() {
    // Cargo adds `--bench`.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, run) in TOPICS {
        let of = |group: &String| name.strip_prefix(group.as_str()).is_some_and(is_rest);
        if wanted.is_empty() || wanted.iter().any(of) {
            run();
        }
    }
}
