//! What becomes of a container's jail parameters: defaults that they replace, those that are for the
//! kernel, and those that `jail(8)` and not the kernel knows.

use std::time::Duration;

use kleened_api::container::NetworkDriver;
use kleened_sys::jail::param::{self, BadParameter, Parameter, Table};

use super::jail_address::{self, Alias};

/// How long a command of a hook may take that says nothing else.
const HOOK_TIME: Duration = Duration::from_secs(120);

/// What a container's jail is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Names and values for the kernel.
    kernel: Vec<(String, Option<String>)>,
    /// The names of those that nobody asked for.
    defaults: Vec<String>,
    /// Whether devfs is mounted on `/dev`.
    pub(super) devfs: bool,
    /// The rules of what is in it.
    pub(super) devfs_ruleset: i32,
    /// Whether fdescfs is mounted on `/dev/fd`.
    pub(super) fdescfs: bool,
    /// Whether procfs is mounted on `/proc`.
    pub(super) procfs: bool,
    /// Whether the jail stays when its last process ends.
    pub(super) persist: bool,
    /// Whose processes they are that have no user of their own.
    pub(super) user: Option<String>,
    /// Whether the jail gets the addresses of its host name.
    pub(super) ip_hostname: bool,
    /// The host's interfaces that get addresses of the jail.
    pub(super) aliases: Vec<Alias>,
    /// The interface of addresses that name none.
    interface: Option<String>,
    /// The host's interfaces that are the jail's.
    pub(super) vnet_interfaces: Vec<String>,
    /// The datasets that the jail manages.
    pub(super) datasets: Vec<String>,
    /// The routing table of its processes, `setfib(1)`.
    pub(super) fib: Option<i32>,
    /// How long a command of [`hooks`](Self::hooks) may take.
    pub(super) timeout: Duration,
    hooks: Vec<(Hook, String)>,
}

/// When a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// On the host, before anything else.
    Prepare,
    /// On the host, when everything is mounted, and before the jail is made.
    Prestart,
    /// On the host, when the jail is made, and before a process is in it.
    Created,
    /// On the host, when the first process runs.
    Poststart,
    /// On the host, before the jail is stopped.
    Prestop,
    /// In the jail, to stop it.
    Stop,
    /// On the host, when the jail is gone.
    Poststop,
    /// On the host, when the jail and its mounts are gone.
    Release,
}

impl Hook {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "exec.prepare" => Self::Prepare,
            "exec.prestart" => Self::Prestart,
            "exec.created" => Self::Created,
            "exec.poststart" => Self::Poststart,
            "exec.prestop" => Self::Prestop,
            "exec.stop" => Self::Stop,
            "exec.poststop" => Self::Poststop,
            "exec.release" => Self::Release,
            _ => return None,
        })
    }
}

/// A parameter of `jail(8)` that a container can't have, and what to use instead.
const REFUSED: &[(&str, &str)] = &[
    ("allow.dying", "a container's jail is always a new one"),
    ("command", "give the container a command"),
    ("depend", "start the containers in their order"),
    ("exec.consolelog", "read the output with 'klee container logs'"),
    ("exec.start", "give the container a command"),
    ("exec.system_jail_user", "give the container a user of its own with -u"),
    ("exec.system_user", "commands on the host run as the superuser: have them run su(1)"),
    ("ip4_addr", "write ip4.addr"),
    ("ip6_addr", "write ip6.addr"),
    ("jid", "the kernel chooses it"),
    ("mount", "mount it with -m"),
    ("mount.devfs_ruleset", "write devfs_ruleset"),
    ("mount.fstab", "mount what it lists with -m"),
    ("name", "the jail has the container's id as its name"),
    ("path", "the jail has the container's own file system as its root"),
    ("stop.timeout", "say how long with 'klee container stop --time'"),
];

