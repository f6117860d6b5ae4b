//! What the config group remembers.

use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_reservation::ReservationTable;
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};
use serde::{Deserialize, Serialize};

use super::front::Fronts;
use super::placement::{Layouts, Mending};
use super::slices::{SharedMap, Slices};
use super::volumes::Volumes;

/// Everything the cluster has to agree on; small enough for memory on every node.
///
/// A clone shares everything: what grows with the cluster's volumes, slices and operators' acts is
/// in persistent maps. The rest is small by nature, a record or less for each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Who this cluster is; `None` before `Found`.
    pub cluster: Option<Rc<ClusterIdentity>>,
    /// The newest view; every change of an owner or an in-sync set raises it.
    pub view: View,
    /// All nodes ever admitted. They change when one starts or ends, so one that changes copies
    /// them all.
    pub nodes: Rc<BTreeMap<NodeId, NodeRecord>>,
    /// All volumes.
    pub volumes: Volumes,
    /// Number of the newest volume.
    pub last_volume: u64,
    /// Join tokens not yet used, by SHA-256 of their secret.
    pub tokens: SharedMap<[u8; 32], TokenRecord>,
    /// Volumes that are being made larger by `GrowVolume`, which no version proposes any more.
    pub growing: SharedMap<VolumeId, Growth>,
    /// How initiators reach volumes, where that is not the default.
    pub fronts: Fronts,
    /// When disks failed of late, in milliseconds since the Unix epoch; less than three for each
    /// node.
    pub disk_failures: BTreeMap<NodeId, Vec<u64>>,
    /// The office that opened a volume last, for volumes that are not open: nobody else can use a
    /// lease on one.
    pub last_open: SharedMap<VolumeId, Office>,
    /// Volumes whose owner somebody has chosen, with that owner, as long as it is the owner.
    pub placed: SharedMap<VolumeId, NodeId>,
    /// No volume moves just to spread the load.
    pub rebalancing_off: bool,
    /// Nodes that are giving their copies away, and since when, in milliseconds since the Unix
    /// epoch; by node, so a few.
    pub draining: BTreeMap<NodeId, u64>,
    /// Computed layouts; not a part of the state.
    pub(super) layouts: Layouts,
    /// Derived: slices that want other copies than they have.
    pub(super) mending: Mending,
}

/// How far a volume is to grow. Its slices are in the directory already, its size is the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The size that it will have.
    pub size_bytes: u64,
    /// Slices from this one on have never been open: an empty copy of them is a good one.
    pub first_slice: u32,
}

/// The cluster's name, number and certificate authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Random number of the cluster.
    pub id: [u8; 16],
    /// Name chosen by the operator.
    pub name: String,
    /// The authority that signs node certificates, as the runtime encodes it. Secret.
    pub authority: Vec<u8>,
}

impl std::fmt::Debug for ClusterIdentity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ClusterIdentity")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Admitted, but its process has not started yet.
    Admitted,
    /// Its current incarnation takes part.
    Up,
    /// Its current incarnation is leaving in good order: it owns nothing any more.
    Leaving,
    /// Its current incarnation is gone or silent.
    Down,
    /// It was taken out for good. Its record stays, so that nothing can pose as it.
    Evicted,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Random number of the node's data directory; a second directory cannot pose as the node.
    pub uuid: [u8; 16],
    /// The newest start of its process.
    pub incarnation: Incarnation,
    /// Whether it takes part.
    pub status: NodeStatus,
    /// `host:port` for other nodes.
    pub link_address: String,
    /// `host:port` of its REST API.
    pub api_address: String,
    /// `host:port` of its iSCSI portal.
    pub portal_address: String,
    /// Version of its software.
    pub version: String,
}

/// The node that orders a volume's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// The start of its process that took office.
    pub incarnation: Incarnation,
}

/// One term of an owner: the same process may be a volume's owner again, in a later view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Office {
    /// Who held it.
    pub owner: Owner,
    /// The view it was held in.
    pub view: View,
}

