//! CDB decoding: sixteen bytes in, a [`Command`] or the sense data of a refusal out.
//!
//! Decoding is pure and knows neither the capacity nor the block size. Protection information is
//! not supported, so RDPROTECT, WRPROTECT and VRPROTECT other than zero are invalid; DPO and FUA
//! are accepted and mean nothing, because every write is durable when it is acknowledged.

use crate::log::LogSense;
use crate::reservation::ReservationType;
use crate::reservation::wire::{InAction, OutAction, PARAMETER_LIST_BYTES};
use crate::sense::Sense;

/// A range of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First logical block.
    pub block: u64,
    /// Number of logical blocks.
    pub blocks: u32,
}

/// What VERIFY compares with (BYTCHK, SBC-3 5.31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Nothing: only that the medium can be read.
    Medium,
    /// The whole data-out buffer.
    Data,
    /// One block, compared with every block of the range.
    OneBlock,
}

/// Which logical units REPORT LUNS lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunSelection {
    /// Units with an address other than a well-known one.
    Ordinary,
    /// Well-known units only; there are none.
    WellKnown,
}

/// Which commands REPORT SUPPORTED OPERATION CODES describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpcodeSelection {
    /// Every command.
    All,
    /// One operation code that has no service actions.
    Opcode(u8),
    /// One operation code and service action.
    ServiceAction(u8, u16),
    /// Either of the two, whichever the operation code has.
    Any(u8, u16),
}

/// A decoded command. `allocation` is the allocation length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of the CDB, by the names of the standard.
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptor_format: bool,
        allocation: u32,
    },
    Inquiry {
        page: Option<u8>,
        allocation: u32,
    },
    ModeSense {
        long: bool,
        no_descriptors: bool,
        control: u8,
        page: u8,
        subpage: u8,
        allocation: u32,
    },
    ModeSelect {
        long: bool,
        save: bool,
        list_bytes: u32,
    },
    LogSense {
        request: LogSense,
        allocation: u32,
    },
    /// SELFTEST: with it the unit tests itself, without it nothing is asked for.
    SendDiagnostic {
        self_test: bool,
    },
    Reserve,
    Release,
    StartStop {
        start: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    GetLbaStatus {
        block: u64,
        allocation: u32,
    },
    Read(Extent),
    Write(Extent),
    WriteAtomic(Extent),
    OrWrite(Extent),
    WriteVerify {
        extent: Extent,
        comparison: Comparison,
    },
    Verify {
        extent: Extent,
        comparison: Comparison,
    },
    Prefetch(Extent),
    SynchronizeCache(Extent),
    WriteSame {
        extent: Extent,
        unmap: bool,
        anchor: bool,
        no_data: bool,
    },
    Unmap {
        anchor: bool,
        list_bytes: u32,
    },
    CompareAndWrite(Extent),
    ExtendedCopy {
        list_bytes: u32,
    },
    CopyParameters {
        allocation: u32,
    },
    CopyStatus {
        list: u8,
        allocation: u32,
    },
    ReadDefects {
        long: bool,
        lists: u8,
        allocation: u32,
    },
    ReportLuns {
        selection: LunSelection,
        allocation: u32,
    },
    PersistentIn {
        action: InAction,
        allocation: u32,
    },
    PersistentOut {
        action: OutAction,
        kind: Option<ReservationType>,
        list_bytes: u32,
    },
    ReportTargetPortGroups {
        extended_header: bool,
        allocation: u32,
    },
    SetTargetPortGroups {
        list_bytes: u32,
    },
    ReportOpcodes {
        selection: OpcodeSelection,
        timeouts: bool,
        allocation: u32,
    },
    ReportTaskManagement {
        long: bool,
        allocation: u32,
    },
}

struct Cdb<'a>(&'a [u8; 16]);

