//! What the tests share: fixtures, the conformance suites, and the harness that starts the real binaries.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails by a panic"
)]

#[cfg(target_os = "freebsd")]
pub mod base;
pub mod harness;
pub mod host;
pub mod image;
pub mod manifest;
pub mod mounts;
pub mod pool;
pub mod rootfs;
pub mod site;
pub mod tree;
