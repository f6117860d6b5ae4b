//! The rows of the table of cases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_config::state::Reconciled;
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_wire::Seq;
use holdfast_wire::replica::{CopyReport, OperationSeq, RecordHeader, StreamStart};

use super::super::waiting::WaitReason;
use super::core::{Agreement, Command, Event, Opening, Repair, Takeover, Witness};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const PATIENCE: Duration = Duration::from_millis(1000);

fn at(ms: u64) -> Instant {
    Instant::default() + Duration::from_millis(ms)
}

/// A takeover of slices 0 and 7, each with these copies in sync.
fn takeover(nodes: &[NodeId]) -> Takeover {
    let copies = BTreeMap::from([(0, nodes.to_vec()), (7, nodes.to_vec())]);
    Takeover::new(at(0), copies, PATIENCE, 100)
}

fn look(running: &[NodeId]) -> Event {
    Event::Look {
        running: running.iter().copied().collect(),
    }
}

fn header(view: u64, seq: u64) -> RecordHeader {
    RecordHeader {
        view,
        seq,
        blocks: 1,
        ..RecordHeader::default()
    }
}

fn report(slice: u32, stable: u64, tail: &[RecordHeader]) -> CopyReport {
    CopyReport {
        slice,
        complete: true,
        stable,
        last: stable + tail.len() as u64,
        tail: tail.to_vec(),
        remembered_from: stable + tail.len() as u64 + 1,
        operations: Vec::new(),
    }
}

fn witness(reports: Vec<CopyReport>) -> Option<Witness> {
    Some(Witness {
        incarnation: Incarnation(4),
        free_bytes: 9,
        copies: reports.into_iter().map(|copy| (copy.slice, copy)).collect(),
    })
}

/// A node whose copies of both slices are idle at this position.
fn idle(node: NodeId, stable: u64) -> Event {
    let reports = vec![report(0, stable, &[]), report(7, stable, &[])];
    Event::Fenced(node, witness(reports))
}

fn incomplete(node: NodeId) -> Event {
    let mut reports = vec![report(0, 5, &[]), report(7, 5, &[])];
    for copy in &mut reports {
        copy.complete = false;
    }
    Event::Fenced(node, witness(reports))
}

/// What a list of commands comes to.
#[derive(Debug, Default)]
struct Wanted {
    fences: BTreeMap<NodeId, Vec<u32>>,
    begins: BTreeMap<NodeId, Vec<StreamStart>>,
    repairs: Vec<Repair>,
    waits: Vec<WaitReason>,
    proposed: Option<Reconciled>,
    looks_again: bool,
    restarts: Option<WaitReason>,
    closes: bool,
    opens: Option<Opening>,
}

fn wanted(commands: Vec<Command>) -> Wanted {
    let mut wanted = Wanted::default();
    for command in commands {
        match command {
            Command::Fence(node, slices) => {
                assert!(wanted.fences.insert(node, slices).is_none());
            }
            Command::Begin(node, starts) => {
                wanted.begins.entry(node).or_default().extend(starts);
            }
            Command::Repair(repair) => wanted.repairs.push(repair),
            Command::Propose(reconciled) => wanted.proposed = Some(reconciled),
            Command::Wait(reason) => wanted.waits.push(reason),
            Command::LookAgain => wanted.looks_again = true,
            Command::Restart(why) => wanted.restarts = Some(why),
            Command::Close => wanted.closes = true,
            Command::Open(opening) => wanted.opens = Some(opening),
        }
    }
    wanted
}

/// Every stream that was asked for begins.
fn begun(begins: &BTreeMap<NodeId, Vec<StreamStart>>) -> Vec<Event> {
    let events = begins.iter().map(|(node, asked)| Event::Begun {
        node: *node,
        asked: asked.clone(),
        done: asked.iter().map(|start| start.slice).collect(),
    });
    events.collect()
}

/// A takeover whose copies are about to be made identical.
fn settling(nodes: &[NodeId], events: Vec<Event>) -> (Takeover, Wanted) {
    let mut takeover = takeover(nodes);
    let fenced = wanted(takeover.handle(at(1), look(nodes)));
    assert_eq!(fenced.fences.len(), nodes.len());
    let mut last = Wanted::default();
    for event in events {
        assert!(last.begins.is_empty(), "settled too early");
        last = wanted(takeover.handle(at(2), event));
    }
    (takeover, last)
}

#[test]
fn each_running_node_is_fenced_once_for_all_its_slices() {
    let mut takeover = takeover(&[A, B, C]);
    let first = wanted(takeover.handle(at(1), look(&[A, B])));
    assert_eq!(
        first.fences,
        BTreeMap::from([(A, vec![0, 7]), (B, vec![0, 7])])
    );
    assert_eq!(first.waits, [WaitReason::Fence(BTreeSet::from([A, B]))]);
    assert!(first.looks_again);
    let again = wanted(takeover.handle(at(60), look(&[A, B])));
    assert!(again.fences.is_empty(), "they are being asked");
    let more = wanted(takeover.handle(at(120), look(&[A, B, C])));
    assert_eq!(more.fences, BTreeMap::from([(C, vec![0, 7])]));
}

