//! The session engine against scripted targets.

use super::*;
use crate::pdu::answer;
use crate::scsi::BlockRange;

impl Token for u32 {
    /// Tokens from 1000 on stand for callers that went away.
    fn is_abandoned(&self) -> bool {
        *self >= 1000
    }
}

const FIRST_STAT_SN: u32 = 10;

fn engine(window: u32, agreed: Negotiated) -> Engine<u32> {
    let max_cmd_sn = FIRST_CMD_SN.wrapping_add(window).wrapping_sub(1);
    Engine::new(
        Outcome {
            negotiated: agreed,
            exp_stat_sn: FIRST_STAT_SN,
            max_cmd_sn,
        },
        128,
    )
}

fn submit(engine: &mut Engine<u32>, token: u32, request: Request) {
    engine.submit(token, request, Instant::now());
}

fn read(length: u32) -> Request {
    let cdb = [0x88; 16];
    Request::Scsi(Command {
        lun: 1,
        cdb,
        transfer: Transfer::Read(length),
    })
}

fn write(length: usize) -> Request {
    let data: Vec<u8> = (0..length).map(|at| (at / 512) as u8).collect();
    let range = BlockRange {
        first: 0,
        blocks: (length / 512) as u32,
    };
    Request::Scsi(Command::write(1, range, data.into()))
}

fn sent(engine: &mut Engine<u32>) -> Vec<Pdu> {
    std::iter::from_fn(|| engine.take_outgoing()).collect()
}

fn completed(engine: &mut Engine<u32>) -> Vec<(u32, Result<Reply, Error>)> {
    let mut out = Vec::new();
    engine.take_completed(&mut out);
    out
}

/// A target's answer with a window far open.
fn answer(opcode: u8, flags: u8, task: u32, stat_sn: u32) -> Bhs {
    Bhs::new(opcode, flags)
        .with(8, &scsi::encode_lun(1))
        .with_u32(16, task)
        .with_u32(20, NO_TAG)
        .with_u32(24, stat_sn)
        .with_u32(28, 1)
        .with_u32(32, 1000)
}

fn bare(bhs: Bhs) -> Pdu {
    Pdu {
        bhs,
        data: Bytes::new(),
    }
}

fn data_in(task: u32, sn: u32, offset: u32, data: &'static [u8]) -> Pdu {
    let bhs = answer(answer::DATA_IN, 0, task, 0)
        .with_u32(36, sn)
        .with_u32(40, offset);
    Pdu {
        bhs,
        data: Bytes::from_static(data),
    }
}

fn response(task: u32, stat_sn: u32, status: u8) -> Pdu {
    bare(answer(answer::SCSI_RESPONSE, FINAL, task, stat_sn).with(3, &[status]))
}

fn r2t(task: u32, sn: u32, offset: u32, length: u32) -> Pdu {
    let bhs = answer(answer::R2T, FINAL, task, FIRST_STAT_SN)
        .with_u32(20, 0x77)
        .with_u32(36, sn)
        .with_u32(40, offset)
        .with_u32(44, length);
    bare(bhs)
}

#[test]
fn commands_wait_for_the_window_and_go_in_order_when_it_opens() {
    let mut engine = engine(2, Negotiated::default());
    for token in 0..4 {
        submit(&mut engine, token, read(512));
    }
    let first = sent(&mut engine);
    assert_eq!(
        first.iter().map(|pdu| pdu.bhs.u32(24)).collect::<Vec<_>>(),
        [1, 2]
    );
    let nop = answer(answer::NOP_IN, FINAL, NO_TAG, FIRST_STAT_SN).with_u32(32, 3);
    engine.handle(bare(nop)).unwrap();
    let second = sent(&mut engine);
    assert_eq!(
        second.iter().map(|pdu| pdu.bhs.u32(24)).collect::<Vec<_>>(),
        [3]
    );
    // A window that goes back is ignored.
    let stale = answer(answer::NOP_IN, FINAL, NO_TAG, FIRST_STAT_SN).with_u32(32, 1);
    engine.handle(bare(stale)).unwrap();
    let reopened = answer(answer::NOP_IN, FINAL, NO_TAG, FIRST_STAT_SN).with_u32(32, 4);
    engine.handle(bare(reopened)).unwrap();
    assert_eq!(sent(&mut engine).len(), 1);
}

