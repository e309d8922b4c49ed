//! Streams: a snapshot, or what changed between two, as bytes.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read, Write};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libzfs_sys::{ReplayRecord, send_flag};

use super::dataset::done;
use super::error::{Error, c_name, c_text};
use super::handle::made;
use super::nvlist::NvList;
use super::record::{Record, write_package};
use super::{Kind, Zfs};

/// How a snapshot is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// Blocks of up to 16 MiB stay whole (`-L`).
    pub large_blocks: bool,
    /// Small files stay in their block pointers (`-e`).
    pub embedded: bool,
    /// Blocks stay compressed (`-c`).
    pub compressed: bool,
    /// Encrypted blocks stay encrypted, and no key is needed (`-w`).
    pub raw: bool,
}

impl SendFlags {
    /// What every OpenZFS since 2.1 receives and costs the sender least.
    pub const FAST: Self =
        Self { large_blocks: true, embedded: true, compressed: true, raw: false };

    fn bits(self) -> c_int {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.large_blocks, send_flag::LARGE_BLOCK)
            | bit(self.embedded, send_flag::EMBED_DATA)
            | bit(self.compressed, send_flag::COMPRESS)
            | bit(self.raw, send_flag::RAW)
    }
}

/// How a stream is received.
#[derive(Debug, Default)]
pub struct Receive<'a> {
    /// The snapshot here that a stream of a clone starts from.
    pub origin: Option<&'a str>,
    /// What was changed since the last snapshot goes, and snapshots that the sender does not have.
    pub force: bool,
    /// What has come stays when the stream ends early, to be gone on with.
    pub resumable: bool,
    /// Properties as if they had come with the stream; they come before those that did.
    pub received: Option<&'a NvList>,
    /// Properties as if they were set here.
    pub local: Option<&'a NvList>,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the stream.
    pub bytes: u64,
    /// The snapshot's number.
    pub guid: u64,
}

/// How far a resumable receive has come: what `receive_resume_token` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePoint {
    /// The snapshot that was sent.
    pub snapshot: String,
    /// Its number.
    pub guid: u64,
    /// The number of what the increment starts from.
    pub from_guid: Option<u64>,
    /// Bytes that have come.
    pub bytes: u64,
    /// How it was sent.
    pub flags: SendFlags,
    object: u64,
    offset: u64,
}

impl Zfs {
    /// The stream of the snapshot is written to `to`: all of it, or what changed since `from`, a snapshot
    /// or bookmark before it.
    ///
    /// # Errors
    ///
    /// `NotFound`; `CrossPool` where `from` is not before it; `BrokenPipe` where the reader is gone;
    /// `NotPermitted` without the key of an encrypted one that is not sent raw. What was written by then
    /// is written.
    pub fn send(
        &self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
        to: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.send_from(snapshot, from, flags, (0, 0), to)
    }

    /// As [`Zfs::send`], with properties in front, as `zfs send -p` does: `zfs receive` and
    /// [`Zfs::receive`] set them as received ones.
    ///
    /// # Errors
    ///
    /// As [`Zfs::send`].
    pub fn send_with_properties(
        &'static self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
        properties: &NvList,
        to: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        const VERB: &str = "send";
        let guid = |name: &str| {
            let number = self.properties(name, &["guid"])?.number("guid");
            number.ok_or_else(|| Error::new(VERB, name, libc::EIO).detail("it has no guid"))
        };
        let (to_guid, from_guid) = (guid(snapshot)?, from.map(guid).transpose()?);
        let failed = |error: io::Error| Error::from_io(VERB, snapshot, &error);
        let mut out = File::from(to.try_clone_to_owned().map_err(failed)?);
        let start = write_package(snapshot, (to_guid, from_guid.unwrap_or(0)), from, properties)?;
        out.write_all(&start).map_err(failed)?;
        self.send(snapshot, from, flags, to)?;
        out.write_all(&Record::end().bytes()).map_err(failed)
    }

    /// The rest of a stream that was cut off, from where the receiver has got to. `from` is what the
    /// stream started from, by its name here.
    ///
    /// # Errors
    ///
    /// As [`Zfs::send`].
    pub fn send_resume(
        &self,
        snapshot: &str,
        from: Option<&str>,
        point: &ResumePoint,
        to: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.send_from(snapshot, from, point.flags, (point.object, point.offset), to)
    }

