//! Reading the ring after a restart.
//!
//! Starting at the tail that the header pages name, the scan follows batches that continue
//! the chain (numbers only rise). Where that ends it looks ahead over more than the largest batch:
//! because only one batch is written at a time, a later batch proves that the missing one had
//! been complete.
//!
//! | case | in place of the next batch | later one? | decision |
//! |---|---|---|---|
//! | clean end | nothing of this lap | no | end |
//! | stale lap | a batch of an earlier lap | no | end |
//! | wrapped tail | the next batch, at the ring's start | - | follow |
//! | torn head | a header or data that do not match | no | cut: it was not acknowledged |
//! | damaged middle, data | an intact header, data that do not match | yes | unknown records |
//! | damaged middle, header | anything else | yes | a hole; continue behind it |
//! | overwritten end | anything else | only in a wrong place | a hole, and the end |
//! | ring full | the tail itself | - | end |
//!
//! Of a batch with damaged data everything that matches is kept; the rest is unknown.
//!
//! A later batch in a wrong place is what a device leaves that misdirects a write: most likely it
//! lies over the very batch that is missed. What it follows can be told, what it was cannot.
//!
//! A data batch is followed by a small seal once the ring goes idle, so damage to the last
//! acknowledged batch is a damaged middle and not a torn head.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Disk, PAGE_BYTES};

use crate::batch::{BATCH_BYTES_MAX, Opening, SUPPORTED};
use crate::error::StoreError;
use crate::item::Item;
use crate::journal::{AREA, Header, RING_AT};
use crate::record::JournalEnd;

const CHUNK_BYTES: u64 = 1 << 20;
/// How far beyond an unreadable place a later batch is looked for.
const LOOK_AHEAD_BYTES: u64 = 2 * BATCH_BYTES_MAX as u64;
/// What unreadable pages are taken to contain: no structure here begins like that.
const UNREADABLE: u8 = 0xa5;

/// One batch found in the ring.
pub(crate) struct ScannedBatch {
    pub(crate) lsn: u64,
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) previous: u64,
    pub(crate) items: Vec<Item>,
    /// Batches between the one before and this one are unreadable.
    pub(crate) after_hole: bool,
}

impl ScannedBatch {
    /// Position at which the next batch begins.
    pub(crate) fn end(&self) -> u64 {
        self.position + self.bytes
    }
}

/// The ring's content.
pub(crate) struct Scanned {
    pub(crate) batches: Vec<ScannedBatch>,
    pub(crate) holes: u64,
    /// The last hole has nothing behind it.
    pub(crate) ends_in_hole: bool,
    pub(crate) end: JournalEnd,
    /// Where the next batch goes, its number, and the checksum it has to name.
    pub(crate) head: u64,
    pub(crate) next_lsn: u64,
    pub(crate) previous: u64,
}

/// Reads all batches from the tail on.
pub(crate) async fn scan(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    header: Header,
) -> Result<Scanned, StoreError> {
    let mut ring = Ring {
        disk,
        identity,
        bytes: header.ring_bytes,
        chunk: None,
    };
    let limit = header.tail + header.ring_bytes;
    let mut scanned = Scanned {
        batches: Vec::new(),
        holes: 0,
        ends_in_hole: false,
        end: JournalEnd::Clean,
        head: header.tail,
        next_lsn: header.tail_lsn,
        previous: header.previous,
    };
    // A batch with damaged data: what follows decides whether it is damaged or torn.
    let mut undecided: Option<ScannedBatch> = None;
    let mut after_hole = false;
    loop {
        let found = ring.batch(scanned.head, limit).await?;
        let expected = |opening: &Opening| {
            let follows =
                opening.place.lsn >= scanned.next_lsn && opening.place.previous == scanned.previous;
            follows || planted::is_active(Bug::AcceptStaleLap)
        };
        match found {
            Place::Batch(opening, items) if expected(&opening) => {
                scanned.batches.extend(undecided.take());
                let lsn = opening.place.lsn.max(scanned.next_lsn);
                let batch = ScannedBatch {
                    lsn,
                    position: scanned.head,
                    bytes: opening.batch_bytes(),
                    previous: opening.place.previous,
                    items,
                    after_hole: std::mem::take(&mut after_hole),
                };
                if batch.items.iter().all(|item| item.lost.is_empty()) {
                    scanned.batches.push(batch);
                } else {
                    undecided = Some(batch);
                }
                scanned.head += opening.batch_bytes();
                scanned.next_lsn = lsn + 1;
                scanned.previous = opening.checksum();
            }
            found @ (Place::Batch(..) | Place::Begun | Place::Other) => {
                if let Some(later) = ring
                    .look_ahead(scanned.head, scanned.next_lsn, limit)
                    .await?
                {
                    scanned.batches.extend(undecided.take());
                    scanned.holes += 1;
                    after_hole = true;
                    scanned.head = later.place.position;
                    scanned.next_lsn = later.place.lsn;
                    scanned.previous = later.place.previous;
                    continue;
                }
                let from = undecided
                    .as_ref()
                    .map_or(scanned.head, |torn| torn.position);
                if let Some(lsn) = ring.misplaced(from, scanned.next_lsn, limit).await? {
                    let is_next = undecided.is_some() && lsn == scanned.next_lsn;
                    scanned.batches.extend(undecided.take());
                    scanned.holes += u64::from(!is_next);
                    scanned.ends_in_hole = !is_next;
                    // What is written from here on is newer than what lies there.
                    scanned.next_lsn = lsn + 1;
                    return Ok(scanned);
                }
                if let Some(torn) = undecided {
                    scanned.end = JournalEnd::TornHead;
                    scanned.head = torn.position;
                    scanned.next_lsn = torn.lsn;
                    scanned.previous = torn.previous;
                } else if matches!(found, Place::Begun) {
                    scanned.end = JournalEnd::TornHead;
                }
                return Ok(scanned);
            }
        }
    }
}

