//! Datasets go back to older snapshots, and go although they have clones.
//!
//! A dataset can go back to its last snapshot only, and the ones after it would have to go. So a clone of
//! the older one takes its place. The dataset itself steps aside with the newer ones, without a mount
//! point, and the clone is promoted, so that the older ones are its own:
//!
//! ```text
//! zroot/kleene/volumes/db                @monday
//! zroot/kleene/history/77aa01f2c3d4.0    @tuesday @wednesday      it was volumes/db
//! ```
//!
//! The dataset's property `org.kleene:line` is what the names of those that stepped aside begin with. All
//! their snapshots are the dataset's. One without snapshots goes.
//!
//! A dataset that has clones goes when one of them is promoted. Its snapshots that clones need are that
//! one's then; they have names that are not shown, and the kernel destroys them with the last clone.

use std::fmt;
use std::str::FromStr;
use std::sync::PoisonError;

use kleened_sys::zfs::{
    Error as SysError, Kind, NvList, PropertyValue, Snapshot as Found, pool_of,
};

use super::super::fault::point;
use super::super::{DatasetPath, Error, INTERNAL, Result, SnapshotPath};
use super::destroy::patiently;
use super::source::dataset_of;
use super::stream::random;
use super::{Zfs, failed};

/// The dataset in which those are that stepped aside.
const HISTORY: &str = "history";

/// What the names begin with of those that stepped aside for this one.
pub(super) const LINE: &str = "org.kleene:line";

/// What a clone is called until it takes the dataset's place.
const FRESH: &str = "new";

/// What the names of snapshots begin with that only clones need.
const GONE: &str = "kleene--gone-";

/// What an intent holds where it is about a dataset to be destroyed with what belongs to it.
pub(super) const DESTROY: &str = "destroy";

/// What a clone does not get of the dataset whose place it takes: where it is mounted, what its key is,
/// and what it would keep free beside it.
const NOT_COPIED: &[&str] = &[
    "mountpoint",
    "canmount",
    "encryption",
    "keyformat",
    "keylocation",
    "pbkdf2iters",
    "reservation",
    "refreservation",
];

/// What is kept free for a dataset: the names of the properties.
const RESERVED: [&str; 2] = ["reservation", "refreservation"];

/// A clone is to take a dataset's place, as an intent has it: `restore LINE NUMBER` and what is kept free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Swap {
    line: String,
    number: u64,
    reserved: [u64; 2],
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, number, reserved: [all, own] } = self;
        write!(f, "restore {line} {number} {all} {own}")
    }
}

impl FromStr for Swap {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let ("restore", line) = (next()?, next()?.to_owned()) else { return Err(()) };
        let mut number = || next()?.parse::<u64>().or(Err(()));
        Ok(Self { line, number: number()?, reserved: [number()?, number()?] })
    }
}

/// Whether a snapshot is one that people see.
pub(super) fn is_shown(found: &Found) -> bool {
    !found.deferred && !found.name.starts_with(INTERNAL)
}

fn gone_name() -> Result<String> {
    Ok(format!("{GONE}{:016x}", random()?))
}

impl Zfs {
    fn history(&self) -> String {
        format!("{}/{HISTORY}", self.root)
    }

    fn of_line(&self, line: &str, last: impl fmt::Display) -> String {
        format!("{}/{line}.{last}", self.history())
    }

    /// What the names begin with of those that stepped aside for that dataset.
    fn line_of(&self, name: &str) -> std::result::Result<Option<String>, SysError> {
        Ok(self.zfs.properties(name, &[LINE])?.own_text(LINE).map(str::to_owned))
    }

