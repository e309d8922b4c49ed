//! Who does what next.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kleened_sys::fs::Entry;

use super::Error;
use super::directory::Directory;

/// Something to do in a directory.
pub(super) struct Task {
    pub(super) directory: Arc<Directory>,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// List it from this position on.
    List(u64),
    /// Make, and go on with, this directory in it.
    Enter(CString),
    /// Copy these entries of it.
    Entries(Vec<Entry>),
}

/// The tasks of every thread. A thread takes its own newest one, which is the deepest; one that has
/// none takes the oldest of another, which is likely to be the largest and far from where that one
/// works. One lock for all is enough: a task is dozens of files.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

struct State {
    tasks: Vec<VecDeque<Task>>,
    /// Threads that are at work and may bring more.
    working: usize,
    /// Threads that wait for more.
    waiting: usize,
    error: Option<Error>,
}

impl Queue {
    pub(super) fn new(threads: usize) -> Self {
        let tasks = (0..threads).map(|_| VecDeque::new()).collect();
        Self {
            state: Mutex::new(State { tasks, working: threads, waiting: 0, error: None }),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More for this thread to do, the last of them first.
    pub(super) fn push(&self, thread: usize, tasks: impl IntoIterator<Item = Task>) {
        let mut state = self.state();
        if let Some(own) = state.tasks.get_mut(thread) {
            own.extend(tasks);
        }
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// What this thread is to do next, once there is something; `None` when everything is done or the
    /// copy is stopped. A thread that asks is not at work.
    pub(super) fn next(&self, thread: usize) -> Option<Task> {
        let mut state = self.state();
        state.working -= 1;
        loop {
            if self.is_stopped() {
                return None;
            }
            let own = state.tasks.get_mut(thread).and_then(VecDeque::pop_back);
            let task = own.or_else(|| {
                let longest = state.tasks.iter_mut().max_by_key(|tasks| tasks.len());
                longest.and_then(VecDeque::pop_front)
            });
            if task.is_some() {
                state.working += 1;
                return task;
            }
            if state.working == 0 {
                self.changed.notify_all();
                return None;
            }
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// Every thread ends as soon as it looks. The first error counts.
    pub(super) fn stop(&self, error: Option<Error>) {
        let mut state = self.state();
        if state.error.is_none() {
            state.error = error;
        }
        self.stopped.store(true, Ordering::Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The error that stopped the copy.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.state().error.take()
    }
}
