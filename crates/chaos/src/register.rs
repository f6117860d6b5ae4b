//! One block as a register: which histories of writes and reads are right.
//!
//! Every write of a block has a value of its own, so a read names the write it saw. A history is
//! right if each operation can be given one moment, not before it began and not after it ended,
//! such that every read sees the latest write. What ends a write:
//!
//! | outcome | its moment lies |
//! |---|---|
//! | acknowledged | before the acknowledgement |
//! | refused | nowhere: the target said that it was not done |
//! | unknown, path given up at T | before T + [`GHOST_LIMIT`], or nowhere |
//! | still under way | anywhere after it began, or nowhere |
//!
//! Method: Gibbons and Korach, *Testing Shared Memories* (1997), section 4. All operations of one
//! value form its *zone*: from the earliest end to the latest beginning of any of them. If the end
//! comes first, the register held the value all that time (a *forward* zone); else the value needs
//! one moment in between (a *backward* zone). The history is right if and only if no two forward
//! zones overlap and none contains a backward one. Intervals that are measured too wide never make
//! a right history look wrong.

/// Microseconds since the run began.
pub(crate) type Moment = u64;

/// How long after its path was given up a write of unknown outcome may still take effect.
pub(crate) const GHOST_LIMIT: Moment = 1_000_000;

/// What a block holds before it is written: zeroes.
pub(crate) const NEVER_WRITTEN: u64 = 0;

/// What the writer knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    UnderWay,
    Acknowledged(Moment),
    Refused(Moment),
    GivenUp(Moment),
}

/// What is wrong with a history. Values are named by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    /// A read saw a value that nobody had begun to write here.
    FromNowhere { value: u64 },
    /// A read saw a write that had been answered with "not done".
    RefusedTookEffect { value: u64 },
    /// A value was read although one that had replaced it long ago was checked and retired.
    Retired { value: u64 },
    /// The register would have had to hold both at once.
    Together { older: u64, newer: u64 },
    /// `inner` needs a moment at which the register held `outer`.
    Between { inner: u64, outer: u64 },
}

/// All that was done with one value.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) number: u64,
    pub(crate) began: Moment,
    pub(crate) outcome: Outcome,
    /// Who wrote it, in the caller's terms.
    pub(crate) writer: u32,
    pub(crate) first_read: Option<Moment>,
    /// The latest beginning of a read that saw it, and who read.
    pub(crate) last_read: Option<(Moment, u32)>,
}

/// See the module's header: earliest end and latest beginning.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    end: Moment,
    beginning: Moment,
}

impl Value {
    /// `None` if the value may never have been there.
    fn zone(&self) -> Option<Zone> {
        let end_of_write = match self.outcome {
            Outcome::Acknowledged(at) => Some(at),
            Outcome::GivenUp(at) => self.first_read.map(|_| at.saturating_add(GHOST_LIMIT)),
            Outcome::UnderWay => self.first_read.map(|_| Moment::MAX),
            // Objected to elsewhere if it was read.
            Outcome::Refused(_) => None,
        }?;
        let end = self.first_read.unwrap_or(Moment::MAX).min(end_of_write);
        let beginning = self
            .last_read
            .map_or(self.began, |(at, _)| at.max(self.began));
        Some(Zone {
            value: self.number,
            end,
            beginning,
        })
    }

    /// When nothing more can happen to its write; `None` before.
    fn settled(&self) -> Option<Moment> {
        match self.outcome {
            Outcome::UnderWay | Outcome::Refused(_) => None,
            Outcome::Acknowledged(at) => Some(at),
            Outcome::GivenUp(at) => Some(at.saturating_add(GHOST_LIMIT)),
        }
    }
}

/// The history of one block.
#[derive(Debug)]
pub(crate) struct Register {
    values: Vec<Value>,
    /// Numbers of values that are over and done with, ascending.
    retired: Vec<u64>,
    /// Whether anything has happened since the last check.
    pub(crate) is_changed: bool,
}

impl Register {
    pub(crate) fn new() -> Self {
        let nothing = Value {
            number: NEVER_WRITTEN,
            began: 0,
            outcome: Outcome::Acknowledged(0),
            writer: 0,
            first_read: None,
            last_read: None,
        };
        Self {
            values: vec![nothing],
            retired: Vec::new(),
            is_changed: false,
        }
    }

    pub(crate) fn value(&self, number: u64) -> Option<&Value> {
        self.values
            .iter()
            .rev()
            .find(|value| value.number == number)
    }

