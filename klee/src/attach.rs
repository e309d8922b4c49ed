//! The connection to a process: its input and output, the terminal, signals.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use kleened_api::exec::{self, ExecStart, MessageType};
use kleened_api::stream::{Channel, Exit};
use kleened_api::{ErrorBody, ErrorCode, routes};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Client, interruptible};
use crate::exec::AttachOptions;
use crate::failure::Failure;
use crate::signals::{ENDING, Signals};
use crate::terminal::{self, RawMode};
use crate::websocket::{self, Socket, json};

type Sink = SplitSink<Socket, Message>;
type Source = SplitStream<Socket>;

/// What becomes of a process whose start is not waited for.
const STARTS: &str = "kleened goes on starting the process";
/// After so many requests to end that the process did not follow, klee leaves it.
const PATIENCE: usize = 3;
/// How long a connection may take to close.
const FAREWELL: Duration = Duration::from_secs(1);

/// Starts a process that klee does not stay with.
pub(crate) async fn start(client: &Client, start: &ExecStart) -> Result<(), Failure> {
    let started = async {
        let mut source = open(client, start).await?.split().1;
        match first(&mut source).await? {
            Message::Close(Some(CloseFrame {
                code: CloseCode::Away | CloseCode::Normal, ..
            })) => Ok(()),
            message => Ok(output(&mut source, message).await.map(drop)?),
        }
    };
    interruptible(started, STARTS).await.map_err(Failure::not_started)
}

/// Starts a process and stays with it until it ends.
pub(crate) async fn stay(
    client: &Client,
    start: &ExecStart,
    options: &AttachOptions,
) -> Result<Exit, Failure> {
    let begun = async {
        let (mut sink, mut source) = open(client, start).await?.split();
        if let Some(size) = resize().filter(|_| options.tty) {
            // It waits in the connection until there is a terminal.
            sink.send(size).await.map_err(|error| broken(&error))?;
        }
        let message = first(&mut source).await?;
        Ok((sink, source, message))
    };
    let (mut sink, mut source, message) =
        interruptible(begun, STARTS).await.map_err(Failure::not_started)?;

    let raw = if options.tty && options.interactive { RawMode::of_stdin()? } else { None };
    let stdin =
        if options.interactive { Some(terminal::read_ahead(terminal::stdin()?)) } else { None };
    let (queue, queued) = mpsc::unbounded_channel();
    let end = tokio::select! {
        end = output(&mut source, message) => end.map_err(End::not_started),
        never = input(&mut sink, stdin, queued) => match never {},
        failure = signals(&queue, options.tty) => Err(End::Other(failure)),
    };
    drop(raw);
    // The process can't write any more, and should learn of it as it would from a pipe.
    if let Err(End::Unwritable(_)) = end {
        let _ = timeout(FAREWELL, sink.send(frame(Channel::Signal, b"PIPE"))).await;
    }
    let _ = timeout(FAREWELL, sink.close()).await;
    Ok(end?)
}

/// Why the connection ends before the process.
enum End {
    /// What it writes can't be written here.
    Unwritable(Failure),
    Other(Failure),
}

