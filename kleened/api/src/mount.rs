//! Mounts: what a container asks for and what is recorded.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::lenient;
use crate::name::VolumeRef;

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// A volume, by its name.
    Volume,
    /// A directory or file of the host, by its absolute path.
    Nullfs,
}

impl MountType {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Nullfs => "nullfs",
        }
    }
}

/// A mount that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountPointConfig {
    /// What is mounted.
    #[serde(rename = "type")]
    pub kind: MountType,
    /// The name of the volume, or the absolute path on the host.
    #[serde(default)]
    pub source: String,
    /// The absolute path in the container.
    #[serde(default)]
    pub destination: String,
    /// Whether nothing below the destination can be written.
    #[serde(default, deserialize_with = "lenient::boolean")]
    pub read_only: bool,
    /// Whether the image's content stays out of a new volume.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "lenient::boolean")]
    pub nocopy: bool,
    /// Whether the volume is one of the container's own: the daemon gives it a random name, and
    /// removes it with a container that is removed when it has ended. Asked for without a source.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "lenient::boolean")]
    pub anonymous: bool,
    /// A path inside the volume that is mounted instead of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// What else can't be done below the destination.
    #[serde(flatten)]
    pub options: MountOptions,
}

/// What can't be done with the files of a mount, as in `mount(8)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountOptions {
    /// Whether set-user-id and set-group-id bits have no effect.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "lenient::boolean")]
    pub nosuid: bool,
    /// Whether no program can be executed.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "lenient::boolean")]
    pub noexec: bool,
    /// Whether no symbolic link is followed.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "lenient::boolean")]
    pub nosymfollow: bool,
}

impl MountOptions {
    /// The option of that name.
    fn named(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "nosuid" => Some(&mut self.nosuid),
            "noexec" => Some(&mut self.noexec),
            "nosymfollow" => Some(&mut self.nosymfollow),
            _ => None,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A mount of a container, as inspect shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountPoint {
    /// The container's id.
    pub container_id: String,
    /// What was asked for.
    #[serde(flatten)]
    pub config: MountPointConfig,
}

/// A mount that cannot be made as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mount '{}': {reason}", .text.escape_default())]
pub struct MountError {
    /// The mount as it was written.
    pub text: String,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl MountPointConfig {
    /// Checks what can be checked without looking at a file system, and brings the paths into
    /// normal form: no repeated or trailing slashes, no `.` components.
    ///
    /// # Errors
    ///
    /// An empty or relative destination, one of `/` or with a `..` component; a volume name that
    /// breaks the rule; a host path that is not absolute; a NUL byte; a subpath of a host path, or
    /// one that is absolute or has a `..` component.
    pub fn checked(mut self) -> Result<Self, MountError> {
        let fail = |reason: String| MountError { text: self.to_string(), reason };
        let Some(destination) = normal_path(&self.destination) else {
            return Err(fail(
                "the destination must be an absolute path in the container without '..'".into(),
            ));
        };
        if destination == "/" {
            return Err(fail("the destination must not be the container's root '/'".into()));
        }
        if matches!(destination.as_str(), "/dev" | "/proc") {
            return Err(fail(format!(
                "the destination must not be {destination}, which the container has from the kernel"
            )));
        }
        let source = match self.kind {
            MountType::Volume if self.anonymous && self.source.is_empty() => String::new(),
            _ if self.anonymous => {
                return Err(fail("an anonymous mount is of a volume, and names none".into()));
            }
            // Which project is meant is for the daemon to say.
            MountType::Volume => match self.source.parse::<VolumeRef>() {
                Ok(name) => name.to_string(),
                Err(error) => return Err(fail(error.to_string())),
            },
            MountType::Nullfs if self.source.is_empty() => {
                return Err(fail("the source is missing: an absolute host path".into()));
            }
            MountType::Nullfs => match normal_path(&self.source) {
                Some(path) => path,
                None => {
                    return Err(fail(
                        "the source must be a volume name or an absolute host path without '..'"
                            .into(),
                    ));
                }
            },
        };
        let subpath = match &self.subpath {
            None => None,
            Some(_) if self.kind == MountType::Nullfs => {
                return Err(fail("only a volume can have a subpath".into()));
            }
            Some(path) if path.starts_with('/') => {
                return Err(fail("the subpath must be relative to the volume".into()));
            }
            Some(path) => match normal_path(&format!("/{path}")) {
                Some(path) if path == "/" => None,
                Some(path) => Some(path[1..].to_owned()),
                None => return Err(fail("the subpath must not contain '..'".into())),
            },
        };
        self.destination = destination;
        self.source = source;
        self.subpath = subpath;
        Ok(self)
    }
}

/// Checks each of several mounts and that no two have the same destination.
///
/// # Errors
///
/// As [`MountPointConfig::checked`]; two mounts on one destination.
pub fn checked(mounts: Vec<MountPointConfig>) -> Result<Vec<MountPointConfig>, MountError> {
    let mut seen = std::collections::HashSet::new();
    mounts
        .into_iter()
        .map(|mount| {
            let mount = mount.checked()?;
            if seen.insert(mount.destination.clone()) {
                Ok(mount)
            } else {
                Err(MountError {
                    text: mount.to_string(),
                    reason: format!("another mount has the destination {} too", mount.destination),
                })
            }
        })
        .collect()
}

/// The path without repeated slashes, trailing slashes and `.`; `None` unless it is absolute,
/// free of `..` and of NUL, and short enough for the kernel.
#[must_use]
pub fn normal_path(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') || path.len() >= 1024 {
        return None;
    }
    let mut normal = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." || part.len() > 255 {
            return None;
        }
        normal.push('/');
        normal.push_str(part);
    }
    Some(if normal.is_empty() { "/".to_owned() } else { normal })
}

