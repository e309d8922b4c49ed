//! Volumes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::mount::MountPoint;
use crate::snapshot::Snapshot;
use crate::{ProjectName, Ratio, Size, Timestamp, VolumeRef};

/// What a new volume shall be. Absent fields leave the choice to the daemon, and are not compared
/// where a volume of that name exists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// The name; a random one where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeRef>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The owner of the volume's root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The mode of the volume's root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How much its content may take, snapshots not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How much is kept free for its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Size>,
    /// The name of a [`Profile`], whose properties it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Properties of its dataset. They come before those of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
    /// Which mounts of it there can be beside each other; [`AccessRule::Shared`] where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessRule>,
    /// The volume that it begins as, and after which it takes in all that is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<VolumeRef>,
    /// The snapshot of `from` that it begins as; `from` as it is now where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<String>,
    /// It shares no space with `from`: all is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub independent: Option<bool>,
}

/// What a volume began as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The volume, by the name that it had.
    pub volume: String,
    /// Its snapshot; as it was at that moment where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// When that volume was made: a later one of its name is another.
    pub created: Timestamp,
    /// It shared no space from the beginning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub independent: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.volume)?;
        self.snapshot.as_ref().map_or(Ok(()), |snapshot| write!(f, "@{snapshot}"))
    }
}

/// Which mounts of a volume there can be beside each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessRule {
    /// Any.
    #[default]
    Shared,
    /// Any number of read-only ones, or one alone that can write.
    SingleWriter,
}

impl AccessRule {
    /// Every rule.
    pub const ALL: [Self; 2] = [Self::Shared, Self::SingleWriter];

    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::SingleWriter => "single-writer",
        }
    }
}

impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What dataset shall become a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptConfig {
    /// The dataset, as the host's tools call it.
    pub dataset: String,
    /// The name of the volume; the last component of the dataset's where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeRef>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The name, unique in its project.
    pub name: String,
    /// The project.
    #[serde(default)]
    pub project: ProjectName,
    /// The dataset that holds it.
    pub dataset: String,
    /// Where it is mounted on the host.
    pub mountpoint: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What is going on with it.
    #[serde(default)]
    pub state: VolumeState,
    /// The owner that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The mode that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The size that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The reserve that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<Size>,
    /// The profile that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The properties that were asked for beside the profile's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What others changed of these since, by ZFS's names, with what it is now; where it is inspected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, String>,
    /// Which mounts of it there can be beside each other.
    #[serde(default)]
    pub access: AccessRule,
    /// How much space it takes now, where that was asked for or is known without looking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<VolumeUsage>,
    /// Where its first content came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub populated: Option<Populated>,
    /// What its dataset was called before it was adopted. Such a volume is never filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<String>,
    /// What it began as, where that is another volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What is wrong, in state `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How much space a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// What would come free if it and its snapshots were removed.
    pub used: Size,
    /// What its present content takes.
    pub referenced: Size,
    /// What can still be written.
    pub available: Size,
    /// What would come free if its snapshots were removed.
    pub snapshots: Size,
    /// What its present content may take at this moment, where that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How many times smaller compression makes its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress_ratio: Option<Ratio>,
}

/// Properties that suit one kind of content, under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The name.
    pub name: String,
    /// What it is for.
    pub about: String,
    /// The properties.
    pub properties: Vec<ProfileProperty>,
}

/// A property of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileProperty {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
    /// Why it has this value.
    pub why: String,
}

/// Where the first content of a volume came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Populated {
    /// The id of the image.
    pub image_id: String,
    /// The directory in the image.
    pub path: String,
    /// When.
    pub at: Timestamp,
}

/// What is going on with a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// It is being made or filled.
    Initializing,
    /// No container names it.
    #[default]
    Available,
    /// A container that does not run names it.
    Attached,
    /// A running container has it mounted.
    Mounted,
    /// It can't be used; `error` says why.
    Error,
}

impl VolumeState {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Available => "available",
            Self::Attached => "attached",
            Self::Mounted => "mounted",
            Self::Error => "error",
        }
    }
}

/// The answer to inspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInspect {
    /// The volume.
    pub volume: Volume,
    /// Which containers name it, where, and how.
    pub mountpoints: Vec<MountPoint>,
    /// Its snapshots, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshot>,
    /// The volumes that began as this one, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clones: Vec<String>,
}

/// How a volume is to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveQuery {
    /// With its snapshots, unless one is protected.
    #[serde(default)]
    pub force: bool,
}

/// What inspect shall show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectQuery {
    /// Also how much space the volume takes, where that means to look at every file.
    #[serde(default)]
    pub size: bool,
}

/// Which volumes a list shall show, of which all that are given must hold, and what of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFilter {
    /// Those of every project, and not of the request's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_projects: bool,
    /// Names that contain this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `KEY` or `KEY=VALUE`, several separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// True: those that no container names; false: the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dangling: Option<bool>,
    /// True: those that a running container has mounted; false: the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<bool>,
    /// Also how much space each takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub size: bool,
}

/// What prune shall do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneQuery {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
    /// Images: also those that have a name.
    #[serde(default)]
    pub all: bool,
    /// Volumes and containers: those of every project, and not of the request's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_projects: bool,
}

/// A numeric user and group, written `UID:GID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        text.split_once(':')
            .and_then(|(uid, gid)| Some(Self { uid: number(uid)?, gid: number(gid)? }))
            .ok_or_else(|| format!("owner '{}' is not UID:GID, two numbers", text.escape_default()))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Permission bits, written in octal: `0750`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if bits <= 0o7777 && !digits.starts_with('+') => Ok(Self(bits)),
            _ => Err(format!("mode '{}' is not an octal number up to 7777", text.escape_default())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

macro_rules! through_text {
    ($($type:ident),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

through_text!(Owner, Mode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes() {
        assert_eq!("770:771".parse(), Ok(Owner { uid: 770, gid: 771 }));
        assert_eq!("0750".parse(), Ok(Mode(0o750)));
        assert_eq!(Mode(0o750).to_string(), "0750");
        for bad in ["", "1", "a:b", "1:4294967295", "-1:0"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "9", "10000", "+7", "rwx"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad:?} was accepted");
        }
    }
}
