//! Jail parameters: their types, and how a value is put for the kernel. Nothing here asks a kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The type of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// True or false. The kernel takes no value, but the name, or the name with `no` before its last
    /// part.
    Bool,
    /// `disable`, `new` or `inherit`.
    JailSys,
    /// A C `int`.
    Int,
    /// A C `unsigned int`.
    Unsigned,
    /// A C `long`.
    Long,
    /// A C `unsigned long`.
    UnsignedLong,
    /// 64 bits.
    Quad,
    /// Text, which with its zero byte has at most so many bytes; 0 for no limit that is known.
    Text(usize),
    /// An IPv4 address.
    Ip4,
    /// An IPv6 address.
    Ip6,
    /// A structure that has no form as text.
    Opaque,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type {
    /// The type of one value.
    pub kind: Kind,
    /// Whether it has any number of values, written with commas between them.
    pub is_array: bool,
    /// Whether it can be set: always, or when the jail is made.
    pub is_writable: bool,
}

/// The low bits of a sysctl's flags: its type, from `sys/sysctl.h`.
const CTLTYPE: u32 = 0xf;
/// `CTLFLAG_WR`, and `CTLFLAG_TUN` of what can be set once, when the jail is made.
const WRITABLE: u32 = 0x4000_0000 | 0x0008_0000;

impl Type {
    /// The type by the flags and format of its sysctl below `security.jail.param`, and by the text that
    /// this has as its value. `None` for what is no parameter, as a node.
    ///
    /// # Source
    ///
    /// `jailparam_type` in `lib/libjail/jail.c`; `sys/sysctl.h`.
    #[must_use]
    pub fn from_sysctl(flags: u32, format: &str, value: &str) -> Option<Self> {
        let (format, is_array) = match format.strip_suffix(",a") {
            Some(format) => (format, true),
            None => (format, false),
        };
        let kind = match flags & CTLTYPE {
            2 if format.starts_with('B') => Kind::Bool,
            2 if format == "E,jailsys" => Kind::JailSys,
            2 => Kind::Int,
            3 => Kind::Text(value.trim().parse().unwrap_or(0)),
            4 | 9 => Kind::Quad,
            5 if format == "S,in_addr" => Kind::Ip4,
            5 if format == "S,in6_addr" => Kind::Ip6,
            5 => Kind::Opaque,
            6 => Kind::Unsigned,
            7 => Kind::Long,
            8 => Kind::UnsignedLong,
            _ => return None,
        };
        Some(Self { kind, is_array, is_writable: flags & WRITABLE != 0 })
    }
}

/// The parameters that a kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table(BTreeMap<String, Type>);

impl FromIterator<(String, Type)> for Table {
    fn from_iter<I: IntoIterator<Item = (String, Type)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// A parameter that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'n> {
    /// Its type.
    pub kind: Type,
    /// The last part of its name, after the last dot, without `no`.
    last: &'n str,
    /// What is before that, with the dot.
    parents: &'n str,
    /// Whether the name says `no`.
    is_negated: bool,
}

impl Found<'_> {
    /// The name as in the table.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}{}", self.parents, self.last)
    }

    fn negated_name(&self) -> String {
        format!("{}no{}", self.parents, self.last)
    }
}

impl Table {
    /// The parameter with this name; a boolean's may have `no` before its last part.
    #[must_use]
    pub fn find<'n>(&self, name: &'n str) -> Option<Found<'n>> {
        let (parents, last) = match name.rfind('.') {
            Some(dot) => name.split_at(dot + 1),
            None => ("", name),
        };
        if let Some(kind) = self.0.get(name) {
            return Some(Found { kind: *kind, last, parents, is_negated: false });
        }
        let last = last.strip_prefix("no")?;
        let kind = *self.0.get(&format!("{parents}{last}"))?;
        let found = Found { kind, last, parents, is_negated: true };
        (kind.kind == Kind::Bool).then_some(found)
    }

    /// Every name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// What is wrong with a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadParameter {
    /// The kernel has none with this name.
    Unknown(String),
    /// It can be read only.
    ReadOnly(String),
    /// Its value does not fit.
    Value {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// It has no form as text.
    Opaque(String),
}

