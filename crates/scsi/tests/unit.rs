//! Commands as initiators send them, against a volume in memory.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use holdfast_path::{Path, Requester};
use holdfast_scsi::ports::{AccessState, NotOptimized, PortGroup, PortGroups, SinglePort};
use holdfast_scsi::reservation::LocalReservations;
use holdfast_scsi::{
    Admission, Attachment, BlockDevice, CompareOutcome, Completion, DataOut, DeviceError,
    DeviceIdentity, LogicalUnit, MemoryDevice, Nexus, Sense, Status, TargetPort, TaskAborter,
};
use proptest::prelude::*;

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;

fn identity() -> DeviceIdentity {
    DeviceIdentity {
        naa: [0x60; 16],
        serial: "1".into(),
        vendor: "HOLDFAST".into(),
        product: "Volume".into(),
        revision: "1".into(),
        logical_block_bytes: BLOCK as u32,
        capacity_bytes: BLOCKS * BLOCK as u64,
    }
}

struct Bench {
    unit: Rc<LogicalUnit>,
    device: Rc<MemoryDevice>,
}

impl Bench {
    fn new() -> Self {
        let unit = LogicalUnit::new(Rc::new(LocalReservations::default()));
        Self {
            unit,
            device: Rc::new(MemoryDevice::new(identity())),
        }
    }

    /// A nexus that has taken its first unit attention.
    fn attach(&self, name: &str) -> Attachment {
        let attachment = attach(&self.unit, name, self.device.clone());
        assert_eq!(sense_of(&run(&attachment, &[0], b"")).0, 6);
        attachment
    }
}

fn attach(unit: &Rc<LogicalUnit>, name: &str, device: Rc<dyn BlockDevice>) -> Attachment {
    let nexus = Nexus {
        initiator: name.into(),
        isid: [0; 6],
        target_port: 1,
    };
    let groups = Rc::new(SinglePort {
        group: 1,
        relative_id: 1,
    });
    let port = TargetPort {
        target: "iqn.t".into(),
        group: 1,
        relative_id: 1,
        groups,
    };
    unit.attach(nexus, device, port, Path::own())
}

fn padded(prefix: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..prefix.len()].copy_from_slice(prefix);
    cdb
}

/// Runs a command with exactly this data.
fn run(attachment: &Attachment, cdb: &[u8], data: &[u8]) -> Completion {
    match attachment.admit(0, &padded(cdb)) {
        Admission::Done(completion) => completion,
        Admission::Run {
            command, data_out, ..
        } => {
            assert_eq!(
                data_out.bytes(),
                data.len() as u64,
                "data that the command wants"
            );
            block_on(attachment.execute(command, Bytes::copy_from_slice(data))).expect("an outcome")
        }
    }
}

fn good(attachment: &Attachment, cdb: &[u8], data: &[u8]) -> Bytes {
    let completion = run(attachment, cdb, data);
    assert_eq!(completion.status, Status::Good, "{cdb:x?}: {completion:?}");
    completion.data
}

/// Key, additional sense code and qualifier of fixed-format sense data.
fn sense_of(completion: &Completion) -> (u8, u8, u8) {
    assert_eq!(completion.status, Status::CheckCondition, "{completion:?}");
    let sense = &completion.sense;
    assert_eq!(sense[0] & 0x7f, 0x70);
    (sense[2] & 0x0f, sense[12], sense[13])
}

fn write10(block: u8, blocks: u8) -> [u8; 10] {
    [0x2a, 0, 0, 0, 0, block, 0, 0, blocks, 0]
}

fn read10(block: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, block, 0, 0, blocks, 0]
}

#[test]
fn written_blocks_read_back_through_every_read() {
    let bench = Bench::new();
    let host = bench.attach("a");
    good(&host, &write10(2, 2), &[7; 2 * BLOCK]);
    let expected = [vec![0; BLOCK], vec![7; 2 * BLOCK]].concat();
    assert_eq!(good(&host, &read10(1, 3), b""), expected);
    assert_eq!(good(&host, &[0x08, 0, 0, 1, 3, 0], b""), expected);
    assert_eq!(
        good(&host, &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 3], b""),
        expected
    );
    let read16 = [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3];
    assert_eq!(good(&host, &read16, b""), expected);
}