#[test]
fn a_fence_without_an_answer_is_asked_again() {
    let mut takeover = takeover(&[A, B]);
    takeover.handle(at(1), look(&[A, B]));
    takeover.handle(at(2), Event::Fenced(B, None));
    let again = wanted(takeover.handle(at(60), look(&[A, B])));
    assert_eq!(again.fences.keys().copied().collect::<Vec<_>>(), [B]);
}

#[test]
fn after_patience_a_node_without_an_answer_is_left_out_if_every_slice_has_a_copy_without_it() {
    let mut takeover = takeover(&[A, B]);
    takeover.handle(at(1), look(&[A, B]));
    takeover.handle(at(2), idle(A, 5));
    let waits = wanted(takeover.handle(at(999), look(&[A, B])));
    assert!(waits.looks_again && waits.begins.is_empty());
    let settles = wanted(takeover.handle(at(1000), look(&[A, B])));
    assert_eq!(settles.begins.keys().copied().collect::<Vec<_>>(), [A]);
    let late = takeover.handle(at(1001), idle(B, 5));
    assert!(late.is_empty(), "it is stale once the volume is open");
}

#[test]
fn without_a_complete_copy_it_waits_beyond_all_patience() {
    let mut takeover = takeover(&[A, B]);
    takeover.handle(at(1), look(&[A]));
    assert!(takeover.handle(at(2), incomplete(A)).is_empty());
    let waits = wanted(takeover.handle(at(60_000), look(&[A])));
    assert_eq!(waits.waits, [WaitReason::CompleteCopy]);
    assert!(waits.looks_again);
    let back = wanted(takeover.handle(at(60_001), look(&[A, B])));
    assert_eq!(back.fences.keys().copied().collect::<Vec<_>>(), [B]);
    let settles = wanted(takeover.handle(at(60_002), idle(B, 5)));
    assert_eq!(settles.begins.keys().copied().collect::<Vec<_>>(), [B]);
}

#[test]
fn an_incomplete_copy_is_left_out() {
    let (_, settles) = settling(&[A, B], vec![incomplete(A), idle(B, 5)]);
    assert_eq!(settles.begins.keys().copied().collect::<Vec<_>>(), [B]);
    assert!(settles.repairs.is_empty());
}

#[test]
fn idle_copies_begin_their_streams_with_one_message_to_each_node() {
    let (mut takeover, settles) = settling(&[A, B], vec![idle(A, 5), idle(B, 5)]);
    let start = |slice, session| StreamStart {
        slice,
        session,
        next: 6,
    };
    let begins = BTreeMap::from([
        (A, vec![start(0, 101), start(7, 103)]),
        (B, vec![start(0, 102), start(7, 104)]),
    ]);
    assert_eq!(settles.begins, begins);
    let mut last = Wanted::default();
    for event in begun(&settles.begins) {
        assert!(last.proposed.is_none());
        last = wanted(takeover.handle(at(3), event));
    }
    let reconciled = Reconciled {
        slices: vec![vec![A, B], vec![A, B]],
        incarnations: vec![(A, Incarnation(4)), (B, Incarnation(4))],
    };
    assert_eq!(last.proposed, Some(reconciled));
    let opened = wanted(takeover.handle(at(4), Event::Agreed(Agreement::Done)));
    let opening = opened.opens.expect("agreed");
    assert_eq!(opening.present[&B], (Incarnation(4), 9));
    let slice = &opening.slices[&7];
    assert_eq!(slice.last, Seq(5));
    assert_eq!(slice.sessions, BTreeMap::from([(A, 103), (B, 104)]));
    assert_eq!(slice.told, BTreeSet::from([A, B]), "they need not be told");
    assert_eq!(takeover.last_session(), 104);
}

#[test]
fn a_copy_that_lacks_records_of_the_union_gets_them_and_one_with_more_keeps_them() {
    let tail = [header(3, 6), header(3, 7)];
    let behind = vec![report(0, 5, &tail[..1]), report(7, 5, &[])];
    let ahead = vec![report(0, 5, &tail), report(7, 5, &[])];
    let events = vec![
        Event::Fenced(A, witness(behind)),
        Event::Fenced(B, witness(ahead)),
    ];
    let (mut takeover, settles) = settling(&[A, B], events);
    let repair = Repair {
        node: A,
        slice: 0,
        session: 101,
        keep_through: Seq(6),
        lacks: vec![(header(3, 7), vec![B])],
    };
    assert_eq!(settles.repairs, std::slice::from_ref(&repair));
    let slice_0: Vec<u64> = settles.begins[&B].iter().map(|start| start.next).collect();
    assert_eq!(slice_0, [8, 6]);
    for event in begun(&settles.begins) {
        assert!(takeover.handle(at(3), event).is_empty());
    }
    let proposed = wanted(takeover.handle(at(4), Event::Repaired(repair, true)));
    assert_eq!(proposed.proposed.expect("all is done").slices[0], [A, B]);
    let opened = wanted(takeover.handle(at(5), Event::Agreed(Agreement::Done)));
    let opening = opened.opens.expect("agreed");
    assert_eq!(opening.slices[&0].last, Seq(7));
    assert!(
        opening.slices[&0].told.is_empty(),
        "nothing of it was stable"
    );
}

