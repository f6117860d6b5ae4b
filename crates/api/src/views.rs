//! Builds what is shown from the cluster's state and the nodes' own reports.
//!
//! Pure: the same [`Seen`] gives the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::group::VOTERS_MAX;
use holdfast_config::state::{
    Chap, ClusterState, NodeRecord, NodeStatus as RecordedStatus, VolumeRecord,
};
use holdfast_name::prepare_stored;
use holdfast_node::{Fullness, Node, NodeReport};
use holdfast_runtime::NodeId;
use holdfast_runtime::host::{ClusterId, HostLinks};
use holdfast_wire::VolumeId;

use crate::service::{self, age, standstill_text};
use crate::types::{
    Authentication, ClusterPhase, ClusterStatus, Holder, Integrity, Knowledge, LinkStatus,
    MissingLink, NodeState, NodeStatus, OldestIo, OwnerReport, Redundancy, Resync, ScrubPass,
    SelfReport, SpaceLevel, StoreUsage, VolumeState, VolumeStatus,
};

/// Bytes of a block, in which resyncs count.
const BLOCK_BYTES: u64 = 4096;

/// Everything that is known at one moment.
pub(crate) struct Seen {
    pub(crate) state: Rc<ClusterState>,
    pub(crate) local: NodeId,
    pub(crate) leader: Option<NodeId>,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) reports: BTreeMap<NodeId, SelfReport>,
    pub(crate) missing_links: Vec<MissingLink>,
    /// This node's wall clock, in milliseconds since the Unix epoch.
    pub(crate) now_unix_ms: u64,
}

/// What this node knows of itself alone.
pub(crate) fn own_report(node: &Node, links: &HostLinks) -> SelfReport {
    let report = node.report();
    let now = node.context().runtime.now();
    let owner = |status: &holdfast_volume::OwnerStatus| OwnerReport {
        volume: status.volume.0,
        view: status.view.0,
        open: status.open,
        waits_for: status
            .waits_for
            .as_ref()
            .map_or_else(String::new, service::wait_text),
        waiting: status
            .waits_for
            .as_ref()
            .map(|waiting| service::wait(waiting, now)),
        age_ms: status.age.as_millis() as u64,
        takeover_ms: status.takeover.map(|time| time.as_millis() as u64),
        resyncs: status.resyncs.iter().map(resync).collect(),
    };
    SelfReport {
        id: report.node.0,
        incarnation: node.context().incarnation().0,
        registered: report.registered,
        usage: StoreUsage {
            home_bytes: report.usage.home_bytes,
            home_used_bytes: report.usage.home_used_bytes,
            home_reclaimable_bytes: report.usage.home_reclaimable_bytes,
            home_map_bytes: report.usage.home_map_bytes,
            home_free_bytes: report.usage.home_free_bytes,
            home_collected_bytes: report.usage.home_collected_bytes,
            journal_bytes: report.usage.journal_bytes,
            journal_used_bytes: report.usage.journal_used_bytes,
        },
        integrity: integrity(&report),
        space: match report.fullness {
            Fullness::Enough => SpaceLevel::Enough,
            Fullness::Low => SpaceLevel::Low,
            Fullness::Critical => SpaceLevel::Critical,
        },
        owners: report.owners.iter().map(owner).collect(),
        links: links
            .status()
            .into_iter()
            .map(|status| LinkStatus {
                node: status.peer.0,
                up: status.up.is_some(),
                problem: match status.up {
                    Some(_) => None,
                    None => status.problem.map(|problem| problem.to_string()),
                },
            })
            .collect(),
        oldest_io: report.oldest_io.iter().map(oldest).collect(),
    }
}

/// The links that are missing, as this node knows.
pub(crate) fn missing_links(node: &Node) -> Vec<MissingLink> {
    let now = node.context().runtime.now();
    let links = node.report().missing_links.into_iter();
    links
        .map(|link| MissingLink {
            nodes: [link.nodes.0.0, link.nodes.1.0],
            for_ms: now.saturating_since(link.since).as_millis() as u64,
        })
        .collect()
}

