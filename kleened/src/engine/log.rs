//! Container logs.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use kleened_api::Id;
use kleened_api::container::LogsQuery;
use tokio::sync::mpsc;

use super::{Engine, log_failure};
use crate::error::{Error, Result};
use crate::platform::supervisor::log::{Entry, LogReader};

/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How many bytes are sent at once, about.
const CHUNK: usize = 64 << 10;

/// A log as frames of [`LOG_MEDIA_TYPE`](kleened_api::stream::LOG_MEDIA_TYPE).
#[derive(Debug)]
pub struct LogStream(mpsc::Receiver<io::Result<Vec<u8>>>);

impl Stream for LogStream {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

impl Engine {
    /// What the container's first process has written, the last time it ran and before, as far as
    /// the log still has it. With `query.follow`, also what it writes until it ends.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; the log can't be read.
    pub async fn logs(self: &Arc<Self>, reference: &str, query: LogsQuery) -> Result<LogStream> {
        let id = self.catalogue().container(reference)?;
        let path = self.log_path(&id);
        let open = tokio::task::spawn_blocking(move || LogReader::open(&path, query.tail)).await;
        let mut reader =
            open.map_err(|_| Error::Failed)?.map_err(Error::io("read the log of", &id))?;
        let (sender, receiver) = mpsc::channel(2);
        let engine = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                // Asked before reading: what is written after the answer is read by the next round.
                let running = engine.catalogue().entry(&id).is_ok_and(|entry| entry.is_running());
                let timestamps = query.timestamps;
                let read = tokio::task::spawn_blocking(move || {
                    let frames = read(&mut reader, timestamps);
                    (reader, frames)
                });
                let Ok((returned, frames)) = read.await else { return };
                reader = returned;
                let (failed, full, empty) = match &frames {
                    Ok(frames) => (false, frames.len() >= CHUNK, frames.is_empty()),
                    Err(_) => (true, false, false),
                };
                if !empty && sender.send(frames).await.is_err() || failed {
                    return;
                }
                if full {
                    continue;
                }
                if !(query.follow && running) {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(POLL) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(LogStream(receiver))
    }

    pub(super) fn log_path(&self, id: &Id) -> PathBuf {
        self.root.join("log").join(format!("{id}.log"))
    }

    /// Nothing is left of the container's log.
    pub(super) fn remove_log(&self, id: &Id) {
        let prefix = format!("{id}.log");
        log_failure(
            format_args!("remove the log of {id}"),
            remove_files(&self.root.join("log"), |name| name.starts_with(&prefix)),
        );
    }

    /// Nothing is left of the logs of containers that are not there.
    pub(super) fn remove_orphaned_logs(&self) {
        let catalogue = self.catalogue();
        let orphaned = |name: &str| {
            name.split_once(".log").and_then(|(id, _)| id.parse::<Id>().ok()).is_some_and(|id| {
                !catalogue.containers.contains_key(&id)
                    && !catalogue.unreadable.iter().any(|name| name == id.as_str())
            })
        };
        log_failure(
            "remove the logs of containers that are gone",
            remove_files(&self.root.join("log"), orphaned),
        );
    }
}

fn remove_files(directory: &std::path::Path, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let file = file?;
        if wanted(&file.file_name().to_string_lossy()) {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// The next frames: all that there are, or a chunk.
fn read(reader: &mut LogReader, timestamps: bool) -> io::Result<Vec<u8>> {
    let mut frames = Vec::new();
    while frames.len() < CHUNK {
        let Some(entry) = reader.next_entry()? else { break };
        frame(&entry, timestamps, &mut frames);
    }
    Ok(frames)
}

fn frame(entry: &Entry, timestamps: bool, frames: &mut Vec<u8>) {
    let time = if timestamps { format!("{} ", entry.time) } else { String::new() };
    let end: &[u8] = if entry.partial { b"" } else { b"\n" };
    let length = time.len() + entry.bytes.len() + end.len();
    frames.extend([entry.stream as u8, 0, 0, 0]);
    frames.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    frames.extend(time.as_bytes());
    frames.extend(&entry.bytes);
    frames.extend(end);
}
