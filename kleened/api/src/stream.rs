//! The framed stream that `klee` asks for on `/exec/start`, and the one that logs come in.
//!
//! A client that offers the websocket subprotocol [`SUBPROTOCOL`] gets binary frames whose first
//! byte is a [`Channel`] and whose rest is the payload. One that offers none gets what Kleene's
//! client expects: output as it comes, and the end in the close reason.
//!
//! With the subprotocol, in this order:
//!
//! 1. The client sends [`ExecStart`](crate::exec::ExecStart) as text.
//! 2. Attached and started, the daemon sends a text frame: [`Message`](crate::exec::Message) of type
//!    `starting`. Detached and started, it closes with 1001. Where it can't start, it sends a text
//!    frame with an [`ErrorBody`](crate::ErrorBody), then, where the program is not there or can't be
//!    run, [`Channel::Exit`] with 127 or 126, and closes with 1011.
//! 3. Output comes as [`Channel::Stdout`] and [`Channel::Stderr`], input goes as [`Channel::Stdin`].
//! 4. The daemon sends [`Channel::Exit`] when the process has ended and all its output is sent, and
//!    closes with 1000.

use serde::{Deserialize, Serialize};

/// The name that a client offers in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "v1.stream.kleene";

/// The media type of a log: frames of one [`Channel`] byte (`Stdout` or `Stderr`), three zero bytes,
/// the payload's length as a big-endian 32-bit number, and the payload. It is Docker's.
pub const LOG_MEDIA_TYPE: &str = "application/vnd.docker.multiplexed-stream";

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Client to process. An empty payload closes the process's input.
    Stdin = 0,
    /// Process to client. With a terminal, everything that the process writes.
    Stdout = 1,
    /// Process to client.
    Stderr = 2,
    /// Daemon to client, the last frame: [`Exit`] as JSON.
    Exit = 3,
    /// Client to daemon: [`WindowSize`] as JSON.
    Resize = 4,
    /// Client to daemon: the signal's name, such as `TERM`.
    Signal = 5,
}

impl TryFrom<u8> for Channel {
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        Ok(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Exit,
            4 => Self::Resize,
            5 => Self::Signal,
            other => return Err(other),
        })
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0–255, or 128 and the signal's number.
    pub code: i32,
    /// Whether the container ended with it.
    pub container_ended: bool,
}
