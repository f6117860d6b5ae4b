//! What the iSCSI front is told: every volume is a target on every node.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use holdfast_config::state::{Chap, ClusterState, NodeRecord, NodeStatus, VolumeRecord};
use holdfast_iscsi::{
    Credentials, Secret, SessionSummary, Target, TargetAuth, TargetSummary, Targets,
};
use holdfast_node::{Node, VolumeDevice, VolumeReservations};
use holdfast_runtime::{Instant, NodeId};
use holdfast_scsi::{AccessState, NotOptimized, PortGroup, PortGroups};
use holdfast_wire::VolumeId;

/// The targets of one node.
pub(super) struct Front {
    node: Rc<Node>,
    redirects: Redirects,
}

impl Front {
    pub(super) fn new(node: Rc<Node>) -> Rc<Self> {
        Rc::new(Self {
            node,
            redirects: Redirects::default(),
        })
    }
}

impl Targets for Front {
    fn list(&self, initiator: &str) -> Vec<TargetSummary> {
        let state = self.node.state();
        let portals = portals(&state);
        state
            .volumes
            .iter()
            .filter(|(volume, _)| state.front(**volume).admits(initiator))
            .map(|(_, record)| TargetSummary {
                iqn: record.target_name.clone(),
                portals: portals.clone(),
            })
            .collect()
    }

