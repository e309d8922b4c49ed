//! `klee image`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures_util::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::Method;
use hyper::body::{Body, Bytes, Frame, Incoming};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kleened_api::image::{Image, ImageConfig, TagQuery};
use kleened_api::volume::PruneQuery;
use kleened_api::{ContainerRef, IdReply, ImageRef, NameError, Timestamp, routes};
use tempfile::NamedTempFile;

use crate::cli::{EnvVariable, Inspect, ListOutput, Output, Prune, env_variable, key_value};
use crate::client::{broken, interruptible, with_query};
use crate::context::{Context, each, filters, yes_or_no};
use crate::create::{self, ImageCreate};
use crate::failure::Failure;
use crate::print::{self, Listed};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image of a base system that is fetched, or of a ZFS dataset.
    Create(ImageCreate),
    /// Make an image of a tar archive, which may be compressed by gzip, xz or zstd.
    Import(ImageImport),
    /// Make an image of a container.
    Save(ImageSave),
    /// List images, newest first.
    Ls(ImageList),
    /// Show an image.
    Inspect(Inspect<ImageRef>),
    /// Name an image. The name takes the place of the one that it had; another image that has it
    /// loses it.
    Tag(ImageTag),
    /// Write an image as a tar archive.
    Export(ImageExport),
    /// Remove images. An image that containers are made of is not removed.
    Rm(ImageRemove),
    /// Remove all images that have no name and that no container is made of.
    Prune(ImagePrune),
}

/// What containers of an image get by default.
#[derive(Debug, Args)]
pub(crate) struct ImageDefaults {
    /// The default command: a JSON array of strings, or a text for /bin/sh -c.
    #[arg(long, value_parser = command_words)]
    pub(crate) cmd: Option<Words>,
    /// The default user.
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// A default environment variable.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = env_variable)]
    pub(crate) env: Vec<EnvVariable>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageImport {
    /// The archive; - for standard input.
    pub(crate) file: PathBuf,
    /// The image's name, NAME[:TAG].
    #[arg(value_parser = name_tag, value_name = "NAME[:TAG]")]
    pub(crate) name: ImageRef,
    #[command(flatten)]
    pub(crate) defaults: ImageDefaults,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImageSave {
    /// The container.
    pub(crate) container: ContainerRef,
    /// The image's name, NAME[:TAG].
    #[arg(value_parser = name_tag, value_name = "NAME[:TAG]")]
    pub(crate) name: ImageRef,
    #[command(flatten)]
    pub(crate) defaults: ImageDefaults,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImageList {
    /// Only images for which this holds: name=TEXT, dangling=true|false (whether they have no
    /// name). All that are given must hold.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filters: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, Args)]
pub(crate) struct ImageTag {
    /// The image.
    pub(crate) image: ImageRef,
    /// The new name, NAME[:TAG].
    #[arg(value_parser = name_tag, value_name = "NAME[:TAG]")]
    pub(crate) name: ImageRef,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImageExport {
    /// The image.
    pub(crate) image: ImageRef,
    /// The file to write; standard output where there is none.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageRemove {
    /// The images.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<ImageRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePrune {
    /// Also images that have a name.
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) prune: Prune,
}

/// A command. A name of its own, so that clap takes it as one value.
pub(crate) type Words = Box<[String]>;

fn command_words(text: &str) -> Result<Words, String> {
    if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| format!("not a JSON array of strings: {error}"))
    } else {
        Ok(["/bin/sh", "-c", text].map(str::to_owned).into())
    }
}

pub(crate) fn name_tag(text: &str) -> Result<ImageRef, NameError> {
    let name: ImageRef = text.parse()?;
    match name.snapshot {
        None => Ok(name),
        Some(_) => Err(NameError {
            what: "image name",
            text: text.to_owned(),
            rule: "write NAME[:TAG], without a snapshot",
        }),
    }
}

impl Listed for Image {
    const COLUMNS: &'static [&'static str] = &["ID", "NAME", "TAG", "CREATED"];
    const FIELDS: &'static [&'static str] =
        &["id", "name", "tag", "user", "cmd", "env", "instructions", "created", "dataset"];

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        vec![vec![
            self.id.to_string(),
            self.name.clone(),
            self.tag.clone(),
            print::age(self.created, now),
        ]]
    }
}

