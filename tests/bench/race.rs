//! Two or more ways to do the same, timed in turns.

use std::time::{Duration, Instant};

/// One way to do it: its name, and what it does in a round. What [`Round::timed`] is not called for is
/// not counted.
pub(crate) struct Side<'s> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut(usize) -> Duration + 's>,
}

impl<'s> Side<'s> {
    /// `run` gets the round's number and returns how long it took.
    pub(crate) fn new(name: &str, run: impl FnMut(usize) -> Duration + 's) -> Self {
        Self { name: name.to_owned(), run: Box::new(run) }
    }
}

/// How long a call took.
pub(crate) fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

/// Runs every side once in each round, each round beginning with another one, and prints the medians
/// and how many times as long as the first side the others took. The first round is not counted.
pub(crate) fn race(title: &str, rounds: usize, mut sides: Vec<Side<'_>>) {
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); sides.len()];
    for round in 0..=rounds {
        for turn in 0..sides.len() {
            let side = (turn + round) % sides.len();
            let took = (sides[side].run)(round);
            if round > 0 {
                times[side].push(took);
            }
        }
    }
    println!("{title}");
    let mut first = None;
    for (side, times) in sides.iter().zip(&mut times) {
        times.sort();
        let millis = |index: usize| times[index].as_secs_f64() * 1e3;
        let median = millis(times.len() / 2);
        let ratio = median / *first.get_or_insert(median);
        let (least, most) = (millis(0), millis(times.len() - 1));
        println!(
            "    {:<24} {median:>9.1} ms  {ratio:>5.2}×   ({least:.1} to {most:.1})",
            side.name
        );
    }
}
