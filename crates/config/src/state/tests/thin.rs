//! Volumes whose slices come with their first write.

use std::collections::BTreeSet;

use super::mending::mend;
use super::*;
use crate::state::Slices;
use crate::state::{PLACED_AT_ONCE_MAX, PROMOTED_AT_ONCE_MAX, STATE_BYTES_MAX};

const THIN: VolumeId = VolumeId(2);
const PIB: u64 = 1 << 50;

fn thin(size_bytes: u64) -> Change {
    Change::CreateThinVolume {
        spec: VolumeSpec {
            size_bytes,
            ..spec("thin")
        },
        front: FrontChange::default(),
    }
}

fn opened(state: &ClusterState) -> Change {
    let record = &state.volumes[&THIN];
    let slices = record.slices.values();
    Change::Opened {
        volume: THIN,
        view: record.view,
        reconciled: Reconciled {
            slices: slices.map(|slice| slice.in_sync().collect()).collect(),
            incarnations: starts(),
        },
    }
}

fn starts() -> Vec<(NodeId, Incarnation)> {
    (1..=5).map(|node| (NodeId(node), Incarnation(1))).collect()
}

/// Five nodes, and an open thin volume of 1 PiB in slices of 1 MiB.
fn with_thin() -> ClusterState {
    let mut state = cluster();
    assert_eq!(state.apply(thin(PIB)), Outcome::Created(THIN));
    let change = opened(&state);
    assert_eq!(state.apply(change), Outcome::Done);
    state
}

fn place(state: &ClusterState, slices: &[(u32, &[u64])]) -> Change {
    let slices = slices.iter().map(|(index, nodes)| PlacedSlice {
        index: *index,
        nodes: nodes.iter().copied().map(NodeId).collect(),
    });
    Change::PlaceSlices {
        volume: THIN,
        view: state.volumes[&THIN].view,
        slices: slices.collect(),
        incarnations: starts(),
    }
}

fn refused(state: &ClusterState, change: Change) -> Refusal {
    let mut changed = state.clone();
    let outcome = changed.apply(change);
    assert_eq!(&changed, state, "a refusal changes nothing");
    let Outcome::Refused(refusal) = outcome else {
        panic!("{outcome:?}");
    };
    refusal
}

#[test]
fn a_new_volume_has_its_anchor_and_nothing_else() {
    let mut state = cluster();
    assert_eq!(state.apply(thin(PIB)), Outcome::Created(THIN));
    let record = &state.volumes[&THIN];
    assert_eq!(record.slice_count(), 1 << 30);
    assert_eq!(
        (record.slices.len(), record.slices.last_index()),
        (1, Some(0))
    );
    assert_eq!(record.slices[0].in_sync().count(), 3);
    assert!(record.slices[0].is_in_sync(record.owner.expect("up").node));
    state.check();
    assert_eq!(read_back(&state), state);
    let too_large = Refusal::SizeInvalid(PIB + 4096);
    assert_eq!(refused(&state, thin(PIB + 4096)), too_large);
    assert_eq!(
        refused(&state, thin(PIB)),
        Refusal::NameTaken("thin".into())
    );
}

#[test]
fn changes_keep_their_numbers_in_the_log() {
    let state = with_thin();
    let volume = THIN;
    let resize = Change::ResizeVolume {
        volume,
        expected_bytes: None,
        size_bytes: 1,
    };
    let promote = Change::PromoteCopies {
        volume,
        view: holdfast_wire::View(1),
        node: NodeId(1),
        incarnation: Incarnation(1),
        slices: vec![],
    };
    for (number, change) in (24..).zip([thin(PIB), resize, place(&state, &[]), promote]) {
        let encoded = postcard::to_stdvec(&change).expect("plain data");
        assert_eq!(encoded[0], number, "{change:?}");
    }
}

