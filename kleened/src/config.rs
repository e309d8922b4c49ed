//! The configuration file: TOML, every key documented and defaulted, in one table.
//!
//! [`KEYS`] is the table. The sample file that `kleened configtest --sample` prints, the refusal of
//! unknown keys and the report of what needs a restart all come from it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kleened_api::Size;
use kleened_api::volume::Mode;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer};
use toml::de::DeTable;

/// The file that is read when none is named. It need not exist.
pub const DEFAULT_FILE: &str = if cfg!(target_os = "linux") {
    "/etc/kleened/kleened.toml"
} else {
    "/usr/local/etc/kleened/kleened.toml"
};

const DEFAULT_ROOT: &str =
    if cfg!(target_os = "linux") { "/var/lib/kleened" } else { "/var/db/kleened" };

/// A configuration that can't be used: what is wrong, where, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file can't be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        reason: String,
    },
}

/// What a person is told about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What it does, in lines.
    pub about: &'static [&'static str],
    /// Its default, or where that is not fixed an example, as TOML.
    pub sample: &'static str,
    /// Whether a change takes effect without a restart, on SIGHUP.
    pub live: bool,
}

macro_rules! keys {
    ($(
        $(#[doc = $about:literal])+
        $(#[serde($($serde:tt)*)])?
        $name:ident: $type:ty = $default:expr, $sample:expr, $live:literal;
    )*) => {
        /// What the daemon was told, with the defaults filled in.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(default)]
        pub struct Config {
            $($(#[doc = $about])+ $(#[serde($($serde)*)])? pub $name: $type,)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// Every key.
        pub const KEYS: &[Key] = &[
            $(Key { name: stringify!($name), about: &[$($about),+], sample: $sample, live: $live },)*
        ];

        impl Config {
            /// The names of the keys that differ between two configurations.
            #[must_use]
            pub fn differences(&self, other: &Self) -> Vec<&'static Key> {
                let same = [$(self.$name == other.$name),*];
                KEYS.iter().zip(same).filter(|(_, same)| !same).map(|(key, _)| key).collect()
            }
        }
    };
}

keys! {
    /// The directory that holds everything: volumes, containers, images and their records. Or the ZFS
    /// dataset, as "zroot/kleene": then it is the directory where that is mounted.
    #[serde(deserialize_with = "root")]
    root: PathBuf = DEFAULT_ROOT.into(),
        if cfg!(target_os = "linux") { "\"/var/lib/kleened\"" } else { "\"/var/db/kleened\"" }, false;
    /// The storage driver: "zfs" keeps datasets, where one is mounted at the root; "dir" keeps
    /// directories; "auto" takes the best one that works here.
    storage: String = "auto".into(), "\"auto\"", false;
    /// The directory of what needs to be known only while the machine runs: the supervisors of the
    /// running processes. Below root where it is not given. An absolute path of at most 60 bytes.
    #[serde(deserialize_with = "optional_run_dir")]
    run_dir: Option<PathBuf> = None, "\"/var/run/kleened\"", false;
    /// The socket on which clients are answered. An absolute path of at most 95 bytes.
    #[serde(deserialize_with = "socket")]
    socket: PathBuf = kleened_api::routes::DEFAULT_SOCKET.into(), "\"/var/run/kleened.sock\"", false;
    /// The permission bits of the socket, in quotes. Whoever can write to it can become root on
    /// this machine, by mounting its files into a container.
    #[serde(deserialize_with = "socket_mode")]
    socket_mode: Mode = Mode(0o660), "\"0660\"", true;
    /// The group of the socket, by name or number. The daemon's own where it is not given.
    socket_group: Option<String> = None, "\"wheel\"", true;
    /// Users, by name or number, who may look at everything and change nothing.
    read_only_users: Vec<String> = Vec::new(), "[]", true;
    /// Seconds between SIGTERM and SIGKILL when a container is stopped.
    #[serde(deserialize_with = "seconds")]
    stop_timeout: Duration = Duration::from_secs(10), "10", true;
    /// What the daemon says on standard error: "error", "warn", "info", "debug" or "trace", each
    /// with all before it.
    log_level: LogLevel = LogLevel::Info, "\"info\"", true;
    /// How large one file of a container's log may become, in bytes, or with K, M, G or T for powers
    /// of 1024. For containers that are started from then on.
    #[serde(deserialize_with = "log_size")]
    container_log_max_size: u64 = 10 << 20, "\"10M\"", true;
    /// How many files of that size are kept of a container's log; the oldest goes first.
    #[serde(deserialize_with = "log_files")]
    container_log_max_files: u32 = 3, "3", true;
    /// How many threads copy files, up to 256. 0 is one for each processor.
    #[serde(deserialize_with = "copy_threads")]
    copy_threads: usize = 0, "0", true;
    /// Whether device nodes in an imported image are made. Where not, such an image is refused.
    image_devices: bool = false, "false", true;
}

/// How much the daemon says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what was done.
    Info,
    /// And every request.
    Debug,
    /// And every step.
    Trace,
}

impl Config {
    /// The configuration in `file`, or in [`DEFAULT_FILE`], or where that does not exist the
    /// defaults.
    ///
    /// # Errors
    ///
    /// A named file that does not exist; a file that can't be read; as [`Config::parse`].
    pub fn read(file: Option<&Path>) -> Result<Self, Error> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }

    /// The configuration that `text` is. `path` is for messages.
    ///
    /// # Errors
    ///
    /// Text that is not TOML; an unknown key, with the nearest known one; a value of the wrong type
    /// or out of range.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let at = |offset: usize, reason: String| Error::Line {
            path: path.to_owned(),
            line: 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count(),
            reason,
        };
        let wrong = |error: toml::de::Error| {
            at(error.span().map_or(0, |span| span.start), error.message().to_owned())
        };
        let table = DeTable::parse(text).map_err(wrong)?;
        for key in table.get_ref().keys() {
            let name = key.get_ref();
            if !KEYS.iter().any(|known| known.name == name) {
                return Err(at(key.span().start, unknown(name)));
            }
        }
        toml::from_str(text).map_err(wrong)
    }

    /// The directory of what needs to be known only while the machine runs.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| self.root.join("run"))
    }
}

