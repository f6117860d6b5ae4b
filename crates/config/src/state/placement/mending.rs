//! Slices that lack a copy, or have one where it counts for nothing.
//!
//! | what a slice has | what happens |
//! |---|---|
//! | a stale copy on an evicted node | it moves to a node that is up and has none |
//! | fewer copies than the volume wants | a stale copy is added on such a node |
//! | a copy on a node that is drained | see [`super::drain`] |
//! | more copies than the volume wants | see [`super::moves`] |
//! | a copy in sync on an evicted node | nothing, until its owner takes it out |
//! | one of these, and no such node | it waits until a node comes up |
//!
//! Every change is followed by a look at the slices that it touched, and at those that wait if a
//! node came up with it; never at others. Where a copy goes, it begins stale and empty, and the
//! owner brings it up to date like every stale copy.

use std::collections::BTreeSet;

use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use crate::state::records::{ClusterState, VolumeRecord};
use crate::state::slices::{CopyRecord, CopyStatus, SharedSet, SliceRecord};

/// What has to be mended. Derived from the rest of the state, and empty but for what waits between
/// two changes.
#[derive(Clone, Default)]
pub(in crate::state) struct Mending {
    /// All slices with something to mend for which no node is there.
    waiting: SharedSet<(VolumeId, u32)>,
    /// Slices with something to mend that this change has touched.
    touched: BTreeSet<(VolumeId, u32)>,
    /// A node takes copies that did not before this change.
    node_came: bool,
}

impl Mending {
    /// A node takes copies from now on.
    pub(in crate::state) fn node_came(&mut self) {
        self.node_came = true;
    }

    /// These slices may have something to mend.
    pub(super) fn touch(&mut self, slices: Vec<(VolumeId, u32)>) {
        self.touched.extend(slices);
    }

    /// The volume is gone.
    pub(in crate::state) fn forget(&mut self, volume: VolumeId) {
        let gone = self.waiting.range((volume, 0)..=(volume, u32::MAX));
        let gone: Vec<(VolumeId, u32)> = gone.copied().collect();
        for slice in gone {
            self.waiting.remove(&slice);
        }
    }
}

impl PartialEq for Mending {
    /// It is derived.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Mending {}

impl std::fmt::Debug for Mending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting.len();
        formatter
            .debug_struct("Mending")
            .field("waiting", &waiting)
            .finish()
    }
}

impl ClusterState {
    /// Places slices of a volume anew, each with another record.
    pub(in crate::state) fn set_slices(
        &mut self,
        volume: VolumeId,
        slices: Vec<(u32, SliceRecord)>,
    ) {
        let Some(record) = self.volumes.get(&volume) else {
            return;
        };
        let touched = slices.iter().filter(|(_, slice)| {
            self.is_broken(record, slice)
                || self.is_drained_in_part(slice)
                || self.without_surplus(record, slice).is_some()
        });
        let touched = touched.map(|(index, _)| (volume, *index)).collect();
        self.mending.touch(touched);
        self.volumes.update(volume, |record| {
            for (index, slice) in slices {
                record.slices.set(index, slice);
            }
        });
    }

    /// The node's copies count for nothing from now on.
    pub(super) fn displace(&mut self, node: NodeId) {
        let mut stale = Vec::new();
        for volume in self.volumes.held_by(node) {
            let slices = self.volumes[&volume].slices.iter();
            let slices = slices.filter(|(_, slice)| slice.status(node) == Some(CopyStatus::Stale));
            stale.extend(slices.map(|(index, _)| (volume, index)));
        }
        self.mending.touched.extend(stale);
    }

    /// Notes what waits in a state that was read.
    pub(in crate::state) fn note_waiting(&mut self, volume: VolumeId, indexes: &[u32]) {
        let record = &self.volumes[&volume];
        let broken = indexes.iter().copied().filter(|index| {
            let slice = record.slices.get(*index);
            slice.is_some_and(|slice| self.is_broken(record, slice))
        });
        let broken: Vec<u32> = broken.collect();
        let broken = broken.into_iter().map(|index| (volume, index));
        self.mending.waiting.extend(broken);
    }