    /// Whether a write was ever begun.
    pub(crate) fn is_written(&self) -> bool {
        self.values.len() + self.retired.len() > 1
    }

    pub(crate) fn begin_write(&mut self, number: u64, began: Moment, writer: u32) {
        self.values.push(Value {
            number,
            began,
            outcome: Outcome::UnderWay,
            writer,
            first_read: None,
            last_read: None,
        });
        self.is_changed = true;
    }

    /// Returns an objection if the write was refused and has been read already.
    pub(crate) fn end_write(&mut self, number: u64, outcome: Outcome) -> Option<Objection> {
        let mut values = self.values.iter_mut().rev();
        let value = values.find(|value| value.number == number)?;
        value.outcome = outcome;
        self.is_changed = true;
        let is_refused = matches!(outcome, Outcome::Refused(_));
        (is_refused && value.first_read.is_some())
            .then_some(Objection::RefusedTookEffect { value: number })
    }

    /// Notes what a read saw. Only what needs no other value is judged here.
    pub(crate) fn read(
        &mut self,
        number: u64,
        began: Moment,
        ended: Moment,
        reader: u32,
    ) -> Option<Objection> {
        self.is_changed = true;
        let mut values = self.values.iter_mut().rev();
        let Some(value) = values.find(|value| value.number == number) else {
            let objection = match self.retired.binary_search(&number) {
                Ok(_) => Objection::Retired { value: number },
                Err(_) => Objection::FromNowhere { value: number },
            };
            return Some(objection);
        };
        value.first_read = Some(value.first_read.map_or(ended, |first| first.min(ended)));
        if value.last_read.is_none_or(|(last, _)| last < began) {
            value.last_read = Some((began, reader));
        }
        match value.outcome {
            Outcome::Refused(_) => Some(Objection::RefusedTookEffect { value: number }),
            _ if ended < value.began => Some(Objection::FromNowhere { value: number }),
            Outcome::UnderWay | Outcome::Acknowledged(_) | Outcome::GivenUp(_) => None,
        }
    }

    /// Judges the whole history; at most one objection for each value that is out of place.
    pub(crate) fn check(&self) -> Vec<Objection> {
        let mut zones: Vec<Zone> = self.values.iter().filter_map(Value::zone).collect();
        zones.sort_by_key(|zone| zone.end);
        let (forward, backward): (Vec<Zone>, Vec<Zone>) =
            zones.iter().partition(|zone| zone.end < zone.beginning);
        let mut found = Vec::new();
        // The forward zone that reaches furthest of those that began earlier.
        let mut furthest: Option<Zone> = None;
        for zone in &forward {
            if let Some(before) = furthest.filter(|before| zone.end < before.beginning) {
                found.push(Objection::Together {
                    older: before.value,
                    newer: zone.value,
                });
            }
            if furthest.is_none_or(|before| before.beginning < zone.beginning) {
                furthest = Some(*zone);
            }
        }
        for inner in &backward {
            // Forward zones that overlap have been objected to; of the others, one can contain it.
            let at = forward.partition_point(|outer| outer.end < inner.beginning);
            let outer = at.checked_sub(1).and_then(|at| forward.get(at));
            if let Some(outer) = outer.filter(|outer| inner.end < outer.beginning) {
                found.push(Objection::Between {
                    inner: inner.value,
                    outer: outer.value,
                });
            }
        }
        found
    }

    /// Forgets what cannot matter any more, as judged at `horizon`: every operation of a value
    /// that is dropped ended before, and another value was there after it. Call after a check.
    pub(crate) fn retire(&mut self, horizon: Moment) {
        // The latest beginning of an operation, with a settled effect, that ended by the horizon.
        let effective = self.values.iter().filter(|value| {
            let read = value.first_read.is_some_and(|end| end < horizon);
            let written = matches!(value.outcome, Outcome::Acknowledged(at) if at < horizon);
            value.settled().is_some_and(|at| at < horizon) && (read || written)
        });
        let newest = effective.map(|value| value.began).max().unwrap_or(0);
        let is_over = |value: &Value| {
            value.settled().is_some_and(|at| at < newest)
                && value.last_read.is_none_or(|(at, _)| at < newest)
        };
        let (retired, kept): (Vec<Value>, _) = std::mem::take(&mut self.values)
            .into_iter()
            .partition(is_over);
        self.values = kept;
        self.retired
            .extend(retired.iter().map(|value| value.number));
        self.retired.sort_unstable();
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