impl fmt::Display for BadParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => {
                write!(f, "this system has no jail parameter '{}'", name.escape_default())
            }
            Self::ReadOnly(name) => write!(f, "the jail parameter '{name}' can't be set"),
            Self::Value { name, value, wanted } => {
                let value = value.escape_default();
                write!(f, "the jail parameter '{name}' takes {wanted}, and not '{value}'")
            }
            Self::Opaque(name) => write!(f, "the jail parameter '{name}' can't be written as text"),
        }
    }
}

impl std::error::Error for BadParameter {}

/// A parameter as `jail_set(2)` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, with a zero byte.
    pub(crate) name: Vec<u8>,
    /// Its value; nothing where the name says it all.
    pub(crate) value: Option<Vec<u8>>,
}

impl Parameter {
    /// A parameter of text, whose name and value have no zero byte.
    #[must_use]
    pub fn text(name: &str, value: &[u8]) -> Self {
        Self { name: terminated(name.as_bytes()), value: Some(terminated(value)) }
    }

    /// A parameter with this value, as it is.
    #[must_use]
    pub fn bytes(name: &str, value: Vec<u8>) -> Self {
        Self { name: terminated(name.as_bytes()), value: Some(value) }
    }

    /// A parameter that is a number.
    #[must_use]
    pub fn int(name: &str, value: i32) -> Self {
        Self { name: terminated(name.as_bytes()), value: Some(value.to_ne_bytes().to_vec()) }
    }

    /// A parameter without a value: a boolean.
    #[must_use]
    pub fn flag(name: &str) -> Self {
        Self { name: terminated(name.as_bytes()), value: None }
    }
}

/// The text up to its first zero byte, and one.
fn terminated(text: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.iter().copied().take_while(|byte| *byte != 0).collect();
    bytes.push(0);
    bytes
}

/// `NAME[=VALUE]` in its two parts.
#[must_use]
pub fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    }
}

/// The kernel module that brings the parameter with this name, where it is one that `jail(8)` loads.
///
/// # Source
///
/// `kldload_param` in `lib/libjail/jail.c`.
#[must_use]
pub fn module(name: &str) -> Option<&str> {
    const FILE_SYSTEMS: [&str; 8] =
        ["fdescfs", "fusefs", "linprocfs", "linsysfs", "nullfs", "procfs", "tmpfs", "zfs"];
    if let Some(kind) = name.strip_prefix("allow.mount.") {
        return FILE_SYSTEMS
            .into_iter()
            .find(|known| kind == *known || kind.strip_prefix("no") == Some(known));
    }
    match name {
        "sysvmsg" | "sysvsem" | "sysvshm" => Some(name),
        _ => (name == "linux" || name.starts_with("linux.")).then_some("linux"),
    }
}

/// The value of a boolean: `true`, `false` or a number; true where there is none.
#[must_use]
pub fn boolean(value: Option<&str>) -> Option<bool> {
    let Some(value) = value else { return Some(true) };
    if value.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    if value.eq_ignore_ascii_case("false") {
        return Some(false);
    }
    value.parse::<i32>().ok().map(|number| number != 0)
}

