//! Sessions as lists of PDUs and actions.

use bytes::BytesMut;
use holdfast_scsi::command::{Command, Extent, decode};
use holdfast_scsi::{DataOut, Status};
use proptest::prelude::*;

use super::*;
use crate::login::{Login, Step};
use crate::pdu::framing::{Decoder, Digests, Frame};
use crate::pdu::{FINAL, TargetOpcode};

/// Admits READ and WRITE of 512-byte blocks; everything else is answered with GOOD.
struct TestFront;

impl Front for TestFront {
    fn admit(&self, _lun: u64, cdb: &[u8; 16]) -> Admission {
        let bytes = |extent: Extent| u64::from(extent.blocks) * 512;
        match decode(cdb) {
            Ok(command @ Command::Read(extent)) => Admission::Run {
                command: command.into(),
                data_out: DataOut::None,
                data_in_bytes: bytes(extent),
            },
            Ok(command @ Command::Write(extent)) => Admission::Run {
                command: command.into(),
                data_out: DataOut::Blocks {
                    bytes: bytes(extent),
                    block_bytes: 512,
                },
                data_in_bytes: 0,
            },
            Ok(_) => Admission::Done(Completion::good(Bytes::new())),
            Err(sense) => Admission::Done(Completion::check(sense, false)),
        }
    }

    fn check_condition(&self, sense: Sense) -> Completion {
        Completion::check(sense, false)
    }

    fn send_targets(&self, name: Option<&str>) -> Vec<TargetSummary> {
        let portals = vec!["127.0.0.1:3260,1".to_owned()];
        let all = (0..400).map(|index| TargetSummary {
            iqn: format!("iqn.2026-01.test:{index:03}"),
            portals: portals.clone(),
        });
        all.filter(|target| name.is_none_or(|name| name == target.iqn))
            .collect()
    }

    fn target(&self) -> Option<&str> {
        None
    }
}

const WINDOW: u32 = 8;

/// A session whose login offered these keys; its first CmdSN is `first`.
fn session_from(first: u32, keys: &[(&str, &str)]) -> Session {
    struct Open;
    impl crate::login::Policy for Open {
        fn admit(
            &self,
            _kind: &crate::login::SessionKind,
            _initiator: &holdfast_name::IscsiName,
        ) -> Result<crate::login::Admittance, crate::login::LoginStatus> {
            let auth = crate::targets::TargetAuth::None;
            Ok(crate::login::Admittance {
                auth,
                portal_group_tag: 1,
            })
        }
        fn issue_challenge(&self, _: crate::chap::Algorithm) -> crate::login::Challenge {
            unreachable!("no authentication is required")
        }
        fn is_outstanding(&self, _: &[u8]) -> bool {
            false
        }
    }
    let mut pdu = Pdu::new(0x43);
    pdu.header[1] = 0x87;
    pdu.put_u32(24, first);
    let mut writer = crate::text::Writer::default();
    writer.put("InitiatorName", "iqn.2026-01.test:i");
    writer.put("TargetName", "iqn.2026-01.test:t");
    keys.iter().for_each(|(key, value)| writer.put(key, value));
    pdu.data = writer.finish();
    match Login::default().handle(&pdu, &Open) {
        Step::Established(login) => Session::new(&login, WINDOW),
        other => panic!("login failed: {other:?}"),
    }
}

fn session() -> Session {
    session_from(
        100,
        &[("InitialR2T", "No"), ("MaxRecvDataSegmentLength", "1024")],
    )
}

fn numbered(opcode: u8, flags: u8, tag: u32, number: u32) -> Pdu {
    let mut pdu = Pdu::new(opcode);
    pdu.header[1] = flags;
    pdu.put_u32(16, tag);
    pdu.put_u32(24, number);
    pdu
}

/// WRITE(10) of so many blocks with this data in the command PDU.
fn write(tag: u32, number: u32, blocks: u8, expected: u32, last: bool, data: &[u8]) -> Pdu {
    let mut pdu = numbered(1, 0x21 | if last { FINAL } else { 0 }, tag, number);
    pdu.put_u32(20, expected);
    pdu.header[32] = 0x2a;
    pdu.header[40] = blocks;
    pdu.data = Bytes::copy_from_slice(data);
    pdu
}

