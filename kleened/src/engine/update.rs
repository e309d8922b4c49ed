//! A new image brought up to date, by its own freebsd-update(8).

use std::os::unix::net::UnixStream;
use std::time::Duration;

use kleened_api::Id;
use kleened_api::container::NetworkDriver;
use kleened_api::stream::Exit;

use super::create::Notes;
use super::image::New;
use super::journal::Intent;
use super::{Engine, log_failure};
use crate::copy::Progress;
use crate::error::{Error, Result};
use crate::platform::supervisor::wire::{Decoder, Kind};
use crate::platform::{Launch, LogConfig, Process, Setup};
use crate::storage::DatasetPath;

/// What is run. The kernel's release, which is the host's, says nothing about the image.
const SCRIPT: &str = "release=$(freebsd-version -u) && \
    exec freebsd-update --not-running-from-cron --currently-running \"$release\" fetch install";

/// What the container needs: the devices, and to change files that are immutable.
#[cfg(target_os = "freebsd")]
const PARAMETERS: &[&str] = &["mount.devfs", "allow.chflags"];
#[cfg(target_os = "linux")]
const PARAMETERS: &[&str] = &[];

/// How often it is looked whether to go on.
const LOOK: Duration = Duration::from_millis(100);

impl Engine {
    /// The new image, whose dataset is there, has the patches that there are for its release. It runs
    /// in a container with the host's network, so that nothing in it is the host's to run.
    ///
    /// # Errors
    ///
    /// [`Error::Platform`] where it can't be run; [`Error::Invalid`] where it fails: an image without
    /// freebsd-update, no network.
    pub(super) fn update_image(&self, new: &New, notes: &Notes, progress: &Progress) -> Result<()> {
        let id = &new.id;
        let journal = || Error::io::<std::io::Error>("write the journal for", id);
        let intent = Intent::UpdateImage { id: id.clone() };
        // Beside the one that may hold the name of the image.
        let entry = self.journal.begin(&crate::ident::new(), &intent).map_err(journal())?;
        notes.line("updating the image with freebsd-update...");
        let updated = self.run_update(new, notes, progress);
        match self.end_update(id) {
            Ok(()) => log_failure("write the journal", entry.done()),
            Err(error) => tracing::warn!(%id, %error, "cannot end an update; the next start will"),
        }
        updated
    }

    /// Nothing of an update runs any more.
    pub(super) fn end_update(&self, id: &Id) -> Result<()> {
        let fail = || Error::platform("end the update of image", id);
        let root = self.storage.mountpoint(&DatasetPath::scratch(id));
        self.platform.kill(id).map_err(fail())?;
        self.platform.release(id, &root).map_err(fail())?;
        self.platform.forget(id).map_err(fail())?;
        self.remove_log(id);
        Ok(())
    }

    fn run_update(&self, new: &New, notes: &Notes, progress: &Progress) -> Result<()> {
        let settings = self.settings();
        let launch = Launch {
            instance: new.id.clone(),
            container: new.id.clone(),
            setup: Some(Setup {
                root: self.storage.mountpoint(&new.path),
                hostname: new.id.to_string(),
                network: NetworkDriver::Host,
                jail_param: PARAMETERS.iter().map(ToString::to_string).collect(),
                limits: Vec::new(),
                mounts: Vec::new(),
                log: LogConfig {
                    path: self.log_path(&new.id),
                    max_size: settings.log_max_size,
                    max_files: settings.log_max_files,
                },
            }),
            process: Process {
                argv: ["/bin/sh", "-c", SCRIPT].map(Into::into).into(),
                // It shows what it will do, and waits for nobody.
                env: vec!["PAGER=/bin/cat".into()],
                user: "root".into(),
                workdir: "/".into(),
                tty: false,
                stdin: false,
            },
            attach: true,
        };
        let fail = || Error::platform("update image", &new.id);
        self.platform.launch(&launch).map_err(fail())?;
        let stream = self.attach(&new.id)?;
        match follow(stream, notes, progress).map_err(Error::io("update image", &new.id))? {
            _ if progress.is_cancelled() => Err(Error::Cancelled),
            Some((Exit { code: 0, .. }, _)) => Ok(()),
            Some((Exit { code, .. }, last)) => Err(Error::Invalid(format!(
                "the image's freebsd-update ended with status {code}: {last}"
            ))),
            None => Err(Error::Invalid("the image's freebsd-update was ended by somebody".into())),
        }
    }
}

/// Tells what the process writes, line by line, until its end; `None` where that is not known. With
/// the last line.
fn follow(
    mut stream: UnixStream,
    notes: &Notes,
    progress: &Progress,
) -> std::io::Result<Option<(Exit, String)>> {
    use std::io::{ErrorKind, Read};
    stream.set_read_timeout(Some(LOOK))?;
    let (mut decoder, mut line, mut last) = (Decoder::default(), Vec::new(), String::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        if progress.is_cancelled() {
            return Ok(None);
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(read) => decoder.push(buffer.get(..read).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let bad = |error| std::io::Error::new(ErrorKind::InvalidData, error);
        while let Some((kind, payload)) = decoder.frame().map_err(bad)? {
            match kind {
                Kind::STDOUT | Kind::STDERR => {
                    for byte in payload {
                        line.push(*byte);
                        if *byte == b'\n' || line.len() >= 1024 {
                            say(&mut line, &mut last, notes);
                        }
                    }
                }
                Kind::EXIT => {
                    say(&mut line, &mut last, notes);
                    return Ok(Some((serde_json::from_slice(payload)?, last)));
                }
                _ => {}
            }
        }
    }
}

fn say(line: &mut Vec<u8>, last: &mut String, notes: &Notes) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    if !text.is_empty() {
        notes.line(text.as_str());
        *last = text;
    }
}
