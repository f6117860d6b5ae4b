//! What a run of I/O looked like: counts, latencies, gaps, and what the ledger found.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::histogram::Histogram;
use crate::ledger::Verdict;

/// Findings that are kept in full; the rest is only counted.
const EXAMPLES_MAX: usize = 16;

/// The time without any completion while at least one I/O was outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gap {
    /// Of the gap that goes on now; zero while nothing is outstanding.
    pub current: Duration,
    /// The longest so far, the current one included.
    pub longest: Duration,
    /// When the longest began, counted from the start of the measurement.
    pub longest_began: Duration,
}

/// Measures [`Gap`].
#[derive(Debug)]
pub(crate) struct GapMeter {
    started: Instant,
    outstanding: usize,
    since: Instant,
    longest: Duration,
    longest_began: Duration,
}

impl GapMeter {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            outstanding: 0,
            since: now,
            longest: Duration::ZERO,
            longest_began: Duration::ZERO,
        }
    }

    pub(crate) fn begin(&mut self, now: Instant) {
        if self.outstanding == 0 {
            self.since = now;
        }
        self.outstanding += 1;
    }

    /// An I/O ended. Only a completion ends the gap, a caller that stops waiting does not.
    pub(crate) fn end(&mut self, now: Instant, is_completed: bool) {
        self.outstanding -= 1;
        let gap = now - self.since;
        if gap > self.longest {
            self.longest = gap;
            self.longest_began = self.since - self.started;
        }
        if is_completed {
            self.since = now;
        }
    }

    pub(crate) fn read(&self, now: Instant) -> Gap {
        let current = if self.outstanding > 0 {
            now - self.since
        } else {
            Duration::ZERO
        };
        if current > self.longest {
            let longest_began = self.since - self.started;
            Gap {
                current,
                longest: current,
                longest_began,
            }
        } else {
            Gap {
                current,
                longest: self.longest,
                longest_began: self.longest_began,
            }
        }
    }
}

/// What reading blocks back showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Blocks whose acknowledged data is gone: they read as never written.
    pub lost: u64,
    /// Blocks that showed a version older than one acknowledged or seen before.
    pub stale: u64,
    /// Blocks with bytes that were never written there.
    pub corrupt: u64,
    /// The first of them: block number and verdict.
    pub examples: Vec<(u64, Verdict)>,
}

impl Findings {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.lost + self.stale + self.corrupt == 0
    }

    pub(crate) fn add(&mut self, block: u64, verdict: Verdict) {
        match verdict {
            Verdict::Good { .. } | Verdict::Unwritten => return,
            Verdict::Lost { .. } => self.lost += 1,
            Verdict::Stale { .. } => self.stale += 1,
            Verdict::Corrupt { .. } => self.corrupt += 1,
        }
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push((block, verdict));
        }
    }
}

/// A load's state at one moment.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Time since the load began.
    pub elapsed: Duration,
    /// Reads completed.
    pub reads: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Bytes that those reads brought.
    pub bytes_read: u64,
    /// Bytes that those writes carried.
    pub bytes_written: u64,
    /// I/Os that ended with an error.
    pub errors: u64,
    /// The latest such error.
    pub last_error: Option<Error>,
    /// From issue to completion, reads.
    pub read_latency: Histogram,
    /// From issue to acknowledgement, writes.
    pub write_latency: Histogram,
    /// Time without completions.
    pub gap: Gap,
    /// What the reads of this load showed.
    pub findings: Findings,
}

impl Statistics {
    pub(crate) fn new() -> Self {
        Self {
            elapsed: Duration::ZERO,
            reads: 0,
            writes: 0,
            bytes_read: 0,
            bytes_written: 0,
            errors: 0,
            last_error: None,
            read_latency: Histogram::default(),
            write_latency: Histogram::default(),
            gap: Gap::default(),
            findings: Findings::default(),
        }
    }

    /// Reads and writes completed.
    pub fn operations(&self) -> u64 {
        self.reads + self.writes
    }

    /// Operations a second, between `earlier` and this.
    pub fn operations_per_second_since(&self, earlier: &Self) -> f64 {
        let operations = self.operations() - earlier.operations();
        rate(operations, self.elapsed - earlier.elapsed)
    }

    /// Megabytes (10^6 bytes) a second, between `earlier` and this.
    pub fn megabytes_per_second_since(&self, earlier: &Self) -> f64 {
        let bytes = |statistics: &Self| statistics.bytes_read + statistics.bytes_written;
        rate(bytes(self) - bytes(earlier), self.elapsed - earlier.elapsed) / 1e6
    }

    /// Operations a second since the start.
    pub fn operations_per_second(&self) -> f64 {
        rate(self.operations(), self.elapsed)
    }

    /// Megabytes (10^6 bytes) a second since the start.
    pub fn megabytes_per_second(&self) -> f64 {
        rate(self.bytes_read + self.bytes_written, self.elapsed) / 1e6
    }
}

fn rate(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count_only_while_something_is_outstanding() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = GapMeter::new(start);
        meter.begin(at(100));
        meter.begin(at(110));
        meter.end(at(130), true);
        assert_eq!(meter.read(at(135)).current, Duration::from_millis(5));
        meter.end(at(190), true);
        let gap = meter.read(at(5000));
        assert_eq!(gap.current, Duration::ZERO);
        assert_eq!(gap.longest, Duration::from_millis(60));
        assert_eq!(gap.longest_began, Duration::from_millis(130));
    }

    #[test]
    fn a_gap_that_goes_on_is_already_the_longest() {
        let start = Instant::now();
        let mut meter = GapMeter::new(start);
        meter.begin(start);
        let gap = meter.read(start + Duration::from_secs(2));
        assert_eq!(
            (gap.current, gap.longest),
            (Duration::from_secs(2), Duration::from_secs(2))
        );
    }

    #[test]
    fn a_caller_that_stops_waiting_does_not_end_the_gap() {
        let start = Instant::now();
        let mut meter = GapMeter::new(start);
        meter.begin(start);
        meter.begin(start);
        meter.end(start + Duration::from_secs(1), false);
        assert_eq!(
            meter.read(start + Duration::from_secs(3)).longest,
            Duration::from_secs(3)
        );
    }
}
