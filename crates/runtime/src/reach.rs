//! Reach counters: how often runs come by the rows of recovery and takeover tables, and by other
//! branches that are rarely taken.
//!
//! A test that never meets a branch proves nothing about it, and does not say so. The code counts
//! here, thread by thread; the simulator collects the counts of each run, and CI has a floor for
//! every row ([`Row::ALL`]). A count costs an addition, so it is never left out.

use std::cell::RefCell;

/// A place in the code that a test has to come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Row {
    /// Takeover: a fence without an answer.
    FenceLeftOut,
    /// Takeover: a copy has promised a later view.
    LaterView,
    /// Takeover: an incomplete copy.
    IncompleteCopy,
    /// Takeover: no complete copy of a slice.
    NoCompleteCopy,
    /// Takeover: a position that nobody holds.
    UnionHole,
    /// Takeover: two records for one position.
    UnionNewerView,
    /// Takeover: a copy that lacks records of the union.
    ReconcileFilled,
    /// Takeover: a copy that does not answer a reconcile.
    ReconcileLeftOut,
    /// Takeover: no copy answers a reconcile.
    ReconcileAgain,
    /// Takeover: an opening whose copies restarted.
    OpenedAgain,
    /// Takeover: an opening refused, or of unknown outcome.
    OpenedOver,
    /// Fence: waits for a lease.
    FenceWaitsLease,
    /// Fence: waits because a start forgets its grants.
    FenceWaitsGrace,
    /// Fence: waits for nothing, as the holder is proven dead.
    FenceSpared,
    /// Fence: ends the stream of an earlier owner.
    FenceStopsStream,
    /// Fence: a lease is refused to an earlier owner.
    LeaseRefused,
    /// Fence: a lease is refused to an owner that hears no answers.
    LeaseUnheard,
    /// Reads: waits for a lease.
    ReadWaitsLease,
    /// Reads: gets no lease in time.
    ReadLeaseLost,
    /// Reads: another copy, as one is damaged.
    ReadOtherCopy,
    /// Resync: a further page.
    ResyncMorePages,
    /// Resync: blocks that the source has lost.
    ResyncLostBlocks,
    /// Resync: begins again later.
    ResyncFailed,
    /// Resync: a promotion is refused.
    PromotionRefused,
    /// Resync: a promotion of unknown outcome.
    PromotionUnknown,
    /// Stream: a copy is taken out.
    CopyRemoved,
    /// Stream: a joining copy that does not keep up.
    JoiningDropped,
    /// Stream: records are sent again.
    WindowRepeated,
    /// Stream: a record arrives before an earlier one.
    RecordsHeldBack,
    /// Writes: waits for others under way to end.
    WriterBlocked,
    /// Writes: a repetition of what is still under way.
    RepeatJoins,
    /// Writes: a repetition of what is in the stream.
    RepeatAnswered,
    /// Writes: a repetition of what is not remembered.
    RepeatUncertain,
    /// Writes: a repetition of what its portal has ended.
    RepeatOver,
    /// Writes: a copy has no space.
    WriteRefusedFull,
    /// Writes: a comparison fails.
    CompareDiffers,
    /// Writes: a reservation forbids it.
    WriteReserved,
    /// Placing: something is written to a slice for the first time.
    FirstWrite,
    /// Placing: a sequential fill nears the next slice.
    PlacedAhead,
    /// Placing: a round begins again.
    PlacingAgain,
    /// Placing: the outcome is not known.
    PlacementUnknown,
    /// Reads: of a slice that was never written to.
    ReadNeverWritten,
    /// Reads: a copy that joins is asked, as it was in sync a moment ago.
    ReadJoining,
    /// Sweep: what a node had of a slice that is elsewhere is given back.
    SweptAway,
    /// Sweep: a slice is set up again meanwhile.
    SweepOvertaken,
    /// Sweep: an empty copy that may still be placed.
    SweepLeftEmpty,
    /// Reads: a copy is given back while it is read.
    ReadGivenBack,
    /// Writes: zeroes for a slice that was never written to.
    ZeroedNeverWritten,
    /// Journal: the writer waits for room.
    JournalBlocked,
    /// Journal: records are journaled again.
    JournalRelocates,
    /// Recovery: a torn batch ends the journal.
    JournalTorn,
    /// Recovery: a damaged batch in the middle.
    JournalDamaged,
    /// Recovery: a slice that may have lost records.
    SliceSuspect,
    /// Recovery: facts of which one copy cannot be read.
    FactsOtherCopy,
    /// Recovery: a snapshot of the facts that a crash cut off.
    FactsUncommitted,
    /// Recovery: the last change of the facts with one copy.
    FactsTailMended,
    /// Recovery: an old generation of facts that a crash left.
    FactsWipedLate,
    /// Facts: a snapshot takes the place of the log.
    FactsTurned,
    /// Facts: images of an earlier format become a log.
    FactsConverted,
    /// Recovery: a run of the map cannot be read.
    MapRunLost,
    /// Home: a range of the map is merged.
    MapMerged,
    /// Home: a merge makes more than one table.
    MapTableSplit,
    /// Home: deltas are joined.
    MapDeltasJoined,
    /// Home: a sparse segment of the map is emptied.
    MapSegmentEmptied,
    /// Home: a segment is collected.
    SegmentCollected,
    /// Home: a segment that cannot be collected.
    SegmentBroken,
    /// Home: free segments go back to the device.
    SegmentsDiscarded,
    /// Home: the manifest goes on in its other region.
    ManifestTurned,
    /// Home: a deleted volume is forgotten.
    VolumeCleared,
    /// Home: single slices are forgotten.
    SlicesCleared,
    /// Home: a read of the home is tried again.
    HomeReadAgain,
    /// Config: a snapshot is written.
    ConfigSnapshot,
    /// Config: several proposals become one entry.
    ConfigBatch,
    /// Config: a snapshot is taken from the leader.
    ConfigInstalled,
    /// Config: the log goes on in its other half.
    ConfigTurned,
    /// Config: a record is read from its second copy.
    ConfigOtherCopy,
    /// Config: a damaged log is refused.
    ConfigRefused,
}

