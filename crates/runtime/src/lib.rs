//! The one door to the machine: disks, links between nodes, clock and randomness.
//!
//! Everything above this crate is written against [`Runtime`], [`Disk`], [`Directory`] and
//! [`Links`]; `host` implements them with system calls, the simulator with an event queue. What
//! must always hold:
//!
//! * code above this crate is single-threaded per shard (`!Send` futures) and reads time,
//!   randomness, disks and peers only from here, so one seed decides a whole run;
//! * a [`Links`] frame may be lost, delayed, reordered or duplicated; [`rpc`] makes a request
//!   run at most once, nothing makes it arrive;
//! * a disk write is durable when it completes on a disk opened with
//!   [`DiskOptions::durable_writes`], else when a later [`Disk::sync`] completes.
// A log or an output that cannot be written must not panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod ambient;
pub mod buffer;
pub mod disk;
pub mod host;
pub mod links;
pub mod planted;
pub mod reach;
pub mod rpc;
pub mod task;
pub mod time;
pub mod work;

pub use buffer::{Buffer, PAGE_BYTES};
pub use disk::{Allocation, Directory, Discarded, Disk, DiskError, DiskOptions};
pub use links::{DownReason, Frame, Incarnation, LinkEvent, Links, NodeId};
pub use rpc::{Rpc, RpcError, Service};
pub use task::{Backend, Runtime, STALL_BOUND, Stalls, Task};
pub use time::Instant;
