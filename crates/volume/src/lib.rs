//! The owner of a volume: orders I/O, routes reads, takes over.
//!
//! ```text
//!  portal (any node) ── Io ──► owner ── Append ──► copies
//!    retries, same             │  ▲                  │
//!    operation number          │  └── Ack ◄──────────┘
//!                              └── config group: Opened, RemoveCopy, PromoteCopy
//! ```
//!
//! What must always hold:
//!
//! * an owner answers a write only when every required copy has journaled it;
//! * an owner answers a read only from stable data, and only if after fetching it the leases of
//!   every other required copy are alive and this node has promised no later view;
//! * a change takes effect within [`GIVEN_UP_BOUND`] after the host gave up the path that it came
//!   by, or never: the owner orders it only on evidence, judged by its own clock, that the host
//!   still holds on to the path;
//! * an operation takes effect at most once, however often its portal repeats it: the number
//!   travels into the journal and is found again by a takeover;
//! * nothing is served before the takeover has made all copies that count identical;
//! * a slice that was never written to is zero, and nobody is asked about it: who could have placed
//!   it meanwhile would first have had to fence the copies whose leases this owner has.
#![forbid(unsafe_code)]

mod bounds;
mod context;
mod copied;
mod lease_clerk;
mod owner;
mod portal;

pub use bounds::VolumeBounds;
pub use context::{COPYING_MAX, Config, Context};
pub use copied::{CopiedBytes, DrainKey};
pub use lease_clerk::LeaseClerk;
pub use owner::{
    GIVEN_UP_BOUND, HEAL_BLOCKS_MAX, Owner, OwnerStatus, ResyncStatus, Traffic, WaitReason,
    Waiting, serve_healing,
};
pub use portal::{AccessError, CUT_OFF_AFTER, IoError, Operation, Portal};
