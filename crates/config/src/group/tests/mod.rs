//! The group on a deterministic executor: agreement, crashes, leadership, membership, storage.

mod agreement;
mod disks;
mod leadership;
mod links;
mod storage;
mod world;

use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;

use super::GroupOptions;
use world::World;

/// Long enough for any election here.
const LIMIT: Duration = Duration::from_secs(10);

/// Small halves: snapshots and changes of half happen often.
fn options() -> GroupOptions {
    GroupOptions {
        half_bytes: 128 << 10,
        ..GroupOptions::default()
    }
}

fn nodes(count: u64) -> Vec<NodeId> {
    (1..=count).map(NodeId).collect()
}

/// A group of `count` nodes, grown from node 1, which has applied the number 0.
async fn grown(world: &Rc<World>, count: u64) {
    grown_with(world, count, options()).await;
}

async fn grown_with(world: &Rc<World>, count: u64, options: GroupOptions) {
    let first = world.start(NodeId(1), options).await.expect("starts");
    let founding = {
        let first = first.clone();
        async move { first.initialize(0, LIMIT).await }
    };
    assert_eq!(
        world
            .run_on(NodeId(1), founding)
            .await
            .expect("alive")
            .expect("founds"),
        1
    );
    for node in nodes(count).into_iter().skip(1) {
        world.start(node, options).await.expect("starts");
    }
    let eligible = nodes(count);
    let growing = async move { first.reconcile_voters(&eligible, LIMIT).await };
    world
        .run_on(NodeId(1), growing)
        .await
        .expect("alive")
        .expect("grows");
}

/// Proposes a number at `node`; panics unless it has an outcome.
async fn propose(world: &Rc<World>, node: NodeId, number: u64) -> usize {
    let group = world.group(node);
    let proposing = async move { group.propose(number, LIMIT).await };
    world
        .run_on(node, proposing)
        .await
        .expect("alive")
        .expect("has an outcome")
}

/// The leader that every running node agrees on.
async fn agreed_leader(world: &Rc<World>) -> NodeId {
    for _ in 0..10_000 {
        let leaders: Vec<_> = world
            .running()
            .iter()
            .map(|node| world.group(*node).leader())
            .collect();
        if let Some(Some(leader)) = leaders.first()
            && leaders.iter().all(|other| *other == Some(*leader))
            && world.running().contains(leader)
        {
            return *leader;
        }
        world.sleep(Duration::from_millis(1)).await;
    }
    panic!("no leader in 10 s");
}

/// Waits until every running node shows what is committed now.
async fn settled(world: &Rc<World>) {
    for node in world.running() {
        let group = world.group(node);
        let reading = async move { group.read_barrier(LIMIT).await };
        world
            .run_on(node, reading)
            .await
            .expect("alive")
            .expect("settles");
    }
}
