//! SCSI commands and their answers, as far as a disk initiator needs them (SPC-4, SBC-3).

use bytes::Bytes;

use crate::error::Error;

/// One SCSI command for a session to carry out.
#[derive(Debug, Clone)]
pub struct Command {
    /// Logical unit number, 0 to 16383.
    pub lun: u16,
    /// The command descriptor block, zero-padded.
    pub cdb: [u8; 16],
    /// Where its data goes.
    pub transfer: Transfer,
}

/// A command's data, and its direction.
#[derive(Debug, Clone)]
pub enum Transfer {
    /// No data.
    None,
    /// Up to so many bytes come back.
    Read(u32),
    /// These bytes go out. At most 4 GiB - 1.
    Write(Bytes),
}

impl Transfer {
    /// The expected data transfer length, in bytes.
    pub(crate) fn length(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Read(length) => *length,
            Self::Write(data) => data.len() as u32,
        }
    }
}

/// A range of logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first logical block address.
    pub first: u64,
    /// The number of blocks.
    pub blocks: u32,
}

/// What READ CAPACITY(16) says (SBC-3 section 5.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Logical blocks on the disk.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_length: u32,
    /// Bytes of a physical block.
    pub physical_block_length: u32,
    /// The disk gives space back on UNMAP (LBPME).
    pub thin: bool,
    /// Unmapped blocks read as zeros (LBPRZ).
    pub unmapped_reads_zero: bool,
}

impl Capacity {
    /// The disk's size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_length))
    }
}

/// What standard INQUIRY says (SPC-4 section 6.4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral qualifier and device type; 0 is a disk, 0x7f no logical unit.
    pub peripheral: u8,
    /// T10 vendor identification.
    pub vendor: String,
    /// Product identification.
    pub product: String,
    /// Product revision.
    pub revision: String,
}

impl Command {
    /// TEST UNIT READY.
    pub fn test_unit_ready(lun: u16) -> Self {
        Self {
            lun,
            cdb: [0; 16],
            transfer: Transfer::None,
        }
    }

    /// Standard INQUIRY, or a vital product data page.
    pub fn inquiry(lun: u16, page: Option<u8>) -> Self {
        const ALLOCATION: u16 = 1024;
        let mut cdb = [0; 16];
        cdb[0] = 0x12;
        cdb[1] = page.is_some().into();
        cdb[2] = page.unwrap_or(0);
        cdb[3..5].copy_from_slice(&ALLOCATION.to_be_bytes());
        Self {
            lun,
            cdb,
            transfer: Transfer::Read(ALLOCATION.into()),
        }
    }

    /// READ CAPACITY(16).
    pub fn read_capacity(lun: u16) -> Self {
        const ALLOCATION: u32 = 32;
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[0x9e, 0x10]);
        cdb[10..14].copy_from_slice(&ALLOCATION.to_be_bytes());
        Self {
            lun,
            cdb,
            transfer: Transfer::Read(ALLOCATION),
        }
    }

    /// REPORT LUNS, to LUN 0.
    pub fn report_luns() -> Self {
        const ALLOCATION: u32 = 16 * 1024;
        let mut cdb = [0; 16];
        cdb[0] = 0xa0;
        cdb[6..10].copy_from_slice(&ALLOCATION.to_be_bytes());
        Self {
            lun: 0,
            cdb,
            transfer: Transfer::Read(ALLOCATION),
        }
    }

    /// READ(16) of `range`, in blocks of `block_length` bytes.
    pub fn read(lun: u16, range: BlockRange, block_length: u32) -> Self {
        let length = range.blocks.saturating_mul(block_length);
        Self {
            lun,
            cdb: block_cdb(0x88, range),
            transfer: Transfer::Read(length),
        }
    }

    /// WRITE(16) of `data`, which must fill `range`.
    pub fn write(lun: u16, range: BlockRange, data: Bytes) -> Self {
        Self {
            lun,
            cdb: block_cdb(0x8a, range),
            transfer: Transfer::Write(data),
        }
    }

    /// SYNCHRONIZE CACHE(16); zero blocks mean "to the end".
    pub fn synchronize_cache(lun: u16, range: BlockRange) -> Self {
        Self {
            lun,
            cdb: block_cdb(0x91, range),
            transfer: Transfer::None,
        }
    }

    /// UNMAP of all `ranges`, of which there may be 4095.
    pub fn unmap(lun: u16, ranges: &[BlockRange]) -> Self {
        let descriptors = ranges.len() * 16;
        assert!(
            descriptors <= 0xfff0,
            "an UNMAP list holds at most 4095 ranges"
        );
        let mut list = Vec::with_capacity(8 + descriptors);
        list.extend_from_slice(&(6 + descriptors as u16).to_be_bytes());
        list.extend_from_slice(&(descriptors as u16).to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        for range in ranges {
            list.extend_from_slice(&range.first.to_be_bytes());
            list.extend_from_slice(&range.blocks.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        let mut cdb = [0; 16];
        cdb[0] = 0x42;
        cdb[7..9].copy_from_slice(&(list.len() as u16).to_be_bytes());
        Self {
            lun,
            cdb,
            transfer: Transfer::Write(list.into()),
        }
    }
}

fn block_cdb(opcode: u8, range: BlockRange) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&range.first.to_be_bytes());
    cdb[10..14].copy_from_slice(&range.blocks.to_be_bytes());
    cdb
}

