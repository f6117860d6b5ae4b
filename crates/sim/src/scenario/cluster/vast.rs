//! A volume of thousands of slices, each with a little in it: what costs something for each slice
//! that there is shows here, and so does what does not fit into one message any more.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use holdfast_runtime::NodeId;

use super::client::{Ended, Range, Workload};
use crate::oracle::content::BLOCK_BYTES;
use crate::random::Random;
use crate::report::Failure;

const MIB: u64 = 1 << 20;
/// Volumes with so many slices are vast.
const VAST_SLICES: u64 = 64;
/// First writes at the same time.
const AT_ONCE: u64 = 16;
const LIMIT: Duration = Duration::from_secs(10);
const FILLED_BOUND: Duration = Duration::from_secs(300);
/// The client number of who fills volumes.
const FILLER: u64 = 90;
/// Slices of a vast volume whose copies are compared block by block.
const COMPARED: u64 = 24;

/// The size of a vast volume.
pub(super) fn draw_bytes(random: &Random) -> u64 {
    random.between(1_000, 3_000) * MIB
}

/// Whether copies of this slice are compared at the end: of all, if there are few.
pub(super) fn is_compared(slices: u64, index: u32) -> bool {
    slices < VAST_SLICES || u64::from(index) % (slices / COMPARED) < 2
}

/// Writes the first block of every slice of each vast volume; a part of them in sequence, the
/// others all over.
pub(super) async fn fill(workload: &Rc<Workload>) -> Result<(), Failure> {
    for (index, volume) in workload.nodes.shape.volumes.iter().enumerate() {
        let slices = volume.size_bytes / volume.slice_bytes;
        if slices >= VAST_SLICES {
            fill_volume(workload, index, slices).await?;
        }
    }
    Ok(())
}

async fn fill_volume(workload: &Rc<Workload>, volume: usize, slices: u64) -> Result<(), Failure> {
    let simulation = &workload.nodes.simulation;
    let random = simulation.random("filler");
    let mut order: Vec<u64> = (0..slices).collect();
    let in_sequence = random.below(slices) as usize;
    random.shuffle(&mut order[in_sequence..]);
    let next = Cell::new(0);
    let deadline = simulation.runtime().now() + FILLED_BOUND;
    let filling = (0..AT_ONCE).map(|_| async {
        while let Some(slice) = order.get(next.replace(next.get() + 1)) {
            let range = first_block(workload, volume, *slice);
            if workload.nodes.shape.volumes[volume].in_sectors(range.first) {
                continue;
            }
            let node = NodeId(1 + slice % workload.nodes.shape.nodes.len() as u64);
            while workload.write(FILLER, node, range, LIMIT, false).await != Ended::Served {
                workload.verdict()?;
                if simulation.runtime().now() >= deadline {
                    let what = format!("slice {slice} of {slices} is not written yet");
                    return Err(Failure::oracle("set-up without faults", what));
                }
                simulation.runtime().sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    });
    join_all(filling).await.into_iter().collect()
}

fn first_block(workload: &Workload, volume: usize, slice: u64) -> Range {
    let block = BLOCK_BYTES as u64;
    Range {
        volume,
        first: slice * workload.nodes.shape.volumes[volume].slice_bytes / block,
        units: 1,
        unit_bytes: block,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_slices_of_a_vast_volume_are_compared_and_all_of_a_small_one() {
        for slices in [1, 5, 63, 64, 1_000, 3_000] {
            let compared = (0..slices as u32).filter(|index| is_compared(slices, *index));
            let compared = compared.count() as u64;
            assert!(compared >= slices.min(COMPARED), "{compared} of {slices}");
            assert!(
                compared <= slices.min(4 * COMPARED),
                "{compared} of {slices}"
            );
        }
    }
}
