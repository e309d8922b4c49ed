//! Where the bytes are: datasets, their records, snapshots and clones.
//!
//! [`Driver`] is the whole contract. A dataset is a directory tree with a record beside it; both
//! appear in one step and vanish in one step, whatever happens in between. The driver stores the
//! record and never reads it.
//!
//! Adding a driver: one file, one `mod` line, one row of [`DRIVERS`]. The conformance suite runs
//! every case on every row.

pub mod dir;
pub mod fault;
pub mod root;
mod snapshot;
pub mod zfs;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kleened_api::name::is_name;
use kleened_api::volume::{Mode, Owner};
use kleened_api::{Id, NameError, ProjectName, VolumeName};

pub use snapshot::{INTERNAL, Snapshot, SnapshotPath, Snapshots};

/// How to open a driver: its name in the configuration, what it is for, and the function that opens
/// the root, making what is missing there.
#[derive(Debug, Clone, Copy)]
pub struct DriverEntry {
    /// The name in the configuration.
    pub name: &'static str,
    /// One line for a person.
    pub about: &'static str,
    /// Opens the root and finishes or takes back what a crash left half done.
    pub open: fn(root: &Path) -> Result<Box<dyn Driver>>,
}

/// The drivers that this daemon knows.
pub const DRIVERS: &[DriverEntry] = &[
    DriverEntry {
        name: "zfs",
        about: "datasets of ZFS, below the one that is mounted at the root",
        open: zfs::open,
    },
    DriverEntry {
        name: "dir",
        about: "plain directories; snapshots and clones are copies, which share space where they can",
        open: dir::open,
    },
];

/// A result of a storage call.
pub type Result<T> = std::result::Result<T, Error>;

/// What a storage call can fail with. "Could not find out" is always [`Error::Io`], never
/// [`Error::NotFound`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The dataset or snapshot does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// There is one of that name already.
    #[error("{0} exists already")]
    Exists(String),
    /// It is in use: mounted, or others depend on it.
    #[error("{0} is busy")]
    Busy(String),
    /// No room, or a quota is used up.
    #[error("no space left while trying to {verb} {object}")]
    NoSpace {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was asked for is not allowed: a property that there is not, a value out of range. Says
    /// what to ask for.
    #[error("{0}")]
    Invalid(String),
    /// This driver, or the file system below it, can't.
    #[error("{0}")]
    Unsupported(String),
    /// A stream that can't be received: damaged, or not for this dataset.
    #[error("bad stream: {0}")]
    BadStream(String),
    /// Everything else.
    #[error("cannot {verb} {object}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The error for a failed call on `object`. ENOSPC and EDQUOT become [`Error::NoSpace`], EBUSY
    /// becomes [`Error::Busy`].
    pub fn io(verb: &'static str, object: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        let (object, source) = (object.to_string(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { verb, object, source }
            }
            io::ErrorKind::ResourceBusy => Self::Busy(object),
            _ => Self::Io { verb, object, source },
        }
    }
}

/// A group of datasets under the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// `image/<id>`.
    Image,
    /// `container/<id>`.
    Container,
    /// `volumes/<name>`, and `projects/<project>/volumes/<name>`.
    Volumes,
    /// `scratch/<id>`: what is being made or taken away. Nothing in it outlives a restart.
    Scratch,
}

impl Area {
    /// Every area.
    pub const ALL: [Self; 4] = [Self::Image, Self::Container, Self::Volumes, Self::Scratch];

    /// The first component of the paths in it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Container => "container",
            Self::Volumes => "volumes",
            Self::Scratch => "scratch",
        }
    }
}

/// What is below `projects` in the root.
pub const PROJECTS: &str = "projects";

/// Where datasets are, below the root: an area, or a project's part of the area of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Folder {
    area: Area,
    project: Option<ProjectName>,
}

impl Folder {
    /// Where the volumes of a project are.
    #[must_use]
    pub fn volumes(project: &ProjectName) -> Self {
        let project = Some(project.clone()).filter(|project| !project.is_default());
        Self { area: Area::Volumes, project }
    }

    /// The area.
    #[must_use]
    pub fn area(&self) -> Area {
        self.area
    }

    /// The project; `None` for the default one.
    #[must_use]
    pub fn project(&self) -> Option<&ProjectName> {
        self.project.as_ref()
    }

