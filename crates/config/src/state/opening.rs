//! What a takeover agrees on at its end: the volume is open, with exactly the copies in sync that
//! its owner has reconciled.
//!
//! `OpenedBut` names what was *not* reconciled: nodes by their absence, single copies by ranges. It
//! says no less than a list of everything would: in-sync sets grow only by the word of an owner of
//! an open volume, so what is in sync when this is applied was so, in the same view, when the
//! takeover began, and its owner has seen it.
//!
//! | an in-sync copy | becomes |
//! |---|---|
//! | on a node that runs in the start that was reconciled, and not left out | in sync |
//! | on such a node, left out | stale |
//! | on a node that has restarted since, or is not named | stale: nobody knows its stream |
//! | the last one of its slice | all is refused (`LastCopy`) |

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};

use super::change::{LeftOut, Outcome, Reconciled, Refusal};
use super::growth::settled_copies;
use super::records::{ClusterState, Growth};
use super::slices::{SliceRecord, Slices};

impl ClusterState {
    pub(super) fn opened(
        &mut self,
        volume: VolumeId,
        view: View,
        reconciled: &Reconciled,
    ) -> Result<Outcome, Refusal> {
        let growing = self.growing.get(&volume).copied();
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        // Slices that were added while the takeover went on are left for the open owner.
        let reconciled_all = reconciled.slices.len() == record.slices.len();
        let before_growth = |growth: Growth| record.slices.range(..growth.first_slice).count();
        let all_but_new =
            growing.is_some_and(|growth| reconciled.slices.len() == before_growth(growth));
        if record.view != view || record.open || !(reconciled_all || all_but_new) {
            return Err(Refusal::ViewStale);
        }
        let settled = settled_copies(&self.nodes, record.slices.iter(), reconciled)?;
        self.open_with(volume, settled, growing.filter(|_| reconciled_all));
        Ok(Outcome::Done)
    }

    pub(super) fn opened_but(
        &mut self,
        volume: VolumeId,
        view: View,
        slices: u32,
        incarnations: &[(NodeId, Incarnation)],
        left_out: &[LeftOut],
    ) -> Result<Outcome, Refusal> {
        let record = self
            .volumes
            .get(&volume)
            .ok_or(Refusal::VolumeUnknown(volume))?;
        if record.view != view || record.open || record.slices.len() != slices as usize {
            return Err(Refusal::ViewStale);
        }
        let current = incarnations.iter().filter(|(node, incarnation)| {
            let known = self.nodes.get(node);
            known.is_some_and(|known| known.incarnation == *incarnation)
        });
        let current = current.map(|(node, _)| *node).collect();
        let left_out = match planted::is_active(Bug::KeepLeftOut) {
            true => &[],
            false => left_out,
        };
        let keeps = Keeps::new(current, left_out);
        let settled = keeps.settle(&record.slices)?;
        let growing = self.growing.get(&volume).copied();
        self.open_with(volume, settled, growing);
        Ok(Outcome::Done)
    }

    fn open_with(
        &mut self,
        volume: VolumeId,
        settled: Vec<(u32, SliceRecord)>,
        grown: Option<Growth>,
    ) {
        self.set_slices(volume, settled);
        self.volumes.update(volume, |record| {
            record.open = true;
            record.ever_open = true;
            if let Some(growth) = grown {
                record.size_bytes = growth.size_bytes;
            }
        });
        self.last_open.remove(&volume);
        if grown.is_some() {
            self.growing.remove(&volume);
        }
        self.view.0 += 1;
    }
}

/// Which in-sync copies stay so.
struct Keeps {
    current: BTreeSet<NodeId>,
    /// By node and first slice, the last one.
    left_out: BTreeMap<(NodeId, u32), u32>,
}

impl Keeps {
    fn new(current: BTreeSet<NodeId>, left_out: &[LeftOut]) -> Self {
        let ranges = left_out.iter();
        Self {
            current,
            left_out: ranges
                .map(|range| ((range.node, range.first), range.last))
                .collect(),
        }
    }

    fn keeps(&self, index: u32, node: NodeId) -> bool {
        let mut before = self.left_out.range((node, 0)..=(node, index));
        let inside = before.next_back().is_some_and(|(_, last)| index <= *last);
        self.current.contains(&node) && !inside
    }

    /// The slices that change. Looks at slices only if a copy can be lost.
    fn settle(&self, slices: &Slices) -> Result<Vec<(u32, SliceRecord)>, Refusal> {
        let mut holders = slices.holders().iter().filter(|held| held.in_sync > 0);
        if self.left_out.is_empty() && holders.all(|held| self.current.contains(&held.node)) {
            return Ok(Vec::new());
        }
        let mut settled = Vec::new();
        for (index, slice) in slices.iter() {
            if !slice.in_sync().any(|node| self.keeps(index, node)) {
                return Err(Refusal::LastCopy);
            }
            if !slice.in_sync().all(|node| self.keeps(index, node)) {
                let left = slice.only_in_sync(|node| self.keeps(index, node));
                settled.push((index, left));
            }
        }
        Ok(settled)
    }
}

impl Reconciled {
    /// The in-sync copies, on nodes that were reconciled at all, that are not in here, as few
    /// ranges. `slices` are those that the takeover began with.
    pub fn left_out(&self, slices: &Slices) -> Vec<LeftOut> {
        let named: BTreeSet<NodeId> = self.incarnations.iter().map(|(node, _)| *node).collect();
        let mut done = Vec::new();
        // By node the range that may still grow: over slices of which the node has no copy, too.
        let mut open: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
        for ((index, slice), members) in slices.iter().zip(&self.slices) {
            for node in slice.in_sync().filter(|node| named.contains(node)) {
                if !members.contains(&node) {
                    open.entry(node).or_insert((index, index)).1 = index;
                } else if let Some((first, last)) = open.remove(&node) {
                    done.push(LeftOut { node, first, last });
                }
            }
        }
        let open = open.into_iter();
        done.extend(open.map(|(node, (first, last))| LeftOut { node, first, last }));
        done.sort_unstable();
        done
    }
}
