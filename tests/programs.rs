//! The real programs, as `cargo build` leaves them.

use std::path::PathBuf;

use crate::harness::binary;

/// The daemon's program.
///
/// # Panics
///
/// Where it was not built.
#[must_use]
pub fn kleened() -> PathBuf {
    binary("kleened")
}
