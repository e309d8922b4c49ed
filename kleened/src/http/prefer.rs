//! How a client wants to be answered, and every difference that it makes.
//!
//! A client that sends [`Prefer`](kleened_api::routes::PREFER)`: exact-status` gets the status of
//! the error's code and the error with all its causes. One that sends `respond-async` with it gets
//! an operation where a change takes longer than [`ASYNC_AFTER`]. Kleene's client sends neither. It
//! gets a status that it can digest, Kleene's texts, and its answer within [`KLEENE_PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kleened_api::container::ContainerConfig;
use kleened_api::name::DEFAULT_PROJECT;
use kleened_api::operation::Operation;
use kleened_api::routes::{OPERATION, PREFER, with_name};
use kleened_api::volume::VolumeConfig;
use kleened_api::{ErrorBody, ErrorCode, IdReply, ProjectName};
use serde::Serialize;
use serde_json::json;

use super::request::{Flaw, Malformed};
use super::transfer::Stopping;
use super::verb::Verb;
use crate::engine::{Engine, Pending};
use crate::error::{Error, Kind, Result, one_line};

/// After how long an exact client gets an operation.
const ASYNC_AFTER: Duration = Duration::from_secs(1);

/// After how long Kleene's client gets a verb's usual answer while the change goes on: it waits for
/// five seconds and then gives up.
const KLEENE_PATIENCE: Duration = Duration::from_secs(4);

/// Longer than any change.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How a client wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As Kleene's client can digest it.
    Kleene,
    /// Exactly, when the change is done.
    Exact,
    /// Exactly, with an operation where the change takes long.
    Async,
}

impl Manner {
    /// What the request's headers ask for. Preferences that are not known are ignored, as [RFC 7240]
    /// has it.
    ///
    /// [RFC 7240]: https://www.rfc-editor.org/rfc/rfc7240
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let preferences = || {
            let values = headers.get_all(PREFER).into_iter();
            values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','))
        };
        let prefers =
            |wanted: &str| preferences().any(|given| given.trim().eq_ignore_ascii_case(wanted));
        match (prefers("exact-status"), prefers("respond-async")) {
            (true, true) => Self::Async,
            (true, false) => Self::Exact,
            (false, _) => Self::Kleene,
        }
    }
}

/// A request that was let in: the verb that is called, on what, and how to answer.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The engine.
    pub(super) engine: Arc<Engine>,
    /// The verb.
    pub(super) verb: Verb,
    /// How the client wants to be answered.
    pub(super) manner: Manner,
    /// Where is what the request names without a project.
    pub(super) project: ProjectName,
    /// When the daemon stops.
    pub(super) stopping: Stopping,
}

impl<S: Send + Sync> FromRequestParts<S> for Call {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, StatusCode> {
        // Every route puts it there.
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// What a finished change is answered with.
pub(super) trait Answer: Sized {
    /// The answer's body.
    fn body(self) -> Response;

    /// What Kleene's client is told when the change takes longer than it waits.
    fn meanwhile(subject: &str) -> Self;
}

impl Answer for String {
    fn body(self) -> Response {
        Json(IdReply { id: self }).into_response()
    }

    fn meanwhile(subject: &str) -> Self {
        subject.to_owned()
    }
}

impl Answer for Vec<String> {
    fn body(self) -> Response {
        Json(self).into_response()
    }

    fn meanwhile(_: &str) -> Self {
        Self::new()
    }
}

impl Call {
    /// The answer that reports success.
    pub(super) fn done(&self, body: impl Serialize) -> Response {
        (self.verb.row().done, Json(body)).into_response()
    }

    /// The answer of a verb that is done at once.
    pub(super) fn found<T: Serialize>(&self, result: Result<T>) -> Response {
        match result {
            Ok(found) => self.done(found),
            Err(error) => {
                // Changes are logged where they are made.
                if error.code() == ErrorCode::Internal {
                    tracing::error!("{}", one_line(&error));
                }
                self.failed(&error)
            }
        }
    }

