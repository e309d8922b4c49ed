//! A driver that fails on demand, for tests.
//!
//! [`Fault`] stands in front of any driver and fails chosen calls, before they took effect or after;
//! or it kills the process there, as `kill -9` would, or stops it for a while. What must hold then: the
//! verb fails, a repeat of it succeeds, nothing is left over.
//!
//! A debug build of the daemon reads plans from the environment variable `KLEENED_FAULT`
//! ([`Plan::from_environment`]); a release build does not look at it. A plan with the method `point`
//! is about the steps inside a driver, between two system calls, and can only kill.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use super::{
    Adopt, Area, Capabilities, Dataset, DatasetPath, DatasetSpec, Driver, Error, Result, Snapshot,
    SnapshotPath, Snapshots, Sources, Streams, Usage, Watch,
};

/// The environment variable that holds plans, with commas between them.
pub const VARIABLE: &str = "KLEENED_FAULT";

/// Which call fails, and how: `METHOD:N:WHEN:WHAT`, for example `rename:1:after:error` or
/// `*:7:before:kill`.
///
/// | part | |
/// | --- | --- |
/// | `METHOD` | the name of a method of [`Driver`], [`Snapshots`], [`Streams`], [`Adopt`] or [`Sources`]; `*` for any of them; `point` for a step inside a driver |
/// | `N` | its Nth call, from 1 on; others are let through |
/// | `WHEN` | `before` it takes effect, or `after` |
/// | `WHAT` | `error` ([`Error::Io`]), `full` ([`Error::NoSpace`]), `busy` ([`Error::Busy`]), or `kill` the process; `stop` it until it gets SIGCONT, and let the call through |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    method: String,
    call: u64,
    when: When,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Error,
    Full,
    Busy,
    Kill,
    Stop,
}

/// The methods that can fail.
const METHODS: &[&str] = &[
    "create",
    "get",
    "list",
    "names",
    "mount",
    "flush",
    "set",
    "destroy",
    "rename",
    "usage",
    "usages",
    "snapshot",
    "snapshots",
    "snapshot_usage",
    "destroy_snapshot",
    "rename_snapshot",
    "hold",
    "rollback",
    "clone_from",
    "export",
    "import",
    "import_onto",
    "adopt",
    "mark",
    "unmark",
    "copy_of",
    "clone_of",
    "*",
    "point",
];

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut parts = text.splitn(4, ':');
        let [method, call, when, what] = std::array::from_fn(|_| parts.next().unwrap_or_default());
        let when = match when {
            "before" => When::Before,
            "after" => When::After,
            _ => return Err(format!("'{text}' says neither before nor after: {GRAMMAR}")),
        };
        let what = match what {
            "error" => What::Error,
            "full" => What::Full,
            "busy" => What::Busy,
            "kill" => What::Kill,
            "stop" => What::Stop,
            _ => return Err(format!("'{text}' does not say what shall happen: {GRAMMAR}")),
        };
        let call = call.parse().ok().filter(|call| *call > 0);
        let call = call.ok_or_else(|| format!("'{text}' does not say which call: {GRAMMAR}"))?;
        if !METHODS.contains(&method) {
            return Err(format!("'{text}' names no method: {GRAMMAR}"));
        }
        Ok(Self { method: method.to_owned(), call, when, what })
    }
}

const GRAMMAR: &str = "a plan is METHOD:N:before|after:error|full|busy|kill|stop";

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            When::Before => "before",
            When::After => "after",
        };
        let what = match self.what {
            What::Error => "error",
            What::Full => "full",
            What::Busy => "busy",
            What::Kill => "kill",
            What::Stop => "stop",
        };
        write!(f, "{}:{}:{when}:{what}", self.method, self.call)
    }
}

impl Plan {
    /// The plans in the environment; none in a release build.
    ///
    /// # Errors
    ///
    /// Says what is wrong with their text.
    pub fn from_environment() -> std::result::Result<Vec<Self>, String> {
        if !cfg!(debug_assertions) {
            return Ok(Vec::new());
        }
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(Vec::new()) };
        let plans = text.split(',').map(str::parse).collect::<std::result::Result<_, _>>();
        plans.map_err(|error: String| format!("{VARIABLE}: {error}"))
    }
}

