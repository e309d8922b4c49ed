//! What a supervisor does while its process runs: carries bytes between the process, its log and the
//! clients.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use kleened_api::Timestamp;
use kleened_api::stream::{Channel, Exit, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::log::LogWriter;
use super::run_dir::Instance;
use super::wire::{self, Decoder, Hello, Kind};
use super::{Event, Guest, Streams};
use crate::platform::Exited;

/// How long output waits for the client that was announced, and the end for watchers to take what
/// there is for them. The end waits for an attached client as long as that is connected.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nobody is accepted after the kernel had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// So much may wait for a client or for the process before no more is read.
const HIGH_WATER: usize = 256 * 1024;

/// As much as the kernel lets an unprivileged process put into a pipe.
const LARGEST_PIPE: usize = 1024 * 1024;

const MAX_CLIENTS: usize = 64;

/// The exit status where the platform can't say.
const UNKNOWN: i32 = 255;

/// What a relay works on.
pub(super) struct Relay<'i, G> {
    instance: &'i Instance,
    listener: UnixListener,
    guest: G,
    terminal: bool,
    input: Option<Input>,
    outputs: Vec<Output>,
    log: Option<LogWriter>,
    /// The lock that says that the supervisor is there.
    lock: Option<OwnedFd>,
    /// The lock that says that the container runs. Only the first process's relay has it.
    container: Option<OwnedFd>,
    first: bool,
    clients: Vec<Client>,
    /// Until when output waits for a client.
    waiting: Option<Instant>,
    /// What a terminal said meanwhile, and before the relay was there. It must be read at once: a kernel can throw away what is in it when
    /// its process ends.
    held: Vec<u8>,
    /// Until when nobody is accepted.
    accept_at: Option<Instant>,
    exit: Option<Exit>,
    /// Whether the attached clients have the output and the exit status.
    delivered: bool,
    /// Since when there is nothing left to supervise.
    ended: Option<Instant>,
}

struct Input {
    to: OwnedFd,
    queue: Queue,
    /// Whether it is closed after what is in the queue.
    last: bool,
}

struct Output {
    /// Nothing where every writer is gone.
    from: Option<OwnedFd>,
    channel: Channel,
}

#[derive(Clone, Copy)]
enum Source {
    Listener,
    Guest,
    Input,
    Output(usize),
    Client(usize, PollFlags),
}

impl<'i, G: Guest> Relay<'i, G> {
    /// A relay for a process that has just been started. With `attach`, its output waits for a client.
    pub(super) fn new(
        instance: &'i Instance,
        lock: OwnedFd,
        listener: UnixListener,
        guest: G,
        streams: Streams,
        attach: bool,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut outputs = vec![Output { from: Some(streams.output), channel: Channel::Stdout }];
        let errors = streams.errors.map(Some);
        outputs.extend(errors.map(|from| Output { from, channel: Channel::Stderr }));
        for from in outputs.iter().filter_map(|output| output.from.as_ref()) {
            rustix::io::ioctl_fionbio(from, true)?;
        }
        let input = streams.input.map(|to| Input { to, queue: Queue::default(), last: false });
        if let Some(input) = &input {
            rustix::io::ioctl_fionbio(&input.to, true)?;
        }
        Ok(Self {
            instance,
            listener,
            guest,
            terminal: streams.terminal,
            input,
            outputs,
            log: None,
            lock: Some(lock),
            container: None,
            first: false,
            clients: Vec::new(),
            waiting: attach.then(|| Instant::now() + PATIENCE),
            held: streams.early,
            accept_at: None,
            exit: None,
            delivered: false,
            ended: None,
        })
    }

    /// The process is a container's first, and `lock` says that the container runs.
    pub(super) fn of_container(&mut self, lock: OwnedFd, log: LogWriter) {
        self.container = Some(lock);
        let log = self.log.insert(log);
        if !self.held.is_empty() {
            log.write(Channel::Stdout, &self.held);
        }
        self.first = true;
    }