impl Row {
    /// All of them.
    pub const ALL: [Self; 77] = [
        Self::FenceLeftOut,
        Self::LaterView,
        Self::IncompleteCopy,
        Self::NoCompleteCopy,
        Self::UnionHole,
        Self::UnionNewerView,
        Self::ReconcileFilled,
        Self::ReconcileLeftOut,
        Self::ReconcileAgain,
        Self::OpenedAgain,
        Self::OpenedOver,
        Self::FenceWaitsLease,
        Self::FenceWaitsGrace,
        Self::FenceSpared,
        Self::FenceStopsStream,
        Self::LeaseRefused,
        Self::LeaseUnheard,
        Self::ReadWaitsLease,
        Self::ReadLeaseLost,
        Self::ReadOtherCopy,
        Self::ResyncMorePages,
        Self::ResyncLostBlocks,
        Self::ResyncFailed,
        Self::PromotionRefused,
        Self::PromotionUnknown,
        Self::CopyRemoved,
        Self::JoiningDropped,
        Self::WindowRepeated,
        Self::RecordsHeldBack,
        Self::WriterBlocked,
        Self::RepeatJoins,
        Self::RepeatAnswered,
        Self::RepeatUncertain,
        Self::RepeatOver,
        Self::WriteRefusedFull,
        Self::CompareDiffers,
        Self::WriteReserved,
        Self::FirstWrite,
        Self::PlacedAhead,
        Self::PlacingAgain,
        Self::PlacementUnknown,
        Self::ReadNeverWritten,
        Self::ReadJoining,
        Self::SweptAway,
        Self::SweepOvertaken,
        Self::SweepLeftEmpty,
        Self::ReadGivenBack,
        Self::ZeroedNeverWritten,
        Self::JournalBlocked,
        Self::JournalRelocates,
        Self::JournalTorn,
        Self::JournalDamaged,
        Self::SliceSuspect,
        Self::FactsOtherCopy,
        Self::FactsUncommitted,
        Self::FactsTailMended,
        Self::FactsWipedLate,
        Self::FactsTurned,
        Self::FactsConverted,
        Self::MapRunLost,
        Self::MapMerged,
        Self::MapTableSplit,
        Self::MapDeltasJoined,
        Self::MapSegmentEmptied,
        Self::SegmentCollected,
        Self::SegmentBroken,
        Self::SegmentsDiscarded,
        Self::ManifestTurned,
        Self::VolumeCleared,
        Self::SlicesCleared,
        Self::HomeReadAgain,
        Self::ConfigSnapshot,
        Self::ConfigBatch,
        Self::ConfigInstalled,
        Self::ConfigTurned,
        Self::ConfigOtherCopy,
        Self::ConfigRefused,
    ];