pub(crate) async fn run(command: ImageCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ImageCommand::Create(args) => create::run(args, context).await,
        ImageCommand::Import(args) => import(args, context).await,
        ImageCommand::Save(args) => save(args, context).await,
        ImageCommand::Ls(args) => list(args, context).await,
        ImageCommand::Inspect(args) => inspect(args, context).await,
        ImageCommand::Tag(args) => tag(args, context).await,
        ImageCommand::Export(args) => export(args, context).await,
        ImageCommand::Rm(args) => remove(args, context).await,
        ImageCommand::Prune(args) => prune(args, context).await,
    }
}

impl ImageDefaults {
    fn config(self, name: &ImageRef) -> Result<ImageConfig, Failure> {
        let json = |list: &[String]| {
            serde_json::to_string(list)
                .map_err(|error| Failure::local("cannot write the request", &error))
        };
        let env: Vec<String> = self.env.into_iter().flatten().collect();
        Ok(ImageConfig {
            name: name.to_string(),
            cmd: self.cmd.as_deref().map(json).transpose()?,
            user: self.user,
            env: if env.is_empty() { None } else { Some(json(&env)?) },
        })
    }
}

/// The archive is sent as it is read. Nothing is left of an import that was interrupted.
async fn import(args: ImageImport, context: &Context) -> Result<(), Failure> {
    let query = args.defaults.config(&args.name)?;
    let path = with_query(routes::IMAGE_IMPORT, &query)?;
    let (archive, size, name) = if args.file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Failure::usage("an archive can't be typed: redirect standard input"));
        }
        (terminal::stdin()?, None, "standard input".to_owned())
    } else {
        let name = args.file.display().to_string();
        let file = File::open(&args.file).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) =
            file.map_err(|error| Failure::local(format!("cannot read {name}"), &error))?;
        (file, metadata.is_file().then_some(metadata.len()), name)
    };
    let progress = Progress::new(size);
    let chunks = terminal::read_ahead(archive);
    // Why the archive can't be read to its end.
    let unread = Arc::new(OnceLock::new());
    let state = (chunks, progress.clone(), unread.clone());
    let body = stream::unfold(state, |(mut chunks, progress, unread)| async {
        let chunk = match chunks.recv().await? {
            Ok(bytes) => {
                progress.add(bytes.len());
                Ok(Frame::data(bytes))
            }
            Err(error) => {
                let cut = io::Error::from(error.kind());
                // There is only one: it is the last that comes.
                let _ = unread.set(error);
                Err(cut)
            }
        };
        Some((chunk, (chunks, progress, unread)))
    });
    let request =
        context.client.send(Method::POST, &path, "application/x-tar", StreamBody::new(body));
    let reply = context.client.finish(request, "nothing is imported").await;
    progress.bar.finish_and_clear();
    let reply: IdReply = match (reply, unread.get()) {
        (Err(_), Some(error)) => return Err(Failure::local(format!("cannot read {name}"), error)),
        (reply, _) => reply?,
    };
    print::reply(&reply, &reply.id, args.output.output)
}

/// A bar on standard error that appears after a second, if that is a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) bar: ProgressBar,
    begun: Instant,
}

impl Progress {
    pub(crate) fn new(size: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let progress = Self { bar, begun: Instant::now() };
        progress.size(size);
        progress
    }

