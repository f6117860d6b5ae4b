//! What an initiator that means harm tries, and what it gets.

use std::rc::Rc;

use bytes::Bytes;
use futures::executor::block_on;
use holdfast_path::Path;
use holdfast_scsi::limits::TRANSFER_BYTES_MAX;
use holdfast_scsi::ports::SinglePort;
use holdfast_scsi::reservation::LocalReservations;
use holdfast_scsi::{
    Admission, Attachment, Completion, DataOut, DeviceIdentity, LogicalUnit, MemoryDevice, Nexus,
    Status, TargetPort,
};

/// Two initiators of one unit of a terabyte, whose attentions have been taken.
fn pair() -> [Attachment; 2] {
    let unit = LogicalUnit::new(Rc::new(LocalReservations::default()));
    let device = Rc::new(MemoryDevice::new(DeviceIdentity {
        naa: [0x60; 16],
        serial: "1".into(),
        vendor: "HOLDFAST".into(),
        product: "Volume".into(),
        revision: "1".into(),
        logical_block_bytes: 512,
        capacity_bytes: 1 << 40,
    }));
    ["a", "b"].map(|name| {
        let nexus = Nexus {
            initiator: name.into(),
            isid: [0; 6],
            target_port: 1,
        };
        let port = TargetPort {
            target: "iqn.t".into(),
            group: 1,
            relative_id: 1,
            groups: Rc::new(SinglePort {
                group: 1,
                relative_id: 1,
            }),
        };
        let attachment = unit.attach(nexus, device.clone(), port, Path::own());
        run(&attachment, &[0]);
        attachment
    })
}

fn padded(prefix: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..prefix.len()].copy_from_slice(prefix);
    cdb
}

fn run(attachment: &Attachment, cdb: &[u8]) -> Completion {
    match attachment.admit(0, &padded(cdb)) {
        Admission::Done(completion) => completion,
        Admission::Run { command, .. } => {
            block_on(attachment.execute(command, Bytes::new())).expect("an outcome")
        }
    }
}

#[test]
fn a_reservation_conflict_does_not_lift_the_limit_of_a_transfer() {
    let [holder, other] = pair();
    assert_eq!(run(&holder, &[0x16]).status, Status::Good);
    for opcode in [0x8a, 0x88, 0x8b, 0x8e, 0x8f] {
        // 2^32 - 1 blocks: 2 TiB.
        let mut cdb = padded(&[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        cdb[1] = if opcode == 0x8f { 2 } else { 0 };
        match other.admit(0, &cdb) {
            Admission::Done(completion) => {
                assert_eq!(completion.status, Status::CheckCondition, "{opcode:x}");
            }
            Admission::Run { data_out, .. } => panic!("{opcode:x} wants {data_out:?}"),
        }
        // What fits is collected, and refused for the conflict.
        cdb[10..14].copy_from_slice(&[0, 0, 0x20, 0]);
        match other.admit(0, &cdb) {
            Admission::Run { data_out, .. } => assert!(data_out.bytes() <= TRANSFER_BYTES_MAX),
            Admission::Done(completion) => panic!("{opcode:x}: {completion:?}"),
        }
    }
    let conflict = run(
        &other,
        &padded(&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0]),
    );
    assert_eq!(conflict.status, Status::ReservationConflict);
}

#[test]
fn no_command_of_any_length_wants_more_than_the_limit() {
    let [holder, other] = pair();
    for reserved in [false, true] {
        if reserved {
            assert_eq!(run(&holder, &[0x56]).status, Status::Good);
        }
        for opcode in 0..=255 {
            for fill in [0x01, 0x7f, 0xff] {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                // Byte 1 has the protection bits, the last one CONTROL. The address is one whose
                // offset in bytes has no 64 bits.
                cdb[2..15].fill(fill);
                if let Admission::Run {
                    data_out,
                    data_in_bytes,
                    ..
                } = other.admit(0, &cdb)
                {
                    let (wanted, most) = (data_out.bytes(), TRANSFER_BYTES_MAX);
                    assert!(
                        wanted <= most && data_in_bytes <= most,
                        "{opcode:x}: {wanted}"
                    );
                    assert!(data_out != DataOut::None || wanted == 0);
                }
            }
        }
    }
}