    fn send_from(
        &self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
        (object, offset): (u64, u64),
        to: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        const VERB: &str = "send";
        let c = c_name(VERB, snapshot)?;
        let base = from.map(|from| c_name("send from", from)).transpose()?;
        let base = base.as_ref().map_or(ptr::null(), |base| base.as_ptr());
        let send = self.core.lzc_send_resume;
        through_pipe(VERB, snapshot, to, |fd| {
            // SAFETY: the names are C strings, or null; the descriptor is open until the call is over.
            unsafe { send(c.as_ptr(), base, fd.as_raw_fd(), flags.bits(), object, offset) }
        })
    }

    /// About how many bytes the stream will have.
    ///
    /// # Errors
    ///
    /// As [`Zfs::send`].
    pub fn send_size(
        &self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
    ) -> Result<u64, Error> {
        const VERB: &str = "estimate the size of";
        let c = c_name(VERB, snapshot)?;
        let base = from.map(|from| c_name("send from", from)).transpose()?;
        let base = base.as_ref().map_or(ptr::null(), |base| base.as_ptr());
        let (mut size, flags) = (0, flags.bits());
        let space = self.core.lzc_send_space;
        // SAFETY: the names are C strings, or null; `size` is a place for a number.
        let errno = unsafe { space(c.as_ptr(), base, flags, &raw mut size) };
        done(VERB, snapshot, errno)?;
        Ok(size)
    }

    /// How far a resumable receive has come, by the property `receive_resume_token` of what it received
    /// into.
    ///
    /// # Errors
    ///
    /// `Invalid` for what is no token.
    pub fn resume_point(&'static self, token: &str) -> Result<ResumePoint, Error> {
        const VERB: &str = "read the token";
        let bad = |why: &str| Error::new(VERB, token, libc::EINVAL).detail(why);
        // The library trusts its length and its numbers.
        let well_formed = |c: char| c.is_ascii_hexdigit() || c == '-';
        if token.len() > 16 << 10 || !token.chars().all(well_formed) {
            return Err(bad("it is none"));
        }
        let c = c_text(VERB, token, token)?;
        let handle = self.handle(VERB)?;
        let read = handle.library().zfs_send_resume_token_to_nvlist;
        // SAFETY: the handle is valid and this thread's, the token a C string.
        let list = unsafe { read(handle.as_ptr(), c.as_ptr()) };
        let list = made(self, list).ok_or_else(|| bad("it is damaged"))?;
        let number = |name| list.number(name).ok_or_else(|| bad("it is incomplete"));
        let has = |name: &str| list.get(name).is_some();
        Ok(ResumePoint {
            snapshot: list.text("toname").ok_or_else(|| bad("it is incomplete"))?.to_owned(),
            guid: number("toguid")?,
            from_guid: list.number("fromguid"),
            bytes: number("bytes")?,
            object: number("object")?,
            offset: number("offset")?,
            flags: SendFlags {
                large_blocks: has("largeblockok"),
                embedded: has("embedok"),
                compressed: has("compressok"),
                raw: has("rawok"),
            },
        })
    }

