//! What happens to datasets, told by the kernel's events.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kleened_api::name::is_component;
use kleened_sys::zfs as sys;

use super::super::{DatasetPath, Error, Event, Folder, PROJECTS, Result, Told, Watch};
use super::record::{self, RECORD};
use super::{Zfs, failed, is_below};

/// The events since the root was opened.
#[derive(Debug)]
pub(super) struct Watched {
    events: sys::Events,
    /// What is known and not yet told.
    known: VecDeque<Event>,
}

/// Watches from now on; `None`, having said why, where that can't be.
pub(super) fn begin(zfs: &'static sys::Zfs) -> Option<Mutex<Watched>> {
    match zfs.events() {
        Ok(events) => Some(Mutex::new(Watched { events, known: VecDeque::new() })),
        Err(error) => {
            tracing::warn!(%error, "cannot notice what others do to datasets");
            None
        }
    }
}

/// A change that the kernel wrote to the pool's history.
struct Change<'e> {
    dataset: &'e str,
    /// `create`, `rename`, `set`, …
    what: &'e str,
    /// What follows it in `zpool history -i`.
    text: &'e str,
}

/// Where in the root a dataset is.
enum Place {
    /// It is one.
    Dataset(DatasetPath),
    /// It is below one, with a name that only the kernel gives: `%rollback`, `%recv`.
    Hidden(DatasetPath),
    /// It is the root, one of its areas, or above.
    Above,
    Elsewhere,
}

impl Place {
    fn of(root: &str, dataset: &str) -> Self {
        let Some(rest) = dataset.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')) else {
            let above = dataset == root || is_below(root, dataset);
            return if above { Self::Above } else { Self::Elsewhere };
        };
        let parts = if is_below(rest, PROJECTS) { 4 } else { 2 };
        let above = |rest: &str| {
            let project = rest.strip_prefix(PROJECTS).and_then(|rest| rest.strip_prefix('/'));
            rest == PROJECTS || rest.parse::<Folder>().is_ok() || project.is_some_and(is_component)
        };
        let (path, below) = match rest.match_indices('/').nth(parts - 1) {
            Some((at, _)) => (&rest[..at], Some(&rest[at + 1..])),
            None if above(rest) => return Self::Above,
            None => (rest, None),
        };
        match (path.parse(), below) {
            (Ok(path), None) => Self::Dataset(path),
            (Ok(path), Some(below)) if below.starts_with('%') => Self::Hidden(path),
            _ => Self::Elsewhere,
        }
    }
}

/// What a change of a dataset tells of its record, which is in properties.
fn told(what: &str, text: &str) -> Told {
    let Some((property, value)) =
        text.split_once('=').filter(|_| ["set", "inherit"].contains(&what))
    else {
        return Told::Nothing;
    };
    match property {
        RECORD if what == "set" && !record::has_parts(value) => Told::Is(value.to_owned()),
        _ if property.starts_with(RECORD) => Told::Nothing,
        _ => Told::Same,
    }
}

/// What a change means for the datasets of a root, in order.
fn events(root: &str, change: &Change<'_>) -> Vec<Event> {
    let (dataset, snapshot) = match change.dataset.split_once('@') {
        Some((dataset, snapshot)) => (dataset, Some(snapshot)),
        None => (change.dataset, None),
    };
    let changed = |path, what: &str, text: &str, record| Event::Changed {
        path,
        what: format!("{what} {text}").trim_end().to_owned(),
        record,
    };
    let place = Place::of(root, dataset);
    match (place, snapshot, change.what) {
        (Place::Dataset(path), Some(snapshot), what) => {
            vec![changed(path, what, &format!("@{snapshot}"), Told::Same)]
        }
        (from, None, "rename") => {
            let to = change.text.trim_start_matches("-> ").trim();
            let to = Place::of(root, to);
            if matches!(from, Place::Above) || matches!(to, Place::Above) {
                return vec![Event::Lost];
            }
            let mut events = Vec::new();
            if let Place::Dataset(path) = from {
                events.push(Event::Vanished(path));
            }
            if let Place::Dataset(path) = to {
                events.push(Event::Appeared(path));
            }
            events
        }
        (Place::Dataset(path), None, "create" | "clone") => vec![Event::Appeared(path)],
        (Place::Dataset(path), None, "destroy") => vec![Event::Vanished(path)],
        (Place::Dataset(path), None, what) => {
            vec![changed(path, what, change.text, told(what, change.text))]
        }
        // The content is exchanged with that of a hidden one, which then goes.
        (Place::Hidden(path), None, "clone swap") => {
            vec![changed(path, "rollback", "", Told::Same)]
        }
        (Place::Above, None, "destroy" | "rollback" | "set" | "inherit" | "receive") => {
            vec![Event::Lost]
        }
        _ => Vec::new(),
    }
}

