//! Nodes that are taken out for good.

use super::mending::{mend, mend_some};
use super::*;

fn evict(state: &mut ClusterState, node: u64) -> Outcome {
    let outcome = state.apply(Change::Evict { node: NodeId(node) });
    state.check();
    mend(state);
    outcome
}

/// Takes the copies of a node out of all in-sync sets, as the owner does.
fn remove_copies(state: &mut ClusterState, node: NodeId) {
    let record = &state.volumes[&VolumeId(1)];
    let (view, slices) = (record.view, (0..record.slices.len() as u32).collect());
    let removal = Change::RemoveCopies {
        volume: VolumeId(1),
        view,
        slices,
        node,
    };
    assert_eq!(state.apply(removal), Outcome::Done);
}

fn copies_on(state: &ClusterState, node: NodeId) -> usize {
    let slices = &state.volumes[&VolumeId(1)].slices;
    slices.held_by(node).copies as usize
}

/// Node 5 is down, and not the owner; the volume is open.
fn with_node_5_down() -> ClusterState {
    let mut state = cluster();
    state.apply(down(NodeId(5)));
    open(&mut state);
    assert!(copies_on(&state, NodeId(5)) > 0);
    state
}

#[test]
fn copies_of_an_evicted_node_move_to_nodes_that_have_none_of_the_slice() {
    let mut state = with_node_5_down();
    assert_eq!(evict(&mut state, 5), Outcome::Done);
    assert_eq!(copies_on(&state, NodeId(5)), 0);
    for slice in state.volumes[&VolumeId(1)].slices.values() {
        let mut nodes: Vec<NodeId> = slice.copies().map(|copy| copy.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!(nodes.len(), 3, "{slice:?}");
    }
    assert_eq!(state.members().count(), 4);
    assert_eq!(evict(&mut state, 5), Outcome::Done, "asked again");
    let refused = Outcome::Refused(Refusal::Evicted(NodeId(5)));
    assert_eq!(state.apply(start(5, 2)), refused);
}

#[test]
fn a_copy_in_sync_moves_only_after_its_owner_has_taken_it_out() {
    let mut state = cluster();
    open(&mut state);
    state.apply(down(NodeId(5)));
    let before = copies_on(&state, NodeId(5));
    assert_eq!(evict(&mut state, 5), Outcome::Done);
    if !state.volumes[&VolumeId(1)].open {
        // It was the owner: the next one reconciles without it.
        open(&mut state);
    } else {
        assert_eq!(copies_on(&state, NodeId(5)), before);
        remove_copies(&mut state, NodeId(5));
    }
    assert_eq!(copies_on(&state, NodeId(5)), 0);
}

#[test]
fn a_copy_without_another_place_waits_for_a_node() {
    let mut state = with_node_5_down();
    for node in [5, 4, 3] {
        state.apply(down(NodeId(node)));
        if !state.volumes[&VolumeId(1)].open {
            open(&mut state);
        }
        remove_copies(&mut state, NodeId(node));
        assert_eq!(evict(&mut state, node), Outcome::Done);
        bring_up_to_date(&mut state);
    }
    let left = copies_on(&state, NodeId(3));
    assert_eq!(left, 4, "two nodes cannot have three copies of a slice");
    let secret_hash = [9; 32];
    state.apply(Change::AddToken {
        secret_hash,
        expires_unix_ms: 10,
    });
    let admission = Admission {
        secret_hash,
        uuid: [6; 16],
        link_address: String::new(),
        now_unix_ms: 5,
    };
    assert_eq!(
        state.apply(Change::Admit(admission)),
        Outcome::Admitted(NodeId(6)),
        "a number is not given twice"
    );
    assert!(state.has_to_mend(), "and there is no node for it");
    assert_eq!(state.apply(start(6, 1)), Outcome::Done);
    assert_eq!(mend(&mut state), [4]);
    assert_eq!(copies_on(&state, NodeId(6)), left);
    assert!(!state.has_to_mend());
}

#[test]
fn a_large_eviction_goes_on_in_bounded_parts_also_for_who_reads_the_state_in_between() {
    let mut state = cluster();
    let volume = VolumeId(2);
    state.apply(Change::CreateVolume(VolumeSpec {
        size_bytes: 4 << 30,
        ..spec("large")
    }));
    let on_5 = |state: &ClusterState| state.volumes[&volume].slices.held_by(NodeId(5)).copies;
    let held = on_5(&state);
    assert!(held > 512, "{held}");
    state.apply(down(NodeId(5)));
    state.volumes.update(volume, |record| {
        for (index, slice) in record.slices.clone().iter() {
            let stale = slice.with_status(NodeId(5), CopyStatus::Stale);
            record.slices.set(index, stale.unwrap_or(slice.clone()));
        }
    });
    assert_eq!(
        state.apply(Change::Evict { node: NodeId(5) }),
        Outcome::Done
    );
    assert_eq!(on_5(&state), held, "the change itself only marks the node");
    assert_eq!(mend_some(&mut state), 512);
    assert_eq!(on_5(&state), held - 512);
    let mut read = read_back(&state);
    assert!(read.has_to_mend());
    let parts = mend(&mut state);
    assert_eq!(mend(&mut read), parts);
    assert_eq!(read, state);
    assert_eq!(on_5(&state), 0);
}

/// Makes every copy on a running node one in sync.
fn bring_up_to_date(state: &mut ClusterState) {
    let running: Vec<NodeId> = (1..=6)
        .map(NodeId)
        .filter(|node| state.running_incarnation(*node).is_some())
        .collect();
    state.volumes.update(VolumeId(1), |volume| {
        for (index, slice) in volume.slices.clone().iter() {
            let mut slice = slice.clone();
            for node in &running {
                slice = slice
                    .with_status(*node, CopyStatus::InSync)
                    .unwrap_or(slice);
            }
            volume.slices.set(index, slice);
        }
    });
}

#[test]
fn a_node_that_runs_or_has_the_last_copy_is_not_evicted() {
    let mut state = cluster();
    open(&mut state);
    let before = state.clone();
    let runs = Outcome::Refused(Refusal::NodeRuns(NodeId(3)));
    assert_eq!(evict(&mut state, 3), runs);
    let unknown = Outcome::Refused(Refusal::NodeUnknown(NodeId(8)));
    assert_eq!(evict(&mut state, 8), unknown);
    assert_eq!(state, before);
    let nodes: Vec<NodeId> = state.volumes[&VolumeId(1)].slices[0].in_sync().collect();
    for node in &nodes[1..] {
        remove_copies(&mut state, *node);
    }
    state.apply(down(nodes[0]));
    let last = Outcome::Refused(Refusal::HoldsLastCopy {
        node: nodes[0],
        volume: "db".into(),
    });
    assert_eq!(evict(&mut state, nodes[0].0), last);
}

#[test]
fn a_disk_that_goes_on_failing_is_given_up_and_one_failure_is_not() {
    let mut state = cluster();
    open(&mut state);
    let node = NodeId(5);
    let failed = |incarnation, now_unix_ms| Change::DiskFailed {
        node,
        incarnation: Incarnation(incarnation),
        now_unix_ms,
    };
    let hour = 3_600_000;
    for (number, at) in [(1, 0), (2, hour), (3, hour + 10)] {
        assert_eq!(state.apply(failed(number, at)), Outcome::Done);
        assert_eq!(state.nodes[&node].status, NodeStatus::Down, "{number}");
        if !state.volumes[&VolumeId(1)].open {
            open(&mut state);
        }
        assert_eq!(state.apply(start(5, number + 1)), Outcome::Done);
    }
    let read = read_back(&state);
    assert_eq!(read.disk_failures[&node].len(), 2, "the first is long ago");
    let late = Outcome::Refused(Refusal::IncarnationStale(node));
    assert_eq!(state.apply(failed(3, hour + 20)), late);
    assert_eq!(state.apply(failed(4, hour + 20)), Outcome::Done);
    assert_eq!(state.nodes[&node].status, NodeStatus::Evicted);
    assert!(state.disk_failures.is_empty());
    state.check();
}

#[test]
fn the_last_copy_in_sync_on_a_node_that_was_not_evicted_stays() {
    let mut state = cluster();
    open(&mut state);
    let slice = |state: &ClusterState| state.volumes[&VolumeId(1)].slices.values().next().cloned();
    let nodes: Vec<NodeId> = slice(&state).expect("placed").in_sync().collect();
    let owner = state.volumes[&VolumeId(1)].owner.expect("up").node;
    let gone = *nodes.iter().find(|node| **node != owner).expect("three");
    state.apply(down(gone));
    assert_eq!(evict(&mut state, gone.0), Outcome::Done);
    let record = &state.volumes[&VolumeId(1)];
    let (volume, view) = (VolumeId(1), record.view);
    assert!(slice(&state).expect("placed").is_in_sync(gone), "by name");
    let others = nodes.iter().filter(|node| **node != gone);
    let outcomes: Vec<Outcome> = others
        .map(|node| {
            state.apply(Change::RemoveCopies {
                volume,
                view,
                slices: vec![0],
                node: *node,
            })
        })
        .collect();
    let last = Outcome::Refused(Refusal::LastCopy);
    assert_eq!(outcomes, [Outcome::Done, last]);
}
