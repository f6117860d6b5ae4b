//! Making an open volume larger, beside its I/O.
//!
//! | step | owner | config state |
//! |---|---|---|
//! | 1 | | `GrowVolume`: new slices are placed, the size is the old one |
//! | 2 | fences every copy of the new slices and begins their streams | |
//! | 3 | | `Grown`: copies that were not reached are stale, the size is the new one |
//! | 4 | takes the new slices in, and operations beyond the old end | |
//!
//! Nothing of the old slices is touched. A failure before step 3 begins again at 2: no record is
//! in the new slices. If the outcome of step 3 stays unknown the owner leaves office; its
//! successor finds the new slices in the directory, whatever came of it.

use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, Outcome, Refusal, VolumeRecord};
use holdfast_runtime::reach::{self, Row};
use holdfast_wire::volume::{Io, IoStatus};

use crate::owner::{Owner, Phase};
use crate::takeover::{FenceWaits, Setback, Settled, present, reconciled};
use crate::waiting::WaitReason;

/// Pause before a growth that failed is begun again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Nothing presses: no lease has to be waited out, and a frame may get lost.
const FENCE_WAITS: FenceWaits = FenceWaits {
    answer: Duration::from_millis(1500),
    all: Duration::from_secs(10),
};
/// From this attempt on, a copy that cannot be set up is left stale, to be brought back later.
const PATIENT_ATTEMPTS: u32 = 5;
const PROPOSAL_LIMIT: Duration = Duration::from_millis(10_000);
/// How long an operation beyond the end that this owner knows waits for its node to know more.
const BARRIER_LIMIT: Duration = Duration::from_millis(2000);

impl Owner {
    /// Opens what the config state adds to the volume, until the owner closes.
    pub(crate) async fn keep_growing(self: Rc<Self>) {
        let mut watch = self.context.config.watch();
        let mut attempts = 0;
        while self.phase.get() == Phase::Open {
            watch.mark_unchanged();
            if !self.is_to_grow() {
                attempts = 0;
                if watch.changed().await.is_err() {
                    return;
                }
                continue;
            }
            attempts += 1;
            match self.grow(attempts < PATIENT_ATTEMPTS).await {
                Ok(()) => {}
                Err(Setback::Over) => return self.close(),
                Err(Setback::Again(why)) => {
                    let (volume, view) = (self.volume, self.view);
                    reach::note(Row::GrowAgain);
                    tracing::debug!(%volume, %view, ?why, "growing again");
                    self.wait_for(why);
                    self.context.runtime.sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    fn is_to_grow(&self) -> bool {
        self.context
            .config
            .state()
            .growing
            .contains_key(&self.volume)
    }

    /// Whether a new copy on a running node was not set up.
    fn lacks_copies(&self, record: &VolumeRecord, first: u32, settled: &[Settled]) -> bool {
        let state = self.context.config.state();
        let mut slices = record.slices.range(first..).zip(settled);
        slices.any(|((_, placed), settled)| {
            placed.in_sync().any(|node| {
                let running = state.running_incarnation(node).is_some();
                running && !settled.sessions.contains_key(&node)
            })
        })
    }

    /// One attempt; a patient one is content with every copy only.
    async fn grow(self: &Rc<Self>, patient: bool) -> Result<(), Setback> {
        let record = self.record_in_office().ok_or(Setback::Over)?;
        let known = self.slices.borrow().len() as u32;
        let added = known..record.slices.len() as u32;
        let witnesses = self.fence_all(&record, added.clone(), FENCE_WAITS).await?;
        let settled = self.reconcile_all(added, &witnesses).await?;
        if patient && self.lacks_copies(&record, known, &settled) {
            return Err(Setback::Again(WaitReason::NewSlices));
        }
        let change = Change::Grown {
            volume: self.volume,
            view: self.view,
            reconciled: reconciled(&settled, &witnesses),
        };
        match self.context.config.propose(change, PROPOSAL_LIMIT).await {
            Some(Outcome::Done) => {}
            Some(Outcome::Refused(Refusal::LastCopy)) => {
                return Err(Setback::Again(WaitReason::RestartedCopy));
            }
            Some(_) | None => return Err(Setback::Over),
        }
        self.take_in(known, settled, &present(&witnesses));
        self.waits_for.clear();
        // What has become of the new copies since they were reconciled is acted on now.
        self.follow_config();
        let size_bytes = self.size_bytes.get();
        tracing::info!(volume = %self.volume, view = %self.view, size_bytes, "volume grown");
        self.busy.notify_one();
        Ok(())
    }

    /// Whether the operation ends within the volume. Another node may have learned of a new size
    /// before this one.
    pub(crate) async fn check_bounds(&self, io: &Io) -> Result<(), IoStatus> {
        let Some(end) = io.offset.checked_add(io.length) else {
            return Err(IoStatus::Invalid);
        };
        if end <= self.size_bytes.get() {
            return Ok(());
        }
        if !self.context.config.read_barrier(BARRIER_LIMIT).await {
            return Err(IoStatus::Interrupted);
        }
        let state = self.context.config.state();
        let agreed = state.volumes.get(&self.volume).map(size_of);
        if end <= self.size_bytes.get() {
            Ok(())
        } else if agreed.is_some_and(|size| end <= size) {
            // Agreed on, and this owner is about to take the new slices in.
            Err(IoStatus::Interrupted)
        } else {
            Err(IoStatus::Invalid)
        }
    }
}

fn size_of(record: &VolumeRecord) -> u64 {
    record.size_bytes
}
