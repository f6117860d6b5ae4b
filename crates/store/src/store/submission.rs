//! How calls that change something enter the store: checks, reservations, places in the queue,
//! truncation.
//!
//! Tested with the whole store: `tests/basics.rs`, `tests/crashes.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use tokio::sync::oneshot;

use crate::encoding::block_checksum;
use crate::error::StoreError;
use crate::facts::{Change, Void};
use crate::home::Arrival;
use crate::home::fact::{Blocks, EXTENT_BLOCKS, State};
use crate::journal::Submission;
use crate::journal::item::{Item, Kind};
use crate::record::{
    BLOCK_BYTES, Body, Copied, CopiedBlock, CopyState, OperationId, Record, Seq, SliceKey,
};
use crate::store::Inner;
use crate::store::transfer::version_of;

/// A call whose items are queued.
pub(crate) struct Submitted(Option<oneshot::Receiver<Result<(), StoreError>>>);

impl Submitted {
    pub(crate) async fn outcome(self) -> Result<(), StoreError> {
        match self.0 {
            Some(receiver) => flattened(receiver.await),
            None => Ok(()),
        }
    }
}

/// Where the outcome of a call arrives.
pub(crate) type Reply = oneshot::Receiver<Result<(), StoreError>>;

/// A reply that never came says that the store was closed.
pub(crate) fn flattened(
    outcome: Result<Result<(), StoreError>, oneshot::error::RecvError>,
) -> Result<(), StoreError> {
    outcome.unwrap_or(Err(StoreError::Closed))
}

impl Inner {
    /// Refuses ranges that leave the slice.
    pub(crate) fn check_range(
        &self,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
    ) -> Result<(), StoreError> {
        let limit = self.options.slice_blocks;
        let end = first_block.checked_add(blocks);
        if blocks == 0 || end.is_none_or(|end| end > limit) {
            return Err(StoreError::OutOfRange {
                slice,
                first_block,
                blocks,
                limit,
            });
        }
        Ok(())
    }

    pub(crate) fn copy_state(&self, slice: SliceKey) -> CopyState {
        self.facts.with(|facts| {
            let found = facts.slice(slice);
            found.map_or(CopyState::Absent, |found| found.copy)
        })
    }

    /// Whether zeroing a block that was never written must be remembered: a joining copy may
    /// still be sent an older version of it.
    pub(crate) fn remembers_zeroes(&self, slice: SliceKey) -> bool {
        match self.copy_state(slice) {
            CopyState::Joining { .. } => true,
            CopyState::InSync | CopyState::Absent => false,
        }
    }

    pub(crate) fn stable_rose(&self, slice: SliceKey) {
        self.unsealed.borrow_mut().insert(slice);
        self.something_destageable(slice);
    }

    pub(crate) fn something_destageable(&self, slice: SliceKey) {
        self.dirty.borrow_mut().insert(slice);
        self.pressure.something_destageable();
    }

    /// Promises room for blocks. If there is none, what was freed in the journal and does not count
    /// yet is made to.
    fn reserve(&self, wanted: &[(SliceKey, u32, u32)]) -> Result<(), StoreError> {
        let reserved = self.home.reserve(wanted);
        if reserved.is_err() {
            self.pressure.space_wanted();
        }
        reserved
    }

    /// Slices whose zeroes are stable, so that a whole round brings them home.
    pub(crate) fn zeroes_at_rest(&self) -> Vec<(SliceKey, Seq)> {
        let slices = self.slices.borrow();
        let stable = |slice| slices.get(&slice).map_or(Seq(0), |index| index.stable);
        self.space.at_rest(stable)
    }

    pub(crate) fn submit_records(&self, records: Vec<Record>) -> Result<Submitted, StoreError> {
        self.poison.check()?;
        let mut last: BTreeMap<SliceKey, Seq> = BTreeMap::new();
        let mut wanted = Vec::new();
        let blocks_max = self.journal.record_blocks_max();
        for record in &records {
            let (slice, seq) = (record.slice, record.seq);
            let reserved = match last.get(&slice) {
                Some(last) => *last,
                None => self
                    .slices
                    .borrow()
                    .get(&slice)
                    .map_or(Seq(0), |index| index.reserved),
            };
            if seq <= reserved {
                return Err(StoreError::OutOfOrder {
                    slice,
                    seq,
                    last: reserved,
                });
            }
            last.insert(slice, seq);
            let (first, blocks) = record.body.range();
            let allocates = match &record.body {
                Body::Write { data, .. } => {
                    if data.len() % BLOCK_BYTES != 0 {
                        let limit = self.options.slice_blocks;
                        let first_block = first;
                        return Err(StoreError::OutOfRange {
                            slice,
                            first_block,
                            blocks,
                            limit,
                        });
                    }
                    if blocks > blocks_max {
                        return Err(StoreError::TooLarge {
                            blocks,
                            limit: blocks_max,
                        });
                    }
                    true
                }
                Body::Zero { .. } => false,
                Body::Nothing => continue,
            };
            self.check_range(slice, first, blocks)?;
            if allocates {
                wanted.push((slice, first, blocks));
            }
        }
        self.reserve(&wanted)?;
        for record in &records {
            if let Body::Zero { .. } = record.body {
                self.space.zeroed(record.slice, record.seq);
            }
        }
        let mut slices = self.slices.borrow_mut();
        for (slice, seq) in last {
            slices.entry(slice).or_default().reserved = seq;
        }
        Ok(self.submit(records.into_iter().map(item_of).collect()))
    }