impl fmt::Display for MountPointConfig {
    /// The short form, `SOURCE:DESTINATION[:ro][,nocopy][,nosuid][,noexec][,nosymfollow]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.destination)?;
        if self.read_only {
            f.write_str(":ro")?;
        }
        let MountOptions { nosuid, noexec, nosymfollow } = self.options;
        let options = [
            (self.nocopy, ",nocopy"),
            (nosuid, ",nosuid"),
            (noexec, ",noexec"),
            (nosymfollow, ",nosymfollow"),
        ];
        options.into_iter().filter(|(given, _)| *given).try_for_each(|(_, name)| f.write_str(name))
    }
}

impl FromStr for MountPointConfig {
    type Err = MountError;

    /// Reads `SOURCE:DESTINATION[:ro|rw][,OPTION…]`, where an option is `nocopy` or one of
    /// [`MountOptions`], or Docker's `type=volume,source=…,target=…` form, and checks it as
    /// [`MountPointConfig::checked`] does.
    fn from_str(text: &str) -> Result<Self, MountError> {
        let parsed = if is_long_form(text) { parse_long(text) } else { parse_short(text) };
        parsed
            .map_err(|reason| MountError { text: text.to_owned(), reason })?
            .checked()
            .map_err(|error| MountError { text: text.to_owned(), ..error })
    }
}

fn is_long_form(text: &str) -> bool {
    let first = text.split(',').next().unwrap_or_default();
    first.split_once('=').is_some_and(|(key, _)| {
        matches!(key, "type" | "source" | "src" | "target" | "destination" | "dst")
    }) || (!first.contains(':') && text.contains(",target=") | text.contains(",dst="))
}

