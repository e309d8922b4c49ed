//! Transaction groups: what a pool writes at once. What properties say of space changes with them alone.

use std::fs;
use std::io;

/// The latest transaction groups of a pool, as the kernel tells of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups(Vec<Group>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    mark: Mark,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It takes changes.
    Open,
    /// It is being written, or about to be.
    Writing,
    /// It is written, and that was nothing.
    Empty,
    /// It is written.
    Written,
}

/// A group that took changes when nothing older was still to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    number: u64,
    /// When it began, since the host did: after a rewind of the pool the number comes again.
    born: u64,
}

impl Groups {
    /// Those of the pool with that name.
    ///
    /// # Errors
    ///
    /// What reading `/proc/spl/kstat/zfs/POOL/txgs` says; on FreeBSD it is never there.
    pub fn of(pool: &str) -> io::Result<Self> {
        Ok(Self::read(&fs::read_to_string(format!("/proc/spl/kstat/zfs/{pool}/txgs"))?))
    }

    /// Reads a table: its columns are the number, when it began, the state, bytes that were changed, read and
    /// written, and others.
    fn read(table: &str) -> Self {
        let group = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let mut number = || fields.next()?.parse::<u64>().ok();
            let mark = Mark { number: number()?, born: number()? };
            let state = fields.next()?;
            let mut number = || fields.next()?.parse::<u64>().ok();
            let (changed, _, written) = (number()?, number()?, number()?);
            let state = match state {
                "O" => State::Open,
                "C" if changed == 0 && written == 0 => State::Empty,
                "C" => State::Written,
                _ => State::Writing,
            };
            Some(Group { mark, state })
        };
        // Above the columns' names there is a line of numbers, whose third is no state.
        Self(table.lines().skip(2).filter_map(group).collect())
    }

    /// The group that takes changes, where all older ones are written: what is read from now on holds until
    /// this one is.
    #[must_use]
    pub fn settled(&self) -> Option<Mark> {
        let (open, older) = self.0.split_last()?;
        let written = |group: &Group| matches!(group.state, State::Empty | State::Written);
        (open.state == State::Open && older.iter().all(written)).then_some(open.mark)
    }

    /// Whether nothing was written, nor is being, since the mark. False where that is too long ago to tell.
    #[must_use]
    pub fn quiet_since(&self, mark: Mark) -> bool {
        let since = self.0.iter().skip_while(|group| group.mark != mark);
        let (mut next, mut open) = (mark.number, false);
        for group in since {
            if group.mark.number != next || open {
                return false;
            }
            match group.state {
                State::Empty => next += 1,
                State::Open => open = true,
                State::Writing | State::Written => return false,
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel shows them: `NUMBER STATE WRITTEN` of each.
    fn groups(lines: &[(u64, &str, u64)]) -> Groups {
        let line = |(number, state, written): &(u64, &str, u64)| {
            format!("{number}  {}  {state}  0  0  {written}  0  9  5  6  7  8\n", number * 10)
        };
        let head = "24 0 0x01 100 11200 5017 106628\ntxg birth state ndirty nread nwritten reads\n";
        Groups::read(&format!("{head}{}", lines.iter().map(line).collect::<String>()))
    }

    #[test]
    fn what_is_written_ends_the_quiet() {
        let before = groups(&[(7, "C", 4096), (8, "C", 0), (9, "O", 0)]);
        let mark = before.settled().unwrap();
        assert!(before.quiet_since(mark));
        for (quiet, later) in [
            (true, &[(8, "C", 0), (9, "C", 0), (10, "O", 0)][..]),
            (true, &[(9, "C", 0), (10, "C", 0), (11, "O", 0)]),
            (false, &[(9, "C", 512), (10, "O", 0)]),
            (false, &[(9, "C", 0), (10, "C", 512), (11, "O", 0)]),
            (false, &[(9, "C", 0), (10, "S", 0), (11, "O", 0)]),
            (false, &[(9, "Q", 0), (10, "O", 0)]),
            // There is no telling.
            (false, &[(10, "C", 0), (11, "O", 0)]),
            (false, &[(9, "C", 0), (11, "O", 0)]),
            (false, &[(9, "C", 0)]),
            (false, &[]),
        ] {
            assert_eq!(groups(later).quiet_since(mark), quiet, "{later:?}");
        }
        assert!(!before.quiet_since(Mark { born: 91, ..mark }), "another group of that number");
    }

    #[test]
    fn nothing_is_settled_while_something_is_written() {
        for (settled, table) in [
            (true, &[(9, "O", 0)][..]),
            (true, &[(8, "C", 512), (9, "O", 0)]),
            (false, &[(8, "S", 0), (9, "O", 0)]),
            (false, &[(8, "W", 0), (9, "O", 0)]),
            (false, &[(8, "C", 0)]),
            (false, &[]),
        ] {
            assert_eq!(groups(table).settled().is_some(), settled, "{table:?}");
        }
        let dirty = Groups::read("1\n2\n8 80 C 512 0 0\n9 90 O 0 0 0\n");
        assert!(!dirty.quiet_since(Mark { number: 8, born: 80 }));
    }
}
