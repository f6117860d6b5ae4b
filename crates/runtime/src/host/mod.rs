//! The host's side of the door: system calls, and the project's only `unsafe`.
//!
//! [`run`] makes the current thread a shard; inside it, [`HostDirectory`] gives disks and
//! [`HostLinks`] the links to other nodes. [`ClusterAuthority`] signs the certificates that
//! links ask for, [`JoinToken`] and [`join`] bring a new machine in.

mod directory;
mod disk;
mod executor;
mod ring;

pub use directory::{HostDirectory, write_atomically};
pub use disk::{DISK_METHOD_VARIABLE, DiskMethod};
pub use executor::run;
