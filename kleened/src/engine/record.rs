//! The stored formats: what lies beside a dataset as its record.
//!
//! They outlive the program, so they are types of their own: versioned, and read leniently. A field
//! that is added gets a default; one that changes its meaning gets a new version.

use std::collections::BTreeMap;

use kleened_api::container::{NetworkDriver, RestartPolicy};
use kleened_api::mount::MountPointConfig;
use kleened_api::volume::{AccessRule, Mode, Origin, Owner, Populated};
use kleened_api::{Id, ProjectName, Size, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::profile;
use crate::storage::DatasetSpec;

/// The version that this program writes and the newest that it reads.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeRecord {
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Size>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Those that were asked for beside the profile's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Once set, image content is never copied into it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub populated: Option<Populated>,
    /// What its dataset was called before it was adopted. It is never replaced by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub access: AccessRule,
    /// What it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The container whose creation made it. Only that creation may take it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<Id>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VolumeRecord {
    /// Of a volume of which nothing more is known.
    pub(super) fn new(created: Timestamp) -> Self {
        Self {
            created,
            labels: BTreeMap::new(),
            owner: None,
            mode: None,
            size: None,
            reserve: None,
            profile: None,
            properties: BTreeMap::new(),
            populated: None,
            adopted: None,
            access: AccessRule::default(),
            origin: None,
            made_for: None,
        }
    }

    /// The dataset that the volume is to have.
    pub(super) fn spec(&self) -> DatasetSpec {
        let mut properties = profile::properties(self.profile.as_deref());
        properties.extend(self.properties.clone());
        DatasetSpec {
            record: write(self),
            owner: self.owner,
            mode: self.mode,
            size: self.size.map(|size| size.0),
            reserve: self.reserve.map(|size| size.0),
            properties,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub created: Timestamp,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub tag: String,
    /// When it got its name: of two images with one name, the later keeps it.
    pub named: Timestamp,
    pub user: String,
    pub cmd: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub created: Timestamp,
    pub name: String,
    #[serde(default, skip_serializing_if = "ProjectName::is_default")]
    pub project: ProjectName,
    pub image_id: Id,
    pub cmd: Vec<String>,
    pub user: String,
    pub env: Vec<String>,
    pub mounts: Vec<MountPointConfig>,
    #[serde(default)]
    pub jail_param: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    #[serde(default)]
    pub network_driver: NetworkDriver,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    #[serde(default)]
    pub persist: bool,
    #[serde(default)]
    pub auto_remove: bool,
    pub hostname: String,
    pub workdir: String,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

/// Why a record can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(
        "it has no record of its own: it was not made by kleened; on ZFS, 'klee volume adopt' makes a volume of it"
    )]
    Missing,
    #[error("its record has version {0}, newer than this kleened reads (1): use a newer kleened")]
    Newer(u32),
    #[error("its record is damaged")]
    Damaged(#[from] serde_json::Error),
}

/// The text that is stored.
pub(super) fn write<T: Serialize>(record: &T) -> String {
    // A struct of strings, numbers and maps with text keys always has a JSON form.
    serde_json::to_string(&Versioned { version: VERSION, record }).unwrap_or_default()
}

/// What was stored.
pub(super) fn read<T: DeserializeOwned>(text: Option<&str>) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = text.ok_or(Unreadable::Missing)?;
    let Version { version } = serde_json::from_str(text)?;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    Ok(serde_json::from_str::<Versioned<T>>(text)?.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageRecord {
        let created: Timestamp = "2024-02-29T14:54:05.317207Z".parse().unwrap();
        ImageRecord {
            created,
            name: "base".into(),
            tag: "latest".into(),
            named: created,
            user: "root".into(),
            cmd: vec!["/bin/sh".into()],
            env: vec![],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = write(&image());
        assert_eq!(read::<ImageRecord>(Some(&text)).unwrap(), image());
    }

    #[test]
    fn the_first_version_stays_readable() {
        let text = r#"{"version":1,"created":"2024-02-29T14:54:05.317207Z"}"#;
        let volume: VolumeRecord = read(Some(text)).unwrap();
        assert!(volume.labels.is_empty() && volume.populated.is_none());
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert!(matches!(read::<ImageRecord>(None), Err(Unreadable::Missing)));
        assert!(matches!(read::<ImageRecord>(Some(r#"{"version":2}"#)), Err(Unreadable::Newer(2))));
        assert!(matches!(read::<ImageRecord>(Some("{")), Err(Unreadable::Damaged(_))));
        assert!(matches!(
            read::<ImageRecord>(Some(r#"{"version":1}"#)),
            Err(Unreadable::Damaged(_))
        ));
    }
}
