//! How often a run of many seeds has to come by each rarely taken branch.
//!
//! Floors are a fifth or less of what was counted when they were written: they tell that a branch
//! is met no more, not that it is met a little less often.

use holdfast_runtime::reach::Row;

use crate::report::Report;

/// Below so many seeds chance decides.
const SEEDS_MIN: u64 = 200;

/// What is expected of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// Clusters meet it so often in a thousand seeds.
    InClusters(u64),
    /// A single store does.
    InStores(u64),
    /// No seed need meet it.
    Unmet(&'static str),
}

/// What is expected of a row.
pub const fn of(row: Row) -> Floor {
    use Floor::{InClusters, InStores, Unmet};
    match row {
        Row::FenceLeftOut => InClusters(100),
        Row::LaterView => InClusters(100),
        Row::IncompleteCopy => InClusters(5),
        Row::NoCompleteCopy => InClusters(1_000),
        Row::UnionHole => Unmet(
            "records are journaled in order, so a hole needs a copy that lost one to damage \
             and counts: tested beside `union_of_tails`",
        ),
        Row::UnionNewerView => Unmet(
            "two owners have to order different records for one position, both on copies that \
             count: a few times in 2,000 seeds, else tested beside `union_of_tails`",
        ),
        Row::ReconcileFilled => InClusters(100),
        Row::ReconcileLeftOut => InClusters(100),
        Row::ReconcileAgain => InClusters(10),
        Row::OpenedAgain => InClusters(5),
        Row::OpenedOver => InClusters(10),
        Row::FenceWaitsLease => InClusters(1_000),
        Row::FenceWaitsGrace => InClusters(1_000),
        Row::FenceSpared => InClusters(500),
        Row::FenceStopsStream => InClusters(1_000),
        Row::LeaseRefused => InClusters(100),
        Row::LeaseUnheard => InClusters(100),
        Row::ReadWaitsLease => InClusters(1_000),
        Row::ReadLeaseLost => InClusters(500),
        Row::ReadOtherCopy => InClusters(10),
        Row::ResyncMorePages => InClusters(1_000),
        Row::ResyncLostBlocks => InClusters(1),
        Row::ResyncFailed => InClusters(100),
        Row::PromotionRefused => InClusters(1),
        Row::PromotionUnknown => {
            Unmet("copies of a node are promoted together: 0 to 3 times in 1,000 seeds")
        }
        Row::CopyRemoved => InClusters(500),
        Row::JoiningDropped => {
            Unmet("a joining copy falls behind by 8 MiB only under more load than seeds can bear")
        }
        Row::WindowRepeated => InClusters(1_000),
        Row::RecordsHeldBack => InClusters(500),
        Row::WriterBlocked => InClusters(5),
        Row::RepeatJoins => InClusters(20),
        Row::RepeatAnswered => InClusters(100),
        Row::RepeatUncertain => InClusters(100),
        Row::RepeatOver => Unmet("a portal names no floor above what it still asks for"),
        Row::WriteRefusedFull => Unmet("homes of clusters are never full: tested in `volume`"),
        Row::CompareDiffers => InClusters(500),
        Row::WriteReserved => InClusters(5),
        Row::FirstWrite => InClusters(1),
        Row::PlacedAhead => InClusters(1),
        Row::PlacingAgain => InClusters(1),
        Row::PlacementUnknown => InClusters(1),
        Row::ReadNeverWritten => InClusters(1),
        Row::SweptAway => InClusters(1),
        Row::SweepOvertaken => InClusters(1),
        Row::SweepLeftEmpty => InClusters(1),
        Row::ReadGivenBack => {
            Unmet("a read has to be at the disk while its copy is taken out and given back")
        }
        Row::ReadJoining => {
            Unmet("an owner asks a copy again only if others kept it waiting for seconds")
        }
        Row::ZeroedNeverWritten => InClusters(1),
        Row::JournalBlocked => InStores(50),
        Row::JournalRelocates => InStores(10),
        Row::JournalTorn => InStores(10),
        Row::JournalDamaged => InClusters(5),
        Row::SliceSuspect => InClusters(10),
        Row::FactsOtherCopy => InClusters(1),
        Row::FactsUncommitted => InStores(1),
        Row::FactsTailMended => InStores(1),
        Row::FactsWipedLate => InStores(1),
        Row::FactsTurned => InStores(50),
        Row::FactsConverted => Unmet("no seed begins with what an earlier version left"),
        Row::MapRunLost => InClusters(5),
        Row::MapMerged => InClusters(1_000),
        Row::MapTableSplit => InClusters(100),
        Row::MapDeltasJoined => InClusters(1_000),
        Row::MapSegmentEmptied => Unmet("maps of so few blocks fit into one segment"),
        Row::SegmentCollected => InClusters(100),
        Row::SegmentBroken => Unmet(
            "damage has to hit what a collection is about to move: 0 to 7 times in 2,000 seeds",
        ),
        Row::SegmentsDiscarded => InClusters(1_000),
        Row::ManifestTurned => InClusters(20),
        Row::VolumeCleared => InClusters(200),
        Row::SlicesCleared => InStores(50),
        Row::HomeReadAgain => InClusters(10),
        Row::ConfigSnapshot => InClusters(500),
        Row::ConfigBatch => InClusters(10),
        Row::ConfigInstalled => InClusters(100),
        Row::ConfigTurned => InClusters(1_000),
        Row::ConfigOtherCopy => InClusters(10),
        Row::ConfigRefused => InClusters(5),
    }
}

/// The rows that a report's seeds met too rarely, in words; none if there are too few seeds.
pub fn missed(report: &Report) -> Vec<String> {
    if report.seeds < SEEDS_MIN {
        return Vec::new();
    }
    let wanted = |row: Row| match (of(row), report.scenario) {
        (Floor::InClusters(floor), "cluster") | (Floor::InStores(floor), "store") => {
            (floor * report.seeds / 1_000).max(1)
        }
        (Floor::InClusters(_) | Floor::InStores(_) | Floor::Unmet(_), _) => 0,
    };
    let met = |row: Row| report.reached.get(row.name()).copied().unwrap_or(0);
    Row::ALL
        .into_iter()
        .filter(|row| met(*row) < wanted(*row))
        .map(|row| {
            let (name, met, wanted) = (row.name(), met(row), wanted(row));
            format!("{name}: met {met} times, not {wanted}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_that_is_met_no_more_is_named_once_there_are_seeds_enough() {
        let reached = Row::ALL.map(|row| (row.name(), u64::MAX)).into();
        let mut report = Report {
            scenario: "cluster",
            seeds: 1_000,
            reached,
            ..Report::default()
        };
        assert_eq!(missed(&report), Vec::<String>::new());
        report.reached.insert(Row::MapMerged.name(), 0);
        assert_eq!(missed(&report).len(), 1);
        report.seeds = SEEDS_MIN - 1;
        assert_eq!(missed(&report), Vec::<String>::new());
    }
}
