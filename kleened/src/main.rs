//! The daemon.

use std::path::Path;
use std::process::ExitCode;

use kleened::platform::{self, supervisor};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    // Before anything else: a supervisor has one thread and little memory.
    if let [_, command, dir] = arguments.as_slice()
        && command == supervisor::SUBCOMMAND
    {
        return platform::supervise(Path::new(dir));
    }
    ExitCode::SUCCESS
}
