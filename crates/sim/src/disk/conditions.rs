//! How disks are, and what is done to them.

/// How long disk operations take on a healthy device: means, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct DiskTiming {
    /// A read's fixed part.
    pub read_ns: u64,
    /// A write's fixed part.
    pub write_ns: u64,
    /// A sync.
    pub sync_ns: u64,
    /// The part that grows with the length.
    pub ns_per_page: u64,
}

impl Default for DiskTiming {
    /// A decent NVMe device.
    fn default() -> Self {
        Self {
            read_ns: 80_000,
            write_ns: 40_000,
            sync_ns: 300_000,
            ns_per_page: 2_000,
        }
    }
}

/// Where damage at rest may happen. The default is nowhere.
#[derive(Clone, Debug, Default)]
pub struct DamagePolicy {
    /// Area names that may be damaged; empty protects all.
    pub areas: Vec<String>,
    /// Further areas, whose bytes at rest may be damaged and nothing else: of a write that they
    /// lose without a word nobody could tell.
    pub at_rest: Vec<String>,
    /// How many firings this host may suffer in a run.
    pub budget: u32,
}

/// What to do to a host's data at rest, or to one of its coming writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Flip one to eight bits within a sector.
    FlipBits,
    /// Let a page fail to read until it is written again.
    Unreadable,
    /// Acknowledge the next write without doing it.
    LoseNextWrite,
    /// Put the next write somewhere else in its area.
    MisdirectNextWrite,
    /// Let a page read as it was before its last write: a few times, or until it is written again.
    StaleRead,
    /// Acknowledge the next sync without making anything durable.
    LieAtNextSync,
}

/// A moment at which a crash, or a pause, hurts most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// While a read is in flight.
    Read,
    /// While a write is in flight.
    Write,
    /// While a sync is in flight: what it covers has completed and is not durable.
    Sync,
    /// While a discard is in flight.
    Discard,
}