impl Watch for Zfs {
    fn next(&self) -> Result<Event> {
        let ended = || Error::Unsupported("nothing is told of what others do".to_owned());
        let watched = self.watched.as_ref().ok_or_else(ended)?;
        let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(event) = watched.known.pop_front() {
                return Ok(event);
            }
            let event = match watched.events.next(true) {
                Ok(Some(event)) => event,
                Ok(None) => {
                    let gone = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(Error::io("watch", &self.root, gone));
                }
                Err(error) if error.kind() == sys::Kind::Interrupted => continue,
                Err(error) => return Err(failed("watch", &self.root, error)),
            };
            if event.lost > 0 {
                watched.known.push_back(Event::Lost);
            }
            let field = |name| event.fields.text(name);
            let (Some(dataset), Some(what)) =
                (field("history_dsname"), field("history_internal_name"))
            else {
                continue;
            };
            let text = field("history_internal_str").unwrap_or_default();
            watched.known.extend(events(&self.root, &Change { dataset, what, text }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(dataset: &str, what: &str, text: &str) -> Vec<String> {
        let events = events("tank/kleene", &Change { dataset, what, text });
        let show = |event| match event {
            Event::Appeared(path) => format!("+{path}"),
            Event::Vanished(path) => format!("-{path}"),
            Event::Changed { path, what, record } => match record {
                Told::Same => format!("{path} {what}"),
                Told::Is(record) => format!("{path} is {record}"),
                Told::Nothing => format!("{path} {what}?"),
            },
            Event::Lost => "lost".to_owned(),
        };
        events.into_iter().map(show).collect()
    }

    #[test]
    fn what_changes_mean() {
        for (dataset, what, text, events) in [
            ("tank/kleene/volumes/a", "create", "", &["+volumes/a"][..]),
            ("tank/kleene/volumes/a", "clone", "origin=x", &["+volumes/a"]),
            ("tank/kleene/volumes/a", "destroy", "", &["-volumes/a"]),
            ("tank/kleene/volumes/a@s", "destroy", "", &["volumes/a destroy @s"]),
            (
                "tank/kleene/volumes/a",
                "rename",
                "-> tank/kleene/image/b",
                &["-volumes/a", "+image/b"],
            ),
            ("tank/kleene/volumes/a", "rename", "-> tank/x", &["-volumes/a"]),
            ("tank/x", "rename", "-> tank/kleene/volumes/a", &["+volumes/a"]),
            ("tank/kleene/volumes/a", "set", "readonly=1", &["volumes/a set readonly=1"]),
            ("tank/kleene/volumes/a", "inherit", "readonly=0", &["volumes/a inherit readonly=0"]),
            ("tank/kleene/volumes/a", "set", "org.kleene:record={}", &["volumes/a is {}"]),
            (
                "tank/kleene/volumes/a",
                "set",
                "org.kleene:record=#2#{",
                &["volumes/a set org.kleene:record=#2#{?"],
            ),
            (
                "tank/kleene/volumes/a",
                "set",
                "org.kleene:record.2=}",
                &["volumes/a set org.kleene:record.2=}?"],
            ),
            (
                "tank/kleene/volumes/a",
                "inherit",
                "org.kleene:record=",
                &["volumes/a inherit org.kleene:record=?"],
            ),
            ("tank/kleene/volumes/a", "receive", "", &["volumes/a receive?"]),
            ("tank/kleene/volumes/a/%rollback", "clone swap", "parent=a", &["volumes/a rollback"]),
            ("tank/kleene/volumes/a/%rollback", "destroy", "", &[]),
            ("tank/kleene/volumes", "set", "readonly=1", &["lost"]),
            ("tank", "set", "readonly=1", &["lost"]),
            ("tank/kleene", "snapshot", "", &[]),
            ("tank/kleene", "rename", "-> tank/x", &["lost"]),
            ("tank/kleene/volumes/a", "rename", "-> tank/kleene/x", &["-volumes/a"]),
            ("tank/kleene/volumes", "destroy", "", &["lost"]),
            ("tank/kleene2/volumes/a", "create", "", &[]),
            ("tank/kleene/volumes/a/b", "create", "", &[]),
            ("tank/kleene/volumes/a:b", "create", "", &[]),
            ("tank/kleene/other/a", "create", "", &[]),
            ("tank/kleene/projects/w/volumes/a", "create", "", &["+projects/w/volumes/a"]),
            ("tank/kleene/projects/w/volumes/a/b", "create", "", &[]),
            (
                "tank/kleene/projects/w/volumes/a/%rollback",
                "clone swap",
                "parent=a",
                &["projects/w/volumes/a rollback"],
            ),
            ("tank/kleene/projects/w/other/a", "create", "", &[]),
            ("tank/kleene/projects/default/volumes/a", "create", "", &[]),
            ("tank/kleene/projects/w", "destroy", "", &["lost"]),
            ("tank/kleene/projects", "set", "readonly=1", &["lost"]),
            ("tank/kleene/projects/w/volumes", "set", "readonly=1", &["lost"]),
            ("tank/kleene/projects/w/volumes", "create", "", &[]),
            (
                "tank/kleene/projects/w/volumes/a",
                "rename",
                "-> tank/kleene/volumes/a",
                &["-projects/w/volumes/a", "+volumes/a"],
            ),
        ] {
            assert_eq!(shown(dataset, what, text), events, "{dataset} {what}");
        }
    }
}
