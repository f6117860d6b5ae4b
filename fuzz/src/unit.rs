//! A small volume in memory with its logical unit, and what must be true of every completion.

use std::rc::Rc;

use futures::FutureExt as _;
use holdfast_path::{Path, Requester};
use holdfast_scsi::ports::SinglePort;
use holdfast_scsi::reservation::LocalReservations;
use holdfast_scsi::{
    Attachment, BlockDevice as _, Completion, DeviceIdentity, LogicalUnit, MemoryDevice, Nexus,
    Status, TargetPort,
};

use crate::input::Input;

/// Capacity at the start: small, so that bounds are near and a run is cheap.
pub const CAPACITY_BYTES: u64 = 256 << 10;

/// The unit and what lies behind it.
pub struct Bench {
    /// The unit.
    pub unit: Rc<LogicalUnit>,
    /// Its medium.
    pub device: Rc<MemoryDevice>,
    /// Size of a logical block.
    pub block_bytes: u32,
}

impl Bench {
    /// An empty volume of blocks of 512 or 4096 bytes.
    pub fn new(large_blocks: bool) -> Self {
        let block_bytes = if large_blocks { 4096 } else { 512 };
        let device = Rc::new(MemoryDevice::new(DeviceIdentity {
            naa: [0x60; 16],
            serial: "1".into(),
            vendor: "HOLDFAST".into(),
            product: "Volume".into(),
            revision: "1".into(),
            logical_block_bytes: block_bytes,
            capacity_bytes: CAPACITY_BYTES,
        }));
        Self {
            unit: LogicalUnit::new(Rc::new(LocalReservations::default())),
            device,
            block_bytes,
        }
    }

    /// Attaches an initiator by its number.
    pub fn attach(&self, number: u8) -> Attachment {
        let nexus = Nexus {
            initiator: "iqn.2026-01.i:a".into(),
            isid: [0, 0, 0, 0, 0, number],
            target_port: 1,
        };
        let groups = Rc::new(SinglePort {
            group: 1,
            relative_id: 1,
        });
        let port = TargetPort {
            target: "iqn.2026-01.t:v".into(),
            group: 1,
            relative_id: 1,
            groups,
        };
        self.unit
            .attach(nexus, self.device.clone(), port, Path::own())
    }

    /// What the medium holds; `None` outside it.
    pub fn stored(&self, offset: u64, bytes: u32) -> Option<bytes::Bytes> {
        let read = self.device.read(Requester::own(), offset, bytes);
        read.now_or_never()
            .expect("a volume in memory answers at once")
            .ok()
    }
}

/// Sense data exists exactly with CHECK CONDITION and has one of the two current formats; no
/// other status than GOOD carries data.
pub fn judge(completion: &Completion) {
    let Completion {
        status,
        sense,
        data,
    } = completion;
    assert_eq!(*status == Status::CheckCondition, !sense.is_empty());
    assert!(sense.len() <= 252, "{} bytes of sense data", sense.len());
    match sense.first().map(|code| code & 0x7f) {
        Some(0x70) => assert_eq!(sense.len(), 8 + usize::from(sense[7])),
        Some(0x72) => assert_eq!(sense.len(), 8 + usize::from(sense[7])),
        Some(other) => panic!("sense data of format {other:#x}"),
        None => {}
    }
    assert!(*status == Status::Good || data.is_empty());
}

/// A command with address and length where its group has them: near the beginning of the volume
/// and short, so that most of them reach the medium.
pub fn small_command(input: &mut Input<'_>) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (input.byte(), input.byte());
    let (block, blocks) = (input.byte(), input.byte());
    match cdb[0] >> 5 {
        0 => (cdb[3], cdb[4]) = (block, blocks),
        1 | 2 => (cdb[5], cdb[8]) = (block, blocks),
        5 => (cdb[5], cdb[9]) = (block, blocks),
        _ => (cdb[9], cdb[13]) = (block, blocks),
    }
    cdb
}