/// A LUN as the eight bytes on the wire (SAM-5 section 4.7): peripheral addressing below 256,
/// flat above.
pub(crate) fn encode_lun(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    let method = if lun < 256 { 0 } else { 0x40 };
    [method | high & 0x3f, low, 0, 0, 0, 0, 0, 0]
}

/// The error that sense data stands for: fixed or descriptor format (SPC-4 section 4.5). Missing
/// bytes read as zero.
pub(crate) fn sense_error(sense: &[u8]) -> Error {
    let at = |index: usize| sense.get(index).copied().unwrap_or(0);
    match at(0) & 0x7f {
        0x72 | 0x73 => Error::CheckCondition {
            key: at(1) & 0x0f,
            asc: at(2),
            ascq: at(3),
        },
        _ => Error::CheckCondition {
            key: at(2) & 0x0f,
            asc: at(12),
            ascq: at(13),
        },
    }
}

pub(crate) fn parse_capacity(data: &[u8]) -> Result<Capacity, Error> {
    let malformed = Error::MalformedAnswer {
        command: "READ CAPACITY(16)",
    };
    let Some(head) = data.first_chunk::<16>() else {
        return Err(malformed);
    };
    let last = u64::from_be_bytes([
        head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7],
    ]);
    let block_length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    let blocks = last.checked_add(1);
    let physical = block_length.checked_shl(u32::from(head[13] & 0x0f));
    match (blocks, physical) {
        (Some(blocks), Some(physical_block_length)) if block_length >= 512 => Ok(Capacity {
            blocks,
            block_length,
            physical_block_length,
            thin: head[14] & 0x80 != 0,
            unmapped_reads_zero: head[14] & 0x40 != 0,
        }),
        _ => Err(malformed),
    }
}

pub(crate) fn parse_inquiry(data: &[u8]) -> Result<Inquiry, Error> {
    let malformed = Error::MalformedAnswer { command: "INQUIRY" };
    let Some(head) = data.first_chunk::<36>() else {
        return Err(malformed);
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Inquiry {
        peripheral: head[0],
        vendor: text(&head[8..16]),
        product: text(&head[16..32]),
        revision: text(&head[32..36]),
    })
}

pub(crate) fn parse_luns(data: &[u8]) -> Result<Vec<u16>, Error> {
    let malformed = || Error::MalformedAnswer {
        command: "REPORT LUNS",
    };
    let head = data.first_chunk::<4>().ok_or_else(malformed)?;
    let length = u32::from_be_bytes(*head) as usize;
    let entries = data.get(8..).unwrap_or(&[]);
    let entries = entries.get(..length).unwrap_or(entries);
    entries
        .chunks_exact(8)
        .map(|entry| match entry[0] >> 6 {
            0 | 1 => Ok(u16::from_be_bytes([entry[0] & 0x3f, entry[1]])),
            _ => Err(malformed()),
        })
        .collect()
}

