//! The tree copier against `cp -a` and `rsync -aHAXS`, and against what may go wrong.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod fixture;
mod limits;
mod whole;
