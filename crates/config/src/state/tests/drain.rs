//! Draining a node, row by row of `placement::drain`.

use super::mending::{mend, mend_some};
use super::*;

const DB: VolumeId = VolumeId(1);

fn drain(node: u64) -> Change {
    Change::Drain {
        node: NodeId(node),
        now_unix_ms: 77,
    }
}

fn cancel(node: u64) -> Change {
    Change::CancelDrain { node: NodeId(node) }
}

fn remove(node: u64) -> Change {
    Change::RemoveNode { node: NodeId(node) }
}

/// The slices that have a copy on a node, with what it counts for.
fn on(state: &ClusterState, node: u64) -> Vec<(u32, CopyStatus)> {
    let slices = state.volumes[&DB].slices.iter();
    let held = slices.filter_map(|(index, slice)| Some((index, slice.status(NodeId(node))?)));
    held.collect()
}

/// How many slices are changed when the leader does all that there is to do.
fn go_on(state: &mut ClusterState) -> u32 {
    mend(state).into_iter().sum()
}

/// What an owner does once the stale copies on nodes that run are up to date.
fn promote_all(state: &mut ClusterState) {
    let record = &state.volumes[&DB];
    let view = record.view;
    for node in 1..=6 {
        let Some(incarnation) = state.running_incarnation(NodeId(node)) else {
            continue;
        };
        let stale = on(state, node).into_iter();
        let stale = stale.filter(|(_, status)| *status == CopyStatus::Stale);
        let slices = stale.map(|(index, _)| index).collect();
        let change = Change::PromoteCopies {
            volume: DB,
            view,
            node: NodeId(node),
            incarnation,
            slices,
        };
        assert_eq!(state.apply(change), Outcome::Done);
        state.check();
    }
}

/// An open volume of which node 5 has copies and is not the owner.
fn drained(node: u64) -> ClusterState {
    let mut state = cluster();
    open(&mut state);
    assert_eq!(state.apply(drain(node)), Outcome::Done);
    assert_eq!(state.draining[&NodeId(node)], 77);
    if !state.volumes[&DB].open {
        open(&mut state);
    }
    state
}

/// Node 5 is drained while two of the other four are down, and all is done that can be.
fn drained_without_room() -> ClusterState {
    let mut state = drained(5);
    for node in [2, 3] {
        state.apply(down(NodeId(node)));
        if !state.volumes[&DB].open {
            open(&mut state);
        }
    }
    go_on(&mut state);
    state
}

#[test]
fn changes_of_a_drain_keep_their_numbers_in_the_log() {
    let changes = [
        drain(1),
        cancel(1),
        remove(1),
        Change::Mend {
            slices: vec![(DB, 0)],
        },
    ];
    for (number, change) in (28..).zip(changes) {
        let encoded = postcard::to_stdvec(&change).expect("plain data");
        assert_eq!(encoded[0], number, "{change:?}");
    }
}

#[test]
fn copies_serve_until_others_are_in_sync_and_no_slice_ever_has_fewer() {
    for node in 1..=5 {
        let mut state = drained(node);
        let before = on(&state, node);
        assert!(!before.is_empty());
        assert_ne!(state.volumes[&DB].owner.expect("up").node, NodeId(node));
        assert_eq!(go_on(&mut state), before.len() as u32);
        assert_eq!(on(&state, node), before, "they serve on");
        for (index, _) in &before {
            let slice = &state.volumes[&DB].slices[*index];
            assert_eq!((slice.copies().len(), slice.in_sync().count()), (4, 3));
        }
        assert!(!state.is_drained(NodeId(node)));
        let refused = Refusal::NotDrained {
            node: NodeId(node),
            copies: before.len() as u64,
        };
        assert_eq!(state.apply(remove(node)), Outcome::Refused(refused));
        assert_eq!(read_back(&state), state);
        let view = state.view;
        promote_all(&mut state);
        assert!(state.view > view);
        for slice in state.volumes[&DB].slices.values() {
            assert_eq!((slice.copies().len(), slice.in_sync().count()), (3, 3));
        }
        assert_eq!(on(&state, node), []);
        assert!(state.is_drained(NodeId(node)));
        assert_eq!(state.apply(remove(node)), Outcome::Done);
        assert_eq!(state.nodes[&NodeId(node)].status, NodeStatus::Evicted);
        assert_eq!(state.apply(remove(node)), Outcome::Done, "asked again");
        let back = Outcome::Refused(Refusal::Evicted(NodeId(node)));
        assert_eq!(state.apply(start(node, 2)), back);
        state.check();
    }
}

