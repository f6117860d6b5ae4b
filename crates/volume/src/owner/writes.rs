//! Writes: one record per slice, answered when every required copy has journaled it.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_reservation::{Access, Standing};
use holdfast_runtime::PAGE_BYTES;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_store::{Body, OperationId, Record};
use holdfast_wire::volume::IoStatus;
use holdfast_wire::{Seq, View};
use tokio::sync::oneshot;

use super::Owner;
use super::paths::PathKey;

/// An operation as its portal asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) operation: OperationId,
    /// The view that it was first sent in.
    pub(crate) first_view: View,
    /// Lower numbers of the same portal had ended when it was first sent.
    pub(crate) first_floor: u64,
    /// What its initiator was to the reservation table when it arrived.
    pub(crate) standing: Standing,
    /// The host's path that it came by.
    pub(crate) path: PathKey,
}

/// What a write does to its range.
#[derive(Clone)]
pub(crate) enum Effect {
    /// These bytes.
    Data(Bytes),
    /// Zeroes.
    Zero,
}

impl Effect {
    fn slice(&self, from: u64, bytes: u64) -> Self {
        match self {
            Self::Data(data) => Self::Data(data.slice(from as usize..(from + bytes) as usize)),
            Self::Zero => Self::Zero,
        }
    }
}

/// How long a write waits for space that is being freed: below any initiator's patience, above the
/// time that a copy takes to bring a whole journal home.
const SPACE_LIMIT: Duration = Duration::from_secs(5);
/// How often it is asked for meanwhile.
const SPACE_PAUSE: Duration = Duration::from_millis(20);
/// So many looks may still show what the copies had said before.
const STALE_LOOKS: u32 = 2;

type Stability = oneshot::Receiver<()>;

impl Owner {
    /// Writes a byte range of the volume; on `Ok` it is durable on every required copy.
    pub(crate) async fn write(
        &self,
        operation: &Asked,
        offset: u64,
        length: u64,
        effect: Effect,
    ) -> Result<(), IoStatus> {
        // All segments are handed to their streams before the first is waited for.
        let mut pending = Vec::new();
        let mut done = 0;
        for (index, start, bytes) in self.segments(offset, length) {
            let is_enough =
                matches!(effect, Effect::Zero) && planted::is_active(Bug::ZeroFirstSliceOnly);
            if is_enough && done > 0 && !self.slices.contains(index - 1) {
                break;
            }
            let part = effect.slice(done, bytes);
            pending.push(self.write_segment(operation, index, start, bytes, part));
            done += bytes;
        }
        let results = futures::future::join_all(pending).await;
        let begun = results.iter().any(|result| match result {
            Ok(()) => true,
            Err(status) => matches!(status, IoStatus::Interrupted | IoStatus::Uncertain),
        });
        results
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(|status| match status {
                // These say that nothing was done, which is not true of all slices.
                IoStatus::Stale | IoStatus::Over if begun => IoStatus::Interrupted,
                other => other,
            })
    }

    async fn write_segment(
        &self,
        operation: &Asked,
        index: u32,
        start: u64,
        bytes: u64,
        effect: Effect,
    ) -> Result<(), IoStatus> {
        if self.history.has_zeroed_idle(operation.operation, index) {
            reach::note(Row::RepeatAnswered);
            return Ok(());
        }
        if matches!(effect, Effect::Zero) && self.zero_unwritten(operation, index).await? {
            return Ok(());
        }
        self.placed(index).await?;
        if let Some(stable) = self.repeated(operation, index)? {
            return stable.await.map_err(|_| IoStatus::Interrupted);
        }
        let page = PAGE_BYTES as u64;
        let aligned = start.is_multiple_of(page) && bytes.is_multiple_of(page);
        let (first, end) = ((start / page) as u32, (start + bytes).div_ceil(page) as u32);
        let locks = self.with_slice(index, |slice| slice.locks.clone());
        let locks = locks.ok_or(IoStatus::Interrupted)?;
        if aligned {
            locks.wait_free((first, end)).await;
            let body = match effect {
                Effect::Data(data) => Body::Write {
                    first_block: first,
                    data,
                },
                Effect::Zero => Body::Zero {
                    first_block: first,
                    blocks: end - first,
                },
            };
            let stable = self.submit_with_space(operation, index, body).await?;
            return stable.await.map_err(|_| IoStatus::Interrupted);
        }
        // Parts of blocks: read, merge, write, with the blocks held meanwhile.
        let _guard = locks.lock((first, end)).await;
        let mut merged = self.read_settled(index, first, end).await?;
        let from = (start - u64::from(first) * page) as usize;
        let target = &mut merged[from..from + bytes as usize];
        match &effect {
            Effect::Data(data) => target.copy_from_slice(data),
            Effect::Zero => target.fill(0),
        }
        let body = Body::Write {
            first_block: first,
            data: merged.freeze(),
        };
        let stable = self.submit_with_space(operation, index, body).await?;
        stable.await.map_err(|_| IoStatus::Interrupted)
    }