    /// How much there is in all, where that is known.
    pub(crate) fn size(&self, size: Option<u64>) {
        if let Some(size) = size {
            self.bar.set_length(size);
        }
        let template = match size {
            Some(_) => "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {bytes} {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }

    fn add(&self, bytes: usize) {
        self.show();
        self.bar.inc(bytes as u64);
    }

    /// So much is done.
    pub(crate) fn set(&self, bytes: u64) {
        self.show();
        self.bar.set_position(bytes);
    }

    fn show(&self) {
        if self.bar.is_hidden() && self.begun.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

async fn save(args: ImageSave, context: &Context) -> Result<(), Failure> {
    let query = args.defaults.config(&args.name)?;
    let path = routes::with_name(routes::CONTAINER_SAVE, args.container.as_str());
    let reply: IdReply = context.client.change(Method::POST, &with_query(&path, &query)?).await?;
    print::reply(&reply, &reply.id, args.output.output)
}

pub(crate) async fn list(args: ImageList, context: &Context) -> Result<(), Failure> {
    let mut name = None;
    let mut dangling = None;
    for (key, value) in filters(&args.filters, &[])? {
        match key {
            "name" => name = Some(value),
            "dangling" => dangling = Some(yes_or_no(key, value)?),
            _ => {
                return Err(Failure::usage(format!(
                    "there is no filter '{}': known are name and dangling",
                    key.escape_default()
                )));
            }
        }
    }
    let keep = |image: &Image| {
        name.is_none_or(|text| image.name.contains(text))
            && dangling.is_none_or(|dangling| image.name.is_empty() == dangling)
    };
    let body = context.client.get(routes::IMAGE_LIST).await?;
    print::list(&body, keep, &args.output, context.theme)
}

pub(crate) async fn inspect(args: Inspect<ImageRef>, context: &Context) -> Result<(), Failure> {
    each(&args.names, args.output.output, async |name| {
        let path = routes::with_name(routes::IMAGE_INSPECT, &name.to_string());
        print::inspect(&context.client.get(&path).await?, args.format.as_ref())
    })
    .await
}

async fn tag(args: ImageTag, context: &Context) -> Result<(), Failure> {
    let path = routes::with_name(routes::IMAGE_TAG, &args.image.to_string());
    let path = with_query(&path, &TagQuery { nametag: args.name.to_string() })?;
    let reply: IdReply = context.client.change(Method::POST, &path).await?;
    print::reply(&reply, &reply.id, args.output.output)
}

pub(crate) async fn remove(args: ImageRemove, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.images, output, async |image| {
        let path = routes::with_name(routes::IMAGE, &image.to_string());
        let reply: IdReply = context.client.change(Method::DELETE, &path).await?;
        print::reply(&reply, &reply.id, output)
    })
    .await
}

async fn prune(args: ImagePrune, context: &Context) -> Result<(), Failure> {
    let query = PruneQuery { dry_run: args.prune.dry_run, all: args.all, all_projects: false };
    context.prune(&args.prune, routes::IMAGE_PRUNE, query, "all unused images").await
}

/// The file is there, whole, or as it was before.
async fn export(args: ImageExport, context: &Context) -> Result<(), Failure> {
    let path = routes::with_name(routes::IMAGE_EXPORT, &args.image.to_string());
    let request = context.client.send(Method::GET, &path, "", Empty::<Bytes>::new());
    match args.file {
        None if io::stdout().is_terminal() => {
            Err(Failure::usage("an archive is not for a terminal: redirect it, or give --output"))
        }
        None => {
            let mut stdout = terminal::output(io::stdout())
                .map_err(|error| Failure::local("cannot write to standard output", &error))?;
            copy(request.await?.into_body(), &mut stdout, "standard output").await
        }
        Some(file) => {
            let name = file.display().to_string();
            let fail = |error: &io::Error| Failure::local(format!("cannot write {name}"), error);
            // What is no file, such as /dev/null or a pipe, can't be replaced.
            if file.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                let mut file = File::options().write(true).open(&file).map_err(|e| fail(&e))?;
                return copy(request.await?.into_body(), &mut file, &name).await;
            }
            let export = async {
                let body = request.await?.into_body();
                let mut new = new_file(&file).map_err(|error| fail(&error))?;
                copy(body, new.as_file_mut(), &name).await?;
                new.persist(&file).map_err(|error| fail(&error.error))
            };
            interruptible(export, format!("{name} is not written")).await.map(drop)
        }
    }
}

/// A file beside `path`, which is gone when it is dropped.
fn new_file(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // What the umask leaves of it.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(".klee-").tempfile_in(folder).map_err(|error| {
        // It ends with the path of a file that nobody knows.
        match error.to_string().rsplit_once(" at path ") {
            Some((why, _)) => io::Error::new(error.kind(), why),
            None => error,
        }
    })
}

async fn copy(mut body: Incoming, to: &mut impl Write, name: &str) -> Result<(), Failure> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::reader_gone(),
        _ => Failure::local(format!("cannot write {name}"), &error),
    };
    let progress = Progress::new(body.size_hint().exact());
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.map_err(broken)?.into_data() {
            to.write_all(&bytes).map_err(fail)?;
            progress.add(bytes.len());
        }
    }
    progress.bar.finish_and_clear();
    to.flush().map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_known_to_templates() {
        print::assert_fields(&Image {
            id: "13a38290f1b0".parse().unwrap(),
            name: String::new(),
            tag: String::new(),
            user: String::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            instructions: Vec::new(),
            created: Timestamp::now(),
            dataset: String::new(),
        });
    }
}
