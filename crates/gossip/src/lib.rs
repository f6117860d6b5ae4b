//! Membership and health rumours, and small facts that every node publishes about itself.
//!
//! Promises:
//!
//! * **Gossip suspects, it never decides.** [`Health`] is evidence for the config group; no view,
//!   ownership or in-sync set may follow from it alone.
//! * A silent peer is `Suspect`, then `Down`, within a few seconds ([`Options`]); a peer whose
//!   live host refuses the connection is `Down` with [`Proof::Refused`] at once, and for exactly
//!   the incarnation that was seen before.
//! * A restarted peer (larger incarnation) replaces its former self, its published values too.
//! * What a node publishes reaches every connected node in O(log n) rounds of
//!   [`Options::exchange_period`], in version order: no node shows a newer value of one key beside
//!   an older value of another that the origin had already replaced before.
//! * Memory is bounded by the number of peers. No bytes from a peer can cause a panic.
//! * One seed and one order of events give one behaviour: foca keeps its state in vectors and
//!   binary heaps, this crate in ordered maps, and both draw from seeded generators.
//!
//! How: [`Core`] is pure, `handle(now, event) -> commands`, over foca (SWIM: probes, indirect
//! probes, suspicion, refutation) and a scuttlebutt directory (PROTOCOLS 3.1, 3.2). [`Gossip`] is
//! the thin shell that joins a core to a node's runtime and links.
//!
//! ```text
//!            silence (probe and indirect probes)        no refutation
//!   Alive ───────────────────────────────────▶ Suspect ───────────────▶ Down
//!     ▲  ◀──────── refuted by the member ──────────┘                     │ ▲
//!     └──── a larger incarnation, or the member says that it lives ──────┘ │
//!   any ─────────── connection refused: that incarnation is gone ──────────┘
//! ```

#![forbid(unsafe_code)]

mod anti_entropy;
mod codec;
mod core;
mod health;
mod options;
mod shell;

pub use anti_entropy::{KEY_BYTES_MAX, KEYS_MAX, PublishError, Published, VALUE_BYTES_MAX};
pub use core::{Command, Core, Event, Member};
pub use health::{Health, HealthChange, Proof, Status};
pub use options::Options;
pub use shell::Gossip;
