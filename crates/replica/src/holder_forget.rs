//! What a holder gives up: volumes that were deleted, and copies that are placed elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_store::StoreError;
use holdfast_wire::{Seq, SliceKey, View};
use tokio::sync::Mutex;

use crate::holder::Holder;

/// Streams that were being set up at one moment: see [`Holder::set_up_of`].
pub struct SetUps(BTreeMap<SliceKey, (View, u64)>);

impl Holder {
    /// Forgets what is in memory about a volume that is known to be deleted, once what was being
    /// set up of it has ended: after this nothing of it is taken in.
    pub async fn forget_volume(&self, volume: u64) {
        let of_volume = |slice: &SliceKey| slice.volume == volume;
        self.receiving
            .borrow_mut()
            .retain(|slice, _| !of_volume(slice));
        let under_way: Vec<Arc<Mutex<()>>> = {
            let setting_up = self.setting_up.borrow();
            let turns = setting_up.iter().filter(|(slice, _)| of_volume(slice));
            turns.map(|(_, turn)| turn.clone()).collect()
        };
        for turn in under_way {
            drop(turn.lock().await);
        }
        self.receiving
            .borrow_mut()
            .retain(|slice, _| !of_volume(slice));
        self.newest_session
            .borrow_mut()
            .retain(|slice, _| !of_volume(slice));
        self.setting_up
            .borrow_mut()
            .retain(|slice, _| !of_volume(slice));
    }

    /// The newest streams that owners have begun to set up, of each slice of a volume.
    pub fn set_up_of(&self, volume: u64) -> SetUps {
        let newest = self.newest_session.borrow();
        let of_volume = newest.iter().filter(|(slice, _)| slice.volume == volume);
        SetUps(of_volume.map(|(slice, newest)| (*slice, *newest)).collect())
    }

    /// Drops copies that the cluster has placed elsewhere, unless an owner has set them up since
    /// `set_up` was asked for, or has just made them for a slice that is about to be placed.
    /// Answers how many.
    pub async fn drop_copies(
        &self,
        slices: Vec<SliceKey>,
        set_up: &SetUps,
    ) -> Result<usize, StoreError> {
        let (mut dropped, mut turns) = (Vec::new(), Vec::new());
        for slice in slices {
            let turn = self.turn(slice).await;
            let newest = self.newest_session.borrow().get(&slice).copied();
            let is_new = {
                let receiving = self.receiving.borrow();
                let receiver = receiving.get(&slice);
                receiver.is_some() && self.store.last_seq(slice) == Seq(0)
            };
            if newest != set_up.0.get(&slice).copied() || is_new {
                continue;
            }
            self.receiving.borrow_mut().remove(&slice);
            dropped.push(slice);
            turns.push(turn);
        }
        let count = dropped.len();
        self.store.remove_slices(dropped).await?;
        Ok(count)
    }
}
