//! Where a test's root is: a folder, and for `zfs` a dataset that is mounted on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use kleene_tests::harness::{has, patience};
use kleened::storage::{Area, DRIVERS, DatasetPath, DriverEntry, Folder};

/// Names the pool in which tests may make datasets.
pub(crate) const POOL: &str = "KLEENE_POOL";

/// Where it is set, the names of the drivers to test, separated by commas.
const ONLY: &str = "KLEENE_DRIVERS";

/// The drivers to test: all.
pub(crate) fn drivers() -> impl Iterator<Item = &'static DriverEntry> {
    let only = std::env::var(ONLY).ok().filter(|only| !only.is_empty());
    DRIVERS.iter().filter(move |entry| match &only {
        Some(only) => only.split(',').any(|name| name == entry.name),
        None => true,
    })
}

/// Goes with all that is in it.
#[derive(Debug)]
pub(crate) struct Place {
    dir: tempfile::TempDir,
    driver: String,
    dataset: Option<String>,
}

/// The pool for tests; `None`, having said so once, where there is none.
pub(crate) fn pool() -> Option<String> {
    static SAID: Once = Once::new();
    let pool = std::env::var(POOL).ok().filter(|pool| !pool.is_empty());
    if pool.is_none() {
        // Where it is required, this fails, and so does every later call.
        SAID.call_once(|| _ = has("zfs", false));
    }
    pool
}

/// Runs `zfs`, which must succeed; returns what it wrote.
pub(crate) fn zfs(args: &[&str]) -> String {
    let output = try_zfs(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "zfs {}: {said}", args.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

fn try_zfs(args: &[&str]) -> Output {
    patiently("zfs", args)
}

/// Runs a program of ZFS, again and again while something is busy: another test's process, when it begins,
/// has all mounts.
pub(crate) fn patiently(program: &str, args: &[&str]) -> Output {
    // Five seconds, more on machines that are slow.
    let end = Instant::now() + patience() / 12;
    loop {
        let output = Command::new(program).args(args).output().unwrap();
        let is_busy = String::from_utf8_lossy(&output.stderr).contains("busy");
        if output.status.success() || !is_busy || Instant::now() > end {
            return output;
        }
    }
}

impl Place {
    /// For the driver of that name; `None` where it can't run here.
    pub(crate) fn of(driver: &str, dir: tempfile::TempDir) -> Option<Self> {
        let dataset = match driver {
            "zfs" => {
                static NUMBER: AtomicU32 = AtomicU32::new(0);
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                Some(format!("{}/test-{}-{number}", pool()?, std::process::id()))
            }
            _ => None,
        };
        Some(Self::with(driver, dir, dataset, &[]))
    }

    /// With a dataset of that name and these options beside the usual ones.
    pub(crate) fn with(
        driver: &str,
        dir: tempfile::TempDir,
        dataset: Option<String>,
        options: &[&str],
    ) -> Self {
        let place = Self { dir, driver: driver.to_owned(), dataset };
        if let Some(dataset) = &place.dataset {
            let mountpoint = format!("mountpoint={}", place.root().display());
            let mut args = vec!["create", "-p", "-o", &mountpoint, "-o", "atime=off"];
            if cfg!(target_os = "linux") {
                args.extend(["-o", "acltype=posix", "-o", "xattr=sa"]);
            }
            args.extend(options);
            args.push(dataset);
            zfs(&args);
        }
        place
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The folder in which the root is.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// The dataset that is the root.
    pub(crate) fn dataset(&self) -> &str {
        self.dataset.as_deref().unwrap()
    }

    /// There are so many datasets, and nothing else but what the driver always keeps.
    pub(crate) fn holds_nothing_but(&self, datasets: usize) {
        let root = self.root();
        let count = |folder: PathBuf| fs::read_dir(folder).unwrap().count();
        match &self.dataset {
            None => {
                for (folder, count) in
                    [("new", 0), ("commit", 0), ("dead", 0), ("datasets", datasets)]
                {
                    let left: Vec<_> = fs::read_dir(root.join(".kleene").join(folder))
                        .unwrap()
                        .map(|entry| entry.unwrap().file_name())
                        .collect();
                    assert_eq!(left.len(), count, "{} in {folder}: {left:?}", self.driver);
                }
            }
            Some(dataset) => {
                let list = zfs(&[
                    "list",
                    "-Hrp",
                    "-t",
                    "filesystem,volume",
                    "-o",
                    "name,mounted",
                    dataset,
                ]);
                // What stepped aside belongs to a dataset that went back to a snapshot.
                let history = format!("{dataset}/history");
                let aside = |line: &&str| line.starts_with(&history);
                if datasets == 0 {
                    assert!(list.lines().filter(aside).count() <= 1, "{list}");
                }
                let kept: Vec<&str> = list.lines().filter(|line| !aside(line)).collect();
                let list = kept.join("\n");
                let names = list
                    .lines()
                    .map(|line| line.strip_suffix("\tyes").unwrap_or_else(|| panic!("{line}")));
                let below = names.filter_map(|name| name.strip_prefix(dataset)?.strip_prefix('/'));
                let (folders, rest): (Vec<_>, Vec<_>) =
                    below.partition(|name| name.parse::<Folder>().is_ok());
                let found = rest.iter().filter(|name| name.parse::<DatasetPath>().is_ok()).count();
                assert_eq!(found, datasets, "{list}");
                // What remains holds the projects.
                let projects = folders.len() - Area::ALL.len();
                assert_eq!(rest.len(), datasets + 1 + projects, "{list}");
                assert_eq!(count(root.join(".making")), 0);
                let folders = folders.iter().map(|folder| count(root.join(folder)));
                assert_eq!(folders.sum::<usize>(), datasets, "{list}");
                let holds =
                    zfs(&["list", "-Hrp", "-t", "snapshot", "-o", "name,userrefs", dataset]);
                for held in holds.lines().filter_map(|line| line.strip_suffix("\t1")) {
                    let by = zfs(&["holds", "-H", held]);
                    assert_eq!(by.split('\t').nth(1), Some("kleene"), "{by}");
                }
                let known = |line: &str| line.ends_with("\t0") || line.ends_with("\t1");
                assert!(holds.lines().all(known), "{holds}");
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(dataset) = &self.dataset else { return };
        // A test that ended in the middle may have left holds.
        let held = try_zfs(&["list", "-Hr", "-t", "snapshot", "-o", "userrefs,name", dataset]);
        let held = String::from_utf8_lossy(&held.stdout).into_owned();
        let held = held.lines().filter_map(|line| line.split_once('\t'));
        for (_, name) in held.filter(|(count, _)| *count != "0") {
            let holds = try_zfs(&["holds", "-H", name]);
            for hold in String::from_utf8_lossy(&holds.stdout).lines() {
                if let Some(tag) = hold.split('\t').nth(1) {
                    try_zfs(&["release", tag, name]);
                }
            }
        }
        let output = try_zfs(&["destroy", "-Rf", dataset]);
        if !output.status.success() {
            eprintln!("zfs destroy {dataset}: {output:?}");
        }
    }
}
