//! What goes over the wire between `klee` and `kleened`: names, bodies, errors, routes.
//!
//! No I/O happens here. Both sides parse and check with the same code, so a name that the client
//! accepts is a name that the daemon accepts. The shapes are those of Kleene's REST API; fields
//! that Kleene does not know are additions and always optional in requests.

pub mod attach;
pub mod container;
pub mod error;
pub mod exec;
pub mod image;
pub mod mount;
pub mod name;
pub mod operation;
pub mod routes;
mod size;
pub mod snapshot;
pub mod stream;
pub mod system;
mod timestamp;
pub mod volume;

mod lenient;

use serde::{Deserialize, Serialize};

pub use error::{ErrorBody, ErrorCode};
pub use name::{
    ContainerName, ContainerRef, Id, ImageRef, NameError, ProjectName, SnapshotName, VolumeName,
    VolumeRef, check_variable,
};
pub use size::{Ratio, Size};
pub use timestamp::Timestamp;

/// The answer of every verb that made, changed or removed one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdReply {
    /// The id of the object; of a volume its name, of a snapshot `VOLUME@NAME`.
    pub id: String,
}
