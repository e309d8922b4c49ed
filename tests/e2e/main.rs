//! End to end: the real binaries over the real socket, with real mounts and processes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod adopt;
mod attach;
mod behind;
mod clones;
mod containers;
mod crash;
mod create;
mod fill;
mod hostile;
mod init;
mod projects;
mod snapshots;
mod unsettled;
mod volumes;
