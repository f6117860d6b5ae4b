//! The ring: geometry, header pages, what is in flight and what is still needed.
//!
//! ```text
//! journal = header page | header page | ring
//! ring:   ... free | tail → batch | batch | batch ← head | free ...
//! ```
//!
//! Invariants:
//! * `tail <= head <= tail + ring size`, positions count bytes since the journal was made;
//! * the space before the tail is reused only after both header pages name that tail;
//! * one batch is written at a time, so a crash tears at most the last one;
//! * a part of the ring stays free for relocated records, and a little more for seals, so that a
//!   full ring can still be opened and emptied.
//!
//! Tested with the whole store: `tests/basics.rs`, `tests/damage.rs`.

pub(crate) mod batch;
pub(crate) mod index;
pub(crate) mod item;
pub(crate) mod read_in;
pub(crate) mod ring;
pub(crate) mod scan;
pub(crate) mod unread;
pub(crate) mod writer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Buffer, Disk, DiskError, PAGE_BYTES};
use tokio::sync::{Notify, oneshot};

use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};
use crate::journal::batch::{DATA_BLOCKS_MAX, Place, Size, encode};
use crate::journal::item::Item;
use crate::journal::ring::Ring;
use crate::record::{BLOCK_BYTES, Seq, SliceKey};

/// Name of the area.
pub(crate) const AREA: &str = "journal";
/// Where the ring begins.
pub(crate) const RING_AT: u64 = 2 * PAGE_BYTES as u64;
/// Smallest journal that can work, in bytes.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 512 * 1024;
/// Room that only seals may use.
const RESERVE_BYTES: u64 = 16 * PAGE_BYTES as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"HFJOURNL");
/// Format 1 did not know of the home's edits.
pub(crate) const VERSION: u32 = 2;
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    known: VERSION..=VERSION,
    retired: &[1],
};
const HEADER_BYTES: usize = 8 + 4 + 4 + 16 + 7 * 8;

/// The pause between batches when the ring is as good as full.
const SLOPE_END: Duration = Duration::from_millis(20);

/// What a header page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) ring_bytes: u64,
    pub(crate) sequence: u64,
    /// Position of the oldest batch needed.
    pub(crate) tail: u64,
    /// Its lsn.
    pub(crate) tail_lsn: u64,
    /// Checksum of the header of the batch before it.
    pub(crate) previous: u64,
    /// The home's edit that has what was before the tail: a home that ends earlier is damaged.
    pub(crate) home_edits: u64,
}

/// Items that were submitted together; they are answered when the last one is durable.
pub(crate) struct Submission {
    pub(crate) items: VecDeque<Item>,
    pub(crate) reply: Option<oneshot::Sender<Result<(), StoreError>>>,
}

/// What a batch is written for: it decides how full the ring may get by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New records and copied blocks.
    Append,
    /// Records that make room by moving.
    Relocate,
    /// A seal.
    Seal,
}

/// A batch in the ring.
struct Held {
    lsn: u64,
    position: u64,
    previous: u64,
    pins: u64,
    records: Vec<(SliceKey, Seq)>,
    /// Blocks of its items: slice, first, how many.
    blocks: Vec<(SliceKey, u32, u32)>,
}

/// The ring and the queue in front of it.
pub(crate) struct Journal {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    ring_bytes: u64,
    pub(crate) queue: RefCell<VecDeque<Submission>>,
    /// Wakes the writer: something was queued, there is room, or the store is poisoned.
    pub(crate) wake: Rc<Notify>,
    held: RefCell<VecDeque<Held>>,
    /// As both pages have it.
    header: Cell<Header>,
    head: Cell<u64>,
    tail: Cell<u64>,
    next_lsn: Cell<u64>,
    written_lsn: Cell<u64>,
    previous: Cell<u64>,
    /// Blocks of data in the batch that is being written.
    pub(crate) in_flight: RefCell<Vec<(SliceKey, u32, u32)>>,
    /// Signalled to all whenever a batch became durable.
    pub(crate) progress: Rc<Notify>,
}

impl Journal {
    /// A journal whose ring continues after what recovery found.
    pub(crate) fn new(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        header: Header,
        head: u64,
        next_lsn: u64,
        previous: u64,
    ) -> Self {
        Self {
            disk,
            identity,
            ring_bytes: header.ring_bytes,
            queue: RefCell::default(),
            wake: Rc::new(Notify::new()),
            held: RefCell::default(),
            header: Cell::new(header),
            head: Cell::new(head),
            tail: Cell::new(header.tail),
            next_lsn: Cell::new(next_lsn),
            written_lsn: Cell::new(next_lsn - 1),
            previous: Cell::new(previous),
            in_flight: RefCell::default(),
            progress: Rc::new(Notify::new()),
        }
    }