    /// Queues copied blocks; says which are not wanted.
    pub(crate) async fn submit_copies(
        &self,
        slice: SliceKey,
        blocks: Vec<CopiedBlock>,
    ) -> Result<(Submitted, Vec<u32>), StoreError> {
        self.poison.check()?;
        let mut wanted = Vec::new();
        let mut unwanted = Vec::new();
        let mut items = Vec::new();
        for mut copied in blocks {
            self.check_range(slice, copied.block, 1)?;
            if let Copied::Bytes(bytes) = &copied.content
                && bytes.len() != BLOCK_BYTES
            {
                let (first_block, limit) = (copied.block, self.options.slice_blocks);
                return Err(StoreError::OutOfRange {
                    slice,
                    first_block,
                    blocks: 0,
                    limit,
                });
            }
            if !self.wants_copy(slice, &mut copied).await {
                unwanted.push(copied.block);
                continue;
            }
            if copied.content != Copied::Zero {
                wanted.push((slice, copied.block, 1));
            }
            items.push(copied_item(slice, copied));
        }
        self.poison.check()?;
        self.reserve(&wanted)?;
        Ok((self.submit(items), unwanted))
    }

    /// Whether a copied block is newer than what is here. A copy in sync has the whole stable
    /// history, so nothing up to its stable point can be news, unless it is lost here.
    async fn wants_copy(&self, slice: SliceKey, copied: &mut CopiedBlock) -> bool {
        if copied.content == Copied::Lost && copied.seq == Seq(0) {
            // It may be newer than what is here, which is therefore not known any more either.
            let here = self.newest_stable(slice, copied.block).await;
            (copied.view, copied.seq) = version_of(here.as_ref());
            return here.is_none_or(|found| !found.is_unknown());
        }
        let is_bad = self.bad.contains(slice, copied.block);
        match self.newest_stable(slice, copied.block).await {
            Some(found) if found.is_unknown() || is_bad => copied.seq >= found.seq,
            Some(found) => copied.seq > found.seq,
            None if copied.seq == Seq(0) => false,
            None => match self.copy_state(slice) {
                CopyState::InSync => {
                    copied.seq
                        > self
                            .slices
                            .borrow()
                            .get(&slice)
                            .map_or(Seq(0), |i| i.stable)
                }
                CopyState::Joining { .. } | CopyState::Absent => true,
            },
        }
    }

    /// Queues items; nothing to do is done.
    pub(crate) fn submit(&self, items: Vec<Item>) -> Submitted {
        if items.is_empty() {
            return Submitted(None);
        }
        let (reply, receiver) = oneshot::channel();
        let submission = Submission {
            items: items.into(),
            reply: Some(reply),
        };
        self.journal.queue.borrow_mut().push_back(submission);
        self.journal.wake.notify_one();
        Submitted(Some(receiver))
    }

    /// Takes queued stream records that `is_gone` accepts off the queue.
    pub(super) fn withdraw(&self, is_gone: impl Fn(&Item) -> bool) {
        let mut queue = self.journal.queue.borrow_mut();
        for submission in queue.iter_mut() {
            let before = submission.items.len();
            submission.items.retain(|item| !is_gone(item));
            if submission.items.len() < before
                && let Some(reply) = submission.reply.take()
            {
                let _ = reply.send(Err(StoreError::Withdrawn));
            }
        }
        queue.retain(|submission| !submission.items.is_empty());
    }

    /// `None` if there is nothing to take back: no record above `keep_through` is durable, on its
    /// way into the journal or waiting for that, and no earlier truncation is under way.
    pub(crate) fn begin_truncate(
        self: &Rc<Self>,
        slice: SliceKey,
        keep_through: Seq,
    ) -> Result<Option<Reply>, StoreError> {
        self.poison.check()?;
        {
            let mut slices = self.slices.borrow_mut();
            let Some(index) = slices.get_mut(&slice) else {
                return Ok(None);
            };
            let stable = index.stable;
            if keep_through < stable {
                return Err(StoreError::BelowStable {
                    slice,
                    stable,
                    keep_through,
                });
            }
            if index.is_nothing_above(keep_through) {
                return Ok(None);
            }
            index.reserved = index.reserved.min(keep_through);
            index.truncations += 1;
        }
        self.withdraw(|item| {
            item.slice == slice && item.kind.is_stream() && item.seq > keep_through
        });
        self.space.truncated(slice, keep_through);
        // Whatever is submitted from here on goes into this batch or a later one.
        let before_lsn = self.journal.next_lsn();
        let (reply, receiver) = oneshot::channel();
        let inner = self.clone();
        self.runtime.spawn("store truncate", async move {
            let outcome = inner.truncate(slice, keep_through, before_lsn).await;
            if let Some(index) = inner.slices.borrow_mut().get_mut(&slice) {
                index.truncations -= 1;
            }
            let _ = reply.send(outcome);
        });
        Ok(Some(receiver))
    }

