//! A container's log: what its first process wrote, line by line.
//!
//! An entry is a line `TIME stdout|stderr F|P CONTENT`, which is the format of Kubernetes' container
//! logs. `P` says that the content has no end of line and that the next entry of the same stream goes
//! on with it. A file that would grow beyond its size gets `.1` after its name, the one that had it
//! `.2`, and so on.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kleened_api::Timestamp;
use kleened_api::stream::Channel;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::platform::LogConfig;

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was written.
    pub time: Timestamp,
    /// `Stdout` or `Stderr`.
    pub stream: Channel,
    /// Whether the line goes on in the next entry of the same stream.
    pub partial: bool,
    /// The content, without the end of line.
    pub bytes: Vec<u8>,
}

/// Reads a log from its oldest entry or from the last so many lines on, through all its files, and
/// goes on with what is written later. A file that is replaced while it is read is read to its end.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// What is there of the line that is read.
    line: Vec<u8>,
    /// Whether the file was replaced, so that nothing is written to it any more.
    replaced: bool,
}

impl LogReader {
    /// A reader that stands before the last `tail` lines, or before everything. A log that is not
    /// there is empty.
    ///
    /// # Errors
    ///
    /// What `open(2)` and `read(2)` say.
    pub fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut reader =
            Self { path: path.to_owned(), file: None, line: Vec::new(), replaced: false };
        let mut missing = tail;
        for index in 0.. {
            let Some(file) = open(&part(path, index))? else { break };
            let mut file = BufReader::new(file);
            if let Some(wanted) = missing {
                let starts = line_starts(&mut file, wanted)?;
                let first = match starts.front() {
                    Some(first) => *first,
                    None => file.seek(SeekFrom::End(0))?,
                };
                file.seek(SeekFrom::Start(first))?;
                missing = Some(wanted - starts.len());
            }
            // An older part without any of the wanted lines is not where to begin.
            if reader.file.is_none() || tail.is_none() || !file.fill_buf()?.is_empty() {
                reader.file = Some(file);
            }
            if missing == Some(0) {
                break;
            }
        }
        Ok(reader)
    }

    /// The next entry; `None` at the present end. What is no entry is skipped.
    ///
    /// # Errors
    ///
    /// What `open(2)` and `read(2)` say.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(file) = &mut self.file else {
                match open(&self.path)? {
                    Some(file) => self.file = Some(BufReader::new(file)),
                    None => return Ok(None),
                }
                continue;
            };
            file.read_until(b'\n', &mut self.line)?;
            if self.line.pop_if(|last| *last == b'\n').is_some() {
                let entry = parse(&self.line);
                self.line.clear();
                match entry {
                    Some(entry) => return Ok(Some(entry)),
                    None => continue,
                }
            }
            let identity = identity(file.get_ref())?;
            if !self.replaced {
                // Something may have been written between the last read and the replacement.
                self.replaced = is_replaced(&self.path, identity)?;
                if self.replaced {
                    continue;
                }
                return Ok(None);
            }
            let Some(next) = successor(&self.path, identity)? else { return Ok(None) };
            self.file = Some(BufReader::new(next));
            self.replaced = false;
            self.line.clear();
        }
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Channel::Stdout,
        b"stderr" => Channel::Stderr,
        _ => return None,
    };
    let partial = match fields.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Entry { time, stream, partial, bytes: fields.next()?.to_vec() })
}

/// Where the last `count` lines of the file begin; fewer where there are fewer.
fn line_starts(file: &mut BufReader<File>, count: usize) -> io::Result<VecDeque<u64>> {
    let mut starts = VecDeque::new();
    // Whether the last entry of standard output and error was a partial one.
    let (mut output, mut errors) = (false, false);
    let (mut offset, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let length = file.read_until(b'\n', &mut line)?;
        if count == 0 || line.pop_if(|last| *last == b'\n').is_none() {
            return Ok(starts);
        }
        if let Some(entry) = parse(&line) {
            let goes_on = if entry.stream == Channel::Stdout { &mut output } else { &mut errors };
            if !*goes_on {
                if starts.len() == count {
                    starts.pop_front();
                }
                starts.push_back(offset);
            }
            *goes_on = entry.partial;
        }
        offset += length as u64;
    }
}