    /// For reading what is in the ring.
    pub(crate) fn ring(&self) -> Ring {
        Ring::new(self.disk.clone(), self.identity, self.ring_bytes)
    }

    /// Reads one block of data, unverified.
    pub(crate) async fn read_block(&self, at: u64) -> Result<Buffer, DiskError> {
        let offset = RING_AT + at % self.ring_bytes;
        self.disk.read(offset, BLOCK_BYTES).await
    }

    /// Size of the ring and bytes of it in use.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.ring_bytes, self.head.get() - self.tail.get())
    }

    /// Most blocks of data in one record.
    pub(crate) fn record_blocks_max(&self) -> u32 {
        record_blocks_max(self.ring_bytes)
    }

    /// The number of the next batch that is put together.
    pub(crate) fn next_lsn(&self) -> u64 {
        self.next_lsn.get()
    }

    /// The last batch known to be durable.
    pub(crate) fn written_lsn(&self) -> u64 {
        self.written_lsn.get()
    }

    /// Whether a batch of this size may be written now for this purpose.
    pub(crate) fn has_room(&self, size: Size, purpose: Purpose) -> bool {
        let reserve = match purpose {
            Purpose::Append => RESERVE_BYTES + self.ring_bytes / 8,
            Purpose::Relocate => RESERVE_BYTES,
            Purpose::Seal => 0,
        };
        self.head.get() + size.bytes() + reserve <= self.tail.get() + self.ring_bytes
    }

    /// Writes one batch and holds it in the ring with one pin, which the caller takes off once
    /// the items' own pins are on. Returns its lsn.
    pub(crate) async fn write(&self, items: &[Item]) -> Result<u64, DiskError> {
        let position = self.head.get();
        let lsn = self.next_lsn.get();
        let previous = self.previous.get();
        let place = Place {
            position,
            lap: position / self.ring_bytes,
            lsn,
            previous,
        };
        let (batch, checksum) = encode(self.identity, place, items);
        self.next_lsn.set(lsn + 1);
        let len = batch.len() as u64;
        let start = position % self.ring_bytes;
        let before_wrap = self.ring_bytes - start;
        if len <= before_wrap {
            self.disk.write(RING_AT + start, batch).await?;
        } else {
            let (first, second) = batch.split_at(before_wrap as usize);
            let first = self.disk.write(RING_AT + start, Buffer::padded_from(first));
            let second = self.disk.write(RING_AT, Buffer::padded_from(second));
            let (first, second) = futures::join!(first, second);
            first?;
            second?;
        }
        self.head.set(position + len);
        self.previous.set(checksum);
        self.hold(lsn, position, previous, items);
        self.pin(lsn, 1);
        self.written_lsn.set(lsn);
        Ok(lsn)
    }

    /// Registers a batch that is in the ring, without pins.
    pub(crate) fn hold(&self, lsn: u64, position: u64, previous: u64, items: &[Item]) {
        let records = items
            .iter()
            .filter(|item| item.kind.is_stream())
            .map(|item| (item.slice, item.seq))
            .collect();
        let blocks = items.iter().filter(|item| item.blocks > 0);
        let blocks = blocks.map(|item| (item.slice, item.first_block, item.blocks));
        self.held.borrow_mut().push_back(Held {
            lsn,
            position,
            previous,
            pins: 0,
            records,
            blocks: blocks.collect(),
        });
    }

    /// Puts pins on a batch.
    pub(crate) fn pin(&self, lsn: u64, pins: u64) {
        let mut held = self.held.borrow_mut();
        if let Some(place) = place_of(&held, lsn) {
            held[place].pins += pins;
        }
    }

    /// Takes a pin off each batch named.
    pub(crate) fn unpin(&self, lsns: &[u64]) {
        let mut held = self.held.borrow_mut();
        for lsn in lsns {
            let Some(place) = place_of(&held, *lsn) else {
                unreachable!("an unheld batch")
            };
            let pins = &mut held[place].pins;
            assert!(*pins > 0, "batch {lsn} lost a pin it never had");
            *pins -= 1;
        }
    }

    /// How long the next batch has to wait: nothing while the ring is emptied as fast as it is
    /// filled, and longer the nearer it is to being full, so that writers are slowed down to the
    /// home's pace before they are stopped.
    pub(crate) fn slope(&self) -> Duration {
        let used = self.head.get() - self.tail.get();
        let (begin, end) = (self.ring_bytes / 4 * 3, self.ring_bytes / 8 * 7);
        let over = used.saturating_sub(begin).min(end - begin);
        SLOPE_END * u32::try_from(over >> 10).unwrap_or(u32::MAX)
            / u32::try_from((end - begin) >> 10)
                .unwrap_or(u32::MAX)
                .max(1)
    }

    /// The last lsn of the part that a round has to empty so that less than half of the ring is
    /// used: what is newer may still be replaced.
    pub(crate) fn oldest_part(&self) -> u64 {
        let keep = self.ring_bytes / 16 * 7;
        let end = self.head.get().saturating_sub(keep);
        let held = self.held.borrow();
        let behind = held.partition_point(|batch| batch.position < end);
        match behind.checked_sub(1) {
            Some(last) => held[last].lsn,
            None => self.tail_lsn() - 1,
        }
    }

    /// Which blocks the batches up to `through_lsn` have anything of: ranges that follow each
    /// other.
    pub(crate) fn blocks_through(&self, through_lsn: u64) -> BTreeMap<SliceKey, Vec<Range<u32>>> {
        let mut blocks: BTreeMap<SliceKey, Vec<Range<u32>>> = BTreeMap::new();
        let held = self.held.borrow();
        for batch in held.iter().take_while(|batch| batch.lsn <= through_lsn) {
            for (slice, first, count) in &batch.blocks {
                blocks
                    .entry(*slice)
                    .or_default()
                    .push(*first..first + count);
            }
        }
        blocks.values_mut().for_each(merge_ranges);
        blocks
    }

    /// The last lsn whose batch begins in the older half of the used ring, if more than half of
    /// the ring is used.
    pub(crate) fn crowded_through(&self) -> Option<u64> {
        let used = self.head.get() - self.tail.get();
        if used <= self.ring_bytes / 2 {
            return None;
        }
        let middle = self.tail.get() + used / 4;
        let held = self.held.borrow();
        held.iter()
            .take_while(|batch| batch.position <= middle)
            .last()
            .map(|batch| batch.lsn)
    }

    /// Frees unpinned batches at the tail, durably; `home_edits` is the home's edit that made
    /// them needless. Returns the records that left the ring.
    pub(crate) async fn advance(
        &self,
        home_edits: u64,
    ) -> Result<Vec<(SliceKey, Seq, u64)>, DiskError> {
        let (count, tail, tail_lsn, previous) = {
            let held = self.held.borrow();
            let count = held.iter().take_while(|batch| batch.pins == 0).count();
            match held.get(count) {
                Some(first) => (count, first.position, first.lsn, first.previous),
                // Whatever is being written right now follows the last batch held.
                None => (
                    count,
                    self.head.get(),
                    self.written_lsn.get() + 1,
                    self.previous.get(),
                ),
            }
        };
        if count == 0 {
            return Ok(Vec::new());
        }
        let sequence = self.header.get().sequence + 1;
        let ring_bytes = self.ring_bytes;
        let header = Header {
            ring_bytes,
            sequence,
            tail,
            tail_lsn,
            previous,
            home_edits: match planted::is_active(Bug::ForgetHomeEdit) {
                true => 0,
                false => home_edits,
            },
        };
        write_header(&self.disk, self.identity, header).await?;
        self.header.set(header);
        self.tail.set(tail);
        let mut gone = Vec::new();
        for batch in self.held.borrow_mut().drain(..count) {
            gone.extend(
                batch
                    .records
                    .iter()
                    .map(|(slice, seq)| (*slice, *seq, batch.lsn)),
            );
        }
        self.wake.notify_one();
        Ok(gone)
    }

    /// Writes both header pages again, as they are.
    pub(crate) async fn repair_header(&self) -> Result<(), DiskError> {
        write_header(&self.disk, self.identity, self.header.get()).await
    }

    /// The oldest lsn that recovery would read.
    pub(crate) fn tail_lsn(&self) -> u64 {
        self.held
            .borrow()
            .front()
            .map_or(self.written_lsn.get() + 1, |batch| batch.lsn)
    }
}