    /// Mends what can be mended now; see the module's header.
    pub(in crate::state) fn mend(&mut self) {
        let mut slices = std::mem::take(&mut self.mending.touched);
        if std::mem::take(&mut self.mending.node_came) {
            slices.extend(self.mending.waiting.iter().copied());
        }
        if slices.is_empty() {
            return;
        }
        let takers = self.placeable();
        for (volume, index) in slices {
            self.mend_slice(volume, index, &takers);
        }
        self.mending.touched.clear();
    }

    fn mend_slice(&mut self, volume: VolumeId, index: u32, takers: &[NodeId]) {
        let record = self.volumes.get(&volume);
        let Some((record, slice)) =
            record.and_then(|record| Some((record, record.slices.get(index)?)))
        else {
            return;
        };
        let mended = self.mended(volume, record, index, takers);
        let waits = self.is_broken(record, mended.as_ref().unwrap_or(slice));
        if let Some(mended) = mended {
            let taken_out = mended.in_sync().count() < slice.in_sync().count();
            self.view.0 += u64::from(taken_out);
            self.volumes
                .update(volume, |record| record.slices.set(index, mended));
        }
        if waits {
            self.mending.waiting.insert((volume, index));
        } else {
            self.mending.waiting.remove(&(volume, index));
        }
    }

    /// The slice with as many copies where they can be as nodes allow; `None` if nothing changes.
    fn mended(
        &self,
        volume: VolumeId,
        record: &VolumeRecord,
        index: u32,
        takers: &[NodeId],
    ) -> Option<SliceRecord> {
        let mut copies: Vec<CopyRecord> = record.slices[index].copies().collect();
        let mut changed = false;
        loop {
            let displaced = copies.iter().position(|copy| self.is_displaced(*copy));
            let stays = copies.iter().filter(|copy| {
                !self.is_displaced(**copy) && !self.draining.contains_key(&copy.node)
            });
            let enough = stays.count() >= record.copies as usize;
            if enough && let Some(place) = displaced {
                // Another one was added when its node was drained.
                copies.remove(place);
                changed = true;
                continue;
            }
            if enough {
                break;
            }
            let mut free = takers.to_vec();
            free.retain(|node| copies.iter().all(|copy| copy.node != *node));
            // The layout spreads the slices of a volume, so the copies of one node go to all
            // others.
            let Some(node) = self.layouts.place(&free, volume, index, 1).pop() else {
                break;
            };
            let stale = CopyRecord {
                node,
                status: CopyStatus::Stale,
            };
            match displaced {
                Some(place) => copies[place] = stale,
                None => copies.push(stale),
            }
            changed = true;
        }
        let mended: SliceRecord = copies.into_iter().collect();
        let fewer = self.without_drained(record, &mended);
        let fewer = fewer.or_else(|| self.without_surplus(record, &mended));
        fewer.or_else(|| changed.then_some(mended))
    }

    fn is_drained_in_part(&self, slice: &SliceRecord) -> bool {
        !self.draining.is_empty()
            && slice
                .copies()
                .any(|copy| self.draining.contains_key(&copy.node))
    }

    fn is_broken(&self, record: &VolumeRecord, slice: &SliceRecord) -> bool {
        slice.copies().len() < record.copies as usize
            || slice.copies().any(|copy| self.is_displaced(copy))
    }

    fn is_displaced(&self, copy: CopyRecord) -> bool {
        copy.status == CopyStatus::Stale && self.is_evicted(copy.node)
    }

    /// Asserts that what waits is what looking at every slice gives.
    pub(in crate::state) fn check_mending(&self) {
        let slices = self.volumes.iter().flat_map(|(id, record)| {
            let broken = move |slice: &SliceRecord| self.is_broken(record, slice);
            let slices = record.slices.iter().filter(move |(_, slice)| broken(slice));
            slices.map(|(index, _)| (*id, index))
        });
        assert!(
            slices.eq(self.mending.waiting.iter().copied()),
            "slices to be mended"
        );
    }
}
