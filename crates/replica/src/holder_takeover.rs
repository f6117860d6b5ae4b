//! The holder's side of a takeover: fence, then reconcile.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::future::join_all;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_store::{CopyState, OperationId};
use holdfast_wire::replica::{
    BeginStreams, CopyReport, Fence, FenceReply, OperationSeq, Reconcile, RecordHeader,
    ReplicaRefusal, ReplicaReply, StreamStart, TellStable,
};
use holdfast_wire::{Seq, SliceKey, View};
use tokio::sync::OwnedMutexGuard;
use tokio::task::yield_now;

use crate::grants::Predecessor;
use crate::holder::{Answer, Holder, refused};
use crate::messages;
use crate::receive::Receiver;

/// Slices of a fence that are reported before others have their turn.
const SLICES_AT_ONCE: usize = 256;

impl Holder {
    /// Promises the view, ends earlier streams, waits out earlier leases, then reports. A set-up
    /// by an earlier owner that has begun ends before its slice is reported: what it is about to
    /// drop must not be taken for held.
    pub(crate) async fn on_fence(&self, fence: &Fence) -> Answer {
        self.keep_out_earlier_owners(fence).await?;
        // A later fence may have come meanwhile; then this one must not be answered.
        self.check_view(fence.volume, fence.view)?;
        let mut copies = Vec::with_capacity(fence.slices.len());
        for (count, slice) in fence.slices.iter().enumerate() {
            if count % SLICES_AT_ONCE == SLICES_AT_ONCE - 1 {
                yield_now().await;
            }
            let slice = SliceKey {
                volume: fence.volume,
                slice: *slice,
            };
            let turn = self.turn(slice).await;
            if self.is_deleted(slice.volume) {
                return Err(ReplicaRefusal::Absent);
            }
            if fence.fresh && self.store.copy_state(slice) == CopyState::Absent {
                self.store
                    .set_copy_state(slice, CopyState::InSync)
                    .await
                    .map_err(refused)?;
            }
            copies.push(self.report(slice));
            drop(turn);
        }
        self.check_view(fence.volume, fence.view)?;
        let fence = FenceReply {
            free_bytes: self.spare_bytes(),
            promised: fence.view,
            copies,
        };
        Ok((
            ReplicaReply {
                fence: Some(fence),
                ..ReplicaReply::default()
            },
            Bytes::new(),
        ))
    }

    /// When this returns, no earlier owner can write or read here, nor serve what it has read.
    async fn keep_out_earlier_owners(&self, fence: &Fence) -> Result<(), ReplicaRefusal> {
        let view = View(fence.view);
        self.promise(fence.volume, view).await?;
        if planted::is_active(Bug::SkipFence) {
            return Ok(());
        }
        // Nothing from an earlier owner is taken or acknowledged any more. What is on its way
        // into the journal may still become durable: `reconcile` drops it.
        let is_earlier = |_: &SliceKey, receiver: &mut Receiver<_>| {
            receiver.view < view && !planted::is_active(Bug::FenceKeepsStreams)
        };
        let of_volume = SliceKey::all_of(fence.volume);
        let stopped = {
            let mut receiving = self.receiving.borrow_mut();
            receiving.extract_if(of_volume, is_earlier).count()
        };
        if stopped > 0 {
            reach::note(Row::FenceStopsStream);
        }
        loop {
            let death = self.death.notified();
            let now = self.runtime.now();
            let predecessor = predecessor(fence);
            let wait = self
                .grants
                .borrow()
                .hold_back(now, fence.volume, view, predecessor);
            if self.grants.borrow().is_spared(now, fence.volume, view) {
                reach::note(Row::FenceSpared);
            }
            if wait.is_zero() || planted::is_active(Bug::SkipLeaseWait) {
                return Ok(());
            }
            reach::note(
                match self.grants.borrow().is_known(now, fence.volume, view) {
                    true => Row::FenceWaitsLease,
                    false => Row::FenceWaitsGrace,
                },
            );
            self.runtime.timeout(wait, death).await;
        }
    }

