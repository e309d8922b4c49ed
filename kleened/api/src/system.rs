//! The daemon itself.

use serde::{Deserialize, Serialize};

/// What the daemon is and runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The daemon's version.
    pub version: String,
    /// The storage driver.
    pub storage: String,
    /// The platform.
    pub platform: String,
    /// Where everything is kept.
    pub root: String,
}
