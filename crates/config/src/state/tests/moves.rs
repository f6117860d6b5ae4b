//! Moving copies, row by row of `placement::moves`.

use super::mending::mend;
use super::*;

const DB: VolumeId = VolumeId(1);

/// A move of the first slice from one of its nodes to one without a copy.
fn first_move(state: &ClusterState) -> CopyMove {
    let slice = &state.volumes[&DB].slices[0];
    let to = (1..=5)
        .map(NodeId)
        .find(|node| slice.status(*node).is_none());
    CopyMove {
        volume: DB,
        slice: 0,
        from: slice.in_sync().last().expect("three copies"),
        to: to.expect("five nodes"),
    }
}

fn moved(state: &mut ClusterState, moves: &[CopyMove]) -> u32 {
    let moves = moves.to_vec();
    let Outcome::Placed { slices } = state.apply(Change::MoveCopies { moves }) else {
        panic!("another outcome");
    };
    state.check();
    slices
}

fn promote(state: &mut ClusterState, node: NodeId) -> Outcome {
    let outcome = state.apply(Change::PromoteCopy {
        volume: DB,
        view: state.volumes[&DB].view,
        slice: 0,
        node,
        incarnation: Incarnation(1),
    });
    state.check();
    outcome
}

fn opened() -> ClusterState {
    let mut state = cluster();
    open(&mut state);
    state
}

#[test]
fn moves_keep_their_number_in_the_log() {
    let change = Change::MoveCopies { moves: Vec::new() };
    let encoded = postcard::to_stdvec(&change).expect("plain data");
    assert_eq!(encoded[0], 33);
}

#[test]
fn a_copy_goes_in_the_change_that_makes_the_other_one_count() {
    let mut state = opened();
    let wanted = first_move(&state);
    assert_eq!(moved(&mut state, &[wanted]), 1);
    let slice = &state.volumes[&DB].slices[0];
    assert_eq!((slice.copies().len(), slice.in_sync().count()), (4, 3));
    assert_eq!(read_back(&state), state);
    assert_eq!(moved(&mut state, &[wanted]), 0, "it is under way");
    let view = state.view;
    assert_eq!(promote(&mut state, wanted.to), Outcome::Done);
    assert!(state.view > view);
    let slice = &state.volumes[&DB].slices[0];
    assert_eq!((slice.copies().len(), slice.in_sync().count()), (3, 3));
    assert!(slice.is_in_sync(wanted.to) && slice.status(wanted.from).is_none());
}

#[test]
fn a_move_that_does_not_fit_changes_nothing() {
    let state = opened();
    let fits = first_move(&state);
    let (from, to) = (fits.from, fits.to);
    let taken = state.volumes[&DB].slices[0]
        .in_sync()
        .next()
        .expect("three");
    for wanted in [
        CopyMove {
            volume: VolumeId(9),
            ..fits
        },
        CopyMove { slice: 999, ..fits },
        CopyMove { from: to, ..fits },
        CopyMove { to: taken, ..fits },
        CopyMove {
            to: NodeId(9),
            ..fits
        },
    ] {
        let mut tried = state.clone();
        assert_eq!(moved(&mut tried, &[wanted]), 0, "{wanted:?}");
        assert_eq!(tried, state);
    }
    for gone in [to, taken] {
        let mut tried = state.clone();
        tried.apply(down(gone));
        assert_eq!(moved(&mut tried, &[fits]), 0);
    }
    let mut tried = state.clone();
    tried.apply(Change::Drain {
        node: from,
        now_unix_ms: 1,
    });
    assert_eq!(moved(&mut tried, &[fits]), 0);
    let moves = vec![fits; 513];
    let refused = tried.apply(Change::MoveCopies { moves });
    assert!(matches!(
        refused,
        Outcome::Refused(Refusal::TooManyAtOnce { .. })
    ));
}

#[test]
fn a_node_that_is_lost_on_either_end_of_a_move_leaves_three_copies() {
    for is_source in [true, false] {
        let mut state = opened();
        let wanted = first_move(&state);
        moved(&mut state, &[wanted]);
        let lost = if is_source { wanted.from } else { wanted.to };
        state.apply(down(lost));
        if !state.volumes[&DB].open {
            open(&mut state);
        }
        if is_source {
            let record = &state.volumes[&DB];
            let slices = record.slices.iter();
            let slices = slices.filter(|(_, slice)| slice.is_in_sync(lost));
            let slices = slices.map(|(index, _)| index).collect();
            let change = Change::RemoveCopies {
                volume: DB,
                view: record.view,
                slices,
                node: lost,
            };
            state.apply(change);
            state.check();
            assert_eq!(promote(&mut state, wanted.to), Outcome::Done);
            let slice = &state.volumes[&DB].slices[0];
            assert_eq!(slice.in_sync().count(), 3, "the source may come back");
            assert_eq!(state.apply(Change::Evict { node: lost }), Outcome::Done);
        } else {
            assert_eq!(state.apply(Change::Evict { node: lost }), Outcome::Done);
        }
        mend(&mut state);
        let slice = &state.volumes[&DB].slices[0];
        assert_eq!((slice.copies().len(), slice.in_sync().count()), (3, 3));
        assert_eq!(slice.status(lost), None);
    }
}

#[test]
fn a_target_or_a_source_that_is_drained_during_a_move_ends_with_three_copies() {
    for is_source in [true, false] {
        let mut state = opened();
        let wanted = first_move(&state);
        moved(&mut state, &[wanted]);
        let node = if is_source { wanted.from } else { wanted.to };
        state.apply(Change::Drain {
            node,
            now_unix_ms: 1,
        });
        if !state.volumes[&DB].open {
            open(&mut state);
        }
        mend(&mut state);
        let stale = |state: &ClusterState| {
            let slice = state.volumes[&DB].slices[0].clone();
            let stale = slice.copies().find(|copy| copy.status == CopyStatus::Stale);
            stale.map(|copy| copy.node)
        };
        while let Some(target) = stale(&state) {
            assert_eq!(promote(&mut state, target), Outcome::Done);
        }
        let slice = &state.volumes[&DB].slices[0];
        assert_eq!((slice.copies().len(), slice.in_sync().count()), (3, 3));
        assert_eq!(slice.status(node), None);
    }
}
