//! Who works on which dataset.
//!
//! The kernel makes each change of a dataset whole; but a mount and a mount point go with it, and two
//! verbs on one name would otherwise meet between these steps.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use super::super::DatasetPath;

/// The datasets that are being worked on.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: Mutex<HashSet<DatasetPath>>,
    freed: Condvar,
}

/// Nobody else works on these datasets while this lives.
#[derive(Debug)]
pub(super) struct Held<'l> {
    locks: &'l Locks,
    paths: Vec<DatasetPath>,
}

impl Locks {
    /// Waits until nobody works on any of them. They are taken all at once, so that two callers can't
    /// wait for each other.
    pub(super) fn hold(&self, paths: &[&DatasetPath]) -> Held<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while paths.iter().any(|path| held.contains(*path)) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        let paths: Vec<_> = paths.iter().map(|path| (*path).clone()).collect();
        held.extend(paths.iter().cloned());
        Held { locks: self, paths }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &self.paths {
            held.remove(path);
        }
        self.locks.freed.notify_all();
    }
}
