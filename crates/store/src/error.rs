//! Why the store refuses or fails.
//!
//! Plain data: nothing to test.

use holdfast_runtime::DiskError;
use thiserror::Error;

use crate::record::{Seq, SliceKey};

/// Why a call failed. Unless a variant says otherwise nothing was changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// An earlier write or sync failed, so what is durable is unknown until the store is opened
    /// again. A call that was under way may or may not have taken effect.
    #[error("the store stopped after a disk error: {cause}. Reopen it to recover")]
    Poisoned {
        /// The first failure.
        cause: DiskError,
    },
    /// A read failed; nothing was changed.
    #[error("reading failed: {0}")]
    Disk(#[from] DiskError),
    /// The home has no room for blocks never written before.
    #[error("the home is full: {wanted_blocks} more blocks of 4 KiB wanted, {free_blocks} free")]
    Full {
        /// Blocks the call would have taken.
        wanted_blocks: u64,
        /// Blocks left.
        free_blocks: u64,
    },
    /// A record does not follow the slice's last one.
    #[error("record {seq:?} of {slice:?} does not come after {last:?}")]
    OutOfOrder {
        /// The slice.
        slice: SliceKey,
        /// The refused record.
        seq: Seq,
        /// The last one accepted.
        last: Seq,
    },
    /// A block range is empty, unaligned or leaves the slice.
    #[error("blocks {first_block}+{blocks} of {slice:?} are not a range of its {limit} blocks")]
    OutOfRange {
        /// The slice.
        slice: SliceKey,
        /// First block asked for.
        first_block: u32,
        /// Blocks asked for.
        blocks: u32,
        /// Blocks per slice.
        limit: u32,
    },
    /// One record is larger than the journal takes at once.
    #[error("a record of {blocks} blocks exceeds the limit of {limit}")]
    TooLarge {
        /// Blocks of data in the record.
        blocks: u32,
        /// Most blocks one record may carry.
        limit: u32,
    },
    /// A truncation would take back stable records.
    #[error("{slice:?} is stable up to {stable:?} and cannot be truncated to {keep_through:?}")]
    BelowStable {
        /// The slice.
        slice: SliceKey,
        /// Its stable point.
        stable: Seq,
        /// Where it was to be cut.
        keep_through: Seq,
    },
    /// A truncation or removal overtook the record before it was written: it is not durable.
    #[error("the record was taken back before it was written")]
    Withdrawn,
    /// The newest stable version is lost or cannot be told; older bytes are not an answer.
    #[error("block {block} of {slice:?} is damaged on this copy. Read and heal from another")]
    Damaged {
        /// The slice.
        slice: SliceKey,
        /// The first block that could not be read.
        block: u32,
    },
    /// The store was closed while the call waited; it may or may not have taken effect.
    #[error("the store was closed")]
    Closed,
    /// The options cannot describe a store.
    #[error("the store options are unusable: {reason}")]
    Options {
        /// Which rule they break.
        reason: &'static str,
    },
    /// An area belongs to another store, or to this one with other fixed options.
    #[error("area {area} belongs to another store ({what} differs). Check the data directory")]
    Foreign {
        /// The area.
        area: &'static str,
        /// What differs.
        what: &'static str,
    },
    /// An area was written by another version.
    #[error("area {area} has format {found}, this version reads format {supported}")]
    Version {
        /// The area.
        area: &'static str,
        /// Its format.
        found: u32,
        /// The newest known here.
        supported: u32,
    },
    /// An area's root is unreadable: the node has to rejoin empty.
    #[error("the {what} in area {area} cannot be read. Rejoin this node empty")]
    Lost {
        /// The area.
        area: &'static str,
        /// What is lost.
        what: &'static str,
    },
}
