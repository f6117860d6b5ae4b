//! The leader's watch over the other nodes: what gossip suspects, or no link leads to any more,
//! the config group decides.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, LocalBoxFuture, select, select_all};
use holdfast_config::group::voter_count;
use holdfast_config::state::{Change, ClusterState, NodeStatus};
use holdfast_gossip::Status;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Incarnation, Instant, NodeId};

use crate::connectivity::{Contact, OUT_OF_REACH_FOR, Reachability};
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

/// What the monitor remembers from one look to the next.
#[derive(Default)]
struct Memory {
    /// When each start of a node was proposed to be down.
    proposed: BTreeMap<(NodeId, Incarnation), Instant>,
    /// Since when newer starts of nodes have been heard.
    superseded: BTreeMap<(NodeId, Incarnation), Instant>,
    reachability: Reachability,
}

/// The nodes that are gone, and when to look again if nothing happens.
#[derive(Default)]
struct Look {
    gone: Vec<(NodeId, Incarnation)>,
    again_after: Option<Duration>,
}

impl Look {
    fn again_after(&mut self, pause: Duration) {
        let sooner = self.again_after.map_or(pause, |planned| planned.min(pause));
        self.again_after = Some(sooner);
    }
}

impl Node {
    pub(crate) async fn keep_monitoring(self: Rc<Self>) {
        let mut health = self.gossip.health();
        let mut state = self.group.watch();
        let mut routes = self.context.rpc.watch_routes();
        let mut memory = Memory::default();
        loop {
            health.mark_unchanged();
            routes.mark_unchanged();
            let leader = self.group.leader();
            state.mark_unchanged();
            self.note_reachable(&mut memory.reachability);
            let mut look = Look::default();
            if self.group.is_leader() {
                look = self.look(&mut memory);
                for (node, incarnation) in std::mem::take(&mut look.gone) {
                    // A node that registered again at once is reachable, whatever rumour says;
                    // rumour gets time to notice.
                    let now = self.context.runtime.now();
                    let again = memory.proposed.insert((node, incarnation), now);
                    look.again_after(RECHECK);
                    if let Some(before) = again
                        && now.saturating_since(before) < PROPOSE_AGAIN_AFTER
                    {
                        memory.proposed.insert((node, incarnation), before);
                        continue;
                    }
                    self.propose_down(node, incarnation);
                }
            }
            let news = select_all([
                Box::pin(async { health.changed().await.is_ok() }) as LocalBoxFuture<'_, bool>,
                Box::pin(async {
                    self.group.leader_changed(leader).await;
                    true
                }),
                Box::pin(async { state.changed().await.is_ok() }),
                Box::pin(async { routes.changed().await.is_ok() }),
            ]);
            if let Some(pause) = look.again_after {
                let _ = select(news, self.context.runtime.sleep(pause)).await;
            } else if let (false, ..) = news.await {
                return;
            }
        }
    }

    /// Proposals do not wait for one another: nodes that are gone together go together. Whatever
    /// came of one is seen in the state; if nothing, it is proposed again.
    fn propose_down(&self, node: NodeId, incarnation: Incarnation) {
        tracing::info!(%node, "proposing that a node is down");
        let group = self.group.clone();
        let change = Change::NodeDown { node, incarnation };
        self.context.runtime.spawn("node-down", async move {
            let _ = group.propose(change, PROPOSAL_LIMIT).await;
        });
    }

    fn note_reachable(&self, reachability: &mut Reachability) {
        let reachable = self.context.rpc.reachable_nodes();
        let voters = self.group.voters();
        let reached = voters.iter().filter(|voter| reachable.contains_key(voter));
        let majority = reached.count() * 2 > voters.len();
        reachability.note(self.context.runtime.now(), &reachable, majority);
    }

