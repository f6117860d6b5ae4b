//! The copies that one node holds: takes the stream, answers owners.
//!
//! One [`Holder`] per node registers itself for `Service::Replica`. Its state in memory is, per
//! slice, the stream being received; everything else is in the store. Order of events that the
//! rest relies on:
//!
//! | event | durable before it is answered | in memory |
//! |---|---|---|
//! | append | the record, in order | `durable` rises, then the acknowledgement |
//! | fence | the promise of the view | earlier streams end; then their journal writes drain |
//! | reconcile | truncation, then the missing records | the new stream begins |
//! | join begin | truncation, then the state *joining* with its base | the new stream begins |
//! | join finish | the state *in sync* | |

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::rpc::{Incoming, Rpc};
use holdfast_runtime::{Frame, Incarnation, Instant, NodeId, Runtime, Service, work};
use holdfast_store::{CopyState, Record, Store, StoreError};
use holdfast_wire::replica::{
    Ack, Append, FetchRecord, Lease, ReadBlocks, ReplicaNotice, ReplicaRefusal, ReplicaReply,
    ReplicaRequest, VolumeView, replica_notice, replica_request,
};
use holdfast_wire::{Seq, SliceKey, View};
use prost::Message;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::HEARD_WITHIN;
use crate::grants::Grants;
use crate::messages;
use crate::receive::Receiver;

/// Kept free for writes under way: each may touch an extent of 1 MiB that was never written,
/// and a copy that runs full in the middle of a stream has to leave the in-sync set.
const RESERVE_BYTES_MAX: u64 = 128 << 20;

type AckHandler = Rc<dyn Fn(NodeId, Incarnation, Ack)>;
type PromiseHandler = Rc<dyn Fn(u64, View)>;
type DeletedCheck = Rc<dyn Fn(u64) -> bool>;

/// A reply with its data; refusals travel as `Err` inside this crate.
pub(crate) type Answer = Result<(ReplicaReply, Bytes), ReplicaRefusal>;

/// See the module's header.
pub struct Holder {
    pub(crate) runtime: Runtime,
    pub(crate) rpc: Rc<Rpc>,
    pub(crate) store: Rc<Store>,
    pub(crate) receiving: RefCell<BTreeMap<SliceKey, Receiver<Record>>>,
    pub(crate) grants: RefCell<Grants>,
    pub(crate) death: Notify,
    /// The newest stream that an owner has begun to set up, by slice. Set-up messages of an
    /// earlier one may still arrive, and must not undo what came after.
    pub(crate) newest_session: RefCell<BTreeMap<SliceKey, (View, u64)>>,
    pub(crate) setting_up: RefCell<BTreeMap<SliceKey, Arc<Mutex<()>>>>,
    on_ack: RefCell<Option<AckHandler>>,
    on_promise: RefCell<Option<PromiseHandler>>,
    is_deleted: RefCell<Option<DeletedCheck>>,
}

impl Holder {
    /// Starts serving the copies in `store`.
    pub fn start(runtime: Runtime, rpc: Rc<Rpc>, store: Rc<Store>) -> Rc<Self> {
        let mut grants = Grants::new(runtime.now());
        // A directory is in use once: whatever earlier start of this node was an owner is gone.
        let (node, start) = (rpc.local_node(), rpc.local_incarnation());
        if let Some(earlier) = start.0.checked_sub(1) {
            grants.note_dead(node, Incarnation(earlier));
        }
        let holder = Rc::new(Self {
            grants: RefCell::new(grants),
            runtime,
            rpc: rpc.clone(),
            store,
            receiving: RefCell::default(),
            death: Notify::new(),
            newest_session: RefCell::default(),
            setting_up: RefCell::default(),
            on_ack: RefCell::default(),
            on_promise: RefCell::default(),
            is_deleted: RefCell::default(),
        });
        let serving = Rc::downgrade(&holder);
        rpc.serve(Service::Replica, move |incoming| {
            let holder = serving.upgrade();
            Box::pin(async move { Some(holder?.on_request(incoming).await) })
        });
        let listening = Rc::downgrade(&holder);
        rpc.listen(Service::Replica, move |incoming| {
            if let Some(holder) = listening.upgrade() {
                holder.on_notice(incoming);
            }
        });
        holder
    }