impl Cdb<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        (u32::from(self.u16(at)) << 16) | u32::from(self.u16(at + 2))
    }

    fn u64(&self, at: usize) -> u64 {
        (u64::from(self.u32(at)) << 32) | u64::from(self.u32(at + 4))
    }

    fn bit(&self, byte: usize, mask: u8) -> bool {
        self.0[byte] & mask != 0
    }

    /// Address and length of a 6-byte READ or WRITE, where length zero means 256.
    fn extent6(&self) -> Extent {
        let block = u64::from(self.u32(0) & 0x001f_ffff);
        let blocks = if self.0[4] == 0 {
            256
        } else {
            u32::from(self.0[4])
        };
        Extent { block, blocks }
    }

    fn extent10(&self) -> Extent {
        Extent {
            block: u64::from(self.u32(2)),
            blocks: u32::from(self.u16(7)),
        }
    }

    fn extent12(&self) -> Extent {
        Extent {
            block: u64::from(self.u32(2)),
            blocks: self.u32(6),
        }
    }

    fn extent16(&self) -> Extent {
        Extent {
            block: self.u64(2),
            blocks: self.u32(10),
        }
    }

    fn without_protection(&self, extent: Extent) -> Result<Extent, Sense> {
        if self.bit(1, 0xe0) {
            Err(invalid(1))
        } else {
            Ok(extent)
        }
    }

    fn comparison(&self) -> Result<Comparison, Sense> {
        Ok(match (self.0[1] >> 1) & 3 {
            0 => Comparison::Medium,
            1 => Comparison::Data,
            3 => Comparison::OneBlock,
            _ => return Err(invalid(1)),
        })
    }

    fn read(&self, extent: Extent) -> Result<Command, Sense> {
        Ok(Command::Read(self.without_protection(extent)?))
    }

    fn write(&self, extent: Extent) -> Result<Command, Sense> {
        Ok(Command::Write(self.without_protection(extent)?))
    }

    fn verify(&self, extent: Extent) -> Result<Command, Sense> {
        let extent = self.without_protection(extent)?;
        Ok(Command::Verify {
            extent,
            comparison: self.comparison()?,
        })
    }

    fn write_verify(&self, extent: Extent) -> Result<Command, Sense> {
        let extent = self.without_protection(extent)?;
        let comparison = match self.comparison()? {
            Comparison::OneBlock => return Err(invalid(1)),
            present @ (Comparison::Medium | Comparison::Data) => present,
        };
        Ok(Command::WriteVerify { extent, comparison })
    }

    fn write_same(&self, extent: Extent, no_data: bool) -> Result<Command, Sense> {
        let extent = self.without_protection(extent)?;
        // WSNZ is set: a length of zero does not mean "to the end".
        if extent.blocks == 0 {
            return Err(invalid(if self.0[0] == 0x41 { 7 } else { 10 }));
        }
        let (anchor, unmap) = (self.bit(1, 0x10), self.bit(1, 0x08));
        if anchor {
            return Err(invalid(1));
        }
        Ok(Command::WriteSame {
            extent,
            unmap,
            anchor,
            no_data,
        })
    }
}

const fn invalid(byte: u16) -> Sense {
    Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(byte)
}

/// Offset of the CONTROL byte, from the group code of the operation code.
const fn control_byte(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 5,
        1 | 2 => 9,
        5 => 11,
        _ => 15,
    }
}

/// Decodes a CDB padded to 16 bytes.
pub fn decode(bytes: &[u8; 16]) -> Result<Command, Sense> {
    let cdb = Cdb(bytes);
    let command = decode_fields(&cdb)?;
    let control = control_byte(bytes[0]);
    // NACA: auto contingent allegiance is not supported (NORMACA is 0).
    if cdb.bit(control, 0x04) {
        return Err(invalid(control as u16));
    }
    Ok(command)
}

