//! Who owns a volume, and which copies count, after a node came or went.
//!
//! | what happened | owner elsewhere; the volume is not open, or every slice keeps another in-sync copy that is up | otherwise |
//! |---|---|---|
//! | node down or restarted | nothing: the owner takes its copies out (`RemoveCopies`) and brings them back | new view: owner appointed, takeover |
//! | node leaving | nothing (its copies serve on) | the volumes it owns get a new owner |
//! | somebody moves the volume | new view: the named owner, takeover | the same |
//!
//! Who is appointed: of the nodes that are up, not drained, and have (nearly) as many slices in
//! sync as any, the owner so far, else the one that owns fewest volumes. So new volumes, and those
//! of a node that is gone, spread over the nodes by themselves; what I/O they bear is known to
//! nobody here (see the rebalancing of the `node` crate).
//!
//! In-sync sets change only by the word of an owner in office: what it reconciled (`Opened`),
//! took out, or brought up to date. The owner of record may itself be dead, and after a power
//! cut most of what counts as up is not: a copy marked stale on such grounds could be the only
//! one to return.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::rc::Rc;

use holdfast_runtime::NodeId;
use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::{View, VolumeId};

use super::change::{Outcome, Refusal};
use super::records::{ClusterState, NodeStatus, Office, Owner, VolumeRecord};

/// A node with so many quarters of the slices that the best one has in sync is as good: reads
/// of the others cost a way over the network.
const NEAR_QUARTERS: usize = 3;

impl ClusterState {
    /// The current start of `node` is gone.
    pub(super) fn settle_down(&mut self, node: NodeId) {
        self.settle(node);
    }

    /// `node` runs in a new incarnation; the earlier one is gone.
    pub(super) fn settle_restart(&mut self, node: NodeId) {
        self.settle(node);
    }

    /// `node`, marked down, turned out to run still.
    pub(super) fn settle_return(&mut self, _node: NodeId) {
        self.appoint_missing();
    }

    /// `node` gives its volumes away.
    pub(super) fn settle_leaving(&mut self, node: NodeId) {
        let owned = self.volumes.owned_by(Some(node)).collect();
        self.appoint_all(owned);
    }

    /// The sessions of a process that is gone are, too. Relative port identifiers are node
    /// numbers; one that does not fit has no session.
    fn lose_sessions(&mut self, node: NodeId) {
        let Ok(port) = u16::try_from(node.0) else {
            return;
        };
        let reserved: Vec<VolumeId> = self.volumes.reserved_by(port).collect();
        for volume in reserved {
            self.volumes.update(volume, |record| {
                Rc::make_mut(&mut record.reservations).lose_port(port);
            });
        }
    }

    fn settle(&mut self, node: NodeId) {
        self.lose_sessions(node);
        let owned = self.volumes.owned_by(Some(node));
        // A takeover under way sees by itself who is there, and what it agrees on names the starts
        // that it reconciled.
        let bereft = |id: &VolumeId| {
            let volume = &self.volumes[id];
            volume.open && !self.others_serve(volume, node)
        };
        let bereft = self.volumes.held_by(node).filter(bereft);
        // Ascending, as views are given by turns.
        let concerned: BTreeSet<VolumeId> = owned.chain(bereft).collect();
        self.appoint_all(concerned.into_iter().collect());
        self.appoint_missing();
    }

    /// Whether each slice in which `node` is in sync has another in-sync copy on a running node.
    fn others_serve(&self, volume: &VolumeRecord, node: NodeId) -> bool {
        let runs = |other: NodeId| other != node && self.running_incarnation(other).is_some();
        let holders = volume.slices.holders().iter();
        let mut others = holders.filter(|held| held.node != node && held.in_sync > 0);
        if volume.slices.with_one_in_sync() == 0 && others.all(|held| runs(held.node)) {
            return true;
        }
        let mut in_sync = volume
            .slices
            .values()
            .filter(|slice| slice.is_in_sync(node));
        in_sync.all(|slice| slice.in_sync().any(runs))
    }

