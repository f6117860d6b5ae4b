//! The cluster's state and the changes to it: a pure, deterministic state machine.
//!
//! The config group applies the same [`Change`]s in the same order on every node. What must
//! always hold after each of them ([`ClusterState::check`] asserts it in the simulator):
//!
//! * every slice has at least one in-sync copy, and the last one is never taken away;
//! * a volume has at most one owner, and a new owner (also the same node in a new incarnation)
//!   always means a larger view than any before;
//! * a volume opens only in the view in which its owner took it over, with the copies that this
//!   owner has reconciled; every other copy is stale from then on;
//! * node and volume numbers are never reused;
//! * a volume's reservations are those of [`holdfast_reservation`], and survive everything but
//!   the volume: also every restart of the whole cluster.
//!
//! Safety rests on the copies' fences and leases, not on who is marked down here: a wrong
//! suspicion costs a takeover, never a write.

mod apply;
mod change;
mod front;
mod growth;
mod opening;
mod ownership;
mod placement;
mod records;
mod slices;
mod snapshot;
mod volumes;

#[cfg(test)]
mod tests;

pub use change::{
    Admission, Change, CopyMove, LeftOut, NodeStart, Outcome, PlacedSlice, Reconciled, Refusal,
    VolumeSpec,
};
pub use front::{Front, FrontChange, Fronts, INITIATORS_MAX, RetiringSecret};
pub use placement::{DrainProgress, ToMend, Unplaceable};
pub use records::{
    Chap, ClusterIdentity, ClusterState, Growth, NodeRecord, NodeStatus, Office, Owner,
    TokenRecord, VolumeRecord,
};
pub use slices::{CopyRecord, CopyStatus, Held, SharedMap, SliceRecord, Slices};
pub use snapshot::{Pieces, Progress};
pub use volumes::Volumes;

/// Bytes of a slice, the unit of placement.
pub const SLICE_BYTES: u64 = 1 << 30;
/// Largest volume. What a volume costs follows what was written to it, so this bounds only what a
/// slice index has to hold.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Smallest slice; larger ones are powers of two.
pub const SLICE_BYTES_MIN: u64 = 1 << 20;
const _: () = assert!(
    VOLUME_BYTES_MAX / SLICE_BYTES_MIN <= 1 << 31,
    "an index is a u32"
);
/// Most slices in one `PlaceSlices`. With seven copies on nodes of large numbers they have less
/// than a quarter of the megabyte that a change may have, and are applied within some
/// milliseconds.
pub const PLACED_AT_ONCE_MAX: usize = 4_096;
/// Most slices in one `PromoteCopies`, and what an owner should put into one `RemoveCopies`; for
/// the same reasons.
pub const PROMOTED_AT_ONCE_MAX: usize = 4_096;
/// Most slices that one `Mend` names: a millisecond or two.
pub const MENDED_AT_ONCE_MAX: usize = 512;
/// Most copies that one `MoveCopies` moves.
pub const MOVED_AT_ONCE_MAX: usize = 512;
/// Bytes of the state's snapshot from which on no volume is made and no slice placed. A slice of
/// three copies counts with nine, so this is some 14.9 million of them. It is half of what a node
/// has at most for a snapshot and the log behind it, and reaching that would stop the config group.
pub const STATE_BYTES_MAX: u64 = 128 << 20;
/// Largest volume that `CreateVolume` and `GrowVolume` made, which placed every slice at once.
/// Nobody proposes them any more; from an old log they have the effect that they had.
const WHOLE_VOLUME_BYTES_MAX: u64 = 4 << 40;
/// Most slices of which one node had copies when those two were proposed.
const COPIES_PER_NODE_MAX: usize = 16_384;
/// Most copies of a slice.
pub const COPIES_MAX: u32 = 7;
/// Longest volume name in bytes; it is a part of the iSCSI name, which ends at 223.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;
