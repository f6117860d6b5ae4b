//! What is said of a node that is drained: what is left, how fast it goes, and what holds it up.
//!
//! Whatever it waits for can come true, or the sentence says what an operator has to do for it.

use holdfast_config::state::{
    Change, ClusterState, DrainProgress, NodeStatus as RecordedStatus, Outcome, Unplaceable,
};
use holdfast_runtime::NodeId;

use super::{Seen, current_report};
use crate::types::{DrainPlan, DrainShare, DrainStatus, DrainTarget, SelfReport, SpaceLevel};

/// How far a node is drained; `None` if it is not.
pub(super) fn status(seen: &Seen, node: NodeId) -> Option<DrainStatus> {
    let since_unix_ms = *seen.state.draining.get(&node)?;
    let progress = seen.state.drain_progress(node);
    let shares = seen
        .heard
        .reports
        .values()
        .flat_map(|report| &report.drains);
    let shares: Vec<&DrainShare> = shares.filter(|share| share.node == node.0).collect();
    let unfinished: u64 = shares.iter().map(|share| share.unfinished_bytes).sum();
    let rates = shares.iter().filter_map(|share| share.bytes_per_s);
    let bytes_per_s = rates.reduce(u64::saturating_add);
    let bytes_left = match progress.copies {
        0 => Some(0),
        _ => copies_bytes(seen, node).map(|bytes| bytes.saturating_sub(unfinished)),
    };
    let drained = seen.state.is_drained(node);
    Some(DrainStatus {
        since_unix_ms,
        drained,
        copies_left: progress.copies,
        owned_left: progress.owned,
        bytes_left,
        bytes_moved: shares.iter().map(|share| share.copied_bytes).sum(),
        bytes_per_s,
        ends_in_s: match drained {
            true => Some(0),
            false => ends_in_s(bytes_left, bytes_per_s),
        },
        waits_for: waits_for(seen, node, &progress),
    })
}

/// How far a node is drained, in words.
pub(super) fn text(node: NodeId, drain: &DrainStatus) -> String {
    if drain.drained {
        return format!(
            "drained: nothing is left on it. `holdfast node remove {node}` takes it out for good, \
             `holdfast node drain {node} --cancel` lets it stay"
        );
    }
    let mib = |bytes: u64| bytes >> 20;
    let left = drain.bytes_left;
    let left = left.map_or(String::new(), |left| format!(" ({} MiB)", mib(left)));
    let time = match (drain.bytes_per_s, drain.ends_in_s) {
        (None, _) => "how long it takes is not known yet".into(),
        (Some(0), _) => "nothing was copied within the last minute".into(),
        (Some(rate), None) => format!("{} MiB/s", mib(rate)),
        (Some(rate), Some(seconds)) => format!("{} MiB/s, {seconds} s to go", mib(rate)),
    };
    let waits = drain.waits_for.iter().map(|wait| format!("; {wait}"));
    format!(
        "being drained: {} copies{left} are left, {} MiB are copied, {time}{}",
        drain.copies_left,
        mib(drain.bytes_moved),
        waits.collect::<String>()
    )
}

/// What draining the node would move.
pub(crate) fn plan(seen: &Seen, node: NodeId) -> DrainPlan {
    let state = &seen.state;
    let mut tried = (**state).clone();
    let outcome = tried.apply(Change::Drain {
        node,
        now_unix_ms: seen.now_unix_ms,
    });
    let refused = match outcome {
        Outcome::Refused(refusal) => Some(refusal.into()),
        Outcome::Done
        | Outcome::Admitted(_)
        | Outcome::Created(_)
        | Outcome::Reserved(_)
        | Outcome::Placed { .. } => None,
    };
    let progress = state.drain_progress(node);
    let takes_none = state.unplaceable();
    let targets = state
        .members()
        .map(|(target, _)| target)
        .filter(|target| *target != node && takes_none.iter().all(|(other, _)| other != target));
    DrainPlan {
        node: node.0,
        copies: progress.copies,
        bytes: match progress.copies {
            0 => Some(0),
            _ => copies_bytes(seen, node),
        },
        owned: progress.owned,
        targets: targets
            .map(|target| DrainTarget {
                node: target.0,
                free_bytes: report(seen, target).map(free_bytes),
            })
            .collect(),
        waits_for: waits_for(seen, node, &progress),
        refused,
    }
}

