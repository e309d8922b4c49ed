//! A process's input and output: pipes, or a terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;

use super::supervisor::Streams;
use super::{Error, Process};

/// The size of a terminal whose client hasn't said how large it is.
const WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A new terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The supervisor's end.
    pub(super) master: OwnedFd,
    /// The process's end.
    pub(super) slave: OwnedFd,
}

/// The process's ends of its input and output.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) errors: OwnedFd,
    pub(super) terminal: bool,
}

impl Stdio {
    /// This process has a session of its own with, where there is one, the terminal, and of all descriptors its
    /// input and output, as the standard ones, and `line`.
    pub(super) fn enter(&self, line: &OwnedFd) -> Result<[BorrowedFd<'static>; 3], Error> {
        let step = |what: &'static str| move |errno: Errno| Error::io(what, "the process", errno);
        rustix::process::setsid().map_err(step("make a session for"))?;
        rustix::stdio::dup2_stdin(&self.input).map_err(step("connect"))?;
        rustix::stdio::dup2_stdout(&self.output).map_err(step("connect"))?;
        rustix::stdio::dup2_stderr(&self.errors).map_err(step("connect"))?;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
                .map_err(step("give a terminal to"))?;
        }
        let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let [input, output, errors] = standard;
        kleened_sys::process::close_all_but(&[input, output, errors, line.as_fd()])
            .map_err(|error| Error::io("prepare", "the process", error))?;
        Ok(standard)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.input.as_fd(), self.output.as_fd(), self.errors.as_fd()]
    }

    /// The process's end of its terminal.
    #[cfg(target_os = "linux")]
    pub(super) fn into_terminal(self) -> Option<OwnedFd> {
        self.terminal.then_some(self.input)
    }
}

/// Both ends of the process's input and output; of a terminal where one is given.
pub(super) fn open_streams(
    process: &Process,
    terminal: io::Result<Option<Terminal>>,
) -> Result<(Streams, Stdio), Error> {
    let open = || -> io::Result<_> {
        if let Some(Terminal { master, slave }) = terminal? {
            rustix::termios::tcsetwinsize(&master, WINDOW)?;
            let input = if process.stdin { Some(master.try_clone()?) } else { None };
            let streams =
                Streams { input, output: master, errors: None, terminal: true, early: Vec::new() };
            let (output, errors) = (slave.try_clone()?, slave.try_clone()?);
            return Ok((streams, Stdio { input: slave, output, errors, terminal: true }));
        }
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        // Without a writer it is an empty input; the host's /dev/null could be changed through it.
        let (input, to_input) = pipe()?;
        let (from_output, output) = pipe()?;
        let (from_errors, errors) = pipe()?;
        let streams = Streams {
            input: process.stdin.then_some(to_input),
            output: from_output,
            errors: Some(from_errors),
            terminal: false,
            early: Vec::new(),
        };
        Ok((streams, Stdio { input, output, errors, terminal: false }))
    };
    open().map_err(|error| Error::io("open", "the process's input and output", error))
}