/// Reads the ring without its header pages: from the oldest batch that the newer ones have not
/// overwritten. What a header would have said is guessed; `None` if there is no intact batch.
pub(crate) async fn scan_all(disk: &Rc<dyn Disk>, identity: [u8; 16]) -> Option<(Header, Scanned)> {
    let file_bytes = disk.size_bytes().checked_sub(RING_AT)?;
    let mut found = Vec::new();
    let mut ring = Ring {
        disk,
        identity,
        bytes: file_bytes,
        chunk: None,
    };
    let mut at = 0;
    while at < file_bytes {
        let page = ring.read(at, PAGE_BYTES).await;
        at += PAGE_BYTES as u64;
        let Some(opening) = Opening::read(identity, &page) else {
            continue;
        };
        let start = at - PAGE_BYTES as u64;
        let header = ring.read(start, opening.header_pages_bytes()).await;
        if opening.verify(&header) && opening.is_supported() {
            found.push((start, opening.place));
        }
    }
    // A batch of a later lap says how long a lap is.
    let lap = |(start, place): &(u64, crate::batch::Place)| {
        let before = place.position.checked_sub(*start)?;
        (place.lap > 0).then(|| before / place.lap)
    };
    let ring_bytes = found.iter().find_map(lap).unwrap_or(file_bytes);
    if ring_bytes == 0 || ring_bytes > file_bytes {
        return None;
    }
    found.retain(|(start, place)| place.position % ring_bytes == *start);
    let newest = found.iter().max_by_key(|(_, place)| place.lsn)?.1;
    let kept_from = newest.position.saturating_sub(ring_bytes);
    let oldest = found
        .iter()
        .filter(|(_, place)| place.position > kept_from || kept_from == 0)
        .min_by_key(|(_, place)| place.lsn)?
        .1;
    let header = Header {
        ring_bytes,
        sequence: 0,
        tail: oldest.position,
        tail_lsn: oldest.lsn,
        previous: oldest.previous,
        home_edits: 0,
    };
    let scanned = scan(disk, identity, header).await.ok()?;
    Some((header, scanned))
}

/// What lies at a position.
enum Place {
    /// A batch of this lap with an intact header.
    Batch(Opening, Vec<Item>),
    /// The first page of a batch of this lap, whose header is incomplete.
    Begun,
    /// Nothing of this lap.
    Other,
}

struct Ring<'a> {
    disk: &'a Rc<dyn Disk>,
    identity: [u8; 16],
    bytes: u64,
    chunk: Option<(u64, Bytes)>,
}

impl Ring<'_> {
    async fn batch(&mut self, position: u64, limit: u64) -> Result<Place, StoreError> {
        if position >= limit {
            return Ok(Place::Other);
        }
        let Some((opening, header)) = self.header(position, limit).await? else {
            let page = self.read(position, PAGE_BYTES).await;
            let begun = Opening::read(self.identity, &page)
                .is_some_and(|opening| opening.place.position == position);
            return Ok(if begun { Place::Begun } else { Place::Other });
        };
        let data_at = position + opening.header_pages_bytes() as u64;
        let data_bytes = opening.batch_bytes() as usize - opening.header_pages_bytes();
        let data = self.read(data_at, data_bytes).await;
        Ok(match opening.items(&header, &data) {
            Some(items) => Place::Batch(opening, items),
            None => Place::Begun,
        })
    }

    /// A batch header of this lap at `position`, if it is intact.
    async fn header(
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
    async fn header_if(
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
    async fn look_ahead(
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
    async fn misplaced(
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
    async fn read(&mut self, position: u64, len: usize) -> Bytes {
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
        let chunk_len = (CHUNK_BYTES.min(self.bytes - start) as usize).max(len);
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
