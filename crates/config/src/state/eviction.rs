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

use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

use super::change::{Outcome, Refusal};
use super::records::{ClusterState, CopyRecord, CopyStatus, NodeStatus, SliceRecord};

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
        if let Some(record) = self.nodes.get_mut(&node) {
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
        let found = volumes.find(|volume| volume.slices.iter().any(alone));
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
            for (index, slice) in volume.slices.iter().enumerate() {
                for (place, copy) in slice.copies.iter().enumerate() {
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

    fn move_copy(&mut self, volume: VolumeId, slice: usize, place: usize) {
        let copies = &self.volumes[&volume].slices[slice].copies;
        let up: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(node, record)| {
                record.status == NodeStatus::Up && copies.iter().all(|copy| copy.node != **node)
            })
            .map(|(node, _)| node.0)
            .collect();
        // The layout spreads the slices of a volume, so the copies of one node go to all others.
        let Some(node) = holdfast_layout::place(&up, volume.0, slice as u32, 1)
            .first()
            .copied()
        else {
            return;
        };
        if let Some(record) = self.volumes.get_mut(&volume) {
            record.slices[slice].copies[place] = CopyRecord {
                node: NodeId(node),
                status: CopyStatus::Stale,
            };
        }
    }
}
