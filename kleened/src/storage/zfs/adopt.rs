//! Taking over a dataset that others made.
//!
//! It gets its record where it is, with the property that says where that was; then its new name; then
//! `mountpoint` is inherited. A crash before the new name leaves a dataset that is not of the root, and one
//! after it the intent, which the next start carries out.

use std::path::PathBuf;

use kleened_sys::zfs as sys;
use kleened_sys::zfs::{Kind, Source};

use super::super::fault::point;
use super::super::{Adopt, DatasetPath, Driver, Error, Result};
use super::destroy::patiently;
use super::{NO_KEY, Zfs, failed, is_below, mount};

/// Holds the name under which a dataset was taken over.
const ADOPTED: &str = "org.kleene:adopted";

/// What an intent holds where it is about a dataset to be taken over.
pub(super) const INTENT: &str = "adopt";

/// What is looked at of the dataset.
const LOOKED_AT: &[&str] =
    &["type", "zoned", "jailed", "keystatus", "receive_resume_token", ADOPTED];

fn refuse(dataset: &str, reason: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("cannot adopt {dataset}: {reason}"))
}

impl Zfs {
    /// Makes sure that a dataset of that name can be taken over. False where there is none.
    fn is_adoptable(&self, dataset: &str, name: &str) -> Result<bool> {
        if dataset.contains(['@', '#', '%']) {
            return Err(refuse(dataset, "it is not the name of a dataset"));
        }
        if sys::pool_of(dataset) != sys::pool_of(&self.root) {
            return Err(refuse(
                dataset,
                format_args!("it is in another pool than {}: send it there", self.root),
            ));
        }
        let of_root = dataset == self.root || is_below(dataset, &self.root);
        if dataset != name && (of_root || is_below(&self.root, dataset)) {
            return Err(refuse(
                dataset,
                format_args!("it is a part of {}, or above it", self.root),
            ));
        }
        let found = match self.zfs.properties(dataset, LOOKED_AT) {
            Ok(found) => found,
            Err(error) => {
                return match error.kind() {
                    Kind::NotFound => Ok(false),
                    Kind::Invalid | Kind::NameTooLong => {
                        Err(refuse(dataset, "it is not the name of a dataset"))
                    }
                    _ => Err(failed("look up", dataset, error)),
                };
            }
        };
        let is = |name: &str, value| found.number(name) == Some(value);
        if !found.is_file_system() {
            return Err(refuse(dataset, "it is not a file system"));
        }
        if is("zoned", 1) || is("jailed", 1) {
            return Err(refuse(dataset, "it belongs to a jail: set jailed=off (zoned=off) first"));
        }
        if found.lacks_key() {
            return Err(refuse(dataset, NO_KEY));
        }
        if found.text("receive_resume_token").is_some() {
            return Err(refuse(dataset, "it is still being received"));
        }
        let children =
            self.zfs.children(dataset).map_err(|error| failed("look below", dataset, error))?;
        match children.first() {
            None => Ok(true),
            Some(child) => {
                Err(refuse(dataset, format_args!("{child} is below it: move or adopt that first")))
            }
        }
    }

    /// The dataset is mounted nowhere but at `home`. Returns where it was. Or it is as it was.
    fn unmount_elsewhere(&self, dataset: &str, home: Option<PathBuf>) -> Result<Vec<PathBuf>> {
        let failed = |error| Error::io("unmount", dataset, error);
        let mounts = sys::mounted().map_err(failed)?;
        let places = mounts.into_iter().filter(|mount| mount.dataset == dataset);
        // The last one may be on top of the others.
        let places: Vec<_> = places.map(|mount| mount.at).rev().collect();
        let mut unmounted = Vec::new();
        for place in places {
            if home.as_ref() == Some(&place) {
                continue;
            }
            if let Err(error) = patiently(|| sys::unmount(&place, false).map_err(failed)) {
                mount_all(dataset, &unmounted);
                return Err(error);
            }
            unmounted.push(place);
            point();
        }
        Ok(unmounted)
    }

