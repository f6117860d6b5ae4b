//! Parameter data of PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16).

use super::{Action, ReservationTable, ReservationType};
use crate::nexus::{self, Nexus};
use crate::sense::Sense;

/// Service action of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InAction {
    /// READ KEYS.
    Keys,
    /// READ RESERVATION.
    Reservation,
    /// REPORT CAPABILITIES.
    Capabilities,
    /// READ FULL STATUS.
    FullStatus,
}

impl InAction {
    /// The service action with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Keys,
            1 => Self::Reservation,
            2 => Self::Capabilities,
            3 => Self::FullStatus,
            _ => return None,
        })
    }
}

/// Service action of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutAction {
    /// REGISTER.
    Register,
    /// RESERVE.
    Reserve,
    /// RELEASE.
    Release,
    /// CLEAR.
    Clear,
    /// PREEMPT.
    Preempt,
    /// PREEMPT AND ABORT.
    PreemptAndAbort,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore,
    /// REGISTER AND MOVE.
    RegisterAndMove,
}

impl OutAction {
    /// The service action with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Register,
            1 => Self::Reserve,
            2 => Self::Release,
            3 => Self::Clear,
            4 => Self::Preempt,
            5 => Self::PreemptAndAbort,
            6 => Self::RegisterAndIgnore,
            7 => Self::RegisterAndMove,
            _ => return None,
        })
    }

    /// Whether SCOPE and TYPE of the CDB mean something.
    pub const fn uses_type(self) -> bool {
        matches!(
            self,
            Self::Reserve | Self::Release | Self::Preempt | Self::PreemptAndAbort
        )
    }
}

/// Length of the parameter list in bytes; that of REGISTER AND MOVE is longer.
pub const PARAMETER_LIST_BYTES: u32 = 24;

/// The key and the action that a parameter list asks for.
///
/// `kind` is the decoded TYPE; `can_persist` says whether APTPL may be set.
pub fn parse_out(
    action: OutAction,
    kind: Option<ReservationType>,
    can_persist: bool,
    list: &[u8],
) -> Result<(u64, Action), Sense> {
    let (Some(key), Some(service_key), Some(flags)) =
        (read_u64(list, 0), read_u64(list, 8), list.get(20))
    else {
        return Err(Sense::PARAMETER_LENGTH);
    };
    if action == OutAction::RegisterAndMove {
        return Ok((key, parse_move(service_key, can_persist, list)?));
    }
    let registers = matches!(action, OutAction::Register | OutAction::RegisterAndIgnore);
    let persist = flags & 0x01 != 0;
    // SPEC_I_PT and ALL_TG_PT are not supported (REPORT CAPABILITIES says so).
    if registers && (flags & 0x0c != 0 || (persist && !can_persist)) {
        return Err(Sense::INVALID_PARAMETER.at_parameter_byte(20));
    }
    let with_type = || kind.ok_or(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2));
    let action = match action {
        OutAction::Register => Action::Register {
            new_key: service_key,
            check_key: true,
            persist,
        },
        OutAction::RegisterAndIgnore => Action::Register {
            new_key: service_key,
            check_key: false,
            persist,
        },
        OutAction::Reserve => Action::Reserve(with_type()?),
        OutAction::Release => Action::Release(with_type()?),
        OutAction::Clear => Action::Clear,
        OutAction::Preempt => Action::Preempt {
            victim_key: service_key,
            kind: with_type()?,
            abort: false,
        },
        OutAction::PreemptAndAbort => Action::Preempt {
            victim_key: service_key,
            kind: with_type()?,
            abort: true,
        },
        OutAction::RegisterAndMove => unreachable!("parsed above"),
    };
    Ok((key, action))
}

/// SPC-4 table 184.
fn parse_move(new_key: u64, can_persist: bool, list: &[u8]) -> Result<Action, Sense> {
    let Some((&[_, flags, port_high, port_low, a, b, c, d], transport_id)) =
        list[16..].split_first_chunk()
    else {
        return Err(Sense::PARAMETER_LENGTH);
    };
    let persist = flags & 0x01 != 0;
    if persist && !can_persist {
        return Err(Sense::INVALID_PARAMETER.at_parameter_byte(17));
    }
    let stated = u32::from_be_bytes([a, b, c, d]) as usize;
    if stated != transport_id.len() {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let (initiator, isid) = nexus::parse_transport_id(transport_id)
        .ok_or(Sense::INVALID_PARAMETER.at_parameter_byte(24))?;
    let to = Nexus {
        initiator: initiator.shared(),
        isid,
        target_port: u16::from_be_bytes([port_high, port_low]),
    };
    Ok(Action::Move {
        to,
        new_key,
        unregister: flags & 0x02 != 0,
        persist,
    })
}

/// The parameter data of a service action of PERSISTENT RESERVE IN, uncut.
pub fn report_in(action: InAction, table: &ReservationTable, can_persist: bool) -> Vec<u8> {
    match action {
        InAction::Keys => with_header(
            table,
            table
                .registrations()
                .flat_map(|(_, key)| key.to_be_bytes())
                .collect(),
        ),
        InAction::Reservation => with_header(table, reservation(table)),
        InAction::Capabilities => capabilities(table, can_persist),
        InAction::FullStatus => with_header(table, full_status(table)),
    }
}

fn with_header(table: &ReservationTable, body: Vec<u8>) -> Vec<u8> {
    let mut bytes = table.generation().to_be_bytes().to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn reservation(table: &ReservationTable) -> Vec<u8> {
    let Some(kind) = table.reservation() else {
        return Vec::new();
    };
    let mut bytes = table.reservation_key().to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, kind as u8, 0, 0]);
    bytes
}

