//! How free segments go back to the device.
//!
//! Promises: a segment is discarded after the edit that freed it is durable, so that in no state
//! that a crash leaves does anything refer to it; and before it is filled again, because the
//! caller holds the lock of the home's writers meanwhile. What it reads as from then on, nobody
//! asks.
//!
//! Which segments went back, only memory knows, by their epochs: one that has been in use since is
//! not among them. So after a start all free segments are discarded once more. For those that the
//! device has already, there is little to do.
//!
//! Tested with the whole store: `tests/discard.rs`.

use std::cell::{Cell, RefCell};

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Discarded, PAGE_BYTES};

use super::Home;
use super::layout::{Change, Segment};

/// Most bytes of one step: writers of the home wait for it.
const STEP_BYTES: u64 = 64 << 20;

/// What the device has back.
#[derive(Default)]
pub(super) struct GivenBack {
    /// Epochs in which free segments were discarded.
    epochs: RefCell<Vec<Option<u32>>>,
    /// Where the next look begins.
    next: Cell<u32>,
    /// The device takes nothing back, or has failed to: it is not asked again.
    refused: Cell<bool>,
}

impl GivenBack {
    fn has(&self, number: u32, segment: Segment) -> bool {
        let epochs = self.epochs.borrow();
        epochs.get(number as usize).copied().flatten() == Some(segment.epoch)
    }

    fn note(&self, number: u32, segment: Segment) {
        let mut epochs = self.epochs.borrow_mut();
        let index = number as usize;
        if index >= epochs.len() {
            epochs.resize(index + 1, None);
        }
        epochs[index] = Some(segment.epoch);
    }
}

impl Home {
    /// Resolves when a segment has become free since the last call; at once, the first time.
    pub(crate) async fn segment_freed(&self) {
        self.freed.notified().await;
    }

    /// An edit with these changes is durable.
    pub(super) fn note_freed(&self, changes: &[Change]) {
        let frees = |change: &Change| matches!(change, Change::Freed { .. });
        if changes.iter().any(frees) {
            self.freed.notify_one();
        }
    }

    /// Discards the next free segments that the device does not have back, neighbours together.
    /// The caller holds the lock of the home's writers. Returns whether there were any.
    pub(crate) async fn discard_some(&self) -> bool {
        if self.given_back.refused.get() {
            return false;
        }
        let Some((first, count)) = self.next_free() else {
            return false;
        };
        reach::note(Row::SegmentsDiscarded);
        self.discard(first, count).await;
        true
    }

    /// Free segments next to each other, the first one and how many.
    fn next_free(&self) -> Option<(u32, u32)> {
        let geometry = self.manifest.geometry;
        let usable = geometry.segments_in(self.disk.size_bytes());
        let most = (STEP_BYTES / geometry.segment_bytes()).max(1) as u32;
        let next = self.given_back.next.get().min(usable);
        self.manifest.with(|layout| {
            let waits = |number: &u32| {
                let segment = layout.segment(*number);
                segment.kind.is_none() && !self.given_back.has(*number, segment)
            };
            let first = (next..usable).chain(0..next).find(waits)?;
            let end = usable.min(first.saturating_add(most));
            let count = (first..end).take_while(waits).count() as u32;
            self.given_back.next.set(first + count);
            Some((first, count))
        })
    }

    async fn discard(&self, first: u32, count: u32) {
        let offset = u64::from(self.page_of(first, 0)) * PAGE_BYTES as u64;
        let len = u64::from(count) * self.manifest.geometry.segment_bytes();
        match self.disk.discard(offset, len).await {
            Ok(Discarded::Done) => {
                tracing::debug!(segment = first, count, "free segments were discarded");
                self.manifest.with(|layout| {
                    for number in first..first + count {
                        self.given_back.note(number, layout.segment(number));
                    }
                });
            }
            Ok(Discarded::Unsupported) => {
                tracing::debug!("the device of the home takes no free space back");
                self.given_back.refused.set(true);
            }
            // The store needs nothing of what lies there: it does not stop for this.
            Err(error) => {
                tracing::warn!(
                    %error,
                    "free space cannot be given back to the device; tried again after a restart"
                );
                self.given_back.refused.set(true);
            }
        }
    }

    /// A planted bug: what these changes will free, as if they were durable.
    pub(super) async fn discard_early(&self, changes: &[Change]) {
        if !planted::is_active(Bug::DiscardEarly) {
            return;
        }
        for change in changes {
            if let Change::Freed { segment } = change {
                self.discard(*segment, 1).await;
            }
        }
    }
}