fn decode_fields(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let bytes = cdb.0;
    let allocation16 = u32::from(cdb.u16(7));
    Ok(match bytes[0] {
        0x00 => Command::TestUnitReady,
        0x03 => Command::RequestSense {
            descriptor_format: cdb.bit(1, 1),
            allocation: u32::from(bytes[4]),
        },
        0x08 => Command::Read(cdb.extent6()),
        0x0a => Command::Write(cdb.extent6()),
        0x12 => decode_inquiry(cdb)?,
        0x15 | 0x55 => decode_mode_select(cdb)?,
        0x16 | 0x56 => decode_reserve(cdb, Command::Reserve)?,
        0x17 | 0x57 => decode_reserve(cdb, Command::Release)?,
        0x1a | 0x5a => decode_mode_sense(cdb),
        0x1b => Command::StartStop {
            start: cdb.bit(4, 1),
        },
        0x1d => decode_send_diagnostic(cdb)?,
        0x1e => Command::PreventAllow {
            prevent: cdb.bit(4, 3),
        },
        0x25 => Command::ReadCapacity10,
        0x28 => cdb.read(cdb.extent10())?,
        0xa8 => cdb.read(cdb.extent12())?,
        0x88 => cdb.read(cdb.extent16())?,
        0x2a => cdb.write(cdb.extent10())?,
        0xaa => cdb.write(cdb.extent12())?,
        0x8a => cdb.write(cdb.extent16())?,
        0x8b => Command::OrWrite(cdb.without_protection(cdb.extent16())?),
        0x9c => decode_write_atomic(cdb)?,
        0x83 | 0x84 => decode_copy(cdb)?,
        0x37 | 0xb7 => decode_read_defects(cdb),
        0x2e => cdb.write_verify(cdb.extent10())?,
        0xae => cdb.write_verify(cdb.extent12())?,
        0x8e => cdb.write_verify(cdb.extent16())?,
        0x2f => cdb.verify(cdb.extent10())?,
        0xaf => cdb.verify(cdb.extent12())?,
        0x8f => cdb.verify(cdb.extent16())?,
        0x34 => Command::Prefetch(cdb.extent10()),
        0x90 => Command::Prefetch(cdb.extent16()),
        0x35 => Command::SynchronizeCache(cdb.extent10()),
        0x91 => Command::SynchronizeCache(cdb.extent16()),
        0x41 => cdb.write_same(cdb.extent10(), false)?,
        0x93 => cdb.write_same(cdb.extent16(), cdb.bit(1, 0x01))?,
        0x42 => Command::Unmap {
            anchor: cdb.bit(1, 1),
            list_bytes: allocation16,
        },
        0x89 => {
            let extent = Extent {
                block: cdb.u64(2),
                blocks: u32::from(bytes[13]),
            };
            Command::CompareAndWrite(cdb.without_protection(extent)?)
        }
        0x4d => decode_log_sense(cdb)?,
        0x5e => Command::PersistentIn {
            action: InAction::from_code(bytes[1] & 0x1f).ok_or(invalid(1))?,
            allocation: allocation16,
        },
        0x5f => decode_persistent_out(cdb)?,
        0x9e => decode_service_action_in(cdb)?,
        0xa0 => decode_report_luns(cdb)?,
        0xa3 => decode_maintenance_in(cdb)?,
        0xa4 => match bytes[1] & 0x1f {
            0x0a => Command::SetTargetPortGroups {
                list_bytes: cdb.u32(6),
            },
            _ => return Err(invalid(1)),
        },
        _ => return Err(Sense::INVALID_OPERATION_CODE.at_cdb_byte(0)),
    })
}

fn decode_copy(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let length = cdb.u32(10);
    match (cdb.0[0], cdb.0[1] & 0x1f) {
        (0x83, 0x00) => Ok(Command::ExtendedCopy { list_bytes: length }),
        (0x84, 0x00) => Ok(Command::CopyStatus {
            list: cdb.0[2],
            allocation: length,
        }),
        (0x84, 0x03) => Ok(Command::CopyParameters { allocation: length }),
        _ => Err(invalid(1)),
    }
}

/// WRITE ATOMIC(16) (SBC-4 5.42): boundaries are not supported.
fn decode_write_atomic(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    if cdb.u16(10) != 0 {
        return Err(invalid(10));
    }
    let extent = Extent {
        block: cdb.u64(2),
        blocks: u32::from(cdb.u16(12)),
    };
    Ok(Command::WriteAtomic(cdb.without_protection(extent)?))
}

