//! One node of the cluster, assembled from its parts over any runtime.
//!
//! ```text
//!   Portal ── Owner* ── Holder ── Store         disks
//!      │        │          │
//!      └────────┴── Rpc ───┴──── Gossip         links
//!               │
//!          ConfigGroup (Raft) ──────────────    disks, links
//! ```
//!
//! [`Node::start`] takes a runtime, a directory and links: the host's or the simulator's. The
//! tasks here only connect the parts: they follow the config state (peers, owners, deleted
//! volumes), report what gossip suspects to the config group if this node leads it, and keep the
//! node registered as running.
#![forbid(unsafe_code)]
// A log or an output that cannot be written must not panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod balance;
mod config;
mod connectivity;
mod device;
mod drain_meter;
mod follow;
mod fullness;
mod grace;
mod heal;
mod isolation;
mod mending;
mod monitor;
mod moves;
mod node;
mod options;
mod register;
mod reservations;
mod scrub;
mod shutdown;
mod status;
mod sweep;
mod under_way;

pub use balance::{
    BalanceOptions, BalanceReport, Effort, Holding, PlannedCopy, PlannedMove, Scope, plan_copies,
};
pub use device::VolumeDevice;
pub use drain_meter::DrainWork;
pub use fullness::{Fullness, FullnessWatch, Thresholds};
pub use moves::{HOST_PAUSE, MoveCause, MoveError};
pub use node::{Failure, Node, NodeError};
pub use options::{NodeIdentity, NodeOptions};
pub use reservations::VolumeReservations;
pub use scrub::{ScrubOptions, ScrubOrder, ScrubPass, ScrubStatus};
pub use status::NodeReport;

pub use holdfast_runtime::rpc::MissingLink;
pub use holdfast_store::StoreBounds;
pub use holdfast_volume::{AccessError, IoError, Operation, VolumeBounds, WaitReason, Waiting};
