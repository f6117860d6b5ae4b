//! The area of the facts as chunks in pairs, and chains of them that are written to the end.
//!
//! ```text
//! area  = slot, slot, ...          as many as are needed: the area grows
//! slot  = chunk | chunk            two copies of the same bytes
//! chunk = entry | entry | ...      each entry in whole pages
//! chain = the slots of one generation, in the order that their entries name
//! ```
//!
//! Nothing is written over what an entry occupies, but the same bytes: a torn write costs at most
//! the entry it was to write, and damage to one copy nothing.
//!
//! Tested in `facts/tests.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;

use holdfast_runtime::{Allocation, Buffer, Directory, Disk, DiskError, DiskOptions, PAGE_BYTES};

use super::AREA;
use super::entry::{EDITS_MAX, ENTRY_BYTES_MAX, EntryKind, EntryPlace, encode};
use super::state::Edit;
use crate::bounds::StoreBounds;

/// Bytes of one copy of a slot.
pub(super) const CHUNK_BYTES: usize = 128 << 10;
pub(super) const SLOT_BYTES: u64 = 2 * CHUNK_BYTES as u64;
/// Slots of a new area. The log of few facts turns round in them: the area takes no more space
/// whatever comes and goes, and never gives any back.
pub(super) const SLOTS_MIN: u32 = 8;
const _: () = assert!(
    StoreBounds::SERVICE.facts_log_bytes + 3 * CHUNK_BYTES as u64
        <= SLOTS_MIN as u64 * CHUNK_BYTES as u64,
    "a log when its snapshot is due, what is added meanwhile, and the snapshot"
);

const _: () = assert!(ENTRY_BYTES_MAX * 4 <= CHUNK_BYTES, "few pages stay unused");

/// How the area is opened with room for so many slots.
pub(crate) fn area_options(slots: u32) -> DiskOptions {
    DiskOptions {
        size_bytes: u64::from(slots) * SLOT_BYTES,
        durable_writes: true,
        allocation: Allocation::Written,
    }
}

/// Where a byte of a slot's copy lies in the area.
pub(super) fn byte_at(slot: u32, copy: usize, within: usize) -> u64 {
    u64::from(slot) * SLOT_BYTES + (copy * CHUNK_BYTES + within) as u64
}

/// The slots, and which of them nobody needs.
pub(super) struct Space {
    /// `None`: the area is only looked at.
    pub(super) directory: Option<Rc<dyn Directory>>,
    pub(super) disk: Rc<dyn Disk>,
    pub(super) identity: [u8; 16],
    pub(super) slice_blocks: u32,
    pub(super) free: BTreeSet<u32>,
}

/// The entries of one generation, written one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) generation: u64,
    pub(super) slots: Vec<u32>,
    /// Bytes of the last slot that have entries.
    pub(super) filled: usize,
    /// Number of the next entry.
    pub(super) number: u64,
    /// Bytes of all entries.
    pub(super) bytes: u64,
}

impl Chain {
    pub(super) fn new(generation: u64) -> Self {
        Self {
            generation,
            slots: Vec::new(),
            filled: CHUNK_BYTES,
            number: 0,
            bytes: 0,
        }
    }
}

impl Space {
    /// How many slots the area has.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.disk.size_bytes() / SLOT_BYTES).unwrap_or(u32::MAX)
    }

    /// Writes both copies of a part of a slot.
    pub(super) async fn write(
        &self,
        slot: u32,
        within: usize,
        bytes: Buffer,
    ) -> Result<(), DiskError> {
        let first = self.disk.write(byte_at(slot, 0, within), bytes.clone());
        let second = self.disk.write(byte_at(slot, 1, within), bytes);
        let (first, second) = futures::join!(first, second);
        first.and(second)
    }

    /// Lets a generation be read no more.
    pub(super) async fn wipe(&self, first_slot: u32) -> Result<(), DiskError> {
        self.write(first_slot, 0, Buffer::zeroed(PAGE_BYTES)).await
    }

    /// Writes one entry behind the chain's last one.
    pub(super) async fn append(
        &mut self,
        chain: &mut Chain,
        kind: EntryKind,
        edits: &[Edit],
    ) -> Result<(), DiskError> {
        let mut place = EntryPlace {
            generation: chain.generation,
            chunk: chain.slots.len().saturating_sub(1) as u32,
            number: chain.number,
        };
        let (identity, slice_blocks) = (self.identity, self.slice_blocks);
        let mut bytes = encode(identity, slice_blocks, kind, place, edits);
        if chain.filled + bytes.len() > CHUNK_BYTES {
            place.chunk = chain.slots.len() as u32;
            bytes = encode(identity, slice_blocks, kind, place, edits);
            chain.slots.push(self.take_slot().await?);
            chain.filled = 0;
        }
        let slot = chain.slots[place.chunk as usize];
        let length = bytes.len();
        self.write(slot, chain.filled, bytes).await?;
        chain.filled += length;
        chain.number += 1;
        chain.bytes += length as u64;
        Ok(())
    }

    /// Writes edits that take effect together.
    pub(super) async fn append_all(
        &mut self,
        chain: &mut Chain,
        edits: &[Edit],
    ) -> Result<(), DiskError> {
        let parts = edits.chunks(EDITS_MAX).len();
        for (part, number) in edits.chunks(EDITS_MAX).zip(0..) {
            let kind = EntryKind::of_part(number, parts);
            self.append(chain, kind, part).await?;
        }
        Ok(())
    }

    /// A slot that nobody needs; the area grows if there is none.
    async fn take_slot(&mut self) -> Result<u32, DiskError> {
        if self.free.is_empty() {
            self.grow(1).await?;
        }
        let slot = self.free.pop_first();
        Ok(slot.expect("an area that has grown has free slots"))
    }

    /// Makes the area larger, by a quarter at least, if it has fewer free slots than these.
    pub(super) async fn grow(&mut self, wanted: u32) -> Result<(), DiskError> {
        let lacking = wanted.saturating_sub(self.free.len() as u32);
        let Some(directory) = self.directory.clone().filter(|_| lacking > 0) else {
            return Ok(());
        };
        let slots = self.slots();
        let more = slots + lacking.max(slots / 4).max(SLOTS_MIN);
        self.disk = directory.open(AREA, area_options(more)).await?;
        let grown = self.slots();
        if grown <= slots {
            return Err(DiskError::Full {
                name: AREA.to_owned(),
                wanted_bytes: area_options(more).size_bytes,
            });
        }
        self.free.extend(slots..grown);
        Ok(())
    }
}
