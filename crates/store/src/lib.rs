//! Journal and home of blocks on one node: crash-safe, checksummed, thin.
//!
//! A write becomes durable in the [journal](crate::Store::append) (stage 1) and is moved to the
//! home (stage 2) once it is *stable*: journaled on all in-sync copies of its slice. What must
//! always hold:
//!
//! * the home contains only stable records, so a truncation can always take back the others;
//! * an acknowledged record is found by recovery unless truncated or destaged; a damaged one is
//!   *unknown*, never *absent*;
//! * a read returns the newest version up to the stable point, never bytes whose checksum
//!   (with volume, slice and block mixed in) does not match;
//! * a lower sequence number never overwrites a higher one in the home;
//! * after one failed write or sync every later call that changes something fails.
//!
//! Areas, each with a folder of its own: `journal` (ring, durable writes), `home` (segments and
//! their map, synced), `facts` (promises, copy states, stable points and voids: a log with
//! snapshots, in two copies). What joins them is in `store`; `inspect` looks at them at rest.
//!
//! A destage round makes the stable points durable, writes the home, syncs it, makes that count
//! by an edit of the home's manifest, and only then frees the journal: so whatever of the home a
//! crash cuts off has its whole record in the journal, known to be stable.
//!
//! Segments that are free go back to the device in the background, once it is durable that they
//! are.
//!
//! Memory: about 120 MiB for each TiB of blocks in use (see the home's map), recent facts and a
//! cache of at most 80 MiB together, and the journal-resident data.
#![forbid(unsafe_code)]

mod bounds;
mod encoding;
mod error;
mod facts;
mod form;
mod home;
pub mod inspect;
mod journal;
mod poison;
mod record;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;

pub use bounds::StoreBounds;
pub use error::StoreError;
pub use home::{HOME_BYTES_MAX, HOME_BYTES_MIN, home_owner};
pub use journal::journal_owner;

pub use record::{
    BLOCK_BYTES, Body, Copied, CopiedBlock, CopyState, JournalEnd, OperationId, Record,
    RecoveryReport, Seq, SliceKey, TailEntry, Usage, View,
};
pub use store::mapped::MappedRun;
pub use store::verify::{DamagedBlocks, Verified, VerifyPosition};
pub use store::{Installed, Store, StoreOptions};