#[test]
fn a_stale_copy_stays_until_as_many_others_are_in_sync_as_are_wanted() {
    let mut state = cluster();
    open(&mut state);
    let node = NodeId(5);
    state.apply(down(node));
    if !state.volumes[&DB].open {
        open(&mut state);
    }
    let record = &state.volumes[&DB];
    let slices = on(&state, 5).into_iter().map(|(index, _)| index).collect();
    let change = Change::RemoveCopies {
        volume: DB,
        view: record.view,
        slices,
        node,
    };
    state.apply(change);
    assert_eq!(state.apply(drain(5)), Outcome::Done);
    let held = on(&state, 5);
    go_on(&mut state);
    assert_eq!(
        on(&state, 5),
        held,
        "it comes back sooner than a new one is made"
    );
    // It is back, in sync again, or it stays away: the drain ends in either way.
    let mut back = state.clone();
    assert_eq!(back.apply(start(5, 2)), Outcome::Done);
    if !back.volumes[&DB].open {
        open(&mut back);
    }
    for mut state in [state, back] {
        promote_all(&mut state);
        assert_eq!(on(&state, 5), []);
        let slices = state.volumes[&DB].slices.values();
        assert!(slices.clone().all(|slice| slice.in_sync().count() == 3));
    }
}

#[test]
fn a_copy_on_an_evicted_node_is_none_for_which_a_drained_one_goes() {
    let mut state = drained(5);
    go_on(&mut state);
    let before = on(&state, 5);
    let gone = NodeId(2);
    state.apply(down(gone));
    assert_eq!(state.apply(Change::Evict { node: gone }), Outcome::Done);
    if !state.volumes[&DB].open {
        open(&mut state);
    }
    go_on(&mut state);
    promote_all(&mut state);
    for (index, _) in before {
        let slice = &state.volumes[&DB].slices[index];
        let alive = slice.in_sync().filter(|node| *node != gone).count();
        assert!(alive >= 3, "slice {index}: {slice:?}");
    }
}

#[test]
fn where_no_node_is_left_it_waits_until_one_comes() {
    let mut state = drained_without_room();
    let lacks = |state: &ClusterState| {
        let slices = state.volumes[&DB].slices.values();
        let held = slices.filter(|slice| slice.status(NodeId(5)).is_some());
        held.filter(|slice| slice.copies().len() < 4).count()
    };
    assert!(lacks(&state) > 0);
    assert_eq!(go_on(&mut state), 0, "nothing is done again and again");
    for node in [2, 3] {
        state.apply(start(node, 2));
    }
    go_on(&mut state);
    assert_eq!(lacks(&state), 0);
}

#[test]
fn a_cancelled_drain_leaves_every_copy_in_sync_also_where_the_old_one_is_needed_still() {
    let mut state = drained(5);
    go_on(&mut state);
    let away = (1..5).map(NodeId).find(|node| {
        let record = &state.volumes[&DB];
        let shares = |slice: &SliceRecord| {
            slice.is_in_sync(NodeId(5)) && slice.is_in_sync(*node) && slice.in_sync().count() > 2
        };
        record.owner.expect("up").node != *node && record.slices.values().any(shares)
    });
    let away = away.expect("a node that holds, and does not own");
    state.apply(down(away));
    let record = &state.volumes[&DB];
    assert!(record.open, "other copies serve");
    let slices = on(&state, away.0).into_iter().map(|(index, _)| index);
    let change = Change::RemoveCopies {
        volume: DB,
        view: record.view,
        slices: slices.collect(),
        node: away,
    };
    assert_eq!(state.apply(change), Outcome::Done);
    promote_all(&mut state);
    let in_sync = |state: &ClusterState| -> Vec<Vec<NodeId>> {
        let slices = state.volumes[&DB].slices.values();
        slices.map(|slice| slice.in_sync().collect()).collect()
    };
    let before = in_sync(&state);
    assert!(!on(&state, 5).is_empty(), "it is needed while one is away");
    assert_eq!(state.apply(cancel(5)), Outcome::Done);
    state.check();
    assert_eq!(in_sync(&state), before);
}