/// READ DEFECT DATA (SBC-3 5.17, 5.18). `lists` is REQ_PLIST, REQ_GLIST and the list format, at
/// the same place of the answer.
fn decode_read_defects(cdb: &Cdb<'_>) -> Command {
    let long = cdb.0[0] == 0xb7;
    Command::ReadDefects {
        long,
        lists: cdb.0[if long { 1 } else { 2 }] & 0x1f,
        allocation: if long {
            cdb.u32(6)
        } else {
            u32::from(cdb.u16(7))
        },
    }
}

fn decode_inquiry(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let page = if cdb.bit(1, 1) { Some(cdb.0[2]) } else { None };
    // CMDDT is obsolete; a page code without EVPD is invalid (SPC-4 6.4.1).
    if cdb.bit(1, 2) {
        return Err(invalid(1));
    }
    if page.is_none() && cdb.0[2] != 0 {
        return Err(invalid(2));
    }
    Ok(Command::Inquiry {
        page,
        allocation: u32::from(cdb.u16(3)),
    })
}

/// LOG SENSE (SPC-4 6.8): parameters cannot be saved (SP), and whichever value of them is asked for
/// (PC), there is one.
fn decode_log_sense(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    if cdb.bit(1, 1) {
        return Err(invalid(1));
    }
    Ok(Command::LogSense {
        request: LogSense {
            page: cdb.0[2] & 0x3f,
            subpage: cdb.0[3],
            pointer: cdb.u16(5),
        },
        allocation: u32::from(cdb.u16(7)),
    })
}

/// SEND DIAGNOSTIC (SPC-4 6.32): the default self-test, or nothing at all. There are neither other
/// self-tests nor diagnostic pages.
fn decode_send_diagnostic(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    if cdb.bit(1, 0xe0) {
        return Err(invalid(1));
    }
    if cdb.u16(3) != 0 {
        return Err(invalid(3));
    }
    Ok(Command::SendDiagnostic {
        self_test: cdb.bit(1, 0x04),
    })
}

fn decode_mode_sense(cdb: &Cdb<'_>) -> Command {
    let long = cdb.0[0] == 0x5a;
    let allocation = if long {
        u32::from(cdb.u16(7))
    } else {
        u32::from(cdb.0[4])
    };
    Command::ModeSense {
        long,
        no_descriptors: cdb.bit(1, 0x08),
        control: cdb.0[2] >> 6,
        page: cdb.0[2] & 0x3f,
        subpage: cdb.0[3],
        allocation,
    }
}

fn decode_mode_select(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let long = cdb.0[0] == 0x55;
    // PF clear means vendor-specific pages.
    if !cdb.bit(1, 0x10) {
        return Err(invalid(1));
    }
    let list_bytes = if long {
        u32::from(cdb.u16(7))
    } else {
        u32::from(cdb.0[4])
    };
    Ok(Command::ModeSelect {
        long,
        save: cdb.bit(1, 1),
        list_bytes,
    })
}

/// RESERVE and RELEASE (SPC-2 7.21, 7.17): third-party and extent reservations are obsolete.
fn decode_reserve(cdb: &Cdb<'_>, command: Command) -> Result<Command, Sense> {
    if cdb.bit(1, 0x13) {
        Err(invalid(1))
    } else {
        Ok(command)
    }
}

fn decode_persistent_out(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let action = OutAction::from_code(cdb.0[1] & 0x1f).ok_or(invalid(1))?;
    let kind = ReservationType::from_code(cdb.0[2] & 0x0f);
    // The only scope is the logical unit.
    if action.uses_type() && (cdb.0[2] >> 4 != 0 || kind.is_none()) {
        return Err(invalid(2));
    }
    let list_bytes = cdb.u32(5);
    let fits = if action == OutAction::RegisterAndMove {
        list_bytes >= PARAMETER_LIST_BYTES
    } else {
        list_bytes == PARAMETER_LIST_BYTES
    };
    if !fits {
        return Err(Sense::PARAMETER_LENGTH);
    }
    Ok(Command::PersistentOut {
        action,
        kind,
        list_bytes,
    })
}

