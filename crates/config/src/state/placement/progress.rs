//! What is left to do for a node that is drained, and what that waits for. For displays: nothing
//! here is decided.

use std::collections::BTreeMap;

use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use crate::state::records::{ClusterState, NodeStatus};
use crate::state::slices::{CopyStatus, SliceRecord};

/// Slices that are looked at, at most: a millisecond or two. Beyond them the rest is counted, and
/// what it waits for is not known.
const LOOKED_AT_MAX: usize = 20_000;

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// Copies that the node still has.
    pub copies: u64,
    /// Volumes that it still owns.
    pub owned: u64,
    /// Slices that no node can take a copy of, and one of them.
    pub without_place: Option<(u64, VolumeId, u32)>,
    /// Slices that wait for a copy on a node that does not run, by node.
    pub wait_for_down: BTreeMap<NodeId, u64>,
    /// Slices that a copy is made of on a node, by node.
    pub made_on: BTreeMap<NodeId, u64>,
    /// Slices of volumes that do not serve, and one of these volumes.
    pub not_serving: Option<(u64, VolumeId)>,
}

impl ClusterState {
    /// What is left to do for a node that is drained, or would be if it were.
    pub fn drain_progress(&self, node: NodeId) -> DrainProgress {
        let mut progress = DrainProgress {
            copies: self.copies_on(node),
            owned: self.volumes.offices(node) as u64,
            ..DrainProgress::default()
        };
        let takers = self.placeable();
        let mut left = LOOKED_AT_MAX;
        for id in self.volumes.held_by(node) {
            let record = &self.volumes[&id];
            for (index, slice) in record.slices.iter().take(left) {
                left -= 1;
                if slice.status(node).is_none() {
                    continue;
                }
                if !record.open {
                    let (count, _) = progress.not_serving.get_or_insert((0, id));
                    *count += 1;
                    continue;
                }
                let stays = slice.copies().filter(|copy| self.stays(node, copy.node));
                let is_taken = |taker: &NodeId| slice.status(*taker).is_some() || *taker == node;
                if stays.count() < record.copies as usize && takers.iter().all(is_taken) {
                    let (count, ..) = progress.without_place.get_or_insert((0, id, index));
                    *count += 1;
                    continue;
                }
                self.note_waits(node, slice, &mut progress);
            }
        }
        progress
    }

    fn note_waits(&self, node: NodeId, slice: &SliceRecord, progress: &mut DrainProgress) {
        let stale = slice
            .copies()
            .filter(|copy| copy.status == CopyStatus::Stale && self.stays(node, copy.node));
        for copy in stale {
            let waits = match self.running_incarnation(copy.node) {
                Some(_) => &mut progress.made_on,
                None => &mut progress.wait_for_down,
            };
            *waits.entry(copy.node).or_default() += 1;
        }
    }

    /// Whether a copy on `other` is one that is left once `node` is drained.
    fn stays(&self, node: NodeId, other: NodeId) -> bool {
        other != node && !self.draining.contains_key(&other)
    }

    /// Members that take no new copies, with the reason.
    pub fn unplaceable(&self) -> Vec<(NodeId, Unplaceable)> {
        let members = self.members().filter_map(|(node, record)| {
            let why = match record.status {
                _ if self.draining.contains_key(&node) => Unplaceable::Drained,
                NodeStatus::Up | NodeStatus::Evicted => return None,
                NodeStatus::Admitted => Unplaceable::NeverStarted,
                NodeStatus::Leaving => Unplaceable::Leaving,
                NodeStatus::Down => Unplaceable::Down,
            };
            Some((node, why))
        });
        members.collect()
    }
}

/// Why a node takes no new copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaceable {
    /// It is drained itself.
    Drained,
    /// It was admitted and has not started yet.
    NeverStarted,
    /// It is about to stop.
    Leaving,
    /// Its process is gone or silent.
    Down,
}