    /// Where acknowledgements to this node's owners go.
    pub fn set_ack_handler(&self, handler: impl Fn(NodeId, Incarnation, Ack) + 'static) {
        *self.on_ack.borrow_mut() = Some(Rc::new(handler));
    }

    /// Told of every view that this node promises, before the fence is answered: an owner of an
    /// earlier view on this node has to stop at once.
    pub fn set_promise_handler(&self, handler: impl Fn(u64, View) + 'static) {
        *self.on_promise.borrow_mut() = Some(Rc::new(handler));
    }

    /// Asked whether a volume is known to be deleted: nothing of it is taken in any more, as its
    /// promises are forgotten.
    pub fn set_deleted_check(&self, check: impl Fn(u64) -> bool + 'static) {
        *self.is_deleted.borrow_mut() = Some(Rc::new(check));
    }

    pub(crate) fn is_deleted(&self, volume: u64) -> bool {
        let check = self.is_deleted.borrow().clone();
        check.is_some_and(|check| check(volume))
    }

    /// The process `incarnation` of `node` is proven gone; its leases need not be waited for.
    pub fn note_dead(&self, node: NodeId, incarnation: Incarnation) {
        self.grants.borrow_mut().note_dead(node, incarnation);
        self.death.notify_waiters();
    }

    fn on_notice(self: &Rc<Self>, incoming: Incoming) {
        let Ok(notice) = ReplicaNotice::decode(incoming.frame.header) else {
            return;
        };
        match notice.body {
            Some(replica_notice::Body::Append(append)) => {
                self.on_append(incoming.from, append, incoming.frame.payload);
            }
            Some(replica_notice::Body::Ack(ack)) => {
                let handler = self.on_ack.borrow().clone();
                if let Some(handler) = handler {
                    handler(incoming.from, incoming.incarnation, ack);
                }
            }
            // From a newer version: nothing this one could do.
            None => {}
        }
    }

    fn on_append(self: &Rc<Self>, from: NodeId, append: Append, payload: Bytes) {
        let slice = SliceKey {
            volume: append.volume,
            slice: append.slice,
        };
        let view = View(append.view);
        if self.store.promised(append.volume) > view && !planted::is_active(Bug::SkipFence) {
            return;
        }
        let mut receiving = self.receiving.borrow_mut();
        let Some(receiver) = receiving.get_mut(&slice) else {
            return;
        };
        if receiver.session != append.session || receiver.view != view {
            return;
        }
        receiver.announced_stable = receiver.announced_stable.max(Seq(append.stable));
        self.store.set_stable(slice, receiver.usable_stable());
        let Some(header) = append.record else {
            // It also asks how much space is left.
            return self.send_ack(from, slice, receiver);
        };
        let Some(record) = messages::record(slice, Seq(append.stable), &header, payload) else {
            tracing::warn!(%slice, %from, "dropped a record whose data does not fit its header");
            return;
        };
        let ready = receiver.take(record.seq, record);
        if ready.is_empty() {
            // A repetition: the acknowledgement was lost, so it is repeated too.
            if Seq(header.seq) <= receiver.durable {
                self.send_ack(from, slice, receiver);
            }
            return;
        }
        let through = receiver.handed_out();
        let first = Seq(through.0 + 1 - ready.len() as u64);
        let session = receiver.session;
        if planted::is_active(Bug::AcknowledgeBeforeJournal) {
            receiver.durable = through;
            self.send_ack(from, slice, receiver);
        }
        drop(receiving);
        // The place in the journal is reserved here, so records keep the stream's order.
        let journaled = self.store.append(ready);
        let holder = self.clone();
        self.runtime.spawn("replica-append", async move {
            let result = journaled.await;
            holder.on_journaled(from, slice, session, (first, through), result);
        });
    }

