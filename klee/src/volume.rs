//! `klee volume`.

use std::collections::BTreeMap;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use hyper::Method;
use kleened_api::attach::{AttachConfig, DetachConfig};
use kleened_api::mount::MountOptions;
use kleened_api::name::DEFAULT_PROJECT;
use kleened_api::snapshot::{RestoreConfig, path};
use kleened_api::volume::{
    AccessRule, AdoptConfig, InspectQuery, Mode, Owner, Profile, RemoveQuery, Volume, VolumeConfig,
    VolumeFilter,
};
use kleened_api::{ContainerRef, IdReply, Size, Timestamp, VolumeRef, routes};
use serde::{Deserialize, Serialize};

use crate::cli::{Inspect, ListOutput, Output, PruneProject, key_value};
use crate::client::with_query;
use crate::context::{Context, each, filters, yes_or_no};
use crate::failure::Failure;
use crate::print::{self, Listed};
use crate::snapshot::{self, SnapshotCommand};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume, empty or as another is. Where it exists already with the same parameters, nothing happens.
    Create(VolumeCreate),
    /// Make a volume of a dataset that is there already, with all that is in it. It becomes a part of
    /// the daemon's root; its content, snapshots and properties stay.
    Adopt(VolumeAdopt),
    /// List volumes, newest first.
    Ls(VolumeList),
    /// Show a volume, the containers that mount it, its snapshots, and the volumes that began as it.
    Inspect(VolumeInspect),
    /// List the profiles: properties that suit one kind of content.
    Profiles(Output),
    /// Attach a volume to a container, which may run.
    ///
    /// Its processes see it at once. Where the container has it so already, nothing happens. A volume that
    /// is empty and was never filled gets what the container has at the path. As zomg data attach; --path is
    /// --at with Unikraft.
    Attach(VolumeAttach),
    /// Detach a volume from a container, which may run.
    ///
    /// Where the container has it not, nothing happens. While a process in the container has something of it
    /// open, it stays, and nothing changes. As zomg data detach.
    Detach(VolumeDetach),
    /// Remove volumes. A volume that a container names is not removed, nor without --force one that has
    /// snapshots which klee made.
    Rm(VolumeRemove),
    /// Remove all volumes of the project that no container names and that have no snapshots which klee made.
    Prune(PruneProject),
    /// Give a volume back what it had when a snapshot was made. All its snapshots stay, also newer ones.
    /// Refused while a container names the volume; --as makes a new volume instead.
    Restore(VolumeRestore),
    /// Manage snapshots: what volumes were at an instant.
    #[command(subcommand, alias = "snap")]
    Snapshot(SnapshotCommand),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCreate {
    /// The name; a random one where there is none.
    pub(crate) name: Option<VolumeRef>,
    /// A label.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// The owner of the volume's root directory, by numbers.
    #[arg(long, value_name = "UID:GID")]
    pub(crate) owner: Option<Owner>,
    /// The mode of the volume's root directory, in octal.
    #[arg(long)]
    pub(crate) mode: Option<Mode>,
    /// How much the volume's content may take, as 512M or 10G; snapshots are not counted. The units
    /// B, K, M, G, T and P are powers of 1024; KiB and KB mean K, and so on.
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// How much is kept free for the volume's content; written as --size, and at most that.
    #[arg(long, value_name = "SIZE")]
    pub(crate) reserve: Option<Size>,
    /// Give the volume the properties of that profile; klee volume profiles lists them.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// A property of the volume's dataset, as recordsize=16K; zfsprops(7) has them all. It comes
    /// before the profile's.
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) properties: Vec<(String, String)>,
    /// Which mounts of it there can be beside each other: any, or either many read-only or one
    /// read-write. Containers that don't run count. [default: shared]
    #[arg(long, value_name = "RULE", value_parser = access_rule())]
    pub(crate) access: Option<AccessRule>,
    /// Begin as that volume is now, also while containers use it, and take after it in all that is not
    /// given here. On ZFS the two share space until one of them changes; either can be removed.
    #[arg(long, value_name = "VOLUME")]
    pub(crate) from: Option<VolumeRef>,
    /// Begin as that snapshot of the volume of --from.
    #[arg(long, value_name = "SNAPSHOT", requires = "from")]
    pub(crate) from_snapshot: Option<String>,
    /// Share no space with the volume of --from: copy all.
    #[arg(long, requires = "from")]
    pub(crate) independent: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeAttach {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// The container.
    pub(crate) container: ContainerRef,
    /// Where it shall be in the container: an absolute path without '..', not the root, and not in
    /// /dev, /proc or /sys.
    #[arg(long)]
    pub(crate) path: String,
    /// Nothing in it can be written there.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// An empty volume stays empty.
    #[arg(long)]
    pub(crate) nocopy: bool,
    /// A path in the volume, of which alone the container sees what is there and below.
    #[arg(long, value_name = "PATH")]
    pub(crate) subpath: Option<String>,
    /// Set-user-id and set-group-id bits in it have no effect.
    #[arg(long)]
    pub(crate) nosuid: bool,
    /// No program in it can be executed.
    #[arg(long)]
    pub(crate) noexec: bool,
    /// No symbolic link in it is followed.
    #[arg(long)]
    pub(crate) nosymfollow: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeDetach {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// The container.
    pub(crate) container: ContainerRef,
    /// Where it is in the container; without it, it is detached wherever it is there.
    #[arg(long)]
    pub(crate) path: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRestore {
    /// The volume.
    pub(crate) volume: VolumeRef,
    /// The snapshot.
    pub(crate) snapshot: String,
    /// Make a new volume of that name with what the snapshot has, and leave the volume as it is.
    #[arg(long = "as", value_name = "NEW")]
    pub(crate) new: Option<VolumeRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeAdopt {
    /// The dataset, as tank/data/pg: of the pool of the daemon's root, a file system without others
    /// below it, and not in use.
    pub(crate) dataset: String,
    /// The name of the volume; the last part of the dataset's where there is none.
    #[arg(long)]
    pub(crate) name: Option<VolumeRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeList {
    /// Only volumes for which this holds: name=TEXT, label=KEY[=VALUE], dangling=true|false,
    /// in-use=true|false. All that are given must hold.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filters: Vec<(String, String)>,
    /// Show the volumes of every project.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show how much space each volume may take and takes, the part of its snapshots, and how much
    /// smaller compression makes it. Without ZFS that means to look at every file.
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) size: bool,
    #[command(flatten)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeInspect {
    #[command(flatten)]
    pub(crate) inspect: Inspect<VolumeRef>,
    /// Show how much space the volume takes also without ZFS, where that means to look at every file.
    #[arg(short, long)]
    pub(crate) size: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeRemove {
    /// The volumes.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<VolumeRef>,
    /// Remove them with their snapshots, unless one is protected.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn access_rule() -> impl TypedValueParser<Value = AccessRule> {
    PossibleValuesParser::new(AccessRule::ALL.map(AccessRule::as_str)).map(|text| {
        AccessRule::ALL.into_iter().find(|rule| rule.as_str() == text).unwrap_or_default()
    })
}

/// A volume as a list shows it: with its project, and with the space that it takes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(transparent)]
struct Shown<const PROJECT: bool, const SIZE: bool>(Volume);

impl<const PROJECT: bool, const SIZE: bool> Listed for Shown<PROJECT, SIZE> {
    const COLUMNS: &'static [&'static str] = match (PROJECT, SIZE) {
        (false, false) => &["VOLUME NAME", "CREATED"],
        (true, false) => &["VOLUME NAME", "PROJECT", "CREATED"],
        (false, true) => {
            &["VOLUME NAME", "CREATED", "SIZE", "USED", "REFERENCED", "SNAPSHOTS", "RATIO"]
        }
        (true, true) => &[
            "VOLUME NAME",
            "PROJECT",
            "CREATED",
            "SIZE",
            "USED",
            "REFERENCED",
            "SNAPSHOTS",
            "RATIO",
        ],
    };
    const FIELDS: &'static [&'static str] = &[
        "name",
        "project",
        "dataset",
        "mountpoint",
        "created",
        "labels",
        "state",
        "owner",
        "mode",
        "size",
        "reserve",
        "profile",
        "properties",
        "access",
        "changed",
        "usage",
        "populated",
        "adopted",
        "origin",
        "error",
    ];

    fn key(&self) -> &str {
        &self.0.name
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        let Volume { name, project, created, usage, .. } = &self.0;
        let mut row = vec![name.clone()];
        row.extend(PROJECT.then(|| project.to_string()));
        row.push(print::age(*created, now));
        if !SIZE {
            return vec![row];
        }
        let usage = usage.as_ref();
        let cell = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let size = |size: Option<Size>| cell(size.map(Size::short));
        let cells = [
            size(usage.and_then(|usage| usage.size)),
            size(usage.map(|usage| usage.used)),
            size(usage.map(|usage| usage.referenced)),
            size(usage.map(|usage| usage.snapshots)),
            cell(usage.and_then(|usage| usage.compress_ratio).map(|ratio| ratio.to_string())),
        ];
        row.extend(cells);
        vec![row]
    }
}

impl Listed for Profile {
    const COLUMNS: &'static [&'static str] = &["PROFILE", "PROPERTY", "VALUE", "WHY"];
    const FIELDS: &'static [&'static str] = &["name", "about", "properties"];

    fn key(&self) -> &str {
        &self.name
    }

    /// The name stands in the first line, with what it is for.
    fn rows(&self, _: Timestamp) -> Vec<Vec<String>> {
        let first =
            [self.name.clone(), String::new(), String::new(), format!("for {}", self.about)];
        let rest = self.properties.iter().cloned();
        let rest =
            rest.map(|property| vec![String::new(), property.name, property.value, property.why]);
        [first.to_vec()].into_iter().chain(rest).collect()
    }
}

