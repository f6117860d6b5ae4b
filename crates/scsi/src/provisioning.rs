//! Parameter data of UNMAP and GET LBA STATUS (SBC-3 5.28, 5.5).

use crate::command::Extent;
use crate::device::MappedExtent;
use crate::limits;
use crate::sense::Sense;

/// The extents of an UNMAP parameter list, checked against the advertised limits.
///
/// Bounds against the capacity are the caller's. An incomplete last descriptor is ignored, as
/// SBC-3 asks.
pub fn parse_unmap(list: &[u8], block_bytes: u32) -> Result<Vec<Extent>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 8 {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let stated = usize::from(u16::from_be_bytes([list[2], list[3]]));
    let descriptors = &list[8..][..stated.min(list.len() - 8)];
    if descriptors.len() / 16 > limits::UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::INVALID_PARAMETER.at_parameter_byte(2));
    }
    let mut extents = Vec::with_capacity(descriptors.len() / 16);
    let mut total_bytes = 0;
    for descriptor in descriptors.as_chunks::<16>().0 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *descriptor;
        let extent = Extent {
            block: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            blocks: u32::from_be_bytes([i, j, k, l]),
        };
        total_bytes += u64::from(extent.blocks) * u64::from(block_bytes);
        if total_bytes > limits::UNMAP_BYTES_MAX {
            return Err(Sense::INVALID_PARAMETER.at_parameter_byte(8));
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// The same blocks in as few extents as possible: hosts send lists of neighbours, and each extent
/// costs the device a write.
pub fn merge(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.retain(|extent| extent.blocks > 0);
    extents.sort_by_key(|extent| extent.block);
    let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let end = extent.block.saturating_add(u64::from(extent.blocks));
        if let Some(last) = merged.last_mut()
            && extent.block <= last.block + u64::from(last.blocks)
            && let Ok(blocks) = u32::try_from(end - last.block)
        {
            last.blocks = last.blocks.max(blocks);
        } else {
            merged.push(extent);
        }
    }
    merged
}

/// The parameter data of GET LBA STATUS for runs that follow each other from `block` on.
pub fn lba_status(block: u64, block_bytes: u32, runs: &[MappedExtent]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    let mut block = block;
    for run in runs {
        let blocks = u32::try_from(run.length_bytes / u64::from(block_bytes)).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&block.to_be_bytes());
        bytes.extend_from_slice(&blocks.to_be_bytes());
        bytes.extend_from_slice(&[u8::from(!run.mapped), 0, 0, 0]);
        block += u64::from(blocks);
    }
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
        let length = (descriptors.len() * 16) as u16;
        let mut bytes = [(length + 6).to_be_bytes(), length.to_be_bytes()].concat();
        bytes.extend_from_slice(&[0; 4]);
        for (block, blocks) in descriptors {
            bytes.extend_from_slice(&block.to_be_bytes());
            bytes.extend_from_slice(&blocks.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes
    }

    #[test]
    fn descriptors_become_extents() {
        let parsed = parse_unmap(&list(&[(1, 2), (1 << 40, 3)]), 512).unwrap();
        assert_eq!(
            parsed,
            [
                Extent {
                    block: 1,
                    blocks: 2
                },
                Extent {
                    block: 1 << 40,
                    blocks: 3
                }
            ]
        );
    }

    #[test]
    fn neighbours_and_overlapping_extents_become_one() {
        let extent = |block, blocks| Extent { block, blocks };
        let list = [(9, 1), (0, 4), (4, 4), (2, 1), (20, 0), (10, 2)];
        let merged = merge(list.map(|(block, blocks)| extent(block, blocks)).to_vec());
        assert_eq!(merged, [extent(0, 8), extent(9, 3)]);
        let far = vec![extent(0, u32::MAX), extent(u64::from(u32::MAX), 1)];
        assert_eq!(merge(far.clone()), far);
    }

    #[test]
    fn too_many_blocks_or_descriptors_are_invalid_parameters() {
        assert!(parse_unmap(&list(&[(0, 1 << 20)]), 512).is_ok());
        assert!(parse_unmap(&list(&[(0, 1 << 20), (0, 1)]), 512).is_err());
        assert!(parse_unmap(&list(&vec![(0, 1); 257]), 512).is_err());
    }

    #[test]
    fn status_of_an_unmapped_run_is_deallocated() {
        let runs = [
            MappedExtent {
                mapped: true,
                length_bytes: 512,
            },
            MappedExtent {
                mapped: false,
                length_bytes: 1024,
            },
        ];
        let bytes = lba_status(5, 512, &runs);
        assert_eq!(bytes[..4], [0, 0, 0, 36]);
        assert_eq!(
            bytes[8..24],
            [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes[24..],
            [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 2, 1, 0, 0, 0]
        );
    }

    proptest! {
        #[test]
        fn any_list_is_parsed_or_refused(bytes: Vec<u8>) {
            let _ = parse_unmap(&bytes, 512);
        }
    }
}
