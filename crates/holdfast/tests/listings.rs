//! What listings show of nodes and volumes: known over the links between nodes, page by page, and
//! in time whoever says nothing.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::time::{Duration, Instant};

use harness::{alone, cluster, holdfast, stderr, stdout, volume};
use holdfast_api::{
    Knowledge, ScrubAction, ScrubOrder, VolumeState, WhichNodes, WhichSlices, WhichVolumes,
};

/// A listing waits a second for a node that says nothing; the rest is for a busy machine.
const LISTING_MAX: Duration = Duration::from_millis(2_000);

#[test]
fn nodes_whose_api_serves_their_own_machine_are_known_to_all_and_obey_orders() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 3).await;
        for asked in 0..3 {
            let nodes = fleet
                .client(asked)
                .nodes(WhichNodes::default())
                .await
                .unwrap();
            assert!(
                nodes.iter().all(|node| node.told == Knowledge::Known),
                "{nodes:?}"
            );
            assert!(nodes.iter().all(|node| node.stalls.is_some()), "{nodes:?}");
            let shown = fleet.client(asked).volume("db").await.unwrap();
            assert_eq!(shown.told, Knowledge::Known);
            assert_eq!(shown.state, VolumeState::Open);
            let which = WhichSlices::default();
            let page = fleet.client(asked).slice_page("db", &which).await;
            let slices = page.unwrap().slices;
            assert_eq!(slices.len() as u64, created.volume.redundancy.slices);
        }
        let action = ScrubAction::Pause;
        let told = fleet.client(0).order_scrub(3, &ScrubOrder { action }).await;
        let integrity = told.unwrap().integrity.expect("node 3 has said so");
        assert!(integrity.scrub_paused);
        let before = fleet
            .client(0)
            .node(2)
            .await
            .unwrap()
            .stalls
            .expect("stalls");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let after = fleet.client(0).forget_stalls(2).await.unwrap().stalls;
        assert!(after.expect("stalls").measured_ms < before.measured_ms);
    });
}

#[test]
fn a_node_that_stands_still_is_shown_as_such_and_holds_no_listing_up() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        volume(&fleet, "db", 3).await;
        let leader = fleet.client(0).cluster().await.unwrap().leader;
        // The one that is asked must not need another leader first.
        let silent = if leader == Some(3) { 1 } else { 2 };
        fleet.pause(silent).unwrap();
        let begun = Instant::now();
        let nodes = fleet.client(0).nodes(WhichNodes::default()).await.unwrap();
        assert!(begun.elapsed() < LISTING_MAX, "{:?}", begun.elapsed());
        let shown = &nodes[silent];
        assert_eq!(shown.told, Knowledge::Unknown, "{shown:?}");
        assert!(shown.explanation.contains("no answer for 1 s"), "{shown:?}");
        fleet.resume(silent).unwrap();
    });
}

#[test]
fn the_command_line_follows_pages_and_chooses_volumes() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        for name in ["b", "a", "web-2", "web-1"] {
            volume(&fleet, name, 1).await;
        }
        let which = |cursor| WhichVolumes {
            limit: Some(3),
            cursor,
            ..WhichVolumes::default()
        };
        let first = fleet.client(0).volume_page(&which(None)).await.unwrap();
        let names = |page: &holdfast_api::VolumePage| {
            let names = page.volumes.iter().map(|volume| volume.name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&first), ["a", "b", "web-1"]);
        let second = fleet.client(0).volume_page(&which(first.next_cursor)).await;
        let second = second.unwrap();
        assert_eq!(
            (names(&second), second.next_cursor),
            (vec!["web-2".into()], None)
        );

        let listed = async |words: &[&str]| {
            let output = holdfast(&fleet, &[&["volume", "list"], words].concat()).await;
            assert!(output.status.success(), "{}", stderr(&output));
            (stdout(&output), stderr(&output))
        };
        let (csv, _) = listed(&["--prefix", "web-", "-o", "csv"]).await;
        let lines: Vec<&str> = csv
            .lines()
            .map(|line| line.split(',').next().unwrap())
            .collect();
        assert_eq!(lines, ["name", "web-1", "web-2"]);
        let (json, said) = listed(&["--limit", "1", "-o", "json"]).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json.as_array().map(Vec::len), Some(1));
        assert!(said.contains("there are more"), "{said}");
        let (none, _) = listed(&["--impaired", "-o", "json"]).await;
        assert_eq!(none.trim(), "[]");
    });
}
