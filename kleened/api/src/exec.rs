//! Execution instances: processes that are started in containers.

use serde::{Deserialize, Serialize};

use crate::lenient;

/// What to run, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The container, by name, id or the beginning of the id.
    pub container_id: String,
    /// The command; empty for the container's.
    #[serde(default, deserialize_with = "lenient::list")]
    pub cmd: Vec<String>,
    /// The user; empty for the container's.
    #[serde(default)]
    pub user: Option<String>,
    /// Environment variables `NAME=VALUE`, put over the container's.
    #[serde(default, deserialize_with = "lenient::list")]
    pub env: Vec<String>,
    /// Whether the process has a terminal.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub tty: bool,
    /// Whether the process can read what the client sends. Without it, it reads an empty input.
    /// Absent for clients that don't say: they may send.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::optional_boolean"
    )]
    pub stdin: Option<bool>,
    /// The directory to start in; absent for the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// The first frame that a client sends on `/exec/start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// The execution instance.
    pub exec_id: String,
    /// Whether input and output go through this connection.
    #[serde(deserialize_with = "lenient::boolean")]
    pub attach: bool,
    /// Whether a stopped container is started with this process as its first.
    #[serde(deserialize_with = "lenient::boolean")]
    pub start_container: bool,
    /// Whether this process must be its container's first: refused where the container runs already.
    #[serde(
        default,
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "lenient::boolean"
    )]
    pub first: bool,
}

/// How to stop an execution instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStopQuery {
    /// SIGKILL at once.
    pub force_stop: bool,
    /// Stop the whole container.
    pub stop_container: bool,
}

/// A text frame or a close reason on a websocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What kind of message this is.
    pub msg_type: MessageType,
    /// For a person.
    pub message: String,
    /// For a program.
    #[serde(default)]
    pub data: String,
}

/// The kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageType {
    /// The first message of an attached connection.
    Starting,
    /// The regular end.
    Closing,
    /// The end after a failure.
    Error,
}
