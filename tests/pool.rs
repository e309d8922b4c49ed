//! Datasets of a real ZFS pool for a test's own, where `KLEENE_POOL` names one.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::patience;

/// The pool in which tests may make datasets, where there is one: the driver `zfs` is tried on it, and
/// `dir` where there is none.
#[must_use]
pub fn pool() -> Option<String> {
    std::env::var("KLEENE_POOL").ok().filter(|name| !name.is_empty())
}

/// A dataset, which is destroyed with all that is below it when this is dropped.
#[derive(Debug)]
pub struct Root(String);

impl Root {
    /// A new dataset, mounted at `place`; `None` where no pool is named.
    ///
    /// # Panics
    ///
    /// Where it can't be made.
    #[must_use]
    pub fn at(place: &Path) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let pool = pool()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{pool}/kl{}-{number}", std::process::id());
        let mountpoint = format!("mountpoint={}", place.display());
        zfs(&["create", "-o", &mountpoint, &name]);
        Some(Self(name))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The datasets and snapshots below, by their names without this one's.
    #[must_use]
    pub fn below(&self) -> Vec<String> {
        let listed = zfs(&["list", "-H", "-r", "-o", "name", "-t", "all", &self.0]);
        let names = listed.lines().filter_map(|name| name.strip_prefix(&self.0)?.strip_prefix('/'));
        names.map(str::to_owned).collect()
    }

    /// How much it takes with all below, in MiB, when everything is on the disk.
    ///
    /// # Panics
    ///
    /// Where that can't be found out.
    #[must_use]
    pub fn used(&self) -> u64 {
        let pool = self.0.split('/').next().unwrap_or_default();
        let synced = Command::new("zpool").args(["sync", pool]).status();
        assert!(synced.is_ok_and(|status| status.success()), "zpool sync {pool}");
        let used = zfs(&["get", "-Hp", "-o", "value", "used", &self.0]);
        used.trim().parse::<u64>().expect("a number") >> 20
    }

    /// The dataset and all below it may take that much.
    pub fn limit(&self, mib: u64) {
        zfs(&["set", &format!("quota={mib}M"), &self.0]);
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A process that is just ending may still have it mounted.
        let until = Instant::now() + patience() / 4;
        loop {
            let output = try_zfs(&["destroy", "-R", &self.0]);
            if output.status.success() {
                return;
            }
            if Instant::now() > until {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(thread::panicking(), "{} is left: {said}", self.0);
                eprintln!("{} is left: {said}", self.0);
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs `zfs`; what it printed.
///
/// # Panics
///
/// Where it fails.
#[track_caller]
pub fn zfs(arguments: &[&str]) -> String {
    let output = try_zfs(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "zfs {}: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn try_zfs(arguments: &[&str]) -> Output {
    Command::new("zfs").args(arguments).output().expect("run zfs")
}
