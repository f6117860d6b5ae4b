//! The task that writes the journal: everything queued, one batch at a time.
//!
//! Tested with the whole store: `tests/basics.rs`, `tests/crashes.rs`.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_runtime::reach::{self, Row};
use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::journal::Purpose;
use crate::journal::batch::Size;
use crate::journal::item::{Item, Kind};
use crate::record::{OperationId, Seq, SliceKey, View};
use crate::store::Inner;

/// How long the journal has to be idle before its last batch is sealed. Longer than a batch
/// write, so that a busy journal writes none; short, because until then damage to the last
/// acknowledged batch cannot be told from a torn write.
const SEAL_AFTER: Duration = Duration::from_millis(3);
/// Stable points one seal carries.
const SEAL_SLICES: usize = 512;

type Reply = oneshot::Sender<Result<(), StoreError>>;

/// Writes batches until the store is closed.
pub(crate) async fn run(inner: Rc<Inner>) {
    let mut unsealed_batch = false;
    loop {
        if inner.poison.check().is_err() {
            fail_queued(&inner);
            inner.journal.wake.notified().await;
            continue;
        }
        let queued = !inner.journal.queue.borrow().is_empty();
        let pause = inner.journal.slope();
        if queued && !pause.is_zero() {
            // What comes meanwhile goes into the same batch.
            inner.runtime.sleep(pause).await;
        }
        if queued && write_next(&inner).await {
            unsealed_batch = true;
            continue;
        }
        if queued {
            // No room: only the destage task can make some.
            reach::note(Row::JournalBlocked);
            inner.pressure.blocked();
        }
        let woken = inner.journal.wake.notified();
        if !unsealed_batch {
            woken.await;
        } else if inner.runtime.timeout(SEAL_AFTER, woken).await.is_none() {
            seal(&inner).await;
            unsealed_batch = false;
        }
        inner.pressure.unblocked();
    }
}

/// Writes one batch from the head of the queue; `false` if there is no room for its first item.
async fn write_next(inner: &Rc<Inner>) -> bool {
    let (items, replies) = take_batch(inner);
    if items.is_empty() {
        return false;
    }
    let data = items.iter().filter(|item| item.kind.has_data());
    *inner.journal.in_flight.borrow_mut() = data
        .map(|item| (item.slice, item.first_block, item.blocks))
        .collect();
    inner.pressure.appended(inner.runtime.now());
    let outcome = match inner.journal.write(&items).await {
        Ok(lsn) => {
            inner.absorb(&items, lsn);
            inner.journal.in_flight.borrow_mut().clear();
            Ok(())
        }
        Err(error) => Err(inner.poison.set(error)),
    };
    for reply in replies {
        let _ = reply.send(outcome.clone());
    }
    inner.journal.progress.notify_waiters();
    true
}

fn take_batch(inner: &Inner) -> (Vec<Item>, Vec<Reply>) {
    let mut queue = inner.journal.queue.borrow_mut();
    let (mut items, mut replies) = (Vec::new(), Vec::new());
    let mut size = Size::default();
    while let Some(submission) = queue.front_mut() {
        while let Some(item) = submission.items.front() {
            let purpose = if item.relocated {
                Purpose::Relocate
            } else {
                Purpose::Append
            };
            let larger = size
                .with(item)
                .filter(|size| inner.journal.has_room(*size, purpose));
            let Some(larger) = larger else {
                return (items, replies);
            };
            size = larger;
            items.extend(submission.items.pop_front());
        }
        replies.extend(submission.reply.take());
        queue.pop_front();
    }
    (items, replies)
}

/// Writes a small batch behind the last one. It proves that that one was complete, and carries
/// stable points. Skipped when even the reserve is used up: it only ever narrows doubt.
pub(crate) async fn seal(inner: &Rc<Inner>) {
    let keys: Vec<SliceKey> = inner
        .unsealed
        .borrow()
        .iter()
        .copied()
        // In a batch behind its removal a stable point would count for the slice's next life.
        .filter(|key| !inner.space.is_removing(*key))
        .take(SEAL_SLICES)
        .collect();
    let items: Vec<Item> = {
        let slices = inner.slices.borrow();
        let known = keys
            .iter()
            .filter_map(|key| slices.get(key).map(|index| (key, index)));
        known
            .map(|(key, index)| stable_item(*key, index.stable))
            .collect()
    };
    let size = items
        .iter()
        .try_fold(Size::default(), |size, item| size.with(item));
    if size.is_none_or(|size| !inner.journal.has_room(size, Purpose::Seal)) {
        return;
    }
    match inner.journal.write(&items).await {
        Ok(lsn) => {
            inner.journal.unpin(&[lsn]);
            inner
                .unsealed
                .borrow_mut()
                .retain(|key| !keys.contains(key));
        }
        Err(error) => {
            inner.poison.set(error);
        }
    }
    inner.journal.progress.notify_waiters();
}

fn stable_item(slice: SliceKey, stable: Seq) -> Item {
    Item {
        kind: Kind::Stable,
        slice,
        view: View(0),
        seq: Seq(0),
        stable,
        operation: OperationId::default(),
        first_block: 0,
        blocks: 0,
        relocated: false,
        checksums: Rc::from([]),
        data: Bytes::new(),
        unread: None,
        lost: Vec::new(),
    }
}

fn fail_queued(inner: &Inner) {
    let queued: Vec<_> = inner.journal.queue.borrow_mut().drain(..).collect();
    for submission in queued {
        if let (Some(reply), Err(error)) = (submission.reply, inner.poison.check()) {
            let _ = reply.send(Err(error));
        }
    }
}

impl Inner {
    /// Enters a durable batch into the index.
    fn absorb(&self, items: &[Item], lsn: u64) {
        let mut slices = self.slices.borrow_mut();
        let mut unpinned = Vec::new();
        let mut touched = Vec::new();
        let mut pins = 0;
        for item in items {
            let index = slices.entry(item.slice).or_default();
            let stable = index.stable;
            pins += u64::from(index.insert(item, lsn, &mut unpinned));
            touched.push((item.slice, index.stable > stable));
        }
        drop(slices);
        // The pin that `write` put on comes off as the items' own go on.
        self.journal.pin(lsn, pins);
        self.journal.unpin(&[lsn]);
        self.released.borrow_mut().extend(unpinned);
        for (slice, rose) in touched {
            if rose {
                self.unsealed.borrow_mut().insert(slice);
            }
            self.something_destageable(slice);
        }
        let (_, used) = self.journal.usage();
        self.pressure.ring_used(used);
    }
}
