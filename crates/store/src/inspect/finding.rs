//! What an inspection reports: one finding for each thing that is not as it should be.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::SliceKey;

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A node would refuse to start with this store.
    Fatal,
    /// Something of this copy is lost or in doubt; the other copies have it.
    Error,
    /// A spare is lost or space is miscounted: nothing that is needed is missing.
    Warning,
    /// As it should be, and worth knowing.
    Notice,
}

/// What kind of thing was found. `effect` of a [`Finding`] follows from it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A file of the store is not there.
    AreaMissing,
    /// A file belongs to another store, or another version wrote it.
    AreaForeign,
    /// Neither header page of the journal can be used.
    JournalHeadersLost,
    /// One of the two header pages cannot be used.
    JournalHeaderPageLost,
    /// Whole batches in the middle of the journal cannot be read.
    JournalHole,
    /// The data of a record in the journal does not match its checksum.
    JournalRecordDamaged,
    /// The newest batch was being written when the node stopped.
    JournalTornHead,
    /// Neither copy of the durable facts can be used.
    FactsLost,
    /// One of the two copies of the durable facts cannot be used.
    FactsCopyLost,
    /// The store remembers that records of a slice may have been lost.
    SliceSuspect,
    /// A volume's removal was not finished.
    RemovalPending,
    /// Neither superblock of the home can be used.
    SuperblocksLost,
    /// One of the two superblocks cannot be used.
    SuperblockLost,
    /// No snapshot in the manifest can be used, or not the newest one.
    ManifestSnapshotLost,
    /// Edits in the middle of the manifest, or its last ones, are lost.
    ManifestEditsLost,
    /// Pages of a delta, the durable form of recent changes to the block map, are damaged.
    DeltaLost,
    /// The directory of a table of the block map is damaged.
    TableDirectoryLost,
    /// Leaves of a table of the block map are damaged.
    LeavesLost,
    /// Parts of the block map contradict each other.
    MapContradiction,
    /// A block's bytes are not what was written.
    BlockDamaged,
    /// A block's place holds an older version of it: its newest write was lost.
    BlockStale,
    /// A block's place holds something that was written for another place.
    BlockMisdirected,
    /// A block's place holds zeroes.
    BlockZeroed,
    /// The disk reports an error for a block.
    BlockUnreadable,
    /// Nothing in a segment can be used.
    SegmentLost,
    /// The header of a group of blocks is damaged.
    GroupHeaderLost,
    /// Blocks in use are described by no group header.
    BlocksUndescribed,
    /// A segment is thought to hold less than it does.
    LiveCountTooLow,
    /// A segment is thought to hold more than it does.
    LiveCountTooHigh,
    /// The parts of the disk do not add up.
    SpaceMiscounted,
}