/// The identity of the store that a page names as its owner; `None` if it does not begin like a
/// journal's header page. Nothing else of the page is verified.
pub fn journal_owner(page: &[u8]) -> Option<[u8; 16]> {
    let mut reader = FieldReader::new(page);
    let is_header = reader.u64()? == MAGIC;
    let _version = reader.u32()?;
    let _zero = reader.u32()?;
    reader.array().filter(|_| is_header)
}

/// Sorts ranges and merges those that overlap or touch.
fn merge_ranges(ranges: &mut Vec<Range<u32>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
}

/// Most blocks of data in one record for a ring of this size.
pub(crate) fn record_blocks_max(ring_bytes: u64) -> u32 {
    // Half of what is kept free for relocated records, so that any record can be relocated.
    let share = ring_bytes / 16 / BLOCK_BYTES as u64;
    DATA_BLOCKS_MAX.min(u32::try_from(share).unwrap_or(u32::MAX))
}

/// Writes both header pages, one after the other: a crash damages at most one of them.
pub(crate) async fn write_header(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    header: Header,
) -> Result<(), DiskError> {
    let mut writer = FieldWriter::default();
    writer.u64(MAGIC);
    writer.u32(VERSION);
    writer.u32(0);
    writer.raw(&identity);
    writer.u64(header.ring_bytes);
    writer.u64(header.sequence);
    writer.u64(header.tail);
    writer.u64(header.tail_lsn);
    writer.u64(header.previous);
    writer.u64(header.home_edits);
    let checksum = plain_checksum(&writer.bytes);
    writer.u64(checksum);
    debug_assert_eq!(writer.bytes.len(), HEADER_BYTES);
    let page = Buffer::padded_from(&writer.bytes);
    disk.write(0, page.clone()).await?;
    disk.write(PAGE_BYTES as u64, page).await
}

