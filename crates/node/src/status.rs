//! What a node says of itself.

use std::time::Duration;

use holdfast_config::state::NodeStatus;
use holdfast_runtime::NodeId;
use holdfast_runtime::rpc::MissingLink;
use holdfast_store::Usage;
use holdfast_volume::OwnerStatus;
use holdfast_wire::VolumeId;

use crate::fullness::Fullness;
use crate::node::Node;
use crate::scrub::ScrubStatus;

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
    /// Volumes that it owns.
    pub owned: u64,
    /// Those among them that it serves.
    pub serving: u64,
    /// For each volume with operations of initiators under way here, the age of the oldest.
    pub oldest_io: Vec<(VolumeId, Duration)>,
    /// Pairs of nodes without a link to one another, as far as is known here.
    pub missing_links: Vec<MissingLink>,
    /// Something on its disk is damaged, as far as that is known, and not healed yet.
    pub damaged: bool,
    /// Blocks known to be damaged.
    pub damaged_blocks: u64,
    /// Of those, blocks that no other copy had when they were last asked for.
    pub lost_blocks: u64,
    /// Blocks that other copies gave back since the node started.
    pub healed_blocks: u64,
    /// The scrub.
    pub scrub: ScrubStatus,
}

impl Node {
    /// A snapshot for displays.
    pub fn report(&self) -> NodeReport {
        let usage = self.usage();
        let owners = self.owners.borrow();
        NodeReport {
            node: self.id(),
            registered: self.is_registered(),
            leader: self.group.leader(),
            fullness: self.observe_fullness(&usage),
            usage,
            owned: owners.len() as u64,
            serving: owners.values().filter(|owner| owner.is_open()).count() as u64,
            oldest_io: self.under_way.oldest(self.context.runtime.now()),
            missing_links: self.missing_links(),
            damaged: self.context.store.damaged(),
            damaged_blocks: self.context.store.damaged_block_count(),
            lost_blocks: self.lost_blocks(),
            healed_blocks: self.healing.healed.get(),
            scrub: self.scrub.status(),
        }
    }

    /// What this node does as the owner of a volume; `None` if it is not.
    pub fn owner_status(&self, volume: VolumeId) -> Option<OwnerStatus> {
        let owners = self.owners.borrow();
        owners.get(&volume).map(|owner| owner.status())
    }

    /// What this node does as the owner of each volume that it owns: for a few volumes only.
    pub fn owner_statuses(&self) -> Vec<OwnerStatus> {
        let owners = self.owners.borrow();
        owners.values().map(|owner| owner.status()).collect()
    }

    /// Links between nodes that take part: others need none.
    fn missing_links(&self) -> Vec<MissingLink> {
        let state = self.state();
        let up = |node: NodeId| {
            let record = state.nodes.get(&node);
            record.is_some_and(|record| record.status == NodeStatus::Up)
        };
        let mut missing = self.context.rpc.missing_links();
        missing.retain(|link| up(link.nodes.0) && up(link.nodes.1));
        missing
    }

    fn lost_blocks(&self) -> u64 {
        let lost = self.healing.lost.borrow();
        lost.values().map(|blocks| blocks.len() as u64).sum()
    }

    /// What recovery found when the node started.
    pub fn recovery(&self) -> &holdfast_store::RecoveryReport {
        &self.recovery
    }
}
