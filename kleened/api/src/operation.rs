//! Operations: changes that take longer than a client wants to hold a request open.
//!
//! A client that sends `Prefer: respond-async` ([RFC 7240]) gets `202 Accepted` and an
//! [`Operation`] when the change is not done after a second, and waits for it at
//! `GET /operations/{id}?wait=SECONDS`. Other clients get the verb's usual answer after four
//! seconds at the latest, while the change goes on.
//!
//! [RFC 7240]: https://www.rfc-editor.org/rfc/rfc7240

use serde::{Deserialize, Serialize};

use crate::{ErrorBody, Id, Timestamp};

/// A change under way, or one that ended less than ten minutes ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The id.
    pub id: Id,
    /// What is done to what, for a person: `create container web`.
    pub what: String,
    /// Since when.
    pub started: Timestamp,
    /// Whether it ended.
    pub status: OperationStatus,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The verb's answer, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<serde_json::Value>,
    /// The error, once it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Whether an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationStatus {
    /// Not yet.
    Running,
    /// It did what it should.
    Succeeded,
    /// It did not, and left nothing behind.
    Failed,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files copied.
    pub files: u64,
    /// Bytes copied.
    pub bytes: u64,
}

/// How long to wait for the end of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitQuery {
    /// Seconds, at most 60.
    #[serde(default)]
    pub wait: u32,
}
