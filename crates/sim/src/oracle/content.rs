//! What a block contains, so that its bytes alone tell which write they came from.
//!
//! A block of 4 KiB (or, where sectors are tested, of 512 bytes) consists of little-endian words:
//! the write's value, the block's address as a tag, then words that depend on value, tag and
//! position. A block that is not wholly from one write to this very address does not decode.

use thiserror::Error;

/// Bytes of a block: the unit of atomicity towards clients.
pub const BLOCK_BYTES: usize = 4096;

const WORD_BYTES: usize = 8;
/// Odd, so that every position changes every value.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// One block of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddress {
    /// The volume's number.
    pub volume: u64,
    /// The block's number within the volume.
    pub block: u64,
}

/// Which write a block's contents come from; unique per run, except [`Value::ZERO`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

impl Value {
    /// A block of zeroes: never written, or written zero.
    pub const ZERO: Self = Self(0);
}

/// Contents that no write to this address has ever had.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Garbage {
    /// The block of another address.
    #[error("the contents of block {} of volume {} (value {})", .0.block, .0.volume, .1.0)]
    Misplaced(BlockAddress, Value),
    /// Parts of different contents.
    #[error("torn or corrupt contents: word {word} does not belong to value {}", .value.0)]
    Torn {
        /// What the first word says.
        value: Value,
        /// The first word that differs.
        word: usize,
    },
    /// Too short to be a block, or no whole number of words.
    #[error("{0} bytes instead of a block")]
    Length(usize),
}

/// Fills a block with the contents of `value`.
pub fn fill(block: &mut [u8], address: BlockAddress, value: Value) {
    assert!(is_block(block), "{} bytes are no block", block.len());
    if value == Value::ZERO {
        block.fill(0);
        return;
    }
    for (position, word) in block.chunks_exact_mut(WORD_BYTES).enumerate() {
        word.copy_from_slice(&expected(address, value, position).to_le_bytes());
    }
}

/// Which write's contents these are.
pub fn decode(block: &[u8], address: BlockAddress) -> Result<Value, Garbage> {
    if !is_block(block) {
        return Err(Garbage::Length(block.len()));
    }
    let words = block.len() / WORD_BYTES;
    let word = |position: usize| {
        let bytes = &block[position * WORD_BYTES..(position + 1) * WORD_BYTES];
        bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    };
    let value = Value(word(0));
    if value == Value::ZERO {
        return match block.iter().position(|byte| *byte != 0) {
            None => Ok(Value::ZERO),
            Some(byte) => Err(Garbage::Torn {
                value,
                word: byte / WORD_BYTES,
            }),
        };
    }
    let differing =
        (0..words).find(|position| word(*position) != expected(address, value, *position));
    match differing {
        None => Ok(value),
        Some(_) => {
            let other = address_of(word(1));
            let whole =
                (2..words).all(|position| word(position) == expected(other, value, position));
            match differing {
                Some(1) if whole => Err(Garbage::Misplaced(other, value)),
                differing => Err(Garbage::Torn {
                    value,
                    word: differing.unwrap_or(0),
                }),
            }
        }
    }
}

fn is_block(block: &[u8]) -> bool {
    block.len() >= 3 * WORD_BYTES && block.len().is_multiple_of(WORD_BYTES)
}

fn expected(address: BlockAddress, value: Value, position: usize) -> u64 {
    let tag = address.volume << 48 | address.block;
    match position {
        0 => value.0,
        1 => tag,
        _ => value.0.wrapping_add(STRIDE.wrapping_mul(position as u64)) ^ tag.rotate_left(32),
    }
}

fn address_of(tag: u64) -> BlockAddress {
    BlockAddress {
        volume: tag >> 48,
        block: tag & ((1 << 48) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: BlockAddress = BlockAddress {
        volume: 3,
        block: 70_000,
    };

    fn block_of(address: BlockAddress, value: Value) -> Vec<u8> {
        let mut block = vec![0xee; BLOCK_BYTES];
        fill(&mut block, address, value);
        block
    }

    #[test]
    fn contents_decode_to_their_value() {
        for value in [Value::ZERO, Value(1), Value(u64::MAX)] {
            assert_eq!(decode(&block_of(HERE, value), HERE), Ok(value));
        }
    }

    #[test]
    fn sectors_have_contents_too() {
        let mut sector = vec![0; 512];
        fill(&mut sector, HERE, Value(7));
        assert_eq!(decode(&sector, HERE), Ok(Value(7)));
        assert_eq!(decode(&sector[..16], HERE), Err(Garbage::Length(16)));
    }

    #[test]
    fn contents_of_another_block_are_told_apart() {
        let there = BlockAddress {
            block: 70_001,
            ..HERE
        };
        let misplaced = Garbage::Misplaced(there, Value(9));
        assert_eq!(decode(&block_of(there, Value(9)), HERE), Err(misplaced));
    }

    #[test]
    fn a_sector_of_another_write_and_a_flipped_bit_are_noticed_anywhere() {
        let (old, new) = (block_of(HERE, Value(5)), block_of(HERE, Value(6)));
        for sector in 0..8 {
            let mut torn = new.clone();
            torn[sector * 512..][..512].copy_from_slice(&old[sector * 512..][..512]);
            assert!(
                matches!(decode(&torn, HERE), Err(Garbage::Torn { .. })),
                "sector {sector}"
            );
            let mut zeroed = new.clone();
            zeroed[sector * 512..][..512].fill(0);
            assert!(
                matches!(decode(&zeroed, HERE), Err(Garbage::Torn { .. })),
                "sector {sector}"
            );
        }
        for byte in 0..BLOCK_BYTES {
            let mut flipped = new.clone();
            flipped[byte] ^= 0x10;
            assert!(decode(&flipped, HERE).is_err(), "byte {byte}");
        }
    }
}
