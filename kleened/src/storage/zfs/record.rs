//! A dataset's record, in user properties; and what its root directory is to be given, as text.
//!
//! | property | |
//! | --- | --- |
//! | `org.kleene:record` | the record; of a long one `#N#` and the first of its `N` parts |
//! | `org.kleene:record.2` … `.N` | the other parts |
//!
//! User properties are inherited, so one counts only where the dataset itself has it. All parts are set
//! in one call, and what an earlier, longer record left behind does not count.

use std::str::FromStr;

use kleened_api::volume::{Mode, Owner};
use kleened_sys::zfs::{Error as SysError, NvList};

/// The record's property.
pub(super) const RECORD: &str = "org.kleene:record";

/// The longest value that ZFS takes for a user property.
const LONGEST: usize = 8191;

/// The properties that hold the record.
pub(super) fn split(record: &str) -> Vec<(String, String)> {
    if record.len() <= LONGEST && !record.starts_with('#') {
        return vec![(RECORD.to_owned(), record.to_owned())];
    }
    // Room for the mark before the first part.
    let (mut parts, mut rest, mut room) = (Vec::new(), record, LONGEST - 16);
    loop {
        let (part, after) = rest.split_at(rest.floor_char_boundary(room));
        parts.push(part);
        if after.is_empty() {
            break;
        }
        (rest, room) = (after, LONGEST);
    }
    let mark = format!("#{}#", parts.len());
    let numbered = parts.iter().enumerate().map(|(index, part)| match index {
        0 => (RECORD.to_owned(), mark.clone() + part),
        _ => (format!("{RECORD}.{}", index + 1), (*part).to_owned()),
    });
    numbered.collect()
}

/// The list sets the record.
///
/// # Errors
///
/// What the list says.
pub(super) fn put(list: &mut NvList, record: &str) -> Result<(), SysError> {
    split(record).into_iter().try_for_each(|(name, value)| list.put_text(&name, &value))
}

/// Whether the record may go on in other properties.
pub(super) fn has_parts(first: &str) -> bool {
    first.starts_with('#')
}

/// The record in the dataset's own properties. Where a part is missing, which only a person can have
/// brought about, it is what is in the first one.
pub(super) fn join<'p>(own: impl Fn(&str) -> Option<&'p str>) -> Option<String> {
    let first = own(RECORD)?;
    let whole = first.strip_prefix('#').and_then(|marked| {
        let (count, part) = marked.split_once('#')?;
        let mut record = part.to_owned();
        for number in 2..=count.parse::<usize>().ok()? {
            record += own(&format!("{RECORD}.{number}"))?;
        }
        Some(record)
    });
    Some(whole.unwrap_or_else(|| first.to_owned()))
}

/// What a root directory is still to be given: `UID:GID:MODE`, each of which may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) owner: Option<Owner>,
    pub(super) mode: Option<Mode>,
}

impl Pending {
    /// `None` where there is nothing to give.
    pub(super) fn new(owner: Option<Owner>, mode: Option<Mode>) -> Option<Self> {
        (owner.is_some() || mode.is_some()).then_some(Self { owner, mode })
    }
}

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.owner {
            Some(Owner { uid, gid }) => write!(f, "{uid}:{gid}:")?,
            None => f.write_str("::")?,
        }
        self.mode.map_or(Ok(()), |Mode(mode)| write!(f, "{mode:o}"))
    }
}

impl FromStr for Pending {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split(':');
        let mut field = || fields.next().ok_or(());
        let (uid, gid, mode) = (field()?, field()?, field()?);
        let owner = match (uid, gid) {
            ("", "") => None,
            _ => Some(Owner { uid: uid.parse().or(Err(()))?, gid: gid.parse().or(Err(()))? }),
        };
        let mode = match mode {
            "" => None,
            octal => Some(Mode(u32::from_str_radix(octal, 8).or(Err(()))? & 0o7777)),
        };
        Self::new(owner, mode).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn there_and_back(record: &str) -> (usize, Option<String>) {
        let parts: BTreeMap<_, _> = split(record).into_iter().collect();
        assert!(parts.values().all(|part| part.len() <= LONGEST), "a part is too long");
        (parts.len(), join(|name| parts.get(name).map(String::as_str)))
    }

    #[test]
    fn a_record_of_any_length_comes_back() {
        for (record, parts) in [
            (String::new(), 1),
            ("{}".to_owned(), 1),
            ("#".to_owned(), 1),
            ("#2#x".to_owned(), 1),
            ("#1#".to_owned(), 1),
            ("x".repeat(LONGEST), 1),
            ("x".repeat(LONGEST + 1), 2),
            ("#".repeat(LONGEST), 2),
            ("✓".repeat(LONGEST), 4),
            ("x".repeat(100 * LONGEST), 101),
        ] {
            assert_eq!(there_and_back(&record), (parts, Some(record)));
        }
    }

    #[test]
    fn what_is_left_of_a_longer_record_does_not_count() {
        let mut kept: BTreeMap<_, _> = split(&"x".repeat(30_000)).into_iter().collect();
        kept.extend(split("short"));
        assert_eq!(kept.len(), 4);
        assert_eq!(join(|name| kept.get(name).map(String::as_str)).as_deref(), Some("short"));
    }

    #[test]
    fn a_record_with_a_part_missing_is_not_taken_for_whole() {
        let mut kept: BTreeMap<_, _> =
            split(&format!("{{{}", "x".repeat(30_000))).into_iter().collect();
        kept.remove("org.kleene:record.3");
        let found = join(|name| kept.get(name).map(String::as_str)).unwrap();
        assert!(found.starts_with("#4#{x"), "{found:.9}");
        assert_eq!(join(|_| None), None);
    }

    #[test]
    fn what_is_pending_comes_back() {
        let owner = Some(Owner { uid: 770, gid: 4_000_000_000 });
        for (owner, mode, text) in [
            (owner, Some(Mode(0o3770)), "770:4000000000:3770"),
            (owner, None, "770:4000000000:"),
            (None, Some(Mode(0)), "::0"),
        ] {
            let pending = Pending::new(owner, mode).unwrap();
            assert_eq!(pending.to_string(), text);
            assert_eq!(text.parse(), Ok(pending));
        }
        for bad in ["", ":", "::", "1::", "a:b:c", "::9", "-1:0:"] {
            assert_eq!(bad.parse::<Pending>(), Err(()), "{bad}");
        }
    }
}
