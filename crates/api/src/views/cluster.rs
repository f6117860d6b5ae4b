//! What is said of the cluster as a whole.
//!
//! A cluster of thousands of volumes is explained in a few sentences: volumes that need attention
//! are explained up to a bound, the worst first, and counted beyond it.

use std::cmp::Reverse;

use holdfast_config::group::VOTERS_MAX;
use holdfast_config::state::{ClusterState, NodeStatus as RecordedStatus};
use holdfast_runtime::NodeId;
use holdfast_runtime::host::ClusterId;
use holdfast_wire::VolumeId;

use super::{
    Running, Seen, Shared, current_report, drain, node_explanation, nodes, volume, volume_state,
};
use crate::peers::Silence;
use crate::service::{self, standstill_text};
use crate::types::{ClusterPhase, ClusterStatus, NodeStatus, SpaceLevel, VolumeState};

/// Volumes that are explained one by one.
const EXPLAINED_MAX: usize = 20;

/// Why a volume needs a word, in the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// It becomes larger; nothing is wrong.
    Grows,
    /// It lacks copies.
    LacksCopies,
    /// Its I/O stands still.
    StandsStill,
    /// It does not serve.
    DoesNotServe,
}

impl Need {
    /// Whether I/O waits.
    fn is_outage(self) -> bool {
        match self {
            Self::Grows | Self::LacksCopies => false,
            Self::StandsStill | Self::DoesNotServe => true,
        }
    }
}

/// The volumes that need a word, the worst first.
fn needy(
    state: &ClusterState,
    running: &Running,
    stands_still: impl Fn(VolumeId) -> bool,
) -> Vec<(Need, VolumeId)> {
    let mut needy: Vec<(Need, VolumeId)> = Vec::new();
    for (id, record) in &state.volumes {
        let need = if volume_state(record) != VolumeState::Open {
            Need::DoesNotServe
        } else if stands_still(*id) {
            Need::StandsStill
        } else if !running.redundancy(record).is_full() {
            Need::LacksCopies
        } else if state.growing.contains_key(id) {
            Need::Grows
        } else {
            continue;
        };
        needy.push((need, *id));
    }
    needy.sort_unstable_by_key(|(need, id)| (Reverse(*need), *id));
    needy
}

/// The volumes that will be explained, as far as the cluster's state tells: their owners know more.
pub(crate) fn to_explain(state: &ClusterState) -> Vec<VolumeId> {
    let needy = needy(state, &Running::of(state), |_| false);
    let ids = needy.into_iter().map(|(_, id)| id);
    ids.take(EXPLAINED_MAX).collect()
}