#[test]
fn a_command_whose_caller_left_is_never_sent() {
    let mut engine = engine(1, Negotiated::default());
    submit(&mut engine, 0, read(512));
    submit(&mut engine, 1000, write(512));
    submit(&mut engine, 1, read(512));
    sent(&mut engine);
    let open = answer(answer::NOP_IN, FINAL, NO_TAG, FIRST_STAT_SN);
    engine.handle(bare(open)).unwrap();
    let next = sent(&mut engine);
    assert_eq!(next.len(), 1);
    assert_eq!(
        next[0].bhs.bytes::<1>(32),
        [0x88],
        "the read, not the abandoned write"
    );
    assert_eq!(next[0].bhs.u32(24), 2, "and no CmdSN was spent");
}

#[test]
fn queue_depth_bounds_commands_in_flight() {
    let outcome = Outcome {
        negotiated: Negotiated::default(),
        exp_stat_sn: FIRST_STAT_SN,
        max_cmd_sn: 1000,
    };
    let mut engine = Engine::new(outcome, 2);
    for token in 0..3 {
        submit(&mut engine, token, read(512));
    }
    let tag = sent(&mut engine)[0].bhs.task();
    engine.handle(response(tag, FIRST_STAT_SN, 0x08)).unwrap();
    assert_eq!(
        completed(&mut engine),
        [(0, Err(Error::Busy { status: 8 }))]
    );
    assert_eq!(sent(&mut engine).len(), 1);
}

#[test]
fn read_data_is_assembled_and_status_may_ride_on_the_last_data_in() {
    let mut engine = engine(8, Negotiated::default());
    submit(&mut engine, 5, read(8));
    let tag = sent(&mut engine)[0].bhs.task();
    engine.handle(data_in(tag, 0, 0, b"abcd")).unwrap();
    let mut last = data_in(tag, 1, 4, b"efgh");
    last.bhs = last.bhs.with(1, &[FINAL | 1]).with_u32(24, FIRST_STAT_SN);
    engine.handle(last).unwrap();
    let data = Bytes::from_static(b"abcdefgh");
    let expected = Reply::Scsi {
        data,
        residual: Residual::None,
    };
    assert_eq!(completed(&mut engine), [(5, Ok(expected))]);
    assert!(engine.is_idle());
}

#[test]
fn an_underflow_must_account_for_every_missing_byte() {
    for (count, is_honest) in [(5, true), (4, false), (0, false), (u32::MAX, false)] {
        let mut engine = engine(8, Negotiated::default());
        submit(&mut engine, 5, read(8));
        let tag = sent(&mut engine)[0].bhs.task();
        engine.handle(data_in(tag, 0, 0, b"abc")).unwrap();
        let mut end = response(tag, FIRST_STAT_SN, 0);
        end.bhs = end.bhs.with(1, &[FINAL | 0x02]).with_u32(44, count);
        let handled = engine.handle(end);
        assert_eq!(
            handled.is_ok(),
            is_honest,
            "residual {count} gave {handled:?}"
        );
        if is_honest {
            let data = Bytes::from_static(b"abc");
            let expected = Reply::Scsi {
                data,
                residual: Residual::Underflow(5),
            };
            assert_eq!(completed(&mut engine), [(5, Ok(expected))]);
        }
    }
}

#[test]
fn sense_data_becomes_a_typed_check_condition() {
    let mut engine = engine(8, Negotiated::default());
    submit(&mut engine, 5, read(8));
    let tag = sent(&mut engine)[0].bhs.task();
    let mut end = response(tag, FIRST_STAT_SN, 2);
    let mut sense = vec![0, 18, 0x70, 0, 0x05, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0];
    sense.resize(20, 0);
    end.data = sense.into();
    engine.handle(end).unwrap();
    let expected = Error::CheckCondition {
        key: 5,
        asc: 0x21,
        ascq: 0,
    };
    assert_eq!(completed(&mut engine), [(5, Err(expected))]);
}

