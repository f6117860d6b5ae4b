//! The form of a journal batch: header pages, then block data, written together.
//!
//! ```text
//! magic 8 | version 4 | header bytes 4 | identity 16 | position 8 | lsn 8 | lap 8
//! | checksum of the previous batch's header 8 | items 4 | data blocks 4 | checksum 8
//! item: kind 4 | volume 8 | slice 4 | view 8 | seq 8 | stable 8 | origin 8 | number 8
//! | first block 4 | blocks 4 | one checksum of 8 for each block of data
//! ```
//!
//! `position` counts bytes since the journal was made and never repeats, so a batch of an
//! earlier lap is recognised in its place; the chain of checksums tells a batch that follows
//! from one that merely lies there.
//!
//! Tested with the whole store: `tests/damage.rs`, and golden images.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::{Buffer, PAGE_BYTES};

use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::journal::item::{Item, Kind};
use crate::record::{BLOCK_BYTES, OperationId, Seq, View};

/// Most bytes of one batch's header; it bounds the items of a batch.
pub(crate) const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Most blocks of data in one batch.
pub(crate) const DATA_BLOCKS_MAX: u32 = 1024;
/// Most bytes of one batch.
pub(crate) const BATCH_BYTES_MAX: usize = HEADER_BYTES_MAX + DATA_BLOCKS_MAX as usize * BLOCK_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"HFBATCH\n");
pub(crate) const VERSION: u32 = 1;
const FIXED_BYTES: usize = 80;
const CHECKSUM_AT: usize = FIXED_BYTES - 8;
const ITEM_BYTES: usize = 64;

const _: () = assert!(
    FIXED_BYTES + ITEM_BYTES + 8 * DATA_BLOCKS_MAX as usize <= HEADER_BYTES_MAX,
    "the largest record fits into a batch"
);

/// Where a batch stands in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) lap: u64,
    pub(crate) lsn: u64,
    /// Checksum of the previous batch's header.
    pub(crate) previous: u64,
}

/// The size of a batch under construction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    header_bytes: usize,
    data_blocks: u32,
}

impl Size {
    /// The size with `item` added; `None` if it would exceed a batch's limits.
    pub(crate) fn with(self, item: &Item) -> Option<Self> {
        let blocks = item.checksums.len();
        let size = Self {
            header_bytes: self.header_bytes + ITEM_BYTES + 8 * blocks,
            data_blocks: self.data_blocks + blocks as u32,
        };
        let fits = FIXED_BYTES + size.header_bytes <= HEADER_BYTES_MAX
            && size.data_blocks <= DATA_BLOCKS_MAX;
        fits.then_some(size)
    }

    /// Bytes in the ring.
    pub(crate) fn bytes(self) -> u64 {
        let header = (FIXED_BYTES + self.header_bytes).next_multiple_of(PAGE_BYTES);
        header as u64 + u64::from(self.data_blocks) * BLOCK_BYTES as u64
    }
}