pub(crate) async fn run(command: VolumeCommand, context: &Context) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create(args) => create(args, context).await,
        VolumeCommand::Adopt(args) => adopt(args, context).await,
        VolumeCommand::Ls(args) => list(args, context).await,
        VolumeCommand::Inspect(args) => inspect(args, context).await,
        VolumeCommand::Profiles(output) => profiles(output, context).await,
        VolumeCommand::Attach(args) => attach(args, context).await,
        VolumeCommand::Detach(args) => detach(args, context).await,
        VolumeCommand::Rm(args) => remove(args, context).await,
        VolumeCommand::Prune(args) => prune(args, context).await,
        VolumeCommand::Restore(args) => restore(args, context).await,
        VolumeCommand::Snapshot(command) => snapshot::run(command, context).await,
    }
}

async fn create(args: VolumeCreate, context: &Context) -> Result<(), Failure> {
    let labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    let properties: BTreeMap<String, String> = args.properties.into_iter().collect();
    let config = VolumeConfig {
        name: args.name,
        labels: (!labels.is_empty()).then_some(labels),
        owner: args.owner,
        mode: args.mode,
        size: args.size,
        reserve: args.reserve,
        profile: args.profile,
        properties: (!properties.is_empty()).then_some(properties),
        access: args.access,
        from: args.from,
        from_snapshot: args.from_snapshot,
        independent: args.independent.then_some(true),
    };
    let reply: IdReply = context.client.post(routes::VOLUME_CREATE, &config).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
}