fn read(tag: u32, number: u32, blocks: u8, expected: u32) -> Pdu {
    let mut pdu = numbered(1, 0xc1, tag, number);
    pdu.put_u32(20, expected);
    pdu.header[32] = 0x28;
    pdu.header[40] = blocks;
    pdu
}

fn data_out(tag: u32, transfer: u32, number: u32, offset: u32, data: &[u8], last: bool) -> Pdu {
    let mut pdu = numbered(5, if last { FINAL } else { 0 }, tag, 0);
    pdu.put_u32(20, transfer);
    pdu.put_u32(36, number);
    pdu.put_u32(40, offset);
    pdu.data = Bytes::copy_from_slice(data);
    pdu
}

fn take(session: &mut Session, pdu: Pdu) -> Vec<Action> {
    session.receive(pdu, &TestFront).unwrap();
    session.take_actions()
}

fn sent(actions: &[Action]) -> Vec<&Pdu> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(pdu) => Some(pdu),
            _ => None,
        })
        .collect()
}

/// Identity and data of the only action, which must start a command.
fn executed(actions: &[Action]) -> (TaskId, Bytes) {
    match actions {
        [Action::Execute { task, data, .. }] => (*task, data.clone()),
        other => panic!("not one execution: {other:?}"),
    }
}

fn finish(session: &mut Session, task: TaskId, data: Bytes) -> Vec<Action> {
    session.complete(task, Completion::good(data));
    session.take_actions()
}

#[test]
fn a_read_is_split_and_its_status_rides_in_the_last_pdu() {
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 5, 2560)));
    let actions = finish(&mut session, task, vec![1; 2560].into());
    let pdus = sent(&actions);
    let shown: Vec<_> = pdus
        .iter()
        .map(|pdu| {
            (
                pdu.header[0],
                pdu.header[1],
                pdu.u32_at(36),
                pdu.u32_at(40),
                pdu.data.len(),
            )
        })
        .collect();
    let opcode = TargetOpcode::DataIn as u8;
    assert_eq!(
        shown,
        [
            (opcode, 0, 0, 0, 1024),
            (opcode, 0, 1, 1024, 1024),
            (opcode, 0x81, 2, 2048, 512)
        ]
    );
    assert_eq!((pdus[0].u32_at(24), pdus[2].u32_at(24)), (0, 1));
}

#[test]
fn read_residuals_say_what_was_and_was_not_transferred() {
    for (expected, shown, flags, residual) in [
        (200, 200, 0x85, 312),
        (512, 512, 0x81, 0),
        (1000, 512, 0x83, 488),
    ] {
        let mut session = session();
        let (task, _) = executed(&take(&mut session, read(7, 100, 1, expected)));
        let actions = finish(&mut session, task, vec![1; 512].into());
        let pdu = sent(&actions)[0];
        assert_eq!(
            (pdu.data.len(), pdu.header[1], pdu.u32_at(44)),
            (shown, flags, residual)
        );
    }
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 1, 0)));
    let actions = finish(&mut session, task, vec![1; 512].into());
    let pdu = sent(&actions)[0];
    assert_eq!(
        (pdu.header[0], pdu.header[1], pdu.u32_at(44)),
        (0x21, 0x84, 512)
    );
}

#[test]
fn immediate_data_alone_executes_at_once() {
    let mut session = session();
    let (_, data) = executed(&take(&mut session, write(7, 100, 1, 512, true, &[3; 512])));
    assert_eq!(data, vec![3; 512]);
}