/// What a container has whose parameters say nothing else. A default is not there where a parameter
/// *begins* with one of its names, as it is in Kleene. Ruleset 4 of `/etc/defaults/devfs.rules` is
/// `devfsrules_jail`.
const DEFAULTS: &[(&str, &[&str])] = &[
    ("mount.devfs=true", &["mount.devfs", "mount.nodevfs"]),
    ("exec.stop=/bin/sh /etc/rc.shutdown", &["exec.stop", "exec.nostop"]),
    ("exec.clean=true", &["exec.clean", "exec.noclean"]),
    ("enforce_statfs=2", &["enforce_statfs"]),
    ("devfs_ruleset=4", &["devfs_ruleset"]),
    ("children.max=0", &["children.max"]),
    ("allow.noraw_sockets", &["allow.raw_sockets", "allow.noraw_sockets"]),
];

impl Plan {
    /// What `parameters`, each `NAME[=VALUE]`, make of a container with this host name and network.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub(super) fn new(
        parameters: &[String],
        network: NetworkDriver,
        hostname: &str,
    ) -> Result<Self, String> {
        let begins = |names: &[&str]| {
            parameters.iter().any(|text| names.iter().any(|name| text.starts_with(name)))
        };
        let mut plan = Self {
            kernel: Vec::new(),
            defaults: Vec::new(),
            devfs: false,
            devfs_ruleset: 0,
            fdescfs: false,
            procfs: false,
            persist: false,
            user: None,
            ip_hostname: false,
            aliases: Vec::new(),
            interface: None,
            vnet_interfaces: Vec::new(),
            datasets: Vec::new(),
            fib: None,
            timeout: HOOK_TIME,
            hooks: Vec::new(),
        };
        for (text, names) in DEFAULTS {
            if !begins(names) {
                plan.add(text)?;
            }
        }
        let addresses = match network {
            NetworkDriver::Host => "inherit",
            NetworkDriver::Disabled => "disable",
            NetworkDriver::Ipnet | NetworkDriver::Vnet => {
                return Err(format!(
                    "the network driver '{}' is not supported yet: use 'host' or 'disabled'",
                    network.as_str()
                ));
            }
        };
        // A network stack of its own has no addresses of the host's.
        let vnet = parameters.iter().any(|text| param::split(text).0 == "vnet");
        for family in ["ip4", "ip6"] {
            let own = parameters.iter().map(|text| param::split(text).0);
            let has_own = own.filter(|name| !name.contains("saddrsel")).any(|name| {
                name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest == ".addr")
            });
            if !vnet && !has_own {
                plan.add(&format!("{family}={addresses}"))?;
            }
        }
        if !begins(&["host.hostname", "host="]) {
            plan.add(&format!("host.hostname={hostname}"))?;
        }
        plan.defaults = plan.kernel.iter().map(|(name, _)| name.clone()).collect();
        for text in parameters {
            plan.add(text)?;
        }
        if !plan.vnet_interfaces.is_empty() && !vnet {
            return Err(
                "the jail parameter 'vnet.interface' is of use to a jail with a network stack \
                        of its own: add 'vnet'"
                    .to_owned(),
            );
        }
        plan.settle_addresses()?;
        Ok(plan)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let (name, value) = param::split(text);
        if text.contains('\0') {
            return Err(format!("the jail parameter '{}' has a zero byte", text.escape_default()));
        }
        if let Some((name, instead)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(format!("the jail parameter '{name}' is not for containers: {instead}"));
        }
        if let Some(hook) = Hook::from_name(name) {
            self.hooks.extend(value.filter(|v| !v.is_empty()).map(|v| (hook, unquoted(v))));
            return Ok(());
        }
        let flag = || boolean(name, value);
        match name {
            "mount.devfs" => self.devfs = flag()?,
            "mount.nodevfs" => self.devfs = !flag()?,
            "mount.fdescfs" => self.fdescfs = flag()?,
            "mount.nofdescfs" => self.fdescfs = !flag()?,
            "mount.procfs" => self.procfs = flag()?,
            "mount.noprocfs" => self.procfs = !flag()?,
            "persist" => self.persist = flag()?,
            "nopersist" => self.persist = !flag()?,
            "ip_hostname" => self.ip_hostname = flag()?,
            "noip_hostname" => self.ip_hostname = !flag()?,
            "exec.nostop" => self.hooks.retain(|(hook, _)| *hook != Hook::Stop),
            "exec.clean" if flag()? => (),
            "exec.noclean" if !flag()? => (),
            "exec.clean" | "exec.noclean" => {
                return Err(format!(
                    "the jail parameter '{name}' is not for containers: a process has the \
                     environment that it is given, and none of the daemon's"
                ));
            }
            "exec.fib" => {
                let fib = value.and_then(|value| value.parse().ok()).filter(|fib| *fib >= 0);
                self.fib =
                    Some(fib.ok_or_else(|| wanted(name, value, "a routing table's number"))?);
            }
            "interface" => {
                let interface = value.unwrap_or_default();
                jail_address::check_interface(interface)?;
                self.interface = Some(interface.to_owned());
            }
            "vnet.interface" => {
                for interface in words(value) {
                    jail_address::check_interface(interface)?;
                    self.vnet_interfaces.push(interface.to_owned());
                }
            }
            "zfs.dataset" => self.datasets.extend(words(value).map(str::to_owned)),
            "exec.jail_user" => self.user = value.map(str::to_owned),
            "exec.timeout" => {
                let seconds = value.and_then(|value| value.parse().ok());
                let seconds = seconds.ok_or_else(|| wanted(name, value, "a number of seconds"))?;
                // None at all, as in jail(8).
                self.timeout =
                    Duration::from_secs(if seconds == 0 { u64::from(u32::MAX) } else { seconds });
            }
            _ => {
                if name == "devfs_ruleset" {
                    let number = value.and_then(|value| value.parse().ok());
                    self.devfs_ruleset =
                        number.ok_or_else(|| wanted(name, value, "a ruleset's number"))?;
                }
                self.kernel.retain(|(other, _)| !is_same(other, name));
                self.defaults.retain(|other| !is_same(other, name));
                self.kernel.push((name.to_owned(), value.map(str::to_owned)));
            }
        }
        Ok(())
    }

    /// The kernel gets addresses alone.
    fn settle_addresses(&mut self) -> Result<(), String> {
        for (name, value) in &mut self.kernel {
            if let ("ip4.addr" | "ip6.addr", Some(value)) = (name.as_str(), value) {
                let (plain, aliases) = jail_address::read(name, value, self.interface.as_deref())?;
                *value = plain;
                self.aliases.extend(aliases);
            }
        }
        Ok(())
    }

    /// The commands of a hook, in their order.
    pub(super) fn hook(&self, hook: Hook) -> impl Iterator<Item = &str> {
        self.hooks.iter().filter(move |(other, _)| *other == hook).map(|(_, text)| text.as_str())
    }

    /// The host name that the jail gets.
    pub(super) fn hostname(&self) -> Option<&str> {
        let (_, value) = self.kernel.iter().find(|(name, _)| name == "host.hostname")?;
        value.as_deref()
    }

    /// The parameters in the kernel's form, without defaults that it doesn't have.
    ///
    /// # Errors
    ///
    /// What is wrong, in words; for a name that the kernel doesn't have also one that it has.
    pub(super) fn encode(&self, table: &Table) -> Result<Vec<Parameter>, String> {
        // A kernel without IPv6 has no ip6, and nothing to inherit.
        let known = self
            .kernel
            .iter()
            .filter(|(name, _)| table.find(name).is_some() || !self.defaults.contains(name));
        let encoded = known.map(|(name, value)| {
            param::encode(table, name, value.as_deref()).map_err(|bad| explain(table, &bad))
        });
        encoded.collect()
    }
}