fn capabilities(table: &ReservationTable, can_persist: bool) -> Vec<u8> {
    /// TMV and ALLOW COMMANDS 001b: commands beyond the mandatory ones are as table 63 says.
    const TYPE_MASK_VALID: u8 = 0x80 | 0x10;
    /// WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; the second byte has EX_AC_AR.
    const TYPES: [u8; 2] = [0x80 | 0x40 | 0x20 | 0x08 | 0x02, 0x01];
    let activated = u8::from(table.persist() && can_persist);
    /// CRH: RESERVE and RELEASE as SPC-4 5.12.3 has it.
    const COMPATIBLE: u8 = 0x10;
    [
        0,
        8,
        COMPATIBLE | u8::from(can_persist),
        TYPE_MASK_VALID | activated,
        TYPES[0],
        TYPES[1],
        0,
        0,
    ]
    .to_vec()
}

fn full_status(table: &ReservationTable) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (nexus, key) in table.registrations() {
        let transport_id = nexus::transport_id(nexus);
        let holds = table.is_holder(nexus);
        bytes.extend_from_slice(&key.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, u8::from(holds)]);
        bytes.push(if holds {
            table.reservation().map_or(0, |kind| kind as u8)
        } else {
            0
        });
        bytes.extend_from_slice(&[0, 0, 0, 0]);
        bytes.extend_from_slice(&nexus.target_port.to_be_bytes());
        bytes.extend_from_slice(&(transport_id.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&transport_id);
    }
    bytes
}

fn read_u64(list: &[u8], offset: usize) -> Option<u64> {
    let bytes = list.get(offset..offset + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;

    fn table_with_holder() -> ReservationTable {
        let holder = Nexus {
            initiator: "iqn.a".into(),
            isid: [1; 6],
            target_port: 3,
        };
        let mut table = ReservationTable::default();
        let register = Action::Register {
            new_key: 0x11,
            check_key: true,
            persist: false,
        };
        table
            .apply(&Request {
                nexus: holder.clone(),
                key: 0,
                action: register,
            })
            .unwrap();
        let reserve = Action::Reserve(ReservationType::WriteExclusive);
        table
            .apply(&Request {
                nexus: holder,
                key: 0x11,
                action: reserve,
            })
            .unwrap();
        table
    }

    #[test]
    fn read_reservation_shows_key_and_type() {
        let bytes = report_in(InAction::Reservation, &table_with_holder(), false);
        assert_eq!(bytes[..8], [0, 0, 0, 1, 0, 0, 0, 16]);
        assert_eq!(
            bytes[8..],
            [0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn full_status_names_the_holder_and_its_port() {
        let bytes = report_in(InAction::FullStatus, &table_with_holder(), false);
        assert_eq!(bytes[8..16], 0x11_u64.to_be_bytes());
        assert_eq!(bytes[20..22], [1, 1]);
        assert_eq!(bytes[26..28], [0, 3]);
        let id_bytes = u32::from_be_bytes(bytes[28..32].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 32 + id_bytes);
    }

    #[test]
    fn short_lists_and_unsupported_flags_are_refused() {
        let parse = |flags: u8, length: usize| {
            let mut list = [0; 24];
            list[20] = flags;
            parse_out(OutAction::Register, None, false, &list[..length])
        };
        assert_eq!(parse(0, 20), Err(Sense::PARAMETER_LENGTH));
        for flags in [0x01, 0x04, 0x08] {
            assert!(parse(flags, 24).is_err());
        }
        assert!(parse(0, 24).is_ok());
    }

    #[test]
    fn register_and_move_names_the_nexus_that_takes_over() {
        let to = Nexus {
            initiator: "iqn.2026-01.test:b".into(),
            isid: [2; 6],
            target_port: 7,
        };
        let id = nexus::transport_id(&to);
        let mut list = [0; 24].to_vec();
        list[..8].copy_from_slice(&1_u64.to_be_bytes());
        list[8..16].copy_from_slice(&2_u64.to_be_bytes());
        list[17] = 0x03;
        list[19] = 7;
        list[23] = id.len() as u8;
        list.extend_from_slice(&id);
        let parse = |list: &[u8]| parse_out(OutAction::RegisterAndMove, None, true, list);
        let expected = Action::Move {
            to,
            new_key: 2,
            unregister: true,
            persist: true,
        };
        assert_eq!(parse(&list), Ok((1, expected)));
        assert_eq!(parse(&list[..list.len() - 4]), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(parse(&list[..24]), Err(Sense::PARAMETER_LENGTH));
        list[24] = 0x06;
        let wrong_protocol = Sense::INVALID_PARAMETER.at_parameter_byte(24);
        assert_eq!(parse(&list), Err(wrong_protocol));
    }
}
