//! When to elect: the voters' timers, in place of openraft's.
//!
//! openraft 0.9 draws one election timeout per start, checks it every 1.5 heartbeats and adds it
//! to the lease, so a leader's death costs up to `2 * most + 1.5 heartbeats`; and it has no
//! pre-vote, so a node that comes back from a partition, or whose disk stalls, deposes a healthy
//! leader by its larger term. Its timers are switched off, and this module decides:
//!
//! * the timeout is drawn afresh each time, counts from the arrival of the leader's last message
//!   and fires on the millisecond;
//! * before a term is spent, the voters are asked whether they would grant it. A voter that has
//!   heard a leader of late says when to ask again;
//! * proof that the leader's process is gone shortens the wait to the rest of the lease.
//!
//! Safety is Raft's own and depends on none of this.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_runtime::task::SHARED_WAKE;
use holdfast_runtime::{Instant, NodeId, Rpc, Runtime};
use openraft::ServerState;
use serde::{Deserialize, Serialize};

use super::network::{Request, Response, ask};
use super::pulse::{Pulse, Timing};
use super::types::{LogId, Machine, Raft};

/// What a voter would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// Vote for the asking node.
    Grant,
    /// So, if no leader speaks for so many more microseconds.
    Later(u64),
    /// Not vote: the asking node's log is behind, or this node leads and is heard.
    Refuse,
}

/// What a voter in `state`, whose log ends at `own`, would answer to `candidate`'s vote request.
pub(super) fn judge(
    candidate: NodeId,
    last_log_id: Option<LogId>,
    own: Option<LogId>,
    state: ServerState,
    pulse: &Pulse,
) -> Verdict {
    if last_log_id < own || (state.is_leader() && !pulse.is_cut_off()) {
        return Verdict::Refuse;
    }
    let lease = if state.is_leader() {
        Duration::ZERO
    } else {
        pulse.rest_of_lease()
    };
    let wait = if lease.is_zero() {
        pulse.promise(candidate).err()
    } else {
        Some(lease)
    };
    match wait {
        None => Verdict::Grant,
        Some(wait) => Verdict::Later(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)),
    }
}

/// Whether `votes` hold a majority of every voter set.
pub(super) fn is_quorum(votes: &BTreeSet<NodeId>, configs: &[BTreeSet<NodeId>]) -> bool {
    configs
        .iter()
        .all(|voters| votes.intersection(voters).count() * 2 > voters.len())
}

/// Runs elections for one node.
pub(super) struct Elector<M: Machine> {
    pub(super) runtime: Runtime,
    pub(super) rpc: Rc<Rpc>,
    pub(super) raft: Raft<M>,
    pub(super) pulse: Rc<Pulse>,
    pub(super) timing: Timing,
}

impl<M: Machine> Elector<M> {
    /// Runs until the group stops.
    pub(super) async fn run(self) {
        let node = self.rpc.local_node();
        let mut metrics = self.raft.server_metrics();
        let mut anchor = self.pulse.heard();
        let mut deadline = anchor + self.draw_timeout();
        // The only voter has nobody to wait for, but for its own attempt to end.
        let mut tried = false;
        loop {
            let (state, voters) = {
                let metrics = metrics.borrow_and_update();
                let membership = metrics.membership_config.membership();
                (metrics.state, membership.get_joint_config().clone())
            };
            let leading = state.is_leader();
            self.pulse.set_leading(leading);
            let waits = leading || !voters.iter().any(|config| config.contains(&node));
            if waits {
                if metrics.changed().await.is_err() {
                    return;
                }
                deadline = self.runtime.now() + self.draw_timeout();
                tried = false;
                continue;
            }
            if self.pulse.heard() > anchor {
                anchor = self.pulse.heard();
                deadline = anchor + self.draw_timeout();
            }
            let alone = voters
                .iter()
                .all(|config| config.len() == 1 && config.contains(&node));
            let at_once = alone && !tried && state.is_follower();
            if !at_once && self.runtime.now() < deadline {
                // As long as the leader speaks, all that happens at the end is a look at when it
                // did: that shares wake-ups. The last stretch is punctual.
                let stretch_ns = SHARED_WAKE.as_nanos() as u64;
                let nearly = Instant::from_nanos(deadline.as_nanos().saturating_sub(stretch_ns));
                let sleep = if self.runtime.now() < nearly {
                    self.runtime.sleep_roughly_until(nearly)
                } else {
                    self.runtime.sleep_until(deadline)
                };
                tokio::select! {
                    biased;
                    changed = metrics.changed() => {
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = self.pulse.leader_gone() => {
                        anchor = self.pulse.heard();
                        let soon = self.runtime.now() + self.pulse.rest_of_lease();
                        deadline = deadline.min(soon + self.draw(self.timing.lease / 8));
                    }
                    () = self.pulse.heard_again() => {}
                    () = sleep => {}
                }
                continue;
            }
            tried = true;
            let pause = self.campaign(node, &voters, anchor).await;
            deadline = self.runtime.now() + pause;
        }
    }

    /// Asks the voters, and elects if enough would vote for this node. Returns the pause before
    /// the next attempt.
    async fn campaign(
        &self,
        node: NodeId,
        configs: &[BTreeSet<NodeId>],
        anchor: Instant,
    ) -> Duration {
        let voters: BTreeSet<NodeId> = configs.iter().flatten().copied().collect();
        let last_log_id = self.raft.data_metrics().borrow().last_log;
        let request = Request::<M>::Probe { last_log_id };
        let mut answers: FuturesUnordered<_> = voters
            .iter()
            .filter(|voter| **voter != node)
            .map(|voter| {
                let asking = ask(
                    &self.rpc,
                    *voter,
                    &request,
                    Bytes::new(),
                    self.timing.election_least,
                );
                async move { (*voter, asking.await) }
            })
            .collect();
        if let Err(wait) = self.pulse.promise(node) {
            return wait + self.draw(self.timing.lease / 8);
        }
        let mut granted = BTreeSet::from([node]);
        let mut willing = granted.clone();
        let mut wait = Duration::ZERO;
        while !is_quorum(&granted, configs) {
            match answers.next().await {
                Some((voter, Ok(Response::Probe(Verdict::Grant)))) => {
                    granted.insert(voter);
                    willing.insert(voter);
                }
                Some((voter, Ok(Response::Probe(Verdict::Later(rest_us))))) => {
                    willing.insert(voter);
                    wait = wait.max(Duration::from_micros(rest_us).min(self.timing.calm));
                }
                Some((_, Ok(_refused))) => {}
                Some((voter, Err(error))) => {
                    tracing::debug!(%node, %voter, %error, "a voter could not be asked");
                }
                None => {
                    self.pulse.release(node);
                    let least = self.timing.election_least / 4;
                    return least + self.draw(least);
                }
            }
            if is_quorum(&willing, configs) && !is_quorum(&granted, configs) {
                self.pulse.release(node);
                return wait + self.draw(self.timing.lease / 8);
            }
        }
        if self.pulse.heard() > anchor {
            return self.draw_timeout();
        }
        tracing::info!(%node, "enough voters would vote for this node: electing");
        // A stopped group ends this task through its metrics.
        let _ = self.raft.trigger().elect().await;
        self.timing.lease + self.draw(self.timing.lease)
    }

    fn draw_timeout(&self) -> Duration {
        let Timing {
            election_least,
            election_most,
            ..
        } = self.timing;
        election_least + self.draw(election_most.saturating_sub(election_least))
    }

    /// An even draw from zero to `most`.
    fn draw(&self, most: Duration) -> Duration {
        let most_us = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.runtime.random_below(most_us.max(1)))
    }
}
