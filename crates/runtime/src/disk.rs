//! Disks as the layers above see them: a few named, fixed-size, page-addressed areas.

use std::rc::Rc;

use futures::future::LocalBoxFuture;
use thiserror::Error;

use crate::buffer::Buffer;

/// One disk area (a file or a block device). Offsets and lengths are multiples of
/// [`crate::PAGE_BYTES`]; violating that is a bug and panics.
///
/// Crash semantics: an uncompleted or unsynced write may survive wholly, partly at 512-byte
/// granularity, or not at all, in any order with others. Concurrent operations on overlapping
/// ranges have no defined order.
pub trait Disk {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;
    /// Reads `len` bytes at `offset`.
    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>>;
    /// Writes the whole buffer at `offset`.
    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>>;
    /// Makes every write that completed before this call durable.
    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>>;
    /// Gives a range that nobody needs back to the device. Until it is written again it reads as
    /// any bytes, different ones each time perhaps; after a crash, too, unless an earlier content
    /// is still there. An error changes nothing about that. Disks that say nothing else take
    /// nothing back.
    fn discard(
        &self,
        _offset: u64,
        _len: u64,
    ) -> LocalBoxFuture<'static, Result<Discarded, DiskError>> {
        Box::pin(std::future::ready(Ok(Discarded::Unsupported)))
    }
}

/// What became of a discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// The device has the range.
    Done,
    /// The device takes nothing back; it was not changed, and need not be asked again.
    Unsupported,
}

/// How to open a disk area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Wanted size in bytes, a multiple of the page size. A new area reads zero; an existing one is
    /// grown if it is smaller and never shrunk. Of a block device no more than that is used, or
    /// all of it if the size is zero.
    pub size_bytes: u64,
    /// Writes are durable when they complete (`O_DSYNC`), without a `sync`.
    pub durable_writes: bool,
    /// When the space for it is taken. A block device has it all.
    pub allocation: Allocation,
}

/// When an area takes its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// As it is written, and given back when it is discarded: a write may meet a full disk.
    Sparse,
    /// All of it when it is made or grown, for good: no write meets a full disk.
    Reserved,
    /// The same, and it is written once, so that no later write pays for turning reserved space
    /// into written space.
    Written,
}

/// The named disk areas of one node, in one directory.
pub trait Directory {
    /// Opens the area, creating it if absent.
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>>;
    /// Whether the area exists.
    fn exists(&self, name: &str) -> bool;
    /// Removes an area; removing an absent one is no error.
    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>>;
}

/// Why a disk operation failed. After a failed write or sync the durable state of the affected
/// range is unknown: whoever gets it must latch, not retry.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiskError {
    /// The device reported an error; for writes the state of the range is unknown.
    #[error("{operation} of {name} at byte {offset} failed: {reason}")]
    Io {
        /// The area.
        name: String,
        /// `read`, `write`, `sync`, `discard` or `open`.
        operation: &'static str,
        /// Byte offset in the area.
        offset: u64,
        /// The operating system's words.
        reason: String,
    },
    /// No space left for the area; nothing was changed.
    #[error(
        "no space for {name}: {wanted_bytes} bytes wanted. Free space or choose a smaller size"
    )]
    Full {
        /// The area.
        name: String,
        /// Bytes asked for.
        wanted_bytes: u64,
    },
    /// Another process has the directory open; nothing was changed.
    #[error("{name} is in use by another process")]
    InUse {
        /// The directory or area.
        name: String,
    },
}
