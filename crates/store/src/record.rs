//! The words of the store: slices, sequence numbers, records and what is reported about them.
//!
//! Plain data: tested where it is used.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Size of one block, the unit of addressing and of checksums, in bytes.
pub const BLOCK_BYTES: usize = 4096;

pub use holdfast_wire::{Seq, SliceKey, View};

/// Who issued a write, so that a retry of it is recognised.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct OperationId {
    /// The issuer.
    pub origin: u64,
    /// The issuer's own count.
    pub number: u64,
}

/// What a record does to its slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Replaces whole blocks.
    Write {
        /// First block within the slice.
        first_block: u32,
        /// The new bytes, a positive multiple of [`BLOCK_BYTES`].
        data: Bytes,
    },
    /// Makes blocks read zero.
    Zero {
        /// First block within the slice.
        first_block: u32,
        /// How many blocks, at least one.
        blocks: u32,
    },
    /// Changes no block: a place in the stream and nothing else.
    Nothing,
}

impl Body {
    /// First block and number of blocks; a [`Body::Nothing`] touches none.
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Write { first_block, data } => {
                let blocks = u32::try_from(data.len() / BLOCK_BYTES).unwrap_or(u32::MAX);
                (*first_block, blocks)
            }
            Self::Zero {
                first_block,
                blocks,
            } => (*first_block, *blocks),
            Self::Nothing => (0, 0),
        }
    }
}

/// One entry of a slice's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The slice.
    pub slice: SliceKey,
    /// The view it was issued in.
    pub view: View,
    /// Its place in the stream.
    pub seq: Seq,
    /// The slice's stable point as its issuer knew it.
    pub stable: Seq,
    /// The write it carries out.
    pub operation: OperationId,
    /// What it changes.
    pub body: Body,
}

/// A durable record above the stable point, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailEntry {
    /// The view it was issued in.
    pub view: View,
    /// Its place in the stream.
    pub seq: Seq,
    /// The write it carries out.
    pub operation: OperationId,
    /// First block within the slice.
    pub first_block: u32,
    /// How many blocks; zero for [`Body::Nothing`].
    pub blocks: u32,
    /// Whether it zeroes instead of writing.
    pub zero: bool,
    /// Its data did not survive: the record is known to exist and its content is unknown.
    pub damaged: bool,
}

/// One block's newest stable version, on its way from one copy to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedBlock {
    /// Block within the slice.
    pub block: u32,
    /// View of the record that wrote it.
    pub view: View,
    /// Sequence number of the record that wrote it; zero for a block never written.
    pub seq: Seq,
    /// What is in it.
    pub content: Copied,
}

/// What is in a copied block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// These bytes.
    Bytes(Bytes),
    /// Zeroes.
    Zero,
    /// Nobody knows any more: the block is damaged wherever it was looked for. With a sequence
    /// number of zero its age is not known either.
    Lost,
}

/// What this node's copy of a slice is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CopyState {
    /// No copy here.
    #[default]
    Absent,
    /// Holds the slice's whole history up to its stable point.
    InSync,
    /// Holds the whole history up to `base` and what arrived since it began to join.
    Joining {
        /// History up to here is complete.
        base: Seq,
    },
}

/// How full the store is. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Capacity for block data.
    pub home_bytes: u64,
    /// Part of it that holds blocks, or was promised to blocks in the journal.
    pub home_used_bytes: u64,
    /// Space of blocks that were overwritten or unmapped, which collecting will free.
    pub home_reclaimable_bytes: u64,
    /// Space of the block map.
    pub home_map_bytes: u64,
    /// Space of free segments.
    pub home_free_bytes: u64,
    /// What collecting has moved since the store was opened.
    pub home_collected_bytes: u64,
    /// Size of the journal's ring.
    pub journal_bytes: u64,
    /// Part of it that cannot be reused yet.
    pub journal_used_bytes: u64,
}

/// How the journal ended when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum JournalEnd {
    /// After a complete batch.
    #[default]
    Clean,
    /// In a batch that was being written when the node stopped; nobody was told it was durable.
    TornHead,
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// The store did not exist and was made.
    pub created: bool,
    /// Batches read from the journal.
    pub batches: u64,
    /// Records and copied blocks replayed from it.
    pub records: u64,
    /// Records not replayed because a truncation or removal had voided them.
    pub voided_records: u64,
    /// How the journal ended.
    pub end: JournalEnd,
    /// One of the journal's two header pages was unreadable and the other was used.
    pub header_page_lost: bool,
    /// One of the two copies of the durable facts was unreadable and the other was used.
    pub facts_copy_lost: bool,
    /// Places in the journal where whole batches are unreadable.
    pub holes: u64,
    /// Records above the stable point whose description survived and whose data did not. Below it
    /// they are found after the start: see [`crate::Store::recovered`].
    pub damaged_records: u64,
    /// Slices that may have lost records in a hole: nothing of them is read until they were
    /// copied again.
    pub suspect_slices: Vec<SliceKey>,
    /// Parts of the block map that are unreadable: their slices are suspect.
    pub lost_runs: u64,
}

impl RecoveryReport {
    /// Whether something that was durable cannot be read any more.
    pub fn found_damage(&self) -> bool {
        self.holes > 0 || self.damaged_records > 0 || self.lost_runs > 0
    }
}
