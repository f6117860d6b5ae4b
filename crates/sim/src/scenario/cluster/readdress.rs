//! A site gets new addresses while the power is off: every node comes back where nobody looks for
//! it, and knows of one other at most where that one is.

use std::collections::BTreeSet;

use holdfast_runtime::NodeId;

use super::node::Nodes;

/// Gives every node another address, in some seeds. The machines are off.
pub(super) fn move_all(nodes: &Nodes) {
    let random = nodes.simulation.random("readdress");
    if !random.chance(300_000) {
        return;
    }
    let network = nodes.simulation.network();
    let all = &nodes.shape.nodes;
    let address = |node: NodeId| format!("node-{node}.moved:7000");
    // Each names its neighbour, or all name one.
    let star = random.chance(500_000);
    for (index, node) in all.iter().enumerate() {
        let named = match (star, index) {
            (_, 0) => None,
            (true, _) => Some(all[0]),
            (false, _) => Some(all[index - 1]),
        };
        let sought: BTreeSet<String> = named.map(address).into_iter().collect();
        nodes.readdress(*node, address(*node));
        network.move_to(*node, address(*node), sought);
        nodes.say(*node, || format!("has moved and knows of {named:?}"));
    }
}