    fn report(&self, slice: SliceKey) -> CopyReport {
        let tail = self.store.tail(slice);
        let sound = self.store.copy_state(slice) == CopyState::InSync
            && !self.store.is_suspect(slice)
            && !tail.iter().any(|entry| entry.damaged);
        if !sound {
            reach::note(Row::IncompleteCopy);
            tracing::warn!(%slice, "this copy may lack records: it counts for no takeover");
        }
        let complete = sound || planted::is_active(Bug::TrustIncompleteCopy);
        let header = |entry: &holdfast_store::TailEntry| RecordHeader {
            view: entry.view.0,
            seq: entry.seq.0,
            origin: entry.operation.origin,
            operation: entry.operation.number,
            first_block: entry.first_block,
            blocks: entry.blocks,
            zero: entry.zero,
        };
        let operation = |(operation, view, seq): &(OperationId, View, Seq)| OperationSeq {
            origin: operation.origin,
            operation: operation.number,
            seq: seq.0,
            view: view.0,
        };
        let last = self.store.last_seq(slice).0;
        let operations: Vec<OperationSeq> = self
            .store
            .recent_operations(slice)
            .iter()
            .map(operation)
            .collect();
        CopyReport {
            slice: slice.slice,
            complete,
            stable: self.store.stable(slice).0,
            last,
            tail: tail.iter().map(header).collect(),
            remembered_from: remembered_from(last, &operations),
            operations,
        }
    }

    /// Makes the slice's tail what the new owner says, and begins its stream.
    pub(crate) async fn on_reconcile(&self, reconcile: &Reconcile, payload: Bytes) -> Answer {
        let slice = SliceKey {
            volume: reconcile.volume,
            slice: reconcile.slice,
        };
        let view = View(reconcile.view);
        if self.store.promised(slice.volume) != view {
            return Err(ReplicaRefusal::ViewStale);
        }
        let keep_through = Seq(reconcile.keep_through);
        let _turn = self
            .begin_set_up(slice, view, reconcile.session, keep_through)
            .await?;
        let records = split_records(slice, &reconcile.records, payload)?;
        if !records.is_empty() {
            self.store.append(records).await.map_err(refused)?;
        }
        if self.store.promised(slice.volume) != view {
            return Err(ReplicaRefusal::ViewStale);
        }
        if reconcile.next > 0 {
            let receiver = Receiver::new(view, reconcile.session, Seq(reconcile.next));
            self.receiving.borrow_mut().insert(slice, receiver);
        }
        Ok((ReplicaReply::default(), Bytes::new()))
    }

    /// Whether this very stream has been set up.
    pub(crate) fn has_begun(&self, slice: SliceKey, session: u64) -> bool {
        let receiving = self.receiving.borrow();
        let begun = receiving.get(&slice).map(|receiver| receiver.session);
        begun == Some(session)
    }

    /// The earlier stream ends, and what the new owner does not keep of it is dropped.
    async fn begin_set_up(
        &self,
        slice: SliceKey,
        view: View,
        session: u64,
        keep_through: Seq,
    ) -> Result<OwnedMutexGuard<()>, ReplicaRefusal> {
        let turn = self.set_up(slice, view, session).await?;
        if self.has_begun(slice, session) {
            // The last message of this very set-up has been done; this is a part of it, late.
            return Err(ReplicaRefusal::SessionStale);
        }
        self.receiving.borrow_mut().remove(&slice);
        // Also if nothing is durable beyond: records of an earlier owner may be on their way.
        let nothing = self.store.last_seq(slice) <= keep_through;
        if !nothing || !planted::is_active(Bug::TruncateNothingAhead) {
            let truncated = self.store.truncate(slice, keep_through).await;
            truncated.map_err(refused)?;
        }
        Ok(turn)
    }