#[test]
fn a_cancelled_drain_leaves_what_was_there_and_what_is_in_sync_by_now() {
    let mut state = cluster();
    open(&mut state);
    let before = state.volumes[&DB].slices.clone();
    let node = (1..=5)
        .find(|node| Some(NodeId(*node)) != state.volumes[&DB].owner.map(|owner| owner.node))
        .expect("five nodes");
    state.apply(drain(node));
    go_on(&mut state);
    assert_ne!(state.volumes[&DB].slices, before);
    assert_eq!(state.apply(cancel(node)), Outcome::Done);
    assert_eq!(state.volumes[&DB].slices, before);
    assert!(state.draining.is_empty());
    assert_eq!(state.apply(cancel(node)), Outcome::Done, "asked again");
    assert_eq!(go_on(&mut state), 0);
    // One slice is done already.
    state.apply(drain(node));
    go_on(&mut state);
    let (index, _) = on(&state, node)[0];
    let record = &state.volumes[&DB];
    let mut added = record.slices[index]
        .copies()
        .collect::<Vec<_>>()
        .into_iter();
    let added = added
        .find(|copy| copy.status == CopyStatus::Stale)
        .expect("added")
        .node;
    let change = Change::PromoteCopy {
        volume: DB,
        view: record.view,
        slice: index,
        node: added,
        incarnation: Incarnation(1),
    };
    assert_eq!(state.apply(change), Outcome::Done);
    assert_eq!(state.apply(cancel(node)), Outcome::Done);
    let slices = &state.volumes[&DB].slices;
    assert!(slices[index].is_in_sync(added) && slices[index].status(NodeId(node)).is_none());
    assert!(slices.values().all(|slice| slice.copies().len() == 3));
    state.check();
}

#[test]
fn a_drained_node_gets_no_new_copies_and_no_office() {
    let mut state = drained(5);
    let created = state.apply(Change::CreateThinVolume {
        spec: spec("another"),
        front: FrontChange::default(),
    });
    let Outcome::Created(volume) = created else {
        panic!("{created:?}");
    };
    let record = &state.volumes[&volume];
    assert_eq!(record.slices.held_by(NodeId(5)).copies, 0);
    assert_ne!(record.owner.expect("up").node, NodeId(5));
    let moved = Change::MoveVolume {
        volume: DB,
        view: state.volumes[&DB].view,
        to: NodeId(5),
    };
    let refused = Outcome::Refused(Refusal::NodeDrains(NodeId(5)));
    assert_eq!(state.apply(moved), refused);
}

#[test]
fn a_drain_that_could_never_end_is_refused() {
    let mut state = cluster();
    open(&mut state);
    for node in [5, 4] {
        assert_eq!(state.apply(drain(node)), Outcome::Done);
    }
    let before = state.clone();
    let refused = Refusal::DrainLeavesTooFew {
        node: NodeId(3),
        nodes: 2,
        volume: "db".into(),
        copies: 3,
    };
    assert_eq!(state.apply(drain(3)), Outcome::Refused(refused));
    let unknown = Outcome::Refused(Refusal::NodeUnknown(NodeId(9)));
    assert_eq!(state.apply(drain(9)), unknown);
    assert_eq!(state, before);
    assert_eq!(state.apply(drain(4)), Outcome::Done, "asked again");
    assert_eq!(state, before);
}

#[test]
fn a_node_that_dies_for_good_while_it_is_drained_leaves_no_copies_too_many() {
    let mut state = drained(5);
    go_on(&mut state);
    state.apply(down(NodeId(5)));
    if !state.volumes[&DB].open {
        open(&mut state);
    }
    let record = &state.volumes[&DB];
    let slices = on(&state, 5).into_iter().map(|(index, _)| index).collect();
    let change = Change::RemoveCopies {
        volume: DB,
        view: record.view,
        slices,
        node: NodeId(5),
    };
    assert_eq!(state.apply(change), Outcome::Done);
    let node = NodeId(5);
    assert_eq!(state.apply(Change::Evict { node }), Outcome::Done);
    assert!(state.draining.is_empty());
    mend(&mut state);
    let slices = state.volumes[&DB].slices.values();
    assert!(slices.clone().all(|slice| slice.copies().len() == 3));
    state.check();
}

