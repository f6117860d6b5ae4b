//! Parameter data of READ CAPACITY and REPORT LUNS (SBC-3 5.15, 5.16; SPC-4 6.33).

use crate::command::LunSelection;
use crate::limits;

/// READ CAPACITY(10): the last block is FFFFFFFFh if it needs more than 32 bits.
pub fn capacity10(block_bytes: u32, blocks: u64) -> Vec<u8> {
    let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), block_bytes.to_be_bytes()].concat()
}

/// READ CAPACITY(16), uncut.
pub fn capacity16(block_bytes: u32, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..8].copy_from_slice(&blocks.saturating_sub(1).to_be_bytes());
    bytes[8..12].copy_from_slice(&block_bytes.to_be_bytes());
    bytes[13] = (limits::PHYSICAL_BLOCK_BYTES / block_bytes).max(1).ilog2() as u8;
    // LBPME and LBPRZ; the lowest aligned block is 0.
    bytes[14] = 0xc0;
    bytes
}

/// READ DEFECT DATA, uncut: the lists that were asked for are valid, and empty.
pub fn defects(long: bool, lists: u8) -> Vec<u8> {
    vec![0, lists, 0, 0, 0, 0, 0, 0][..if long { 8 } else { 4 }].to_vec()
}

/// REPORT LUNS, uncut: a target has one unit, LUN 0.
pub fn luns(selection: LunSelection) -> Vec<u8> {
    match selection {
        LunSelection::Ordinary => [[0, 0, 0, 8, 0, 0, 0, 0], [0; 8]].concat(),
        LunSelection::WellKnown => vec![0; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity10_saturates_beyond_32_bits() {
        assert_eq!(capacity10(512, 0x1000), [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
        assert_eq!(capacity10(512, 1 << 32)[..4], [0xff; 4]);
        assert_eq!(capacity10(512, 1 << 40)[..4], [0xff; 4]);
    }

    #[test]
    fn capacity16_states_512e_and_thin_provisioning() {
        let bytes = capacity16(512, 1 << 40);
        assert_eq!(
            bytes[..12],
            [0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]
        );
        assert_eq!((bytes[13], bytes[14]), (3, 0xc0));
        assert_eq!(capacity16(4096, 1)[13], 0);
    }
}
