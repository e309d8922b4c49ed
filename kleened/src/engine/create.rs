//! Images made of what there is elsewhere: an archive on a server or this host, a dataset of others.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kleened_api::image::{ImageCreateConfig, ImageMethod};
use kleened_api::{Id, Timestamp};
use kleened_sys::fs;
use tokio::sync::mpsc::UnboundedSender;

use super::image::{New, name_and_tag};
use super::journal::Intent;
use super::operation::Pending;
use super::record::ImageRecord;
use super::{Engine, log_failure};
use crate::archive;
use crate::config::is_dataset;
use crate::copy::Progress;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Source, Sum, Summed};
use crate::storage::{self, Sources};

/// What becomes known while an image is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// What is being done.
    Line(String),
    /// How much has come.
    Bytes {
        /// So far.
        done: u64,
        /// In all, where that is known.
        total: Option<u64>,
    },
}

/// How often it is told how much has come.
const TELL: Duration = Duration::from_millis(100);

/// The largest file of the host's that is copied into an image.
const HOST_FILE_LIMIT: u64 = 1 << 20;

/// Where notes go.
#[derive(Debug, Clone)]
pub(super) struct Notes(UnboundedSender<Note>);

impl Notes {
    pub(super) fn line(&self, line: impl Into<String>) {
        // Whoever listened is gone.
        let _ = self.0.send(Note::Line(line.into()));
    }
}

/// Counts what comes, and tells of it now and then.
struct Count<'a> {
    notes: &'a Notes,
    done: u64,
    total: Option<u64>,
    told: Instant,
}

impl<'a> Count<'a> {
    fn new(notes: &'a Notes, total: Option<u64>) -> Self {
        Self { notes, done: 0, total, told: Instant::now() }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            let _ = self.notes.0.send(Note::Bytes { done: self.done, total: self.total });
        }
    }
}

/// What is read, counted.
struct Counted<'a, R> {
    input: R,
    count: Count<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.count.add(read);
        Ok(read)
    }
}

/// What an image is made of, when it makes sense.
enum Plan {
    Fetch { source: Source, sum: Option<Sum> },
    Copy { dataset: String, snapshot: Option<String> },
    Clone { dataset: String, snapshot: Option<String> },
}

impl Engine {
    /// There is an image made as `config` says; it is told to `notes` how far that is. When this
    /// fails, or is [cancelled](Pending::cancel), nothing of it is left.
    ///
    /// # Errors
    ///
    /// What can't be asked for, at once: a name, a URL, a method that the storage driver or the host
    /// has not. Later what [`fetch`](crate::fetch) says, an archive that is damaged or refused, the
    /// storage.
    pub fn create_image(
        self: &Arc<Self>,
        config: ImageCreateConfig,
        notes: UnboundedSender<Note>,
    ) -> Result<Pending<String>> {
        let notes = Notes(notes);
        let mut tag = config.tag.clone();
        let plan = match config.method {
            ImageMethod::Fetch => {
                if config.url.is_empty() {
                    return Err(Error::Invalid("fetch from where? Give a URL".into()));
                }
                let sum = config.sha256.as_deref().map(str::parse).transpose();
                let sum = sum.map_err(|why: &str| Error::Invalid(why.into()))?;
                Plan::Fetch { source: config.url.parse()?, sum }
            }
            ImageMethod::FetchAuto => {
                let running = running_release()?;
                let release = Release::parse(&running, config.force)?;
                if config.autotag {
                    tag = format!("FreeBSD-{running}");
                }
                Plan::Fetch { source: release.url(std::env::consts::ARCH)?.parse()?, sum: None }
            }
            ImageMethod::ZfsCopy | ImageMethod::ZfsClone => {
                self.sources()?;
                let text = &config.zfs_dataset;
                let (dataset, snapshot) = match text.split_once('@') {
                    Some((dataset, snapshot)) => (dataset, Some(snapshot)),
                    None => (text.as_str(), None),
                };
                // The root of a pool has no slash.
                let is_name = |text: &str| is_dataset(&format!("pool/{text}"));
                if !is_dataset(dataset) && (!is_name(dataset) || dataset.contains('/'))
                    || snapshot.is_some_and(|name| !is_name(name) || name.contains('/'))
                {
                    return Err(Error::NotFound { kind: Kind::Dataset, name: text.clone() });
                }
                let (dataset, snapshot) = (dataset.to_owned(), snapshot.map(str::to_owned));
                match config.method {
                    ImageMethod::ZfsCopy => Plan::Copy { dataset, snapshot },
                    _ => Plan::Clone { dataset, snapshot },
                }
            }
        };
        let (name, tag) = match tag.as_str() {
            "" => (String::new(), String::new()),
            tag => name_and_tag(tag)?,
        };
        let now = Timestamp::now();
        let record = ImageRecord {
            created: now,
            name,
            tag,
            named: now,
            user: "root".into(),
            cmd: ["/bin/sh", "/etc/rc"].map(Into::into).into(),
            env: Vec::new(),
        };
        let what = match record.name.as_str() {
            "" => format!("create an image by {}", config.method.as_str()),
            name => format!("create image {name}:{} by {}", record.tag, config.method.as_str()),
        };
        Ok(self.make_image(what, record, Vec::new(), move |engine, new, progress| {
            let made = engine.create_and_adapt(&plan, &config, new, &notes, progress);
            made.map_err(|error| if progress.is_cancelled() { Error::Cancelled } else { error })
        }))
    }