/// The parameters of a running jail that become others, in the kernel's form.
///
/// # Errors
///
/// What is wrong, in words: only what the kernel knows can be changed.
pub(super) fn changes(table: &Table, parameters: &[String]) -> Result<Vec<Parameter>, String> {
    let mut plan = Plan::new(&[], NetworkDriver::Disabled, "")?;
    plan.kernel.clear();
    for text in parameters {
        plan.add(text)?;
    }
    plan.settle_addresses()?;
    if !plan.aliases.is_empty() {
        return Err("interfaces get the addresses of a jail when it starts: add this one with \
                    ifconfig(8), and write it without the interface"
            .to_owned());
    }
    let mut changes = plan.encode(table)?;
    if parameters.iter().any(|text| matches!(param::split(text).0, "persist" | "nopersist")) {
        changes.push(Parameter::flag(if plan.persist { "persist" } else { "nopersist" }));
    }
    Ok(changes)
}

fn explain(table: &Table, bad: &BadParameter) -> String {
    const SIMILAR: f64 = 0.6;
    if let BadParameter::Unknown(name) = bad {
        let own = ["exec.fib", "exec.jail_user", "exec.prestart", "exec.stop", "exec.timeout"];
        let own =
            own.into_iter().chain(["interface", "ip_hostname", "mount.devfs", "mount.fdescfs"]);
        let own = own.chain(["mount.procfs", "vnet.interface", "zfs.dataset"]);
        let near = table.names().chain(own).map(|other| (strsim::jaro_winkler(other, name), other));
        let near = near.filter(|(likeness, _)| *likeness > SIMILAR);
        if let Some((_, near)) = near.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
            return format!("{bad}: did you mean '{near}'?");
        }
    }
    bad.to_string()
}

