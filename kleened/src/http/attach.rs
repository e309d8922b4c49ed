//! A client attached to a process: `/exec/start` in its two forms, which
//! [`kleened_api::stream`] describes.

use std::io;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use kleened_api::exec::{ExecStart, MessageType};
use kleened_api::stream::{Channel, Exit};
use kleened_api::{ErrorBody, ErrorCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::request::{Malformed, parse};
use super::socket::{self, CloseCode};
use super::transfer::Stopping;
use crate::engine::wire::{self, Header, Kind};
use crate::engine::{Attached, Engine};
use crate::error::{self, Error, one_line};

/// How a connection is spoken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Output as it comes, and the end in the close frame's reason.
    Kleene,
    /// Each frame with its channel.
    Framed,
}

/// Starts what the client's first frame names, and goes between the client and the process until
/// either has gone. A process whose client has gone goes on.
pub(super) async fn run(engine: Arc<Engine>, mut client: WebSocket, mut stopping: Stopping) {
    let form = if client.protocol().is_some() { Form::Framed } else { Form::Kleene };
    let first = tokio::select! {
        first = socket::first(&mut client) => first,
        () = stopping.come() => None,
    };
    let Some(first) = first else { return };
    let start = match parse::<ExecStart>(&first) {
        Ok(start) => start,
        Err(malformed) => return refuse_shape(client, form, malformed).await,
    };
    let Attached { stream, container } = match engine.start_exec(&start).await {
        Ok(Some(attached)) => attached,
        Ok(None) => return detached(client).await,
        Err(error) => return refuse_start(client, form, &error, start.attach).await,
    };
    let process = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
    let (reader, writer) = match process {
        Ok(process) => process.into_split(),
        Err(error) => {
            let error = Error::io("attach to", &start.exec_id)(error);
            return refuse_start(client, form, &error, true).await;
        }
    };
    if client.send(socket::starting()).await.is_err() {
        return;
    }
    let (mut sink, mut source) = client.split();
    let end = tokio::select! {
        end = forward_output(reader, &mut sink, form) => end,
        end = forward_input(&mut source, writer, form) => end,
        () = stopping.come() => End::Stopping,
    };
    if let End::Exit(Exit { container_ended: true, .. }) = end {
        // Who is told that it ended may remove it at once.
        engine.settled(&container).await;
    }
    if let Ok(client) = sink.reunite(source) {
        farewell(client, form, &start.exec_id, end).await;
    }
}

/// How a connection came to its end.
#[derive(Debug)]
enum End {
    /// The process ended.
    Exit(Exit),
    /// What watched over the process has gone, and its exit status with it.
    Lost(io::Error),
    /// The client has gone.
    Gone,
    /// The client sent what makes no sense.
    Nonsense,
    /// The daemon stops.
    Stopping,
}

async fn farewell(mut client: WebSocket, form: Form, instance: &str, end: End) {
    if let (End::Exit(exit), Form::Framed) = (&end, form)
        && client.send(exit_frame(*exit)).await.is_err()
    {
        return;
    }
    let (code, kind, why) = match end {
        End::Exit(Exit { code, container_ended: true }) => (
            CloseCode::Done,
            MessageType::Closing,
            format!("executable {instance} and its container exited with exit-code {code}"),
        ),
        End::Exit(Exit { code, container_ended: false }) => (
            CloseCode::Done,
            MessageType::Closing,
            format!("{instance} has exited with exit-code {code}"),
        ),
        End::Lost(error) => {
            let error = Error::io("read the output of", instance)(error);
            tracing::error!("{}", one_line(&error));
            if form == Form::Framed && client.send(in_json(&error.body())).await.is_err() {
                return;
            }
            (CloseCode::Failed, MessageType::Error, one_line(&error))
        }
        End::Gone => return,
        End::Nonsense => (
            CloseCode::Protocol,
            MessageType::Error,
            "a frame for the daemon is binary and starts with its channel: 0, 4 or 5".into(),
        ),
        End::Stopping => (
            CloseCode::GoesOn,
            MessageType::Closing,
            format!("the daemon is stopping, {instance} goes on"),
        ),
    };
    socket::close(client, code, kind, &why).await;
}

