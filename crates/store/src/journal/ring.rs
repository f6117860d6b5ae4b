//! Reading the ring by positions, which count on beyond its end.
//!
//! Tested with the whole store: `tests/damage.rs`.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Disk, PAGE_BYTES};

use crate::error::StoreError;
use crate::journal::batch::{BATCH_BYTES_MAX, HEADER_BYTES_MAX, Opening, SUPPORTED};
use crate::journal::item::Item;
use crate::journal::{AREA, RING_AT};
use crate::record::BLOCK_BYTES;

/// What is read at once of a large ring; of a small one less, so that it is read in many steps too,
/// and simulations see what happens between them.
const CHUNK_BYTES: u64 = 1 << 20;
const CHUNK_SHARE: u64 = 32;
/// From this size of a batch on it takes less time to ask for the next header than to read on to
/// it: a disk does some ten thousand requests a second, or a few gigabytes.
const SKIPPED_BYTES: u64 = 256 << 10;
/// How far beyond an unreadable place a later batch is looked for.
const LOOK_AHEAD_BYTES: u64 = 2 * BATCH_BYTES_MAX as u64;
/// What unreadable pages are taken to contain: no structure here begins like that.
const UNREADABLE: u8 = 0xa5;

/// What lies at a position.
pub(crate) enum Place {
    /// A batch of this lap with an intact header.
    Batch(Opening, Vec<Item>),
    /// The first page of a batch of this lap, whose header is incomplete.
    Begun,
    /// Nothing of this lap.
    Other,
}

/// The ring, and the part of it that was read last.
pub(crate) struct Ring {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    bytes: u64,
    chunk: Option<(u64, Bytes)>,
    chunk_bytes: u64,
}

impl Ring {
    /// A ring of `bytes` on this disk.
    pub(crate) fn new(disk: Rc<dyn Disk>, identity: [u8; 16], bytes: u64) -> Self {
        Self {
            disk,
            identity,
            bytes,
            chunk: None,
            chunk_bytes: chunk_bytes(bytes),
        }
    }

    /// The batch at a position, without the data of its items.
    pub(crate) async fn batch(&mut self, position: u64, limit: u64) -> Result<Place, StoreError> {
        if position >= limit {
            return Ok(Place::Other);
        }
        let Some((opening, header)) = self.header(position, limit).await? else {
            let page = self.read(position, PAGE_BYTES).await;
            let begun = Opening::read(self.identity, &page)
                .is_some_and(|opening| opening.place.position == position);
            return Ok(if begun { Place::Begun } else { Place::Other });
        };
        // The next one is likely to be as large.
        self.chunk_bytes = match opening.batch_bytes() {
            SKIPPED_BYTES.. => HEADER_BYTES_MAX as u64,
            _ => chunk_bytes(self.bytes),
        };
        Ok(match opening.items(&header) {
            Some(items) => Place::Batch(opening, items),
            None => Place::Begun,
        })
    }

    /// Reads the data of a batch's items that was not read yet.
    pub(crate) async fn read_data(&mut self, items: &mut [Item]) {
        let mut unread = items.iter().filter_map(|item| {
            let end = item.unread? + item.checksums.len() as u64 * BLOCK_BYTES as u64;
            item.unread.zip(Some(end))
        });
        let Some((first, end)) = unread.next() else {
            return;
        };
        // One item's data follows the other's.
        let end = unread.next_back().map_or(end, |(_, end)| end);
        self.chunk_bytes = chunk_bytes(self.bytes);
        let data = self.read(first, (end - first) as usize).await;
        for item in items {
            if let Some(at) = item.unread {
                let within = (at - first) as usize;
                let bytes = item.checksums.len() * BLOCK_BYTES;
                item.take_in(data.slice(within..within + bytes));
            }
        }
    }

    /// A batch header of this lap at `position`, if it is intact.
    pub(crate) async fn header(
        &mut self,
        position: u64,
        limit: u64,
    ) -> Result<Option<(Opening, Bytes)>, StoreError> {
        let belongs = |opening: &Opening| {
            let is_here =
                opening.place.position == position || planted::is_active(Bug::AcceptStaleLap);
            is_here && position + opening.batch_bytes() <= limit
        };
        self.header_if(position, belongs).await
    }

