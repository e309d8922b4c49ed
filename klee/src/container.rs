//! `klee container`, but for what starts processes.

use std::pin::pin;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use hyper::Method;
use kleened_api::container::{
    ContainerConfig, ContainerInspect, ContainerSummary, ListQuery, NetworkDriver, RestartPolicy,
    StopQuery, WaitReply,
};
use kleened_api::mount::{self, MountPointConfig};
use kleened_api::system::System;
use kleened_api::{ContainerRef, ErrorCode, IdReply, ImageRef, Timestamp, routes};
use serde::Deserialize;

use crate::cli::{Inspect, ListOutput, Output, ProcessOptions, PruneProject, key_value};
use crate::client::{GOES_ON, interruptible, with_query};
use crate::context::{Context, bad_filter, each, filters};
use crate::exec::{self, Exec, Run, Start};
use crate::failure::Failure;
use crate::logs::{self, Logs};
use crate::print::{self, Listed, OutputFormat};
use crate::signals::{ENDING, Signals};

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Create a container.
    Create(Create),
    /// Create a container and start it.
    ///
    /// Standard output and standard error are those of the process. What klee adds, the ids and the
    /// closing line, goes to standard error; with --detach the container's id goes to standard
    /// output. Standard input is read only with --interactive. klee exits with the status of the
    /// process, or with one of its own above 124 where no process was started.
    ///
    /// Signals go to the process. After three of SIGINT or SIGTERM klee leaves it.
    Run(Run),
    /// Start containers. One that runs is refused, and goes on.
    ///
    /// Input, output, signals and the exit status are as with klee-container-run(1); with --detach the
    /// container goes to standard output as it was named.
    Start(Start),
    /// Stop containers.
    Stop(Stop),
    /// Stop containers and start them again, detached. One that does not run is started.
    Restart(Stop),
    /// Run a process in a container; a stopped one is started with it.
    ///
    /// Input, output, signals and the exit status are as with klee-container-run(1); with --detach the
    /// execution instance's id goes to standard output.
    Exec(Exec),
    /// Show what a container's first process wrote.
    Logs(Logs),
    /// Wait until containers have ended, and print their exit codes.
    Wait(Wait),
    /// List containers, newest first.
    Ls(ContainerList),
    /// Show a container and its mounts.
    Inspect(Inspect<ContainerRef>),
    /// Change a container. What is not given stays as it is.
    Update(Update),
    /// Rename a container.
    Rename(Rename),
    /// Remove containers.
    Rm(ContainerRemove),
    /// Remove all stopped containers of the project, except persistent ones.
    Prune(PruneProject),
}