/// Credentials of one initiator for one volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// User name.
    pub username: String,
    /// Secret, kept recoverable because CHAP needs it.
    pub secret: String,
    /// The target's own name and secret, for mutual CHAP.
    pub mutual: Option<(String, String)>,
}

impl std::fmt::Debug for Chap {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Chap")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Name, unique in the cluster.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Logical block size shown to initiators: 512 or 4096.
    pub logical_block_bytes: u32,
    /// Bytes per slice.
    pub slice_bytes: u64,
    /// Wanted copies of each slice.
    pub copies: u32,
    /// iSCSI qualified name of its target.
    pub target_name: String,
    /// NAA-6 identifier: the same on every path, for ever.
    pub naa: [u8; 16],
    /// Who may log in; `None` lets any initiator in.
    pub chap: Option<Chap>,
    /// Milliseconds since the Unix epoch at creation.
    pub created_unix_ms: u64,
    /// The owner; `None` while no node is up that could be.
    pub owner: Option<Owner>,
    /// The view in which the owner took office.
    pub view: View,
    /// Whether the owner has finished its takeover.
    pub open: bool,
    /// Whether any owner ever has: from then on an empty copy is a lost one.
    pub ever_open: bool,
    /// Placement of the slices that are placed.
    pub slices: Slices,
    /// Who may access it. Shared, as every command of an initiator looks at it.
    pub reservations: Rc<ReservationTable>,
}

/// A join token that has not been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

impl VolumeRecord {
    /// Slices of its size, placed or not.
    pub fn slice_count(&self) -> u32 {
        let count = self.size_bytes.div_ceil(self.slice_bytes);
        u32::try_from(count).expect("sizes are checked against the largest number of slices")
    }
}

impl ClusterState {
    /// Nodes that belong to the cluster: all but those that were evicted.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        let members = self.nodes.iter().map(|(node, record)| (*node, record));
        members.filter(|(_, record)| record.status != NodeStatus::Evicted)
    }

    /// Whether the node was taken out for good, or never was one.
    pub fn is_evicted(&self, node: NodeId) -> bool {
        let record = self.nodes.get(&node);
        record.is_none_or(|record| record.status == NodeStatus::Evicted)
    }

    /// The node's record if exactly this start of it is up (or leaving: its copies still serve).
    pub fn running(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.nodes.get(&node).is_some_and(|record| {
            record.incarnation == incarnation
                && matches!(record.status, NodeStatus::Up | NodeStatus::Leaving)
        })
    }

    /// The reservation table of a volume; an empty one if there is no such volume.
    pub fn reservations(&self, volume: VolumeId) -> Rc<ReservationTable> {
        let record = self.volumes.get(&volume);
        record.map_or_else(Rc::default, |record| record.reservations.clone())
    }

    /// The first placed slice of a volume that has never been open, so that an empty copy of it is
    /// complete; the number of its slices if there is none.
    pub fn first_fresh_slice(&self, volume: VolumeId) -> u32 {
        match (self.volumes.get(&volume), self.growing.get(&volume)) {
            (Some(record), _) if !record.ever_open => 0,
            (_, Some(growth)) => growth.first_slice,
            (Some(record), None) => record.slice_count(),
            (None, None) => 0,
        }
    }

    /// The current start of `node` if it takes part.
    pub fn running_incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.nodes
            .get(&node)
            .filter(|record| matches!(record.status, NodeStatus::Up | NodeStatus::Leaving))
            .map(|record| record.incarnation)
    }

    /// The volume with this name.
    pub fn volume_by_name(&self, name: &str) -> Option<(VolumeId, &VolumeRecord)> {
        let id = self.volumes.by_name(name)?;
        Some((id, &self.volumes[&id]))
    }

    /// The volume behind this target name, which is prepared for comparing (`holdfast_name`). The
    /// names of targets are so by the rules for names of volumes.
    pub fn volume_by_target(&self, target_name: &str) -> Option<(VolumeId, &VolumeRecord)> {
        let id = self.volumes.by_target(target_name)?;
        Some((id, &self.volumes[&id]))
    }
}
