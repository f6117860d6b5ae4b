//! An operator who moves copies between nodes while everything else goes on, as balancing does: to
//! nodes that have none, some of them wrongly named, some of them moved again before they are in
//! sync.
//!
//! Oracles: those of [`super::redundancy`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, ClusterState, CopyMove, Outcome};
use holdfast_runtime::NodeId;

use super::client::Workload;
use super::draining::{ask, object};
use crate::random::Random;

/// In so many of a million seeds.
const CHANCE_PER_MILLION: u32 = 400_000;
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(6));
const AT_ONCE_MAX: u64 = 8;

/// Moves copies until `stop`.
pub(super) async fn keep_relocating(workload: Rc<Workload>, stop: Rc<Cell<bool>>) {
    let nodes = workload.nodes.clone();
    let runtime = nodes.simulation.runtime();
    let random = nodes.simulation.random("relocater");
    if !random.chance(CHANCE_PER_MILLION) {
        return;
    }
    loop {
        runtime.sleep(random.duration(PAUSE.0, PAUSE.1)).await;
        if stop.get() {
            return;
        }
        let Some(id) = random.pick(&nodes.with_process()).copied() else {
            continue;
        };
        let Some((_, node)) = nodes.get(id) else {
            continue;
        };
        let state = node.state();
        drop(node);
        let count = 1 + random.below(AT_ONCE_MAX);
        let moves = (0..count).filter_map(|_| draw(&state, &random));
        let moves: Vec<CopyMove> = moves.collect();
        if moves.is_empty() {
            continue;
        }
        match ask(&workload, &random, Change::MoveCopies { moves }).await {
            Some(Outcome::Placed { slices }) => {
                let relocated = &workload.counts.relocated;
                relocated.set(relocated.get() + u64::from(slices));
            }
            None => {}
            Some(outcome) => return object(&workload, "moving copies to", id, &outcome),
        }
    }
}

/// A copy of some slice, and any other node: the change has to find out what fits.
fn draw(state: &ClusterState, random: &Random) -> Option<CopyMove> {
    let volumes: Vec<_> = state.volumes.keys().copied().collect();
    let volume = *random.pick(&volumes)?;
    let record = &state.volumes[&volume];
    let slices: Vec<u32> = record.slices.iter().map(|(slice, _)| slice).collect();
    let slice = *random.pick(&slices)?;
    let placed = &record.slices[slice];
    let held: Vec<NodeId> = placed.copies().map(|copy| copy.node).collect();
    let others: Vec<NodeId> = state.nodes.keys().copied().collect();
    Some(CopyMove {
        volume,
        slice,
        from: *random.pick(&held)?,
        to: *random.pick(&others)?,
    })
}
