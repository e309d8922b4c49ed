//! The verbs of images.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use kleened_api::image::{Image, ImageConfig};
use kleened_api::{Id, ImageRef, Timestamp};

use super::lock::{Access, Key};
use super::operation::Pending;
use super::record::{self, ImageRecord};
use super::{Engine, IMAGE_SNAPSHOT, Undo, log_failure};
use crate::archive;
use crate::copy::{self, Progress};
use crate::error::{Error, Kind, Result};
use crate::ident;
use crate::storage::{self, DatasetPath, DatasetSpec};

/// An image that is being made, and what its dataset is to be.
#[derive(Debug)]
pub(super) struct New {
    /// The image.
    pub(super) id: Id,
    /// Where the dataset is until it is whole.
    pub(super) path: DatasetPath,
    /// What it gets.
    pub(super) spec: DatasetSpec,
}

impl New {
    /// Its dataset is there, empty; its root directory.
    pub(super) fn empty(&self, engine: &Engine) -> Result<File> {
        let made = engine.storage.create(&self.path, &self.spec);
        made.map_err(Error::storage("make image", &self.id))?;
        self.root(engine)
    }

    /// The root directory of its dataset, which is there.
    pub(super) fn root(&self, engine: &Engine) -> Result<File> {
        let root = engine.storage.mountpoint(&self.path);
        File::open(root).map_err(Error::io("make image", &self.id))
    }
}

