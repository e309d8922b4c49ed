//! `klee` itself, against a daemon that answers as the test wants.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod changes;
mod daemon;
mod golden;
mod manuals;
mod processes;
mod server;
mod terminals;
mod transcripts;
