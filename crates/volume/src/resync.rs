//! Bringing stale copies back: always by difference.
//!
//! | step | owner | joining copy |
//! |---|---|---|
//! | 1 | adds it to the stream as joining, from position `next` on | drops its unstable tail, answers its `base` |
//! | 2 | waits until everything before `next` is stable | journals the stream |
//! | 3 | copies the blocks whose newest stable version is after `base` from an in-sync copy | takes them unless it has newer ones; notes which are lost in every copy |
//! | 4 | requires it; waits until all that was submitted is stable (so the copy has it) | |
//! | 5 | | records that it is in sync |
//! | 6 | `PromoteCopy` is agreed | counts from now on |
//!
//! Any failure before step 6 forgets the copy and begins again later: `base` has not moved. If
//! the outcome of step 6 stays unknown the owner leaves office, because the copy may count.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use holdfast_config::state::{Change, CopyStatus, Outcome};
use holdfast_replica::stream::Role;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::replica::{
    BlockVersion, Changed, JoinBegin, JoinFinish, ReplicaReply, replica_request,
};
use holdfast_wire::{Seq, SliceKey};

use crate::heal::CopyPlace;
use crate::owner::{Owner, Phase, ResyncStatus};
use crate::slice::Slice;

/// Copies of one volume that are brought back at the same time.
const JOINS_AT_ONCE: usize = 4;
/// Pause before a resync that failed is begun again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
const STEP_LIMIT: Duration = Duration::from_millis(3000);
const PROPOSAL_LIMIT: Duration = Duration::from_millis(10_000);

struct Target {
    slice: u32,
    node: NodeId,
    incarnation: Incarnation,
    session: u64,
}

impl Target {
    fn place(&self, key: SliceKey) -> CopyPlace {
        CopyPlace {
            node: self.node,
            session: self.session,
            key,
        }
    }
}

impl Owner {
    /// Brings every stale copy on a running node back, until the owner closes.
    pub(crate) async fn keep_resyncing(self: Rc<Self>) {
        let mut watch = self.context.config.watch();
        while self.phase.get() == Phase::Open {
            watch.mark_unchanged();
            // Copies that are to be brought back have to be out of the streams first.
            self.follow_config();
            let targets = self.stale_copies();
            let waiting = !targets.is_empty();
            stream::iter(targets)
                .for_each_concurrent(JOINS_AT_ONCE, |target| self.bring_back(target))
                .await;
            if waiting {
                self.context.runtime.sleep(RETRY_PAUSE).await;
            } else if watch.changed().await.is_err() {
                return;
            }
        }
    }

    fn stale_copies(&self) -> Vec<Target> {
        let state = self.context.config.state();
        let Some(record) = state.volumes.get(&self.volume) else {
            return Vec::new();
        };
        let slices = self.slices.borrow();
        let mut targets = Vec::new();
        for (index, placed) in record.slices.iter() {
            let stream = slices.get(index as usize).map(|slice| &slice.stream);
            for copy in placed.copies() {
                let known = stream.is_some_and(|stream| stream.members().contains_key(&copy.node));
                let Some(incarnation) = state.running_incarnation(copy.node) else {
                    continue;
                };
                if copy.status == CopyStatus::Stale && !known {
                    let session = self.next_session();
                    let (slice, node) = (index, copy.node);
                    targets.push(Target {
                        slice,
                        node,
                        incarnation,
                        session,
                    });
                }
            }
        }
        targets
    }

    async fn bring_back(self: &Rc<Self>, target: Target) {
        let Target { slice, node, .. } = target;
        if self.context.rpc.reachable(node) != Some(target.incarnation) {
            return;
        }
        if self.join(&target).await.is_some() {
            self.note_resync(&target, |status| status.finished = true);
            tracing::info!(volume = %self.volume, slice, %node, "copy in sync again");
            return;
        }
        reach::note(Row::ResyncFailed);
        self.with_slice(slice, |slice| {
            if is_target(slice, &target) {
                slice.promoting.retain(|promoting| *promoting != node);
                let commands = slice.stream.remove(node);
                slice.absorb(commands);
            }
        });
    }

    async fn join(self: &Rc<Self>, target: &Target) -> Option<()> {
        let key = self.key(target.slice);
        let next = self.add_joining(target)?;
        let base = self.begin(target, key, next).await?;
        let now = self.context.runtime.now();
        let activated = self.with_slice(target.slice, |slice| {
            let commands = slice.stream.activate(now, target.node);
            (slice.stream.stable(), slice.absorb(commands))
        });
        let (stable, outgoing) = activated?;
        self.send(key, stable, outgoing);
        self.busy.notify_one();
        self.with_slice(target.slice, |slice| slice.when_stable(Seq(next.0 - 1)))?
            .await
            .ok()?;
        if !planted::is_active(Bug::PromoteEarly) {
            self.copy_difference(target, key, base).await?;
        }
        self.promote(target, key).await
    }

    fn add_joining(&self, target: &Target) -> Option<Seq> {
        let now = self.context.runtime.now();
        self.with_slice(target.slice, |slice| {
            if slice.stream.members().contains_key(&target.node) {
                return None;
            }
            let Target {
                node,
                incarnation,
                session,
                ..
            } = *target;
            slice
                .stream
                .add(now, node, incarnation, session, Role::Joining);
            Some(slice.stream.next())
        })?
    }

