//! Data flows one way: an import that points up is refused, and so is `unsafe` outside its rooms and
//! a program that is run where a call would serve.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What a room of the daemon may name: other rooms, and crates that have to do with input and output.
struct Room {
    name: &'static str,
    rooms: &'static [&'static str],
    crates: &'static [&'static [&'static str]],
}

const ANY: &[&str] = &["*"];
const HTTP: &[&str] = &["axum", "hyper", "hyper_util", "http", "http_body_util", "tower"];
const ASYNC: &[&str] = &["tokio", "tokio_util", "futures_util"];
const SYSTEM: &[&str] = &["kleened_sys", "nix", "libc"];

/// Callers above those whom they call. `main` and `daemon` are the wiring, `lib` is the map.
const ROOMS: &[Room] = &[
    Room { name: "main", rooms: ANY, crates: &[] },
    Room { name: "daemon", rooms: ANY, crates: &[HTTP, ASYNC, SYSTEM] },
    Room { name: "lib", rooms: ANY, crates: &[] },
    Room { name: "init", rooms: &["storage", "config", "error"], crates: &[] },
    Room { name: "http", rooms: &["engine", "config", "error"], crates: &[HTTP, ASYNC] },
    Room {
        name: "engine",
        rooms: &["storage", "platform", "copy", "archive", "fetch", "config", "error", "ident"],
        crates: &[ASYNC, &["kleened_sys"]],
    },
    Room { name: "error", rooms: &["storage", "platform", "fetch"], crates: &[] },
    Room { name: "config", rooms: &[], crates: &[] },
    Room { name: "platform", rooms: &["ident"], crates: &[SYSTEM] },
    Room { name: "storage", rooms: &["copy", "archive"], crates: &[SYSTEM] },
    Room { name: "archive", rooms: &["copy"], crates: &[SYSTEM] },
    Room { name: "copy", rooms: &[], crates: &[SYSTEM] },
    Room { name: "ident", rooms: &[], crates: &[] },
    Room { name: "fetch", rooms: &[], crates: &[] },
];

/// The packages in which `unsafe` may be written.
const UNSAFE: &[&str] = &["kleened/sys/", "kleened/libzfs-sys/"];

/// A source file, by its path below the workspace.
struct Source {
    path: String,
    tokens: TokenStream,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let tokens = text.parse().unwrap_or_else(|e| panic!("{path} is not Rust: {e}"));
        Self { path: path.to_owned(), tokens }
    }

    /// The module, from the crate's root: `engine::volume` of `kleened/src/engine/volume.rs`.
    fn module(&self, src: &str) -> Option<Vec<String>> {
        let below = self.path.strip_prefix(src)?.strip_suffix(".rs")?;
        let below = below.strip_suffix("/mod").unwrap_or(below);
        Some(below.split('/').map(str::to_owned).collect())
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
            || self.path.starts_with("tests/")
    }
}

/// What a file says, as far as the rules go.
#[derive(Default)]
struct Names {
    /// The first components of paths from the crate's root.
    own: BTreeSet<String>,
    /// The first components of all other paths.
    outer: BTreeSet<String>,
    /// Programs that are started by a name in the source.
    programs: BTreeSet<String>,
    is_unsafe: bool,
}

impl Names {
    fn of(source: &Source, module: &[String]) -> Self {
        let mut names = Self::default();
        names.read(&source.tokens, &mut module.to_vec(), source.is_test());
        names
    }

