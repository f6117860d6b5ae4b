//! Who owns a volume, and which copies count, after a node came or went.
//!
//! | what happened | owner elsewhere; the volume is not open, or every slice keeps another in-sync copy that is up | otherwise |
//! |---|---|---|
//! | node down or restarted | nothing: the owner takes its copies out (`RemoveCopies`) and brings them back | new view: owner appointed, takeover |
//! | node leaving | nothing (its copies serve on) | the volumes it owns get a new owner |
//!
//! In-sync sets change only by the word of an owner in office: what it reconciled (`Opened`),
//! took out, or brought up to date. The owner of record may itself be dead, and after a power
//! cut most of what counts as up is not: a copy marked stale on such grounds could be the only
//! one to return.

use std::rc::Rc;

use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

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
        self.view.0 += 1;
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
        let view = self.view;
        let volume = self
            .volumes
            .get_mut(&id)
            .expect("the caller names a volume that exists");
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
