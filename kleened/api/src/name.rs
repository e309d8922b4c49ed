//! Names, ids and references: what is allowed, checked alike by client and daemon.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of a volume, container, image or tag, in bytes.
pub const MAX_NAME: usize = 128;

/// A text that is no valid name, with the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} '{}' is not allowed: {rule}", .text.escape_default())]
pub struct NameError {
    /// What was to be named, for example `volume name`.
    pub what: &'static str,
    /// The text as it was given.
    pub text: String,
    /// The rule, in words.
    pub rule: &'static str,
}

const NAME_RULE: &str =
    "a name has 1 to 128 bytes, starts with a letter or digit, and holds only A-Z a-z 0-9 _ . -";
const ID_RULE: &str = "an id has 12 lower-case hexadecimal digits, not all of them decimal";
const COMPONENT_RULE: &str = "a name has 1 to 63 characters, holds only a-z 0-9 -, starts and ends with a letter or digit, \
     and has no two '-' in a row";
const REFERENCE_RULE: &str = "an image reference is NAME[:TAG][@SNAPSHOT], and NAME, TAG and SNAPSHOT start with a letter or \
     digit and hold only A-Z a-z 0-9 _ . -";

/// Whether `text` has 1–128 bytes and matches `[A-Za-z0-9][A-Za-z0-9_.-]*`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `text` has 1–63 characters of `a-z0-9-`, begins and ends with another than `-`, and has no `--`.
#[must_use]
pub fn is_component(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

macro_rules! checked_string {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError { what: $what, text: text.to_owned(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_string!(
    /// The name of a volume, which is also its id.
    VolumeName, "volume name", NAME_RULE, is_name
);
checked_string!(
    /// The name of a new snapshot. Those that others made may have other names.
    SnapshotName, "snapshot name", COMPONENT_RULE, is_component
);
checked_string!(
    /// The name of a container. Unique among containers.
    ContainerName, "container name", NAME_RULE, is_name
);
checked_string!(
    /// The id of a container, image or execution instance: 12 lower-case hexadecimal digits, never
    /// all decimal, because `jail(8)` would read such a name as a jail id.
    Id, "id", ID_RULE,
    |text| text.len() == 12
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && !text.bytes().all(|b| b.is_ascii_digit())
);

/// A reference to an image as a person writes it: `NAME[:TAG][@SNAPSHOT]`, where `NAME` may also be
/// an id or the beginning of one. Without a tag, `latest` is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// The name, or an id or its beginning.
    pub name: String,
    /// The tag, where one was written.
    pub tag: Option<String>,
    /// The snapshot, where one was written.
    pub snapshot: Option<String>,
}

impl ImageRef {
    /// The tag that is meant: the written one or `latest`.
    #[must_use]
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }
}

impl FromStr for ImageRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (rest, snapshot) = match text.split_once('@') {
            Some((rest, snapshot)) => (rest, Some(snapshot)),
            None => (text, None),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if is_name(name) && tag.is_none_or(is_name) && snapshot.is_none_or(is_name) {
            Ok(Self {
                name: name.to_owned(),
                tag: tag.map(str::to_owned),
                snapshot: snapshot.map(str::to_owned),
            })
        } else {
            Err(NameError { what: "image reference", text: text.to_owned(), rule: REFERENCE_RULE })
        }
    }
}

impl TryFrom<String> for ImageRef {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        Ok(())
    }
}

/// Checks the name in an environment variable `NAME=VALUE`, or a `NAME` alone.
///
/// # Errors
///
/// An empty name; one with a blank or a control character in it.
pub fn check_variable(text: &str) -> Result<(), NameError> {
    let name = text.split('=').next().unwrap_or_default();
    if !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Ok(());
    }
    Err(NameError {
        what: "environment variable",
        text: text.to_owned(),
        rule: "a variable is NAME=VALUE, and NAME is not empty and holds no blank or control character",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_names() {
        for good in ["A", "a.b-c", "_=", "Æ=a b=c"] {
            assert_eq!(check_variable(good), Ok(()));
        }
        for bad in ["", "=x", "A B", " A=x", "A\t", "A\0=B"] {
            assert!(check_variable(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn volume_names_follow_the_rule() {
        let longest = "v".repeat(MAX_NAME);
        for good in ["a", "0", "my-vol", "A_b.c-9", longest.as_str()] {
            assert_eq!(good.parse::<VolumeName>().map(String::from), Ok(good.to_owned()));
        }
        let too_long = "v".repeat(MAX_NAME + 1);
        for bad in
            ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "a@b", "$(id)", "%41", &too_long]
        {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_refusal_escapes_what_it_shows() {
        let error = "a\u{1b}[2J".parse::<VolumeName>().unwrap_err().to_string();
        assert!(error.contains(r"a\u{1b}[2J"), "{error}");
        assert!(error.contains("1 to 128 bytes"), "{error}");
    }

    #[test]
    fn ids_are_never_all_decimal() {
        assert!("0123456789ab".parse::<Id>().is_ok());
        assert!("012345678901".parse::<Id>().is_err());
        assert!("0123456789AB".parse::<Id>().is_err());
        assert!("0123456789a".parse::<Id>().is_err());
    }

    #[test]
    fn image_references_come_apart_and_together() {
        let full: ImageRef = "FreeBSD:14.2@0123456789ab".parse().unwrap();
        assert_eq!((full.name.as_str(), full.tag_or_latest()), ("FreeBSD", "14.2"));
        assert_eq!(full.to_string(), "FreeBSD:14.2@0123456789ab");
        assert_eq!("base".parse::<ImageRef>().unwrap().tag_or_latest(), "latest");
        for bad in ["", ":x", "a:", "a:b:c", "a@b@c", "a/b", "a:b@"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?} was accepted");
        }
    }
}
