//! One volume's owner in one view: life cycle and shared state.
//!
//! ```text
//!             reconciled, Opened agreed
//!  TakingOver ─────────────────────────► Open
//!      │                                  │   view over, node fenced, handed over
//!      └──────────────► Closed ◄──────────┘   (waiting I/O is answered "interrupted")
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::select;
use holdfast_config::state::{Owner as OwnerRecord, VolumeRecord};
use holdfast_replica::{LEASE, messages};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Instant, NodeId, PAGE_BYTES, Service};
use holdfast_store::OperationId;
use holdfast_wire::replica::{Ack, Append, replica_notice};
use holdfast_wire::volume::IoStatus;
use holdfast_wire::{Seq, SliceKey, View, VolumeId};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::context::Context;
use crate::paths::Paths;
use crate::slice::{Outgoing, Slice};
use crate::waiting::{Waiting, WaitsFor};

/// What a write of any size counts for at least, in KiB: bounds how many are under way, and so
/// how much space they may newly take (see the holder's reserve).
pub(crate) const WRITE_KIB_MIN: u32 = 128;

/// How long a drain waits for operations under way; those that are left are interrupted, and
/// their portals repeat them at the next owner.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Where the owner is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    TakingOver,
    Open,
    Closed,
}

/// What an owner is doing, for status displays.
#[derive(Clone, Debug)]
pub struct OwnerStatus {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's view.
    pub view: View,
    /// Whether it serves.
    pub open: bool,
    /// What it waits for.
    pub waits_for: Option<Waiting>,
    /// Time since it took office.
    pub age: Duration,
    /// Time from taking office to serving.
    pub takeover: Option<Duration>,
    /// Resyncs, current and past of this view.
    pub resyncs: Vec<ResyncStatus>,
}

/// What an owner was asked for since it took office.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reads.
    pub reads: u64,
    /// Operations that change something.
    pub writes: u64,
    /// Bytes of both, zeroed ranges not counted.
    pub bytes: u64,
}

/// One copy's resync.
#[derive(Clone, Debug)]
pub struct ResyncStatus {
    /// Slice.
    pub slice: u32,
    /// Where the copy is.
    pub node: NodeId,
    /// The copy was complete up to here before.
    pub base: Seq,
    /// Blocks copied so far.
    pub blocks: u64,
    /// Whether the copy is in sync again.
    pub finished: bool,
}

/// See the module's header.
pub struct Owner {
    pub(crate) context: Context,
    pub(crate) volume: VolumeId,
    pub(crate) view: View,
    /// Grows when a resize is agreed on.
    pub(crate) size_bytes: Cell<u64>,
    pub(crate) slice_bytes: u64,
    pub(crate) phase: Cell<Phase>,
    /// Filled when the owner opens.
    pub(crate) slices: RefCell<Vec<Slice>>,
    /// When each node's lease ends, by this node's clock.
    pub(crate) leases: RefCell<BTreeMap<NodeId, Instant>>,
    /// What the clocks of those who grant them said last.
    pub(crate) heard: RefCell<BTreeMap<NodeId, u64>>,
    pub(crate) lease_granted: Notify,
    /// What it was asked for.
    pub(crate) traffic: Cell<Traffic>,
    /// When the volume was last asked for anything.
    pub(crate) used: Cell<Instant>,
    /// Wakes the task that renews leases out of its rest.
    pub(crate) lease_wanted: Notify,
    /// What is known of the hosts' paths.
    pub(crate) paths: RefCell<Paths>,
    /// Newer evidence, or the end of a path.
    pub(crate) paths_changed: Notify,
    /// Lowest operation under way, by portal.
    pub(crate) floors: RefCell<BTreeMap<u64, u64>>,
    /// Operations under way, with those who asked for the same one again.
    pub(crate) running: RefCell<BTreeMap<OperationId, Vec<oneshot::Sender<IoStatus>>>>,
    pub(crate) in_flight: Semaphore,
    /// Wakes the ticker: some copy owes an acknowledgement, or has to be told `stable`.
    pub(crate) busy: Notify,
    pub(crate) closing: Notify,
    pub(crate) operation_ended: Notify,
    pub(crate) draining: Cell<bool>,
    /// Nodes whose copies are being taken out of the in-sync sets.
    pub(crate) removing: RefCell<BTreeSet<NodeId>>,
    /// Streams set up so far: later ones have larger numbers, so that holders can tell.
    sessions: Cell<u64>,
    pub(crate) waits_for: WaitsFor,
    pub(crate) since: Instant,
    pub(crate) takeover_took: Cell<Option<Duration>>,
    pub(crate) resyncs: RefCell<BTreeMap<(u32, NodeId), ResyncStatus>>,
}

