//! How much of everything an owner lets come together before it does something about it.

/// Sizes that decide when an owner's rarer work is due. Tests and the simulator choose small
/// ones, so that a few hundred blocks meet what otherwise takes millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBounds {
    /// Blocks that a resync copies in one step: large enough for the disks, small enough not to
    /// delay writes.
    pub resync_blocks: u32,
    /// Operations remembered per slice whose portals may not ask for them again.
    pub operations: usize,
    /// Data of writes under way in one volume, in KiB: bounds memory, and what a takeover has to
    /// reconcile. At least the longest operation.
    pub in_flight_kib: u32,
}

impl VolumeBounds {
    /// Those of a node in service.
    pub const SERVICE: Self = Self {
        resync_blocks: 128,
        operations: 4096,
        in_flight_kib: 16 << 10,
    };
}

impl Default for VolumeBounds {
    fn default() -> Self {
        Self::SERVICE
    }
}
