//! How much of everything a store lets come together before it does something about it.
//!
//! Plain data: nothing to test.

/// Sizes that decide when the store's own work is due. None of them is part of a format: a store
/// may be opened with others than before. Tests and the simulator choose small ones, so that a
/// few hundred blocks meet what otherwise takes millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreBounds {
    /// Facts of the block map that memory holds beside the tables at most.
    pub recent_facts: u64,
    /// Bytes of leaves in one table of the block map.
    pub table_bytes: usize,
    /// More deltas of the block map than this are made one.
    pub deltas: usize,
    /// Whether a segment worth collecting is collected although many are free.
    pub collects_always: bool,
    /// A log of the durable facts that is longer than this, in bytes, and than their snapshot, has
    /// them written anew.
    pub facts_log_bytes: u64,
    /// Facts that one step of such a snapshot takes; at least 2, at most what fits into 32 KiB.
    pub facts_at_once: usize,
    /// Operations of a slice that are remembered, so that a repeated one is not run again; at
    /// most 1024.
    pub recent_operations: usize,
    /// Where the segments of a home begin at least, in bytes, when it is made: far behind its
    /// manifest, a small home on a sparse disk has places as the largest ones have.
    pub home_segments_at: u64,
}

impl StoreBounds {
    /// Those of a store in service.
    pub const SERVICE: Self = Self {
        // Some 60 MiB.
        recent_facts: 1 << 20,
        table_bytes: 512 << 10,
        deltas: 64,
        collects_always: false,
        // 128 changes, if none of them is large.
        facts_log_bytes: 512 << 10,
        // 32 KiB.
        facts_at_once: 628,
        recent_operations: 1024,
        home_segments_at: 0,
    };
}

impl Default for StoreBounds {
    fn default() -> Self {
        Self::SERVICE
    }
}
