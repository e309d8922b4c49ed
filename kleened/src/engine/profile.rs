//! Profiles: properties of a volume's dataset that suit one kind of content.
//!
//! The values are those that OpenZFS's own advice ("Workload Tuning") gives or that follow from how
//! the programs write, and none that trades safety for speed. What a property does is in
//! `zfsprops(7)`.

use std::collections::BTreeMap;

use kleened_api::volume::{Profile, ProfileProperty};

use crate::error::{Error, Result};

/// A profile: its name, what it is for, and its properties, each with the reason for its value.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str, &'static str)]);

const NO_ATIME: (&str, &str, &str) = ("atime", "off", "reading a file must not write");
const LZ4: (&str, &str, &str) =
    ("compression", "lz4", "costs next to nothing and halves most tables");

const PROFILES: &[Row] = &[
    (
        "postgres",
        "PostgreSQL, and other databases with pages of 8 KiB",
        &[
            (
                "recordsize",
                "16K",
                "two pages: little is read or written in vain, and compression has something to do",
            ),
            ("logbias", "latency", "a commit waits for the intent log"),
            ("primarycache", "all", "it keeps few pages itself and relies on the system's cache"),
            LZ4,
            NO_ATIME,
        ],
    ),
    (
        "mariadb",
        "MariaDB and MySQL with InnoDB",
        &[
            ("recordsize", "16K", "InnoDB's page: each is read and written alone"),
            ("logbias", "latency", "a commit waits for the intent log"),
            ("primarycache", "metadata", "InnoDB's buffer pool keeps the pages; twice is a waste"),
            LZ4,
            NO_ATIME,
        ],
    ),
    (
        "media",
        "large files that are written once and read from end to end: pictures, films, backups",
        &[
            ("recordsize", "1M", "few large records: less metadata, long reads"),
            ("logbias", "throughput", "nobody waits for one write"),
            ("primarycache", "all", "reading ahead needs it"),
            (
                "secondarycache",
                "metadata",
                "one film would push everything else out of a cache device",
            ),
            NO_ATIME,
        ],
    ),
    (
        "log",
        "text that is appended to and seldom read: logs, exports",
        &[
            (
                "recordsize",
                "128K",
                "a line that is appended rewrites its record, which must not be large",
            ),
            ("logbias", "throughput", "log lines must not be in the way of a database's commits"),
            ("primarycache", "all", "the end of a log is read again and again"),
            ("compression", "zstd", "text becomes a tenth, and nobody waits for it"),
            NO_ATIME,
        ],
    ),
];

/// The profiles.
#[must_use]
pub fn profiles() -> Vec<Profile> {
    let property = |(name, value, why): &(&str, &str, &str)| ProfileProperty {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
        why: (*why).to_owned(),
    };
    let profile = |(name, about, properties): &Row| Profile {
        name: (*name).to_owned(),
        about: (*about).to_owned(),
        properties: properties.iter().map(property).collect(),
    };
    PROFILES.iter().map(profile).collect()
}

/// That there is a profile of that name.
pub(super) fn check(name: &str) -> Result<()> {
    if PROFILES.iter().any(|(known, ..)| *known == name) {
        return Ok(());
    }
    let known: Vec<_> = PROFILES.iter().map(|(known, ..)| *known).collect();
    let name = name.escape_default();
    Err(Error::Invalid(format!("there is no profile '{name}': known are {}", known.join(", "))))
}

/// The properties of a profile; none for a profile of a later version.
pub(super) fn properties(name: Option<&str>) -> BTreeMap<String, String> {
    let rows = PROFILES.iter().filter(|(known, ..)| Some(*known) == name);
    rows.flat_map(|(.., properties)| properties.iter())
        .map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}