    async fn begin(&self, target: &Target, key: SliceKey, next: Seq) -> Option<Seq> {
        let begin = JoinBegin {
            volume: key.volume,
            slice: key.slice,
            view: self.view.0,
            session: target.session,
            next: next.0,
        };
        let body = replica_request::Body::JoinBegin(begin);
        let (reply, _) = self
            .ask(target.node, body, Bytes::new(), STEP_LIMIT)
            .await
            .ok()?;
        let base = Seq(reply.base);
        let fresh = ResyncStatus {
            slice: target.slice,
            node: target.node,
            base,
            blocks: 0,
            finished: false,
        };
        self.resyncs
            .borrow_mut()
            .insert((target.slice, target.node), fresh);
        Some(base)
    }

    async fn copy_difference(&self, target: &Target, key: SliceKey, base: Seq) -> Option<()> {
        let mut from_block = 0;
        loop {
            if from_block > 0 {
                reach::note(Row::ResyncMorePages);
            }
            let (source, reply, payload) = self.changed(target, key, base, from_block).await?;
            if let Some(last) = reply.blocks.last() {
                from_block = last.block + 1;
                if planted::is_active(Bug::SkipPageEdge) {
                    from_block += 1;
                }
                let copied = reply.blocks.len() as u64;
                let (lost, intact): (Vec<BlockVersion>, Vec<BlockVersion>) =
                    reply.blocks.into_iter().partition(|version| version.lost);
                self.install(target.place(key), intact, payload).await?;
                self.copy_lost(target, key, source, lost).await?;
                self.note_resync(target, |status| status.blocks += copied);
            }
            let first_only = planted::is_active(Bug::FirstPageOnly);
            if reply.complete || from_block >= self.slice_blocks() || first_only {
                return Some(());
            }
        }
    }

    /// Blocks that the source has lost come from other copies. Those that no copy has must not
    /// keep the rest from being redundant again: the copy learns that they are lost.
    async fn copy_lost(
        &self,
        target: &Target,
        key: SliceKey,
        source: NodeId,
        mut lost: Vec<BlockVersion>,
    ) -> Option<()> {
        if lost.is_empty() {
            return Some(());
        }
        reach::note(Row::ResyncLostBlocks);
        let mut sources = self.with_slice(target.slice, |slice| slice.sources_but(source))?;
        sources.retain(|node| *node != target.node);
        let blocks = lost.iter().map(|version| version.block).collect();
        let copy = target.place(key);
        let rest = self.give_back(copy, blocks, sources).await?;
        lost.retain(|version| rest.blocks.contains(&version.block));
        self.install(copy, lost, Bytes::new()).await.map(drop)
    }

    /// The next changed blocks, from the nearest in-sync copy that can tell.
    async fn changed(
        &self,
        target: &Target,
        key: SliceKey,
        base: Seq,
        from_block: u32,
    ) -> Option<(NodeId, ReplicaReply, Bytes)> {
        let (stable, sources) = self.with_slice(target.slice, |slice| {
            (slice.stream.stable(), slice.sources_but(target.node))
        })?;
        for source in self.nearest_first(sources) {
            let changed = Changed {
                volume: key.volume,
                slice: key.slice,
                view: self.view.0,
                stable: stable.0,
                after: base.0,
                from_block,
                limit: self.context.bounds.resync_blocks,
            };
            let body = replica_request::Body::Changed(changed);
            if let Ok((reply, payload)) = self.ask(source, body, Bytes::new(), STEP_LIMIT).await {
                return Some((source, reply, payload));
            }
        }
        None
    }

    async fn promote(self: &Rc<Self>, target: &Target, key: SliceKey) -> Option<()> {
        let now = self.context.runtime.now();
        let caught_up = self.with_slice(target.slice, |slice| {
            // It may have been dropped from the stream meanwhile; from here on it cannot be.
            if !is_target(slice, target) {
                return None;
            }
            slice.stream.require(now, target.node);
            slice.promoting.push(target.node);
            let last = Seq(slice.stream.next().0 - 1);
            Some(slice.when_stable(last))
        })??;
        self.renew_lease(target.node).await;
        // The copy is required, so what is stable from here on it has.
        self.context
            .runtime
            .timeout(STEP_LIMIT, caught_up)
            .await?
            .ok()?;
        let stable = self.with_slice(target.slice, |slice| slice.stream.stable())?;
        let finish = JoinFinish {
            volume: key.volume,
            slice: key.slice,
            view: self.view.0,
            session: target.session,
            stable: stable.0,
        };
        let body = replica_request::Body::JoinFinish(finish);
        self.ask(target.node, body, Bytes::new(), STEP_LIMIT)
            .await
            .ok()?;
        let change = Change::PromoteCopy {
            volume: self.volume,
            view: self.view,
            slice: target.slice,
            node: target.node,
            incarnation: target.incarnation,
        };
        match self.context.config.propose(change, PROPOSAL_LIMIT).await {
            Some(Outcome::Done) => {
                self.with_slice(target.slice, |slice| {
                    slice
                        .promoting
                        .retain(|promoting| *promoting != target.node);
                })?;
                // Between the decision and here the copy may have been taken out again.
                self.follow_config();
                Some(())
            }
            Some(_) => {
                reach::note(Row::PromotionRefused);
                None
            }
            None if planted::is_active(Bug::ForgetUnknownPromotion) => None,
            None => {
                reach::note(Row::PromotionUnknown);
                self.close();
                None
            }
        }
    }

    fn note_resync(&self, target: &Target, act: impl FnOnce(&mut ResyncStatus)) {
        if let Some(status) = self
            .resyncs
            .borrow_mut()
            .get_mut(&(target.slice, target.node))
        {
            act(status);
        }
    }
}

/// Whether the stream still has the copy as this very resync added it.
fn is_target(slice: &Slice, target: &Target) -> bool {
    let member = slice.stream.members().get(&target.node);
    member.is_some_and(|member| member.session == target.session)
}
