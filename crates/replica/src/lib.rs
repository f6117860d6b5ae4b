//! The replicated write stream: append, acknowledge, fence, resync of one copy.
//!
//! A slice's writes form a stream of records 1, 2, 3, … that its owner sends to every copy.
//! [`stream::Stream`] is the owner's end of it, [`receive::Receiver`] the copy's, both pure;
//! [`holder::Holder`] runs the copies of one node over its store. What must always hold:
//!
//! * a copy journals the stream in order and without gaps, and acknowledges only what is durable;
//! * `stable` is the position up to which **every** required copy has acknowledged; only stable
//!   records are read, destaged or copied to others;
//! * a copy that has promised a view takes nothing from an older one, and answers a fence only
//!   when no lease that it granted under an older view can still be used;
//! * `base(copy)`, the position up to which a copy claims to be complete, never exceeds what was
//!   stable in a view that opened, so a resync from `base` copies everything that differs.
#![forbid(unsafe_code)]

pub mod grants;
pub mod holder;
mod holder_forget;
mod holder_join;
mod holder_map;
pub mod holder_takeover;
pub mod messages;
pub mod receive;
pub mod stream;

pub use holder::Holder;
pub use holder_forget::{Dropped, Seen, Unplaced};

use std::time::Duration;

/// For how long an owner may serve reads after it **sent** the lease request that a copy granted.
pub const LEASE: Duration = Duration::from_millis(1500);

/// For how long a copy that **received** a lease request holds back the fence of a later view.
/// The eighth on top covers clocks whose rates differ by up to 12 percent.
pub const LEASE_GRACE: Duration = Duration::from_millis(1500 + 1500 / 8);

/// An owner gets a lease if it has heard the granter so lately: one to which answers get no more
/// shall not hold back the next owner for as long as its requests arrive.
pub const HEARD_WITHIN: Duration = Duration::from_millis(800);

const _: () = assert!(LEASE_GRACE.as_millis() > LEASE.as_millis());