async fn restore(args: VolumeRestore, context: &Context) -> Result<(), Failure> {
    let path = path(args.volume.as_str(), &args.snapshot);
    let path = routes::with_name(routes::SNAPSHOT_RESTORE, &path);
    let reply: IdReply = context.client.post(&path, &RestoreConfig { new: args.new }).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
}

async fn adopt(args: VolumeAdopt, context: &Context) -> Result<(), Failure> {
    let config = AdoptConfig { dataset: args.dataset, name: args.name };
    let reply: IdReply = context.client.post(routes::VOLUME_ADOPT, &config).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
}

async fn attach(args: VolumeAttach, context: &Context) -> Result<(), Failure> {
    let VolumeAttach { nosuid, noexec, nosymfollow, .. } = args;
    let config = AttachConfig {
        container: args.container.to_string(),
        destination: args.path,
        read_only: args.read_only,
        nocopy: args.nocopy,
        subpath: args.subpath,
        options: MountOptions { nosuid, noexec, nosymfollow },
    };
    config.mount(args.volume.as_str()).map_err(Failure::usage)?;
    let path = routes::with_name(routes::VOLUME_ATTACH, args.volume.as_str());
    let reply: IdReply = context.client.post(&path, &config).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
}

async fn detach(args: VolumeDetach, context: &Context) -> Result<(), Failure> {
    let config = DetachConfig { container: args.container.to_string(), destination: args.path };
    let path = routes::with_name(routes::VOLUME_DETACH, args.volume.as_str());
    let reply: IdReply = context.client.post(&path, &config).await?;
    print::reply(&reply, context.client.own(&reply.id), args.output.output)
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
    filter.size = args.size;
    filter.all_projects = args.all;
    if args.output.quiet {
        let body = context.client.get(&with_query(routes::VOLUME_NAMES, &filter)?).await?;
        let mut names: Vec<String> = print::parse(&body)?;
        for name in names.iter_mut().filter(|name| args.all && !name.contains(':')) {
            *name = format!("{DEFAULT_PROJECT}:{name}");
        }
        let shown = |name| if args.all { name } else { context.client.own(name) };
        return print::lines(names.iter().map(|name| shown(name)));
    }
    let body = context.client.get(&with_query(routes::VOLUME_LIST, &filter)?).await?;
    let (output, theme) = (&args.output, context.theme);
    match (args.all, args.size) {
        (false, false) => print::list(&body, |_: &Shown<false, false>| true, output, theme),
        (false, true) => print::list(&body, |_: &Shown<false, true>| true, output, theme),
        (true, false) => print::list(&body, |_: &Shown<true, false>| true, output, theme),
        (true, true) => print::list(&body, |_: &Shown<true, true>| true, output, theme),
    }
}

