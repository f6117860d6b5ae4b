//! Planted bugs: proof that the oracles of the simulator and of the crash states see what they are
//! there for.
//!
//! Each is a switch in the code that it breaks, compiled in only with the feature `planted` and
//! turned on by the simulator for one run at a time. Without the feature [`is_active`] is a
//! constant `false` and nothing of them is left in the binary.

/// What is to find a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// Seeds of whole clusters.
    Cluster,
    /// Seeds of clusters whose links are cut.
    LinkCuts,
    /// Seeds of one store under crashes.
    Store,
    /// Crash states, and lies of the device, of short sequences of operations.
    CrashStates,
    /// Nothing within its bound: a blind spot, kept for whoever makes the simulator see it.
    Nobody,
}

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
    /// An edit of the home's manifest counts before it is synced.
    CountUnsyncedEdit,
    /// The journal is freed before the home has what it held.
    FreeJournalEarly,
    /// Blocks reach the home before the stable point that allows it is durable.
    DestageBeforeStable,
    /// A collection moves every block of a segment, replaced or not.
    MoveReplacedBlocks,
    /// A segment is filled again before it is durable that nothing refers to it.
    ReuseSegmentEarly,
    /// A segment is discarded before it is durable that nothing refers to it.
    DiscardEarly,
    /// Places of blocks have pages of 32 bits.
    TruncatePages,
    /// Recovery follows whatever batch lies there, of an earlier lap too.
    AcceptStaleLap,
    /// Destaging begins before the journal is read in, and takes what is missing for lost.
    DestageUnread,
    /// The newest delta of the block map is not loaded.
    ForgetDelta,
    /// A merge leaves zeroes out, so that what they covered is there again.
    DropZeroFacts,
    /// A snapshot of the durable facts leaves out what changed while it was taken.
    ForgetCarriedFacts,
    /// A snapshot of the durable facts leaves out what was removed.
    SnapshotForgetsRemovals,
    /// Bytes that do not match their checksum are read all the same.
    TrustBytes,
    /// Room promised to blocks in the journal is given back before they are at home.
    ForgetPromisedRoom,
    /// A verification compares nothing.
    VerifyNothing,
    /// A slice that may have lost records is read all the same.
    ServeSuspect,
    /// The journal does not say which edit of the home it relies on.
    ForgetHomeEdit,
    /// A portal vouches for a path as held at any time, whatever it has heard of the host.
    AssumeHeld,
    /// An owner orders changes however old the evidence for their path is.
    SkipPathCheck,
    /// A read does not wait for a change under way whose host may have given its path up.
    HideOldChanges,
    /// A message to a node whose own link is down is not passed on by others.
    NeverRelay,
    /// A message that is passed on counts as one of the node that passed it on.
    RelayInOwnName,
    /// A node that no link leads to counts as running for as long as rumour has it so.
    TrustRumour,
    /// An owner that hears no answers is granted leases for as long as its requests arrive.
    GrantToDeaf,
    /// A new node's config log stays blank until a leader has spoken to it.
    ForgetEmptyLog,
    /// No volume moves to a node that bears less.
    NeverRebalance,
    /// Where nodes say that they are now is not heard before the config group has agreed on it.
    IgnoreAnnouncedAddress,
    /// A node that restarts does not wait for the leases that it may have granted before.
    ForgetGrantsAtRestart,
    /// An owner counts a lease from when it heard of it, and not from when it asked.
    LeaseFromAnswer,
    /// A copy goes on granting leases to an owner after it has promised a later view.
    GrantToSuperseded,
    /// A lease that is given back ends the leases of every view.
    ReleaseForAll,
    /// The proven death of an earlier start counts for the present one.
    DeathOfAnyStart,
    /// An owner serves reads with a lease of any one copy.
    LeaseOfOneCopy,
    /// An owner takes a lease for twice as long as it is.
    LongLease,
    /// A fence ends the promise only: the streams of earlier owners go on, and what they had
    /// under way is acknowledged.
    FenceKeepsStreams,
    /// A copy serves an earlier owner's reads after it was fenced, and its leases stay.
    ReadWithoutView,
    /// A copy that has nothing durable beyond the kept position drops nothing that is on its way.
    TruncateNothingAhead,
    /// A takeover goes on behind a position that no copy holds.
    UnionOverHoles,
    /// An owner serves before the config group has agreed on its copies.
    ServeBeforeOpened,
    /// A promotion of unknown outcome is taken for refused: the copy is left alone, although it
    /// may count.
    ForgetUnknownPromotion,
    /// A resync ends after its first page.
    FirstPageOnly,
    /// The next page of a resync begins one block too late.
    SkipPageEdge,
    /// An owner takes what it does not remember for something that never ran.
    CoverEverything,
    /// An owner forgets operations that their portals may still repeat.
    ForgetOperationsEarly,
    /// An operation that is repeated while it runs is run once more.
    RunTwiceAtOnce,
    /// A copy acts on a stable position beyond what it holds.
    StableBeyondHeld,
    /// A compare and write holds no lock between comparing and writing.
    CompareUnlocked,
    /// A merge of one table forgets the recent facts of all.
    MergeForgetsAll,
    /// Deltas that are joined leave out the newest facts.
    JoinDropsNewest,
    /// The first step of a pass drops the deltas that the whole pass makes dispensable.
    DropDeltasAtOnce,
    /// The config log answers before what it wrote is durable.
    VoteUnsynced,
    /// A copy acknowledges what it has journaled behind a record that it refused.
    PassOverRefused,
    /// A file system that is full counts as a failing disk.
    FullIsFailure,
    /// A copy that was made empty for a slice about to be placed is given back.
    SweepEmptyCopies,
    /// What moved away is given back by a state that may be long out of date.
    SweepWithoutBarrier,
    /// What moved away is given back although an owner has set it up again.
    SweepOverSetUp,
    /// A copy leaves a drained node as soon as another was placed, in sync or not.
    DrainDropsEarly,
    /// A node that is drained is removed although copies are left on it.
    RemoveUndrained,
    /// A copy is taken out for one that was moved and is not in sync yet.
    MoveCountsJoining,
    /// Two drained nodes count each for the other, and both go.
    DrainsCountOneAnother,
    /// A drain that is called off drops new copies that are in sync, too.
    CancelDropsInSync,
    /// Drained nodes get copies of new slices.
    PlaceOnDrained,
    /// Drained nodes get volumes to own.
    OwnOnDrained,
    /// A drained node that restarts is not drained any more.
    RestartEndsDrain,
    /// What found no node for a copy is not looked at again when a node comes.
    MendWithoutNews,
    /// A takeover keeps copies in sync that it left out.
    KeepLeftOut,
    /// An owner writes to slices before the config group has placed them.
    TakeInBeforePlaced,
    /// What moved away is judged by the state before the barrier.
    SweepBeforeBarrier,
    /// What is given back keeps its facts: a copy that is made there again seems to have it.
    GiveBackKeepsFacts,
    /// A zero that begins in a slice never written to ends there.
    ZeroFirstSliceOnly,
    /// A copy of a slice about to be placed is answered before it is durable.
    FreshCopyUnsynced,
    /// Slices that were never written to are read without leases.
    ReadUnplacedUnleased,
    /// Slices that were never written to are zeroed without leases.
    ZeroUnplacedUnleased,
    /// A lease counts for all volumes of a message if it was granted for one.
    LeaseForAll,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 92] = [
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
        Self::CountUnsyncedEdit,
        Self::FreeJournalEarly,
        Self::DestageBeforeStable,
        Self::MoveReplacedBlocks,
        Self::ReuseSegmentEarly,
        Self::DiscardEarly,
        Self::TruncatePages,
        Self::AcceptStaleLap,
        Self::DestageUnread,
        Self::ForgetDelta,
        Self::DropZeroFacts,
        Self::ForgetCarriedFacts,
        Self::SnapshotForgetsRemovals,
        Self::TrustBytes,
        Self::ForgetPromisedRoom,
        Self::VerifyNothing,
        Self::ServeSuspect,
        Self::ForgetHomeEdit,
        Self::AssumeHeld,
        Self::SkipPathCheck,
        Self::HideOldChanges,
        Self::NeverRelay,
        Self::RelayInOwnName,
        Self::TrustRumour,
        Self::GrantToDeaf,
        Self::ForgetEmptyLog,
        Self::NeverRebalance,
        Self::IgnoreAnnouncedAddress,
        Self::ForgetGrantsAtRestart,
        Self::LeaseFromAnswer,
        Self::GrantToSuperseded,
        Self::ReleaseForAll,
        Self::DeathOfAnyStart,
        Self::LeaseOfOneCopy,
        Self::LongLease,
        Self::FenceKeepsStreams,
        Self::ReadWithoutView,
        Self::TruncateNothingAhead,
        Self::UnionOverHoles,
        Self::ServeBeforeOpened,
        Self::ForgetUnknownPromotion,
        Self::FirstPageOnly,
        Self::SkipPageEdge,
        Self::CoverEverything,
        Self::ForgetOperationsEarly,
        Self::RunTwiceAtOnce,
        Self::StableBeyondHeld,
        Self::CompareUnlocked,
        Self::MergeForgetsAll,
        Self::JoinDropsNewest,
        Self::DropDeltasAtOnce,
        Self::VoteUnsynced,
        Self::PassOverRefused,
        Self::FullIsFailure,
        Self::SweepEmptyCopies,
        Self::SweepWithoutBarrier,
        Self::SweepOverSetUp,
        Self::DrainDropsEarly,
        Self::RemoveUndrained,
        Self::MoveCountsJoining,
        Self::DrainsCountOneAnother,
        Self::CancelDropsInSync,
        Self::PlaceOnDrained,
        Self::OwnOnDrained,
        Self::RestartEndsDrain,
        Self::MendWithoutNews,
        Self::KeepLeftOut,
        Self::TakeInBeforePlaced,
        Self::SweepBeforeBarrier,
        Self::GiveBackKeepsFacts,
        Self::ZeroFirstSliceOnly,
        Self::FreshCopyUnsynced,
        Self::ReadUnplacedUnleased,
        Self::ZeroUnplacedUnleased,
        Self::LeaseForAll,
    ];

    /// The name on command lines: `skip-fence` for `SkipFence`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// What is to find it.
    pub const fn finder(self) -> Finder {
        match self {
            Self::AcknowledgeBeforeJournal
            | Self::SkipFence
            | Self::SkipLeaseWait
            | Self::ReadAfterLease
            | Self::ReadUnstable
            | Self::AcknowledgeFirstCopy
            | Self::TrustIncompleteCopy
            | Self::TakeStableOnly
            | Self::DamagedIsAbsent
            | Self::ResyncOverNewer
            | Self::BaseTooHigh
            | Self::KeepDivergentTail
            | Self::PromoteEarly
            | Self::ForgetOperations
            | Self::NeverRepeat
            | Self::DestageUnstable
            | Self::AssumeHeld
            | Self::SkipPathCheck
            | Self::HideOldChanges
            | Self::ForgetEmptyLog
            | Self::NeverRebalance
            | Self::GrantToSuperseded
            | Self::DeathOfAnyStart
            | Self::LeaseOfOneCopy
            | Self::LongLease
            | Self::ForgetGrantsAtRestart
            | Self::LeaseFromAnswer
            | Self::ReadWithoutView
            | Self::UnionOverHoles
            | Self::ServeBeforeOpened
            | Self::FirstPageOnly
            | Self::SkipPageEdge
            | Self::CoverEverything
            | Self::ForgetOperationsEarly
            | Self::RunTwiceAtOnce
            | Self::CompareUnlocked
            | Self::MergeForgetsAll
            | Self::JoinDropsNewest
            | Self::DropDeltasAtOnce
            | Self::VoteUnsynced
            | Self::PassOverRefused
            | Self::FullIsFailure
            | Self::SweepWithoutBarrier
            | Self::DrainDropsEarly
            | Self::RemoveUndrained
            | Self::MoveCountsJoining
            | Self::DrainsCountOneAnother
            | Self::PlaceOnDrained
            | Self::OwnOnDrained
            | Self::RestartEndsDrain
            | Self::KeepLeftOut
            | Self::TakeInBeforePlaced
            | Self::SweepBeforeBarrier
            | Self::GiveBackKeepsFacts => Finder::Cluster,
            Self::NeverRelay | Self::RelayInOwnName | Self::TrustRumour | Self::GrantToDeaf => {
                Finder::LinkCuts
            }
            Self::AcceptStaleLap
            | Self::TruncatePages
            | Self::DestageUnread
            | Self::SnapshotForgetsRemovals => Finder::Store,
            Self::CountUnsyncedEdit
            | Self::FreeJournalEarly
            | Self::DestageBeforeStable
            | Self::MoveReplacedBlocks
            | Self::ReuseSegmentEarly
            | Self::DiscardEarly
            | Self::ForgetDelta
            | Self::DropZeroFacts
            | Self::TrustBytes
            | Self::ForgetPromisedRoom
            | Self::VerifyNothing
            | Self::ServeSuspect
            | Self::ForgetHomeEdit
            | Self::SkipHomeSync => Finder::CrashStates,
            Self::IgnoreAnnouncedAddress
            | Self::ReleaseForAll
            | Self::FenceKeepsStreams
            | Self::TruncateNothingAhead
            | Self::StableBeyondHeld
            | Self::ForgetCarriedFacts
            | Self::SweepEmptyCopies
            | Self::SweepOverSetUp
            | Self::ForgetUnknownPromotion
            | Self::FreshCopyUnsynced
            | Self::CancelDropsInSync
            | Self::ZeroFirstSliceOnly
            | Self::MendWithoutNews
            | Self::ReadUnplacedUnleased
            | Self::ZeroUnplacedUnleased
            | Self::LeaseForAll => Finder::Nobody,
        }
    }
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