fn decode_service_action_in(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let allocation = cdb.u32(10);
    match cdb.0[1] & 0x1f {
        0x10 => Ok(Command::ReadCapacity16 { allocation }),
        0x12 => Ok(Command::GetLbaStatus {
            block: cdb.u64(2),
            allocation,
        }),
        _ => Err(invalid(1)),
    }
}

fn decode_report_luns(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let selection = match cdb.0[2] {
        0 | 2 => LunSelection::Ordinary,
        1 => LunSelection::WellKnown,
        _ => return Err(invalid(2)),
    };
    Ok(Command::ReportLuns {
        selection,
        allocation: cdb.u32(6),
    })
}

fn decode_maintenance_in(cdb: &Cdb<'_>) -> Result<Command, Sense> {
    let allocation = cdb.u32(6);
    match cdb.0[1] & 0x1f {
        0x0a => match cdb.0[1] >> 5 {
            format @ (0 | 1) => Ok(Command::ReportTargetPortGroups {
                extended_header: format == 1,
                allocation,
            }),
            _ => Err(invalid(1)),
        },
        0x0c => {
            let (opcode, action) = (cdb.0[3], cdb.u16(4));
            let selection = match cdb.0[2] & 7 {
                0 => OpcodeSelection::All,
                1 => OpcodeSelection::Opcode(opcode),
                2 => OpcodeSelection::ServiceAction(opcode, action),
                3 => OpcodeSelection::Any(opcode, action),
                _ => return Err(invalid(2)),
            };
            Ok(Command::ReportOpcodes {
                selection,
                timeouts: cdb.bit(2, 0x80),
                allocation,
            })
        }
        0x0d => {
            if allocation < 4 {
                return Err(invalid(6));
            }
            Ok(Command::ReportTaskManagement {
                long: cdb.bit(2, 0x80),
                allocation,
            })
        }
        _ => Err(invalid(1)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cdb(prefix: &[u8]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..prefix.len()].copy_from_slice(prefix);
        bytes
    }

    #[test]
    fn read_of_every_length_decodes_to_the_same_command() {
        let expected = Ok(Command::Read(Extent {
            block: 0x1234,
            blocks: 7,
        }));
        for bytes in [
            &[0x08, 0, 0x12, 0x34, 7][..],
            &[0x28, 0, 0, 0, 0x12, 0x34, 0, 0, 7],
            &[0xa8, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 7],
            &[0x88, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 7],
        ] {
            assert_eq!(decode(&cdb(bytes)), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn six_byte_length_zero_means_256_blocks() {
        let extent = Extent {
            block: 0x1f_ffff,
            blocks: 256,
        };
        assert_eq!(
            decode(&cdb(&[0x0a, 0xff, 0xff, 0xff, 0])),
            Ok(Command::Write(extent))
        );
    }

    #[test]
    fn protection_and_naca_are_invalid_fields() {
        assert_eq!(decode(&cdb(&[0x28, 0x20])), Err(invalid(1)));
        assert_eq!(decode(&cdb(&[0x2f, 0xe0])), Err(invalid(1)));
        assert_eq!(
            decode(&cdb(&[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 4])),
            Err(invalid(9))
        );
    }

    #[test]
    fn unknown_operation_codes_are_told_apart_from_unknown_service_actions() {
        assert_eq!(
            decode(&cdb(&[0xff])),
            Err(Sense::INVALID_OPERATION_CODE.at_cdb_byte(0))
        );
        assert_eq!(decode(&cdb(&[0x9e, 0x1f])), Err(invalid(1)));
    }

    #[test]
    fn write_same_of_no_blocks_is_refused_because_wsnz_is_set() {
        assert_eq!(decode(&cdb(&[0x41])), Err(invalid(7)));
        assert_eq!(decode(&cdb(&[0x93])), Err(invalid(10)));
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_decode_or_are_refused(bytes: [u8; 16]) {
            if let Ok(command) = decode(&bytes) {
                let _ = (command.access(), command.extent());
            }
        }
    }
}
