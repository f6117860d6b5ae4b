//! Sense data (SPC-4 4.5): why a command ended with CHECK CONDITION.

use bytes::{BufMut, Bytes, BytesMut};

/// Sense key (SPC-4 table 46).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to report.
    NoSense = 0x0,
    /// The unit cannot be accessed.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// The device failed otherwise.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something happened that the initiator must know of.
    UnitAttention = 0x6,
    /// The write is not permitted.
    DataProtect = 0x7,
    /// EXTENDED COPY did not copy everything.
    CopyAborted = 0xa,
    /// The device gave the command up; it may be retried.
    AbortedCommand = 0xb,
    /// The data compared unequal.
    Miscompare = 0xe,
}

/// Where in the CDB or in the parameter list a field is wrong (SPC-4 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPointer {
    /// True for the CDB, false for the parameter list.
    pub in_cdb: bool,
    /// Offset of the field's first byte.
    pub byte: u16,
}

/// One sense condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub code: u8,
    /// Additional sense code qualifier.
    pub qualifier: u8,
    /// INFORMATION: a logical block address, or a byte offset for a miscompare.
    pub information: Option<u64>,
    /// The wrong field.
    pub field: Option<FieldPointer>,
}

const fn condition(key: SenseKey, code: u8, qualifier: u8) -> Sense {
    Sense {
        key,
        code,
        qualifier,
        information: None,
        field: None,
    }
}

impl Sense {
    /// 00/00/00: nothing to report.
    pub const NONE: Self = condition(SenseKey::NoSense, 0x00, 0x00);
    /// 05/20/00.
    pub const INVALID_OPERATION_CODE: Self = condition(SenseKey::IllegalRequest, 0x20, 0x00);
    /// 05/21/00.
    pub const ADDRESS_OUT_OF_RANGE: Self = condition(SenseKey::IllegalRequest, 0x21, 0x00);
    /// 05/24/00.
    pub const INVALID_FIELD_IN_CDB: Self = condition(SenseKey::IllegalRequest, 0x24, 0x00);
    /// 05/25/00.
    pub const UNIT_NOT_SUPPORTED: Self = condition(SenseKey::IllegalRequest, 0x25, 0x00);
    /// 05/26/00.
    pub const INVALID_PARAMETER: Self = condition(SenseKey::IllegalRequest, 0x26, 0x00);
    /// 05/26/04.
    pub const INVALID_RELEASE: Self = condition(SenseKey::IllegalRequest, 0x26, 0x04);
    /// 05/1A/00.
    pub const PARAMETER_LENGTH: Self = condition(SenseKey::IllegalRequest, 0x1a, 0x00);
    /// 05/0E/03: the transport's expected length does not fit the command.
    pub const INVALID_INFORMATION_UNIT: Self = condition(SenseKey::IllegalRequest, 0x0e, 0x03);
    /// 05/26/06.
    pub const TOO_MANY_TARGETS: Self = condition(SenseKey::IllegalRequest, 0x26, 0x06);
    /// 05/26/07.
    pub const UNSUPPORTED_TARGET: Self = condition(SenseKey::IllegalRequest, 0x26, 0x07);
    /// 05/26/08.
    pub const TOO_MANY_SEGMENTS: Self = condition(SenseKey::IllegalRequest, 0x26, 0x08);
    /// 05/26/09.
    pub const UNSUPPORTED_SEGMENT: Self = condition(SenseKey::IllegalRequest, 0x26, 0x09);
    /// 0A/00/00: a segment cannot be copied.
    pub const COPY_ABORTED: Self = condition(SenseKey::CopyAborted, 0x00, 0x00);
    /// 0A/08/04.
    pub const UNREACHABLE_COPY_TARGET: Self = condition(SenseKey::CopyAborted, 0x08, 0x04);
    /// 0A/0D/02.
    pub const COPY_DEVICE_NOT_REACHABLE: Self = condition(SenseKey::CopyAborted, 0x0d, 0x02);
    /// 05/39/00.
    pub const SAVING_NOT_SUPPORTED: Self = condition(SenseKey::IllegalRequest, 0x39, 0x00);
    /// 05/55/04: no room for another registration.
    pub const REGISTRATION_RESOURCES: Self = condition(SenseKey::IllegalRequest, 0x55, 0x04);
    /// 03/11/00.
    pub const UNRECOVERED_READ: Self = condition(SenseKey::MediumError, 0x11, 0x00);
    /// 03/0C/00.
    pub const WRITE_ERROR: Self = condition(SenseKey::MediumError, 0x0c, 0x00);
    /// 04/3E/03: logical unit failed self-test.
    pub const SELF_TEST_FAILED: Self = condition(SenseKey::HardwareError, 0x3e, 0x03);
    /// 04/44/00.
    pub const INTERNAL_FAILURE: Self = condition(SenseKey::HardwareError, 0x44, 0x00);
    /// 02/04/0A: asymmetric access state transition.
    pub const ACCESS_TRANSITION: Self = condition(SenseKey::NotReady, 0x04, 0x0a);
    /// 02/04/0B: target port in standby.
    pub const PORT_STANDBY: Self = condition(SenseKey::NotReady, 0x04, 0x0b);
    /// 02/04/0C: target port unavailable.
    pub const PORT_UNAVAILABLE: Self = condition(SenseKey::NotReady, 0x04, 0x0c);
    /// 04/67/0A: SET TARGET PORT GROUPS command failed.
    pub const SET_PORT_GROUPS_FAILED: Self = condition(SenseKey::HardwareError, 0x67, 0x0a);
    /// 07/27/02: the host set SWP.
    pub const SOFTWARE_WRITE_PROTECTED: Self = condition(SenseKey::DataProtect, 0x27, 0x02);
    /// 07/27/07.
    pub const SPACE_ALLOCATION_FAILED: Self = condition(SenseKey::DataProtect, 0x27, 0x07);
    /// 0B/0C/0C: unexpected unsolicited data.
    pub const UNEXPECTED_UNSOLICITED: Self = condition(SenseKey::AbortedCommand, 0x0c, 0x0c);
    /// 0B/0C/0D: not enough unsolicited data.
    pub const NOT_ENOUGH_UNSOLICITED: Self = condition(SenseKey::AbortedCommand, 0x0c, 0x0d);
    /// 0B/4B/00: data phase error.
    pub const DATA_PHASE_ERROR: Self = condition(SenseKey::AbortedCommand, 0x4b, 0x00);
    /// 0B/4B/05: data offset error.
    pub const DATA_OFFSET_ERROR: Self = condition(SenseKey::AbortedCommand, 0x4b, 0x05);
    /// 0E/1D/00.
    pub const MISCOMPARE: Self = condition(SenseKey::Miscompare, 0x1d, 0x00);

