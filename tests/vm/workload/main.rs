//! In the machine that `tests/vm/crash` kills: looks whether all that was acknowledged before the last kill
//! is there and nothing else, clears it away, and works on until the next.
//!
//! Usage: `run SEED ROUND [check]`. Round 0 makes the pool. What is begun and done is written, line by line,
//! to the port that outlives the machine; the lines of the round before are in `/payload/journal`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod client;
mod driver;
mod journal;
mod left;

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use journal::{Journal, Past, Rng};

const POOL: &str = "pool";

/// How many clients of the daemon work at once.
const CLIENTS: u64 = 3;

/// Somebody who works on names of their own, one operation after another.
trait Worker: Sync {
    /// All that they have made.
    type State: Clone + Default + Debug + PartialEq;

    /// An operation that succeeds in this state.
    fn choose(&self, state: &Self::State, rng: &mut Rng) -> String;

    /// What the operation makes of the state.
    fn apply(&self, state: &mut Self::State, operation: &str);

    /// What is there between the two steps of an operation that has two, each of them whole.
    fn halfway(&self, _before: &Self::State, _operation: &str) -> Option<Self::State> {
        None
    }

    /// Carries it out; afterwards it is not lost.
    fn carry_out(&self, operation: &str);

    /// What is there.
    fn look(&self) -> Self::State;

    /// What of two states can be compared.
    fn visible(&self, state: Self::State) -> Self::State {
        state
    }

    /// What is there is what was acknowledged, with, without or halfway through the operation that was under way.
    fn check(&self, past: &Past) {
        let mut before = Self::State::default();
        for operation in &past.done {
            self.apply(&mut before, operation);
        }
        let (mut halfway, mut after) = (None, before.clone());
        if let Some(operation) = &past.under_way {
            halfway = self.halfway(&before, operation).map(|state| self.visible(state));
            self.apply(&mut after, operation);
        }
        let (before, after) = (self.visible(before), self.visible(after));
        let found = self.look();
        assert!(
            found == before || found == after || halfway.is_some_and(|halfway| found == halfway),
            "during {:?}\nfound  {found:?}\nbefore {before:?}\nafter  {after:?}",
            past.under_way
        );
    }

    /// Works until the machine ends.
    fn work(&self, name: &str, journal: &Journal, mut rng: Rng) {
        let mut state = Self::State::default();
        loop {
            let operation = self.choose(&state, &mut rng);
            journal.write(&format!("{name} begin {operation}"));
            self.carry_out(&operation);
            journal.write(&format!("{name} done"));
            self.apply(&mut state, &operation);
        }
    }
}

/// Runs a program, which must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

fn main() {
    // A worker that fails takes the machine with it, instead of leaving the others at work.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        report(what);
        println!("{}", fs::read_to_string(client::LOG).unwrap_or_default());
        std::process::exit(1);
    }));
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [seed, round, rest @ ..] = arguments.as_slice() else {
        panic!("usage: run SEED ROUND [check]");
    };
    let (seed, round): (u64, u64) = (seed.parse().unwrap(), round.parse().unwrap());
    if round == 0 {
        run("zpool", &["create", "-f", "-m", "none", "-O", "compression=on", POOL, "/dev/vdc1"]);
        for root in [client::ROOT, driver::ROOT] {
            let mountpoint = format!("mountpoint={root}");
            run("zfs", &["create", "-o", &mountpoint, &format!("{POOL}{root}")]);
        }
    } else {
        run("zpool", &["import", "-f", "-d", "/dev/vdc1", POOL]);
    }
    let daemon = client::Daemon::start();
    let clients: Vec<_> = (0..CLIENTS).map(|n| client::Client::new(&format!("c{n}"))).collect();
    let storage = driver::Storage::open();
    if round == 0 {
        client::import();
    } else {
        let past = journal::read(Path::new("/payload/journal"));
        for client in &clients {
            client.check(&past.get(client.name()).cloned().unwrap_or_default());
        }
        storage.check(&past.get("driver").cloned().unwrap_or_default());
        left::nothing_else(client::datasets(), storage.datasets());
        client::clear();
        storage.clear();
        left::nothing_else(client::datasets(), storage.datasets());
        let (done, cut): (usize, usize) = past.values().fold((0, 0), |(done, cut), past| {
            (done + past.done.len(), cut + usize::from(past.under_way.is_some()))
        });
        println!("round {round}: {done} operations done and {cut} cut off, all as it should be");
    }
    if rest.is_empty() {
        let journal = Journal::open();
        thread::scope(|scope| {
            let rng = |worker: u64| Rng::new(seed ^ (round << 32) ^ (worker << 16));
            for (number, client) in (0..).zip(&clients) {
                let (journal, rng) = (&journal, rng(number));
                scope.spawn(move || client.work(client.name(), journal, rng));
            }
            storage.work("driver", &journal, rng(CLIENTS));
        });
    }
    daemon.stop();
    run("zpool", &["export", POOL]);
}