/// At this rate. Nothing is foretold from a rate of nothing.
fn ends_in_s(bytes_left: Option<u64>, bytes_per_s: Option<u64>) -> Option<u64> {
    let rate = bytes_per_s.filter(|rate| *rate > 0)?;
    Some(bytes_left?.div_ceil(rate))
}

fn report(seen: &Seen, node: NodeId) -> Option<&SelfReport> {
    current_report(seen, node, seen.state.nodes.get(&node)?)
}

fn copies_bytes(seen: &Seen, node: NodeId) -> Option<u64> {
    report(seen, node)?.copies_bytes
}

fn free_bytes(report: &SelfReport) -> u64 {
    let usage = &report.usage;
    usage.home_bytes.saturating_sub(usage.home_used_bytes)
}

fn waits_for(seen: &Seen, node: NodeId, progress: &DrainProgress) -> Vec<String> {
    let state = &seen.state;
    let mut waits = Vec::new();
    if let Some((count, volume, slice)) = progress.without_place {
        let name = volume_name(state, volume);
        let nodes = unplaceable_text(state, node);
        waits.push(format!(
            "no node can take a copy of {count} slices, such as slice {slice} of volume {name}: \
             every node that takes copies has one already{nodes}. Start what is down, add a node \
             (`holdfast cluster token`), or cancel (`holdfast node drain {node} --cancel`)"
        ));
    }
    for (down, count) in &progress.wait_for_down {
        waits.push(format!(
            "{count} slices wait for their copies on node {down}, which does not run. Start it, or \
             `holdfast node evict {down}` if it is lost: the copies then go to other nodes"
        ));
    }
    if let Some((count, volume)) = progress.not_serving {
        let name = volume_name(state, volume);
        waits.push(format!(
            "{count} slices belong to volumes that do not serve, such as {name}: `holdfast volume \
             show {name}` shows what that one waits for"
        ));
    }
    for (target, count) in &progress.made_on {
        let full = report(seen, *target).filter(|report| report.space == SpaceLevel::Critical);
        if let Some(report) = full {
            waits.push(format!(
                "node {target}, on which {count} copies are being made, is almost full: {} bytes \
                 are left. Unmap or delete something, or restart it with a larger --home-size",
                free_bytes(report)
            ));
        }
    }
    let record = state.nodes.get(&node);
    let runs = record.is_some_and(|record| record.status == RecordedStatus::Up);
    let counts_alone = progress.not_serving.is_some() && !runs;
    if counts_alone {
        waits.push(format!(
            "node {node} itself does not run, and may have the only complete copies. Start it"
        ));
    }
    waits
}

fn volume_name(state: &ClusterState, volume: holdfast_wire::VolumeId) -> &str {
    let record = state.volumes.get(&volume);
    record.map_or("?", |record| record.name.as_str())
}

/// The nodes that take no copies, other than the drained one.
fn unplaceable_text(state: &ClusterState, node: NodeId) -> String {
    let nodes = state.unplaceable().into_iter();
    let nodes = nodes.filter(|(other, _)| *other != node);
    let nodes = nodes.map(|(other, why)| {
        let why = match why {
            Unplaceable::Drained => "is drained, too",
            Unplaceable::NeverStarted => "was admitted and has not started yet",
            Unplaceable::Leaving => "is stopping",
            Unplaceable::Down => "is down",
        };
        format!("; node {other} {why}")
    });
    nodes.collect()
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