#[test]
fn a_position_nobody_holds_ends_the_union() {
    let hole = vec![report(0, 5, &[header(3, 7)]), report(7, 5, &[])];
    let (_, settles) = settling(&[A], vec![Event::Fenced(A, witness(hole))]);
    assert_eq!(settles.begins[&A][0].next, 6, "what follows is dropped");
}

#[test]
fn a_copy_that_lacks_what_was_stable_is_left_out() {
    let mut behind = report(0, 5, &[]);
    behind.last = 3;
    behind.stable = 3;
    let events = vec![
        Event::Fenced(A, witness(vec![behind, report(7, 5, &[])])),
        idle(B, 5),
    ];
    let (_, settles) = settling(&[A, B], events);
    let slices: Vec<u32> = settles.begins[&A].iter().map(|start| start.slice).collect();
    assert_eq!(slices, [7]);
}

#[test]
fn a_copy_that_is_not_set_up_is_left_out_if_another_one_is() {
    let (mut takeover, settles) = settling(&[A, B], vec![idle(A, 5), idle(B, 5)]);
    let mut events = begun(&settles.begins);
    let Event::Begun { done, .. } = &mut events[0] else {
        panic!("streams begin");
    };
    done.remove(&7);
    takeover.handle(at(3), events.remove(0));
    let proposed = wanted(takeover.handle(at(3), events.remove(0)));
    let slices = proposed.proposed.expect("each slice has one").slices;
    assert_eq!(slices, [vec![A, B], vec![B]]);
}

#[test]
fn without_any_copy_that_is_set_up_all_begins_again() {
    let (mut takeover, settles) = settling(&[A], vec![idle(A, 5)]);
    let nothing = Event::Begun {
        node: A,
        asked: settles.begins[&A].clone(),
        done: BTreeSet::from([0]),
    };
    let restarted = wanted(takeover.handle(at(3), nothing));
    assert_eq!(restarted.restarts, Some(WaitReason::CopyUnderRepair));
    assert!(restarted.proposed.is_none());
}

fn agreed(agreement: Agreement) -> Wanted {
    let (mut takeover, settles) = settling(&[A], vec![idle(A, 5)]);
    for event in begun(&settles.begins) {
        takeover.handle(at(3), event);
    }
    wanted(takeover.handle(at(4), Event::Agreed(agreement)))
}

#[test]
fn an_opening_that_names_a_restarted_copy_begins_again() {
    let restarted = agreed(Agreement::RestartedCopy);
    assert_eq!(restarted.restarts, Some(WaitReason::RestartedCopy));
    assert!(restarted.opens.is_none());
}

#[test]
fn an_opening_that_is_refused_or_unknown_ends_the_office() {
    let over = agreed(Agreement::Over);
    assert!(over.closes && over.opens.is_none());
}

#[test]
fn a_volume_without_any_copy_to_ask_does_not_open() {
    let mut takeover = takeover(&[A]);
    let waits = wanted(takeover.handle(at(5_000), look(&[])));
    assert_eq!(waits.waits, [WaitReason::CompleteCopy]);
    assert!(waits.begins.is_empty() && waits.proposed.is_none());
}

#[test]
fn what_earlier_owners_ran_is_remembered_once_with_its_position() {
    let operation = OperationSeq {
        origin: 7,
        operation: 3,
        seq: 5,
        view: 2,
    };
    let mut reports = vec![report(0, 5, &[header(3, 6)]), report(7, 5, &[])];
    reports[0].operations.push(operation);
    let events = vec![
        Event::Fenced(A, witness(reports.clone())),
        Event::Fenced(B, witness(reports)),
    ];
    let (mut takeover, settles) = settling(&[A, B], events);
    for event in begun(&settles.begins) {
        takeover.handle(at(3), event);
    }
    let opened = wanted(takeover.handle(at(4), Event::Agreed(Agreement::Done)));
    let operations = &opened.opens.expect("agreed").slices[&0].operations;
    let positions: Vec<u64> = operations.iter().map(|(_, _, seq)| seq.0).collect();
    assert_eq!(positions, [5, 6]);
}

#[test]
fn many_streams_of_a_node_begin_with_bounded_messages() {
    let copies = (0..1200).map(|slice| (slice, vec![A])).collect();
    let mut takeover = Takeover::new(at(0), copies, PATIENCE, 0);
    takeover.handle(at(1), look(&[A]));
    let reports = (0..1200).map(|slice| report(slice, 5, &[])).collect();
    let commands = takeover.handle(at(2), Event::Fenced(A, witness(reports)));
    let sizes: Vec<usize> = commands
        .iter()
        .filter_map(|command| match command {
            Command::Begin(_, starts) => Some(starts.len()),
            Command::Fence(..)
            | Command::Repair(_)
            | Command::Propose(_)
            | Command::Wait(_)
            | Command::LookAgain
            | Command::Restart(_)
            | Command::Close
            | Command::Open(_) => None,
        })
        .collect();
    assert_eq!(sizes, [512, 512, 176]);
}