    fn on_journaled(
        &self,
        owner: NodeId,
        slice: SliceKey,
        session: u64,
        (first, through): (Seq, Seq),
        result: Result<(), StoreError>,
    ) {
        let mut receiving = self.receiving.borrow_mut();
        let Some(receiver) = receiving.get_mut(&slice) else {
            return;
        };
        if receiver.session != session {
            return;
        }
        match result {
            Ok(()) => receiver.note_journaled(first, through),
            Err(error) => {
                if !receiver.failed {
                    tracing::error!(%slice, %error, "this copy cannot take the stream any more");
                }
                receiver.failed = true;
            }
        }
        self.store.set_stable(slice, receiver.usable_stable());
        // A group commit ends many appends at once; the first of them acknowledges all.
        if receiver.durable > receiver.acknowledged || receiver.failed {
            receiver.acknowledged = receiver.durable;
            self.send_ack(owner, slice, receiver);
        }
    }

    fn send_ack(&self, owner: NodeId, slice: SliceKey, receiver: &Receiver<Record>) {
        let ack = Ack {
            volume: slice.volume,
            slice: slice.slice,
            view: receiver.view.0,
            session: receiver.session,
            durable: receiver.durable.0,
            free_bytes: self.spare_bytes(),
            failed: receiver.failed,
            freeing: self.store.is_freeing(),
        };
        let frame = messages::notice(replica_notice::Body::Ack(ack), Bytes::new());
        if owner == self.rpc.local_node() {
            // The loop-back runs the handler at once, and the caller may hold a borrow.
            let rpc = self.rpc.clone();
            self.runtime.spawn("replica-ack-local", async move {
                rpc.notify(owner, Service::Replica, frame);
            });
        } else {
            self.rpc.notify(owner, Service::Replica, frame);
        }
    }

    /// Bytes free for blocks never written before, beyond what is kept for writes under way.
    pub fn spare_bytes(&self) -> u64 {
        let usage = self.store.usage();
        let spare = self.fillable_bytes().saturating_sub(usage.home_used_bytes);
        if spare == 0 {
            // Writes may be waiting for what is about to be free.
            self.store.free_now();
        }
        spare
    }

    /// Bytes that clients can fill before writes to new blocks are refused.
    pub fn fillable_bytes(&self) -> u64 {
        let all = self.store.usage().home_bytes;
        all - RESERVE_BYTES_MAX.min(all / 16)
    }

    async fn on_request(self: Rc<Self>, incoming: Incoming) -> Frame {
        use replica_request::Body;
        let Incoming {
            from,
            incarnation,
            frame,
        } = incoming;
        let Ok(request) = ReplicaRequest::decode(frame.header) else {
            return messages::reply(
                &messages::refusal(ReplicaRefusal::Unknown, View(0)),
                Bytes::new(),
            );
        };
        let payload = frame.payload;
        let (volume, answer) = match request.body {
            Some(Body::Fence(fence)) => (fence.volume, self.on_fence(&fence).await),
            Some(Body::FetchRecord(fetch)) => (fetch.volume, self.on_fetch(&fetch).await),
            Some(Body::Reconcile(reconcile)) => (
                reconcile.volume,
                self.on_reconcile(&reconcile, payload).await,
            ),
            Some(Body::ReadBlocks(read)) => (read.volume, self.on_read(&read).await),
            Some(Body::Changed(changed)) => (changed.volume, self.on_changed(&changed).await),
            Some(Body::Install(install)) => {
                (install.volume, self.on_install(&install, payload).await)
            }
            Some(Body::ReadVersions(read)) => (read.volume, self.on_read_versions(&read).await),
            Some(Body::MapBlocks(map)) => (map.volume, self.on_map_blocks(&map).await),
            Some(Body::BeginStreams(begin)) => (begin.volume, self.on_begin_streams(&begin).await),
            Some(Body::TellStable(tell)) => (tell.volume, self.on_tell_stable(&tell)),
            Some(Body::JoinMany(join)) => (join.volume, self.on_join_many(&join).await),
            Some(Body::FinishMany(finish)) => (finish.volume, self.on_finish_many(&finish).await),
            Some(Body::Lease(lease)) => (0, Ok(self.on_lease(from, incarnation, &lease))),
            None => (0, Err(ReplicaRefusal::Unknown)),
        };
        let promised = self.store.promised(volume);
        match answer {
            Ok((mut reply, payload)) => {
                reply.promised = promised.0;
                messages::reply(&reply, payload)
            }
            Err(refusal) => messages::reply(&messages::refusal(refusal, promised), Bytes::new()),
        }
    }

