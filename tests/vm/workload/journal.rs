//! What was begun and what was done, written where the machine's end does not reach it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

/// The port to the host.
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    pub(crate) fn open() -> Self {
        let port = std::env::var_os("VM_PORT_log").unwrap();
        Self(Mutex::new(OpenOptions::new().write(true).open(port).unwrap()))
    }

    /// The host has the line when this returns.
    pub(crate) fn write(&self, line: &str) {
        self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// What a worker had done when the machine was killed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    pub(crate) done: Vec<String>,
    pub(crate) under_way: Option<String>,
}

/// What each worker had done.
pub(crate) fn read(path: &Path) -> BTreeMap<String, Past> {
    let mut past: BTreeMap<String, Past> = BTreeMap::new();
    let text = fs::read_to_string(path).unwrap();
    // What was cut off was not begun, or not acknowledged.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let (worker, event) = line.split_once(' ').unwrap();
        let worker = past.entry(worker.to_owned()).or_default();
        match event.strip_prefix("begin ") {
            Some(operation) => worker.under_way = Some(operation.to_owned()),
            None => worker.done.push(worker.under_way.take().unwrap()),
        }
    }
    past
}

/// Numbers that follow from a seed: splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    /// One of these.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(self.below(from.len())).cloned() }
    }
}
