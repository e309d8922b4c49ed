//! The manual pages, made of the command line's definitions.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::cli::{Cli, EXIT_STATUS, SHORTCUTS};
use crate::failure::Failure;

/// When the texts last changed.
const DATE: &str = "2026-11-21";

const ENVIRONMENT: &[(&str, &str)] = &[
    ("KLEE_PROJECT", "The project, where --project is not given."),
    ("KLEE_HOST", "The daemon's socket, where --host is not given."),
    ("KLEE_THEME", "The look of tables, where --theme is not given."),
];

const FILES: &[(&str, &str)] =
    &[("/var/run/kleened.sock", "The daemon's socket, where its configuration names no other.")];

const EXAMPLES: &[(&str, &str)] = &[
    ("klee image create fetch-auto", "Make an image of the release of FreeBSD that the host runs."),
    ("klee volume create --label tier=db --owner 770:770 data", "Make a volume."),
    (
        "klee run -d --name db -m data:/var/db/postgres postgres:16",
        "Run a container that mounts it. It is filled with what the image has there.",
    ),
    ("klee run --rm -m data:/data:ro base tar c -C /data . >data.tar", "Save a volume's files."),
    ("tar c . | klee exec -i db tar x -C /tmp", "Send files into a container."),
    ("klee lsv --filter dangling=true --format '{{.Name}}\\t{{.Created}}'", "Find unused volumes."),
];

/// Writes a page for `klee` and one for each command.
pub(crate) fn generate(dir: &Path) -> Result<(), Failure> {
    let mut klee = Cli::command().disable_help_subcommand(true);
    klee.build();
    write(&klee, dir)
        .map_err(|error| Failure::local(format!("cannot write to {}", dir.display()), &error))
}

fn write(command: &Command, dir: &Path) -> io::Result<()> {
    let subcommands: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    for sub in &subcommands {
        write(sub, dir)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut page = Vec::new();
    let source = concat!("klee ", env!("CARGO_PKG_VERSION"));
    let mut start = Roff::new();
    start.control("TH", [name, "1", DATE, source, "General Commands Manual"]);
    start.to_writer(&mut page)?;
    let man = Man::new(command.clone());
    man.render_name_section(&mut page)?;
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let words = command.get_bin_name().unwrap_or(name);
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([bold(words), roman(usage.strip_prefix(words).unwrap_or(usage))]);
    synopsis.to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    if !subcommands.is_empty() {
        rest.control("SH", ["COMMANDS"]);
        for sub in &subcommands {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            item(&mut rest, [bold(format!("{name}-{}", sub.get_name())), roman("(1)")], &about);
        }
    }
    if command.get_name() == "klee" {
        section(&mut rest, "SHORTCUTS", SHORTCUTS);
        section(&mut rest, "EXIT STATUS", EXIT_STATUS);
        section(&mut rest, "ENVIRONMENT", ENVIRONMENT);
        section(&mut rest, "FILES", FILES);
        section(&mut rest, "EXAMPLES", EXAMPLES);
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("kleened.conf"), roman("(5), "), bold("kleened"), roman("(8)")]);
    } else {
        rest.control("SH", ["EXIT STATUS"]);
        rest.text([roman("As "), bold("klee"), roman("(1) has it.")]);
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("klee"), roman("(1)")]);
    }
    rest.to_writer(&mut page)?;
    let page = String::from_utf8_lossy(&page);
    std::fs::write(dir.join(format!("{name}.1")), joined(&page))
}

/// The sections as one page: with one preamble, and with line breaks that mandoc has no doubts of.
fn joined(sections: &str) -> String {
    let preamble = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    format!("{preamble}{}", sections.replace(preamble, "").replace(".br\n\n.br\n", ".sp\n"))
}

fn section(page: &mut Roff, title: &str, items: &[(&str, &str)]) {
    page.control("SH", [title]);
    for (term, text) in items {
        item(page, [bold(*term)], text);
    }
}

fn item<const N: usize>(page: &mut Roff, term: [Inline; N], text: &str) {
    page.control("TP", []);
    page.text(term);
    page.text([roman(text)]);
}
