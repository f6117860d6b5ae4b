//! A machine that burns down, and an operator who evicts its node, whatever else goes on.

use std::rc::Rc;
use std::time::Duration;

use holdfast_config::state::{Change, Outcome, Refusal};

use super::client::Workload;
use super::shape::Doom;
use crate::report::Failure;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Lets the node's machine fail for good and has it evicted. If it turns out to have the last
/// copy of something, the operator brings the machine back instead.
pub(super) async fn evict(workload: Rc<Workload>, doom: Doom) {
    let nodes = workload.nodes.clone();
    let simulation = &nodes.simulation;
    let runtime = simulation.runtime();
    let random = simulation.random("eviction");
    runtime.sleep(doom.after).await;
    nodes.doom(doom.node);
    simulation.cut_power(&[doom.node]);
    loop {
        let Some(node) = random.pick(&nodes.with_process()).copied() else {
            runtime.sleep(RETRY_PAUSE).await;
            continue;
        };
        let evict = Change::Evict { node: doom.node };
        match nodes.ask(node, "operator", evict, PROPOSAL_LIMIT).await {
            Some(Outcome::Done) => {
                workload.note_evicted();
                return;
            }
            // Nobody has noticed yet that it is gone, or the answer was lost.
            None | Some(Outcome::Refused(Refusal::NodeRuns(_))) => {}
            Some(Outcome::Refused(Refusal::HoldsLastCopy { .. })) => {
                nodes.spare(doom.node);
                simulation.restore_power(doom.node);
                nodes.start(doom.node);
                return;
            }
            Some(outcome) => {
                let what = format!("evicting node {}: {outcome:?}", doom.node);
                workload.object(Failure::oracle("eviction", what));
                return;
            }
        }
        runtime
            .sleep(random.duration(Duration::ZERO, RETRY_PAUSE))
            .await;
    }
}