/// A driver in front of another that carries out [`Plan`]s and counts calls.
#[derive(Debug)]
pub struct Fault {
    inner: Box<dyn Driver>,
    plans: Mutex<Vec<Plan>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Fault {
    /// The driver as it was, but for what the plans say.
    pub fn new(inner: Box<dyn Driver>, plans: impl IntoIterator<Item = Plan>) -> Self {
        let plans = Mutex::new(plans.into_iter().collect());
        Self { inner, plans, counts: Mutex::default() }
    }

    /// Counting starts again, with these plans.
    pub fn restart(&self, plans: impl IntoIterator<Item = Plan>) {
        let plans = plans.into_iter().collect();
        *self.plans.lock().unwrap_or_else(PoisonError::into_inner) = plans;
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many calls there were that can fail: by method, and of all under `*`.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn call<T>(&self, method: &'static str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let what = self.due(method);
        if let Some((When::Before, what)) = what {
            fail(method, what)?;
        }
        let done = call()?;
        if let Some((When::After, what)) = what {
            fail(method, what)?;
        }
        Ok(done)
    }

    /// Counts the call, and says what shall happen to it.
    fn due(&self, method: &'static str) -> Option<(When, What)> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = |name| {
            let count = counts.entry(name).or_default();
            *count += 1;
            *count
        };
        let (own, all) = (count(method), count("*"));
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = |plan: &&Plan| {
            (plan.method == "*" && plan.call == all) || (plan.method == method && plan.call == own)
        };
        plans.iter().find(meant).map(|plan| (plan.when, plan.what))
    }
}

fn fail(method: &'static str, what: What) -> Result<()> {
    let (object, cause) = ("a dataset: a planned fault".to_owned(), "a planned fault");
    match what {
        What::Error => Err(Error::Io { verb: method, object, source: io::Error::other(cause) }),
        What::Full => {
            let source = io::Error::new(io::ErrorKind::StorageFull, cause);
            Err(Error::NoSpace { verb: method, object, source })
        }
        What::Busy => Err(Error::Busy(object)),
        What::Kill => kill(),
        What::Stop => {
            // To this thread, which is stopped before it returns; the others are with it.
            let stopped = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
            stopped.map_err(|errno| Error::io(method, object, errno))
        }
    }
}

/// Ends this process, as `kill -9` would.
fn kill() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // Not reached.
    std::process::abort()
}

/// A place between two steps of a driver where a test can kill the process. Nothing in a release
/// build.
pub(super) fn point() {
    #[cfg(debug_assertions)]
    {
        use std::sync::OnceLock;
        use std::sync::atomic::{AtomicU64, Ordering};
        static PLANS: OnceLock<Vec<Plan>> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let plans = PLANS.get_or_init(|| Plan::from_environment().unwrap_or_default());
        let mut kills = plans.iter().filter(|p| p.method == "point" && p.what == What::Kill);
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if kills.any(|plan| plan.call == count) {
            kill();
        }
    }
}

impl Driver for Fault {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn mountpoint(&self, path: &DatasetPath) -> PathBuf {
        self.inner.mountpoint(path)
    }

    fn dataset(&self, path: &DatasetPath) -> String {
        self.inner.dataset(path)
    }

    fn create(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        self.call("create", || self.inner.create(path, spec))
    }

    fn get(&self, path: &DatasetPath) -> Result<Option<Dataset>> {
        self.call("get", || self.inner.get(path))
    }

    fn list(&self, area: Area) -> Result<Vec<Dataset>> {
        self.call("list", || self.inner.list(area))
    }

    fn names(&self, area: Area) -> Result<Vec<DatasetPath>> {
        self.call("names", || self.inner.names(area))
    }

    fn names_at_open(&self, area: Area) -> Result<Vec<DatasetPath>> {
        self.call("names", || self.inner.names_at_open(area))
    }

    fn mount(&self, path: &DatasetPath) -> Result<()> {
        self.call("mount", || self.inner.mount(path))
    }

    fn flush(&self, path: &DatasetPath) -> Result<()> {
        self.call("flush", || self.inner.flush(path))
    }

    fn set(&self, path: &DatasetPath, record: &str) -> Result<()> {
        self.call("set", || self.inner.set(path, record))
    }

    fn destroy(&self, path: &DatasetPath) -> Result<bool> {
        self.call("destroy", || self.inner.destroy(path))
    }

    fn rename(&self, from: &DatasetPath, to: &DatasetPath) -> Result<()> {
        self.call("rename", || self.inner.rename(from, to))
    }

    fn usage(&self, path: &DatasetPath) -> Result<Usage> {
        self.call("usage", || self.inner.usage(path))
    }

    fn usages(&self, paths: &[DatasetPath]) -> Result<Vec<Option<Usage>>> {
        self.call("usages", || self.inner.usages(paths))
    }