#[test]
fn blocks_beyond_the_end_are_out_of_range_even_if_none_are_asked_for() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let last = [0x28, 0, 0, 0, 0x0f, 0xff, 0, 0, 1, 0];
    assert_eq!(good(&host, &last, b"").len(), BLOCK);
    let over = [0x28, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0];
    let completion = run(&host, &over, b"");
    assert_eq!(sense_of(&completion), (5, 0x21, 0));
    assert_eq!(completion.sense[3..7], [0, 0, 0x10, 0]);
    let none_past_end = [0x28, 0, 0, 0, 0x10, 0x01, 0, 0, 0, 0];
    assert_eq!(sense_of(&run(&host, &none_past_end, b"")), (5, 0x21, 0));
    let wraps = [
        0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1,
    ];
    assert_eq!(sense_of(&run(&host, &wraps, b"")), (5, 0x21, 0));
}

#[test]
fn a_transfer_above_the_advertised_limit_is_an_invalid_field() {
    let bench = Bench::new();
    let host = bench.attach("a");
    bench.device.resize(1 << 30);
    assert_eq!(sense_of(&run(&host, &[0], b"")), (6, 0x2a, 0x09));
    let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0x20, 0x01, 0];
    assert_eq!(sense_of(&run(&host, &cdb, b"")), (5, 0x24, 0));
}

#[test]
fn compare_and_write_writes_only_what_compared_equal() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1];
    good(&host, &cdb, &[vec![0; BLOCK], vec![9; BLOCK]].concat());
    assert_eq!(good(&host, &read10(4, 1), b""), vec![9; BLOCK]);
    let mut wrong = vec![9; BLOCK];
    wrong[100] = 8;
    let completion = run(&host, &cdb, &[wrong, vec![1; BLOCK]].concat());
    assert_eq!(sense_of(&completion), (0x0e, 0x1d, 0));
    assert_eq!(completion.sense[0], 0xf0);
    assert_eq!(completion.sense[3..7], 100_u32.to_be_bytes());
    assert_eq!(good(&host, &read10(4, 1), b""), vec![9; BLOCK]);
    let too_long = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 65];
    assert_eq!(sense_of(&run(&host, &too_long, b"")), (5, 0x24, 0));
}

#[test]
fn verify_compares_or_only_reads() {
    let bench = Bench::new();
    let host = bench.attach("a");
    good(&host, &write10(0, 2), &[5; 2 * BLOCK]);
    good(&host, &[0x2f, 0, 0, 0, 0, 0, 0, 0, 2, 0], b"");
    good(&host, &[0x2f, 2, 0, 0, 0, 0, 0, 0, 2, 0], &[5; 2 * BLOCK]);
    good(&host, &[0x2f, 6, 0, 0, 0, 0, 0, 0, 2, 0], &[5; BLOCK]);
    let mut data = [5; 2 * BLOCK];
    data[BLOCK + 3] = 6;
    let completion = run(&host, &[0x2f, 2, 0, 0, 0, 0, 0, 0, 2, 0], &data);
    assert_eq!(sense_of(&completion), (0x0e, 0x1d, 0));
    assert_eq!(completion.sense[3..7], (BLOCK as u32 + 3).to_be_bytes());
    good(&host, &[0x2e, 2, 0, 0, 0, 0, 0, 0, 2, 0], &[4; 2 * BLOCK]);
    assert_eq!(good(&host, &read10(0, 2), b""), vec![4; 2 * BLOCK]);
}

