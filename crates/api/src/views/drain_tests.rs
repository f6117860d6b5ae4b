//! What is said of nodes that are drained.

use std::rc::Rc;

use holdfast_config::state::{Admission, NodeStart};
use holdfast_runtime::Incarnation;

use super::super::tests::seen;
use super::*;
use crate::problem::ProblemKind;
use crate::testing::{applied, three_nodes};

/// A fourth node, so that one can be drained.
fn four_nodes() -> ClusterState {
    let (mut state, _) = three_nodes();
    let secret_hash = [4; 32];
    let changes = [
        Change::AddToken {
            secret_hash,
            expires_unix_ms: 10,
        },
        Change::Admit(Admission {
            secret_hash,
            uuid: [4; 16],
            link_address: "127.0.0.1:4".into(),
            now_unix_ms: 1,
        }),
        Change::NodeStarted(NodeStart {
            node: NodeId(4),
            uuid: [4; 16],
            incarnation: Incarnation(1),
            link_address: "127.0.0.1:4".into(),
            api_address: String::new(),
            portal_address: String::new(),
            version: "0.1.0".into(),
        }),
    ];
    for change in changes {
        applied(&mut state, change);
    }
    state
}

fn drain(state: &mut ClusterState, node: u64) {
    let (node, now_unix_ms) = (NodeId(node), 77);
    applied(state, Change::Drain { node, now_unix_ms });
    let volumes: Vec<_> = state.volumes.keys().copied().collect();
    for volume in volumes {
        state.volumes.update(volume, |record| record.open = true);
    }
}

fn share(seen: &mut Seen, by: u64, bytes: [u64; 2], bytes_per_s: Option<u64>) {
    let report = seen.heard.reports.get_mut(&NodeId(by)).expect("a report");
    report.drains.push(DrainShare {
        node: 3,
        copied_bytes: bytes[0],
        unfinished_bytes: bytes[1],
        bytes_per_s,
    });
}

/// What the leader does for it.
fn mend(state: &mut ClusterState) {
    let slices = state.all_to_mend(usize::MAX);
    applied(state, Change::Mend { slices });
}

#[test]
fn what_is_left_is_what_the_node_holds_without_what_others_have_copied() {
    let mut state = four_nodes();
    assert_eq!(status(&seen(state.clone()), NodeId(3)), None);
    drain(&mut state, 3);
    mend(&mut state);
    let mut seen = seen(state);
    let first = status(&seen, NodeId(3)).expect("drained");
    assert_eq!((first.since_unix_ms, first.copies_left), (77, 2));
    assert_eq!((first.bytes_left, first.ends_in_s), (None, None));
    assert_eq!(first.waits_for, [""; 0]);
    assert!(text(NodeId(3), &first).contains("not known yet"));

    let report = seen.heard.reports.get_mut(&NodeId(3)).expect("a report");
    report.copies_bytes = Some(1000 << 20);
    share(&mut seen, 1, [300 << 20, 100 << 20], Some(10 << 20));
    share(&mut seen, 2, [50 << 20, 50 << 20], None);
    let later = status(&seen, NodeId(3)).expect("drained");
    assert_eq!(later.bytes_left, Some(850 << 20));
    assert_eq!(later.bytes_moved, 350 << 20);
    assert_eq!(
        (later.bytes_per_s, later.ends_in_s),
        (Some(10 << 20), Some(85))
    );
    let text = text(NodeId(3), &later);
    assert!(text.contains("2 copies (850 MiB) are left"), "{text}");
    assert!(text.contains("10 MiB/s, 85 s to go"), "{text}");
}

#[test]
fn nothing_is_foretold_from_a_rate_of_nothing() {
    assert_eq!(ends_in_s(Some(9), Some(0)), None);
    assert_eq!(ends_in_s(None, Some(9)), None);
    assert_eq!(ends_in_s(Some(9), None), None);
    assert_eq!(ends_in_s(Some(10), Some(9)), Some(2));
    assert_eq!(ends_in_s(Some(0), Some(9)), Some(0));
}

#[test]
fn what_it_waits_for_names_the_nodes_and_what_to_do() {
    let mut state = four_nodes();
    drain(&mut state, 3);
    let down = Change::NodeDown {
        node: NodeId(4),
        incarnation: Incarnation(1),
    };
    // Before a copy was added there, and after.
    for (is_added, words) in [
        (false, "node 4 is down"),
        (true, "wait for their copies on node 4"),
    ] {
        let mut state = state.clone();
        if is_added {
            mend(&mut state);
        }
        applied(&mut state, down.clone());
        let drained = status(&seen(state), NodeId(3)).expect("drained");
        let [wait] = &drained.waits_for[..] else {
            panic!("{:?}", drained.waits_for);
        };
        assert!(wait.contains(words), "{wait}");
    }
    mend(&mut state);
    let mut seen = seen(state);
    let mut full = seen.heard.reports[&NodeId(1)].clone();
    (full.id, full.space) = (4, SpaceLevel::Critical);
    seen.heard.reports.insert(NodeId(4), full);
    let drained = status(&seen, NodeId(3)).expect("drained");
    assert!(
        drained.waits_for[0].contains("almost full"),
        "{:?}",
        drained.waits_for
    );
}

#[test]
fn a_plan_says_what_would_move_and_where_to_or_why_not() {
    let state = four_nodes();
    let mut seen = seen(state);
    let report = seen.heard.reports.get_mut(&NodeId(3)).expect("a report");
    report.copies_bytes = Some(7);
    let before = seen.state.clone();
    let would = plan(&seen, NodeId(3));
    assert_eq!((would.copies, would.bytes), (2, Some(7)));
    assert_eq!(would.refused, None);
    let targets: Vec<u64> = would.targets.iter().map(|target| target.node).collect();
    assert_eq!(targets, [1, 2, 4]);
    assert!(Rc::ptr_eq(&before, &seen.state));

    let (three, _) = three_nodes();
    seen.state = Rc::new(three);
    let refused = plan(&seen, NodeId(3)).refused.expect("three copies");
    assert_eq!(refused.kind, ProblemKind::Conflict);
    assert!(
        refused.detail.contains("2 nodes for the 3 copies"),
        "{refused}"
    );
}

#[test]
fn a_node_on_which_nothing_is_left_says_what_comes_next() {
    let mut state = four_nodes();
    drain(&mut state, 4);
    let seen = seen(state);
    let drained = status(&seen, NodeId(4)).expect("drained");
    assert!(drained.drained);
    assert_eq!((drained.copies_left, drained.ends_in_s), (0, Some(0)));
    assert!(text(NodeId(4), &drained).contains("holdfast node remove 4"));
}
