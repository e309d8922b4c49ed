//! The root: the directory that a configuration names, also by its dataset; and making a new one.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use kleened_sys::zfs::pool_of;
use kleened_sys::zfs::{self, Kind, MountFlags, Zfs};

use super::{Error, Result};

/// The smallest file that can hold a pool.
const SMALLEST: u64 = 64 << 20;

/// What a new root gets. Volumes, images and containers inherit it.
const ROOT: &[(&str, &str)] = &[
    // Little work, and less to write.
    ("compression", "on"),
    // Reading must not write.
    ("atime", "off"),
];

/// What a new root gets on Linux: there access control lists are off where nobody asks for them, and
/// attributes lie in files of their own.
const ROOT_ON_LINUX: &[(&str, &str)] = &[("acltype", "posix"), ("xattr", "sa")];

/// What the root dataset of a new pool gets: it holds nothing itself.
const POOL: &[(&str, &str)] = &[("mountpoint", "none"), ("canmount", "off"), ("atime", "off")];

/// The directory of the root that is named by its path, or as a dataset, which then is mounted there.
///
/// # Errors
///
/// [`Error::Unsupported`] where there is no ZFS; [`Error::Invalid`] for a dataset that there is not or
/// that can't be a root, with what to do; [`Error::Io`].
pub fn directory(root: &Path) -> Result<PathBuf> {
    if root.is_absolute() {
        return Ok(root.to_owned());
    }
    mounted(load()?, &root.to_string_lossy())
}

/// There is a dataset of that name, mounted, with properties that suit a root where it was not there
/// before; what it is in is made, too. The answer is where it is mounted. A repeat is safe.
///
/// # Errors
///
/// As [`directory`]; the pool is not there.
pub fn make(dataset: &str) -> Result<PathBuf> {
    let zfs = load()?;
    if !exists(zfs, dataset)? {
        create(zfs, dataset)?;
    }
    let at = mounted(zfs, dataset)?;
    let failed = |error| Error::io("protect", at.display(), error);
    if fs::read_dir(&at).map_err(failed)?.next().is_none() {
        // A set-user-ID program in an image must not be within reach of the host's users.
        fs::set_permissions(&at, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(at)
}

/// There is a dataset with properties that suit a root, and all that it is in.
fn create(zfs: &'static Zfs, dataset: &str) -> Result<()> {
    let failed = |error: zfs::Error| fail("make", dataset, error);
    let pool = pool_of(dataset);
    if !zfs.pool_exists(pool).map_err(failed)? {
        return Err(Error::Invalid(format!(
            "there is no pool {pool}: import it with 'zpool import {pool}', make one with 'zpool create', or \
             try one on a file with 'kleened init --file PATH --size 10G'"
        )));
    }
    for (end, _) in dataset.match_indices('/').skip(1) {
        let Some(parent) = dataset.get(..end) else { continue };
        if !exists(zfs, parent)? {
            // There for its place alone.
            let properties = zfs.check_properties(pool, [("canmount", "off")]).map_err(failed)?;
            zfs.create(parent, &properties).map_err(failed)?;
        }
    }
    let place = format!("/{dataset}");
    let own = [("mountpoint", place.as_str()), ("canmount", "on")];
    let linux = if cfg!(target_os = "linux") { ROOT_ON_LINUX } else { &[] };
    let all = own.into_iter().chain(ROOT.iter().chain(linux).copied());
    let properties = zfs.check_properties(pool, all).map_err(failed)?;
    zfs.create(dataset, &properties).map_err(failed)
}

/// There is a pool on that file, of that size where the file was not there before. A repeat is safe.
///
/// # Errors
///
/// [`Error::Invalid`] where there is the file or the pool alone, and for a size that is missing or too
/// small; what ZFS says. Then nothing changed.
pub fn make_pool(name: &str, file: &Path, size: Option<u64>) -> Result<()> {
    let zfs = load()?;
    let shown = file.display();
    let failed = |error: io::Error| Error::io("make", file.display(), error);
    let there = zfs.pool_exists(name).map_err(|error| fail("look for pool", name, error))?;
    match (there, file.try_exists().map_err(failed)?) {
        (true, true) => return Ok(()),
        (true, false) => {
            return Err(Error::Invalid(format!(
                "there is a pool {name} already, and not on {shown}: use it without --file, or choose \
                 another name with --pool"
            )));
        }
        (false, true) => {
            let folder = file.parent().unwrap_or(Path::new("/")).display();
            return Err(Error::Invalid(format!(
                "there is a file {shown}, and no pool {name}: if the file holds the pool, import it with \
                 'zpool import -d {folder} {name}', if not, name another file"
            )));
        }
        (false, false) => {}
    }
    let size = size.ok_or_else(|| Error::Invalid(format!("{shown} needs a size: give --size")))?;
    if size < SMALLEST {
        let text = format!("{shown} is to have {size} bytes: a pool needs 64M at least");
        return Err(Error::Invalid(text));
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let made = opened.and_then(|new| new.set_len(size)).map_err(failed).and_then(|()| {
        let made = zfs.create_pool_on_file(name, file, POOL);
        made.map_err(|error| fail("make pool", name, error))
    });
    if made.is_err() {
        // It was not there before; the error is what the caller hears.
        let _ = fs::remove_file(file);
    }
    made
}

fn load() -> Result<&'static Zfs> {
    Zfs::load().map_err(|error| Error::Unsupported(error.to_string()))
}

fn exists(zfs: &'static Zfs, dataset: &str) -> Result<bool> {
    match zfs.properties(dataset, &["type"]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) => Err(fail("look for", dataset, error)),
    }
}

/// Where the dataset is mounted, if need be just now.
fn mounted(zfs: &'static Zfs, dataset: &str) -> Result<PathBuf> {
    let read = |error: io::Error| Error::io("read", "the mounts", error);
    if let Some(mount) = zfs::mounted().map_err(read)?.into_iter().find(|m| m.dataset == dataset) {
        return Ok(mount.at);
    }
    let found = zfs.properties(dataset, &["type", "mountpoint"]).map_err(|error| {
        if error.kind() == Kind::NotFound {
            let pool = pool_of(dataset);
            return Error::Invalid(format!(
                "there is no dataset {dataset}: make it with 'kleened init --root {dataset}', or import \
                 its pool with 'zpool import {pool}'"
            ));
        }
        fail("look at", dataset, error)
    })?;
    if !found.is_file_system() {
        return Err(Error::Invalid(format!("{dataset} is not a file system")));
    }
    let at = match found.text("mountpoint") {
        Some(at) if at.starts_with('/') => PathBuf::from(at),
        Some(at) => {
            return Err(Error::Invalid(format!(
                "{dataset} has the mountpoint '{at}', and a root needs a place: \
                 zfs set mountpoint=/{dataset} {dataset}"
            )));
        }
        None => return Err(Error::Invalid(format!("{dataset} is not a file system"))),
    };
    let failed =
        |error: io::Error| Error::io("mount", format!("{dataset} at {}", at.display()), error);
    DirBuilder::new().recursive(true).mode(0o755).create(&at).map_err(failed)?;
    zfs::mount_dataset(dataset, &at, MountFlags::default()).map_err(failed)?;
    Ok(at)
}

fn fail(verb: &'static str, object: &str, error: zfs::Error) -> Error {
    match error.kind() {
        Kind::Exists => Error::Exists(object.to_owned()),
        Kind::Invalid | Kind::NameTooLong => Error::Invalid(error.to_string()),
        Kind::Unsupported => Error::Unsupported(error.to_string()),
        _ => Error::io(verb, object, error),
    }
}
