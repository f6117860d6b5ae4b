//! What the command set needs from a volume.

use std::rc::Rc;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use holdfast_path::Requester;
use thiserror::Error;

/// The identity and geometry of a volume: equal on every path and, but for the capacity, for
/// ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// NAA-6 designator, first nibble 6 (SPC-4 7.8.6.6.5).
    pub naa: [u8; 16],
    /// Unit serial number, printable ASCII.
    pub serial: Rc<str>,
    /// T10 vendor identification; cut or padded to 8 bytes.
    pub vendor: Rc<str>,
    /// Product identification; cut or padded to 16 bytes.
    pub product: Rc<str>,
    /// Product revision; cut or padded to 4 bytes.
    pub revision: Rc<str>,
    /// 512 or 4096.
    pub logical_block_bytes: u32,
    /// Capacity, a multiple of `logical_block_bytes`. May change between two calls.
    pub capacity_bytes: u64,
}

/// Why a device did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// Nothing changed; the same request may succeed later.
    #[error("the volume is busy; nothing changed, retry later")]
    Busy,
    /// Nothing changed: no space is left for the write.
    #[error("no space is left; nothing changed")]
    Full,
    /// The medium failed at this byte offset. A write may have changed any part of its range.
    #[error("medium error at byte {offset}; a write may have taken effect in part")]
    Medium {
        /// Byte offset of the first block that failed.
        offset: u64,
    },
    /// A reservation forbids the access. Nothing changed, except perhaps a part of a write that
    /// was under way when the reservation came.
    #[error("a reservation forbids the access")]
    Reserved,
    /// The volume was deleted; nothing changed.
    #[error("the volume no longer exists; nothing changed")]
    Gone,
    /// The volume cannot be reached from here; nothing changed, and nothing will.
    #[error("the volume cannot be reached through this port; nothing changed")]
    Unreachable,
    /// The outcome is open and cannot be found out: the initiator must not be answered.
    #[error("the outcome is unknown; a write may have taken effect")]
    Unknown,
    /// The device failed: a write may have taken effect in part or in whole.
    #[error("internal failure; a write may have taken effect")]
    Internal,
}

/// What a compare-and-write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOutcome {
    /// The blocks were equal and have been written, durably.
    Written,
    /// The blocks differ first at this byte, counted from the start of the range; nothing was
    /// written.
    Miscompare {
        /// Byte offset of the first difference within the range.
        offset_bytes: u32,
    },
}

/// A run of blocks in one provisioning state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedExtent {
    /// Whether the run holds data; an unmapped run reads as zeroes.
    pub mapped: bool,
    /// Length of the run in bytes, more than none.
    pub length_bytes: u64,
}

/// A virtual disk. All offsets and lengths are multiples of the logical block size and lie
/// within the capacity that [`BlockDevice::identity`] gave last, or just before a resize.
///
/// An access says on whose behalf it is made: where it is executed, reservations are checked
/// against the requester's standing once more, and nothing is changed for a path that has ended.
///
/// Dropping a returned future need not stop what it began; callers await it before they promise
/// that a request can no longer take effect.
pub trait BlockDevice {
    /// Identity and geometry; cheap.
    fn identity(&self) -> DeviceIdentity;

    /// The bytes of a range; exactly `length_bytes` of them.
    fn read(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> LocalBoxFuture<'static, Result<Bytes, DeviceError>>;

    /// Replaces a range; durable when it resolves to `Ok`.
    fn write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        data: Bytes,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>>;

    /// Makes a range read as zeroes, giving its space back where it can; durable when it resolves
    /// to `Ok`.
    fn zero(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>>;

    /// Resolves when every write acknowledged before the call is durable.
    fn flush(&self) -> LocalBoxFuture<'static, Result<(), DeviceError>>;

    /// Compares a range with `compare` and, only if equal, replaces it by `write`, as one action
    /// that no other access to the range can see the middle of.
    fn compare_and_write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        compare: Bytes,
        write: Bytes,
    ) -> LocalBoxFuture<'static, Result<CompareOutcome, DeviceError>>;

    /// How much of the space is left in which blocks are kept, in percent; an estimate, and cheap.
    /// `None` from a device that does not know.
    fn available_percent(&self) -> Option<u8> {
        None
    }

    /// The runs of equal provisioning state that begin at `offset_bytes`: one at least, as few and
    /// as long as can be told at once, together at most `length_bytes` long. A device that does
    /// not know says mapped.
    fn mapped_extents(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<Vec<MappedExtent>, DeviceError>> {
        let _ = (requester, offset_bytes);
        Box::pin(std::future::ready(Ok(vec![MappedExtent {
            mapped: true,
            length_bytes,
        }])))
    }
}
