//! Containers.

use serde::{Deserialize, Serialize};

use crate::lenient;
use crate::mount::{MountPoint, MountPointConfig};
use crate::{Id, ProjectName, Timestamp};

/// What a new container shall be, or what shall change in one. An absent field takes the image's or
/// the daemon's default on create, and keeps what is there on update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The name, `[PROJECT:]NAME`; a random one where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image: `NAME[:TAG][@SNAPSHOT]` or an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The command; empty for the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// The user, by name or number, `USER[:GROUP]`; empty for the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment variables `NAME=VALUE`, put over the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Mounts. Not changed by an update.
    #[serde(default, deserialize_with = "lenient::list")]
    pub mounts: Vec<MountPointConfig>,
    /// Jail parameters `NAME[=VALUE]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail_param: Option<Vec<String>>,
    /// Limits of what it may use: `RESOURCE[:ACTION]=AMOUNT[/PER]`, see rctl(8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Vec<String>>,
    /// The network. Not changed by an update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_driver: Option<NetworkDriver>,
    /// Published ports. Refused unless empty: no network driver of this daemon has any.
    #[serde(default, deserialize_with = "lenient::list")]
    pub public_ports: Vec<serde_json::Value>,
    /// When the daemon starts it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Whether prune leaves it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::optional_boolean"
    )]
    pub persist: Option<bool>,
    /// The host name inside; the id where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The absolute directory that processes start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Whether it is removed when it has ended.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::optional_boolean"
    )]
    pub auto_remove: Option<bool>,
}

/// How a container reaches the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// The host's network.
    #[default]
    Host,
    /// Addresses of the host, given to the container. Not supported.
    Ipnet,
    /// A network stack of its own. Not supported.
    Vnet,
    /// No network.
    Disabled,
}

impl NetworkDriver {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Ipnet => "ipnet",
            Self::Vnet => "vnet",
            Self::Disabled => "disabled",
        }
    }
}

/// When the daemon starts a container by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    #[serde(rename = "no")]
    No,
    /// When the daemon starts.
    #[serde(rename = "on-startup")]
    OnStartup,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The id.
    pub id: Id,
    /// The name, unique in its project.
    pub name: String,
    /// The project.
    #[serde(default)]
    pub project: ProjectName,
    /// The id of the image that it is a clone of.
    pub image_id: String,
    /// The command.
    pub cmd: Vec<String>,
    /// The user.
    pub user: String,
    /// The environment, sorted by name.
    pub env: Vec<String>,
    /// The network.
    pub network_driver: NetworkDriver,
    /// Published ports; always empty.
    pub public_ports: Vec<serde_json::Value>,
    /// Jail parameters.
    pub jail_param: Vec<String>,
    /// Limits of what it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// When the daemon starts it by itself.
    pub restart_policy: RestartPolicy,
    /// Whether prune leaves it.
    pub persist: bool,
    /// When it was made.
    pub created: Timestamp,
    /// The dataset of its root.
    pub dataset: String,
    /// Whether it runs.
    pub running: bool,
    /// Its host name.
    #[serde(default)]
    pub hostname: String,
    /// The directory that processes start in.
    #[serde(default)]
    pub workdir: String,
    /// Whether it is removed when it has ended.
    #[serde(default)]
    pub auto_remove: bool,
    /// When it was last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The exit status of its first process the last time: 0–255, or 128 and the signal's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// A line of a container list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// The container.
    #[serde(flatten)]
    pub container: Container,
    /// The image's name; empty where it has none or is gone.
    pub image_name: String,
    /// The image's tag.
    pub image_tag: String,
    /// While it runs: the jail's id, on Linux the first process's id.
    pub jid: Option<i32>,
}

/// The answer to inspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInspect {
    /// The container.
    pub container: Container,
    /// Its network endpoints; always empty.
    pub container_endpoints: Vec<serde_json::Value>,
    /// Its mounts, in the order they were given in.
    pub container_mountpoints: Vec<MountPoint>,
}

/// Which containers a list shall show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    /// Also those that don't run.
    #[serde(default)]
    pub all: bool,
    /// Those of every project, and not of the request's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_projects: bool,
}

/// How to stop a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopQuery {
    /// Seconds between SIGTERM and SIGKILL; the configured time where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u32>,
}

/// Which part of a log to send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsQuery {
    /// Go on with what is written from now on, until the container ends.
    #[serde(default)]
    pub follow: bool,
    /// Put the time before each line.
    #[serde(default)]
    pub timestamps: bool,
    /// Only the last so many lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<usize>,
}

/// How a container's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReply {
    /// The container's id.
    pub id: Id,
    /// 0–255, or 128 and the signal's number.
    pub exit_code: i32,
}