    /// A batch header at `position`, if it is intact and `is_wanted`.
    pub(crate) async fn header_if(
        &mut self,
        position: u64,
        is_wanted: impl Fn(&Opening) -> bool,
    ) -> Result<Option<(Opening, Bytes)>, StoreError> {
        let page = self.read(position, PAGE_BYTES).await;
        let Some(opening) = Opening::read(self.identity, &page).filter(is_wanted) else {
            return Ok(None);
        };
        let header = self.read(position, opening.header_pages_bytes()).await;
        if !opening.verify(&header) {
            return Ok(None);
        }
        if !opening.is_supported() {
            let found = opening.version;
            return Err(StoreError::Version {
                area: AREA,
                found,
                supported: SUPPORTED,
            });
        }
        Ok(Some((opening, header)))
    }

    /// The first intact header behind `position` with a number above `lsn`.
    pub(crate) async fn look_ahead(
        &mut self,
        position: u64,
        lsn: u64,
        limit: u64,
    ) -> Result<Option<Opening>, StoreError> {
        let end = limit.min(position + LOOK_AHEAD_BYTES);
        let mut at = position + PAGE_BYTES as u64;
        while at < end {
            if let Some((opening, _)) = self.header(at, limit).await?
                && opening.place.lsn > lsn
            {
                return Ok(Some(opening));
            }
            at += PAGE_BYTES as u64;
        }
        Ok(None)
    }

    /// The highest number from `lsn_min` on of a batch whose header lies, from `position` on,
    /// where it does not belong in any lap.
    pub(crate) async fn misplaced(
        &mut self,
        position: u64,
        lsn_min: u64,
        limit: u64,
    ) -> Result<Option<u64>, StoreError> {
        let (ring, end) = (self.bytes, limit.min(position + LOOK_AHEAD_BYTES));
        let mut newest = None;
        for at in (position..end).step_by(PAGE_BYTES) {
            let is_wanted = |opening: &Opening| {
                opening.place.position % ring != at % ring && opening.place.lsn >= lsn_min
            };
            let found = self.header_if(at, is_wanted).await?;
            newest = newest.max(found.map(|(opening, _)| opening.place.lsn));
        }
        Ok(newest)
    }

    /// Reads at a position, around the ring's end; unreadable pages match no checksum.
    pub(crate) async fn read(&mut self, position: u64, len: usize) -> Bytes {
        let start = position % self.bytes;
        if let Some((chunk_at, chunk)) = &self.chunk {
            let within = start.checked_sub(*chunk_at).map(|within| within as usize);
            if let Some(within) = within.filter(|within| within + len <= chunk.len()) {
                return chunk.slice(within..within + len);
            }
        }
        if start + len as u64 > self.bytes {
            let first = (self.bytes - start) as usize;
            let mut joined = self.read_plain(start, first).await.to_vec();
            joined.extend_from_slice(&self.read_plain(0, len - first).await);
            return Bytes::from(joined);
        }
        let chunk_len = (self.chunk_bytes.min(self.bytes - start) as usize).max(len);
        let chunk = self.read_plain(start, chunk_len).await;
        let wanted = chunk.slice(..len);
        self.chunk = Some((start, chunk));
        wanted
    }

    async fn read_plain(&self, start: u64, len: usize) -> Bytes {
        if len == 0 {
            return Bytes::new();
        }
        if let Ok(buffer) = self.disk.read(RING_AT + start, len).await {
            return Bytes::from(buffer);
        }
        let mut bytes = vec![UNREADABLE; len];
        for (number, page) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
            let offset = RING_AT + start + (number * PAGE_BYTES) as u64;
            if let Ok(buffer) = self.disk.read(offset, PAGE_BYTES).await {
                page.copy_from_slice(&buffer);
            }
        }
        Bytes::from(bytes)
    }
}

fn chunk_bytes(ring_bytes: u64) -> u64 {
    let share = ring_bytes / CHUNK_SHARE / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    share.clamp(PAGE_BYTES as u64, CHUNK_BYTES)
}