    /// Refuses what comes from an owner that is not the newest promised one.
    pub(crate) fn check_view(&self, volume: u64, view: u64) -> Result<(), ReplicaRefusal> {
        if self.store.promised(volume) > View(view) {
            return Err(ReplicaRefusal::ViewStale);
        }
        Ok(())
    }

    /// Promises `view` durably; refuses if a later one has been promised.
    pub(crate) async fn promise(&self, volume: u64, view: View) -> Result<(), ReplicaRefusal> {
        if self.is_deleted(volume) {
            return Err(ReplicaRefusal::Absent);
        }
        self.check_view(volume, view.0)?;
        // Also if it is promised already: that promise may not be durable yet.
        self.store.promise(volume, view).await.map_err(refused)?;
        let handler = self.on_promise.borrow().clone();
        if let Some(handler) = handler {
            handler(volume, view);
        }
        self.check_view(volume, view.0)
    }

    /// Waits until nobody sets up a stream of this slice; nobody does while it is held.
    pub(crate) async fn turn(&self, slice: SliceKey) -> OwnedMutexGuard<()> {
        work::note(1);
        let turn = self
            .setting_up
            .borrow_mut()
            .entry(slice)
            .or_default()
            .clone();
        turn.lock_owned().await
    }

    /// Begins to set up a stream: one at a time per slice, and never an older one after a newer.
    pub(crate) async fn set_up(
        &self,
        slice: SliceKey,
        view: View,
        session: u64,
    ) -> Result<OwnedMutexGuard<()>, ReplicaRefusal> {
        let turn = self.turn(slice).await;
        if self.is_deleted(slice.volume) {
            return Err(ReplicaRefusal::Absent);
        }
        self.check_view(slice.volume, view.0)?;
        let mut newest = self.newest_session.borrow_mut();
        let newest = newest.entry(slice).or_insert((view, session));
        if *newest > (view, session) {
            return Err(ReplicaRefusal::SessionStale);
        }
        *newest = (view, session);
        Ok(turn)
    }

    async fn on_fetch(&self, fetch: &FetchRecord) -> Answer {
        let slice = SliceKey {
            volume: fetch.volume,
            slice: fetch.slice,
        };
        let record = self
            .store
            .read_record(slice, View(fetch.view), Seq(fetch.seq))
            .await;
        let record = record.map_err(refused)?.ok_or(ReplicaRefusal::Absent)?;
        let header = messages::header(&record);
        Ok((
            ReplicaReply {
                record: Some(header),
                ..ReplicaReply::default()
            },
            messages::data(&record),
        ))
    }

    async fn on_read(&self, read: &ReadBlocks) -> Answer {
        let slice = SliceKey {
            volume: read.volume,
            slice: read.slice,
        };
        let (view, stable) = (View(read.view), Seq(read.stable));
        let data = self
            .read(slice, view, stable, read.first_block, read.blocks)
            .await?;
        Ok((ReplicaReply::default(), data))
    }