    /// The answer of a change that was begun, once it is done or the client waited long enough.
    pub(super) async fn changed<T: Answer>(&self, begun: Result<Pending<T>>) -> Response {
        let mut pending = match begun {
            Ok(pending) => pending,
            Err(error) => return self.failed(&error),
        };
        let patience = match self.manner {
            Manner::Kleene if self.verb.row().kleene.is_some() => KLEENE_PATIENCE,
            Manner::Async => ASYNC_AFTER,
            Manner::Kleene | Manner::Exact => FOREVER,
        };
        match pending.within(patience).await {
            Some(Ok(reply)) => (self.verb.row().done, reply.body()).into_response(),
            Some(Err(error)) => self.failed(&error),
            None if self.manner == Manner::Kleene => {
                (self.verb.row().done, T::meanwhile(pending.subject()).body()).into_response()
            }
            None => match self.engine.operation(pending.operation().as_str(), Duration::ZERO).await
            {
                Ok(operation) => under_way(&operation),
                Err(error) => self.failed(&error),
            },
        }
    }

    /// `[PROJECT:]NAME` as the engine knows it: `PROJECT:` is there unless it is the default.
    pub(super) fn scoped(&self, name: String) -> String {
        match name.split_once(':') {
            Some((DEFAULT_PROJECT, name)) => name.to_owned(),
            None if !self.project.is_default() => format!("{}:{name}", self.project),
            _ => name,
        }
    }

    /// The project that is meant by what does not ask for all.
    pub(super) fn unless(&self, all_projects: bool) -> Option<ProjectName> {
        (!all_projects).then(|| self.project.clone())
    }

    /// The configuration of a volume as the engine knows it: with Kleene it must have a name.
    pub(super) fn volume(
        &self,
        config: VolumeConfig,
    ) -> std::result::Result<VolumeConfig, Malformed> {
        match (self.manner, &config.name) {
            (Manner::Kleene, None) => Err(Malformed::missing("name")),
            _ => Ok(config),
        }
    }

    /// The configuration of a container as the engine knows it: Kleene lets the name begin with a
    /// slash, which means nothing.
    pub(super) fn container(&self, mut config: ContainerConfig) -> ContainerConfig {
        if let (Manner::Kleene, Some(name)) = (self.manner, &mut config.name)
            && name.starts_with('/')
        {
            name.remove(0);
        }
        config
    }

    /// The answer that reports an error.
    pub(super) fn failed(&self, error: &Error) -> Response {
        let body = error.body();
        match (self.manner, self.verb.row().kleene) {
            (Manner::Kleene, Some(statuses)) => {
                let status = match body.code {
                    ErrorCode::NotFound => statuses.missing,
                    ErrorCode::Internal => statuses.failed,
                    _ => statuses.refused,
                };
                let message =
                    kleene_text(self.verb, error).unwrap_or_else(|| digestible(&body.to_string()));
                reply(status, json!({ "message": message }))
            }
            _ => reply(body.code.http_status(), body),
        }
    }

    /// The answer to a request whose body, query or path does not have the right shape.
    pub(super) fn malformed(&self, malformed: &Malformed) -> Response {
        let Malformed { flaw, pointer, detail } = malformed;
        let kleene = match flaw {
            Flaw::Syntax => Some(400),
            Flaw::Late => Some(408),
            Flaw::Length => Some(413),
            Flaw::Media => Some(415),
            Flaw::Schema => Some(422),
            // Its client can send one.
            Flaw::Value => self.verb.row().kleene.map(|statuses| statuses.refused),
        };
        let field = pointer.trim_start_matches('/').replace('/', ".");
        // Our own checks say themselves what they are about.
        let bare = field.is_empty() || !detail.to_ascii_lowercase().starts_with("invalid ");
        let message = if bare { detail.to_owned() } else { format!("{field}: {detail}") };
        match (self.manner, kleene) {
            (Manner::Kleene, Some(status @ 422)) => {
                let source = json!({ "pointer": pointer });
                let error = json!({ "title": "Invalid value", "source": source, "detail": detail });
                reply(status, json!({ "errors": [error] }))
            }
            (Manner::Kleene, Some(status)) => {
                reply(status, json!({ "message": digestible(&message) }))
            }
            _ => {
                let code = ErrorCode::Invalid;
                reply(code.http_status(), ErrorBody { message, code, causes: Vec::new() })
            }
        }
    }

