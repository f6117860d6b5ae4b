//! Slices that come with their first write.
//!
//! The owner in office chooses nodes by [`ClusterState::wanted_nodes`], has empty copies made
//! there, and then proposes `PlaceSlices`. So a copy that the directory calls in sync is durably
//! there: one that is found absent later is a lost one, never a fresh one.
//!
//! | what a `PlaceSlices` finds | outcome |
//! |---|---|
//! | another view, or the volume is not open | `ViewStale` |
//! | the config state is full, and a slice is not placed | `StateFull` |
//! | a slice beyond the end, on no node, on more nodes than copies, a node or slice twice | `PlacementInvalid` |
//! | a node that does not run in the start that made the copies | `IncarnationStale` |
//! | a node that is drained | `NodeDrains` |
//! | the slice is placed with exactly these nodes in sync | done: a repetition |
//! | the slice is placed otherwise | `ViewStale` |
//! | fewer nodes than the volume's copies | placed, the other copies stale on other nodes |
//!
//! A refusal changes nothing. What is placed costs as much as the slices that are named.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};

use super::check_count;
use crate::state::change::{Outcome, PlacedSlice, Refusal};
use crate::state::records::{ClusterState, NodeStatus, VolumeRecord};
use crate::state::slices::{CopyRecord, CopyStatus, SliceRecord};
use crate::state::{PLACED_AT_ONCE_MAX, PROMOTED_AT_ONCE_MAX, STATE_BYTES_MAX};

impl ClusterState {
    /// The nodes that a new slice of the volume gets by the layout: of those that are up, not
    /// drained and not excluded, as many as the volume has copies, or fewer. The first is the
    /// layout's first choice. Empty if there is no such volume.
    pub fn wanted_nodes(
        &self,
        volume: VolumeId,
        slice: u32,
        exclude: &BTreeSet<NodeId>,
    ) -> Vec<NodeId> {
        let Some(record) = self.volumes.get(&volume) else {
            return Vec::new();
        };
        let mut nodes = match planted::is_active(Bug::PlaceOnDrained) {
            true => self.members().map(|(node, _)| node).collect(),
            false => self.placeable(),
        };
        nodes.retain(|node| !exclude.contains(node));
        self.layouts
            .place(&nodes, volume, slice, record.copies as usize)
    }

    /// Refuses growth long before a snapshot would not fit.
    pub(in crate::state) fn check_room(&self) -> Result<(), Refusal> {
        let bytes = self.volumes.weight_bytes();
        if bytes < STATE_BYTES_MAX {
            Ok(())
        } else {
            Err(Refusal::StateFull { bytes })
        }
    }

    pub(in crate::state) fn place_slices(
        &mut self,
        volume: VolumeId,
        view: View,
        slices: &[PlacedSlice],
        incarnations: &[(NodeId, Incarnation)],
    ) -> Result<Outcome, Refusal> {
        let record = self.open_record(volume, view)?;
        check_count(slices.len(), PLACED_AT_ONCE_MAX)?;
        let known = |slice: &PlacedSlice| record.slices.contains(slice.index);
        if !slices.iter().all(known) {
            self.check_room()?;
        }
        let starts: BTreeMap<NodeId, Incarnation> = incarnations.iter().copied().collect();
        let mut named = BTreeSet::new();
        let mut placed = Vec::new();
        for slice in slices {
            if !named.insert(slice.index) {
                return Err(Refusal::PlacementInvalid(slice.index));
            }
            self.check_placement(record, slice, &starts)?;
            let wanted: BTreeSet<NodeId> = slice.nodes.iter().copied().collect();
            match record.slices.get(slice.index) {
                None => placed.push((slice.index, self.new_slice(volume, record, slice))),
                Some(known) if known.in_sync().collect::<BTreeSet<_>>() == wanted => {}
                Some(_) => return Err(Refusal::ViewStale),
            }
        }
        self.set_slices(volume, placed);
        Ok(Outcome::Done)
    }

    fn check_placement(
        &self,
        record: &VolumeRecord,
        slice: &PlacedSlice,
        starts: &BTreeMap<NodeId, Incarnation>,
    ) -> Result<(), Refusal> {
        let distinct: BTreeSet<&NodeId> = slice.nodes.iter().collect();
        let valid = slice.index < record.slice_count()
            && (1..=record.copies as usize).contains(&slice.nodes.len())
            && distinct.len() == slice.nodes.len();
        if !valid {
            return Err(Refusal::PlacementInvalid(slice.index));
        }
        for node in &slice.nodes {
            let start = starts.get(node);
            if !start.is_some_and(|start| self.running(*node, *start)) {
                return Err(Refusal::IncarnationStale(*node));
            }
            if self.draining.contains_key(node) && !planted::is_active(Bug::PlaceOnDrained) {
                return Err(Refusal::NodeDrains(*node));
            }
        }
        Ok(())
    }

    /// A slice with what its owner has set up in sync, and what the volume wants beyond that stale
    /// elsewhere: on nodes that are up if possible, else on some that may come back.
    fn new_slice(
        &self,
        volume: VolumeId,
        record: &VolumeRecord,
        slice: &PlacedSlice,
    ) -> SliceRecord {
        let copy = |status| move |node| CopyRecord { node, status };
        let in_sync = slice.nodes.iter().copied();
        let mut copies: Vec<CopyRecord> = in_sync.map(copy(CopyStatus::InSync)).collect();
        let groups: [fn(NodeStatus) -> bool; 2] = [
            |status| status == NodeStatus::Up,
            |status| matches!(status, NodeStatus::Down | NodeStatus::Leaving),
        ];
        for group in groups {
            let missing = record.copies as usize - copies.len();
            if missing == 0 {
                break;
            }
            let free = self.nodes.iter().filter(|(node, found)| {
                group(found.status)
                    && !self.draining.contains_key(node)
                    && copies.iter().all(|copy| copy.node != **node)
            });
            let free: Vec<NodeId> = free.map(|(node, _)| *node).collect();
            let chosen = self.layouts.place(&free, volume, slice.index, missing);
            copies.extend(chosen.into_iter().map(copy(CopyStatus::Stale)));
        }
        copies.into_iter().collect()
    }

    pub(in crate::state) fn promote_copies(
        &mut self,
        volume: VolumeId,
        view: View,
        node: NodeId,
        incarnation: Incarnation,
        slices: &[u32],
    ) -> Result<Outcome, Refusal> {
        check_count(slices.len(), PROMOTED_AT_ONCE_MAX)?;
        self.promote(volume, view, node, incarnation, slices)
    }
}
