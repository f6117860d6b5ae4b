//! An operator who makes volumes, uses them a little, and deletes them, whatever else goes on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_config::state::{Change, FrontChange, Outcome, VolumeSpec};
use holdfast_node::{Node, Operation};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::client::Workload;
use crate::oracle::content::BLOCK_BYTES;
use crate::random::Random;

const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// The client number of what the operator writes.
const OPERATOR: u64 = 80;
const SLICE_BYTES: u64 = 1 << 20;
/// All slices but one come with their first write.
const SIZE_BYTES: u64 = 8 * SLICE_BYTES;

/// Makes and deletes volumes until `stop`.
pub(super) async fn keep_deleting(workload: Rc<Workload>, stop: Rc<Cell<bool>>) {
    let simulation = workload.nodes.simulation.clone();
    let runtime = simulation.runtime();
    let random = simulation.random("deleter");
    let mut made = 0;
    while !stop.get() {
        runtime.sleep(random.duration(PAUSE.0, PAUSE.1)).await;
        made += 1;
        let spec = VolumeSpec {
            name: format!("passing-{made}"),
            size_bytes: SIZE_BYTES,
            logical_block_bytes: 4096,
            copies: workload.nodes.shape.copies,
            slice_bytes: SLICE_BYTES,
            chap: None,
            naa_random: 1_000 + made,
            now_unix_ms: 0,
        };
        let created = propose(
            &workload,
            &random,
            Change::CreateThinVolume {
                spec,
                front: FrontChange::default(),
            },
        )
        .await;
        let Some(Outcome::Created(volume)) = created else {
            continue;
        };
        for _ in 0..random.between(1, 12) {
            write(&workload, &random, volume).await;
        }
        // Whoever stays a volume's only trace would keep it for ever.
        while propose(&workload, &random, Change::DeleteVolume { volume })
            .await
            .is_none()
        {
            runtime.sleep(PAUSE.0).await;
        }
        let deleted = &workload.counts.deleted;
        deleted.set(deleted.get() + 1);
    }
}

fn any(workload: &Workload, random: &Random) -> Option<(NodeId, Rc<Node>)> {
    let id = random.pick(&workload.nodes.with_process()).copied()?;
    workload.nodes.get(id).map(|(_, node)| (id, node))
}

/// `None` if nobody knows what came of it.
async fn propose(workload: &Workload, random: &Random, change: Change) -> Option<Outcome> {
    let id = random.pick(&workload.nodes.with_process()).copied()?;
    workload.nodes.ask(id, "deleter", change, LIMIT).await
}

async fn write(workload: &Workload, random: &Random, volume: VolumeId) {
    let Some((id, _)) = any(workload, random) else {
        return;
    };
    let Some(session) = workload.sessions.of(OPERATOR, id) else {
        return;
    };
    let block = BLOCK_BYTES as u64;
    let range = (random.below(SIZE_BYTES / block) * block, block);
    let operation = Operation::Write(Bytes::from_static(&[7; BLOCK_BYTES]));
    let place = (id, &*session);
    // Nobody ever looks at it.
    let _ = workload
        .nodes
        .run(place, volume, range, operation, LIMIT)
        .await;
}
