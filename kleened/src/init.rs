//! `kleened init`: a root on ZFS, and a configuration that names it, so that the next start uses it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::{self, Config, DEFAULT_FILE};
use crate::error::{Error, Result};
use crate::storage::root;

/// The driver that a new root is for.
const DRIVER: &str = "zfs";

/// The pool on a file, where no name is given.
const POOL: &str = "kleene";

/// What the root's dataset is called in its pool, where no name is given.
const ROOT: &str = "kleene";

/// What shall be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The pool.
    pub pool: Option<String>,
    /// The dataset; `kleene` in the pool where it is not given.
    pub root: Option<String>,
    /// A file to make the pool on.
    pub file: Option<PathBuf>,
    /// The size of that file.
    pub size: Option<u64>,
}

/// What there is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The root's dataset.
    pub dataset: String,
    /// Where it is mounted.
    pub directory: PathBuf,
    /// The configuration that names it.
    pub config: PathBuf,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = self.directory.display();
        writeln!(f, "root:          {} at {directory}", self.dataset)?;
        writeln!(f, "configuration: {}", self.config.display())?;
        let start = match (cfg!(target_os = "freebsd"), self.config == Path::new(DEFAULT_FILE)) {
            (true, true) => "service kleened onestart".to_owned(),
            (false, true) => "kleened".to_owned(),
            (_, false) => format!("kleened --config {}", self.config.display()),
        };
        writeln!(f, "start it with: {start}")
    }
}

/// There is a root as planned, which is mounted, and the configuration in `file`, or in the default one,
/// names it: lines were added to it where it had no root, or it was made. A repeat is safe.
///
/// # Errors
///
/// [`Error::Invalid`] for a plan that makes no sense, and for a configuration that names another root:
/// it is left as it is, and before anything is made; the storage.
pub fn init(file: Option<&Path>, plan: &Plan) -> Result<Made> {
    let (pool, dataset) = names(plan)?;
    let config = file.unwrap_or(Path::new(DEFAULT_FILE));
    let missing = missing(config, &dataset)?;
    if let Some(file) = &plan.file {
        let file = absolute(file)?;
        root::make_pool(&pool, &file, plan.size).map_err(Error::storage("make pool", &pool))?;
    }
    let directory = root::make(&dataset).map_err(Error::storage("make root", &dataset))?;
    add(config, &missing).map_err(Error::io("write", config.display()))?;
    Ok(Made { dataset, directory, config: config.to_owned() })
}

/// The pool and the dataset.
fn names(plan: &Plan) -> Result<(String, String)> {
    let refuse = |text: String| Err(Error::Invalid(text));
    if plan.size.is_some() && plan.file.is_none() {
        return refuse("--size is the size of a file: name it with --file".into());
    }
    let dataset = match (&plan.root, &plan.pool, &plan.file) {
        (Some(root), ..) => root.clone(),
        (None, Some(pool), _) => format!("{pool}/{ROOT}"),
        (None, None, Some(_)) => format!("{POOL}/{ROOT}"),
        (None, None, None) => {
            return refuse(
                "say where: --pool POOL, --root DATASET, or --file PATH --size SIZE".into(),
            );
        }
    };
    if !config::is_dataset(&dataset) {
        return refuse(format!(
            "'{}' is no name of a root: a root is a dataset of a pool, as zroot/kleene, and holds only \
             letters, digits and _ . : -",
            dataset.escape_default()
        ));
    }
    let of_root = root::pool_of(&dataset).to_owned();
    match &plan.pool {
        Some(pool) if *pool != of_root => {
            refuse(format!("the root {dataset} is not in the pool {}", pool.escape_default()))
        }
        _ => Ok((of_root, dataset)),
    }
}

fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).map_err(Error::io("find", file.display()))
}

/// The lines that the configuration lacks.
fn missing(file: &Path, dataset: &str) -> Result<Vec<String>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", file.display())(error)),
    };
    let given = Config::parse(file, &text).map_err(|error| Error::Invalid(error.to_string()))?;
    let has = |key: &str| {
        let line = |line: &str| {
            line.trim_start().strip_prefix(key).map(str::trim_start).is_some_and(is_set)
        };
        text.lines().any(line)
    };
    let wanted = [
        ("root", dataset, given.root == Path::new(dataset)),
        ("storage", DRIVER, given.storage == DRIVER || has("storage") && given.storage == "auto"),
    ];
    let mut lines = Vec::new();
    for (key, value, same) in wanted {
        let line = format!("{key} = \"{value}\"");
        match (same, has(key)) {
            (true, _) => {}
            (false, false) => lines.push(line),
            (false, true) => {
                return Err(Error::Invalid(format!(
                    "{} sets another {key}: nothing was made; to use this one, write {line} there first",
                    file.display()
                )));
            }
        }
    }
    Ok(lines)
}

fn is_set(rest: &str) -> bool {
    rest.starts_with('=')
}

/// The file ends with these lines, too.
fn add(file: &Path, lines: &[String]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let before = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    file.write_all(format!("{end}{}\n", lines.join("\n")).as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pool: Option<&str>, root: Option<&str>, file: Option<&str>, size: Option<u64>) -> Plan {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Plan { pool: text(pool), root: text(root), file: file.map(PathBuf::from), size }
    }

    #[test]
    fn the_root_follows_from_what_is_given() {
        let names = |plan: Plan| names(&plan).map_err(|error| error.to_string());
        let is = |pool: &str, root: &str| Ok((pool.to_owned(), root.to_owned()));
        assert_eq!(names(plan(Some("tank"), None, None, None)), is("tank", "tank/kleene"));
        assert_eq!(names(plan(None, Some("a/b/c"), None, None)), is("a", "a/b/c"));
        assert_eq!(names(plan(None, None, Some("f"), Some(1))), is("kleene", "kleene/kleene"));
        assert_eq!(names(plan(Some("p"), Some("p/x"), Some("f"), Some(1))), is("p", "p/x"));
        for (bad, says) in [
            (plan(None, None, None, None), "--pool POOL"),
            (plan(Some("p"), None, None, Some(1)), "--file"),
            (plan(Some("p"), Some("q/x"), None, None), "not in the pool p"),
            (plan(None, Some("/q/x"), None, None), "zroot/kleene"),
            (plan(None, Some("q"), None, None), "zroot/kleene"),
            (plan(Some("p q"), None, None, None), "zroot/kleene"),
        ] {
            let error = names(bad).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_configuration_gets_the_lines_that_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/kleened.toml");
        let lacks = || missing(&file, "p/kleene");
        add(&file, &lacks().unwrap()).unwrap();
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(written, "root = \"p/kleene\"\nstorage = \"zfs\"\n");
        assert!(lacks().unwrap().is_empty());
        // A sample, in which all is comments, and a last line without an end.
        fs::write(&file, format!("{}copy_threads = 3", config::sample())).unwrap();
        add(&file, &lacks().unwrap()).unwrap();
        let config = Config::read(Some(&file)).unwrap();
        assert_eq!((config.root.to_str().unwrap(), config.copy_threads), ("p/kleene", 3));
        assert!(lacks().unwrap().is_empty());
        for (text, says) in [
            ("root = '/x'", "sets another root"),
            (" root='q/kleene'", "sets another root"),
            ("storage = \"dir\"", "sets another storage"),
            ("rooot = 1", "unknown key 'rooot'"),
        ] {
            fs::write(&file, text).unwrap();
            let error = lacks().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        fs::write(&file, "storage = 'auto'").unwrap();
        assert_eq!(lacks().unwrap(), ["root = \"p/kleene\""]);
    }
}
