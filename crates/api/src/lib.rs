//! REST /v1 with its OpenAPI document, and the client for it.
//!
//! ```text
//!  HTTP ─ routes ─ Request ──(channel)──► Administration ─ Node     one thread, local
//!  client ─ HTTP                              └─ peers ─ links between nodes ─► other nodes
//! ```
//!
//! What it promises:
//!
//! * every error is a [`Problem`] (RFC 9457) with a hint at what to do next, also for requests
//!   that no route takes;
//! * secrets leave the API once, in the answer to the request that made them, and appear in no
//!   listing, log or error;
//! * whatever a node cannot know is absent or "unknown", never guessed.
//!
//! axum wants `Send` handlers and a node lives on one thread, so handlers only translate: each
//! sends a [`Request`] with a channel for its answer to whoever answers on the node's thread.
#![forbid(unsafe_code)]
// A log or an output that cannot be written must not panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod administration;
mod balance;
mod client;
mod listing;
mod names;
mod openapi;
mod peers;
mod problem;
mod reports;
mod requests;
mod routes;
mod secrets;
mod serve;
mod service;
#[cfg(test)]
mod testing;
mod types;
mod views;

pub use administration::{Administration, NO_CLUSTER};
pub use balance::{
    Balance, BalanceChange, BalanceMove, CopyBalance, CopyBalanceMove, CopyMoves, CopyMovesBegun,
    NodeBurden, NodeHolding, WhichMoves,
};
pub use client::{Client, ClientError};
pub use listing::{NodePage, SlicePage, VolumePage, WhichNodes, WhichSlices, WhichVolumes};
pub use openapi::document;
pub use problem::{Problem, ProblemKind};
pub use requests::{Reply, Request, RequestSender};
pub use routes::{Access, router};
pub use serve::serve;
pub use types::{
    Authentication, ChapCredentials, ClusterPhase, ClusterStatus, CreatedVolume, DrainPlan,
    DrainShare, DrainStatus, DrainTarget, Holder, Integrity, JoinTokenText, Knowledge, LinkStatus,
    MissingLink, NewCluster, NewOwner, NewSecret, NewToken, NewVolume, NodeState, NodeStatus,
    OldestIo, OwnerReport, Redundancy, Resync, RotatedSecret, ScrubAction, ScrubOrder, ScrubPass,
    SelfReport, SliceCopy, SliceStatus, SpaceLevel, Stalls, StoreUsage, VolumeChange, VolumeState,
    VolumeStatus, Wait, WaitKind,
};

/// The API's port, where none is given.
pub const DEFAULT_PORT: u16 = 7401;
