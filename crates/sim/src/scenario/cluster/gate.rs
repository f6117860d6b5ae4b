//! What one operation costs: a calm cluster that does so many operations of one kind and ends.
//!
//! Three nodes with three copies, one client at the owner's portal, no faults, the bounds of the
//! service. Whatever a node does for an operation is in it: portal, owner, two remote copies, their
//! journals, and the links with their messages, all on disks and a network in memory; and so is
//! what the simulator does for it, checksums of all that is written and sent for its trace among
//! that. TLS and the front with its PDUs are not. The difference between two runs of different
//! length is what the operations cost, without what surrounds them; as one seed decides everything,
//! it is the same in every run.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_node::Operation;
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::node::Nodes;
use super::sessions::{Session, Sessions};
use super::shape::Shape;
use crate::report::{Failure, SeedResult};
use crate::runner::{Checked, run_seed};
use crate::simulation::{Options, Simulation};

const BLOCK_BYTES: u64 = 4096;
/// Blocks that are written and read, all over; each is written before the counting begins.
const BLOCKS: u64 = 4096;
const AT_ONCE: u64 = 64;
const LIMIT: Duration = Duration::from_secs(10);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks of 4 KiB are written.
    Write,
    /// They are read.
    Read,
}

/// What to do, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// What is done.
    pub kind: Kind,
    /// How many are under way at once.
    pub depth: u64,
    /// How many in all; a multiple of the depth.
    pub operations: u64,
}

/// Does the work in a cluster of its own.
pub fn run(work: Work) -> SeedResult {
    run_seed(Options::new(1), move |simulation| play(simulation, work))
}

async fn play(simulation: Simulation, work: Work) -> Result<Checked, Failure> {
    let shape = Shape::calm(&simulation.random("shape"));
    let nodes = Nodes::new(simulation, shape);
    let volume = nodes.found().await?[0];
    let sessions = Sessions::new(nodes.clone());
    let known = nodes.clone();
    nodes
        .until("the volume has an owner", move || {
            !known.owners().is_empty()
        })
        .await?;
    let owner = nodes.owners().first().copied();
    let owner = owner.ok_or_else(|| failed("nobody owns the volume"))?;
    let session = sessions.of(1, owner);
    let session = session.ok_or_else(|| failed("the owner does not run"))?;
    let place = (owner, &*session);
    for first in (0..BLOCKS).step_by(AT_ONCE as usize) {
        let blocks = first..first + AT_ONCE;
        let writes = blocks.map(|block| once(&nodes, place, volume, Kind::Write, block));
        all_good(join_all(writes).await)?;
    }
    for turn in 0..work.operations / work.depth {
        let numbers = turn * work.depth..(turn + 1) * work.depth;
        let operations = numbers.map(|number| {
            // Coprime to their number: one after another meets all, far apart.
            let block = number * 1_597 % BLOCKS;
            once(&nodes, place, volume, work.kind, block)
        });
        all_good(join_all(operations).await)?;
    }
    Ok(Checked {
        operations: work.operations,
        figures: Vec::new(),
    })
}

async fn once(
    nodes: &Nodes,
    place: (NodeId, &Session),
    volume: VolumeId,
    kind: Kind,
    block: u64,
) -> bool {
    let operation = match kind {
        Kind::Write => Operation::Write(Bytes::from(vec![block as u8; BLOCK_BYTES as usize])),
        Kind::Read => Operation::Read,
    };
    let range = (block * BLOCK_BYTES, BLOCK_BYTES);
    let answer = nodes.run(place, volume, range, operation, LIMIT).await;
    matches!(answer, Ok(Ok(_)))
}

fn all_good(outcomes: Vec<bool>) -> Result<(), Failure> {
    match outcomes.into_iter().all(|good| good) {
        true => Ok(()),
        false => Err(failed("an operation failed")),
    }
}

fn failed(what: &str) -> Failure {
    Failure::oracle("service", what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_work_takes_the_same_steps_and_more_work_takes_more() {
        let work = |operations| Work {
            kind: Kind::Write,
            depth: 4,
            operations,
        };
        let polls = |operations| {
            let result = run(work(operations));
            assert!(result.failure.is_none(), "{:?}", result.failure);
            result.polls
        };
        let (few, many) = (polls(64), polls(128));
        assert_eq!(few, polls(64));
        assert!(many > few, "{few}, {many}");
    }
}
