//! Why a command failed, and the status that klee exits with.

use std::error::Error;
use std::fmt::Display;

use kleened_api::{ErrorBody, ErrorCode};

use crate::print::{self, OutputFormat};

/// The status where klee, not the process, failed.
const NOT_STARTED: u8 = 125;
/// 128 and the number of SIGPIPE.
const READER_GONE: u8 = 141;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something to report.
    Reported {
        /// What.
        body: ErrorBody,
        /// The exit status.
        status: u8,
    },
    /// Everything is said already, or nothing needs to be.
    Quiet(u8),
}

impl Failure {
    /// An error of klee's own, with the chain of its causes.
    pub(crate) fn new(code: ErrorCode, message: impl Display) -> Self {
        ErrorBody { message: message.to_string(), code, causes: Vec::new() }.into()
    }

    /// Wrong usage that the command line's parser can't see.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// A failed call of klee's own.
    pub(crate) fn local(what: impl Display, why: &(dyn Error + 'static)) -> Self {
        Self::new(ErrorCode::Internal, what).caused_by(why)
    }

    /// The daemon has gone in the middle of something. `what` is known all the same.
    pub(crate) fn daemon_gone(what: impl Display) -> Self {
        Self::new(ErrorCode::Unavailable, "the connection to kleened ended").because(what)
    }

    /// ^C, or another signal. `what` says what the daemon does now.
    pub(crate) fn interrupted(signal: u8, what: impl Display) -> Self {
        Self::new(ErrorCode::Unavailable, "interrupted").because(what).exiting(128 + signal)
    }

    /// The reader of klee's output went away: as if SIGPIPE had ended klee.
    pub(crate) fn reader_gone() -> Self {
        Self::Quiet(READER_GONE)
    }

    /// The same with `error` and what is behind it as causes.
    pub(crate) fn caused_by(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self = self.because(cause);
            next = cause.source();
        }
        self
    }

    /// The same with one more cause.
    pub(crate) fn because(mut self, cause: impl Display) -> Self {
        if let Self::Reported { body, .. } = &mut self {
            body.causes.push(cause.to_string());
        }
        self
    }

    /// The same with another exit status.
    pub(crate) fn exiting(mut self, with: u8) -> Self {
        if let Self::Reported { status, .. } = &mut self {
            *status = with;
        }
        self
    }

    /// The same for what was to start a process, whose own statuses must not be confused with klee's.
    pub(crate) fn not_started(self) -> Self {
        match self {
            Self::Reported { status, .. } if status < NOT_STARTED => self.exiting(NOT_STARTED),
            other => other,
        }
    }

    /// The stable code.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Reported { body, .. } => Some(body.code),
            Self::Quiet(_) => None,
        }
    }

    /// Whether what else was asked for is not even tried: klee was interrupted, or the daemon does not
    /// answer.
    pub(crate) fn ends_all(&self) -> bool {
        matches!(self.code(), None | Some(ErrorCode::Unavailable))
    }

    /// Writes the error to standard error and returns the exit status.
    pub(crate) fn report(&self, format: OutputFormat) -> u8 {
        match self {
            Self::Reported { body, status } => {
                match (format, serde_json::to_string_pretty(body)) {
                    (OutputFormat::Json, Ok(json)) => print::note(&print::escape_json(&json)),
                    _ => print::note(&format!("klee: {}", print::escape(&body.to_string()))),
                }
                *status
            }
            Self::Quiet(status) => *status,
        }
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Self::Reported { status: body.code.exit_status(), body }
    }
}
