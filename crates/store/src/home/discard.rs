//! How free segments go back to the device.
//!
//! Promises: a segment is discarded after the edit that freed it is durable, so that in no state
//! that a crash leaves does anything refer to it; and before it is filled again, because the
//! caller holds the lock of the home's writers meanwhile. What it reads as from then on, nobody
//! asks.
//!
//! Which segments went back, only memory knows. So after a start all free segments are discarded
//! once more. For those that the device has already, there is little to do.
//!
//! Tested with the whole store: `tests/discard.rs`.

use std::cell::{Cell, RefCell};

use holdfast_runtime::Discarded;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};

use super::Home;
use super::layout::Change;
use super::segments::Numbers;

/// Most bytes of one step: writers of the home wait for it.
const STEP_BYTES: u64 = 64 << 20;

/// What the device has back.
pub(super) struct GivenBack {
    /// Segments that are in use, and free ones that the device has: nothing is to be done there.
    settled: RefCell<Numbers>,
    /// Where the next look begins.
    next: Cell<u32>,
    /// The device takes nothing back, or has failed to: it is not asked again.
    refused: Cell<bool>,
}

impl GivenBack {
    /// The device has nothing of what is free.
    pub(super) fn new(in_use: Numbers) -> Self {
        Self {
            settled: RefCell::new(in_use),
            next: Cell::new(0),
            refused: Cell::new(false),
        }
    }

    fn settle(&self, number: u32, is_settled: bool) {
        self.settled.borrow_mut().set(number, is_settled);
    }

    /// Segments below `usable` next to each other that wait, `most` of them at most: the first
    /// one and how many.
    fn next_waiting(&self, usable: u32, most: u32) -> Option<(u32, u32)> {
        let settled = self.settled.borrow();
        let next = self.next.get().min(usable);
        let mut first = settled.first_absent(next);
        if first >= usable {
            first = settled.first_absent(0);
            if first >= next {
                return None;
            }
        }
        let end = usable.min(first.saturating_add(most));
        let waits = |number: &u32| !settled.contains(*number);
        let count = (first..end).take_while(waits).count() as u32;
        self.next.set(first + count);
        Some((first, count))
    }
}

impl Home {
    /// Resolves when a segment has become free since the last call; at once, the first time.
    pub(crate) async fn segment_freed(&self) {
        self.freed.notified().await;
    }

    /// An edit with these changes is durable.
    pub(super) fn note_durable(&self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Opened { segment, .. } => self.given_back.settle(*segment, true),
                Change::Freed { segment } => {
                    self.given_back.settle(*segment, false);
                    self.freed.notify_one();
                }
                Change::Filled { .. }
                | Change::Sealed { .. }
                | Change::Live { .. }
                | Change::DeltaAdded(_)
                | Change::DeltasDropped { .. }
                | Change::DeltaLost { .. }
                | Change::TableRemoved(_)
                | Change::TableAdded(..)
                | Change::VolumeCleared(_)
                | Change::SlicesCleared { .. } => {}
            }
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
        self.given_back.next_waiting(usable, most)
    }

    async fn discard(&self, first: u32, count: u32) {
        let offset = self.byte_at(first, 0);
        let len = u64::from(count) * self.manifest.geometry.segment_bytes();
        match self.disk.discard(offset, len).await {
            Ok(Discarded::Done) => {
                tracing::debug!(segment = first, count, "free segments were discarded");
                for number in first..first + count {
                    self.given_back.settle(number, true);
                }
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
