//! What the tests share: fixtures, the conformance suites, and the harness that starts the real binaries.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

pub mod manifest;
#[cfg(target_os = "linux")]
pub mod mounts;
pub mod programs;
pub mod rootfs;
#[cfg(target_os = "linux")]
pub mod tree;
