//! Reading of requests: the name in the path, the query, the body. What can't be read is answered
//! in the client's manner.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::value::Error as FieldsError;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_path_to_error::Segment;
use tokio::time::timeout;

use super::prefer::{Call, Manner};

/// How long a body that is JSON may be, in bytes.
const BODY_LIMIT: usize = 8_000_000;

/// How long it may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// The name in the path, decoded.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

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
            Err(_) => Err(call.malformed("/name", "the name in the path is not UTF-8")),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let call = call(parts, state).await?;
        let axum::extract::Query(pairs) =
            axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
                .map_err(|error| call.malformed("/", &error.body_text()))?;
        let known = fields::<T>();
        let unknown = pairs.iter().find(|(field, _)| !known.contains(&field.as_str()));
        // Where Kleene knows no field at all it ignores them.
        if let Some((field, _)) = unknown.filter(|_| call.manner != Manner::Kleene) {
            let detail = format!("Unexpected field: {}", field.escape_default());
            return Err(call.malformed("/", &detail));
        }
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| call.malformed("/", &error.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let call = call(&mut parts, state).await?;
        let media_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        match media_type.map(|value| value.split(|byte| *byte == b';').next().unwrap_or(value)) {
            Some(value) if value.trim_ascii().eq_ignore_ascii_case(b"application/json") => {}
            Some(_) => {
                return Err(call.malformed("/", "the content-type must be application/json"));
            }
            None => return Err(call.malformed("/", "Missing header: content-type")),
        }
        let body = match timeout(BODY_PATIENCE, to_bytes(body, BODY_LIMIT)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                return Err(call.malformed("/", "the body broke off or has over 8000000 bytes"));
            }
            Err(_) => return Err(call.malformed("/", "the body took over 60 seconds")),
        };
        parse(&body)
            .map(Self)
            .map_err(|Malformed { pointer, detail }| call.malformed(&pointer, &detail))
    }
}

async fn call<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Call, Response> {
    Call::from_request_parts(parts, state).await.map_err(IntoResponse::into_response)
}

/// JSON that is not of the right shape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The field, as `/mounts/0/type`.
    pub(super) pointer: String,
    /// What is wrong with it.
    pub(super) detail: String,
}

/// Reads JSON.
///
/// # Errors
///
/// [`Malformed`], in Kleene's words where it has some.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let mut pointer = String::new();
        for segment in error.path() {
            match segment {
                Segment::Map { key } => pointer.extend(["/", key]),
                Segment::Seq { index } => pointer.extend(["/", &index.to_string()]),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        let text = error.inner().to_string();
        let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        if let Some(field) = missing {
            pointer.extend(["/", field]);
            return Malformed { pointer, detail: format!("Missing field: {field}") };
        }
        if pointer.is_empty() {
            pointer.push('/');
        }
        // The place in the text says nothing to a person who did not write it.
        let mut detail = match text.rfind(" at line ") {
            Some(end) if error.inner().is_data() => text[..end].to_owned(),
            _ => text,
        };
        if let Some(rest) = detail.strip_prefix("unknown variant ") {
            detail = format!("Invalid value for enum: {}", rest.replace('`', "'"));
        }
        Malformed { pointer, detail }
    })?;
    json.end().map_err(|error| Malformed { pointer: "/".into(), detail: error.to_string() })?;
    Ok(value)
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
        let Malformed { pointer, detail } = parse::<T>(body.as_bytes()).unwrap_err();
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
            ("/attach".into(), "Invalid boolean".into())
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
        assert_eq!(fields::<PruneQuery>(), ["dry_run", "all"]);
    }
}
