//! What the unit says that it has is there: commands, pages, and what its standards require.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use futures::executor::block_on;
use holdfast_path::Path;
use holdfast_scsi::ports::SinglePort;
use holdfast_scsi::reservation::LocalReservations;
use holdfast_scsi::{
    Admission, Attachment, Completion, DeviceIdentity, LogicalUnit, MemoryDevice, Nexus, Status,
    TargetPort,
};

fn attach() -> Attachment {
    let device = MemoryDevice::new(DeviceIdentity {
        naa: [0x60; 16],
        serial: "1".into(),
        vendor: "HOLDFAST".into(),
        product: "Volume".into(),
        revision: "1".into(),
        logical_block_bytes: 512,
        capacity_bytes: 2 << 20,
    });
    let nexus = Nexus {
        initiator: "iqn.2026-01.test:a".into(),
        isid: [0; 6],
        target_port: 1,
    };
    let port = TargetPort {
        target: "iqn.2026-01.test:v".into(),
        group: 1,
        relative_id: 1,
        groups: Rc::new(SinglePort {
            group: 1,
            relative_id: 1,
        }),
    };
    let unit = LogicalUnit::new(Rc::new(LocalReservations::default()));
    let attachment = unit.attach(nexus, Rc::new(device), port, Path::own());
    let attention = run(&attachment, [0; 16]);
    assert_eq!(attention.status, Status::CheckCondition, "the first one");
    attachment
}

/// Runs a command with as many zeroes as it wants.
fn run(attachment: &Attachment, cdb: [u8; 16]) -> Completion {
    match attachment.admit(0, &cdb) {
        Admission::Done(completion) => completion,
        Admission::Run {
            command, data_out, ..
        } => {
            let data = Bytes::from(vec![0; data_out.bytes() as usize]);
            block_on(attachment.execute(command, data)).expect("an outcome")
        }
    }
}

fn padded(prefix: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..prefix.len()].copy_from_slice(prefix);
    cdb
}

fn good(attachment: &Attachment, prefix: &[u8]) -> Bytes {
    let completion = run(attachment, padded(prefix));
    assert_eq!(completion.status, Status::Good, "{prefix:x?}");
    completion.data
}

/// Key, additional sense code and qualifier; `None` without sense data.
fn sense(completion: &Completion) -> Option<(u8, u8, u8)> {
    let sense = &completion.sense;
    (!sense.is_empty()).then(|| (sense[2] & 0x0f, sense[12], sense[13]))
}

const INVALID_OPERATION_CODE: Option<(u8, u8, u8)> = Some((5, 0x20, 0));

/// Operation codes, with the service action where there is one, of REPORT SUPPORTED OPERATION
/// CODES.
fn claimed(attachment: &Attachment) -> Vec<(u8, Option<u8>)> {
    let all = good(attachment, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x40, 0]);
    let stated = u32::from_be_bytes(all[..4].try_into().unwrap()) as usize;
    assert_eq!(stated + 4, all.len());
    all[4..]
        .chunks(8)
        .map(|one| (one[0], (one[5] & 1 != 0).then_some(one[3])))
        .collect()
}

#[test]
fn every_claimed_command_is_executed_and_every_other_is_unknown() {
    let attachment = attach();
    let claimed = claimed(&attachment);
    assert!(claimed.len() > 60);
    for (opcode, action) in &claimed {
        let completion = run(&attachment, padded(&[*opcode, action.unwrap_or(0)]));
        let sense = sense(&completion);
        assert_ne!(sense, INVALID_OPERATION_CODE, "{opcode:02x} {action:?}");
        if action.is_some() {
            // An unknown service action is an invalid field in byte 1; SKSV and C/D are set.
            let pointer = completion.sense.get(15..18);
            let unknown = sense == Some((5, 0x24, 0)) && pointer == Some(&[0xc0, 0, 1]);
            assert!(!unknown, "{opcode:02x} {action:?}");
        }
    }
    let opcodes: BTreeSet<u8> = claimed.iter().map(|(opcode, _)| *opcode).collect();
    for opcode in (0..=0xff).filter(|opcode| !opcodes.contains(opcode)) {
        let completion = run(&attachment, padded(&[opcode]));
        assert_eq!(sense(&completion), INVALID_OPERATION_CODE, "{opcode:02x}");
    }
}