fn parse_short(text: &str) -> Result<MountPointConfig, String> {
    let mut text = text;
    let mut nocopy = false;
    let mut options = MountOptions::default();
    while let Some((rest, name)) = text.rsplit_once(',') {
        let option = if name == "nocopy" { Some(&mut nocopy) } else { options.named(name) };
        let Some(option) = option else { break };
        if std::mem::replace(option, true) {
            return Err(format!("'{name}' is given twice"));
        }
        text = rest;
    }
    // Before the path of the destination: PROJECT:NAME, NAME or a path.
    let (source, rest) = match text.split_once(":/") {
        Some((source, _)) => text.split_at(source.len()),
        None => text.split_once(':').map_or((text, ""), |(source, _)| text.split_at(source.len())),
    };
    let parts: Vec<&str> = [source].into_iter().chain(rest.split(':').skip(1)).collect();
    let (source, destination, read_only) = match parts[..] {
        [source, destination] => (source, destination, false),
        [source, destination, "ro"] => (source, destination, true),
        [source, destination, "rw"] => (source, destination, false),
        [_, _, _] => return Err("the last element must be 'ro' or 'rw'".into()),
        [] | [_] => return Err("write SOURCE:DESTINATION[:ro|rw][,OPTION…]".into()),
        _ => return Err("at most 3 elements can be separated by ':'".into()),
    };
    if destination.contains(',') {
        return Err(
            "after the destination comes ':ro' or ':rw', and then only ',nocopy', ',nosuid', \
             ',noexec' and ',nosymfollow'; a path with a ',' in it needs the form \
             type=volume,source=…,target=…"
                .into(),
        );
    }
    let kind = if source.starts_with('/') { MountType::Nullfs } else { MountType::Volume };
    Ok(MountPointConfig {
        kind,
        source: source.to_owned(),
        destination: destination.to_owned(),
        read_only,
        nocopy,
        anonymous: false,
        subpath: None,
        options,
    })
}