    /// A target that the initiator may not use does not exist for it: whoever only claims a name
    /// must not learn which others there are.
    fn open(&self, iqn: &str, initiator: &str) -> Option<Target> {
        let state = self.node.state();
        let (volume, record) = state.volume_by_target(iqn)?;
        if !state.front(volume).admits(initiator) {
            tracing::warn!(target = iqn, initiator, "not on the volume's access list");
            return None;
        }
        let device = VolumeDevice::by_target(&self.node, iqn)?;
        let tag = group(self.node.id());
        Some(Target {
            device,
            auth: self.authentication(volume, record),
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
        let known = state.volumes.iter();
        let known = known.flat_map(|(volume, record)| self.credentials(*volume, record));
        TargetAuth::Optional(known.collect())
    }

    fn is_unreachable(&self, iqn: &str) -> bool {
        let state = self.node.state();
        let volume = state.volume_by_target(iqn).map(|(volume, _)| volume);
        volume.is_some_and(|volume| self.node.is_unreachable(volume))
    }

    fn clock(&self) -> Option<Duration> {
        let now = self.node.context().runtime.now();
        Some(Duration::from_nanos(now.as_nanos()))
    }

    fn redirect(&self, iqn: &str, initiator: &str) -> Option<String> {
        let state = self.node.state();
        let (volume, record) = state.volume_by_target(iqn)?;
        let front = state.front(volume);
        let owner = record.owner.filter(|_| record.open)?;
        if !front.redirect_to_owner || !front.admits(initiator) || owner.node == self.node.id() {
            return None;
        }
        let portal = state.nodes.get(&owner.node).filter(|known| {
            known.status == NodeStatus::Up && known.incarnation == owner.incarnation
        })?;
        let address = &portal.portal_address;
        let now = self.node.context().runtime.now();
        let moves = !address.is_empty() && self.redirects.permit(now, volume, initiator);
        // Without a portal group tag: RFC 7143 13.8 wants none in a redirection.
        moves.then(|| address.clone())
    }
}

impl Front {
    fn authentication(&self, volume: VolumeId, record: &VolumeRecord) -> TargetAuth {
        match &record.chap {
            None => TargetAuth::None,
            Some(_) => TargetAuth::Chap(self.credentials(volume, record).collect()),
        }
    }

    /// The present credentials of a volume, and earlier ones that are still good.
    fn credentials(
        &self,
        volume: VolumeId,
        record: &VolumeRecord,
    ) -> impl Iterator<Item = Credentials> + use<> {
        let state = self.node.state();
        let front = state.front(volume);
        let now_unix_ms = self.node.context().runtime.unix_time_ms();
        let present = record.chap.iter().map(|chap| (chap, front.secret_number));
        let earlier = front.retiring_at(now_unix_ms);
        let earlier = earlier.map(|secret| (&secret.chap, secret.number));
        let all: Vec<Credentials> = present.chain(earlier).map(credentials).collect();
        all.into_iter()
    }
}

/// Who may not go on with a session any more, as far as this node knows.
pub(super) fn is_over(state: &ClusterState, session: &SessionSummary) -> bool {
    let Some((volume, _)) = state.volume_by_target(&session.target) else {
        return true;
    };
    let front = state.front(volume);
    let void = session
        .credential
        .is_some_and(|number| number < front.oldest_secret);
    void || !front.admits(&session.initiator)
}

/// Logins that were sent to an owner lately.
///
/// Two nodes may each take the other for the owner for a moment. An initiator that comes back to
/// a node that has just sent it away is served there, so it is sent on by each node at most once
/// and never in a circle.
#[derive(Default)]
struct Redirects {
    lately: RefCell<BTreeMap<(VolumeId, String), Instant>>,
}

/// How long an initiator that was sent away and comes back is served here.
const SERVED_HERE_FOR: Duration = Duration::from_secs(10);
/// Initiators remembered; if there are more, all are served here. Names are not proven yet.
const REDIRECTS_MAX: usize = 1024;

impl Redirects {
    /// Whether this login may be sent elsewhere.
    fn permit(&self, now: Instant, volume: VolumeId, initiator: &str) -> bool {
        let mut lately = self.lately.borrow_mut();
        lately.retain(|_, sent| now.saturating_since(*sent) < SERVED_HERE_FOR);
        let key = (volume, initiator.to_owned());
        if lately.len() >= REDIRECTS_MAX || lately.contains_key(&key) {
            return false;
        }
        lately.insert(key, now);
        true
    }
}

/// The names of all targets, to notice the ones that are gone.
///
/// The state changes with every owner and every copy, volumes come and go seldom: a change that
/// neither makes nor deletes one costs nothing here, however many volumes there are.
pub(super) struct KnownTargets {
    names: BTreeMap<VolumeId, String>,
    /// The newest volume's number. Each new volume has the next one, and none is used again.
    newest: u64,
}

impl KnownTargets {
    pub(super) fn of(state: &ClusterState) -> Self {
        let volumes = state.volumes.iter();
        let names = volumes.map(|(volume, record)| (*volume, record.target_name.clone()));
        Self {
            names: names.collect(),
            newest: state.last_volume,
        }
    }

    /// Takes over what has changed; answers the names of targets that are gone.
    pub(super) fn follow(&mut self, state: &ClusterState) -> Vec<String> {
        for number in self.newest + 1..=state.last_volume {
            let volume = VolumeId(number);
            if let Some(record) = state.volumes.get(&volume) {
                self.names.insert(volume, record.target_name.clone());
            }
        }
        self.newest = state.last_volume;
        if self.names.len() == state.volumes.len() {
            return Vec::new();
        }
        let mut gone = Vec::new();
        self.names.retain(|volume, name| {
            let stays = state.volumes.contains_key(volume);
            if !stays {
                gone.push(std::mem::take(name));
            }
            stays
        });
        gone
    }
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

fn credentials((chap, number): (&Chap, u64)) -> Credentials {
    let own = chap.mutual.as_ref();
    Credentials {
        username: chap.username.clone(),
        secret: Secret::from(chap.secret.as_str()),
        mutual: own.map(|(name, secret)| (name.clone(), Secret::from(secret.as_str()))),
        number,
    }
}

/// The ways to one volume: through its owner, or through a node that forwards.
struct VolumePorts {
    node: Rc<Node>,
    volume: VolumeId,
}

/// Whether a node is a way to volumes at all: one that was taken out, or has never started, is
/// not, and would be reported as an offline port for ever.
fn has_port(known: &NodeRecord) -> bool {
    match known.status {
        NodeStatus::Evicted | NodeStatus::Admitted => false,
        NodeStatus::Up | NodeStatus::Leaving | NodeStatus::Down => true,
    }
}

impl VolumePorts {
    fn state_of(
        state: &ClusterState,
        record: Option<&VolumeRecord>,
        node: NodeId,
        status: NodeStatus,
    ) -> AccessState {
        match status {
            NodeStatus::Admitted | NodeStatus::Down | NodeStatus::Evicted => AccessState::Offline,
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
            .filter(|(node, known)| has_port(known) || **node == self.node.id())
            .map(|(node, known)| PortGroup {
                id: group(*node),
                state: if *node == self.node.id() {
                    self.state(group(*node))
                } else {
                    Self::state_of(&state, record, *node, known.status)
                },
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
        // Whatever the others believe of this node: a command that got here is served or waits,
        // unless waiting is useless.
        if self.node.is_unreachable(self.volume) {
            return AccessState::Unavailable;
        }
        let state = self.node.state();
        let record = state.volumes.get(&self.volume);
        Self::state_of(&state, record, local, NodeStatus::Up)
    }

    /// FNV-1a, a step for each node.
    fn fingerprint(&self) -> u64 {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        self.groups().iter().fold(BASIS, |sum, group| {
            (sum ^ (u64::from(group.id) << 8 | group.state as u64)).wrapping_mul(PRIME)
        })
    }

    fn optimize(&self, wanted: u16) -> LocalBoxFuture<'static, Result<(), NotOptimized>> {
        let (node, volume) = (self.node.clone(), self.volume);
        async move {
            let moved = node.move_for_host(volume, NodeId(u64::from(wanted)));
            moved.await.map_err(|_| NotOptimized)
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_config::state::{
        Change, ClusterIdentity, NodeStart, Outcome, SLICE_BYTES, VolumeSpec,
    };
    use holdfast_runtime::Incarnation;

    use super::*;

    #[test]
    fn an_initiator_is_sent_on_once_and_served_when_it_comes_back() {
        let redirects = Redirects::default();
        let at = |s| Instant::default() + Duration::from_secs(s);
        assert!(redirects.permit(at(0), VolumeId(1), "iqn.a"));
        assert!(
            !redirects.permit(at(1), VolumeId(1), "iqn.a"),
            "it came back"
        );
        assert!(
            redirects.permit(at(1), VolumeId(2), "iqn.a"),
            "another volume"
        );
        assert!(redirects.permit(at(1), VolumeId(1), "iqn.b"));
        assert!(
            redirects.permit(at(10), VolumeId(1), "iqn.a"),
            "a login of its own"
        );
    }

    #[test]
    fn more_initiators_than_are_remembered_are_served_here() {
        let redirects = Redirects::default();
        let now = Instant::default();
        for number in 0..REDIRECTS_MAX {
            assert!(redirects.permit(now, VolumeId(1), &format!("iqn.{number}")));
        }
        assert!(!redirects.permit(now, VolumeId(1), "iqn.more"));
        assert!(redirects.permit(now + SERVED_HERE_FOR, VolumeId(1), "iqn.more"));
    }

    fn one_node() -> ClusterState {
        let mut state = ClusterState::default();
        let (uuid, link_address) = ([1; 16], String::new());
        state.apply(Change::Found {
            cluster: ClusterIdentity {
                id: [7; 16],
                name: "test".into(),
                authority: Vec::new(),
            },
            uuid,
            link_address: link_address.clone(),
        });
        state.apply(Change::NodeStarted(NodeStart {
            node: NodeId(1),
            uuid,
            incarnation: Incarnation(1),
            link_address,
            api_address: String::new(),
            portal_address: String::new(),
            version: String::new(),
        }));
        state
    }

    fn create(state: &mut ClusterState, name: &str) -> VolumeId {
        let outcome = state.apply(Change::CreateVolume(VolumeSpec {
            name: name.into(),
            size_bytes: SLICE_BYTES,
            logical_block_bytes: 512,
            copies: 1,
            slice_bytes: SLICE_BYTES,
            chap: None,
            naa_random: 1,
            now_unix_ms: 1,
        }));
        match outcome {
            Outcome::Created(volume) => volume,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn targets_that_are_gone_are_named_once_whatever_came_at_the_same_time() {
        let mut state = one_node();
        let first = create(&mut state, "first");
        let mut targets = KnownTargets::of(&state);
        assert_eq!(targets.follow(&state), [""; 0]);
        let second = create(&mut state, "second");
        state.apply(Change::DeleteVolume { volume: first });
        let gone = targets.follow(&state);
        assert!(gone.len() == 1 && gone[0].ends_with(":first"), "{gone:?}");
        assert_eq!(targets.follow(&state), [""; 0]);
        // The same name again is another volume.
        state.apply(Change::DeleteVolume { volume: second });
        create(&mut state, "second");
        let gone = targets.follow(&state);
        assert!(gone.len() == 1 && gone[0].ends_with(":second"), "{gone:?}");
        // Made and deleted between two looks: nobody was told of it.
        let third = create(&mut state, "third");
        state.apply(Change::DeleteVolume { volume: third });
        assert_eq!(targets.follow(&state), [""; 0]);
    }
}
