//! What is said of clusters, nodes and volumes.

use holdfast_config::state::{Change, ClusterIdentity, NodeStart, Outcome, VolumeSpec};
use holdfast_runtime::Incarnation;

use super::*;

fn applied(state: &mut ClusterState, change: Change) -> Outcome {
    let outcome = state.apply(change);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    outcome
}

/// Three nodes up, one volume of three copies on them, open.
fn three_nodes() -> (ClusterState, VolumeId) {
    let mut state = ClusterState::default();
    applied(
        &mut state,
        Change::Found {
            cluster: ClusterIdentity {
                id: [7; 16],
                name: "test".into(),
                authority: b"secret".to_vec(),
            },
            uuid: [1; 16],
            link_address: "127.0.0.1:1".into(),
        },
    );
    for node in 2..=3 {
        let secret_hash = [node; 32];
        applied(
            &mut state,
            Change::AddToken {
                secret_hash,
                expires_unix_ms: 10,
            },
        );
        applied(
            &mut state,
            Change::Admit(holdfast_config::state::Admission {
                secret_hash,
                uuid: [node; 16],
                link_address: format!("127.0.0.1:{node}"),
                now_unix_ms: 1,
            }),
        );
    }
    for node in 1..=3u8 {
        applied(
            &mut state,
            Change::NodeStarted(NodeStart {
                node: NodeId(node.into()),
                uuid: [node; 16],
                incarnation: Incarnation(1),
                link_address: format!("127.0.0.1:{node}"),
                api_address: String::new(),
                portal_address: format!("127.0.0.1:326{node}"),
                version: "0.1.0".into(),
            }),
        );
    }
    let created = applied(
        &mut state,
        Change::CreateThinVolume {
            front: holdfast_config::state::FrontChange::default(),
            spec: VolumeSpec {
                name: "db".into(),
                size_bytes: 2 << 30,
                logical_block_bytes: 512,
                copies: 3,
                slice_bytes: 1 << 30,
                chap: None,
                naa_random: 5,
                now_unix_ms: 1,
            },
        },
    );
    let Outcome::Created(volume) = created else {
        panic!("{created:?}");
    };
    state.volumes.update(volume, |record| record.open = true);
    (state, volume)
}

fn seen(state: ClusterState) -> Seen {
    Seen {
        state: Rc::new(state),
        local: NodeId(1),
        leader: Some(NodeId(2)),
        voters: (1..=3).map(NodeId).collect(),
        reports: (1..=3)
            .map(|id| (NodeId(id), reported(id, Vec::new())))
            .collect(),
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
    let volume = super::volume(&seen, volume).unwrap();
    assert_eq!(volume.portals.len(), 3);
    let in_sync: u64 = volume.holders.iter().map(|holder| holder.in_sync).sum();
    assert_eq!((volume.holders.len(), in_sync), (3, 3));
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
    let volume = super::volume(&seen, volume).unwrap();
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
    seen.reports.clear();
    for (node, incarnation) in [(1, 1), (2, 9)] {
        let report = SelfReport {
            incarnation,
            space: SpaceLevel::Critical,
            ..reported(node, Vec::new())
        };
        seen.reports.insert(NodeId(node), report);
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
        owners: Vec::new(),
        links: Vec::new(),
        oldest_io,
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
    seen.reports.insert(NodeId(1), reported(1, vec![oldest(3)]));
    assert_eq!(cluster(&seen, true).phase, ClusterPhase::Healthy);
    seen.reports
        .insert(NodeId(2), reported(2, vec![oldest(2_500)]));
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Unavailable);
    assert!(
        status.explanations[0].contains("has waited for 2.5 s"),
        "{status:?}"
    );
    let volume = super::volume(&seen, volume).unwrap();
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
    seen.reports.remove(&NodeId(3));
    let status = cluster(&seen, true);
    assert_eq!(status.phase, ClusterPhase::Degraded);
    assert!(
        status.explanations[0].starts_with("node 3 counts as running"),
        "{status:?}"
    );
}
