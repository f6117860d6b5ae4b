//! Builds what is shown from the cluster's state and the nodes' own reports.
//!
//! Pure: the same [`Seen`] gives the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_config::state::{
    Chap, ClusterState, CopyStatus, NodeRecord, NodeStatus as RecordedStatus, SliceRecord,
    VolumeRecord,
};
use holdfast_name::prepare_stored;
use holdfast_node::Node;
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use crate::peers::{Heard, Silence};
use crate::service::{age, standstill_text};
use crate::types::{
    Authentication, DrainStatus, Holder, Integrity, Knowledge, MissingLink, NodeState, NodeStatus,
    OwnerReport, Redundancy, SelfReport, SliceCopy, SliceStatus, VolumeState, VolumeStatus,
};

mod cluster;
mod drain;

pub(crate) use cluster::{cluster, to_explain};
pub(crate) use drain::plan as drain_plan;

/// Names of volumes that a node's status lists.
const OWNS_MAX: usize = 100;

/// Everything that is known at one moment.
pub(crate) struct Seen {
    pub(crate) state: Rc<ClusterState>,
    pub(crate) local: NodeId,
    pub(crate) leader: Option<NodeId>,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) heard: Heard,
    pub(crate) missing_links: Vec<MissingLink>,
    /// This node's wall clock, in milliseconds since the Unix epoch.
    pub(crate) now_unix_ms: u64,
}

/// What many volumes have in common, found out once.
pub(crate) struct Shared {
    running: Running,
    portals: Vec<String>,
    /// The age of the oldest operation on a volume, at whichever node.
    oldest_io_ms: BTreeMap<u64, u64>,
}

impl Shared {
    pub(crate) fn of(seen: &Seen) -> Self {
        let mut oldest_io_ms: BTreeMap<u64, u64> = BTreeMap::new();
        for oldest in seen.heard.reports.values().flat_map(|one| &one.oldest_io) {
            let age_ms = oldest_io_ms.entry(oldest.volume).or_default();
            *age_ms = (*age_ms).max(oldest.age_ms);
        }
        Self {
            running: Running::of(&seen.state),
            portals: portals(&seen.state),
            oldest_io_ms,
        }
    }
}

/// The nodes whose copies can be used.
pub(crate) struct Running(BTreeSet<NodeId>);

impl Running {
    pub(crate) fn of(state: &ClusterState) -> Self {
        let running = state.nodes.keys().copied();
        let running = running.filter(|node| state.running_incarnation(*node).is_some());
        Self(running.collect())
    }

    /// Copies count if they are in sync and their node runs.
    pub(crate) fn redundancy(&self, record: &VolumeRecord) -> Redundancy {
        let mut redundancy = Redundancy {
            slices: 0,
            full: 0,
            copies_least: u32::MAX,
        };
        for (_, slice) in placed(record) {
            let running = slice.in_sync().filter(|node| self.0.contains(node));
            let copies = running.count() as u32;
            redundancy.slices += 1;
            redundancy.full += u64::from(copies >= record.copies);
            redundancy.copies_least = redundancy.copies_least.min(copies);
        }
        if redundancy.slices == 0 {
            redundancy.copies_least = 0;
        }
        redundancy
    }
}

/// The slices of a volume that have a place, with their numbers.
fn placed(record: &VolumeRecord) -> impl Iterator<Item = (u64, &SliceRecord)> {
    let slices = record.slices.iter();
    slices.map(|(index, slice)| (u64::from(index), slice))
}

/// The slices of a volume that have a place, from `first` on.
pub(crate) fn slices_from(
    record: &VolumeRecord,
    first: u64,
) -> impl Iterator<Item = SliceStatus> + '_ {
    let first = u32::try_from(first).unwrap_or(u32::MAX);
    let placed = record.slices.range(first..);
    placed.map(|(slice, record)| SliceStatus {
        slice: u64::from(slice),
        copies: (record.copies())
            .map(|copy| SliceCopy {
                node: copy.node.0,
                in_sync: copy.status == CopyStatus::InSync,
            })
            .collect(),
    })
}

