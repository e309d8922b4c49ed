//! The same call for many datasets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Calls the function for each, on several threads where there are many: a dataset that is not open has
/// to be read from the disk.
pub(super) fn on_threads<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const FEW: usize = 16;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    // They wait more than they work.
    let threads = (items.len() / FEW).min(2 * processors).min(16);
    if threads < 2 {
        return items.iter().map(call).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, call(item)));
        }
    };
    let mut all: Vec<(usize, R)> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}