    /// The name in reports: the table, then the row.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FenceLeftOut => "takeover: a fence without an answer",
            Self::LaterView => "takeover: a copy has promised a later view",
            Self::IncompleteCopy => "takeover: an incomplete copy",
            Self::NoCompleteCopy => "takeover: no complete copy of a slice",
            Self::UnionHole => "takeover: a position that nobody holds",
            Self::UnionNewerView => "takeover: two records for one position",
            Self::ReconcileFilled => "takeover: a copy that lacks records of the union",
            Self::ReconcileLeftOut => "takeover: a copy that does not answer a reconcile",
            Self::ReconcileAgain => "takeover: no copy answers a reconcile",
            Self::OpenedAgain => "takeover: an opening whose copies restarted",
            Self::OpenedOver => "takeover: an opening refused, or of unknown outcome",
            Self::FenceWaitsLease => "fence: waits for a lease",
            Self::FenceWaitsGrace => "fence: waits because a start forgets its grants",
            Self::FenceSpared => "fence: waits for nothing, as the holder is proven dead",
            Self::FenceStopsStream => "fence: ends the stream of an earlier owner",
            Self::LeaseRefused => "fence: a lease is refused to an earlier owner",
            Self::LeaseUnheard => "fence: a lease is refused to an owner that hears no answers",
            Self::ReadWaitsLease => "reads: waits for a lease",
            Self::ReadLeaseLost => "reads: gets no lease in time",
            Self::ReadOtherCopy => "reads: another copy, as one is damaged",
            Self::ResyncMorePages => "resync: a further page",
            Self::ResyncLostBlocks => "resync: blocks that the source has lost",
            Self::ResyncFailed => "resync: begins again later",
            Self::PromotionRefused => "resync: a promotion is refused",
            Self::PromotionUnknown => "resync: a promotion of unknown outcome",
            Self::CopyRemoved => "stream: a copy is taken out",
            Self::JoiningDropped => "stream: a joining copy that does not keep up",
            Self::WindowRepeated => "stream: records are sent again",
            Self::RecordsHeldBack => "stream: a record arrives before an earlier one",
            Self::WriterBlocked => "writes: waits for others under way to end",
            Self::RepeatJoins => "writes: a repetition of what is still under way",
            Self::RepeatAnswered => "writes: a repetition of what is in the stream",
            Self::RepeatUncertain => "writes: a repetition of what is not remembered",
            Self::RepeatOver => "writes: a repetition of what its portal has ended",
            Self::WriteRefusedFull => "writes: a copy has no space",
            Self::CompareDiffers => "writes: a comparison fails",
            Self::WriteReserved => "writes: a reservation forbids it",
            Self::FirstWrite => "placing: a first write",
            Self::PlacedAhead => "placing: ahead of a sequential fill",
            Self::PlacingAgain => "placing: begins again",
            Self::PlacementUnknown => "placing: of unknown outcome",
            Self::ReadNeverWritten => "reads: never written",
            Self::ReadJoining => "reads: a copy that joins",
            Self::SweptAway => "sweep: given back",
            Self::SweepOvertaken => "sweep: set up again meanwhile",
            Self::SweepLeftEmpty => "sweep: an empty copy that may be placed",
            Self::ReadGivenBack => "reads: a copy given back meanwhile",
            Self::ZeroedNeverWritten => "writes: zeroes, never written",
            Self::JournalBlocked => "journal: the writer waits for room",
            Self::JournalRelocates => "journal: records are journaled again",
            Self::JournalTorn => "recovery: a torn batch ends the journal",
            Self::JournalDamaged => "recovery: a damaged batch in the middle",
            Self::SliceSuspect => "recovery: a slice that may have lost records",
            Self::FactsOtherCopy => "recovery: facts of which one copy cannot be read",
            Self::FactsUncommitted => "recovery: a snapshot of the facts that a crash cut off",
            Self::FactsTailMended => "recovery: the last change of the facts with one copy",
            Self::FactsWipedLate => "recovery: an old generation of facts that a crash left",
            Self::FactsTurned => "facts: a snapshot takes the place of the log",
            Self::FactsConverted => "facts: images of an earlier format become a log",
            Self::MapRunLost => "recovery: a run of the map cannot be read",
            Self::MapMerged => "home: a range of the map is merged",
            Self::MapTableSplit => "home: a merge makes more than one table",
            Self::MapDeltasJoined => "home: deltas are joined",
            Self::MapSegmentEmptied => "home: a sparse segment of the map is emptied",
            Self::SegmentCollected => "home: a segment is collected",
            Self::SegmentBroken => "home: a segment that cannot be collected",
            Self::SegmentsDiscarded => "home: free segments go back to the device",
            Self::ManifestTurned => "home: the manifest goes on in its other region",
            Self::VolumeCleared => "home: a deleted volume is forgotten",
            Self::SlicesCleared => "home: single slices are forgotten",
            Self::HomeReadAgain => "home: a read of the home is tried again",
            Self::ConfigSnapshot => "config: a snapshot is written",
            Self::ConfigBatch => "config: several proposals become one entry",
            Self::ConfigInstalled => "config: a snapshot is taken from the leader",
            Self::ConfigTurned => "config: the log goes on in its other half",
            Self::ConfigOtherCopy => "config: a record is read from its second copy",
            Self::ConfigRefused => "config: a damaged log is refused",
        }
    }
}

/// How often each row was met, by its place in [`Row::ALL`].
pub type Reached = [u64; Row::ALL.len()];

thread_local! {
    static REACHED: RefCell<Reached> = const { RefCell::new([0; Row::ALL.len()]) };
}

/// The row was met on this thread.
pub fn note(row: Row) {
    REACHED.with_borrow_mut(|reached| reached[row as usize] += 1);
}

/// What was met on this thread since the last call.
pub fn take() -> Reached {
    REACHED.replace([0; Row::ALL.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_at_their_own_places_until_they_are_taken() {
        for (index, row) in Row::ALL.into_iter().enumerate() {
            assert_eq!(row as usize, index);
        }
        take();
        note(Row::MapMerged);
        note(Row::MapMerged);
        let reached = take();
        assert_eq!(reached[Row::MapMerged as usize], 2);
        assert_eq!(reached.iter().sum::<u64>(), 2);
        assert_eq!(take().iter().sum::<u64>(), 0);
    }
}