    /// Gives the volume to the node that somebody named, in a new view.
    pub(super) fn move_volume(
        &mut self,
        id: VolumeId,
        view: View,
        to: NodeId,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeUnknown(id))?;
        let node = self.nodes.get(&to).ok_or(Refusal::NodeUnknown(to))?;
        let owner = Owner {
            node: to,
            incarnation: node.incarnation,
        };
        if node.status != NodeStatus::Up {
            return Err(Refusal::SuccessorNotUp(to));
        }
        if self.draining.contains_key(&to) {
            return Err(Refusal::NodeDrains(to));
        }
        // The answer to an earlier try may have been lost.
        if volume.owner == Some(owner) {
            return Ok(Outcome::Done);
        }
        if volume.view != view {
            return Err(Refusal::ViewStale);
        }
        if volume.slices.held_by(to).in_sync == 0 {
            return Err(Refusal::SuccessorWithoutCopy(to));
        }
        self.begin_view(id, Some(owner));
        Ok(Outcome::Done)
    }

    /// The same, and remembers that somebody wants it there.
    pub(super) fn place_volume(
        &mut self,
        id: VolumeId,
        view: View,
        to: NodeId,
    ) -> Result<Outcome, Refusal> {
        let outcome = self.move_volume(id, view, to)?;
        self.placed.insert(id, to);
        Ok(outcome)
    }

    fn appoint_missing(&mut self) {
        let orphans = self.volumes.owned_by(None).collect();
        self.appoint_all(orphans);
    }

    /// Gives the volume a new view and the best owner there is, by this module's header.
    pub(super) fn appoint(&mut self, id: VolumeId) {
        self.appoint_all(vec![id]);
    }

    fn appoint_all(&mut self, volumes: Vec<VolumeId>) {
        for id in volumes {
            let owner = self.best_owner(id);
            self.begin_view(id, owner);
        }
    }

    /// The nodes that are up and have (nearly) as many slices of the volume in sync as any: those
    /// that make good owners of it.
    pub fn good_owners(&self, id: VolumeId) -> Vec<NodeId> {
        let Some(volume) = self.volumes.get(&id) else {
            return Vec::new();
        };
        let up = match planted::is_active(Bug::OwnOnDrained) {
            true => self.members().map(|(node, _)| node).collect(),
            false => self.placeable(),
        };
        let up = up
            .into_iter()
            .filter(|node| self.running_incarnation(*node).is_some());
        let slices = up.map(|node| (node, volume.slices.held_by(node).in_sync as usize));
        let slices: Vec<(NodeId, usize)> = slices.collect();
        let most = slices.iter().map(|(_, slices)| *slices).max().unwrap_or(0);
        let near = slices.into_iter();
        near.filter(|(_, slices)| slices * 4 >= most * NEAR_QUARTERS)
            .map(|(node, _)| node)
            .collect()
    }

    fn best_owner(&self, id: VolumeId) -> Option<Owner> {
        let owner_now = self.volumes[&id].owner.map(|owner| owner.node);
        let near = self.good_owners(id);
        // Among equals by turns, so that volumes that come and go one by one spread too.
        let count = near.len() as u64;
        let turn = |index: usize| (index as u64 + count - id.0 % count) % count;
        let rank = |index: usize, node: NodeId| {
            let stays = owner_now == Some(node);
            (Reverse(stays), self.volumes.offices(node), turn(index))
        };
        let ranked = near.into_iter().enumerate();
        let (_, node) = ranked.min_by_key(|(index, node)| rank(*index, *node))?;
        Some(Owner {
            node,
            incarnation: self.nodes[&node].incarnation,
        })
    }

    /// The office of `owner` begins, in a view that is newer than any before.
    fn begin_view(&mut self, id: VolumeId, owner: Option<Owner>) {
        self.view.0 += 1;
        let view = self.view;
        let volume = &self.volumes[&id];
        if let Some(owner) = volume.owner.filter(|_| volume.open) {
            let view = volume.view;
            self.last_open.insert(id, Office { owner, view });
        }
        self.volumes.update(id, |volume| {
            volume.owner = owner;
            volume.view = view;
            volume.open = false;
        });
        // A wish that could not be kept is over.
        if self.placed.get(&id).copied() != owner.map(|owner| owner.node) {
            self.placed.remove(&id);
        }
    }

    /// Asserts the invariants of this module's parent; for tests and the simulator.
    pub fn check(&self) {
        self.volumes.check();
        self.check_mending();
        for (id, volume) in &self.volumes {
            assert!(
                volume.view <= self.view,
                "volume {id} is ahead of the cluster's view"
            );
            assert!(
                !volume.open || volume.owner.is_some(),
                "volume {id} is open without an owner"
            );
            for (index, slice) in volume.slices.iter() {
                assert!(
                    slice.in_sync().count() > 0,
                    "slice {id}/{index} lost its last copy"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::Incarnation;

    use super::super::tests::{cluster, down, open, read_back, start};
    use super::super::{Change, CopyStatus, VolumeSpec};
    use super::*;

    const DB: VolumeId = VolumeId(1);

    fn moving(state: &ClusterState, to: u64) -> Change {
        Change::MoveVolume {
            volume: DB,
            view: state.volumes[&DB].view,
            to: NodeId(to),
        }
    }

    fn owner(state: &ClusterState) -> NodeId {
        state.volumes[&DB].owner.expect("nodes are up").node
    }

    /// A node that holds a copy and does not own the volume.
    fn another(state: &ClusterState) -> u64 {
        let mut others = (1..=5).filter(|node| NodeId(*node) != owner(state));
        let holds = |node: &u64| {
            let slices = &state.volumes[&DB].slices;
            slices.values().any(|slice| slice.is_in_sync(NodeId(*node)))
        };
        others.find(holds).expect("three copies")
    }

    #[test]
    fn a_moved_volume_is_taken_over_by_the_named_node_in_a_larger_view() {
        let mut state = cluster();
        open(&mut state);
        let (seen, to) = (state.clone(), another(&state));
        let before = &seen.volumes[&DB];
        let change = moving(&seen, to);
        let encoded = postcard::to_stdvec(&change).expect("plain data");
        assert_eq!(encoded[0], 18, "changes keep their numbers in the log");
        assert_eq!(state.apply(change), Outcome::Done);
        let after = state.volumes[&DB].clone();
        assert_eq!(owner(&state), NodeId(to));
        assert!(after.view > before.view && after.view == state.view && !after.open);
        assert_eq!(after.slices, before.slices, "no copy falls out");
        open(&mut state);
        // Where it is already, it stays, whatever view was seen.
        let opened = state.clone();
        let again = Change::MoveVolume {
            volume: DB,
            view: before.view,
            to: NodeId(to),
        };
        assert_eq!(state.apply(again), Outcome::Done);
        assert_eq!(state, opened);
    }

    /// Three copies of each of many small volumes on five nodes.
    fn many(volumes: u64, copies: u32) -> ClusterState {
        let mut state = cluster();
        state.volumes.remove(DB);
        for number in 0..volumes {
            let outcome = state.apply(Change::CreateVolume(VolumeSpec {
                name: format!("v{number}"),
                size_bytes: 64 << 20,
                logical_block_bytes: 512,
                copies,
                slice_bytes: 1 << 30,
                chap: None,
                naa_random: number,
                now_unix_ms: 0,
            }));
            assert!(matches!(outcome, Outcome::Created(_)), "{outcome:?}");
        }
        let volumes: Vec<VolumeId> = state.volumes.keys().copied().collect();
        for volume in volumes {
            state.volumes.update(volume, |record| {
                (record.open, record.ever_open) = (true, true);
            });
        }
        state
    }

    /// Fewest and most volumes that a node owns, of those that are up.
    fn spread(state: &ClusterState) -> (usize, usize) {
        let owned = |node: &NodeId| {
            let owners = state.volumes.values().filter_map(|volume| volume.owner);
            owners.filter(|owner| owner.node == *node).count()
        };
        let up = state.nodes.iter();
        let up = up.filter(|(_, record)| record.status == NodeStatus::Up);
        let counts: Vec<usize> = up.map(|(node, _)| owned(node)).collect();
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    #[test]
    fn owners_of_new_volumes_are_spread_over_all_nodes() {
        assert_eq!(spread(&many(40, 5)), (8, 8));
        let (fewest, most) = spread(&many(40, 3));
        assert!(fewest >= 7 && most <= 9, "{fewest} to {most}");
    }

    #[test]
    fn volumes_that_come_and_go_one_by_one_take_turns() {
        let mut state = many(0, 3);
        let mut owners = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let known = state.volumes.len();
            state.last_volume += 1;
            state.apply(Change::CreateVolume(VolumeSpec {
                name: "one".into(),
                size_bytes: 64 << 20,
                logical_block_bytes: 512,
                copies: 5,
                slice_bytes: 1 << 30,
                chap: None,
                naa_random: 0,
                now_unix_ms: 0,
            }));
            assert_eq!(state.volumes.len(), known + 1);
            let id = *state.volumes.keys().next_back().expect("one");
            let record = state.volumes.remove(id).expect("one");
            assert_eq!(id.0, state.last_volume);
            owners.insert(record.owner.expect("up").node);
        }
        assert_eq!(owners.len(), 5, "{owners:?}");
    }

    #[test]
    fn the_volumes_of_a_node_that_is_gone_or_leaves_spread_over_the_others() {
        let leave = Change::HandOver {
            node: NodeId(2),
            incarnation: Incarnation(1),
        };
        for change in [down(NodeId(2)), leave] {
            for (copies, slack) in [(5, 0), (3, 2)] {
                let mut state = many(60, copies);
                state.apply(change.clone());
                let (fewest, most) = spread(&state);
                assert!(
                    most <= 15 + slack && fewest + slack >= 15,
                    "{fewest}–{most}"
                );
            }
        }
        // One that restarts at once keeps its own.
        let mut state = many(60, 5);
        state.apply(start(2, 2));
        assert_eq!(spread(&state), (12, 12));
    }

    #[test]
    fn a_wish_for_an_owner_is_remembered_as_long_as_it_can_be_kept() {
        let mut state = cluster();
        open(&mut state);
        let (first, to) = (owner(&state), another(&state));
        let place = |state: &ClusterState, to| Change::PlaceVolume {
            volume: DB,
            view: state.volumes[&DB].view,
            to: NodeId(to),
        };
        let wish = place(&state, to);
        let encoded = postcard::to_stdvec(&wish).expect("plain data");
        assert_eq!(encoded[0], 22, "changes keep their numbers in the log");
        assert_eq!(state.apply(wish), Outcome::Done);
        assert_eq!(state.placed.get(&DB), Some(&NodeId(to)));
        assert_eq!(read_back(&state).placed, state.placed);
        open(&mut state);
        // Where it is, it may be wished for too; a refused wish changes nothing.
        let before = state.clone();
        assert_eq!(state.apply(place(&before, to)), Outcome::Done);
        assert!(matches!(
            state.apply(place(&before, 77)),
            Outcome::Refused(_)
        ));
        assert_eq!(state, before);
        // Somebody else's move, and the end of the node, end it.
        let mut moved = state.clone();
        moved.apply(moving(&state, first.0));
        assert!(moved.placed.is_empty());
        state.apply(down(NodeId(to)));
        assert!(state.placed.is_empty());
        assert_ne!(owner(&state), NodeId(to));
        let mut deleted = before;
        deleted.apply(Change::DeleteVolume { volume: DB });
        assert!(deleted.placed.is_empty());
    }

    #[test]
    fn of_two_moves_from_the_same_view_the_first_in_the_log_wins() {
        let mut state = cluster();
        open(&mut state);
        let seen = state.clone();
        let (first, back) = (another(&state), owner(&state));
        assert_eq!(state.apply(moving(&seen, first)), Outcome::Done);
        let second = (1..=5)
            .find(|node| NodeId(*node) != back && *node != first)
            .expect("five nodes");
        let refused = Outcome::Refused(Refusal::ViewStale);
        assert_eq!(state.apply(moving(&seen, second)), refused);
        assert_eq!(state.apply(moving(&seen, back.0)), refused);
        assert_eq!(owner(&state), NodeId(first));
    }

    #[test]
    fn a_volume_moves_only_to_a_node_that_is_up_and_holds_some_of_it() {
        let mut state = cluster();
        open(&mut state);
        let to = another(&state);
        let refuse = |change: Change, refusal: Refusal, prepare: &dyn Fn(&mut ClusterState)| {
            let mut changed = state.clone();
            prepare(&mut changed);
            let before = changed.clone();
            assert_eq!(changed.apply(change), Outcome::Refused(refusal));
            assert_eq!(changed, before);
        };
        let change = moving(&state, to);
        let volume = VolumeId(9);
        let unknown = Change::MoveVolume {
            volume,
            view: View(1),
            to: NodeId(to),
        };
        refuse(unknown, Refusal::VolumeUnknown(volume), &|_| {});
        let nobody = moving(&state, 77);
        refuse(nobody, Refusal::NodeUnknown(NodeId(77)), &|_| {});
        let not_up = Refusal::SuccessorNotUp(NodeId(to));
        refuse(change.clone(), not_up.clone(), &|state| {
            state.apply(down(NodeId(to)));
        });
        refuse(change.clone(), not_up, &|state| {
            state.apply(Change::HandOver {
                node: NodeId(to),
                incarnation: Incarnation(1),
            });
        });
        let nothing = Refusal::SuccessorWithoutCopy(NodeId(to));
        refuse(change.clone(), nothing, &|state| {
            state.volumes.update(DB, |record| {
                for (index, slice) in record.slices.clone().iter() {
                    let stale = slice.with_status(NodeId(to), CopyStatus::Stale);
                    record
                        .slices
                        .set(index, stale.unwrap_or_else(|| slice.clone()));
                }
            });
        });
        // It came back meanwhile: the move names the node, not its start.
        state.apply(start(to, 2));
        let current = moving(&state, to);
        assert_eq!(state.apply(current), Outcome::Done);
        let owner = state.volumes[&DB].owner.expect("moved");
        assert_eq!(owner.incarnation, Incarnation(2));
    }

    #[test]
    fn a_volume_that_is_not_open_remembers_the_owner_that_opened_it_last() {
        let mut state = cluster();
        assert_eq!(state.last_open.get(&DB), None, "nobody has opened it");
        open(&mut state);
        assert!(state.last_open.is_empty());
        let opened = Office {
            owner: state.volumes[&DB].owner.expect("nodes are up"),
            view: state.volumes[&DB].view,
        };
        state.apply(moving(&state.clone(), another(&state)));
        assert_eq!(state.last_open[&DB], opened);
        // A successor that does not get as far as opening it has granted nothing to anybody.
        let second = state.volumes[&DB].owner.expect("moved");
        state.apply(down(second.node));
        assert_ne!(state.volumes[&DB].owner, Some(second));
        assert_eq!(state.last_open[&DB], opened);

        assert_eq!(read_back(&state), state);

        open(&mut state);
        assert!(state.last_open.is_empty());
        state.apply(moving(&state.clone(), another(&state)));
        state.apply(Change::DeleteVolume { volume: DB });
        assert!(state.last_open.is_empty());
    }
}