fn parse_long(text: &str) -> Result<MountPointConfig, String> {
    let mut kind = None;
    let mut mount = MountPointConfig {
        kind: MountType::Volume,
        source: String::new(),
        destination: String::new(),
        read_only: false,
        nocopy: false,
        anonymous: false,
        subpath: None,
        options: MountOptions::default(),
    };
    let mut sourced = false;
    let mut given = Vec::new();
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let full = match key {
            "src" => "source",
            "destination" | "dst" => "target",
            "ro" => "readonly",
            key => key,
        };
        if given.contains(&full) {
            return Err(format!("'{full}' is given twice"));
        }
        given.push(full);
        let flag = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!("'{key}' is true or false, not '{other}'")),
        };
        let text = || value.map(str::to_owned).ok_or_else(|| format!("'{key}' needs a value"));
        match full {
            "type" => {
                kind = Some(match value {
                    Some("volume") => MountType::Volume,
                    Some("bind" | "nullfs") => MountType::Nullfs,
                    _ => return Err("'type' is 'volume', 'nullfs' or 'bind'".into()),
                });
            }
            "source" => {
                sourced = true;
                mount.source = text()?;
            }
            "target" => mount.destination = text()?,
            "readonly" => mount.read_only = flag()?,
            "volume-nocopy" => mount.nocopy = flag()?,
            "volume-subpath" => mount.subpath = Some(text()?),
            name => match mount.options.named(name) {
                Some(option) => *option = flag()?,
                None => {
                    return Err(format!(
                        "unknown field '{key}'; known are type, source, target, readonly, nosuid, \
                         noexec, nosymfollow, volume-nocopy and volume-subpath"
                    ));
                }
            },
        }
    }
    // As with Docker. An empty source is more likely a variable that is not set.
    mount.anonymous = !sourced && kind == Some(MountType::Volume);
    if !sourced && !mount.anonymous {
        return Err(
            "the source is missing: write source=NAME or source=/HOST/PATH, or type=volume \
                    for a volume with a random name"
                .into(),
        );
    }
    mount.kind = kind.unwrap_or(if mount.source.starts_with('/') {
        MountType::Nullfs
    } else {
        MountType::Volume
    });
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountPointConfig, MountError> {
        text.parse()
    }

    #[test]
    fn short_forms() {
        let mount = parse("data:/var/db").unwrap();
        assert_eq!((mount.kind, mount.read_only, mount.nocopy), (MountType::Volume, false, false));
        let mount = parse("/srv//x/:/a/./b:ro,nocopy").unwrap();
        assert_eq!(mount.kind, MountType::Nullfs);
        assert_eq!((mount.source.as_str(), mount.destination.as_str()), ("/srv/x", "/a/b"));
        assert!(mount.read_only && mount.nocopy);
        assert_eq!(mount.options, MountOptions::default());
        let mount = parse("web:data:/a:ro").unwrap();
        assert_eq!((mount.source.as_str(), mount.destination.as_str()), ("web:data", "/a"));
        // What project is meant is for the daemon to say.
        assert_eq!(parse("default:data:/a").unwrap().source, "default:data");
        assert!(parse("web:data").is_err() && parse("Web:data:/a").is_err());
    }

    #[test]
    fn options_are_written_as_they_are_read() {
        let text = "v:/a:ro,nocopy,nosuid,noexec,nosymfollow";
        let mount = parse(text).unwrap();
        assert_eq!(mount.to_string(), text);
        let json = serde_json::to_value(&mount).unwrap();
        assert_eq!(json["nosuid"], true, "{json}");
        assert_eq!(serde_json::from_value::<MountPointConfig>(json).unwrap(), mount);

        let mount = parse("v:/a,noexec,nosuid").unwrap();
        assert_eq!(mount, parse("source=v,target=/a,nosuid=1,noexec,nosymfollow=false").unwrap());
        assert!(mount.options.nosuid && mount.options.noexec && !mount.nocopy);
        let json = serde_json::to_value(parse("v:/a").unwrap()).unwrap();
        assert!(json.get("nosuid").is_none(), "{json}");
    }

    #[test]
    fn long_forms() {
        let mount =
            parse("type=volume,source=v,target=/d,readonly,volume-nocopy,volume-subpath=a//b")
                .unwrap();
        assert_eq!(mount.subpath.as_deref(), Some("a/b"));
        assert!(mount.read_only && mount.nocopy);
        assert_eq!(parse("type=bind,src=/h,dst=/d").unwrap().kind, MountType::Nullfs);
        assert!(!parse("type=volume,src=v,dst=/d,ro=false").unwrap().read_only);
        let mount = parse("type=volume,target=/d").unwrap();
        assert!(mount.anonymous && mount.source.is_empty());
        for missing in ["type=bind,target=/d", "type=nullfs,dst=/d", "target=/d,ro"] {
            let error = parse(missing).unwrap_err().to_string();
            assert!(error.contains("the source is missing"), "{missing}: {error}");
        }
    }

    #[test]
    fn refusals() {
        for bad in [
            "",
            "abc",
            "a:b:c:d",
            "a:/b:zz",
            ":/d",
            "v:",
            "v:rel",
            "v:/",
            "v://./",
            "v:/a/../b",
            "../x:/d",
            "a b:/d",
            "type=volume,source=v",
            "type=volume,source=,target=/d",
            "type=tmpfs,target=/d",
            "type=volume,source=v,source=w,target=/d",
            "type=volume,source=v,target=/d,dst=/e",
            "type=volume,source=v,target=/d,ro,readonly=false",
            "type=volume,source=v,target=/d,color=red",
            "type=bind,source=/h,target=/d,volume-subpath=x",
            "type=volume,source=v,target=/d,volume-subpath=../x",
            "type=volume,source=v,target=/d,volume-subpath=/x",
            "v:/a\0b",
            "v:/a,ro",
            "v:/a,nocopy:ro",
            "v:/a,noexec,noexec",
            "v:/a,noexec,ro",
            "v:/a,nodev",
            "source=v,target=/a,nosuid=x",
            "v:/dev/",
            "v:/proc",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn one_destination_is_taken_once() {
        let two = vec![parse("a:/d").unwrap(), parse("b:/d/").unwrap()];
        assert!(checked(two).unwrap_err().to_string().contains("/d"));
    }
}