/// The cluster; `confirmed` says whether a majority has confirmed the state just now.
pub(crate) fn cluster(seen: &Seen, confirmed: bool) -> ClusterStatus {
    let state = &seen.state;
    let shared = Shared::of(seen);
    let records = state.volumes.values();
    let open = records.filter(|record| volume_state(record) == VolumeState::Open);
    let needy = needy(state, &shared.running, |id| {
        standstill_text(shared.oldest_io_ms.get(&id.0).copied()).is_some()
    });
    let not_up: Vec<NodeId> = state
        .members()
        .filter(|(_, record)| record.status != RecordedStatus::Up)
        .map(|(node, _)| node)
        .collect();
    // An even number tolerates no more failures than the odd one below it.
    let members = state.members().count();
    let voters_wanted = members.clamp(1, VOTERS_MAX).div_ceil(2) * 2 - 1;
    let silent = unreported(seen);
    let mut explanations = Vec::new();
    let phase = if state.cluster.is_none() {
        explanations.push("this node is waiting for the cluster's state from other nodes".into());
        ClusterPhase::Starting
    } else if !confirmed {
        explanations.push(format!(
            "no majority of the config group answers, so nothing can be changed and no failed \
             owner can be replaced; what is shown is the last that node {} knows. Start the nodes \
             that are not running",
            seen.local
        ));
        ClusterPhase::NoMajority
    } else if needy.iter().any(|(need, _)| need.is_outage()) {
        ClusterPhase::Unavailable
    } else if !not_up.is_empty()
        || !seen.missing_links.is_empty()
        || !silent.is_empty()
        || seen.voters.len() < voters_wanted
        || needy.iter().any(|(need, _)| *need == Need::LacksCopies)
    {
        ClusterPhase::Degraded
    } else {
        ClusterPhase::Healthy
    };
    if phase != ClusterPhase::Starting && seen.voters.len() < voters_wanted {
        explanations.push(format!(
            "the config group has {} of {voters_wanted} voters and is being enlarged; until then \
             it survives fewer failures",
            seen.voters.len()
        ));
    }
    for node in &not_up {
        explanations.push(format!(
            "node {node}: {}",
            node_explanation(&state.nodes[node], None, None)
        ));
    }
    explanations.extend(seen.missing_links.iter().map(service::missing_link_text));
    explanations.extend(silent.iter().map(|(node, silence)| {
        let why = silence.map_or("did not say how it is".into(), Silence::text);
        format!(
            "node {node} counts as running and {why}: for how long its initiators wait is not \
             known. Ask again in a moment, then see its log"
        )
    }));
    let nodes = nodes(seen);
    explanations.extend(nodes.iter().filter_map(space_explanation));
    explanations.extend(nodes.iter().filter_map(|node| {
        let text = drain::text(NodeId(node.id), node.drain.as_ref()?);
        Some(format!("node {}: {text}", node.id))
    }));
    for (_, id) in needy.iter().take(EXPLAINED_MAX) {
        let volume = volume(seen, &shared, *id);
        explanations.extend(volume.map(|one| format!("volume {}: {}", one.name, one.explanation)));
    }
    if needy.len() > EXPLAINED_MAX {
        explanations.push(format!(
            "and {} more volumes: `holdfast volume list --impaired` shows them",
            needy.len() - EXPLAINED_MAX
        ));
    }
    ClusterStatus {
        phase,
        explanations,
        name: state.cluster.as_ref().map(|cluster| cluster.name.clone()),
        id: state
            .cluster
            .as_ref()
            .map(|cluster| ClusterId(cluster.id).to_string()),
        node: Some(seen.local.0),
        leader: seen.leader.map(|leader| leader.0),
        voters: seen.voters.iter().map(|voter| voter.0).collect(),
        view: state.view.0,
        nodes_up: (members - not_up.len()) as u64,
        nodes: members as u64,
        missing_links: seen.missing_links.clone(),
        volumes_open: open.count() as u64,
        volumes: state.volumes.len() as u64,
    }
}

/// Nodes that count as running and say nothing: what their initiators wait for is not known.
fn unreported(seen: &Seen) -> Vec<(NodeId, Option<Silence>)> {
    let members = seen.state.members();
    members
        .filter(|(node, record)| {
            record.status == RecordedStatus::Up && current_report(seen, *node, record).is_none()
        })
        .map(|(node, _)| (node, seen.heard.silences.get(&node).copied()))
        .collect()
}

/// What to say of a node whose home fills up.
fn space_explanation(node: &NodeStatus) -> Option<String> {
    let usage = node.usage?;
    let (what, next) = match node.space? {
        SpaceLevel::Enough => return None,
        SpaceLevel::Low => ("is filling up", "plan for more space"),
        SpaceLevel::Critical => (
            "is almost full",
            "writes to new blocks of volumes with copies on it will soon be refused",
        ),
    };
    let share = 100 * u128::from(usage.home_used_bytes) / u128::from(usage.home_bytes.max(1));
    Some(format!(
        "node {}: its home {what} ({share} % of {} bytes used): {next}. Restart it with a larger \
         --home-size, or unmap or delete what is not needed",
        node.id, usage.home_bytes
    ))
}
