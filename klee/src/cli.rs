//! The command line: every command, option and help text.

use std::env::VarError;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use kleened_api::mount::MountError;
use kleened_api::{ContainerRef, ImageRef, NameError, ProjectName, check_variable, routes};

use crate::client::Client;
use crate::container::{
    self, ContainerCommand, ContainerList, ContainerRemove, Create, Rename, Stop, Update, Wait,
};
use crate::context::Context;
use crate::exec::{self, Exec, Run, Start};
use crate::failure::Failure;
use crate::image::{self, ImageCommand, ImageList, ImageRemove};
use crate::logs::{self, Logs};
use crate::print::{self, OutputFormat, Theme};
use crate::template::Template;
use crate::volume::{self, VolumeCommand, VolumeInspect, VolumeList, VolumeRemove};
use crate::{man, project, system};

/// What follows the help of `klee` itself, and stands in its manual page.
pub(crate) const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success."),
    ("1", "The daemon or klee failed, or the question was answered with no."),
    ("2", "Wrong usage, or something in the request is not allowed."),
    ("3", "There is no such object."),
    ("4", "The object exists and differs from what was asked for."),
    ("5", "The object is in use."),
    ("6", "The object is not in a state in which this can be done."),
    ("7", "Permission denied."),
    ("8", "Not supported by this storage driver or platform."),
    ("9", "No space left, or a quota is used up."),
    ("10", "The daemon can't be reached, or is stopping."),
    (
        "125",
        "A mount is not allowed. And run, exec, start: no process was started, or it was lost.",
    ),
    ("126", "run, exec, start: the program can't be run."),
    ("127", "run, exec, start: there is no such program."),
    (
        "130",
        "Interrupted by ^C; 129 by SIGHUP, 143 by SIGTERM. What the daemon has begun, it finishes.",
    ),
    ("141", "The reader of a process's output, a log or an archive went away."),
    (
        "other",
        "run, exec, start: the process's own; 128 and the number of the signal that ended it.",
    ),
];

/// The shortcuts, and what they stand for.
pub(crate) const SHORTCUTS: &[(&str, &str)] = &[
    ("lsv isv rmv", "volume ls, inspect, rm"),
    ("lsc isc rmc", "container ls, inspect, rm"),
    ("lsi isi rmi", "image ls, inspect, rm"),
    ("create run exec start stop restart", "the same after container"),
    ("logs update rename wait", "the same after container"),
    ("info", "system info"),
];

fn after_help() -> String {
    let table = |rows: &[(&str, &str)]| -> String {
        let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or_default();
        rows.iter().map(|(left, right)| format!("  {left:width$}  {right}\n")).collect()
    };
    format!("Shortcuts:\n{}\nExit status:\n{}", table(SHORTCUTS), table(EXIT_STATUS).trim_end())
}

/// Manage volumes and containers: the client of kleened.
#[derive(Debug, Parser)]
#[command(name = "klee", version, after_long_help = after_help(), max_term_width = 100)]
pub(crate) struct Cli {
    // Clap would show options that it has from the environment in every line of usage.
    /// The daemon's socket: a path, unix:///PATH or http:///PATH [env: KLEE_HOST] [default:
    /// /var/run/kleened.sock].
    #[arg(long, value_name = "SOCKET", global = true, help_heading = "Global options")]
    pub(crate) host: Option<String>,
    /// The project of volumes and containers that are named without one, as NAME and not
    /// PROJECT:NAME, and of those that are listed [env: KLEE_PROJECT] [default: the name of the git
    /// repository around the working directory, or else "default"].
    #[arg(short, long, value_name = "PROJECT", global = true, help_heading = "Global options")]
    pub(crate) project: Option<ProjectName>,
    /// The look of tables [env: KLEE_THEME] [default: fancy].
    #[arg(long, value_enum, global = true, help_heading = "Global options")]
    pub(crate) theme: Option<Theme>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manage volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Manage containers.
    #[command(subcommand)]
    Container(Box<ContainerCommand>),
    /// Manage images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show what the daemon is.
    #[command(subcommand)]
    System(SystemCommand),
    /// Write a completion script to standard output.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
    #[command(flatten)]
    Shortcut(Box<Shortcut>),
}

