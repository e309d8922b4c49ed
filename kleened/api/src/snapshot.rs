//! Snapshots of volumes.

use serde::{Deserialize, Serialize};

use crate::{Size, SnapshotName, Timestamp, VolumeRef};

/// The most bytes that a message may have.
pub const MAX_MESSAGE: usize = 1000;

/// Which snapshots to make: one of each volume, all of one instant where the storage can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotConfig {
    /// The volumes.
    pub volumes: Vec<VolumeRef>,
    /// The name; where there is none, `v0`, `v1` and so on: the first after those that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SnapshotName>,
    /// What it is for, of at most [`MAX_MESSAGE`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A snapshot of a volume. In paths it is `VOLUME@NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The volume.
    pub volume: String,
    /// The name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It can't be removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// It was not made by kleened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
    /// What would come free if it were removed, where that was asked for or is known without looking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Size>,
}

impl Snapshot {
    /// `VOLUME@NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        path(&self.volume, &self.name)
    }
}

/// The snapshot of that name of that volume, as paths have it.
#[must_use]
pub fn path(volume: &str, name: &str) -> String {
    format!("{volume}@{name}")
}

/// Which snapshots a list shall show, of which all that are given must hold, and what of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFilter {
    /// Those of that volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Names that contain this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Messages that contain this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// True: those that are protected; false: the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// Also how much space each takes, where that means to look at every file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub size: bool,
}

/// The new name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRename {
    /// The name.
    pub name: SnapshotName,
}

/// Where what a volume had is to be again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreConfig {
    /// In a new volume of that name; in the volume itself where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<VolumeRef>,
}

/// Whether a snapshot is to be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotProtect {
    /// Whether.
    pub protected: bool,
}
