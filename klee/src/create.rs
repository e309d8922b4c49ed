//! `klee image create`.

use std::path::{Path, absolute};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use kleened_api::image::{ImageCreateConfig, ImageEvent, ImageMethod};
use kleened_api::{Id, IdReply, ImageRef, routes};
use tokio_tungstenite::tungstenite::Message;

use crate::cli::Output;
use crate::client::interruptible;
use crate::context::Context;
use crate::failure::Failure;
use crate::image::{Progress, name_tag};
use crate::print;
use crate::websocket;

/// A way to make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method(ImageMethod);

impl ValueEnum for Method {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Method; 4] = {
            let [a, b, c, d] = ImageMethod::ALL;
            [Method(a), Method(b), Method(c), Method(d)]
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self.0 {
            ImageMethod::Fetch => {
                "of the archive SOURCE, a URL or a file, such as FreeBSD's base.txz. It is checked \
                 against the SHA256 in the MANIFEST beside it"
            }
            ImageMethod::FetchAuto => {
                "of the base.txz of the release that the daemon's host runs, from download.FreeBSD.org"
            }
            ImageMethod::ZfsCopy => "of a copy of the ZFS dataset or snapshot SOURCE",
            ImageMethod::ZfsClone => {
                "of a clone of the ZFS dataset or snapshot SOURCE, which takes no space of its own"
            }
        };
        Some(PossibleValue::new(self.0.as_str()).help(help))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ImageCreate {
    /// What the image is made of.
    #[arg(value_enum)]
    pub(crate) method: Method,
    /// For fetch, a URL (http, https or file) or a file on the daemon's host; for zfs-copy and
    /// zfs-clone, a dataset or snapshot there.
    pub(crate) source: Option<String>,
    /// The image's name, NAME[:TAG].
    #[arg(short, long, value_parser = name_tag, value_name = "NAME[:TAG]")]
    pub(crate) tag: Option<ImageRef>,
    /// With fetch-auto, name the image FreeBSD-RELEASE:latest. That is so where no --tag is given.
    #[arg(short, long, overrides_with = "no_autotag")]
    pub(crate) autotag: bool,
    /// With fetch-auto, leave the image without a name where no --tag is given.
    #[arg(long, overrides_with = "autotag")]
    pub(crate) no_autotag: bool,
    /// Copy the host's /etc/resolv.conf into the image, as is the default.
    #[arg(long, overrides_with = "no_dns", hide = true)]
    pub(crate) dns: bool,
    /// Don't copy the host's /etc/resolv.conf into the image.
    #[arg(long, overrides_with = "dns")]
    pub(crate) no_dns: bool,
    /// Copy the host's /etc/localtime into the image, as is the default.
    #[arg(long, overrides_with = "no_localtime", hide = true)]
    pub(crate) localtime: bool,
    /// Don't copy the host's /etc/localtime into the image.
    #[arg(long, overrides_with = "localtime")]
    pub(crate) no_localtime: bool,
    /// Bring the image up to date by freebsd-update(8), which runs in it.
    #[arg(long, overrides_with = "no_update")]
    pub(crate) update: bool,
    /// Leave the image as it is, as is the default.
    #[arg(long, overrides_with = "update", hide = true)]
    pub(crate) no_update: bool,
    /// With fetch-auto, leave out what others have put after the name of the running release, such
    /// as that of a kernel of your own.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// With fetch, the archive's checksum, instead of that in its MANIFEST.
    #[arg(long, value_name = "SUM")]
    pub(crate) sha256: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl ImageCreate {
    fn config(self) -> Result<ImageCreateConfig, Failure> {
        let Method(method) = self.method;
        let source = match (method, self.source) {
            (ImageMethod::FetchAuto, None) => String::new(),
            (ImageMethod::FetchAuto, Some(_)) => {
                return Err(Failure::usage(
                    "fetch-auto finds its source itself: leave SOURCE out, or use fetch",
                ));
            }
            (_, Some(source)) => source,
            (method, None) => {
                return Err(Failure::usage(format!(
                    "The SOURCE argument is needed when creating images using the '{}' method.",
                    method.as_str()
                )));
            }
        };
        let (url, zfs_dataset) = match method.is_of_dataset() {
            true => (String::new(), source),
            false => (place(source)?, String::new()),
        };
        Ok(ImageCreateConfig {
            method,
            autotag: !self.no_autotag && (self.autotag || self.tag.is_none()),
            tag: self.tag.map(|tag| tag.to_string()).unwrap_or_default(),
            dns: !self.no_dns,
            localtime: !self.no_localtime,
            update: self.update,
            zfs_dataset,
            url,
            force: self.force,
            sha256: self.sha256,
        })
    }
}

/// The source with which the daemon, which is in another directory, means the same.
fn place(source: String) -> Result<String, Failure> {
    if source.is_empty() || source.contains("://") || source.starts_with("file:") {
        return Ok(source);
    }
    let path = absolute(Path::new(&source))
        .map_err(|error| Failure::local(format!("cannot look up {source}"), &error))?;
    path.into_os_string().into_string().map_err(|path| {
        Failure::usage(format!("'{}' is no text: rename it", path.to_string_lossy()))
    })
}

/// Nothing is left of an image whose making was interrupted.
pub(crate) async fn run(args: ImageCreate, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    let config = args.config()?;
    let progress = Progress::new(None);
    let made = interruptible(make(&config, context, &progress), "no image is created").await;
    progress.bar.finish_and_clear();
    let id = made?.to_string();
    print::reply(&IdReply { id: id.clone() }, &id, output)
}

async fn make(
    config: &ImageCreateConfig,
    context: &Context,
    progress: &Progress,
) -> Result<Id, Failure> {
    let lost = || Failure::daemon_gone("no image is created");
    let mut socket = websocket::open(&context.client, routes::IMAGE_CREATE, config).await?;
    loop {
        let message = websocket::next(&mut socket).await;
        let message = message.map_err(|error| websocket::broken(&error, lost))?;
        let text = match &message {
            Message::Text(text) => text.as_str(),
            Message::Close(_) => return Err(lost()),
            _ => continue,
        };
        // A newer daemon may tell of more.
        match serde_json::from_str(text) {
            Ok(ImageEvent::Line(line)) => {
                progress.bar.suspend(|| print::note(&print::escape(&line)))
            }
            Ok(ImageEvent::Bytes { done, total }) => {
                progress.size(total);
                progress.set(done);
            }
            Ok(ImageEvent::Created(id)) => return Ok(id),
            Ok(ImageEvent::Failed(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
}
