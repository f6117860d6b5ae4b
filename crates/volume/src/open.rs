//! An open owner: follows the config group's decisions, repeats what was lost, removes copies
//! that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use holdfast_config::state::{Change, Outcome, Refusal};
use holdfast_replica::stream::Role;
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_wire::Seq;
use holdfast_wire::replica::{ReadBlocks, replica_request};

use crate::owner::{Owner, Phase};
use crate::slice::Slice;
use crate::takeover::Settled;
use crate::waiting::{WaitReason, Waiting};

/// While some copy owes an acknowledgement, or a stable position, it is looked after this often.
const TICK: Duration = Duration::from_millis(100);
/// A required copy that has not moved for this long is taken out of the in-sync set, although
/// its node counts as running: the initiator's timeouts are near.
const REMOVE_AFTER: Duration = Duration::from_millis(3000);
/// A copy that owes an acknowledgement for this long is named in the status.
const NOTABLE: Duration = Duration::from_millis(500);
/// Records kept for a joining copy that does not keep up; beyond, it has to begin again.
const JOINING_WINDOW_BYTES: usize = 8 << 20;
const PROPOSAL_LIMIT: Duration = Duration::from_millis(3000);
/// Copies that are told a stable position at the same time.
const TELLINGS_AT_ONCE: usize = 64;
const TELL_LIMIT: Duration = Duration::from_millis(500);

/// A copy that is to be told the stable position of its slice.
struct Telling {
    slice: u32,
    stable: Seq,
    node: NodeId,
    session: u64,
}

impl Owner {
    /// Begins to serve: every copy in `settled` is identical and counts.
    pub(crate) fn open(
        self: &Rc<Self>,
        settled: Vec<Settled>,
        present: &BTreeMap<NodeId, (Incarnation, u64)>,
    ) {
        if self.phase.get() != Phase::TakingOver {
            return;
        }
        let now = self.context.runtime.now();
        self.slices.borrow_mut().clear();
        self.take_in(0, settled, present);
        self.paths.borrow_mut().open(now);
        self.phase.set(Phase::Open);
        self.takeover_took
            .set(Some(now.saturating_since(self.since)));
        self.waits_for.clear();
        tracing::info!(volume = %self.volume, view = %self.view, "owner opened");
        self.busy.notify_one();
        self.spawn("owner-leases", self.clone().keep_leases());
        self.spawn("owner-ticks", self.clone().keep_ticking());
        self.spawn("owner-config", self.clone().keep_following());
        self.spawn("owner-resync", self.clone().keep_resyncing());
        self.spawn("owner-growth", self.clone().keep_growing());
    }

    /// Takes in slices, the first of which is number `first`, whose copies are agreed on, and
    /// the size that goes with them.
    pub(crate) fn take_in(
        &self,
        first: u32,
        settled: Vec<Settled>,
        present: &BTreeMap<NodeId, (Incarnation, u64)>,
    ) {
        let now = self.context.runtime.now();
        let slices = (first..).zip(settled).map(|(index, settled)| {
            let mut slice = Slice::new(self.key(index), settled.last, self.context.bounds);
            for (node, session) in settled.sessions {
                let (incarnation, free_bytes) = present[&node];
                slice
                    .stream
                    .add(now, node, incarnation, session, Role::Required);
                slice.stream.set_free_bytes(node, free_bytes);
            }
            slice.memory = settled.memory;
            for (operation, _, seq) in settled.operations {
                slice.remember(operation, seq, |_| false);
            }
            slice
        });
        self.slices.borrow_mut().extend(slices);
        // No other owner may have agreed on a later size while this one is in office.
        if let Some(record) = self.record_in_office() {
            self.size_bytes.set(record.size_bytes);
        }
    }