    /// The dataset has the record, and says where it was taken from.
    fn set_adopted(&self, name: &str, from: &str, record: &str) -> Result<()> {
        let failed = |error| failed("write the record of", name, error);
        let mut properties = sys::NvList::new().map_err(failed)?;
        super::record::put(&mut properties, record).map_err(failed)?;
        properties.put_text(ADOPTED, from).map_err(failed)?;
        self.zfs.set(name, &properties).map_err(failed)
    }

    /// The dataset has no record of its own, as before.
    fn forget_adopted(&self, name: &str, record: &str) {
        let parts = super::record::split(record).into_iter().map(|(name, _)| name);
        for property in parts.chain([ADOPTED.to_owned()]) {
            if let Err(error) = self.zfs.inherit(name, &property, false) {
                tracing::warn!(name, property, %error, "cannot take back a property");
            }
        }
    }

    /// What comes after the new name: the dataset is mounted at home, and will be. A repeat is safe.
    pub(super) fn finish_adopting(&self, path: &DatasetPath) -> Result<()> {
        let name = self.name(path)?;
        let failed = |error| self.failed("adopt", path, error);
        let found = self.zfs.properties(&name, &["mountpoint"]).map_err(failed)?;
        let source = found.get("mountpoint").map(|property| &property.source);
        if matches!(source, Some(Source::Local | Source::Received)) {
            // It may mount it, where the root's is.
            self.zfs.inherit(&name, "mountpoint", false).map_err(failed)?;
            point();
        }
        self.mount_at_home(path)
    }
}

/// The dataset is mounted at these places again, as well as can be.
fn mount_all(dataset: &str, places: &[PathBuf]) {
    for place in places.iter().rev() {
        if let Err(error) = mount::mount(dataset, place) {
            tracing::warn!(dataset, place = %place.display(), %error, "cannot mount it again");
        }
    }
}

impl Adopt for Zfs {
    fn adopt(&self, dataset: &str, path: &DatasetPath, record: &str) -> Result<()> {
        let name = self.name(path)?;
        let _held = self.locks.hold(&[path]);
        let adoptable = self.is_adoptable(dataset, &name)?;
        let there = self.look(path)?.is_some();
        if dataset == name && there {
            let elsewhere = self.unmount_elsewhere(dataset, Some(self.mountpoint(path)))?;
            let done = self.finish_adopting(path);
            if done.is_err() {
                mount_all(dataset, &elsewhere);
            }
            done?;
            point();
            return self.set_record(path, record);
        }
        if !adoptable {
            // Taken over before, perhaps.
            let failed = |error| self.failed("read", path, error);
            let was = match there {
                true => self.zfs.properties(&name, &[ADOPTED]).map_err(failed)?,
                false => return Err(Error::NotFound(dataset.to_owned())),
            };
            if was.own_text(ADOPTED) != Some(dataset) {
                return Err(Error::NotFound(dataset.to_owned()));
            }
            self.finish_adopting(path)?;
            return self.set_record(path, record);
        }
        if there {
            return Err(Error::Exists(path.to_string()));
        }
        let places = self.unmount_elsewhere(dataset, None)?;
        let taken_back = |error: Error| {
            mount_all(dataset, &places);
            error
        };
        self.set_adopted(dataset, dataset, record).map_err(taken_back)?;
        point();
        let renamed = self.intend_text(path, INTENT).and_then(|()| {
            let renamed = self.zfs.rename(dataset, &name);
            renamed.map_err(|error| match error.kind() {
                Kind::NotPermitted => refuse(
                    dataset,
                    "its key is that of a dataset above it: zfs change-key makes it one of its own",
                ),
                _ => self.failed("adopt", path, error),
            })
        });
        let undo = |error| {
            self.done(path);
            self.forget_adopted(dataset, record);
            taken_back(error)
        };
        renamed.map_err(undo)?;
        point();
        if let Err(error) = self.finish_adopting(path) {
            let back = self.unmount_elsewhere(&name, None);
            match back.and_then(|_| {
                self.zfs.rename(&name, dataset).map_err(|error| failed("rename", &name, error))
            }) {
                Ok(()) => {
                    self.remove_mountpoint(path);
                    return Err(undo(error));
                }
                Err(error) => tracing::warn!(%path, ?error, "cannot take back a renaming"),
            }
            return Err(error);
        }
        self.done(path);
        Ok(())
    }
}
