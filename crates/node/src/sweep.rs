//! Gives back what copies take that are no copies any more: they moved to other nodes, or were
//! made for a slice that was placed elsewhere in the end.
//!
//! ```text
//!  the config state takes a copy from this node ─┐
//!  what the store held when it started ──────────┴─► queue ─► look ─ barrier ─ look again ─► drop
//! ```
//!
//! A slice is dropped only if all of this is true:
//!
//! | condition | or else |
//! |---|---|
//! | a state decided after the first look does not place it here | it may count by now |
//! | no owner has begun to set it up since that look | a decision may lie behind it that is not seen here yet: it is looked at again |
//! | it holds something, or joins, or the volume has got a later view than was promised here | an owner may have made it empty for a slice that it is about to place: left until the next start |
//!
//! The third condition is about the moment of the first look: what was empty then may have been
//! placed, and written to, since the barrier.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::ClusterState;
use holdfast_replica::Unplaced;
use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::{SliceKey, VolumeId};
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::node::{Failure, Node};

const BARRIER_LIMIT: Duration = Duration::from_secs(5);
/// Pause before what could not be dropped is looked at again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Slices that are dropped together: their durable facts are one write.
const DROPPED_AT_ONCE_MAX: usize = 256;

/// What may be given back.
#[derive(Default)]
pub(crate) struct Sweep {
    queue: RefCell<BTreeSet<SliceKey>>,
    added: Notify,
}

impl Sweep {
    /// These slices may be of no use here any more.
    pub(crate) fn add(&self, slices: impl IntoIterator<Item = SliceKey>) {
        self.queue.borrow_mut().extend(slices);
        self.added.notify_one();
    }

    async fn next(&self) -> Vec<SliceKey> {
        loop {
            let added = self.added.notified();
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            added.await;
        }
    }

    fn take(&self) -> Vec<SliceKey> {
        let mut queue = self.queue.borrow_mut();
        let rest = queue.iter().nth(DROPPED_AT_ONCE_MAX).copied();
        let rest = rest.map_or_else(BTreeSet::new, |first| queue.split_off(&first));
        std::mem::replace(&mut *queue, rest).into_iter().collect()
    }
}

impl Node {
    /// Gives back what is of no use, for ever.
    pub(crate) async fn keep_sweeping(self: Rc<Self>) {
        self.sweep_all().await;
        loop {
            let slices = self.sweep.next().await;
            let left = self.give_back(slices).await;
            if !left.is_empty() {
                self.context.runtime.sleep_roughly(RETRY_PAUSE).await;
                self.sweep.add(left);
            }
        }
    }

    /// All that the store holds may be of no use.
    async fn sweep_all(&self) {
        let mut next = Some(SliceKey::default());
        while let Some(first) = next {
            let store = &self.context.store;
            let slices = store.slices_from(first, DROPPED_AT_ONCE_MAX);
            next = slices.last().and_then(|last| last.next());
            self.sweep.add(slices);
            yield_now().await;
        }
    }

    /// Answers what is to be looked at again.
    async fn give_back(&self, mut slices: Vec<SliceKey>) -> Vec<SliceKey> {
        let placed_here = |state: &ClusterState, slice: &SliceKey| {
            let volume = state.volumes.get(&VolumeId(slice.volume));
            // A deleted volume goes as a whole, and one that is not known yet is new.
            volume.is_none_or(|volume| {
                let placed = volume.slices.get(slice.slice);
                placed.is_some_and(|placed| placed.status(self.id()).is_some())
            })
        };
        let state = self.state();
        slices.retain(|slice| !placed_here(&state, slice));
        let before = planted::is_active(Bug::SweepBeforeBarrier).then_some(state);
        if slices.is_empty() {
            return slices;
        }
        let seen = self.context.holder.look_at(slices);
        let sure = planted::is_active(Bug::SweepWithoutBarrier)
            || self.group.read_barrier(BARRIER_LIMIT).await.is_ok();
        if !sure {
            return seen.slices().collect();
        }
        let state = before.unwrap_or_else(|| self.state());
        let unplaced = seen.slices().filter(|slice| !placed_here(&state, slice));
        let unplaced = unplaced.map(|slice| {
            let volume = &state.volumes[&VolumeId(slice.volume)];
            let view = volume.view;
            Unplaced { slice, view }
        });
        let unplaced = unplaced.collect();
        drop(state);
        match self.context.holder.drop_copies(&seen, unplaced).await {
            Ok(dropped) => {
                if dropped.count > 0 {
                    tracing::info!(slices = dropped.count, "what had moved away is given back");
                }
                dropped.again
            }
            Err(error) => {
                self.fail(Failure::Store(error.to_string()));
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_taken_from_the_queue_once_and_so_many_at_once() {
        let sweep = Sweep::default();
        let slice = |slice| SliceKey { volume: 1, slice };
        let all: Vec<SliceKey> = (0..600).map(slice).collect();
        sweep.add(all.iter().copied());
        sweep.add(all.iter().rev().take(3).copied());
        let mut taken = Vec::new();
        for expected in [256, 256, 88, 0] {
            let part = sweep.take();
            assert_eq!(part.len(), expected);
            taken.extend(part);
        }
        assert_eq!(taken, all);
    }
}
