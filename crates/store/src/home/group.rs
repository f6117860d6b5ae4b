//! Groups: how blocks lie in a segment, each group with a header that says what they are.
//!
//! ```text
//! group  = header pages | data pages
//! header = checksum 8 | magic 8 | identity 16 | segment 4 | epoch 4 | first page 4 | blocks 4
//!          | version 4 | reserved 12 | entries
//! entry  = volume 8 | slice 4 | block 4 | seq 8 | checksum 8
//! ```
//!
//! Nothing is read by means of a header but to collect a segment, to scrub it and to look at it:
//! the map alone says what counts.

use holdfast_runtime::PAGE_BYTES;
use holdfast_wire::{Seq, SliceKey};

use crate::encoding::{FieldReader, FieldWriter, plain_checksum};

const MAGIC: u64 = u64::from_le_bytes(*b"HFGROUP\n");
pub(crate) const VERSION: u32 = 1;
const FIXED_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;
/// Most pages of one group: one write of 1 MiB.
pub(super) const GROUP_PAGES_MAX: usize = 256;

/// What a block of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupEntry {
    pub(super) slice: SliceKey,
    pub(super) block: u32,
    pub(super) seq: Seq,
    pub(super) checksum: u64,
}

/// Where a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) segment: u32,
    pub(super) epoch: u32,
    /// Page within the segment.
    pub(super) first: u32,
}

/// Pages of the header of a group of `count` blocks.
pub(super) fn header_pages(count: usize) -> usize {
    (FIXED_BYTES + count * ENTRY_BYTES).div_ceil(PAGE_BYTES)
}

/// Most blocks of a group in `pages` pages.
pub(super) fn fitting(pages: u32) -> usize {
    let pages = (pages as usize).min(GROUP_PAGES_MAX);
    let mut count = pages.saturating_sub(1);
    while count > 0 && header_pages(count) + count > pages {
        count -= 1;
    }
    count
}

/// Writes the header of a group into the first pages of `buffer`.
pub(super) fn encode(identity: [u8; 16], at: At, entries: &[GroupEntry], buffer: &mut [u8]) {
    let mut writer = FieldWriter::default();
    writer.u64(0);
    writer.u64(MAGIC);
    writer.raw(&identity);
    writer.u32(at.segment);
    writer.u32(at.epoch);
    writer.u32(at.first);
    writer.u32(entries.len() as u32);
    writer.u32(VERSION);
    writer.raw(&[0; 12]);
    debug_assert_eq!(writer.bytes.len(), FIXED_BYTES);
    for entry in entries {
        writer.slice(entry.slice);
        writer.u32(entry.block);
        writer.u64(entry.seq.0);
        writer.u64(entry.checksum);
    }
    let checksum = plain_checksum(&writer.bytes[8..]);
    writer.bytes[..8].copy_from_slice(&checksum.to_le_bytes());
    buffer[..writer.bytes.len()].copy_from_slice(&writer.bytes);
}

/// The entries of the group that begins with these bytes; `None` if it is not the one that
/// should be there.
pub(super) fn decode(identity: [u8; 16], at: At, bytes: &[u8]) -> Option<Vec<GroupEntry>> {
    let (found, entries) = decode_any(identity, bytes)?;
    (found == at).then_some(entries)
}

/// Whether a page begins like a group, intact or not.
pub(super) fn is_header(page: &[u8]) -> bool {
    page.get(8..16) == Some(&MAGIC.to_le_bytes())
}

/// The group of this store that begins with these bytes, and where it belongs.
pub(super) fn decode_any(identity: [u8; 16], bytes: &[u8]) -> Option<(At, Vec<GroupEntry>)> {
    let mut reader = FieldReader::new(bytes);
    let checksum = reader.u64()?;
    if reader.u64()? != MAGIC || reader.array::<16>()? != identity {
        return None;
    }
    let at = At {
        segment: reader.u32()?,
        epoch: reader.u32()?,
        first: reader.u32()?,
    };
    let count = reader.u32()? as usize;
    let supported = reader.u32()? == VERSION;
    let end = FIXED_BYTES + count.min(GROUP_PAGES_MAX) * ENTRY_BYTES;
    if !supported || count > GROUP_PAGES_MAX || plain_checksum(bytes.get(8..end)?) != checksum {
        return None;
    }
    let mut reader = FieldReader::new(&bytes[FIXED_BYTES..end]);
    let entries = (0..count).map(|_| {
        Some(GroupEntry {
            slice: reader.slice()?,
            block: reader.u32()?,
            seq: Seq(reader.u64()?),
            checksum: reader.u64()?,
        })
    });
    Some((at, entries.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_fills_what_it_is_given() {
        for pages in 2..=300 {
            let count = fitting(pages);
            let taken = header_pages(count) + count;
            assert!(count > 0 && taken <= pages as usize);
            assert!(taken + 2 > (pages as usize).min(GROUP_PAGES_MAX));
        }
    }

    #[test]
    fn a_header_in_the_wrong_place_is_none() {
        let at = At {
            segment: 3,
            epoch: 9,
            first: 12,
        };
        let entry = GroupEntry {
            slice: SliceKey {
                volume: 1,
                slice: 2,
            },
            block: 4,
            seq: Seq(5),
            checksum: 6,
        };
        let entries = vec![entry; 200];
        let mut page = vec![0; header_pages(entries.len()) * PAGE_BYTES];
        encode([1; 16], at, &entries, &mut page);
        assert_eq!(decode([1; 16], at, &page), Some(entries));
        assert_eq!(decode([1; 16], At { epoch: 8, ..at }, &page), None);
        assert_eq!(decode([2; 16], at, &page), None);
        page[4000] ^= 1;
        assert_eq!(decode([1; 16], at, &page), None);
    }
}