    /// Reads whole blocks for the owner of `view`: stable versions, none older than what was
    /// newest at `stable`. Reading none only makes everything up to `stable` readable here.
    pub async fn read(
        &self,
        slice: SliceKey,
        view: View,
        stable: Seq,
        first_block: u32,
        blocks: u32,
    ) -> Result<Bytes, ReplicaRefusal> {
        if planted::is_active(Bug::ReadWithoutView) && self.store.promised(slice.volume) > view {
            let read = self.store.read(slice, first_block, blocks).await;
            return read.map_err(refused);
        }
        self.check_view(slice.volume, view.0)?;
        self.raise_stable(slice, view, stable)?;
        if planted::is_active(Bug::ReadUnstable) {
            self.store.set_stable(slice, self.store.last_seq(slice));
        }
        if blocks == 0 {
            // An idle stream's owner makes sure that its stable position is known here.
            return Ok(Bytes::new());
        }
        self.check_complete(slice, Row::ReadJoining)?;
        let data = self.store.read(slice, first_block, blocks).await;
        self.check_complete(slice, Row::ReadGivenBack)?;
        data.map_err(refused)
    }

    /// Refuses to be a source while this copy joins: it takes the stream, and lacks what came
    /// before. An owner may still hold it for the copy in sync that it was a moment ago. Asked
    /// again after a read: what was given back meanwhile reads as zeroes. A refusal counts as
    /// `row`.
    pub(crate) fn check_complete(&self, slice: SliceKey, row: Row) -> Result<(), ReplicaRefusal> {
        match self.store.copy_state(slice) {
            CopyState::InSync => Ok(()),
            CopyState::Joining { .. } | CopyState::Absent => {
                reach::note(row);
                Err(ReplicaRefusal::SessionStale)
            }
        }
    }

    /// Makes everything up to the owner's `stable` readable here; refuses if this copy lacks it.
    pub(crate) fn raise_stable(
        &self,
        slice: SliceKey,
        view: View,
        stable: Seq,
    ) -> Result<(), ReplicaRefusal> {
        work::note(1);
        let mut receiving = self.receiving.borrow_mut();
        let receiver = receiving
            .get_mut(&slice)
            .ok_or(ReplicaRefusal::SessionStale)?;
        if receiver.view != view || receiver.durable < stable {
            return Err(ReplicaRefusal::SessionStale);
        }
        receiver.announced_stable = receiver.announced_stable.max(stable);
        self.store.set_stable(slice, receiver.usable_stable());
        Ok(())
    }

    fn on_lease(
        &self,
        from: NodeId,
        incarnation: Incarnation,
        lease: &Lease,
    ) -> (ReplicaReply, Bytes) {
        let now = self.runtime.now();
        // Whom answers do not reach holds on to nothing: a lease would only hold back others.
        let is_deaf = lease.heard.is_some_and(|heard| {
            now.saturating_since(Instant::from_nanos(heard)) > HEARD_WITHIN
                && !planted::is_active(Bug::GrantToDeaf)
        });
        let mut grants = self.grants.borrow_mut();
        let mut granted = Vec::new();
        for VolumeView { volume, view } in &lease.volumes {
            if lease.release {
                grants.release(now, *volume, View(*view));
            } else if is_deaf {
                reach::note(Row::LeaseUnheard);
            } else if self.store.promised(*volume) <= View(*view)
                || planted::is_active(Bug::GrantToSuperseded)
            {
                grants.grant(now, *volume, View(*view), from, incarnation);
                granted.push(VolumeView {
                    volume: *volume,
                    view: *view,
                });
            } else {
                reach::note(Row::LeaseRefused);
            }
        }
        drop(grants);
        if lease.release {
            self.death.notify_waiters();
        }
        (
            ReplicaReply {
                granted,
                free_bytes: Some(self.spare_bytes()),
                clock: now.as_nanos(),
                ..ReplicaReply::default()
            },
            Bytes::new(),
        )
    }
}

/// What the store's refusal means to the asker.
pub(crate) fn refused(error: StoreError) -> ReplicaRefusal {
    match error {
        StoreError::Full { .. } => ReplicaRefusal::Full,
        StoreError::Damaged { .. } => ReplicaRefusal::Damaged,
        StoreError::Poisoned { .. } | StoreError::Disk(_) => ReplicaRefusal::StoreFailed,
        other => {
            tracing::error!(%other, "the store refused a request of the replica service");
            ReplicaRefusal::Absent
        }
    }
}