#[test]
fn a_long_write_is_asked_for_in_bursts() {
    let mut session = session_from(
        100,
        &[("MaxBurstLength", "1024"), ("FirstBurstLength", "512")],
    );
    let actions = take(&mut session, write(7, 100, 4, 2048, true, &[1; 512]));
    let r2t = sent(&actions)[0].clone();
    assert_eq!(r2t.opcode(), TargetOpcode::ReadyToTransfer as u8);
    assert_eq!(
        (r2t.u32_at(36), r2t.u32_at(40), r2t.u32_at(44)),
        (0, 512, 1024)
    );
    let tag = r2t.u32_at(20);
    let actions = take(&mut session, data_out(7, tag, 0, 512, &[2; 1024], true));
    let r2t = sent(&actions)[0].clone();
    assert_eq!(
        (r2t.u32_at(36), r2t.u32_at(40), r2t.u32_at(44)),
        (1, 1536, 512)
    );
    let (task, data) = executed(&take(
        &mut session,
        data_out(7, r2t.u32_at(20), 0, 1536, &[3; 512], true),
    ));
    assert_eq!(data, [vec![1; 512], vec![2; 1024], vec![3; 512]].concat());
    let actions = finish(&mut session, task, Bytes::new());
    let response = sent(&actions)[0];
    // Neither R2T took a StatSN.
    assert_eq!((response.u32_at(24), response.u32_at(36)), (1, 2));
}

#[test]
fn write_residuals_cut_the_write_to_whole_blocks() {
    let mut session = session();
    let (task, data) = executed(&take(&mut session, write(7, 100, 2, 512, true, &[1; 512])));
    assert_eq!(data.len(), 512);
    let actions = finish(&mut session, task, Bytes::new());
    assert_eq!(
        (sent(&actions)[0].header[1], sent(&actions)[0].u32_at(44)),
        (0x84, 512)
    );

    let (task, data) = executed(&take(
        &mut session,
        write(8, 101, 1, 1024, true, &[1; 1024]),
    ));
    assert_eq!(data.len(), 512);
    let actions = finish(&mut session, task, Bytes::new());
    assert_eq!(
        (sent(&actions)[0].header[1], sent(&actions)[0].u32_at(44)),
        (0x82, 512)
    );

    let actions = take(&mut session, write(9, 102, 1, 200, true, &[1; 200]));
    let response = sent(&actions)[0];
    assert_eq!(response.header[3], Status::CheckCondition as u8);
    assert_eq!((response.header[1], response.u32_at(44)), (0x84, 312));
}

#[test]
fn a_refused_write_is_answered_after_its_unsolicited_data() {
    let mut session = session();
    let mut refused = write(7, 100, 1, 1024, false, &[]);
    refused.header[32] = 0xff;
    assert_eq!(take(&mut session, refused), []);
    let actions = take(
        &mut session,
        data_out(7, RESERVED_TAG, 0, 0, &[0; 512], false),
    );
    assert_eq!(actions, []);
    let actions = take(
        &mut session,
        data_out(7, RESERVED_TAG, 1, 512, &[0; 512], true),
    );
    assert_eq!(sent(&actions)[0].header[3], Status::CheckCondition as u8);
}

#[test]
fn data_out_of_order_fails_its_command_and_the_rest_is_dropped() {
    let mut session = session();
    take(&mut session, write(7, 100, 2, 1024, false, &[]));
    let actions = take(
        &mut session,
        data_out(7, RESERVED_TAG, 5, 0, &[0; 512], false),
    );
    assert_eq!(sent(&actions)[0].header[3], Status::CheckCondition as u8);
    let actions = take(
        &mut session,
        data_out(7, RESERVED_TAG, 1, 512, &[0; 512], true),
    );
    assert_eq!(actions, []);
    assert_eq!(session.outstanding(), 0);
}

#[test]
fn data_that_was_not_negotiated_ends_the_session() {
    let mut strict = session_from(100, &[("ImmediateData", "No")]);
    let with_data = write(7, 100, 1, 512, true, &[0; 512]);
    assert_eq!(
        strict.receive(with_data, &TestFront),
        Err(SessionError::UnsolicitedData)
    );
    let mut strict = session_from(100, &[]);
    let announced = write(7, 100, 1, 512, false, &[]);
    assert_eq!(
        strict.receive(announced, &TestFront),
        Err(SessionError::UnsolicitedData)
    );
    let mut lax = session();
    let too_much = write(7, 100, 1, 512, true, &[0; 513]);
    assert_eq!(
        lax.receive(too_much, &TestFront),
        Err(SessionError::UnsolicitedData)
    );
}

