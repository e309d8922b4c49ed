//! The tree copier against `cp -a` and `rsync -aHAXS`, and against what may go wrong; on FreeBSD against what
//! the base system's own tools show.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[cfg(target_os = "linux")]
mod fixture;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod whole;
