//! Copies that are to be on other nodes than they are, so that nodes hold alike.
//!
//! | a move finds | what happens |
//! |---|---|
//! | the slice with all its copies in sync and no more of them, one on `from` and none on `to` | a stale copy is added on `to`, and that on `from` is listed first |
//! | a slice under another move, one that lacks something, a node that takes no copies | nothing |
//!
//! | a slice with more copies than its volume wants | what happens |
//! |---|---|
//! | more in sync than wanted | the others go: stale ones, then those that are listed first |
//! | as many, or fewer | nothing: the owner brings the stale ones up to date |
//! | a copy on a node that is drained | see [`super::drain`] |
//!
//! So a copy goes in the change that makes the other one count, and no slice ever has fewer.

use holdfast_runtime::NodeId;
use holdfast_runtime::planted::{self, Bug};

use super::check_count;
use crate::state::MOVED_AT_ONCE_MAX;
use crate::state::change::{CopyMove, Outcome, Refusal};
use crate::state::records::{ClusterState, VolumeRecord};
use crate::state::slices::{CopyRecord, CopyStatus, SliceRecord};

impl ClusterState {
    /// Answers how many of the moves were begun.
    pub(in crate::state) fn move_copies(&mut self, moves: &[CopyMove]) -> Result<Outcome, Refusal> {
        check_count(moves.len(), MOVED_AT_ONCE_MAX)?;
        let takers = self.placeable();
        let mut slices = 0;
        for wanted in moves {
            let moved = self.moved(wanted, &takers);
            if let Some(moved) = moved {
                self.set_slices(wanted.volume, vec![(wanted.slice, moved)]);
                slices += 1;
            }
        }
        Ok(Outcome::Placed { slices })
    }

    /// The slice with the copy that is to be; `None` if it does not fit.
    fn moved(&self, wanted: &CopyMove, takers: &[NodeId]) -> Option<SliceRecord> {
        let record = self.volumes.get(&wanted.volume)?;
        let slice = record.slices.get(wanted.slice)?;
        let fits = self.is_whole(record, slice)
            && slice.is_in_sync(wanted.from)
            && slice.status(wanted.to).is_none()
            && takers.contains(&wanted.to);
        if !fits {
            return None;
        }
        let others = slice.copies().filter(|copy| copy.node != wanted.from);
        let copy = |node, status| CopyRecord { node, status };
        let first = copy(wanted.from, CopyStatus::InSync);
        let added = copy(wanted.to, CopyStatus::Stale);
        let copies = [first].into_iter().chain(others).chain([added]);
        Some(copies.collect())
    }

    /// Whether the slice has what its volume wants, no more, and all of it in sync on nodes that
    /// stay: only then one of its copies may be moved.
    pub fn is_whole(&self, record: &VolumeRecord, slice: &SliceRecord) -> bool {
        let stays = |node: NodeId| {
            self.running_incarnation(node).is_some() && !self.draining.contains_key(&node)
        };
        slice.copies().len() == record.copies as usize
            && slice
                .copies()
                .all(|copy| copy.status == CopyStatus::InSync && stays(copy.node))
    }

    /// The slice without the copies that are more than its volume wants; `None` if all are needed.
    pub(super) fn without_surplus(
        &self,
        record: &VolumeRecord,
        slice: &SliceRecord,
    ) -> Option<SliceRecord> {
        let wanted = record.copies as usize;
        let drained = |copy: CopyRecord| self.draining.contains_key(&copy.node);
        if slice.copies().len() <= wanted || slice.copies().any(drained) {
            return None;
        }
        let counts =
            |copy: CopyRecord| copy.status == CopyStatus::InSync && !self.is_evicted(copy.node);
        let any = planted::is_active(Bug::MoveCountsJoining);
        let counting = slice.copies().filter(|copy| any || counts(*copy)).count();
        let mut surplus = counting.checked_sub(wanted).filter(|more| *more > 0)?;
        let left = slice.copies().filter(|copy| {
            let goes = counts(*copy) && surplus > 0;
            surplus -= usize::from(goes);
            !goes && (any || copy.status == CopyStatus::InSync)
        });
        Some(left.collect())
    }
}
