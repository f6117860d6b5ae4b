//! What the iSCSI front is told: every volume is a target on every node.

use std::collections::BTreeSet;
use std::rc::Rc;

use holdfast_config::state::{Chap, ClusterState, NodeStatus, VolumeRecord};
use holdfast_iscsi::{Credentials, Secret, Target, TargetAuth, TargetSummary, Targets};
use holdfast_node::{Node, VolumeDevice, VolumeReservations};
use holdfast_runtime::NodeId;
use holdfast_scsi::{AccessState, PortGroup, PortGroups};
use holdfast_wire::VolumeId;

/// The targets of one node.
pub(super) struct Front {
    node: Rc<Node>,
}

impl Front {
    pub(super) fn new(node: Rc<Node>) -> Rc<Self> {
        Rc::new(Self { node })
    }
}

impl Targets for Front {
    fn list(&self, _initiator: &str) -> Vec<TargetSummary> {
        let state = self.node.state();
        let portals = portals(&state);
        state
            .volumes
            .values()
            .map(|record| TargetSummary {
                iqn: record.target_name.clone(),
                portals: portals.clone(),
            })
            .collect()
    }

    fn open(&self, iqn: &str, _initiator: &str) -> Option<Target> {
        let state = self.node.state();
        let (volume, record) = state.volume_by_target(iqn)?;
        let device = VolumeDevice::by_target(&self.node, iqn)?;
        let tag = group(self.node.id());
        Some(Target {
            device,
            auth: authentication(record.chap.as_ref()),
            portal_group_tag: tag,
            relative_port_id: tag,
            port_groups: Some(Rc::new(VolumePorts {
                node: self.node.clone(),
                volume,
            })),
            reservations: Some(Rc::new(VolumeReservations::new(self.node.clone(), volume))),
        })
    }

    /// Anybody may ask for the names of targets; logging in to one is another matter. Who has
    /// credentials and shows them is checked here already.
    fn discovery_auth(&self) -> TargetAuth {
        let state = self.node.state();
        let chaps = state
            .volumes
            .values()
            .filter_map(|record| record.chap.as_ref());
        TargetAuth::Optional(chaps.map(credentials).collect())
    }
}

/// The names of all targets, to notice the ones that are gone.
pub(super) fn target_names(state: &ClusterState) -> BTreeSet<(VolumeId, String)> {
    let volumes = state.volumes.iter();
    volumes
        .map(|(id, record)| (*id, record.target_name.clone()))
        .collect()
}

/// A node's portal group tag, target port group and relative port identifier: its number, which
/// is never used again. Tags have 16 bits (RFC 7143 13.9) and zero is reserved.
fn group(node: NodeId) -> u16 {
    u16::try_from(node.0).unwrap_or(u16::MAX)
}

fn portals(state: &ClusterState) -> Vec<String> {
    let up = state
        .nodes
        .iter()
        .filter(|(_, record)| record.status == NodeStatus::Up && !record.portal_address.is_empty());
    up.map(|(node, record)| format!("{},{}", record.portal_address, group(*node)))
        .collect()
}

fn credentials(chap: &Chap) -> Credentials {
    let own = chap.mutual.as_ref();
    Credentials {
        username: chap.username.clone(),
        secret: Secret::from(chap.secret.as_str()),
        mutual: own.map(|(name, secret)| (name.clone(), Secret::from(secret.as_str()))),
    }
}

fn authentication(chap: Option<&Chap>) -> TargetAuth {
    chap.map_or(TargetAuth::None, |chap| TargetAuth::Chap(credentials(chap)))
}

/// The ways to one volume: through its owner, or through a node that forwards.
struct VolumePorts {
    node: Rc<Node>,
    volume: VolumeId,
}

impl VolumePorts {
    fn state_of(
        state: &ClusterState,
        record: Option<&VolumeRecord>,
        node: NodeId,
        status: NodeStatus,
    ) -> AccessState {
        match status {
            NodeStatus::Admitted | NodeStatus::Down => AccessState::Offline,
            NodeStatus::Leaving => AccessState::NonOptimized,
            // A node waits for a takeover itself, so the path stays usable while one goes on.
            NodeStatus::Up => {
                let owner = record.and_then(|record| record.owner);
                let owns = owner.is_some_and(|owner| {
                    owner.node == node && state.running(owner.node, owner.incarnation)
                });
                if owns {
                    AccessState::Optimized
                } else {
                    AccessState::NonOptimized
                }
            }
        }
    }
}

impl PortGroups for VolumePorts {
    fn groups(&self) -> Vec<PortGroup> {
        let state = self.node.state();
        let record = state.volumes.get(&self.volume);
        state
            .nodes
            .iter()
            .map(|(node, known)| PortGroup {
                id: group(*node),
                state: Self::state_of(&state, record, *node, known.status),
                preferred: false,
                ports: vec![group(*node)],
            })
            .collect()
    }

    fn state(&self, asked: u16) -> AccessState {
        let local = self.node.id();
        if asked != group(local) {
            let groups = self.groups();
            let found = groups.iter().find(|one| one.id == asked);
            return found.map_or(AccessState::Offline, |one| one.state);
        }
        // Whatever the others believe of this node: a command that got here is served or waits.
        let state = self.node.state();
        let record = state.volumes.get(&self.volume);
        Self::state_of(&state, record, local, NodeStatus::Up)
    }
}
