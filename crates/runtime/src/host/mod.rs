//! The host's side of the door: system calls, and the project's only `unsafe`.
//!
//! [`run`] makes the current thread a shard; inside it, [`HostDirectory`] gives disks,
//! [`ReadOnlyDirectory`] those of a node that does not run, to look at, and [`HostLinks`] the links
//! to other nodes. [`ClusterAuthority`] signs the certificates that
//! links ask for, [`JoinToken`] and [`join`] bring a new machine in.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the one place that makes system calls"
)]

mod area;
mod authority;
mod directory;
mod discard;
mod disk;
mod executor;
mod frame;
mod greeting;
mod identity;
pub mod join;
mod link;
mod links;
#[cfg(test)]
mod links_test;
mod mesh;
#[cfg(test)]
mod moved_test;
mod problem;
mod process;
mod read_only;
mod ring;
mod stalls;
mod stream;
mod tls;
mod token;

pub use area::available_bytes;
pub use authority::{AuthorityError, AuthorityFingerprint, ClusterAuthority, NodeCredentials};
pub use directory::{HostDirectory, write_atomically};
pub use disk::{DISK_METHOD_VARIABLE, DiskMethod};
pub use executor::run;
pub use frame::{FrameError, LinkRefusal};
pub use identity::{ClusterId, NodeUuid, NotAnId};
pub use links::{BindError, HostLinks, JoinHandler, LinksConfig, PeerStatus};
pub use problem::LinkProblem;
pub use process::{ignore_output_signals, ignores, raise_descriptor_limit};
pub use read_only::{ReadOnlyDirectory, read_ends};
pub use stalls::{Timed, timed};
pub use token::{JoinToken, TokenError};
