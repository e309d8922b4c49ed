//! `klee volume snapshot`.

use std::iter;

use clap::{Args, Subcommand};
use hyper::Method;
use kleened_api::snapshot::{
    Snapshot, SnapshotConfig, SnapshotFilter, SnapshotProtect, SnapshotRename, path,
};
use kleened_api::{IdReply, Size, SnapshotName, Timestamp, VolumeRef, routes};
use serde::Deserialize;

use crate::cli::{ListOutput, Output, key_value};
use crate::client::with_query;
use crate::context::{Context, each, filters, yes_or_no};
use crate::failure::Failure;
use crate::print::{self, Listed, OutputFormat};
use crate::template::Template;

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Make a snapshot of a volume, also while containers use it.
    Create(SnapshotCreate),
    /// List the snapshots of a volume, or of all volumes, oldest first.
    Ls(SnapshotList),
    /// Show snapshots.
    Inspect(SnapshotInspect),
    /// Remove snapshots. One that is protected is not removed.
    Rm(SnapshotRemove),
    /// Give a snapshot another name.
    Rename(SnapshotNewName),
    /// Protect snapshots: neither they nor their volume can be removed. On ZFS they are held.
    Protect(SnapshotNames),
    /// Take the protection of snapshots away.
    Unprotect(SnapshotNames),
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotCreate {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// The name: 1 to 63 of a-z 0-9 -, as before-upgrade. Without one v0, v1 and so on, the first
    /// after those that there are.
    pub(crate) name: Option<SnapshotName>,
    /// The same as NAME, and comes before it.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) named: Option<SnapshotName>,
    /// What it is for.
    #[arg(short, long)]
    pub(crate) message: Option<String>,
    /// Another volume, of which a snapshot of the same name is made: of all or of none. On ZFS all
    /// are of one instant.
    #[arg(long, value_name = "VOLUME", value_delimiter = ',')]
    pub(crate) also: Vec<VolumeRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotList {
    /// The volume; all where there is none.
    pub(crate) volume: Option<VolumeRef>,
    /// Only snapshots for which this holds: name=TEXT, message=TEXT, protected=true|false. All that
    /// are given must hold.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filters: Vec<(String, String)>,
    /// Show how much space each takes also without ZFS, where that means to look at every file.
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) size: bool,
    #[command(flatten)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotNames {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// Its snapshots.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotRemove {
    #[command(flatten)]
    pub(crate) names: SnapshotNames,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotInspect {
    #[command(flatten)]
    pub(crate) names: SnapshotNames,
    /// A text for each object in which {{.Field}} stands for the value of a field, as with ls.
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) format: Option<Template>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotNewName {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// The snapshot.
    pub(crate) name: String,
    /// Its new name.
    pub(crate) new: SnapshotName,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn cells(snapshot: &Snapshot, now: Timestamp) -> Vec<String> {
    vec![
        snapshot.name.clone(),
        print::age(snapshot.created, now),
        snapshot.used.map_or("-".into(), Size::short),
        if snapshot.protected { "yes" } else { "" }.into(),
        snapshot.message.clone().unwrap_or_default(),
    ]
}

const FIELDS: &[&str] = &["volume", "name", "created", "message", "protected", "foreign", "used"];

/// A snapshot in a list of those of one volume.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct OfVolume(Snapshot);

impl Listed for OfVolume {
    const COLUMNS: &'static [&'static str] =
        &["SNAPSHOT NAME", "CREATED", "SIZE", "PROTECTED", "MESSAGE"];
    const FIELDS: &'static [&'static str] = FIELDS;

    fn key(&self) -> &str {
        &self.0.name
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        vec![cells(&self.0, now)]
    }
}

impl Listed for Snapshot {
    const COLUMNS: &'static [&'static str] =
        &["VOLUME", "SNAPSHOT NAME", "CREATED", "SIZE", "PROTECTED", "MESSAGE"];
    const FIELDS: &'static [&'static str] = FIELDS;

    fn key(&self) -> &str {
        &self.name
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        vec![iter::once(self.volume.clone()).chain(cells(self, now)).collect()]
    }
}

