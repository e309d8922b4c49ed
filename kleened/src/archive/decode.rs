//! Decompression, chosen by the first bytes.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use flate2::bufread::GzDecoder;

use super::Error;

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The last three bytes of the magic of a zstd skippable frame, which may come first (RFC 8878).
const ZSTD_SKIPPABLE: &[u8] = b"\x2a\x4d\x18";

/// The most memory that `xz` may take: enough for `-9` (65 MiB). The others bound theirs by
/// themselves: gzip to 32 KiB, zstd to a window of 128 MiB, so that only what was packed with `--long`
/// and more than 27 is refused.
const XZ_MEMORY: u64 = 128 << 20;

/// The archive inside `input`: decompressed where it is compressed, with every member or frame of
/// it. A checksum that does not hold and anything that follows the last frame is an error of kind
/// other than [`SourceFailed`].
pub(super) fn open<'a>(input: &'a mut dyn Read) -> Result<Box<dyn Read + 'a>, Error> {
    let mut input = Source(input);
    let mut head = Vec::with_capacity(XZ.len());
    (&mut input).take(XZ.len() as u64).read_to_end(&mut head).map_err(classify)?;
    if head.is_empty() {
        return Err(Error::Damaged("the archive is empty: there are no bytes in it".into()));
    }
    let is = |magic: &[u8]| head.starts_with(magic);
    let (gzip, xz) = (is(GZIP), is(XZ));
    let zstd = is(ZSTD)
        || head.first().is_some_and(|b| b & 0xf0 == 0x50) && head.get(1..4) == Some(ZSTD_SKIPPABLE);
    let input = BufReader::with_capacity(1 << 17, Cursor::new(head).chain(input));
    Ok(if gzip {
        Box::new(Gzip(Some(GzDecoder::new(input))))
    } else if xz {
        let stream =
            liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|error| Error::Read(error.into()))?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
    } else if zstd {
        Box::new(zstd::Decoder::with_buffer(input).map_err(Error::Read)?)
    } else {
        Box::new(input)
    })
}

/// The members of a gzip file, one after another.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut rest) = self.0.take().map(GzDecoder::into_inner) else { break };
            match rest.fill_buf()?.first() {
                None => break,
                next if next == GZIP.first() => self.0 = Some(GzDecoder::new(rest)),
                Some(_) => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "other bytes follow what gzip compressed: cut them off",
                    ));
                }
            }
        }
        Ok(0)
    }
}

/// The error that the source gave, set apart from what a decoder says about the bytes.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SourceFailed(io::Error);

struct Source<'a>(&'a mut dyn Read);

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::other(SourceFailed(error))),
                Ok(read) => return Ok(read),
            }
        }
    }
}

/// What an error from the reader that [`open`] gave means.
pub(super) fn classify(error: io::Error) -> Error {
    match error.downcast::<SourceFailed>() {
        Ok(SourceFailed(error)) => Error::Read(error),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            Error::Damaged("the archive is cut off".into())
        }
        Err(error) => Error::Damaged(format!("the archive is damaged: {error}")),
    }
}