#[test]
fn numbers_outside_the_window_are_dropped_in_silence() {
    let mut session = session_from(u32::MAX - 1, &[]);
    for number in [u32::MAX - 2, (u32::MAX - 1).wrapping_add(WINDOW), 1000] {
        assert_eq!(take(&mut session, read(7, number, 1, 512)), []);
    }
    executed(&take(&mut session, read(7, u32::MAX - 1, 1, 512)));
    executed(&take(&mut session, read(8, u32::MAX, 1, 512)));
    executed(&take(&mut session, read(9, 0, 1, 512)));
}

#[test]
fn commands_ahead_of_their_turn_wait_with_their_data() {
    let mut session = session();
    assert_eq!(take(&mut session, write(8, 101, 1, 512, false, &[])), []);
    let data = data_out(8, RESERVED_TAG, 0, 0, &[5; 512], true);
    assert_eq!(take(&mut session, data), []);
    let actions = take(&mut session, read(7, 100, 1, 512));
    let [
        Action::Execute { task: 0, .. },
        Action::Execute { task: 1, data, .. },
    ] = &actions[..]
    else {
        panic!("both run, in order: {actions:?}");
    };
    assert_eq!(*data, vec![5; 512]);
}

#[test]
fn the_window_closes_by_what_is_outstanding_and_never_shrinks() {
    let mut session = session();
    let tasks: Vec<TaskId> = (0..WINDOW)
        .map(|index| executed(&take(&mut session, read(index, 100 + index, 1, 512))).0)
        .collect();
    assert_eq!(take(&mut session, read(50, 108, 1, 512)), []);
    let mut max = 107;
    for task in tasks {
        let actions = finish(&mut session, task, vec![0; 512].into());
        let now = sent(&actions)[0].u32_at(32);
        assert!(now > max, "{now} after {max}");
        max = now;
    }
    assert_eq!(max, 115);
}

fn management(function: u8, tag: u32, referenced: u32, referenced_number: u32) -> Pdu {
    let mut pdu = numbered(0x42, FINAL | function, tag, 104);
    pdu.put_u32(20, referenced);
    pdu.put_u32(32, referenced_number);
    pdu
}

fn management_response(actions: &[Action]) -> (u32, u8) {
    let pdu = sent(actions)[0];
    assert_eq!(pdu.opcode(), TargetOpcode::TaskManagement as u8);
    (pdu.task_tag(), pdu.header[2])
}

#[test]
fn an_abort_is_answered_when_the_command_has_ended_and_the_command_never() {
    let mut session = session();
    let (task, _) = executed(&take(&mut session, write(7, 100, 1, 512, true, &[0; 512])));
    assert_eq!(take(&mut session, management(1, 50, 7, 100)), []);
    let actions = finish(&mut session, task, Bytes::new());
    assert_eq!(actions.len(), 1);
    assert_eq!(management_response(&actions), (50, 0));
}

#[test]
fn an_abort_of_a_command_without_its_data_is_answered_at_once() {
    let mut session = session();
    take(&mut session, write(7, 100, 2, 1024, true, &[]));
    assert_eq!(
        management_response(&take(&mut session, management(1, 50, 7, 100))),
        (50, 0)
    );
    assert_eq!(
        take(&mut session, data_out(7, 0, 0, 0, &[0; 1024], true)),
        []
    );
}

#[test]
fn an_abort_of_an_unknown_command_depends_on_its_number() {
    let mut session = session();
    assert_eq!(
        management_response(&take(&mut session, management(1, 50, 7, 99))),
        (50, 1)
    );
    // In the window: the number counts as received, and the command is dropped if it comes.
    assert_eq!(
        management_response(&take(&mut session, management(1, 51, 7, 100))),
        (51, 0)
    );
    assert_eq!(take(&mut session, read(7, 100, 1, 512)), []);
    executed(&take(&mut session, read(8, 101, 1, 512)));
}

#[test]
fn a_reset_is_answered_after_own_commands_and_those_of_others() {
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 1, 512)));
    let actions = take(&mut session, management(5, 50, RESERVED_TAG, 0));
    let [Action::ResetUnit { ticket }] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(finish(&mut session, task, vec![0; 512].into()), []);
    session.reset_done(ticket);
    assert_eq!(management_response(&session.take_actions()), (50, 0));
}

