//! A client that has an image made and hears how far that is: `/images/create` in its two forms,
//! Kleene's and that of [`ImageEvent`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, WebSocket};
use kleened_api::exec::MessageType;
use kleened_api::image::{ImageCreateConfig, ImageEvent};
use kleened_api::{ErrorBody, ErrorCode, Id};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::request::{Malformed, parse};
use super::socket::{self, CloseCode};
use super::transfer::Stopping;
use crate::engine::{Engine, Note, Pending};
use crate::error::{Error, Kind, Result, one_line};

/// How often Kleene's client, which shows every text it gets, is told how much has come.
const TELL: Duration = Duration::from_secs(5);

/// How a connection is spoken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Texts to show, and the end in the close frame's reason.
    Kleene,
    /// Every text frame an [`ImageEvent`].
    Events,
}

/// Makes what the client's first frame asks for. Where the client goes before it is made, it is taken
/// back.
pub(super) async fn run(engine: Arc<Engine>, mut client: WebSocket, mut stopping: Stopping) {
    let form = if client.protocol().is_some() { Form::Events } else { Form::Kleene };
    let first = tokio::select! {
        first = socket::first(&mut client) => first,
        () = stopping.come() => None,
    };
    let Some(first) = first else { return };
    let config = match parse::<ImageCreateConfig>(&first) {
        Ok(config) => config,
        Err(malformed) => return refuse(client, form, malformed).await,
    };
    if form == Form::Kleene && client.send(socket::starting()).await.is_err() {
        return;
    }
    let of_dataset = config.method.is_of_dataset();
    let (sender, notes) = mpsc::unbounded_channel();
    let made = match engine.create_image(config, sender) {
        Ok(pending) => match follow(&mut client, form, notes, pending, stopping).await {
            Some(made) => made,
            None => return,
        },
        Err(error) => Err(error),
    };
    match (made, form) {
        (Ok(id), Form::Kleene) => {
            let (code, kind) = (CloseCode::Done, MessageType::Closing);
            socket::close_with(client, code, kind, "image created", &id).await;
        }
        (Ok(id), Form::Events) => {
            if let Ok(id) = id.parse::<Id>()
                && client.send(event(&ImageEvent::Created(id))).await.is_ok()
            {
                socket::close(client, CloseCode::Done, MessageType::Closing, "image created").await;
            }
        }
        (Err(error), Form::Kleene) => {
            let why = match &error {
                Error::NotFound { kind: Kind::Dataset, .. } if of_dataset => {
                    "invalid dataset".to_owned()
                }
                error => one_line(error),
            };
            if client.send(Message::text(why.clone())).await.is_ok() {
                let why = format!("image creation failed: {why}");
                socket::close(client, CloseCode::Failed, MessageType::Error, &why).await;
            }
        }
        (Err(error), Form::Events) => fail(client, error.body()).await,
    }
}

/// Tells the client of what becomes known, until the end. `None` where the client goes before that:
/// then what was begun was taken back.
async fn follow(
    client: &mut WebSocket,
    form: Form,
    mut notes: UnboundedReceiver<Note>,
    pending: Pending<String>,
    mut stopping: Stopping,
) -> Option<Result<String>> {
    let mut told = Instant::now();
    let mut stops = false;
    loop {
        let note = tokio::select! {
            note = notes.recv() => note,
            received = client.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    pending.cancel();
                    return None;
                }
                // There is nothing that it could say.
                Some(Ok(_)) => continue,
            },
            () = stopping.come(), if !stops => {
                pending.cancel();
                stops = true;
                continue;
            }
        };
        let message = match (note, form) {
            // Whoever tells has come to its end.
            (None, _) => {
                return Some(match pending.done().await {
                    Err(Error::Cancelled) if stops => Err(Error::Stopping),
                    made => made,
                });
            }
            (Some(Note::Line(line)), Form::Events) => event(&ImageEvent::Line(line)),
            (Some(Note::Line(line)), Form::Kleene) => Message::text(line + "\n"),
            (Some(Note::Bytes { done, total }), Form::Events) => {
                event(&ImageEvent::Bytes { done, total })
            }
            (Some(Note::Bytes { done, total }), Form::Kleene) => {
                if told.elapsed() < TELL {
                    continue;
                }
                told = Instant::now();
                let total = total.map(|total| format!(" of {}", total >> 20)).unwrap_or_default();
                Message::text(format!("{}{total} MiB...\n", done >> 20))
            }
        };
        if client.send(message).await.is_err() {
            pending.cancel();
            return None;
        }
    }
}

async fn refuse(mut client: WebSocket, form: Form, malformed: Malformed) {
    let message = malformed.of_socket();
    if form == Form::Events {
        let body = ErrorBody { message, code: ErrorCode::Invalid, causes: Vec::new() };
        return fail(client, body).await;
    }
    if client.send(Message::text(message)).await.is_ok() {
        let why = "invalid parameters";
        socket::close(client, CloseCode::Protocol, MessageType::Error, why).await;
    }
}

async fn fail(mut client: WebSocket, error: ErrorBody) {
    let message = error.message.clone();
    if client.send(event(&ImageEvent::Failed(error))).await.is_ok() {
        socket::close(client, CloseCode::Failed, MessageType::Error, &message).await;
    }
}

fn event(event: &ImageEvent) -> Message {
    // An enum of texts and numbers always has a JSON form.
    Message::text(serde_json::to_string(event).unwrap_or_default())
}
