//! What must not be left: datasets, mounts and holds that nobody knows of.

use std::collections::BTreeSet;
use std::fs;

use crate::{POOL, client, driver, run};

/// The directories that a driver keeps datasets in.
const AREAS: [&str; 5] = ["container", "image", "projects", "scratch", "volumes"];

/// In the pool there is nothing but these datasets and snapshots, below the two roots; each dataset is
/// mounted once, at its place; nothing else of the pool is mounted; nothing is held.
pub(crate) fn nothing_else(daemon: Vec<String>, driver: Vec<String>) {
    let mut expected = BTreeSet::from([POOL.to_owned()]);
    for (root, below) in [(client::ROOT, daemon), (driver::ROOT, driver)] {
        let root = format!("{POOL}{root}");
        let below = below.iter().map(String::as_str).chain(AREAS);
        expected.extend(below.map(|path| format!("{root}/{path}")));
        expected.insert(root);
    }
    let listed = run("zfs", &["list", "-Hr", "-t", "all", "-o", "name,userrefs", POOL]);
    let found: BTreeSet<_> =
        listed.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())).collect();
    let extra: Vec<_> = found.difference(&expected).collect();
    let lost: Vec<_> = expected.difference(&found).collect();
    assert!(extra.is_empty() && lost.is_empty(), "orphans: {extra:?}, not there: {lost:?}");
    assert!(
        listed.lines().all(|line| line.ends_with("\t0") || line.ends_with("\t-")),
        "held:\n{listed}"
    );

    let mut expected: Vec<_> = expected
        .iter()
        .filter(|name| *name != POOL && !name.contains('@'))
        .map(|name| (name.clone(), name.strip_prefix(POOL).unwrap_or(name).to_owned()))
        .collect();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut found: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&"zfs"))
        .map(|fields| (fields[0].to_owned(), fields[1].to_owned()))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "mounted");

    // No mount point of what is no more.
    for (root, area) in
        [client::ROOT, driver::ROOT].iter().flat_map(|root| AREAS.map(|area| (root, area)))
    {
        for entry in fs::read_dir(format!("{root}/{area}")).unwrap() {
            let path = entry.unwrap().path().display().to_string();
            assert!(expected.iter().any(|(_, place)| *place == path), "{path} is left");
        }
    }
}