/// Whether a volume serves, by the cluster's state.
pub(crate) fn volume_state(record: &VolumeRecord) -> VolumeState {
    match (record.owner, record.open) {
        (None, _) => VolumeState::NoOwner,
        (Some(_), true) => VolumeState::Open,
        (Some(_), false) => VolumeState::TakingOver,
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

/// All nodes, in the order of their numbers.
pub(crate) fn nodes(seen: &Seen) -> Vec<NodeStatus> {
    let mut owned: BTreeMap<NodeId, (u64, Vec<String>)> = BTreeMap::new();
    for record in seen.state.volumes.values() {
        let Some(owner) = record.owner else { continue };
        let (count, names) = owned.entry(owner.node).or_default();
        *count += 1;
        if names.len() < OWNS_MAX {
            names.push(record.name.clone());
        }
    }
    let one = |(node, record): (&NodeId, &NodeRecord)| {
        let report = current_report(seen, *node, record);
        let drain = drain::status(seen, *node);
        let (owned, owns) = owned.remove(node).unwrap_or_default();
        NodeStatus {
            id: node.0,
            state: match record.status {
                RecordedStatus::Admitted => NodeState::Admitted,
                RecordedStatus::Up => NodeState::Up,
                RecordedStatus::Leaving => NodeState::Leaving,
                RecordedStatus::Down => NodeState::Down,
                RecordedStatus::Evicted => NodeState::Evicted,
            },
            explanation: explanation(seen, *node, record, drain.as_ref()),
            incarnation: record.incarnation.0,
            link_address: record.link_address.clone(),
            api_address: record.api_address.clone(),
            portal_address: record.portal_address.clone(),
            version: record.version.clone(),
            leader: seen.leader == Some(*node),
            owns,
            owned,
            told: known(report.is_some()),
            usage: report.map(|report| report.usage),
            integrity: report.map(|report| report.integrity),
            space: report.map(|report| report.space),
            links: report.map_or_else(Vec::new, |report| report.links.clone()),
            stalls: report.map(|report| report.stalls.clone()),
            copies: seen.state.copies_on(*node),
            copies_bytes: report.and_then(|report| report.copies_bytes),
            drain,
        }
    };
    seen.state.nodes.iter().map(one).collect()
}

/// What its state means, and how far it is drained.
fn explanation(
    seen: &Seen,
    node: NodeId,
    record: &NodeRecord,
    drain: Option<&DrainStatus>,
) -> String {
    let report = current_report(seen, node, record);
    let state = node_explanation(record, report, silence(seen, node, report));
    let drain = drain.map(|drain| drain::text(node, drain));
    let parts = [state].into_iter().chain(drain);
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

/// What a node said of its present start: a report of an earlier one says nothing of this.
fn current_report<'a>(seen: &'a Seen, node: NodeId, record: &NodeRecord) -> Option<&'a SelfReport> {
    let report = seen.heard.reports.get(&node);
    report.filter(|report| report.incarnation == record.incarnation.0)
}

/// Why nothing is known of a node, if it was asked.
fn silence(seen: &Seen, node: NodeId, report: Option<&SelfReport>) -> Option<Silence> {
    match report {
        Some(_) => None,
        None => seen.heard.silences.get(&node).copied(),
    }
}

/// One volume.
pub(crate) fn volume(seen: &Seen, shared: &Shared, id: VolumeId) -> Option<VolumeStatus> {
    let record = seen.state.volumes.get(&id)?;
    let owner = record.owner.map(|owner| owner.node);
    let report = seen.heard.owners.get(&id);
    let report = report
        .filter(|report| report.view == record.view.0)
        .cloned();
    let redundancy = shared.running.redundancy(record);
    let state = volume_state(record);
    let front = seen.state.front(id);
    let growing = seen.state.growing.get(&id);
    let oldest_io_ms = shared.oldest_io_ms.get(&id.0).copied();
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
        portals: shared.portals.clone(),
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

fn holders(record: &VolumeRecord) -> Vec<Holder> {
    let holders = record.slices.holders().iter();
    let holders = holders.map(|held| Holder {
        node: held.node.0,
        slices: held.copies.into(),
        in_sync: held.in_sync.into(),
    });
    holders.collect()
}

fn node_explanation(
    record: &NodeRecord,
    report: Option<&SelfReport>,
    silence: Option<Silence>,
) -> String {
    match record.status {
        RecordedStatus::Up if report.is_none() => silence.map_or_else(String::new, |silence| {
            format!("counts as running, and {}", silence.text())
        }),
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
        VolumeState::Open if redundancy.is_full() => String::new(),
        VolumeState::Open => {
            let missing = redundancy.slices - redundancy.full;
            let least = redundancy.copies_least;
            let next = match report {
                None => "what is under way is unknown here".to_owned(),
                Some(report) if report.resyncs_under_way == 0 => {
                    "it waits for the missing nodes; until then do not stop others".to_owned()
                }
                Some(report) => format!(
                    "{} copies are brought back, {} MiB so far",
                    report.resyncs_under_way,
                    report.resynced_bytes >> 20
                ),
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