    /// The dataset of that name in it.
    ///
    /// # Errors
    ///
    /// What is no name.
    pub fn dataset(&self, name: &str) -> std::result::Result<DatasetPath, NameError> {
        if is_name(name) {
            return Ok(DatasetPath { folder: self.clone(), name: name.to_owned() });
        }
        let rule = "a dataset's name follows the rule of volume names";
        Err(NameError { what: "dataset", text: name.to_owned(), rule })
    }
}

impl From<Area> for Folder {
    fn from(area: Area) -> Self {
        Self { area, project: None }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(project) = &self.project {
            write!(f, "{PROJECTS}/{project}/")?;
        }
        f.write_str(self.area.as_str())
    }
}

impl FromStr for Folder {
    type Err = NameError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> std::result::Result<Self, NameError> {
        let parts: Vec<&str> = text.split('/').collect();
        let project = match parts[..] {
            [PROJECTS, project, area] if area == Area::Volumes.as_str() => Some(project.parse()?),
            _ => None,
        };
        let area = match project {
            // It has no other path.
            Some(ref project) if ProjectName::is_default(project) => None,
            Some(_) => Some(Area::Volumes),
            None => Area::ALL.into_iter().find(|area| area.as_str() == text),
        };
        let rule = "datasets are in an area or in projects/PROJECT/volumes";
        let refuse = || NameError { what: "dataset", text: text.to_owned(), rule };
        Ok(Self { area: area.ok_or_else(refuse)?, project })
    }
}

/// The path of a dataset below the root, for example `volumes/my-vol`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatasetPath {
    folder: Folder,
    name: String,
}

impl DatasetPath {
    /// The dataset of a volume.
    #[must_use]
    pub fn volume(name: &VolumeName) -> Self {
        Self { folder: Folder::volumes(&name.project()), name: name.name().to_owned() }
    }

    /// The name of the volume whose dataset it is.
    #[must_use]
    pub fn volume_name(&self) -> Option<VolumeName> {
        let project = self.folder.project.clone().unwrap_or_default();
        let volume = || project.volume(&self.name).ok();
        if self.area() == Area::Volumes { volume() } else { None }
    }

    fn of(area: Area, id: &Id) -> Self {
        Self { folder: area.into(), name: id.to_string() }
    }

    /// The dataset of an image.
    #[must_use]
    pub fn image(id: &Id) -> Self {
        Self::of(Area::Image, id)
    }

    /// The dataset of a container's root.
    #[must_use]
    pub fn container(id: &Id) -> Self {
        Self::of(Area::Container, id)
    }

    /// A dataset that is being made or taken away.
    #[must_use]
    pub fn scratch(id: &Id) -> Self {
        Self::of(Area::Scratch, id)
    }

    /// The area.
    #[must_use]
    pub fn area(&self) -> Area {
        self.folder.area
    }

    /// What it is in.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its snapshot of that name.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> SnapshotPath {
        SnapshotPath { dataset: self.clone(), name: name.to_owned() }
    }
}

impl fmt::Display for DatasetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.folder, self.name)
    }
}

impl FromStr for DatasetPath {
    type Err = NameError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> std::result::Result<Self, NameError> {
        let (folder, name) = text.rsplit_once('/').unwrap_or((text, ""));
        folder.parse::<Folder>()?.dataset(name)
    }
}

/// What a new dataset gets, in the same step in which it appears.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetSpec {
    /// The record.
    pub record: String,
    /// The owner of its root directory; 0:0 where there is none.
    pub owner: Option<Owner>,
    /// The mode of its root directory; 0755 where there is none.
    pub mode: Option<Mode>,
    /// How many bytes its content may take, snapshots not counted.
    pub size: Option<u64>,
    /// How many bytes are kept free for its content.
    pub reserve: Option<u64>,
    /// Other properties of the driver's own, as text, for example `recordsize` = `16K`.
    pub properties: BTreeMap<String, String>,
}

impl DatasetSpec {
    /// That only a record, an owner and a mode are asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], naming the first that a driver without limits and properties lacks.
    pub fn refuse_limits(&self, driver: &str) -> Result<()> {
        let wanted = [
            self.size.map(|_| "a size"),
            self.reserve.map(|_| "a reserve"),
            self.properties.keys().next().map(|_| "properties"),
        ];
        match wanted.into_iter().flatten().next() {
            None => Ok(()),
            Some(what) => Err(Error::Unsupported(format!(
                "the storage driver '{driver}' cannot give a volume {what}: leave it out, or keep the \
                 root on ZFS"
            ))),
        }
    }
}