#[derive(Debug, Args)]
pub(crate) struct ContainerList {
    /// Also those that don't run.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Those of every project.
    #[arg(long)]
    pub(crate) all_projects: bool,
    /// Only containers for which this holds: name=TEXT, status=running|stopped. All that are given
    /// must hold.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filters: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerRemove {
    /// The containers, by name, id or the beginning of the id.
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<ContainerRef>,
    /// Stop them first.
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name; a random one where there is none.
    #[arg(long)]
    pub(crate) name: Option<ContainerRef>,
    #[command(flatten)]
    pub(crate) process: ProcessOptions,
    /// A mount: SOURCE:DESTINATION[:ro|rw][,nocopy][,nosuid][,noexec][,nosymfollow], where SOURCE is the
    /// name of a volume or an absolute path of the host, or type=volume,source=NAME,target=PATH
    /// [,readonly][,nosuid][,noexec][,nosymfollow][,volume-nocopy][,volume-subpath=PATH], where a
    /// volume without a source gets a random name. It is removed with a container that --rm removes,
    /// and stays when another is removed.
    #[arg(short, long = "mount", value_name = "MOUNT")]
    pub(crate) mounts: Vec<MountPointConfig>,
    /// A jail parameter, see jail(8). On Linux it has no effect.
    #[arg(short = 'J', long = "jailparam", value_name = "NAME[=VALUE]")]
    pub(crate) jail_param: Vec<String>,
    /// A limit of what the container may use, see rctl(8), as memoryuse=512M. Not on Linux.
    #[arg(long = "limit", value_name = "RESOURCE[:ACTION]=AMOUNT[/PER]")]
    pub(crate) limits: Vec<String>,
    /// Leave the container when containers are pruned.
    #[arg(short = 'P', long)]
    pub(crate) persist: bool,
    /// When the daemon starts the container by itself.
    #[arg(long, value_parser = restart_policy(), default_value = "no")]
    pub(crate) restart: RestartPolicy,
    /// How the container reaches the network.
    #[arg(short = 'l', long, visible_alias = "network-driver", value_parser = network_driver())]
    pub(crate) driver: Option<NetworkDriver>,
    // Of Kleene's command line.
    #[arg(short, long, hide = true)]
    pub(crate) network: Option<String>,
    /// The host name inside; the id where there is none.
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Remove the container when it has ended.
    #[arg(long)]
    pub(crate) rm: bool,
    /// The image: NAME[:TAG][@SNAPSHOT] or an id.
    pub(crate) image: ImageRef,
    /// The command; the image's where there is none.
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds until what has not ended is killed.
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) time: Option<u32>,
    /// The containers.
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<ContainerRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The containers.
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<ContainerRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// The new name.
    #[arg(long)]
    pub(crate) name: Option<ContainerRef>,
    #[command(flatten)]
    pub(crate) process: ProcessOptions,
    /// A jail parameter, see jail(8). On Linux it has no effect.
    #[arg(short = 'J', long = "jailparam", value_name = "NAME[=VALUE]")]
    pub(crate) jail_param: Vec<String>,
    /// A limit of what the container may use, see rctl(8), as memoryuse=512M, in the place of all that it
    /// has. Not on Linux.
    #[arg(long = "limit", value_name = "RESOURCE[:ACTION]=AMOUNT[/PER]")]
    pub(crate) limits: Vec<String>,
    /// Whether to leave the container when containers are pruned.
    #[arg(short = 'P', long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub(crate) persist: Option<bool>,
    /// When the daemon starts the container by itself.
    #[arg(long, value_parser = restart_policy())]
    pub(crate) restart: Option<RestartPolicy>,
    /// The host name inside.
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// The container.
    pub(crate) container: ContainerRef,
    /// The command.
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The container.
    pub(crate) container: ContainerRef,
    /// Its new name.
    pub(crate) name: ContainerRef,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn network_driver() -> impl TypedValueParser<Value = NetworkDriver> {
    use NetworkDriver::{Disabled, Host, Ipnet, Vnet};
    let known = [Host, Disabled, Ipnet, Vnet];
    // The last two belong to the protocol. The daemon says that it can't.
    PossibleValuesParser::new(
        known
            .map(|driver| PossibleValue::new(driver.as_str()).hide(matches!(driver, Ipnet | Vnet))),
    )
    .map(move |text| known.into_iter().find(|driver| driver.as_str() == text).unwrap_or_default())
}

fn restart_policy() -> impl TypedValueParser<Value = RestartPolicy> {
    PossibleValuesParser::new(["no", "on-startup"]).map(|text| match text.as_str() {
        "on-startup" => RestartPolicy::OnStartup,
        _ => RestartPolicy::No,
    })
}

