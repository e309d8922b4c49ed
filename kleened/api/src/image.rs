//! Images.

use serde::{Deserialize, Serialize};

use crate::{ErrorBody, Id, Timestamp, lenient};

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

/// What an image is made of: the first frame that a client sends on `/images/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCreateConfig {
    /// How.
    pub method: ImageMethod,
    /// `NAME[:TAG]`, or nothing. An image that has it loses it.
    #[serde(default)]
    pub tag: String,
    /// Whether the host's `/etc/resolv.conf` is copied into it.
    #[serde(default = "yes", deserialize_with = "lenient::boolean")]
    pub dns: bool,
    /// Whether the host's `/etc/localtime` is copied into it.
    #[serde(default = "yes", deserialize_with = "lenient::boolean")]
    pub localtime: bool,
    /// Whether `freebsd-update(8)` brings it up to date.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub update: bool,
    /// For `zfs-copy` and `zfs-clone`: the dataset or snapshot.
    #[serde(default)]
    pub zfs_dataset: String,
    /// For `fetch`: `http://…`, `https://…`, `file:///…` or an absolute path on the daemon's host.
    #[serde(default)]
    pub url: String,
    /// For `fetch-auto`: the image is called `FreeBSD-RELEASE:latest`, whatever `tag` says.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub autotag: bool,
    /// For `fetch-auto`: what follows a release of FreeBSD's own in the name of the running one is
    /// left out, such as that of a kernel that somebody built.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub force: bool,
    /// For `fetch`: the archive's SHA256, which then stands in no MANIFEST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

fn yes() -> bool {
    true
}

/// The ways to make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageMethod {
    /// Of an archive, such as FreeBSD's `base.txz`.
    Fetch,
    /// Of the archive of the release that the daemon's host runs.
    FetchAuto,
    /// Of a copy of a dataset.
    ZfsCopy,
    /// Of a clone of a dataset.
    ZfsClone,
}

impl ImageMethod {
    /// Whether the image is made of a dataset, and not of an archive.
    #[must_use]
    pub fn is_of_dataset(self) -> bool {
        matches!(self, Self::ZfsCopy | Self::ZfsClone)
    }

    /// Every method.
    pub const ALL: [Self; 4] = [Self::Fetch, Self::FetchAuto, Self::ZfsCopy, Self::ZfsClone];

    /// The name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::FetchAuto => "fetch-auto",
            Self::ZfsCopy => "zfs-copy",
            Self::ZfsClone => "zfs-clone",
        }
    }
}

/// A text frame, in JSON, on `/images/create`, for a client that offered
/// [`SUBPROTOCOL`](crate::stream::SUBPROTOCOL). The last before the connection is closed is
/// [`Created`](Self::Created) or [`Failed`](Self::Failed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageEvent {
    /// For a person: what is being done.
    Line(String),
    /// How much has come.
    Bytes {
        /// So far.
        done: u64,
        /// In all, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// There is an image of that id.
    Created(Id),
    /// Nothing is left of it.
    Failed(ErrorBody),
}
