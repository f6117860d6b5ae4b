//! What a node has to be told.

use holdfast_config::group::GroupOptions;
use holdfast_gossip::Options as GossipOptions;
use holdfast_runtime::NodeId;
use holdfast_store::StoreBounds;
use holdfast_volume::VolumeBounds;

use crate::balance::BalanceOptions;
use crate::fullness::Thresholds;
use crate::scrub::ScrubOptions;

/// Who the node is; fixed when it joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Random number of the cluster.
    pub cluster: [u8; 16],
    /// Random number of the node's data directory.
    pub uuid: [u8; 16],
}

/// How the node runs.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Who it is.
    pub identity: NodeIdentity,
    /// `host:port` for other nodes.
    pub link_address: String,
    /// `host:port` of its REST API.
    pub api_address: String,
    /// `host:port` of its iSCSI portal.
    pub portal_address: String,
    /// Version of its software.
    pub version: String,
    /// Nodes to talk to until the config state names them, with their `host:port`.
    pub seeds: Vec<(NodeId, String)>,
    /// Bytes of the journal's ring.
    pub journal_bytes: u64,
    /// Bytes for destaged blocks.
    pub home_bytes: u64,
    /// Their space is taken at once, and not as it is needed.
    pub home_preallocated: bool,
    /// How the disk's content is verified.
    pub scrub: ScrubOptions,
    /// When to warn of a home that fills up.
    pub fullness: Thresholds,
    /// How volumes move to spread the load.
    pub balance: BalanceOptions,
    /// Timing of the config group.
    pub group: GroupOptions,
    /// Timing of gossip.
    pub gossip: GossipOptions,
    /// When the store's own work is due.
    pub store_bounds: StoreBounds,
    /// When an owner's rarer work is due.
    pub volume_bounds: VolumeBounds,
}
