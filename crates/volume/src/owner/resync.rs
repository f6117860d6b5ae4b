//! Bringing stale copies back: always by difference, and all copies of the volume on a node
//! together.
//!
//! | step | owner | joining copies |
//! |---|---|---|
//! | 1 | adds them to their streams as joining, from positions `next` on | drop their unstable tails, answer their bases |
//! | 2 | waits until everything before `next` is stable | journal the streams |
//! | 3 | copies the blocks whose newest stable version is after the base from an in-sync copy; where the base is as far as the stream was, there are none | take them unless they have newer ones; note which are lost in every copy |
//! | 4 | requires them; waits until all that was submitted is stable (so the copies have it) | |
//! | 5 | | record that they are in sync |
//! | 6 | `PromoteCopies` is agreed | count from now on |
//!
//! Copies that lack nothing go through steps 4 to 6 together, at once; the others in groups, as
//! they become ready. Any failure before step 6 forgets the copy and begins again later: its base
//! has not moved. If the outcome of step 6 stays unknown the owner leaves office, because the
//! copies may count.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use holdfast_config::state::{Change, CopyStatus, Outcome, SliceRecord};
use holdfast_replica::stream::Role;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, NodeId, PAGE_BYTES};
use holdfast_wire::Seq;
use holdfast_wire::replica::{BlockVersion, JoinedSlice, StreamStart};
use tokio::sync::Notify;

use super::calls::{CopiedBlocks, CopyPlace, Difference};
use super::slice::Slice;
use super::slices::LOOKED_AT_ONCE;
use super::{Owner, ResyncStatus};

/// Of them, those whose blocks are copied at the same time.
const COPIED_AT_ONCE: usize = 4;
/// Pause before a resync that failed is begun again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
const STEP_LIMIT: Duration = Duration::from_millis(3000);
const PROPOSAL_LIMIT: Duration = Duration::from_millis(10_000);

/// A copy that is being brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    slice: u32,
    node: NodeId,
    incarnation: Incarnation,
    session: u64,
}

impl Target {
    fn place(self) -> CopyPlace {
        CopyPlace {
            node: self.node,
            session: self.session,
            slice: self.slice,
        }
    }

    /// Whether the stream still has the copy as this very resync added it.
    fn is_in(self, slice: &Slice) -> bool {
        let member = slice.stream.members().get(&self.node);
        member.is_some_and(|member| member.session == self.session)
    }
}

/// The resyncs of this owner's time.
#[derive(Default)]
pub(crate) struct Resyncs {
    statuses: RefCell<BTreeMap<(u32, NodeId), ResyncStatus>>,
    /// Nodes whose copies are being brought back.
    active: RefCell<BTreeSet<NodeId>>,
    news: Notify,
    /// How often there was news.
    told: Cell<u64>,
}

impl Resyncs {
    /// Some copy may have to be brought back.
    pub(crate) fn look_again(&self) {
        self.told.set(self.told.get() + 1);
        self.news.notify_one();
    }

    pub(crate) fn statuses(&self) -> Vec<ResyncStatus> {
        self.statuses.borrow().values().cloned().collect()
    }

    /// Copies that are not in sync yet, with the blocks copied so far.
    pub(crate) fn under_way(&self) -> Vec<(u32, NodeId, u64)> {
        let statuses = self.statuses.borrow();
        let under_way = statuses.values().filter(|status| !status.finished);
        let under_way = under_way.map(|status| (status.slice, status.node, status.blocks));
        under_way.collect()
    }

    fn begin(&self, target: Target, base: Seq) {
        let status = ResyncStatus {
            slice: target.slice,
            node: target.node,
            base,
            blocks: 0,
            finished: false,
        };
        let key = (target.slice, target.node);
        self.statuses.borrow_mut().insert(key, status);
    }

    fn note(&self, target: Target, act: impl FnOnce(&mut ResyncStatus)) {
        let mut statuses = self.statuses.borrow_mut();
        if let Some(status) = statuses.get_mut(&(target.slice, target.node)) {
            act(status);
        }
    }
}

impl Owner {
    /// Brings every stale copy on a running node back, until the owner closes.
    pub(crate) async fn keep_resyncing(self: Rc<Self>) {
        loop {
            let news = self.resyncs.news.notified();
            // Copies that are to be brought back have to be out of the streams first.
            self.follow_members().await;
            for node in self.nodes_with_stale_copies() {
                if !self.resyncs.active.borrow_mut().insert(node) {
                    continue;
                }
                let owner = self.clone();
                self.spawn("owner-resync-node", async move {
                    owner.bring_node_back(node).await;
                });
            }
            news.await;
        }
    }

