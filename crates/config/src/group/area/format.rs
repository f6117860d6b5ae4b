//! Pages of the area in bytes: headers, retirements, records.

use holdfast_runtime::{Buffer, NodeId, PAGE_BYTES};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{AreaError, PAGE};

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"HFCONFIG");
const RETIRED_MAGIC: u64 = u64::from_le_bytes(*b"HFRETIRE");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"HFRC");
/// Version of everything in the area. With the second one halves double, and images end with what
/// was known when they were complete; the first one is read.
pub(super) const FORMAT: u32 = 2;
pub(super) const RECORD_HEADER_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) half_bytes: u64,
    pub(super) generation: u64,
    pub(super) image_bytes: u64,
    pub(super) image_checksum: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderState {
    Blank,
    Valid(Header),
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retirement {
    Blank,
    /// Replaced by this generation.
    By(u64),
    /// Written, and not readable: it must be taken for valid.
    Unreadable,
}

impl Retirement {
    pub(super) fn covers(self, generation: u64) -> bool {
        match self {
            Self::Blank => false,
            Self::By(successor) => successor > generation,
            Self::Unreadable => true,
        }
    }
}

/// The header page of the half that begins at `base`.
pub(super) fn encode_header(node: NodeId, header: Header, base: u64) -> Buffer {
    let mut page = Buffer::zeroed(PAGE_BYTES);
    let mut fields = Vec::with_capacity(64);
    fields.extend_from_slice(&HEADER_MAGIC.to_le_bytes());
    fields.extend_from_slice(&FORMAT.to_le_bytes());
    fields.extend_from_slice(&0u32.to_le_bytes());
    for field in [
        node.0,
        header.half_bytes,
        header.generation,
        header.image_bytes,
        header.image_checksum,
    ] {
        fields.extend_from_slice(&field.to_le_bytes());
    }
    let checksum = xxh3_64_with_seed(&fields, base);
    fields.extend_from_slice(&checksum.to_le_bytes());
    page[..fields.len()].copy_from_slice(&fields);
    page
}

pub(super) fn decode_header(
    page: &[u8],
    base: u64,
    node: NodeId,
) -> Result<HeaderState, AreaError> {
    if page.iter().all(|byte| *byte == 0) {
        return Ok(HeaderState::Blank);
    }
    let checksum_matches = xxh3_64_with_seed(&page[..56], base) == u64_at(page, 56);
    if u64_at(page, 0) != HEADER_MAGIC || !checksum_matches {
        return Ok(HeaderState::Invalid);
    }
    let format = u32_at(page, 8);
    if format > FORMAT {
        return Err(AreaError::NewerFormat { found: format });
    }
    let found = NodeId(u64_at(page, 16));
    if found != node {
        return Err(AreaError::WrongNode {
            found,
            expected: node,
        });
    }
    Ok(HeaderState::Valid(Header {
        half_bytes: u64_at(page, 24),
        generation: u64_at(page, 32),
        image_bytes: u64_at(page, 40),
        image_checksum: u64_at(page, 48),
    }))
}

/// The page, at `offset`, that says which generation replaced this half.
pub(super) fn encode_retirement(generation: u64, offset: u64) -> Buffer {
    let mut page = Buffer::zeroed(PAGE_BYTES);
    page[..8].copy_from_slice(&RETIRED_MAGIC.to_le_bytes());
    page[8..16].copy_from_slice(&generation.to_le_bytes());
    let checksum = xxh3_64_with_seed(&page[..16], offset);
    page[16..24].copy_from_slice(&checksum.to_le_bytes());
    page
}

pub(super) fn decode_retirement(page: &[u8], offset: u64) -> Retirement {
    if page.iter().all(|byte| *byte == 0) {
        return Retirement::Blank;
    }
    let checksum_matches = xxh3_64_with_seed(&page[..16], offset) == u64_at(page, 16);
    if u64_at(page, 0) == RETIRED_MAGIC && checksum_matches {
        Retirement::By(u64_at(page, 8))
    } else {
        Retirement::Unreadable
    }
}

/// Bytes of one copy of a record, a multiple of the page size.
pub(in crate::group) fn record_bytes(payload_bytes: usize) -> u64 {
    ((RECORD_HEADER_BYTES + payload_bytes) as u64).next_multiple_of(PAGE)
}

/// `magic u32, payload bytes u32, generation u64, sequence u64, checksum u64, payload`.
pub(super) fn encode_record(
    target: &mut [u8],
    generation: u64,
    sequence: u64,
    offset: u64,
    payload: &[u8],
) {
    let len = u32::try_from(payload.len()).expect("a record fits into a half");
    target[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
    target[4..8].copy_from_slice(&len.to_le_bytes());
    target[8..16].copy_from_slice(&generation.to_le_bytes());
    target[16..24].copy_from_slice(&sequence.to_le_bytes());
    target[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    let checksum = record_checksum(target, payload.len(), offset);
    target[24..32].copy_from_slice(&checksum.to_le_bytes());
}

fn record_checksum(record: &[u8], payload_bytes: usize, offset: u64) -> u64 {
    let header = xxh3_64_with_seed(&record[..24], offset);
    xxh3_64_with_seed(
        &record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes],
        header,
    )
}

/// The payload bytes that a record of this generation claims to have.
pub(super) fn claimed_bytes(page: &[u8], generation: u64) -> Option<usize> {
    let claims = u32_at(page, 0) == RECORD_MAGIC && u64_at(page, 8) == generation;
    claims.then(|| u32_at(page, 4) as usize)
}

/// The number and the payload of a valid record.
pub(super) fn decode_record(record: &[u8], offset: u64) -> Option<(u64, &[u8])> {
    let payload_bytes = u32_at(record, 4) as usize;
    let payload = record.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes)?;
    let valid = record_checksum(record, payload_bytes, offset) == u64_at(record, 24);
    valid.then(|| (u64_at(record, 16), payload))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
