//! Gives back what copies take that are no copies any more: they moved to other nodes, or were
//! made for a slice that was placed elsewhere in the end.
//!
//! A copy is dropped only if
//!
//! * the config state as it was decided when the sweep began does not place it here;
//! * no owner has set it up since: a decision that this node has not heard of may lie behind that;
//! * it is not one that an owner has just made, empty, for a slice that is about to be placed.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::ClusterState;
use holdfast_runtime::NodeId;
use holdfast_wire::{SliceKey, VolumeId};

use crate::node::{Failure, Node};

const BARRIER_LIMIT: Duration = Duration::from_secs(5);
/// Pause before a sweep that could not be sure of the state is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Of the volumes named, those of which `node` has fewer copies than before. Without a state from
/// before, all of which it may have any.
pub(crate) fn to_sweep(
    before: Option<&ClusterState>,
    state: &ClusterState,
    changed: &[VolumeId],
    node: NodeId,
) -> BTreeSet<VolumeId> {
    let copies = |state: &ClusterState, volume: &VolumeId| {
        let record = state.volumes.get(volume)?;
        Some(record.slices.held_by(node).copies)
    };
    let lost_some = |volume: &&VolumeId| {
        let Some(now) = copies(state, volume) else {
            // Deleted: everything of it goes.
            return false;
        };
        before.is_none_or(|before| copies(before, volume).is_some_and(|before| now < before))
    };
    changed.iter().filter(lost_some).copied().collect()
}

impl Node {
    /// Drops what this node has of these volumes and is not placed here.
    pub(crate) fn sweep(self: &Rc<Self>, volumes: BTreeSet<VolumeId>) {
        if volumes.is_empty() {
            return;
        }
        let node = self.clone();
        self.context.runtime.spawn("node-sweep", async move {
            for volume in volumes {
                while !node.sweep_volume(volume).await {
                    node.context.runtime.sleep_roughly(RETRY_PAUSE).await;
                }
            }
        });
    }

    /// False if it is to be tried again.
    async fn sweep_volume(&self, volume: VolumeId) -> bool {
        if self.kept_of(volume).is_empty() {
            return true;
        }
        let holder = &self.context.holder;
        // In this order: what is set up from here on is left alone.
        let set_up = holder.set_up_of(volume.0);
        if self.group.read_barrier(BARRIER_LIMIT).await.is_err() {
            return false;
        }
        let slices = self.kept_of(volume);
        if slices.is_empty() {
            return true;
        }
        match holder.drop_copies(slices, &set_up).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(%volume, dropped, "copies of other nodes are given back"),
            Err(error) => self.fail(Failure::Store(error.to_string())),
        }
        true
    }

    /// Slices of the volume that the store has something of, and the config state, as applied
    /// here, places elsewhere.
    fn kept_of(&self, volume: VolumeId) -> Vec<SliceKey> {
        let state = self.state();
        let Some(record) = state.volumes.get(&volume) else {
            return Vec::new();
        };
        let is_elsewhere = |slice: &SliceKey| {
            let placed = record.slices.get(slice.slice);
            placed.is_none_or(|placed| placed.status(self.id()).is_none())
        };
        let mut slices = self.context.store.slices_of(volume.0);
        slices.retain(is_elsewhere);
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_swept_of_volumes_that_are_not_there() {
        let state = ClusterState::default();
        let changed = [VolumeId(1), VolumeId(2)];
        assert!(to_sweep(None, &state, &changed, NodeId(1)).is_empty());
        assert!(to_sweep(Some(&state), &state, &changed, NodeId(1)).is_empty());
    }
}