    /// Zeroes a part of a slice, if nothing was ever written to it: then there is nothing to do,
    /// but to be sure of that. False if it has to be written like any other change.
    async fn zero_unwritten(&self, asked: &Asked, index: u32) -> Result<bool, IoStatus> {
        if self.slices.contains(index) {
            return Ok(false);
        }
        // Another owner may have placed the slice: not while these leases are alive.
        let first = u64::from(index) * self.slice_bytes;
        if !planted::is_active(Bug::ZeroUnplacedUnleased) {
            self.confirm_leases(first, 1).await?;
        }
        if self.slices.contains(index) || self.gate.is_closed() {
            return Ok(false);
        }
        self.check_reservations(asked.standing, Access::Write)?;
        self.judge_path(asked.path)?;
        reach::note(Row::ZeroedNeverWritten);
        self.history.note_idle_zero(asked.operation, index);
        Ok(true)
    }

    /// Compares and, if equal, writes: atomically with regard to every other operation on the
    /// range. `Err(Ok(offset))` says where the comparison failed.
    pub(crate) async fn compare_and_write(
        &self,
        operation: &Asked,
        offset: u64,
        payload: Bytes,
    ) -> Result<(), Result<u64, IoStatus>> {
        let half = payload.len() as u64 / 2;
        let (compare, data) = (
            payload.slice(..half as usize),
            payload.slice(half as usize..),
        );
        let [(index, start, bytes)] = self.segments(offset, half)[..] else {
            // Atomic over two slices it could not be; 32 KiB at 4 KiB alignment never spans two.
            return Err(Err(IoStatus::Invalid));
        };
        self.placed(index).await.map_err(Err)?;
        if let Some(stable) = self.repeated(operation, index).map_err(Err)? {
            return stable.await.map_err(|_| Err(IoStatus::Interrupted));
        }
        let page = PAGE_BYTES as u64;
        let (first, end) = ((start / page) as u32, (start + bytes).div_ceil(page) as u32);
        let locks = self.with_slice(index, |slice| slice.locks.clone());
        let locks = locks.ok_or(Err(IoStatus::Interrupted))?;
        let guard = locks.lock((first, end)).await;
        let _guard = (!planted::is_active(Bug::CompareUnlocked)).then_some(guard);
        let mut merged = self.read_settled(index, first, end).await.map_err(Err)?;
        let from = (start - u64::from(first) * page) as usize;
        let target = &mut merged[from..from + bytes as usize];
        let differs = target
            .iter()
            .zip(&compare)
            .position(|(now, wanted)| now != wanted);
        if let Some(at) = differs {
            reach::note(Row::CompareDiffers);
            // The answer shows data: like a read, it needs the leases.
            self.confirm_leases(offset, half).await.map_err(Err)?;
            self.check_reservations(operation.standing, Access::Write)
                .map_err(Err)?;
            return Err(Ok(at as u64));
        }
        target.copy_from_slice(&data);
        let body = Body::Write {
            first_block: first,
            data: merged.freeze(),
        };
        let stable = self.submit_with_space(operation, index, body).await;
        let stable = stable.map_err(Err)?;
        stable.await.map_err(|_| Err(IoStatus::Interrupted))
    }

