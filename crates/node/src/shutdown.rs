//! Leaving in good order, so that nobody has to find out that this node is gone.
//!
//! | step | until | why |
//! |---|---|---|
//! | drain owners, `HandOver` | the new owners serve | no lease is waited for |
//! | `NodeDown`, of itself | no copy here counts any more | a write that needs this node's acknowledgement would wait until its end is noticed |
//! | destage what can be | it is done | a short recovery at the next start |
//! | give up leading | another node leads | nothing can be decided until one does |

use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use holdfast_config::state::Change;
use holdfast_volume::Owner;

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
/// How long the new owners are waited for; they open without this node too.
const OPENING_LIMIT: Duration = Duration::from_secs(3);
/// How long the others get to take this node's copies out; its end tells them, too.
const LEAVING_LIMIT: Duration = Duration::from_secs(1);
/// An election and a half.
const SUCCESSION_LIMIT: Duration = Duration::from_millis(800);

impl Node {
    /// Hands the volumes over, takes its copies out, destages what can be, and stops. After it
    /// returns the process may end at any time.
    pub async fn shutdown(self: &Rc<Self>) {
        self.leaving.set(true);
        let owners: Vec<Rc<Owner>> = self.owners.borrow().values().cloned().collect();
        // Drained owners have given their leases back: the takeovers wait for nothing.
        join_all(owners.iter().map(|owner| owner.drain())).await;
        let (node, incarnation) = (self.id(), self.context.incarnation());
        let change = Change::HandOver { node, incarnation };
        if self.group.propose(change, PROPOSAL_LIMIT).await.is_ok() {
            let runtime = &self.context.runtime;
            runtime
                .timeout(OPENING_LIMIT, self.others_open(&owners))
                .await;
            let change = Change::NodeDown { node, incarnation };
            let leaving = async {
                let proposed = self.group.propose(change, PROPOSAL_LIMIT).await;
                if proposed.is_ok() {
                    self.copies_count_no_more().await;
                }
            };
            runtime.timeout(LEAVING_LIMIT, leaving).await;
        }
        if let Err(error) = self.context.store.flush().await {
            tracing::error!(%error, "stopping with data in the journal; it is recovered next time");
        }
        self.group.retire(SUCCESSION_LIMIT).await;
        self.group.shutdown().await;
    }

    /// Resolves when nothing waits for copies on this node, but for those that are the last.
    async fn copies_count_no_more(&self) {
        let mut watch = self.group.watch();
        loop {
            watch.mark_unchanged();
            let state = self.group.state();
            let mut held = state.volumes.held_by(self.id());
            let waited_for = held.any(|volume| {
                let volume = &state.volumes[&volume];
                // As many as are alone may all be here: nobody takes those out.
                let in_sync = volume.slices.held_by(self.id()).in_sync as usize;
                volume.open && in_sync > volume.slices.with_one_in_sync()
            });
            if !waited_for || watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn others_open(&self, handed_over: &[Rc<Owner>]) {
        let mut watch = self.group.watch();
        loop {
            watch.mark_unchanged();
            let state = self.group.state();
            let waiting = handed_over.iter().any(|owner| {
                state
                    .volumes
                    .get(&owner.volume())
                    .is_some_and(|record| record.owner.is_some() && !record.open)
            });
            if !waiting || watch.changed().await.is_err() {
                return;
            }
        }
    }
}