impl Listed for ContainerSummary {
    // The blank makes the column one wider than an id, as Kleene has it.
    const COLUMNS: &'static [&'static str] =
        &["CONTAINER ID ", "NAME", "IMAGE", "COMMAND", "CREATED", "AUTORUN", "STATUS", "JID"];
    const FIELDS: &'static [&'static str] = &[
        "id",
        "name",
        "project",
        "image_id",
        "cmd",
        "user",
        "env",
        "network_driver",
        "public_ports",
        "jail_param",
        "limits",
        "restart_policy",
        "persist",
        "created",
        "dataset",
        "running",
        "hostname",
        "workdir",
        "auto_remove",
        "started",
        "finished",
        "exit_code",
        "image_name",
        "image_tag",
        "jid",
    ];

    fn key(&self) -> &str {
        self.container.id.as_str()
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        let container = &self.container;
        let image = if self.image_name.is_empty() {
            container.image_id.clone()
        } else {
            format!("{}:{}", self.image_name, self.image_tag)
        };
        let autorun = match container.restart_policy {
            RestartPolicy::OnStartup => "  yes",
            RestartPolicy::No => "  no",
        };
        vec![vec![
            container.id.to_string(),
            container.name.clone(),
            image,
            print::shortened(&container.cmd.join(" "), 40),
            print::age(container.created, now),
            autorun.to_owned(),
            status(self).to_owned(),
            self.jid.map(|jid| jid.to_string()).unwrap_or_default(),
        ]]
    }
}

/// A container in a list of those of every project.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct InProject(ContainerSummary);

impl Listed for InProject {
    const COLUMNS: &'static [&'static str] = &[
        "CONTAINER ID ",
        "NAME",
        "PROJECT",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "AUTORUN",
        "STATUS",
        "JID",
    ];
    const FIELDS: &'static [&'static str] = ContainerSummary::FIELDS;

    fn key(&self) -> &str {
        self.0.key()
    }

    fn rows(&self, now: Timestamp) -> Vec<Vec<String>> {
        let mut rows = self.0.rows(now);
        rows.iter_mut().for_each(|row| row.insert(2, self.0.container.project.to_string()));
        rows
    }
}

fn status(container: &ContainerSummary) -> &'static str {
    if container.container.running { "running" } else { "stopped" }
}

pub(crate) async fn run(command: ContainerCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ContainerCommand::Create(args) => create(args, context).await,
        ContainerCommand::Run(args) => exec::run(args, context).await,
        ContainerCommand::Start(args) => exec::start(args, context).await,
        ContainerCommand::Stop(args) => stop(args, context).await,
        ContainerCommand::Restart(args) => restart(args, context).await,
        ContainerCommand::Exec(args) => exec::exec(args, context).await,
        ContainerCommand::Logs(args) => logs::show(args, context).await,
        ContainerCommand::Wait(args) => wait(args, context).await,
        ContainerCommand::Ls(args) => list(args, context).await,
        ContainerCommand::Inspect(args) => inspect(args, context).await,
        ContainerCommand::Update(args) => update(args, context).await,
        ContainerCommand::Rename(args) => rename(args, context).await,
        ContainerCommand::Rm(args) => remove(args, context).await,
        ContainerCommand::Prune(args) => prune(args, context).await,
    }
}

impl Create {
    /// What to send, checked as far as that can be done here.
    pub(crate) fn config(self) -> Result<ContainerConfig, Failure> {
        let mounts =
            mount::checked(self.mounts).map_err(|error| Failure::usage(error).not_started())?;
        if let Some(network) = &self.network {
            return Err(Failure::new(
                ErrorCode::Unsupported,
                format!(
                    "there is no network '{}', nor any other: use the network driver 'host' or \
                     'disabled'",
                    network.escape_default()
                ),
            ));
        }
        Ok(ContainerConfig {
            name: self.name.map(String::from),
            image: Some(self.image.to_string()),
            cmd: Some(self.command),
            user: Some(self.process.user.unwrap_or_default()),
            env: Some(self.process.env.into_iter().flatten().collect()),
            mounts,
            jail_param: Some(self.jail_param),
            limits: (!self.limits.is_empty()).then_some(self.limits),
            network_driver: Some(self.driver.unwrap_or_default()),
            public_ports: Vec::new(),
            restart_policy: Some(self.restart),
            persist: Some(self.persist),
            hostname: self.hostname,
            workdir: self.process.workdir,
            auto_remove: self.rm.then_some(true),
        })
    }
}

pub(crate) async fn create(args: Create, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    let config = args.config()?;
    let reply = post(&config, context).await?;
    check_jail_param(&config, context).await;
    print::reply(&reply, &reply.id, output)
}

