//! Reading a region of the manifest, which may be too large to be held in memory.
//!
//! Tested with the whole store: `tests/home.rs`, `tests/damage.rs`.

use std::rc::Rc;

use holdfast_runtime::{Disk, PAGE_BYTES};

use super::geometry::Geometry;
use super::layout::{Change, Layout};
use super::manifest::{Entry, EntryKind, is_entry, lost};
use crate::error::StoreError;

/// What is read at once, if no entry takes more.
const WINDOW_BYTES: u64 = 1 << 20;

/// The bytes of a region, of which a window is in memory.
pub(super) struct RegionBytes {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    /// Where in the area the region begins.
    at: u64,
    len: u64,
    /// Where in the region the window begins.
    window_at: u64,
    window: Vec<u8>,
}

impl RegionBytes {
    pub(super) fn new(
        disk: &Rc<dyn Disk>,
        identity: [u8; 16],
        geometry: Geometry,
        generation: u64,
    ) -> Self {
        Self {
            disk: disk.clone(),
            identity,
            at: geometry.region_at(generation),
            len: geometry.region_bytes,
            window_at: 0,
            window: Vec::new(),
        }
    }

    /// Where in the area a byte of the region lies.
    pub(super) fn area_byte(&self, at: u64) -> u64 {
        self.at + at
    }

    /// The page at `at`; empty at the end.
    pub(super) async fn page(&mut self, at: u64) -> &[u8] {
        let page = self.from(at, PAGE_BYTES as u64).await;
        &page[..page.len().min(PAGE_BYTES)]
    }

    /// The intact entry of this home at `at`; `None` if none begins there.
    pub(super) async fn entry(&mut self, at: u64) -> Result<Option<Entry>, StoreError> {
        let identity = self.identity;
        let page = self.page(at).await;
        let Some(bytes) = Entry::claimed_bytes(page) else {
            return Ok(None);
        };
        Entry::decode_own(identity, self.from(at, bytes).await)
    }

    /// What follows `at`: `wanted` bytes at least, if the region has as many.
    async fn from(&mut self, at: u64, wanted: u64) -> &[u8] {
        let end = at.saturating_add(wanted).min(self.len);
        let known = self.window_at..self.window_at + self.window.len() as u64;
        if at < self.len && !(known.contains(&at) && end <= known.end) {
            let end = end.max(at + WINDOW_BYTES).min(self.len);
            self.window = self.read(at, (end - at) as usize).await;
            self.window_at = at;
        }
        let within = at.saturating_sub(self.window_at) as usize;
        self.window.get(within..).unwrap_or_default()
    }

    /// Pages that cannot be read match no checksum.
    async fn read(&self, at: u64, len: usize) -> Vec<u8> {
        const UNREADABLE: u8 = 0xa5;
        let at = self.at + at;
        if let Ok(whole) = self.disk.read(at, len).await {
            return whole.to_vec();
        }
        let mut bytes = vec![UNREADABLE; len];
        for (page, number) in bytes.chunks_mut(PAGE_BYTES).zip(0..) {
            let read = self.disk.read(at + number * PAGE_BYTES as u64, PAGE_BYTES);
            if let Ok(read) = read.await {
                page.copy_from_slice(&read);
            }
        }
        bytes
    }
}

/// What one region holds.
pub(super) struct Region {
    pub(super) generation: u64,
    pub(super) layout: Layout,
    snapshot_number: u64,
    pub(super) number: u64,
    pub(super) filled: u64,
    pub(super) is_continued: bool,
    pub(super) has_gap: bool,
}

impl Region {
    /// `None` if it does not begin with a snapshot.
    pub(super) async fn read(bytes: &mut RegionBytes) -> Result<Option<Self>, StoreError> {
        let Some(first) = bytes.entry(0).await? else {
            return Ok(None);
        };
        if first.kind != EntryKind::Snapshot {
            return Ok(None);
        }
        let Some(layout) = first.layout() else {
            return Ok(None);
        };
        let mut region = Self {
            generation: first.generation,
            layout,
            snapshot_number: first.number,
            number: first.number,
            filled: first.bytes(),
            is_continued: false,
            has_gap: false,
        };
        drop(first);
        loop {
            let next = bytes.entry(region.filled).await?;
            let Some(entry) = next.filter(|entry| region.is_next(entry)) else {
                region.has_gap = region.has_later(bytes).await?;
                return Ok(Some(region));
            };
            match entry.kind {
                EntryKind::Continued => {
                    region.is_continued = true;
                    return Ok(Some(region));
                }
                EntryKind::Edit => {
                    let changes: Result<Vec<Change>, _> = postcard::from_bytes(&entry.body);
                    let applied = changes
                        .is_ok_and(|changes| region.layout.apply(entry.number, &changes).is_some());
                    if !applied {
                        return Err(lost("manifest's edits"));
                    }
                    region.number = entry.number;
                    region.filled += entry.bytes();
                }
                EntryKind::Superblock | EntryKind::Snapshot => {
                    return Err(lost("manifest's edits"));
                }
            }
        }
    }

    pub(super) fn has_no_edit(&self) -> bool {
        self.number == self.snapshot_number
    }

    fn is_next(&self, entry: &Entry) -> bool {
        (entry.generation, entry.number) == (self.generation, self.number + 1)
    }

    /// Whether a later entry of this generation lies behind what cannot be read: edits are
    /// written one at a time, so that one had been durable.
    async fn has_later(&self, bytes: &mut RegionBytes) -> Result<bool, StoreError> {
        let mut at = self.filled + PAGE_BYTES as u64;
        while at < bytes.len {
            if is_entry(bytes.page(at).await)
                && let Some(entry) = bytes.entry(at).await?
                && entry.generation == self.generation
                && entry.number > self.number
            {
                return Ok(true);
            }
            at += PAGE_BYTES as u64;
        }
        Ok(false)
    }
}
