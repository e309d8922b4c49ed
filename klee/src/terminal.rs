//! Standard input, output and error of klee, and the terminal behind them.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use hyper::body::Bytes;
use kleened_api::ErrorCode;
use kleened_api::stream::{Channel, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Writes what a process wrote to standard output or error, without holding up anything else.
///
/// # Errors
///
/// The reader went away, or the file system is full. Nobody misses standard error.
pub(crate) async fn write(channel: Channel, bytes: Bytes) -> Result<(), Failure> {
    let fail = |error: &(dyn Error + 'static)| {
        Err(Failure::local("cannot write the process's output", error))
    };
    let write = move || match channel {
        Channel::Stderr => output(io::stderr())?.write_all(&bytes),
        _ => output(io::stdout())?.write_all(&bytes),
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error),
        Ok(Err(_)) if channel == Channel::Stderr => Ok(()),
        Ok(Err(_)) => Err(Failure::reader_gone()),
        Err(error) => fail(&error),
    }
}

/// What a file or a pipe holds, read by a thread that stays a few chunks ahead. The end is the
/// channel's.
pub(crate) fn read_ahead(file: File) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(4);
    thread::spawn(move || {
        let mut file = Patient(file);
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default())),
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Standard input, unbuffered.
///
/// # Errors
///
/// There are no descriptors left.
pub(crate) fn stdin() -> Result<File, Failure> {
    let fd = io::stdin().as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(|error| Failure::local("cannot read standard input", &error))
}

/// Standard output or error, unbuffered.
///
/// # Errors
///
/// There are no descriptors left.
pub(crate) fn output(stream: impl AsFd) -> io::Result<impl Write> {
    Ok(Patient(stream.as_fd().try_clone_to_owned()?.into()))
}

/// A file that waits also where another process has set it to non-blocking, as one that shares the
/// terminal may.
struct Patient(File);

impl Patient {
    fn wait<T>(
        &self,
        flags: PollFlags,
        mut work: impl FnMut(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match work(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.0, flags)], None))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN, |mut file| file.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT, |mut file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The size of the terminal that klee runs in, if there is one.
pub(crate) fn window_size() -> Option<WindowSize> {
    let size = [stdio::stdout(), stdio::stdin(), stdio::stderr()]
        .into_iter()
        .find_map(|fd| termios::tcgetwinsize(fd).ok())?;
    Some(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// A terminal in raw mode: every key goes to the process. Dropped, it is as it was before.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts standard input into raw mode; `None` where it is no terminal.
    pub(crate) fn of_stdin() -> Result<Option<Self>, Failure> {
        let stdin: BorrowedFd<'_> = stdio::stdin();
        if !termios::isatty(stdin) {
            return Ok(None);
        }
        let raw = || -> io::Result<Self> {
            let before = termios::tcgetattr(stdin)?;
            let terminal = stdin.try_clone_to_owned()?;
            let mut raw = before.clone();
            raw.make_raw();
            termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
            Ok(Self { terminal, before })
        };
        raw().map(Some).map_err(|error| {
            Failure::new(ErrorCode::Internal, "cannot use the terminal").caused_by(&error)
        })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // What has been typed ahead stays for whoever reads next. A terminal that has gone needs
        // no care.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
