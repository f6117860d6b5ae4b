//! Many small volumes that nobody uses: who owns them after everything came to rest.
//!
//! Owners are spread when volumes are made and when nodes fail; a node that comes back owns nothing
//! until volumes are moved to it.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_config::state::{Change, ClusterState, FrontChange, NodeStatus, VolumeSpec};
use holdfast_runtime::NodeId;

use super::audit::Audit;
use super::node::Nodes;
use super::shape::Mood;
use crate::report::Failure;

const MIB: u64 = 1 << 20;
/// From full redundancy on. Volumes whose owner has changed stay for a minute, and one moves at a
/// time.
const SPREAD_BOUND: Duration = Duration::from_secs(240);
/// A node that owns this many more volumes than another one which could own one of them just as
/// well bears more than it has to.
const DIFFERENCE_MAX: usize = 4;

/// The volumes to make beside those that clients use, and whether load may move any.
pub(super) fn changes(nodes: &Nodes) -> Vec<Change> {
    let shape = &nodes.shape;
    let copies = shape.copies.min(shape.nodes.len() as u32);
    let volume = |number: u64| Change::CreateThinVolume {
        spec: VolumeSpec {
            name: format!("bystander-{number}"),
            size_bytes: MIB,
            logical_block_bytes: 512,
            copies,
            slice_bytes: MIB,
            chap: None,
            naa_random: number,
            now_unix_ms: 0,
        },
        front: FrontChange::default(),
    };
    // Nothing moves while only frames get lost: the oracle for that is told of each change.
    let switch = (shape.mood == Mood::Calm).then_some(Change::SetRebalancing { automatic: false });
    (0..shape.bystanders).map(volume).chain(switch).collect()
}

/// Waits until no node owns many more volumes than it has to.
pub(super) async fn expect(audit: &Audit, nodes: &Nodes) -> Result<(), Failure> {
    let shape = &nodes.shape;
    let hurried = shape.balance.settled_for < Duration::from_secs(10);
    if shape.bystanders == 0 || shape.mood == Mood::Calm || !hurried {
        return Ok(());
    }
    let runtime = nodes.simulation.runtime();
    let deadline = runtime.now() + SPREAD_BOUND;
    loop {
        let uneven = audit.newest_state().map(|state| uneven(&state));
        let Some(Some(what)) = uneven else {
            return Ok(());
        };
        if runtime.now() >= deadline {
            return Err(Failure::oracle("spread of owners", what));
        }
        runtime.sleep(Duration::from_millis(500)).await;
    }
}

/// A volume whose owner owns too many, in words.
fn uneven(state: &ClusterState) -> Option<String> {
    let mut owned: BTreeMap<NodeId, usize> = BTreeMap::new();
    let up = state.nodes.iter();
    let takes = |node: &NodeId| !state.draining.contains_key(node);
    let up = up.filter(|(node, record)| record.status == NodeStatus::Up && takes(node));
    owned.extend(up.map(|(node, _)| (*node, 0)));
    for owner in state.volumes.values().filter_map(|volume| volume.owner) {
        *owned.entry(owner.node).or_default() += 1;
    }
    state.volumes.iter().find_map(|(id, volume)| {
        let owner = volume.owner?.node;
        if state.placed.contains_key(id) {
            return None;
        }
        let holds = |node: &NodeId| volume.slices.values().all(|slice| slice.is_in_sync(*node));
        let mut others = owned.iter().filter(|(node, _)| holds(node));
        let (better, fewer) =
            others.find(|(_, fewer)| **fewer + DIFFERENCE_MAX <= owned[&owner])?;
        let most = owned[&owner];
        Some(format!(
            "node {owner} owns {most} volumes, {id} among them, and node {better} {fewer}"
        ))
    })
}
