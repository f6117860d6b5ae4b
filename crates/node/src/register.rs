//! Keeps this start of the node registered as running.

use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, NodeStart, NodeStatus, Outcome};

use crate::node::{Failure, Node};

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Node {
    pub(crate) async fn keep_registered(self: Rc<Self>) {
        let mut watch = self.group.watch();
        loop {
            watch.mark_unchanged();
            if self.leaving.get() || self.failure.borrow().is_some() {
                return;
            }
            if !self.is_member() || self.is_registered() {
                if watch.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let change = Change::NodeStarted(self.registration());
            match self.group.propose(change, PROPOSAL_LIMIT).await {
                Ok(Outcome::Refused(refusal)) => return self.fail(Failure::Refused(refusal)),
                Ok(
                    Outcome::Done
                    | Outcome::Admitted(_)
                    | Outcome::Created(_)
                    | Outcome::Reserved(_)
                    | Outcome::Placed { .. },
                ) => {}
                Err(error) => {
                    tracing::debug!(%error, "registering again");
                    self.context.runtime.sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Whether there is a cluster to register with: one that this node has state of, or has
    /// joined through its seeds.
    fn is_member(&self) -> bool {
        self.group.state().cluster.is_some() || !self.options.seeds.is_empty()
    }

    /// Whether the config group counts this start of the node as running.
    pub fn is_registered(&self) -> bool {
        let state = self.group.state();
        state.nodes.get(&self.id()).is_some_and(|record| {
            record.incarnation == self.context.incarnation()
                && matches!(record.status, NodeStatus::Up | NodeStatus::Leaving)
        })
    }

    fn registration(&self) -> NodeStart {
        NodeStart {
            node: self.id(),
            uuid: self.options.identity.uuid,
            incarnation: self.context.incarnation(),
            link_address: self.options.link_address.clone(),
            api_address: self.options.api_address.clone(),
            portal_address: self.options.portal_address.clone(),
            version: self.options.version.clone(),
        }
    }
}
