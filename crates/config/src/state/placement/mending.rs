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
//! Every change is followed by a look at the slices that it touched, never at others. But a node
//! that is evicted or drained may have copies of very many slices, among very many others, and a
//! node that comes up may be what very many wait for. So that change only marks it. The leader then
//! looks for slices of which there is something to do, some at a time, and proposes `Mend` for
//! those; until it finds none, and again when nodes have changed. Where a copy goes, it begins
//! stale and empty, and the owner brings it up to date like every stale copy.

use std::collections::BTreeSet;

use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::check_count;
use crate::state::MENDED_AT_ONCE_MAX;
use crate::state::change::{Outcome, Refusal};
use crate::state::records::{ClusterState, VolumeRecord};
use crate::state::slices::{CopyRecord, CopyStatus, SharedSet, SliceRecord};

/// What can be mended in a part of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToMend {
    /// The slices, ascending.
    pub found: Vec<u32>,
    /// The slice to go on with; `None` if the volume ends here.
    pub next: Option<u32>,
}

/// What has to be mended. Derived from the rest of the state, and empty but for what waits between
/// two changes.
#[derive(Clone, Default)]
pub(in crate::state) struct Mending {
    /// All slices with fewer copies than their volumes want.
    waiting: SharedSet<(VolumeId, u32)>,
    /// Slices with something to mend that this change has touched.
    touched: BTreeSet<(VolumeId, u32)>,
}

impl Mending {
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

    /// Notes what waits in a state that was read.
    pub(in crate::state) fn note_waiting(&mut self, volume: VolumeId, indexes: &[u32]) {
        let record = &self.volumes[&volume];
        let lacking = indexes.iter().copied().filter(|index| {
            let slice = record.slices.get(*index);
            slice.is_some_and(|slice| lacks_copies(record, slice))
        });
        let lacking = lacking.map(|index| (volume, index));
        self.mending.waiting.extend(lacking);
    }

    /// Whether a slice lacks a copy, or has one where it counts for nothing or is not to stay.
    /// There may be no node yet for what is to be done.
    pub fn has_to_mend(&self) -> bool {
        !self.mending.waiting.is_empty() || self.vacated().next().is_some()
    }

    /// Nodes whose copies are to be elsewhere, as far as they have any.
    fn vacated(&self) -> impl Iterator<Item = NodeId> + '_ {
        let nodes = self.nodes.keys().copied();
        nodes.filter(|node| {
            (self.is_evicted(*node) || self.draining.contains_key(node))
                && self.volumes.held_by(*node).next().is_some()
        })
    }

    /// The volumes with something to mend, ascending; each may have nothing for which there is a
    /// node.
    pub fn volumes_to_mend(&self) -> Vec<VolumeId> {
        let held = self.vacated().flat_map(|node| self.volumes.held_by(node));
        let mut volumes: BTreeSet<VolumeId> = held.collect();
        let mut first = VolumeId(0);
        while let Some((volume, _)) = self.mending.waiting.range((first, 0)..).next() {
            volumes.insert(*volume);
            first = VolumeId(volume.0 + 1);
        }
        volumes.into_iter().collect()
    }

    /// Looks for what can be mended among so many slices of a volume, from `first` on.
    pub fn look_to_mend(&self, volume: VolumeId, first: u32, most: usize) -> ToMend {
        let mut search = ToMend::default();
        let Some(record) = self.volumes.get(&volume) else {
            return search;
        };
        let takers = self.placeable();
        let mut looked_at = 0;
        for (index, slice) in record.slices.range(first..).take(most) {
            looked_at += 1;
            search.next = index.checked_add(1);
            if self.can_mend(record, slice, &takers) {
                search.found.push(index);
            }
        }
        search.next = search.next.filter(|_| looked_at == most);
        search
    }

    /// The first slices, at most so many, that can be mended. Looks at all in one go, as tests do;
    /// a node looks in parts.
    pub fn all_to_mend(&self, most: usize) -> Vec<(VolumeId, u32)> {
        let volumes = self.volumes_to_mend().into_iter();
        let slices = volumes.flat_map(|volume| {
            let found = self.look_to_mend(volume, 0, usize::MAX).found;
            found.into_iter().map(move |index| (volume, index))
        });
        slices.take(most).collect()
    }

    /// Mends these slices as far as that is possible; answers how many are different then.
    pub(in crate::state) fn mend_slices(
        &mut self,
        slices: &[(VolumeId, u32)],
    ) -> Result<Outcome, Refusal> {
        check_count(slices.len(), MENDED_AT_ONCE_MAX)?;
        let takers = self.placeable();
        let can_mend = |(volume, index): &&(VolumeId, u32)| {
            let record = self.volumes.get(volume);
            let slice = record.and_then(|record| Some((record, record.slices.get(*index)?)));
            slice.is_some_and(|(record, slice)| self.can_mend(record, slice, &takers))
        };
        let slices: BTreeSet<_> = slices.iter().filter(can_mend).copied().collect();
        let count = slices.len() as u32;
        self.mending.touched.extend(slices);
        Ok(Outcome::Placed { slices: count })
    }

    /// Whether [`Self::mended`] changes something.
    fn can_mend(&self, record: &VolumeRecord, slice: &SliceRecord, takers: &[NodeId]) -> bool {
        match self.stays_enough(record, slice.copies()) {
            false => takers.iter().any(|node| slice.status(*node).is_none()),
            true => {
                slice.copies().any(|copy| self.is_displaced(copy))
                    || self.without_drained(record, slice).is_some()
            }
        }
    }

    /// Whether there are as many copies as wanted, without those that are to go.
    fn stays_enough(
        &self,
        record: &VolumeRecord,
        copies: impl Iterator<Item = CopyRecord>,
    ) -> bool {
        let stays = copies
            .filter(|copy| !self.is_displaced(*copy) && !self.draining.contains_key(&copy.node));
        stays.count() >= record.copies as usize
    }

    /// Mends what can be mended now; see the module's header.
    pub(in crate::state) fn mend(&mut self) {
        let slices = std::mem::take(&mut self.mending.touched);
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
        let waits = lacks_copies(record, mended.as_ref().unwrap_or(slice));
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
            let enough = self.stays_enough(record, copies.iter().copied());
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
        lacks_copies(record, slice) || slice.copies().any(|copy| self.is_displaced(copy))
    }

    fn is_displaced(&self, copy: CopyRecord) -> bool {
        copy.status == CopyStatus::Stale && self.is_evicted(copy.node)
    }

    /// Asserts that what waits is what looking at every slice gives.
    pub(in crate::state) fn check_mending(&self) {
        let slices = self.volumes.iter().flat_map(|(id, record)| {
            let slices = record.slices.iter();
            let slices = slices.filter(move |(_, slice)| lacks_copies(record, slice));
            slices.map(|(index, _)| (*id, index))
        });
        assert!(
            slices.eq(self.mending.waiting.iter().copied()),
            "slices to be mended"
        );
    }
}

fn lacks_copies(record: &VolumeRecord, slice: &SliceRecord) -> bool {
    slice.copies().len() < record.copies as usize
}
