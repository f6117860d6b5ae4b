//! An operator who makes volumes larger while they are used, whatever else goes on.

use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, Outcome, Refusal};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

use super::client::Workload;
use super::shape::Growth;
use crate::report::Failure;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Grows one volume, however often the operator has to ask, and lets clients use the new range
/// as soon as any node knows of it.
pub(super) async fn grow(workload: Rc<Workload>, index: usize, growth: Growth) {
    let nodes = workload.nodes.clone();
    let runtime = nodes.simulation.runtime();
    let random = nodes.simulation.random(&format!("grower {index}"));
    let volume = workload.volumes[index];
    let size_bytes = growth.size_bytes;
    runtime.sleep(growth.after).await;
    loop {
        let Some(node) = random.pick(&nodes.with_process()).copied() else {
            runtime.sleep(RETRY_PAUSE).await;
            continue;
        };
        if size_at(&workload, node, volume) == Some(size_bytes) {
            workload.note_grown(index);
            return;
        }
        match ask(&workload, node, volume, size_bytes).await {
            // Too few nodes: the operator tries again.
            None | Some(Outcome::Done | Outcome::Refused(Refusal::TooFewNodes { .. })) => {}
            Some(outcome) => {
                let what = format!("growing volume {volume}: {outcome:?}");
                workload.object(Failure::oracle("growth", what));
                return;
            }
        }
        runtime
            .sleep(random.duration(Duration::ZERO, RETRY_PAUSE))
            .await;
    }
}

fn size_at(workload: &Workload, node: NodeId, volume: VolumeId) -> Option<u64> {
    let (_, node) = workload.nodes.get(node)?;
    let state = node.state();
    state.volumes.get(&volume).map(|record| record.size_bytes)
}

/// One request through one node; `None` if its outcome is open.
async fn ask(
    workload: &Workload,
    id: NodeId,
    volume: VolumeId,
    size_bytes: u64,
) -> Option<Outcome> {
    let simulation = &workload.nodes.simulation;
    let (_, node) = workload.nodes.get(id)?;
    let weak = Rc::downgrade(&node);
    drop(node);
    let call = simulation.call(id, "grower", async move {
        let change = Change::ResizeVolume {
            volume,
            expected_bytes: None,
            size_bytes,
        };
        weak.upgrade()?.propose(change, PROPOSAL_LIMIT).await.ok()
    });
    let answer = simulation.runtime().timeout(PROPOSAL_LIMIT * 2, call).await;
    answer?.ok().flatten()
}