    async fn keep_following(self: Rc<Self>) {
        let mut watch = self.context.config.watch();
        loop {
            watch.mark_unchanged();
            self.follow_config();
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows the in-sync sets of the config state, and asks that copies whose process is gone
    /// be taken out of them.
    pub(crate) fn follow_config(self: &Rc<Self>) {
        let Some(record) = self.record_in_office() else {
            return self.close();
        };
        let state = self.context.config.state();
        let mut gone: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        for (index, placed) in record.slices.iter() {
            self.with_slice(index, |slice| {
                let members: Vec<(NodeId, Role, Incarnation)> = slice
                    .stream
                    .members()
                    .iter()
                    .map(|(node, member)| (*node, member.role, member.incarnation))
                    .collect();
                for (node, role, incarnation) in members {
                    let running = state.running(node, incarnation);
                    let keep = match role {
                        // A promotion under way decides first.
                        Role::Required if slice.promoting.contains(&node) => true,
                        Role::Required if placed.is_in_sync(node) => {
                            if !running {
                                gone.entry(node).or_default().push(index);
                            }
                            true
                        }
                        Role::Required => false,
                        Role::Joining => running,
                    };
                    if !keep {
                        let commands = slice.stream.remove(node);
                        slice.absorb(commands);
                    }
                }
            });
        }
        for (node, slices) in gone {
            self.remove_copies(node, slices);
        }
    }

    /// Repeats records that went missing and tells idle copies the stable position; sleeps
    /// while there is nothing to do.
    async fn keep_ticking(self: Rc<Self>) {
        loop {
            if !self.tick() {
                self.busy.notified().await;
            }
            self.context.runtime.sleep(TICK).await;
        }
    }

    /// One round; false if no copy is owed or owes anything.
    fn tick(self: &Rc<Self>) -> bool {
        let now = self.context.runtime.now();
        let count = self.slices.borrow().len() as u32;
        let mut busy = false;
        let mut tellings = Vec::new();
        for index in 0..count {
            let mut laggards = Vec::new();
            let outcome = self.with_slice(index, |slice| {
                let stable = slice.stream.stable();
                let untold = slice.begin_telling();
                let mut repeated_at = std::mem::take(&mut slice.repeated_at);
                let commands = slice.stream.on_tick(now, &mut repeated_at);
                slice.repeated_at = repeated_at;
                let outgoing = slice.absorb(commands);
                let window = slice.stream.window_bytes();
                for (node, member) in slice.stream.members() {
                    let owes = member.durable.next() < slice.stream.next();
                    let silent = owes && member.silent_for(now) >= REMOVE_AFTER;
                    match member.role {
                        Role::Required if silent || member.failed => laggards.push(*node),
                        Role::Joining if member.failed || window > JOINING_WINDOW_BYTES => {
                            laggards.push(*node);
                        }
                        Role::Required | Role::Joining => {}
                    }
                }
                (slice.key, stable, outgoing, untold, !slice.is_settled())
            });
            let Some((key, stable, outgoing, untold, slice_busy)) = outcome else {
                return false;
            };
            busy |= slice_busy;
            self.send(key, stable, outgoing);
            tellings.extend(untold.into_iter().map(|(node, session)| Telling {
                slice: index,
                stable,
                node,
                session,
            }));
            for node in laggards {
                self.drop_copy(index, node);
            }
        }
        self.tell_stable(tellings);
        busy
    }

    /// Tells copies the stable position of their slices; what fails the next tick tells again.
    fn tell_stable(self: &Rc<Self>, tellings: Vec<Telling>) {
        if tellings.is_empty() {
            return;
        }
        let owner = self.clone();
        self.spawn("owner-tell-stable", async move {
            let owner = &owner;
            stream::iter(tellings)
                .for_each_concurrent(TELLINGS_AT_ONCE, |telling| async move {
                    let Telling {
                        slice,
                        stable,
                        node,
                        session,
                    } = telling;
                    // Reading no blocks raises the copy's stable position and does nothing else.
                    let nothing = ReadBlocks {
                        volume: owner.volume.0,
                        slice,
                        view: owner.view.0,
                        stable: stable.0,
                        first_block: 0,
                        blocks: 0,
                    };
                    let body = replica_request::Body::ReadBlocks(nothing);
                    let answer = owner.ask(node, body, Bytes::new(), TELL_LIMIT).await;
                    owner.with_slice(slice, |slice| {
                        slice.end_telling(node, session, stable, answer.is_ok());
                    });
                })
                .await;
        });
    }

    /// A copy fails: a joining one is forgotten, a required one has to be removed by agreement.
    fn drop_copy(self: &Rc<Self>, index: u32, node: NodeId) {
        let required = self.with_slice(index, |slice| {
            let member = slice.stream.members().get(&node);
            if member.is_some_and(|member| member.role == Role::Joining) {
                reach::note(Row::JoiningDropped);
                slice.stream.remove(node);
                return false;
            }
            // A promotion under way decides first; the tick comes back here.
            !slice.promoting.contains(&node)
        });
        if required == Some(true) {
            self.remove_copies(node, vec![index]);
        }
    }

    /// Asks the config group to take copies out of the in-sync sets; what it decided is seen in
    /// its state. One request per node at a time.
    fn remove_copies(self: &Rc<Self>, node: NodeId, slices: Vec<u32>) {
        if !self.removing.borrow_mut().insert(node) {
            return;
        }
        reach::note(Row::CopyRemoved);
        tracing::info!(volume = %self.volume, ?slices, %node, "taking copies out");
        let (volume, view) = (self.volume, self.view);
        let change = Change::RemoveCopies {
            volume,
            view,
            slices,
            node,
        };
        let proposed = self.context.config.propose(change, PROPOSAL_LIMIT);
        let owner = self.clone();
        self.spawn("owner-remove-copies", async move {
            let outcome = proposed.await;
            owner.removing.borrow_mut().remove(&node);
            match outcome {
                // The last copy of a slice fails: only a new takeover can set it up again.
                Some(Outcome::Refused(Refusal::LastCopy)) => owner.close(),
                Some(_) => owner.follow_config(),
                None => owner.busy.notify_one(),
            }
        });
    }

    /// What keeps an open owner from answering, if anything has for a while.
    pub(crate) fn stalled(&self) -> Option<Waiting> {
        if self.phase.get() != Phase::Open {
            return None;
        }
        let now = self.context.runtime.now();
        let mut silent: BTreeMap<NodeId, Instant> = BTreeMap::new();
        for slice in &*self.slices.borrow() {
            for (node, member) in slice.stream.members() {
                let owes = member.durable.next() < slice.stream.next();
                let silence = member.silent_for(now);
                if member.role == Role::Required && owes && silence >= NOTABLE {
                    let since = Instant::from_nanos(
                        now.as_nanos().saturating_sub(silence.as_nanos() as u64),
                    );
                    let first = silent.entry(*node).or_insert(since);
                    *first = since.min(*first);
                }
            }
        }
        let Some(since) = silent.values().min().copied() else {
            return self.lapsed_leases();
        };
        let removing: BTreeSet<NodeId> = self.removing.borrow().clone();
        let reason = if removing.is_empty() {
            WaitReason::Acknowledgement(silent.into_keys().collect())
        } else {
            WaitReason::Removal(removing)
        };
        Some(Waiting { reason, since })
    }

    /// Nobody knows what a write above this was; used by status and tests.
    pub fn stable(&self, slice: u32) -> Option<Seq> {
        self.with_slice(slice, |slice| slice.stream.stable())
    }
}
