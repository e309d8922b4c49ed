//! What every command needs: the daemon, the look of tables; and what several commands do alike.

use std::io;

use hyper::Method;
use kleened_api::routes;
use kleened_api::volume::PruneQuery;

use crate::cli::{Prune, PruneProject};
use crate::client::{Client, with_query};
use crate::failure::Failure;
use crate::print::{self, OutputFormat, Theme};

/// What every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) theme: Theme,
}

impl Context {
    /// Removes what is not used, after a question.
    pub(crate) async fn prune(
        &self,
        args: &Prune,
        route: &str,
        query: PruneQuery,
        what: &str,
    ) -> Result<(), Failure> {
        if !args.force && !args.dry_run {
            let unused = self.pruned(route, PruneQuery { dry_run: true, ..query }).await?;
            if unused.is_empty() {
                print::note("There is nothing to remove.");
                return Ok(());
            }
            print::out(&format!("WARNING! This will remove {what}:\n"))?;
            for name in &unused {
                print::out(&format!("  {}\n", print::escape(self.client.own(name))))?;
            }
            print::out("Are you sure you want to continue? [y/N]: ")?;
            let mut answer = String::new();
            // What is no text is no yes.
            let _ = io::stdin().read_line(&mut answer);
            if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
                print::note("Aborted!");
                return Err(Failure::Quiet(1));
            }
        }
        let removed = self.pruned(route, query).await?;
        match args.output.output {
            OutputFormat::Json => print::json(&removed),
            OutputFormat::Table => print::lines(removed.iter().map(|name| self.client.own(name))),
        }
    }

    /// Removes what is not used in the project, or in all.
    pub(crate) async fn prune_project(
        &self,
        args: &PruneProject,
        route: &str,
        what: &str,
    ) -> Result<(), Failure> {
        let PruneProject { all_projects, prune } = args;
        let query = PruneQuery { dry_run: prune.dry_run, all: false, all_projects: *all_projects };
        let project = self.client.project();
        let what = match all_projects {
            true => format!("{what} of every project"),
            false if project.is_default() => what.to_owned(),
            false => format!("{what} of project {project}"),
        };
        self.prune(prune, route, query, &what).await
    }

    async fn pruned(&self, route: &str, query: PruneQuery) -> Result<Vec<String>, Failure> {
        if query.dry_run {
            // Kleene's daemon knows no dry run: it would remove. It does not know this either.
            self.client.get(routes::INFO).await?;
        }
        self.client.change(Method::POST, &with_query(route, &query)?).await
    }
}

/// `act` was done for each of `items`. One that fails does not keep the others: the errors are
/// reported as they come, and the first one's status is klee's.
pub(crate) async fn each<T>(
    items: &[T],
    format: OutputFormat,
    act: impl AsyncFn(&T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut first = None;
    for item in items {
        match act(item).await {
            Ok(()) => {}
            Err(failure) if failure.ends_all() => return Err(failure),
            Err(failure) => {
                let status = failure.report(format);
                first.get_or_insert(status);
            }
        }
    }
    first.map_or(Ok(()), |status| Err(Failure::Quiet(status)))
}

/// The filters, of which only those in `repeatable` may be given twice.
pub(crate) fn filters<'a>(
    given: &'a [(String, String)],
    repeatable: &[&str],
) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let mut seen: Vec<(&str, &str)> = Vec::with_capacity(given.len());
    for (key, value) in given {
        if !repeatable.contains(&key.as_str()) && seen.iter().any(|(other, _)| other == key) {
            let key = key.escape_default();
            return Err(Failure::usage(format!("the filter '{key}' is given twice")));
        }
        seen.push((key, value));
    }
    Ok(seen)
}

/// A filter that has another value than it can have.
pub(crate) fn bad_filter(key: &str, known: &str, value: &str) -> Failure {
    Failure::usage(format!("the filter '{key}' is {known}, not '{}'", value.escape_default()))
}

/// The value of a filter that is true or false.
pub(crate) fn yes_or_no(key: &str, value: &str) -> Result<bool, Failure> {
    value.parse().map_err(|_| bad_filter(key, "true or false", value))
}