    /// The full names of the datasets that stepped aside, in the order in which they did.
    pub(super) fn lines(&self, line: &str) -> Result<Vec<String>> {
        let children = match self.zfs.children(&self.history()) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
            children => children.map_err(|error| failed("list", self.history(), error))?,
        };
        let start = self.of_line(line, "");
        let number = |name: &str| name.strip_prefix(&start)?.parse::<u64>().ok();
        let mut lines: Vec<_> =
            children.into_iter().filter_map(|name| Some((number(&name)?, name))).collect();
        lines.sort_unstable();
        Ok(lines.into_iter().map(|(_, name)| name).collect())
    }

    /// The full names of those that stepped aside for the dataset.
    pub(super) fn aside(&self, path: &DatasetPath) -> Result<Vec<String>> {
        let line = self.line_of(&self.name(path)?);
        match line.map_err(|error| self.failed("look up", path, error))? {
            Some(line) => self.lines(&line),
            None => Ok(Vec::new()),
        }
    }

    /// The full name of the snapshot, be it of the dataset or of one that stepped aside for it; `None` where
    /// there is certainly none.
    pub(super) fn find(&self, snapshot: &SnapshotPath) -> Result<Option<String>> {
        let name = self.snapshot_name(snapshot)?;
        if self.is_there(&name)? {
            return Ok(Some(name));
        }
        let aside = match self.aside(&snapshot.dataset) {
            Err(Error::NotFound(_)) => return Ok(None),
            aside => aside?,
        };
        for dataset in aside {
            let name = format!("{dataset}@{}", snapshot.name);
            if self.is_there(&name)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Whether there is the snapshot, and it is not only there for clones.
    fn is_there(&self, name: &str) -> Result<bool> {
        match self.zfs.properties(name, &["defer_destroy"]) {
            Ok(found) => Ok(found.number("defer_destroy") != Some(1)),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(failed("look up", name, error)),
        }
    }

    /// The snapshots of the dataset and of those that stepped aside for it, each with the full name of what
    /// it is a snapshot of, oldest first.
    pub(super) fn all_snapshots(&self, path: &DatasetPath) -> Result<Vec<(String, Found)>> {
        let name = self.name(path)?;
        let own = self.zfs.snapshots(&name);
        let own = own.map_err(|error| self.failed("list the snapshots of", path, error))?;
        let mut all: Vec<_> = own.into_iter().map(|found| (name.clone(), found)).collect();
        for dataset in self.aside(path)? {
            match self.zfs.snapshots(&dataset) {
                Ok(found) => all.extend(found.into_iter().map(|found| (dataset.clone(), found))),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(failed("list the snapshots of", dataset, error)),
            }
        }
        all.sort_by_key(|(_, found)| found.createtxg);
        Ok(all)
    }

    /// The content of the dataset is that of the snapshot; all its snapshots stay. The caller holds its
    /// lock.
    pub(super) fn go_back(&self, snapshot: &SnapshotPath) -> Result<()> {
        let path = &snapshot.dataset;
        let name = self.name(path)?;
        let Some(from) = self.find(snapshot)? else {
            return Err(Error::NotFound(snapshot.to_string()));
        };
        if dataset_of(&from) == name {
            match self.zfs.rollback_to(&name, &from) {
                Ok(()) => return Ok(()),
                // There are newer ones.
                Err(error) if error.kind() == Kind::Exists => {}
                Err(error) => return Err(failed("roll back to", snapshot, error)),
            }
        }
        let _families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let fail = |error| self.failed("roll back", path, error);
        self.make_history()?;
        let line = match self.line_of(&name).map_err(fail)? {
            Some(line) => line,
            None => format!("{:012x}", random()? >> 16),
        };
        let last = self.lines(&line)?.last().and_then(|last| last.rsplit('.').next()?.parse().ok());
        let kept = self.zfs.properties(&name, &RESERVED).map_err(fail)?;
        let reserved = RESERVED.map(|property| kept.number(property).unwrap_or_default());
        let number = last.map_or(0, |last: u64| last.saturating_add(1));
        let swap = Swap { line, number, reserved };
        self.intend_text(path, &swap.to_string())?;
        match self.swap(path, &from, &swap) {
            Ok(()) => {
                let settled = self.settle_swap(path, &swap);
                if let Err(error) = &settled {
                    tracing::warn!(%path, ?error, "cannot tidy up after it went back");
                }
                self.done(path);
                Ok(())
            }
            Err(error) => {
                match self.resume_swap(path, &swap) {
                    Ok(()) => self.done(path),
                    Err(error) => tracing::warn!(%path, ?error, "cannot take back what was begun"),
                }
                self.mount_again(path);
                Err(error)
            }
        }
    }

    fn make_history(&self) -> Result<()> {
        let name = self.history();
        let fail = |error| failed("make", &name, error);
        if self.zfs.exists(&name).map_err(fail)? {
            return Ok(());
        }
        // What is in it is mounted by nobody.
        let properties = [("mountpoint", "none"), ("canmount", "off")];
        let properties = self.zfs.check_properties(pool_of(&name), properties).map_err(fail)?;
        match self.zfs.create(&name, &properties) {
            Err(error) if error.kind() != Kind::Exists => Err(fail(error)),
            _ => Ok(()),
        }
    }

    /// A clone of the snapshot is the dataset, which stepped aside. Or the dataset is where it was, maybe not
    /// mounted.
    fn swap(&self, path: &DatasetPath, from: &str, swap: &Swap) -> Result<()> {
        let name = self.name(path)?;
        let (fresh, old) = (self.of_line(&swap.line, FRESH), self.of_line(&swap.line, swap.number));
        let fail = |error| self.failed("roll back", path, error);
        let mut properties = self.own_properties(&name)?;
        properties.put_text(LINE, &swap.line).map_err(fail)?;
        self.zfs.clone_from(&fresh, from, &properties).map_err(fail)?;
        point();
        self.unmount(path)?;
        point();
        self.zfs.rename(&name, &old).map_err(fail)?;
        point();
        if let Err(error) = self.zfs.rename(&fresh, &name) {
            self.put_back(&old, &name);
            return Err(fail(error));
        }
        point();
        if let Err(error) = self.mount_at_home(path) {
            self.put_back(&name, &fresh);
            self.put_back(&old, &name);
            return Err(error);
        }
        point();
        Ok(())
    }

    fn put_back(&self, from: &str, to: &str) {
        if let Err(error) = self.zfs.rename(from, to) {
            tracing::warn!(from, to, %error, "cannot take back a renaming");
        }
    }

    /// What a crash left of [`swap`](Self::swap): the clone is the dataset, or there is none. A repeat is
    /// safe.
    pub(super) fn resume_swap(&self, path: &DatasetPath, swap: &Swap) -> Result<()> {
        let name = self.name(path)?;
        let (fresh, old) = (self.of_line(&swap.line, FRESH), self.of_line(&swap.line, swap.number));
        let fail = |error| failed("roll back", path, error);
        let there = |name: &str| self.zfs.exists(name).map_err(fail);
        match (there(&name)?, there(&fresh)?) {
            (true, true) => self.zfs.destroy(&fresh).map_err(fail),
            (false, true) => {
                self.zfs.rename(&fresh, &name).map_err(fail)?;
                point();
                self.settle_swap(path, swap)
            }
            (true, false) if there(&old)? => self.settle_swap(path, swap),
            _ => Ok(()),
        }
    }

    /// What comes after the clone took the dataset's place. A repeat is safe.
    fn settle_swap(&self, path: &DatasetPath, swap: &Swap) -> Result<()> {
        let (name, old) = (self.name(path)?, self.of_line(&swap.line, swap.number));
        let fail = |error| failed("roll back", path, error);
        for (property, kept) in
            RESERVED.into_iter().zip(swap.reserved).filter(|(_, kept)| *kept > 0)
        {
            let set = |name: &str, value: &str| {
                let mut properties = NvList::new()?;
                properties.put_text(property, value)?;
                self.zfs.set(name, &properties)
            };
            if self.zfs.exists(&old).map_err(fail)? {
                set(&old, "none").map_err(fail)?;
            }
            set(&name, &kept.to_string()).map_err(fail)?;
            point();
        }
        loop {
            let found = self.zfs.properties(&name, &["origin"]).map_err(fail)?;
            let origin = found.text("origin").unwrap_or_default();
            if !origin.starts_with(&self.of_line(&swap.line, "")) {
                break;
            }
            self.zfs.promote(&name).map_err(fail)?;
            point();
        }
        self.prune_lines(&swap.line)
    }

    /// No dataset that stepped aside is without snapshots that people see.
    fn prune_lines(&self, line: &str) -> Result<()> {
        for dataset in self.lines(line)? {
            let found = self.zfs.snapshots(&dataset);
            let found = found.map_err(|error| failed("look into", &dataset, error))?;
            if !found.iter().any(is_shown) {
                self.dissolve(&dataset)?;
            }
        }
        Ok(())
    }

    /// As [`prune_lines`](Self::prune_lines), after a snapshot of that dataset is gone.
    pub(super) fn prune_line_of(&self, dataset: &str) {
        let start = format!("{}/", self.history());
        let line = dataset.strip_prefix(&start).and_then(|last| Some(last.rsplit_once('.')?.0));
        let Some(line) = line else { return };
        let _families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.prune_lines(line) {
            tracing::warn!(dataset, ?error, "cannot remove what has no snapshots any more");
        }
    }

    /// The properties that were set on the dataset, its record among them.
    fn own_properties(&self, name: &str) -> Result<NvList> {
        let fail = |error| failed("read the properties of", name, error);
        let found = self.zfs.properties(name, &[]).map_err(fail)?;
        let mut list = NvList::new().map_err(fail)?;
        for (property, found) in found.iter() {
            if !found.source.is_own() || NOT_COPIED.contains(&property) {
                continue;
            }
            match &found.value {
                PropertyValue::Number(number) => list.put_number(property, *number),
                PropertyValue::Text(text) => list.put_text(property, text),
                PropertyValue::Other => Ok(()),
            }
            .map_err(fail)?;
        }
        Ok(list)
    }

    /// The unmounted dataset is gone, and those that stepped aside for it. What clones need of them is theirs.
    /// A repeat is safe.
    pub(super) fn dissolve_all(&self, path: &DatasetPath) -> Result<()> {
        // Afterwards it would be too late.
        patiently(|| self.refuse_in_use(path))?;
        let _families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        for dataset in self.aside(path)? {
            self.dissolve(&dataset)?;
        }
        self.dissolve(&self.name(path)?)
    }

    /// The unmounted dataset is gone. Its snapshots that clones need are theirs, and go with the last of them.
    /// A repeat is safe.
    fn dissolve(&self, name: &str) -> Result<()> {
        let fail = |error| failed("destroy", name, error);
        loop {
            let snapshots = match self.zfs.snapshots(name) {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                snapshots => snapshots.map_err(fail)?,
            };
            let Some(last) = snapshots.iter().rposition(|found| !found.clones.is_empty()) else {
                break;
            };
            let Some(clone) = snapshots.get(last).and_then(|found| found.clones.first()) else {
                break;
            };
            // All up to that one become the clone's, where their names may be taken.
            let mut renamed = Vec::new();
            for found in snapshots.iter().take(last + 1) {
                if !found.name.starts_with(GONE) {
                    let (old, new) =
                        (format!("{name}@{}", found.name), format!("{name}@{}", gone_name()?));
                    self.zfs.rename(&old, &new).map_err(fail)?;
                    renamed.push((new, old));
                    point();
                }
            }
            if let Err(error) = self.zfs.promote(clone) {
                renamed.iter().for_each(|(new, old)| self.put_back(new, old));
                return Err(failed("promote", clone, error));
            }
            point();
        }
        let found = self.zfs.properties(name, &["origin"]).map_err(fail)?;
        if let Some(origin) = found.text("origin").filter(|origin| origin.contains(GONE)) {
            self.defer_gone(dataset_of(origin))?;
            point();
        }
        patiently(|| self.remove_with_snapshots(name))?;
        point();
        Ok(())
    }

    /// What the dataset has of others' snapshots goes when no clone needs it any more.
    fn defer_gone(&self, dataset: &str) -> Result<()> {
        let fail = |error| failed("destroy snapshots of", dataset, error);
        let found = self.zfs.snapshots(dataset).map_err(fail)?;
        let gone = found.iter().filter(|found| found.name.starts_with(GONE) && !found.deferred);
        let gone: Vec<String> = gone.map(|found| format!("{dataset}@{}", found.name)).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        self.zfs.destroy_snapshots(&gone, true).map_err(fail)
    }

    /// That nobody holds a snapshot of the dataset, and whether it takes more than a call to destroy it.
    pub(super) fn is_entangled(&self, path: &DatasetPath) -> Result<bool> {
        let all = self.all_snapshots(path)?;
        if let Some((dataset, found)) = all.iter().find(|(_, found)| found.holds > 0) {
            return Err(Error::Busy(format!("{path}, of which {dataset}@{} is held,", found.name)));
        }
        let name = self.name(path)?;
        if !all.iter().any(|(dataset, found)| *dataset != name || !found.clones.is_empty()) {
            return Ok(false);
        }
        let below = self.zfs.children(&name).map_err(|error| self.failed("list", path, error))?;
        match below.first() {
            Some(below) => Err(Error::Busy(format!("{path} has {below} below it, so it"))),
            None => Ok(true),
        }
    }

    /// The name of a snapshot that is there only for clones is free, if that one has it. Returns whether it
    /// had.
    pub(super) fn free_name_in(&self, name: &str) -> Result<bool> {
        let fail = |error| failed("look up", name, error);
        if self.is_there(name)? || !self.zfs.exists(name).map_err(fail)? {
            return Ok(false);
        }
        let new = format!("{}@{}", dataset_of(name), gone_name()?);
        self.zfs.rename(name, &new).map_err(|error| failed("rename", name, error))?;
        Ok(true)
    }

    /// Whether one that stepped aside for the dataset has that snapshot.
    pub(super) fn is_aside(&self, snapshot: &SnapshotPath) -> Result<bool> {
        let own = self.snapshot_name(snapshot)?;
        Ok(self.find(snapshot)?.is_some_and(|found| found != own))
    }

    /// Whether anything stepped aside in this root.
    pub(super) fn has_history(&self) -> bool {
        self.zfs.children(&self.history()).is_ok_and(|children| !children.is_empty())
    }

    /// Removes what a crash left without snapshots.
    pub(super) fn tidy_history(&self) {
        let children = self.zfs.children(&self.history()).unwrap_or_default();
        for dataset in children {
            self.prune_line_of(&dataset);
        }
    }

    /// How much those take that stepped aside for the dataset.
    pub(super) fn usage_of_line(&self, line: &str) -> Result<u64> {
        let used = |dataset: String| {
            let found = self.zfs.properties(&dataset, &["used"]);
            found.map_or(0, |found| found.number("used").unwrap_or_default())
        };
        Ok(self.lines(line)?.into_iter().map(used).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_comes_back() {
        let swap = Swap { line: "77aa01f2c3d4".into(), number: 3, reserved: [0, 1 << 40] };
        assert_eq!(swap.to_string().parse(), Ok(swap));
        for bad in ["", "restore", "restore a", "restore a b 0 0", "adopt", "1:2:755", "destroy"] {
            assert_eq!(bad.parse::<Swap>(), Err(()), "{bad}");
        }
    }
}