/// The members of a list.
fn words(value: Option<&str>) -> impl Iterator<Item = &str> {
    value.unwrap_or_default().split([',', ' ']).filter(|word| !word.is_empty())
}

fn boolean(name: &str, value: Option<&str>) -> Result<bool, String> {
    param::boolean(value).ok_or_else(|| wanted(name, value, "'true' or 'false'"))
}

fn wanted(name: &str, value: Option<&str>, wanted: &'static str) -> String {
    let value = value.unwrap_or_default().to_owned();
    BadParameter::Value { name: name.to_owned(), value, wanted }.to_string()
}

/// Whether one of the names is the other, or the other with `no` before its last part.
fn is_same(one: &str, other: &str) -> bool {
    let negated = |name: &str| match name.rsplit_once('.') {
        Some((parents, last)) => format!("{parents}.no{last}"),
        None => format!("no{name}"),
    };
    one == other || negated(one) == other || negated(other) == one
}

/// A command without the quotes around it that `jail.conf(5)` would take away, and `jail(8)` on its
/// command line would not.
fn unquoted(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.filter(|inner| !inner.contains('"')).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use kleened_sys::jail::param::Type;

    use super::*;

    fn plan(parameters: &[&str]) -> Result<Plan, String> {
        let parameters: Vec<_> = parameters.iter().map(|&text| text.to_owned()).collect();
        Plan::new(&parameters, NetworkDriver::Host, "a1b2c3")
    }

    fn kernel(parameters: &[&str]) -> Vec<String> {
        let plan = plan(parameters).unwrap();
        let text = |(name, value): &(String, Option<String>)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        };
        plan.kernel.iter().map(text).collect()
    }

    #[test]
    fn defaults() {
        assert_eq!(
            kernel(&[]),
            [
                "enforce_statfs=2",
                "devfs_ruleset=4",
                "children.max=0",
                "allow.noraw_sockets",
                "ip4=inherit",
                "ip6=inherit",
                "host.hostname=a1b2c3"
            ]
        );
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.devfs, plan.devfs_ruleset, plan.persist), (true, 4, false));
        assert!(!plan.fdescfs && !plan.procfs);
        assert_eq!(plan.hook(Hook::Stop).collect::<Vec<_>>(), ["/bin/sh /etc/rc.shutdown"]);
        let disabled = Plan::new(&[], NetworkDriver::Disabled, "x").unwrap();
        assert!(disabled.kernel.contains(&("ip6".into(), Some("disable".into()))));
        for network in [NetworkDriver::Ipnet, NetworkDriver::Vnet] {
            assert!(Plan::new(&[], network, "x").unwrap_err().contains("'host'"));
        }
    }

    #[test]
    fn a_parameter_replaces_the_default_that_it_begins_with() {
        assert!(!plan(&["mount.nodevfs"]).unwrap().devfs);
        assert!(!plan(&["mount.devfs=false"]).unwrap().devfs);
        assert!(plan(&["mount.nodevfs=false"]).unwrap().devfs);
        // It begins with the name, and is another one: the default is gone all the same.
        assert!(!plan(&["mount.nodevfsx=1"]).unwrap().devfs);
        assert_eq!(plan(&["exec.nostop"]).unwrap().hook(Hook::Stop).count(), 0);
        assert_eq!(plan(&["exec.stop="]).unwrap().hook(Hook::Stop).count(), 0);
        let own = plan(&["exec.stop=\"/bin/sh /stop\"", "exec.stop=two"]).unwrap();
        assert_eq!(own.hook(Hook::Stop).collect::<Vec<_>>(), ["/bin/sh /stop", "two"]);
        let list = kernel(&["children.max=3", "allow.raw_sockets", "host.hostname=web"]);
        assert_eq!(
            list,
            [
                "enforce_statfs=2",
                "devfs_ruleset=4",
                "ip4=inherit",
                "ip6=inherit",
                "children.max=3",
                "allow.raw_sockets",
                "host.hostname=web"
            ]
        );
        assert_eq!(plan(&["devfs_ruleset=5"]).unwrap().devfs_ruleset, 5);
        assert!(!kernel(&["host=inherit"]).iter().any(|text| text.starts_with("host.hostname")));
    }

    #[test]
    fn an_own_network_takes_the_place_of_the_drivers() {
        let list = kernel(&["ip4.addr=10.0.0.1"]);
        assert!(
            !list.contains(&"ip4=inherit".to_owned()) && list.contains(&"ip6=inherit".to_owned())
        );
        let list = kernel(&["vnet"]);
        assert!(!list.iter().any(|text| text.starts_with("ip")));
        let list = kernel(&["ip4.nosaddrsel"]);
        assert!(list.contains(&"ip4=inherit".to_owned()));
    }

    #[test]
    fn what_is_the_hosts_and_the_jails() {
        let list = kernel(&["ip4.addr=em0|10.0.0.1/24", "interface=em1", "ip6.addr=2001:db8::1"]);
        assert!(list.contains(&"ip4.addr=10.0.0.1".to_owned()), "{list:?}");
        assert!(list.contains(&"ip6.addr=2001:db8::1".to_owned()), "{list:?}");
        let own = plan(&["ip4.addr=em0|10.0.0.1/24", "interface=em1", "ip6.addr=2001:db8::1"]);
        let commands: Vec<_> =
            own.unwrap().aliases.iter().map(|alias| alias.arguments(true).join(" ")).collect();
        let wanted = ["em0 inet 10.0.0.1/24 alias", "em1 inet6 2001:db8::1 prefixlen 128 alias"];
        assert_eq!(commands, wanted);
        let table = Table::default();
        let error = changes(&table, &["ip4.addr=em0|10.0.0.1".to_owned()]).unwrap_err();
        assert!(error.contains("ifconfig(8)"), "{error}");

        let own =
            ["vnet", "vnet.interface=a0,b0", "vnet.interface=c0", "zfs.dataset=t/a", "exec.fib=1"];
        let own = plan(&own).unwrap();
        assert_eq!(own.vnet_interfaces, ["a0", "b0", "c0"]);
        assert_eq!((own.datasets, own.fib), (vec!["t/a".to_owned()], Some(1)));
        assert!(plan(&["vnet.interface=a0"]).unwrap_err().contains("add 'vnet'"));
        for bad in ["exec.fib=x", "exec.fib=-1", "exec.fib", "interface=", "vnet.interface=-a"] {
            assert!(plan(&["vnet", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_later_one_counts() {
        let list = kernel(&["children.max=3", "children.max=4"]);
        assert_eq!(list.iter().filter(|text| text.starts_with("children.max")).count(), 1);
        assert!(list.contains(&"children.max=4".to_owned()));
        let list = kernel(&["allow.chflags", "allow.nochflags"]);
        assert_eq!(list.iter().filter(|text| text.contains("chflags")).count(), 1);
        assert!(list.contains(&"allow.nochflags".to_owned()));
    }

    #[test]
    fn what_contradicts_a_container_is_refused() {
        for name in
            ["path=/", "name=x", "jid=5", "exec.start=x", "command=x", "mount=x", "depend=y"]
        {
            let error = plan(&[name]).unwrap_err();
            assert!(error.contains("is not for containers"), "{error}");
        }
        assert!(plan(&["exec.clean=false"]).is_err() && plan(&["exec.noclean"]).is_err());
        assert!(plan(&["exec.clean", "exec.noclean=false"]).is_ok());
        assert!(plan(&["persist=x"]).unwrap_err().contains("'true' or 'false'"));
        assert!(plan(&["devfs_ruleset=jail"]).is_err() && plan(&["devfs_ruleset"]).is_err());
        assert!(plan(&["exec.timeout=soon"]).is_err());
        assert!(plan(&["a\0b"]).is_err());
        let plan = plan(&["exec.timeout=7", "persist", "exec.jail_user=www"]).unwrap();
        assert_eq!((plan.timeout.as_secs(), plan.persist), (7, true));
        assert_eq!(plan.user.as_deref(), Some("www"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_a_near_one() {
        let flag = Type::from_sysctl(0x4000_0002, "B", "0").unwrap();
        let number = Type::from_sysctl(0x4000_0002, "I", "0").unwrap();
        let names = [("allow.raw_sockets", flag), ("children.max", number)];
        let table: Table = names.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        let error = |text: &str| changes(&table, &[text.to_owned()]).unwrap_err();
        assert!(error("allow.rawsockets").ends_with("did you mean 'allow.raw_sockets'?"));
        assert!(error("children=5").ends_with("did you mean 'children.max'?"));
        assert!(error("zzz").ends_with("'zzz'"), "{}", error("zzz"));
        assert_eq!(changes(&table, &["children.max=5".to_owned()]).unwrap().len(), 1);
    }

    #[test]
    fn a_default_that_the_kernel_lacks_is_left_out() {
        let jailsys = Type::from_sysctl(0x4000_0002, "E,jailsys", "0").unwrap();
        let table: Table = [("ip4".to_owned(), jailsys)].into_iter().collect();
        let encode = |parameters: &[&str]| plan(parameters).unwrap().encode(&table);
        assert_eq!(encode(&[]).unwrap().len(), 1);
        assert!(encode(&["ip6=inherit"]).unwrap_err().contains("'ip6'"));
        assert!(encode(&["zfs.mount_snapshot=1"]).unwrap_err().contains("no jail parameter"));
    }

    #[test]
    fn a_running_jail_is_told_to_stay() {
        let told = |text: &str| changes(&Table::default(), &[text.to_owned()]).unwrap();
        for (text, flag) in [
            ("persist", "persist"),
            ("persist=false", "nopersist"),
            ("nopersist", "nopersist"),
            ("nopersist=false", "persist"),
        ] {
            assert_eq!(told(text), [Parameter::flag(flag)], "{text}");
        }
        assert_eq!(told("mount.devfs"), []);
    }
}
