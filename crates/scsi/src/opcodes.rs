//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36).

use crate::command::OpcodeSelection;
use crate::sense::Sense;

/// A supported command: operation code, service action, CDB usage data. The usage map's length
/// is the CDB's.
struct Entry {
    opcode: u8,
    action: Option<u16>,
    usage: &'static [u8],
}

const fn plain(usage: &'static [u8]) -> Entry {
    Entry {
        opcode: usage[0],
        action: None,
        usage,
    }
}

const fn action(action: u16, usage: &'static [u8]) -> Entry {
    Entry {
        opcode: usage[0],
        action: Some(action),
        usage,
    }
}

const F: u8 = 0xff;

/// Every command that [`crate::command::decode`] accepts, by operation code. A usage map has a
/// one for each bit of the CDB that is looked at; a service action stands for itself.
static COMMANDS: [Entry; 61] = [
    plain(&[0x00, 0, 0, 0, 0, 4]),
    plain(&[0x03, 1, 0, 0, F, 4]),
    plain(&[0x08, 0x1f, F, F, F, 4]),
    plain(&[0x0a, 0x1f, F, F, F, 4]),
    plain(&[0x12, 1, F, F, F, 4]),
    plain(&[0x15, 0x11, 0, 0, F, 4]),
    plain(&[0x16, 0, 0, 0, 0, 4]),
    plain(&[0x17, 0, 0, 0, 0, 4]),
    plain(&[0x1a, 0x08, F, F, F, 4]),
    plain(&[0x1b, 1, 0, 0, 1, 4]),
    plain(&[0x1d, 0xe4, 0, F, F, 4]),
    plain(&[0x1e, 0, 0, 0, 3, 4]),
    plain(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    plain(&[0x28, 0xf8, F, F, F, F, 0, F, F, 4]),
    plain(&[0x2a, 0xf8, F, F, F, F, 0, F, F, 4]),
    plain(&[0x2e, 0xf6, F, F, F, F, 0, F, F, 4]),
    plain(&[0x2f, 0xf6, F, F, F, F, 0, F, F, 4]),
    plain(&[0x34, 2, F, F, F, F, 0, F, F, 4]),
    plain(&[0x35, 2, F, F, F, F, 0, F, F, 4]),
    plain(&[0x37, 0, 0x1f, 0, 0, 0, 0, F, F, 4]),
    plain(&[0x41, 0xf8, F, F, F, F, 0, F, F, 4]),
    plain(&[0x42, 1, 0, 0, 0, 0, 0, F, F, 4]),
    plain(&[0x4d, 1, 0xff, F, 0, F, F, F, F, 4]),
    plain(&[0x55, 0x11, 0, 0, 0, 0, 0, F, F, 4]),
    plain(&[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    plain(&[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    plain(&[0x5a, 0x18, F, F, 0, 0, 0, F, F, 4]),
    action(0, &[0x5e, 0x00, 0, 0, 0, 0, 0, F, F, 4]),
    action(1, &[0x5e, 0x01, 0, 0, 0, 0, 0, F, F, 4]),
    action(2, &[0x5e, 0x02, 0, 0, 0, 0, 0, F, F, 4]),
    action(3, &[0x5e, 0x03, 0, 0, 0, 0, 0, F, F, 4]),
    action(0, &[0x5f, 0x00, 0, 0, 0, F, F, F, F, 4]),
    action(1, &[0x5f, 0x01, F, 0, 0, F, F, F, F, 4]),
    action(2, &[0x5f, 0x02, F, 0, 0, F, F, F, F, 4]),
    action(3, &[0x5f, 0x03, 0, 0, 0, F, F, F, F, 4]),
    action(4, &[0x5f, 0x04, F, 0, 0, F, F, F, F, 4]),
    action(5, &[0x5f, 0x05, F, 0, 0, F, F, F, F, 4]),
    action(6, &[0x5f, 0x06, 0, 0, 0, F, F, F, F, 4]),
    action(7, &[0x5f, 0x07, 0, 0, 0, F, F, F, F, 4]),
    action(0, &[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4]),
    action(0, &[0x84, 0x00, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4]),
    action(3, &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4]),
    plain(&[0x88, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x89, 0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 4]),
    plain(&[0x8a, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x8b, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x8e, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x8f, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x90, 2, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x91, 2, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x93, 0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0x9c, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
    action(
        0x10,
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4],
    ),
    action(
        0x12,
        &[0x9e, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4],
    ),
    plain(&[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 4]),
    action(0x0a, &[0xa3, 0xea, 0, 0, 0, 0, F, F, F, F, 0, 4]),
    action(0x0c, &[0xa3, 0x0c, 0x87, F, F, F, F, F, F, F, 0, 4]),
    action(0x0d, &[0xa3, 0x0d, 0x80, 0, 0, 0, F, F, F, F, 0, 4]),
    action(0x0a, &[0xa4, 0x0a, 0, 0, 0, 0, F, F, F, F, 0, 4]),
    plain(&[0xa8, 0xf8, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0xaa, 0xf8, F, F, F, F, F, F, F, F, 0, 4]),
];

/// The rest of the 12-byte commands.
static TWELVE: [Entry; 3] = [
    plain(&[0xae, 0xf6, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0xaf, 0xf6, F, F, F, F, F, F, F, F, 0, 4]),
    plain(&[0xb7, 0x1f, F, F, F, F, F, F, F, F, 0, 4]),
];

fn commands() -> impl Iterator<Item = &'static Entry> {
    COMMANDS.iter().chain(&TWELVE)
}

/// A command timeouts descriptor that states no timeouts (SPC-4 6.35.4).
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The parameter data of REPORT SUPPORTED OPERATION CODES, uncut.
pub fn report(selection: OpcodeSelection, timeouts: bool) -> Result<Vec<u8>, Sense> {
    let invalid_action = Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(4);
    let has_actions = |opcode| commands().any(|e| e.opcode == opcode && e.action.is_some());
    let known = |opcode| commands().any(|e| e.opcode == opcode);
    let find = |opcode: u8, action: Option<u16>| {
        one(
            commands().find(|e| e.opcode == opcode && e.action == action),
            timeouts,
        )
    };
    match selection {
        OpcodeSelection::All => Ok(all(timeouts)),
        OpcodeSelection::Opcode(opcode) if has_actions(opcode) => Err(invalid_action),
        OpcodeSelection::Opcode(opcode) => Ok(find(opcode, None)),
        OpcodeSelection::ServiceAction(opcode, _) if known(opcode) && !has_actions(opcode) => {
            Err(invalid_action)
        }
        OpcodeSelection::ServiceAction(opcode, action) => Ok(find(opcode, Some(action))),
        OpcodeSelection::Any(opcode, action) if has_actions(opcode) => {
            Ok(find(opcode, Some(action)))
        }
        OpcodeSelection::Any(opcode, 0) => Ok(find(opcode, None)),
        OpcodeSelection::Any(..) => Ok(one(None, timeouts)),
    }
}

fn all(timeouts: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for entry in commands() {
        let [high, low] = entry.action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(entry.action.is_some()) | if timeouts { 2 } else { 0 };
        let length = entry.usage.len() as u8;
        bytes.extend_from_slice(&[entry.opcode, 0, high, low, 0, flags, 0, length]);
        if timeouts {
            bytes.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn one(entry: Option<&Entry>, timeouts: bool) -> Vec<u8> {
    /// SUPPORT: 1 not supported, 3 supported as the standard says.
    const NOT_SUPPORTED: u8 = 1;
    const SUPPORTED: u8 = 3;
    let Some(entry) = entry else {
        return vec![0, NOT_SUPPORTED, 0, 0];
    };
    let described = if timeouts { 0x80 } else { 0 };
    let mut bytes = vec![0, described | SUPPORTED, 0, entry.usage.len() as u8];
    bytes.extend_from_slice(entry.usage);
    if timeouts {
        bytes.extend_from_slice(&TIMEOUTS);
    }
    bytes
}

/// The parameter data of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, uncut: abort task, abort
/// task set, clear task set, logical unit reset and target reset.
pub fn report_task_management(long: bool) -> Vec<u8> {
    const FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
    let mut bytes = vec![FUNCTIONS, 0, 0, 0];
    if long {
        bytes[3] = 0x0c;
        bytes.resize(16, 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::decode;

    #[test]
    fn every_reported_command_is_decoded_and_no_other() {
        for opcode in 0..=255_u8 {
            for service_action in 0..32_u8 {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                cdb[1] = service_action;
                let unknown = match decode(&cdb) {
                    Ok(_) => continue,
                    Err(sense) => sense == Sense::INVALID_OPERATION_CODE.at_cdb_byte(0),
                };
                let reported = commands().any(|entry| entry.opcode == opcode);
                assert_eq!(unknown, !reported, "{opcode:02x}");
            }
        }
    }

    #[test]
    fn usage_maps_have_the_length_of_their_group() {
        for entry in commands() {
            let expected = match entry.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("no command of group {group}"),
            };
            assert_eq!(entry.usage.len(), expected, "{:02x}", entry.opcode);
        }
    }

    #[test]
    fn one_command_is_reported_with_its_usage_map() {
        let bytes = report(OpcodeSelection::Opcode(0x28), false).unwrap();
        assert_eq!(bytes[..4], [0, 3, 0, 10]);
        assert_eq!(bytes[4], 0x28);
        assert_eq!(
            report(OpcodeSelection::Opcode(0xff), false).unwrap(),
            [0, 1, 0, 0]
        );
        assert!(report(OpcodeSelection::Opcode(0x9e), false).is_err());
        assert!(report(OpcodeSelection::ServiceAction(0x28, 0), false).is_err());
        let with_timeouts = report(OpcodeSelection::ServiceAction(0x9e, 0x10), true).unwrap();
        assert_eq!(with_timeouts.len(), 4 + 16 + 12);
        assert_eq!(with_timeouts[1], 0x83);
    }
}
