//! Reading of requests: the name in the path, the query, the body. What can't be read is answered
//! in the client's manner, in Kleene's words where it has some.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::value::Error as FieldsError;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, Visitor};
use serde_path_to_error::{Path as FieldPath, Segment};
use tokio::time::timeout;

use super::prefer::Call;

/// How long a body that is JSON may be, in bytes.
const BODY_LIMIT: usize = 8_000_000;

/// How long it may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// The name in the path, decoded.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

/// The name in the path of a volume or container: where it says no project, in the request's.
#[derive(Debug)]
pub(super) struct Scoped(pub(super) String);

/// The query.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

/// The body, from JSON.
#[derive(Debug)]
pub(super) struct Sent<T>(pub(super) T);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let call = call(parts, state).await?;
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => {
                let detail = "the name in the path is not UTF-8";
                Err(call.malformed(&Malformed::new(Flaw::Value, "/name", detail)))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Scoped {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let Name(name) = Name::from_request_parts(parts, state).await?;
        let call = call(parts, state).await?;
        Ok(Self(call.scoped(name)))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let call = call(parts, state).await?;
        let query = parts.uri.query().unwrap_or_default();
        let known = fields::<T>();
        let read = || {
            let pairs: Vec<(String, String)> = read(serde_urlencoded::Deserializer::new(
                form_urlencoded::parse(query.as_bytes()),
            ))?;
            let unknown = pairs.iter().find(|(field, _)| !known.contains(&field.as_str()));
            if let Some((field, _)) = unknown.filter(|_| call.refuses_unknown_fields()) {
                let detail = format!("Unexpected field: {}", field.escape_default());
                return Err(Malformed::new(Flaw::Schema, "/", detail));
            }
            read(serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes())))
        };
        read().map(Self).map_err(|malformed| call.malformed(&malformed))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let call = call(&mut parts, state).await?;
        let refused = |flaw, detail: &str| call.malformed(&Malformed::new(flaw, "/", detail));
        let media_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        match media_type.map(|value| value.split(|byte| *byte == b';').next().unwrap_or(value)) {
            Some(value) if value.trim_ascii().eq_ignore_ascii_case(b"application/json") => {}
            Some(_) => {
                return Err(refused(Flaw::Media, "the content-type must be application/json"));
            }
            None => return Err(refused(Flaw::Schema, "Missing header: content-type")),
        }
        let body = match timeout(BODY_PATIENCE, to_bytes(body, BODY_LIMIT)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                return Err(refused(Flaw::Length, "the body broke off or has over 8000000 bytes"));
            }
            Err(_) => return Err(refused(Flaw::Late, "the body took over 60 seconds")),
        };
        parse(&body).map(Self).map_err(|malformed| call.malformed(&malformed))
    }
}

async fn call<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Call, Response> {
    Call::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)
}

/// A request that is not of the right shape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// In which way.
    pub(super) flaw: Flaw,
    /// The field, as `/mounts/0/type`.
    pub(super) pointer: String,
    /// What is wrong with it.
    pub(super) detail: String,
}

/// What can be wrong with a request's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The body is no JSON.
    Syntax,
    /// The body did not come in time.
    Late,
    /// The body is too long.
    Length,
    /// The body says to be something else than JSON.
    Media,
    /// A field is missing, unknown or of another type.
    Schema,
    /// A field of the right type breaks a rule that Kleene does not have.
    Value,
}

impl Malformed {
    fn new(flaw: Flaw, pointer: &str, detail: impl Into<String>) -> Self {
        Self { flaw, pointer: pointer.to_owned(), detail: detail.into() }
    }

    /// A field that must be there and is not.
    pub(super) fn missing(field: &str) -> Self {
        Self::new(Flaw::Schema, &format!("/{field}"), format!("Missing field: {field}"))
    }

    /// In Kleene's words for what comes on a websocket.
    pub(super) fn of_socket(&self) -> String {
        let Self { flaw, pointer, detail } = self;
        match (flaw, pointer.trim_start_matches('/')) {
            (Flaw::Syntax, _) => format!("invalid json: {detail}"),
            (_, "") => format!("invalid parameters: {detail}"),
            _ if detail.starts_with("Missing") => format!("invalid parameters: {detail}"),
            (_, field) => format!("invalid parameters: {field}: {detail}"),
        }
    }
}

/// Reads JSON, of which the outermost value is an object.
///
/// # Errors
///
/// [`Malformed`].
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    let syntax = |error: serde_json::Error| Malformed::new(Flaw::Syntax, "/", error.to_string());
    serde_json::from_slice::<IgnoredAny>(body).map_err(syntax)?;
    // Serde would take an array for the fields in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Malformed::new(Flaw::Schema, "/", "Invalid object. Got: array"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        if !error.inner().is_data() {
            return syntax(error.into_inner());
        }
        let text = error.inner().to_string();
        // The place in the text says nothing to a person who did not write it.
        let text = text.rfind(" at line ").and_then(|end| text.get(..end)).unwrap_or(&text);
        explain(error.path(), text)
    })
}