/// Copies of commands at the top level.
#[derive(Debug, Subcommand)]
pub(crate) enum Shortcut {
    #[command(hide = true)]
    Lsv(VolumeList),
    #[command(hide = true)]
    Isv(VolumeInspect),
    #[command(hide = true)]
    Rmv(VolumeRemove),
    #[command(hide = true)]
    Lsc(ContainerList),
    #[command(hide = true)]
    Isc(Inspect<ContainerRef>),
    #[command(hide = true)]
    Rmc(ContainerRemove),
    #[command(hide = true)]
    Lsi(ImageList),
    #[command(hide = true)]
    Isi(Inspect<ImageRef>),
    #[command(hide = true)]
    Rmi(ImageRemove),
    #[command(hide = true)]
    Create(Create),
    #[command(hide = true)]
    Run(Run),
    #[command(hide = true)]
    Exec(Exec),
    #[command(hide = true)]
    Start(Start),
    #[command(hide = true)]
    Stop(Stop),
    #[command(hide = true)]
    Restart(Stop),
    #[command(hide = true)]
    Logs(Logs),
    #[command(hide = true)]
    Update(Update),
    #[command(hide = true)]
    Rename(Rename),
    #[command(hide = true)]
    Wait(Wait),
    #[command(hide = true)]
    Info(Output),
}

#[derive(Debug, Subcommand)]
pub(crate) enum GenerateCommand {
    /// Write the manual pages.
    Man {
        /// The folder for them.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show the daemon's version, storage driver, platform and root.
    Info(Output),
}

/// How results and errors are written.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// How results are written, and errors: json writes the error's body to standard error.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: OutputFormat,
}

/// What a list shows of each object.
#[derive(Debug, Args)]
pub(crate) struct ListOutput {
    /// Only names, or ids where there are ids.
    #[arg(short, long, conflicts_with_all = ["output", "format"])]
    pub(crate) quiet: bool,
    /// A text for each object in which {{.Field}} stands for the value of a field, and
    /// {{json .Field}} for its JSON; the fields are those of -o json. A line ends after each object,
    /// and \t stands for a tab. In values, what a terminal would act on is escaped; JSON has it all.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    pub(crate) format: Option<Template>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Show everything about objects.
#[derive(Debug, Args)]
pub(crate) struct Inspect<T: Clone + Send + Sync + FromStr<Err = NameError> + 'static> {
    /// The objects; of several the JSON of one comes after that of another.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<T>,
    /// A text for each object in which {{.Field.Field}} stands for the value of a field, as with ls.
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) format: Option<Template>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Don't ask.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only show what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// As [`Prune`], of what belongs to projects.
#[derive(Debug, Args)]
pub(crate) struct PruneProject {
    /// In every project.
    #[arg(long)]
    pub(crate) all_projects: bool,
    #[command(flatten)]
    pub(crate) prune: Prune,
}

/// How a process starts.
#[derive(Debug, Args)]
pub(crate) struct ProcessOptions {
    /// The user.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// An environment variable. Without a value it gets klee's own, if there is one.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = env_variable)]
    pub(crate) env: Vec<EnvVariable>,
    /// The directory to start in.
    #[arg(long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
}

/// An environment variable `NAME=VALUE`; `None` for one that klee itself was to give and has not.
pub(crate) type EnvVariable = Option<String>;

pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{}' is not KEY=VALUE", text.escape_default())),
    }
}

pub(crate) fn env_variable(text: &str) -> Result<EnvVariable, Box<dyn Error + Send + Sync>> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    check_variable(text)?;
    match value.map_or_else(|| std::env::var(name), |value| Ok(value.to_owned())) {
        Ok(value) => Ok(Some(format!("{name}={value}"))),
        Err(VarError::NotPresent) => Ok(None),
        Err(error) => Err(format!("{name}: {error}").into()),
    }
}