#[test]
fn a_resized_volume_has_its_new_size_at_once_and_nothing_new_is_placed() {
    let mut state = cluster();
    state.apply(thin(4 << 20));
    let resize = |expected_bytes, size_bytes| Change::ResizeVolume {
        volume: THIN,
        expected_bytes,
        size_bytes,
    };
    let view = state.view;
    assert_eq!(state.apply(resize(Some(4 << 20), PIB)), Outcome::Done);
    assert_eq!(state.volumes[&THIN].size_bytes, PIB);
    assert_eq!((state.volumes[&THIN].slices.len(), state.view), (1, view));
    assert_eq!(
        state.apply(resize(None, PIB)),
        Outcome::Done,
        "it has that size"
    );
    let shrink = Refusal::CannotShrink {
        now_bytes: PIB,
        wanted_bytes: 1 << 20,
    };
    assert_eq!(refused(&state, resize(None, 1 << 20)), shrink);
    let seen = Refusal::SizeChanged {
        now_bytes: PIB,
        expected_bytes: 4 << 20,
    };
    assert_eq!(refused(&state, resize(Some(4 << 20), PIB)), seen);
    let large = refused(&state, resize(None, PIB + 4096));
    assert_eq!(large, Refusal::SizeInvalid(PIB + 4096));
    // One that grew as volumes used to is left to that.
    state.apply(grow(6 << 20));
    let other = Change::ResizeVolume {
        volume: VolumeId(1),
        expected_bytes: None,
        size_bytes: 8 << 20,
    };
    assert_eq!(refused(&state, other), Refusal::GrowsAlready(6 << 20));
}

#[test]
fn placed_slices_are_in_sync_on_the_nodes_named_and_touch_nothing_else() {
    let mut state = with_thin();
    let before = state.clone();
    let last = (1 << 30) - 1;
    let change = place(&state, &[(7, &[1, 2, 3]), (last, &[5, 4, 2])]);
    assert_eq!(state.apply(change.clone()), Outcome::Done);
    let slices = &state.volumes[&THIN].slices;
    assert_eq!(slices.len(), 3);
    let nodes: Vec<u64> = slices[last].in_sync().map(|node| node.0).collect();
    assert_eq!(nodes, [5, 4, 2]);
    assert_eq!(state.view, before.view);
    assert_eq!(state.volumes[&VolumeId(1)], before.volumes[&VolumeId(1)]);
    state.check();
    assert_eq!(read_back(&state), state);
    let placed = state.clone();
    assert_eq!(state.apply(change), Outcome::Done, "a repetition");
    assert_eq!(state, placed);
    let otherwise = place(&state, &[(8, &[1, 2, 3]), (7, &[1, 2, 4])]);
    assert_eq!(refused(&state, otherwise), Refusal::ViewStale);
}

#[test]
fn what_misses_copies_gets_stale_ones_on_nodes_that_are_up_before_those_that_are_down() {
    let mut state = with_thin();
    state.apply(down(NodeId(4)));
    if !state.volumes[&THIN].open {
        let change = opened(&state);
        assert_eq!(state.apply(change), Outcome::Done);
    }
    let change = place(&state, &[(1, &[2])]);
    assert_eq!(state.apply(change), Outcome::Done);
    let slice = state.volumes[&THIN].slices[1].clone();
    assert_eq!(slice.copies().len(), 3);
    assert_eq!(slice.in_sync().collect::<Vec<_>>(), [NodeId(2)]);
    assert_eq!(slice.status(NodeId(4)), None, "others are up");
    for node in [1, 5] {
        state.apply(down(NodeId(node)));
    }
    if !state.volumes[&THIN].open {
        let change = opened(&state);
        assert_eq!(state.apply(change), Outcome::Done);
    }
    let change = place(&state, &[(2, &[2])]);
    assert_eq!(state.apply(change), Outcome::Done);
    let slice = &state.volumes[&THIN].slices[2];
    assert_eq!(
        slice.status(NodeId(3)),
        Some(CopyStatus::Stale),
        "the only one up"
    );
    assert_eq!(slice.copies().len(), 3);
    state.check();
}

