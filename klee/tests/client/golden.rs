//! Runs of `klee` as transcripts: the command, what it printed, what it asked the daemon. The
//! expected ones are in `tests/golden`; `KLEE_GOLDEN=write` writes them anew.

use std::fmt::Write as _;
use std::fs;

use crate::daemon::settled;
use crate::server::{Run, Server, run, source};

/// Several runs.
pub(crate) struct Transcript {
    name: &'static str,
    text: String,
}

impl Transcript {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, text: String::new() }
    }

    /// Runs `klee`, and again with the words of each line where there are several.
    pub(crate) fn klee(&mut self, server: &Server, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.with_input(server, &words(line), "");
        }
    }

    pub(crate) fn with_input(&mut self, server: &Server, args: &[String], input: &str) {
        let done = run(&mut server.klee(args), input.as_bytes());
        self.add(server, args, input, &done);
    }

    fn add(&mut self, server: &Server, args: &[String], input: &str, done: &Run) {
        let mut text = String::new();
        let quoted: Vec<_> = args.iter().map(|arg| quoted(arg)).collect();
        write!(text, "$ klee {}", quoted.join(" ")).unwrap();
        if !input.is_empty() {
            write!(text, " <<< {}", quoted_always(input)).unwrap();
        }
        writeln!(text, "    [{}]", done.status).unwrap();
        for request in server.requests() {
            write!(text, "> {} {}", request.method, request.path).unwrap();
            let body = String::from_utf8_lossy(&request.body);
            writeln!(text, "{}{body}", if body.is_empty() { "" } else { " " }).unwrap();
        }
        for (mark, output) in [("|", &done.stdout), ("!", &done.stderr)] {
            for line in output.lines() {
                // A blank at the end of a line would not survive every editor.
                writeln!(text, "{mark} {line}{}", if line.ends_with(' ') { "$" } else { "" })
                    .unwrap();
            }
        }
        text.push('\n');
        self.text.push_str(&settled(&text).replace(server.socket().to_str().unwrap(), "SOCKET"));
    }

    /// Compares with the expected transcript.
    pub(crate) fn compare(self) {
        let path = source().join("klee/tests/golden").join(self.name);
        if std::env::var_os("KLEE_GOLDEN").is_some_and(|wish| wish == "write") {
            fs::write(&path, &self.text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        let differs = self.text.lines().zip(expected.lines()).position(|(a, b)| a != b);
        assert!(
            self.text == expected,
            "{} differs from line {}:\n{}",
            path.display(),
            differs.map_or("the end".into(), |line| (line + 1).to_string()),
            self.text
        );
    }
}

/// The words of a command line, in which only single quotes are special.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('\'').enumerate() {
        if n % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { quoted_always(word) }
}

fn quoted_always(word: &str) -> String {
    format!("'{}'", word.escape_default())
}
