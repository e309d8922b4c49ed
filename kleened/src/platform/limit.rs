//! Limits of what a container may use, as `rctl(8)` has them: `RESOURCE[:ACTION]=AMOUNT[/PER]`.

use std::fmt;

use kleened_api::Size;

/// A resource, and what happens at the limit where nothing else is asked for. With nothing, an action has
/// to be given: the kernel can't deny what has gone by already.
const RESOURCES: &[(&str, Option<&str>)] = &[
    ("coredumpsize", Some("deny")),
    ("cputime", None),
    ("datasize", Some("deny")),
    ("maxproc", Some("deny")),
    ("memorylocked", Some("deny")),
    ("memoryuse", Some("deny")),
    ("msgqqueued", Some("deny")),
    ("msgqsize", Some("deny")),
    ("nmsgq", Some("deny")),
    ("nsem", Some("deny")),
    ("nsemop", Some("deny")),
    ("nshm", Some("deny")),
    ("nthr", Some("deny")),
    ("openfiles", Some("deny")),
    ("pcpu", Some("deny")),
    ("pseudoterminals", Some("deny")),
    ("readbps", Some("throttle")),
    ("readiops", Some("throttle")),
    ("shmsize", Some("deny")),
    ("stacksize", Some("deny")),
    ("swapuse", Some("deny")),
    ("vmemoryuse", Some("deny")),
    ("wallclock", None),
    ("writebps", Some("throttle")),
    ("writeiops", Some("throttle")),
];

/// For what a limit counts.
const PER: &[&str] = &["process", "user", "loginclass", "jail"];

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    resource: &'static str,
    action: String,
    amount: u64,
    per: &'static str,
}

impl Limit {
    /// The limit that the text says.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let shown = text.escape_default();
        let (what, amount) = text.split_once('=').ok_or_else(|| {
            format!("limit '{shown}' has no amount: write RESOURCE=AMOUNT, as memoryuse=512M")
        })?;
        let (name, action) = match what.split_once(':') {
            Some((name, action)) => (name, Some(action)),
            None => (what, None),
        };
        let known = RESOURCES.iter().find(|(resource, _)| *resource == name);
        let (resource, usual) = known.ok_or_else(|| {
            let near = RESOURCES.iter().map(|(other, _)| *other);
            let near = near.max_by(|one, other| {
                strsim::jaro_winkler(one, name).total_cmp(&strsim::jaro_winkler(other, name))
            });
            let near = near.map(|near| format!(": did you mean '{near}'?")).unwrap_or_default();
            format!("'{}' is no resource of rctl(8){near}", name.escape_default())
        })?;
        let action = action.or(*usual).ok_or_else(|| {
            format!("{resource} can't be denied: say what happens, as {resource}:sigterm={amount}")
        })?;
        let is_known = matches!(action, "deny" | "log" | "devctl" | "throttle")
            || action.strip_prefix("sig").is_some_and(|rest| {
                !rest.is_empty()
                    && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            });
        if !is_known {
            return Err(format!(
                "'{}' is no action of rctl(8): write deny, log, devctl, throttle or a signal, as \
                 sigterm",
                action.escape_default()
            ));
        }
        let (amount, per) = match amount.split_once('/') {
            Some((amount, per)) => (amount, per),
            None => (amount, "jail"),
        };
        let per = PER.iter().find(|known| **known == per).ok_or_else(|| {
            format!("limit '{shown}' is for {}: write {}", per.escape_default(), PER.join(", "))
        })?;
        let Size(amount) = amount.parse().map_err(|error| format!("limit '{shown}': {error}"))?;
        // The kernel's numbers have a sign.
        if i64::try_from(amount).is_err() {
            return Err(format!("limit '{shown}' is too large"));
        }
        Ok(Self { resource, action: action.to_owned(), amount, per })
    }

    /// The rule for a jail, as the kernel reads it.
    pub(super) fn rule(&self, jail: impl fmt::Display) -> String {
        let Self { resource, action, amount, per } = self;
        format!("jail:{jail}:{resource}:{action}={amount}/{per}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rules() {
        for (text, rule) in [
            ("memoryuse=512M", "jail:x:memoryuse:deny=536870912/jail"),
            ("maxproc=100", "jail:x:maxproc:deny=100/jail"),
            ("maxproc:log=100", "jail:x:maxproc:log=100/jail"),
            ("openfiles=64/process", "jail:x:openfiles:deny=64/process"),
            ("cputime:sigterm=3600", "jail:x:cputime:sigterm=3600/jail"),
            ("writebps=10M", "jail:x:writebps:throttle=10485760/jail"),
            ("pcpu:devctl=50/user", "jail:x:pcpu:devctl=50/user"),
        ] {
            assert_eq!(Limit::new(text).unwrap().rule("x"), rule, "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for (text, words) in [
            ("", "no amount"),
            ("memoryuse", "no amount"),
            ("memory=1", "did you mean 'memoryuse'"),
            ("=1", "no resource"),
            ("memoryuse=", "size ''"),
            ("memoryuse=-1", "size '-1'"),
            ("memoryuse=1X", "size '1X'"),
            ("memoryuse=16000P", "too large"),
            ("memoryuse:shout=1", "no action"),
            ("memoryuse:sig=1", "no action"),
            ("memoryuse:deny:x=1", "no action"),
            ("memoryuse=1/host", "write process, user"),
            ("wallclock=60", "wallclock:sigterm=60"),
            ("jail:other:memoryuse:deny=1", "no resource"),
        ] {
            let error = Limit::new(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
