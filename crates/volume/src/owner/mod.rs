//! One volume's owner in one view: orders its I/O while it is in office.
//!
//! The parts own their state; what follows is the way between them.
//!
//! ```text
//!               takeover ──► Opening ──► SliceTable ◄── placing (first writes)
//!                                            │  ▲
//!  io ── Gate, OperationHistory, paths ──► Slice └── membership, resync, ticking
//!                                            │
//!                                        CopyCalls ──► copies          Leases ──► LeaseClerk
//! ```

mod calls;
mod following;
mod gate;
mod heal;
mod history;
mod io;
mod leases;
mod locks;
mod mapped;
mod membership;
mod paths;
mod placing;
mod reads;
mod reservations;
mod resync;
mod slice;
mod slices;
mod takeover;
mod ticking;
mod waiting;
mod writes;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::select;
use holdfast_config::state::{Owner as OwnerRecord, VolumeRecord};
use holdfast_replica::messages;
use holdfast_replica::stream::Role;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Instant, NodeId, PAGE_BYTES, Service};
use holdfast_wire::replica::{Ack, Append, replica_notice};
use holdfast_wire::{Seq, SliceKey, View, VolumeId};
use tokio::sync::{Notify, Semaphore};

pub use heal::{HEAL_BLOCKS_MAX, serve_healing};
pub(crate) use io::IO_BYTES_MAX;
pub use paths::GIVEN_UP_BOUND;
pub(crate) use paths::{HELD_FOR, SHOWN_AFTER};
pub(crate) use reservations::known as reservations_known;
pub use waiting::{WaitReason, Waiting};

use self::calls::CopyCalls;
use self::following::Followed;
use self::gate::{Gate, State};
use self::history::{OperationHistory, SliceHistory};
use self::leases::Leases;
use self::paths::Paths;
use self::placing::Placing;
use self::resync::Resyncs;
use self::slice::{Outgoing, Slice};
use self::slices::{ANCHOR, SliceTable};
use self::takeover::Opening;
use self::waiting::WaitsFor;
use crate::context::Context;

/// What a write of any size counts for at least, in KiB: bounds how many are under way, and so
/// how much space they may newly take (see the holder's reserve).
const WRITE_KIB_MIN: u32 = 128;

/// How long a drain waits for operations under way; those that are left are interrupted, and
/// their portals repeat them at the next owner.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

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
    context: Context,
    volume: VolumeId,
    view: View,
    slice_bytes: u64,
    /// Grows when a resize is agreed on.
    size_bytes: Cell<u64>,
    gate: Gate,
    slices: SliceTable,
    placing: Placing,
    resyncs: Resyncs,
    leases: Leases,
    calls: CopyCalls,
    history: OperationHistory,
    /// What is known of the hosts' paths.
    paths: RefCell<Paths>,
    /// Newer evidence, or the end of a path.
    paths_changed: Notify,
    in_flight: Semaphore,
    traffic: Cell<Traffic>,
    /// Nodes whose copies are being taken out of the in-sync sets.
    followed: Followed,
    removing: RefCell<BTreeMap<NodeId, BTreeSet<u32>>>,
    waits_for: WaitsFor,
    since: Instant,
    takeover_took: Cell<Option<Duration>>,
}

