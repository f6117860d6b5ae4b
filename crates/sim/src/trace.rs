//! What happened in a run: always as a rolling hash, on demand as text.
//!
//! Promise: every scheduled event enters the hash with its virtual time, so two runs with equal
//! hashes took the same steps in the same order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

use xxhash_rust::xxh3::xxh3_64;

/// What kind of step an event is. The number enters the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    /// A task was polled.
    Poll = 1,
    /// A process came to life, died, paused or resumed.
    Process = 2,
    /// A frame was sent, delivered or lost.
    Frame = 3,
    /// A link came up or broke.
    Link = 4,
    /// A disk operation ended.
    Disk = 5,
    /// A fault was injected or healed.
    Fault = 6,
    /// An operation of a workload began or ended.
    Operation = 7,
    /// A scenario's own remark.
    Note = 8,
}

/// Where the text of the events goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TraceText {
    /// Nowhere: only the hash.
    #[default]
    Off,
    /// The last so many events are kept for the report of a failure. Polls are left out.
    Ring(usize),
    /// Every event is written to standard error as it happens. Polls are left out.
    StandardError,
}

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    text: TraceText,
    ring: RefCell<VecDeque<String>>,
}

impl Trace {
    /// An empty trace.
    pub fn new(text: TraceText) -> Self {
        Self {
            hash: Cell::new(0x486f_6c64_6661_7374),
            events: Cell::new(0),
            text,
            ring: RefCell::default(),
        }
    }

    /// Mixes an event into the hash. `subject` says who, `detail` what.
    pub fn record(&self, now_ns: u64, step: Step, subject: u64, detail: u64) {
        self.events.set(self.events.get() + 1);
        let mut hash = self.hash.get();
        for word in [now_ns ^ ((step as u64) << 56), subject, detail] {
            // The folded multiply of wyhash: two cycles, and every bit of the input matters.
            let product = u128::from(hash ^ word) * 0xa076_1d64_78bd_642f_u128;
            hash = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(32);
        }
        self.hash.set(hash);
    }

    /// Mixes an event into the hash and, if the text is wanted, says it in words.
    pub fn event(
        &self,
        now_ns: u64,
        step: Step,
        subject: u64,
        detail: u64,
        words: impl FnOnce() -> String,
    ) {
        self.record(now_ns, step, subject, detail);
        if self.wants_text() {
            self.write(line(now_ns, step, &words()));
        }
    }

    /// Adds a line of text that does not enter the hash.
    pub fn remark(&self, now_ns: u64, words: &str) {
        if self.wants_text() {
            self.write(line(now_ns, Step::Note, words));
        }
    }

    /// Whether `words` of [`Trace::event`] are used at all.
    pub fn wants_text(&self) -> bool {
        self.text != TraceText::Off
    }

    /// The hash over everything so far.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// How many events so far.
    pub fn events(&self) -> u64 {
        self.events.get()
    }

    /// The kept lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.ring.borrow().iter().cloned().collect()
    }
}

/// A number for a text, to be used as `subject` or `detail`.
pub fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Virtual time as seconds with nanoseconds, for humans.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        write!(formatter, "{seconds}.{rest:09}")
    }
}

impl Trace {
    fn write(&self, line: String) {
        match self.text {
            TraceText::Off => {}
            TraceText::Ring(capacity) => {
                let mut ring = self.ring.borrow_mut();
                if ring.len() >= capacity {
                    ring.pop_front();
                }
                ring.push_back(line);
            }
            TraceText::StandardError => {
                // A closed standard error must not change the run.
                let _ = writeln!(std::io::stderr().lock(), "{line}");
            }
        }
    }
}

fn line(now_ns: u64, step: Step, words: &str) -> String {
    format!("{:>16} {step:<9?} {words}", Timestamp(now_ns).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(events: &[(u64, u64, u64)]) -> u64 {
        let trace = Trace::new(TraceText::Off);
        for (now_ns, subject, detail) in events {
            trace.record(*now_ns, Step::Frame, *subject, *detail);
        }
        trace.hash()
    }

    #[test]
    fn the_hash_sees_time_order_and_content() {
        let base = hash_of(&[(1, 2, 3), (4, 5, 6)]);
        assert_eq!(base, hash_of(&[(1, 2, 3), (4, 5, 6)]));
        for other in [
            [(4, 5, 6), (1, 2, 3)],
            [(1, 2, 3), (4, 5, 7)],
            [(1, 2, 3), (3, 5, 6)],
        ] {
            assert_ne!(base, hash_of(&other));
        }
    }

    #[test]
    fn the_ring_keeps_the_newest_lines() {
        let trace = Trace::new(TraceText::Ring(2));
        for number in 0..3_u64 {
            trace.event(number, Step::Note, 0, 0, || format!("event {number}"));
        }
        let lines = trace.lines();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].ends_with("event 1") && lines[1].ends_with("event 2"),
            "{lines:?}"
        );
    }
}
