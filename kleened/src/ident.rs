//! New ids and random names.

use kleened_api::Id;

const ADJECTIVES: &[&str] = &[
    "agile", "amber", "brave", "bright", "calm", "clever", "cool", "crisp", "daring", "eager",
    "early", "fair", "fierce", "fluent", "frosty", "gentle", "glad", "golden", "grand", "happy",
    "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "lucid", "mellow", "merry",
    "mighty", "modest", "nimble", "noble", "patient", "placid", "polite", "proud", "quick",
    "quiet", "rapid", "serene", "sharp", "silent", "steady", "sunny", "swift", "tender", "vivid",
    "wise",
];

const SURNAMES: &[&str] = &[
    "allman",
    "babbage",
    "bostic",
    "cerf",
    "chen",
    "codd",
    "cray",
    "curie",
    "darwin",
    "dijkstra",
    "engelbart",
    "euler",
    "fermi",
    "feynman",
    "floyd",
    "gauss",
    "germain",
    "goedel",
    "goldberg",
    "hamming",
    "hopper",
    "hypatia",
    "joy",
    "karels",
    "kernighan",
    "kirk",
    "knuth",
    "lamport",
    "leffler",
    "liskov",
    "lovelace",
    "mccarthy",
    "mckusick",
    "metcalfe",
    "moore",
    "naur",
    "newton",
    "noether",
    "pasteur",
    "perlman",
    "pike",
    "postel",
    "ritchie",
    "shannon",
    "sutherland",
    "tarjan",
    "thompson",
    "turing",
    "wirth",
    "wozniak",
];

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's generator does not fail once it is seeded; before that, ids from the clock are
    // better than none.
    if getrandom::fill(&mut bytes).is_err() {
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos().to_le_bytes();
        bytes.iter_mut().zip(now).for_each(|(byte, clock)| *byte = clock);
    }
    bytes
}

/// A new id.
pub(crate) fn new() -> Id {
    loop {
        let text: String = random::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
        // All decimal digits: one in 280.
        if let Ok(id) = text.parse() {
            return id;
        }
    }
}

/// A name such as `lucid_hopper`.
pub(crate) fn name() -> String {
    let [a, b, c, d] = random::<4>();
    let pick =
        |list: &[&'static str], number: u16| list.get(usize::from(number) % list.len()).copied();
    let adjective = pick(ADJECTIVES, u16::from_le_bytes([a, b])).unwrap_or_default();
    let surname = pick(SURNAMES, u16::from_le_bytes([c, d])).unwrap_or_default();
    format!("{adjective}_{surname}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_random_name_is_a_name() {
        for _ in 0..1000 {
            assert!(kleened_api::name::is_name(&super::name()));
            super::new();
        }
    }
}
