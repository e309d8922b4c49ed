//! Where the content of a file with holes goes.

use std::io::Read;

use super::Error;
use super::decode::classify;
use super::pax::decimal;

/// The most segments of one file: what a map may take of memory is bounded. A file with more is
/// written with its later holes filled in.
pub(super) const MAX_SEGMENTS: usize = 1 << 18;

pub(super) const BAD_MAP: &str = "has a map of holes that makes no sense";

/// A part of a file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Why there is no map.
pub(super) enum Fault {
    Bad(&'static str),
    Read(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

/// A map as it is read, not checked yet.
#[derive(Default)]
pub(super) struct Map(Vec<Segment>);

impl Map {
    /// A map as in a GNU header, which has empty places at its end.
    pub(super) fn push_header(&mut self, header: &tar::GnuSparseHeader) -> Result<(), Fault> {
        if header.is_empty() {
            return Ok(());
        }
        match (header.offset(), header.length()) {
            (Ok(offset), Ok(length)) => self.push(offset, length),
            _ => Err(Fault::Bad(BAD_MAP)),
        }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Fault> {
        if self.0.len() >= MAX_SEGMENTS {
            return Err(Fault::Bad("has more holes than this program can extract"));
        }
        self.0.push(Segment { offset, length });
        Ok(())
    }

    /// A map as in the record `GNU.sparse.map` (format 0.1): offsets and lengths between commas.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Fault> {
        let mut map = Self::default();
        let mut numbers = text.split(|b| *b == b',').map(|n| decimal(n).ok_or(Fault::Bad(BAD_MAP)));
        while let Some(offset) = numbers.next() {
            map.push(offset?, numbers.next().ok_or(Fault::Bad(BAD_MAP))??)?;
        }
        Ok(map)
    }

    /// A map as at the beginning of the content (format 1.0): the count, then offsets and lengths,
    /// a line each, filled up to a whole block. The rest of the content follows.
    pub(super) fn read(content: &mut dyn Read) -> Result<Self, Fault> {
        let mut lines = Lines { content, block: [0; 512], at: 512 };
        let count = lines.number()?;
        let mut map = Self::default();
        for _ in 0..count {
            let offset = lines.number()?;
            map.push(offset, lines.number()?)?;
        }
        Ok(map)
    }

    /// The segments, in order and apart from each other, inside a file of `size` bytes, together as
    /// long as the stored content.
    pub(super) fn finish(self, size: u64, stored: u64) -> Result<Vec<Segment>, Fault> {
        let (mut end, mut total) = (0u64, 0u64);
        for segment in &self.0 {
            let next = segment.offset.checked_add(segment.length);
            end = next
                .filter(|next| segment.offset >= end && *next <= size)
                .ok_or(Fault::Bad(BAD_MAP))?;
            total += segment.length;
        }
        if total != stored || i64::try_from(size).is_err() {
            return Err(Fault::Bad(BAD_MAP));
        }
        Ok(self.0)
    }
}

struct Lines<'a> {
    content: &'a mut dyn Read,
    block: [u8; 512],
    at: usize,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64, Fault> {
        let mut digits = Vec::with_capacity(20);
        while digits.len() <= 20 {
            if self.at == self.block.len() {
                self.content.read_exact(&mut self.block).map_err(classify)?;
                self.at = 0;
            }
            let byte = self.block.get(self.at).copied().unwrap_or_default();
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).filter(|_| !digits.is_empty()).ok_or(Fault::Bad(BAD_MAP));
            }
            digits.push(byte);
        }
        Err(Fault::Bad(BAD_MAP))
    }
}
