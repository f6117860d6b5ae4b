//! Making a volume larger while it serves.
//!
//! ```text
//!  GrowVolume ──► slices placed, size as before ──► owner sets the new slices up ──► Grown
//!                           │                                                          │
//!                           └── a takeover meanwhile sets them up too: Opened ─────────┤
//!                                                                                      ▼
//!                                                                             the new size
//! ```
//!
//! Nobody sees the new size before every copy that counts of every new slice is there and empty.
//! A slice that has never been open is *fresh*: an empty copy of it is complete, while an empty
//! copy of any other slice is one that lost its data.

use std::collections::BTreeMap;
use std::ops::Range;

use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};

use super::COPIES_PER_NODE_MAX;
use super::apply::validate_size;
use super::change::{Outcome, Reconciled, Refusal};
use super::records::{
    ClusterState, CopyRecord, CopyStatus, Growth, NodeRecord, NodeStatus, SliceRecord,
};

impl ClusterState {
    /// The nodes on which copies may be placed now; an error if there are too few.
    pub(super) fn nodes_for(&self, copies: u32) -> Result<Vec<u64>, Refusal> {
        let up: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(_, record)| record.status == NodeStatus::Up)
            .map(|(node, _)| node.0)
            .collect();
        if up.len() < copies as usize {
            return Err(Refusal::TooFewNodes {
                wanted: copies,
                up: up.len() as u32,
            });
        }
        Ok(up)
    }

    /// Refuses new slices with which a node would hold more than it can.
    pub(super) fn check_capacity(&self, added: &[SliceRecord]) -> Result<(), Refusal> {
        let volumes = self.volumes.values().flat_map(|volume| &volume.slices);
        let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
        for copy in volumes.chain(added).flat_map(|slice| &slice.copies) {
            *held.entry(copy.node).or_default() += 1;
        }
        let added = added.iter().flat_map(|slice| &slice.copies);
        for CopyRecord { node, .. } in added {
            if held[node] > COPIES_PER_NODE_MAX {
                return Err(Refusal::TooManySlices { node: *node });
            }
        }
        Ok(())
    }

    pub(super) fn grow_volume(
        &mut self,
        volume: VolumeId,
        expected_bytes: Option<u64>,
        size_bytes: u64,
    ) -> Result<Outcome, Refusal> {
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let now_bytes = record.size_bytes;
        if let Some(growth) = self.growing.get(&volume) {
            // The answer to an earlier try may have been lost.
            return if growth.size_bytes == size_bytes {
                Ok(Outcome::Done)
            } else {
                Err(Refusal::GrowsAlready(growth.size_bytes))
            };
        }
        if let Some(expected_bytes) = expected_bytes
            && expected_bytes != now_bytes
        {
            return Err(Refusal::SizeChanged {
                now_bytes,
                expected_bytes,
            });
        }
        validate_size(size_bytes)?;
        if size_bytes < now_bytes {
            return Err(Refusal::CannotShrink {
                now_bytes,
                wanted_bytes: size_bytes,
            });
        }
        if size_bytes == now_bytes {
            return Ok(Outcome::Done);
        }
        let first_slice = record.slices.len() as u32;
        let slice_count = size_bytes.div_ceil(record.slice_bytes) as u32;
        let added = if slice_count > first_slice {
            let up = self.nodes_for(record.copies)?;
            placed(&up, volume, first_slice..slice_count, record.copies)
        } else {
            Vec::new()
        };
        self.check_capacity(&added)?;
        let growth = Growth {
            size_bytes,
            first_slice,
        };
        self.growing.insert(volume, growth);
        if let Some(record) = self.volumes.get_mut(&volume) {
            record.slices.extend(added);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn grown(
        &mut self,
        volume: VolumeId,
        view: View,
        reconciled: &Reconciled,
    ) -> Result<Outcome, Refusal> {
        let record = self
            .volumes
            .get_mut(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let growth = self.growing.get(&volume).ok_or(Refusal::ViewStale)?;
        let added = &mut record.slices[growth.first_slice as usize..];
        if record.view != view || !record.open || reconciled.slices.len() != added.len() {
            return Err(Refusal::ViewStale);
        }
        settle_copies(&self.nodes, added, reconciled)?;
        record.size_bytes = growth.size_bytes;
        self.growing.remove(&volume);
        self.view.0 += 1;
        Ok(Outcome::Done)
    }
}

/// New slices, every copy in sync.
pub(super) fn placed(
    up: &[u64],
    volume: VolumeId,
    slices: Range<u32>,
    copies: u32,
) -> Vec<SliceRecord> {
    let place = |slice| {
        let nodes = holdfast_layout::place(up, volume.0, slice, copies as usize);
        let copy = |node| CopyRecord {
            node: NodeId(node),
            status: CopyStatus::InSync,
        };
        SliceRecord {
            copies: nodes.into_iter().map(copy).collect(),
        }
    };
    slices.map(place).collect()
}

/// Makes every copy stale that its owner has not reconciled, or whose node has restarted since:
/// nobody knows its stream. Refuses, and changes nothing, if a slice would lose its last one.
pub(super) fn settle_copies(
    nodes: &BTreeMap<NodeId, NodeRecord>,
    slices: &mut [SliceRecord],
    reconciled: &Reconciled,
) -> Result<(), Refusal> {
    let current = |node: &NodeId| {
        reconciled.incarnations.iter().any(|(member, incarnation)| {
            member == node
                && nodes
                    .get(node)
                    .is_some_and(|record| record.incarnation == *incarnation)
        })
    };
    let kept: Vec<Vec<NodeId>> = reconciled
        .slices
        .iter()
        .zip(slices.iter())
        .map(|(members, slice)| {
            let in_sync = |node: &&NodeId| current(node) && slice.is_in_sync(**node);
            members.iter().filter(in_sync).copied().collect()
        })
        .collect();
    if kept.iter().any(Vec::is_empty) {
        return Err(Refusal::LastCopy);
    }
    for (slice, members) in slices.iter_mut().zip(&kept) {
        for copy in &mut slice.copies {
            if !members.contains(&copy.node) {
                copy.status = CopyStatus::Stale;
            }
        }
    }
    Ok(())
}