pub(crate) async fn inspect(args: VolumeInspect, context: &Context) -> Result<(), Failure> {
    let Inspect { names, format, output } = args.inspect;
    each(&names, output.output, async |name| {
        let path = routes::with_name(routes::VOLUME_INSPECT, name.as_str());
        let query = args.size.then_some(InspectQuery { size: true });
        let path = query.map_or(Ok(path.clone()), |query| with_query(&path, &query))?;
        print::inspect(&context.client.get(&path).await?, format.as_ref())
    })
    .await
}

async fn profiles(output: Output, context: &Context) -> Result<(), Failure> {
    let body = context.client.get(routes::VOLUME_PROFILES).await?;
    let output = ListOutput { quiet: false, format: None, output };
    print::list(&body, |_: &Profile| true, &output, context.theme)
}

pub(crate) async fn remove(args: VolumeRemove, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.names, output, async |name| {
        let path = routes::with_name(routes::VOLUME, name.as_str());
        let query = args.force.then_some(RemoveQuery { force: true });
        let path = query.map_or(Ok(path.clone()), |query| with_query(&path, &query))?;
        let reply: IdReply = context.client.change(Method::DELETE, &path).await?;
        print::reply(&reply, context.client.own(&reply.id), output)
    })
    .await
}

async fn prune(args: PruneProject, context: &Context) -> Result<(), Failure> {
    context.prune_project(&args, routes::VOLUME_PRUNE, "all unused volumes").await
}

#[cfg(test)]
mod tests {
    use kleened_api::Ratio;
    use kleened_api::volume::{Origin, Populated, VolumeState, VolumeUsage};

    use super::*;

    #[test]
    fn every_field_is_known_to_templates() {
        let full = Volume {
            name: "v".into(),
            project: Default::default(),
            dataset: String::new(),
            mountpoint: String::new(),
            created: Timestamp::now(),
            labels: BTreeMap::new(),
            state: VolumeState::Error,
            owner: Some(Owner { uid: 0, gid: 0 }),
            mode: Some(Mode(0)),
            size: Some(Size(1)),
            reserve: Some(Size(1)),
            profile: Some(String::new()),
            properties: BTreeMap::from([(String::new(), String::new())]),
            access: AccessRule::Shared,
            changed: [("recordsize".to_owned(), "4K".to_owned())].into(),
            usage: Some(VolumeUsage {
                used: Size(1),
                referenced: Size(1),
                available: Size(1),
                snapshots: Size(1),
                size: Some(Size(1)),
                compress_ratio: Some(Ratio(100)),
            }),
            populated: Some(Populated {
                image_id: String::new(),
                path: String::new(),
                at: Timestamp::now(),
            }),
            adopted: Some(String::new()),
            origin: Some(Origin {
                volume: String::new(),
                snapshot: None,
                created: Timestamp::now(),
                independent: false,
            }),
            error: Some(String::new()),
        };
        print::assert_fields(&Shown::<true, true>(full));
    }
}