async fn refuse_shape(client: WebSocket, form: Form, malformed: Malformed) {
    let message = malformed.of_socket();
    if form == Form::Framed {
        let body = ErrorBody { message, code: ErrorCode::Invalid, causes: Vec::new() };
        return fail(client, &body, None).await;
    }
    socket::close(client, CloseCode::Protocol, MessageType::Error, &message).await;
}

async fn refuse_start(mut client: WebSocket, form: Form, error: &Error, attach: bool) {
    if error.code() == ErrorCode::Internal {
        tracing::error!("{}", one_line(error));
    }
    if form == Form::Framed {
        return fail(client, &error.body(), error.exit_code()).await;
    }
    // Kleene's client takes the first frame for JSON when it is attached.
    if attach && client.send(socket::starting()).await.is_err() {
        return;
    }
    let reason = match error {
        Error::NotFound { kind: error::Kind::Exec, name } => {
            format!("could not find execution instance matching '{}'", name.escape_default())
        }
        Error::NotFound { kind: error::Kind::Container, .. } => "container not found".into(),
        Error::State { kind: error::Kind::Exec, .. } => "executable already started".into(),
        Error::State { kind: error::Kind::Container, state: "is not running", .. } => {
            "cannot start container when 'start_container' is false.".into()
        }
        error => one_line(error),
    };
    if client.send(Message::text(format!("error: {reason}"))).await.is_ok() {
        let why = "error starting exec instance";
        socket::close(client, CloseCode::Failed, MessageType::Error, why).await;
    }
}

/// Tells a framed client of an error, and of the exit status that a shell would have for it.
async fn fail(mut client: WebSocket, error: &ErrorBody, exit_code: Option<i32>) {
    let exit = exit_code.map(|code| exit_frame(Exit { code, container_ended: false }));
    for message in std::iter::once(in_json(error)).chain(exit) {
        if client.send(message).await.is_err() {
            return;
        }
    }
    socket::close(client, CloseCode::Failed, MessageType::Error, &error.message).await;
}

fn exit_frame(exit: Exit) -> Message {
    let mut frame = vec![Channel::Exit as u8];
    // Two numbers always have a JSON form.
    frame.extend(serde_json::to_vec(&exit).unwrap_or_default());
    Message::binary(frame)
}

fn in_json(error: &ErrorBody) -> Message {
    // A struct of texts always has a JSON form.
    Message::text(serde_json::to_string(error).unwrap_or_default())
}

async fn detached(client: WebSocket) {
    // The spelling is Kleene's.
    let why = "succesfully started execution instance in detached mode";
    socket::close(client, CloseCode::GoesOn, MessageType::Closing, why).await;
}

/// What the process writes goes to the client, until the process ends or the client has gone.
async fn forward_output(
    mut process: OwnedReadHalf,
    client: &mut SplitSink<WebSocket, Message>,
    form: Form,
) -> End {
    let (mut out, mut err) = (Text::default(), Text::default());
    let exit = loop {
        let (kind, frame) = match read_frame(&mut process).await {
            Ok(frame) => frame,
            Err(error) => return End::Lost(error),
        };
        let payload = frame.slice(1..);
        let message = match (kind, form) {
            (Kind::STDOUT | Kind::STDERR, Form::Framed) => Some(Message::Binary(frame)),
            (Kind::STDOUT, Form::Kleene) => out.message(&payload),
            (Kind::STDERR, Form::Kleene) => err.message(&payload),
            // It goes out with the farewell, when what has to be tidied up is.
            (Kind::EXIT, _) => break payload,
            _ => None,
        };
        if let Some(message) = message
            && client.send(message).await.is_err()
        {
            return End::Gone;
        }
    };
    for message in [out.rest(), err.rest()].into_iter().flatten() {
        if client.send(message).await.is_err() {
            return End::Gone;
        }
    }
    serde_json::from_slice(&exit).map_or_else(|error| End::Lost(error.into()), End::Exit)
}

