//! Error codes, their HTTP status and `klee`'s exit status: one table for both sides.

use serde::{Deserialize, Serialize};

/// Why a request failed. Codes are stable; texts are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// Something in the request is not allowed. Change the request.
    Invalid,
    /// The object that is named does not exist.
    NotFound,
    /// The object exists, and differs from what was asked for; the message names the difference.
    Conflict,
    /// Something uses the object; the message says what.
    InUse,
    /// The object is not in a state in which this can be done.
    WrongState,
    /// The caller may not do this.
    Denied,
    /// Neither this storage driver nor this platform can do it.
    Unsupported,
    /// The storage has no room, or a quota is used up.
    NoSpace,
    /// The daemon is stopping, or something that it needs does not answer. Try again.
    Unavailable,
    /// The daemon failed. Its log says more.
    Internal,
}

impl ErrorCode {
    /// Every code, for tables in manual pages and tests.
    pub const ALL: [Self; 10] = [
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::InUse,
        Self::WrongState,
        Self::Denied,
        Self::Unsupported,
        Self::NoSpace,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The HTTP status: 4xx only for what the caller can change.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict | Self::InUse | Self::WrongState => 409,
            Self::Denied => 403,
            Self::Unsupported => 501,
            Self::NoSpace => 507,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// The exit status of `klee`.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::InUse => 5,
            Self::WrongState => 6,
            Self::Denied => 7,
            Self::Unsupported => 8,
            Self::NoSpace => 9,
            Self::Unavailable => 10,
        }
    }

    /// The code's name as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::InUse => "in_use",
            Self::WrongState => "wrong_state",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::NoSpace => "no_space",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// The body of every answer that reports an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", .causes.iter().map(|cause| format!(": {cause}")).collect::<String>())]
pub struct ErrorBody {
    /// The failed verb and the object.
    pub message: String,
    /// The stable code. Absent in answers of other daemons that speak this protocol.
    #[serde(default = "internal")]
    pub code: ErrorCode,
    /// What lay behind it, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

fn internal() -> ErrorCode {
    ErrorCode::Internal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_json() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn the_chain_is_one_line() {
        let body = ErrorBody {
            message: "cannot remove volume db".into(),
            code: ErrorCode::InUse,
            causes: vec!["mounted by web".into(), "read-write at /data".into()],
        };
        assert_eq!(
            body.to_string(),
            "cannot remove volume db: mounted by web: read-write at /data"
        );
    }
}
