//! A site gets new addresses while the power is off: every node comes back where nobody looks for
//! it, and knows of two others at most where those are: of two, as one of them may find its disk
//! damaged, and not come back.

use std::collections::BTreeSet;

use holdfast_runtime::NodeId;

use super::node::Nodes;

/// Gives every node another address, in some seeds. The machines are off; `running` are those that
/// had a process before.
pub(super) fn move_all(nodes: &Nodes, running: &[NodeId]) {
    let random = nodes.simulation.random("readdress");
    if !random.chance(300_000) {
        return;
    }
    let network = nodes.simulation.network();
    let all = &nodes.shape.nodes;
    let address = |node: NodeId| format!("node-{node}.moved:7000");
    // Each names its neighbours, or all name the same.
    let star = random.chance(500_000);
    for node in all {
        let earlier = running.iter().filter(|other| *other < node);
        let named: Vec<NodeId> = if star {
            earlier.take(2).copied().collect()
        } else {
            earlier.rev().take(2).copied().collect()
        };
        let sought: BTreeSet<String> = named.iter().copied().map(address).collect();
        nodes.readdress(*node, address(*node));
        network.move_to(*node, address(*node), sought);
        nodes.say(*node, || format!("has moved and knows of {named:?}"));
    }
}
