//! Addresses of a jail that are put on an interface of the host's before it, and taken away after it, as
//! `jail(8)` does where `ip4.addr` or `ip6.addr` names one.

/// An address for an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    interface: String,
    family: &'static str,
    /// The address as `ifconfig(8)` takes it, with its mask.
    address: Vec<String>,
    /// What else is said when it is added.
    options: Vec<String>,
}

impl Alias {
    /// The arguments of `ifconfig(8)` that add it, or take it away.
    pub(super) fn arguments(&self, add: bool) -> Vec<&str> {
        let mut arguments = vec![self.interface.as_str(), self.family];
        arguments.extend(self.address.iter().map(String::as_str));
        if add {
            arguments.extend(self.options.iter().map(String::as_str));
        }
        arguments.push(if add { "alias" } else { "-alias" });
        arguments
    }
}

/// The addresses alone, as the kernel takes them, of the value of `ip4.addr` or `ip6.addr`, which is
/// `[INTERFACE|]ADDRESS[/MASK][ OPTION…]` and more after commas; and those that are for an interface: their own
/// or the `default` one.
///
/// # Errors
///
/// What is wrong, in words. That it is an address at all is checked by others.
///
/// # Source
///
/// `check_intparams()` in `usr.sbin/jail/config.c`, `run_command()` in `usr.sbin/jail/command.c`.
pub(super) fn read(
    name: &str,
    value: &str,
    default: Option<&str>,
) -> Result<(String, Vec<Alias>), String> {
    let is_v6 = name.starts_with("ip6");
    let mut plain = Vec::new();
    let mut aliases = Vec::new();
    for part in value.split(',') {
        let (interface, rest) = match part.split_once('|') {
            Some((interface, rest)) => (Some(interface), rest),
            None => (default, part),
        };
        let mut words = rest.split_ascii_whitespace();
        let word = words.next().unwrap_or_default();
        let (address, mask) = match word.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (word, None),
        };
        if let Some(mask) = mask
            && !is_mask(mask, is_v6)
        {
            return Err(format!("'{mask}' in {name}={value} is no netmask"));
        }
        plain.push(address.to_owned());
        let Some(interface) = interface.filter(|_| !address.is_empty() && address != "-") else {
            continue;
        };
        check_interface(interface).map_err(|why| format!("{name}={value}: {why}"))?;
        let separate: &[&str] = match mask {
            None if is_v6 => &[address, "prefixlen", "128"],
            None => &[address, "netmask", "255.255.255.255"],
            Some(mask) if mask.contains('.') => &[address, "netmask", mask],
            Some(_) => &[word],
        };
        aliases.push(Alias {
            interface: interface.to_owned(),
            family: if is_v6 { "inet6" } else { "inet" },
            address: separate.iter().map(|&word| word.to_owned()).collect(),
            options: words.map(str::to_owned).collect(),
        });
    }
    Ok((plain.join(","), aliases))
}

/// That this can be the name of an interface.
///
/// # Errors
///
/// What is wrong, in words.
pub(super) fn check_interface(name: &str) -> Result<(), String> {
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if is_name && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(format!("'{}' is no name of an interface", name.escape_default()))
}

fn is_mask(mask: &str, is_v6: bool) -> bool {
    let bits = mask.parse::<u8>().is_ok_and(|bits| bits <= if is_v6 { 128 } else { 32 });
    bits || !is_v6 && mask.parse::<std::net::Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(name: &str, value: &str, default: Option<&str>) -> (String, Vec<String>) {
        let (plain, aliases) = read(name, value, default).unwrap();
        (plain, aliases.iter().map(|alias| alias.arguments(true).join(" ")).collect())
    }

    #[test]
    fn an_interface_gets_the_address_and_the_kernel_the_rest() {
        for (name, value, default, plain, wanted) in [
            ("ip4.addr", "10.0.0.1,10.0.0.2/24", None, "10.0.0.1,10.0.0.2", &[][..]),
            (
                "ip4.addr",
                "em0|10.0.0.1,lo1|10.0.0.2/255.255.255.0",
                None,
                "10.0.0.1,10.0.0.2",
                &[
                    "em0 inet 10.0.0.1 netmask 255.255.255.255 alias",
                    "lo1 inet 10.0.0.2 netmask 255.255.255.0 alias",
                ],
            ),
            (
                "ip4.addr",
                "10.0.0.1/24 vhid 1,em1|10.0.0.2/8",
                Some("em0"),
                "10.0.0.1,10.0.0.2",
                &["em0 inet 10.0.0.1/24 vhid 1 alias", "em1 inet 10.0.0.2/8 alias"],
            ),
            (
                "ip6.addr",
                "em0|2001:db8::1,2001:db8::2/64",
                Some("em1"),
                "2001:db8::1,2001:db8::2",
                &["em0 inet6 2001:db8::1 prefixlen 128 alias", "em1 inet6 2001:db8::2/64 alias"],
            ),
            ("ip4.addr", "", Some("em0"), "", &[]),
        ] {
            let (addresses, aliases) = commands(name, value, default);
            assert_eq!(addresses, plain);
            assert_eq!(aliases, wanted);
        }
        let (_, aliases) = read("ip4.addr", "em0|10.0.0.1/24 vhid 1", None).unwrap();
        assert_eq!(aliases[0].arguments(false).join(" "), "em0 inet 10.0.0.1/24 -alias");
    }

    #[test]
    fn what_is_none_is_refused() {
        for value in ["em0|10.0.0.1/33", "10.0.0.1/x", "10.0.0.1/255.0", "-l|10.0.0.1", "|10.0.0.1"]
        {
            assert!(read("ip4.addr", value, None).is_err(), "{value}");
        }
        for value in ["2001:db8::1/129", "2001:db8::1/255.255.0.0", "a b|2001:db8::1"] {
            assert!(read("ip6.addr", value, None).is_err(), "{value}");
        }
    }
}
