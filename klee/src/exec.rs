//! Processes: `klee container run`, `start` and `exec`.

use clap::Args;
use kleened_api::exec::{ExecConfig, ExecStart};
use kleened_api::{ContainerRef, IdReply, routes};

use crate::attach;
use crate::cli::{Output, ProcessOptions};
use crate::container::{self, Create};
use crate::context::{Context, each};
use crate::failure::Failure;
use crate::print;

/// How klee is connected to a process.
#[derive(Debug, Args)]
pub(crate) struct AttachOptions {
    /// Don't wait for the process, and don't show its output.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Send standard input to the process. One that is detached reads an empty input.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Write nothing but the process's output, and errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) attach: AttachOptions,
    #[command(flatten)]
    pub(crate) create: Create,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) attach: AttachOptions,
    /// The containers; only one unless detached.
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<ContainerRef>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) attach: AttachOptions,
    #[command(flatten)]
    pub(crate) process: ProcessOptions,
    /// The container.
    pub(crate) container: ContainerRef,
    /// The command; the container's where there is none.
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl AttachOptions {
    /// A line of klee's own, beside a process's output.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            print::note(line);
        }
    }

    fn exec_config(&self, container: &str) -> ExecConfig {
        ExecConfig {
            container_id: container.to_owned(),
            user: Some(String::new()),
            tty: self.tty,
            stdin: Some(self.interactive && !self.detach),
            ..ExecConfig::default()
        }
    }
}

/// The container's id goes to standard output only when detached: otherwise that is the process's.
pub(crate) async fn run(args: Run, context: &Context) -> Result<(), Failure> {
    let Run { attach, create } = args;
    let (remove, format) = (create.rm, create.output.output);
    let config = create.config().map_err(Failure::not_started)?;
    let created = match remove {
        true => container::post_for_once(&config, context).await,
        false => container::post(&config, context).await,
    };
    let created = created.map_err(Failure::not_started)?;
    if !attach.quiet {
        container::check_jail_param(&config, context).await;
    }
    if attach.detach {
        print::reply(&created, &created.id, format)?;
    } else {
        attach.note(&created.id);
    }
    let result = process(attach.exec_config(&created.id), &attach, true, context).await;
    if remove && matches!(result, Err(Failure::Reported { .. })) {
        // A container that was never started never ends either. One that runs is not removed.
        container::remove_unused(&created.id, context).await;
    }
    result.map(drop)
}

pub(crate) async fn start(args: Start, context: &Context) -> Result<(), Failure> {
    if !args.attach.detach && args.containers.len() > 1 {
        return Err(Failure::usage("only one container can be started unless --detach is given"));
    }
    each(&args.containers, args.output.output, async |container| {
        process(args.attach.exec_config(container.as_str()), &args.attach, true, context).await?;
        if args.attach.detach { print::lines([container.as_str()]) } else { Ok(()) }
    })
    .await
}

/// Starts a container whose output nobody waits for.
pub(crate) async fn start_detached(container: &str, context: &Context) -> Result<(), Failure> {
    let attach = AttachOptions { detach: true, interactive: false, tty: false, quiet: false };
    process(attach.exec_config(container), &attach, true, context).await.map(drop)
}

/// The instance's id goes to standard output only when detached.
pub(crate) async fn exec(args: Exec, context: &Context) -> Result<(), Failure> {
    let config = ExecConfig {
        cmd: args.command,
        user: Some(args.process.user.unwrap_or_default()),
        env: args.process.env.into_iter().flatten().collect(),
        workdir: args.process.workdir,
        ..args.attach.exec_config(args.container.as_str())
    };
    let instance = process(config, &args.attach, false, context).await?;
    if args.attach.detach {
        print::reply(&instance, &instance.id, args.output.output)?;
    }
    Ok(())
}

/// Starts a process and, unless detached, stays with it until it ends. A stopped container is
/// started with it; where the process is to be the `first`, one that runs is not touched.
async fn process(
    config: ExecConfig,
    attach: &AttachOptions,
    first: bool,
    context: &Context,
) -> Result<IdReply, Failure> {
    let instance: IdReply =
        context.client.post(routes::EXEC_CREATE, &config).await.map_err(Failure::not_started)?;
    attach.note(&format!("created execution instance {}", instance.id));
    let start = ExecStart {
        exec_id: instance.id.clone(),
        attach: !attach.detach,
        start_container: true,
        first,
    };
    if attach.detach {
        attach::start(&context.client, &start).await?;
    } else {
        let exit = attach::stay(&context.client, &start, attach).await?;
        let id = &instance.id;
        let who = if exit.container_ended {
            format!("executable {id} and its container exited")
        } else {
            format!("{id} has exited")
        };
        attach.note(&format!("\n{who} with exit-code {}", exit.code));
        if exit.code != 0 {
            return Err(Failure::Quiet(u8::try_from(exit.code).unwrap_or(u8::MAX)));
        }
    }
    Ok(instance)
}
