//! Leaving in good order: the volumes go first.

use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use holdfast_config::state::Change;
use holdfast_volume::Owner;

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
/// How long the new owners are waited for; they open without this node too.
const OPENING_LIMIT: Duration = Duration::from_secs(3);

impl Node {
    /// Hands the volumes over, destages what can be, and stops. After it returns the process
    /// may end at any time.
    pub async fn shutdown(self: &Rc<Self>) {
        self.leaving.set(true);
        let owners: Vec<Rc<Owner>> = self.owners.borrow().values().cloned().collect();
        // Drained owners have given their leases back: the takeovers wait for nothing.
        join_all(owners.iter().map(|owner| owner.drain())).await;
        let (node, incarnation) = (self.id(), self.context.incarnation());
        let change = Change::HandOver { node, incarnation };
        if self.group.propose(change, PROPOSAL_LIMIT).await.is_ok() {
            self.context
                .runtime
                .timeout(OPENING_LIMIT, self.others_open(&owners))
                .await;
        }
        if let Err(error) = self.context.store.flush().await {
            tracing::error!(%error, "stopping with data in the journal; it is recovered next time");
        }
        self.group.shutdown().await;
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
