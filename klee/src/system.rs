//! `klee system`.

use kleened_api::routes;
use kleened_api::system::System;

use crate::cli::Output;
use crate::context::Context;
use crate::failure::Failure;
use crate::print::{self, OutputFormat};

/// Shows what the daemon is.
pub(crate) async fn info(output: Output, context: &Context) -> Result<(), Failure> {
    let body = context.client.get(routes::INFO).await?;
    if output.output == OutputFormat::Json {
        return print::inspect(&body, None);
    }
    let system: System = print::parse(&body)?;
    let lines = [
        ("Version", system.version),
        ("Storage", system.storage),
        ("Platform", system.platform),
        ("Root", system.root),
    ]
    .map(|(name, value)| format!("{:<10}{value}", format!("{name}:")));
    print::lines(lines.iter().map(String::as_str))
}