/// The designators of VPD page 83h that name the logical unit itself, in order: equal on every
/// path to the same disk, and on no other disk (SPC-4 section 7.8.6).
pub(crate) fn parse_unit_designators(data: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let malformed = || Error::MalformedAnswer {
        command: "INQUIRY page 83h",
    };
    let head = data.first_chunk::<4>().ok_or_else(malformed)?;
    if head[1] != 0x83 {
        return Err(malformed());
    }
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let mut rest = data.get(4..4 + length).ok_or_else(malformed)?;
    let mut units = Vec::new();
    while let Some(header) = rest.first_chunk::<4>() {
        let end = 4 + usize::from(header[3]);
        let designator = rest.get(..end).ok_or_else(malformed)?;
        if header[1] & 0x30 == 0 {
            units.push(designator.to_vec());
        }
        rest = &rest[end..];
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_write_cdbs_hold_address_and_count() {
        let range = BlockRange {
            first: 0x0102_0304_0506_0708,
            blocks: 0x0a0b,
        };
        let read = Command::read(1, range, 512);
        let cdb = [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x0a, 0x0b, 0, 0];
        assert_eq!(read.cdb, cdb);
        assert_eq!(read.transfer.length(), 0x0a0b * 512);
        let write = Command::write(1, range, Bytes::from_static(b"x"));
        assert_eq!((write.cdb[0], &write.cdb[1..]), (0x8a, &cdb[1..]));
    }

    #[test]
    fn unmap_lists_count_their_bytes() {
        let range = BlockRange {
            first: 8,
            blocks: 16,
        };
        let command = Command::unmap(0, &[range, range]);
        let Transfer::Write(list) = &command.transfer else {
            panic!("UNMAP sends a list")
        };
        assert_eq!(list.len(), 40);
        assert_eq!(list[..4], [0, 38, 0, 32]);
        assert_eq!(
            list[8..24],
            [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0, 0]
        );
        assert_eq!(command.cdb[7..9], [0, 40]);
    }

    #[test]
    fn luns_are_peripheral_below_256_and_flat_above() {
        assert_eq!(encode_lun(5), [0, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode_lun(0x1234), [0x52, 0x34, 0, 0, 0, 0, 0, 0]);
        let mut answer = vec![0, 0, 0, 16, 0, 0, 0, 0];
        answer.extend_from_slice(&encode_lun(5));
        answer.extend_from_slice(&encode_lun(0x1234));
        assert_eq!(parse_luns(&answer).unwrap(), [5, 0x1234]);
    }

    #[test]
    fn sense_is_read_in_both_formats_and_when_cut_short() {
        let mut fixed = [0_u8; 18];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0x70, 0x06, 0x29, 0x07);
        let expected = Error::CheckCondition {
            key: 6,
            asc: 0x29,
            ascq: 7,
        };
        assert_eq!(sense_error(&fixed), expected);
        assert_eq!(sense_error(&[0x72, 0x06, 0x29, 0x07]), expected);
        assert_eq!(
            sense_error(&[]),
            Error::CheckCondition {
                key: 0,
                asc: 0,
                ascq: 0
            }
        );
    }

    #[test]
    fn capacity_is_one_more_than_the_last_address() {
        let mut data = [0_u8; 32];
        data[..8].copy_from_slice(&131_071_u64.to_be_bytes());
        data[8..12].copy_from_slice(&512_u32.to_be_bytes());
        (data[13], data[14]) = (3, 0xc0);
        let capacity = parse_capacity(&data).unwrap();
        assert_eq!(capacity.bytes(), 64 << 20);
        assert_eq!(capacity.physical_block_length, 4096);
        assert!(capacity.thin && capacity.unmapped_reads_zero);
        assert!(parse_capacity(&data[..15]).is_err());
        data[8..12].fill(0);
        assert!(parse_capacity(&data).is_err(), "a block of zero bytes");
    }

    #[test]
    fn only_unit_designators_identify_the_disk() {
        let unit = [0x01, 0x03, 0, 2, 0x60, 0x01];
        let port = [0x51, 0x94, 0, 4, 0, 0, 0, 1];
        let mut page = vec![0, 0x83, 0, 14];
        page.extend_from_slice(&port);
        page.extend_from_slice(&unit);
        assert_eq!(parse_unit_designators(&page).unwrap(), [unit.to_vec()]);
        page.truncate(17);
        assert!(parse_unit_designators(&page).is_err());
    }
}
