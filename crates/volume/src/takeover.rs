//! The takeover: fence, union of tails, reconcile, open.
//!
//! | step | what may fail | what happens then |
//! |---|---|---|
//! | fence every in-sync copy on a running node | no answer | asked again for [`PATIENCE`]; then left out, if every slice has a complete copy without it |
//! | | it has promised a later view | this owner closes |
//! | | its copy is incomplete (records unknown) | left out: it is stale once the volume is open |
//! | | no complete copy of a slice | wait: nothing older may be served |
//! | union of tails | a position nobody holds | the union ends there: it was never acknowledged |
//! | reconcile every complete copy | no answer | left out, if another one remains; else all over |
//! | `Opened` | refused: the view is over | this owner closes |
//! | | outcome unknown | asked of the config group until known |
//!
//! Copies mark nothing stable before `Opened` is agreed: until then another takeover may decide
//! differently with other copies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use holdfast_config::state::{
    Change, CopyRecord, CopyStatus, Office, Outcome, Reconciled, VolumeRecord,
};
use holdfast_replica::holder_takeover::union_of_tails;
use holdfast_replica::{LEASE_GRACE, messages};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Frame, Incarnation, NodeId, PAGE_BYTES, Service};
use holdfast_store::OperationId;
use holdfast_wire::replica::{
    CopyReport, Fence, FenceReply, FetchRecord, Reconcile, RecordHeader, ReplicaRefusal,
    ReplicaReply, replica_request,
};
use holdfast_wire::{Seq, View};
use prost::Message;

use crate::owner::{Owner, Phase};
use crate::slice::Memory;
use crate::waiting::WaitReason;

/// How long copies on nodes that count as running are waited for, beyond any lease they may
/// have to wait out.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time limit of one request other than a fence.
const STEP_LIMIT: Duration = Duration::from_millis(1500);
/// Data in one reconcile message.
const RECONCILE_BYTES: usize = 4 << 20;
/// Slices reconciled at the same time.
const SLICES_AT_ONCE: usize = 16;

/// Why a takeover attempt ended without opening.
pub(crate) enum Setback {
    /// Try again from the fence.
    Again(WaitReason),
    /// The office is over.
    Over,
}

/// How long a fence is waited for.
#[derive(Clone, Copy)]
pub(crate) struct FenceWaits {
    /// One answer; it is asked for again afterwards.
    pub(crate) answer: Duration,
    /// All answers; after that a copy without one is left out, if there is another.
    pub(crate) all: Duration,
}

/// What one node reported, with the start of it that did.
pub(crate) struct Witness {
    incarnation: Incarnation,
    free_bytes: u64,
    copies: BTreeMap<u32, CopyReport>,
}

/// One slice after it was reconciled.
pub(crate) struct Settled {
    pub(crate) last: Seq,
    /// The copies that are identical now, each with the number of its new stream.
    pub(crate) sessions: BTreeMap<NodeId, u64>,
    pub(crate) operations: Vec<(OperationId, View, Seq)>,
    pub(crate) memory: Memory,
}

