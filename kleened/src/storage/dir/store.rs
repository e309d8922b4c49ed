//! The root: its folders, the links that are the datasets' names, and drafts.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kleened_api::ProjectName;
use kleened_sys::fs::{
    Cloned, clone_file, open_directory, remove_tree, rename_noreplace, sync_dir,
};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::super::{Area, DatasetPath, Error, Folder, PROJECTS, Result};
use super::point;
use crate::copy::Progress;

pub(super) const KLEENE: &str = ".kleene";
pub(super) const DATASETS: &str = "datasets";
pub(super) const NEW: &str = "new";
pub(super) const COMMIT: &str = "commit";
pub(super) const DEAD: &str = "dead";
pub(super) const DATA: &str = "data";
pub(super) const RECORD: &str = "record";
pub(super) const SNAPSHOTS: &str = "snapshots";

/// Says how everything below the root is laid out.
const FORMAT: &str = "format";
const FORMAT_TEXT: &str = "kleene dir 1\n";

/// What a name in an area stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The dataset of this id.
    Dataset(String),
    /// Something that somebody else put there.
    Foreign,
}

/// A dataset's own directory.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) id: String,
    pub(super) fd: OwnedFd,
}

/// The root.
#[derive(Debug)]
pub(super) struct Store {
    root: OwnedFd,
    pub(super) datasets: OwnedFd,
    pub(super) new: OwnedFd,
    pub(super) commit: OwnedFd,
    pub(super) dead: OwnedFd,
    pub(super) locks: Locks,
    /// What can end all copies.
    pub(super) copies: Progress,
    /// Held for writing between the two calls that bring a dataset to its place.
    linking: RwLock<()>,
}

