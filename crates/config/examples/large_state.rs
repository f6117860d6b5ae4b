//! What the config state of a large cluster costs: 64 nodes with 10 PiB of data in slices of 1 GiB.
//!
//! Prints a table: memory, bytes and time of a snapshot and its longest piece, time of changes.
//! `large_state SLICES` takes another number of slices. Meant for a release build.
#![allow(
    clippy::disallowed_methods,
    reason = "a measurement of the machine, by its clock"
)]

use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_config::state::{
    Admission, Change, ClusterIdentity, ClusterState, FrontChange, NodeStart, Outcome, PlacedSlice,
    Progress, Reconciled, VolumeSpec,
};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

const NODES: u64 = 64;
/// Used slices of each volume.
const VOLUME_SLICES: u32 = 1_024;
/// Each change is applied to clones of the same state, as the node that publishes it does.
const ROUNDS: usize = 200;

fn main() {
    let wanted = std::env::args().nth(1).map(|slices| slices.parse::<u64>());
    let slices = wanted.unwrap_or(Ok(10 << 20)).expect("a number of slices");
    let volumes = slices.div_ceil(u64::from(VOLUME_SLICES));
    let before = resident_bytes();
    let began = Instant::now();
    let state = Rc::new(cluster(volumes));
    let placed = slices_of(&state);
    println!("| {placed} slices of {volumes} volumes on {NODES} nodes | |");
    println!("|---|---|");
    row("placed in", &shown(began.elapsed()));
    let memory = resident_bytes().saturating_sub(before);
    row("memory", &megabytes(memory));
    row(
        "memory for each slice",
        &format!("{} bytes", memory / placed),
    );
    let volume = VolumeId(volumes / 2);
    row(
        "place 1 slice",
        &shown(median(&state, &place(&state, volume, 5_000..5_001))),
    );
    row(
        "place 16 slices",
        &shown(median(&state, &place(&state, volume, 5_000..5_016))),
    );
    let view = state.volumes[&volume].view;
    let resign = Change::Resign { volume, view };
    row("resign, so a new owner", &shown(median(&state, &resign)));
    snapshot(&state);
}

fn row(name: &str, value: &str) {
    println!("| {name} | {value} |");
}

fn slices_of(state: &ClusterState) -> u64 {
    let volumes = state.volumes.values();
    volumes.map(|record| record.slices.len() as u64).sum()
}

fn cluster(volumes: u64) -> ClusterState {
    let mut state = ClusterState::default();
    done(
        &mut state,
        Change::Found {
            cluster: ClusterIdentity {
                id: [7; 16],
                name: "large".into(),
                authority: vec![1; 1_000],
            },
            uuid: [1; 16],
            link_address: "h1:1".into(),
        },
    );
    for node in 2..=NODES as u8 {
        let secret_hash = [node; 32];
        let token = Change::AddToken {
            secret_hash,
            expires_unix_ms: 10,
        };
        done(&mut state, token);
        let admission = Admission {
            secret_hash,
            uuid: [node; 16],
            link_address: "h:1".into(),
            now_unix_ms: 5,
        };
        done(&mut state, Change::Admit(admission));
    }
    for node in 1..=NODES {
        let start = NodeStart {
            node: NodeId(node),
            uuid: [node as u8; 16],
            incarnation: Incarnation(1),
            link_address: "h:1".into(),
            api_address: "h:2".into(),
            portal_address: "h:3".into(),
            version: "1".into(),
        };
        done(&mut state, Change::NodeStarted(start));
    }
    for number in 1..=volumes {
        let create = Change::CreateThinVolume {
            spec: VolumeSpec {
                name: format!("volume-{number}"),
                size_bytes: 16 << 40,
                logical_block_bytes: 512,
                copies: 3,
                slice_bytes: 1 << 30,
                chap: None,
                naa_random: 1,
                now_unix_ms: 1,
            },
            front: FrontChange::default(),
        };
        done(&mut state, create);
        let volume = VolumeId(number);
        let record = &state.volumes[&volume];
        let members = record
            .slices
            .values()
            .map(|slice| slice.in_sync().collect());
        let opened = Change::Opened {
            volume,
            view: record.view,
            reconciled: Reconciled {
                slices: members.collect(),
                incarnations: starts(),
            },
        };
        done(&mut state, opened);
        let change = place(&state, volume, 1..VOLUME_SLICES);
        done(&mut state, change);
    }
    state
}

fn done(state: &mut ClusterState, change: Change) {
    let outcome = state.apply(change);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

fn starts() -> Vec<(NodeId, Incarnation)> {
    (1..=NODES)
        .map(|node| (NodeId(node), Incarnation(1)))
        .collect()
}

fn place(state: &ClusterState, volume: VolumeId, slices: std::ops::Range<u32>) -> Change {
    let slices = slices.map(|index| PlacedSlice {
        index,
        nodes: state.wanted_nodes(volume, index, &Default::default()),
    });
    Change::PlaceSlices {
        volume,
        view: state.volumes[&volume].view,
        slices: slices.collect(),
        incarnations: starts(),
    }
}

/// Median time of applying the change to a state that somebody else holds too.
fn median(state: &Rc<ClusterState>, change: &Change) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let (mut held, change) = (state.clone(), change.clone());
            let began = Instant::now();
            done(Rc::make_mut(&mut held), change);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn snapshot(state: &ClusterState) {
    let (mut bytes, mut longest) = (Vec::new(), Duration::ZERO);
    let mut writer = state.pieces();
    let began = Instant::now();
    loop {
        let piece_began = Instant::now();
        let Some(piece) = writer.next() else { break };
        longest = longest.max(piece_began.elapsed());
        bytes.extend_from_slice(&piece);
    }
    row("snapshot", &megabytes(bytes.len() as u64));
    row("its pieces are made in", &shown(began.elapsed()));
    row("the longest of them", &shown(longest));
    let (mut read, mut rest) = (ClusterState::default(), &bytes[..]);
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let piece_began = Instant::now();
        let (progress, following) = read.take_up(rest).expect("a section");
        longest = longest.max(piece_began.elapsed());
        rest = following;
        if progress == Progress::Complete {
            break;
        }
    }
    row("they are read in", &shown(began.elapsed()));
    row("the longest of them is read in", &shown(longest));
    assert!(read == *state, "what was written is what is read");
    let began = Instant::now();
    drop(read);
    row("a state is dropped in", &shown(began.elapsed()));
}

/// Of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1);
    4_096
        * pages
            .and_then(|pages| pages.parse::<u64>().ok())
            .unwrap_or(0)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn shown(time: Duration) -> String {
    let microseconds = time.as_secs_f64() * 1e6;
    match microseconds {
        ..1e3 => format!("{microseconds:.1} µs"),
        1e3..1e6 => format!("{:.1} ms", microseconds / 1e3),
        _ => format!("{:.1} s", microseconds / 1e6),
    }
}
