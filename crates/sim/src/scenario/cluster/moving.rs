//! An operator, and hosts, who have volumes moved to other owners while they are used, whatever
//! else goes on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::Refusal;
use holdfast_node::{MoveCause, MoveError};
use holdfast_runtime::NodeId;

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
                Refusal::ViewStale | Refusal::SuccessorNotUp(_) | Refusal::SuccessorWithoutCopy(_),
            ) => {}
            MoveError::Refused(refusal) => {
                let what = format!("moving volume {id} to node {to}: {refusal:?}");
                workload.object(Failure::oracle("moving", what));
            }
        },
        Some(Ok(None) | Err(_)) | None => {}
    }
}