#[test]
fn unsupported_functions_and_units_are_told_apart() {
    let mut session = session();
    assert_eq!(
        management_response(&take(&mut session, management(3, 1, 0, 0))),
        (1, 5)
    );
    assert_eq!(
        management_response(&take(&mut session, management(8, 2, 0, 0))),
        (2, 4)
    );
    assert_eq!(
        management_response(&take(&mut session, management(99, 3, 0, 0))),
        (3, 5)
    );
    let mut other_unit = management(5, 4, 0, 0);
    other_unit.header[9] = 1;
    assert_eq!(management_response(&take(&mut session, other_unit)), (4, 2));
}

#[test]
fn ordered_commands_wait_for_older_ones_and_hold_back_younger_ones() {
    let mut session = session();
    let (first, _) = executed(&take(&mut session, read(1, 100, 1, 512)));
    let mut ordered = read(2, 101, 1, 512);
    ordered.header[1] = 0xc2;
    assert_eq!(take(&mut session, ordered), []);
    assert_eq!(take(&mut session, read(3, 102, 1, 512)), []);
    let mut head = read(4, 103, 1, 512);
    head.header[1] = 0xc3;
    let (head, _) = executed(&take(&mut session, head));
    finish(&mut session, head, vec![0; 512].into());
    let actions = finish(&mut session, first, vec![0; 512].into());
    let [Action::Send(_), Action::Execute { task: second, .. }] = actions[..] else {
        panic!("{actions:?}");
    };
    let actions = finish(&mut session, second, vec![0; 512].into());
    assert!(matches!(
        actions[..],
        [Action::Send(_), Action::Execute { .. }]
    ));
}

#[test]
fn a_logout_is_answered_after_the_commands_have_ended() {
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 1, 512)));
    assert_eq!(take(&mut session, numbered(6, 0x80, 9, 101)), []);
    let actions = finish(&mut session, task, vec![0; 512].into());
    let [Action::Send(response), Action::Close] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (response.opcode(), response.header[2]),
        (TargetOpcode::Logout as u8, 0)
    );
}

#[test]
fn nothing_is_taken_after_a_logout() {
    // One command is ahead of its turn when the logout comes, one comes while it waits.
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 1, 512)));
    assert_eq!(take(&mut session, read(8, 102, 1, 512)), []);
    assert_eq!(take(&mut session, numbered(6, 0x80, 9, 101)), []);
    assert_eq!(take(&mut session, read(10, 103, 1, 512)), []);
    assert_eq!(take(&mut session, numbered(0x40, 0x80, 11, 104)), []);
    let actions = finish(&mut session, task, vec![0; 512].into());
    let [Action::Send(response), Action::Close] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(response.opcode(), TargetOpcode::Logout as u8);
    assert_eq!(session.outstanding(), 0);
}

#[test]
fn nothing_is_sent_after_the_answer_to_a_logout() {
    let mut session = session();
    let actions = take(&mut session, management(5, 50, RESERVED_TAG, 0));
    let [Action::ResetUnit { ticket }] = actions[..] else {
        panic!("{actions:?}")
    };
    let actions = take(&mut session, numbered(6, 0x80, 9, 100));
    assert!(matches!(actions[..], [Action::Send(_), Action::Close]));
    session.reset_done(ticket);
    assert_eq!(session.take_actions(), []);
}

#[test]
fn other_sessions_learn_when_the_commands_have_drained() {
    let mut session = session();
    let (task, _) = executed(&take(&mut session, read(7, 100, 1, 512)));
    session.abort_for_others(33);
    assert_eq!(session.take_actions(), []);
    assert_eq!(
        finish(&mut session, task, vec![0; 512].into()),
        [Action::Drained { ticket: 33 }]
    );
}

#[test]
fn solicited_data_is_bounded_and_waits_in_order() {
    let mut session = session_from(100, &[("MaxBurstLength", "16776192")]);
    let mut asked = Vec::new();
    for index in 0..WINDOW {
        // 8192 blocks: 4 MiB each.
        let mut pdu = write(index, 100 + index, 0, 4 << 20, true, &[]);
        pdu.header[39] = 0x20;
        asked.push(sent(&take(&mut session, pdu)).len());
    }
    assert_eq!(asked, [1, 1, 1, 1, 0, 0, 0, 0]);
    let abort = management(1, 50, 0, 100);
    let actions = take(&mut session, abort);
    let tags: Vec<(u8, u32)> = sent(&actions)
        .iter()
        .map(|pdu| (pdu.opcode(), pdu.task_tag()))
        .collect();
    let r2t = TargetOpcode::ReadyToTransfer as u8;
    assert_eq!(tags, [(TargetOpcode::TaskManagement as u8, 50), (r2t, 4)]);
}

