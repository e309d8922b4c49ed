//! The project that is meant where a name says none.

use std::path::Path;

use kleened_api::ProjectName;

use crate::failure::Failure;

/// The project: that of the command line, else of the environment, else that of the repository that
/// this runs in, else the default.
///
/// # Errors
///
/// What the environment has is no name of a project.
pub(crate) fn resolve(given: Option<ProjectName>) -> Result<ProjectName, Failure> {
    if let Some(project) = given {
        return Ok(project);
    }
    match std::env::var_os("KLEE_PROJECT").filter(|text| !text.is_empty()) {
        Some(text) => text
            .to_string_lossy()
            .parse()
            .map_err(|error| Failure::usage(format!("KLEE_PROJECT: {error}"))),
        None => {
            let here = std::env::current_dir().ok();
            Ok(here.and_then(|here| of_repository(&here)).unwrap_or_default())
        }
    }
}

/// The project of the git repository that `path` is in.
fn of_repository(path: &Path) -> Option<ProjectName> {
    // A folder; in a worktree or a submodule a file.
    let top = path.ancestors().find(|folder| folder.join(".git").exists())?;
    name_for(&top.file_name()?.to_string_lossy())
}

/// The text as the name of a project: in small letters, with one `-` for all that can't be in it.
fn name_for(text: &str) -> Option<ProjectName> {
    let text = text.to_lowercase();
    let parts = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let mut name = parts.collect::<Vec<_>>().join("-");
    name.truncate(63);
    name.trim_end_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_project() {
        let top = std::env::temp_dir().join(format!("klee-project-{}", std::process::id()));
        let repository = top.join("My_Web.Shop");
        let inside = repository.join("src/deep");
        std::fs::create_dir_all(&inside).unwrap();
        let found = || of_repository(&inside).map(String::from);
        let before = found();
        std::fs::write(repository.join(".git"), "gitdir: elsewhere").unwrap();
        let after = found();
        std::fs::remove_dir_all(&top).unwrap();
        assert_ne!(before.as_deref(), Some("my-web-shop"));
        assert_eq!(after.as_deref(), Some("my-web-shop"));
    }

    #[test]
    fn what_a_folder_is_called_becomes_a_name() {
        let long = format!("{}-x", "a".repeat(62));
        for (folder, name) in [
            ("web", Some("web")),
            ("Web--Shop_2", Some("web-shop-2")),
            ("-x-", Some("x")),
            ("ÄÖ", None),
            ("...", None),
            (&long, Some(&long[..62])),
        ] {
            assert_eq!(name_for(folder).map(String::from).as_deref(), name, "{folder}");
        }
    }
}
