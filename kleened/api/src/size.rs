//! Sizes and ratios, as people write them and as they go over the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. As text: a number with at most one point, and a unit: `512`, `16K`, `10G`,
/// `1.5T`. The units B, K, M, G, T and P are powers of 1024, in capitals or not; `KiB` and `KB` mean
/// `K`, and so on. In JSON: a number of bytes; a text is read as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The units, each 1024 of the one before.
const UNITS: [char; 6] = ['B', 'K', 'M', 'G', 'T', 'P'];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self).ok_or_else(|| {
            format!(
                "size '{}' is not allowed: write a number of bytes, or one with K, M, G, T or P for \
                 powers of 1024, as 512M or 1.5G",
                text.escape_default()
            )
        })
    }
}

fn parse(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(number.len()..)?.to_ascii_uppercase();
    let shift = match unit.as_bytes() {
        [] => 0,
        [letter] | [letter, b'B'] | [letter, b'I', b'B'] => {
            let power = UNITS.iter().position(|unit| u8::try_from(*unit).ok() == Some(*letter))?;
            // There is neither a BB nor a BiB.
            if power == 0 && unit.len() > 1 {
                return None;
            }
            10 * u32::try_from(power).ok()?
        }
        _ => return None,
    };
    let (whole, part) = match number.split_once('.') {
        Some((whole, part)) if !part.is_empty() => (whole, part),
        Some(_) => return None,
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let unit = 1_u128 << shift;
    let scale = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let part = if part.is_empty() { 0 } else { part.parse::<u128>().ok()? };
    let whole = u128::from(whole.parse::<u64>().ok()?);
    u64::try_from(whole * unit + part * unit / scale).ok()
}

impl Size {
    /// For tables: at most four characters and the unit, rounded: `1.46G`, `512`, `97.7M`.
    #[must_use]
    pub fn short(self) -> String {
        let power = (self.0.max(1).ilog2() / 10).min(5);
        let unit = UNITS.get(power as usize).filter(|_| power > 0);
        let unit = unit.map(char::to_string).unwrap_or_default();
        let number = self.0 as f64 / (1_u64 << (10 * power)) as f64;
        let places = match number {
            _ if self.0.trailing_zeros() >= 10 * power => 0,
            ..9.995 => 2,
            ..99.95 => 1,
            _ => 0,
        };
        format!("{number:.places$}{unit}")
    }
}

impl fmt::Display for Size {
    /// Exact: with the largest unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10).min(5) };
        write!(f, "{}", self.0 >> (10 * power))?;
        match UNITS.get(power as usize) {
            Some(unit) if power > 0 => write!(f, "{unit}"),
            _ => Ok(()),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrText {
            Number(u64),
            Text(String),
        }
        let refused =
            || serde::de::Error::custom("a size is a number of bytes, or a text as \"10G\"");
        match NumberOrText::deserialize(deserializer).map_err(|_| refused())? {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A ratio in hundredths. In JSON: the number, `1.5` for 150.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ratio(pub u32);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}x", self.0 / 100, self.0 % 100)
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As much as fits; what is no number becomes 0.
        Ok(Self((f64::deserialize(deserializer)? * 100.0).round() as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("10M", 10 << 20),
            ("2g", 2 << 30),
            ("1k", 1024),
            ("3KiB", 3072),
            ("3kb", 3072),
            ("1.5G", 3 << 29),
            ("0.000001M", 1),
            ("8T", 8 << 40),
            ("1P", 1 << 50),
            ("16383P", 16383 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in [
            "",
            "M",
            "-1",
            "+1",
            "1 M",
            "1.",
            ".5",
            "1.5.5M",
            "1X",
            "1KK",
            "1iB",
            "1BiB",
            "1BB",
            "16384P",
            "18446744073709551616",
            "ä",
            "1e3",
            "0x10",
            "1.0000000001G",
            "1Kib8",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?} was accepted");
        }
        let refused = "1\u{1b}".parse::<Size>().unwrap_err();
        assert!(refused.contains(r"'1\u{1b}'") && refused.contains("1024"), "{refused}");
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, exact, short) in [
            (0, "0", "0"),
            (1, "1", "1"),
            (1023, "1023", "1023"),
            (1024, "1K", "1K"),
            (1025, "1025", "1.00K"),
            (3 << 29, "1536M", "1.50G"),
            (10 << 30, "10G", "10G"),
            (100_000_000, "100000000", "95.4M"),
            (1_000_000_000, "1000000000", "954M"),
            (10_480_000, "10480000", "9.99M"),
            (1 << 50, "1P", "1P"),
            (u64::MAX, "18446744073709551615", "16384P"),
        ] {
            assert_eq!(
                (Size(bytes).to_string(), Size(bytes).short()),
                (exact.into(), short.into())
            );
            assert_eq!(exact.parse(), Ok(Size(bytes)));
        }
    }

    #[test]
    fn sizes_and_ratios_in_json() {
        let size: Size = serde_json::from_str("\"16K\"").unwrap();
        assert_eq!((size, serde_json::to_string(&size).unwrap()), (Size(16384), "16384".into()));
        assert_eq!(serde_json::from_str::<Size>("7").unwrap(), Size(7));
        for bad in ["-1", "1.5", "\"x\"", "null", "true"] {
            assert!(serde_json::from_str::<Size>(bad).is_err(), "{bad}");
        }
        let ratio: Ratio = serde_json::from_str("1.29").unwrap();
        assert_eq!((ratio.0, ratio.to_string()), (129, "1.29x".into()));
        assert_eq!(serde_json::to_string(&Ratio(150)).unwrap(), "1.5");
    }
}