#[test]
fn a_placement_that_cannot_be_is_refused_whole() {
    let state = with_thin();
    let beyond = 1 << 30;
    for (slices, wrong) in [
        (&[(1, &[1, 2, 3][..]), (beyond, &[1, 2, 3])][..], beyond),
        (&[(1, &[1, 2, 3]), (2, &[])], 2),
        (&[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4])], 2),
        (&[(1, &[1, 2, 3]), (2, &[1, 2, 1])], 2),
        (&[(1, &[1, 2, 3]), (1, &[1, 2, 3])], 1),
    ] {
        let refusal = refused(&state, place(&state, slices));
        assert_eq!(refusal, Refusal::PlacementInvalid(wrong));
    }
    let unknown = refused(&state, place(&state, &[(1, &[1, 2, 9])]));
    assert_eq!(unknown, Refusal::IncarnationStale(NodeId(9)));
    let mut restarted = state.clone();
    restarted.apply(start(3, 2));
    if restarted.volumes[&THIN].open {
        let change = place(&restarted, &[(1, &[1, 2, 3])]);
        let refusal = refused(&restarted, change);
        assert_eq!(refusal, Refusal::IncarnationStale(NodeId(3)));
    }
    let mut stale = place(&state, &[(1, &[1, 2, 3])]);
    if let Change::PlaceSlices { view, .. } = &mut stale {
        view.0 -= 1;
    }
    assert_eq!(refused(&state, stale), Refusal::ViewStale);
    let mut closed = state.clone();
    closed.volumes.update(THIN, |record| record.open = false);
    let change = place(&closed, &[(1, &[1, 2, 3])]);
    assert_eq!(refused(&closed, change), Refusal::ViewStale);
    let many: Vec<(u32, &[u64])> = (0..=PLACED_AT_ONCE_MAX as u32)
        .map(|index| (index + 1, &[1, 2, 3][..]))
        .collect();
    let refusal = refused(&state, place(&state, &many));
    assert!(
        matches!(refusal, Refusal::TooManyAtOnce { .. }),
        "{refusal:?}"
    );
    let mut most = state.clone();
    let change = place(&state, &many[1..]);
    let bytes = postcard::to_stdvec(&change).expect("plain data").len();
    assert!(bytes < 256 << 10, "{bytes}");
    assert_eq!(most.apply(change), Outcome::Done);
}

#[test]
fn many_copies_are_promoted_together_or_not_at_all() {
    let mut state = with_thin();
    let change = place(&state, &[(1, &[1, 2]), (2, &[1, 2]), (3, &[3, 4])]);
    state.apply(change);
    let slices = &state.volumes[&THIN].slices;
    let stale = |index: u32| {
        let mut copies = slices[index].copies();
        copies
            .find(|copy| copy.status == CopyStatus::Stale)
            .map(|copy| copy.node)
    };
    let node = stale(1).expect("two of three");
    let others = [2, 3]
        .into_iter()
        .filter(|index| slices[*index].status(node).is_some());
    let named: Vec<u32> = [1].into_iter().chain(others).collect();
    let promote = |state: &ClusterState, incarnation, slices: Vec<u32>| Change::PromoteCopies {
        volume: THIN,
        view: state.volumes[&THIN].view,
        node,
        incarnation: Incarnation(incarnation),
        slices,
    };
    let with_unplaced = [&named[..], &[9]].concat();
    let refusal = refused(&state, promote(&state, 1, with_unplaced));
    assert_eq!(refusal, Refusal::ViewStale);
    let refusal = refused(&state, promote(&state, 2, named.clone()));
    assert_eq!(refusal, Refusal::IncarnationStale(node));
    let refusal = refused(
        &state,
        promote(&state, 1, vec![1; PROMOTED_AT_ONCE_MAX + 1]),
    );
    assert!(
        matches!(refusal, Refusal::TooManyAtOnce { .. }),
        "{refusal:?}"
    );
    let view = state.view;
    let change = promote(&state, 1, named.clone());
    assert_eq!(state.apply(change), Outcome::Done);
    assert!(state.view > view, "an in-sync set has changed");
    let slices = &state.volumes[&THIN].slices;
    assert!(named.iter().all(|index| slices[*index].is_in_sync(node)));
    state.check();
}

