//! The daemon: flags, then the configuration, then the work.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};
use kleened::config::{self, DEFAULT_FILE};
use kleened::error::one_line;
use kleened::init::{Plan, init};
use kleened::{daemon, platform};
use kleened_api::Size;

static CONFIG_HELP: LazyLock<String> = LazyLock::new(|| {
    format!("The configuration file [default: {DEFAULT_FILE}, which need not exist]")
});

/// Keeps volumes for containers.
#[derive(Debug, Parser)]
#[command(name = "kleened", version)]
struct Flags {
    #[arg(long, value_name = "FILE", global = true, help = CONFIG_HELP.as_str())]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the configuration can be used.
    Configtest {
        /// Print a file with every key and its default instead.
        #[arg(long)]
        sample: bool,
    },
    /// Make a root on ZFS, and write it into the configuration. A repeat is safe.
    Init {
        /// The pool; the root is its dataset kleene.
        #[arg(long, required_unless_present_any = ["root", "file"])]
        pool: Option<String>,
        /// The root's dataset, as zroot/kleene.
        #[arg(long, value_name = "DATASET")]
        root: Option<String>,
        /// Make a pool on a file, to try it; it is called kleene where --pool does not say otherwise.
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
        /// The size of that file, as 10G. It takes the space that is used of it.
        #[arg(long, requires = "file")]
        size: Option<Size>,
    },
    /// Keep a container's process company: the daemon starts itself like this.
    #[command(hide = true)]
    Supervise { dir: PathBuf },
    /// Change the mounts of a container that runs: the daemon starts itself like this.
    #[command(hide = true)]
    ChangeMounts { dir: PathBuf },
}

/// The exit status for a configuration that can't be used, as `sysexits(3)` has it.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let Flags { config: file, command } = Flags::parse();
    match command {
        None => match daemon::configure(file.as_deref()) {
            Ok(config) => ended(daemon::run(file.as_deref(), config), 1),
            Err(error) => ended(Err(error), EX_CONFIG),
        },
        Some(Command::Configtest { sample: true }) => {
            print!("{}", config::sample());
            ExitCode::SUCCESS
        }
        Some(Command::Configtest { sample: false }) => ended(test(file), EX_CONFIG),
        Some(Command::Init { pool, root, file: on, size }) => {
            let plan = Plan { pool, root, file: on, size: size.map(|Size(bytes)| bytes) };
            match init(file.as_deref(), &plan) {
                Ok(made) => {
                    print!("{made}");
                    ExitCode::SUCCESS
                }
                Err(error) => ended(Err(error.into()), 1),
            }
        }
        Some(Command::Supervise { dir }) => platform::supervise(&dir),
        Some(Command::ChangeMounts { dir }) => platform::change_mounts(&dir),
    }
}

fn test(file: Option<PathBuf>) -> daemon::Result<()> {
    daemon::configure(file.as_deref())?;
    println!("{}: ok", file.unwrap_or_else(|| DEFAULT_FILE.into()).display());
    Ok(())
}

fn ended(result: daemon::Result<()>, status: u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kleened: {}", one_line(&*error));
            ExitCode::from(status)
        }
    }
}