#[test]
fn write_data_goes_immediate_then_unsolicited_then_as_asked() {
    let agreed = Negotiated {
        initial_r2t: false,
        max_send_segment: 1024,
        first_burst: 3072,
        max_burst: 4096,
        ..Negotiated::default()
    };
    let mut engine = engine(8, agreed);
    submit(&mut engine, 5, write(8192));
    let first = sent(&mut engine);
    let shape = |pdus: &[Pdu]| -> Vec<(u8, u8, u32, u32, u32, usize)> {
        let fields = |pdu: &Pdu| {
            let bhs = &pdu.bhs;
            let flags = bhs.byte(1) & FINAL;
            (
                bhs.opcode(),
                flags,
                bhs.u32(20),
                bhs.u32(36),
                bhs.u32(40),
                pdu.data.len(),
            )
        };
        pdus.iter().map(fields).collect()
    };
    // The command's bytes 36 and 40 are part of its CDB.
    assert_eq!(
        first[0].bhs.byte(1),
        0x20 | 1,
        "not final: unsolicited data follows"
    );
    assert_eq!((first[0].bhs.u32(20), first[0].data.len()), (8192, 1024));
    assert_eq!(
        shape(&first[1..]),
        [
            (5, 0, NO_TAG, 0, 1024, 1024),
            (5, FINAL, NO_TAG, 1, 2048, 1024)
        ]
    );
    let tag = first[0].bhs.task();
    engine.handle(r2t(tag, 0, 3072, 1536)).unwrap();
    let solicited = sent(&mut engine);
    assert_eq!(
        shape(&solicited),
        [(5, 0, 0x77, 0, 3072, 1024), (5, FINAL, 0x77, 1, 4096, 512)]
    );
    assert_eq!(solicited[1].data[0], 8, "the bytes at offset 4096");
    engine.handle(response(tag, FIRST_STAT_SN, 0)).unwrap();
    assert_eq!(completed(&mut engine).len(), 1);
}

#[test]
fn without_immediate_data_and_with_initial_r2t_nothing_is_sent_unasked() {
    let agreed = Negotiated {
        immediate_data: false,
        ..Negotiated::default()
    };
    let mut engine = engine(8, agreed);
    submit(&mut engine, 5, write(8192));
    let first = sent(&mut engine);
    assert_eq!((first.len(), first[0].data.len()), (1, 0));
    assert_eq!(first[0].bhs.byte(1), FINAL | 0x20 | 1);
}

#[test]
fn an_r2t_outside_the_command_or_above_the_burst_breaks_the_protocol() {
    for (sn, offset, length) in [
        (0, 8192, 512),
        (0, 4096, 8192),
        (0, 0, 0),
        (0, u32::MAX, 2),
        (1, 0, 512),
        (0, 0, 4608),
    ] {
        let agreed = Negotiated {
            max_burst: 4096,
            ..Negotiated::default()
        };
        let mut engine = engine(8, agreed);
        submit(&mut engine, 5, write(8192));
        let tag = sent(&mut engine)[0].bhs.task();
        let handled = engine.handle(r2t(tag, sn, offset, length));
        assert!(handled.is_err(), "R2T {sn} {offset}+{length}");
        assert!(engine.take_outgoing().is_none());
    }
}

#[test]
fn data_out_of_order_or_out_of_range_breaks_the_protocol() {
    for (sn, offset) in [(1, 0), (0, 4), (0, 6), (0, u32::MAX)] {
        let mut engine = engine(8, Negotiated::default());
        submit(&mut engine, 5, read(8));
        let tag = sent(&mut engine)[0].bhs.task();
        assert!(
            engine.handle(data_in(tag, sn, offset, b"abcd")).is_err(),
            "{sn} {offset}"
        );
    }
}

