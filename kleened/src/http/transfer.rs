//! Bytes between a connection, which is async, and the engine, which reads and writes blocking.

use std::io::{self, Read, Write};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::engine::Pending;
use crate::error::{Error, Result, one_line};

/// How many pieces are under way between the two sides.
const PIECES: usize = 8;

/// How large a piece that the engine writes is, in bytes.
const PIECE: usize = 64 << 10;

/// How long a client may go on sending what nobody wants any more before it is answered.
const GRACE: Duration = Duration::from_secs(5);

/// A body to read. Where it broke off, reading fails: a part is never taken for the whole.
#[derive(Debug)]
pub(super) struct BodyReader {
    pieces: Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    let text = "the client broke off before it had sent everything";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
            }
        }
        let taken = self.current.split_to(buffer.len().min(self.current.len()));
        if let Some(buffer) = buffer.get_mut(..taken.len()) {
            buffer.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}

/// The two ends for a request's body: what the engine reads, and what [`pump`] fills.
pub(super) fn body_pipe() -> (BodyReader, BodyPipe) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (BodyReader { pieces, current: Bytes::new(), ended: false }, BodyPipe(sender))
}

/// Where a request's body goes.
#[derive(Debug)]
pub(super) struct BodyPipe(Sender<Piece>);

impl BodyPipe {
    /// The body has gone to the reader; or the reader wants no more of it, and the rest was drained.
    /// Where the client breaks off, or the caller stops waiting, the reader is told.
    pub(super) async fn fill(self, body: Body) {
        let mut body = body.into_data_stream();
        loop {
            let piece = match body.next().await {
                Some(Ok(bytes)) => Piece::Data(bytes),
                None => Piece::End,
                Some(Err(_)) => return,
            };
            let ended = matches!(piece, Piece::End);
            if self.0.send(piece).await.is_err() {
                return drain(body).await;
            }
            if ended {
                return;
            }
        }
    }
}

/// The client has sent what nobody wants, or had a little time to: one that is answered while it
/// sends may not see the answer.
pub(super) async fn drain(mut body: BodyDataStream) {
    let rest = async { while let Some(Ok(_)) = body.next().await {} };
    let _ = tokio::time::timeout(GRACE, rest).await;
}

/// What the engine writes to. Once the client has gone, writing fails.
#[derive(Debug)]
pub(super) struct PieceWriter {
    pieces: Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        let room = PIECE - self.buffer.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.pieces.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        // Nobody is left to tell; the verb's own result says whether all was written.
        let _ = self.flush();
    }
}

/// The two ends for an answer's body: what the engine writes to, and what [`PieceReader::body`]
/// makes an answer of.
pub(super) fn answer_pipe() -> (PieceWriter, PieceReader) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    (PieceWriter { pieces, buffer: Vec::new() }, PieceReader(receiver))
}

/// What the engine has written.
#[derive(Debug)]
pub(super) struct PieceReader(Receiver<Bytes>);

impl PieceReader {
    /// A body of what the verb writes, which breaks off where the verb fails on the way.
    ///
    /// # Errors
    ///
    /// The verb's, where it fails before it has written anything.
    pub(super) async fn body(mut self, verb: Pending<()>) -> Result<Body> {
        match self.0.recv().await {
            Some(first) => Ok(Body::from_stream(self.stream(first, verb))),
            None => verb.done().await.map(|()| Body::empty()),
        }
    }

    fn stream(self, first: Bytes, verb: Pending<()>) -> impl Stream<Item = io::Result<Bytes>> {
        let start = stream::once(async { Ok(first) });
        let rest = stream::unfold((self.0, Some(verb)), async |(mut pieces, mut verb)| {
            if let Some(piece) = pieces.recv().await {
                return Some((Ok(piece), (pieces, verb)));
            }
            let error = verb.take()?.done().await.err()?;
            tracing::error!("{}", one_line(&error));
            Some((Err(broken_off(&error)), (pieces, verb)))
        });
        start.chain(rest)
    }
}

fn broken_off(error: &Error) -> io::Error {
    io::Error::other(one_line(error))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn read_all(mut reader: BodyReader) -> impl Future<Output = io::Result<Vec<u8>>> {
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        async { read.await.unwrap() }
    }

    #[tokio::test]
    async fn a_whole_body_arrives() {
        let pieces = (0..100_u8).map(|n| io::Result::Ok(Bytes::from(vec![n; 1000])));
        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        pipe.fill(Body::from_stream(stream::iter(pieces))).await;
        let bytes = read.await.unwrap();
        assert_eq!(bytes.len(), 100_000);
        assert!(bytes.chunks(1000).zip(0..).all(|(piece, n)| piece == [n; 1000]));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        let cut = [Ok(Bytes::from_static(b"part")), Err(io::Error::other("cut"))];
        pipe.fill(Body::from_stream(stream::iter(cut))).await;
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        let never = stream::once(async { io::Result::Ok(Bytes::from_static(b"part")) })
            .chain(stream::pending());
        {
            let mut fill = std::pin::pin!(pipe.fill(Body::from_stream(never)));
            // The client hangs up: the server drops the request's future.
            assert_eq!(fill.as_mut().now_or_never(), None);
        }
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_written_is_cut_into_pieces() {
        let (mut writer, PieceReader(mut pieces)) = answer_pipe();
        let write = tokio::task::spawn_blocking(move || {
            writer.write_all(&[7; 3 * PIECE + 5]).unwrap();
        });
        let mut lengths = Vec::new();
        while let Some(piece) = pieces.recv().await {
            lengths.push(piece.len());
        }
        write.await.unwrap();
        assert_eq!(lengths, [PIECE, PIECE, PIECE, 5]);
    }

    #[tokio::test]
    async fn a_client_that_has_gone_ends_the_writing() {
        let (mut writer, reader) = answer_pipe();
        drop(reader);
        let write = tokio::task::spawn_blocking(move || writer.write_all(&[7; 2 * PIECE]));
        assert_eq!(write.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
