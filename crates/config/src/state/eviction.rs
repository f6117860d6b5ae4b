//! Taking a node out for good, and making its copies anew on other nodes.
//!
//! An evicted node's data directory is refused from then on, so what is on it counts for nothing.
//! Each of its copies moves to another node: there it begins stale and empty, and the owner brings
//! it up to date like every stale copy.
//!
//! A copy moves once it is out of the in-sync set (its owner in office takes it out, as in-sync
//! sets change by the owner's word alone), and a node is up that has none of the slice. Until then
//! it stays where it was, as one that is missing. So every change is followed by a look at what can
//! move now.

use std::rc::Rc;

use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

use super::change::{Outcome, Refusal};
use super::records::{ClusterState, NodeStatus};
use super::slices::{CopyRecord, CopyStatus, SliceRecord};

/// So many failures of a disk within [`DISK_FAILURES_WITHIN_MS`] evict its node.
const DISK_FAILURES_MAX: usize = 3;
const DISK_FAILURES_WITHIN_MS: u64 = 3_600_000;

impl ClusterState {
    /// The last words of a start whose disk failed: it is gone. One failure may pass, and then
    /// the node comes back for the difference; a disk that goes on failing is given up.
    pub(super) fn disk_failed(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        now_unix_ms: u64,
    ) -> Result<Outcome, Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::NodeUnknown(node))?;
        if record.incarnation != incarnation || record.status == NodeStatus::Evicted {
            return Err(Refusal::IncarnationStale(node));
        }
        let failures = self.disk_failures.entry(node).or_default();
        failures.retain(|at| at.saturating_add(DISK_FAILURES_WITHIN_MS) > now_unix_ms);
        failures.push(now_unix_ms);
        let give_up = failures.len() >= DISK_FAILURES_MAX;
        self.node_down(node, incarnation)?;
        if give_up {
            // What nobody else has keeps it: an operator has to decide.
            let _ = self.evict(node);
        }
        Ok(Outcome::Done)
    }

    /// Evicts a node that does not run.
    pub(super) fn evict(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::NodeUnknown(node))?;
        match record.status {
            NodeStatus::Evicted => return Ok(Outcome::Done),
            NodeStatus::Up | NodeStatus::Leaving => return Err(Refusal::NodeRuns(node)),
            NodeStatus::Admitted | NodeStatus::Down => {}
        }
        if let Some(name) = self.kept_by_alone(node) {
            return Err(Refusal::HoldsLastCopy { node, volume: name });
        }
        if let Some(record) = Rc::make_mut(&mut self.nodes).get_mut(&node) {
            record.status = NodeStatus::Evicted;
        }
        self.disk_failures.remove(&node);
        self.settle_down(node);
        Ok(Outcome::Done)
    }

    /// The name of a volume of which only this node has a slice in sync.
    fn kept_by_alone(&self, node: NodeId) -> Option<String> {
        let alone = |slice: &SliceRecord| slice.is_in_sync(node) && slice.in_sync().count() == 1;
        let mut volumes = self.volumes.values();
        let found = volumes.find(|volume| volume.slices.values().any(alone));
        found.map(|volume| volume.name.clone())
    }

    /// Moves copies of evicted nodes, as far as that is possible now.
    pub(super) fn rehome(&mut self) {
        let evicted = |node: &NodeId| {
            let record = self.nodes.get(node);
            record.is_none_or(|record| record.status == NodeStatus::Evicted)
        };
        if !self.nodes.keys().any(evicted) {
            return;
        }
        let mut moves = Vec::new();
        for (id, volume) in &self.volumes {
            for (index, slice) in volume.slices.iter() {
                for (place, copy) in slice.copies().enumerate() {
                    if copy.status == CopyStatus::Stale && evicted(&copy.node) {
                        moves.push((*id, index, place));
                    }
                }
            }
        }
        for (volume, slice, place) in moves {
            self.move_copy(volume, slice, place);
        }
    }

    fn move_copy(&mut self, volume: VolumeId, index: u32, place: usize) {
        let slice = &self.volumes[&volume].slices[index];
        let mut up = self.placeable();
        up.retain(|node| slice.status(*node).is_none());
        // The layout spreads the slices of a volume, so the copies of one node go to all others.
        let Some(node) = self.layouts.place(&up, volume, index, 1).pop() else {
            return;
        };
        let copies = slice.copies().enumerate();
        let moved = copies.map(|(number, copy)| {
            if number == place {
                CopyRecord {
                    node,
                    status: CopyStatus::Stale,
                }
            } else {
                copy
            }
        });
        let moved = moved.collect();
        self.set_slices(volume, vec![(index, moved)]);
    }
}
