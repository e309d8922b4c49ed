//! Locks of single objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kleened_api::Id;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// What is locked. The order is the one in which several are taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Image(Id),
    Container(Id),
    Volume(String),
    /// The names of all images: a name moves from one to another.
    ImageNames,
}

/// How it is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Together with others that only need it to stay as it is.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock for every object that somebody uses just now.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Key, Weak<RwLock<()>>>>);

/// Locks that are held. They go with the value, so it moves into the closure that does the work.
#[derive(Debug, Default)]
pub(super) struct Held(#[expect(dead_code, reason = "held, not read")] Vec<Guard>);

#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Guard {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

impl Locks {
    /// Waits until all of them are held. Taken in the order of the keys, so that two verbs that need
    /// the same ones can't wait for each other.
    pub(super) async fn acquire(&self, mut wanted: Vec<(Key, Access)>) -> Held {
        // Of two wishes for one key the stronger comes first and stays.
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by(|a, b| a.0 == b.0);
        let mut guards = Vec::with_capacity(wanted.len());
        for (key, access) in wanted {
            let lock = self.lock(key);
            guards.push(match access {
                Access::Shared => Guard::Shared(lock.read_owned().await),
                Access::Exclusive => Guard::Exclusive(lock.write_owned().await),
            });
        }
        Held(guards)
    }

    /// The lock of one object together with others, where nobody has it alone just now.
    pub(super) fn try_share(&self, key: Key) -> Option<Held> {
        let guard = self.lock(key).try_read_owned().ok()?;
        Some(Held(vec![Guard::Shared(guard)]))
    }

    fn lock(&self, key: Key) -> Arc<RwLock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        if locks.len() >= 64 && locks.len().is_power_of_two() {
            locks.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::default();
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn volume(name: &str) -> Key {
        Key::Volume(name.into())
    }

    async fn is_free(locks: &Locks, key: Key, access: Access) -> bool {
        tokio::time::timeout(Duration::from_millis(1), locks.acquire(vec![(key, access)]))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn one_object_excludes_and_others_do_not() {
        let locks = Locks::default();
        let held = locks
            .acquire(vec![
                (volume("b"), Access::Shared),
                (volume("a"), Access::Shared),
                (volume("a"), Access::Exclusive),
            ])
            .await;
        assert!(!is_free(&locks, volume("a"), Access::Shared).await);
        assert!(locks.try_share(volume("a")).is_none() && locks.try_share(volume("b")).is_some());
        assert!(is_free(&locks, volume("b"), Access::Shared).await);
        assert!(!is_free(&locks, volume("b"), Access::Exclusive).await);
        assert!(is_free(&locks, volume("c"), Access::Exclusive).await);
        drop(held);
        assert!(is_free(&locks, volume("a"), Access::Exclusive).await);
    }

    #[tokio::test]
    async fn locks_of_gone_objects_are_forgotten() {
        let locks = Locks::default();
        for n in 0..1000 {
            drop(locks.acquire(vec![(volume(&n.to_string()), Access::Exclusive)]).await);
        }
        assert!(locks.0.lock().unwrap().len() < 200);
    }
}