/// A file with every key, each with what it does and its default, as a comment.
#[must_use]
pub fn sample() -> String {
    let mut text = format!("# The configuration of kleened. It is read from {DEFAULT_FILE}\n");
    text.push_str("# unless --config names another file. Each key stands here with its default.\n");
    for key in KEYS {
        text.push('\n');
        for line in key.about {
            let _ = writeln!(text, "#{line}");
        }
        let _ = writeln!(text, "#{} = {}", key.name, key.sample);
    }
    text
}

fn unknown(name: &str) -> String {
    let nearest = KEYS
        .iter()
        .map(|key| (strsim::damerau_levenshtein(name, key.name), key.name))
        .min()
        .filter(|(distance, key)| *distance <= key.len() / 2);
    match nearest {
        Some((_, key)) => {
            format!("unknown key '{}'; the nearest known one is '{key}'", name.escape_default())
        }
        None => {
            let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("unknown key '{}'; known are {}", name.escape_default(), known.join(", "))
        }
    }
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() && path.file_name().is_some() {
        Ok(path)
    } else {
        Err(D::Error::custom(format!("'{}' is not an absolute path below '/'", path.display())))
    }
}

fn root<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    let path = Path::new(&text);
    if path.is_absolute() && path.file_name().is_some() || is_dataset(&text) {
        return Ok(path.to_owned());
    }
    Err(D::Error::custom(format!(
        "'{}' is not an absolute path below '/', nor a dataset of a pool, as 'zroot/kleene'",
        text.escape_default()
    )))
}

/// Whether the text is the name of a dataset that is not the root of its pool, as `zfs(8)` has it.
#[must_use]
pub fn is_dataset(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    let component = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(known);
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.contains('/')
        && text.split('/').all(component)
}

fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    // A socket's path has at most 103 bytes, and while the socket is made its name ends with the
    // number of the process.
    at_most(95, absolute(deserializer)?)
}

fn at_most<E: serde::de::Error>(bytes: usize, path: PathBuf) -> Result<PathBuf, E> {
    if path.as_os_str().len() <= bytes {
        Ok(path)
    } else {
        Err(E::custom(format!("'{}' has more than {bytes} bytes", path.display())))
    }
}

fn optional_run_dir<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    // The supervisors' sockets are below it, and a socket's path has at most 103 bytes.
    at_most(60, absolute(deserializer)?).map(Some)
}

fn socket_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
    let text = Text::deserialize(deserializer)?;
    let Text::Text(text) = text else {
        return Err(D::Error::custom("the mode must be in quotes, as \"0660\""));
    };
    match text.parse::<Mode>() {
        Ok(mode) if mode.0 <= 0o777 => Ok(mode),
        _ => {
            Err(D::Error::invalid_value(Unexpected::Str(&text), &"an octal number up to \"0777\""))
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Ok(Duration::from_secs(u32::deserialize(deserializer)?.into()))
}

fn log_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Size::deserialize(deserializer) {
        Ok(Size(bytes)) if bytes >= 4096 => Ok(bytes),
        _ => Err(D::Error::custom(
            "the size must be a number of bytes, or one such as \"10M\", from \"4K\" on",
        )),
    }
}

