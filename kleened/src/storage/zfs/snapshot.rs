//! Snapshots of datasets.
//!
//! A snapshot's record is a property of it, set in the call that makes it; what it inherits from its
//! dataset does not count. One that was destroyed while clones needed it stays until the last of them goes,
//! under its name unless somebody else wants that, and is not listed.

use std::collections::BTreeMap;

use kleened_api::Timestamp;
use kleened_sys::zfs::{Error as SysError, Kind, NvList, Snapshot as Found};
use time::OffsetDateTime;

use super::super::fault::point;
use super::super::{DatasetPath, DatasetSpec, Error, Result, Snapshot, SnapshotPath, Snapshots};
use super::record;
use super::source::dataset_of;
use super::{Zfs, failed};

/// Under which tag a snapshot is held here.
const TAG: &str = "kleene";

impl Zfs {
    /// Which of these has no dataset.
    fn first_missing(&self, snapshots: &[SnapshotPath]) -> Error {
        let paths = snapshots.iter().map(|snapshot| &snapshot.dataset);
        for path in paths {
            match self.look(path) {
                Ok(Some(_)) => {}
                Ok(None) => return Error::NotFound(path.to_string()),
                Err(error) => return error,
            }
        }
        let all: Vec<_> = snapshots.iter().map(ToString::to_string).collect();
        Error::NotFound(all.join(", "))
    }

    /// Why a snapshot is not found: it or its dataset is missing, or nothing is known.
    fn no_snapshot(&self, snapshot: &SnapshotPath) -> Error {
        match self.missing(&snapshot.dataset) {
            Error::NotFound(_) => Error::NotFound(snapshot.to_string()),
            unknown => unknown,
        }
    }

    /// What the kernel's error means for a snapshot.
    fn snapshot_failed(
        &self,
        verb: &'static str,
        snapshot: &SnapshotPath,
        error: SysError,
    ) -> Error {
        match error.kind() {
            Kind::NotFound => self.no_snapshot(snapshot),
            _ => failed(verb, snapshot, error),
        }
    }

    /// The full name of a snapshot that there is.
    fn existing(&self, snapshot: &SnapshotPath) -> Result<String> {
        self.find(snapshot)?.ok_or_else(|| self.no_snapshot(snapshot))
    }

    /// Whether the snapshot, which others may hold, too, is held here.
    fn is_held(&self, dataset: &str, found: &Found) -> Result<bool> {
        if found.holds == 0 {
            return Ok(false);
        }
        let name = format!("{dataset}@{}", found.name);
        match self.zfs.holds(&name) {
            Ok(tags) => Ok(tags.iter().any(|(tag, _)| tag == TAG)),
            // Destroyed meanwhile.
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(failed("list the holds of", name, error)),
        }
    }

    fn show(&self, dataset: &str, found: Found) -> Result<Snapshot> {
        Ok(Snapshot {
            held: self.is_held(dataset, &found)?,
            created: time(found.creation),
            record: record::join(|name| found.user.own_text(name)),
            name: found.name,
        })
    }
}

impl Snapshots for Zfs {
    fn snapshot(&self, snapshots: &[SnapshotPath], record: &str) -> Result<()> {
        let mut names = BTreeMap::new();
        for snapshot in snapshots {
            let name = self.snapshot_name(snapshot)?;
            if let Some(other) = names.insert(&snapshot.dataset, name.clone()) {
                if other == name {
                    return Err(Error::Exists(snapshot.to_string()));
                }
                return Err(Error::Unsupported(format!(
                    "ZFS makes one snapshot of a dataset at a time, and these are two of {}",
                    snapshot.dataset
                )));
            }
        }
        let Some(first) = snapshots.first() else { return Ok(()) };
        if self.has_history() {
            for snapshot in snapshots {
                if self.is_aside(snapshot)? {
                    return Err(Error::Exists(snapshot.to_string()));
                }
            }
        }
        let texts: Vec<&str> = names.values().map(String::as_str).collect();
        let mut properties = NvList::new().map_err(|error| failed("snapshot", first, error))?;
        if !record.is_empty() {
            record::put(&mut properties, record).map_err(|e| failed("snapshot", first, e))?;
        }
        point();
        let mut made = self.zfs.snapshot(&texts, &properties);
        if made.as_ref().is_err_and(|error| error.kind() == Kind::Exists) {
            let mut freed = false;
            for text in &texts {
                freed |= self.free_name_in(text)?;
            }
            if freed {
                made = self.zfs.snapshot(&texts, &properties);
            }
        }
        made.map_err(|error| {
            let to_blame = error.failed().iter().find_map(|item| {
                let of = |snapshot: &&SnapshotPath| item.name.ends_with(&format!("/{snapshot}"));
                Some((item.kind(), snapshots.iter().find(of)?))
            });
            match to_blame {
                Some((Kind::Exists, snapshot)) => Error::Exists(snapshot.to_string()),
                Some((Kind::NotFound, snapshot)) => self.missing(&snapshot.dataset),
                _ => match error.kind() {
                    Kind::Exists => Error::Exists(first.to_string()),
                    Kind::NotFound => self.first_missing(snapshots),
                    _ => failed("snapshot", first, error),
                },
            }
        })
    }

