//! Websockets in Kleene's manner: the upgrade, the first frame, the close frame with its reason.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kleened_api::exec::{self, MessageType};
use kleened_api::stream::SUBPROTOCOL;

use super::connection::Place;

/// The longest frame that a client may send, in bytes.
const FRAME_LIMIT: usize = 1 << 20;

/// The longest reason of a close frame, in bytes: a control frame holds 125, the code among them.
const REASON_LIMIT: usize = 123;

/// How long a client may take to answer a close frame.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to say what it wants.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);

/// Why a websocket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum CloseCode {
    /// All is done.
    Done = 1000,
    /// What was started goes on without this connection.
    GoesOn = 1001,
    /// The client's frames make no sense.
    Protocol = 1002,
    /// It failed.
    Failed = 1011,
}

/// A request to become a websocket. Any other request to the same path gets 426, and one that is
/// malformed 400.
pub(super) struct Upgrade {
    request: WebSocketUpgrade,
    /// Taken as long as there is the websocket.
    place: Option<Place>,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        if !parts.headers.contains_key(header::UPGRADE) {
            let headers = [(header::UPGRADE, "websocket"), (header::CONNECTION, "upgrade")];
            let text = "this path is a websocket";
            return Err((StatusCode::UPGRADE_REQUIRED, headers, text).into_response());
        }
        let place = parts.extensions.get().cloned();
        WebSocketUpgrade::from_request_parts(parts, state)
            .await
            .map(|request| Self { request, place })
            .map_err(|error| (StatusCode::BAD_REQUEST, error.body_text()).into_response())
    }
}

impl Upgrade {
    /// The answer that makes it a websocket, which `serve` then serves.
    pub(super) fn run<F, S>(self, serve: F) -> Response
    where
        F: FnOnce(WebSocket) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let Self { request, place } = self;
        request
            .protocols([SUBPROTOCOL])
            .max_frame_size(FRAME_LIMIT)
            .max_message_size(FRAME_LIMIT)
            .read_buffer_size(16 << 10)
            .write_buffer_size(0)
            .on_upgrade(async move |socket| {
                let _place = place;
                serve(socket).await;
            })
    }
}

/// The first frame with content; `None` where the client has gone or sends none.
pub(super) async fn first(client: &mut WebSocket) -> Option<Vec<u8>> {
    tokio::time::timeout(FIRST_PATIENCE, content(client)).await.ok()?
}

async fn content(client: &mut WebSocket) -> Option<Vec<u8>> {
    loop {
        match client.recv().await?.ok()? {
            Message::Text(text) => return Some(text.as_bytes().to_vec()),
            Message::Binary(bytes) => return Some(bytes.into()),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return None,
        }
    }
}

/// The first frame that Kleene's client expects.
pub(super) fn starting() -> Message {
    Message::text(json(MessageType::Starting, "", ""))
}

/// The connection is closed, and the client had the time to say that it knows. What it sent in
/// between is lost.
pub(super) async fn close(client: WebSocket, code: CloseCode, kind: MessageType, why: &str) {
    close_with(client, code, kind, why, "").await;
}

/// As [`close`], with something for a program in the reason.
pub(super) async fn close_with(
    mut client: WebSocket,
    code: CloseCode,
    kind: MessageType,
    why: &str,
    data: &str,
) {
    let frame = CloseFrame { code: code as u16, reason: reason(kind, why, data) };
    let farewell = async {
        if client.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = client.recv().await {}
        }
    };
    // A client that does not answer is left to itself.
    let _ = tokio::time::timeout(CLOSE_PATIENCE, farewell).await;
}

/// The reason as JSON, with as much of the message as a close frame can hold.
fn reason(kind: MessageType, message: &str, data: &str) -> Utf8Bytes {
    let mut message = message.to_owned();
    loop {
        let text = json(kind, &message, data);
        if text.len() <= REASON_LIMIT || message.pop().is_none() {
            return text.into();
        }
    }
}

fn json(msg_type: MessageType, message: &str, data: &str) -> String {
    let message = exec::Message { msg_type, message: message.to_owned(), data: data.to_owned() };
    // A struct of texts always has a JSON form.
    serde_json::to_string(&message).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit() {
        let longest = "executable 0123456789ab and its container exited with exit-code 255";
        let text = reason(MessageType::Closing, longest, "");
        assert!(text.contains(longest), "{text}");
        for message in ["x".repeat(500), "\"".repeat(500), "\u{1}".repeat(500), "é".repeat(500)] {
            let text = reason(MessageType::Error, &message, "");
            assert!((100..=REASON_LIMIT).contains(&text.len()), "{text}");
            let read: exec::Message = serde_json::from_str(&text).unwrap();
            assert!(message.starts_with(&read.message));
        }
    }
}
