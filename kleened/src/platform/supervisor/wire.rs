//! What goes between a supervisor and those who are connected to it.
//!
//! A frame is a byte that says what it is, the payload's length as a big-endian 32-bit number, and
//! the payload. The first six kinds are those of [`Channel`], and a proxy passes their payloads on
//! as they are. A client's first frame is [`Kind::Hello`].
//!
//! An attached client gets the output, and [`Kind::EXIT`] after it. One that is not attached gets
//! [`Kind::EXIT`] as soon as the process has ended. Where the process was the container's first,
//! both get [`Kind::Ended`] when the container has ended and, unless its output waits for a client, its
//! log is complete. Signals and sizes are taken from both.
//! Where the supervisor has nothing more to say, it closes the connection.

use std::io::{self, Read, Write};

use kleened_api::stream::Channel;
use serde::{Deserialize, Serialize};

/// The longest payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What the public stream has too.
    Channel(Channel),
    /// Client to supervisor, the first frame: [`Hello`] as JSON.
    Hello,
    /// Supervisor to client: the container has ended. No payload.
    Ended,
}

impl Kind {
    /// The process's input; an empty payload closes it.
    pub const STDIN: Self = Self::Channel(Channel::Stdin);
    /// The process's output.
    pub const STDOUT: Self = Self::Channel(Channel::Stdout);
    /// The process's error output.
    pub const STDERR: Self = Self::Channel(Channel::Stderr);
    /// [`kleened_api::stream::Exit`] as JSON.
    pub const EXIT: Self = Self::Channel(Channel::Exit);
    /// [`kleened_api::stream::WindowSize`] as JSON.
    pub const RESIZE: Self = Self::Channel(Channel::Resize);
    /// A signal's name.
    pub const SIGNAL: Self = Self::Channel(Channel::Signal);

    /// The byte that stands for it.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Channel(channel) => channel as u8,
            Self::Hello => 6,
            Self::Ended => 7,
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = BadFrame;

    fn try_from(byte: u8) -> Result<Self, BadFrame> {
        match byte {
            6 => Ok(Self::Hello),
            7 => Ok(Self::Ended),
            other => Channel::try_from(other).map(Self::Channel).map_err(BadFrame::Kind),
        }
    }
}

/// How a client introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Whether it wants the output.
    pub attach: bool,
}

/// Bytes that are no frame. Nothing that comes after them can be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// A kind that there is not.
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    /// A payload that is too long.
    #[error("a frame's payload has at most {MAX_PAYLOAD} bytes, this one has {0}")]
    Length(u32),
}

impl From<BadFrame> for io::Error {
    fn from(error: BadFrame) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What comes before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// How many bytes the payload has.
    pub len: usize,
}

impl Header {
    /// How many bytes it has.
    pub const SIZE: usize = 5;

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// An unknown kind, or a payload longer than [`MAX_PAYLOAD`].
    pub fn parse(bytes: [u8; Self::SIZE]) -> Result<Self, BadFrame> {
        let [kind, a, b, c, d] = bytes;
        let kind = Kind::try_from(kind)?;
        let len = u32::from_be_bytes([a, b, c, d]);
        match usize::try_from(len) {
            Ok(len) if len <= MAX_PAYLOAD => Ok(Self { kind, len }),
            _ => Err(BadFrame::Length(len)),
        }
    }

    /// The header's bytes. `len` must be at most [`MAX_PAYLOAD`].
    #[must_use]
    pub fn bytes(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        [self.kind.byte(), a, b, c, d]
    }
}

/// Appends the payload as a frame, or as several where it is too long for one.
pub fn encode(kind: Kind, payload: &[u8], to: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        to.extend(Header { kind, len: part.len() }.bytes());
        to.extend(part);
        rest = after;
        if rest.is_empty() {
            return;
        }
    }
}

/// Takes frames out of bytes that come in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How many of them were taken already.
    taken: usize,
}

impl Decoder {
    /// Takes note of bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend(bytes);
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    ///
    /// See [`Header::parse`]. A repeat says the same.
    pub fn frame(&mut self) -> Result<Option<(Kind, &[u8])>, BadFrame> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let header = Header::parse(*header)?;
        let Some(payload) = rest.get(..header.len) else { return Ok(None) };
        self.taken += Header::SIZE + header.len;
        Ok(Some((header.kind, payload)))
    }
}

/// Sends one payload, see [`encode`]. Blocks.
///
/// # Errors
///
/// What the writer says.
pub fn write(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(Header::SIZE + payload.len());
    encode(kind, payload, &mut bytes);
    to.write_all(&bytes)
}

/// Introduces a client to a supervisor. Blocks.
///
/// # Errors
///
/// As [`write()`].
pub fn greet(to: &mut impl Write, attach: bool) -> io::Result<()> {
    write(to, Kind::Hello, &serde_json::to_vec(&Hello { attach })?)
}

/// The next frame; `None` where the connection was closed between two frames. Blocks.
///
/// # Errors
///
/// What the reader says; `UnexpectedEof` in the middle of a frame; `InvalidData` for [`BadFrame`].
pub fn read(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut header = [0; Header::SIZE];
    let (first, rest) = header.split_at_mut(1);
    loop {
        match from.read(first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    from.read_exact(rest)?;
    let header = Header::parse(header)?;
    let mut payload = vec![0; header.len];
    from.read_exact(&mut payload)?;
    Ok(Some((header.kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_bytes_belong_together() {
        for byte in 0..=7 {
            assert_eq!(Kind::try_from(byte).unwrap().byte(), byte);
        }
        assert_eq!(Kind::try_from(8), Err(BadFrame::Kind(8)));
    }

    #[test]
    fn frames_come_out_whole_however_they_came_in() {
        let long: Vec<u8> = (0..150_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut bytes = Vec::new();
        encode(Kind::STDIN, b"", &mut bytes);
        encode(Kind::STDOUT, &long, &mut bytes);
        encode(Kind::Hello, br#"{"attach":true}"#, &mut bytes);
        for step in [1, 3, 7, 64 * 1024, bytes.len()] {
            let mut decoder = Decoder::default();
            let (mut kinds, mut output) = (Vec::new(), Vec::<u8>::new());
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some((kind, payload)) = decoder.frame().unwrap() {
                    kinds.push(kind.byte());
                    if kind == Kind::STDOUT {
                        output.extend(payload);
                    }
                }
            }
            assert_eq!(kinds, [0, 1, 1, 1, 6], "in steps of {step}");
            assert_eq!(output, long);
        }
        let mut reader = bytes.as_slice();
        assert_eq!(read(&mut reader).unwrap(), Some((Kind::STDIN, Vec::new())));
        assert_eq!(read(&mut reader).unwrap().unwrap().1.len(), MAX_PAYLOAD);
    }

    #[test]
    fn nonsense_is_refused() {
        let too_long = [1, 0, 1, 0, 1];
        assert_eq!(Header::parse(too_long), Err(BadFrame::Length(MAX_PAYLOAD as u32 + 1)));
        let mut decoder = Decoder::default();
        decoder.push(&[9, 0, 0, 0, 0]);
        assert_eq!(decoder.frame(), Err(BadFrame::Kind(9)));
        assert_eq!(decoder.frame(), Err(BadFrame::Kind(9)));
        assert_eq!(read(&mut [1, 0].as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&mut [].as_slice()).unwrap(), None);
    }
}
