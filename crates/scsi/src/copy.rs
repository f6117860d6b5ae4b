//! EXTENDED COPY and RECEIVE COPY RESULTS with 1-byte list identifiers (SPC-4 6.4, 6.19).
//!
//! What hosts use it for is a copy within one volume: one kind of target descriptor (E4h, by NAA
//! designator) and one kind of segment (02h, block to block), and the only reachable unit is this
//! one. A host that names another one falls back to reading and writing.

use crate::command::Extent;
use crate::device::DeviceIdentity;
use crate::sense::Sense;

/// Most target descriptors in a parameter list.
pub const TARGETS_MAX: usize = 4;
/// Most segment descriptors in a parameter list.
pub const SEGMENTS_MAX: usize = 16;
/// Most bytes of all descriptors in a parameter list.
pub const DESCRIPTORS_BYTES_MAX: usize = 512;

const HEADER_BYTES: usize = 16;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;
const IDENTIFICATION: u8 = 0xe4;
const BLOCK_TO_BLOCK: u8 = 0x02;

// One descriptor too many must be told from a list that is too long.
const _: () = assert!((TARGETS_MAX + 1) * TARGET_BYTES + SEGMENT_BYTES <= DESCRIPTORS_BYTES_MAX);
const _: () = assert!((SEGMENTS_MAX + 1) * SEGMENT_BYTES + TARGET_BYTES <= DESCRIPTORS_BYTES_MAX);

/// One segment: where from, and the first block of where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What is copied.
    pub source: Extent,
    /// First block of the destination.
    pub destination: u64,
}

/// What a parameter list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// LIST IDENTIFIER.
    pub list: u8,
    /// The segments, in their order.
    pub segments: Vec<Segment>,
}

/// How an EXTENDED COPY ended, for RECEIVE COPY RESULTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// LIST IDENTIFIER.
    pub list: u8,
    /// Whether all segments were copied.
    pub complete: bool,
    /// Segments copied.
    pub segments: u16,
    /// KiB copied.
    pub kib: u32,
}

/// Parses a parameter list that is not empty.
pub fn parse(bytes: &[u8], identity: &DeviceIdentity) -> Result<Plan, Sense> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Sense::PARAMETER_LENGTH)?;
    let target_bytes = usize::from(u16_at(header, 2));
    let (segment_bytes, inline) = (u32_at(header, 8) as usize, u32_at(header, 12));
    let descriptors = &bytes[HEADER_BYTES..];
    let stated = target_bytes.saturating_add(segment_bytes);
    if stated > DESCRIPTORS_BYTES_MAX || stated > descriptors.len() || inline != 0 {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let (targets, rest) = descriptors.split_at(target_bytes);
    let (targets, cut) = targets.as_chunks::<TARGET_BYTES>();
    if !cut.is_empty() {
        return Err(Sense::PARAMETER_LENGTH);
    }
    if targets.len() > TARGETS_MAX {
        return Err(Sense::TOO_MANY_TARGETS);
    }
    let mut reachable = Vec::new();
    for target in targets {
        reachable.push(is_this_unit(target, identity)?);
    }
    let mut segments = Vec::new();
    let mut rest = &rest[..segment_bytes];
    while let Some(kind) = rest.first() {
        if *kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT);
        }
        let (segment, later) = rest
            .split_at_checked(SEGMENT_BYTES)
            .ok_or(Sense::PARAMETER_LENGTH)?;
        if segments.len() == SEGMENTS_MAX {
            return Err(Sense::TOO_MANY_SEGMENTS);
        }
        segments.push(segment);
        rest = later;
    }
    let segments = segments
        .into_iter()
        .map(|segment| {
            for index in [u16_at(segment, 4), u16_at(segment, 6)] {
                match reachable.get(usize::from(index)) {
                    Some(true) => {}
                    Some(false) => return Err(Sense::COPY_DEVICE_NOT_REACHABLE),
                    None => return Err(Sense::UNREACHABLE_COPY_TARGET),
                }
            }
            Ok(Segment {
                source: Extent {
                    block: u64_at(segment, 12),
                    blocks: u32::from(u16_at(segment, 10)),
                },
                destination: u64_at(segment, 20),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Plan {
        list: header[0],
        segments,
    })
}

fn is_this_unit(target: &[u8; TARGET_BYTES], identity: &DeviceIdentity) -> Result<bool, Sense> {
    if target[0] != IDENTIFICATION {
        return Err(Sense::UNSUPPORTED_TARGET);
    }
    // SPC-4 has LU ID TYPE ignored for designators, and NUL obsolete.
    let (code_set, kind, length) = (target[4] & 0x0f, target[5] & 0x3f, target[7]);
    Ok((code_set, kind, length) == (1, 3, 16) && target[8..24] == identity.naa)
}

/// The parameter data of RECEIVE COPY RESULTS, OPERATING PARAMETERS, uncut.
pub fn operating_parameters(block_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; 44];
    // SNLID: a list identifier of zero is like any other.
    bytes[4] = 0x01;
    bytes[8..10].copy_from_slice(&(TARGETS_MAX as u16).to_be_bytes());
    bytes[10..12].copy_from_slice(&(SEGMENTS_MAX as u16).to_be_bytes());
    bytes[12..16].copy_from_slice(&(DESCRIPTORS_BYTES_MAX as u32).to_be_bytes());
    let segment_bytes_max = u32::from(u16::MAX) * block_bytes;
    bytes[16..20].copy_from_slice(&segment_bytes_max.to_be_bytes());
    // Concurrent copies, in all and of one nexus: as many as there are commands.
    bytes[35] = 128;
    bytes[36] = 128;
    bytes[37] = block_bytes.ilog2() as u8;
    bytes[43] = 2;
    bytes.extend_from_slice(&[BLOCK_TO_BLOCK, IDENTIFICATION]);
    let available = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&available.to_be_bytes());
    bytes
}

