//! What the config state of a large cluster costs: 64 nodes with 10 PiB of data in slices of 1 GiB.
//!
//! Prints a table: memory, bytes and time of a snapshot and its longest piece, time of changes.
//! `large_state SLICES` takes another number of slices. Meant for a release build.
#![allow(
    clippy::disallowed_methods,
    reason = "a measurement of the machine, by its clock"
)]

mod common;

use std::rc::Rc;
use std::time::Instant;

use holdfast_config::state::{Change, ClusterState};
use holdfast_wire::VolumeId;

use common::{Size, cluster, median, place, shown, slices_of, snapshot};

const NODES: u64 = 64;
/// Used slices of each volume.
const VOLUME_SLICES: u32 = 1_024;

fn main() {
    let wanted = std::env::args().nth(1).map(|slices| slices.parse::<u64>());
    let slices = wanted.unwrap_or(Ok(10 << 20)).expect("a number of slices");
    let volumes = slices.div_ceil(u64::from(VOLUME_SLICES));
    let before = resident_bytes();
    let began = Instant::now();
    let state = Rc::new(cluster(&Size {
        nodes: NODES,
        volumes,
        volume_bytes: 16 << 40,
        slices: VOLUME_SLICES,
    }));
    let placed = slices_of(&state) as u64;
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
    print_snapshot(&state);
}

fn row(name: &str, value: &str) {
    println!("| {name} | {value} |");
}

fn print_snapshot(state: &ClusterState) {
    let cost = snapshot(state);
    row("snapshot", &megabytes(cost.bytes as u64));
    row("its pieces are made in", &shown(cost.made_in));
    row("the longest of them", &shown(cost.longest_made));
    row("they are read in", &shown(cost.read_in));
    row("the longest of them is read in", &shown(cost.longest_read));
    row("a state is dropped in", &shown(cost.dropped_in));
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
