//! Where copies go: every change of the config state is compared with the one before.
//!
//! | it objects to | |
//! |---|---|
//! | a copy in sync that is taken from its slice | unless the slice keeps as many others in sync as its volume wants |
//! | a node that is out for good with copies left on it | unless it is lost, or its disk has failed |
//! | a new copy, or a new office, on a node that is drained | |
//! | a drain that is over | unless somebody has called it off, or its node is out for good |
//!
//! And in the end: a slice with more copies than its volume wants, or with fewer although there is
//! a node for another one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{ClusterState, CopyStatus, SliceRecord, VolumeRecord};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::audit::Audit;
use crate::report::Failure;

/// How long a node that does not run, or says nothing, is left alone.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// States of which the one before, or after, may still be seen.
const KEPT: usize = 64;
/// From full redundancy until each slice has as many copies as are wanted.
const FITTING_BOUND: Duration = Duration::from_secs(30);

/// Compares each state with the one before, whichever nodes have told of them.
#[derive(Default)]
pub(super) struct Redundancy {
    seen: RefCell<BTreeMap<u64, Rc<ClusterState>>>,
    compared: Cell<u64>,
}

impl Redundancy {
    /// How many states were compared with the one before.
    pub(super) fn judged(&self) -> u64 {
        self.compared.get()
    }

    /// Some node has applied the log up to `index`; `is_gone` tells nodes that are out for another
    /// reason than a drain.
    fn look(
        &self,
        index: u64,
        state: &Rc<ClusterState>,
        is_gone: impl Fn(NodeId) -> bool,
        called_off: &BTreeSet<NodeId>,
    ) -> Result<(), Failure> {
        let mut seen = self.seen.borrow_mut();
        if seen.insert(index, state.clone()).is_some() {
            return Ok(());
        }
        let before = index.checked_sub(1).and_then(|before| seen.get(&before));
        let before = before.cloned();
        if seen.len() > KEPT {
            seen.pop_first();
        }
        drop(seen);
        let Some(before) = before else {
            return Ok(());
        };
        self.compared.set(self.compared.get() + 1);
        let step = Step {
            before: &before,
            state,
        };
        step.judge(is_gone, called_off)
            .map_err(|what| Failure::oracle("draining", what))
    }
}

/// One entry of the log, which may hold several changes.
struct Step<'a> {
    before: &'a ClusterState,
    state: &'a ClusterState,
}

impl Step<'_> {
    fn judge(
        &self,
        is_gone: impl Fn(NodeId) -> bool,
        called_off: &BTreeSet<NodeId>,
    ) -> Result<(), String> {
        let (before, state) = (self.before, self.state);
        for node in before.draining.keys().copied() {
            let is_over = !state.draining.contains_key(&node);
            if is_over && !state.is_evicted(node) && !called_off.contains(&node) {
                return Err(format!("the drain of node {node} is forgotten"));
            }
            let mut held = state.volumes.held_by(node);
            if state.is_evicted(node)
                && !is_gone(node)
                && let Some(volume) = held.next()
            {
                return Err(format!("node {node} is out with copies of volume {volume}"));
            }
        }
        for id in state.volumes.changed_since(&before.volumes) {
            if let Some(is) = state.volumes.get(&id) {
                self.judge_volume(id, before.volumes.get(&id), is)?;
            }
        }
        Ok(())
    }

    fn is_drained(&self, node: NodeId) -> bool {
        self.before.draining.contains_key(&node) && self.state.draining.contains_key(&node)
    }

    fn judge_volume(
        &self,
        id: VolumeId,
        was: Option<&VolumeRecord>,
        is: &VolumeRecord,
    ) -> Result<(), String> {
        let owner = is.owner.map(|owner| owner.node);
        let is_new_office = was.is_none_or(|was| was.view != is.view);
        if let Some(owner) = owner.filter(|owner| is_new_office && self.is_drained(*owner)) {
            return Err(format!("node {owner} is drained and gets volume {id}"));
        }
        let Some(was) = was else {
            return Ok(());
        };
        for index in is.slices.changed_since(&was.slices) {
            let (earlier, slice) = (was.slices.get(index), is.slices.get(index));
            let Some(slice) = slice else {
                continue;
            };
            let has_had = |node| earlier.is_some_and(|earlier| earlier.status(node).is_some());
            let mut added = slice.copies().map(|copy| copy.node);
            if let Some(node) = added.find(|node| !has_had(*node) && self.is_drained(*node)) {
                return Err(format!(
                    "node {node} is drained and gets a copy of slice {index} of volume {id}"
                ));
            }
            if let Some(earlier) = earlier {
                let kept = self.expect_kept(earlier, slice, is.copies as usize);
                kept.map_err(|node| {
                    format!(
                        "node {node} has given up slice {index} of volume {id}: {slice:?}, \
                         before {earlier:?}"
                    )
                })?;
            }
        }
        Ok(())
    }

    /// An error names a node that has given up a copy in sync that was needed.
    fn expect_kept(
        &self,
        earlier: &SliceRecord,
        slice: &SliceRecord,
        wanted: usize,
    ) -> Result<(), NodeId> {
        let (before, state) = (self.before, self.state);
        let counting = slice.in_sync().filter(|node| !state.is_evicted(*node));
        // Several changes at once: those that fell out may have counted for the first of them.
        let fallen = |node: &NodeId| {
            !before.is_evicted(*node)
                && (slice.status(*node) == Some(CopyStatus::Stale) || state.is_evicted(*node))
        };
        let fallen = earlier.in_sync().filter(fallen);
        if counting.count() + fallen.count() >= wanted {
            return Ok(());
        }
        // One of the changes may have taken a copy out of the in-sync set, which counts up the
        // view, and a drain that was called off then have let go of it as one out of date.
        let is_called_off = before
            .draining
            .keys()
            .any(|node| !state.draining.contains_key(node));
        if is_called_off && state.view > before.view && slice.copies().len() >= wanted {
            return Ok(());
        }
        // What is on an evicted node counts for nothing.
        let mut left = earlier
            .in_sync()
            .filter(|node| slice.status(*node).is_none() && !state.is_evicted(*node));
        left.next().map_or(Ok(()), Err)
    }
}