/// The parameter data of RECEIVE COPY RESULTS, COPY STATUS, uncut.
pub fn copy_status(status: CopyStatus) -> Vec<u8> {
    /// The transfer count is in KiB.
    const KIB: u8 = 1;
    let mut bytes = vec![0, 0, 0, 8, if status.complete { 1 } else { 2 }];
    bytes.extend_from_slice(&status.segments.to_be_bytes());
    bytes.push(KIB);
    bytes.extend_from_slice(&status.kib.to_be_bytes());
    bytes
}

/// The descriptors of the Third-Party Copy page (SPC-4 7.8.17).
pub fn third_party_page() -> Vec<u8> {
    // EXTENDED COPY with one service action, RECEIVE COPY RESULTS with two; padded.
    let mut bytes = vec![0, 1, 0, 8, 7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03];
    let mut parameters = [0; 32];
    (parameters[1], parameters[3]) = (4, 28);
    parameters[8..10].copy_from_slice(&(TARGETS_MAX as u16).to_be_bytes());
    parameters[10..12].copy_from_slice(&(SEGMENTS_MAX as u16).to_be_bytes());
    parameters[12..16].copy_from_slice(&(DESCRIPTORS_BYTES_MAX as u32).to_be_bytes());
    bytes.extend_from_slice(&parameters);
    bytes.extend_from_slice(&[0, 8, 0, 4, 2, BLOCK_TO_BLOCK, IDENTIFICATION, 0]);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (u32::from(u16_at(bytes, at)) << 16) | u32::from(u16_at(bytes, at + 2))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u64::from(u32_at(bytes, at)) << 32) | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> DeviceIdentity {
        DeviceIdentity {
            naa: [0x60; 16],
            serial: "1".into(),
            vendor: "HOLDFAST".into(),
            product: "Volume".into(),
            revision: "1".into(),
            logical_block_bytes: 512,
            capacity_bytes: 1 << 20,
        }
    }

    fn list(targets: usize, segments: usize) -> Vec<u8> {
        let mut bytes = vec![7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&((targets * TARGET_BYTES) as u16).to_be_bytes());
        bytes[10..12].copy_from_slice(&((segments * SEGMENT_BYTES) as u16).to_be_bytes());
        for _ in 0..targets {
            let mut target = [0; TARGET_BYTES];
            (target[0], target[4], target[5], target[7]) = (IDENTIFICATION, 1, 3, 16);
            target[8..24].copy_from_slice(&[0x60; 16]);
            bytes.extend_from_slice(&target);
        }
        for _ in 0..segments {
            let mut segment = [0; SEGMENT_BYTES];
            (segment[0], segment[3], segment[11]) = (BLOCK_TO_BLOCK, 0x18, 5);
            (segment[19], segment[27]) = (1, 9);
            bytes.extend_from_slice(&segment);
        }
        bytes
    }

    #[test]
    fn a_copy_within_the_unit_is_a_plan() {
        let plan = parse(&list(1, 1), &identity()).unwrap();
        let source = Extent {
            block: 1,
            blocks: 5,
        };
        let segments = vec![Segment {
            source,
            destination: 9,
        }];
        assert_eq!(plan, Plan { list: 7, segments });
    }

    #[test]
    fn limits_are_told_apart() {
        let refusal = |bytes: &[u8]| parse(bytes, &identity()).unwrap_err();
        let one_more = |targets, segments| refusal(&list(targets, segments));
        assert_eq!(one_more(TARGETS_MAX + 1, 1), Sense::TOO_MANY_TARGETS);
        assert_eq!(one_more(1, SEGMENTS_MAX + 1), Sense::TOO_MANY_SEGMENTS);
        let both = one_more(TARGETS_MAX + 1, SEGMENTS_MAX + 1);
        assert_eq!(both, Sense::PARAMETER_LENGTH);
        assert_eq!(refusal(&list(1, 1)[..70]), Sense::PARAMETER_LENGTH);
    }

    #[test]
    fn what_cannot_be_reached_or_is_not_supported_is_refused() {
        let refusal = |at: usize, byte: u8| {
            let mut bytes = list(1, 1);
            bytes[at] = byte;
            parse(&bytes, &identity()).unwrap_err()
        };
        assert_eq!(refusal(16, 0xe0), Sense::UNSUPPORTED_TARGET);
        assert_eq!(refusal(48, 0x03), Sense::UNSUPPORTED_SEGMENT);
        assert_eq!(refusal(55, 1), Sense::UNREACHABLE_COPY_TARGET);
        assert_eq!(refusal(30, 1), Sense::COPY_DEVICE_NOT_REACHABLE);
    }

    #[test]
    fn operating_parameters_and_page_state_the_limits() {
        let bytes = operating_parameters(512);
        assert_eq!(u32_at(&bytes, 0) as usize + 4, bytes.len());
        assert_eq!(bytes[8..16], [0, 4, 0, 16, 0, 0, 2, 0]);
        assert!(third_party_page().len().is_multiple_of(4));
    }

    proptest! {
        #[test]
        fn any_list_is_parsed_or_refused(bytes: Vec<u8>, at in 0..76_usize, byte: u8) {
            let _ = parse(&bytes, &identity());
            let mut nearly = list(1, 1);
            nearly[at] = byte;
            let _ = parse(&nearly, &identity());
        }
    }
}
