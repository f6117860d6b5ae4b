//! Nodes that end while they join: whatever the first start got done, the next one goes on.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::{PATIENCE, alone, options};
use holdfast::fleet::{Fleet, FleetOptions};
use holdfast_api::{ClusterPhase, NewCluster, NodeState, WhichNodes};

/// Node 1 founds, the others are there to be started.
async fn founded(folder: &Path, nodes: usize) -> Fleet {
    let mut fleet = Fleet::prepare(FleetOptions {
        home_bytes: 64 << 20,
        ..options(folder, nodes)
    })
    .expect("ports and directories");
    fleet.start(0, None).unwrap();
    let waits = |status: &holdfast_api::ClusterStatus| status.phase == ClusterPhase::NoCluster;
    fleet.wait_for(0, "node", PATIENCE, waits).await.unwrap();
    let name = NewCluster {
        name: "joined".into(),
    };
    fleet.client(0).found(&name).await.unwrap();
    fleet
}

/// Waits for something that a starting node does.
async fn seen(what: &str, happened: impl Fn() -> bool) {
    let looking = async {
        while !happened() {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, looking).await;
    seen.unwrap_or_else(|_| panic!("no {what}"));
}

fn log_has(fleet: &Fleet, index: usize, words: &str) -> bool {
    let log = std::fs::read_to_string(fleet.log(index));
    log.is_ok_and(|log| log.contains(words))
}

async fn is_up(fleet: &mut Fleet, index: usize) {
    let id = index as u64 + 1;
    let up = async {
        loop {
            let node = fleet.client(0).node(id).await;
            if node.is_ok_and(|node| node.state == NodeState::Up) {
                return;
            }
            fleet.check_alive().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let up = tokio::time::timeout(PATIENCE, up).await;
    up.unwrap_or_else(|_| panic!("node {id} does not come up"));
}

/// Takes the node out, so that the next one joins the same cluster of one.
async fn is_gone(fleet: &mut Fleet, index: usize) {
    fleet.kill(&[index]).await.unwrap();
    let id = index as u64 + 1;
    let evicted = async {
        while fleet.client(0).evict(id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let evicted = tokio::time::timeout(PATIENCE, evicted).await;
    evicted.expect("a node that is down can be evicted");
}

#[test]
fn a_node_killed_at_any_step_of_its_first_start_starts_again() {
    alone(async |folder| {
        const FILES: [&str; 5] = ["identity.json", "journal", "home", "facts", "config"];
        const WORDS: [&str; 3] = ["process: member", "link up", "serving: started"];
        let steps = FILES.len() + WORDS.len();
        let mut fleet = founded(folder, 1 + steps).await;
        for index in 1..=steps {
            let token = fleet.token(0).await.unwrap();
            fleet.start(index, Some(&token)).unwrap();
            match FILES.get(index - 1) {
                Some(file) => {
                    let path = fleet.directory(index).join(file);
                    seen(file, || path.exists()).await;
                }
                None => {
                    let words = WORDS[index - 1 - FILES.len()];
                    seen(words, || log_has(&fleet, index, words)).await;
                }
            }
            fleet.kill(&[index]).await.unwrap();
            // The same token: it may be used up, and is good for this directory all the same.
            fleet.start(index, Some(&token)).unwrap();
            is_up(&mut fleet, index).await;
            is_gone(&mut fleet, index).await;
        }
        let nodes = async |evicted| {
            let nodes = fleet
                .client(0)
                .nodes(WhichNodes {
                    evicted,
                    ..WhichNodes::default()
                })
                .await;
            nodes.unwrap().len()
        };
        assert_eq!(nodes(true).await, 1 + steps, "no number was given in vain");
        assert_eq!(
            nodes(false).await,
            1,
            "nobody asks for those that were evicted"
        );
    });
}

#[test]
fn a_node_stopped_before_its_leader_has_reached_it_starts_again() {
    alone(async |folder| {
        let mut fleet = founded(folder, 3).await;
        for (index, kill) in [(1, false), (2, true)] {
            let token = fleet.token(0).await.unwrap();
            fleet.start(index, Some(&token)).unwrap();
            let member = "process: member";
            seen(member, || log_has(&fleet, index, member)).await;
            fleet.pause(0).unwrap();
            let started = "serving: started";
            seen(started, || log_has(&fleet, index, started)).await;
            if kill {
                fleet.kill(&[index]).await.unwrap();
            } else {
                let status = fleet.stop(index, PATIENCE).await.unwrap();
                assert!(status.success(), "{status}");
            }
            // Twice in vain, as a service manager does it.
            fleet.start(index, None).unwrap();
            let again = || {
                let log = std::fs::read_to_string(fleet.log(index)).unwrap_or_default();
                log.matches(started).count() == 2
            };
            seen("second start", again).await;
            fleet.kill(&[index]).await.unwrap();
            fleet.resume(0).unwrap();
            fleet.start(index, None).unwrap();
            is_up(&mut fleet, index).await;
            is_gone(&mut fleet, index).await;
        }
    });
}

#[test]
fn a_node_that_was_admitted_and_never_started_can_be_taken_out() {
    alone(async |folder| {
        let mut fleet = founded(folder, 2).await;
        let token = fleet.token(0).await.unwrap();
        fleet.start(1, Some(&token)).unwrap();
        let member = "process: member";
        seen(member, || log_has(&fleet, 1, member)).await;
        fleet.pause(0).unwrap();
        fleet.kill(&[1]).await.unwrap();
        fleet.resume(0).unwrap();
        let states = async |evicted| {
            let nodes = fleet
                .client(0)
                .nodes(WhichNodes {
                    evicted,
                    ..WhichNodes::default()
                })
                .await
                .unwrap();
            let states = nodes.into_iter().map(|node| (node.id, node.state));
            states.collect::<Vec<_>>()
        };
        let first = (1, NodeState::Up);
        // It may have got as far as registering itself.
        let listed = states(false).await;
        assert_eq!((listed.len(), listed[0]), (2, first));
        if listed[1].1 == NodeState::Admitted {
            fleet.client(0).evict(2).await.unwrap();
        } else {
            let evicted = async {
                while fleet.client(0).evict(2).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, evicted).await.unwrap();
        }
        assert_eq!(states(false).await, [first]);
        assert_eq!(states(true).await, [first, (2, NodeState::Evicted)]);
    });
}