fn oldest((volume, age): &(VolumeId, Duration)) -> OldestIo {
    OldestIo {
        volume: volume.0,
        age_ms: age.as_millis() as u64,
    }
}

fn integrity(report: &NodeReport) -> Integrity {
    let pass = |pass: holdfast_node::ScrubPass| ScrubPass {
        begun_unix_ms: pass.begun_unix_ms,
        ended_unix_ms: Some(pass.ended_unix_ms).filter(|ended| *ended > 0),
        bytes: pass.bytes,
        damaged_blocks: pass.damaged_blocks,
    };
    Integrity {
        damaged: report.damaged,
        damaged_blocks: report.damaged_blocks,
        lost_blocks: report.lost_blocks,
        healed_blocks: report.healed_blocks,
        scrub_paused: report.scrub.paused,
        scrub: report.scrub.current.map(pass),
        last_scrub: report.scrub.last.map(pass),
    }
}

fn resync(status: &holdfast_volume::ResyncStatus) -> Resync {
    Resync {
        slice: status.slice,
        node: status.node.0,
        copied_bytes: status.blocks * BLOCK_BYTES,
        finished: status.finished,
    }
}

/// The cluster; `confirmed` says whether a majority has confirmed the state just now.
pub(crate) fn cluster(seen: &Seen, confirmed: bool) -> ClusterStatus {
    let state = &seen.state;
    let volumes = volumes(seen);
    let open = volumes
        .iter()
        .filter(|volume| volume.state == VolumeState::Open);
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
    } else if volumes.iter().any(|volume| {
        volume.state != VolumeState::Open || standstill_text(volume.oldest_io_ms).is_some()
    }) {
        ClusterPhase::Unavailable
    } else if !not_up.is_empty()
        || !seen.missing_links.is_empty()
        || !silent.is_empty()
        || seen.voters.len() < voters_wanted
        || volumes
            .iter()
            .any(|volume| volume.redundancy.full < volume.redundancy.slices)
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
            node_explanation(&state.nodes[node], None)
        ));
    }
    explanations.extend(seen.missing_links.iter().map(service::missing_link_text));
    explanations.extend(silent.iter().map(|node| {
        format!(
            "node {node} counts as running and did not say how it is: for how long its \
             initiators wait is not known. Ask again in a moment, then see its log"
        )
    }));
    explanations.extend(nodes(seen).iter().filter_map(space_explanation));
    for volume in &volumes {
        if !volume.explanation.is_empty() {
            explanations.push(format!("volume {}: {}", volume.name, volume.explanation));
        }
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
        volumes: volumes.len() as u64,
    }
}