/// A dataset that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its path.
    pub path: DatasetPath,
    /// Its record; `None` where it has none of its own: somebody else made it.
    pub record: Option<String>,
}

/// How much space a dataset takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What would come free if it and its snapshots were destroyed, as far as the driver can tell.
    pub used: u64,
    /// What its present content takes.
    pub referenced: u64,
    /// What can still be written.
    pub available: u64,
    /// What would come free if its snapshots were destroyed.
    pub snapshots: u64,
    /// What its present content may take, where that is limited.
    pub size: Option<u64>,
    /// How many times smaller compression makes its content, in hundredths: 150 is 1.50x.
    pub compress_ratio: Option<u32>,
}

/// What a driver can promise beyond the contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// A clone shares its space with its snapshot until it is written to.
    pub clones_share_space: bool,
    /// Several snapshots show the same instant.
    pub snapshots_are_atomic: bool,
    /// [`Driver::usage`] looks up what is known already; where not, it looks at every file.
    pub usage_is_known: bool,
}

/// A storage driver. Every call blocks, is safe to make from several threads at once, and takes
/// effect wholly or not at all, whatever happens to the process in between.
pub trait Driver: Snapshots + Send + Sync + fmt::Debug {
    /// The name in the configuration.
    fn name(&self) -> &'static str;

    /// What it can promise beyond the contract.
    fn capabilities(&self) -> Capabilities;

    /// Where `path` is mounted on the host. The text follows from the path; nothing is looked up.
    fn mountpoint(&self, path: &DatasetPath) -> PathBuf;

    /// What the host's own tools call it, for example `zroot/kleene/volumes/my-vol`. The text follows
    /// from the path; nothing is looked up.
    fn dataset(&self, path: &DatasetPath) -> String;

    /// A dataset of that path, empty and mounted at [`mountpoint`](Self::mountpoint), with its
    /// record.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] where there is one; [`Error::Invalid`] for a property, [`Error::Unsupported`]
    /// for what this driver has not. Then nothing changed.
    fn create(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<()>;

    /// The dataset, or `None` where there is certainly none.
    fn get(&self, path: &DatasetPath) -> Result<Option<Dataset>>;

    /// The datasets of an area, by name.
    fn list(&self, area: Area) -> Result<Vec<Dataset>>;

    /// The paths of the datasets of an area, by name: [`list`](Self::list) without what takes long.
    fn names(&self, area: Area) -> Result<Vec<DatasetPath>>;

    /// As [`names`](Self::names), maybe as it was when the root was opened: what happened since, [`Watch`]
    /// tells.
    fn names_at_open(&self, area: Area) -> Result<Vec<DatasetPath>> {
        self.names(area)
    }

    /// The dataset is mounted at [`mountpoint`](Self::mountpoint), and what is written there is
    /// written to it. Nothing changes where it was: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Busy`] where something else is mounted there.
    fn mount(&self, path: &DatasetPath) -> Result<()>;

    /// What was written to the dataset before is on the disk before any change of a dataset that follows,
    /// a renaming for example. A repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Io`].
    fn flush(&self, path: &DatasetPath) -> Result<()>;

    /// The dataset has this record in place of the one before. A reader sees either, never a part.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn set(&self, path: &DatasetPath, record: &str) -> Result<()>;

    /// Neither the dataset nor its snapshots exist; clones of a volume keep what they have of it. False where
    /// there was none: a repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where it is in use, one of its snapshots is held, or it is no volume and has clones
    /// that need it.
    fn destroy(&self, path: &DatasetPath) -> Result<bool>;

    /// The dataset, with its record and snapshots, has the path `to`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`] where there is a dataset at `to`.
    fn rename(&self, from: &DatasetPath, to: &DatasetPath) -> Result<()>;

    /// How much space it takes.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn usage(&self, path: &DatasetPath) -> Result<Usage>;

    /// How much space each of these takes, in their order; `None` for what is no dataset.
    fn usages(&self, paths: &[DatasetPath]) -> Result<Vec<Option<Usage>>>;

    /// What of the spec's size, reserve and properties the dataset no longer has as they say there, by
    /// the driver's names, with what it has instead: others changed it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    fn changed(&self, path: &DatasetPath, spec: &DatasetSpec) -> Result<BTreeMap<String, String>>;

    /// The daemon stops: calls that copy, under way or made later, may fail soon with [`Error::Io`] of
    /// kind `Interrupted` instead of taking as long as they take. As after any failure nothing has
    /// changed then.
    fn interrupt(&self) {}

    /// Snapshots as streams, where the driver has them.
    fn streams(&self) -> Option<&dyn Streams>;

    /// Datasets that others made, where the driver can take them over.
    fn adopt(&self) -> Option<&dyn Adopt>;

    /// Datasets that others made, as what new ones begin with, where the driver has them.
    fn sources(&self) -> Option<&dyn Sources>;

    /// What happens to datasets behind the daemon's back, where the driver is told.
    fn watch(&self) -> Option<&dyn Watch>;
}

/// Taking over datasets that somebody else made.
pub trait Adopt: Send + Sync {
    /// What the host's tools call `dataset` is the dataset `path`, with that record, mounted at its
    /// mount point. Its content, snapshots and other properties are as they were. It may have been
    /// that dataset already: then it has the record.
    ///
    /// Where a crash cuts this off, a repeat finishes it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`] where there is another at `path`; [`Error::Busy`] where
    /// it is in use; [`Error::Invalid`] for one that can't be taken over, with the reason: another
    /// pool, not a file system, datasets below it, an encryption key that is not loaded, a part of
    /// the root. Then nothing changed.
    fn adopt(&self, dataset: &str, path: &DatasetPath, record: &str) -> Result<()>;
}

/// Datasets that somebody else made, as what new ones begin with. Snapshots of them are called as the
/// host's tools call them.
pub trait Sources: Send + Sync {
    /// There is a snapshot of that name of what the host's tools call `dataset`; its full name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`]; [`Error::Invalid`] for what is not a file system.
    fn mark(&self, dataset: &str, name: &str) -> Result<String>;

