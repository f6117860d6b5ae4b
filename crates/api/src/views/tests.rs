//! What is said of clusters, nodes and volumes.

use holdfast_config::state::Change;
use holdfast_runtime::Incarnation;

use super::*;
use crate::testing::{applied, created, open, three_nodes};
use crate::types::{ClusterPhase, OldestIo, SpaceLevel, Stalls, StoreUsage};

pub(super) fn seen(state: ClusterState) -> Seen {
    Seen {
        state: Rc::new(state),
        local: NodeId(1),
        leader: Some(NodeId(2)),
        voters: (1..=3).map(NodeId).collect(),
        heard: Heard {
            reports: (1..=3)
                .map(|id| (NodeId(id), reported(id, Vec::new())))
                .collect(),
            ..Heard::default()
        },
        missing_links: Vec::new(),
        now_unix_ms: 0,
    }
}

#[test]
fn a_whole_cluster_is_healthy_and_has_nothing_to_explain() {
    let (state, volume) = three_nodes();
    let seen = seen(state);
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Healthy);
    assert_eq!(status.explanations, [""; 0]);
    assert_eq!((status.nodes_up, status.volumes_open), (3, 1));
    let volume = super::volume(&seen, &Shared::of(&seen), volume).unwrap();
    assert_eq!(volume.portals.len(), 3);
    let in_sync: u64 = volume.holders.iter().map(|holder| holder.in_sync).sum();
    assert_eq!((volume.holders.len(), in_sync), (3, 6));
    assert_eq!(volume.authentication, Authentication::None);
    assert_eq!(volume.naa.len(), 32);
}

#[test]
fn a_lost_node_is_explained_at_the_node_and_at_each_volume_that_misses_it() {
    let (mut state, volume) = three_nodes();
    let owner = state.volumes[&volume].owner.unwrap().node;
    let lost = NodeId(if owner == NodeId(3) { 2 } else { 3 });
    let incarnation = Incarnation(1);
    applied(
        &mut state,
        Change::NodeDown {
            node: lost,
            incarnation,
        },
    );
    let seen = seen(state);
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Degraded);
    assert!(status.explanations[0].contains("Start it again"));
    assert!(status.explanations[1].contains("the least has 2 of 3"));
    let volume = super::volume(&seen, &Shared::of(&seen), volume).unwrap();
    assert_eq!(volume.redundancy.copies_least, 2);
    assert_eq!(volume.portals.len(), 2);
    assert_eq!(volume.told, Knowledge::Unknown);
}

#[test]
fn a_config_group_with_too_few_voters_is_degraded_and_says_so() {
    let (state, _) = three_nodes();
    let mut seen = seen(state);
    seen.voters.pop_last();
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Degraded);
    assert!(status.explanations[0].contains("2 of 3 voters"));
}

#[test]
fn without_a_majority_the_last_known_state_is_shown_as_such() {
    let (state, _) = three_nodes();
    let status = cluster(&seen(state), false);
    assert_eq!(status.phase, ClusterPhase::NoMajority);
    assert!(status.explanations[0].contains("no majority"));
}

#[test]
fn a_report_of_an_earlier_start_counts_as_unknown() {
    let (state, _) = three_nodes();
    let mut seen = seen(state);
    seen.heard.reports.clear();
    for (node, incarnation) in [(1, 1), (2, 9)] {
        let report = SelfReport {
            incarnation,
            space: SpaceLevel::Critical,
            ..reported(node, Vec::new())
        };
        seen.heard.reports.insert(NodeId(node), report);
    }
    let told: Vec<Knowledge> = nodes(&seen).iter().map(|node| node.told).collect();
    let (known, unknown) = (Knowledge::Known, Knowledge::Unknown);
    assert_eq!(told, [known, unknown, unknown]);
    // What the node has just said of its space is explained, what it said earlier is not.
    let status = cluster(&seen, true);
    let full = status
        .explanations
        .iter()
        .filter(|one| one.contains("almost full"));
    let full: Vec<_> = full.collect();
    assert_eq!(full.len(), 1, "{full:?}");
    assert!(full[0].starts_with("node 1: "), "{full:?}");
}

fn reported(id: u64, oldest_io: Vec<OldestIo>) -> SelfReport {
    SelfReport {
        id,
        incarnation: 1,
        registered: true,
        usage: StoreUsage {
            home_bytes: 1,
            home_used_bytes: 0,
            home_reclaimable_bytes: 0,
            home_map_bytes: 0,
            home_free_bytes: 1,
            home_collected_bytes: 0,
            journal_bytes: 1,
            journal_used_bytes: 0,
        },
        integrity: Integrity::default(),
        space: SpaceLevel::Enough,
        owned: 0,
        serving: 0,
        links: Vec::new(),
        oldest_io,
        stalls: Stalls::default(),
        copies_bytes: None,
        drains: Vec::new(),
    }
}