impl FindingKind {
    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::AreaMissing
            | Self::AreaForeign
            | Self::JournalHeadersLost
            | Self::FactsLost
            | Self::SuperblocksLost
            | Self::ManifestSnapshotLost
            | Self::ManifestEditsLost => Severity::Fatal,
            Self::JournalHole
            | Self::JournalRecordDamaged
            | Self::SliceSuspect
            | Self::DeltaLost
            | Self::TableDirectoryLost
            | Self::LeavesLost
            | Self::MapContradiction
            | Self::BlockDamaged
            | Self::BlockStale
            | Self::BlockMisdirected
            | Self::BlockZeroed
            | Self::BlockUnreadable
            | Self::SegmentLost
            | Self::BlocksUndescribed
            | Self::LiveCountTooLow => Severity::Error,
            Self::JournalHeaderPageLost
            | Self::FactsCopyLost
            | Self::SuperblockLost
            | Self::GroupHeaderLost
            | Self::LiveCountTooHigh
            | Self::SpaceMiscounted => Severity::Warning,
            Self::JournalTornHead | Self::RemovalPending => Severity::Notice,
        }
    }

    /// What follows from it and what to do.
    pub fn effect(self) -> &'static str {
        match self {
            Self::AreaMissing => {
                "the node does not start. Bring the file's disk back, or let the node join again \
                 with an empty directory"
            }
            Self::AreaForeign => {
                "the node does not start. Put the right file in its place; nothing was changed"
            }
            Self::JournalHeadersLost
            | Self::FactsLost
            | Self::SuperblocksLost
            | Self::ManifestSnapshotLost
            | Self::ManifestEditsLost => {
                "the node does not start. If the other copies live, let it join again with an \
                 empty directory; if not, `holdfast store export` reads what is there"
            }
            Self::JournalHole => {
                "slices that may have lost records are compared with another copy as a whole at \
                 the next start"
            }
            Self::JournalRecordDamaged => {
                "the record's blocks are unknown on this copy and read from another one"
            }
            Self::JournalTornHead => {
                "nothing is lost: the batch was never acknowledged, and is cut at the next start"
            }
            Self::JournalHeaderPageLost | Self::FactsCopyLost => {
                "the other one is used and this one is written again at the next start. Look \
                 after the disk"
            }
            Self::SuperblockLost => "the other one is used. Look after the disk",
            Self::SliceSuspect => {
                "nothing of the slice is read on this node until it was copied again from another"
            }
            Self::RemovalPending => "it is finished at the next start",
            Self::DeltaLost | Self::TableDirectoryLost => {
                "its slices are compared with another copy as a whole at the next start"
            }
            Self::LeavesLost => {
                "the blocks they speak of are unknown on this copy and read from another one"
            }
            Self::MapContradiction => {
                "this is no disk fault that we know of: keep the directory and report it"
            }
            Self::BlockDamaged
            | Self::BlockStale
            | Self::BlockMisdirected
            | Self::BlockZeroed
            | Self::BlockUnreadable
            | Self::SegmentLost => "it is read from another copy, and written again from there",
            Self::GroupHeaderLost => {
                "the blocks behind it are readable; the segment is not collected, so its unused \
                 space does not come back"
            }
            Self::BlocksUndescribed => {
                "collecting the segment would lose them: keep the directory and report it"
            }
            Self::LiveCountTooLow => {
                "it may be used again too early: keep the directory and report it"
            }
            Self::LiveCountTooHigh => "its space comes back late: please report it",
            Self::SpaceMiscounted => "fullness is reported wrongly: please report it",
        }
    }
}

/// One thing that is not as it should be, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing.
    pub kind: FindingKind,
    /// The file in the node's directory.
    pub area: &'static str,
    /// First byte in the file, if it has a place.
    pub offset: Option<u64>,
    /// Bytes from there on.
    pub bytes: Option<u64>,
    /// The slice, if it is about one.
    pub slice: Option<SliceKey>,
    /// First block within the slice.
    pub block: Option<u32>,
    /// What was found, in words.
    pub what: String,
    /// What follows from it and what to do.
    pub effect: &'static str,
}

impl Finding {
    /// A finding about an area as a whole.
    pub(crate) fn new(kind: FindingKind, area: &'static str, what: impl Into<String>) -> Self {
        Self {
            severity: kind.severity(),
            kind,
            area,
            offset: None,
            bytes: None,
            slice: None,
            block: None,
            what: what.into(),
            effect: kind.effect(),
        }
    }

    pub(crate) fn at(mut self, offset: u64, bytes: u64) -> Self {
        (self.offset, self.bytes) = (Some(offset), Some(bytes));
        self
    }

    pub(crate) fn of(mut self, slice: SliceKey, block: Option<u32>) -> Self {
        (self.slice, self.block) = (Some(slice), block);
        self
    }
}

/// Most findings of one kind that are listed; a dying disk has millions.
const LISTED_MAX: u64 = 1000;

/// Collects findings.
#[derive(Default)]
pub(crate) struct Findings {
    listed: RefCell<Vec<Finding>>,
    counts: RefCell<BTreeMap<FindingKind, u64>>,
}

impl Findings {
    pub(crate) fn add(&self, finding: Finding) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= LISTED_MAX {
            self.listed.borrow_mut().push(finding);
        }
    }

    /// Those listed, the worst first and then by place, and how many there are of each kind.
    pub(crate) fn into_parts(self) -> (Vec<Finding>, BTreeMap<FindingKind, u64>) {
        let mut listed = self.listed.into_inner();
        listed.sort_by_key(|one| (one.severity, one.area, one.offset));
        (listed, self.counts.into_inner())
    }
}
