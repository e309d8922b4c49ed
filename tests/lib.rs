//! What the tests share: fixtures, the conformance suites, and the harness that starts the real binaries.

pub mod manifest;
#[cfg(target_os = "linux")]
pub mod mounts;