impl Audit {
    /// Looks at every state that the node applies, for ever.
    pub(super) async fn keep_watching(self: Rc<Self>, id: NodeId) {
        let nodes = &self.workload.nodes;
        let runtime = nodes.simulation.runtime();
        let is_gone =
            |node| self.is_lost_machine(node) || nodes.simulation.disks(node).have_failed();
        loop {
            let Some((_, node)) = nodes.get(id) else {
                runtime.sleep(LOOK_AFTER).await;
                continue;
            };
            let mut watch = node.watch();
            let index = *watch.borrow_and_update();
            let called_off = self.workload.called_off.borrow().clone();
            let looked = self
                .redundancy
                .look(index, &node.state(), is_gone, &called_off);
            if let Err(failure) = looked {
                self.workload.object(failure);
            }
            drop(node);
            // A process that was killed says nothing more.
            let _ = runtime.timeout(LOOK_AFTER, watch.changed()).await;
        }
    }

    /// Changes of the config state that were looked at one by one.
    pub(super) fn judged(&self) -> u64 {
        self.redundancy.judged()
    }

    /// Waits until no slice has more copies than are wanted, nor fewer if there is a node for one.
    pub(super) async fn expect_fitting(&self) -> Result<(), Failure> {
        let runtime = self.workload.nodes.simulation.runtime();
        let deadline = runtime.now() + FITTING_BOUND;
        loop {
            let state = self.newest_state();
            let unfit = state.and_then(|state| self.unfit(&state));
            let Some(what) = unfit else {
                return Ok(());
            };
            if runtime.now() >= deadline {
                let what = format!("{what}; {}", self.explain());
                return Err(Failure::oracle("redundancy", what));
            }
            self.workload.verdict()?;
            runtime.sleep(LOOK_AFTER).await;
        }
    }

    fn unfit(&self, state: &ClusterState) -> Option<String> {
        let takers = state.placeable();
        let is_settled = |slice: &SliceRecord| {
            slice.copies().all(|copy| {
                let leaves = state.draining.contains_key(&copy.node) || state.is_evicted(copy.node);
                copy.status == CopyStatus::InSync && !leaves
            })
        };
        let mut volumes = state.volumes.iter();
        volumes.find_map(|(id, volume)| {
            if self.is_given_up(*id) {
                return None;
            }
            let wanted = volume.copies as usize;
            let is_unfit = |(_, slice): &(u32, &SliceRecord)| {
                let copies = slice.copies().len();
                let has_room = takers.iter().any(|node| slice.status(*node).is_none());
                is_settled(slice) && (copies > wanted || copies < wanted && has_room)
            };
            let (index, slice) = volume.slices.iter().find(is_unfit)?;
            Some(format!(
                "slice {index} of volume {id} has {slice:?}, and {wanted} copies are wanted"
            ))
        })
    }
}