#[test]
fn wanted_nodes_are_those_that_are_up_and_not_excluded() {
    let mut state = with_thin();
    let none = BTreeSet::new();
    let wanted = state.wanted_nodes(THIN, 5, &none);
    assert_eq!(wanted.len(), 3);
    let first = BTreeSet::from([wanted[0]]);
    let others = state.wanted_nodes(THIN, 5, &first);
    assert!(others.len() == 3 && !others.contains(&wanted[0]));
    let away = (1..=4).map(NodeId).collect();
    assert_eq!(state.wanted_nodes(THIN, 5, &away), [NodeId(5)]);
    state.apply(down(wanted[1]));
    assert!(!state.wanted_nodes(THIN, 5, &none).contains(&wanted[1]));
    state.draining.insert(wanted[2], 0);
    assert!(!state.wanted_nodes(THIN, 5, &none).contains(&wanted[2]));
    let all_up = with_thin();
    let mut counts = std::collections::BTreeMap::new();
    for slice in 0..600 {
        for node in all_up.wanted_nodes(THIN, slice, &none) {
            *counts.entry(node).or_insert(0) += 1;
        }
    }
    assert_eq!(
        counts.into_values().collect::<Vec<_>>(),
        [360; 5],
        "balanced"
    );
    assert!(state.wanted_nodes(VolumeId(9), 0, &none).is_empty());
}

#[test]
fn a_takeover_of_a_sparse_volume_reconciles_what_is_placed_in_order() {
    let mut state = with_thin();
    let change = place(&state, &[(1_000, &[1, 2, 3]), (5, &[3, 4, 5])]);
    state.apply(change);
    let owner = state.volumes[&THIN].owner.expect("open").node;
    state.apply(down(owner));
    let mut change = opened(&state);
    let Change::Opened { reconciled, .. } = &mut change else {
        unreachable!("just made")
    };
    assert_eq!(reconciled.slices.len(), 3);
    for members in &mut reconciled.slices {
        members.retain(|node| *node != owner);
    }
    let dropped = reconciled.slices[2].pop().expect("a second copy");
    let mut short = change.clone();
    if let Change::Opened { reconciled, .. } = &mut short {
        reconciled.slices.pop();
    }
    assert_eq!(refused(&state, short), Refusal::ViewStale);
    assert_eq!(state.apply(change), Outcome::Done);
    let slices = &state.volumes[&THIN].slices;
    assert!(!slices[1_000].is_in_sync(dropped));
    assert!(slices.values().all(|slice| !slice.is_in_sync(owner)));
    assert_eq!(slices[5].copies().len(), 3, "stale ones stay listed");
    state.check();
}

#[test]
fn a_slice_with_too_few_copies_gets_the_rest_when_a_node_comes() {
    let mut state = with_thin();
    for node in [1, 2, 3] {
        state.apply(down(NodeId(node)));
        if state.volumes[&THIN].open {
            continue;
        }
        let change = opened(&state);
        assert_eq!(state.apply(change), Outcome::Done);
    }
    for node in [1, 2, 3] {
        let slices = state.volumes.iter().flat_map(|(id, record)| {
            let slices = record.slices.iter();
            let held = slices.filter(move |(_, slice)| slice.is_in_sync(NodeId(node)));
            held.map(|(index, _)| (*id, record.view, index))
        });
        for (volume, view, index) in slices.collect::<Vec<_>>() {
            state.apply(Change::RemoveCopies {
                volume,
                view,
                slices: vec![index],
                node: NodeId(node),
            });
        }
    }
    // The old volume goes, so that nobody is the last one to have anything.
    state.apply(Change::DeleteVolume {
        volume: VolumeId(1),
    });
    let evicted: Vec<u64> = (1..=3)
        .filter(|node| {
            let node = NodeId(*node);
            state.apply(Change::Evict { node }) == Outcome::Done
        })
        .collect();
    assert_eq!(evicted, [1, 2, 3], "two nodes are left");
    mend(&mut state);
    let change = place(&state, &[(9, &[4, 5])]);
    assert_eq!(state.apply(change), Outcome::Done);
    assert_eq!(state.volumes[&THIN].slices[9].copies().len(), 2);
    let read = read_back(&state);
    for mut state in [state, read] {
        state.apply(Change::AddToken {
            secret_hash: [66; 32],
            expires_unix_ms: 10,
        });
        let admission = Admission {
            secret_hash: [66; 32],
            uuid: [6; 16],
            link_address: String::new(),
            now_unix_ms: 5,
        };
        state.apply(Change::Admit(admission));
        assert_eq!(state.volumes[&THIN].slices[9].copies().len(), 2);
        state.apply(start(6, 1));
        mend(&mut state);
        let slices = &state.volumes[&THIN].slices;
        assert_eq!(slices[9].status(NodeId(6)), Some(CopyStatus::Stale));
        assert_eq!(
            slices[0].status(NodeId(6)),
            Some(CopyStatus::Stale),
            "it moved"
        );
        state.check();
    }
}