impl Cli {
    /// The client and the look, from the options or else the environment.
    fn context(&self) -> Result<Context, Failure> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = self.host.clone().or_else(|| set("KLEE_HOST"));
        let theme = match (self.theme, set("KLEE_THEME")) {
            (Some(theme), _) => theme,
            (None, None) => Theme::default(),
            (None, Some(text)) => Theme::from_str(&text, false).map_err(|_| {
                let text = text.escape_default();
                Failure::usage(format!("KLEE_THEME is fancy or simple, not '{text}'"))
            })?,
        };
        let project = project::resolve(self.project.clone())?;
        let client = Client::new(host.as_deref().unwrap_or(routes::DEFAULT_SOCKET), project)?;
        Ok(Context { client, theme })
    }
}

/// The command line. A shortcut has the help of what it stands for.
fn command() -> clap::Command {
    let command = Cli::command();
    let full = command.clone();
    command.mut_subcommands(|shortcut| {
        let (group, verb) = match shortcut.get_name() {
            "lsv" => ("volume", "ls"),
            "isv" => ("volume", "inspect"),
            "rmv" => ("volume", "rm"),
            "lsc" => ("container", "ls"),
            "isc" => ("container", "inspect"),
            "rmc" => ("container", "rm"),
            "lsi" => ("image", "ls"),
            "isi" => ("image", "inspect"),
            "rmi" => ("image", "rm"),
            "info" => ("system", "info"),
            verb => ("container", verb),
        };
        let stands_for =
            full.find_subcommand(group).and_then(|group| group.find_subcommand(verb)).cloned();
        match stands_for {
            Some(verb) => shortcut
                .about(Resettable::from(verb.get_about().cloned()))
                .long_about(Resettable::from(verb.get_long_about().cloned())),
            None => shortcut,
        }
    })
}

/// Reads the command line. Where that ends the run, the exit status.
pub(crate) fn parse() -> Result<(Cli, OutputFormat), u8> {
    let mut command = command();
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, output_format(&matches))));
    parsed.map_err(|error| {
        let format = wanted_format(std::env::args_os());
        let cause = Error::source(&error);
        let bad_mount = cause.and_then(|cause| cause.downcast_ref::<MountError>());
        let bad_name = cause.and_then(|cause| cause.downcast_ref::<NameError>());
        match (error.kind(), bad_mount, bad_name) {
            (ErrorKind::ValueValidation, Some(error), _) => {
                Failure::usage(error).not_started().report(format)
            }
            (ErrorKind::ValueValidation, _, Some(error)) => Failure::usage(error).report(format),
            (ErrorKind::UnknownArgument, ..) if names_output(&error) => Failure::usage(
                "'--output' comes after the command that has it, as in klee volume ls -o json",
            )
            .report(format),
            (ErrorKind::InvalidUtf8, ..) => not_utf8(std::env::args_os()).report(format),
            (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, ..) => {
                help(&error.render(), format)
            }
            // Only options were given.
            (ErrorKind::MissingSubcommand, ..) => {
                let words = match error.get(ContextKind::InvalidSubcommand) {
                    Some(ContextValue::String(words)) => words.as_str(),
                    _ => "",
                };
                let named = words
                    .split(' ')
                    .skip(1)
                    .try_fold(&mut command, |command, word| command.find_subcommand_mut(word));
                named.map_or(2, |command| help(&command.render_help(), format))
            }
            _ if error.use_stderr() && format == OutputFormat::Json => {
                let text = error.render().to_string();
                let text = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
                let words: Vec<_> = text.split_whitespace().collect();
                Failure::usage(words.join(" ")).report(format)
            }
            _ => {
                // A reader that went away has seen what it wanted.
                let _ = error.print();
                u8::try_from(error.exit_code()).unwrap_or(2)
            }
        }
    })
}

