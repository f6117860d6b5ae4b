//! The leader sees to it that copies which are missing, or on nodes that are drained or evicted, are
//! made elsewhere: part by part, until a part changes nothing. Then it waits for nodes to change:
//! one that came up can take copies for which there was no place.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use holdfast_config::state::{Change, ClusterState, NodeRecord, Outcome};
use holdfast_runtime::NodeId;

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What decides whether there is something to do.
struct Occasion {
    nodes: Rc<BTreeMap<NodeId, NodeRecord>>,
    draining: BTreeMap<NodeId, u64>,
}

impl Occasion {
    fn of(state: &ClusterState) -> Self {
        Self {
            nodes: state.nodes.clone(),
            draining: state.draining.clone(),
        }
    }

    fn is_still(&self, state: &ClusterState) -> bool {
        Rc::ptr_eq(&self.nodes, &state.nodes) && self.draining == state.draining
    }
}

impl Node {
    pub(crate) async fn keep_mending(self: Rc<Self>) {
        let mut watch = self.group.watch();
        let mut done: Option<Occasion> = None;
        loop {
            watch.mark_unchanged();
            let leader = self.group.leader();
            let elected = self.group.leader_changed(leader);
            let news = select(Box::pin(elected), Box::pin(watch.changed()));
            let state = self.state();
            let is_done = done.as_ref().is_some_and(|done| done.is_still(&state));
            if is_done || !self.group.is_leader() || !state.has_to_mend() {
                drop(state);
                news.await;
                continue;
            }
            match self.group.propose(Change::Mend, PROPOSAL_LIMIT).await {
                Ok(Outcome::Placed { slices: 0 }) => done = Some(Occasion::of(&state)),
                Ok(
                    Outcome::Placed { .. }
                    | Outcome::Done
                    | Outcome::Admitted(_)
                    | Outcome::Created(_)
                    | Outcome::Reserved(_)
                    | Outcome::Refused(_),
                ) => {}
                Err(error) => {
                    tracing::debug!(%error, "mending copies again");
                    self.context.runtime.sleep_roughly(RETRY_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_something_to_do_again_when_nodes_or_the_drained_ones_have_changed() {
        let mut state = ClusterState::default();
        state.draining.insert(NodeId(1), 0);
        let done = Occasion::of(&state);
        assert!(done.is_still(&state.clone()));
        let mut other = state.clone();
        other.draining.insert(NodeId(2), 0);
        assert!(!done.is_still(&other));
        Rc::make_mut(&mut state.nodes).clear();
        assert!(!done.is_still(&state));
    }
}