    /// A unit attention with this additional sense.
    pub const fn unit_attention(code: u8, qualifier: u8) -> Self {
        condition(SenseKey::UnitAttention, code, qualifier)
    }

    /// The same condition with INFORMATION set.
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same condition, pointing at a byte of the CDB.
    pub const fn at_cdb_byte(mut self, byte: u16) -> Self {
        self.field = Some(FieldPointer { in_cdb: true, byte });
        self
    }

    /// The same condition, pointing at a byte of the parameter list.
    pub const fn at_parameter_byte(mut self, byte: u16) -> Self {
        self.field = Some(FieldPointer {
            in_cdb: false,
            byte,
        });
        self
    }

    /// The bytes on the wire: descriptor format (72h) or fixed format (70h, 18 bytes).
    ///
    /// INFORMATION above 32 bits does not fit the fixed format, which then leaves VALID clear.
    pub fn encode(&self, descriptor_format: bool) -> Bytes {
        if descriptor_format {
            self.encode_descriptors()
        } else {
            self.encode_fixed()
        }
    }

    fn key_specific(&self) -> [u8; 3] {
        match self.field {
            Some(pointer) => {
                let [high, low] = pointer.byte.to_be_bytes();
                [0x80 | if pointer.in_cdb { 0x40 } else { 0 }, high, low]
            }
            None => [0; 3],
        }
    }

    fn encode_fixed(&self) -> Bytes {
        let mut bytes = [0_u8; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        if let Some(Ok(information)) = self.information.map(u32::try_from) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[7] = 10;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes[15..18].copy_from_slice(&self.key_specific());
        Bytes::copy_from_slice(&bytes)
    }

    fn encode_descriptors(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(28);
        bytes.put_slice(&[0x72, self.key as u8, self.code, self.qualifier, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            bytes.put_slice(&[0x00, 0x0a, 0x80, 0x00]);
            bytes.put_u64(information);
        }
        if self.field.is_some() {
            bytes.put_slice(&[0x02, 0x06, 0x00, 0x00]);
            bytes.put_slice(&self.key_specific());
            bytes.put_u8(0);
        }
        bytes[7] = (bytes.len() - 8) as u8;
        bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_carries_key_code_and_information() {
        let bytes = Sense::UNRECOVERED_READ
            .with_information(0x0102_0304)
            .encode(false);
        assert_eq!(
            bytes[..],
            [0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0][..]
        );
    }

    #[test]
    fn fixed_format_leaves_valid_clear_when_information_needs_more_than_32_bits() {
        let bytes = Sense::UNRECOVERED_READ
            .with_information(1 << 32)
            .encode(false);
        assert_eq!(bytes[0], 0x70);
        assert_eq!(bytes[3..7], [0; 4]);
    }

    #[test]
    fn descriptor_format_carries_64_bit_information_and_the_field_pointer() {
        let sense = Sense::INVALID_FIELD_IN_CDB
            .with_information(1 << 40)
            .at_cdb_byte(2);
        let bytes = sense.encode(true);
        assert_eq!(bytes[..8], [0x72, 5, 0x24, 0, 0, 0, 0, 20]);
        assert_eq!(bytes[8..20], [0, 0x0a, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[20..], [2, 6, 0, 0, 0xc0, 0, 2, 0]);
    }
}