    fn sources(&self) -> Result<&dyn Sources> {
        self.storage.sources().ok_or_else(|| {
            Error::Unsupported(format!(
                "the storage driver '{}' has no datasets to make an image of: keep the root on ZFS",
                self.storage.name()
            ))
        })
    }

    fn create_and_adapt(
        &self,
        plan: &Plan,
        config: &ImageCreateConfig,
        new: &New,
        notes: &Notes,
        progress: &Progress,
    ) -> Result<()> {
        match plan {
            Plan::Fetch { source, sum } => self.fetch_into(source, *sum, new, notes, progress)?,
            Plan::Copy { dataset, snapshot } => {
                self.with_snapshot(new, dataset, snapshot.as_deref(), |sources, snapshot| {
                    notes.line(format!(
                        "copying {snapshot} into the new image, this can take a while..."
                    ));
                    let mut count = Count::new(notes, None);
                    sources.copy_of(snapshot, &new.path, &new.spec, &mut |bytes| {
                        count.add(bytes);
                        progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                        match progress.is_cancelled() {
                            true => Err(io::ErrorKind::Interrupted.into()),
                            false => Ok(()),
                        }
                    })
                })?;
            }
            Plan::Clone { dataset, snapshot } => {
                self.with_snapshot(new, dataset, snapshot.as_deref(), |sources, snapshot| {
                    notes.line("cloning dataset...");
                    sources.clone_of(snapshot, &new.path, &new.spec)
                })?;
            }
        }
        let root = new.root(self)?;
        for (wanted, file) in
            [(config.dns, "/etc/resolv.conf"), (config.localtime, "/etc/localtime")]
        {
            if wanted {
                copy_host_file(root.as_fd(), Path::new(file), notes)
                    .map_err(Error::io("copy into the image", file))?;
            }
        }
        // A dataset in which something is open can't be unmounted, and so not get its name.
        drop(root);
        if config.update { self.update_image(new, notes, progress) } else { Ok(()) }
    }

