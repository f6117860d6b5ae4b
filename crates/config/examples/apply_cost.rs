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

mod common;

use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_config::state::{Change, ClusterState, FrontChange, MENDED_AT_ONCE_MAX};
use holdfast_reservation::{Action, Nexus, Request};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::VolumeId;

use common::{
    Size, cluster, create, done, median, opened, place, shown, slices_of, snapshot, start,
};

/// A change may cost so many times more in the large state: trees are some levels deeper, and
/// caches colder.
const FACTOR_MAX: f64 = 4.0;
/// What takes less may take any number of times more.
const NEGLIGIBLE: Duration = Duration::from_micros(20);
/// Longest that one piece of a snapshot may take.
const PIECE_MAX: Duration = Duration::from_millis(5);
const VOLUME_BYTES: u64 = 1 << 40;

fn main() {
    let size = |volumes| Size {
        nodes: 5,
        volumes,
        volume_bytes: VOLUME_BYTES,
        slices: 10,
    };
    let small = Rc::new(cluster(&size(10)));
    let large = Rc::new(cluster(&size(10_000)));
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
    print_snapshot(&large, &mut failed);
    assert!(failed.is_empty(), "{}", failed.join("; "));
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
        ("create a volume", create("another", VOLUME_BYTES)),
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
        "it is evicted, with 60,000 copies",
        &mut state,
        Change::Evict { node },
    );
    let slices = state.all_to_mend(MENDED_AT_ONCE_MAX);
    timed("512 of these move", &mut state, Change::Mend { slices });
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

fn print_snapshot(state: &ClusterState, failed: &mut Vec<String>) {
    let cost = snapshot(state);
    println!();
    println!(
        "| snapshot of {} volumes, {} slices | |",
        state.volumes.len(),
        slices_of(state)
    );
    println!("|---|---|");
    println!("| bytes | {} |", cost.bytes);
    println!(
        "| written in | {} in {} pieces, the longest {} |",
        shown(cost.made_in),
        cost.pieces,
        shown(cost.longest_made)
    );
    println!(
        "| read in | {}, the longest piece {} |",
        shown(cost.read_in),
        shown(cost.longest_read)
    );
    if cost.longest_made.max(cost.longest_read) > PIECE_MAX {
        failed.push("a piece of a snapshot takes too long".into());
    }
}
