//! Little-endian fields of the on-disk formats, and the checksums over them.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::record::SliceKey;

/// Checksum of a block's bytes with its identity mixed in, so that an intact block in the wrong
/// place does not match.
pub(crate) fn block_checksum(slice: SliceKey, block: u32, bytes: &[u8]) -> u64 {
    let place = (u64::from(slice.slice) << 32) | u64::from(block);
    let seed = mixed(mixed(slice.volume ^ 0x9e37_79b9_7f4a_7c15) ^ place);
    xxh3_64_with_seed(bytes, seed)
}

/// Checksum of a structure that carries its own identity.
pub(crate) fn plain_checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The finalising permutation of splitmix64: neighbouring places get unrelated seeds.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Appends fields to a growing byte string.
#[derive(Default)]
pub(crate) struct FieldWriter {
    pub(crate) bytes: Vec<u8>,
}

impl FieldWriter {
    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn slice(&mut self, key: SliceKey) {
        self.u64(key.volume);
        self.u32(key.slice);
    }
}

/// Takes fields off the front of a byte string; `None` once it is exhausted.
pub(crate) struct FieldReader<'a> {
    bytes: &'a [u8],
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn raw(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(head)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.raw(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.raw(8)?.try_into().ok()?))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.raw(N)?.try_into().ok()
    }

    pub(crate) fn slice(&mut self) -> Option<SliceKey> {
        Some(SliceKey {
            volume: self.u64()?,
            slice: self.u32()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_back_and_an_exhausted_string_gives_none() {
        let key = SliceKey {
            volume: u64::MAX,
            slice: 7,
        };
        let mut writer = FieldWriter::default();
        writer.u32(3);
        writer.slice(key);
        writer.raw(b"abc");
        let mut reader = FieldReader::new(&writer.bytes);
        assert_eq!(reader.u32(), Some(3));
        assert_eq!(reader.slice(), Some(key));
        assert_eq!(reader.u64(), None);
        assert_eq!(reader.array(), Some(*b"abc"));
        assert!(reader.is_empty() && reader.u32().is_none());
    }

    #[test]
    fn the_same_bytes_have_another_checksum_in_every_other_place() {
        let key = |volume, slice| SliceKey { volume, slice };
        let places = [
            (key(1, 0), 0),
            (key(1, 0), 1),
            (key(1, 1), 0),
            (key(2, 0), 0),
            (key(0, 1), 1),
        ];
        let sums = places.map(|(slice, block)| block_checksum(slice, block, &[5; 64]));
        let different: std::collections::BTreeSet<u64> = sums.into_iter().collect();
        assert_eq!(different.len(), places.len());
    }
}