/// The parameter with its value in the kernel's form.
///
/// # Errors
///
/// [`BadParameter`].
///
/// # Source
///
/// `jailparam_import` and `jailparam_set` in `lib/libjail/jail.c`. Unlike there, a number must have a
/// value.
pub fn encode(table: &Table, name: &str, value: Option<&str>) -> Result<Parameter, BadParameter> {
    let found = table.find(name).ok_or_else(|| BadParameter::Unknown(name.to_owned()))?;
    if !found.kind.is_writable {
        return Err(BadParameter::ReadOnly(name.to_owned()));
    }
    let bad = |wanted| BadParameter::Value {
        name: name.to_owned(),
        value: value.unwrap_or_default().to_owned(),
        wanted,
    };
    if found.kind.kind == Kind::Bool {
        let wanted = "'true' or 'false'";
        let is_true = boolean(value).ok_or_else(|| bad(wanted))? != found.is_negated;
        let name = if is_true { found.name() } else { found.negated_name() };
        return Ok(Parameter::flag(&name));
    }
    if let Kind::Text(size) = found.kind.kind {
        let value = value.unwrap_or_default();
        if value.contains('\0') || size > 0 && value.len() >= size {
            return Err(bad("a shorter text without zero bytes"));
        }
        return Ok(Parameter::text(name, value.as_bytes()));
    }
    let values: Vec<&str> = match (found.kind.is_array, value) {
        (true, None | Some("" | "-")) => Vec::new(),
        (true, Some(value)) => value.split(',').collect(),
        (false, value) => vec![value.unwrap_or_default()],
    };
    let mut bytes = Vec::new();
    for value in values {
        match found.kind.kind {
            Kind::Int => {
                bytes.extend(number::<i32>(value).ok_or_else(|| bad(NUMBER))?.to_ne_bytes())
            }
            Kind::Unsigned => {
                bytes.extend(number::<u32>(value).ok_or_else(|| bad(POSITIVE))?.to_ne_bytes());
            }
            Kind::Long | Kind::Quad => {
                bytes.extend(number::<i64>(value).ok_or_else(|| bad(NUMBER))?.to_ne_bytes());
            }
            Kind::UnsignedLong => {
                bytes.extend(number::<u64>(value).ok_or_else(|| bad(POSITIVE))?.to_ne_bytes());
            }
            Kind::JailSys => {
                let code = jailsys(value).ok_or_else(|| bad("'new', 'inherit' or 'disable'"))?;
                bytes.extend(code.to_ne_bytes());
            }
            Kind::Ip4 => {
                let address = number::<Ipv4Addr>(value).ok_or_else(|| bad("IPv4 addresses"))?;
                bytes.extend(address.octets());
            }
            Kind::Ip6 => {
                let address = number::<Ipv6Addr>(value).ok_or_else(|| bad("IPv6 addresses"))?;
                bytes.extend(address.octets());
            }
            Kind::Bool | Kind::Text(_) | Kind::Opaque => {
                return Err(BadParameter::Opaque(name.to_owned()));
            }
        }
    }
    Ok(Parameter { name: terminated(name.as_bytes()), value: Some(bytes) })
}

