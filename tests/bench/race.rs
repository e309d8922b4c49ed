//! Two or more ways to do the same, timed in turns.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// One way to do it: its name, and what it does in a round.
pub(crate) struct Side<'s> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut(usize) -> Took + 's>,
}

/// What a round took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    time: Duration,
    /// The processors' time, where the work was done by this process or by one that it waited for.
    processor: Option<Duration>,
}

impl From<Duration> for Took {
    fn from(time: Duration) -> Self {
        Self { time, processor: None }
    }
}

impl<'s> Side<'s> {
    /// `run` gets the round's number and returns how long it took: what it does besides is not counted.
    pub(crate) fn new<T: Into<Took>>(name: &str, mut run: impl FnMut(usize) -> T + 's) -> Self {
        Self { name: name.to_owned(), run: Box::new(move |round| run(round).into()) }
    }
}

/// How long a call took.
pub(crate) fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

/// How long a call took, and how much of the processors' time.
pub(crate) fn timed_with_processor(call: impl FnOnce()) -> Took {
    let used = || -> Duration {
        [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
            .map(|who| getrusage(who).unwrap())
            .iter()
            .flat_map(|usage| [usage.user_time(), usage.system_time()])
            .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
            .sum()
    };
    let before = used();
    let time = timed(call);
    Took { time, processor: Some(used() - before) }
}

/// Runs every side once in each round, each round beginning with another one, and prints the medians
/// and how many times as long as the first side the others took. The first round is not counted.
pub(crate) fn race(title: &str, rounds: usize, mut sides: Vec<Side<'_>>) {
    let mut took: Vec<Vec<Took>> = vec![Vec::new(); sides.len()];
    for round in 0..=rounds {
        for turn in 0..sides.len() {
            let side = (turn + round) % sides.len();
            let this = (sides[side].run)(round);
            if round > 0 {
                took[side].push(this);
            }
        }
    }
    println!("{title}");
    let mut first = None;
    for (side, took) in sides.iter().zip(&took) {
        let mut times: Vec<_> = took.iter().map(|took| took.time).collect();
        let mut processor: Vec<_> = took.iter().filter_map(|took| took.processor).collect();
        times.sort();
        processor.sort();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let median = millis(times[times.len() / 2]);
        let ratio = median / *first.get_or_insert(median);
        let (least, most) = (millis(times[0]), millis(times[times.len() - 1]));
        print!("    {:<24} {median:>9.1} ms  {ratio:>6.2}×", side.name);
        print!("   ({least:.1} to {most:.1})");
        if let Some(&median) = processor.get(processor.len() / 2) {
            print!("   processor {:.1} ms", millis(median));
        }
        println!();
    }
}
