//! Hosts with several paths, as dm-multipath, ESXi and Windows MPIO are: a command that takes too
//! long ends the session, is repeated through another portal, and what it wrote is overwritten
//! soon after. What the lost session had under way must not come back.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;

use super::client::{Ended, Workload};
use crate::random::Random;

/// Between these a host gives a command up.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(6));
/// Attempts through other paths before a host reports an error.
const ATTEMPTS: u32 = 8;
const READ_BACK_LIMIT: Duration = Duration::from_secs(3);

/// Writes until `stop`.
pub(super) async fn keep_writing(workload: Rc<Workload>, host: u64, stop: Rc<Cell<bool>>) {
    let simulation = workload.nodes.simulation.clone();
    let runtime = simulation.runtime();
    let random = simulation.random(&format!("host {host}"));
    let think = workload.nodes.shape.think;
    let mut path = None;
    while !stop.get() {
        runtime.sleep(random.duration(Duration::ZERO, think)).await;
        let Some(first) = path.or_else(|| other_path(&workload, &random, None)) else {
            continue;
        };
        let range = workload.focused(&random);
        let patience = random.duration(PATIENCE.0, PATIENCE.1);
        let ended = workload.write(host, first, range, patience, false).await;
        if ended == Ended::Served {
            path = Some(first);
            continue;
        }
        let mut last = first;
        for _ in 0..ATTEMPTS {
            let Some(next) = other_path(&workload, &random, Some(last)) else {
                break;
            };
            last = next;
            let patience = random.duration(PATIENCE.0, PATIENCE.1);
            if workload.write(host, next, range, patience, false).await == Ended::Served {
                break;
            }
        }
        // What comes late is seen for as long as somebody looks.
        for _ in 0..random.between(1, 6) {
            let pause = random.duration(Duration::ZERO, Duration::from_millis(1500));
            runtime.sleep(pause).await;
            if stop.get() {
                return;
            }
            let _ = workload.read(host, last, range, READ_BACK_LIMIT).await;
        }
        path = Some(last);
    }
}

fn other_path(workload: &Workload, random: &Random, not: Option<NodeId>) -> Option<NodeId> {
    let mut nodes = workload.nodes.with_process();
    nodes.retain(|node| Some(*node) != not);
    random.pick(&nodes).copied()
}