/// What the header pages hold.
pub(crate) enum HeaderFound {
    /// Both are zero.
    Nothing,
    /// The newest readable one, and whether the other was unreadable.
    Header { header: Header, page_lost: bool },
    /// Neither is usable.
    Lost,
}

/// Reads both header pages. An intact page of another store or version is an error.
pub(crate) async fn read_header(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
) -> Result<HeaderFound, StoreError> {
    let mut best: Option<Header> = None;
    let mut zero = 0;
    let mut bad = 0;
    for page in 0..2u64 {
        let Ok(bytes) = disk.read(page * PAGE_BYTES as u64, PAGE_BYTES).await else {
            bad += 1;
            continue;
        };
        if bytes.iter().all(|byte| *byte == 0) {
            zero += 1;
            continue;
        }
        match decode_header(&bytes, identity)? {
            Some(header) => {
                if best.is_none_or(|best| header.sequence > best.sequence) {
                    best = Some(header);
                }
            }
            None => bad += 1,
        }
    }
    Ok(match best {
        Some(header) => HeaderFound::Header {
            header,
            page_lost: bad + zero > 0,
        },
        None if bad == 0 => HeaderFound::Nothing,
        None => HeaderFound::Lost,
    })
}

pub(crate) fn decode_header(
    bytes: &[u8],
    identity: [u8; 16],
) -> Result<Option<Header>, StoreError> {
    let mut reader = FieldReader::new(&bytes[..HEADER_BYTES]);
    let fields = (|| {
        let magic = reader.u64()?;
        let version = reader.u32()?;
        let _reserved = reader.u32()?;
        let owner = reader.array::<16>()?;
        let header = Header {
            ring_bytes: reader.u64()?,
            sequence: reader.u64()?,
            tail: reader.u64()?,
            tail_lsn: reader.u64()?,
            previous: reader.u64()?,
            home_edits: reader.u64()?,
        };
        Some((magic, version, owner, header, reader.u64()?))
    })();
    let Some((magic, version, owner, header, checksum)) = fields else {
        return Ok(None);
    };
    let claim = Claim {
        magic,
        version,
        identity: owner,
        intact: checksum == plain_checksum(&bytes[..HEADER_BYTES - 8]),
    };
    Ok(FORM.admits(identity, claim)?.then_some(header))
}

fn place_of(held: &VecDeque<Held>, lsn: u64) -> Option<usize> {
    let first = held.front()?.lsn;
    // Holes found by recovery leave gaps in the numbering; then the place has to be searched.
    let guess = usize::try_from(lsn.checked_sub(first)?).ok()?;
    if held.get(guess).is_some_and(|batch| batch.lsn == lsn) {
        return Some(guess);
    }
    held.binary_search_by_key(&lsn, |batch| batch.lsn).ok()
}
