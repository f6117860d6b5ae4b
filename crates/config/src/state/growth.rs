//! Making a volume larger.
//!
//! `ResizeVolume` sets the size, and that is all: nothing has been written beyond the old end, so
//! there is nothing to place.
//!
//! What else is here is from when every slice of a volume was placed with it, and is proposed no
//! more. An old log still has the effect that it had, and what was under way is completed by the
//! next takeover:
//!
//! ```text
//!  GrowVolume ──► slices placed, size as before ──► owner sets the new slices up ──► Grown
//!                           │                                                          │
//!                           └── a takeover meanwhile sets them up too: Opened ─────────┤
//!                                                                                      ▼
//!                                                                             the new size
//! ```
//!
//! Nobody saw the new size before every copy that counts of every new slice was there and empty.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};

use super::apply::validate_size;
use super::change::{Outcome, Reconciled, Refusal};
use super::records::{ClusterState, Growth, NodeRecord, NodeStatus};
use super::slices::{CopyRecord, CopyStatus, SliceRecord};
use super::{COPIES_PER_NODE_MAX, VOLUME_BYTES_MAX, WHOLE_VOLUME_BYTES_MAX};

/// What has to be done to give a volume another size.
enum Resizing {
    /// Nothing: it has that size, or is on the way to it.
    Done,
    /// It is smaller so far.
    Grow,
}

impl ClusterState {
    /// The nodes on which copies may be placed now; an error if there are too few.
    pub(super) fn nodes_for(&self, copies: u32) -> Result<Vec<NodeId>, Refusal> {
        let up = self.placeable();
        if up.len() < copies as usize {
            return Err(Refusal::TooFewNodes {
                wanted: copies,
                up: up.len() as u32,
            });
        }
        Ok(up)
    }

    /// The nodes that take new copies: up, and not to be drained.
    pub fn placeable(&self) -> Vec<NodeId> {
        let takes = |(node, record): &(&NodeId, &NodeRecord)| {
            record.status == NodeStatus::Up && !self.draining.contains_key(*node)
        };
        self.nodes
            .iter()
            .filter(takes)
            .map(|(node, _)| *node)
            .collect()
    }

    /// Refuses new slices with which a node would hold more than it could, when all slices of a
    /// volume were placed with it.
    pub(super) fn check_capacity(&self, added: &[SliceRecord]) -> Result<(), Refusal> {
        let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
        for holder in self
            .volumes
            .values()
            .flat_map(|volume| volume.slices.holders())
        {
            *held.entry(holder.node).or_default() += holder.copies as usize;
        }
        for CopyRecord { node, .. } in added.iter().flat_map(SliceRecord::copies) {
            *held.entry(node).or_default() += 1;
        }
        for CopyRecord { node, .. } in added.iter().flat_map(SliceRecord::copies) {
            if held[&node] > COPIES_PER_NODE_MAX {
                return Err(Refusal::TooManySlices { node });
            }
        }
        Ok(())
    }

    fn check_resizing(
        &self,
        volume: VolumeId,
        expected_bytes: Option<u64>,
        size_bytes: u64,
        bytes_max: u64,
    ) -> Result<Resizing, Refusal> {
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let now_bytes = record.size_bytes;
        if let Some(growth) = self.growing.get(&volume) {
            // The answer to an earlier try may have been lost.
            return if growth.size_bytes == size_bytes {
                Ok(Resizing::Done)
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
        validate_size(size_bytes, bytes_max)?;
        if size_bytes < now_bytes {
            return Err(Refusal::CannotShrink {
                now_bytes,
                wanted_bytes: size_bytes,
            });
        }
        Ok(if size_bytes == now_bytes {
            Resizing::Done
        } else {
            Resizing::Grow
        })
    }

    pub(super) fn resize_volume(
        &mut self,
        volume: VolumeId,
        expected_bytes: Option<u64>,
        size_bytes: u64,
    ) -> Result<Outcome, Refusal> {
        match self.check_resizing(volume, expected_bytes, size_bytes, VOLUME_BYTES_MAX)? {
            Resizing::Done => {}
            Resizing::Grow => {
                self.volumes
                    .update(volume, |record| record.size_bytes = size_bytes);
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn grow_volume(
        &mut self,
        volume: VolumeId,
        expected_bytes: Option<u64>,
        size_bytes: u64,
    ) -> Result<Outcome, Refusal> {
        match self.check_resizing(volume, expected_bytes, size_bytes, WHOLE_VOLUME_BYTES_MAX)? {
            Resizing::Done => return Ok(Outcome::Done),
            Resizing::Grow => {}
        }
        let record = &self.volumes[&volume];
        let first_slice = record.slice_count();
        let slice_count = size_bytes.div_ceil(record.slice_bytes) as u32;
        let added = if slice_count > first_slice {
            let up = self.nodes_for(record.copies)?;
            self.in_sync_on(&up, volume, first_slice..slice_count, record.copies)
        } else {
            Vec::new()
        };
        self.check_capacity(&added)?;
        let growth = Growth {
            size_bytes,
            first_slice,
        };
        self.growing.insert(volume, growth);
        self.set_slices(volume, (first_slice..).zip(added).collect());
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
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        let growth = self.growing.get(&volume).ok_or(Refusal::ViewStale)?;
        let size_bytes = growth.size_bytes;
        let added = record.slices.range(growth.first_slice..);
        if record.view != view || !record.open || reconciled.slices.len() != added.clone().count() {
            return Err(Refusal::ViewStale);
        }
        let settled = settled_copies(&self.nodes, added, reconciled)?;
        self.set_slices(volume, settled);
        self.volumes
            .update(volume, |record| record.size_bytes = size_bytes);
        self.growing.remove(&volume);
        self.view.0 += 1;
        Ok(Outcome::Done)
    }

    /// New slices, every copy in sync.
    pub(super) fn in_sync_on(
        &self,
        up: &[NodeId],
        volume: VolumeId,
        slices: Range<u32>,
        copies: u32,
    ) -> Vec<SliceRecord> {
        let place = |slice| {
            let nodes = self.layouts.place(up, volume, slice, copies as usize);
            let copy = |node| CopyRecord {
                node,
                status: CopyStatus::InSync,
            };
            nodes.into_iter().map(copy).collect()
        };
        slices.map(place).collect()
    }
}

/// The slices that change as every copy becomes stale that its owner has not reconciled, or whose
/// node has restarted since: nobody knows its stream. Refuses if a slice would lose its last one.
pub(super) fn settled_copies<'a>(
    nodes: &BTreeMap<NodeId, NodeRecord>,
    slices: impl Iterator<Item = (u32, &'a SliceRecord)>,
    reconciled: &Reconciled,
) -> Result<Vec<(u32, SliceRecord)>, Refusal> {
    let starts = reconciled.incarnations.iter();
    let current: BTreeSet<NodeId> = starts
        .filter(|(node, incarnation)| {
            let record = nodes.get(node);
            record.is_some_and(|record| record.incarnation == *incarnation)
        })
        .map(|(node, _)| *node)
        .collect();
    let mut settled = Vec::new();
    for ((index, slice), members) in slices.zip(&reconciled.slices) {
        let keeps = |node: NodeId| current.contains(&node) && members.contains(&node);
        if !slice.in_sync().any(keeps) {
            return Err(Refusal::LastCopy);
        }
        if !slice.in_sync().all(keeps) {
            settled.push((index, slice.only_in_sync(keeps)));
        }
    }
    Ok(settled)
}
