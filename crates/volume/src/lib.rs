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
//! * nothing is served before the takeover has made all copies that count identical.
#![forbid(unsafe_code)]

mod bounds;
mod context;
mod growth;
mod heal;
mod io;
mod leases;
mod locks;
mod mapped;
mod open;
mod owner;
mod paths;
mod portal;
mod reads;
mod reservations;
mod resync;
mod slice;
mod takeover;
mod waiting;
mod writes;

pub use bounds::VolumeBounds;
pub use context::{Config, Context};
pub use heal::{HEAL_BLOCKS_MAX, serve_healing};
pub use owner::{Owner, OwnerStatus, ResyncStatus, Traffic};
pub use paths::GIVEN_UP_BOUND;
pub use portal::{AccessError, CUT_OFF_AFTER, IoError, Operation, Portal};
pub use waiting::{WaitReason, Waiting};