impl End {
    fn not_started(self) -> Self {
        match self {
            Self::Unwritable(failure) => Self::Unwritable(failure.not_started()),
            Self::Other(failure) => Self::Other(failure.not_started()),
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl From<End> for Failure {
    fn from((End::Unwritable(failure) | End::Other(failure)): End) -> Self {
        failure
    }
}

async fn open(client: &Client, start: &ExecStart) -> Result<Socket, Failure> {
    websocket::open(client, routes::EXEC_START, start).await
}

fn broken(error: &Error) -> Failure {
    websocket::broken(error, lost)
}

fn lost() -> Failure {
    Failure::daemon_gone("how the process ends is not known; containers go on")
}

fn frame(channel: Channel, payload: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(payload.len() + 1);
    bytes.push(channel as u8);
    bytes.extend_from_slice(payload);
    Message::binary(bytes)
}

/// The window's size, where there is a window.
fn resize() -> Option<Message> {
    let size = json(&terminal::window_size()?).ok()?;
    Some(frame(Channel::Resize, size.as_bytes()))
}

/// The next message that is none of the connection's own.
async fn first(source: &mut Source) -> Result<Message, Failure> {
    websocket::next(source).await.map_err(|error| broken(&error))
}

/// Writes what the process writes, from `message` on, until its end is known.
async fn output(source: &mut Source, mut message: Message) -> Result<Exit, End> {
    let mut error: Option<ErrorBody> = None;
    loop {
        match message {
            Message::Binary(mut bytes) if !bytes.is_empty() => {
                match Channel::try_from(bytes.split_to(1).first().copied().unwrap_or_default()) {
                    Ok(channel @ (Channel::Stdout | Channel::Stderr)) => {
                        terminal::write(channel, bytes).await.map_err(|failure| {
                            End::Unwritable(failure.because("the process gets SIGPIPE"))
                        })?;
                    }
                    Ok(Channel::Exit) => {
                        let exit: Exit = crate::print::parse(&bytes)?;
                        return match error {
                            None => Ok(exit),
                            Some(error) => Err(Failure::from(error)
                                .exiting(u8::try_from(exit.code).unwrap_or(u8::MAX))
                                .into()),
                        };
                    }
                    // Channels that a newer daemon may have.
                    _ => {}
                }
            }
            Message::Text(text) => error = read_error(&text).or(error),
            Message::Close(reason) => {
                let said = reason.and_then(|frame| closing_words(&frame.reason));
                return Err(match (error, said) {
                    (Some(error), _) => error.into(),
                    (None, Some(said)) => Failure::new(ErrorCode::Unavailable, said),
                    (None, None) => lost(),
                }
                .into());
            }
            _ => {}
        }
        message = first(source).await?;
    }
}

/// What a close frame says.
fn closing_words(reason: &str) -> Option<String> {
    serde_json::from_str::<exec::Message>(reason).ok().map(|message| message.message)
}

/// The error that a text of the daemon reports; `None` for other texts.
fn read_error(text: &str) -> Option<ErrorBody> {
    let plain = |message: &str| ErrorBody {
        message: message.to_owned(),
        code: ErrorCode::Internal,
        causes: Vec::new(),
    };
    match serde_json::from_str::<exec::Message>(text) {
        Ok(message) if message.msg_type == MessageType::Error => Some(plain(&message.message)),
        Ok(_) => None,
        Err(_) if text.is_empty() => None,
        Err(_) => Some(
            serde_json::from_str(text)
                .unwrap_or_else(|_| plain(text.strip_prefix("error: ").unwrap_or(text).trim_end())),
        ),
    }
}

/// Sends input, and what is queued first. Where the connection takes no more, its other direction
/// says why.
async fn input(
    sink: &mut Sink,
    mut stdin: Option<mpsc::Receiver<io::Result<Bytes>>>,
    mut queued: mpsc::UnboundedReceiver<Message>,
) -> Infallible {
    loop {
        let chunk = async {
            match &mut stdin {
                Some(chunks) => chunks.recv().await,
                None => pending().await,
            }
        };
        let message = tokio::select! {
            biased;
            Some(message) = queued.recv() => message,
            chunk = chunk => match chunk {
                Some(Ok(bytes)) => frame(Channel::Stdin, &bytes),
                // A terminal that has gone ends the input too.
                None | Some(Err(_)) => {
                    stdin = None;
                    frame(Channel::Stdin, b"")
                }
            },
        };
        if sink.send(message).await.is_err() {
            pending::<()>().await;
        }
    }
}

/// Queues every signal and every change of the window for the process. Ends when the process was
/// asked to end often enough.
async fn signals(queue: &mpsc::UnboundedSender<Message>, tty: bool) -> Failure {
    let mut signals = Signals::watch(
        &[
            ENDING,
            &[
                ("QUIT", SignalKind::quit()),
                ("USR1", SignalKind::user_defined1()),
                ("USR2", SignalKind::user_defined2()),
                ("WINCH", SignalKind::window_change()),
            ],
        ]
        .concat(),
    );
    let mut asked = 0;
    loop {
        let (name, number) = signals.next().await;
        let message = match name {
            "WINCH" => resize().filter(|_| tty),
            name => Some(frame(Channel::Signal, name.as_bytes())),
        };
        asked += usize::from(matches!(name, "INT" | "TERM"));
        if asked == PATIENCE {
            return Failure::interrupted(number, "the process goes on");
        }
        if let Some(message) = message {
            // Its other end lives as long as this.
            let _ = queue.send(message);
        }
    }
}
