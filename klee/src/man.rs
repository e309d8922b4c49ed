//! The manual pages, made of the command line's definitions.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::failure::Failure;

/// Writes a page for `klee` and one for each command.
pub(crate) fn generate(dir: &Path) -> Result<(), Failure> {
    let mut klee = Cli::command().disable_help_subcommand(true);
    klee.build();
    write(&klee, dir)
        .map_err(|error| Failure::local(format!("cannot write to {}", dir.display()), &error))
}

fn write(command: &Command, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write(sub, dir)?;
    }
    let man = Man::new(command.clone()).manual("klee manual");
    let mut page = Vec::new();
    man.render(&mut page)?;
    std::fs::write(dir.join(man.get_filename()), page)
}