    fn changed(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<BTreeMap<String, String>> {
        self.call("changed", || self.inner.changed(path, spec))
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }

    fn streams(&self) -> Option<&dyn Streams> {
        self.inner.streams().map(|_| self as &dyn Streams)
    }

    fn adopt(&self) -> Option<&dyn Adopt> {
        self.inner.adopt().map(|_| self as &dyn Adopt)
    }

    fn sources(&self) -> Option<&dyn Sources> {
        self.inner.sources().map(|_| self as &dyn Sources)
    }

    fn watch(&self) -> Option<&dyn Watch> {
        self.inner.watch()
    }
}

impl Snapshots for Fault {
    fn snapshot(&self, snapshots: &[SnapshotPath], record: &str) -> Result<()> {
        self.call("snapshot", || self.inner.snapshot(snapshots, record))
    }

    fn snapshots(&self, path: &DatasetPath) -> Result<Vec<Snapshot>> {
        self.call("snapshots", || self.inner.snapshots(path))
    }

    fn snapshot_usage(&self, snapshot: &SnapshotPath) -> Result<u64> {
        self.call("snapshot_usage", || self.inner.snapshot_usage(snapshot))
    }

    fn destroy_snapshot(&self, snapshot: &SnapshotPath) -> Result<bool> {
        self.call("destroy_snapshot", || self.inner.destroy_snapshot(snapshot))
    }

    fn rename_snapshot(&self, snapshot: &SnapshotPath, to: &str) -> Result<()> {
        self.call("rename_snapshot", || self.inner.rename_snapshot(snapshot, to))
    }

    fn hold(&self, snapshot: &SnapshotPath, held: bool) -> Result<()> {
        self.call("hold", || self.inner.hold(snapshot, held))
    }

    fn rollback(&self, snapshot: &SnapshotPath) -> Result<()> {
        self.call("rollback", || self.inner.rollback(snapshot))
    }

    fn clone_from(
        &self,
        snapshot: &SnapshotPath,
        to: &DatasetPath,
        spec: &DatasetSpec,
    ) -> Result<()> {
        self.call("clone_from", || self.inner.clone_from(snapshot, to, spec))
    }
}

impl Adopt for Fault {
    fn adopt(&self, dataset: &str, path: &DatasetPath, record: &str) -> Result<()> {
        let unsupported = || Error::Unsupported("this driver adopts nothing".into());
        let inner = self.inner.adopt().ok_or_else(unsupported)?;
        self.call("adopt", || inner.adopt(dataset, path, record))
    }
}

impl Fault {
    fn inner_sources(&self) -> Result<&dyn Sources> {
        let unsupported = || Error::Unsupported("this driver has no datasets of others".into());
        self.inner.sources().ok_or_else(unsupported)
    }
}

impl Sources for Fault {
    fn mark(&self, dataset: &str, name: &str) -> Result<String> {
        self.call("mark", || self.inner_sources()?.mark(dataset, name))
    }

    fn unmark(&self, snapshot: &str) -> Result<()> {
        self.call("unmark", || self.inner_sources()?.unmark(snapshot))
    }

    fn copy_of(
        &self,
        snapshot: &str,
        to: &DatasetPath,
        spec: &DatasetSpec,
        moved: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<()> {
        self.call("copy_of", || self.inner_sources()?.copy_of(snapshot, to, spec, moved))
    }

    fn clone_of(&self, snapshot: &str, to: &DatasetPath, spec: &DatasetSpec) -> Result<()> {
        self.call("clone_of", || self.inner_sources()?.clone_of(snapshot, to, spec))
    }
}

impl Fault {
    fn inner_streams(&self) -> Result<&dyn Streams> {
        self.inner.streams().ok_or_else(|| Error::Unsupported("this driver has no streams".into()))
    }
}

impl Streams for Fault {
    fn export(
        &self,
        snapshot: &SnapshotPath,
        base: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<()> {
        self.call("export", || self.inner_streams()?.export(snapshot, base, out))
    }

    fn import(&self, path: &DatasetPath, spec: &DatasetSpec, input: &mut dyn Read) -> Result<()> {
        self.call("import", || self.inner_streams()?.import(path, spec, input))
    }

    fn import_onto(&self, path: &DatasetPath, input: &mut dyn Read) -> Result<()> {
        self.call("import_onto", || self.inner_streams()?.import_onto(path, input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_and_written() {
        for text in
            ["rename:1:after:error", "*:7:before:kill", "point:12:before:kill", "set:3:after:stop"]
        {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        for (text, reason) in [
            ("", "neither before nor after"),
            ("rename", "neither before nor after"),
            ("rename:1:after", "what shall happen"),
            ("rename:0:after:error", "which call"),
            ("rename:x:after:error", "which call"),
            ("remane:1:after:error", "no method"),
        ] {
            let error = text.parse::<Plan>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
