//! What every platform does: real containers, real mounts, real processes, through the public
//! surface alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "more cases will use it")]
mod sandbox;
mod start;
mod streams;
