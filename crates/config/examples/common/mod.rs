//! Clusters of any size, and what changing and keeping their state costs: for the examples that
//! print it.
#![allow(dead_code, reason = "each example uses some of it")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_config::state::{
    Admission, Change, ClusterIdentity, ClusterState, FrontChange, NodeStart, NodeStatus, Outcome,
    PlacedSlice, Progress, Reconciled, VolumeSpec,
};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

/// Each change is applied to clones of the same state, as the node that publishes it does.
const ROUNDS: usize = 200;

/// What there is in a cluster.
pub(crate) struct Size {
    pub(crate) nodes: u64,
    pub(crate) volumes: u64,
    /// Of each volume.
    pub(crate) volume_bytes: u64,
    /// Used slices of each volume, in sync on three nodes.
    pub(crate) slices: u32,
}

/// Nodes that are up, and open volumes.
pub(crate) fn cluster(size: &Size) -> ClusterState {
    let mut state = ClusterState::default();
    done(
        &mut state,
        Change::Found {
            cluster: ClusterIdentity {
                id: [7; 16],
                name: "cost".into(),
                authority: vec![1; 1_000],
            },
            uuid: [1; 16],
            link_address: "h1:1".into(),
        },
    );
    for node in 2..=size.nodes as u8 {
        let secret_hash = [node; 32];
        let expires_unix_ms = 10;
        done(
            &mut state,
            Change::AddToken {
                secret_hash,
                expires_unix_ms,
            },
        );
        let admission = Admission {
            secret_hash,
            uuid: [node; 16],
            link_address: "h:1".into(),
            now_unix_ms: 5,
        };
        done(&mut state, Change::Admit(admission));
    }
    for node in 1..=size.nodes {
        done(&mut state, start(node, 1));
    }
    for number in 1..=size.volumes {
        done(
            &mut state,
            create(&format!("volume-{number}"), size.volume_bytes),
        );
        let volume = VolumeId(number);
        let change = opened(&state, volume);
        done(&mut state, change);
        let change = place(&state, volume, 1..size.slices);
        done(&mut state, change);
    }
    state
}

pub(crate) fn done(state: &mut ClusterState, change: Change) {
    let outcome = state.apply(change);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

pub(crate) fn start(node: u64, incarnation: u64) -> Change {
    Change::NodeStarted(NodeStart {
        node: NodeId(node),
        uuid: [node as u8; 16],
        incarnation: Incarnation(incarnation),
        link_address: "h:1".into(),
        api_address: "h:2".into(),
        portal_address: "h:3".into(),
        version: "1".into(),
    })
}

pub(crate) fn create(name: &str, size_bytes: u64) -> Change {
    Change::CreateThinVolume {
        spec: VolumeSpec {
            name: name.into(),
            size_bytes,
            logical_block_bytes: 512,
            copies: 3,
            slice_bytes: 1 << 30,
            chap: None,
            naa_random: 1,
            now_unix_ms: 1,
        },
        front: FrontChange::default(),
    }
}

pub(crate) fn starts(state: &ClusterState) -> Vec<(NodeId, Incarnation)> {
    let up = state.nodes.iter();
    let up = up.filter(|(_, record)| record.status == NodeStatus::Up);
    up.map(|(node, record)| (*node, record.incarnation))
        .collect()
}

pub(crate) fn opened(state: &ClusterState, volume: VolumeId) -> Change {
    let record = &state.volumes[&volume];
    let slices = record.slices.values();
    Change::Opened {
        volume,
        view: record.view,
        reconciled: Reconciled {
            slices: slices.map(|slice| slice.in_sync().collect()).collect(),
            incarnations: starts(state),
        },
    }
}

pub(crate) fn place(
    state: &ClusterState,
    volume: VolumeId,
    slices: std::ops::Range<u32>,
) -> Change {
    let slices = slices.map(|index| PlacedSlice {
        index,
        nodes: state.wanted_nodes(volume, index, &Default::default()),
    });
    Change::PlaceSlices {
        volume,
        view: state.volumes[&volume].view,
        slices: slices.collect(),
        incarnations: starts(state),
    }
}

/// Median time of applying the change to a state that somebody else holds too.
pub(crate) fn median(published: &Rc<ClusterState>, change: &Change) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let mut held = published.clone();
            let change = change.clone();
            let began = Instant::now();
            let outcome = Rc::make_mut(&mut held).apply(change);
            let took = began.elapsed();
            assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            took
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// What a snapshot of a state costs.
pub(crate) struct Snapshot {
    pub(crate) bytes: usize,
    pub(crate) pieces: u32,
    pub(crate) made_in: Duration,
    pub(crate) longest_made: Duration,
    pub(crate) read_in: Duration,
    pub(crate) longest_read: Duration,
    /// How long it takes to drop the state that was read.
    pub(crate) dropped_in: Duration,
}

/// Makes a snapshot piece by piece, and reads it in again.
pub(crate) fn snapshot(state: &ClusterState) -> Snapshot {
    let mut bytes = Vec::new();
    let (mut pieces, mut longest_made) = (0, Duration::ZERO);
    let mut writer = state.pieces();
    let began = Instant::now();
    loop {
        let piece_began = Instant::now();
        let Some(piece) = writer.next() else { break };
        bytes.extend_from_slice(&piece);
        longest_made = longest_made.max(piece_began.elapsed());
        pieces += 1;
    }
    let made_in = began.elapsed();
    let (mut read, mut rest) = (ClusterState::default(), &bytes[..]);
    let (began, mut longest_read) = (Instant::now(), Duration::ZERO);
    loop {
        let piece_began = Instant::now();
        let (progress, following) = read.take_up(rest).expect("a section");
        longest_read = longest_read.max(piece_began.elapsed());
        rest = following;
        if progress == Progress::Complete {
            break;
        }
    }
    let read_in = began.elapsed();
    assert!(read == *state, "what was written is what is read");
    let began = Instant::now();
    drop(read);
    Snapshot {
        bytes: bytes.len(),
        pieces,
        made_in,
        longest_made,
        read_in,
        longest_read,
        dropped_in: began.elapsed(),
    }
}

/// Used slices of all volumes.
pub(crate) fn slices_of(state: &ClusterState) -> usize {
    let volumes = state.volumes.values();
    volumes.map(|record| record.slices.len()).sum()
}

pub(crate) fn shown(time: Duration) -> String {
    let microseconds = time.as_secs_f64() * 1e6;
    match microseconds {
        ..1e3 => format!("{microseconds:.1} µs"),
        1e3..1e6 => format!("{:.1} ms", microseconds / 1e3),
        _ => format!("{:.1} s", microseconds / 1e6),
    }
}
