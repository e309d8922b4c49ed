//! Bytes between a connection, which is async, and the engine, which reads and writes blocking.

use std::io::{self, Read, Write};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{Stream, StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch;

use crate::engine::Pending;
use crate::error::{Error, Result, one_line};

/// How many pieces are under way between the two sides.
const PIECES: usize = 8;

/// How large a piece that the engine writes is, in bytes.
const PIECE: usize = 64 << 10;

/// How long a client may keep an image's content waiting.
const IDLE: Duration = Duration::from_secs(60);

/// How long a client may go on sending what nobody wants any more before it is answered.
const GRACE: Duration = Duration::from_secs(5);

/// The server's word that it stops.
#[derive(Debug, Clone)]
pub(super) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// The word is `true`.
    pub(super) fn new(word: watch::Receiver<bool>) -> Self {
        Self(word)
    }

    /// Returns when the server stops.
    pub(super) async fn come(&mut self) {
        // It fails only where nobody is left who could stop it.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }

    /// The stream, which breaks off when the server stops.
    pub(super) fn cut<T>(
        self,
        stream: impl Stream<Item = io::Result<T>> + Unpin,
    ) -> impl Stream<Item = io::Result<T>> {
        stream::unfold((Some(self), stream), async |(stopping, mut stream)| {
            let mut stopping = stopping?;
            tokio::select! {
                biased;
                () = stopping.come() => Some((Err(stopped()), (None, stream))),
                item = stream.next() => Some((item?, (Some(stopping), stream))),
            }
        })
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the daemon is stopping")
}

/// When a transfer is cut: the verb behind it holds a lock and keeps the daemon from ending.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    stopping: Stopping,
    idle: Duration,
}

impl Limit {
    /// When the server stops, and when no byte has moved for a while.
    pub(super) fn new(stopping: Stopping) -> Self {
        Self { stopping, idle: IDLE }
    }

    /// What the client does next, unless it takes too long.
    async fn next<T>(&mut self, step: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            () = self.stopping.come() => Err(stopped()),
            step = tokio::time::timeout(self.idle, step) => step.map_err(|_| {
                let text = format!("the client moved nothing for {} seconds", self.idle.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, text)
            }),
        }
    }
}

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
    Cut(io::Error),
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Cut(error)) => return Err(error),
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
    /// Where the client breaks off, the caller stops waiting or the limit is reached, the reader is
    /// told.
    pub(super) async fn fill(self, body: Body, mut limit: Limit) {
        let mut body = body.into_data_stream();
        loop {
            let piece = match limit.next(body.next()).await {
                Ok(Some(Ok(bytes))) => Piece::Data(bytes),
                Ok(None) => Piece::End,
                Ok(Some(Err(_))) => return,
                Err(error) => Piece::Cut(error),
            };
            let ended = !matches!(piece, Piece::Data(_));
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

/// What the engine writes to, on a thread that may block. Once the client has gone or the limit is
/// reached, writing fails.
#[derive(Debug)]
pub(super) struct PieceWriter {
    /// There until writing fails.
    pieces: Option<Sender<Bytes>>,
    buffer: Vec<u8>,
    limit: Limit,
    runtime: Handle,
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
        let pieces = self.pieces.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let sent = self.runtime.block_on(self.limit.next(pieces.send(piece.into())))?;
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.pieces = Some(pieces);
        Ok(())
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        // Nobody is left to tell; the verb's own result says whether all was written.
        let _ = self.flush();
    }
}

/// The two ends for an answer's body: what the engine writes to, and what [`PieceReader::body`]
/// makes an answer of. Needs a runtime.
pub(super) fn answer_pipe(limit: Limit) -> (PieceWriter, PieceReader) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let writer =
        PieceWriter { pieces: Some(pieces), buffer: Vec::new(), limit, runtime: Handle::current() };
    (writer, PieceReader(receiver))
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

    fn limit(idle: Duration) -> (watch::Sender<bool>, Limit) {
        let (stop, stopping) = watch::channel(false);
        (stop, Limit { stopping: Stopping::new(stopping), idle })
    }

    /// A client that sends a little and then nothing.
    fn stalled() -> Body {
        let start = stream::once(async { io::Result::Ok(Bytes::from_static(b"part")) });
        Body::from_stream(start.chain(stream::pending()))
    }

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
        let (_stop, limit) = limit(IDLE);
        pipe.fill(Body::from_stream(stream::iter(pieces)), limit).await;
        let bytes = read.await.unwrap();
        assert_eq!(bytes.len(), 100_000);
        assert!(bytes.chunks(1000).zip(0..).all(|(piece, n)| piece == [n; 1000]));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let (_stop, limit) = limit(IDLE);
        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        let cut = [Ok(Bytes::from_static(b"part")), Err(io::Error::other("cut"))];
        pipe.fill(Body::from_stream(stream::iter(cut)), limit.clone()).await;
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        {
            let mut fill = std::pin::pin!(pipe.fill(stalled(), limit));
            // The client hangs up: the server drops the request's future.
            assert_eq!(fill.as_mut().now_or_never(), None);
        }
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_written_is_cut_into_pieces() {
        let (_stop, limit) = limit(IDLE);
        let (mut writer, PieceReader(mut pieces)) = answer_pipe(limit);
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
        let (_stop, limit) = limit(IDLE);
        let (mut writer, reader) = answer_pipe(limit);
        drop(reader);
        let write = tokio::task::spawn_blocking(move || writer.write_all(&[7; 2 * PIECE]));
        assert_eq!(write.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_cut() {
        let (_stop, short) = limit(Duration::from_millis(20));
        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        pipe.fill(stalled(), short).await;
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (stop, long) = limit(IDLE);
        let (reader, pipe) = body_pipe();
        let read = read_all(reader);
        stop.send_replace(true);
        pipe.fill(stalled(), long).await;
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_is_cut() {
        let fill = |mut writer: PieceWriter| {
            tokio::task::spawn_blocking(move || {
                let error = writer.write_all(&[7; (PIECES + 3) * PIECE]).unwrap_err().kind();
                (error, writer.write_all(&[7; 2 * PIECE]).unwrap_err().kind())
            })
        };
        let (_stop, short) = limit(Duration::from_millis(20));
        let (writer, _reader) = answer_pipe(short);
        let errors = fill(writer).await.unwrap();
        assert_eq!(errors, (io::ErrorKind::TimedOut, io::ErrorKind::BrokenPipe));

        let (stop, long) = limit(IDLE);
        let (writer, _reader) = answer_pipe(long);
        let writing = fill(writer);
        stop.send_replace(true);
        assert_eq!(writing.await.unwrap().0, io::ErrorKind::ConnectionAborted);
    }
}