    /// Reads one level of tokens. What only a test build has may run programs.
    fn read(&mut self, tokens: &TokenStream, module: &mut Vec<String>, mut test: bool) {
        let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
        let before = test;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let rest = tokens.get(at + 1..).unwrap_or_default();
            match token {
                TokenTree::Ident(ident) => {
                    let word = ident.to_string();
                    let in_path = at >= 2 && is_colons(tokens.get(at - 2..at).unwrap_or_default());
                    match word.as_str() {
                        "unsafe" => self.is_unsafe = true,
                        "crate" if !in_path => self.own.extend(heads(rest)),
                        "super" if !in_path => self.read_super(rest, module),
                        "Command" => self.programs.extend(program(rest)),
                        "mod" => {
                            if let [TokenTree::Ident(name), TokenTree::Group(body), ..] = rest {
                                module.push(name.to_string());
                                self.read(&body.stream(), module, test);
                                module.pop();
                                test = before;
                                at += 3;
                                continue;
                            }
                        }
                        "use" => self.outer.extend(heads_of(rest)),
                        _ => {}
                    }
                    if !in_path && is_colons(rest) {
                        self.outer.insert(word);
                    }
                }
                TokenTree::Group(group) => {
                    let attribute = group.delimiter() == Delimiter::Bracket
                        && matches!(at.checked_sub(1).and_then(|i| tokens.get(i)), Some(TokenTree::Punct(p)) if p.as_char() == '#');
                    if attribute && group.stream().to_string().replace(' ', "") == "cfg(test)" {
                        test = true;
                    }
                    let programs = self.programs.clone();
                    self.read(&group.stream(), module, test);
                    if test {
                        self.programs = programs;
                    }
                    if group.delimiter() == Delimiter::Brace {
                        test = before;
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }

    /// `super::super::x`, as far as it leads to the crate's root.
    fn read_super(&mut self, mut rest: &[TokenTree], module: &[String]) {
        let mut up = 1;
        while let Some((TokenTree::Ident(next), after)) = rest.get(2..).and_then(<[_]>::split_first)
            && next == "super"
        {
            up += 1;
            rest = after;
        }
        if up == module.len() {
            self.own.extend(heads(rest));
        }
    }
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let colon = |t: &TokenTree| matches!(t, TokenTree::Punct(p) if p.as_char() == ':');
    matches!(tokens, [a, b, ..] if colon(a) && colon(b))
}

/// The components after `::`: one, or each of a group's.
fn heads(tokens: &[TokenTree]) -> Vec<String> {
    if is_colons(tokens) { heads_of(tokens.get(2..).unwrap_or_default()) } else { Vec::new() }
}

fn heads_of(tokens: &[TokenTree]) -> Vec<String> {
    match tokens.first() {
        Some(TokenTree::Ident(ident)) => vec![ident.to_string()],
        Some(TokenTree::Punct(p)) if p.as_char() == '*' => vec!["*".to_owned()],
        Some(TokenTree::Group(group)) => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            inner
                .split(|t| matches!(t, TokenTree::Punct(p) if p.as_char() == ','))
                .flat_map(heads_of)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The literal in `::new("literal")`.
fn program(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [_, _, TokenTree::Ident(new), TokenTree::Group(arguments), ..] if new == "new" => {
            match arguments.stream().into_iter().next() {
                Some(TokenTree::Literal(literal)) => Some(literal.to_string()),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Every breach of the rules, as a sentence.
fn breaches(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let path = &source.path;
        let module = source.module("kleened/src/").unwrap_or_default();
        let names = Names::of(source, &module);
        if names.is_unsafe && !UNSAFE.iter().any(|room| path.starts_with(room)) {
            found.push(format!("{path}: unsafe, which belongs into kleened/sys"));
        }
        for program in &names.programs {
            found.push(format!("{path}: runs {program}, where a call would serve"));
        }
        if path.starts_with("klee/") {
            for name in ["kleened", "kleened_sys"].iter().filter(|n| names.outer.contains(**n)) {
                found.push(format!("{path}: names {name}; the client knows kleened_api alone"));
            }
        }
        if path.starts_with("kleened/api/") {
            for name in ["kleened", "kleened_sys", "tokio", "hyper", "rustix", "nix", "libc"] {
                if names.outer.contains(name) {
                    found.push(format!("{path}: names {name}; the wire types do no I/O"));
                }
            }
        }
        if let Some(room) = module.first() {
            found.extend(breaches_of_room(path, room, &names));
        }
    }
    found
}

fn breaches_of_room(path: &str, room: &str, names: &Names) -> Vec<String> {
    let Some(rules) = ROOMS.iter().find(|r| r.name == room) else {
        return vec![format!("{path}: the room {room} has no row in ROOMS of tests/layers.rs")];
    };
    let rooms = ROOMS.iter().map(|r| r.name).chain(["*"]);
    let crates = [HTTP, ASYNC, SYSTEM].into_iter().flatten().copied();
    let allowed_room = |name| rules.rooms == ANY || rules.rooms.contains(&name) || name == room;
    let allowed_crate = |name| rules.crates.iter().any(|list| list.contains(&name));
    rooms
        .filter(|name| names.own.contains(*name) && !allowed_room(name))
        .map(|name| format!("crate::{name}"))
        .chain(
            crates
                .filter(|name| names.outer.contains(*name) && !allowed_crate(name))
                .map(str::to_owned),
        )
        .map(|name| format!("{path}: {room} names {name}"))
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read_below(dir: &Path, root: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_below(&path, root, sources);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            sources.push(Source::new(name, &fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The dependencies that a package's manifest names, without those of its tests.
fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    let table = manifest.split("\n[").find_map(|t| t.strip_prefix("dependencies]")).unwrap();
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap().to_owned();
    table.lines().map(name).filter(|n| !n.is_empty() && !n.starts_with('#')).collect()
}

#[test]
fn nothing_points_up() {
    let (root, mut sources) = (root(), Vec::new());
    for package in ["kleened", "klee", "tests"] {
        read_below(&root.join(package), &root, &mut sources);
    }
    let found = breaches(&sources);
    assert!(sources.len() > 20 && found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_client_depends_on_the_wire_types_alone() {
    let client = dependencies("klee");
    assert!(client.contains("kleened-api"));
    assert!(!client.contains("kleened") && !client.contains("kleened-sys"), "{client:?}");
}

#[test]
fn the_wire_types_do_no_io() {
    let allowed = ["serde", "serde_json", "thiserror", "time"].map(str::to_owned);
    assert_eq!(dependencies("kleened/api"), BTreeSet::from(allowed));
}

#[test]
fn every_breach_is_found() {
    for (path, text) in [
        ("kleened/src/storage/dir.rs", "use crate::engine::Engine;"),
        ("kleened/src/storage/dir.rs", "use crate::{copy, engine::Engine};"),
        ("kleened/src/storage/dir.rs", "use super::super::engine;"),
        ("kleened/src/storage/mod.rs", "use super::engine;"),
        ("kleened/src/storage/dir.rs", "mod a { fn f() { super::super::super::http::serve() } }"),
        ("kleened/src/storage/dir.rs", "use crate::*;"),
        ("kleened/src/platform/linux/mod.rs", "fn f() -> crate::error::Error { todo() }"),
        ("kleened/src/platform/linux/mod.rs", "use crate::storage;"),
        ("kleened/src/platform/linux/mod.rs", "use tokio::net;"),
        ("kleened/src/engine/mod.rs", "fn f() { log!(\"{}\", crate::http::VERSION) }"),
        ("kleened/src/engine/volume.rs", "use axum::Json;"),
        ("kleened/src/engine/volume.rs", "fn f(x: hyper::Request) {}"),
        ("kleened/src/engine/volume.rs", "use {hyper::Request, std::io};"),
        ("kleened/src/http/volume.rs", "use crate::storage::Driver;"),
        ("kleened/src/http/volume.rs", "use kleened_sys::mount;"),
        ("kleened/src/new/mod.rs", ""),
        ("kleened/src/copy.rs", "fn f() { unsafe { g() } }"),
        ("kleened/api/src/lib.rs", "use tokio::net;"),
        ("tests/lib.rs", "unsafe impl Send for X {}"),
        ("klee/src/main.rs", "use kleened::engine;"),
        ("klee/src/main.rs", "fn f() { std::process::Command::new(\"zfs\"); }"),
        ("kleened/src/copy.rs", "#[cfg(test)] mod tests {} fn f() { Command::new(\"cp\"); }"),
    ] {
        assert_eq!(breaches(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
}

#[test]
fn what_is_allowed_is_not_refused() {
    for (path, text) in [
        ("kleened/src/main.rs", "use kleened::{http, engine, storage};"),
        ("kleened/src/http/volume.rs", "use crate::engine::Engine; use axum::Json;"),
        ("kleened/src/engine/volume.rs", "use crate::storage; use super::Engine;"),
        (
            "kleened/src/storage/dir.rs",
            "//! What `crate::engine` wants.\nuse crate::copy; use super::Driver;",
        ),
        (
            "kleened/src/storage/dir.rs",
            "const X: &str = \"crate::engine unsafe\"; use kleened_sys::fs;",
        ),
        (
            "kleened/src/storage/dir.rs",
            "#[cfg(test)] mod tests { use super::*; fn f() { Command::new(\"cp\"); } }",
        ),
        ("kleened/src/platform/linux.rs", "fn f() { Command::new(exe) }"),
        ("kleened/sys/src/lib.rs", "fn f() { unsafe { g() } }"),
        ("tests/end_to_end.rs", "fn f() { Command::new(\"rsync\"); }"),
    ] {
        assert_eq!(breaches(&[Source::new(path, text)]), Vec::<String>::new(), "{path}: {text}");
    }
}
