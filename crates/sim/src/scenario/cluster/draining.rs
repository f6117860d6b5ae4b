//! An operator who drains nodes while everything else goes on: some drains are called off, some
//! nodes are removed once they are empty, and some are asked to be long before that.
//!
//! Oracles: those of [`super::redundancy`]; once everything has healed a drain ends, if there are
//! nodes for the copies.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, ClusterState, NodeStatus, Outcome, Refusal, VolumeRecord};
use holdfast_runtime::NodeId;

use super::audit::Audit;
use super::client::Workload;
use crate::random::Random;
use crate::report::Failure;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(12));
/// How long an operator waits for a node to be empty before the drain is called off.
const PATIENCE: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(20));
/// From full redundancy to the end of every drain that can end.
const DRAINED_BOUND: Duration = Duration::from_secs(60);

/// Drains nodes until `stop`.
pub(super) async fn keep_draining(workload: Rc<Workload>, stop: Rc<Cell<bool>>) {
    let nodes = workload.nodes.clone();
    let runtime = nodes.simulation.runtime();
    let random = nodes.simulation.random("drainer");
    let mut may_remove = nodes.shape.may_remove();
    loop {
        runtime.sleep(random.duration(PAUSE.0, PAUSE.1)).await;
        if stop.get() {
            return;
        }
        let Some(node) = random.pick(&nodes.shape.nodes).copied() else {
            return;
        };
        if nodes.is_doomed(node) {
            continue;
        }
        let drain = Change::Drain {
            node,
            now_unix_ms: 0,
        };
        match ask(&workload, &random, drain).await {
            Some(Outcome::Done) => {
                let drained = &workload.counts.drained;
                drained.set(drained.get() + 1);
            }
            // It may be drained all the same.
            None => {}
            Some(Outcome::Refused(Refusal::DrainLeavesTooFew { .. } | Refusal::Evicted(_))) => {
                continue;
            }
            Some(outcome) => return object(&workload, "draining", node, &outcome),
        }
        nodes.say(node, || "is drained".to_owned());
        if random.chance(200_000) {
            // Another one is drained beside it.
            continue;
        }
        let patience = random.duration(PATIENCE.0, PATIENCE.1);
        let deadline = runtime.now() + patience;
        while !is_empty(&workload, node) && !stop.get() && runtime.now() < deadline {
            runtime.sleep(Duration::from_millis(100)).await;
        }
        if may_remove && random.chance(500_000) {
            may_remove = !remove(&workload, &random, node).await;
            continue;
        }
        if random.chance(700_000) {
            let cancel = Change::CancelDrain { node };
            workload.called_off.borrow_mut().insert(node);
            while !stop.get() && ask(&workload, &random, cancel.clone()).await.is_none() {
                runtime.sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Whether, as far as any node knows, nothing is left on it.
fn is_empty(workload: &Workload, node: NodeId) -> bool {
    let nodes = &workload.nodes;
    let running = nodes.shape.nodes.iter().filter_map(|id| nodes.get(*id));
    running
        .map(|(_, running)| running.state())
        .any(|state| state.is_drained(node))
}

/// Has the node removed, empty or not. Answers whether it is out for good.
async fn remove(workload: &Rc<Workload>, random: &Random, node: NodeId) -> bool {
    let nodes = &workload.nodes;
    let runtime = nodes.simulation.runtime();
    // Nobody starts it again: it may be removed although the answer is lost.
    nodes.doom(node);
    loop {
        match ask(workload, random, Change::RemoveNode { node }).await {
            Some(Outcome::Done) => {
                let removed = &workload.counts.removed;
                removed.set(removed.get() + 1);
                nodes.say(node, || "is removed".to_owned());
                return true;
            }
            Some(Outcome::Refused(Refusal::NotDrained { .. })) => {
                nodes.spare(node);
                if nodes.simulation.is_powered(node) && nodes.simulation.incarnation(node).is_none()
                {
                    nodes.start(node);
                }
                return false;
            }
            None => {
                runtime
                    .sleep(random.duration(Duration::ZERO, RETRY_PAUSE))
                    .await
            }
            Some(outcome) => {
                object(workload, "removing", node, &outcome);
                return true;
            }
        }
    }
}

pub(super) fn object(workload: &Workload, doing: &str, node: NodeId, outcome: &Outcome) {
    let what = format!("{doing} node {node}: {outcome:?}");
    workload.object(Failure::oracle("draining", what));
}

/// One request through any node; `None` if its outcome is open.
pub(super) async fn ask(workload: &Workload, random: &Random, change: Change) -> Option<Outcome> {
    let nodes = &workload.nodes;
    let id = random.pick(&nodes.with_process()).copied()?;
    nodes.ask(id, "drainer", change, PROPOSAL_LIMIT).await
}

/// Every drain ends for which there are nodes.
pub(super) async fn expect_drained(audit: &Audit, workload: &Workload) -> Result<(), Failure> {
    let runtime = workload.nodes.simulation.runtime();
    let deadline = runtime.now() + DRAINED_BOUND;
    loop {
        let state = audit.newest_state();
        let left = state.as_ref().and_then(|state| left(audit, state));
        let Some(what) = left else {
            return Ok(());
        };
        if runtime.now() >= deadline {
            let what = format!("{what}; {}", audit.explain());
            return Err(Failure::oracle("draining", what));
        }
        workload.verdict()?;
        runtime.sleep(Duration::from_millis(100)).await;
    }
}

fn left(audit: &Audit, state: &ClusterState) -> Option<String> {
    let takers = state.members().filter(|(node, record)| {
        record.status == NodeStatus::Up && !state.draining.contains_key(node)
    });
    let takers = takers.count();
    // A copy that is out of date on a node that is down keeps its place: the node may be back.
    let is_down = |node: NodeId| state.running_incarnation(node).is_none();
    let hindered = |volume: &VolumeRecord| {
        let held = volume.slices.holders().iter();
        let mut behind = held.filter(|held| held.in_sync < held.copies);
        behind.any(|held| is_down(held.node))
    };
    state.draining.keys().find_map(|node| {
        let mut volumes = state.volumes.iter().filter(|(id, volume)| {
            volume.slices.held_by(*node).copies > 0
                && volume.copies as usize <= takers
                && !hindered(volume)
                && !audit.is_given_up(**id)
        });
        let (id, volume) = volumes.next()?;
        let copies = volume.slices.held_by(*node).copies;
        Some(format!(
            "node {node} is drained and has {copies} copies of volume {id}"
        ))
    })
}