    /// The snapshot is gone, or will be as soon as nothing is a clone of it. A repeat is safe.
    fn unmark(&self, snapshot: &str) -> Result<()>;

    /// A dataset `to` with the snapshot's content, of which it is a copy, and its own record. `moved` is
    /// told of every piece how many bytes it has; where it fails, so does this.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`]; [`Error::Invalid`] for what is not a file system.
    fn copy_of(
        &self,
        snapshot: &str,
        to: &DatasetPath,
        spec: &DatasetSpec,
        moved: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<()>;

    /// A dataset `to` with the snapshot's content, of which it is a clone, and its own record.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Exists`]; [`Error::Invalid`] for one in another pool, of the root
    /// itself, or of what is not a file system.
    fn clone_of(&self, snapshot: &str, to: &DatasetPath, spec: &DatasetSpec) -> Result<()>;
}

/// What happens to datasets, also behind the daemon's back.
pub trait Watch: Send + Sync {
    /// Blocks until something happened to a dataset of the root, and says what. What the daemon did
    /// itself is among it. For one caller at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: there is no more to come.
    fn next(&self) -> Result<Event>;
}

/// What happened to a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is one of that path now.
    Appeared(DatasetPath),
    /// There is none of that path any more.
    Vanished(DatasetPath),
    /// Something about it changed: its record, a property, its content by a rollback.
    Changed {
        /// The dataset.
        path: DatasetPath,
        /// What, in the words of the host's tools: `set readonly=on`.
        what: String,
        /// What became of its record.
        record: Told,
    },
    /// Some of what happened is not known: compare everything.
    Lost,
}

/// What an event tells of a dataset's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is as it was.
    Same,
    /// It is this.
    Is(String),
    /// Nothing: it may be another.
    Nothing,
}

/// Snapshots as streams of bytes, to keep elsewhere or to receive on another host.
pub trait Streams: Send + Sync {
    /// Writes the snapshot; where `base`, an older snapshot of the same dataset, is given, only what
    /// changed since.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Io`] when `out` fails.
    fn export(
        &self,
        snapshot: &SnapshotPath,
        base: Option<&str>,
        out: &mut dyn Write,
    ) -> Result<()>;

    /// Reads a full stream into the new dataset `path`, which then has the stream's snapshot under
    /// its name.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`]; [`Error::BadStream`] for an incremental, cut or damaged stream. Then there
    /// is no such dataset.
    fn import(&self, path: &DatasetPath, spec: &DatasetSpec, input: &mut dyn Read) -> Result<()>;

    /// Reads an incremental stream onto `path`, whose newest snapshot must be the stream's base and
    /// which must not have changed since.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::BadStream`]. Then the dataset is as it was.
    fn import_onto(&self, path: &DatasetPath, input: &mut dyn Read) -> Result<()>;
}