impl Store {
    /// Makes the folders that are missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::io("open", path.display(), error);
        std::fs::create_dir_all(path).map_err(failed)?;
        let root = open_directory(rustix::fs::CWD, path).map_err(failed)?;
        let kleene = folder(root.as_fd(), KLEENE, 0o700).map_err(failed)?;
        check_format(path, kleene.as_fd())?;
        let [datasets, new, commit, dead] = [DATASETS, NEW, COMMIT, DEAD]
            .map(|name| folder(kleene.as_fd(), name, 0o700).map_err(failed));
        for part in Area::ALL.into_iter().map(Area::as_str).chain([PROJECTS]) {
            folder(root.as_fd(), part, 0o755).map_err(failed)?;
        }
        Ok(Self {
            root,
            datasets: datasets?,
            new: new?,
            commit: commit?,
            dead: dead?,
            locks: Locks::default(),
            copies: Progress::new(),
            linking: RwLock::default(),
        })
    }

    /// The folder, opened by its name each time: where that fails nothing is known about the datasets
    /// in it. `None` for that of a project that certainly has none.
    pub(super) fn folder(&self, folder: &Folder) -> Result<Option<OwnedFd>> {
        let failed = |object: &dyn ToString, source| {
            Err(Error::Io { verb: "open", object: object.to_string(), source })
        };
        match open_directory(&self.root, folder.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder.project().is_some() => {
                match open_directory(&self.root, PROJECTS) {
                    Ok(_) => Ok(None),
                    Err(error) => failed(&PROJECTS, error),
                }
            }
            Err(error) => failed(folder, error),
            Ok(opened) => Ok(Some(opened)),
        }
    }

    /// The folder, made where it is that of a project that has none.
    fn made_folder(&self, wanted: &Folder) -> Result<OwnedFd> {
        if let (Some(project), None) = (wanted.project(), self.folder(wanted)?) {
            let failed = |error| Error::io("make", wanted, error);
            let projects = open_directory(&self.root, PROJECTS).map_err(failed)?;
            let project = folder(projects.as_fd(), project.as_str(), 0o755).map_err(failed)?;
            // The way of the links: theirs begins one folder up.
            match rustix::fs::symlinkat(format!("../../{KLEENE}"), &project, KLEENE) {
                Err(Errno::EXIST) => (),
                other => other.map_err(|errno| failed(errno.into()))?,
            }
            return folder(project.as_fd(), wanted.area().as_str(), 0o755).map_err(failed);
        }
        open_directory(&self.root, wanted.to_string())
            .map_err(|error| Error::io("open", wanted, error))
    }

    /// What an area is made of, by name.
    pub(super) fn folders(&self, area: Area) -> Result<Vec<(Folder, OwnedFd)>> {
        let mut folders = vec![Folder::from(area)];
        if area == Area::Volumes {
            let failed = |error: io::Error| Error::io("list", PROJECTS, error);
            let projects = open_directory(&self.root, PROJECTS).map_err(failed)?;
            for entry in rustix::fs::Dir::read_from(&projects).map_err(|e| failed(e.into()))? {
                let entry = entry.map_err(|errno| failed(errno.into()))?;
                let project = entry.file_name().to_str().unwrap_or_default().parse::<ProjectName>();
                folders.extend(
                    project.ok().filter(|it| !it.is_default()).map(|it| Folder::volumes(&it)),
                );
            }
            folders.sort_unstable();
        }
        let mut opened = Vec::with_capacity(folders.len());
        for folder in folders {
            opened.extend(self.folder(&folder)?.map(|fd| (folder, fd)));
        }
        Ok(opened)
    }

    /// What the name stands for; `None` where there is certainly nothing.
    pub(super) fn look_up(&self, path: &DatasetPath) -> Result<Option<Link>> {
        match self.folder(path.folder())? {
            Some(folder) => self.look_up_in(folder.as_fd(), path),
            None => Ok(None),
        }
    }

    /// The same, in its folder that is open already.
    pub(super) fn look_up_in(
        &self,
        folder: BorrowedFd<'_>,
        path: &DatasetPath,
    ) -> Result<Option<Link>> {
        let _linking = self.linking.read().unwrap_or_else(PoisonError::into_inner);
        read_link(folder, path.name()).map_err(|error| Error::io("look up", path, error))
    }

    /// The dataset's own directory.
    pub(super) fn home(&self, path: &DatasetPath) -> Result<Home> {
        match self.look_up(path)? {
            None => Err(Error::NotFound(path.to_string())),
            Some(Link::Foreign) => Err(foreign(path)),
            Some(Link::Dataset(id)) => {
                let opened = open_directory(&self.datasets, &*id)
                    .map_err(|error| Error::io("open", path, error));
                let fd = self.settle(path, &id, opened)?;
                Ok(Home { id, fd })
            }
        }
    }

    /// Whether the name stands for another dataset now, or for none.
    pub(super) fn is_gone(&self, path: &DatasetPath, id: &str) -> Result<bool> {
        Ok(!matches!(self.look_up(path)?, Some(Link::Dataset(now)) if now == id))
    }

    /// The result of something done with a dataset that nobody kept from being destroyed meanwhile:
    /// where something was missing because of that, the dataset is.
    pub(super) fn settle<T>(&self, path: &DatasetPath, id: &str, result: Result<T>) -> Result<T> {
        match result {
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && self.is_gone(path, id)? =>
            {
                Err(Error::NotFound(path.to_string()))
            }
            other => other,
        }
    }

    /// Makes sure, under the dataset's lock, that it was not destroyed before the lock was had.
    pub(super) fn refuse_gone(&self, path: &DatasetPath, id: &str) -> Result<()> {
        if self.is_gone(path, id)? { Err(Error::NotFound(path.to_string())) } else { Ok(()) }
    }

    /// The record; `None` where it is not there.
    pub(super) fn record(&self, path: &DatasetPath, id: &str) -> Result<Option<String>> {
        let name = format!("{id}/{RECORD}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let read = rustix::fs::openat(&self.datasets, name, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| {
                let mut text = String::new();
                std::fs::File::from(file).read_to_string(&mut text)?;
                Ok(text)
            });
        match read {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read the record of", path, error)),
        }
    }

    /// # Errors
    ///
    /// [`Error::Exists`] where the name is taken, by whatever it is.
    pub(super) fn refuse_existing(&self, path: &DatasetPath) -> Result<()> {
        match self.look_up(path)? {
            None => Ok(()),
            Some(_) => Err(Error::Exists(path.to_string())),
        }
    }

    /// # Errors
    ///
    /// [`Error::Busy`] where the dataset is mounted elsewhere or has something mounted on it, as far as
    /// this process can see.
    pub(super) fn refuse_mounted(&self, path: &DatasetPath, id: &str) -> Result<()> {
        #[cfg(target_os = "linux")]
        {
            // Both the directory that is mounted and the place where it is, whole or in part, have the
            // id in their paths. proc_pid_mountinfo(5).
            let table = std::fs::read("/proc/thread-self/mountinfo")
                .map_err(|error| Error::io("find out what is mounted on", path, error))?;
            let part = format!("/{KLEENE}/{DATASETS}/{id}/");
            if table.windows(part.len()).any(|window| window == part.as_bytes()) {
                return Err(Error::Busy(format!("{path}, which is mounted,")));
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (path, id);
        Ok(())
    }

    /// A new folder for something that is being made, removed again unless it is taken to its place.
    pub(super) fn draft(&self) -> Result<Draft<'_>> {
        let failed = |error: io::Error| Error::io("make a folder in", NEW, error);
        loop {
            let id = random_name();
            match rustix::fs::mkdirat(&self.new, &*id, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                other => other.map_err(|errno| failed(errno.into()))?,
            }
            let fd = open_directory(&self.new, &*id).map_err(failed)?;
            return Ok(Draft { store: self, id, fd, placed: false });
        }
    }

    /// The draft is the dataset `path`.
    ///
    /// The link comes first, then the draft moves to where the link points. The link decides: it fails
    /// where there is one. Had the draft moved first, a crash would leave a dataset without a link,
    /// which looks like one whose link a person removed, and must not be destroyed by guess. As it is, a crash
    /// leaves a link to a draft, which can mean one thing only.
    pub(super) fn link(&self, mut draft: Draft<'_>, path: &DatasetPath) -> Result<()> {
        let failed = |errno: Errno| Error::io("make", path, errno);
        let folder = self.made_folder(path.folder())?;
        {
            let _linking = self.linking.write().unwrap_or_else(PoisonError::into_inner);
            match rustix::fs::symlinkat(link_text(&draft.id), &folder, path.name()) {
                Err(Errno::EXIST) => return Err(Error::Exists(path.to_string())),
                other => other.map_err(failed)?,
            }
            point();
            if let Err(errno) =
                rustix::fs::renameat(&self.new, &*draft.id, &self.datasets, &*draft.id)
            {
                if let Err(error) = rustix::fs::unlinkat(&folder, path.name(), AtFlags::empty()) {
                    // With its link the draft is a dataset, which the next start brings to its place.
                    draft.placed = true;
                    tracing::warn!(%path, %error, "cannot take back a dataset that could not be made");
                }
                return Err(failed(errno));
            }
            draft.placed = true;
        }
        point();
        // A rename is one change: to wait for one of its two folders is enough, here and below.
        sync_dir(&folder)
            .and_then(|()| sync_dir(&self.datasets))
            .map_err(|error| Error::io("make", path, error))
    }

    /// There is no such dataset. False where there was none.
    pub(super) fn unlink(&self, path: &DatasetPath) -> Result<bool> {
        let failed = |error: io::Error| Error::io("destroy", path, error);
        let Some(folder) = self.folder(path.folder())? else { return Ok(false) };
        let dead = random_name();
        match rustix::fs::renameat(&folder, path.name(), &self.dead, &*dead) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(|errno| failed(errno.into()))?,
        }
        point();
        // What was moved, which need not be what was looked up before.
        let Some(Link::Dataset(id)) = read_link(self.dead.as_fd(), &dead).map_err(failed)? else {
            rename_noreplace(self.dead.as_fd(), &*dead, folder.as_fd(), path.name())
                .map_err(failed)?;
            return Err(foreign(path));
        };
        sync_dir(&folder).map_err(failed)?;
        let lock = self.locks.of(&id, "");
        let _lock = lock.write();
        if let Err(error) = self.bury(&id, &dead) {
            // It does not exist any more all the same; the next start tries again.
            tracing::warn!(%path, id, ?error, "cannot remove what is left of a destroyed dataset");
        }
        Ok(true)
    }

    /// Removes the dataset of a dead link, then the link.
    pub(super) fn bury(&self, id: &str, dead: &str) -> io::Result<()> {
        self.wait_for_readers(id)?;
        remove_tree(self.datasets.as_fd(), id)?;
        point();
        Ok(rustix::fs::unlinkat(&self.dead, dead, AtFlags::empty())?)
    }

    /// Waits until nobody copies a snapshot of the dataset any more.
    fn wait_for_readers(&self, id: &str) -> io::Result<()> {
        let snapshots = match open_directory(&self.datasets, format!("{id}/{SNAPSHOTS}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in rustix::fs::Dir::read_from(&snapshots)? {
            let lock = self.locks.of(id, &entry?.file_name().to_string_lossy());
            drop(lock.write());
        }
        Ok(())
    }

    /// The dataset `from` has the name `to`.
    pub(super) fn rename(&self, from: &DatasetPath, to: &DatasetPath) -> Result<()> {
        let object = format!("{from} to {to}");
        let failed = |error: io::Error| Error::io("rename", &object, error);
        if self.look_up(from)?.ok_or_else(|| Error::NotFound(from.to_string()))? == Link::Foreign {
            return Err(foreign(from));
        }
        let old = self.folder(from.folder())?.ok_or_else(|| Error::NotFound(from.to_string()))?;
        let new = self.made_folder(to.folder())?;
        rename_noreplace(old.as_fd(), from.name(), new.as_fd(), to.name()).map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => Error::NotFound(from.to_string()),
                io::ErrorKind::AlreadyExists => Error::Exists(to.to_string()),
                _ => failed(error),
            }
        })?;
        point();
        sync_dir(&new).map_err(failed)
    }

    /// Removes a tree that somebody else could still be looking for, in two steps: it moves to the
    /// dead, which decides, and is then removed. What fails after that is left to the next start.
    pub(super) fn discard(&self, dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<String>> {
        let dead = random_name();
        match rustix::fs::renameat(dir, name, &self.dead, &*dead) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        }
        sync_dir(dir)?;
        Ok(Some(dead))
    }

    /// Whether copies of files share their space here.
    pub(super) fn shares_space(&self) -> Result<bool> {
        let failed = |error: io::Error| Error::io("try to clone a file in", NEW, error);
        let draft = self.draft()?;
        for name in ["one", "two"] {
            draft.write(name, &[b'x'; 4096]).map_err(failed)?;
        }
        let open = |name: &str| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::openat(draft.fd(), name, flags, Mode::empty()).map_err(io::Error::from)
        };
        let (one, two) = (open("one").map_err(failed)?, open("two").map_err(failed)?);
        let cloned = clone_file(one.as_fd(), two.as_fd()).map_err(failed)?;
        Ok(cloned == Cloned::Yes)
    }
}

