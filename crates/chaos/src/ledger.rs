//! Everything that was written and read in a run, block by block, and what is wrong with it.
//!
//! Clients tell it when an operation begins and how it ended; the registers judge. An objection is
//! kept as a [`Violation`] with all that is known of the values in it, each once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use crate::content::{BLOCK_BYTES, Place, fill, value_of};
use crate::register::{Moment, NEVER_WRITTEN, Objection, Outcome, Register, Value};

/// Told at once; all that are kept are in the report.
const VIOLATIONS_TOLD: usize = 3;
/// Kept in full; the rest is only counted.
const VIOLATIONS_MAX: usize = 200;
/// Older than any operation that is still under way: clients give up sooner.
const RETIREMENT_AGE: Moment = 60_000_000;

/// Who did something: a client, and the portal that it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doer {
    pub(crate) client: u16,
    pub(crate) portal: u16,
}

impl Doer {
    fn packed(self) -> u32 {
        u32::from(self.client) << 16 | u32::from(self.portal)
    }

    fn unpacked(packed: u32) -> Self {
        Self {
            client: (packed >> 16) as u16,
            portal: packed as u16,
        }
    }
}

/// What kind of promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Breach {
    /// A write whose path was given up took effect later than allowed.
    Ghost,
    /// An acknowledged write is gone, or a read was stale.
    LostOrStale,
    /// Bytes that nobody wrote there.
    FromNowhere,
    /// A write that was answered with "not done" was done.
    RefusedTookEffect,
}

/// One broken promise.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Violation {
    pub(crate) breach: Breach,
    pub(crate) at_s: f64,
    pub(crate) volume: u32,
    pub(crate) block: u32,
    /// The values in it, with all that is known of them.
    pub(crate) what: String,
}

/// A write under way: its number and where it goes.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct WriteTicket {
    pub(crate) volume: u32,
    pub(crate) first: u32,
    pub(crate) blocks: u32,
    number: u64,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) writes_acknowledged: u64,
    pub(crate) writes_refused: u64,
    pub(crate) writes_given_up: u64,
    pub(crate) reads: u64,
    pub(crate) reads_without_answer: u64,
    pub(crate) blocks_written: u64,
    pub(crate) blocks_read: u64,
}

impl Counts {
    /// Commands that moved data.
    pub(crate) fn commands(&self) -> u64 {
        self.writes_acknowledged
            + self.writes_refused
            + self.writes_given_up
            + self.reads
            + self.reads_without_answer
    }
}

/// See the module's header.
pub(crate) struct Ledger {
    begun: Instant,
    run: u64,
    volumes: RefCell<Vec<Vec<Register>>>,
    next_number: Cell<u64>,
    counts: Cell<Counts>,
    violations: RefCell<Vec<Violation>>,
    violations_count: Cell<u64>,
    known: RefCell<BTreeSet<(u32, u32, u64, u64)>>,
}

impl Ledger {
    /// A memory for volumes of `blocks` blocks each.
    pub(crate) fn new(run: u64, volumes: usize, blocks: u32) -> Self {
        let volume = || (0..blocks).map(|_| Register::new()).collect();
        Self {
            begun: Instant::now(),
            run,
            volumes: RefCell::new((0..volumes).map(|_| volume()).collect()),
            next_number: Cell::new(NEVER_WRITTEN + 1),
            counts: Cell::default(),
            violations: RefCell::default(),
            violations_count: Cell::new(0),
            known: RefCell::default(),
        }
    }

    /// Time since the run began.
    pub(crate) fn now(&self) -> Moment {
        self.begun.elapsed().as_micros() as Moment
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.get()
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.violations.borrow().clone()
    }

    /// All, those that were not kept included.
    pub(crate) fn violations_count(&self) -> u64 {
        self.violations_count.get()
    }