#[test]
fn a_full_state_takes_no_more_volumes_and_slices_and_all_other_changes() {
    let mut state = with_thin();
    // Most of it, at once: a name counts with its bytes.
    let mut large = state.volumes[&THIN].clone();
    large.slices = Slices::default();
    large.name = "n".repeat(STATE_BYTES_MAX as usize - (16 << 20));
    large.target_name = "large".into();
    state.volumes.insert(VolumeId(1_000), large);
    let mut next = 1;
    let full = loop {
        let many: Vec<(u32, &[u64])> = (next..next + PLACED_AT_ONCE_MAX as u32)
            .map(|index| (index, &[1, 2, 3][..]))
            .collect();
        next += PLACED_AT_ONCE_MAX as u32;
        let change = place(&state, &many);
        match state.apply(change) {
            Outcome::Done => {}
            Outcome::Refused(refusal) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(full, Refusal::StateFull { .. }), "{full:?}");
    let placed = state.volumes[&THIN].slices.len();
    assert_eq!(
        placed as u32,
        next - PLACED_AT_ONCE_MAX as u32,
        "a refusal places nothing"
    );
    let bytes: usize = state.pieces().map(|piece| piece.len()).sum();
    assert!(bytes as u64 <= STATE_BYTES_MAX + (64 << 10), "{bytes}");
    assert!(state.volumes[&THIN].slices.len() > 1_500_000);
    let volume = spec("one-more");
    let front = FrontChange::default();
    let change = Change::CreateThinVolume {
        spec: volume,
        front,
    };
    assert!(matches!(refused(&state, change), Refusal::StateFull { .. }));
    let again = place(&state, &[(1, &[1, 2, 3])]);
    assert_eq!(state.apply(again), Outcome::Done, "a repetition");
    let volume = THIN;
    assert_eq!(state.apply(Change::DeleteVolume { volume }), Outcome::Done);
    let volume = spec("one-more");
    let front = FrontChange::default();
    let change = Change::CreateThinVolume {
        spec: volume,
        front,
    };
    assert_eq!(
        state.apply(change),
        Outcome::Created(VolumeId(3)),
        "there is room"
    );
    state.check();
}

/// The form of an `Opened` that names what was left out.
fn opened_but(state: &ClusterState, change: &Change) -> Change {
    let Change::Opened {
        volume,
        view,
        reconciled,
    } = change
    else {
        panic!("not an opening: {change:?}");
    };
    Change::OpenedBut {
        volume: *volume,
        view: *view,
        slices: reconciled.slices.len() as u32,
        incarnations: reconciled.incarnations.clone(),
        left_out: reconciled.left_out(&state.volumes[volume].slices),
    }
}

/// A thin volume with so many used slices of three copies, about to be opened again.
fn taken_over(slices: u32) -> ClusterState {
    let mut state = with_thin();
    let mut next = 1;
    while next < slices {
        let end = slices.min(next + PLACED_AT_ONCE_MAX as u32);
        let nodes = [[1, 2, 3], [2, 3, 4], [5, 1, 2], [3, 4, 5]];
        let some: Vec<(u32, &[u64])> = (next..end)
            .map(|index| (index, &nodes[index as usize % 4][..]))
            .collect();
        let change = place(&state, &some);
        assert_eq!(state.apply(change), Outcome::Done);
        next = end;
    }
    let view = state.volumes[&THIN].view;
    let resign = Change::Resign { volume: THIN, view };
    assert_eq!(state.apply(resign), Outcome::Done);
    state
}

#[test]
fn an_opening_by_what_was_left_out_does_what_one_by_a_list_does() {
    let state = taken_over(400);
    let whole = opened(&state);
    let keeps: [&dyn Fn(u32, u64) -> bool; 7] = [
        &|_, _| true,
        &|_, node| node != 2,
        &|index, node| node != 2 || index % 3 != 0,
        &|index, node| node != 2 || !(100..200).contains(&index),
        &|index, node| node % 5 != u64::from(index % 5),
        &|index, node| node > 2 || index < 7,
        &|index, _| index != 399,
    ];
    for (case, keeps) in keeps.into_iter().enumerate() {
        for unknown in [None, Some(3)] {
            let mut listed = whole.clone();
            if let Change::Opened { reconciled, .. } = &mut listed {
                for (members, index) in reconciled.slices.iter_mut().zip(0..) {
                    members.retain(|node| keeps(index, node.0));
                }
                let known = |(node, _): &(NodeId, Incarnation)| Some(node.0) != unknown;
                reconciled.incarnations.retain(known);
            }
            let short = opened_but(&state, &listed);
            let (mut first, mut second) = (state.clone(), state.clone());
            assert_eq!(first.apply(listed), second.apply(short), "case {case}");
            assert!(first == second, "case {case}");
            second.check();
        }
    }
}

#[test]
fn a_takeover_of_a_volume_with_very_many_slices_is_agreed_on_in_few_bytes() {
    let state = taken_over(350_000);
    let mut listed = opened(&state);
    let encoded = postcard::to_stdvec(&opened_but(&state, &listed)).expect("plain data");
    assert_eq!(encoded[0], 32, "changes keep their numbers in the log");
    assert!(postcard::to_stdvec(&listed).expect("plain data").len() > 1 << 20);
    if let Change::Opened { reconciled, .. } = &mut listed {
        reconciled.incarnations.retain(|(node, _)| node.0 != 1);
        for (members, index) in reconciled.slices.iter_mut().zip(0..) {
            members.retain(|node| node.0 != 1 && (node.0 != 4 || index > 9));
        }
    }
    for change in [
        opened_but(&state, &listed),
        opened_but(&state, &opened(&state)),
    ] {
        let bytes = postcard::to_stdvec(&change).expect("plain data").len();
        assert!(bytes < 100, "{bytes}");
        let mut state = state.clone();
        assert_eq!(state.apply(change), Outcome::Done);
        assert!(state.volumes[&THIN].open);
    }
}

#[test]
fn a_copy_whose_node_has_restarted_since_it_was_reconciled_does_not_count() {
    let mut state = taken_over(40);
    let change = opened_but(&state, &opened(&state));
    let owner = state.volumes[&THIN].owner.expect("nodes are up").node;
    let node = (1..=5).map(NodeId).find(|node| *node != owner);
    let node = node.expect("five nodes");
    assert_eq!(state.apply(start(node.0, 2)), Outcome::Done);
    assert!(state.volumes[&THIN].slices.held_by(node).in_sync > 0);
    assert_eq!(state.apply(change), Outcome::Done);
    state.check();
    let held = state.volumes[&THIN].slices.held_by(node);
    assert!(held.copies > 0 && held.in_sync == 0, "{held:?}");
    let others = state.volumes[&THIN].slices.holders().iter();
    let mut others = others.filter(|held| held.node != node);
    assert!(others.all(|held| held.in_sync == held.copies));
}

#[test]
fn an_opening_that_counts_other_slices_or_is_late_is_refused() {
    let state = taken_over(10);
    let good = opened_but(&state, &opened(&state));
    let mut opened_already = state.clone();
    assert_eq!(opened_already.apply(good.clone()), Outcome::Done);
    assert_eq!(refused(&opened_already, good.clone()), Refusal::ViewStale);
    let mut fewer = good.clone();
    if let Change::OpenedBut { slices, .. } = &mut fewer {
        *slices -= 1;
    }
    assert_eq!(refused(&state, fewer), Refusal::ViewStale);
    let mut nobody = good;
    if let Change::OpenedBut { incarnations, .. } = &mut nobody {
        incarnations.clear();
    }
    assert_eq!(refused(&state, nobody), Refusal::LastCopy);
}
