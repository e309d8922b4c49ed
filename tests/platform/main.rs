//! What every platform does: real containers, real mounts, real processes, through the public
//! surface alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[cfg(target_os = "linux")]
mod isolation;
#[cfg(target_os = "freebsd")]
mod jail;
mod life;
mod live;
mod log;
mod mounts;
mod sandbox;
mod start;
mod streams;