type Identity = (u64, u64);

fn identity(file: &File) -> io::Result<Identity> {
    file.metadata().map(|found| (found.dev(), found.ino()))
}

/// The file that was begun after the one with this identity; `None` where it can't be told now,
/// because the files are being renamed.
fn successor(path: &Path, identity: Identity) -> io::Result<Option<File>> {
    let before = position(path, identity)?;
    let next = match before {
        Some(0) => return Ok(None),
        Some(index) => open(&part(path, index - 1))?,
        // So many were begun that it is gone: what is left begins with the oldest.
        None => {
            let mut oldest = None;
            for index in 0.. {
                match open(&part(path, index))? {
                    Some(file) => oldest = Some(file),
                    None => break,
                }
            }
            oldest
        }
    };
    Ok(if position(path, identity)? == before { next } else { None })
}

/// Which part the file with this identity is.
fn position(path: &Path, identity: Identity) -> io::Result<Option<u32>> {
    let mut gap = false;
    for index in 0.. {
        match fs::metadata(part(path, index)) {
            Ok(found) if (found.dev(), found.ino()) == identity => return Ok(Some(index)),
            Ok(_) => (),
            // One name is free while the files are renamed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !gap => gap = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_replaced(path: &Path, identity: Identity) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) != identity),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name of a part: the newest is 0.
fn part(path: &Path, index: u32) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{index}"));
    name.into()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How long the beginning of a line waits for its end.
const LINE_TIME: Duration = Duration::from_millis(100);

/// How long a new file is not tried again after it could not be begun.
const ROTATE_PAUSE: Duration = Duration::from_secs(10);

/// What is longer than this does not wait.
const LONG_LINE: usize = 16 * 1024;

/// Writes a log.
#[derive(Debug)]
pub(super) struct LogWriter {
    config: LogConfig,
    file: File,
    /// How many bytes of the file are whole entries.
    size: u64,
    /// Whether there may be a part of an entry after them.
    torn: bool,
    /// The beginnings of a line of standard output and of one of standard error.
    begun: [Vec<u8>; 2],
    /// Since when there is one.
    begun_at: Option<Instant>,
    /// Until when no new file is begun, because that failed: what comes meanwhile is not kept.
    rotate_at: Option<Instant>,
}

impl LogWriter {
    /// Goes on with the log that is there.
    pub(super) fn open(config: &LogConfig) -> io::Result<Self> {
        let file = create(&config.path)?;
        let size = file.metadata()?.len();
        let (begun, begun_at) = (Default::default(), None);
        Ok(Self {
            config: config.clone(),
            file,
            size,
            torn: size > 0,
            begun,
            begun_at,
            rotate_at: None,
        })
    }

    /// The bytes are in the log, or will be with the rest of their line or with [`Self::flush`]. Where
    /// they can't be written, on a full disk, they are not, and the log goes on with what comes later:
    /// a process must not end because its log can't be kept.
    pub(super) fn write(&mut self, stream: Channel, bytes: &[u8]) {
        let mut all = std::mem::take(self.begun(stream));
        all.extend(bytes);
        let whole = all.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let is_long = all.len() - whole >= LONG_LINE;
        let (now, later) = all.split_at(if is_long { all.len() } else { whole });
        self.write_entries(stream, now);
        self.begun(stream).extend(later);
        if self.begun.iter().all(Vec::is_empty) {
            self.begun_at = None;
        } else {
            self.begun_at.get_or_insert_with(Instant::now);
        }
    }

    /// Whatever was held back is in the log.
    pub(super) fn flush(&mut self) {
        for stream in [Channel::Stdout, Channel::Stderr] {
            let begun = std::mem::take(self.begun(stream));
            self.write_entries(stream, &begun);
        }
        self.begun_at = None;
    }

    /// When [`Self::flush`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.begun_at.map(|at| at + LINE_TIME)
    }

    fn begun(&mut self, stream: Channel) -> &mut Vec<u8> {
        let [output, errors] = &mut self.begun;
        if stream == Channel::Stderr { errors } else { output }
    }

    fn write_entries(&mut self, stream: Channel, bytes: &[u8]) {
        let name = if stream == Channel::Stderr { "stderr" } else { "stdout" };
        let now = now();
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (tag, content) = match line.strip_suffix(b"\n") {
                Some(content) => ('F', content),
                None => ('P', line),
            };
            let before = entries.len();
            // Writing to memory doesn't fail.
            let _ = write!(entries, "{now} {name} {tag} ");
            entries.extend(content);
            entries.push(b'\n');
            if self.size + entries.len() as u64 > self.config.max_size
                && self.size + before as u64 > 0
            {
                let entry = entries.split_off(before);
                self.append(&entries);
                if self.rotate().is_err() {
                    return;
                }
                entries = entry;
            }
        }
        self.append(&entries);
    }

    fn append(&mut self, entries: &[u8]) {
        if self.torn && self.repair().is_err() {
            return;
        }
        match self.file.write_all(entries) {
            Ok(()) => self.size += entries.len() as u64,
            Err(_) => self.torn = true,
        }
    }

    /// The file ends with a whole entry.
    fn repair(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        let mut last = [b'\n'];
        if self.size > 0 {
            self.file.seek(SeekFrom::Start(self.size - 1))?;
            self.file.read_exact(&mut last)?;
        }
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
            self.size += 1;
        }
        self.torn = false;
        Ok(())
    }

    /// A new file is begun; where that fails, every file is still there.
    fn rotate(&mut self) -> io::Result<()> {
        if self.rotate_at.is_some_and(|at| at > Instant::now()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let rotated = self.begin_file();
        self.rotate_at = rotated.is_err().then(|| Instant::now() + ROTATE_PAUSE);
        rotated
    }

    fn begin_file(&mut self) -> io::Result<()> {
        let path = &self.config.path;
        let oldest = self.config.max_files.saturating_sub(1);
        let mut name = OsString::from(path);
        name.push(".new");
        let next = PathBuf::from(name);
        let file = create(&next)?;
        file.set_len(0)?;
        // Where an earlier attempt has left a gap, what is after it stays.
        let is_free = |index: &u32| fs::symlink_metadata(part(path, *index)).is_err();
        let free = (0..oldest).find(is_free).unwrap_or(oldest);
        for index in (0..free).rev() {
            fs::rename(part(path, index), part(path, index + 1))?;
        }
        fs::rename(&next, path)?;
        self.file = file;
        self.size = 0;
        self.torn = false;
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// The present moment to the nanosecond.
fn now() -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, max_size: u64, max_files: u32) -> LogConfig {
        LogConfig { path: dir.join("log"), max_size, max_files }
    }

    fn texts(reader: &mut LogReader) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let end = if entry.partial { "" } else { "$" };
            texts.push(String::from_utf8_lossy(&entry.bytes).into_owned() + end);
        }
        texts
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let mut reader = LogReader::open(&config.path, None).unwrap();
        assert_eq!(reader.next_entry().unwrap(), None);
        let mut writer = LogWriter::open(&config).unwrap();
        writer.write(Channel::Stdout, b"one\n\ntw");
        writer.write(Channel::Stderr, b"\xff\0");
        assert_eq!(texts(&mut reader), ["one$", "$"]);
        writer.write(Channel::Stderr, b"\r\n");
        writer.flush();
        assert_eq!(texts(&mut reader), ["\u{fffd}\0\r$", "tw"]);
        assert_eq!(writer.deadline(), None);
        writer.write(Channel::Stdout, b"o\n");
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!((entry.stream, entry.bytes.as_slice()), (Channel::Stdout, b"o".as_slice()));
        assert!(entry.time <= Timestamp::now());
        // The rest of a line counts with its beginning.
        for (tail, expected) in [
            (0, &[][..]),
            (1, &["tw", "o$"][..]),
            (2, &["\u{fffd}\0\r$", "tw", "o$"][..]),
            (9, &["one$", "$", "\u{fffd}\0\r$", "tw", "o$"][..]),
        ] {
            let mut reader = LogReader::open(&config.path, Some(tail)).unwrap();
            assert_eq!(texts(&mut reader), expected, "the last {tail}");
        }
    }

    #[test]
    fn files_are_replaced_and_read_through() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 200, 3);
        let mut writer = LogWriter::open(&config).unwrap();
        let mut reader = LogReader::open(&config.path, None).unwrap();
        let mut seen = Vec::new();
        for n in 0..100 {
            writer.write(Channel::Stdout, format!("line {n}\n").as_bytes());
            // Never so late that a file is gone.
            if n % 7 == 0 {
                seen.extend(texts(&mut reader));
            }
        }
        seen.extend(texts(&mut reader));
        assert_eq!(seen, (0..100).map(|n| format!("line {n}$")).collect::<Vec<_>>());
        for index in 0..3 {
            assert!(fs::metadata(part(&config.path, index)).unwrap().len() <= 200);
        }
        assert!(!part(&config.path, 3).exists());
        let mut reader = LogReader::open(&config.path, Some(6)).unwrap();
        assert_eq!(texts(&mut reader), (94..100).map(|n| format!("line {n}$")).collect::<Vec<_>>());
        let mut reader = LogReader::open(&config.path, Some(1000)).unwrap();
        let kept = texts(&mut reader);
        assert!(kept.len() > 6 && kept.len() < 100 && kept.ends_with(&["line 99$".into()]));
    }

    #[test]
    fn a_reader_that_was_overtaken_goes_on_with_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 100, 2);
        let mut writer = LogWriter::open(&config).unwrap();
        writer.write(Channel::Stdout, b"first\n");
        let mut reader = LogReader::open(&config.path, None).unwrap();
        for n in 0..50 {
            writer.write(Channel::Stdout, format!("line {n}\n").as_bytes());
        }
        let seen = texts(&mut reader);
        assert_eq!(seen.first().map(String::as_str), Some("first$"));
        assert_eq!(seen.last().map(String::as_str), Some("line 49$"));
    }

    #[test]
    fn a_long_line_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let mut writer = LogWriter::open(&config).unwrap();
        writer.write(Channel::Stdout, &[b'x'; 10_000]);
        assert!(writer.deadline().is_some());
        writer.write(Channel::Stdout, &[b'x'; 10_000]);
        assert_eq!(writer.deadline(), None);
        writer.write(Channel::Stdout, b"y\n");
        let mut reader = LogReader::open(&config.path, Some(1)).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().bytes.len(), 20_000);
        assert_eq!(texts(&mut reader), ["y$"]);
    }

    #[test]
    fn one_file_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 100, 1);
        let mut writer = LogWriter::open(&config).unwrap();
        for n in 0..50 {
            writer.write(Channel::Stdout, format!("line {n}\n").as_bytes());
        }
        assert!(fs::metadata(&config.path).unwrap().len() <= 100);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let last = texts(&mut LogReader::open(&config.path, Some(1)).unwrap());
        assert_eq!(last, ["line 49$"]);
    }

    #[test]
    fn a_torn_entry_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        fs::write(&config.path, "2024-02-29T14:54:05.317207000Z stdout F half").unwrap();
        let mut writer = LogWriter::open(&config).unwrap();
        writer.write(Channel::Stdout, b"next\n");
        let seen = texts(&mut LogReader::open(&config.path, None).unwrap());
        assert_eq!(seen, ["half$", "next$"]);
    }

    #[test]
    fn where_no_file_can_be_begun_the_older_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 100, 3);
        let mut writer = LogWriter::open(&config).unwrap();
        let write = |numbers: std::ops::Range<u32>, writer: &mut LogWriter| {
            for n in numbers {
                writer.write(Channel::Stdout, format!("line {n}\n").as_bytes());
            }
        };
        write(0..20, &mut writer);
        let files = || (0..3).map(|n| fs::read(part(&config.path, n)).unwrap()).collect::<Vec<_>>();
        let before = files();
        // Nobody can make a file where a directory is.
        let next = dir.path().join("log.new");
        fs::create_dir(&next).unwrap();
        write(20..60, &mut writer);
        let after = files();
        assert_eq!(after[1..], before[1..]);
        assert!(after[0].starts_with(&before[0]) && after[0].len() <= 100);
        fs::remove_dir(&next).unwrap();
        // It is not tried with each line.
        write(60..80, &mut writer);
        assert_eq!(files(), after);
        writer.rotate_at = Some(Instant::now());
        write(80..81, &mut writer);
        assert_eq!(files()[1..], after[..2]);
        assert_eq!(texts(&mut LogReader::open(&config.path, Some(1)).unwrap()), ["line 80$"]);
    }
}