/// A name that nothing has.
pub(super) fn random_name() -> String {
    // The keys come from the kernel once for each thread, and change with every call.
    let number = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{number:016x}")
}

fn is_random_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The same in every folder, so that a link can be renamed from any to any.
fn link_text(id: &str) -> String {
    format!("../{KLEENE}/{DATASETS}/{id}/{DATA}")
}

/// The folder of that name, made where it is missing.
fn folder(dir: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode as rustix::fs::RawMode)) {
        Ok(()) => sync_dir(dir)?,
        Err(Errno::EXIST) => (),
        Err(errno) => return Err(errno.into()),
    }
    open_directory(dir, name)
}

/// What is at `name`: only a link exactly as [`Store::link`] makes it is a dataset.
pub(super) fn read_link(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<Link>> {
    let text = match rustix::fs::readlinkat(dir, name, Vec::new()) {
        Ok(text) => text,
        Err(Errno::NOENT) => return Ok(None),
        // No link.
        Err(Errno::INVAL) => return Ok(Some(Link::Foreign)),
        Err(errno) => return Err(errno.into()),
    };
    let id = text
        .to_str()
        .ok()
        .and_then(|text| text.split('/').rev().nth(1))
        .filter(|id| is_random_name(id) && text.to_bytes() == link_text(id).as_bytes());
    Ok(Some(id.map_or(Link::Foreign, |id| Link::Dataset(id.to_owned()))))
}

/// The error for what somebody else put into an area.
pub(super) fn foreign(path: &DatasetPath) -> Error {
    Error::Unsupported(format!(
        "{path} was not made by this program, which leaves it alone; to be rid of it, move or remove it \
         by hand"
    ))
}

fn check_format(root: &Path, kleene: BorrowedFd<'_>) -> Result<()> {
    let failed = |error: io::Error| Error::io("open", root.display(), error);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut text = String::new();
    match rustix::fs::openat(kleene, FORMAT, flags, Mode::empty()) {
        Ok(file) => {
            let file = std::fs::File::from(file);
            file.take(1024).read_to_string(&mut text).map_err(failed)?;
        }
        Err(Errno::NOENT) => {
            let bytes = FORMAT_TEXT.as_bytes();
            kleened_sys::fs::write_atomically(kleene, FORMAT, bytes, 0o600).map_err(failed)?;
            return Ok(());
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    if text == FORMAT_TEXT {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{} was made by another version of this program: its format is '{}', this version knows '{}'",
        root.display(),
        text.trim_end().escape_debug(),
        FORMAT_TEXT.trim_end()
    )))
}

/// A folder in `new`.
#[derive(Debug)]
pub(super) struct Draft<'s> {
    store: &'s Store,
    pub(super) id: String,
    fd: OwnedFd,
    /// Whether it is no draft any more.
    pub(super) placed: bool,
}

