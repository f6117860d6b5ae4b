//! A change of the home under construction: pages to write, and the edit that makes them count.
//!
//! Promises: what a draft writes lies behind what is filled, or in free segments, so that until
//! its edit is durable nothing refers to it; after a crash it never happened. A draft that
//! cannot be carried out leaves nothing behind but the error.
//!
//! Tested with the whole store: `tests/home.rs`, and the crash states.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Buffer, DiskError, PAGE_BYTES};

use super::fact::Place;
use super::group::{self, GroupEntry};
use super::layout::{Change, Kind, Piece, Segment};
use super::{AREA, Home};

/// Writes in flight at once.
const WRITES_IN_FLIGHT: usize = 16;
/// Most bytes of one write of map pages.
const WRITE_PAGES: usize = 256;

/// One block to be written.
pub(super) struct Outgoing {
    pub(super) entry: GroupEntry,
    pub(super) data: Bytes,
}

pub(super) struct Draft<'a> {
    home: &'a Home,
    /// First changes of their segments' lives, in order.
    changes: Vec<Change>,
    writes: Vec<(u64, Buffer)>,
    /// Segments as they will be.
    touched: BTreeMap<u32, Segment>,
    freed: Vec<u32>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(home: &'a Home) -> Self {
        Self {
            home,
            changes: Vec::new(),
            writes: Vec::new(),
            touched: BTreeMap::new(),
            freed: Vec::new(),
        }
    }

    /// Adds a change that is not about segments.
    pub(super) fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn segment(&self, segment: u32) -> Segment {
        let known = self.touched.get(&segment).copied();
        known.unwrap_or_else(|| self.home.manifest.with(|layout| layout.segment(segment)))
    }

    fn update(&mut self, segment: u32, change: impl FnOnce(&mut Segment)) {
        let mut found = self.segment(segment);
        change(&mut found);
        self.touched.insert(segment, found);
    }

    /// The segment of this kind that is being filled, with room for `pages` at least; a fresh
    /// one if need be.
    fn filling(&mut self, kind: Kind, pages: u32) -> Result<(u32, Segment), DiskError> {
        let whole = self.home.manifest.geometry.segment_pages;
        let fresh = self
            .touched
            .iter()
            .find(|(_, segment)| is_open(segment, kind));
        let current = match fresh {
            Some((number, _)) => Some(*number),
            None => self.home.open_segment(kind).filter(|number| {
                // It may have been sealed in this draft.
                is_open(&self.segment(*number), kind)
            }),
        };
        if let Some(number) = current {
            let segment = self.segment(number);
            if segment.used + pages <= whole {
                return Ok((number, segment));
            }
            self.update(number, |segment| segment.sealed = true);
        }
        let early = self.freed_early();
        let number = early
            .or_else(|| self.home.free_segment(&self.touched))
            .ok_or(DiskError::Full {
                name: AREA.to_owned(),
                wanted_bytes: self.home.manifest.geometry.segment_bytes(),
            })?;
        let epoch = self.segment(number).epoch.wrapping_add(1);
        self.changes.push(Change::Opened {
            segment: number,
            kind,
            epoch,
        });
        let opened = Segment {
            kind: Some(kind),
            epoch,
            ..Segment::default()
        };
        self.touched.insert(number, opened);
        Ok((number, opened))
    }

    /// A planted bug: a segment that this very draft frees, as if that were durable.
    fn freed_early(&mut self) -> Option<u32> {
        if !planted::is_active(Bug::ReuseSegmentEarly) {
            return None;
        }
        let segment = self.freed.pop()?;
        self.changes.push(Change::Freed { segment });
        Some(segment)
    }

    /// Puts blocks into groups, and says where each of them will be.
    pub(super) fn blocks(
        &mut self,
        kind: Kind,
        blocks: &[Outgoing],
    ) -> Result<Vec<Place>, DiskError> {
        let mut places = Vec::with_capacity(blocks.len());
        let whole = self.home.manifest.geometry.segment_pages;
        let mut rest = blocks;
        while !rest.is_empty() {
            let (number, segment) = self.filling(kind, 2)?;
            let count = group::fitting(whole - segment.used).min(rest.len());
            let (now, later) = rest.split_at(count);
            rest = later;
            let entries: Vec<GroupEntry> = now.iter().map(|block| block.entry).collect();
            let at = group::At {
                segment: number,
                epoch: segment.epoch,
                first: segment.used,
            };
            let headers = group::header_pages(count);
            let mut buffer = Buffer::zeroed((headers + count) * PAGE_BYTES);
            group::encode(self.home.identity, at, &entries, &mut buffer);
            let data = buffer[headers * PAGE_BYTES..].chunks_mut(PAGE_BYTES);
            for (page, block) in data.zip(now) {
                page.copy_from_slice(&block.data);
            }
            let first_page = self.home.page_of(number, segment.used);
            self.writes.push((first_page * PAGE_BYTES as u64, buffer));
            let data_pages = (first_page + headers as u64..).take(count);
            places.extend(data_pages.map(|page| Place::new(page, segment.epoch)));
            self.update(number, |segment| {
                segment.used += (headers + count) as u32;
                segment.live += count as u32;
            });
        }
        Ok(places)
    }

    /// Puts pages of a run into map segments.
    pub(super) fn run_pages(&mut self, pages: &[u8]) -> Result<Vec<Piece>, DiskError> {
        let whole = self.home.manifest.geometry.segment_pages;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = pages;
        // In one piece where that costs little: a leaf across two segments takes two reads.
        let total = (pages.len() / PAGE_BYTES) as u32;
        let mut wanted = if total <= whole / 8 { total } else { 1 };
        while !rest.is_empty() {
            let (number, segment) = self.filling(Kind::Map, std::mem::replace(&mut wanted, 1))?;
            let room = ((whole - segment.used) as usize).min(WRITE_PAGES) * PAGE_BYTES;
            let (now, later) = rest.split_at(room.min(rest.len()));
            rest = later;
            let count = (now.len() / PAGE_BYTES) as u32;
            let offset = self.home.byte_at(number, segment.used);
            self.writes.push((offset, Buffer::padded_from(now)));
            match pieces.last_mut() {
                Some(last) if last.segment == number && last.first + last.pages == segment.used => {
                    last.pages += count;
                }
                Some(_) | None => pieces.push(Piece {
                    segment: number,
                    first: segment.used,
                    pages: count,
                }),
            }
            self.update(number, |segment| {
                segment.used += count;
                segment.live += count;
            });
        }
        Ok(pieces)
    }

    /// A fact that named this place is gone.
    pub(super) fn forget(&mut self, place: Place) {
        let number = self.home.segment_of(place.page());
        let segment = self.segment(number);
        // A place in an earlier life has been let go of with that life.
        if segment.kind.is_some() && segment.epoch == place.epoch() {
            assert!(
                segment.live > 0,
                "segment {number} loses a fact it never had"
            );
            self.update(number, |segment| segment.live -= 1);
        }
    }

    /// So many facts name this segment.
    pub(super) fn set_live(&mut self, segment: u32, live: u32) {
        self.update(segment, |segment| segment.live = live);
    }

    /// A run is gone.
    pub(super) fn forget_run(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            self.update(piece.segment, |segment| segment.live -= piece.pages);
        }
    }

    /// Nothing is added to a segment any more.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn seal(&mut self, segment: u32) {
        self.update(segment, |segment| segment.sealed = true);
    }

    /// Frees a segment of which nothing is needed any more, whatever its count says.
    pub(super) fn free(&mut self, segment: u32) {
        self.freed.push(segment);
    }

    /// Writes everything, makes it durable, and makes it count.
    pub(super) async fn commit(mut self) -> Result<(), DiskError> {
        let disk = &self.home.disk;
        let writes = std::mem::take(&mut self.writes);
        let any = !writes.is_empty();
        let pending = writes
            .into_iter()
            .map(|(offset, data)| disk.write(offset, data));
        let mut pending = futures::stream::iter(pending).buffered(WRITES_IN_FLIGHT);
        while let Some(outcome) = pending.next().await {
            outcome?;
        }
        if any && !planted::is_active(Bug::SkipHomeSync) {
            disk.sync().await?;
        }
        let changes = self.edit();
        if changes.is_empty() {
            return Ok(());
        }
        self.home.discard_early(&changes).await;
        self.home.manifest.edit(&changes).await?;
        self.home.note_durable(&changes);
        Ok(())
    }

    fn edit(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        for (number, segment) in &self.touched {
            let number = *number;
            let before = self.home.manifest.with(|layout| layout.segment(number));
            let is_new = before.epoch != segment.epoch || before.kind.is_none();
            if (segment.sealed && segment.live == 0) || self.freed.contains(&number) {
                changes.push(Change::Freed { segment: number });
                continue;
            }
            if is_new || segment.used != before.used {
                changes.push(Change::Filled {
                    segment: number,
                    used: segment.used,
                });
            }
            if is_new || segment.live != before.live {
                changes.push(Change::Live {
                    segment: number,
                    live: segment.live,
                });
            }
            if segment.sealed && (is_new || !before.sealed) {
                changes.push(Change::Sealed { segment: number });
            }
        }
        for number in &self.freed {
            if !self.touched.contains_key(number) {
                changes.push(Change::Freed { segment: *number });
            }
        }
        changes
    }
}

fn is_open(segment: &Segment, kind: Kind) -> bool {
    segment.kind == Some(kind) && !segment.sealed
}
