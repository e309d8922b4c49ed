//! `klee container logs`.

use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::Method;
use hyper::body::{Buf, Bytes};
use kleened_api::container::LogsQuery;
use kleened_api::stream::Channel;
use kleened_api::{ContainerRef, ErrorCode, routes};

use crate::cli::Output;
use crate::client::{broken, with_query};
use crate::context::Context;
use crate::failure::Failure;
use crate::terminal;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The container.
    pub(crate) container: ContainerRef,
    /// Go on with what is written from now on, until the container ends.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last N lines.
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Put the time before each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Writes what the container wrote to standard output and standard error, each to klee's.
pub(crate) async fn show(args: Logs, context: &Context) -> Result<(), Failure> {
    let query = LogsQuery { follow: args.follow, timestamps: args.timestamps, tail: args.tail };
    let path = routes::with_name(routes::CONTAINER_LOGS, args.container.as_str());
    let path = with_query(&path, &query)?;
    let response = context.client.send(Method::GET, &path, "", Empty::<Bytes>::new()).await?;
    let mut body = response.into_body();
    let mut frames = Frames::default();
    while let Some(frame) = body.frame().await {
        let Ok(mut bytes) = frame.map_err(broken)?.into_data() else { continue };
        while let Some((channel, payload)) = frames.next(&mut bytes)? {
            terminal::write(channel, payload).await?;
        }
    }
    frames.end()
}

/// Takes the frames of a log apart. A payload comes out in the pieces that it arrives in.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    left: usize,
}

impl Frames {
    /// The next piece of a payload in `bytes`, which it is taken from.
    fn next(&mut self, bytes: &mut Bytes) -> Result<Option<(Channel, Bytes)>, Failure> {
        while bytes.has_remaining() {
            if self.left == 0 && self.header.len() == 8 {
                self.header.clear();
            }
            if self.header.len() < 8 {
                self.header.push(bytes.get_u8());
                if let [.., a, b, c, d] = self.header[..]
                    && self.header.len() == 8
                {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
                continue;
            }
            let channel = self.header.first().copied().unwrap_or_default();
            let Ok(channel @ (Channel::Stdout | Channel::Stderr)) = Channel::try_from(channel)
            else {
                return Err(malformed(format!("it holds a frame of channel {channel}")));
            };
            let piece = bytes.split_to(self.left.min(bytes.len()));
            self.left -= piece.len();
            return Ok(Some((channel, piece)));
        }
        Ok(None)
    }

    /// Refuses a log that ends within a frame.
    fn end(&self) -> Result<(), Failure> {
        if self.left == 0 && matches!(self.header.len(), 0 | 8) {
            Ok(())
        } else {
            Err(malformed("it ends within a frame"))
        }
    }
}

fn malformed(why: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Internal, "cannot read the log").because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_however_they_are_cut() {
        let log = b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x04err\n";
        for size in 1..=log.len() {
            let mut frames = Frames::default();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for chunk in log.chunks(size) {
                let mut bytes = Bytes::from_static(chunk);
                while let Some((channel, piece)) = frames.next(&mut bytes).unwrap() {
                    if channel == Channel::Stdout { &mut out } else { &mut err }.extend(piece);
                }
            }
            assert_eq!((&out[..], &err[..]), (&b"out"[..], &b"err\n"[..]), "chunks of {size}");
            frames.end().unwrap();
        }
    }

    #[test]
    fn a_cut_log_is_an_error() {
        let mut frames = Frames::default();
        let mut bytes = Bytes::from_static(b"\x01\0\0\0\0\0\0\x03ou");
        while frames.next(&mut bytes).unwrap().is_some() {}
        assert!(frames.end().is_err());
    }

    #[test]
    fn an_unknown_channel_is_an_error() {
        let mut bytes = Bytes::from_static(b"\x07\0\0\0\0\0\0\x01x");
        assert!(Frames::default().next(&mut bytes).is_err());
    }
}
