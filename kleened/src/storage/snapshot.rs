//! Snapshots: what a dataset was at an instant.

use std::fmt;

use kleened_api::Timestamp;

#[cfg(doc)]
use super::Error;
use super::{DatasetPath, DatasetSpec, Result};

/// The path of a snapshot, for example `image/0123456789ab@image`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotPath {
    /// The dataset that it is a snapshot of.
    pub dataset: DatasetPath,
    /// Its own name: as the names of volumes.
    pub name: String,
}

impl fmt::Display for SnapshotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.dataset, self.name)
    }
}

/// What the names of the program's own snapshots begin with, which are there for a while. No person can
/// give such a name: it has two `-` in a row.
pub const INTERNAL: &str = "kleene--";

/// A snapshot that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name, without the dataset's.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its record; `None` where it has none: somebody else made it.
    pub record: Option<String>,
    /// It is [held](Snapshots::hold).
    pub held: bool,
}

/// What a driver does with snapshots. A part of every [`Driver`](super::Driver), and every call as its.
pub trait Snapshots {
    /// All these snapshots exist, none of which did before, each with that record, or with none where it
    /// is empty. What is written to a dataset from now on does not change them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for a dataset,
    /// [`Error::Exists`] for a snapshot; then none was made.
    fn snapshot(&self, snapshots: &[SnapshotPath], record: &str) -> Result<()>;

    /// The dataset's snapshots, oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for the dataset.
    fn snapshots(&self, path: &DatasetPath) -> Result<Vec<Snapshot>>;

    /// How many bytes would come free if the snapshot were destroyed, as far as the driver can tell.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn snapshot_usage(&self, snapshot: &SnapshotPath) -> Result<u64>;

    /// The snapshot does not exist; clones keep what they have of it. False where there was none: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where it is held.
    fn destroy_snapshot(&self, snapshot: &SnapshotPath) -> Result<bool>;

    /// The snapshot has the name `to`, and is as it was otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`] where the
    /// dataset has a snapshot of that name.
    fn rename_snapshot(&self, snapshot: &SnapshotPath, to: &str) -> Result<()>;

    /// The snapshot is held, so that neither it nor its dataset can be destroyed; or it is not. A repeat is
    /// safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn hold(&self, snapshot: &SnapshotPath, held: bool) -> Result<()>;

    /// The dataset's content is that of the snapshot; its record and all its snapshots stay, also newer
    /// ones. Its mount point is the same directory only if nobody had it open.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Busy`] where it is in use. Then nothing changed.
    fn rollback(&self, snapshot: &SnapshotPath) -> Result<()>;

    /// A dataset `to` with the snapshot's content, root directory included, and its own record.
    /// `spec.owner` and `spec.mode`, where given, replace the root directory's.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`].
    fn clone_from(
        &self,
        snapshot: &SnapshotPath,
        to: &DatasetPath,
        spec: &DatasetSpec,
    ) -> Result<()>;
}