#[test]
fn answers_to_no_task_or_a_finished_one_break_the_protocol() {
    let mut engine = engine(8, Negotiated::default());
    submit(&mut engine, 5, read(8));
    let tag = sent(&mut engine)[0].bhs.task();
    engine.handle(response(tag, FIRST_STAT_SN, 8)).unwrap();
    submit(&mut engine, 6, read(8));
    // The slot is in use again; the old tag is not.
    let late = engine.handle(response(tag, FIRST_STAT_SN + 1, 0));
    assert_eq!(late, Err(ProtocolError::UnknownTask(tag)));
}

#[test]
fn a_skipped_status_number_breaks_the_protocol() {
    let mut engine = engine(8, Negotiated::default());
    submit(&mut engine, 5, read(8));
    let tag = sent(&mut engine)[0].bhs.task();
    let skipped = engine.handle(response(tag, FIRST_STAT_SN + 1, 8));
    let expected = ProtocolError::StatSn {
        expected: FIRST_STAT_SN,
        found: FIRST_STAT_SN + 1,
    };
    assert_eq!(skipped, Err(expected));
}

#[test]
fn a_targets_ping_is_echoed_and_ours_completes() {
    let mut engine = engine(8, Negotiated::default());
    let ping = answer(answer::NOP_IN, FINAL, NO_TAG, FIRST_STAT_SN).with_u32(20, 0x1234);
    engine
        .handle(Pdu {
            bhs: ping,
            data: Bytes::from_static(b"echo"),
        })
        .unwrap();
    let pong = &sent(&mut engine)[0];
    assert_eq!(pong.bhs.byte(0), request::NOP_OUT | request::IMMEDIATE);
    assert_eq!((pong.bhs.task(), pong.bhs.u32(20)), (NO_TAG, 0x1234));
    assert_eq!(&pong.data[..], b"echo");
    submit(&mut engine, 7, Request::Ping);
    let tag = sent(&mut engine)[0].bhs.task();
    engine
        .handle(bare(answer(answer::NOP_IN, FINAL, tag, FIRST_STAT_SN)))
        .unwrap();
    assert_eq!(completed(&mut engine), [(7, Ok(Reply::Pong))]);
}

#[test]
fn asynchronous_messages_announce_logout_and_drop() {
    let mut engine = engine(8, Negotiated::default());
    let message = |event, stat_sn| {
        let bhs = answer(answer::ASYNC_MESSAGE, FINAL, NO_TAG, stat_sn);
        bare(bhs.with(36, &[event]).with(42, &[0, 3]))
    };
    engine.handle(message(1, FIRST_STAT_SN)).unwrap();
    engine.handle(message(3, FIRST_STAT_SN + 1)).unwrap();
    let expected = [Notice::LogoutRequested { seconds: 3 }, Notice::Dropping];
    assert_eq!(engine.take_notices(), expected);
}

#[test]
fn a_rejected_request_ends_with_its_reason() {
    let mut engine = engine(8, Negotiated::default());
    submit(&mut engine, 5, read(8));
    let rejected = sent(&mut engine)[0].clone();
    let mut wire = Vec::new();
    pdu::encode(&rejected, pdu::Digests::default(), &mut wire);
    let bhs = answer(answer::REJECT, FINAL, NO_TAG, FIRST_STAT_SN).with(2, &[0x09]);
    engine
        .handle(Pdu {
            bhs,
            data: wire.into(),
        })
        .unwrap();
    assert_eq!(
        completed(&mut engine),
        [(5, Err(Error::Rejected { reason: 9 }))]
    );
}

#[test]
fn a_lost_session_ends_sent_and_waiting_requests_alike() {
    let mut engine = engine(1, Negotiated::default());
    submit(&mut engine, 1, write(512));
    submit(&mut engine, 2, read(512));
    assert!(engine.oldest().is_some());
    let error = lost(LostReason::ClosedByTarget);
    engine.fail(&error);
    assert_eq!(
        completed(&mut engine),
        [(1, Err(error.clone())), (2, Err(error))]
    );
    assert!(engine.is_idle() && engine.oldest().is_none());
}
