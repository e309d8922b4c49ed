//! Images.

use serde::{Deserialize, Serialize};

use crate::{Id, Timestamp};

/// An image: an immutable root file system, and what a container made of it gets by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The id.
    pub id: Id,
    /// The name; empty where it has none.
    pub name: String,
    /// The tag; empty where it has none.
    pub tag: String,
    /// The default user.
    pub user: String,
    /// The default command.
    pub cmd: Vec<String>,
    /// The default environment.
    pub env: Vec<String>,
    /// How it was built: lines and snapshots.
    pub instructions: Vec<(String, String)>,
    /// When it was made.
    pub created: Timestamp,
    /// The dataset that holds it.
    pub dataset: String,
}

/// What an imported or saved image shall be called and have for defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME[:TAG]`. An image that has it loses it.
    pub name: String,
    /// The default command, as a JSON array of strings; `["/bin/sh"]` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// The default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The default environment, as a JSON array of `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

/// The new name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagQuery {
    /// `NAME[:TAG]`.
    pub nametag: String,
}