impl Engine {
    /// The images, newest first.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        self.catalogue().list_images(&*self.storage)
    }

    /// The image of that id, beginning of an id, or name and tag.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn image(&self, reference: &str) -> Result<Image> {
        let catalogue = self.catalogue();
        catalogue.show_image(&*self.storage, &catalogue.image(reference)?)
    }

    /// There is an image with the content of the tar archive in `body`, under that name, which an
    /// image that had it loses. When this fails nothing of it is left.
    ///
    /// # Errors
    ///
    /// The name; an archive that is cut, damaged, or refused by [`archive::extract`]; the storage.
    pub fn import_image(
        self: &Arc<Self>,
        config: ImageConfig,
        mut body: Box<dyn Read + Send>,
    ) -> Result<Pending<String>> {
        let record = new_record(&config)?;
        let what = format!("import image {}", config.name);
        Ok(self.make_image(what, record, Vec::new(), move |engine, new, progress| {
            let target = new.empty(engine)?;
            let options = archive::Extract {
                devices: engine.settings().image_devices,
                progress: Some(progress),
            };
            archive::extract(&mut body, target.as_fd(), &options)
                .map_err(Error::io("import", "the archive"))?;
            Ok(())
        }))
    }

    /// There is an image with the present content of the container's root. Its mounts are not part
    /// of it. The container's command, user and environment are the defaults where none are given.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; the name; the storage.
    pub fn save_container(
        self: &Arc<Self>,
        reference: &str,
        config: ImageConfig,
    ) -> Result<Pending<String>> {
        let mut record = new_record(&config)?;
        let id = {
            let catalogue = self.catalogue();
            let id = catalogue.container(reference)?;
            let container = &catalogue.made(&id)?.record;
            if config.cmd.is_none() {
                record.cmd.clone_from(&container.cmd);
            }
            if config.user.is_none() {
                record.user.clone_from(&container.user);
            }
            if config.env.is_none() {
                record.env.clone_from(&container.env);
            }
            id
        };
        let what = format!("save container {id} as image {}", config.name);
        let wanted = vec![(Key::Container(id.clone()), Access::Shared)];
        Ok(self.make_image(what, record, wanted, move |engine, new, progress| {
            let target = new.empty(engine)?;
            let root = engine.storage.mountpoint(&DatasetPath::container(&id));
            let root = File::open(root).map_err(Error::io("save container", &id))?;
            let copied = copy::tree(root.as_fd(), target.as_fd(), &engine.copying(progress))
                .map_err(Error::io("save container", &id))?;
            if copied.vanished > 0 {
                tracing::warn!(
                    "container {id} removed or replaced {} files while it was saved: they are not in \
                     the image",
                    copied.vanished
                );
            }
            Ok(())
        }))
    }

    /// An image whose dataset `make` makes and fills. When that fails nothing of it is left.
    pub(super) fn make_image(
        self: &Arc<Self>,
        what: String,
        record: ImageRecord,
        wanted: Vec<(Key, Access)>,
        make: impl FnOnce(&Arc<Self>, &New, &Progress) -> Result<()> + Send + 'static,
    ) -> Pending<String> {
        let id = ident::new();
        let subject = id.to_string();
        self.begin(what, &subject, wanted, move |engine, progress| {
            let (scratch, image) = (DatasetPath::scratch(&id), DatasetPath::image(&id));
            let fail = || Error::storage("make image", &id);
            let mut record = record;
            record.named = engine.naming();
            let spec = DatasetSpec { record: record::write(&record), ..DatasetSpec::default() };
            let mut undo = Undo::default();
            undo.push(|| {
                for path in [&scratch, &image] {
                    log_failure(format_args!("take back {path}"), engine.storage.destroy(path));
                }
            });
            make(engine, &New { id: id.clone(), path: scratch.clone(), spec }, progress)?;
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            engine.storage.snapshot(&[scratch.snapshot(IMAGE_SNAPSHOT)], "").map_err(fail())?;
            let naming = vec![(Key::ImageNames, Access::Exclusive)];
            let _held = engine.runtime.block_on(engine.locks.acquire(naming));
            engine.storage.rename(&scratch, &image).map_err(fail())?;
            undo.commit();
            engine.catalogue().images.insert(id.clone(), record);
            // The image is there; a name that another still has too, the next start settles.
            log_failure("take the name from another image", engine.settle_names());
            Ok(id.to_string())
        })
    }

    /// The image is written to `out` as a tar archive.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; `out` fails.
    pub fn export_image(
        self: &Arc<Self>,
        reference: &str,
        mut out: Box<dyn Write + Send>,
    ) -> Result<Pending<()>> {
        let id = self.catalogue().image(reference)?;
        let wanted = vec![(Key::Image(id.clone()), Access::Shared)];
        Ok(self.begin(format!("export image {id}"), "", wanted, move |engine, progress| {
            let root = engine.storage.mountpoint(&DatasetPath::image(&id));
            let root = File::open(root).map_err(Error::io("export image", &id))?;
            archive::create(root.as_fd(), &mut out, Some(progress))
                .map_err(Error::io("export image", &id))?;
            out.flush().map_err(Error::io("export image", &id))
        }))
    }

    /// The image has that name, `NAME[:TAG]`, and no other image has it. A repeat is safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; the name; the storage.
    pub fn tag_image(self: &Arc<Self>, reference: &str, nametag: &str) -> Result<Pending<String>> {
        let id = self.catalogue().image(reference)?;
        let (name, tag) = name_and_tag(nametag)?;
        let subject = id.to_string();
        let wanted =
            vec![(Key::Image(id.clone()), Access::Exclusive), (Key::ImageNames, Access::Exclusive)];
        Ok(self.begin(
            format!("tag image {id} {name}:{tag}"),
            &subject,
            wanted,
            move |engine, _| {
                let mut record = engine.image_record(&id)?;
                record.name = name;
                record.tag = tag;
                record.named = engine.naming();
                engine.set_image(&id, record)?;
                engine.settle_names()?;
                Ok(id.to_string())
            },
        ))
    }

    /// There is no such image any more. The answer is the reference as it was given.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InUse`], naming the containers that are clones of it.
    pub fn remove_image(self: &Arc<Self>, reference: &str) -> Result<Pending<String>> {
        let id = self.catalogue().image(reference)?;
        let given = reference.to_owned();
        let wanted = vec![(Key::Image(id.clone()), Access::Exclusive)];
        Ok(self.begin(format!("remove image {id}"), reference, wanted, move |engine, _| {
            engine.destroy_image(&id)?;
            Ok(given)
        }))
    }

    fn destroy_image(&self, id: &Id) -> Result<()> {
        {
            let catalogue = self.catalogue();
            let image = catalogue.show_image(&*self.storage, id)?;
            let users: Vec<String> = catalogue
                .clones(id)
                .map(|(id, entry)| format!("container {} ({id})", entry.record.name))
                .collect();
            let name = match (image.name.as_str(), image.tag.as_str()) {
                ("", _) => id.to_string(),
                (name, tag) => format!("{name}:{tag} ({id})"),
            };
            catalogue.refuse_users(Kind::Image, &name, users)?;
        }
        self.storage
            .destroy(&DatasetPath::image(id))
            .map_err(Error::storage("remove image", id))?;
        self.catalogue().images.remove(id);
        Ok(())
    }

    /// No image is left that no container is a clone of and that has no name; with `all`, also none
    /// that has one. With `dry_run` the answer lists those that would go, and they stay.
    pub fn prune_images(self: &Arc<Self>, all: bool, dry_run: bool) -> Pending<Vec<String>> {
        let unused: Vec<Id> = {
            let catalogue = self.catalogue();
            let unused = |(id, record): &(&Id, &ImageRecord)| {
                (all || record.name.is_empty()) && catalogue.clones(id).next().is_none()
            };
            catalogue.images.iter().filter(unused).map(|(id, _)| id.clone()).collect()
        };
        self.begin("prune images".into(), "", Vec::new(), move |engine, _| {
            let key = |id: &Id| Key::Image(id.clone());
            engine.prune(unused, dry_run, key, |id| engine.destroy_image(id))
        })
    }

    /// Every name and tag belongs to one image: the one that got it last. The others have none.
    pub(super) fn settle_names(&self) -> Result<()> {
        let losers: Vec<(Id, ImageRecord)> = {
            let catalogue = self.catalogue();
            let loses = |(_, image): &(&Id, &ImageRecord)| {
                !image.name.is_empty()
                    && catalogue.images.values().any(|other| {
                        (&other.name, &other.tag) == (&image.name, &image.tag)
                            && other.named > image.named
                    })
            };
            let losers = catalogue.images.iter().filter(loses);
            losers.map(|(id, image)| (id.clone(), image.clone())).collect()
        };
        for (id, mut record) in losers {
            record.name.clear();
            record.tag.clear();
            self.set_image(&id, record)?;
        }
        Ok(())
    }

    /// A moment after every image got its name, also where the clock was set back.
    fn naming(&self) -> Timestamp {
        let last = self.catalogue().images.values().map(|image| image.named).max();
        let after = |last: Timestamp| Timestamp::from(last.date_time() + Duration::from_micros(1));
        last.map_or_else(Timestamp::now, |last| Timestamp::now().max(after(last)))
    }

    fn image_record(&self, id: &Id) -> Result<ImageRecord> {
        let record = self.catalogue().images.get(id).cloned();
        record.ok_or_else(|| Error::NotFound { kind: Kind::Image, name: id.to_string() })
    }

    /// The image, if it is still there, has this record.
    fn set_image(&self, id: &Id, record: ImageRecord) -> Result<()> {
        match self.storage.set(&DatasetPath::image(id), &record::write(&record)) {
            Err(storage::Error::NotFound(_)) => return Ok(()),
            set => set.map_err(Error::storage("name image", id))?,
        }
        if let Some(present) = self.catalogue().images.get_mut(id) {
            *present = record;
        }
        Ok(())
    }
}

fn new_record(config: &ImageConfig) -> Result<ImageRecord> {
    let (name, tag) = name_and_tag(&config.name)?;
    let list = |what: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => serde_json::from_str::<Vec<String>>(text)
            .map(Some)
            .map_err(|_| Error::Invalid(format!("{what} is not a JSON array of strings"))),
    };
    let env = list("env", &config.env)?.unwrap_or_default();
    super::container::check_env(&env)?;
    let now = Timestamp::now();
    Ok(ImageRecord {
        created: now,
        name,
        tag,
        named: now,
        user: config.user.clone().unwrap_or_else(|| "root".into()),
        cmd: list("cmd", &config.cmd)?
            .filter(|cmd| !cmd.is_empty())
            .unwrap_or_else(|| vec!["/bin/sh".into()]),
        env,
    })
}

pub(super) fn name_and_tag(nametag: &str) -> Result<(String, String)> {
    let reference: ImageRef = nametag.parse()?;
    if reference.snapshot.is_some() {
        return Err(Error::Invalid(format!(
            "image name '{nametag}' must not have a snapshot: write NAME[:TAG]"
        )));
    }
    let tag = reference.tag_or_latest().to_owned();
    Ok((reference.name, tag))
}
