//! Changes under way: each runs detached from whoever asked for it.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kleened_api::operation::{Operation, OperationStatus, Progress as Report};
use kleened_api::{Id, IdReply, Timestamp};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::copy::Progress;
use crate::error::{Error, Kind, Result};
use crate::ident;

/// How long an ended operation can be asked for.
const KEPT: Duration = Duration::from_secs(600);

/// The answer of a verb, as it stands in an operation.
pub trait Reply: Send + 'static {
    /// The JSON form.
    fn reply(&self) -> Value;
}

impl Reply for String {
    fn reply(&self) -> Value {
        serde_json::to_value(IdReply { id: self.clone() }).unwrap_or_default()
    }
}

impl Reply for Vec<String> {
    fn reply(&self) -> Value {
        Value::from(self.clone())
    }
}

impl Reply for () {
    fn reply(&self) -> Value {
        Value::Null
    }
}

impl Reply for Option<UnixStream> {
    fn reply(&self) -> Value {
        Value::Null
    }
}

/// A change that was begun. Dropping this does not stop it.
#[derive(Debug)]
pub struct Pending<T> {
    pub(super) operation: Id,
    pub(super) subject: String,
    pub(super) progress: Arc<Progress>,
    pub(super) result: oneshot::Receiver<Result<T>>,
}

impl<T> Pending<T> {
    /// The change is taken back, where that can still be done, and then fails with
    /// [`Error::Cancelled`]. What can't wait for the end need not.
    pub fn cancel(&self) {
        self.progress.cancel();
    }

    /// The id or name that the answer will carry.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The id under which the engine knows it as an operation.
    #[must_use]
    pub fn operation(&self) -> &Id {
        &self.operation
    }

    /// The result, or `None` when it is not there after `limit`. Once it was given it is gone.
    pub async fn within(&mut self, limit: Duration) -> Option<Result<T>> {
        match tokio::time::timeout(limit, &mut self.result).await {
            Ok(Ok(result)) => Some(result),
            // The work ended without a result: it panicked.
            Ok(Err(_)) => Some(Err(Error::Failed)),
            Err(_) => None,
        }
    }

    /// The result, however long it takes.
    ///
    /// # Errors
    ///
    /// The verb's.
    pub async fn done(self) -> Result<T> {
        self.result.await.unwrap_or(Err(Error::Failed))
    }
}

/// The operations under way and those that ended lately.
#[derive(Debug, Default)]
pub(super) struct Operations(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<Id, Entry>,
    /// Those that ended, and when, in that order.
    ended: VecDeque<(Instant, Id)>,
}

#[derive(Debug)]
struct Entry {
    state: watch::Receiver<Operation>,
    progress: Arc<Progress>,
}

impl Operations {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new operation: its id, and where its end is to be reported.
    pub(super) fn begin(
        &self,
        what: String,
        progress: Arc<Progress>,
    ) -> (Id, watch::Sender<Operation>) {
        let id = ident::new();
        let (sender, state) = watch::channel(Operation {
            id: id.clone(),
            what,
            started: Timestamp::now(),
            status: OperationStatus::Running,
            progress: None,
            reply: None,
            error: None,
        });
        let mut known = self.lock();
        while known.ended.front().is_some_and(|(ended, _)| ended.elapsed() > KEPT) {
            if let Some((_, id)) = known.ended.pop_front() {
                known.entries.remove(&id);
            }
        }
        known.entries.insert(id.clone(), Entry { state, progress });
        (id, sender)
    }

    /// Every operation under way is asked to end.
    pub(super) fn cancel(&self) {
        self.lock().entries.values().for_each(|entry| entry.progress.cancel());
    }

    /// Reports the end.
    pub(super) fn end<T: Reply>(&self, sender: &watch::Sender<Operation>, result: &Result<T>) {
        sender.send_modify(|operation| match result {
            Ok(reply) => {
                operation.status = OperationStatus::Succeeded;
                operation.reply = Some(reply.reply());
            }
            Err(error) => {
                operation.status = OperationStatus::Failed;
                operation.error = Some(error.body());
            }
        });
        let id = sender.borrow().id.clone();
        self.lock().ended.push_back((Instant::now(), id));
    }

    /// The operation as it stands when it has ended or `wait` is over.
    pub(super) async fn get(&self, id: &str, wait: Duration) -> Result<Operation> {
        let (mut state, progress) = {
            let known = self.lock();
            let entry = id.parse().ok().and_then(|id: Id| known.entries.get(&id));
            let entry = entry
                .ok_or_else(|| Error::NotFound { kind: Kind::Operation, name: id.to_owned() })?;
            (entry.state.clone(), Arc::clone(&entry.progress))
        };
        let ended = state.wait_for(|operation| operation.status != OperationStatus::Running);
        let _ = tokio::time::timeout(wait, ended).await;
        let mut operation = state.borrow().clone();
        let files = progress.files.load(Ordering::Relaxed);
        let bytes = progress.bytes.load(Ordering::Relaxed);
        if files > 0 || bytes > 0 {
            operation.progress = Some(Report { files, bytes });
        }
        Ok(operation)
    }
}