impl Draft<'_> {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn copies(&self) -> &Progress {
        &self.store.copies
    }

    /// Makes a directory of owner 0:0 and mode 0755 in it, whatever the umask.
    pub(super) fn make_directory(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&self.fd, name, mode)?;
        point();
        let dir = open_directory(&self.fd, name)?;
        rustix::fs::fchown(&dir, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
        Ok(rustix::fs::fchmod(&dir, mode)?)
    }

    /// Makes a file in it, and its content durable.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = std::fs::File::from(file);
        file.write_all(bytes)?;
        point();
        file.sync_all()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = remove_tree(self.store.new.as_fd(), &*self.id)
        {
            tracing::warn!(id = self.id, ?error, "cannot remove a draft; the next start will");
        }
    }
}

/// A lock for each dataset, held while its content or its snapshots change; and one for each snapshot,
/// held for reading while it is copied and taken for writing before its files go.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Key, Arc<RwLock<()>>>>);

/// The dataset's id and the snapshot's name.
type Key = (String, String);

/// One of them.
#[derive(Debug)]
pub(super) struct Lock(Arc<RwLock<()>>);

/// How many locks may lie about that nobody holds.
const IDLE_LOCKS: usize = 256;

impl Locks {
    /// The lock of a dataset's snapshot; with an empty name, of the dataset.
    pub(super) fn of(&self, id: &str, snapshot: &str) -> Lock {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() > IDLE_LOCKS {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Lock(locks.entry((id.to_owned(), snapshot.to_owned())).or_default().clone())
    }
}

impl Lock {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
