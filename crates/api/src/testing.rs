//! Clusters for the tests of this crate, made through the changes that the config group agrees on.

use holdfast_config::state::{
    Change, ClusterIdentity, ClusterState, NodeStart, Outcome, VolumeSpec,
};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

pub(crate) fn applied(state: &mut ClusterState, change: Change) -> Outcome {
    let outcome = state.apply(change);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    outcome
}

/// Three nodes up, one volume of three copies on them, open.
pub(crate) fn three_nodes() -> (ClusterState, VolumeId) {
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
    let volume = created(&mut state, "db", 2 << 30);
    open(&mut state, volume);
    (state, volume)
}

/// A new volume of three copies.
pub(crate) fn created(state: &mut ClusterState, name: &str, size_bytes: u64) -> VolumeId {
    let created = applied(
        state,
        Change::CreateVolume(VolumeSpec {
            name: name.into(),
            size_bytes,
            logical_block_bytes: 512,
            copies: 3,
            slice_bytes: 1 << 30,
            chap: None,
            naa_random: 5,
            now_unix_ms: 1,
        }),
    );
    match created {
        Outcome::Created(volume) => volume,
        other => panic!("{other:?}"),
    }
}

/// The volume's owner has taken it over.
pub(crate) fn open(state: &mut ClusterState, volume: VolumeId) {
    state.volumes.update(volume, |record| record.open = true);
}
