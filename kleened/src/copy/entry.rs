//! What is not a directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use kleened_sys::fs::{self, Attributes, Cloned};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};

use super::Error;
use super::links::Name;
use super::queue::{Task, Work};
use super::worker::{Access, Place, Source, Worker};

/// Bytes that are copied between two looks at whether to go on.
const STEP: u64 = 16 * 1024 * 1024;

impl Worker<'_> {
    /// Copies an entry that is no directory, going by the type that the listing gave.
    pub(super) fn entry(&mut self, place: Place<'_>, kind: FileType) -> Result<(), Error> {
        let mut kind = Some(kind);
        // The listing may give no type, or somebody may have put something else there since; who goes
        // on doing so has no say in whether the copy succeeds.
        for _ in 0..4 {
            kind = match kind {
                None => return Ok(()),
                Some(FileType::RegularFile) => self.file(place)?,
                Some(_) => self.other(place)?,
            };
        }
        self.summary.vanished += u64::from(kind.is_some());
        Ok(())
    }

    /// Copies a regular file. Where it is something else, tells what.
    fn file(&mut self, place: Place<'_>) -> Result<Option<FileType>, Error> {
        let (from, attributes) = match self.open(place, Access::File)? {
            Source::Open(from, attributes) => (from, attributes),
            Source::Mount(attributes) => return self.mount_point(place, &attributes),
            Source::Gone => return Ok(None),
            Source::Replaced => return Ok(Some(FileType::Unknown)),
        };
        if attributes.kind != FileType::RegularFile {
            return Ok(Some(attributes.kind));
        }
        if let Some(to) = self.name(place, &attributes, || create(place, &attributes))? {
            self.content(place, from.as_fd(), to.as_fd(), &attributes)?;
            self.finish(place, to.as_fd(), Some(from.as_fd()), &attributes)?;
            self.count_file();
        }
        Ok(None)
    }

    /// Copies a link, a fifo, a socket or a device node, or leaves a task for a directory. Where it is a
    /// file, tells so.
    fn other(&mut self, place: Place<'_>) -> Result<Option<FileType>, Error> {
        // The descriptor holds on to what is copied: all that is read is of one and the same thing.
        let (from, attributes) = match self.open(place, Access::Place)? {
            Source::Open(from, attributes) => (from, attributes),
            Source::Mount(attributes) => return self.mount_point(place, &attributes),
            Source::Gone => return Ok(None),
            Source::Replaced => return Ok(Some(FileType::Unknown)),
        };
        match attributes.kind {
            FileType::RegularFile => return Ok(Some(attributes.kind)),
            FileType::Directory => self.push_directory(place),
            _ => self.special(place, from.as_fd(), &attributes)?,
        }
        Ok(None)
    }

    fn special(
        &mut self,
        place: Place<'_>,
        from: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let mode = made_with(attributes);
        let number = match attributes.kind {
            FileType::BlockDevice | FileType::CharacterDevice => attributes.node,
            // FreeBSD shows one for others, too, and takes none.
            _ => 0,
        };
        let make = || match attributes.kind {
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(from, c"", Vec::new())
                    .map_err(|e| place.failed("readlinkat", e))?;
                rustix::fs::symlinkat(text, place.to(), place.name)
                    .map_err(|e| place.failed("symlinkat", e))
            }
            FileType::Socket => fs::make_socket(place.to(), place.name, mode)
                .map_err(|e| place.failed("mknodat", e)),
            kind => rustix::fs::mknodat(place.to(), place.name, kind, mode, number as _)
                .map_err(|e| place.failed("mknodat", e)),
        };
        if self.name(place, attributes, make)?.is_some() {
            self.finish_unopened(place, from, attributes)?;
            self.count_file();
        }
        Ok(())
    }

    /// Makes an empty file in the place of one that something is mounted on.
    fn mount_point(
        &mut self,
        place: Place<'_>,
        attributes: &Attributes,
    ) -> Result<Option<FileType>, Error> {
        if attributes.kind == FileType::Directory {
            self.push_directory(place);
            return Ok(None);
        }
        if let Some(to) = place.once(create(place, attributes))? {
            self.summary.mounts += 1;
            self.finish(place, to.as_fd(), None, attributes)?;
            self.count_file();
        }
        Ok(None)
    }

    fn push_directory(&self, place: Place<'_>) {
        place.directory.begin(1);
        let work = Work::Enter(place.name.to_owned());
        self.push(Task { directory: place.directory.clone(), work });
    }

    /// Makes the entry, or links it to an earlier name of the same file; then there is nothing left to
    /// do. Nor is there where the entry was copied before.
    fn name<T>(
        &mut self,
        place: Place<'_>,
        attributes: &Attributes,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let named = self.shared.links.name(attributes, place.directory, place.name, make);
        let (at, name) = match place.once(named)? {
            Some(Name::First(made)) => return Ok(Some(made)),
            Some(Name::Further(at, name)) => (at, name),
            None => return Ok(None),
        };
        let first = at.pair().map_err(|e| place.failed("openat", e))?;
        let linked =
            rustix::fs::linkat(&first.to, &*name, place.to(), place.name, AtFlags::empty())
                .map_err(|e| place.failed("linkat", e));
        if place.once(linked)?.is_some() {
            self.summary.hard_links += 1;
            self.count_file();
        }
        Ok(None)
    }

    /// The bytes of a file, in the cheapest way; holes stay holes.
    fn content(
        &mut self,
        place: Place<'_>,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let size = attributes.size;
        if size == 0 {
            return Ok(());
        }
        if !self.shared.no_clones.load(Ordering::Relaxed) {
            match fs::clone_file(from, to).map_err(|e| place.failed("ioctl FICLONE", e))? {
                Cloned::Yes => {
                    let data = size.min(attributes.allocated);
                    self.summary.cloned_bytes += data;
                    self.count_bytes(data);
                    return Ok(());
                }
                Cloned::NotThese => (),
                Cloned::Never if attributes.id.0 == self.shared.device => {
                    self.shared.no_clones.store(true, Ordering::Relaxed);
                }
                Cloned::Never => (),
            }
        }
        if attributes.allocated >= size || is_one_block(attributes) {
            self.data(place, from, to, 0..size)?;
            return Ok(());
        }
        let mut end = 0;
        while let Some(data) =
            fs::next_data(from, end, size).map_err(|e| place.failed("lseek", e))?
        {
            end = data.end;
            self.data(place, from, to, data)?;
        }
        if end < size {
            rustix::fs::ftruncate(to, size).map_err(|e| place.failed("ftruncate", e))?;
        }
        Ok(())
    }

    /// The bytes of a range, or as many of them as there still are.
    fn data(
        &mut self,
        place: Place<'_>,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        range: std::ops::Range<u64>,
    ) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at.saturating_add(STEP));
            let copied = fs::copy_range(from, to, at..end, &mut self.buffer)
                .map_err(|e| place.failed("copy_file_range", e))?;
            self.count_bytes(copied);
            if copied < end - at {
                // Somebody cut it off.
                break;
            }
            at = end;
            if at < range.end {
                self.check()?;
            }
        }
        Ok(())
    }

    fn count_bytes(&mut self, bytes: u64) {
        self.summary.bytes += bytes;
        if let Some(progress) = self.shared.options.progress {
            progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn count_file(&mut self) {
        self.summary.files += 1;
        if let Some(progress) = self.shared.options.progress {
            progress.files.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether the file is one block, which is there: no part of it is a hole. Compressed, it may be smaller
/// than the file; ZFS counts one unit more than it takes.
fn is_one_block(attributes: &Attributes) -> bool {
    const UNIT: u64 = 512;
    /// More may be the size of a request to a server.
    const LARGEST: u64 = 128 * 1024;
    let Attributes { size, block, allocated, .. } = *attributes;
    block <= LARGEST && size.next_multiple_of(UNIT) == block && allocated > UNIT
}

/// The mode to make something with; the other bits are set when it has its owner.
fn made_with(attributes: &Attributes) -> Mode {
    Mode::from_raw_mode((attributes.mode & 0o777) as RawMode)
}

fn create(place: Place<'_>, attributes: &Attributes) -> Result<OwnedFd, Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(place.to(), place.name, flags, made_with(attributes))
        .map_err(|e| place.failed("openat", e))
}
