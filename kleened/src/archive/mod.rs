//! Trees to tar archives and back, on descriptors.
//!
//! What is written is pax (POSIX.1-2001, `pax(1)`), with the records that GNU tar, bsdtar and
//! star share: `SCHILY.xattr.*` for extended attributes, Linux's ACLs among them, and `GNU.sparse.*` 1.0
//! for holes; on FreeBSD also `SCHILY.acl.*` for ACLs and `SCHILY.fflags` for file flags. What is read
//! is any of v7, ustar, pax and GNU, plain or compressed with gzip, xz or zstd.
//!
//! An archive is hostile until it is proven otherwise. [`extract()`] writes below the given
//! directory and nowhere else:
//!
//! - Names must be relative and free of `..` and NUL. The way to every entry is opened component by
//!   component from that directory and no link is followed, so nothing is ever written through one,
//!   wherever it came from and wherever it points.
//! - A hard link's target is a name in the archive's own tree, found the same way.
//! - A symbolic link is only text: an absolute target is an ordinary thing in a root file system,
//!   and is kept. A relative target whose `..`s climb above the top is refused.
//! - Device nodes are refused unless they are asked for.
//! - A later entry takes the place of an earlier one of its name, as tar's users expect; but what
//!   is not a directory never takes the place of a directory.
//! - Memory is bounded, whatever sizes the headers claim; the disk's size bounds the rest.
//! - An archive that ends without its end marker, or goes on after it, is damaged.

mod create;
mod decode;
mod extract;
mod pax;
mod read;
mod sparse;
mod walk;

pub use create::create;
pub use extract::{Extract, extract};

pub(crate) use create::{Links, Writer, next};
pub(crate) use extract::Extractor;
pub(crate) use read::Reader;
pub(crate) use walk::{Item, Place, Walk, identity};

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use crate::copy::Progress;

/// What was extracted or archived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries of any type, the top directory among them.
    pub entries: u64,
    /// Bytes of regular files' content, holes not counted.
    pub bytes: u64,
    /// Sockets, which no archive can hold and which were left out.
    pub sockets: u64,
}

/// What reading or writing an archive can fail with. Names from the archive are escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is no archive, or it is cut off or damaged.
    #[error("{0}")]
    Damaged(String),
    /// An entry that is not allowed, or that this program can't extract.
    #[error("entry '{entry}' {reason}")]
    Refused {
        /// Its name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive could not be read to its end: the other side failed, not the archive.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A call on a file of the tree failed.
    #[error("cannot {verb} '{entry}'")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        entry: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn io(verb: &'static str, name: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io { verb, entry: shown(name), source: source.into() }
    }

    fn refused(name: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused { entry: shown(name), reason: reason.into() }
    }
}

impl From<Error> for io::Error {
    /// An error of the same kind with the archive's own as its content.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Damaged(_) | Error::Refused { .. } => io::ErrorKind::InvalidData,
            Error::Read(source) | Error::Write(source) | Error::Io { source, .. } => source.kind(),
            Error::Cancelled => io::ErrorKind::Interrupted,
        };
        Self::new(kind, error)
    }
}

/// The longest part of a name that a message shows.
const MAX_SHOWN: usize = 256;

/// A name for a message: control characters and what is no text escaped, the top as `./`, a very long one
/// cut in front, where names have least to say.
fn shown(name: &[u8]) -> String {
    if name.is_empty() {
        return "./".into();
    }
    let cut = name.len().saturating_sub(MAX_SHOWN);
    let tail = name.get(cut..).unwrap_or(name);
    let text = match std::str::from_utf8(tail) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => tail.escape_ascii().to_string(),
    };
    if cut == 0 { text } else { format!("…{text}") }
}

fn check(progress: Option<&Progress>) -> Result<(), Error> {
    if progress.is_some_and(Progress::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
}

fn count_file(progress: Option<&Progress>) {
    if let Some(progress) = progress {
        progress.files.fetch_add(1, Relaxed);
    }
}

fn count_bytes(progress: Option<&Progress>, bytes: u64) {
    if let Some(progress) = progress {
        progress.bytes.fetch_add(bytes, Relaxed);
    }
}
