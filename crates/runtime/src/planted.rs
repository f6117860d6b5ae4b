//! Planted bugs: proof that the simulator's oracles see what they are there for.
//!
//! Each is a switch in the code that it breaks, compiled in only with the feature `planted` and
//! turned on by the simulator for one run at a time. Without the feature [`is_active`] is a
//! constant `false` and nothing of them is left in the binary.

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A copy acknowledges a record before it is journaled.
    AcknowledgeBeforeJournal,
    /// A copy answers a fence without having fenced: it goes on taking an earlier owner's
    /// records, and waits for no lease.
    SkipFence,
    /// A copy answers a fence without waiting for the leases it granted.
    SkipLeaseWait,
    /// An owner serves reads without a live lease.
    ReadAfterLease,
    /// An owner serves the newest record, stable or not.
    ReadUnstable,
    /// An owner answers a write when the first copy has it.
    AcknowledgeFirstCopy,
    /// A takeover uses copies that missed writes: those out of the in-sync set, and those that
    /// may have lost records to damage.
    TrustIncompleteCopy,
    /// A takeover keeps only what its copies know to be stable: acknowledged records whose
    /// stability was not announced yet are dropped.
    TakeStableOnly,
    /// Recovery treats a damaged record as if it had never been written.
    DamagedIsAbsent,
    /// A copied block replaces a newer one.
    ResyncOverNewer,
    /// A joining copy claims to be complete up to its newest record.
    BaseTooHigh,
    /// A joining copy keeps records that may belong to a history that was given up.
    KeepDivergentTail,
    /// A copy is promoted before the difference was copied.
    PromoteEarly,
    /// A takeover forgets which operations it has seen, so that a retry runs twice.
    ForgetOperations,
    /// Records lost on the way are never sent again.
    NeverRepeat,
    /// A copy takes all that it has journaled for stable: it destages, and keeps, records that
    /// a takeover may drop.
    DestageUnstable,
    /// The journal is freed before destaged blocks are synced.
    SkipHomeSync,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::AcknowledgeBeforeJournal,
        Self::SkipFence,
        Self::SkipLeaseWait,
        Self::ReadAfterLease,
        Self::ReadUnstable,
        Self::AcknowledgeFirstCopy,
        Self::TrustIncompleteCopy,
        Self::TakeStableOnly,
        Self::DamagedIsAbsent,
        Self::ResyncOverNewer,
        Self::BaseTooHigh,
        Self::KeepDivergentTail,
        Self::PromoteEarly,
        Self::ForgetOperations,
        Self::NeverRepeat,
        Self::DestageUnstable,
        Self::SkipHomeSync,
    ];
}

#[cfg(feature = "planted")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Turns one bug on, or all off, on this thread.
    pub fn activate(bug: Option<Bug>) {
        ACTIVE.set(bug);
    }

    /// Whether the bug is on.
    pub fn is_active(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub use switch::{activate, is_active};

/// Whether the bug is on: never, in a build without planted bugs.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is_active(_bug: Bug) -> bool {
    false
}
