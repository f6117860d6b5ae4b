//! The project's own iSCSI initiator, and a load generator that remembers every acknowledged
//! write: used by the demo, the benchmarks and the end-to-end tests.
//!
//! It is written from RFC 7143 and shares no code with the target in this repository, so that
//! each checks the other. Where it has a choice it is strict: a sequence number out of place or
//! a residual that does not add up ends the session with a [`ProtocolError`].
//!
//! - [`Session`]: one connection to one portal; [`discover`] lists a portal's targets.
//! - [`Disk`]: one disk behind several portals, with failover.
//! - [`Load`] and [`verify`]: generate I/O and prove that no acknowledged write was lost, with
//!   the [`Ledger`] as the memory of what was acknowledged.
//!
//! Everything runs on one thread: a tokio `current_thread` runtime inside a
//! [`tokio::task::LocalSet`]. Outside a `LocalSet` making a session panics.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "real time, sockets and tasks: the initiator is the world outside the simulator"
)]

mod chap;
mod engine;
mod error;
mod exchange;
mod histogram;
mod ledger;
mod load;
mod login;
mod multipath;
mod options;
mod paths;
mod pdu;
#[cfg(test)]
mod scripted_target;
mod scsi;
mod session;
mod statistics;
mod text;
mod transport;
mod verify;

pub use chap::{Chap, ChapAlgorithm, MutualChap, Secret};
pub use error::{Error, LostReason, ProtocolError};
pub use histogram::Histogram;
pub use ledger::{BLOCK_BYTES, Ledger, LedgerFileError, Verdict, fill_block};
pub use load::{BlockDevice, Load, LoadOptions, SizeWeight};
pub use multipath::{Disk, DiskOptions, PathCounters};
pub use options::{DigestOffer, Isid, Negotiated, SessionOptions};
pub use pdu::Residual;
pub use scsi::{BlockRange, Capacity, Command, Inquiry, Transfer};
pub use session::{CommandOutput, DiscoveredTarget, Health, Session, discover};
pub use statistics::{Findings, Gap, Statistics};
pub use verify::{VerifyOptions, VerifyProgress, VerifyReport, verify};