/// The standard INQUIRY data names SPC-4 and SBC-3.
#[test]
fn what_the_named_standards_require_is_claimed() {
    let attachment = attach();
    let inquiry = good(&attachment, &[0x12, 0, 0, 0, 96]);
    let versions: Vec<_> = inquiry[58..74].chunks(2).collect();
    assert!(versions.contains(&&[0x04, 0x60][..]) && versions.contains(&&[0x04, 0xc0][..]));
    let claimed = claimed(&attachment);
    // SPC-4 table 130 and SBC-3 table 32: mandatory, or mandatory for a unit like this one.
    let required: [(u8, Option<u8>); 15] = [
        (0x00, None),
        (0x03, None),
        (0x12, None),
        (0x1d, None),
        (0x25, None),
        (0x28, None),
        (0x2a, None),
        (0x42, None),
        (0x88, None),
        (0x8a, None),
        (0x93, None),
        (0x9e, Some(0x10)),
        (0x9e, Some(0x12)),
        (0xa0, None),
        (0xa3, Some(0x0a)),
    ];
    for command in required {
        assert!(claimed.contains(&command), "{command:x?}");
    }
}

#[test]
fn every_listed_page_is_there() {
    let attachment = attach();
    let listed = good(&attachment, &[0x12, 1, 0, 1, 0]);
    for page in &listed[4..] {
        let data = good(&attachment, &[0x12, 1, *page, 1, 0]);
        assert_eq!(data[1], *page);
    }
    let listed = good(&attachment, &[0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0]);
    assert_eq!(listed[0], 0);
    for page in &listed[4..] {
        let data = good(&attachment, &[0x4d, 0, 0x40 | page, 0, 0, 0, 0, 1, 0]);
        assert_eq!(data[0] & 0x3f, *page);
    }
    let all = good(&attachment, &[0x1a, 8, 0x3f, 0xff, 255]);
    let mut at = 4;
    while at < all.len() {
        let subpage = all[at] & 0x40 != 0;
        let (page, sub) = (all[at] & 0x3f, if subpage { all[at + 1] } else { 0 });
        good(&attachment, &[0x1a, 8, page, sub, 255]);
        at += if subpage {
            4 + usize::from(u16::from_be_bytes([all[at + 2], all[at + 3]]))
        } else {
            2 + usize::from(all[at + 1])
        };
    }
}

#[test]
fn log_sense_refuses_what_it_has_not() {
    let attachment = attach();
    let refusal = |prefix: &[u8]| sense(&run(&attachment, padded(prefix)));
    let invalid = Some((5, 0x24, 0));
    assert_eq!(refusal(&[0x4d, 1, 0x40, 0, 0, 0, 0, 1, 0]), invalid, "SP");
    assert_eq!(refusal(&[0x4d, 0, 0x4d, 0, 0, 0, 0, 1, 0]), invalid, "page");
    assert_eq!(
        refusal(&[0x4d, 0, 0x40, 7, 0, 0, 0, 1, 0]),
        invalid,
        "subpage"
    );
    // A device that does not know its space has no page about it.
    assert_eq!(refusal(&[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0]), invalid);
    let cut = good(&attachment, &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 4]);
    assert_eq!(cut.len(), 4);
}

#[test]
fn the_default_self_test_passes_and_others_are_refused() {
    let attachment = attach();
    for prefix in [
        &[0x1d, 4][..],
        &[0x1d, 0x14],
        &[0x1d, 7],
        &[0x1d, 0],
        &[0x1d, 0x10],
    ] {
        good(&attachment, prefix);
    }
    for prefix in [
        &[0x1d, 0x20][..],
        &[0x1d, 0x44],
        &[0x1d, 0xc0],
        &[0x1d, 0x10, 0, 0, 4],
    ] {
        let refused = sense(&run(&attachment, padded(prefix)));
        assert_eq!(refused, Some((5, 0x24, 0)), "{prefix:x?}");
    }
}