impl Owner {
    /// Takes office: starts the takeover of `volume` in the view of its record.
    pub fn start(context: Context, volume: VolumeId, record: &VolumeRecord) -> Rc<Self> {
        let (now, view) = (context.runtime.now(), record.view);
        let owner = Rc::new_cyclic(|this: &std::rc::Weak<Self>| {
            let this = this.clone();
            let superseded = move || {
                if let Some(owner) = this.upgrade() {
                    owner.close();
                }
            };
            Self {
                volume,
                view,
                slice_bytes: record.slice_bytes,
                size_bytes: Cell::new(record.size_bytes),
                gate: Gate::new(),
                slices: SliceTable::default(),
                placing: Placing::default(),
                resyncs: Resyncs::default(),
                leases: Leases::new(),
                calls: CopyCalls::new(context.rpc.clone(), volume, view, superseded),
                history: OperationHistory::default(),
                paths: RefCell::new(Paths::new(now)),
                paths_changed: Notify::new(),
                in_flight: Semaphore::new(context.bounds.in_flight_kib as usize),
                traffic: Cell::default(),
                followed: Followed::default(),
                removing: RefCell::default(),
                waits_for: WaitsFor::default(),
                since: now,
                takeover_took: Cell::new(None),
                context,
            }
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
        self.gate.is_open()
    }

    /// Ends the office: everything under way is answered "interrupted", and the leases are given
    /// back, so that a successor who was named in good order waits for nothing. Nothing durable
    /// changes.
    pub fn close(&self) {
        let before = self.gate.close();
        let served = match before {
            State::Closed => return,
            State::TakingOver => false,
            State::Open | State::Draining => true,
        };
        // A closed owner answers no read any more. One that has drained has said so already; one
        // without leases has to, for copies that have restarted and cannot know that it has none.
        if served && self.leases.are_wanted() {
            let release = self.release_leases();
            self.context.runtime.spawn("owner-release", release);
        }
        tracing::info!(volume = %self.volume, view = %self.view, "owner closed");
        self.leases.give_up();
        self.slices.interrupt();
        self.placing.interrupt();
        self.history.interrupt();
        self.in_flight.close();
        self.paths_changed.notify_waiters();
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
        if self.gate.drain() {
            let ending = self.runs_end();
            self.context.runtime.timeout(DRAIN_LIMIT, ending).await;
        }
        if self.gate.is_open() {
            self.release_leases().await;
        }
        self.close();
    }

    /// Resolves when nothing is under way, or the office has ended.
    async fn runs_end(&self) {
        loop {
            let ended = self.history.run_ended();
            if self.gate.is_closed() || self.history.is_idle() {
                return;
            }
            ended.await;
        }
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
            resyncs: self.resyncs.statuses(),
        }
    }

    /// Copies that it brings up to date now: slice, node, and blocks copied so far.
    pub fn resyncs_under_way(&self) -> Vec<(u32, NodeId, u64)> {
        self.resyncs.under_way()
    }

    /// Runs a task that ends with the owner.
    fn spawn(self: &Rc<Self>, name: &'static str, future: impl Future<Output = ()> + 'static) {
        let owner = self.clone();
        self.context.runtime.spawn(name, async move {
            let closed = pin!(owner.gate.closed());
            select(pin!(future), closed).await;
        });
    }

    /// Resolves when the owner is closed.
    pub async fn closed(&self) {
        self.gate.closed().await;
    }

    /// Begins to serve: every copy in `opening` is identical and counts.
    fn open(self: &Rc<Self>, opening: Opening) {
        if !self.gate.open() {
            return;
        }
        let now = self.context.runtime.now();
        let kept = self.context.bounds.operations;
        for (index, settled) in opening.slices {
            let mut history = SliceHistory::new(settled.memory, kept);
            for (operation, _, seq) in settled.operations {
                history.remember(operation, seq, |_| false);
            }
            let mut slice = Slice::new(self.key(index), settled.last, history);
            for (node, session) in settled.sessions {
                let (incarnation, free_bytes) = opening.present[&node];
                let role = Role::Required;
                slice.stream.add(now, node, incarnation, session, role);
                slice.stream.set_free_bytes(node, free_bytes);
                if settled.told.contains(&node) {
                    slice.note_told(node, session);
                }
            }
            self.slices.insert(slice);
        }
        self.follow_size();
        self.paths.borrow_mut().open(now);
        self.takeover_took
            .set(Some(now.saturating_since(self.since)));
        self.waits_for.clear();
        tracing::info!(volume = %self.volume, view = %self.view, "owner opened");
        self.spawn("owner-leases", self.clone().keep_leases());
        self.spawn("owner-ticks", self.clone().keep_ticking());
        self.spawn("owner-placing", self.clone().keep_placing());
        self.spawn("owner-resync", self.clone().keep_resyncing());
    }

    /// A config state was applied in which the volume's record, or some node's, is another one.
    pub fn follow(self: &Rc<Self>) {
        if !self.gate.is_open() {
            return;
        }
        if self.record_in_office().is_none() {
            return self.close();
        }
        self.follow_size();
        self.resyncs.look_again();
    }

    /// No other owner may have agreed on a later size while this one is in office.
    fn follow_size(&self) {
        if let Some(record) = self.record_in_office() {
            self.size_bytes.set(record.size_bytes);
        }
    }

    /// The volume's record, while it still names this owner in this view.
    fn record_in_office(&self) -> Option<Rc<VolumeRecord>> {
        let office = OwnerRecord {
            node: self.context.node(),
            incarnation: self.context.incarnation(),
        };
        let state = self.context.config.state();
        let record = state.volumes.shared(&self.volume)?;
        (record.view == self.view && record.owner == Some(office)).then(|| record.clone())
    }

    fn wait_for(&self, reason: WaitReason) {
        self.waits_for.set(self.context.runtime.now(), reason);
    }

    fn key(&self, slice: u32) -> SliceKey {
        SliceKey {
            volume: self.volume.0,
            slice,
        }
    }

    /// Runs `act` on a slice; `None` if it has no stream, or once the owner is closed.
    fn with_slice<R>(&self, slice: u32, act: impl FnOnce(&mut Slice) -> R) -> Option<R> {
        if self.gate.is_closed() {
            return None;
        }
        self.slices.with(slice, act)
    }

    /// Sends records to copies.
    fn send(&self, key: SliceKey, stable: Seq, outgoing: Vec<Outgoing>) {
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

    /// Asks the copies of a slice how much space they have; the answers come as
    /// acknowledgements.
    fn ask_for_space(&self, index: u32) {
        let asked = self.with_slice(index, |slice| {
            let members = slice.stream.members();
            let copies: Vec<_> = members.iter().map(|(node, m)| (*node, m.session)).collect();
            (slice.key, slice.stream.stable(), copies)
        });
        let Some((key, stable, copies)) = asked else {
            return;
        };
        for (node, session) in copies {
            let append = Append {
                volume: key.volume,
                slice: key.slice,
                view: self.view.0,
                session,
                stable: stable.0,
                record: None,
            };
            let frame = messages::notice(replica_notice::Body::Append(append), Bytes::new());
            self.context.rpc.notify(node, Service::Replica, frame);
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
        self.slices.note_space_of_one(from, ack.free_bytes > 0);
    }

    /// Blocks per slice.
    fn slice_blocks(&self) -> u32 {
        (self.slice_bytes / PAGE_BYTES as u64) as u32
    }

    /// Whether reads of the range are covered by leases at this moment.
    pub(crate) fn is_leased(&self, offset: u64, length: u64) -> bool {
        self.is_open() && self.range_leased(offset, length).unwrap_or(false)
    }

    /// The same; `None` once the owner is closed. Leases for slices that were never written to are
    /// those of the anchor.
    fn range_leased(&self, offset: u64, length: u64) -> Option<bool> {
        if self.gate.is_closed() {
            return None;
        }
        let leased = |index: u32| self.slices.with(index, |slice| self.leased(slice));
        let range = self.slices_of(offset, length);
        let written = self.slices.within(range.clone(), usize::MAX);
        let all_written =
            written.len() == range.len() || planted::is_active(Bug::ReadUnplacedUnleased);
        let needed = written.into_iter();
        let mut needed = needed.chain((!all_written).then_some(ANCHOR));
        Some(needed.all(|index| leased(index) == Some(true)))
    }

    /// The slices that a range of the volume touches.
    fn slices_of(&self, offset: u64, length: u64) -> std::ops::Range<u32> {
        let end = (offset + length).div_ceil(self.slice_bytes);
        (offset / self.slice_bytes) as u32..end as u32
    }

    fn nearest_first(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        let local = self.context.node();
        nodes.sort_by_key(|node| *node != local);
        nodes
    }

    /// Nobody knows what a write above this was; used by status and tests.
    pub fn stable(&self, slice: u32) -> Option<Seq> {
        self.with_slice(slice, |slice| slice.stream.stable())
    }
}