fn log_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let files = u32::deserialize(deserializer)?;
    if (1..=1000).contains(&files) {
        Ok(files)
    } else {
        Err(D::Error::invalid_value(Unexpected::Unsigned(files.into()), &"a number from 1 to 1000"))
    }
}

fn copy_threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let threads = u16::deserialize(deserializer)?;
    if threads <= 256 {
        Ok(threads.into())
    } else {
        let given = Unexpected::Unsigned(threads.into());
        Err(D::Error::invalid_value(given, &"a number from 0 to 256"))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Other(serde::de::IgnoredAny),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("f"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_holds_the_defaults() {
        let commented = parse(&sample()).unwrap();
        assert_eq!(commented, Config::default());
        let plain: String =
            KEYS.iter().map(|key| format!("{} = {}\n", key.name, key.sample)).collect();
        let given = parse(&plain).unwrap();
        let examples: Vec<_> =
            given.differences(&Config::default()).iter().map(|key| key.name).collect();
        assert_eq!(examples, ["run_dir", "socket_group"]);
        for key in KEYS {
            assert!(key.about.iter().all(|line| !line.trim().is_empty()), "{}", key.name);
        }
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest() {
        assert_eq!(
            parse("root = '/x'\n\nsokcet = '/y'\n").unwrap_err(),
            "f, line 3: unknown key 'sokcet'; the nearest known one is 'socket'"
        );
        let far = parse("\"wholly \\n different\" = 1").unwrap_err();
        assert!(far.contains(r"'wholly \n different'; known are root, storage, "), "{far}");
        assert!(parse("[socket]\nmode = 1").is_err());
        assert!(parse("[http]\nport = 1").unwrap_err().contains("line 1: unknown key 'http'"));
    }

    #[test]
    fn values_are_checked() {
        let config = parse(
            "root = '/data'\nsocket_mode = '0600'\ncontainer_log_max_size = '64K'\nstop_timeout = 3\n\
             read_only_users = ['nobody']\nlog_level = 'debug'",
        )
        .unwrap();
        assert_eq!(config.socket_mode, Mode(0o600));
        assert_eq!(config.container_log_max_size, 65536);
        assert_eq!(config.stop_timeout, Duration::from_secs(3));
        assert_eq!(config.run_dir(), Path::new("/data/run"));
        assert_eq!(
            parse("root = 'zroot/a.b/c_d:1-2'").unwrap().root,
            Path::new("zroot/a.b/c_d:1-2")
        );
        for (bad, says) in [
            ("root = 'data'", "line 1: 'data' is not an absolute path"),
            ("root = 'data/'", "nor a dataset of a pool"),
            ("root = '../data'", "nor a dataset of a pool"),
            ("root = 'data/a b'", "nor a dataset of a pool"),
            ("root = 'data/a@b'", "nor a dataset of a pool"),
            ("root = '1st/data'", "nor a dataset of a pool"),
            ("root = '/'", "not an absolute path below '/'"),
            ("\nsocket_mode = '0999'", "line 2: invalid value"),
            ("socket_mode = 0o660", "in quotes"),
            ("socket_mode = '7777'", "0777"),
            ("stop_timeout = -1", "-1"),
            ("stop_timeout = '10s'", "expected"),
            ("container_log_max_size = '10 apples'", "10M"),
            ("container_log_max_size = '99999999999G'", "10M"),
            ("container_log_max_size = 1", "4K"),
            ("container_log_max_files = 0", "1 to 1000"),
            ("log_level = 'loud'", "`error`, `warn`"),
            ("run_dir = 'rel'", "absolute"),
            ("copy_threads = 'many'", "line 1"),
            ("copy_threads = 257", "0 to 256"),
            ("copy_threads = -1", "line 1"),
            ("image_devices = 1", "boolean"),
            ("root = '/a'\nroot = '/b'", "line 2: duplicate key"),
            ("root = ", "line 1"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?} gave {error}");
        }
        let socket = |bytes: usize| format!("socket = '/{}'", "s".repeat(bytes - 1));
        assert!(parse(&socket(95)).is_ok());
        assert!(parse(&socket(96)).unwrap_err().contains("more than 95 bytes"));
    }

    #[test]
    fn only_a_default_file_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.toml");
        assert!(matches!(Config::read(Some(&missing)), Err(Error::Read { .. })));
        let file = folder.path().join("kleened.toml");
        std::fs::write(&file, "copy_threads = 7").unwrap();
        assert_eq!(Config::read(Some(&file)).unwrap().copy_threads, 7);
    }
}
