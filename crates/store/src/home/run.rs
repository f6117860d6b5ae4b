//! Sorted runs on disk: a stream of leaves, cut into pages that each prove what they are.
//!
//! ```text
//! page = checksum 8 | magic 8 | identity 16 | run 8 | page 4 | version 4 | reserved 16 | payload
//! payload of all pages together = leaf, leaf, ... in the order of their keys
//! leaf = volume 8 | slice 4 | extent 4 | facts 4 | reserved 4 | facts of 48 bytes
//! ```
//!
//! A table (see [`super::map`]) has a second stream behind the first, on pages of its own: the
//! *directory*, which tells for each leaf where it begins and which blocks it speaks of.

use holdfast_runtime::{Buffer, PAGE_BYTES};
use holdfast_wire::{Seq, SliceKey};

use super::fact::{Blocks, ExtentKey, FACT_BYTES, Fact, Leaf};
use crate::encoding::{FieldReader, FieldWriter, plain_checksum};

const MAGIC: u64 = u64::from_le_bytes(*b"HFMAPRUN");
pub(crate) const VERSION: u32 = 1;
const PAGE_HEADER_BYTES: usize = 64;
/// Bytes of a stream that one page carries.
pub(super) const PAYLOAD_BYTES: usize = PAGE_BYTES - PAGE_HEADER_BYTES;
const LEAF_HEADER_BYTES: usize = 24;
/// A leaf with a fact for each block.
pub(super) const LEAF_BYTES_MAX: usize =
    LEAF_HEADER_BYTES + super::fact::EXTENT_BLOCKS as usize * FACT_BYTES;
const DIRECTORY_ENTRY_BYTES: usize = 64;

/// Where a leaf lies in its table's stream, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafPlace {
    pub(super) key: ExtentKey,
    pub(super) at: u32,
    pub(super) bytes: u32,
    pub(super) seq_max: Seq,
    pub(super) occupied: Blocks,
}

/// A stream of leaves under construction.
#[derive(Default)]
pub(super) struct Stream {
    writer: FieldWriter,
    pub(super) places: Vec<LeafPlace>,
}

