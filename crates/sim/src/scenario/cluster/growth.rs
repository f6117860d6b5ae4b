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
        let resize = Change::ResizeVolume {
            volume,
            expected_bytes: None,
            size_bytes,
        };
        match nodes.ask(node, "grower", resize, PROPOSAL_LIMIT).await {
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