    /// Whether a field of the query that the verb does not know is an error. Where Kleene knows no
    /// field at all, its clients' are ignored.
    pub(super) fn refuses_unknown_fields(&self) -> bool {
        use Verb::{ContainerList, ExecStop, ImagePrune, ImageTag};
        self.manner != Manner::Kleene
            || matches!(self.verb, ContainerList | ExecStop | ImagePrune | ImageTag)
    }
}

fn reply(status: u16, body: impl Serialize) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(body)).into_response()
}

fn under_way(operation: &Operation) -> Response {
    let location = with_name(OPERATION, operation.id.as_str());
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response()
}

/// Kleene's own text for an error of a verb, where it has one. Its client's users and tests know it.
fn kleene_text(verb: Verb, error: &Error) -> Option<String> {
    Some(match (verb, error) {
        (Verb::VolumeInspect | Verb::VolumeRemove, Error::NotFound { .. }) => {
            "No such volume".into()
        }
        (
            Verb::ContainerInspect | Verb::ContainerStop | Verb::ExecCreate,
            Error::NotFound { kind: Kind::Container, .. },
        ) => "container not found".into(),
        (Verb::ContainerRemove, Error::NotFound { .. }) => "no such container".into(),
        (Verb::ContainerUpdate, Error::NotFound { kind: Kind::Container, name }) => {
            format!("no such container '{}'", digestible(name))
        }
        (Verb::ContainerCreate, Error::NotFound { kind: Kind::Image, name }) => {
            format!("no such image '{}'", digestible(name))
        }
        (Verb::ContainerCreate | Verb::ContainerUpdate, Error::Name(error))
            if error.what == "container name" =>
        {
            format!("{} does not match /?[a-zA-Z0-9][a-zA-Z0-9_.-]+$", digestible(&error.text))
        }
        (Verb::ContainerStop, Error::State { .. }) => "container not running".into(),
        (Verb::ContainerRemove, Error::State { .. }) => {
            "you cannot remove a running container".into()
        }
        (Verb::ImageInspect | Verb::ImageTag, Error::NotFound { .. }) => "image not found".into(),
        (Verb::ImageRemove, Error::NotFound { name, .. }) => {
            format!("Error: No such image: {}\n", digestible(name))
        }
        (Verb::NetworkRemove, Error::NotFound { .. }) => "network not found.".into(),
        (_, Error::NotFound { kind: Kind::Network, .. }) => "network not found".into(),
        _ => return None,
    })
}

/// The text without what Kleene's client would take for markup: `[word]` vanishes or kills it, and
/// `:word:` becomes a picture. Control characters are escaped.
fn digestible(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut after_colon = false;
    for c in text.chars() {
        match c {
            '[' => safe.push('('),
            ']' => safe.push(')'),
            // A second colon after a word would make a picture's name of it.
            ':' if after_colon => safe.push_str(" :"),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
        after_colon = c == ':' || after_colon && !c.is_whitespace();
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manner(values: &[&'static str]) -> Manner {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PREFER, value.parse().unwrap());
        }
        Manner::of(&headers)
    }

    #[test]
    fn the_manner_is_in_the_header() {
        assert_eq!(manner(&[kleened_api::routes::PREFER_EXACT]), Manner::Async);
        assert_eq!(manner(&["respond-async", "Exact-Status, wait=10"]), Manner::Async);
        assert_eq!(manner(&["exact-status"]), Manner::Exact);
        assert_eq!(manner(&["respond-async"]), Manner::Kleene);
        assert_eq!(manner(&["exact-statusses", "foo=\"exact-status\""]), Manner::Kleene);
        assert_eq!(manner(&[]), Manner::Kleene);
    }

    #[test]
    fn nothing_is_taken_for_markup() {
        for (text, safe) in [
            ("cannot remove volume db: in use: by web", "cannot remove volume db: in use: by web"),
            ("[b]x[/b]", "(b)x(/b)"),
            ("a:smile:b", "a:smile :b"),
            ("a:b:c:d", "a:b :c :d"),
            ("::x", ": :x"),
            ("web:latest", "web:latest"),
            ("a\u{1b}[2J\n", "a\\u{1b}(2J\\n"),
        ] {
            assert_eq!(digestible(text), safe);
        }
    }
}