const NUMBER: &str = "a number";
const POSITIVE: &str = "a number that is not negative";

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// `JAIL_SYS_*` of `sys/jail.h`. Without a value it is `new`.
fn jailsys(value: &str) -> Option<i32> {
    let names = ["disable", "new", "inherit"];
    if value.is_empty() {
        return Some(1);
    }
    let index = names.iter().position(|name| value.eq_ignore_ascii_case(name));
    index.and_then(|index| i32::try_from(index).ok()).or_else(|| number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kernel says, with `CTLFLAG_WR` or `CTLFLAG_TUN` where it is: `sys/kern/kern_jail.c`.
    const KERNEL: &[(&str, u32, &str, &str)] = &[
        ("persist", 0x4000_0002, "B,boolean", "0"),
        ("allow.raw_sockets", 0x4000_0002, "B", "0"),
        ("allow.mount.devfs", 0x4000_0002, "B", "0"),
        ("novelty", 0x4000_0002, "I", "0"),
        ("host.hostname", 0x4000_0003, "A", "256"),
        ("children.max", 0x4000_0002, "I", "0"),
        ("children.cur", 0x8000_0002, "I", "0"),
        ("host.hostid", 0x4000_0008, "LU", "0"),
        ("ip4", 0x8008_0002, "E,jailsys", "0"),
        ("ip4.addr", 0x4000_0005, "S,in_addr,a", ""),
        ("ip6.addr", 0x4000_0005, "S,in6_addr,a", ""),
        ("odd", 0x4000_0005, "S,vnet", ""),
    ];

    fn table() -> Table {
        let entry = |(name, flags, format, value): &(&str, u32, &str, &str)| {
            ((*name).to_owned(), Type::from_sysctl(*flags, format, value).unwrap())
        };
        KERNEL.iter().map(entry).collect()
    }

    fn encoded(text: &str) -> Result<(String, Option<Vec<u8>>), BadParameter> {
        let (name, value) = split(text);
        let parameter = encode(&table(), name, value)?;
        assert_eq!(parameter.name.last(), Some(&0));
        let name = String::from_utf8(parameter.name).unwrap();
        Ok((name.trim_end_matches('\0').to_owned(), parameter.value))
    }

    #[test]
    fn modules() {
        for (name, wanted) in [
            ("allow.mount.tmpfs", Some("tmpfs")),
            ("allow.mount.nonullfs", Some("nullfs")),
            ("allow.mount.evil", None),
            ("allow.mount", None),
            ("linux.osname", Some("linux")),
            ("linux", Some("linux")),
            ("linuxx", None),
            ("sysvshm", Some("sysvshm")),
        ] {
            assert_eq!(module(name), wanted, "{name}");
        }
    }

    #[test]
    fn types_as_the_kernel_tells_them() {
        let kind = |flags, format, value| Type::from_sysctl(flags, format, value).map(|t| t.kind);
        assert_eq!(kind(1, "N", ""), None);
        assert_eq!(kind(2, "B", "0"), Some(Kind::Bool));
        assert_eq!(kind(2, "E,jailsys", "0"), Some(Kind::JailSys));
        assert_eq!(kind(6, "IU", "0"), Some(Kind::Unsigned));
        assert_eq!(kind(3, "A", "1024"), Some(Kind::Text(1024)));
        let addresses = Type::from_sysctl(0x4000_0005, "S,in_addr,a", "").unwrap();
        assert_eq!((addresses.kind, addresses.is_array), (Kind::Ip4, true));
        assert!(!Type::from_sysctl(2, "I", "").unwrap().is_writable);
    }

    #[test]
    fn booleans_are_names() {
        for (text, name) in [
            ("persist", "persist"),
            ("persist=true", "persist"),
            ("persist=1", "persist"),
            ("persist=False", "nopersist"),
            ("nopersist", "nopersist"),
            ("nopersist=0", "persist"),
            ("allow.raw_sockets=0", "allow.noraw_sockets"),
            ("allow.noraw_sockets", "allow.noraw_sockets"),
            ("allow.mount.nodevfs=false", "allow.mount.devfs"),
        ] {
            assert_eq!(encoded(text).unwrap(), (name.to_owned(), None), "{text}");
        }
        assert!(matches!(encoded("persist=yes"), Err(BadParameter::Value { .. })));
        // What begins with these letters and is no boolean has no other side.
        assert_eq!(encoded("novelty=3").unwrap().0, "novelty");
        assert!(matches!(encoded("children.nomax"), Err(BadParameter::Unknown(_))));
    }

    #[test]
    fn values_in_the_kernels_form() {
        let value = |text| encoded(text).unwrap().1.unwrap();
        assert_eq!(value("children.max=5"), 5_i32.to_ne_bytes());
        assert_eq!(value("children.max=-1"), (-1_i32).to_ne_bytes());
        assert_eq!(value("host.hostid=4294967296"), 4_294_967_296_u64.to_ne_bytes());
        assert_eq!(value("host.hostname=a=b"), b"a=b\0");
        assert_eq!(value("host.hostname"), b"\0");
        assert_eq!(value("ip4=inherit"), 2_i32.to_ne_bytes());
        assert_eq!(value("ip4=Disable"), 0_i32.to_ne_bytes());
        assert_eq!(value("ip4"), 1_i32.to_ne_bytes());
        assert_eq!(value("ip4.addr=10.0.0.1,192.168.1.2"), [10, 0, 0, 1, 192, 168, 1, 2]);
        assert_eq!(value("ip4.addr="), b"");
        assert_eq!(value("ip4.addr=-"), b"");
        assert_eq!(value("ip6.addr=::1")[15], 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in [
            "children.max",
            "children.max=",
            "children.max=x",
            "children.max=4294967296",
            "host.hostid=-1",
            "ip4=maybe",
            "ip4.addr=10.0.0",
            "ip4.addr=10.0.0.1,",
            "ip6.addr=10.0.0.1",
            "host.hostname=a\0b",
        ] {
            assert!(matches!(encoded(text), Err(BadParameter::Value { .. })), "{text:?}");
        }
        let long = format!("host.hostname={}", "x".repeat(256));
        assert!(matches!(encoded(&long), Err(BadParameter::Value { .. })));
        assert!(encoded(&long[..long.len() - 1]).is_ok());
        assert_eq!(encoded("children.cur=1"), Err(BadParameter::ReadOnly("children.cur".into())));
        assert_eq!(encoded("odd=1"), Err(BadParameter::Opaque("odd".into())));
        for text in ["", "=x", "allow", "no", "ip4.", "none=1"] {
            assert!(matches!(encoded(text), Err(BadParameter::Unknown(_))), "{text:?}");
        }
    }

    #[test]
    fn a_zero_byte_ends_a_text() {
        assert_eq!(Parameter::text("a\0b", b"c\0d").value.unwrap(), b"c\0");
    }
}
