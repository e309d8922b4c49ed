//! Signals that klee waits for beside its work.

use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask klee to end.
pub(crate) const ENDING: &[(&str, SignalKind)] = &[
    ("INT", SignalKind::interrupt()),
    ("TERM", SignalKind::terminate()),
    ("HUP", SignalKind::hangup()),
];

/// Signals that are waited for.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(&'static str, SignalKind, Signal)>);

impl Signals {
    /// Watches for signals from now on. One that can't be watched keeps its effect, which is to end
    /// klee.
    pub(crate) fn watch(kinds: &[(&'static str, SignalKind)]) -> Self {
        Self(
            kinds
                .iter()
                .filter_map(|(name, kind)| Some((*name, *kind, signal(*kind).ok()?)))
                .collect(),
        )
    }

    /// The name and the number of the next one.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        poll_fn(|context| {
            for (name, kind, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready((*name, u8::try_from(kind.as_raw_value()).unwrap_or(0)));
                }
            }
            Poll::Pending
        })
        .await
    }
}