#[test]
fn write_same_fills_and_unmap_frees() {
    let bench = Bench::new();
    let host = bench.attach("a");
    good(&host, &[0x41, 0, 0, 0, 0, 0, 0, 0x08, 0, 0], &[3; BLOCK]);
    assert_eq!(
        good(&host, &[0x28, 0, 0, 0, 0x07, 0xff, 0, 0, 1, 0], b""),
        vec![3; BLOCK]
    );
    assert_eq!(bench.device.allocated_bytes(), 2048 * BLOCK as u64);
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&8_u64.to_be_bytes());
    list.extend_from_slice(&1024_u32.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    good(&host, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
    assert_eq!(bench.device.allocated_bytes(), 1024 * BLOCK as u64);
    assert_eq!(good(&host, &read10(8, 1), b""), vec![0; BLOCK]);
    good(
        &host,
        &[0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0],
        b"",
    );
    assert_eq!(bench.device.allocated_bytes(), 0);
}

#[test]
fn an_unmap_list_with_one_bad_descriptor_unmaps_nothing() {
    let bench = Bench::new();
    let host = bench.attach("a");
    good(&host, &write10(0, 8), &[1; 8 * BLOCK]);
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for block in [0_u64, BLOCKS] {
        list.extend_from_slice(&block.to_be_bytes());
        list.extend_from_slice(&8_u32.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    let completion = run(&host, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list);
    assert_eq!(sense_of(&completion), (5, 0x21, 0));
    assert_eq!(good(&host, &read10(0, 8), b""), vec![1; 8 * BLOCK]);
}

#[test]
fn allocation_lengths_cut_and_never_fail() {
    let bench = Bench::new();
    let host = bench.attach("a");
    for length in [0_u8, 5, 36, 96, 255] {
        let data = good(&host, &[0x12, 0, 0, 0, length, 0], b"");
        assert_eq!(data.len(), usize::from(length.min(96)));
    }
    let capacity = good(
        &host,
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12],
        b"",
    );
    assert_eq!(capacity[..], [0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
}

#[test]
fn attentions_come_once_and_spare_inquiry() {
    let bench = Bench::new();
    let host = attach(&bench.unit, "a", bench.device.clone());
    good(&host, &[0x12, 0, 0, 0, 36, 0], b"");
    assert_eq!(sense_of(&run(&host, &[0], b"")), (6, 0x29, 0));
    good(&host, &[0], b"");
    bench.device.resize(1 << 20);
    let sense = good(&host, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], b"");
    assert_eq!(sense.len(), 16);
    let sense = good(&host, &[0x03, 0, 0, 0, 18, 0], b"");
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2a, 0x09));
    good(&host, &[0], b"");
}

#[test]
fn other_units_exist_only_for_inquiry_report_luns_and_request_sense() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let other = |cdb: &[u8]| match host.admit(1 << 48, &padded(cdb)) {
        Admission::Done(completion) => completion,
        Admission::Run { .. } => panic!("a command ran on a unit that does not exist"),
    };
    assert_eq!(other(&[0x12, 0, 0, 0, 36, 0]).data[0], 0x7f);
    assert_eq!(other(&[0x03, 0, 0, 0, 18, 0]).data[12], 0x25);
    assert_eq!(other(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16]).data.len(), 16);
    assert_eq!(sense_of(&other(&[0])), (5, 0x25, 0));
    assert_eq!(sense_of(&other(&read10(0, 1))), (5, 0x25, 0));
}

fn persistent_out(host: &Attachment, action: u8, kind: u8, key: u64, new_key: u64) -> Completion {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new_key.to_be_bytes());
    run(host, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
}

#[test]
fn a_reservation_holds_off_strangers_also_between_admission_and_execution() {
    let bench = Bench::new();
    let (holder, stranger) = (bench.attach("a"), bench.attach("b"));
    let Admission::Run { command, .. } = stranger.admit(0, &padded(&write10(0, 1))) else {
        panic!("admitted while nothing was reserved");
    };
    assert_eq!(persistent_out(&holder, 0, 0, 0, 0x11).status, Status::Good);
    assert_eq!(persistent_out(&holder, 1, 5, 0x11, 0).status, Status::Good);
    let late = block_on(stranger.execute(command, vec![1; BLOCK].into())).expect("an outcome");
    assert_eq!(late.status, Status::ReservationConflict);
    let refused = run(&stranger, &write10(0, 1), &[1; BLOCK]);
    assert_eq!(refused.status, Status::ReservationConflict);
    assert_eq!(good(&stranger, &read10(0, 1), b""), vec![0; BLOCK]);
    good(&holder, &write10(0, 1), &[2; BLOCK]);
    let shown = good(&stranger, &[0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0], b"");
    assert_eq!((shown[7], shown[15], shown[21]), (16, 0x11, 5));
}

#[test]
fn preempt_and_abort_aborts_the_victims_before_it_answers() {
    #[derive(Default)]
    struct Recorder(RefCell<Vec<String>>);
    impl TaskAborter for Recorder {
        fn abort(&self, nexuses: Vec<Nexus>) -> LocalBoxFuture<'static, ()> {
            let names = nexuses.iter().map(|nexus| nexus.initiator.to_string());
            self.0.borrow_mut().extend(names);
            Box::pin(std::future::ready(()))
        }
    }
    let bench = Bench::new();
    let recorder = Rc::new(Recorder::default());
    bench.unit.set_aborter(recorder.clone());
    let (first, second) = (bench.attach("a"), bench.attach("b"));
    persistent_out(&first, 0, 0, 0, 1);
    persistent_out(&second, 0, 0, 0, 2);
    persistent_out(&first, 1, 1, 1, 0);
    assert_eq!(persistent_out(&second, 5, 1, 2, 1).status, Status::Good);
    assert_eq!(*recorder.0.borrow(), ["a"]);
    assert_eq!(sense_of(&run(&first, &[0], b"")), (6, 0x2a, 0x05));
    assert_eq!(
        run(&first, &write10(0, 1), &[0; BLOCK]).status,
        Status::ReservationConflict
    );
}

