//! Nodes whose process ends while it joins, at any of its first steps: a start that was cut short
//! must leave a directory that starts.

use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;

use super::node::{Nodes, setup};
use crate::report::Failure;

/// A first start takes some hundred polls, most of them before a leader has been heard.
const POLLS_MAX: u64 = 600;
const KILLS_MAX: u64 = 3;
/// How long a start goes on before its end is forced.
const LIFE_MAX: Duration = Duration::from_millis(400);

/// Starts a node that was admitted a moment ago. In some seeds its process ends early, once or
/// more often, by itself or with its machine's power, and the leader may be out of reach
/// meanwhile.
pub(super) async fn join(nodes: &Rc<Nodes>, id: NodeId, leader: NodeId) -> Result<(), Failure> {
    let simulation = &nodes.simulation;
    let random = simulation.random(&format!("birth of {id}"));
    let runtime = simulation.runtime();
    nodes.start(id);
    if !random.chance(300_000) {
        return Ok(());
    }
    let silent = random.chance(500_000);
    for _ in 0..random.between(1, KILLS_MAX) {
        if silent {
            simulation.pause(leader);
        }
        if random.chance(700_000) {
            simulation.kill_after_polls(id, random.below(POLLS_MAX));
        }
        let life = random.duration(Duration::ZERO, LIFE_MAX);
        runtime.sleep(life).await;
        if random.chance(300_000) {
            simulation.cut_power(&[id]);
            simulation.restore_power(id);
        } else {
            simulation.kill(id);
        }
        simulation.resume(leader);
        nodes.start(id);
    }
    if nodes.starts_refused.get() > 0 {
        let what = format!("node {id}, ended while it joined, does not start again");
        return Err(setup(&what));
    }
    Ok(())
}