    /// Begins streams of which this node has everything before; the slices with which that did
    /// not work are left out of the answer.
    pub(crate) async fn on_begin_streams(&self, begin: &BeginStreams) -> Answer {
        let view = View(begin.view);
        if begin.fresh {
            self.promise(begin.volume, view).await?;
        }
        if self.store.promised(begin.volume) != view {
            return Err(ReplicaRefusal::ViewStale);
        }
        // Their durable facts are written together, as all are under way at the same time.
        let beginning = begin.slices.iter().map(|start| async move {
            let begun = self.begin_stream(begin, view, *start).await;
            begun.ok().map(|()| start.slice)
        });
        let begun = join_all(beginning).await.into_iter().flatten().collect();
        self.check_view(begin.volume, begin.view)?;
        let reply = ReplicaReply {
            begun,
            free_bytes: Some(self.spare_bytes()),
            ..ReplicaReply::default()
        };
        Ok((reply, Bytes::new()))
    }

    async fn begin_stream(
        &self,
        begin: &BeginStreams,
        view: View,
        start: StreamStart,
    ) -> Result<(), ReplicaRefusal> {
        let slice = SliceKey {
            volume: begin.volume,
            slice: start.slice,
        };
        let before = start.next.checked_sub(1).ok_or(ReplicaRefusal::Unknown)?;
        let _turn = self
            .begin_set_up(slice, view, start.session, Seq(before))
            .await?;
        if begin.fresh {
            self.make_empty_copy(slice).await?;
        }
        if self.store.promised(slice.volume) != view {
            return Err(ReplicaRefusal::ViewStale);
        }
        let receiver = Receiver::new(view, start.session, Seq(start.next));
        self.receiving.borrow_mut().insert(slice, receiver);
        Ok(())
    }

    /// A copy of a slice that nothing was ever written to. It may be here already, after an
    /// earlier attempt; one with records is of something else.
    async fn make_empty_copy(&self, slice: SliceKey) -> Result<(), ReplicaRefusal> {
        let state = self.store.copy_state(slice);
        let is_empty = self.store.last_seq(slice) == Seq(0) && self.store.base(slice) == Seq(0);
        match state {
            CopyState::InSync if is_empty => Ok(()),
            CopyState::Absent if is_empty && planted::is_active(Bug::FreshCopyUnsynced) => {
                let store = self.store.clone();
                self.runtime.spawn("replica-made", async move {
                    let _ = store.set_copy_state(slice, CopyState::InSync).await;
                });
                Ok(())
            }
            CopyState::Absent if is_empty => self
                .store
                .set_copy_state(slice, CopyState::InSync)
                .await
                .map_err(refused),
            CopyState::Absent | CopyState::InSync | CopyState::Joining { .. } => {
                tracing::warn!(%slice, "a copy with data stands where an empty one is wanted");
                Err(ReplicaRefusal::Unknown)
            }
        }
    }

    /// Notes the stable positions of idle streams; the slices whose stream is not here, or lacks
    /// something, are left out of the answer.
    pub(crate) fn on_tell_stable(&self, tell: &TellStable) -> Answer {
        self.check_view(tell.volume, tell.view)?;
        let raised = tell.slices.iter().filter(|position| {
            let slice = SliceKey {
                volume: tell.volume,
                slice: position.slice,
            };
            let raised = self.raise_stable(slice, View(tell.view), Seq(position.seq));
            raised.is_ok()
        });
        let reply = ReplicaReply {
            begun: raised.map(|position| position.slice).collect(),
            ..ReplicaReply::default()
        };
        Ok((reply, Bytes::new()))
    }
}

fn predecessor(fence: &Fence) -> Predecessor {
    match fence {
        Fence { fresh: true, .. } => Predecessor::Nobody,
        Fence { predecessor: 0, .. } => Predecessor::Unknown,
        fence => Predecessor::Owner(
            NodeId(fence.predecessor),
            Incarnation(fence.predecessor_incarnation),
            View(fence.predecessor_view),
        ),
    }
}

/// The position from which on every record up to `last` is among `operations`.
fn remembered_from(last: u64, operations: &[OperationSeq]) -> u64 {
    let known: BTreeSet<u64> = operations.iter().map(|operation| operation.seq).collect();
    let mut from = last + 1;
    while from > 1 && known.contains(&(from - 1)) {
        from -= 1;
    }
    from
}

