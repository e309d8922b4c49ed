//! `klee`, the client of `kleened`. It knows the wire and the terminal, and nothing of the engine.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments of arguments are their help")]

mod attach;
mod cli;
mod client;
mod container;
mod context;
mod create;
mod exec;
mod failure;
mod image;
mod logs;
mod man;
mod print;
mod project;
mod signals;
mod snapshot;
mod socket;
mod system;
mod template;
mod terminal;
mod volume;
mod websocket;

use std::process::ExitCode;

fn main() -> ExitCode {
    let status = match cli::parse() {
        Ok((cli, format)) => cli::run(cli).map_or_else(|failure| failure.report(format), |()| 0),
        Err(status) => status,
    };
    ExitCode::from(status)
}
