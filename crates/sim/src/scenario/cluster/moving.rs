//! An operator, and hosts, who have volumes moved to other owners while they are used, whatever
//! else goes on; and one who moves them away from a node as soon as it is in trouble.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Owner, Refusal};
use holdfast_node::{MoveCause, MoveError};
use holdfast_runtime::NodeId;
use tokio::sync::Notify;

use super::client::Workload;
use crate::report::Failure;

const LIMIT: Duration = Duration::from_secs(6);
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(8));

/// Moves volumes until `stop`.
pub(super) async fn keep_moving(workload: Rc<Workload>, stop: Rc<Cell<bool>>) {
    let nodes = workload.nodes.clone();
    let runtime = nodes.simulation.runtime();
    let random = nodes.simulation.random("mover");
    loop {
        runtime.sleep(random.duration(PAUSE.0, PAUSE.1)).await;
        if stop.get() {
            return;
        }
        let volume = random.below(workload.volumes.len() as u64) as usize;
        let to = random.pick(&nodes.shape.nodes).copied();
        let through = random.pick(&nodes.with_process()).copied();
        // Hosts that see different paths fail ask for different nodes at the same moment.
        let rival = random.pick(&nodes.shape.nodes).copied();
        let rival = rival.filter(|_| random.chance(200_000));
        let (Some(to), Some(through)) = (to, through) else {
            continue;
        };
        let for_host = random.chance(200_000);
        let first = ask(&workload, through, volume, to, for_host);
        let second = async {
            if let Some(rival) = rival {
                ask(&workload, rival, volume, rival, for_host).await;
            }
        };
        futures::join!(first, second);
    }
}

/// How long an operator takes to see that a node is in trouble.
const NOTICE: (Duration, Duration) = (Duration::ZERO, Duration::from_millis(600));

/// Nodes in trouble, as an operator hears of them.
#[derive(Default)]
pub(super) struct Troubles {
    nodes: RefCell<VecDeque<NodeId>>,
    told: Notify,
}

impl Troubles {
    pub(super) fn tell(&self, node: NodeId) {
        self.nodes.borrow_mut().push_back(node);
        self.told.notify_waiters();
    }

    async fn next(&self) -> NodeId {
        loop {
            let told = self.told.notified();
            if let Some(node) = self.nodes.borrow_mut().pop_front() {
                return node;
            }
            told.await;
        }
    }
}

/// Moves what nodes in trouble own to others, until `stop`.
pub(super) async fn keep_rescuing(
    workload: Rc<Workload>,
    troubles: Rc<Troubles>,
    stop: Rc<Cell<bool>>,
) {
    let nodes = workload.nodes.clone();
    let runtime = nodes.simulation.runtime();
    let random = nodes.simulation.random("rescuer");
    loop {
        let failing = troubles.next().await;
        runtime.sleep(random.duration(NOTICE.0, NOTICE.1)).await;
        if stop.get() {
            return;
        }
        let mut others = nodes.with_process();
        others.retain(|node| *node != failing);
        let Some(through) = random.pick(&others).copied() else {
            continue;
        };
        let Some(state) = nodes.get(through).map(|(_, node)| node.state()) else {
            continue;
        };
        let mut rescues = Vec::new();
        for (index, id) in workload.volumes.iter().enumerate() {
            let record = state.volumes.get(id);
            let is_failing = |owner: Owner| owner.node == failing;
            let Some(record) = record.filter(|record| record.owner.is_some_and(is_failing)) else {
                continue;
            };
            let has_copy = |node: &&NodeId| record.slices.values().all(|s| s.is_in_sync(**node));
            let successors: Vec<NodeId> = others.iter().filter(has_copy).copied().collect();
            if let Some(to) = random.pick(&successors).copied() {
                rescues.push(ask(&workload, through, index, to, false));
            }
        }
        futures::future::join_all(rescues).await;
    }
}

/// One request through one node.
async fn ask(workload: &Workload, through: NodeId, volume: usize, to: NodeId, for_host: bool) {
    let simulation = &workload.nodes.simulation;
    let Some((_, node)) = workload.nodes.get(through) else {
        return;
    };
    let weak = Rc::downgrade(&node);
    drop(node);
    workload.nodes.say(through, || {
        format!("is asked to move volume {volume} to node {to}")
    });
    let id = workload.volumes[volume];
    let call = simulation.call(through, "mover", async move {
        let node = weak.upgrade()?;
        if for_host {
            return Some(node.move_for_host(id, to).await);
        }
        // As this node sees it: perhaps long out of date.
        let view = node.state().volumes.get(&id)?.view;
        let cause = MoveCause::Wish;
        Some(node.move_volume(id, view, to, cause, LIMIT).await)
    });
    let answer = simulation.runtime().timeout(LIMIT * 4, call).await;
    match answer {
        Some(Ok(Some(Ok(())))) => {
            let moved = &workload.counts.moved;
            moved.set(moved.get() + 1);
        }
        Some(Ok(Some(Err(error)))) => match error {
            MoveError::Undecided | MoveError::NotServing | MoveError::TooSoon => {}
            MoveError::Refused(
                Refusal::ViewStale
                | Refusal::SuccessorNotUp(_)
                | Refusal::SuccessorWithoutCopy(_)
                | Refusal::NodeDrains(_),
            ) => {}
            MoveError::Refused(refusal) => {
                let what = format!("moving volume {id} to node {to}: {refusal:?}");
                workload.object(Failure::oracle("moving", what));
            }
        },
        Some(Ok(None) | Err(_)) | None => {}
    }
}