/// Cuts the payload into the data of each record.
fn split_records(
    slice: SliceKey,
    headers: &[RecordHeader],
    mut payload: Bytes,
) -> Result<Vec<holdfast_store::Record>, ReplicaRefusal> {
    let mut records = Vec::with_capacity(headers.len());
    for header in headers {
        let bytes = if header.zero {
            0
        } else {
            header.blocks as usize * holdfast_runtime::PAGE_BYTES
        };
        if payload.len() < bytes {
            return Err(ReplicaRefusal::Unknown);
        }
        let data = payload.split_to(bytes);
        let record = messages::record(slice, Seq(0), header, data);
        records.push(record.ok_or(ReplicaRefusal::Unknown)?);
    }
    Ok(records)
}

/// The union of the tails that complete copies reported: by position, the newest view wins.
///
/// Returns the records after `stable`, contiguous from `stable + 1`, each with the nodes that
/// hold exactly it. A position that no copy holds ends the union: what follows was never
/// acknowledged, because acknowledgements are cumulative.
pub fn union_of_tails<N: Copy>(
    stable: Seq,
    reports: &[(N, &CopyReport)],
) -> Vec<(RecordHeader, Vec<N>)> {
    let mut by_seq: BTreeMap<u64, (RecordHeader, Vec<N>)> = BTreeMap::new();
    for (node, report) in reports {
        for header in report.tail.iter().filter(|header| header.seq > stable.0) {
            let entry = by_seq
                .entry(header.seq)
                .or_insert_with(|| (header.clone(), Vec::new()));
            if header.view > entry.0.view {
                reach::note(Row::UnionNewerView);
                *entry = (header.clone(), Vec::new());
            }
            if header.view == entry.0.view {
                entry.1.push(*node);
            }
        }
    }
    let mut expected = stable.0;
    by_seq
        .into_iter()
        .map_while(|(seq, entry)| {
            expected += 1;
            if seq != expected {
                reach::note(Row::UnionHole);
            }
            (seq == expected || planted::is_active(Bug::UnionOverHoles)).then_some(entry)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(view: u64, seq: u64) -> RecordHeader {
        RecordHeader {
            view,
            seq,
            blocks: 1,
            ..RecordHeader::default()
        }
    }

    fn report(tail: &[(u64, u64)]) -> CopyReport {
        let tail = tail.iter().map(|(view, seq)| header(*view, *seq)).collect();
        CopyReport {
            tail,
            ..CopyReport::default()
        }
    }

    #[test]
    fn the_union_keeps_what_any_copy_holds() {
        let (a, b) = (report(&[(1, 11), (1, 12)]), report(&[(1, 11)]));
        let union = union_of_tails(Seq(10), &[('a', &a), ('b', &b)]);
        assert_eq!(
            union,
            [(header(1, 11), vec!['a', 'b']), (header(1, 12), vec!['a'])]
        );
    }

    #[test]
    fn memory_of_operations_counts_back_from_the_newest_record_to_the_first_gap() {
        let known = |seqs: &[u64]| -> Vec<OperationSeq> {
            let operation = |seq: &u64| OperationSeq {
                seq: *seq,
                ..OperationSeq::default()
            };
            seqs.iter().map(operation).collect()
        };
        assert_eq!(remembered_from(9, &known(&[4, 7, 8, 9])), 7);
        assert_eq!(remembered_from(9, &known(&[7, 8])), 10);
        assert_eq!(remembered_from(2, &known(&[1, 2])), 1);
        assert_eq!(remembered_from(0, &[]), 1);
    }

    #[test]
    fn the_newest_view_wins_a_position() {
        let (a, b) = (report(&[(1, 11)]), report(&[(3, 11)]));
        let union = union_of_tails(Seq(10), &[('a', &a), ('b', &b)]);
        assert_eq!(union, [(header(3, 11), vec!['b'])]);
    }

    #[test]
    fn stable_records_are_not_part_of_it_and_a_hole_ends_it() {
        let a = report(&[(1, 9), (1, 10), (1, 11), (1, 13)]);
        let union = union_of_tails(Seq(10), &[('a', &a)]);
        assert_eq!(union, [(header(1, 11), vec!['a'])]);
    }
}
