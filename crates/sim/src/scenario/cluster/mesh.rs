//! Links after everything came to rest: each node of the cluster has one to each other that runs.
//! Messages are passed on where one is missing, so nothing else would tell.

use std::time::Duration;

use holdfast_runtime::NodeId;

use super::audit::Audit;
use super::node::Nodes;
use crate::report::Failure;

/// From full redundancy on. A dialler pauses for half a second at most.
const LINKS_BOUND: Duration = Duration::from_secs(20);

/// Waits until no link between nodes that run is missing.
pub(super) async fn expect_whole(audit: &Audit, nodes: &Nodes) -> Result<(), Failure> {
    let runtime = nodes.simulation.runtime();
    let deadline = runtime.now() + LINKS_BOUND;
    loop {
        let missing = missing(audit, nodes);
        let Some((one, other)) = missing else {
            return Ok(());
        };
        if runtime.now() >= deadline {
            let what = format!("node {one} has found no way to dial node {other}");
            return Err(Failure::oracle("links", what));
        }
        runtime.sleep(Duration::from_millis(100)).await;
    }
}

fn missing(audit: &Audit, nodes: &Nodes) -> Option<(NodeId, NodeId)> {
    let state = audit.newest_state()?;
    let runs = |id: &NodeId| nodes.get(*id).map(|(_, node)| (*id, node));
    let running: Vec<_> = state.members().filter_map(|(id, _)| runs(&id)).collect();
    let pairs = running.iter().flat_map(|(one, node)| {
        let others = running.iter().map(move |(other, _)| (*one, node, *other));
        others.filter(|(one, _, other)| one != other)
    });
    let mut apart = pairs.filter(|(_, node, other)| node.context().rpc.peer_up(*other).is_none());
    apart.next().map(|(one, _, other)| (one, other))
}
