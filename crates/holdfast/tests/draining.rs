//! A node is taken out of service while its volumes are used.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::time::Duration;

use bytes::Bytes;
use harness::{Initiator, PATIENCE, alone, cluster, holdfast, stderr, stdout, volume};
use holdfast::fleet::Fleet;
use holdfast_api::{DrainPlan, NodeState, NodeStatus, VolumeState};

/// Asks until the node is as wanted.
async fn wait_for(fleet: &Fleet, id: u64, wanted: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
    let waiting = async {
        loop {
            let node = fleet.client(0).node(id).await.expect("the node");
            if wanted(&node) {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting);
    waited.await.expect("the node comes to be as wanted")
}

fn is_drained(node: &NodeStatus) -> bool {
    node.drain.as_ref().is_some_and(|drain| drain.drained)
}

async fn expect_refusal(fleet: &Fleet, arguments: &[&str], code: i32, words: &str) {
    let output = holdfast(fleet, arguments).await;
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(text.contains(words), "{arguments:?}: {text}");
}

#[test]
fn a_node_is_drained_under_load_and_removed_and_no_initiator_sees_an_error() {
    alone(async |folder| {
        let mut fleet = cluster(folder, 4).await;
        let created = volume(&fleet, "db", 3).await;
        let owner = created.volume.owner.expect("an owner");
        let (id, index) = (owner.to_string(), fleet.index_of(owner).expect("a node"));
        let initiator = Initiator::open(&fleet, &created).await;
        let load = initiator.load(1);
        Initiator::progress(&load, 400).await;

        let planned = holdfast(&fleet, &["node", "drain", &id, "--dry-run", "-o", "json"]).await;
        let planned: DrainPlan = serde_json::from_slice(&planned.stdout).expect("JSON");
        assert_eq!((planned.copies, planned.owned), (1, 1));
        assert!(planned.bytes.is_some_and(|bytes| bytes > 0), "{planned:?}");
        assert_eq!((planned.targets.len(), planned.refused), (3, None));
        assert_eq!(fleet.client(1).node(owner).await.expect("it").drain, None);

        let drained = holdfast(&fleet, &["node", "drain", &id, "--yes", "--wait"]).await;
        assert!(drained.status.success(), "{}", stderr(&drained));
        assert!(
            stdout(&drained).contains("nothing is left on it"),
            "{}",
            stdout(&drained)
        );
        let shown = fleet.client(1).volume("db").await.expect("db");
        assert_eq!(shown.state, VolumeState::Open);
        assert!(shown.redundancy.is_full(), "{shown:?}");
        assert!(shown.holders.iter().all(|holder| holder.node != owner));
        assert_ne!(shown.owner, Some(owner));
        let node = fleet.client(1).node(owner).await.expect("it runs on");
        assert!(
            node.explanation.contains("node remove"),
            "{}",
            node.explanation
        );
        assert!(node.drain.expect("drained").bytes_moved > 0);

        let asking = if index == 0 { 1 } else { 0 };
        let removed = fleet
            .client(asking)
            .remove_node(owner)
            .await
            .expect("nothing is left");
        assert_eq!(removed.state, NodeState::Evicted);
        let ended = tokio::time::timeout(PATIENCE, fleet.reap(index)).await;
        let ended = ended.expect("a removed node ends").expect("it ran");
        assert!(!ended.success());
        let log = std::fs::read_to_string(fleet.log(index)).expect("a log");
        assert!(log.contains("was evicted"), "{log}");

        Initiator::progress(&load, 100).await;
        let statistics = load.stop().await;
        assert_eq!(statistics.errors, 0, "{:?}", statistics.last_error);
        let report = initiator.verify().await;
        assert!(report.is_clean(), "{report:?}");
    });
}

#[test]
fn a_drain_that_waits_says_for_what_and_can_be_cancelled() {
    alone(async |folder| {
        let mut fleet = cluster(folder, 4).await;
        let mut created = volume(&fleet, "db", 3).await;
        // Node 1 is asked all the time, so it is another one that must have no copy.
        while created.volume.holders.iter().all(|holder| holder.node != 1) {
            fleet.client(0).delete_volume("db").await.expect("db");
            created = volume(&fleet, "db", 3).await;
        }
        let holds = |node: u64| created.volume.holders.iter().any(|one| one.node == node);
        let free = (2..=4).find(|node| !holds(*node)).expect("three copies");
        let drained = (2..=4).find(|node| holds(*node)).expect("three copies");
        let id = drained.to_string();
        fleet.kill(&[free as usize - 1]).await.expect("it ran");
        wait_for(&fleet, free, |node| node.state == NodeState::Down).await;
        let begun = holdfast(&fleet, &["node", "drain", &id, "--yes", "-o", "json"]).await;
        assert!(begun.status.success(), "{}", stderr(&begun));
        let node: NodeStatus = serde_json::from_slice(&begun.stdout).expect("JSON");
        let drain = node.drain.expect("it is drained");
        assert_eq!(drain.copies_left, 1);
        let waits = drain.waits_for.join("\n");
        assert!(waits.contains(&format!("node {free} is down")), "{waits}");
        expect_refusal(
            &fleet,
            &["node", "remove", &id, "--yes"],
            1,
            "is not drained",
        )
        .await;
        expect_refusal(
            &fleet,
            &["node", "drain", &id, "--wait=1s"],
            5,
            "the drain goes on",
        )
        .await;
        let status = holdfast(&fleet, &["cluster", "status"]).await;
        assert!(
            stdout(&status).contains("being drained"),
            "{}",
            stdout(&status)
        );

        let cancelled = holdfast(&fleet, &["node", "drain", &id, "--cancel"]).await;
        assert!(cancelled.status.success(), "{}", stderr(&cancelled));
        let again = holdfast(&fleet, &["node", "drain", &id, "--cancel"]).await;
        assert!(again.status.success(), "{}", stderr(&again));
        fleet.start(free as usize - 1, None).expect("it starts");
        fleet.wait_until_healthy(PATIENCE).await.expect("as before");
        let shown = fleet.client(0).volume("db").await.expect("db");
        assert!(shown.holders.iter().any(|holder| holder.node == drained));

        // With the node back a drain ends, and the drained node may restart meanwhile.
        fleet
            .client(0)
            .drain(drained)
            .await
            .expect("possible again");
        fleet.kill(&[drained as usize - 1]).await.expect("it ran");
        fleet.start(drained as usize - 1, None).expect("it starts");
        wait_for(&fleet, drained, is_drained).await;
    });
}

#[test]
fn copies_move_back_to_a_node_that_holds_nothing() {
    alone(async |folder| {
        let fleet = cluster(folder, 4).await;
        let mut initiators = Vec::new();
        for number in 0..6 {
            let created = volume(&fleet, &format!("db{number}"), 2).await;
            let initiator = Initiator::open(&fleet, &created).await;
            for part in 0..32 {
                let data = Bytes::from(vec![1 + number; 1 << 20]);
                let written = initiator.disk.write(part << 20, data).await;
                written.expect("a write");
            }
            initiators.push(initiator);
        }
        fleet.client(0).drain(4).await.expect("three are left");
        wait_for(&fleet, 4, is_drained).await;
        fleet.client(0).cancel_drain(4).await.expect("it stays");
        let plan = fleet.client(0).copy_balance().await.expect("a plan");
        assert!(plan.bytes > 64 << 20, "{plan:?}");
        assert!(plan.moves.iter().all(|planned| planned.to == 4), "{plan:?}");
        assert_eq!(fleet.client(0).node(4).await.expect("it").copies, 0);

        let begun = holdfast(&fleet, &["cluster", "rebalance", "--copies", "--yes"]).await;
        assert!(begun.status.success(), "{}", stderr(&begun));
        let moves = plan.moves.len() as u64;
        assert!(
            stderr(&begun).contains(&format!("{moves} of {moves}")),
            "{}",
            stderr(&begun)
        );
        let moved = wait_for(&fleet, 4, |node| {
            node.copies == moves && node.copies_bytes.is_some_and(|bytes| bytes >= plan.bytes)
        });
        moved.await;
        let settled = async {
            while fleet
                .client(0)
                .copy_balance()
                .await
                .expect("a plan")
                .under_way
                > 0
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let settled = tokio::time::timeout(PATIENCE, settled).await;
        settled.expect("the copies come to be in sync");
        for (number, initiator) in initiators.iter().enumerate() {
            let shown = fleet.client(0).volume(&format!("db{number}")).await;
            let shown = shown.expect("a volume");
            assert!(shown.redundancy.is_full(), "{shown:?}");
            let copies: u64 = shown.holders.iter().map(|holder| holder.slices).sum();
            assert_eq!(copies, 2, "{shown:?}");
            let read = initiator
                .disk
                .read(31 << 20, 1 << 20)
                .await
                .expect("a read");
            assert!(read.iter().all(|byte| *byte == 1 + number as u8));
        }
        let again = fleet.client(0).copy_balance().await.expect("a plan");
        assert!(again.moves.len() < plan.moves.len(), "{again:?}");
    });
}

#[test]
fn nodes_that_cannot_be_drained_or_removed_are_told_apart_by_exit_code() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        volume(&fleet, "db", 3).await;
        for (arguments, code, words) in [
            (
                &["node", "drain", "9", "--yes"][..],
                4,
                "there is no node 9",
            ),
            (&["node", "drain", "0", "--yes"], 4, "there is no node 0"),
            (&["node", "drain", "-1", "--yes"], 2, "unexpected argument"),
            (&["node", "drain", "x", "--yes"], 2, "invalid digit"),
            (&["node", "drain", "9", "--cancel"], 4, "there is no node 9"),
            (
                &["node", "drain", "3", "--yes"],
                1,
                "2 nodes for the 3 copies of volume db",
            ),
            (&["node", "drain", "3", "--dry-run"], 1, "Add a node first"),
            (
                &["node", "drain", "3", "--dry-run", "--yes"],
                2,
                "cannot be used with",
            ),
            (&["node", "remove", "9", "--yes"], 4, "there is no node 9"),
            (
                &["node", "remove", "3", "--yes"],
                1,
                "holdfast node drain 3 --wait",
            ),
            (&["node", "remove", "3"], 2, "--yes"),
        ] {
            expect_refusal(&fleet, arguments, code, words).await;
        }
        fleet.client(0).delete_volume("db").await.expect("db");
        expect_refusal(&fleet, &["node", "drain", "3"], 2, "--yes").await;
        for id in ["2", "3"] {
            let drained = holdfast(&fleet, &["node", "drain", id, "--yes", "--wait"]).await;
            assert!(drained.status.success(), "{}", stderr(&drained));
        }
        expect_refusal(&fleet, &["node", "drain", "1", "--yes"], 1, "the last one").await;
    });
}