/// One frame of the supervisor's: what it is, and a channel's byte with the payload after it.
async fn read_frame(process: &mut OwnedReadHalf) -> io::Result<(Kind, Bytes)> {
    let mut header = [0; Header::SIZE];
    process.read_exact(&mut header).await?;
    let header = Header::parse(header)?;
    let mut frame = vec![0; header.len + 1];
    let (first, payload) = frame.split_at_mut(1);
    first.copy_from_slice(&[header.kind.byte()]);
    process.read_exact(payload).await?;
    Ok((header.kind, frame.into()))
}

/// What the client sends goes to the process, until the client has gone. Once the process reads no
/// more, the rest is lost; its output still comes.
async fn forward_input(
    client: &mut SplitStream<WebSocket>,
    mut process: OwnedWriteHalf,
    form: Form,
) -> End {
    let mut open = true;
    while let Some(Ok(message)) = client.next().await {
        let (channel, payload) = match (message, form) {
            (Message::Close(_), _) => break,
            (Message::Ping(_) | Message::Pong(_), _) => continue,
            (Message::Text(text), Form::Kleene) => (Channel::Stdin, text.into()),
            (Message::Binary(bytes), Form::Kleene) => (Channel::Stdin, bytes),
            (Message::Text(_), Form::Framed) => return End::Nonsense,
            (Message::Binary(mut frame), Form::Framed) => {
                let channel = if frame.is_empty() { None } else { Some(frame.split_to(1)[0]) };
                match channel.map(Channel::try_from) {
                    Some(Ok(channel @ (Channel::Stdin | Channel::Resize | Channel::Signal))) => {
                        (channel, frame)
                    }
                    _ => return End::Nonsense,
                }
            }
        };
        // An empty payload closes the process's input: only a framed client can mean that.
        if open && (form == Form::Framed || !payload.is_empty()) {
            let mut frames = Vec::with_capacity(Header::SIZE + payload.len());
            wire::encode(Kind::Channel(channel), &payload, &mut frames);
            open = process.write_all(&frames).await.is_ok();
        }
    }
    End::Gone
}

/// Output on its way into text frames, which Kleene's client prints; what is no text goes into
/// binary frames, which it writes as they are. A character that a piece ends in the middle of waits
/// for the next piece.
#[derive(Debug, Default)]
struct Text(Vec<u8>);

impl Text {
    fn message(&mut self, piece: &[u8]) -> Option<Message> {
        self.0.extend(piece);
        let whole = match std::str::from_utf8(&self.0) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.0.len(),
        };
        let rest = self.0.split_off(whole);
        let ready = std::mem::replace(&mut self.0, rest);
        match String::from_utf8(ready) {
            Ok(text) if text.is_empty() => None,
            Ok(text) => Some(Message::text(text)),
            Err(error) => Some(Message::binary(error.into_bytes())),
        }
    }

    fn rest(&mut self) -> Option<Message> {
        let rest = std::mem::take(&mut self.0);
        if rest.is_empty() { None } else { Some(Message::binary(rest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_never_cut_and_nothing_is_lost() {
        let mut text = Text::default();
        let all = "aé€😀z".as_bytes();
        let mut shown = String::new();
        for byte in all {
            match text.message(&[*byte]) {
                Some(Message::Text(part)) => shown.push_str(part.as_str()),
                None => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((shown.as_bytes(), text.rest()), (all, None));
    }

    #[test]
    fn what_is_no_text_is_binary() {
        let mut text = Text::default();
        assert_eq!(text.message(b"\xff\xfe"), Some(Message::binary(b"\xff\xfe".to_vec())));
        assert_eq!(text.message(b"a\xe2\x82"), Some(Message::text("a")));
        assert_eq!(text.rest(), Some(Message::binary(b"\xe2\x82".to_vec())));
        assert_eq!(text.message(b"a\xc3"), Some(Message::text("a")));
        assert_eq!(text.message(b"(b"), Some(Message::binary(b"\xc3(b".to_vec())));
        assert_eq!(text.message(b""), None);
    }
}
