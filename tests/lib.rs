//! What the tests share: fixtures, the conformance suites, and the harness that starts the real binaries.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by a panic"
)]

pub mod harness;
pub mod image;
pub mod manifest;
#[cfg(target_os = "linux")]
pub mod mounts;
pub mod pool;
pub mod programs;
pub mod rootfs;
#[cfg(target_os = "linux")]
pub mod tree;
