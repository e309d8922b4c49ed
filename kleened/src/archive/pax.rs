//! The records of pax headers: what the fields of a header have no room for (`pax(1)`).

use std::collections::BTreeMap;

use rustix::fs::Timespec;

/// Pax records by their keywords.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Adds the records of a pax header: `LENGTH KEYWORD=VALUE\n`, where the length counts all of it and
/// the value may hold any byte. `None` where they make no sense.
pub(super) fn parse(mut bytes: &[u8], records: &mut Records) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|b| *b == b' ')?;
        let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
        let (record, rest) = bytes.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        // A keyword has no `=`, but the names of attributes, which become part of one, may.
        let equals = record.iter().position(|b| *b == b'=')?;
        let (key, value) = record.split_at_checked(equals)?;
        records.insert(key.to_vec(), value.get(1..)?.to_vec());
        bytes = rest;
    }
    Some(())
}

/// The most bytes of global records, vendors' own among them.
const MAX_GLOBAL: usize = 16 << 20;

/// The longest global value that stands for a header's field: the kernels' longest path.
const MAX_GLOBAL_FIELD: usize = 4096;

/// What a record can say in place of a header's field.
const FIELDS: [&[u8]; 6] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"];

/// The records of global headers, which hold for every entry after them. An entry looks up what it
/// needs: however many there are, they are read once.
#[derive(Debug, Default)]
pub(super) struct Global {
    records: Records,
    size: usize,
}

impl Global {
    /// Adds the records of a global header.
    ///
    /// # Errors
    ///
    /// What is wrong with them. Attributes and holes are refused: they would be written for every entry
    /// anew, and no program makes them global.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut added = Records::new();
        parse(bytes, &mut added).ok_or("a global pax header makes no sense")?;
        for (key, value) in added {
            if is_attribute(&key) || key.starts_with(b"GNU.sparse.") {
                return Err(
                    "a global pax header has attributes or holes, which only one entry can have",
                );
            }
            if FIELDS.contains(&&*key) && value.len() > MAX_GLOBAL_FIELD {
                return Err("a global pax record is longer than any path");
            }
            if let Some((key, value)) = self.records.remove_entry(&key) {
                self.size -= key.len() + value.len();
            }
            // An empty one only takes an earlier one back.
            if !value.is_empty() {
                self.size += key.len() + value.len();
                self.records.insert(key, value);
            }
        }
        if self.size > MAX_GLOBAL { Err("it has too many global pax records") } else { Ok(()) }
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    /// What stands for a field of an entry's header: taken from the entry's own records, else the
    /// global one. An empty one of its own takes the global one back.
    pub(super) fn take(&self, own: &mut Records, key: &[u8]) -> Option<Vec<u8>> {
        match own.remove(key) {
            Some(value) => Some(value).filter(|value| !value.is_empty()),
            None => self.records.get(key).cloned(),
        }
    }
}

/// The attributes that stand for FreeBSD's access control lists, and the records of star and bsdtar that
/// hold them as text.
pub(super) const LISTS: [(&[u8], &[u8]); 3] = [
    (b"acl.nfs4", b"SCHILY.acl.ace"),
    (b"acl.access", b"SCHILY.acl.access"),
    (b"acl.default", b"SCHILY.acl.default"),
];

/// Holds the names of file flags.
pub(super) const FLAGS: &[u8] = b"SCHILY.fflags";

/// Takes the extended attributes out of the records.
pub(super) fn take_attributes(records: &mut Records) -> Result<Records, String> {
    let mut xattrs = Records::new();
    let keys: Vec<_> = records.keys().filter(|key| is_attribute(key)).cloned().collect();
    for key in keys {
        let Some(value) = records.remove(&key) else { continue };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(unescaped(name), value);
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            // bsdtar writes both; the other one can hold every value as it is, this one every name.
            let name = percent_decoded(name).ok_or("has an attribute with a bad name")?;
            let value = base64_decoded(&value).ok_or("has an attribute with a bad value")?;
            xattrs.entry(name).or_insert(value);
        } else if let Some(list) = LISTS.iter().find(|(_, record)| *record == key)
            && cfg!(target_os = "freebsd")
        {
            xattrs.insert(list.0.to_vec(), value);
        } else {
            return Err(
                "has an ACL as text, which this program can't extract; make the archive with \
                        --xattrs in place of --acls"
                    .into(),
            );
        }
    }
    if xattrs.keys().any(|name| name.is_empty() || name.contains(&0)) {
        return Err("has an attribute with a bad name".into());
    }
    Ok(xattrs)
}