impl Owner {
    /// Takes the volume over, however often it needs to begin again, then opens it.
    pub(crate) async fn take_over(self: Rc<Self>) {
        while self.phase.get() == Phase::TakingOver {
            match self.attempt().await {
                Ok(()) => return,
                Err(Setback::Over) => return self.close(),
                Err(Setback::Again(why)) => {
                    let (volume, view) = (self.volume, self.view);
                    tracing::debug!(%volume, %view, ?why, "takeover again");
                    self.wait_for(why);
                    self.context.runtime.sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn attempt(self: &Rc<Self>) -> Result<(), Setback> {
        let record = self.record_in_office().ok_or(Setback::Over)?;
        if record.open {
            // Opened by this very owner, which lost the answer and closed: only a new view helps.
            return Err(Setback::Over);
        }
        let all = 0..record.slices.len() as u32;
        let waits = FenceWaits {
            answer: LEASE_GRACE + STEP_LIMIT,
            all: LEASE_GRACE + PATIENCE,
        };
        let witnesses = self.fence_all(&record, all.clone(), waits).await?;
        let settled = self.reconcile_all(all, &witnesses).await?;
        let reconciled = reconciled(&settled, &witnesses);
        if planted::is_active(Bug::ServeBeforeOpened) {
            self.open(settled, &present(&witnesses));
            return self.agree_opened(reconciled).await;
        }
        self.agree_opened(reconciled).await?;
        self.open(settled, &present(&witnesses));
        Ok(())
    }

    /// Fences every copy of these slices that counts, until each slice has a complete report and
    /// either all answered or patience is over.
    pub(crate) async fn fence_all(
        &self,
        record: &VolumeRecord,
        slices: Range<u32>,
        waits: FenceWaits,
    ) -> Result<BTreeMap<NodeId, Witness>, Setback> {
        let give_up = self.context.runtime.now() + waits.all;
        let mut witnesses = BTreeMap::new();
        loop {
            let state = self.context.config.state();
            let mut wanted: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
            for index in slices.clone() {
                let slice = &record.slices[index];
                for CopyRecord { node, status } in slice.copies() {
                    let counts = status == CopyStatus::InSync
                        || planted::is_active(Bug::TrustIncompleteCopy);
                    if counts && state.running_incarnation(node).is_some() {
                        wanted.entry(node).or_default().push(index);
                    }
                }
            }
            wanted.retain(|node, _| !witnesses.contains_key(node));
            if !wanted.is_empty() {
                self.wait_for(WaitReason::Fence(wanted.keys().copied().collect()));
            }
            let limit = waits.answer;
            let asked = wanted
                .into_iter()
                .map(|(node, slices)| async move { (node, self.fence(node, slices, limit).await) });
            // Each round is short if links are down, and bounded by the leases if they are not.
            for (node, answer) in join_all(asked).await {
                if let Some(witness) = answer {
                    witnesses.insert(node, witness);
                }
            }
            self.record_in_office().ok_or(Setback::Over)?;
            let covered = slices.clone().all(|slice| {
                witnesses.values().any(|witness: &Witness| {
                    witness.copies.get(&slice).is_some_and(|copy| copy.complete)
                })
            });
            let state = self.context.config.state();
            let missing = record
                .slices
                .range(slices.clone())
                .flat_map(|(_, slice)| slice.in_sync())
                .any(|n| state.running_incarnation(n).is_some() && !witnesses.contains_key(&n));
            if covered && (!missing || self.context.runtime.now() >= give_up) {
                if missing {
                    reach::note(Row::FenceLeftOut);
                }
                return Ok(witnesses);
            }
            if !covered && !missing {
                reach::note(Row::NoCompleteCopy);
                self.wait_for(WaitReason::CompleteCopy);
            }
            self.context.runtime.sleep(RETRY_PAUSE).await;
        }
    }

    async fn fence(&self, node: NodeId, slices: Vec<u32>, limit: Duration) -> Option<Witness> {
        let incarnation = self.context.rpc.reachable(node)?;
        let mut witness = Witness {
            incarnation,
            free_bytes: 0,
            copies: BTreeMap::new(),
        };
        let fresh_from = self.context.config.state().first_fresh_slice(self.volume);
        let predecessor = self.predecessor();
        let (fresh, used): (Vec<u32>, Vec<u32>) =
            slices.into_iter().partition(|slice| *slice >= fresh_from);
        // What was ever open goes first: its fence waits for leases, that of the rest does not.
        for (slices, fresh) in [(used, false), (fresh, true)] {
            if slices.is_empty() {
                continue;
            }
            let fence = Fence {
                volume: self.volume.0,
                view: self.view.0,
                slices,
                fresh,
                predecessor: predecessor.map_or(0, |office| office.owner.node.0),
                predecessor_incarnation: predecessor.map_or(0, |office| office.owner.incarnation.0),
                predecessor_view: predecessor.map_or(0, |office| office.view.0),
            };
            let body = replica_request::Body::Fence(fence);
            let (reply, _) = self.ask(node, body, Bytes::new(), limit).await.ok()?;
            let FenceReply {
                copies, free_bytes, ..
            } = reply.fence?;
            witness.free_bytes = free_bytes;
            let reports = copies.into_iter().map(|copy| (copy.slice, copy));
            witness.copies.extend(reports);
        }
        (self.context.rpc.reachable(node) == Some(incarnation)).then_some(witness)
    }

    /// Who opened the volume last, while this owner is the one that is to open it next.
    fn predecessor(&self) -> Option<Office> {
        let in_office = self.record_in_office().is_some_and(|record| !record.open);
        let state = self.context.config.state();
        state
            .last_open
            .get(&self.volume)
            .copied()
            .filter(|_| in_office)
    }

    pub(crate) async fn reconcile_all(
        &self,
        slices: Range<u32>,
        witnesses: &BTreeMap<NodeId, Witness>,
    ) -> Result<Vec<Settled>, Setback> {
        self.wait_for(WaitReason::Reconcile);
        let settling = slices.map(|slice| {
            let copies: Vec<(NodeId, &CopyReport)> = witnesses
                .iter()
                .filter_map(|(node, witness)| Some((*node, witness.copies.get(&slice)?)))
                .filter(|(_, copy)| copy.complete)
                .collect();
            self.reconcile_slice(slice, copies)
        });
        stream::iter(settling)
            .buffered(SLICES_AT_ONCE)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    async fn reconcile_slice(
        &self,
        slice: u32,
        copies: Vec<(NodeId, &CopyReport)>,
    ) -> Result<Settled, Setback> {
        let stable = Seq(copies
            .iter()
            .map(|(_, copy)| copy.stable)
            .max()
            .unwrap_or(0));
        let mut union = union_of_tails(stable, &copies);
        if planted::is_active(Bug::TakeStableOnly) {
            union.clear();
        }
        let last = Seq(stable.0 + union.len() as u64);
        let repairing = copies
            .iter()
            .filter(|(_, copy)| copy.last >= stable.0)
            .map(|(node, _)| {
                let union = &union;
                async move {
                    let session = self.next_session();
                    let done = self
                        .reconcile_copy(slice, *node, stable, union, session)
                        .await;
                    done.map(|()| (*node, session))
                }
            });
        let sessions: BTreeMap<NodeId, u64> =
            join_all(repairing).await.into_iter().flatten().collect();
        if sessions.len() < copies.len() {
            reach::note(Row::ReconcileLeftOut);
        }
        if sessions.is_empty() {
            reach::note(Row::ReconcileAgain);
            return Err(Setback::Again(WaitReason::CopyUnderRepair));
        }
        let in_union = union.iter().map(|(header, _)| {
            let operation = OperationId {
                origin: header.origin,
                number: header.operation,
            };
            (operation, View(header.view), Seq(header.seq))
        });
        let mut operations: Vec<(OperationId, View, Seq)> = copies
            .iter()
            .flat_map(|(_, copy)| &copy.operations)
            .filter(|operation| operation.seq <= stable.0)
            .map(|o| {
                let operation = OperationId {
                    origin: o.origin,
                    number: o.operation,
                };
                (operation, View(o.view), Seq(o.seq))
            })
            .chain(in_union)
            .collect();
        operations.sort_by_key(|(operation, view, seq)| (*seq, *operation, *view));
        operations.dedup();
        // Each copy is complete, so what any of them remembers without a gap is remembered.
        let from = copies.iter().map(|(_, copy)| copy.remembered_from).min();
        let mut memory = Memory::new(Seq(from.unwrap_or(u64::MAX)), &operations);
        if planted::is_active(Bug::ForgetOperations) {
            operations.clear();
            memory = Memory::new(Seq(1), &[]);
        }
        Ok(Settled {
            last,
            sessions,
            operations,
            memory,
        })
    }

    /// Brings one copy to the union and begins its stream; `None` if it did not work.
    async fn reconcile_copy(
        &self,
        slice: u32,
        node: NodeId,
        stable: Seq,
        union: &[(RecordHeader, Vec<NodeId>)],
        session: u64,
    ) -> Option<()> {
        let held = union
            .iter()
            .take_while(|(_, holders)| holders.contains(&node))
            .count();
        let next = Seq(stable.0 + union.len() as u64).next();
        let mut message = Reconcile {
            volume: self.volume.0,
            slice,
            view: self.view.0,
            keep_through: stable.0 + held as u64,
            records: Vec::new(),
            session,
            next: 0,
        };
        let mut payload = BytesMut::new();
        if held < union.len() {
            reach::note(Row::ReconcileFilled);
        }
        for (header, holders) in &union[held..] {
            let data = self.fetch_record(slice, header, holders).await?;
            if payload.len() + data.len() > RECONCILE_BYTES && !message.records.is_empty() {
                let part = message.clone();
                self.reconcile(node, part, payload.split().freeze()).await?;
                message.keep_through = header.seq - 1;
                message.records.clear();
            }
            payload.extend_from_slice(&data);
            message.records.push(header.clone());
        }
        message.next = next.0;
        self.reconcile(node, message, payload.freeze()).await
    }

    async fn reconcile(&self, node: NodeId, message: Reconcile, payload: Bytes) -> Option<()> {
        let body = replica_request::Body::Reconcile(message);
        self.ask(node, body, payload, STEP_LIMIT)
            .await
            .ok()
            .map(|_| ())
    }

    async fn fetch_record(
        &self,
        slice: u32,
        header: &RecordHeader,
        holders: &[NodeId],
    ) -> Option<Bytes> {
        if header.zero {
            return Some(Bytes::new());
        }
        let local = self.context.node();
        let mut holders = holders.to_vec();
        holders.sort_by_key(|node| *node != local);
        for node in holders {
            let fetch = FetchRecord {
                volume: self.volume.0,
                slice,
                view: header.view,
                seq: header.seq,
            };
            let body = replica_request::Body::FetchRecord(fetch);
            if let Ok((_, data)) = self.ask(node, body, Bytes::new(), STEP_LIMIT).await
                && data.len() == header.blocks as usize * PAGE_BYTES
            {
                return Some(data);
            }
        }
        None
    }

    pub(crate) fn wait_for(&self, reason: WaitReason) {
        self.waits_for.set(self.context.runtime.now(), reason);
    }

    /// Agrees on the opening with the config group.
    async fn agree_opened(&self, reconciled: Reconciled) -> Result<(), Setback> {
        self.wait_for(WaitReason::Opening);
        let change = Change::Opened {
            volume: self.volume,
            view: self.view,
            reconciled,
        };
        match self.context.config.propose(change, STEP_LIMIT * 2).await {
            Some(Outcome::Done) => Ok(()),
            Some(Outcome::Refused(holdfast_config::state::Refusal::LastCopy)) => {
                reach::note(Row::OpenedAgain);
                Err(Setback::Again(WaitReason::RestartedCopy))
            }
            // Refused: another view is in force. Unknown: this owner leaves, and asks for a new
            // view; an opening that takes effect later is undone by it.
            Some(_) | None => {
                reach::note(Row::OpenedOver);
                Err(Setback::Over)
            }
        }
    }

    /// One request to a copy; refusals are errors.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        body: replica_request::Body,
        payload: Bytes,
        limit: Duration,
    ) -> Result<(ReplicaReply, Bytes), ReplicaRefusal> {
        let frame: Frame = messages::request(body, payload);
        let answer = self
            .context
            .rpc
            .call(node, Service::Replica, frame, limit)
            .await;
        let answer = answer.map_err(|_| ReplicaRefusal::Unknown)?;
        let reply = ReplicaReply::decode(answer.header).map_err(|_| ReplicaRefusal::Unknown)?;
        match reply.refusal() {
            ReplicaRefusal::None => Ok((reply, answer.payload)),
            refusal => {
                if View(reply.promised) > self.view {
                    reach::note(Row::LaterView);
                    // The copy follows a later owner; this one can do nothing any more.
                    self.close();
                }
                Err(refusal)
            }
        }
    }
}

/// What the config group is to agree on.
pub(crate) fn reconciled(settled: &[Settled], witnesses: &BTreeMap<NodeId, Witness>) -> Reconciled {
    let slices = settled
        .iter()
        .map(|slice| slice.sessions.keys().copied().collect());
    let incarnations = witnesses
        .iter()
        .map(|(node, witness)| (*node, witness.incarnation));
    Reconciled {
        slices: slices.collect(),
        incarnations: incarnations.collect(),
    }
}

/// The starts of the nodes that were fenced, and the space that they have.
pub(crate) fn present(
    witnesses: &BTreeMap<NodeId, Witness>,
) -> BTreeMap<NodeId, (Incarnation, u64)> {
    let present =
        |(node, witness): (&NodeId, &Witness)| (*node, (witness.incarnation, witness.free_bytes));
    witnesses.iter().map(present).collect()
}
