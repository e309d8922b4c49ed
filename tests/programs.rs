//! The real programs, as `cargo build` leaves them.

use std::path::PathBuf;

/// The daemon's program.
///
/// # Panics
///
/// Where it was not built.
pub fn kleened() -> PathBuf {
    program("kleened")
}

fn program(name: &str) -> PathBuf {
    // target/debug/deps/TEST-HASH
    let test = std::env::current_exe().unwrap_or_default();
    let path = test.ancestors().nth(2).unwrap_or(&test).join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins`", path.display());
    path
}