    /// Begins a write; the bytes are for these blocks and no others.
    pub(crate) fn begin_write(
        &self,
        volume: u32,
        first: u32,
        blocks: u32,
        doer: Doer,
    ) -> (WriteTicket, Bytes) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let now = self.now();
        let mut data = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
        for block in first..first + blocks {
            fill(&mut data, self.run, Place { volume, block }, number);
            self.with(volume, block, |register| {
                register.begin_write(number, now, doer.packed());
            });
        }
        let ticket = WriteTicket {
            volume,
            first,
            blocks,
            number,
        };
        (ticket, data.into())
    }

    /// How a write ended.
    pub(crate) fn end_write(&self, ticket: WriteTicket, outcome: Outcome) {
        let mut counts = self.counts.get();
        match outcome {
            Outcome::Acknowledged(_) => {
                counts.writes_acknowledged += 1;
                counts.blocks_written += u64::from(ticket.blocks);
            }
            Outcome::Refused(_) => counts.writes_refused += 1,
            Outcome::GivenUp(_) => counts.writes_given_up += 1,
            Outcome::UnderWay => {}
        }
        self.counts.set(counts);
        for block in ticket.first..ticket.first + ticket.blocks {
            let objection = self.with(ticket.volume, block, |register| {
                register.end_write(ticket.number, outcome)
            });
            if let Some(objection) = objection {
                self.object(ticket.volume, block, &objection);
            }
        }
    }

    /// What a read brought that began at `began`.
    pub(crate) fn end_read(&self, volume: u32, first: u32, data: &[u8], began: Moment, doer: Doer) {
        let now = self.now();
        let mut counts = self.counts.get();
        counts.reads += 1;
        counts.blocks_read += (data.len() / BLOCK_BYTES) as u64;
        self.counts.set(counts);
        for (block, bytes) in (first..).zip(data.chunks(BLOCK_BYTES)) {
            match value_of(bytes, self.run, Place { volume, block }) {
                Ok(value) => {
                    let objection = self.with(volume, block, |register| {
                        register.read(value, began, now, doer.packed())
                    });
                    if let Some(objection) = objection {
                        self.object(volume, block, &objection);
                    }
                }
                Err(what) => {
                    let at = seconds(began);
                    let what = format!("read at {at:.3} by {}: {what}", name(doer));
                    self.note(Breach::FromNowhere, volume, block, what);
                }
            }
        }
    }

    /// A read that brought nothing.
    pub(crate) fn count_unanswered_read(&self) {
        let mut counts = self.counts.get();
        counts.reads_without_answer += 1;
        self.counts.set(counts);
    }

    /// Judges every block that has changed since the last time.
    pub(crate) fn check(&self) {
        let horizon = self.now().saturating_sub(RETIREMENT_AGE);
        let mut found = Vec::new();
        for (volume, registers) in (0..).zip(self.volumes.borrow_mut().iter_mut()) {
            for (block, register) in (0..).zip(registers.iter_mut()) {
                if !std::mem::take(&mut register.is_changed) {
                    continue;
                }
                let objections = register.check();
                // What is objected to is told with all that is known, so it has to be there still.
                let is_clean = objections.is_empty();
                let told = objections.into_iter();
                found.extend(told.map(|objection| (volume, block, objection)));
                if is_clean {
                    register.retire(horizon);
                }
            }
        }
        for (volume, block, objection) in found {
            self.object(volume, block, &objection);
        }
    }

    /// Blocks of a volume that were ever written.
    pub(crate) fn written(&self, volume: u32) -> Vec<u32> {
        let volumes = self.volumes.borrow();
        let registers = (0..).zip(volumes[volume as usize].iter());
        let written = registers.filter(|(_, register)| register.is_written());
        written.map(|(block, _)| block).collect()
    }

    fn with<T>(&self, volume: u32, block: u32, act: impl FnOnce(&mut Register) -> T) -> T {
        act(&mut self.volumes.borrow_mut()[volume as usize][block as usize])
    }

    fn object(&self, volume: u32, block: u32, objection: &Objection) {
        let (breach, values) = self.with(volume, block, |register| {
            let ghost = |number: u64| {
                let value = register.value(number);
                value.is_some_and(|value| matches!(value.outcome, Outcome::GivenUp(_)))
            };
            let order = |a: u64, b: u64| {
                if ghost(a) || ghost(b) {
                    Breach::Ghost
                } else {
                    Breach::LostOrStale
                }
            };
            match *objection {
                Objection::FromNowhere { value } => (Breach::FromNowhere, (value, value)),
                Objection::RefusedTookEffect { value } => {
                    (Breach::RefusedTookEffect, (value, value))
                }
                Objection::Retired { value } => (Breach::LostOrStale, (value, value)),
                Objection::Together { older, newer } => (order(older, newer), (older, newer)),
                Objection::Between { inner, outer } => (order(inner, outer), (inner, outer)),
            }
        });
        if !self
            .known
            .borrow_mut()
            .insert((volume, block, values.0, values.1))
        {
            return;
        }
        let mut what = format!("{objection:?}");
        self.with(volume, block, |register| {
            let others = if values.0 == values.1 {
                vec![values.0]
            } else {
                vec![values.0, values.1]
            };
            for number in others {
                let said = register.value(number).map_or_else(String::new, describe);
                let _ = write!(what, "; value {number}: {said}");
            }
        });
        self.note(breach, volume, block, what);
    }

    fn note(&self, breach: Breach, volume: u32, block: u32, what: String) {
        self.violations_count.set(self.violations_count.get() + 1);
        let at_s = seconds(self.now());
        if self.violations.borrow().len() < VIOLATIONS_TOLD {
            println!("{at_s:9.3}  VIOLATION {breach:?}: volume {volume} block {block}: {what}");
        }
        if self.violations.borrow().len() < VIOLATIONS_MAX {
            self.violations.borrow_mut().push(Violation {
                breach,
                at_s,
                volume,
                block,
                what,
            });
        }
    }
}

