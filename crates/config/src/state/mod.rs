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
mod eviction;
mod front;
mod growth;
mod ownership;
mod records;
mod supplement;

#[cfg(test)]
mod tests;

pub use change::{Admission, Change, NodeStart, Outcome, Reconciled, Refusal, VolumeSpec};
pub use front::{Front, FrontChange, INITIATORS_MAX, RetiringSecret};
pub use records::{
    Chap, ClusterIdentity, ClusterState, CopyRecord, CopyStatus, Growth, NodeRecord, NodeStatus,
    Office, Owner, SliceRecord, TokenRecord, VolumeRecord,
};

/// Bytes of a slice, the unit of placement.
pub const SLICE_BYTES: u64 = 1 << 30;
/// Largest volume: bounds the slice directory, which lives in memory on every node.
pub const VOLUME_BYTES_MAX: u64 = 4 << 40;
/// Most slices of which one node has copies: its store keeps durable account of each, in an area of
/// fixed size that holds some more, and a volume that no store can take would never open.
pub const COPIES_PER_NODE_MAX: usize = 16_384;
/// Most copies of a slice.
pub const COPIES_MAX: u32 = 7;
/// Longest volume name in bytes; it is a part of the iSCSI name, which ends at 223.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;
