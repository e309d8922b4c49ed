//! Volumes that come to containers which are there, and go again.

use serde::{Deserialize, Serialize};

use crate::lenient;
use crate::mount::{MountError, MountOptions, MountPointConfig, MountType};

/// What a running container has from the kernel: nothing is attached there or below.
pub const RESERVED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Where and how a volume shall be in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachConfig {
    /// The container, by name or id.
    pub container: String,
    /// The absolute path in the container.
    #[serde(default)]
    pub destination: String,
    /// Whether nothing below the destination can be written.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub read_only: bool,
    /// Whether the container's content stays out of a new volume.
    #[serde(
        default,
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "lenient::boolean"
    )]
    pub nocopy: bool,
    /// A path inside the volume that is mounted instead of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// What else can't be done below the destination.
    #[serde(flatten)]
    pub options: MountOptions,
}

impl AttachConfig {
    /// The mount of that volume, checked as [`MountPointConfig::checked`] does.
    ///
    /// # Errors
    ///
    /// As there; a destination that is one of [`RESERVED`], or below one.
    pub fn mount(&self, volume: &str) -> Result<MountPointConfig, MountError> {
        let mount = MountPointConfig {
            kind: MountType::Volume,
            source: volume.to_owned(),
            destination: self.destination.clone(),
            read_only: self.read_only,
            nocopy: self.nocopy,
            anonymous: false,
            subpath: self.subpath.clone(),
            options: self.options,
        };
        let mount = mount.checked()?;
        let under = |reserved: &&str| {
            let rest = mount.destination.strip_prefix(*reserved);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match RESERVED.into_iter().find(|reserved| under(reserved)) {
            None => Ok(mount),
            Some(reserved) => Err(MountError {
                text: mount.to_string(),
                reason: format!(
                    "the destination must not be in {reserved}, which the container has from the kernel"
                ),
            }),
        }
    }
}

/// Which of a volume's mounts shall be in a container no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachConfig {
    /// The container, by name or id.
    pub container: String,
    /// The path in the container; wherever the volume is where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(destination: &str) -> Result<MountPointConfig, MountError> {
        let text = serde_json::json!({ "container": "c", "destination": destination });
        serde_json::from_value::<AttachConfig>(text).unwrap().mount("v")
    }

    #[test]
    fn where_a_volume_can_be_attached() {
        assert_eq!(at("/srv//./data/").unwrap().destination, "/srv/data");
        assert_eq!(at("/system").unwrap().destination, "/system");
        let refused = [
            "", "data", "./data", "/", "//.", "/a/..", "/../etc", "/dev", "/dev/shm", "/proc/1",
            "/sys//",
        ];
        for destination in refused {
            assert!(at(destination).is_err(), "{destination:?} was accepted");
        }
        let error = at("/sys/fs").unwrap_err().to_string();
        assert!(error.contains("must not be in /sys"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        let mount = at("/data").unwrap();
        assert!(!mount.read_only && !mount.nocopy && mount.options == MountOptions::default());
        let detach: DetachConfig = serde_json::from_str(r#"{"container":"c"}"#).unwrap();
        assert_eq!(detach.destination, None);
    }
}