    /// The stream that is read from `from` is the snapshot `snapshot`, and its file system is there with
    /// it. Streams of [`Zfs::send`] and of `zfs send`, also with `-p`, of one snapshot.
    ///
    /// # Errors
    ///
    /// `BadStream`; `Exists` for a full stream into a file system that is there; `Changed` and `CrossPool`
    /// for an increment that does not fit; `NotFound` without a parent; `QuotaExceeded`, `NoSpace`;
    /// `Unsupported` for a stream of several file systems. Then nothing of it is there, but with
    /// `resumable` what had come.
    pub fn receive(
        &self,
        snapshot: &str,
        how: &Receive<'_>,
        from: BorrowedFd<'_>,
    ) -> Result<Received, Error> {
        const VERB: &str = "receive";
        let c = c_name(VERB, snapshot)?;
        if !snapshot.contains('@') {
            return Err(Error::new(VERB, snapshot, libc::EINVAL).detail("it is no snapshot"));
        }
        let origin = how.origin.map(|origin| c_name("receive from", origin)).transpose()?;
        let origin = origin.as_ref().map_or(ptr::null(), |origin| origin.as_ptr());
        let failed = |error: io::Error| Error::from_io(VERB, snapshot, &error);
        let mut input = File::from(from.try_clone_to_owned().map_err(failed)?);
        let mut begin = Record::read(&mut input).map_err(failed)?;
        let (mut came, mut package) = (None, false);
        if begin.is_package() {
            package = true;
            came = begin.properties(&mut input, snapshot)?;
            begin = Record::read(&mut input).map_err(failed)?;
        }
        if !begin.begins_stream() {
            return Err(Error::new(VERB, snapshot, libc::EINVAL).detail("it is no stream of ZFS"));
        }
        let list = |list: Option<&NvList>| list.map_or(ptr::null_mut(), NvList::as_ptr);
        let (received, local) = (list(how.received.or(came.as_ref())), list(how.local));
        let receive = self.core.lzc_receive_with_cmdprops;
        let (fd, record): (c_int, *const ReplayRecord) = (from.as_raw_fd(), begin.as_ptr());
        let (force, resumable, raw) =
            (how.force.into(), how.resumable.into(), begin.is_raw().into());
        let (mut bytes, mut flags, mut action) = (0, 0, 0);
        let (key, errors) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the names are C strings, or null; the lists valid, or null, and only read; the record
        // is one that begins a stream, as the library wants it; the numbers are places for such. The list
        // of failed properties is not asked for: the library ends the process where the kernel sends none.
        let errno = unsafe {
            receive(
                c.as_ptr(),
                received,
                local,
                key,
                0,
                origin,
                force,
                resumable,
                raw,
                fd,
                record,
                -1,
                &raw mut bytes,
                &raw mut flags,
                &raw mut action,
                errors,
            )
        };
        done(VERB, snapshot, errno)?;
        if package {
            // Behind the stream comes the end of what is around it.
            let mut rest = Vec::new();
            input.take(Record::SIZE as u64).read_to_end(&mut rest).map_err(failed)?;
        }
        Ok(Received { bytes, guid: begin.guid() })
    }
}

/// Runs `call` with a pipe whose other end is copied to `to`: the kernel writes to pipes, and to few
/// things else.
#[cfg(target_os = "linux")]
fn through_pipe(
    verb: &'static str,
    object: &str,
    to: BorrowedFd<'_>,
    call: impl FnOnce(BorrowedFd<'_>) -> c_int,
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::from_io(verb, object, &error);
    let kind = rustix::fs::fstat(to).map_err(|errno| failed(errno.into()))?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Fifo {
        return match call(to) {
            // The kernel says so, too, where the reader is gone.
            libc::EINTR if is_gone(to) => done(verb, object, libc::EPIPE),
            errno => done(verb, object, errno),
        };
    }
    let mut out = File::from(to.try_clone_to_owned().map_err(failed)?);
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let (errno, copied) = std::thread::scope(|scope| {
        // Where the copy fails, the reader goes, and the kernel stops.
        let copy = std::thread::Builder::new()
            .spawn_scoped(scope, move || io::copy(&mut reader, &mut out));
        match copy {
            Ok(copy) => {
                let errno = call(writer.as_fd());
                drop(writer);
                (errno, copy.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
            }
            Err(error) => (libc::EAGAIN, Err(error)),
        }
    });
    match (errno, copied) {
        (0 | libc::EPIPE | libc::EINTR, Err(error)) => Err(failed(error)),
        (errno, _) => done(verb, object, errno),
    }
}

/// Whether nobody will read what is written to the pipe.
#[cfg(target_os = "linux")]
fn is_gone(pipe: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::from_borrowed_fd(pipe, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready == 1)
        && polled[0].revents().contains(PollFlags::ERR)
}

/// Runs `call` with `to`, which the kernel writes to.
#[cfg(not(target_os = "linux"))]
fn through_pipe(
    verb: &'static str,
    object: &str,
    to: BorrowedFd<'_>,
    call: impl FnOnce(BorrowedFd<'_>) -> c_int,
) -> Result<(), Error> {
    done(verb, object, call(to))
}

impl Error {
    /// Of reading or writing a stream.
    pub(super) fn from_io(verb: &'static str, object: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            io::ErrorKind::UnexpectedEof => super::error::ECKSUM,
            io::ErrorKind::BrokenPipe => libc::EPIPE,
            _ => libc::EIO,
        });
        let new = Self::new(verb, object, errno);
        if new.kind() == Kind::Other { new.detail(error.to_string()) } else { new }
    }
}
