//! Removing slices and volumes: for good, durably, and all that there is of them.
//!
//! Invariant: what is submitted once a removal has ended counts, and nothing from before does. So
//! while it is under way nothing of its slices may enter the journal: what waits is withdrawn, and
//! neither seals nor relocated records carry anything of them.
//!
//! Tested with the whole store: `tests/removal.rs`, and in seeds of the simulator's `store`.

use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::Inner;
use super::submission::Reply;
use crate::error::StoreError;
use crate::facts::{Change, Scope};
use crate::record::SliceKey;
use holdfast_runtime::planted::{self, Bug};

impl Inner {
    pub(crate) fn begin_remove(self: &Rc<Self>, scopes: Vec<Scope>) -> Result<Reply, StoreError> {
        self.poison.check()?;
        let scopes: BTreeSet<Scope> = scopes.into_iter().collect();
        let goes = |slice: SliceKey| {
            scopes.contains(&Scope::Volume(slice.volume)) || scopes.contains(&Scope::Slice(slice))
        };
        self.withdraw(|item| goes(item.slice));
        let before_lsn = self.journal.next_lsn();
        self.space.removal_begun(&scopes);
        let (reply, receiver) = oneshot::channel();
        let inner = self.clone();
        self.runtime.spawn("store remove", async move {
            let list: Vec<Scope> = scopes.iter().copied().collect();
            let removed = inner.remove(&list, before_lsn).await;
            inner.space.removal_ended(&scopes);
            let _ = reply.send(removed);
        });
        Ok(receiver)
    }

    /// Removes slices and volumes, in this order, each step durable before the next:
    ///
    /// 1. they have no facts any more, and what the journal has of them is void;
    /// 2. the home has nothing of them;
    /// 3. that is so: a recovery does not clear them again, and what comes from now on counts.
    async fn remove(&self, scopes: &[Scope], before_lsn: u64) -> Result<(), StoreError> {
        self.wait_written(before_lsn - 1).await?;
        let _writers = self.home_writers.lock().await;
        let tail_lsn = self.journal.tail_lsn();
        let begun = Change::Remove {
            scopes: scopes.to_vec(),
            before_lsn,
        };
        let slices_only = scopes.iter().all(|scope| matches!(scope, Scope::Slice(_)));
        let keeps = slices_only && planted::is_active(Bug::GiveBackKeepsFacts);
        let changes = [Change::Forget { tail_lsn }, begun];
        let changes = changes.into_iter().take(if keeps { 1 } else { 2 });
        self.facts.update(changes).await?;
        let mut unpinned = Vec::new();
        for scope in scopes {
            let bounds = scope.bounds();
            let mut slices = self.slices.borrow_mut();
            let keys: Vec<SliceKey> = slices.range(bounds.clone()).map(|(key, _)| *key).collect();
            for key in keys {
                if let Some(index) = slices.remove(&key) {
                    index.drop_all(&mut unpinned);
                }
            }
            take_range(&mut self.dirty.borrow_mut(), bounds.clone());
            take_range(&mut self.unsealed.borrow_mut(), bounds.clone());
            self.bad.forget(bounds);
        }
        self.released.borrow_mut().extend(unpinned);
        self.home
            .clear(scopes)
            .await
            .map_err(|error| self.poison.set(error))?;
        let tail_lsn = self.journal.tail_lsn();
        let cleared = Change::Cleared {
            scopes: scopes.to_vec(),
            before_lsn,
        };
        let changes = [cleared, Change::Forget { tail_lsn }];
        self.facts.update(changes).await?;
        // The next round frees what the journal held of it, and forgets that it was removed.
        self.pressure.something_destageable();
        Ok(())
    }
}

/// Takes a range of keys out of a set.
fn take_range<T: Ord + Copy>(set: &mut BTreeSet<T>, range: std::ops::RangeInclusive<T>) {
    let keys: Vec<T> = set.range(range).copied().collect();
    for key in keys {
        set.remove(&key);
    }
}
