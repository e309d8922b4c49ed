//! What a verb of the engine can fail with.

use std::fmt;
use std::io;

use kleened_api::mount::MountError;
use kleened_api::{ErrorBody, ErrorCode, NameError};

use crate::{fetch, platform, storage};

/// A result of a verb.
pub type Result<T> = std::result::Result<T, Error>;

/// The kinds of objects that have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot of a volume.
    Snapshot,
    /// A container.
    Container,
    /// An image.
    Image,
    /// An execution instance.
    Exec,
    /// An operation.
    Operation,
    /// A network.
    Network,
    /// A dataset.
    Dataset,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Container => "container",
            Self::Image => "image",
            Self::Exec => "execution instance",
            Self::Operation => "operation",
            Self::Network => "network",
            Self::Dataset => "dataset",
        })
    }
}

/// A failed verb: what was tried on what. The cause is in `source` alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A mount that is not allowed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Something else in the request that is not allowed, with what to write instead.
    #[error("{0}")]
    Invalid(String),
    /// There is no such object.
    #[error("no such {kind}: {name}")]
    NotFound {
        /// The kind.
        kind: Kind,
        /// The name as it was given.
        name: String,
    },
    /// The object exists and differs from what was asked for.
    #[error("{kind} {name} exists with {}", join(.differences))]
    Conflict {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// The name belongs to another object.
    #[error("{kind} name {name} is taken by {by}")]
    Taken {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// The id of the object that has it.
        by: String,
    },
    /// There is such an object already.
    #[error("{kind} {name} already exists")]
    Exists {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// The volume has snapshots, which would go with it.
    #[error(
        "volume {volume} has {}snapshots, {}: {}",
        if *.protected { "protected " } else { "" },
        .snapshots.join(", "),
        if *.protected { "unprotect them first" } else { "remove them first, or the volume with them by force" }
    )]
    HasSnapshots {
        /// The volume.
        volume: String,
        /// The snapshots.
        snapshots: Vec<String>,
        /// That they can't go.
        protected: bool,
    },
    /// Something uses the object.
    #[error("{kind} {name} is in use: {}", .users.join(", "))]
    InUse {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// By what, how.
        users: Vec<String>,
    },
    /// The volume's access rule does not let the container have it beside others.
    #[error("volume {volume} is single-writer, for many read-only mounts or one read-write: {}", .holders.join(", "))]
    SingleWriter {
        /// The volume.
        volume: String,
        /// The mounts that are in the way.
        holders: Vec<String>,
    },
    /// The volume is in the container already, and otherwise.
    #[error("volume {volume} is already attached to container {container} with {}", join(.differences))]
    Attached {
        /// The volume.
        volume: String,
        /// The container's name.
        container: String,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// Something else is at the path.
    #[error("mount path {path} is already in use: container {container} has {by}")]
    PathInUse {
        /// The path.
        path: String,
        /// The container's name.
        container: String,
        /// What is there.
        by: String,
    },
    /// The object is not in a state in which this can be done.
    #[error("{kind} {name} {state}")]
    State {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// For example `is running`.
        state: &'static str,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Denied(String),
    /// Something that this daemon can't do.
    #[error("{0}")]
    Unsupported(String),
    /// The daemon itself failed; its log says more.
    #[error("the daemon failed: its log says more")]
    Failed,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// The storage failed.
    #[error("cannot {verb} {object}")]
    Storage {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: storage::Error,
    },
    /// The platform failed.
    #[error("cannot {verb} {object}")]
    Platform {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: platform::Error,
    },
    /// A file of the daemon's own, or the copying of files, failed.
    #[error("cannot {verb} {object}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// An archive could not be fetched.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// Nobody waits for it any more: it was taken back.
    #[error("it was cancelled")]
    Cancelled,
    /// A tear-down that went on after errors.
    #[error("{}", .0.iter().map(|error| one_line(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

/// A field in which what is there differs from what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub field: &'static str,
    /// What it has.
    pub present: String,
    /// What was asked for.
    pub wanted: String,
}

fn join(differences: &[Difference]) -> String {
    let text = |Difference { field, present, wanted }: &Difference| {
        let other = if field.ends_with('s') && *field != "access" { "other" } else { "another" };
        format!("{other} {field}: it has {present}, {wanted} was asked for")
    };
    differences.iter().map(text).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The error for a failed storage call in the middle of `verb` on `object`.
    pub fn storage(
        verb: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(storage::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Storage { verb, object, source }
    }

    /// The error for a failed platform call in the middle of `verb` on `object`.
    pub fn platform(
        verb: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(platform::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Platform { verb, object, source }
    }

    /// The error for a failed call on a file in the middle of `verb` on `object`.
    pub fn io<E: Into<io::Error>>(
        verb: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(E) -> Self {
        let object = object.to_string();
        move |source| Self::Io { verb, object, source: source.into() }
    }

    /// Whether a copy was cancelled, and nothing else went wrong.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Io { source, .. }
            | Self::Storage { source: storage::Error::Io { source, .. }, .. } => {
                source.kind() == io::ErrorKind::Interrupted
            }
            _ => false,
        }
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Name(_) | Self::Mount(_) | Self::Invalid(_) => ErrorCode::Invalid,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Conflict { .. }
            | Self::Taken { .. }
            | Self::Exists { .. }
            | Self::Attached { .. }
            | Self::PathInUse { .. } => ErrorCode::Conflict,
            Self::InUse { .. } | Self::SingleWriter { .. } => ErrorCode::InUse,
            Self::State { .. } | Self::HasSnapshots { .. } => ErrorCode::WrongState,
            Self::Denied(_) => ErrorCode::Denied,
            Self::Unsupported(_) => ErrorCode::Unsupported,
            Self::Stopping | Self::Cancelled => ErrorCode::Unavailable,
            Self::Fetch(error) => match error {
                fetch::Error::Source { .. } | fetch::Error::Sum { .. } => ErrorCode::Invalid,
                fetch::Error::Missing(_) => ErrorCode::NotFound,
                fetch::Error::Failed { source, .. } => io_code(source),
            },
            Self::Failed => ErrorCode::Internal,
            Self::Storage { source, .. } => match source {
                storage::Error::NotFound(_) | storage::Error::Io { .. } => ErrorCode::Internal,
                storage::Error::Exists(_) => ErrorCode::Conflict,
                storage::Error::Busy(_) => ErrorCode::InUse,
                storage::Error::NoSpace { .. } => ErrorCode::NoSpace,
                storage::Error::Unsupported(_) => ErrorCode::Unsupported,
                storage::Error::BadStream(_) | storage::Error::Invalid(_) => ErrorCode::Invalid,
            },
            Self::Platform { source, .. } => match source {
                platform::Error::Invalid(_)
                | platform::Error::Mount { .. }
                | platform::Error::Start { .. } => ErrorCode::Invalid,
                platform::Error::Busy { .. } => ErrorCode::InUse,
                platform::Error::NotRunning(_) | platform::Error::Running(_) => {
                    ErrorCode::WrongState
                }
                platform::Error::Unsupported(_) => ErrorCode::Unsupported,
                platform::Error::Io { source, .. } => io_code(source),
            },
            Self::Io { source, .. } => io_code(source),
            Self::Several(errors) => errors.first().map_or(ErrorCode::Internal, Self::code),
        }
    }

    /// The exit status that a shell would have for a process that could not be started: 127 where
    /// the program was not found, 126 where it can't be run.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Platform { source: platform::Error::Start { exit_code, .. }, .. } => {
                Some(*exit_code)
            }
            _ => None,
        }
    }

    /// The answer's body: the chain of causes, walked once.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        ErrorBody { message: self.to_string(), code: self.code(), causes }
    }
}

fn io_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => ErrorCode::Invalid,
        // What the daemon itself breaks off when it stops.
        io::ErrorKind::ConnectionAborted => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    }
}

/// The error and its causes, separated by colons.
#[must_use]
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