/// Makes a container.
pub(crate) async fn post(config: &ContainerConfig, context: &Context) -> Result<IdReply, Failure> {
    context.client.post(routes::CONTAINER_CREATE, config).await
}

/// Makes a container that is to go with its process: where klee is interrupted before there is one, it
/// goes at once. A second signal ends the waiting for it.
pub(crate) async fn post_for_once(
    config: &ContainerConfig,
    context: &Context,
) -> Result<IdReply, Failure> {
    let mut signals = Signals::watch(ENDING);
    let mut making = pin!(context.client.post_to_the_end(routes::CONTAINER_CREATE, config));
    let number = tokio::select! {
        biased;
        (_, number) = signals.next() => number,
        made = &mut making => return made,
    };
    let made: IdReply = interruptible(making, GOES_ON).await?;
    remove_unused(&made.id, context).await;
    Err(Failure::interrupted(number, "the container is removed again"))
}

/// A container in which nothing runs is gone.
pub(crate) async fn remove_unused(id: &str, context: &Context) {
    let path = routes::with_name(routes::CONTAINER, id);
    // What counts is why it is not used.
    let _ = context.client.change::<IdReply>(Method::DELETE, &path).await;
}

/// Says so where jail parameters are given and have no effect.
pub(crate) async fn check_jail_param(config: &ContainerConfig, context: &Context) {
    if config.jail_param.as_ref().is_none_or(Vec::is_empty) {
        return;
    }
    // Without an answer there is nothing to say.
    let Ok(body) = context.client.get(routes::INFO).await else { return };
    if print::parse(&body).is_ok_and(|system: System| system.platform == "linux") {
        print::note("klee: warning: jail parameters have no effect on Linux");
    }
}

pub(crate) async fn stop(args: Stop, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.containers, output, async |container| {
        let reply = stop_one(container, args.time, context).await?;
        print::reply(&reply, &reply.id, output)
    })
    .await
}

async fn stop_one(
    container: &ContainerRef,
    time: Option<u32>,
    context: &Context,
) -> Result<IdReply, Failure> {
    let path = routes::with_name(routes::CONTAINER_STOP, container.as_str());
    context.client.change(Method::POST, &with_query(&path, &StopQuery { time })?).await
}

/// One that does not run is started.
pub(crate) async fn restart(args: Stop, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.containers, output, async |container| {
        let reply = match stop_one(container, args.time, context).await {
            Err(failure) if failure.code() == Some(ErrorCode::WrongState) => {
                let path = routes::with_name(routes::CONTAINER_INSPECT, container.as_str());
                let found: ContainerInspect = print::parse(&context.client.get(&path).await?)?;
                IdReply { id: found.container.id.to_string() }
            }
            reply => reply?,
        };
        print::reply(&reply, &reply.id, output)?;
        exec::start_detached(&reply.id, context).await
    })
    .await
}

pub(crate) async fn wait(args: Wait, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.containers, output, async |container| {
        let path = routes::with_name(routes::CONTAINER_WAIT, container.as_str());
        let reply: WaitReply = print::parse(&context.client.get(&path).await?)?;
        print::reply(&reply, &reply.exit_code.to_string(), output)
    })
    .await
}

pub(crate) async fn list(args: ContainerList, context: &Context) -> Result<(), Failure> {
    let mut name = None;
    let mut wanted = None;
    for (key, value) in filters(&args.filters, &[])? {
        match (key, value) {
            ("name", _) => name = Some(value),
            ("status", "running" | "stopped") => wanted = Some(value),
            ("status", _) => return Err(bad_filter(key, "running or stopped", value)),
            _ => {
                return Err(Failure::usage(format!(
                    "there is no filter '{}': known are name and status",
                    key.escape_default()
                )));
            }
        }
    }
    // Who asks for stopped ones need not ask for all of them too.
    let all = args.all || wanted == Some("stopped");
    let query = ListQuery { all, all_projects: args.all_projects };
    let body = context.client.get(&with_query(routes::CONTAINER_LIST, &query)?).await?;
    let keep = |container: &ContainerSummary| {
        name.is_none_or(|text| container.container.name.contains(text))
            && wanted.is_none_or(|wanted| status(container) == wanted)
    };
    if args.all_projects {
        let keep = |container: &InProject| keep(&container.0);
        return print::list(&body, keep, &args.output, context.theme);
    }
    print::list(&body, keep, &args.output, context.theme)
}