pub(crate) async fn run(command: SnapshotCommand, context: &Context) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => create(args, context).await,
        SnapshotCommand::Ls(args) => list(args, context).await,
        SnapshotCommand::Inspect(args) => inspect(args, context).await,
        SnapshotCommand::Rm(args) => remove(args, context).await,
        SnapshotCommand::Rename(args) => rename(args, context).await,
        SnapshotCommand::Protect(args) => protect(args, true, context).await,
        SnapshotCommand::Unprotect(args) => protect(args, false, context).await,
    }
}

async fn create(args: SnapshotCreate, context: &Context) -> Result<(), Failure> {
    let config = SnapshotConfig {
        volumes: iter::once(args.volume).chain(args.also).collect(),
        name: args.named.or(args.name),
        message: args.message,
    };
    let made: Vec<String> = context.client.post(routes::SNAPSHOT_CREATE, &config).await?;
    match args.output.output {
        OutputFormat::Json => print::json(&made),
        OutputFormat::Table => print::lines(made.iter().map(|name| context.client.own(name))),
    }
}

async fn list(args: SnapshotList, context: &Context) -> Result<(), Failure> {
    let mut filter = SnapshotFilter { size: args.size, ..SnapshotFilter::default() };
    for (key, value) in filters(&args.filters, &[])? {
        match key {
            "name" => filter.name = Some(value.to_owned()),
            "message" => filter.message = Some(value.to_owned()),
            "protected" => filter.protected = Some(yes_or_no(key, value)?),
            _ => {
                return Err(Failure::usage(format!(
                    "there is no filter '{}': known are name, message and protected",
                    key.escape_default()
                )));
            }
        }
    }
    filter.volume = args.volume.map(String::from);
    let body = context.client.get(&with_query(routes::SNAPSHOT_LIST, &filter)?).await?;
    match filter.volume {
        // The names alone would not tell which is meant.
        None if args.output.quiet => {
            let paths: Vec<String> =
                print::parse::<Vec<Snapshot>>(&body)?.iter().map(Snapshot::path).collect();
            print::lines(paths.iter().map(|path| context.client.own(path)))
        }
        Some(_) => print::list(&body, |_: &OfVolume| true, &args.output, context.theme),
        None => print::list(&body, |_: &Snapshot| true, &args.output, context.theme),
    }
}

/// `act` was done with each snapshot, of which it gets `route`.
async fn for_each(
    names: &SnapshotNames,
    route: &str,
    act: impl AsyncFn(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    each(&names.names, names.output.output, async |name| {
        act(routes::with_name(route, &path(names.volume.as_str(), name))).await
    })
    .await
}

async fn inspect(args: SnapshotInspect, context: &Context) -> Result<(), Failure> {
    for_each(&args.names, routes::SNAPSHOT_INSPECT, async |path| {
        print::inspect(&context.client.get(&path).await?, args.format.as_ref())
    })
    .await
}

async fn remove(args: SnapshotRemove, context: &Context) -> Result<(), Failure> {
    for_each(&args.names, routes::SNAPSHOT, async |path| {
        let reply: IdReply = context.client.change(Method::DELETE, &path).await?;
        print::reply(&reply, context.client.own(&reply.id), args.names.output.output)
    })
    .await
}

async fn rename(args: SnapshotNewName, context: &Context) -> Result<(), Failure> {
    let path = routes::with_name(routes::SNAPSHOT_RENAME, &path(args.volume.as_str(), &args.name));
    let reply: IdReply = context.client.post(&path, &SnapshotRename { name: args.new }).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
}

async fn protect(args: SnapshotNames, protected: bool, context: &Context) -> Result<(), Failure> {
    for_each(&args, routes::SNAPSHOT_PROTECT, async |path| {
        let reply: IdReply = context.client.post(&path, &SnapshotProtect { protected }).await?;
        print::reply(&reply, context.client.own(&reply.id), args.output.output)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_known_to_templates() {
        print::assert_fields(&Snapshot {
            volume: "v".into(),
            name: "s".into(),
            created: Timestamp::now(),
            message: Some(String::new()),
            protected: true,
            foreign: true,
            used: Some(Size(1)),
        });
    }
}
