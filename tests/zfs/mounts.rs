//! Mounting, changes between snapshots, and events.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kleened_sys::zfs::{self, ChangeKind, Kind, MountFlags};

use crate::fixture::{Area, texts};

#[test]
fn datasets_are_mounted_and_found() {
    let Some(area) = Area::new() else { return };
    let one = area.make("one");
    let mount = area.mount(&one);
    let path = mount.path().to_owned();
    assert_eq!(zfs::dataset_mounted_at(&path).unwrap(), Some(one.clone()));
    fs::create_dir(path.join("inner")).unwrap();
    assert_eq!(zfs::dataset_mounted_at(&path.join("inner")).unwrap(), None);
    assert_eq!(zfs::dataset_mounted_at(area.dir.path()).unwrap(), None);
    let found = |name: &str| zfs::mounted().unwrap().into_iter().find(|m| m.dataset == name);
    assert_eq!(found(&one).unwrap().at, path);
    zfs::unmount(&path, false).unwrap();
    assert_eq!((zfs::dataset_mounted_at(&path).unwrap(), found(&one)), (None, None));
    assert_eq!(zfs::unmount(&path, false).unwrap_err().raw_os_error(), Some(libc_einval()));
    let flags = MountFlags { read_only: true, ..MountFlags::default() };
    zfs::mount_dataset(&one, &path, flags).unwrap();
    let error = fs::write(path.join("file"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // In use.
    let open = fs::File::open(path.join("inner")).unwrap();
    let error = zfs::unmount(&path, false).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    drop(open);
    zfs::unmount(&path, false).unwrap();
    let missing = zfs::mount_dataset(&area.at("no"), &path, MountFlags::default()).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    for bad in ["", "a\0b", &"x".repeat(5000)] {
        assert!(zfs::mount_dataset(bad, &path, MountFlags::default()).is_err());
        assert!(zfs::unmount(Path::new(bad), false).is_err());
    }
}

const fn libc_einval() -> i32 {
    22
}

#[test]
fn what_changed_is_told() {
    let Some(area) = Area::new() else { return };
    let one = area.make("one");
    let mount = area.mount(&one);
    let path = |name: &str| mount.path().join(name);
    for name in ["gone", "changed", "moved"] {
        fs::write(path(name), name).unwrap();
    }
    area.zfs.snapshot(&[&format!("{one}@a")], &texts(&[])).unwrap();
    fs::remove_file(path("gone")).unwrap();
    fs::write(path("changed"), "else").unwrap();
    fs::rename(path("moved"), path("moved here")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"n\xe9w\t\n\\");
    fs::create_dir(mount.path().join(odd)).unwrap();
    area.zfs.snapshot(&[&format!("{one}@b")], &texts(&[])).unwrap();
    for to in [one.clone(), format!("{one}@b")] {
        let mut changes = Vec::new();
        area.zfs.diff(&format!("{one}@a"), &to, |change| changes.push(change)).unwrap();
        let found: BTreeSet<_> = changes
            .iter()
            .map(|c| (format!("{:?}{}", c.kind, c.file_type), c.path.clone(), c.new_path.clone()))
            .collect();
        let expected = [
            ("Modified/", mount.path().join(""), None),
            ("RemovedF", path("gone"), None),
            ("ModifiedF", path("changed"), None),
            ("RenamedF", path("moved"), Some(path("moved here"))),
            ("Added/", mount.path().join(odd), None),
        ];
        let expected: BTreeSet<_> =
            expected.map(|(kind, path, new)| (kind.to_owned(), path, new)).into_iter().collect();
        assert_eq!(found, expected);
        assert!(changes.iter().any(|c| c.kind == ChangeKind::Renamed));
    }
    drop(mount);
    let error = area.zfs.diff(&format!("{one}@a"), &one, |_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    let error = area.zfs.diff(&format!("{one}@no"), &one, |_| ()).unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[test]
fn events_tell_of_changes() {
    let Some(area) = Area::new() else { return };
    let mut events = area.zfs.events().unwrap();
    let (one, two) = (area.make("one"), area.at("two"));
    area.zfs.set(&one, &texts(&[("org.kleene:record", "r")])).unwrap();
    area.zfs.rename(&one, &two).unwrap();
    area.zfs.destroy(&two).unwrap();
    let mut seen = Vec::new();
    // They are told when the transaction is on its way to the device, in order.
    while !seen.iter().any(|(what, name): &(String, String)| what == "destroy" && *name == two) {
        let event = events.next(true).unwrap().unwrap();
        let field = |name| event.fields.text(name).unwrap_or_default().to_owned();
        let (what, name) = (field("history_internal_name"), field("history_dsname"));
        if name.starts_with(&area.name) {
            seen.push((what, name));
        }
    }
    for (what, name) in [("create", &one), ("set", &one), ("rename", &one), ("destroy", &two)] {
        assert!(seen.contains(&(what.to_owned(), name.clone())), "{what} {name}: {seen:?}");
    }
    while let Some(event) = events.next(false).unwrap() {
        assert!(!event.class.is_empty());
    }
}
