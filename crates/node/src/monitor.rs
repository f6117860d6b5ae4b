//! The leader's watch over the other nodes: what gossip suspects, the config group decides.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, LocalBoxFuture, select, select_all};
use holdfast_config::state::{Change, NodeStatus};
use holdfast_gossip::Status;
use holdfast_runtime::{Incarnation, Instant, NodeId};

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(2);
/// A node of which this leader has never heard, since it started itself, counts as gone after
/// this long: long enough for a whole cluster to come back from a power cut together.
const NEVER_HEARD_FOR: Duration = Duration::from_secs(4);
/// A node of which a newer start is heard, but not registered, counts as gone after this long: it
/// does not get as far as registering, as one whose store cannot be opened.
const SUPERSEDED_FOR: Duration = Duration::from_secs(2);
/// How often nodes that were never heard of are looked at, while there are any.
const RECHECK: Duration = Duration::from_secs(1);
/// A node is not proposed to be down again sooner than this.
const PROPOSE_AGAIN_AFTER: Duration = Duration::from_secs(2);
const VOTERS_LIMIT: Duration = Duration::from_secs(5);
const VOTERS_RETRY: Duration = Duration::from_millis(500);

impl Node {
    pub(crate) async fn keep_monitoring(self: Rc<Self>) {
        let mut health = self.gossip.health();
        let mut state = self.group.watch();
        let mut proposed = BTreeMap::new();
        let mut superseded = BTreeMap::new();
        loop {
            health.mark_unchanged();
            let leader = self.group.leader();
            state.mark_unchanged();
            let mut recheck = false;
            if self.group.is_leader() {
                let now = self.context.runtime.now();
                for (node, incarnation) in self.gone(&mut superseded, &mut recheck) {
                    // A node that registered again at once is reachable, whatever rumour says;
                    // rumour gets time to notice.
                    let again = proposed.insert((node, incarnation), now);
                    if let Some(before) = again
                        && now.saturating_since(before) < PROPOSE_AGAIN_AFTER
                    {
                        proposed.insert((node, incarnation), before);
                        recheck = true;
                        continue;
                    }
                    tracing::info!(%node, "proposing that a node is down");
                    let change = Change::NodeDown { node, incarnation };
                    // Whatever came of it is seen in the state; if nothing, it is proposed again.
                    let _ = self.group.propose(change, PROPOSAL_LIMIT).await;
                    recheck = true;
                }
            }
            let news = select_all([
                Box::pin(async { health.changed().await.is_ok() }) as LocalBoxFuture<'_, bool>,
                Box::pin(async {
                    self.group.leader_changed(leader).await;
                    true
                }),
                Box::pin(async { state.changed().await.is_ok() }),
            ]);
            if recheck {
                let _ = select(news, self.context.runtime.sleep(RECHECK)).await;
            } else if let (false, ..) = news.await {
                return;
            }
        }
    }

    /// Running nodes, by the config state, that are gone by what this node hears. `superseded`
    /// remembers since when newer starts of nodes have been heard.
    fn gone(
        &self,
        superseded: &mut BTreeMap<(NodeId, Incarnation), Instant>,
        recheck: &mut bool,
    ) -> Vec<(NodeId, Incarnation)> {
        let state = self.group.state();
        let health = self.gossip.health().borrow().clone();
        let now = self.context.runtime.now();
        let mut gone = Vec::new();
        superseded.retain(|(node, incarnation), _| {
            let record = state.nodes.get(node);
            record.is_some_and(|record| record.incarnation == *incarnation)
        });
        for (node, record) in &state.nodes {
            let running = matches!(record.status, NodeStatus::Up | NodeStatus::Leaving);
            if !running || *node == self.id() {
                continue;
            }
            let Some(belief) = health.get(node) else {
                continue;
            };
            let silent = if belief.incarnation == record.incarnation {
                belief.status == Status::Down
            } else if belief.incarnation < record.incarnation {
                *recheck = true;
                now.saturating_since(belief.since) >= NEVER_HEARD_FOR
                    && self.context.rpc.peer_up(*node) != Some(record.incarnation)
            } else {
                // A newer start is about to register itself, or tries in vain, over and over.
                *recheck = true;
                let since = superseded.entry((*node, record.incarnation)).or_insert(now);
                now.saturating_since(*since) >= SUPERSEDED_FOR
            };
            if silent {
                gone.push((*node, record.incarnation));
            }
        }
        gone
    }

    /// The leader keeps every node a member of the config group, up to the number of voters.
    pub(crate) async fn keep_voters(self: Rc<Self>) {
        let mut state = self.group.watch();
        loop {
            let leader = self.group.leader();
            state.mark_unchanged();
            let state_now = self.group.state();
            let eligible: Vec<NodeId> = state_now.members().map(|(node, _)| node).collect();
            let mut unsettled = false;
            // One that was evicted itself is about to end, and leaves that to its successor.
            if self.group.is_leader() && eligible.contains(&self.id()) {
                let result = self.group.reconcile_voters(&eligible, VOTERS_LIMIT).await;
                if let Err(error) = result {
                    tracing::debug!(%error, "the members of the config group are not settled");
                    unsettled = true;
                }
            }
            let elected = self.group.leader_changed(leader);
            let news = select(Box::pin(elected), Box::pin(state.changed()));
            if !unsettled {
                if let Either::Right((Err(_), _)) = news.await {
                    return;
                }
            } else {
                let _ = select(news, self.context.runtime.sleep(VOTERS_RETRY)).await;
            }
        }
    }
}
