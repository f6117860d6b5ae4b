//! What a block holds: which write it is from, in every word.
//!
//! A block names its volume, its place and its write; all other words follow from these. So a
//! block that is torn, misplaced, of another volume or of another run is never taken for a value.

use crate::register::NEVER_WRITTEN;

/// Bytes of a block, the unit that the target promises to write whole.
pub(crate) const BLOCK_BYTES: usize = 4096;

const MAGIC: u64 = 0x486f_6c64_6661_7374;
const WORD: usize = 8;
const HEADER_WORDS: usize = 4;

/// Where a block is: the volume's index and the block's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) volume: u32,
    pub(crate) block: u32,
}

/// The bytes of a write's block at `place`.
pub(crate) fn fill(out: &mut Vec<u8>, run: u64, place: Place, value: u64) {
    let header = [MAGIC, run, whole(place), value];
    for word in header {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let mut state = value ^ whole(place).rotate_left(17) ^ run;
    for _ in HEADER_WORDS..BLOCK_BYTES / WORD {
        state = step(state);
        out.extend_from_slice(&state.to_le_bytes());
    }
}

/// Which write a block is from; the error says what is wrong with its bytes.
pub(crate) fn value_of(bytes: &[u8], run: u64, place: Place) -> Result<u64, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(NEVER_WRITTEN);
    }
    let word = |index: usize| {
        let word = bytes.get(index * WORD..(index + 1) * WORD);
        word.and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let (magic, of_run, at, value) = (word(0), word(1), word(2), word(3));
    if magic != MAGIC || of_run != run {
        return Err(format!(
            "no block of this run: it begins with {magic:016x} {of_run:016x}"
        ));
    }
    if at != whole(place) {
        let (volume, block) = (at >> 32, at & 0xffff_ffff);
        return Err(format!("block {block} of volume {volume}, value {value}"));
    }
    let mut expected = Vec::with_capacity(BLOCK_BYTES);
    fill(&mut expected, run, place, value);
    let differs = expected.iter().zip(bytes).position(|(a, b)| a != b);
    match differs {
        None if bytes.len() == BLOCK_BYTES => Ok(value),
        None => Err(format!("{} bytes of value {value}", bytes.len())),
        Some(at) => Err(format!("value {value}, torn at byte {at}")),
    }
}

fn whole(place: Place) -> u64 {
    u64::from(place.volume) << 32 | u64::from(place.block)
}

fn step(state: u64) -> u64 {
    let state = state.wrapping_mul(6_364_136_223_846_793_005);
    state.wrapping_add(1_442_695_040_888_963_407)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        volume: 2,
        block: 9,
    };

    #[test]
    fn a_block_names_its_write_and_zeroes_name_none() {
        let mut bytes = Vec::new();
        fill(&mut bytes, 5, PLACE, 77);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(value_of(&bytes, 5, PLACE), Ok(77));
        assert_eq!(value_of(&[0; BLOCK_BYTES], 5, PLACE), Ok(NEVER_WRITTEN));
    }

    #[test]
    fn torn_misplaced_and_foreign_blocks_are_no_values() {
        let mut bytes = Vec::new();
        fill(&mut bytes, 5, PLACE, 77);
        let elsewhere = Place {
            volume: 2,
            block: 10,
        };
        assert!(
            value_of(&bytes, 5, elsewhere)
                .unwrap_err()
                .contains("block 9")
        );
        assert!(value_of(&bytes, 6, PLACE).unwrap_err().contains("no block"));
        assert!(value_of(&bytes[..4000], 5, PLACE).is_err());
        let mut other = Vec::new();
        fill(&mut other, 5, PLACE, 78);
        bytes[2048..].copy_from_slice(&other[2048..]);
        assert!(
            value_of(&bytes, 5, PLACE)
                .unwrap_err()
                .contains("torn at byte 2048")
        );
    }
}