#[test]
fn a_registration_outlives_its_session_and_reports_what_it_missed() {
    let bench = Bench::new();
    let (first, second) = (bench.attach("a"), bench.attach("b"));
    persistent_out(&first, 0, 0, 0, 1);
    persistent_out(&second, 0, 0, 0, 2);
    drop(first);
    assert_eq!(persistent_out(&second, 3, 0, 2, 0).status, Status::Good);
    let first = attach(&bench.unit, "a", bench.device.clone());
    assert_eq!(sense_of(&run(&first, &[0], b"")), (6, 0x29, 0x07));
    assert_eq!(sense_of(&run(&first, &[0], b"")), (6, 0x2a, 0x03));
    good(&first, &[0], b"");
}

#[test]
fn a_simple_reservation_ends_with_release_reset_or_its_session() {
    let bench = Bench::new();
    let (first, second) = (bench.attach("a"), bench.attach("b"));
    let reserve = [0x16, 0, 0, 0, 0, 0];
    let conflicts = || run(&second, &reserve, b"").status == Status::ReservationConflict;
    good(&first, &reserve, b"");
    assert!(conflicts());
    good(&second, &[0x17, 0, 0, 0, 0, 0], b"");
    assert!(conflicts(), "a release by another nexus does nothing");
    good(&first, &[0x17, 0, 0, 0, 0, 0], b"");
    good(&second, &reserve, b"");
    block_on(bench.unit.reset(second.nexus()));
    assert_eq!(sense_of(&run(&first, &[0], b"")), (6, 0x29, 0x03));
    assert_eq!(sense_of(&run(&second, &[0], b"")), (6, 0x29, 0x03));
    good(&first, &reserve, b"");
    drop(first);
    good(&second, &reserve, b"");
}

#[test]
fn reset_tells_every_nexus_and_ends_the_reservation_of_any() {
    let bench = Bench::new();
    let (first, second) = (bench.attach("a"), bench.attach("b"));
    good(&first, &[0x16, 0, 0, 0, 0, 0], b"");
    block_on(bench.unit.reset(second.nexus()));
    for host in [&first, &second] {
        assert_eq!(sense_of(&run(host, &[0], b"")), (6, 0x29, 0x03));
        good(host, &write10(0, 1), &[1; BLOCK]);
    }
}

#[test]
fn register_and_move_hands_the_reservation_to_another_port() {
    let bench = Bench::new();
    let (first, second) = (
        bench.attach("iqn.2026-01.test:a"),
        bench.attach("iqn.2026-01.test:b"),
    );
    persistent_out(&first, 0, 0, 0, 1);
    persistent_out(&first, 1, 1, 1, 0);
    let id = holdfast_scsi::nexus::transport_id(second.nexus());
    let move_to = |port: u8| {
        let mut list = [0; 24].to_vec();
        (list[7], list[15], list[19], list[23]) = (1, 2, port, id.len() as u8);
        list.extend_from_slice(&id);
        run(
            &first,
            &[0x5f, 7, 0, 0, 0, 0, 0, 0, list.len() as u8, 0],
            &list,
        )
    };
    assert_eq!(sense_of(&move_to(9)), (5, 0x26, 0), "there is no port 9");
    assert_eq!(move_to(1).status, Status::Good);
    good(&second, &write10(0, 1), &[1; BLOCK]);
    let refused = run(&first, &write10(0, 1), &[1; BLOCK]);
    assert_eq!(refused.status, Status::ReservationConflict);
}

#[test]
fn or_write_sets_bits_and_clears_none() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let blocks = 100;
    good(&host, &write10(60, blocks), &[0x0f; 100 * BLOCK]);
    let or16 = [0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, blocks, 0, 0];
    good(&host, &or16, &[0x31; 100 * BLOCK]);
    assert_eq!(
        good(&host, &read10(60, blocks), b""),
        vec![0x3f; 100 * BLOCK]
    );
    let past_end = [0x8b, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(sense_of(&run(&host, &past_end, &[0; BLOCK])), (5, 0x21, 0));
}

