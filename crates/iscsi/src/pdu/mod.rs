//! iSCSI protocol data units (RFC 7143 section 11): a 48-byte header, additional header segments,
//! data. [`framing`] splits a byte stream into PDUs and back, [`build`] makes the target's PDUs.

pub mod build;
pub mod framing;

use bytes::Bytes;

/// Size of the basic header segment.
pub const HEADER_BYTES: usize = 48;

/// The reserved value of task and transfer tags.
pub const RESERVED_TAG: u32 = 0xffff_ffff;

/// FINAL bit of byte 1, in every PDU that has it.
pub const FINAL: u8 = 0x80;

/// CONTINUE bit of byte 1 in login and text PDUs.
pub const CONTINUE: u8 = 0x40;

/// What an initiator's PDU is (RFC 7143 11.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InitiatorOpcode {
    /// NOP-Out.
    NopOut = 0x00,
    /// SCSI Command.
    ScsiCommand = 0x01,
    /// Task Management Function Request.
    TaskManagement = 0x02,
    /// Login Request.
    Login = 0x03,
    /// Text Request.
    Text = 0x04,
    /// SCSI Data-Out.
    DataOut = 0x05,
    /// Logout Request.
    Logout = 0x06,
    /// SNACK Request.
    Snack = 0x10,
}

impl InitiatorOpcode {
    /// The opcode with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::NopOut,
            0x01 => Self::ScsiCommand,
            0x02 => Self::TaskManagement,
            0x03 => Self::Login,
            0x04 => Self::Text,
            0x05 => Self::DataOut,
            0x06 => Self::Logout,
            0x10 => Self::Snack,
            _ => return None,
        })
    }
}

/// What a target's PDU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TargetOpcode {
    /// NOP-In.
    NopIn = 0x20,
    /// SCSI Response.
    ScsiResponse = 0x21,
    /// Task Management Function Response.
    TaskManagement = 0x22,
    /// Login Response.
    Login = 0x23,
    /// Text Response.
    Text = 0x24,
    /// SCSI Data-In.
    DataIn = 0x25,
    /// Logout Response.
    Logout = 0x26,
    /// Ready To Transfer.
    ReadyToTransfer = 0x31,
    /// Asynchronous Message.
    AsyncMessage = 0x32,
    /// Reject.
    Reject = 0x3f,
}

impl TargetOpcode {
    /// The opcode with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x20 => Self::NopIn,
            0x21 => Self::ScsiResponse,
            0x22 => Self::TaskManagement,
            0x23 => Self::Login,
            0x24 => Self::Text,
            0x25 => Self::DataIn,
            0x26 => Self::Logout,
            0x31 => Self::ReadyToTransfer,
            0x32 => Self::AsyncMessage,
            0x3f => Self::Reject,
            _ => return None,
        })
    }
}

/// One PDU. The lengths in the header are set by [`framing`], whoever built it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// Basic header segment.
    pub header: [u8; HEADER_BYTES],
    /// Additional header segments, a multiple of four bytes.
    pub additional: Bytes,
    /// Data segment without padding.
    pub data: Bytes,
}

impl Pdu {
    /// A PDU of zeroes with this first byte.
    pub fn new(first: u8) -> Self {
        let mut header = [0; HEADER_BYTES];
        header[0] = first;
        Self {
            header,
            additional: Bytes::new(),
            data: Bytes::new(),
        }
    }

    /// Opcode without the immediate bit.
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    /// Whether the initiator marked the PDU for immediate delivery.
    pub fn immediate(&self) -> bool {
        self.header[0] & 0x40 != 0
    }

    /// Whether these bits of byte 1 are all set.
    pub fn flag(&self, mask: u8) -> bool {
        self.header[1] & mask == mask
    }

    /// Logical unit number.
    pub fn lun(&self) -> u64 {
        (u64::from(self.u32_at(8)) << 32) | u64::from(self.u32_at(12))
    }

    /// Initiator task tag.
    pub fn task_tag(&self) -> u32 {
        self.u32_at(16)
    }

    /// Command sequence number; every initiator PDU but Data-Out and SNACK has one.
    pub fn command_number(&self) -> u32 {
        self.u32_at(24)
    }

    /// Big-endian field of four bytes. Panics unless it lies in the header.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let bytes = &self.header[offset..offset + 4];
        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Sets a big-endian field of four bytes. Panics unless it lies in the header.
    pub fn put_u32(&mut self, offset: usize, value: u32) {
        self.header[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Big-endian field of two bytes. Panics unless it lies in the header.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.header[offset], self.header[offset + 1]])
    }

    /// Sets a big-endian field of two bytes. Panics unless it lies in the header.
    pub fn put_u16(&mut self, offset: usize, value: u16) {
        self.header[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
    }
}
