//! Reading the ring after a restart.
//!
//! Starting at the tail that the header pages name, the scan follows batches that continue
//! the chain (numbers only rise), from header to header. Where that ends it looks ahead over
//! more than the largest batch: because only one batch is written at a time, a later batch proves
//! that the missing one had been complete.
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
//! The data is read and verified later ([`crate::read_in`]), but for that of the last batch, which
//! tells a torn head from a clean end. Of a batch with damaged data everything that matches is
//! kept; the rest is unknown.
//!
//! A later batch in a wrong place is what a device leaves that misdirects a write: most likely it
//! lies over the very batch that is missed. What it follows can be told, what it was cannot.
//!
//! A data batch is followed by a small seal once the ring goes idle, so damage to the last
//! acknowledged batch is a damaged middle and not a torn head.
//!
//! Tested with the whole store: `tests/damage.rs`, case by case.

use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Disk, PAGE_BYTES};

use crate::error::StoreError;
use crate::journal::batch::Opening;
use crate::journal::item::Item;
use crate::journal::ring::{Place, Ring};
use crate::journal::{Header, RING_AT};
use crate::record::JournalEnd;

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

/// Finds all batches from the tail on by their headers. Of the data only the last batch's is read,
/// because it alone may be torn.
pub(crate) async fn scan(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    header: Header,
) -> Result<Scanned, StoreError> {
    let mut ring = Ring::new(disk.clone(), identity, header.ring_bytes);
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
                let lsn = opening.place.lsn.max(scanned.next_lsn);
                scanned.batches.push(ScannedBatch {
                    lsn,
                    position: scanned.head,
                    bytes: opening.batch_bytes(),
                    previous: opening.place.previous,
                    items,
                    after_hole: std::mem::take(&mut after_hole),
                });
                scanned.head += opening.batch_bytes();
                scanned.next_lsn = lsn + 1;
                scanned.previous = opening.checksum();
            }
            found @ (Place::Batch(..) | Place::Begun | Place::Other) => {
                let (head, next_lsn) = (scanned.head, scanned.next_lsn);
                let Some(later) = ring.look_ahead(head, next_lsn, limit).await? else {
                    if matches!(found, Place::Begun) {
                        scanned.end = JournalEnd::TornHead;
                    }
                    decide_end(&mut ring, &mut scanned, limit).await?;
                    if scanned.end == JournalEnd::TornHead {
                        reach::note(Row::JournalTorn);
                    }
                    return Ok(scanned);
                };
                scanned.holes += 1;
                after_hole = true;
                scanned.head = later.place.position;
                scanned.next_lsn = later.place.lsn;
                scanned.previous = later.place.previous;
            }
        }
    }
}

/// Nothing intact follows the last batch. Decides whether it is torn itself, and whether something
/// went astray that should follow.
async fn decide_end(ring: &mut Ring, scanned: &mut Scanned, limit: u64) -> Result<(), StoreError> {
    if let Some(last) = scanned.batches.last_mut() {
        ring.read_data(&mut last.items).await;
    }
    let is_damaged = |batch: &mut ScannedBatch| batch.items.iter().any(Item::is_damaged);
    let damaged = scanned.batches.pop_if(is_damaged);
    let from = damaged
        .as_ref()
        .map_or(scanned.head, |batch| batch.position);
    if let Some(lsn) = ring.misplaced(from, scanned.next_lsn, limit).await? {
        let is_next = damaged.is_some() && lsn == scanned.next_lsn;
        scanned.batches.extend(damaged);
        scanned.holes += u64::from(!is_next);
        scanned.ends_in_hole = !is_next;
        scanned.end = JournalEnd::Clean;
        // What is written from here on is newer than what lies there.
        scanned.next_lsn = lsn + 1;
    } else if let Some(torn) = damaged {
        scanned.end = JournalEnd::TornHead;
        scanned.head = torn.position;
        scanned.next_lsn = torn.lsn;
        scanned.previous = torn.previous;
    }
    Ok(())
}

/// The same with the data of all batches.
pub(crate) async fn scan_whole(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    header: Header,
) -> Result<Scanned, StoreError> {
    let mut scanned = scan(disk, identity, header).await?;
    let mut ring = Ring::new(disk.clone(), identity, header.ring_bytes);
    for batch in &mut scanned.batches {
        ring.read_data(&mut batch.items).await;
    }
    Ok(scanned)
}

/// Reads the ring without its header pages: from the oldest batch that the newer ones have not
/// overwritten. What a header would have said is guessed; `None` if there is no intact batch.
pub(crate) async fn scan_all(disk: &Rc<dyn Disk>, identity: [u8; 16]) -> Option<(Header, Scanned)> {
    let file_bytes = disk.size_bytes().checked_sub(RING_AT)?;
    let mut found = Vec::new();
    let mut ring = Ring::new(disk.clone(), identity, file_bytes);
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
    let lap = |(start, place): &(u64, crate::journal::batch::Place)| {
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
    let scanned = scan_whole(disk, identity, header).await.ok()?;
    Some((header, scanned))
}