pub(crate) async fn inspect(args: Inspect<ContainerRef>, context: &Context) -> Result<(), Failure> {
    each(&args.names, args.output.output, async |name| {
        let path = routes::with_name(routes::CONTAINER_INSPECT, name.as_str());
        print::inspect(&context.client.get(&path).await?, args.format.as_ref())
    })
    .await
}

pub(crate) async fn update(args: Update, context: &Context) -> Result<(), Failure> {
    let given = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let config = ContainerConfig {
        name: args.name.map(String::from),
        cmd: given(args.command),
        user: args.process.user,
        env: given(args.process.env.into_iter().flatten().collect()),
        jail_param: given(args.jail_param),
        limits: given(args.limits),
        restart_policy: args.restart,
        persist: args.persist,
        hostname: args.hostname,
        workdir: args.process.workdir,
        ..ContainerConfig::default()
    };
    change(&args.container, &config, args.output.output, context).await?;
    check_jail_param(&config, context).await;
    Ok(())
}

pub(crate) async fn rename(args: Rename, context: &Context) -> Result<(), Failure> {
    let config = ContainerConfig { name: Some(args.name.into()), ..ContainerConfig::default() };
    change(&args.container, &config, args.output.output, context).await
}

async fn change(
    container: &ContainerRef,
    config: &ContainerConfig,
    output: OutputFormat,
    context: &Context,
) -> Result<(), Failure> {
    let path = routes::with_name(routes::CONTAINER_UPDATE, container.as_str());
    let reply: IdReply = context.client.post(&path, config).await?;
    print::reply(&reply, &reply.id, output)
}

pub(crate) async fn remove(args: ContainerRemove, context: &Context) -> Result<(), Failure> {
    let output = args.output.output;
    each(&args.containers, output, async |container| {
        let mut stopped = None;
        if args.force {
            match stop_one(container, None, context).await {
                Ok(reply) => stopped = Some(reply),
                // It did not run.
                Err(failure) if failure.code() == Some(ErrorCode::WrongState) => {}
                Err(failure) => return Err(failure),
            }
        }
        let path = routes::with_name(routes::CONTAINER, container.as_str());
        let reply = match (context.client.change(Method::DELETE, &path).await, stopped) {
            // One that is to be removed when it has ended was so.
            (Err(failure), Some(reply)) if failure.code() == Some(ErrorCode::NotFound) => reply,
            (reply, _) => reply?,
        };
        print::reply(&reply, &reply.id, output)
    })
    .await
}

async fn prune(args: PruneProject, context: &Context) -> Result<(), Failure> {
    context.prune_project(&args, routes::CONTAINER_PRUNE, "all stopped containers").await
}

#[cfg(test)]
mod tests {
    use kleened_api::container::Container;

    use super::*;

    #[test]
    fn every_field_is_known_to_templates() {
        let container = Container {
            id: "fa3f95145d92".parse().unwrap(),
            name: String::new(),
            project: Default::default(),
            image_id: String::new(),
            cmd: Vec::new(),
            user: String::new(),
            env: Vec::new(),
            network_driver: NetworkDriver::Host,
            public_ports: Vec::new(),
            jail_param: Vec::new(),
            limits: vec!["maxproc=5".to_owned()],
            restart_policy: RestartPolicy::No,
            persist: false,
            created: Timestamp::now(),
            dataset: String::new(),
            running: false,
            hostname: String::new(),
            workdir: String::new(),
            auto_remove: false,
            started: Some(Timestamp::now()),
            finished: Some(Timestamp::now()),
            exit_code: Some(0),
        };
        print::assert_fields(&ContainerSummary {
            container,
            image_name: String::new(),
            image_tag: String::new(),
            jid: None,
        });
    }
}