    /// The newest bytes of blocks that the caller holds, with every earlier write stable.
    async fn read_settled(&self, index: u32, first: u32, end: u32) -> Result<BytesMut, IoStatus> {
        let settled = self.with_slice(index, |slice| {
            let last = Seq(slice.stream.next().0 - 1);
            slice.when_stable(last)
        });
        settled
            .ok_or(IoStatus::Interrupted)?
            .await
            .map_err(|_| IoStatus::Interrupted)?;
        let data = self.read_blocks(index, first, end - first).await?;
        Ok(BytesMut::from(data.as_ref()))
    }

    /// If the operation is in the slice's stream already: when it is stable.
    fn repeated(&self, asked: &Asked, index: u32) -> Result<Option<Stability>, IoStatus> {
        self.with_slice(index, |slice| {
            if let Some(seq) = slice.history.position(asked.operation) {
                reach::note(Row::RepeatAnswered);
                return Ok(Some(slice.when_stable(seq)));
            }
            let origin = asked.operation.origin;
            let fresh = asked.first_view == self.view
                || slice
                    .history
                    .covers(origin, asked.first_view, asked.first_floor);
            if fresh {
                Ok(None)
            } else {
                reach::note(Row::RepeatUncertain);
                Err(IoStatus::Uncertain)
            }
        })
        .ok_or(IoStatus::Interrupted)?
    }

    /// The same as [`Self::submit`]; what would be refused for want of space waits while some is
    /// being freed.
    async fn submit_with_space(
        &self,
        asked: &Asked,
        index: u32,
        body: Body,
    ) -> Result<Stability, IoStatus> {
        let runtime = &self.context.runtime;
        let deadline = runtime.now() + SPACE_LIMIT;
        for look in 0.. {
            match self.submit(asked, index, body.clone()) {
                Err(IoStatus::Full) => {}
                outcome => return outcome,
            }
            // The refusal has asked the copies: what they say is news from the second look on.
            let gets_space = self.with_slice(index, |slice| slice.gets_space());
            let hopeless = look >= STALE_LOOKS && gets_space != Some(true);
            if hopeless || runtime.now() >= deadline {
                break;
            }
            runtime.sleep(SPACE_PAUSE).await;
        }
        Err(IoStatus::Full)
    }

    /// Gives the record its place in the stream and sends it out.
    fn submit(&self, asked: &Asked, index: u32, body: Body) -> Result<Stability, IoStatus> {
        // The last moment to refuse: from here on the record is part of the stream.
        self.check_reservations(asked.standing, Access::Write)?;
        let held_at = self.judge_path(asked.path)?;
        let operation = asked.operation;
        let now = self.context.runtime.now();
        let view = self.view;
        let submitted = self.with_slice(index, |slice| {
            // What is there already can be written again: the copies are alike, and what they
            // keep in reserve covers the little in which they differ.
            let (first_block, blocks) = body.range();
            let store = &self.context.store;
            if slice.is_short()
                && matches!(body, Body::Write { .. })
                && !store.has_space_for(slice.key, first_block, blocks)
            {
                reach::note(Row::WriteRefusedFull);
                return Err(IoStatus::Full);
            }
            let bytes = match &body {
                Body::Write { data, .. } => data.len(),
                Body::Zero { .. } | Body::Nothing => 0,
            };
            let (seq, stable) = (slice.stream.next(), slice.stream.stable());
            let record = Record {
                slice: slice.key,
                view,
                seq,
                stable,
                operation,
                body,
            };
            let (numbered, commands) = slice.stream.submit(now, Rc::new(record), bytes);
            assert_eq!(numbered, seq, "the stream numbers what it was asked for");
            let range = (first_block, first_block + blocks);
            slice.note_unsettled(seq, range, held_at);
            let is_over = |operation| self.history.portal_is_past(operation);
            slice.history.remember(operation, seq, is_over);
            let ahead = slice.nears_its_end(range, self.slice_blocks());
            let outgoing = slice.absorb(commands);
            Ok((slice.key, stable, outgoing, slice.when_stable(seq), ahead))
        });
        let submitted = submitted.ok_or(IoStatus::Interrupted)?;
        if submitted.is_err() {
            self.ask_for_space(index);
        }
        let (key, stable, outgoing, when_stable, ahead) = submitted?;
        self.send(key, stable, outgoing);
        self.slices.attend(index);
        if ahead {
            self.place_ahead(index);
        }
        Ok(when_stable)
    }
}
