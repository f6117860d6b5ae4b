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
//! Areas: `journal` (ring, durable writes), `home` (segments and their map, synced), `facts` (two
//! copies of promises, copy states, stable points and voids). A destage round makes the stable
//! points durable, writes the home, syncs it, makes that count by an edit of the home's manifest,
//! and only then frees the journal: so whatever of the home a crash cuts off has its whole record
//! in the journal, known to be stable.
//!
//! Segments that are free go back to the device in the background, once it is durable that they
//! are.
//!
//! Memory: about 120 MiB for each TiB of blocks in use (see the home's map), recent facts and a
//! cache of at most 80 MiB together, and the journal-resident data.
#![forbid(unsafe_code)]

mod batch;
mod bounds;
mod destage;
mod discard;
mod encoding;
mod error;
mod facts;
mod form;
mod home;
mod index;
pub mod inspect;
mod item;
mod journal;
mod mapped;
mod poison;
mod read_in;
mod record;
mod recovery;
mod ring;
mod scan;
mod store;
mod submission;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transfer;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use bounds::StoreBounds;
pub use error::StoreError;
pub use home::{HOME_BYTES_MAX, home_owner};
pub use journal::journal_owner;
pub use mapped::MappedRun;
pub use record::{
    BLOCK_BYTES, Body, Copied, CopiedBlock, CopyState, JournalEnd, OperationId, Record,
    RecoveryReport, Seq, SliceKey, TailEntry, Usage, View,
};
pub use store::{Installed, Store, StoreOptions};
pub use verify::{DamagedBlocks, Verified, VerifyPosition};