/// Nodes that count as running and say nothing: what their initiators wait for is not known.
fn unreported(seen: &Seen) -> Vec<NodeId> {
    let members = seen.state.members();
    members
        .filter(|(node, record)| {
            let report = seen.reports.get(node);
            record.status == RecordedStatus::Up
                && report.is_none_or(|report| report.incarnation != record.incarnation.0)
        })
        .map(|(node, _)| node)
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

/// All nodes, in the order of their numbers.
pub(crate) fn nodes(seen: &Seen) -> Vec<NodeStatus> {
    let one = |(node, record): (&NodeId, &NodeRecord)| {
        // A report of an earlier start says nothing of this one.
        let report = seen
            .reports
            .get(node)
            .filter(|report| report.incarnation == record.incarnation.0);
        let owns = seen
            .state
            .volumes
            .values()
            .filter(|volume| volume.owner.is_some_and(|owner| owner.node == *node));
        NodeStatus {
            id: node.0,
            state: match record.status {
                RecordedStatus::Admitted => NodeState::Admitted,
                RecordedStatus::Up => NodeState::Up,
                RecordedStatus::Leaving => NodeState::Leaving,
                RecordedStatus::Down => NodeState::Down,
                RecordedStatus::Evicted => NodeState::Evicted,
            },
            explanation: node_explanation(record, report),
            incarnation: record.incarnation.0,
            link_address: record.link_address.clone(),
            api_address: record.api_address.clone(),
            portal_address: record.portal_address.clone(),
            version: record.version.clone(),
            leader: seen.leader == Some(*node),
            owns: owns.map(|volume| volume.name.clone()).collect(),
            told: known(report.is_some()),
            usage: report.map(|report| report.usage),
            integrity: report.map(|report| report.integrity),
            space: report.map(|report| report.space),
            links: report.map_or_else(Vec::new, |report| report.links.clone()),
        }
    };
    seen.state.nodes.iter().map(one).collect()
}

/// All volumes, in the order of their numbers.
pub(crate) fn volumes(seen: &Seen) -> Vec<VolumeStatus> {
    let ids = seen.state.volumes.keys();
    ids.filter_map(|id| volume(seen, *id)).collect()
}

/// One volume.
pub(crate) fn volume(seen: &Seen, id: VolumeId) -> Option<VolumeStatus> {
    let record = seen.state.volumes.get(&id)?;
    let owner = record.owner.map(|owner| owner.node);
    let report = owner
        .and_then(|owner| seen.reports.get(&owner))
        .and_then(|report| report.owners.iter().find(|one| one.volume == id.0))
        .filter(|report| report.view == record.view.0)
        .cloned();
    let redundancy = redundancy(&seen.state, record);
    let state = match (owner, record.open) {
        (None, _) => VolumeState::NoOwner,
        (Some(_), true) => VolumeState::Open,
        (Some(_), false) => VolumeState::TakingOver,
    };
    let front = seen.state.front(id);
    let growing = seen.state.growing.get(&id);
    let oldest = seen.reports.values().flat_map(|report| &report.oldest_io);
    let oldest_io_ms = oldest
        .filter(|oldest| oldest.volume == id.0)
        .map(|oldest| oldest.age_ms)
        .max();
    let explanation = volume_explanation(record, state, redundancy, report.as_ref());
    let explanation = match standstill_text(oldest_io_ms) {
        None => explanation,
        Some(standstill) => {
            let waits = report
                .iter()
                .filter(|report| report.open && !report.waits_for.is_empty());
            let waits = waits.map(|report| format!("its owner waits for {}", report.waits_for));
            let more = Some(explanation).filter(|explanation| !explanation.is_empty());
            let parts = [standstill].into_iter().chain(waits).chain(more);
            parts.collect::<Vec<_>>().join("; ")
        }
    };
    Some(VolumeStatus {
        id: id.0,
        name: record.name.clone(),
        state,
        explanation: match growing {
            Some(growth) if explanation.is_empty() => format!(
                "it grows to {} bytes once the owner has set up the copies of the new range",
                growth.size_bytes
            ),
            Some(_) | None => explanation,
        },
        size_bytes: record.size_bytes,
        growing_to_bytes: growing.map(|growth| growth.size_bytes),
        block_size: record.logical_block_bytes,
        copies: record.copies,
        redundancy,
        holders: holders(record),
        owner: owner.map(|owner| owner.0),
        view: record.view.0,
        target: record.target_name.clone(),
        lun: 0,
        portals: portals(&seen.state),
        naa: record
            .naa
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        authentication: authentication(record.chap.as_ref()),
        old_secret_until_unix_ms: front
            .retiring_at(seen.now_unix_ms)
            .map(|secret| secret.until_unix_ms)
            .max(),
        initiators: front.initiators.as_ref().map(|allowed| {
            let prepared: BTreeSet<_> = allowed.iter().map(|name| prepare_stored(name)).collect();
            prepared.iter().map(ToString::to_string).collect()
        }),
        redirect_to_owner: front.redirect_to_owner,
        created_unix_ms: record.created_unix_ms,
        oldest_io_ms,
        told: known(report.is_some()),
        owner_report: report,
    })
}

fn portals(state: &ClusterState) -> Vec<String> {
    state
        .nodes
        .values()
        .filter(|record| record.status == RecordedStatus::Up && !record.portal_address.is_empty())
        .map(|record| record.portal_address.clone())
        .collect()
}

pub(crate) fn authentication(chap: Option<&Chap>) -> Authentication {
    match chap {
        None => Authentication::None,
        Some(Chap { mutual: None, .. }) => Authentication::Chap,
        Some(Chap {
            mutual: Some(_), ..
        }) => Authentication::MutualChap,
    }
}

fn known(is_known: bool) -> Knowledge {
    if is_known {
        Knowledge::Known
    } else {
        Knowledge::Unknown
    }
}

/// Copies count if they are in sync and their node runs.
fn redundancy(state: &ClusterState, record: &VolumeRecord) -> Redundancy {
    let copies = |slice: &holdfast_config::state::SliceRecord| {
        let running = slice
            .in_sync()
            .filter(|node| state.running_incarnation(*node).is_some());
        running.count() as u32
    };
    let counts = record.slices.values().map(copies);
    Redundancy {
        slices: record.slices.len() as u64,
        full: counts
            .clone()
            .filter(|copies| *copies >= record.copies)
            .count() as u64,
        copies_least: counts.min().unwrap_or(0),
    }
}

fn holders(record: &VolumeRecord) -> Vec<Holder> {
    let holders = record.slices.holders().iter();
    let holders = holders.map(|held| Holder {
        node: held.node.0,
        slices: held.copies.into(),
        in_sync: held.in_sync.into(),
    });
    holders.collect()
}

fn node_explanation(record: &NodeRecord, report: Option<&SelfReport>) -> String {
    match record.status {
        RecordedStatus::Up => report.map_or_else(String::new, |report| {
            let Integrity {
                damaged_blocks,
                lost_blocks,
                ..
            } = report.integrity;
            match (damaged_blocks, lost_blocks) {
                (0, _) => String::new(),
                (damaged, 0) => format!(
                    "its disk has lost {damaged} blocks; other copies give them back. If that \
                     goes on, replace the disk"
                ),
                (_, lost) => format!(
                    "its disk has lost {lost} blocks that no other copy in sync has: they read as \
                     errors until they are written again. Restore what they belong to"
                ),
            }
        }),
        RecordedStatus::Admitted => {
            "admitted, and its process has not started yet. Start it with its data directory".into()
        }
        RecordedStatus::Leaving => "stopping: it owns nothing any more and can end".into(),
        RecordedStatus::Down => format!(
            "its process is gone or does not answer at {}. Start it again with its data \
             directory: only the difference is copied. If it is lost for good, \
             `holdfast node evict` lets other nodes have its copies",
            record.link_address
        ),
        RecordedStatus::Evicted => "taken out for good; its data directory is void".into(),
    }
}

fn volume_explanation(
    record: &VolumeRecord,
    state: VolumeState,
    redundancy: Redundancy,
    report: Option<&OwnerReport>,
) -> String {
    match state {
        VolumeState::NoOwner => {
            "no node is up that could own it. Start the nodes that hold its copies".into()
        }
        VolumeState::TakingOver => match report {
            Some(report) if report.waits_for.is_empty() => {
                format!("its owner takes over, since {}", age(report.age_ms))
            }
            Some(report) => format!(
                "its owner takes over, since {}, and waits for {}",
                age(report.age_ms),
                report.waits_for
            ),
            None => "its owner takes over; what it waits for is unknown here".into(),
        },
        VolumeState::Open if redundancy.full == redundancy.slices => String::new(),
        VolumeState::Open => {
            let missing = redundancy.slices - redundancy.full;
            let least = redundancy.copies_least;
            let resyncs = report.map_or(&[][..], |report| &report.resyncs[..]);
            let under_way: Vec<&Resync> =
                resyncs.iter().filter(|resync| !resync.finished).collect();
            let copied: u64 = under_way.iter().map(|resync| resync.copied_bytes).sum();
            let next = if report.is_none() {
                "what is under way is unknown here".to_owned()
            } else if under_way.is_empty() {
                "it waits for the missing nodes; until then do not stop others".to_owned()
            } else {
                format!(
                    "{} copies are brought back, {} MiB so far",
                    under_way.len(),
                    copied >> 20
                )
            };
            format!(
                "{missing} of {} slices lack copies, the least has {least} of {}; {next}",
                redundancy.slices, record.copies
            )
        }
    }
}

#[cfg(test)]
mod tests;
