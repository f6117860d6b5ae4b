//! What applying a change costs, in a small state and in a large one.
//!
//! Prints a table: each kind of change with its bytes in the log and the time that it takes in a
//! state of 10 volumes, and in one of 10,000 volumes with 100,000 placed slices; then bytes and
//! time of a snapshot. Fails if a change costs much more in the large state than in the small one,
//! or if one piece of a snapshot holds its thread up. Meant for a release build.
#![allow(
    clippy::disallowed_methods,
    reason = "a measurement of the machine, by its clock"
)]

use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_config::state::{
    Admission, Change, ClusterIdentity, ClusterState, FrontChange, NodeStart, NodeStatus, Outcome,
    PlacedSlice, Progress, Reconciled, VolumeSpec,
};
use holdfast_reservation::{Action, Nexus, Request};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

/// A change may cost so many times more in the large state: trees are some levels deeper, and
/// caches colder.
const FACTOR_MAX: f64 = 4.0;
/// What takes less may take any number of times more.
const NEGLIGIBLE: Duration = Duration::from_micros(20);
/// Longest that one piece of a snapshot may take.
const PIECE_MAX: Duration = Duration::from_millis(5);
/// Each change is applied to clones of the same state, as the node that publishes it does.
const ROUNDS: usize = 200;
const NODES: u64 = 5;

fn main() {
    let small = cluster(10, 10);
    let large = cluster(10_000, 10);
    println!("| change | bytes in the log | 10 volumes | 10,000 volumes | factor |");
    println!("|---|---|---|---|---|");
    let mut failed = Vec::new();
    let (small_changes, large_changes) = (changes(&small), changes(&large));
    for ((name, change), (_, large_change)) in small_changes.into_iter().zip(large_changes) {
        let bytes = postcard::to_stdvec(&change).expect("plain data").len();
        let before = median(&small, &change);
        let after = median(&large, &large_change);
        let factor = after.as_secs_f64() / before.as_secs_f64();
        println!(
            "| {name} | {bytes} | {} | {} | {factor:.1} |",
            shown(before),
            shown(after)
        );
        if factor > FACTOR_MAX && after > NEGLIGIBLE {
            failed.push(format!("{name} costs {factor:.1} times as much"));
        }
    }
    rare(&large);
    snapshot(&large, &mut failed);
    assert!(failed.is_empty(), "{}", failed.join("; "));
}