/// How long a span of moments is.
pub(crate) fn span(from: Moment, to: Moment) -> Duration {
    Duration::from_micros(to.saturating_sub(from))
}

pub(crate) fn seconds(at: Moment) -> f64 {
    at as f64 / 1e6
}

fn name(doer: Doer) -> String {
    format!("client {} at portal {}", doer.client, doer.portal + 1)
}

fn describe(value: &Value) -> String {
    let mut said = if value.number == NEVER_WRITTEN {
        "zeroes from the beginning".to_owned()
    } else {
        let (by, at) = (name(Doer::unpacked(value.writer)), seconds(value.began));
        match value.outcome {
            Outcome::UnderWay => format!("written by {by} from {at:.3}, under way"),
            Outcome::Acknowledged(end) => {
                format!(
                    "written by {by} from {at:.3}, acknowledged {:.3}",
                    seconds(end)
                )
            }
            Outcome::Refused(end) => {
                format!("written by {by} from {at:.3}, refused {:.3}", seconds(end))
            }
            Outcome::GivenUp(end) => {
                format!("written by {by} from {at:.3}, given up {:.3}", seconds(end))
            }
        }
    };
    match (value.first_read, value.last_read) {
        (Some(first), Some((last, reader))) => {
            let (by, first, last) = (name(Doer::unpacked(reader)), seconds(first), seconds(last));
            let _ = write!(
                said,
                ", first seen {first:.3}, last read from {last:.3} by {by}"
            );
        }
        _ => said.push_str(", never seen"),
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Doer = Doer {
        client: 3,
        portal: 1,
    };

    fn written(ledger: &Ledger, outcome: impl FnOnce(Moment) -> Outcome) -> Bytes {
        let (ticket, data) = ledger.begin_write(0, 4, 2, HOST);
        ledger.end_write(ticket, outcome(ledger.now()));
        data
    }

    #[test]
    fn blocks_that_read_as_they_were_written_are_right() {
        let ledger = Ledger::new(1, 1, 16);
        let data = written(&ledger, Outcome::Acknowledged);
        ledger.end_read(0, 4, &data, ledger.now(), HOST);
        ledger.end_read(0, 8, &[0; BLOCK_BYTES], ledger.now(), HOST);
        ledger.check();
        assert_eq!(ledger.violations_count(), 0);
        assert_eq!(ledger.written(0), [4, 5]);
        assert_eq!(ledger.counts().blocks_read, 3);
    }

    #[test]
    fn each_breach_is_told_once_and_by_its_name() {
        let ledger = Ledger::new(1, 1, 16);
        let data = written(&ledger, Outcome::Acknowledged);
        let zeroes = [0; BLOCK_BYTES];
        ledger.end_read(0, 4, &zeroes, ledger.now(), HOST);
        ledger.end_read(0, 9, &data[..BLOCK_BYTES], ledger.now(), HOST);
        let refused = written(&ledger, Outcome::Refused);
        ledger.end_read(0, 5, &refused[BLOCK_BYTES..], ledger.now(), HOST);
        ledger.check();
        ledger.end_read(0, 4, &zeroes, ledger.now(), HOST);
        ledger.check();
        let violations = ledger.violations();
        let breaches: Vec<Breach> = violations
            .iter()
            .map(|violation| violation.breach)
            .collect();
        let expected = [
            Breach::FromNowhere,
            Breach::RefusedTookEffect,
            Breach::LostOrStale,
        ];
        assert_eq!(breaches, expected, "{violations:#?}");
        assert!(
            violations[2].what.contains("client 3 at portal 2"),
            "{violations:#?}"
        );
    }

    #[test]
    fn a_write_that_lands_long_after_its_path_was_given_up_is_a_ghost() {
        let ledger = Ledger::new(1, 1, 16);
        let old = written(&ledger, |_| Outcome::GivenUp(0));
        let wait = Duration::from_micros(crate::register::GHOST_LIMIT);
        while ledger.begun.elapsed() < wait + Duration::from_millis(1) {
            std::thread::yield_now();
        }
        written(&ledger, Outcome::Acknowledged);
        ledger.end_read(0, 4, &old, ledger.now(), HOST);
        ledger.check();
        let violations = ledger.violations();
        assert_eq!(violations[0].breach, Breach::Ghost, "{violations:#?}");
    }
}