    async fn truncate(
        &self,
        slice: SliceKey,
        keep_through: Seq,
        before_lsn: u64,
    ) -> Result<(), StoreError> {
        self.wait_written(before_lsn - 1).await?;
        let mut unpinned = Vec::new();
        {
            let mut slices = self.slices.borrow_mut();
            let Some(index) = slices.get_mut(&slice) else {
                return Ok(());
            };
            let stable = index.stable;
            if keep_through < stable {
                return Err(StoreError::BelowStable {
                    slice,
                    stable,
                    keep_through,
                });
            }
            index.drop_from(keep_through.next(), before_lsn, &mut unpinned);
        }
        let tail_lsn = self.journal.tail_lsn();
        let void = Void {
            slice,
            keep_through,
            before_lsn,
        };
        let changes = [Change::Forget { tail_lsn }, Change::Void(void)];
        self.facts.update(changes).await?;
        self.released.borrow_mut().extend(unpinned);
        let promised = self.home.promised_extents(slice);
        self.renew_promises(&promised.into_iter().map(|extent| (slice, extent)).collect());
        Ok(())
    }

    /// Promises room for what the journal will bring to these extents, and for nothing else.
    pub(crate) fn renew_promises(&self, extents: &BTreeSet<(SliceKey, u32)>) {
        let mut coming: BTreeMap<(SliceKey, u32), Blocks> = BTreeMap::new();
        let mut comes = |slice: SliceKey, first: u32, blocks: u32| {
            for block in first..first + blocks {
                let extent = coming.entry((slice, block / EXTENT_BLOCKS)).or_default();
                extent.set((block % EXTENT_BLOCKS) as u8, true);
            }
        };
        for (slice, first, blocks) in &*self.journal.in_flight.borrow() {
            comes(*slice, *first, *blocks);
        }
        for item in self
            .journal
            .queue
            .borrow()
            .iter()
            .flat_map(|queued| &queued.items)
        {
            if item.kind.has_data() {
                comes(item.slice, item.first_block, item.blocks);
            }
        }
        let slices = self.slices.borrow();
        for (slice, extent) in extents {
            let queued = coming.get(&(*slice, *extent)).copied().unwrap_or_default();
            let index = slices.get(slice);
            let held = index
                .filter(|_| !planted::is_active(Bug::ForgetPromisedRoom))
                .map(|index| index.data_in(*extent))
                .unwrap_or_default();
            self.home.set_promised(*slice, *extent, held.union(&queued));
        }
    }

    /// Blocks that have been written: what was bad is not any more, but for those of which the
    /// journal had lost the data.
    pub(crate) fn settle_bad(&self, arrivals: &[Arrival]) {
        for arrival in arrivals {
            match arrival.state {
                State::Unknown => _ = self.bad.note(arrival.slice, arrival.block),
                State::Present | State::Zero => self.bad.heal(arrival.slice, arrival.block),
            }
        }
    }

    /// Waits until batch `lsn` is durable and in the index.
    pub(super) async fn wait_written(&self, lsn: u64) -> Result<(), StoreError> {
        loop {
            let progress = self.journal.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            self.poison.check()?;
            if self.journal.written_lsn() >= lsn {
                return Ok(());
            }
            progress.await;
        }
    }
}

fn item_of(record: Record) -> Item {
    let (first_block, blocks) = record.body.range();
    let slice = record.slice;
    let (kind, data) = match record.body {
        Body::Write { data, .. } => (Kind::Write, data),
        Body::Zero { .. } => (Kind::Zero, Bytes::new()),
        Body::Nothing => (Kind::Nothing, Bytes::new()),
    };
    let checksums = data
        .chunks(BLOCK_BYTES)
        .zip(first_block..)
        .map(|(bytes, block)| block_checksum(slice, block, bytes))
        .collect();
    Item {
        kind,
        slice,
        view: record.view,
        seq: record.seq,
        stable: record.stable,
        operation: record.operation,
        first_block,
        blocks,
        relocated: false,
        checksums,
        data,
        unread: None,
        lost: Vec::new(),
    }
}

fn copied_item(slice: SliceKey, copied: CopiedBlock) -> Item {
    let (kind, data) = match copied.content {
        Copied::Bytes(data) => (Kind::CopyWrite, data),
        Copied::Zero => (Kind::CopyZero, Bytes::new()),
        Copied::Lost => (Kind::CopyLost, Bytes::new()),
    };
    let checksums = data
        .chunks(BLOCK_BYTES)
        .map(|b| block_checksum(slice, copied.block, b))
        .collect();
    Item {
        kind,
        slice,
        view: copied.view,
        seq: copied.seq,
        stable: Seq(0),
        operation: OperationId::default(),
        first_block: copied.block,
        blocks: 1,
        relocated: false,
        checksums,
        data,
        unread: None,
        lost: Vec::new(),
    }
}