impl Stream {
    pub(super) fn push(&mut self, key: ExtentKey, leaf: &Leaf) {
        let at = self.writer.bytes.len();
        self.writer.slice(key.slice);
        self.writer.u32(key.extent);
        self.writer.u32(leaf.facts().len() as u32);
        self.writer.u32(0);
        for fact in leaf.facts() {
            fact.encode(&mut self.writer);
        }
        self.places.push(LeafPlace {
            key,
            at: at as u32,
            bytes: (self.writer.bytes.len() - at) as u32,
            seq_max: leaf.seq_max(),
            occupied: leaf.occupied(),
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.writer.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The slices it speaks of, ascending.
    pub(super) fn slices(&self) -> Vec<SliceKey> {
        let mut slices: Vec<SliceKey> = self.places.iter().map(|place| place.key.slice).collect();
        slices.dedup();
        slices
    }

    /// The stream in pages.
    pub(super) fn pages(&self, identity: [u8; 16], run: u64) -> Buffer {
        paged(identity, run, 0, &self.writer.bytes)
    }

    /// The directory in pages, numbered after those of the stream.
    pub(super) fn directory(&self, identity: [u8; 16], run: u64) -> Buffer {
        let mut writer = FieldWriter::default();
        for place in &self.places {
            writer.slice(place.key.slice);
            writer.u32(place.key.extent);
            writer.u32(place.at);
            writer.u32(place.bytes);
            writer.u64(place.seq_max.0);
            for word in place.occupied.words() {
                writer.u64(word);
            }
        }
        debug_assert_eq!(
            writer.bytes.len(),
            self.places.len() * DIRECTORY_ENTRY_BYTES
        );
        let first = self.bytes().div_ceil(PAYLOAD_BYTES) as u32;
        paged(identity, run, first, &writer.bytes)
    }
}

fn paged(identity: [u8; 16], run: u64, first_page: u32, stream: &[u8]) -> Buffer {
    let pages = stream.len().div_ceil(PAYLOAD_BYTES);
    let mut buffer = Buffer::zeroed(pages * PAGE_BYTES);
    let places = buffer.chunks_mut(PAGE_BYTES);
    for ((page, payload), number) in places.zip(stream.chunks(PAYLOAD_BYTES)).zip(first_page..) {
        page[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let mut header = FieldWriter::default();
        header.u64(MAGIC);
        header.raw(&identity);
        header.u64(run);
        header.u32(number);
        header.u32(VERSION);
        page[8..8 + header.bytes.len()].copy_from_slice(&header.bytes);
        let checksum = plain_checksum(&page[8..]);
        page[..8].copy_from_slice(&checksum.to_le_bytes());
    }
    buffer
}

/// The payload of a page, if it is page `number` of this run.
pub(super) fn payload(identity: [u8; 16], run: u64, number: u32, page: &[u8]) -> Option<&[u8]> {
    let mut reader = FieldReader::new(page);
    let intact = reader.u64()? == plain_checksum(&page[8..])
        && reader.u64()? == MAGIC
        && reader.array::<16>()? == identity
        && (reader.u64()?, reader.u32()?, reader.u32()?) == (run, number, VERSION);
    intact.then(|| &page[PAGE_HEADER_BYTES..])
}

/// Which page of which run of this store an intact page is.
pub(super) fn claim(identity: [u8; 16], page: &[u8]) -> Option<(u64, u32)> {
    let mut reader = FieldReader::new(page.get(32..)?);
    let (run, number) = (reader.u64()?, reader.u32()?);
    payload(identity, run, number, page).map(|_| (run, number))
}

/// The payloads of consecutive pages joined; `None` if one of them is not what it should be.
pub(super) fn joined(
    identity: [u8; 16],
    run: u64,
    first_page: u32,
    pages: &[u8],
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(pages.len() / PAGE_BYTES * PAYLOAD_BYTES);
    for (page, number) in pages.chunks(PAGE_BYTES).zip(first_page..) {
        bytes.extend_from_slice(payload(identity, run, number, page)?);
    }
    Some(bytes)
}

/// Takes one leaf off the stream; `None` at its end or where it is no leaf.
pub(super) fn next_leaf(reader: &mut FieldReader<'_>) -> Option<(ExtentKey, Leaf)> {
    let key = ExtentKey {
        slice: reader.slice()?,
        extent: reader.u32()?,
    };
    let count = reader.u32()?;
    let _reserved = reader.u32()?;
    if count == 0 || count > super::fact::EXTENT_BLOCKS {
        return None;
    }
    // Collecting into an option knows no size, and would leave room for more.
    let mut facts = Vec::with_capacity(count as usize);
    for _ in 0..count {
        facts.push(Fact::decode(reader)?);
    }
    Some((key, Leaf::from_facts(facts)?))
}

/// The leaf at a place, of which the payload of pages from `first_page` on is known.
pub(super) fn leaf_in(place: &LeafPlace, first_page: u32, payload: &[u8]) -> Option<Leaf> {
    let start = (place.at as usize).checked_sub(first_page as usize * PAYLOAD_BYTES)?;
    let bytes = payload.get(start..start + place.bytes as usize)?;
    let (key, leaf) = next_leaf(&mut FieldReader::new(bytes))?;
    (key == place.key).then_some(leaf)
}

/// Pages that the directory of `count` leaves takes.
pub(super) fn directory_pages(count: u32) -> u32 {
    (count as usize * DIRECTORY_ENTRY_BYTES).div_ceil(PAYLOAD_BYTES) as u32
}

/// Reads a directory of `count` leaves.
pub(super) fn read_directory(bytes: &[u8], count: u32) -> Option<Vec<LeafPlace>> {
    let mut reader = FieldReader::new(bytes);
    let mut places = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let key = ExtentKey {
            slice: reader.slice()?,
            extent: reader.u32()?,
        };
        let (at, bytes) = (reader.u32()?, reader.u32()?);
        let seq_max = Seq(reader.u64()?);
        let words = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        if bytes == 0 {
            return None;
        }
        places.push(LeafPlace {
            key,
            at,
            bytes,
            seq_max,
            occupied: Blocks::from_words(words),
        });
    }
    Some(places)
}

const _: () = assert!(LEAF_BYTES_MAX <= 4 * PAYLOAD_BYTES);

#[cfg(test)]
mod tests {
    use super::super::fact::State;
    use super::*;

    const IDENTITY: [u8; 16] = *b"a run for a test";

    fn stream() -> Stream {
        let mut stream = Stream::default();
        for extent in 0..40 {
            let mut leaf = Leaf::default();
            for block in (0..=255).step_by(1 + extent as usize) {
                let fact = Fact {
                    state: State::Present,
                    seq: Seq(u64::from(extent) + 1),
                    ..Fact::lost(block)
                };
                leaf.lay(fact, |_| {});
            }
            let slice = SliceKey {
                volume: 1,
                slice: extent / 8,
            };
            stream.push(ExtentKey { slice, extent }, &leaf);
        }
        stream
    }

    #[test]
    fn leaves_are_found_again_one_by_one_and_in_order() {
        let stream = stream();
        let pages = stream.pages(IDENTITY, 7);
        let whole = joined(IDENTITY, 7, 0, &pages).unwrap();
        let mut reader = FieldReader::new(&whole);
        for place in &stream.places {
            let (key, leaf) = next_leaf(&mut reader).unwrap();
            assert_eq!((key, leaf.seq_max()), (place.key, place.seq_max));
            let first = place.at / PAYLOAD_BYTES as u32;
            let count = (place.at + place.bytes).div_ceil(PAYLOAD_BYTES as u32) - first;
            let range = first as usize * PAGE_BYTES..(first + count) as usize * PAGE_BYTES;
            let some = joined(IDENTITY, 7, first, &pages[range]).unwrap();
            assert_eq!(leaf_in(place, first, &some), Some(leaf));
        }
        let directory = stream.directory(IDENTITY, 7);
        let first = pages.len() / PAGE_BYTES;
        let bytes = joined(IDENTITY, 7, first as u32, &directory).unwrap();
        let count = stream.places.len() as u32;
        assert_eq!(read_directory(&bytes, count), Some(stream.places));
    }

    #[test]
    fn a_page_of_another_run_place_or_store_is_none_of_ours() {
        let pages = stream().pages(IDENTITY, 7);
        assert!(payload(IDENTITY, 7, 1, &pages[PAGE_BYTES..2 * PAGE_BYTES]).is_some());
        assert!(payload(IDENTITY, 8, 1, &pages[PAGE_BYTES..2 * PAGE_BYTES]).is_none());
        assert!(payload(IDENTITY, 7, 1, &pages[..PAGE_BYTES]).is_none());
        assert!(payload([0; 16], 7, 0, &pages[..PAGE_BYTES]).is_none());
        assert!(payload(IDENTITY, 7, 0, &[0; PAGE_BYTES]).is_none());
    }
}