impl Owner {
    /// Takes office: starts the takeover of `volume` in the view of its record.
    pub fn start(context: Context, volume: VolumeId, record: &VolumeRecord) -> Rc<Self> {
        let owner = Rc::new(Self {
            since: context.runtime.now(),
            volume,
            view: record.view,
            size_bytes: Cell::new(record.size_bytes),
            slice_bytes: record.slice_bytes,
            phase: Cell::new(Phase::TakingOver),
            slices: RefCell::default(),
            leases: RefCell::default(),
            heard: RefCell::default(),
            lease_granted: Notify::new(),
            traffic: Cell::default(),
            used: Cell::new(context.runtime.now()),
            lease_wanted: Notify::new(),
            paths: RefCell::new(Paths::new(context.runtime.now())),
            paths_changed: Notify::new(),
            floors: RefCell::default(),
            running: RefCell::default(),
            in_flight: Semaphore::new(context.bounds.in_flight_kib as usize),
            busy: Notify::new(),
            closing: Notify::new(),
            operation_ended: Notify::new(),
            draining: Cell::new(false),
            removing: RefCell::default(),
            sessions: Cell::new(0),
            waits_for: WaitsFor::default(),
            takeover_took: Cell::new(None),
            resyncs: RefCell::default(),
            context,
        });
        let taking_over = owner.clone();
        owner.spawn(
            "owner-takeover",
            async move { taking_over.take_over().await },
        );
        owner
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The view in which this owner is in office.
    pub fn view(&self) -> View {
        self.view
    }

    /// What it was asked for since it took office.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Whether it serves I/O.
    pub fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    /// Ends the office: everything under way is answered "interrupted", and the leases are given
    /// back, so that a successor who was named in good order waits for nothing. Nothing durable
    /// changes.
    pub fn close(&self) {
        let before = self.phase.replace(Phase::Closed);
        if before == Phase::Closed {
            return;
        }
        // A closed owner answers no read any more. One that has drained has said so already; one
        // without leases has to, for copies that have restarted and cannot know that it has none.
        let has_released = self.draining.get() && self.leases.borrow().is_empty();
        if before == Phase::Open && !has_released {
            let release = self.release_leases();
            self.context.runtime.spawn("owner-release", release);
        }
        tracing::info!(volume = %self.volume, view = %self.view, "owner closed");
        for slice in self.slices.borrow_mut().iter_mut() {
            slice.interrupt();
        }
        self.running.borrow_mut().clear();
        self.in_flight.close();
        self.closing.notify_waiters();
        self.operation_ended.notify_waiters();
        self.paths_changed.notify_waiters();
        self.lease_granted.notify_waiters();
    }

    /// This node promises `view`: an owner of an earlier one stops at once.
    pub fn on_promise(&self, view: View) {
        if view > self.view {
            self.close();
        }
    }

    /// Admits nothing more, waits until what is under way has ended, and gives the leases back,
    /// so that a planned handover costs no lease time.
    pub async fn drain(&self) {
        self.draining.set(true);
        let give_up = self.context.runtime.now() + DRAIN_LIMIT;
        loop {
            let ended = self.operation_ended.notified();
            let left = give_up.saturating_since(self.context.runtime.now());
            let idle = self.running.borrow().is_empty();
            if self.phase.get() != Phase::Open || idle || left.is_zero() {
                break;
            }
            self.context.runtime.timeout(left, ended).await;
        }
        if self.phase.get() == Phase::Open {
            self.release_leases().await;
        }
        self.close();
    }

    /// A snapshot for status displays.
    pub fn status(&self) -> OwnerStatus {
        OwnerStatus {
            volume: self.volume,
            view: self.view,
            open: self.is_open(),
            waits_for: self.waits_for.get().or_else(|| self.stalled()),
            age: self.context.runtime.now().saturating_since(self.since),
            takeover: self.takeover_took.get(),
            resyncs: self.resyncs.borrow().values().cloned().collect(),
        }
    }

    /// Runs a task that ends with the owner.
    pub(crate) fn spawn(
        self: &Rc<Self>,
        name: &'static str,
        future: impl Future<Output = ()> + 'static,
    ) {
        let owner = self.clone();
        self.context.runtime.spawn(name, async move {
            let closed = pin!(owner.closed());
            select(pin!(future), closed).await;
        });
    }

    /// The number of a stream about to be set up.
    pub(crate) fn next_session(&self) -> u64 {
        self.sessions.set(self.sessions.get() + 1);
        self.sessions.get()
    }

    /// Resolves when the owner is closed.
    pub async fn closed(&self) {
        loop {
            let closing = self.closing.notified();
            if self.phase.get() == Phase::Closed {
                return;
            }
            closing.await;
        }
    }

    /// The volume's record, while it still names this owner in this view.
    pub(crate) fn record_in_office(&self) -> Option<VolumeRecord> {
        let office = OwnerRecord {
            node: self.context.node(),
            incarnation: self.context.incarnation(),
        };
        let state = self.context.config.state();
        let record = state.volumes.get(&self.volume)?;
        (record.view == self.view && record.owner == Some(office)).then(|| record.clone())
    }

    pub(crate) fn key(&self, slice: u32) -> SliceKey {
        SliceKey {
            volume: self.volume.0,
            slice,
        }
    }

    /// Runs `act` on a slice; `None` once the owner is closed.
    pub(crate) fn with_slice<R>(&self, slice: u32, act: impl FnOnce(&mut Slice) -> R) -> Option<R> {
        if self.phase.get() == Phase::Closed {
            return None;
        }
        self.slices.borrow_mut().get_mut(slice as usize).map(act)
    }

    /// Sends records to copies.
    pub(crate) fn send(&self, key: SliceKey, stable: Seq, outgoing: Vec<Outgoing>) {
        for Outgoing {
            to,
            session,
            record,
        } in outgoing
        {
            let append = Append {
                volume: key.volume,
                slice: key.slice,
                view: self.view.0,
                session,
                stable: stable.0,
                record: Some(messages::header(&record)),
            };
            let body = replica_notice::Body::Append(append);
            let frame = messages::notice(body, messages::data(&record));
            self.context.rpc.notify(to, Service::Replica, frame);
        }
    }

    /// Tells copies the stable position without a record.
    pub(crate) fn send_stable(&self, key: SliceKey, stable: Seq, to: NodeId, session: u64) {
        let append = Append {
            volume: key.volume,
            slice: key.slice,
            view: self.view.0,
            session,
            stable: stable.0,
            record: None,
        };
        let frame = messages::notice(replica_notice::Body::Append(append), Bytes::new());
        self.context.rpc.notify(to, Service::Replica, frame);
    }

    /// Asks the copies of a slice how much space they have; the answers come as
    /// acknowledgements.
    pub(crate) fn ask_for_space(&self, index: u32) {
        let asked = self.with_slice(index, |slice| {
            let members = slice.stream.members();
            let copies: Vec<_> = members.iter().map(|(node, m)| (*node, m.session)).collect();
            (slice.key, slice.stream.stable(), copies)
        });
        let Some((key, stable, copies)) = asked else {
            return;
        };
        for (node, session) in copies {
            self.send_stable(key, stable, node, session);
        }
    }

    /// An acknowledgement came in.
    pub fn on_ack(&self, from: NodeId, ack: &Ack) {
        if View(ack.view) != self.view {
            return;
        }
        let now = self.context.runtime.now();
        self.with_slice(ack.slice, |slice| {
            slice.stream.set_freeing(from, ack.session, ack.freeing);
            let commands = slice.stream.on_ack(
                now,
                from,
                ack.session,
                Seq(ack.durable),
                ack.free_bytes,
                ack.failed,
            );
            let outgoing = slice.absorb(commands);
            assert!(outgoing.is_empty(), "an acknowledgement sends nothing");
        });
    }

    /// Blocks per slice.
    pub(crate) fn slice_blocks(&self) -> u32 {
        (self.slice_bytes / PAGE_BYTES as u64) as u32
    }

    /// Whether reads of the slice are covered by leases at this moment.
    pub(crate) fn leased(&self, slice: &Slice) -> bool {
        if planted::is_active(Bug::ReadAfterLease) {
            return true;
        }
        let now = self.context.runtime.now();
        let leases = self.leases.borrow();
        let local = self.context.node();
        let mut granters = slice.stream.required().filter(|node| *node != local);
        let is_alive = |node| leases.get(&node).is_some_and(|ends| *ends > now);
        if planted::is_active(Bug::LeaseOfOneCopy) {
            return granters.any(is_alive);
        }
        self.context.store.promised(self.volume.0) <= self.view && granters.all(is_alive)
    }

    /// Whether the leases of all slices in the range are alive at this moment.
    pub(crate) fn is_leased(&self, offset: u64, length: u64) -> bool {
        self.is_open()
            && self
                .segments(offset, length)
                .into_iter()
                .all(|(slice, _, _)| {
                    self.with_slice(slice, |slice| self.leased(slice))
                        .unwrap_or(false)
                })
    }

    /// A lease was granted to a request sent at `sent`.
    pub(crate) fn note_lease(&self, node: NodeId, sent: Instant) {
        if self.draining.get() {
            // The leases are being given back; an answer under way does not revive one.
            return;
        }
        let mut ends = sent + LEASE;
        if planted::is_active(Bug::LeaseFromAnswer) {
            ends = self.context.runtime.now() + LEASE;
        }
        if planted::is_active(Bug::LongLease) {
            ends = sent + LEASE * 2;
        }
        self.leases.borrow_mut().insert(node, ends);
        self.lease_granted.notify_waiters();
    }
}
