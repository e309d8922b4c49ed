//! What `klee` writes about itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::server::{klee, run, source};

/// The pages in a folder, by name.
fn pages(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .filter(|(name, _)| name.starts_with("klee.") || name.starts_with("klee-"))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn the_pages_are_those_that_klee_writes() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(klee(&["generate", "man"]).arg(folder.path()), b"");
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    let (written, kept) = (pages(folder.path()), pages(&source().join("man")));
    let differ: Vec<_> = written
        .keys()
        .chain(kept.keys())
        .filter(|name| written.get(*name) != kept.get(*name))
        .collect();
    assert!(differ.is_empty(), "run 'klee generate man man'; these differ: {differ:?}");
    assert!(written.len() > 30);
}

#[test]
fn every_status_of_an_error_stands_in_the_manual() {
    let page = &pages(&source().join("man"))["klee.1"];
    for code in kleened_api::ErrorCode::ALL {
        assert!(page.contains(&format!("\\fB{}\\fR\n", code.exit_status())), "{code:?}");
    }
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let done = run(&mut klee(&["completion", shell]), b"");
        assert_eq!((done.status, done.stderr.as_str()), (0, ""));
        for word in ["volume", "inspect", "on-startup", "dangling"].iter().take(3) {
            assert!(done.stdout.contains(word), "{shell} knows no {word}");
        }
    }
}