    /// Brings back what there is on one node; returns when that is done, or after a pause.
    async fn bring_node_back(self: &Rc<Self>, node: NodeId) {
        loop {
            let told = self.resyncs.told.get();
            let targets = self.stale_copies(node).await;
            if targets.is_empty() && self.resyncs.told.get() != told {
                continue;
            }
            if targets.is_empty() {
                // Whatever changes that from here on wakes the task that looks for them.
                self.resyncs.active.borrow_mut().remove(&node);
                return;
            }
            let all = targets.len();
            let reachable = self.context.rpc.reachable(node) == Some(targets[0].incarnation);
            let done = match reachable {
                true => self.bring_back(targets).await,
                false => 0,
            };
            if done < all {
                self.context.runtime.sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn nodes_with_stale_copies(&self) -> BTreeSet<NodeId> {
        let state = self.context.config.state();
        let Some(record) = state.volumes.get(&self.volume) else {
            return BTreeSet::new();
        };
        let holders = record.slices.holders().iter();
        let stale = holders.filter(|held| held.in_sync < held.copies);
        let nodes = stale.map(|held| held.node);
        nodes
            .filter(|node| state.running_incarnation(*node).is_some())
            .collect()
    }

    /// Some of the stale copies on a node that are in no stream.
    async fn stale_copies(&self, node: NodeId) -> Vec<Target> {
        let mut from = Some(0);
        while let Some(first) = from {
            let state = self.context.config.state();
            let running = state.running_incarnation(node);
            let (Some(record), Some(incarnation)) = (state.volumes.get(&self.volume), running)
            else {
                return Vec::new();
            };
            let held = record.slices.held_by(node);
            if held.in_sync == held.copies {
                return Vec::new();
            }
            let part = record.slices.range(first..).take(LOOKED_AT_ONCE);
            let is_stale = |(index, placed): &(u32, &SliceRecord)| {
                let in_stream = |slice: &mut Slice| slice.stream.members().contains_key(&node);
                placed.status(node) == Some(CopyStatus::Stale)
                    && self.slices.with(*index, in_stream) == Some(false)
            };
            let stale = part.clone().filter(is_stale).map(|(slice, _)| Target {
                slice,
                node,
                incarnation,
                session: self.slices.next_session(),
            });
            let stale: Vec<Target> = stale.collect();
            if !stale.is_empty() {
                return stale;
            }
            from = part.last().and_then(|(last, _)| last.checked_add(1));
            tokio::task::yield_now().await;
        }
        Vec::new()
    }

    /// Answers how many of them are in sync again.
    async fn bring_back(self: &Rc<Self>, targets: Vec<Target>) -> usize {
        let joining = self.begin_joining(targets).await;
        let (mut complete, mut lacking) = (Vec::new(), Vec::new());
        for (target, base, before) in joining {
            match base >= before {
                true => complete.push(target),
                false => lacking.push((target, base)),
            }
        }
        let mut done = self.promote(complete).await;
        let copied = stream::iter(lacking)
            .map(|(target, base)| async move {
                let copied = match planted::is_active(Bug::PromoteEarly) {
                    true => Some(()),
                    false => self.copy_difference(target, base).await,
                };
                if copied.is_none() {
                    self.give_up(target);
                }
                copied.map(|()| target)
            })
            .buffer_unordered(COPIED_AT_ONCE)
            .ready_chunks(COPIED_AT_ONCE * 4);
        let mut copied = std::pin::pin!(copied);
        while let Some(ready) = copied.next().await {
            done += self.promote(ready.into_iter().flatten().collect()).await;
        }
        done
    }

    /// Steps 1 and 2. Answers the copies that join, their bases, and the last position before the
    /// stream that they get.
    async fn begin_joining(self: &Rc<Self>, targets: Vec<Target>) -> Vec<(Target, Seq, Seq)> {
        let Some(node) = targets.first().map(|target| target.node) else {
            return Vec::new();
        };
        let added = targets.into_iter().filter_map(|target| {
            let next = self.add_joining(target)?;
            let start = StreamStart {
                slice: target.slice,
                session: target.session,
                next: next.0,
            };
            Some((target, start))
        });
        let added: Vec<(Target, StreamStart)> = added.collect();
        let starts = added.iter().map(|(_, start)| *start).collect();
        let bases = self.calls.join(node, starts).await;
        let mut waiting = Vec::new();
        for (target, start) in added {
            let before = Seq(start.next - 1);
            let activated = bases.get(&target.slice).and_then(|base| {
                self.resyncs.begin(target, *base);
                Some((*base, self.activate(target, before)?))
            });
            match activated {
                Some((base, stable)) => waiting.push((target, base, before, stable)),
                None => self.give_up(target),
            }
        }
        let mut joining = Vec::new();
        for (target, base, before, stable) in waiting {
            if stable.await.is_ok() {
                joining.push((target, base, before));
            }
        }
        joining
    }

    fn add_joining(&self, target: Target) -> Option<Seq> {
        let now = self.context.runtime.now();
        self.slices.with(target.slice, |slice| {
            if slice.stream.members().contains_key(&target.node) {
                return None;
            }
            let Target {
                node,
                incarnation,
                session,
                ..
            } = target;
            let role = Role::Joining;
            slice.stream.add(now, node, incarnation, session, role);
            Some(slice.stream.next())
        })?
    }

    /// The copy gets its stream from now on. Answers when everything before it is stable.
    fn activate(&self, target: Target, before: Seq) -> Option<tokio::sync::oneshot::Receiver<()>> {
        let now = self.context.runtime.now();
        let activated = self.slices.with(target.slice, |slice| {
            if !target.is_in(slice) {
                return None;
            }
            let commands = slice.stream.activate(now, target.node);
            let (stable, outgoing) = (slice.stream.stable(), slice.absorb(commands));
            Some((slice.key, stable, outgoing, slice.when_stable(before)))
        });
        let (key, stable, outgoing, before_is_stable) = activated??;
        self.send(key, stable, outgoing);
        self.slices.attend(target.slice);
        Some(before_is_stable)
    }

    /// Forgets a copy that could not be brought back; it is begun with anew.
    fn give_up(&self, target: Target) {
        reach::note(Row::ResyncFailed);
        self.slices.with(target.slice, |slice| {
            if target.is_in(slice) {
                slice
                    .promoting
                    .retain(|promoting| *promoting != target.node);
                let commands = slice.stream.remove(target.node);
                slice.absorb(commands);
            }
        });
    }

    async fn copy_difference(&self, target: Target, base: Seq) -> Option<()> {
        // All owners of the node take turns: copies that are begun are ended first.
        let _turn = self.context.copying.acquire().await.ok()?;
        let mut from_block = 0;
        loop {
            if from_block > 0 {
                reach::note(Row::ResyncMorePages);
            }
            let (source, changed) = self.changed(target, base, from_block).await?;
            if let Some(last) = changed.blocks.last() {
                from_block = last.block + 1;
                if planted::is_active(Bug::SkipPageEdge) {
                    from_block += 1;
                }
                let copied = changed.blocks.len() as u64;
                let (lost, intact): (Vec<BlockVersion>, Vec<BlockVersion>) =
                    changed.blocks.into_iter().partition(|version| version.lost);
                let copy = target.place();
                self.calls.install(copy, intact, changed.data).await?;
                self.copy_lost(target, source, lost).await?;
                self.resyncs.note(target, |status| status.blocks += copied);
                self.note_copied(target, copied);
            }
            let first_only = planted::is_active(Bug::FirstPageOnly);
            if changed.complete || from_block >= self.slice_blocks() || first_only {
                return Some(());
            }
        }
    }

    fn note_copied(&self, target: Target, blocks: u64) {
        let state = self.context.config.state();
        let record = state.volumes.get(&self.volume);
        if let Some(slice) = record.and_then(|record| record.slices.get(target.slice)) {
            let bytes = blocks * PAGE_BYTES as u64;
            self.context.copied.note(&state, slice, target.node, bytes);
        }
    }

    /// Blocks that the source has lost come from other copies. Those that no copy has must not
    /// keep the rest from being redundant again: the copy learns that they are lost.
    async fn copy_lost(
        &self,
        target: Target,
        source: NodeId,
        mut lost: Vec<BlockVersion>,
    ) -> Option<()> {
        if lost.is_empty() {
            return Some(());
        }
        reach::note(Row::ResyncLostBlocks);
        let others = |slice: &mut Slice| slice.sources_but(source);
        let mut sources = self.slices.with(target.slice, others)?;
        sources.retain(|node| *node != target.node);
        let blocks = lost.iter().map(|version| version.block).collect();
        let rest = self.give_back(target.place(), blocks, sources).await?;
        lost.retain(|version| rest.blocks.contains(&version.block));
        let installed = self
            .calls
            .install(target.place(), lost, bytes::Bytes::new());
        installed.await.map(drop)
    }

    /// The next changed blocks, from the nearest in-sync copy that can tell.
    async fn changed(
        &self,
        target: Target,
        base: Seq,
        from_block: u32,
    ) -> Option<(NodeId, CopiedBlocks)> {
        let (stable, sources) = self.slices.with(target.slice, |slice| {
            (slice.stream.stable(), slice.sources_but(target.node))
        })?;
        for source in self.nearest_first(sources) {
            let wanted = Difference {
                slice: target.slice,
                stable,
                after: base,
                from_block,
                limit: self.context.bounds.resync_blocks,
            };
            if let Ok(changed) = self.calls.changed(source, wanted).await {
                return Some((source, changed));
            }
        }
        None
    }

    /// Steps 4 to 6, for copies of one node that hold everything that was stable when their
    /// blocks were copied. Answers how many are in sync.
    async fn promote(self: &Rc<Self>, targets: Vec<Target>) -> usize {
        let Some(Target {
            node, incarnation, ..
        }) = targets.first().copied()
        else {
            return 0;
        };
        let (caught_up, late) = self.require(targets).await;
        let finished = self
            .calls
            .finish(node, caught_up.iter().map(|(_, joined)| *joined).collect());
        let finished = finished.await;
        let caught_up = caught_up.into_iter().map(|(target, _)| target);
        let (finished, refused): (Vec<Target>, Vec<Target>) =
            caught_up.partition(|target| finished.contains(&target.slice));
        for target in late.into_iter().chain(refused) {
            self.give_up(target);
        }
        if finished.is_empty() {
            return 0;
        }
        let change = Change::PromoteCopies {
            volume: self.volume,
            view: self.view,
            node,
            incarnation,
            slices: finished.iter().map(|target| target.slice).collect(),
        };
        let outcome = self.context.config.propose(change, PROPOSAL_LIMIT).await;
        if self.gate.is_closed() {
            return 0;
        }
        match outcome {
            Some(Outcome::Done) => self.note_promoted(&finished),
            Some(_) => {
                reach::note(Row::PromotionRefused);
                for target in finished {
                    self.give_up(target);
                }
                0
            }
            None if planted::is_active(Bug::ForgetUnknownPromotion) => {
                for target in finished {
                    self.give_up(target);
                }
                0
            }
            None => {
                reach::note(Row::PromotionUnknown);
                self.close();
                0
            }
        }
    }

    fn note_promoted(self: &Rc<Self>, promoted: &[Target]) -> usize {
        for target in promoted {
            let node = target.node;
            self.slices.with(target.slice, |slice| {
                slice.promoting.retain(|promoting| *promoting != node);
            });
            self.resyncs.note(*target, |status| status.finished = true);
        }
        // Between the decision and here copies may have been taken out again.
        self.resyncs.look_again();
        if let Some(Target { node, .. }) = promoted.first() {
            let copies = promoted.len();
            tracing::info!(volume = %self.volume, %node, copies, "copies in sync again");
        }
        promoted.len()
    }

    /// From here on nothing is acknowledged without these copies. Answers those that have all that
    /// was submitted before, and those that do not get there.
    async fn require(&self, targets: Vec<Target>) -> (Vec<(Target, JoinedSlice)>, Vec<Target>) {
        let now = self.context.runtime.now();
        let (mut required, mut late) = (Vec::new(), Vec::new());
        for target in targets {
            let when_caught_up = self.slices.with(target.slice, |slice| {
                // It may have been dropped from the stream meanwhile; from here on it cannot be.
                if !target.is_in(slice) {
                    return None;
                }
                slice.stream.require(now, target.node);
                slice.promoting.push(target.node);
                let last = Seq(slice.stream.next().0 - 1);
                Some(slice.when_stable(last))
            });
            match when_caught_up.flatten() {
                Some(when_caught_up) => required.push((target, when_caught_up)),
                None => late.push(target),
            }
        }
        if let Some((target, _)) = required.first() {
            self.renew_lease(target.node).await;
        }
        // The copies are required, so what is stable from here on they have.
        let waiting = required
            .into_iter()
            .map(|(target, when_caught_up)| async move {
                let caught_up = self.context.runtime.timeout(STEP_LIMIT, when_caught_up);
                (target, matches!(caught_up.await, Some(Ok(()))))
            });
        let mut caught_up = Vec::new();
        for (target, is_caught_up) in join_all(waiting).await {
            let stable = |slice: &mut Slice| slice.stream.stable();
            match self.slices.with(target.slice, stable) {
                Some(stable) if is_caught_up => {
                    let joined = JoinedSlice {
                        slice: target.slice,
                        session: target.session,
                        stable: stable.0,
                    };
                    caught_up.push((target, joined));
                }
                Some(_) | None => late.push(target),
            }
        }
        (caught_up, late)
    }
}