/// The bytes of a batch and its header's checksum.
pub(crate) fn encode(identity: [u8; 16], place: Place, items: &[Item]) -> (Buffer, u64) {
    let mut writer = FieldWriter::default();
    let data_blocks: usize = items.iter().map(|item| item.checksums.len()).sum();
    writer.u64(MAGIC);
    writer.u32(VERSION);
    writer.u32(0);
    writer.raw(&identity);
    writer.u64(place.position);
    writer.u64(place.lsn);
    writer.u64(place.lap);
    writer.u64(place.previous);
    writer.u32(items.len() as u32);
    writer.u32(data_blocks as u32);
    writer.u64(0);
    debug_assert_eq!(writer.bytes.len(), FIXED_BYTES);
    for item in items {
        writer.u32(kind_code(item.kind) | u32::from(item.relocated) << 8);
        writer.slice(item.slice);
        writer.u64(item.view.0);
        writer.u64(item.seq.0);
        writer.u64(item.stable.0);
        writer.u64(item.operation.origin);
        writer.u64(item.operation.number);
        writer.u32(item.first_block);
        writer.u32(item.blocks);
        for checksum in item.checksums.iter() {
            writer.u64(*checksum);
        }
    }
    let mut header = writer.bytes;
    let header_bytes = header.len() as u32;
    header[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    let checksum = plain_checksum(&header);
    header[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(&checksum.to_le_bytes());
    let data_at = header.len().next_multiple_of(PAGE_BYTES);
    let mut batch = Buffer::zeroed(data_at + data_blocks * BLOCK_BYTES);
    batch[..header.len()].copy_from_slice(&header);
    let mut at = data_at;
    for item in items {
        batch[at..at + item.data.len()].copy_from_slice(&item.data);
        at += item.data.len();
    }
    (batch, checksum)
}

/// What the first page of a batch says before its checksum could be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) place: Place,
    /// Bytes of the header, without padding.
    pub(crate) header_bytes: usize,
    pub(crate) data_blocks: u32,
    pub(crate) version: u32,
    items: u32,
    checksum: u64,
}

impl Opening {
    /// Reads the fixed fields; `None` if this is not the first page of a batch of this store.
    pub(crate) fn read(identity: [u8; 16], page: &[u8]) -> Option<Self> {
        let mut reader = FieldReader::new(page);
        if reader.u64()? != MAGIC {
            return None;
        }
        let version = reader.u32()?;
        let header_bytes = usize::try_from(reader.u32()?).ok()?;
        let owner = reader.array::<16>()?;
        let position = reader.u64()?;
        let lsn = reader.u64()?;
        let lap = reader.u64()?;
        let previous = reader.u64()?;
        let items = reader.u32()?;
        let data_blocks = reader.u32()?;
        let checksum = reader.u64()?;
        let sane = (FIXED_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes)
            && data_blocks <= DATA_BLOCKS_MAX
            && owner == identity;
        let place = Place {
            position,
            lap,
            lsn,
            previous,
        };
        sane.then_some(Self {
            place,
            header_bytes,
            data_blocks,
            version,
            items,
            checksum,
        })
    }

    /// Bytes of the header's pages.
    pub(crate) fn header_pages_bytes(&self) -> usize {
        self.header_bytes.next_multiple_of(PAGE_BYTES)
    }

    /// Bytes of the whole batch.
    pub(crate) fn batch_bytes(&self) -> u64 {
        self.header_pages_bytes() as u64 + u64::from(self.data_blocks) * BLOCK_BYTES as u64
    }

    /// The header's checksum, the next batch's `previous`.
    pub(crate) fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Whether the header's bytes are the ones that were written.
    pub(crate) fn verify(&self, header: &[u8]) -> bool {
        let Some(header) = header.get(..self.header_bytes) else {
            return false;
        };
        let mut covered = header.to_vec();
        covered[CHECKSUM_AT..FIXED_BYTES].fill(0);
        plain_checksum(&covered) == self.checksum
    }

    /// The items of a verified header; of their data it is known where it lies.
    pub(crate) fn items(&self, header: &[u8]) -> Option<Vec<Item>> {
        let mut reader = FieldReader::new(header.get(FIXED_BYTES..self.header_bytes)?);
        let mut items = Vec::new();
        let mut at = self.place.position + self.header_pages_bytes() as u64;
        for _ in 0..self.items {
            let code = reader.u32()?;
            let kind = kind_of(code & 0xff)?;
            let slice = reader.slice()?;
            let view = View(reader.u64()?);
            let seq = Seq(reader.u64()?);
            let stable = Seq(reader.u64()?);
            let operation = OperationId {
                origin: reader.u64()?,
                number: reader.u64()?,
            };
            let first_block = reader.u32()?;
            let blocks = reader.u32()?;
            let mut checksums = Vec::new();
            let unread = kind.has_data().then_some(at);
            if kind.has_data() {
                for _ in 0..blocks {
                    checksums.push(reader.u64()?);
                }
                at += u64::from(blocks) * BLOCK_BYTES as u64;
            }
            items.push(Item {
                kind,
                slice,
                view,
                seq,
                stable,
                operation,
                first_block,
                blocks,
                relocated: code & 0x100 != 0,
                checksums: Rc::from(checksums),
                data: Bytes::new(),
                unread,
                lost: Vec::new(),
            });
        }
        let end = self.place.position + self.batch_bytes();
        (at == end).then_some(items)
    }

    /// Whether this version of the program knows the batch's format.
    pub(crate) fn is_supported(&self) -> bool {
        self.version == VERSION
    }
}

/// The newest batch format.
pub(crate) const SUPPORTED: u32 = VERSION;

fn kind_code(kind: Kind) -> u32 {
    match kind {
        Kind::Write => 1,
        Kind::Zero => 2,
        Kind::Nothing => 3,
        Kind::CopyWrite => 4,
        Kind::CopyZero => 5,
        Kind::Stable => 6,
        Kind::CopyLost => 7,
    }
}

fn kind_of(code: u32) -> Option<Kind> {
    match code {
        1 => Some(Kind::Write),
        2 => Some(Kind::Zero),
        3 => Some(Kind::Nothing),
        4 => Some(Kind::CopyWrite),
        5 => Some(Kind::CopyZero),
        6 => Some(Kind::Stable),
        7 => Some(Kind::CopyLost),
        _ => None,
    }
}
