//! Volumes that are changed while initiators use them, through real processes.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use bytes::Bytes;
use harness::{Initiator, VOLUME_BYTES, alone, cluster, holdfast, stderr, stdout, volume};
use holdfast::fleet::Fleet;
use holdfast_api::CreatedVolume;
use holdfast_initiator::{BlockRange, Chap, Error, Secret, Session, SessionOptions};

const BLOCK: u32 = 512;

async fn log_in(
    fleet: &Fleet,
    created: &CreatedVolume,
    name: &str,
    node: usize,
) -> Result<Session, Error> {
    let mut options = SessionOptions::new(format!("iqn.2026-11.io.holdfast:{name}"));
    let chap = created.credentials.as_ref().expect("credentials");
    options.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
    Session::connect(fleet.portals()[node], &created.volume.target, &options).await
}

fn attention(result: Result<(), Error>) -> Option<(u8, u8)> {
    match result {
        Err(Error::CheckCondition { key: 6, asc, ascq }) => Some((asc, ascq)),
        _ => None,
    }
}

#[test]
fn a_volume_grows_under_load_and_every_session_is_told() {
    alone(async |folder| {
        let fleet = cluster(folder, 5).await;
        let created = volume(&fleet, "db", 3).await;
        let initiator = Initiator::open(&fleet, &created).await;
        let load = initiator.load(1);
        Initiator::progress(&load, 200).await;
        let mut sessions = Vec::new();
        for node in 0..5 {
            let session = log_in(&fleet, &created, "watcher", node).await;
            let session = session.expect("a login");
            session.clear_attentions(0).await.expect("a quiet unit");
            sessions.push(session);
        }
        let view = fleet.client(0).volume("db").await.expect("db").view;

        // From a part of one slice to more than two: slices of 1 GiB are added.
        let resized = holdfast(&fleet, &["volume", "resize", "db", "--size", "+2304MiB"]).await;
        assert!(resized.status.success(), "{}", stderr(&resized));
        assert!(
            stdout(&resized).contains("2.50 GiB"),
            "{}",
            stdout(&resized)
        );
        let size = VOLUME_BYTES + (2304 << 20);
        let last = BlockRange {
            first: size / u64::from(BLOCK) - 8,
            blocks: 8,
        };
        for (node, session) in sessions.iter().enumerate() {
            // The API has answered for node 1 alone: the others learn of it within moments.
            let told = tokio::time::timeout(harness::PATIENCE, async {
                loop {
                    match session.test_unit_ready(0).await {
                        Ok(()) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                        told => break attention(told),
                    }
                }
            });
            let told = told.await.expect("a unit attention");
            assert_eq!(
                told,
                Some((0x2a, 0x09)),
                "CAPACITY DATA HAS CHANGED at {node}"
            );
            let capacity = session.read_capacity(0).await.expect("a capacity");
            assert_eq!(capacity.blocks * u64::from(BLOCK), size);
            let read = session.read(0, last, BLOCK).await.expect("the new end");
            assert_eq!(
                read,
                Bytes::from(vec![node as u8; 4096]),
                "zeroes, then the last write"
            );
            let data = vec![node as u8 + 1; 4096].into();
            session.write(0, last, data).await.expect("a write");
            let beyond = BlockRange {
                first: last.first + 1,
                blocks: 8,
            };
            assert!(session.read(0, beyond, BLOCK).await.is_err());
        }
        Initiator::progress(&load, 200).await;
        let after = fleet.client(0).volume("db").await.expect("db");
        assert_eq!(after.view, view, "the owner has stayed in office");
        assert_eq!(after.growing_to_bytes, None);
        assert_eq!(after.redundancy.full, 3);
        let statistics = load.stop().await;
        assert_eq!(statistics.errors, 0, "{:?}", statistics.last_error);
        assert!(initiator.verify().await.is_clean());

        let shrunk = holdfast(&fleet, &["volume", "resize", "db", "--size", "1GiB"]).await;
        assert!(!shrunk.status.success());
        assert!(
            stderr(&shrunk).contains("cannot shrink"),
            "{}",
            stderr(&shrunk)
        );
        let unknown = holdfast(&fleet, &["volume", "resize", "no", "--size", "1GiB"]).await;
        assert!(
            stderr(&unknown).contains("no volume named"),
            "{}",
            stderr(&unknown)
        );
    });
}