#[test]
fn write_atomic_takes_whole_aligned_blocks_that_cross_no_border() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let atomic = |block: u16, blocks: u16| {
        let ([a, b], [c, d]) = (block.to_be_bytes(), blocks.to_be_bytes());
        let cdb = [0x9c, 0, 0, 0, 0, 0, 0, 0, a, b, 0, 0, c, d, 0, 0];
        match host.admit(0, &cdb) {
            Admission::Done(refused) => Err(sense_of(&refused)),
            Admission::Run {
                command, data_out, ..
            } => {
                let data = vec![5; data_out.bytes() as usize];
                Ok(block_on(host.execute(command, data.into()))
                    .expect("an outcome")
                    .status)
            }
        }
    };
    assert_eq!(atomic(8, 256), Ok(Status::Good));
    assert_eq!(good(&host, &read10(8, 2), b""), vec![5; 2 * BLOCK]);
    for (block, blocks) in [(4, 8), (8, 4), (0, 264), (2040, 16)] {
        assert_eq!(atomic(block, blocks), Err((5, 0x24, 0)), "{block} {blocks}");
    }
}

#[test]
fn defect_lists_are_empty_and_cut_to_the_allocation_length() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let short = good(&host, &[0x37, 0, 0x1d, 0, 0, 0, 0, 0, 255, 0], b"");
    assert_eq!(short[..], [0, 0x1d, 0, 0]);
    let long = [0xb7, 0x0d, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0];
    assert_eq!(good(&host, &long, b"")[..], [0, 0x0d, 0, 0, 0, 0]);
}

#[test]
fn extended_copy_copies_within_the_unit_and_its_end_is_remembered() {
    let bench = Bench::new();
    let host = bench.attach("a");
    good(&host, &write10(0, 4), &[9; 4 * BLOCK]);
    let copy = |destination: u16| {
        let mut list = [0; 76].to_vec();
        (list[0], list[3], list[11]) = (7, 32, 28);
        (list[16], list[20], list[21], list[23]) = (0xe4, 1, 3, 16);
        list[24..40].copy_from_slice(&[0x60; 16]);
        (list[48], list[51], list[59]) = (0x02, 0x18, 4);
        list[74..].copy_from_slice(&destination.to_be_bytes());
        let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 76, 0, 0];
        run(&host, &cdb, &list)
    };
    let status = [0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    assert_eq!(sense_of(&run(&host, &status, b"")), (5, 0x24, 0));
    assert_eq!(copy(100).status, Status::Good);
    assert_eq!(good(&host, &read10(100, 4), b""), vec![9; 4 * BLOCK]);
    let done = good(&host, &status, b"");
    assert_eq!(done[..], [0, 0, 0, 8, 1, 0, 1, 1, 0, 0, 0, 2]);
    assert_eq!(sense_of(&copy(4094)), (0x0a, 0, 0));
    assert_eq!(good(&host, &status, b"")[4..7], [2, 0, 0]);
    let nothing = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    good(&host, &nothing, b"");
}

#[test]
fn software_write_protect_refuses_writes_and_tells_the_others() {
    let bench = Bench::new();
    let (first, second) = (bench.attach("a"), bench.attach("b"));
    let mut list = good(&first, &[0x1a, 0x08, 0x0a, 0, 255, 0], b"").to_vec();
    list[0] = 0;
    list[2] = 0;
    list[8] |= 0x08;
    good(&first, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list);
    assert_eq!(sense_of(&run(&second, &[0], b"")), (6, 0x2a, 0x01));
    assert_eq!(
        sense_of(&run(&second, &write10(0, 1), &[0; BLOCK])),
        (7, 0x27, 0x02)
    );
    good(&second, &read10(0, 1), b"");
}

#[test]
fn a_standby_port_answers_inquiries_but_not_reads() {
    struct Standby;
    impl PortGroups for Standby {
        fn groups(&self) -> Vec<PortGroup> {
            vec![PortGroup {
                id: 1,
                state: AccessState::Standby,
                preferred: false,
                ports: vec![1],
            }]
        }
        fn state(&self, _group: u16) -> AccessState {
            AccessState::Standby
        }
        fn fingerprint(&self) -> u64 {
            0
        }
        fn optimize(&self, _: u16) -> LocalBoxFuture<'static, Result<(), NotOptimized>> {
            Box::pin(std::future::ready(Err(NotOptimized)))
        }
    }
    let bench = Bench::new();
    let nexus = Nexus {
        initiator: "a".into(),
        isid: [0; 6],
        target_port: 1,
    };
    let groups = Rc::new(Standby);
    let port = TargetPort {
        target: "iqn.t".into(),
        group: 1,
        relative_id: 1,
        groups,
    };
    let host = bench
        .unit
        .attach(nexus, bench.device.clone(), port, Path::own());
    assert_eq!(sense_of(&run(&host, &[0], b"")).0, 6);
    assert_eq!(sense_of(&run(&host, &read10(0, 1), b"")), (2, 4, 0x0b));
    let groups = good(&host, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64], b"");
    assert_eq!(groups[4], 2);
}