    fn snapshots(&self, path: &DatasetPath) -> Result<Vec<Snapshot>> {
        let all = self.all_snapshots(path)?.into_iter();
        all.filter(|(_, found)| !found.deferred)
            .map(|(dataset, found)| self.show(&dataset, found))
            .collect()
    }

    fn snapshot_usage(&self, snapshot: &SnapshotPath) -> Result<u64> {
        let found = self.zfs.properties(&self.existing(snapshot)?, &["used"]);
        let found = found.map_err(|error| self.snapshot_failed("measure", snapshot, error))?;
        Ok(found.number("used").unwrap_or_default())
    }

    fn destroy_snapshot(&self, snapshot: &SnapshotPath) -> Result<bool> {
        let Some(name) = self.find(snapshot)? else {
            return match self.missing(&snapshot.dataset) {
                Error::NotFound(_) => Ok(false),
                unknown => Err(unknown),
            };
        };
        point();
        match self.zfs.destroy_snapshots(&[&name], false) {
            Ok(()) => {}
            // It has clones, and goes with the last of them.
            Err(error) if error.kind() == Kind::Exists => self
                .zfs
                .destroy_snapshots(&[&name], true)
                .map_err(|error| failed("destroy", snapshot, error))?,
            Err(error) => return Err(failed("destroy", snapshot, error)),
        }
        point();
        self.prune_line_of(dataset_of(&name));
        Ok(true)
    }

    fn rename_snapshot(&self, snapshot: &SnapshotPath, to: &str) -> Result<()> {
        let new = snapshot.dataset.snapshot(to);
        self.snapshot_name(&new)?;
        let name = self.existing(snapshot)?;
        if self.find(&new)?.is_some() {
            return Err(Error::Exists(new.to_string()));
        }
        let full = format!("{}@{to}", dataset_of(&name));
        self.free_name_in(&full)?;
        self.zfs.rename(&name, &full).map_err(|error| match error.kind() {
            Kind::Exists => Error::Exists(new.to_string()),
            _ => self.snapshot_failed("rename", snapshot, error),
        })
    }

    fn hold(&self, snapshot: &SnapshotPath, held: bool) -> Result<()> {
        let name = self.existing(snapshot)?;
        let (verb, done, already) = match held {
            true => ("hold", self.zfs.hold(&[(&name, TAG)], None), Kind::Exists),
            false => ("release", self.zfs.release(&[(&name, TAG)]), Kind::NotFound),
        };
        match done {
            Err(error) if error.kind() != already => {
                Err(self.snapshot_failed(verb, snapshot, error))
            }
            _ => Ok(()),
        }
    }

    fn rollback(&self, snapshot: &SnapshotPath) -> Result<()> {
        let path = &snapshot.dataset;
        self.snapshot_name(snapshot)?;
        let _held = self.locks.hold(&[path]);
        self.ours(path)?;
        self.go_back(snapshot)
    }

    fn clone_from(
        &self,
        snapshot: &SnapshotPath,
        to: &DatasetPath,
        spec: &DatasetSpec,
    ) -> Result<()> {
        let (origin, name) = (self.existing(snapshot)?, self.name(to)?);
        let properties = self.properties(spec)?;
        let _held = self.locks.hold(&[to]);
        self.make(to, spec, || {
            let Err(error) = self.zfs.clone_from(&name, &origin, &properties) else {
                return Ok(());
            };
            let no_origin =
                error.kind() == Kind::NotFound && matches!(self.zfs.exists(&origin), Ok(false));
            if no_origin {
                return Err(match self.missing(&snapshot.dataset) {
                    Error::NotFound(_) => Error::NotFound(snapshot.to_string()),
                    unknown => unknown,
                });
            }
            Err(self.not_made("clone", to, error))
        })
    }
}

fn time(seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH).into()
}