    /// Returns when there is nothing left to supervise and every attached client has got what is for it
    /// or has hung up. Others have a while to take it.
    ///
    /// # Errors
    ///
    /// What `poll(2)` says.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if self.waiting.is_some_and(|deadline| deadline <= Instant::now()) {
                self.waiting = None;
                self.held = Vec::new();
            }
            if self.accept_at.is_some_and(|deadline| deadline <= Instant::now()) {
                self.accept_at = None;
            }
            if let Some(log) = &mut self.log
                && log.deadline().is_some_and(|deadline| deadline <= Instant::now())
            {
                log.flush();
            }
            if self.exit.is_some() && self.waiting.is_none() && !self.delivered {
                self.deliver();
            }
            if let Some(since) = self.ended
                && self.delivered
                && self.clients.iter().all(|client| {
                    client.queue.is_empty() || !client.attached && since.elapsed() >= PATIENCE
                })
            {
                if let Some(log) = &mut self.log {
                    log.flush();
                }
                // Before the connections are closed: who sees that finds nobody here.
                self.lock = None;
                return Ok(());
            }
            for source in self.wait()? {
                self.serve(source);
            }
            self.drop_clients();
        }
    }

    /// What can be read or written now; nothing when a deadline has come.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let input_full = self.input.as_ref().is_some_and(|input| input.queue.is_full());
        let client_full =
            self.clients.iter().any(|client| client.attached && client.queue.is_full());
        let mut polled = Vec::new();
        if self.clients.len() < MAX_CLIENTS && self.accept_at.is_none() {
            polled.push((Source::Listener, self.listener.as_fd(), PollFlags::IN));
        }
        if self.ended.is_none() {
            polled.push((Source::Guest, self.guest.events(), PollFlags::IN));
        }
        if let Some(input) = self.input.as_ref().filter(|input| !input.queue.is_empty()) {
            polled.push((Source::Input, input.to.as_fd(), PollFlags::OUT));
        }
        let held_full = self.waiting.is_some() && (!self.terminal || self.held.len() >= HIGH_WATER);
        // After the exit is delivered, nothing but the log takes the output, and that never waits.
        if !held_full && (self.delivered || !client_full) {
            for (index, output) in self.outputs.iter().enumerate() {
                if let Some(from) = &output.from {
                    polled.push((Source::Output(index), from.as_fd(), PollFlags::IN));
                }
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if !(client.attached && input_full) {
                flags |= PollFlags::IN;
            }
            if !client.queue.is_empty() {
                flags |= PollFlags::OUT;
            }
            polled.push((Source::Client(index, flags), client.stream.as_fd(), flags));
        }

        let flush = self.log.as_ref().and_then(LogWriter::deadline);
        let end = self.ended.map(|since| since + PATIENCE).filter(|end| *end > Instant::now());
        let deadline = [self.waiting, self.accept_at, end, flush];
        let left =
            deadline.iter().flatten().min().map(|d| d.saturating_duration_since(Instant::now()));
        // One millisecond more, so as not to come back just before the deadline.
        let timeout = left.map(|left| {
            let left = left + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds: Vec<_> =
            polled.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
        let ready = polled.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let ready = ready.map(|((source, ..), fd)| match source {
            Source::Client(index, _) => Source::Client(*index, fd.revents()),
            other => *other,
        });
        Ok(ready.collect())
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Guest => self.hear_guest(),
            Source::Input => self.feed(),
            Source::Output(index) => {
                self.pass_output(index);
            }
            Source::Client(index, PollFlags::OUT) => {
                if let Some(client) = self.clients.get_mut(index) {
                    client.flush();
                }
            }
            Source::Client(index, _) => self.hear_client(index),
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            // What fails here, fails for the client: it sees that the connection is closed.
            Ok((stream, _)) => {
                if stream.set_nonblocking(true).is_ok() {
                    self.clients.push(Client::new(stream));
                }
            }
            Err(error) => match Errno::from_io_error(&error) {
                // It hung up.
                Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => (),
                // It stays in the kernel's queue, and would be reported at once again.
                _ => self.accept_at = Some(Instant::now() + ACCEPT_PAUSE),
            },
        }
    }

    fn hear_guest(&mut self) {
        match self.guest.event() {
            Ok(None) => (),
            Ok(Some(Event::Exited { code, last })) => {
                self.exited(Exit { code, container_ended: last });
            }
            // A guest that can't be heard any more is as good as gone.
            Ok(Some(Event::Ended)) | Err(_) => {
                if self.exit.is_none() {
                    self.exited(Exit { code: UNKNOWN, container_ended: self.first });
                }
                self.ended = Some(Instant::now());
                if self.waiting.is_none() {
                    // Nobody writes any more. Who is told that the container has ended finds its log
                    // complete.
                    self.drain();
                    if let Some(log) = &mut self.log {
                        log.flush();
                    }
                }
                self.container = None;
                if self.first {
                    for client in self.clients.iter_mut().filter(|client| client.told) {
                        client.send(Kind::Ended, b"");
                    }
                }
            }
        }
    }

    fn exited(&mut self, exit: Exit) {
        self.exit = Some(exit);
        // Where this can't be written, those who are connected are still told.
        let _ = self.instance.set_exited(&Exited { code: exit.code, at: Timestamp::now() });
        for client in self.clients.iter_mut().filter(|client| client.greeted && !client.attached) {
            client.tell(exit);
        }
    }

    /// What the process wrote until it ended goes to the attached clients, and then its exit status.
    fn deliver(&mut self) {
        self.drain();
        self.delivered = true;
        if let Some(exit) = self.exit {
            for client in self.clients.iter_mut().filter(|client| client.attached) {
                client.tell(exit);
                if self.ended.is_some() && self.first {
                    client.send(Kind::Ended, b"");
                }
            }
        }
    }

    /// Carries all output that there is now.
    fn drain(&mut self) {
        for index in 0..self.outputs.len() {
            let mut left = LARGEST_PIPE;
            while left > 0 {
                match self.pass_output(index) {
                    0 => break,
                    passed => left = left.saturating_sub(passed),
                }
            }
        }
    }

    /// Carries one piece of output, and says how many bytes it had.
    fn pass_output(&mut self, index: usize) -> usize {
        let mut buffer = [0; wire::MAX_PAYLOAD];
        let Some(output) = self.outputs.get_mut(index) else { return 0 };
        let Some(from) = &output.from else { return 0 };
        let bytes = match rustix::io::read(from, &mut buffer) {
            Ok(length) if length > 0 => buffer.get(..length).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return 0,
            // Every writer is gone; a terminal says so with EIO.
            Ok(_) | Err(_) => {
                output.from = None;
                return 0;
            }
        };
        if let Some(log) = &mut self.log {
            log.write(output.channel, bytes);
        }
        if self.waiting.is_some() {
            self.held.extend(bytes);
        } else if !self.delivered {
            for client in self.clients.iter_mut().filter(|client| client.attached) {
                client.send(Kind::Channel(output.channel), bytes);
            }
        }
        bytes.len()
    }

    /// Carries input to the process.
    fn feed(&mut self) {
        let Some(input) = &mut self.input else { return };
        let done = match input.queue.write_to(|bytes| Ok(rustix::io::write(&input.to, bytes)?)) {
            Ok(()) => input.last && input.queue.is_empty(),
            // The process has closed its end.
            Err(_) => true,
        };
        if done {
            self.input = None;
        }
    }

    fn hear_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        client.flush();
        let mut buffer = [0; wire::MAX_PAYLOAD];
        match client.stream.read(&mut buffer) {
            Ok(0) => client.gone = true,
            Ok(length) => client.decoder.push(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(_) => client.gone = true,
        }
        // Out of its place, so that what it sends can change everything else.
        let mut decoder = std::mem::take(&mut client.decoder);
        let understood = loop {
            match decoder.frame() {
                Ok(None) => break true,
                Ok(Some((kind, payload))) if self.obey(index, kind, payload) => (),
                Ok(Some(_)) | Err(_) => break false,
            }
        };
        if let Some(client) = self.clients.get_mut(index) {
            client.decoder = decoder;
            client.gone |= !understood;
        }
    }

    /// Does what a client's frame says; false where it makes no sense.
    fn obey(&mut self, index: usize, kind: Kind, payload: &[u8]) -> bool {
        let Some(client) = self.clients.get_mut(index) else { return false };
        match kind {
            Kind::Hello if !client.greeted => {
                let Ok(Hello { attach }) = serde_json::from_slice(payload) else { return false };
                (client.greeted, client.attached) = (true, attach);
                if let Some(exit) = self.exit.filter(|_| !attach || self.delivered) {
                    client.tell(exit);
                    if self.ended.is_some() && self.first {
                        client.send(Kind::Ended, b"");
                    }
                }
                if attach {
                    self.waiting = None;
                    for piece in std::mem::take(&mut self.held).chunks(wire::MAX_PAYLOAD) {
                        client.send(Kind::STDOUT, piece);
                    }
                }
                true
            }
            _ if !client.greeted => false,
            Kind::STDIN => {
                if client.attached
                    && let Some(input) = &mut self.input
                    && !input.last
                {
                    input.queue.push(payload);
                    if payload.is_empty() {
                        self.end_input();
                    }
                    self.feed();
                }
                true
            }
            Kind::RESIZE => match serde_json::from_slice(payload) {
                Ok(size) => {
                    self.resize(size);
                    true
                }
                Err(_) => false,
            },
            Kind::SIGNAL => {
                let number =
                    str::from_utf8(payload).ok().and_then(kleened_sys::process::signal_number);
                if let Some(number) = number {
                    // It may have ended just now.
                    let _ = self.guest.signal(number);
                }
                number.is_some()
            }
            _ => false,
        }
    }

    fn resize(&self, size: WindowSize) {
        let terminal = self.outputs.first().filter(|_| self.terminal).and_then(|o| o.from.as_ref());
        if let Some(terminal) = terminal {
            let size = rustix::termios::Winsize {
                ws_row: size.rows,
                ws_col: size.cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // It may have been hung up just now.
            let _ = rustix::termios::tcsetwinsize(terminal, size);
        }
    }

    /// The process's input ends after what is queued. On a terminal that is a character.
    fn end_input(&mut self) {
        const END_OF_TRANSMISSION: u8 = 4;
        let Some(input) = &mut self.input else { return };
        if self.terminal {
            input.queue.push(&[END_OF_TRANSMISSION]);
        } else {
            input.last = true;
            if input.queue.is_empty() {
                self.input = None;
            }
        }
    }

    fn drop_clients(&mut self) {
        let attached = |clients: &[Client]| clients.iter().any(|client| client.attached);
        let before = attached(&self.clients);
        // Who only watches has seen everything.
        let over = self.ended.is_some();
        self.clients.retain(|client| {
            let done = over && !client.attached && client.told && client.queue.is_empty();
            !client.gone && !done
        });
        // Nobody will send the rest. A terminal stays: somebody may attach to it again.
        if before && !attached(&self.clients) && !self.terminal {
            self.end_input();
        }
    }
}

/// Bytes that wait until somebody takes them.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// How many of them were taken already.
    taken: usize,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    fn is_full(&self) -> bool {
        self.bytes.len() - self.taken >= HIGH_WATER
    }

    fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.bytes.extend(bytes);
    }

    fn compact(&mut self) {
        if self.taken >= HIGH_WATER || self.is_empty() {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Hands out bytes until no more are taken.
    fn write_to(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.taken..).filter(|rest| !rest.is_empty()) {
            match write(rest) {
                Ok(taken) => self.taken += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        self.compact();
        Ok(())
    }
}

/// Somebody who is connected.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    queue: Queue,
    /// Whether it has said who it is.
    greeted: bool,
    attached: bool,
    /// Whether it knows how the process ended.
    told: bool,
    gone: bool,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            queue: Queue::default(),
            greeted: false,
            attached: false,
            told: false,
            gone: false,
        }
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.queue.compact();
        wire::encode(kind, payload, &mut self.queue.bytes);
        self.flush();
    }

    fn tell(&mut self, exit: Exit) {
        if !self.told {
            self.told = true;
            // A structure of a number and a boolean has a JSON form.
            self.send(Kind::EXIT, &serde_json::to_vec(&exit).unwrap_or_default());
        }
    }

    fn flush(&mut self) {
        if self.queue.write_to(|bytes| (&self.stream).write(bytes)).is_err() {
            self.gone = true;
        }
    }
}
