//! The classes of faults, how often each really happened, and the schedule that fires them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub mod compound;
pub mod nemesis;

/// A class of faults. Counted where it takes effect, not where it is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum FaultClass {
    /// A frame was held back on purpose.
    Delay,
    /// A frame was lost on a live link.
    Loss,
    /// A frame was delivered twice.
    Duplication,
    /// A frame overtook an earlier one of its link.
    Reordering,
    /// Frames were stopped by a partition in one direction.
    OneWayPartition,
    /// Frames were stopped by a partition in both directions.
    FullPartition,
    /// A process was killed; its host lives on.
    Crash,
    /// A process was killed right before a chosen poll.
    CrashAtPoll,
    /// One host lost its power.
    PowerCut,
    /// All hosts lost their power at once.
    PowerCutOfAll,
    /// A write in flight at a crash arrived in part.
    TornWrite,
    /// A completed but unsynced page was lost by a power cut.
    LostUnsyncedWrite,
    /// Bits at rest were flipped.
    Corruption,
    /// An acknowledged write went to another place, or nowhere.
    MisplacedWrite,
    /// A page became unreadable.
    UnreadablePage,
    /// A page reads as it was before its last write.
    StaleRead,
    /// A sync was acknowledged and made nothing durable.
    LyingSync,
    /// A read, write or sync reported an error.
    DiskError,
    /// An allocation met a full disk.
    FullDisk,
    /// A discarded range reads as anything.
    DiscardedRange,
    /// A disk operation took many times as long.
    SlowDisk,
    /// A process stood still for less than the lease.
    ShortPause,
    /// A process stood still for longer than the lease.
    PausePastLease,
    /// A clock ran outside its everyday rate.
    ClockDrift,
}

impl FaultClass {
    /// Every class.
    pub const ALL: [Self; 24] = [
        Self::Delay,
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
        Self::OneWayPartition,
        Self::FullPartition,
        Self::Crash,
        Self::CrashAtPoll,
        Self::PowerCut,
        Self::PowerCutOfAll,
        Self::TornWrite,
        Self::LostUnsyncedWrite,
        Self::Corruption,
        Self::MisplacedWrite,
        Self::UnreadablePage,
        Self::StaleRead,
        Self::LyingSync,
        Self::DiskError,
        Self::FullDisk,
        Self::DiscardedRange,
        Self::SlowDisk,
        Self::ShortPause,
        Self::PausePastLease,
        Self::ClockDrift,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Duplication => "duplication",
            Self::Reordering => "reordering",
            Self::OneWayPartition => "one-way partition",
            Self::FullPartition => "full partition",
            Self::Crash => "crash",
            Self::CrashAtPoll => "crash at a chosen await",
            Self::PowerCut => "power cut",
            Self::PowerCutOfAll => "power cut of all",
            Self::TornWrite => "torn write",
            Self::LostUnsyncedWrite => "lost unsynced write",
            Self::Corruption => "corruption",
            Self::MisplacedWrite => "misplaced write",
            Self::UnreadablePage => "unreadable page",
            Self::StaleRead => "stale read",
            Self::LyingSync => "lying sync",
            Self::DiskError => "disk error",
            Self::FullDisk => "full disk",
            Self::DiscardedRange => "discarded range",
            Self::SlowDisk => "slow disk",
            Self::ShortPause => "short pause",
            Self::PausePastLease => "pause past the lease",
            Self::ClockDrift => "clock drift",
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How often each class fired in one run.
#[derive(Debug, Default)]
pub struct FaultCounts {
    counts: [Cell<u64>; FaultClass::ALL.len()],
}

impl FaultCounts {
    /// Counts one firing.
    pub fn fired(&self, class: FaultClass) {
        self.add(class, 1);
    }

    /// Counts several firings.
    pub fn add(&self, class: FaultClass, times: u64) {
        let count = &self.counts[class as usize];
        count.set(count.get() + times);
    }

    /// How often the class fired.
    pub fn get(&self, class: FaultClass) -> u64 {
        self.counts[class as usize].get()
    }

    /// All counts, zeroes included.
    pub fn snapshot(&self) -> BTreeMap<FaultClass, u64> {
        FaultClass::ALL
            .into_iter()
            .map(|class| (class, self.get(class)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_stands_at_its_own_place() {
        for (index, class) in FaultClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
    }
}