/// An empty value takes a record back; but an attribute may well be empty.
pub(super) fn is_unset(key: &[u8], value: &[u8]) -> bool {
    value.is_empty() && !is_attribute(key)
}

fn is_attribute(key: &[u8]) -> bool {
    [&b"SCHILY.xattr."[..], b"LIBARCHIVE.xattr.", b"SCHILY.acl."].iter().any(|p| key.starts_with(p))
}

/// GNU tar writes two bytes of an attribute's name in another way, and no others.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, tail)) = rest.split_first() {
        let escaped = [(&b"%3D"[..], b'='), (b"%25", b'%')];
        match escaped.iter().find_map(|(code, b)| Some((*b, rest.strip_prefix(*code)?))) {
            Some((byte, tail)) => {
                plain.push(byte);
                rest = tail;
            }
            None => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        decoded.push(if *byte == b'%' {
            let digits = [*bytes.next()?, *bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            *byte
        });
    }
    Some(decoded)
}

/// RFC 4648, with or without padding.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.trim_ascii_end().iter().take_while(|b| **b != b'=') {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push((bits >> held) as u8);
        }
    }
    Some(decoded)
}

/// A number of digits alone.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    text.iter().all(u8::is_ascii_digit).then_some(())?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970, perhaps negative, perhaps with a fraction.
pub(super) fn timestamp(text: &[u8]) -> Option<Timespec> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut fraction = parts.next().unwrap_or_default().to_vec();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    fraction.resize(9, b'0');
    let nanoseconds = i64::try_from(decimal(&fraction)?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_any_byte() {
        let mut records = Records::new();
        let bytes = b"12 path=a/b\n23 SCHILY.xattr.x=\n\0=\xff\n8 a=\x00\x01\x02\n";
        assert_eq!(parse(bytes, &mut records), Some(()));
        assert_eq!(records.get(&b"path"[..]), Some(&b"a/b".to_vec()));
        assert_eq!(records.get(&b"SCHILY.xattr.x"[..]), Some(&b"\n\0=\xff".to_vec()));
        for bad in [&b"x"[..], b"99 path=a\n", b"0 a=b\n", b"2 \n", b"-6 a=b\n", b"6 ab\n\n"] {
            assert_eq!(parse(bad, &mut Records::new()), None, "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let cases = [
            (&b"0"[..], Some((0, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.1234567899", Some((1, 123_456_789))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"-3", Some((-3, 0))),
            (b"1.", Some((1, 0))),
            (b"", None),
            (b"x", None),
            (b"1.x", None),
            (b"99999999999999999999", None),
        ];
        for (text, expected) in cases {
            let found = timestamp(text).map(|t| (t.tv_sec, t.tv_nsec));
            assert_eq!(found, expected.map(|(s, n)| (s, n as _)), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn attributes_of_bsdtar() {
        assert_eq!(percent_decoded(b"user.a%20b%3d").as_deref(), Some(&b"user.a b="[..]));
        assert_eq!(percent_decoded(b"%4"), None);
        assert_eq!(base64_decoded(b"AP9h").as_deref(), Some(&b"\0\xffa"[..]));
        assert_eq!(base64_decoded(b"AP8=").as_deref(), Some(&b"\0\xff"[..]));
        assert_eq!(base64_decoded(b"AA").as_deref(), Some(&b"\0"[..]));
        assert_eq!(base64_decoded(b"A!"), None);
    }
}
