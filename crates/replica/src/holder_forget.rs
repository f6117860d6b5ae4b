//! What a holder gives up: volumes that were deleted, and copies that are placed elsewhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_store::{CopyState, StoreError};
use holdfast_wire::{Seq, SliceKey, View};
use tokio::sync::Mutex;

use crate::holder::Holder;

/// How some slices stood when they were looked at.
pub struct Seen(BTreeMap<SliceKey, Standing>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// The newest stream that an owner had begun to set up.
    newest: Option<(View, u64)>,
    /// Whether it held nothing, and counted: as an owner makes a copy of a slice that it is about
    /// to have placed. One that joins has been placed before.
    is_fresh: bool,
}

/// A slice that the cluster does not place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The slice.
    pub slice: SliceKey,
    /// The view of its volume when that was decided.
    pub view: View,
}

/// What became of slices that were to be dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many are gone.
    pub count: usize,
    /// Those that were set up meanwhile: what is decided about them may be something else by now.
    pub again: Vec<SliceKey>,
}

/// Takes what is kept of these slices out of `kept`: the cost is theirs, whatever else is kept.
fn take_out<V>(kept: &RefCell<BTreeMap<SliceKey, V>>, slices: &RangeInclusive<SliceKey>) {
    let mut kept = kept.borrow_mut();
    kept.extract_if(slices.clone(), |_, _| true).for_each(drop);
}

impl Seen {
    /// The slices, ascending.
    pub fn slices(&self) -> impl Iterator<Item = SliceKey> + '_ {
        self.0.keys().copied()
    }
}

impl Holder {
    /// Forgets what is in memory about a volume that is known to be deleted, once what was being
    /// set up of it has ended: after this nothing of it is taken in.
    pub async fn forget_volume(&self, volume: u64) {
        let of_volume = SliceKey::all_of(volume);
        take_out(&self.receiving, &of_volume);
        let under_way: Vec<Arc<Mutex<()>>> = {
            let setting_up = self.setting_up.borrow();
            let turns = setting_up.range(of_volume.clone());
            turns.map(|(_, turn)| turn.clone()).collect()
        };
        for turn in under_way {
            drop(turn.lock().await);
        }
        take_out(&self.receiving, &of_volume);
        take_out(&self.newest_session, &of_volume);
        take_out(&self.setting_up, &of_volume);
    }

    /// Notes how slices stand, for [`Holder::drop_copies`] to find out what has changed since.
    pub fn look_at(&self, slices: Vec<SliceKey>) -> Seen {
        let newest = self.newest_session.borrow();
        let standing = |slice: SliceKey| Standing {
            newest: newest.get(&slice).copied(),
            is_fresh: self.store.copy_state(slice) == CopyState::InSync
                && self.store.last_seq(slice) == Seq(0)
                && self.store.base(slice) == Seq(0),
        };
        let seen = slices.into_iter().map(|slice| (slice, standing(slice)));
        Seen(seen.collect())
    }

    /// Drops copies of which the cluster, asked after `seen`, has decided that they are elsewhere:
    /// but those that an owner has begun to set up since, and those that were empty, as long as
    /// the owner that made them may still have them placed.
    pub async fn drop_copies(
        &self,
        seen: &Seen,
        unplaced: Vec<Unplaced>,
    ) -> Result<Dropped, StoreError> {
        let (mut dropped, mut again, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        for Unplaced { slice, view } in unplaced {
            let turn = self.turn(slice).await;
            let standing = seen.0.get(&slice);
            let newest = self.newest_session.borrow().get(&slice).copied();
            if standing.is_none_or(|standing| standing.newest != newest)
                && !planted::is_active(Bug::SweepOverSetUp)
            {
                reach::note(Row::SweepOvertaken);
                again.push(slice);
                continue;
            }
            let may_be_placed = standing.is_some_and(|standing| standing.is_fresh)
                && self.store.promised(slice.volume) >= view;
            if may_be_placed && !planted::is_active(Bug::SweepEmptyCopies) {
                reach::note(Row::SweepLeftEmpty);
                continue;
            }
            reach::note(Row::SweptAway);
            self.receiving.borrow_mut().remove(&slice);
            dropped.push(slice);
            turns.push(turn);
        }
        let count = dropped.len();
        self.store.remove_slices(dropped).await?;
        Ok(Dropped { count, again })
    }
}