#[test]
fn long_text_comes_in_parts() {
    let mut session = session_from(
        100,
        &[
            ("SessionType", "Discovery"),
            ("MaxRecvDataSegmentLength", "1024"),
        ],
    );
    let mut request = numbered(4, FINAL, 1, 100);
    request.put_u32(20, RESERVED_TAG);
    request.data = Bytes::from_static(b"SendTargets=All\0");
    let mut answer = BytesMut::new();
    for number in 101.. {
        let actions = take(&mut session, request.clone());
        let response = sent(&actions)[0];
        assert!(response.data.len() <= 1024);
        answer.extend_from_slice(&response.data);
        if response.u32_at(20) == RESERVED_TAG {
            assert_eq!(response.header[1], FINAL);
            break;
        }
        assert_eq!(response.header[1], 0x40);
        request.put_u32(20, response.u32_at(20));
        request.put_u32(24, number);
        request.data = Bytes::new();
    }
    let pairs: Vec<_> = answer[..]
        .split(|byte| *byte == 0)
        .filter(|pair| pair.starts_with(b"TargetName="))
        .collect();
    assert_eq!(pairs.len(), 400);
}

#[test]
fn pings_and_unknown_opcodes_are_answered() {
    let mut session = session();
    let mut nop = numbered(0x40, FINAL, 9, 100);
    nop.data = Bytes::from_static(b"echo");
    let actions = take(&mut session, nop);
    assert_eq!(sent(&actions)[0].data, "echo");
    assert_eq!(
        take(&mut session, numbered(0x40, FINAL, RESERVED_TAG, 100)),
        []
    );
    let actions = take(&mut session, numbered(0x1f, 0, 9, 100));
    let reject = sent(&actions)[0];
    assert_eq!(
        (reject.opcode(), reject.header[2]),
        (TargetOpcode::Reject as u8, 5)
    );
    session.ping();
    let actions = session.take_actions();
    assert_ne!(sent(&actions)[0].u32_at(20), RESERVED_TAG);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn random_pdus_never_panic(
        pdus in proptest::collection::vec(
            (any::<[u8; 48]>(), 0_u8..8, 0_u32..4, 0_u32..12,
             proptest::collection::vec(any::<u8>(), 0..1500)),
            1..60,
        )
    ) {
        let mut session = session();
        for (mut header, opcode, tag, ahead, data) in pdus {
            header[0] = opcode | (header[0] & 0x40);
            if opcode == 1 {
                header[32] = if header[33] & 1 == 0 { 0x28 } else { 0x2a };
                header[33] = 0;
                header[20..23].fill(0);
                header[39] = 0;
                header[41] = 0;
            }
            let mut pdu = Pdu { header, additional: Bytes::new(), data: data.into() };
            pdu.put_u32(16, tag);
            pdu.put_u32(24, 98 + ahead);
            if session.receive(pdu, &TestFront).is_err() {
                break;
            }
            for action in session.take_actions() {
                match action {
                    Action::Execute { task, .. } => {
                        session.complete(task, Completion::good(Bytes::new()));
                    }
                    Action::ResetUnit { ticket } => session.reset_done(ticket),
                    Action::Send(pdu) => {
                        let frame = Frame::new(pdu, Digests::default());
                        let bytes: Vec<u8> =
                            frame.pieces().flat_map(|piece| piece.to_vec()).collect();
                        let decoder =
                            Decoder { digests: Digests::default(), data_bytes_max: 1024 };
                        let mut buffer = BytesMut::from(&bytes[..]);
                        prop_assert!(matches!(decoder.decode(&mut buffer), Ok(Some(_))));
                    }
                    Action::Drained { .. } | Action::DropTarget | Action::Close => {}
                }
            }
        }
    }
}
