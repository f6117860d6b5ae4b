//! What a holder gives up: volumes that were deleted.

use std::sync::Arc;

use holdfast_wire::SliceKey;
use tokio::sync::Mutex;

use crate::holder::Holder;

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
}
