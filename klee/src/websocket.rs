//! Connections on which the daemon and klee send each other messages.

use futures_util::{SinkExt, Stream, StreamExt};
use hyper::Request;
use hyper::header::{
    HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kleened_api::ErrorCode;
use kleened_api::stream::SUBPROTOCOL;
use serde::Serialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Client, is_end};
use crate::failure::Failure;

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A connection to that path in klee's own manner, on which the request was sent.
pub(crate) async fn open(
    client: &Client,
    path: &str,
    request: &impl Serialize,
) -> Result<Socket, Failure> {
    let key = generate_key();
    let upgrade = Request::get(path)
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let (headers, stream) = client.upgrade(upgrade).await?;
    let accepted = headers.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        || headers.get(SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::as_bytes)
            != Some(SUBPROTOCOL.as_bytes())
    {
        return Err(Failure::new(ErrorCode::Unsupported, "kleened does not speak klee's protocol")
            .because(format!("it knows no {SUBPROTOCOL}")));
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let lost = || Failure::daemon_gone("try again");
    socket.send(Message::text(json(request)?)).await.map_err(|error| broken(&error, lost))?;
    Ok(socket)
}

/// The error for a connection that broke; `lost` where the other end has gone.
pub(crate) fn broken(error: &Error, lost: impl FnOnce() -> Failure) -> Failure {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => lost(),
        Error::Io(error) if is_end(error) => lost(),
        // Its causes stand in its text.
        error => {
            Failure::new(ErrorCode::Unavailable, "the connection to kleened broke").because(error)
        }
    }
}

/// The next message that is none of the connection's own; a close without a reason where there is none.
pub(crate) async fn next(
    source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
) -> Result<Message, Error> {
    while let Some(message) = source.next().await {
        let message = message?;
        if !matches!(message, Message::Ping(_) | Message::Pong(_)) {
            return Ok(message);
        }
    }
    Ok(Message::Close(None))
}

pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::local("cannot write JSON", &error))
}
