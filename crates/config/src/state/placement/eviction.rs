//! Taking a node out for good, and making its copies anew on other nodes.
//!
//! An evicted node's data directory is refused from then on, so what is on it counts for nothing.
//! Each of its copies moves to another node: there it begins stale and empty, and the owner brings
//! it up to date like every stale copy.
//!
//! A copy moves once it is out of the in-sync set (its owner in office takes it out, as in-sync
//! sets change by the owner's word alone), and a node is up that has none of the slice, in bounded
//! parts ([`super::mending`]). Until then it stays where it was, as one that is missing.

use std::rc::Rc;

use holdfast_runtime::{Incarnation, NodeId};

use crate::state::change::{Outcome, Refusal};
use crate::state::records::{ClusterState, NodeStatus};
use crate::state::slices::SliceRecord;

/// So many failures of a disk within [`DISK_FAILURES_WITHIN_MS`] evict its node.
const DISK_FAILURES_MAX: usize = 3;
const DISK_FAILURES_WITHIN_MS: u64 = 3_600_000;

impl ClusterState {
    /// The last words of a start whose disk failed: it is gone. One failure may pass, and then
    /// the node comes back for the difference; a disk that goes on failing is given up.
    pub(in crate::state) fn disk_failed(
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
    pub(in crate::state) fn evict(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
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
        self.draining.remove(&node);
        self.settle_down(node);
        Ok(Outcome::Done)
    }

    /// The name of a volume of which only this node, of those that were not evicted, has a slice in
    /// sync.
    fn kept_by_alone(&self, node: NodeId) -> Option<String> {
        let others = |other: NodeId| other != node && !self.is_evicted(other);
        let alone = |slice: &SliceRecord| slice.is_in_sync(node) && !slice.in_sync().any(others);
        let mut volumes = self.volumes.held_by(node).map(|id| &self.volumes[&id]);
        let found = volumes.find(|volume| volume.slices.values().any(alone));
        found.map(|volume| volume.name.clone())
    }
}