#[test]
fn a_volume_whose_io_stands_still_at_any_node_is_unavailable_and_says_for_how_long() {
    let (state, volume) = three_nodes();
    let mut seen = seen(state);
    let oldest = |age_ms| OldestIo {
        volume: volume.0,
        age_ms,
    };
    seen.heard
        .reports
        .insert(NodeId(1), reported(1, vec![oldest(3)]));
    assert_eq!(cluster(&seen, true).phase, ClusterPhase::Healthy);
    seen.heard
        .reports
        .insert(NodeId(2), reported(2, vec![oldest(2_500)]));
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Unavailable);
    assert!(
        status.explanations[0].contains("has waited for 2.5 s"),
        "{status:?}"
    );
    let volume = super::volume(&seen, &Shared::of(&seen), volume).unwrap();
    assert_eq!(volume.oldest_io_ms, Some(2_500));
}

#[test]
fn a_missing_link_is_named_and_no_cluster_with_one_is_healthy() {
    let (state, _) = three_nodes();
    let mut seen = seen(state);
    seen.missing_links.push(MissingLink {
        nodes: [1, 3],
        for_ms: 12_000,
    });
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Degraded);
    assert!(
        status.explanations[0].starts_with("nodes 1 and 3 "),
        "{status:?}"
    );
}

#[test]
fn a_node_that_runs_and_says_nothing_keeps_the_cluster_from_being_healthy() {
    let (state, _) = three_nodes();
    let mut seen = seen(state);
    assert_eq!(cluster(&seen, true).phase, ClusterPhase::Healthy);
    seen.heard.reports.remove(&NodeId(3));
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Degraded);
    assert!(
        status.explanations[0].starts_with("node 3 counts as running"),
        "{status:?}"
    );
}

#[test]
fn a_node_that_gives_no_answer_is_shown_as_such_with_the_limit() {
    let (state, _) = three_nodes();
    let mut seen = seen(state);
    seen.heard.reports.remove(&NodeId(3));
    seen.heard.silences.insert(NodeId(3), Silence::NoAnswer);
    let shown = nodes(&seen);
    let silent = &shown[2];
    assert_eq!((silent.id, silent.told), (3, Knowledge::Unknown));
    assert!(
        silent.explanation.contains("no answer for 1 s"),
        "{silent:?}"
    );
    let status = cluster(&seen, true);
    assert!(
        status.explanations[0].contains("no answer for 1 s"),
        "{status:?}"
    );
}

#[test]
fn a_few_of_many_impaired_volumes_are_explained_the_worst_first_and_the_rest_counted() {
    let (mut state, _) = three_nodes();
    for number in 0..30 {
        let volume = created(&mut state, &format!("v{number}"), 1 << 30);
        if number != 29 {
            open(&mut state, volume);
        }
    }
    let lost = NodeId(3);
    let incarnation = Incarnation(1);
    applied(
        &mut state,
        Change::NodeDown {
            node: lost,
            incarnation,
        },
    );
    assert_eq!(to_explain(&state).len(), 20);
    let status = cluster(&seen(state), true);
    assert_eq!(status.phase, ClusterPhase::Unavailable);
    let of_volumes = status.explanations.iter();
    let of_volumes: Vec<&String> = of_volumes
        .filter(|one| one.starts_with("volume "))
        .collect();
    assert_eq!(of_volumes.len(), 20);
    assert!(
        of_volumes.iter().any(|one| one.starts_with("volume v29: ")),
        "{status:?}"
    );
    let last = status.explanations.last().unwrap();
    assert!(last.starts_with("and 11 more volumes"), "{status:?}");
}

#[test]
fn a_node_names_a_hundred_of_its_volumes_and_counts_all() {
    let (mut state, _) = three_nodes();
    for number in 0..400 {
        created(&mut state, &format!("v{number}"), 1 << 30);
    }
    let shown = nodes(&seen(state));
    let owned: u64 = shown.iter().map(|node| node.owned).sum();
    assert_eq!(owned, 401);
    assert!(
        shown
            .iter()
            .any(|node| node.owned > 100 && node.owns.len() == 100)
    );
    assert!(
        shown
            .iter()
            .all(|node| node.owns.len() as u64 == node.owned.min(100))
    );
}