#[test]
fn a_large_drain_goes_on_in_bounded_parts() {
    let mut state = cluster();
    let volume = VolumeId(2);
    state.apply(Change::CreateVolume(VolumeSpec {
        size_bytes: 4 << 30,
        ..spec("large")
    }));
    let held = state.volumes[&volume].slices.held_by(NodeId(5)).copies;
    state.apply(drain(5));
    assert_eq!(mend_some(&mut state), 512);
    let before = state.copies_on(NodeId(5));
    let all = 512 + go_on(&mut state);
    assert!(all >= held, "{all} of {held}");
    assert_eq!(state.copies_on(NodeId(5)), before, "nothing is in sync yet");
    assert_eq!(read_back(&state), state, "all of its slices");
    let slices = vec![(DB, 0); MENDED_AT_ONCE_MAX + 1];
    let too_many = Refusal::TooManyAtOnce {
        named: 513,
        most: 512,
    };
    let refused = Outcome::Refused(too_many);
    assert_eq!(state.apply(Change::Mend { slices }), refused);
}

#[test]
fn what_a_drain_waits_for_is_told_by_slices() {
    let mut state = drained(5);
    let node = NodeId(5);
    let all = on(&state, 5).len() as u64;
    let progress = state.drain_progress(node);
    assert_eq!((progress.copies, progress.owned), (all, 0));
    assert!(progress.made_on.is_empty() && progress.without_place.is_none());
    go_on(&mut state);
    let progress = state.drain_progress(node);
    assert_eq!(progress.made_on.values().sum::<u64>(), all);
    assert!(progress.wait_for_down.is_empty());

    // One of those that take copies dies, and the volume has to be taken over.
    let (dead, made) = progress.made_on.into_iter().next().expect("a target");
    let mut without = state.clone();
    without.apply(down(dead));
    if without.volumes[&DB].open {
        let progress = without.drain_progress(node);
        assert_eq!(progress.wait_for_down, [(dead, made)].into());
    }
    without.volumes.update(DB, |record| record.open = false);
    let progress = without.drain_progress(node);
    assert_eq!(progress.not_serving, Some((all, DB)));

    promote_all(&mut state);
    assert_eq!(state.drain_progress(node), DrainProgress::default());
}

#[test]
fn slices_that_no_node_can_take_are_counted_and_one_is_named() {
    let state = drained_without_room();
    let (count, volume, slice) = state
        .drain_progress(NodeId(5))
        .without_place
        .expect("three nodes are left for three copies, two of them down");
    assert_eq!(volume, DB);
    let slices = state.volumes[&DB].slices.values();
    let stuck =
        slices.filter(|slice| slice.status(NodeId(5)).is_some() && slice.copies().len() == 3);
    assert_eq!(count, stuck.count() as u64);
    assert!(state.volumes[&DB].slices[slice].status(NodeId(5)).is_some());
    let down_now = [2, 3].map(|node| (NodeId(node), Unplaceable::Down));
    let drains = (NodeId(5), Unplaceable::Drained);
    assert_eq!(state.unplaceable(), [down_now[0], down_now[1], drains]);
}

#[test]
fn the_last_node_is_neither_drained_nor_removed() {
    let mut state = cluster();
    state.apply(Change::DeleteVolume { volume: DB });
    for node in 1..=4 {
        assert_eq!(state.apply(drain(node)), Outcome::Done);
    }
    let last = Outcome::Refused(Refusal::LastNode(NodeId(5)));
    assert_eq!(state.apply(drain(5)), last);
    // The one that was to be left is gone.
    state.apply(down(NodeId(5)));
    let last = Outcome::Refused(Refusal::LastNode(NodeId(1)));
    assert_eq!(state.apply(remove(1)), last);
    assert_eq!(state.apply(start(5, 2)), Outcome::Done);
    assert_eq!(state.apply(remove(1)), Outcome::Done);
}
