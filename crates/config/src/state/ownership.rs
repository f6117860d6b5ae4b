//! Who owns a volume, and which copies count, after a node came or went.
//!
//! | what happened | owner elsewhere; the volume is not open, or every slice keeps another in-sync copy that is up | otherwise |
//! |---|---|---|
//! | node down or restarted | nothing: the owner takes its copies out (`RemoveCopies`) and brings them back | new view: owner appointed, takeover |
//! | node leaving | nothing (its copies serve on) | the volumes it owns get a new owner |
//! | somebody moves the volume | new view: the named owner, takeover | the same |
//!
//! In-sync sets change only by the word of an owner in office: what it reconciled (`Opened`),
//! took out, or brought up to date. The owner of record may itself be dead, and after a power
//! cut most of what counts as up is not: a copy marked stale on such grounds could be the only
//! one to return.

use std::rc::Rc;

use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};

use super::change::{Outcome, Refusal};
use super::records::{ClusterState, NodeStatus, Owner, VolumeRecord};

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
        let owned: Vec<VolumeId> = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.owner.is_some_and(|owner| owner.node == node))
            .map(|(id, _)| *id)
            .collect();
        for volume in owned {
            self.appoint(volume);
        }
    }

    /// The sessions of a process that is gone are, too. Relative port identifiers are node
    /// numbers; one that does not fit has no session.
    fn lose_sessions(&mut self, node: NodeId) {
        let Ok(port) = u16::try_from(node.0) else {
            return;
        };
        for volume in self.volumes.values_mut() {
            let holder = volume.reservations.unit_holder();
            if holder.is_some_and(|holder| holder.target_port == port) {
                Rc::make_mut(&mut volume.reservations).lose_port(port);
            }
        }
    }

    fn settle(&mut self, node: NodeId) {
        self.lose_sessions(node);
        let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for id in volumes {
            let volume = &self.volumes[&id];
            let owned = volume.owner.is_some_and(|owner| owner.node == node);
            // A takeover under way sees by itself who is there, and what it agrees on names
            // the starts that it reconciled.
            if owned || volume.open && !self.others_serve(volume, node) {
                self.appoint(id);
            }
        }
        self.appoint_missing();
    }

    /// Whether each slice in which `node` is in sync has another in-sync copy on a running node.
    fn others_serve(&self, volume: &VolumeRecord, node: NodeId) -> bool {
        volume
            .slices
            .iter()
            .filter(|slice| slice.is_in_sync(node))
            .all(|slice| {
                slice
                    .in_sync()
                    .any(|other| other != node && self.running_incarnation(other).is_some())
            })
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
        // The answer to an earlier try may have been lost.
        if volume.owner == Some(owner) {
            return Ok(Outcome::Done);
        }
        if volume.view != view {
            return Err(Refusal::ViewStale);
        }
        if !volume.slices.iter().any(|slice| slice.is_in_sync(to)) {
            return Err(Refusal::SuccessorWithoutCopy(to));
        }
        self.begin_view(id, Some(owner));
        Ok(Outcome::Done)
    }

    fn appoint_missing(&mut self) {
        let orphans: Vec<VolumeId> = self
            .volumes
            .iter()
            .filter(|(_, v)| v.owner.is_none())
            .map(|(id, _)| *id)
            .collect();
        for volume in orphans {
            self.appoint(volume);
        }
    }

    /// Gives the volume a new view and the best owner there is: the node with most in-sync
    /// slices, the owner so far among equals, then by turns over the volumes.
    pub(super) fn appoint(&mut self, id: VolumeId) {
        let volume = &self.volumes[&id];
        let owner_now = volume.owner.map(|owner| owner.node);
        let rank = |node: NodeId| {
            let in_sync = volume
                .slices
                .iter()
                .filter(|slice| slice.is_in_sync(node))
                .count();
            let turn = (node.0 + id.0) % 1024;
            (in_sync, owner_now == Some(node), turn)
        };
        let owner = self
            .nodes
            .iter()
            .filter(|(_, record)| record.status == NodeStatus::Up)
            .max_by_key(|(node, _)| rank(**node))
            .map(|(node, record)| Owner {
                node: *node,
                incarnation: record.incarnation,
            });
        self.begin_view(id, owner);
    }

    /// The office of `owner` begins, in a view that is newer than any before.
    fn begin_view(&mut self, id: VolumeId, owner: Option<Owner>) {
        self.view.0 += 1;
        let view = self.view;
        let volume = self
            .volumes
            .get_mut(&id)
            .expect("the caller names a volume that exists");
        if let Some(before) = volume.owner.filter(|_| volume.open) {
            self.last_open.insert(id, before);
        }
        volume.owner = owner;
        volume.view = view;
        volume.open = false;
    }

    /// Asserts the invariants of this module's parent; for tests and the simulator.
    pub fn check(&self) {
        for (id, volume) in &self.volumes {
            assert!(
                volume.view <= self.view,
                "volume {id} is ahead of the cluster's view"
            );
            assert!(
                !volume.open || volume.owner.is_some(),
                "volume {id} is open without an owner"
            );
            for (index, slice) in volume.slices.iter().enumerate() {
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

    use super::super::tests::{cluster, down, open, start};
    use super::super::{Change, CopyStatus};
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
            slices.iter().any(|slice| slice.is_in_sync(NodeId(*node)))
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
            for slice in &mut state.volumes.get_mut(&DB).expect("db").slices {
                slice.set_status(NodeId(to), CopyStatus::Stale);
            }
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
        assert!(state.last_open.is_empty() && state.encode_supplement().is_empty());
        let opened = state.volumes[&DB].owner.expect("nodes are up");
        state.apply(moving(&state.clone(), another(&state)));
        assert_eq!(state.last_open[&DB], opened);
        // A successor that does not get as far as opening it has granted nothing to anybody.
        let second = state.volumes[&DB].owner.expect("moved");
        state.apply(down(second.node));
        assert_ne!(state.volumes[&DB].owner, Some(second));
        assert_eq!(state.last_open[&DB], opened);

        let plain = postcard::to_stdvec(&state).expect("plain data");
        let mut read: ClusterState = postcard::from_bytes(&plain).expect("the first format");
        assert!(read.decode_supplement(&state.encode_supplement()));
        assert_eq!(read, state);

        open(&mut state);
        assert!(state.last_open.is_empty());
        state.apply(moving(&state.clone(), another(&state)));
        state.apply(Change::DeleteVolume { volume: DB });
        assert!(state.last_open.is_empty());
    }
}