/// Whether the argument is one that many commands have, in another place.
fn names_output(error: &clap::Error) -> bool {
    let argument = error.get(ContextKind::InvalidArg);
    matches!(argument, Some(ContextValue::String(name)) if name == "-o" || name == "--output")
}

/// Names the argument that is no text.
fn not_utf8(mut args: impl Iterator<Item = OsString>) -> Failure {
    let bad = args.find(|arg| arg.to_str().is_none()).unwrap_or_default();
    let bad = bad.as_encoded_bytes().escape_ascii();
    Failure::usage(format!("the argument '{bad}' is not UTF-8, and nothing else can be sent"))
}

/// Prints a help that was asked for by saying nothing.
fn help(text: &StyledStr, format: OutputFormat) -> u8 {
    print::out(&text.to_string()).map_or_else(|failure| failure.report(format), |()| 0)
}

/// How errors are to be reported where the command line could not be read: as its words look, up to
/// what belongs to a process.
fn wanted_format(args: impl Iterator<Item = OsString>) -> OutputFormat {
    let mut words = args.take_while(|word| word != "--").map(|word| word.into_string());
    let mut json = false;
    while let Some(word) = words.next() {
        match word.as_deref() {
            Ok("-ojson" | "-o=json" | "--output=json") => json = true,
            Ok("-o" | "--output") => {
                json = matches!(words.next(), Some(Ok(value)) if value == "json")
            }
            _ => {}
        }
    }
    if json { OutputFormat::Json } else { OutputFormat::Table }
}

/// How the command is to report errors.
fn output_format(matches: &ArgMatches) -> OutputFormat {
    let mut command = matches;
    while let Some((_, sub)) = command.subcommand() {
        command = sub;
    }
    command.try_get_one("output").ok().flatten().copied().unwrap_or_default()
}

/// Runs a command.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let context = cli.context();
    match cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "klee", &mut script);
            print::out(&String::from_utf8_lossy(&script))
        }
        Command::Generate(GenerateCommand::Man { dir }) => man::generate(&dir),
        command => {
            let context = context?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime =
                runtime.map_err(|error| Failure::local("cannot start the event loop", &error))?;
            let result = runtime.block_on(ask(command, &context));
            // A write that nobody reads must not keep klee.
            runtime.shutdown_background();
            result
        }
    }
}

async fn ask(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Volume(command) => volume::run(command, context).await,
        Command::Container(command) => container::run(*command, context).await,
        Command::Image(command) => image::run(command, context).await,
        Command::System(SystemCommand::Info(output)) => system::info(output, context).await,
        Command::Shortcut(shortcut) => match *shortcut {
            Shortcut::Lsv(args) => volume::list(args, context).await,
            Shortcut::Isv(args) => volume::inspect(args, context).await,
            Shortcut::Rmv(args) => volume::remove(args, context).await,
            Shortcut::Lsc(args) => container::list(args, context).await,
            Shortcut::Isc(args) => container::inspect(args, context).await,
            Shortcut::Rmc(args) => container::remove(args, context).await,
            Shortcut::Lsi(args) => image::list(args, context).await,
            Shortcut::Isi(args) => image::inspect(args, context).await,
            Shortcut::Rmi(args) => image::remove(args, context).await,
            Shortcut::Create(args) => container::create(args, context).await,
            Shortcut::Run(args) => exec::run(args, context).await,
            Shortcut::Exec(args) => exec::exec(args, context).await,
            Shortcut::Start(args) => exec::start(args, context).await,
            Shortcut::Stop(args) => container::stop(args, context).await,
            Shortcut::Restart(args) => container::restart(args, context).await,
            Shortcut::Logs(args) => logs::show(args, context).await,
            Shortcut::Update(args) => container::update(args, context).await,
            Shortcut::Rename(args) => container::rename(args, context).await,
            Shortcut::Wait(args) => container::wait(args, context).await,
            Shortcut::Info(output) => system::info(output, context).await,
        },
        Command::Completion { .. } | Command::Generate(_) => Ok(()),
    }
}