/// Fails every request in the same way.
struct Broken(DeviceError);

impl BlockDevice for Broken {
    fn identity(&self) -> DeviceIdentity {
        identity()
    }
    fn read(
        &self,
        _: Requester,
        _: u64,
        _: u32,
    ) -> LocalBoxFuture<'static, Result<Bytes, DeviceError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
    fn write(
        &self,
        _: Requester,
        _: u64,
        _: Bytes,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
    fn zero(
        &self,
        _: Requester,
        _: u64,
        _: u64,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
    fn flush(&self) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
    fn compare_and_write(
        &self,
        _: Requester,
        _: u64,
        _: Bytes,
        _: Bytes,
    ) -> LocalBoxFuture<'static, Result<CompareOutcome, DeviceError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
}

#[test]
fn device_errors_become_the_status_that_hosts_act_on() {
    let outcomes = |error| {
        let unit = LogicalUnit::new(Rc::new(LocalReservations::default()));
        let host = attach(&unit, "a", Rc::new(Broken(error)));
        run(&host, &[0], b"");
        (
            run(&host, &read10(0, 1), b""),
            run(&host, &write10(0, 1), &[0; BLOCK]),
        )
    };
    let (read, write) = outcomes(DeviceError::Busy);
    assert_eq!((read.status, write.status), (Status::Busy, Status::Busy));
    let (_, write) = outcomes(DeviceError::Full);
    assert_eq!(sense_of(&write), (7, 0x27, 7));
    let (read, write) = outcomes(DeviceError::Medium {
        offset: 3 * BLOCK as u64,
    });
    assert_eq!(
        (sense_of(&read), sense_of(&write)),
        ((3, 0x11, 0), (3, 0x0c, 0))
    );
    assert_eq!(read.sense[..7], [0xf0, 0, 3, 0, 0, 0, 3]);
    assert_eq!(sense_of(&outcomes(DeviceError::Gone).0), (5, 0x25, 0));
    assert_eq!(sense_of(&outcomes(DeviceError::Internal).1), (4, 0x44, 0));
}

#[test]
fn sense_in_descriptor_format_follows_the_mode_page() {
    let bench = Bench::new();
    let host = bench.attach("a");
    let mut list = good(&host, &[0x1a, 0x08, 0x0a, 0, 255, 0], b"").to_vec();
    list[0] = 0;
    list[2] = 0;
    list[6] |= 0x04;
    good(&host, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list);
    assert_eq!(run(&host, &[0xff], b"").sense[0], 0x72);
    assert_eq!(host.check_condition(Sense::INTERNAL_FAILURE).sense[0], 0x72);
}

proptest! {
    #[test]
    fn any_command_with_any_data_ends_with_a_status(
        cdb: [u8; 16],
        opcode in prop::sample::select(vec![
            0x03_u8, 0x12, 0x15, 0x1a, 0x2a, 0x2e, 0x2f, 0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x89,
            0x93, 0x9e, 0xa0, 0xa3, 0xa4,
        ]),
        lun in prop::sample::select(vec![0_u64, 1, 1 << 62]),
        filler: u8,
    ) {
        let bench = Bench::new();
        let host = bench.attach("a");
        let mut cdb = cdb;
        cdb[0] = opcode;
        // Lengths and addresses small enough to be admitted now and then.
        for high in [2, 3, 4, 6, 10, 11, 12] {
            cdb[high] = 0;
        }
        if let Admission::Run { command, data_out, .. } = host.admit(lun, &cdb) {
            let data = match data_out {
                DataOut::None => 0,
                DataOut::Blocks { bytes, .. }
                | DataOut::Exact { bytes }
                | DataOut::List { bytes } => bytes,
            };
            let data = vec![filler; data as usize];
            block_on(host.execute(command, data.into())).expect("an outcome");
        }
    }
}
