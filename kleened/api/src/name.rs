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

/// The project of what is named without one.
pub const DEFAULT_PROJECT: &str = "default";

const NAME_RULE: &str =
    "a name has 1 to 128 bytes, starts with a letter or digit, and holds only A-Z a-z 0-9 _ . -";
const SCOPED_RULE: &str = "a name has 1 to 128 bytes, starts with a letter or digit, and holds only A-Z a-z 0-9 _ . -; \
     before it there may be PROJECT: of 1 to 63 of a-z 0-9 -, with a letter or digit at both ends and no --";
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

/// `NAME`, or `PROJECT:NAME` without the default project.
fn scoped(text: &str) -> Option<&str> {
    match text.split_once(':') {
        None => is_name(text).then_some(text),
        Some((DEFAULT_PROJECT, name)) => is_name(name).then_some(name),
        Some((project, name)) => (is_component(project) && is_name(name)).then_some(text),
    }
}

macro_rules! checked_string {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:expr, $canonical:expr) => {
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
                let canonical: fn(&str) -> Option<&str> = $canonical;
                match canonical(text) {
                    Some(name) => Ok(Self(name.to_owned())),
                    None => Err(NameError { what: $what, text: text.to_owned(), rule: $rule }),
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
    /// The name of a project: a DNS label without `--`.
    ProjectName, "project name", COMPONENT_RULE, |text| is_component(text).then_some(text)
);
checked_string!(
    /// The name of a volume, which is also its id: `NAME` in the default project, `PROJECT:NAME` in
    /// another.
    VolumeName, "volume name", SCOPED_RULE, scoped
);
checked_string!(
    /// The name of a new snapshot. Those that others made may have other names.
    SnapshotName, "snapshot name", COMPONENT_RULE, |text| is_component(text).then_some(text)
);
checked_string!(
    /// A volume as a person writes it: `[PROJECT:]NAME`, where the project may be left out.
    VolumeRef, "volume name", SCOPED_RULE, |text| scoped(text).map(|_| text)
);
checked_string!(
    /// The name of a container. Unique among the containers of a project.
    ContainerName, "container name", NAME_RULE, |text| is_name(text).then_some(text)
);
checked_string!(
    /// A container as a person writes it: `[PROJECT:]NAME`, where the project may be left out and `NAME`
    /// may also be an id or the beginning of one.
    ContainerRef, "container name", SCOPED_RULE, |text| scoped(text).map(|_| text)
);

impl Default for ProjectName {
    fn default() -> Self {
        Self(DEFAULT_PROJECT.to_owned())
    }
}

impl ProjectName {
    /// Whether it is the one of what is named without a project.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_PROJECT
    }
}

impl VolumeName {
    /// The project.
    #[must_use]
    pub fn project(&self) -> ProjectName {
        match self.0.split_once(':') {
            Some((project, _)) => ProjectName(project.to_owned()),
            None => ProjectName::default(),
        }
    }

    /// The name without the project.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, name)| name)
    }
}

impl ProjectName {
    /// The volume that is meant where this is the project of what is named without one.
    ///
    /// # Errors
    ///
    /// What is no [`VolumeRef`].
    pub fn volume(&self, text: &str) -> Result<VolumeName, NameError> {
        let name: VolumeName = text.parse()?;
        if text.contains(':') || self.is_default() {
            return Ok(name);
        }
        Ok(VolumeName(format!("{self}:{name}")))
    }

    /// The project and the rest of a [`ContainerRef`] that is meant where this is the project of what is
    /// named without one.
    ///
    /// # Errors
    ///
    /// What is no name of a project.
    pub fn container<'t>(&self, text: &'t str) -> Result<(Self, &'t str), NameError> {
        match text.split_once(':') {
            Some((project, name)) => Ok((project.parse()?, name)),
            None => Ok((self.clone(), text)),
        }
    }
}

checked_string!(
    /// The id of a container, image or execution instance: 12 lower-case hexadecimal digits, never
    /// all decimal, because `jail(8)` would read such a name as a jail id.
    Id, "id", ID_RULE,
    |text| (text.len() == 12
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && !text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
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
    fn a_name_may_have_a_project() {
        let name: VolumeName = "web-2:Data".parse().unwrap();
        assert_eq!((name.project().as_str(), name.name()), ("web-2", "Data"));
        let name: VolumeName = "default:data".parse().unwrap();
        assert_eq!((name.as_str(), name.project().is_default()), ("data", true));
        let web: ProjectName = "web".parse().unwrap();
        let within = |text: &str| web.volume(text).map(String::from).ok();
        assert_eq!(within("data").as_deref(), Some("web:data"));
        assert_eq!(within("shop:data").as_deref(), Some("shop:data"));
        assert_eq!(within("default:data").as_deref(), Some("data"));
        assert_eq!(within("a/b"), None);
        let long = format!("{}:a", "p".repeat(64));
        for bad in [":a", "a:", "Web:a", "a:b:c", "-a:b", "a-:b", "a--b:c", "a_b:c", "a.b:c", &long]
        {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was accepted");
        }
        assert!("p".repeat(63).parse::<ProjectName>().is_ok());
        assert!("".parse::<ProjectName>().is_err());
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