    /// Running nodes, by the config state, that are gone by what this node hears.
    fn look(&self, memory: &mut Memory) -> Look {
        let state = self.group.state();
        let health = self.gossip.health().borrow().clone();
        let now = self.context.runtime.now();
        let mut look = Look::default();
        let current = |(node, incarnation): &(NodeId, Incarnation)| {
            let record = state.nodes.get(node);
            record.is_some_and(|record| record.incarnation == *incarnation)
        };
        memory.superseded.retain(|start, _| current(start));
        memory.proposed.retain(|start, _| current(start));
        for (node, record) in state.nodes.iter() {
            let running = matches!(record.status, NodeStatus::Up | NodeStatus::Leaving);
            if !running || *node == self.id() {
                continue;
            }
            let contact = match memory.reachability.of(now, *node, record.incarnation) {
                _ if planted::is_active(Bug::TrustRumour) => Contact::Unjudged,
                contact => contact,
            };
            match contact {
                Contact::Unjudged => {}
                Contact::Missing => look.again_after(OUT_OF_REACH_FOR),
                Contact::Lost => {
                    look.gone.push((*node, record.incarnation));
                    continue;
                }
            }
            let Some(belief) = health.get(node) else {
                continue;
            };
            let silent = if belief.incarnation == record.incarnation {
                belief.status == Status::Down
            } else if belief.incarnation < record.incarnation {
                look.again_after(RECHECK);
                now.saturating_since(belief.since) >= NEVER_HEARD_FOR
                    && self.context.rpc.reachable(*node) != Some(record.incarnation)
            } else {
                // A newer start is about to register itself, or tries in vain, over and over.
                look.again_after(RECHECK);
                let start = (*node, record.incarnation);
                let since = memory.superseded.entry(start).or_insert(now);
                now.saturating_since(*since) >= SUPERSEDED_FOR
            };
            if silent {
                look.gone.push((*node, record.incarnation));
            }
        }
        look
    }

    /// The leader keeps every node a member of the config group, up to the number of voters.
    pub(crate) async fn keep_voters(self: Rc<Self>) {
        let mut state = self.group.watch();
        loop {
            let leader = self.group.leader();
            state.mark_unchanged();
            let state_now = self.group.state();
            let members: Vec<NodeId> = state_now.members().map(|(node, _)| node).collect();
            let mut unsettled = false;
            // One that was evicted itself is about to end, and leaves that to its successor.
            if self.group.is_leader() && members.contains(&self.id()) {
                // Another one that was stays a learner until it has heard of it, and ends.
                let ending = self.group.members().into_iter().filter(|node| {
                    !members.contains(node) && self.context.rpc.reachable(*node).is_some()
                });
                let ending: Vec<NodeId> = ending.collect();
                unsettled = !ending.is_empty();
                let eligible = eligible(&members, &state_now);
                let members = [members, ending].concat();
                let group = &self.group;
                let reconciling = group.reconcile_members(&members, &eligible, VOTERS_LIMIT);
                if let Err(error) = reconciling.await {
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

/// Members that may vote: without those that are drained, as they will be removed, unless there
/// would be fewer voters then.
fn eligible(members: &[NodeId], state: &ClusterState) -> Vec<NodeId> {
    let stay = members
        .iter()
        .filter(|node| !state.draining.contains_key(node));
    let stay: Vec<NodeId> = stay.copied().collect();
    match voter_count(stay.len()) < voter_count(members.len()) {
        true => members.to_vec(),
        false => stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_nodes_vote_only_where_voters_would_be_lacking() {
        for (all, drained, expected) in [
            (4, &[1][..], &[2, 3, 4][..]),
            (2, &[1], &[2]),
            (6, &[1, 6], &[1, 2, 3, 4, 5, 6]),
            (6, &[6], &[1, 2, 3, 4, 5]),
            (3, &[3], &[1, 2, 3]),
            (1, &[1], &[1]),
        ] {
            let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
            let mut state = ClusterState::default();
            state
                .draining
                .extend(nodes(drained).into_iter().map(|node| (node, 1)));
            let all: Vec<NodeId> = (1..=all).map(NodeId).collect();
            assert_eq!(eligible(&all, &state), nodes(expected), "of {all:?}");
        }
    }
}