/// Reads fields.
fn read<'de, T: DeserializeOwned>(
    fields: impl Deserializer<'de, Error = FieldsError>,
) -> Result<T, Malformed> {
    serde_path_to_error::deserialize(fields).map_err(|error| Malformed {
        // What is no number is only told by its text.
        flaw: Flaw::Schema,
        ..explain(error.path(), &error.inner().to_string())
    })
}

/// What serde found wrong with a field, in Kleene's words.
fn explain(path: &FieldPath, text: &str) -> Malformed {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Map { key } => pointer.extend(["/", key]),
            Segment::Seq { index } => pointer.extend(["/", &index.to_string()]),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    if let Some(field) = missing {
        pointer.extend(["/", field]);
        return Malformed::new(Flaw::Schema, &pointer, format!("Missing field: {field}"));
    }
    if pointer.is_empty() {
        pointer.push('/');
    }
    let types = |prefix| text.strip_prefix(prefix)?.rsplit_once(", expected ");
    let detail = if let Some(rest) = text.strip_prefix("unknown variant ") {
        format!("Invalid value for enum: {}", rest.replace('`', "'"))
    } else if text == "provided string was not `true` or `false`" {
        "Invalid boolean. Got: string".to_owned()
    } else if let Some((got, expected)) =
        types("invalid type: ").or_else(|| types("invalid value: "))
    {
        match (json_type(expected), json_type(got)) {
            (expected, "null") => format!("null value where {expected} expected"),
            (expected, got) => format!("Invalid {expected}. Got: {got}"),
        }
    } else if text.starts_with("duplicate field ") {
        text.to_owned()
    } else {
        return Malformed::new(Flaw::Value, &pointer, text);
    };
    Malformed::new(Flaw::Schema, &pointer, detail)
}

/// JSON's name for a type that serde names.
fn json_type(serde: &str) -> &str {
    match serde.trim_start_matches("a ").split([' ', '`', '"']).next() {
        Some("sequence") => "array",
        Some("map" | "struct") => "object",
        Some("u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64") => "integer",
        Some("floating") => "number",
        Some(other) if !other.is_empty() => other,
        _ => serde,
    }
}

/// The names of a struct's fields, as serde knows them.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Fields<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Fields<'_> {
        type Error = FieldsError;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, FieldsError> {
            Err(serde::de::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, FieldsError> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    // It always fails: only the names are wanted.
    let _ = T::deserialize(Fields(&mut fields));
    fields
}

#[cfg(test)]
mod tests {
    use kleened_api::container::ContainerConfig;
    use kleened_api::exec::{ExecConfig, ExecStart};
    use kleened_api::volume::{PruneQuery, VolumeConfig};

    use super::*;

    fn refusal<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> (String, String) {
        let Malformed { pointer, detail, .. } = parse::<T>(body.as_bytes()).unwrap_err();
        (pointer, detail)
    }

    #[test]
    fn a_refusal_names_the_field() {
        let (pointer, detail) = refusal::<VolumeConfig>(r#"{"name": "a/b"}"#);
        assert_eq!(pointer, "/name");
        assert!(detail.starts_with("volume name 'a/b' is not allowed: "), "{detail}");
        assert!(!detail.contains("line 1"), "{detail}");
        assert_eq!(
            refusal::<ExecStart>(r#"{"exec_id": "x", "attach": "maybe"}"#),
            ("/attach".into(), "Invalid boolean. Got: string".into())
        );
        assert_eq!(
            refusal::<ExecConfig>("{}"),
            ("/container_id".into(), "Missing field: container_id".into())
        );
        let (pointer, detail) = refusal::<ContainerConfig>(r#"{"mounts": [{"type": "tmpfs"}]}"#);
        assert_eq!(pointer, "/mounts/0/type");
        assert_eq!(detail, "Invalid value for enum: 'tmpfs', expected 'volume' or 'nullfs'");
        for bad in ["", "{", "[]x", "{} {}", "\u{0}", "nul"] {
            assert_eq!(refusal::<ContainerConfig>(bad).0, "/", "{bad:?}");
        }
    }

    #[test]
    fn unknown_fields_of_a_body_are_ignored() {
        let config: ContainerConfig =
            parse(br#"{"container": "x", "name": null, "mounts": null, "persist": "true"}"#)
                .unwrap();
        assert_eq!(config.persist, Some(true));
    }

    #[test]
    fn the_fields_of_a_query_are_known() {
        assert_eq!(fields::<PruneQuery>(), ["dry_run", "all", "all_projects"]);
    }
}