    /// The archive goes through the checksum into the new dataset, as it comes.
    fn fetch_into(
        &self,
        source: &Source,
        sum: Option<Sum>,
        new: &New,
        notes: &Notes,
        progress: &Progress,
    ) -> Result<()> {
        let cancelled = || progress.is_cancelled();
        let wanted = match sum {
            Some(sum) => Some(sum),
            None => source.listed_sum(&cancelled)?,
        };
        if let (None, Source::Http(_)) = (wanted, source) {
            return Err(Error::Invalid(format!(
                "there is no MANIFEST beside {source} that says what its checksum is: give the SHA256 \
                 with the request, or fetch the archive yourself and give its path"
            )));
        }
        let fetched = source.open(&cancelled)?;
        if wanted.is_none() {
            // It is what somebody has put there.
            let text = "its checksum is not verified";
            notes.line(format!("there is no MANIFEST beside {source}: {text}"));
        }
        notes.line(format!("fetching and unpacking {source}..."));
        let count = Count::new(notes, fetched.size);
        let mut input = Summed::new(Counted { input: fetched, count });
        let target = new.empty(self)?;
        let options =
            archive::Extract { devices: self.settings().image_devices, progress: Some(progress) };
        archive::extract(&mut input, target.as_fd(), &options)
            .map_err(Error::io("unpack", source))?;
        let found = input.finish().map_err(Error::io("fetch", source))?;
        match wanted {
            Some(wanted) if wanted != found => {
                Err(crate::fetch::Error::Sum { from: source.to_string(), found, wanted }.into())
            }
            Some(_) => {
                notes.line("the checksum is right");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Calls `make` with the full name of the snapshot; where none is given, of a new one, which goes
    /// when nothing needs it any more.
    fn with_snapshot(
        &self,
        new: &New,
        dataset: &str,
        snapshot: Option<&str>,
        make: impl FnOnce(&dyn Sources, &str) -> storage::Result<()>,
    ) -> Result<()> {
        let sources = self.sources()?;
        let missing = |error| match error {
            storage::Error::NotFound(name) => Error::NotFound { kind: Kind::Dataset, name },
            // It says so itself.
            storage::Error::Invalid(reason) => Error::Invalid(reason),
            error => Error::storage("make an image of", dataset)(error),
        };
        if let Some(snapshot) = snapshot {
            return make(sources, &format!("{dataset}@{snapshot}")).map_err(missing);
        }
        let full = format!("{dataset}@{}", new.id);
        let journal = || Error::io::<io::Error>("write the journal for", &new.id);
        let intent = Intent::CreateImage { id: new.id.clone(), snapshot: full.clone() };
        let entry = self.journal.begin(&new.id, &intent).map_err(journal())?;
        let made = sources.mark(dataset, new.id.as_str()).and_then(|full| make(sources, &full));
        match sources.unmark(&full) {
            Ok(()) => log_failure("write the journal", entry.done()),
            // The next start does it.
            Err(error) => tracing::warn!(%full, %error, "cannot remove a snapshot"),
        }
        made.map_err(missing)
    }

    /// Nothing is left of the snapshot of others' that an image was made of, unless the image needs it.
    pub(super) fn replay_create_image(&self, _: &Id, snapshot: &str) -> Result<()> {
        match self.storage.sources() {
            Some(sources) => sources.unmark(snapshot).map_err(Error::storage("remove", snapshot)),
            None => Ok(()),
        }
    }
}

/// The image has the content of the host's file at the same path. Where the host has none, or the image
/// no such directory, it stays as it is.
fn copy_host_file(root: std::os::fd::BorrowedFd<'_>, path: &Path, notes: &Notes) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(HOST_FILE_LIMIT).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            notes.line(format!("{} not found on host, skipping...", path.display()));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    // As the image sees it: its links lead nowhere else.
    match fs::resolve_in_root(root, directory, flags) {
        Ok(directory) => fs::write_atomically(directory.as_fd(), name, &bytes, 0o644),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            notes.line(format!("the image has no {}, skipping...", directory.display()));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What `uname -r` says.
#[cfg(target_os = "freebsd")]
fn running_release() -> Result<String> {
    Ok(rustix::system::uname().release().to_string_lossy().into_owned())
}

#[cfg(target_os = "linux")]
fn running_release() -> Result<String> {
    Err(Error::Unsupported(
        "fetch-auto fetches the release of FreeBSD that the host runs, and this host runs Linux: use \
         fetch with the URL of a base.txz"
            .into(),
    ))
}

/// A release of FreeBSD, as its servers call it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Release {
    /// Such as `14.1-RELEASE`.
    name: String,
    /// Whether it is one of those that are made again and again.
    snapshot: bool,
}

impl Release {
    /// Reads what `uname -r` says, such as `14.1-RELEASE-p5`. With `force`, what others have put after
    /// that is left out.
    fn parse(text: &str, force: bool) -> Result<Self> {
        let refuse = || {
            Error::Invalid(format!(
                "the host runs '{}', which is no release of FreeBSD's own: force it, or use fetch with \
                 the URL of a base.txz",
                text.escape_debug()
            ))
        };
        let mut parts = text.split('-');
        let (version, branch) = parts.next().zip(parts.next()).ok_or_else(refuse)?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let numbers = version.split_once('.').is_some_and(|(a, b)| digits(a) && digits(b));
        let numbered = |prefix| branch.strip_prefix(prefix).is_some_and(digits);
        let snapshot = match branch {
            "RELEASE" => false,
            "STABLE" | "CURRENT" | "PRERELEASE" => true,
            _ if numbered("RC") || numbered("BETA") => false,
            _ if numbered("ALPHA") => true,
            _ => return Err(refuse()),
        };
        let patch = |part: &str| part.strip_prefix('p').is_some_and(digits);
        let rest: Vec<&str> = parts.collect();
        let known = match rest.as_slice() {
            [] => true,
            [one] => patch(one),
            _ => false,
        };
        if !numbers || !known && !force {
            return Err(refuse());
        }
        Ok(Self { name: format!("{version}-{branch}"), snapshot })
    }

    /// Where its base system is, as bsdinstall(8) finds it.
    fn url(&self, arch: &str) -> Result<String> {
        let machine = match arch {
            "x86_64" => "amd64/amd64",
            "aarch64" => "arm64/aarch64",
            "riscv64" => "riscv/riscv64",
            "powerpc64" => "powerpc/powerpc64",
            _ => {
                let text = format!("there is no FreeBSD for {arch} to fetch: use fetch with a URL");
                return Err(Error::Unsupported(text));
            }
        };
        let kind = if self.snapshot { "snapshots" } else { "releases" };
        Ok(format!("https://download.freebsd.org/{kind}/{machine}/{}/base.txz", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let url = |text, force| {
            Release::parse(text, force).and_then(|release| release.url("x86_64")).ok()
        };
        let at = |rest: &str| Some(format!("https://download.freebsd.org/{rest}/base.txz"));
        for (text, wanted) in [
            ("14.1-RELEASE", at("releases/amd64/amd64/14.1-RELEASE")),
            ("14.1-RELEASE-p5", at("releases/amd64/amd64/14.1-RELEASE")),
            ("15.0-RC2", at("releases/amd64/amd64/15.0-RC2")),
            ("15.0-BETA1", at("releases/amd64/amd64/15.0-BETA1")),
            ("15.0-ALPHA4", at("snapshots/amd64/amd64/15.0-ALPHA4")),
            ("14.3-STABLE", at("snapshots/amd64/amd64/14.3-STABLE")),
            ("16.0-CURRENT", at("snapshots/amd64/amd64/16.0-CURRENT")),
            ("14.1-RELEASE-p5-mine", None),
            ("14.1-RELEASE-HBSD", None),
            ("14-RELEASE", None),
            ("14.1/../x-RELEASE", None),
            ("14.1-RC", None),
            ("6.1.0-debian", None),
            ("", None),
        ] {
            assert_eq!(url(text, false), wanted, "{text}");
        }
        let forced = at("releases/amd64/amd64/14.1-RELEASE");
        assert_eq!(url("14.1-RELEASE-p5-mine", true), forced);
        assert_eq!(url("6.1.0-debian", true), None);
        let release = Release::parse("14.1-RELEASE", false).unwrap();
        assert!(release.url("aarch64").unwrap().contains("/arm64/aarch64/14.1-RELEASE/"));
        assert!(release.url("s390x").is_err());
    }
}
