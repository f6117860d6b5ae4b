//! What a node says of itself.

use holdfast_runtime::NodeId;
use holdfast_store::Usage;
use holdfast_volume::OwnerStatus;

use crate::fullness::Fullness;
use crate::node::Node;

/// A snapshot of one node for displays.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Whether the config group counts this start as running.
    pub registered: bool,
    /// Leader of the config group, as far as known here.
    pub leader: Option<NodeId>,
    /// How full its store is.
    pub usage: Usage,
    /// Whether its home fills up.
    pub fullness: Fullness,
    /// Its owners.
    pub owners: Vec<OwnerStatus>,
    /// Its recovery met damaged records.
    pub damaged: bool,
}

impl Node {
    /// A snapshot for displays.
    pub fn report(&self) -> NodeReport {
        let usage = self.context.store.usage();
        NodeReport {
            node: self.id(),
            registered: self.is_registered(),
            leader: self.group.leader(),
            fullness: self.observe_fullness(&usage),
            usage,
            owners: self
                .owners
                .borrow()
                .values()
                .map(|owner| owner.status())
                .collect(),
            damaged: self.context.store.damaged(),
        }
    }

    /// What recovery found when the node started.
    pub fn recovery(&self) -> &holdfast_store::RecoveryReport {
        &self.recovery
    }
}