/// Nodes, and open volumes with so many slices each in sync on three of them.
fn cluster(volumes: u64, slices: u32) -> ClusterState {
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
    for node in 2..=NODES as u8 {
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
    for node in 1..=NODES {
        done(&mut state, start(node, 1));
    }
    for number in 1..=volumes {
        done(&mut state, create(&format!("volume-{number}")));
        let volume = VolumeId(number);
        let change = opened(&state, volume);
        done(&mut state, change);
        let change = place(&state, volume, 1..slices);
        done(&mut state, change);
    }
    state
}

fn done(state: &mut ClusterState, change: Change) {
    let outcome = state.apply(change);
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

fn start(node: u64, incarnation: u64) -> Change {
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

fn create(name: &str) -> Change {
    Change::CreateThinVolume {
        spec: VolumeSpec {
            name: name.into(),
            size_bytes: 1 << 40,
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

fn starts(state: &ClusterState) -> Vec<(NodeId, Incarnation)> {
    let up = state.nodes.iter();
    let up = up.filter(|(_, record)| record.status == NodeStatus::Up);
    up.map(|(node, record)| (*node, record.incarnation))
        .collect()
}

fn opened(state: &ClusterState, volume: VolumeId) -> Change {
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

fn place(state: &ClusterState, volume: VolumeId, slices: std::ops::Range<u32>) -> Change {
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

/// One of each kind that comes often.
fn changes(state: &ClusterState) -> Vec<(&'static str, Change)> {
    let last = VolumeId(state.volumes.len() as u64);
    let volume = VolumeId(last.0 / 2);
    let record = &state.volumes[&volume];
    let (view, owner) = (record.view, record.owner.expect("open").node);
    let another = |slice: u32| {
        let mut members = record.slices[slice].in_sync();
        members.find(|node| *node != owner).expect("three copies")
    };
    let remove = |slices: Vec<u32>| Change::RemoveCopies {
        volume,
        view,
        node: another(slices[0]),
        slices,
    };
    let nexus = Nexus {
        initiator: "iqn.2026-11.example:host".into(),
        isid: [1; 6],
        target_port: 2,
    };
    let action = Action::Register {
        new_key: 7,
        check_key: false,
        persist: true,
    };
    let promoted = another(3);
    let promote = |slices: Vec<u32>| Change::PromoteCopies {
        volume,
        view,
        node: promoted,
        incarnation: Incarnation(1),
        slices,
    };
    let held = |node: NodeId| {
        let slices = record.slices.iter();
        let slices = slices.filter(move |(_, slice)| slice.is_in_sync(node));
        slices.map(|(index, _)| index)
    };
    vec![
        ("create a volume", create("another")),
        ("delete a volume", Change::DeleteVolume { volume }),
        (
            "resize a volume",
            Change::ResizeVolume {
                volume,
                expected_bytes: None,
                size_bytes: 1 << 50,
            },
        ),
        ("place 1 slice", place(state, volume, 500..501)),
        ("place 16 slices", place(state, volume, 500..516)),
        ("remove 1 copy", remove(vec![3])),
        ("promote 1 copy", promote(vec![3])),
        (
            "promote all copies of a node",
            promote(held(promoted).collect()),
        ),
        ("resign, so a new owner", Change::Resign { volume, view }),
        (
            "move a volume",
            Change::MoveVolume {
                volume,
                view,
                to: another(0),
            },
        ),
        (
            "register an initiator",
            Change::ChangeReservations {
                volume,
                request: Request {
                    nexus,
                    key: 0,
                    action,
                },
            },
        ),
        (
            "change an access list",
            Change::ChangeFront {
                volume,
                change: FrontChange {
                    allow: vec!["iqn.2026-11.example:host".into()],
                    ..FrontChange::default()
                },
            },
        ),
        (
            "end of grace",
            Change::EndGrace {
                now_unix_ms: 1_000_000,
            },
        ),
        ("a node registers again", start(2, 1)),
    ]
}

/// Median time of applying the change to a state that somebody else holds too.
fn median(state: &ClusterState, change: &Change) -> Duration {
    let published = Rc::new(state.clone());
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

/// Changes whose work is in proportion to what they concern: all that one node has.
fn rare(state: &ClusterState) {
    println!();
    println!("| rare change in the large state | time |");
    println!("|---|---|");
    let node = NodeId(5);
    let incarnation = Incarnation(1);
    let mut state = state.clone();
    timed(
        "a node is down",
        &mut state,
        Change::NodeDown { node, incarnation },
    );
    let volumes: Vec<VolumeId> = state.volumes.keys().copied().collect();
    for volume in &volumes {
        if !state.volumes[volume].open {
            let change = opened_without(&state, *volume, node);
            done(&mut state, change);
        }
    }
    let mut half_back = state.clone();
    timed("it starts again", &mut half_back, start(5, 2));
    for volume in volumes {
        let record = &state.volumes[&volume];
        let slices = record
            .slices
            .iter()
            .filter(|(_, slice)| slice.is_in_sync(node));
        let change = Change::RemoveCopies {
            volume,
            view: record.view,
            node,
            slices: slices.map(|(index, _)| index).collect(),
        };
        done(&mut state, change);
    }
    timed(
        "it is evicted, 60,000 copies move",
        &mut state,
        Change::Evict { node },
    );
    state.check();
}

fn opened_without(state: &ClusterState, volume: VolumeId, node: NodeId) -> Change {
    let mut change = opened(state, volume);
    if let Change::Opened { reconciled, .. } = &mut change {
        for members in &mut reconciled.slices {
            members.retain(|member| *member != node);
        }
    }
    change
}

fn timed(name: &str, state: &mut ClusterState, change: Change) {
    let published = Rc::new(state.clone());
    let began = Instant::now();
    done(state, change);
    println!("| {name} | {} |", shown(began.elapsed()));
    drop(published);
}

fn snapshot(state: &ClusterState, failed: &mut Vec<String>) {
    let mut bytes = Vec::new();
    let (mut pieces, mut longest) = (0, Duration::ZERO);
    let mut writer = state.pieces();
    let began = Instant::now();
    loop {
        let piece_began = Instant::now();
        let Some(piece) = writer.next() else { break };
        bytes.extend_from_slice(&piece);
        longest = longest.max(piece_began.elapsed());
        pieces += 1;
    }
    let took = began.elapsed();
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
    let reading = began.elapsed();
    assert!(read == *state, "what was written is what is read");
    let slices: usize = state
        .volumes
        .values()
        .map(|record| record.slices.len())
        .sum();
    println!();
    println!(
        "| snapshot of {} volumes, {slices} slices | |",
        state.volumes.len()
    );
    println!("|---|---|");
    println!("| bytes | {} |", bytes.len());
    println!(
        "| written in | {} in {pieces} pieces, the longest {} |",
        shown(took),
        shown(longest)
    );
    println!(
        "| read in | {}, the longest piece {} |",
        shown(reading),
        shown(longest_read)
    );
    if longest.max(longest_read) > PIECE_MAX {
        failed.push("a piece of a snapshot takes too long".into());
    }
}

fn shown(time: Duration) -> String {
    let microseconds = time.as_secs_f64() * 1e6;
    if microseconds < 1_000.0 {
        format!("{microseconds:.1} µs")
    } else {
        format!("{:.1} ms", microseconds / 1e3)
    }
}
