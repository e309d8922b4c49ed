//! `klee volume`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use hyper::Method;
use kleened_api::volume::{Mode, Owner, PruneQuery, Volume, VolumeConfig, VolumeFilter};
use kleened_api::{IdReply, Timestamp, VolumeName, routes};

use crate::cli::{Inspect, ListOutput, Output, Prune, key_value};
use crate::client::with_query;
use crate::context::{Context, filters, yes_or_no};
use crate::failure::Failure;
use crate::print::{self, Listed};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume. Where it exists already with the same parameters, nothing happens.
    Create(VolumeCreate),
    /// List volumes, newest first.
    Ls(VolumeList),
    /// Show a volume and the containers that mount it.
    Inspect(Inspect<VolumeName>),
    /// Remove volumes. A volume that a container names is not removed.
    Rm(VolumeRemove),
    /// Remove all volumes that no container names.
    Prune(Prune),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCreate {
    /// The name; a random one where there is none.
    pub(crate) name: Option<VolumeName>,
    /// A label.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// The owner of the volume's root directory, by numbers.
    #[arg(long, value_name = "UID:GID")]
    pub(crate) owner: Option<Owner>,
    /// The mode of the volume's root directory, in octal.
    #[arg(long)]
    pub(crate) mode: Option<Mode>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeList {
    /// Only volumes for which this holds: name=TEXT, label=KEY[=VALUE], dangling=true|false,
    /// in-use=true|false. All that are given must hold.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filters: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRemove {
    /// The volumes.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<VolumeName>,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Listed for Volume {
    const COLUMNS: &'static [&'static str] = &["VOLUME NAME", "CREATED"];
    const FIELDS: &'static [&'static str] = &[
        "name",
        "dataset",
        "mountpoint",
        "created",
        "labels",
        "state",
        "owner",
        "mode",
        "populated",
        "error",
    ];

    fn key(&self) -> &str {
        &self.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![self.name.clone(), print::age(self.created, now)]
    }
}

pub(crate) async fn run(command: VolumeCommand, context: &Context) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create(args) => create(args, context).await,
        VolumeCommand::Ls(args) => list(args, context).await,
        VolumeCommand::Inspect(args) => inspect(args, context).await,
        VolumeCommand::Rm(args) => remove(args, context).await,
        VolumeCommand::Prune(args) => prune(args, context).await,
    }
}

async fn create(args: VolumeCreate, context: &Context) -> Result<(), Failure> {
    let labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    let config = VolumeConfig {
        name: args.name,
        labels: (!labels.is_empty()).then_some(labels),
        owner: args.owner,
        mode: args.mode,
    };
    let reply: IdReply = context.client.post(routes::VOLUME_CREATE, &config).await?;
    print::reply(&reply, &reply.id, args.output.output)
}

pub(crate) async fn list(args: VolumeList, context: &Context) -> Result<(), Failure> {
    let mut filter = VolumeFilter::default();
    let mut labels = Vec::new();
    for (key, value) in filters(&args.filters, &["label"])? {
        match key {
            "name" => filter.name = Some(value.to_owned()),
            "label" => labels.push(value),
            "dangling" => filter.dangling = Some(yes_or_no(key, value)?),
            "in-use" | "in_use" | "used" => filter.in_use = Some(yes_or_no(key, value)?),
            _ => {
                return Err(Failure::usage(format!(
                    "there is no filter '{}': known are name, label, dangling and in-use",
                    key.escape_default()
                )));
            }
        }
    }
    filter.label = (!labels.is_empty()).then(|| labels.join(","));
    let body = context.client.get(&with_query(routes::VOLUME_LIST, &filter)?).await?;
    print::list(&body, |_: &Volume| true, &args.output, context.theme)
}

pub(crate) async fn inspect(args: Inspect<VolumeName>, context: &Context) -> Result<(), Failure> {
    let path = routes::with_name(routes::VOLUME_INSPECT, args.name.as_str());
    print::inspect(&context.client.get(&path).await?, args.format.as_ref())
}

/// Stops at the first failure.
pub(crate) async fn remove(args: VolumeRemove, context: &Context) -> Result<(), Failure> {
    for name in &args.names {
        let path = routes::with_name(routes::VOLUME, name.as_str());
        let reply: IdReply = context.client.change(Method::DELETE, &path).await?;
        print::reply(&reply, &reply.id, args.output.output)?;
    }
    Ok(())
}

async fn prune(args: Prune, context: &Context) -> Result<(), Failure> {
    let query = PruneQuery { dry_run: args.dry_run, all: false };
    context.prune(&args, routes::VOLUME_PRUNE, query, "all unused volumes").await
}

#[cfg(test)]
mod tests {
    use kleened_api::volume::{Populated, VolumeState};

    use super::*;

    #[test]
    fn every_field_is_known_to_templates() {
        let full = Volume {
            name: "v".into(),
            dataset: String::new(),
            mountpoint: String::new(),
            created: Timestamp::now(),
            labels: BTreeMap::new(),
            state: VolumeState::Error,
            owner: Some(Owner { uid: 0, gid: 0 }),
            mode: Some(Mode(0)),
            populated: Some(Populated {
                image_id: String::new(),
                path: String::new(),
                at: Timestamp::now(),
            }),
            error: Some(String::new()),
        };
        print::assert_fields(&full);
    }
}
