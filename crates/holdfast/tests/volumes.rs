//! Volumes that are changed while initiators use them, through real processes.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use bytes::Bytes;
use harness::{
    Initiator, PATIENCE, VOLUME_BYTES, alone, cluster, holdfast, stderr, stdout, volume,
};
use holdfast::fleet::Fleet;
use holdfast_api::{ChapCredentials, CreatedVolume, RotatedSecret};
use holdfast_initiator::{
    BlockRange, Chap, Error, Health, Secret, Session, SessionOptions, discover,
};

const BLOCK: u32 = 512;

fn options(chap: &ChapCredentials, name: &str) -> SessionOptions {
    let mut options = SessionOptions::new(initiator_name(name));
    options.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
    options
}

fn initiator_name(name: &str) -> String {
    format!("iqn.2026-11.io.holdfast:{name}")
}

fn chap(created: &CreatedVolume) -> &ChapCredentials {
    created.credentials.as_ref().expect("credentials")
}

async fn log_in(
    fleet: &Fleet,
    created: &CreatedVolume,
    name: &str,
    node: usize,
) -> Result<Session, Error> {
    log_in_with(fleet, created, chap(created), name, node).await
}

async fn log_in_with(
    fleet: &Fleet,
    created: &CreatedVolume,
    chap: &ChapCredentials,
    name: &str,
    node: usize,
) -> Result<Session, Error> {
    let (portal, options) = (fleet.portals()[node], options(chap, name));
    Session::connect(portal, &created.volume.target, &options).await
}

/// Runs a command that has to succeed.
async fn succeed(fleet: &Fleet, arguments: &[&str]) -> String {
    let output = holdfast(fleet, arguments).await;
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

/// Waits until the target has closed the session's connection.
async fn ends(session: &Session) {
    let mut health = session.health();
    let lost = health.wait_for(|health| matches!(health, Health::Lost(_)));
    let lost = tokio::time::timeout(PATIENCE, lost).await;
    assert!(lost.is_ok(), "the session goes on");
}

async fn is_alive(session: &Session) -> bool {
    session.clear_attentions(0).await.is_ok() && session.test_unit_ready(0).await.is_ok()
}

/// Status class and detail of a refused login.
fn refusal(outcome: Result<Session, Error>) -> Option<(u8, u8)> {
    match outcome {
        Err(Error::LoginRefused { class, detail, .. }) => Some((class, detail)),
        Err(Error::AuthenticationFailed) => Some((2, 1)),
        _ => None,
    }
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
            let told = tokio::time::timeout(PATIENCE, async {
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
        assert_eq!(after.redundancy.full, 2);
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

#[test]
fn an_access_list_hides_the_volume_from_others_and_ends_their_sessions() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 3).await;
        let mut sessions = Vec::new();
        for (name, node) in [("a", 0), ("b", 1), ("b", 2)] {
            let session = log_in(&fleet, &created, name, node).await;
            sessions.push(session.expect("everyone with the secret"));
        }
        let (a, b) = (initiator_name("a"), initiator_name("b"));
        let shown = succeed(&fleet, &["volume", "access", "db", "--allow", &a]).await;
        assert!(shown.contains(&a), "{shown}");
        for session in &sessions[1..] {
            ends(session).await;
        }
        assert!(is_alive(&sessions[0]).await);
        for node in 0..3 {
            let refused = refusal(log_in(&fleet, &created, "b", node).await);
            assert_eq!(refused, Some((2, 3)), "target not found, at node {node}");
            let portal = fleet.portals()[node];
            let seen = discover(portal, &options(chap(&created), "b")).await;
            assert_eq!(seen.expect("a discovery"), []);
            let seen = discover(portal, &options(chap(&created), "A")).await;
            assert_eq!(
                seen.expect("a discovery").len(),
                1,
                "names differ not by case"
            );
        }
        succeed(
            &fleet,
            &["volume", "access", "db", "--allow", &b, "--deny", &a],
        )
        .await;
        ends(&sessions[0]).await;
        let shown = succeed(&fleet, &["volume", "show", "db"]).await;
        assert!(shown.contains(&b) && !shown.contains(&a), "{shown}");
        succeed(&fleet, &["volume", "access", "db", "--deny", &b]).await;
        assert_eq!(
            refusal(log_in(&fleet, &created, "b", 0).await),
            Some((2, 3))
        );
        succeed(&fleet, &["volume", "access", "db", "--anyone"]).await;
        assert!(log_in(&fleet, &created, "a", 0).await.is_ok());
        let odd = holdfast(&fleet, &["volume", "access", "db", "--allow", "my host"]).await;
        assert!(
            stderr(&odd).contains("no name of an initiator"),
            "{}",
            stderr(&odd)
        );
    });
}

async fn rotate(fleet: &Fleet, how: &[&str]) -> ChapCredentials {
    let command = ["volume", "rotate-secret", "db", "-o", "json"];
    let rotated = succeed(fleet, &[&command, how].concat()).await;
    let rotated: RotatedSecret = serde_json::from_str(&rotated).expect("JSON");
    rotated.credentials
}

#[test]
fn a_secret_is_replaced_beside_sessions_and_revoked_with_those_that_used_it() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 3).await;
        let first = chap(&created).clone();
        let log_in = async |chap: &ChapCredentials, node| {
            log_in_with(&fleet, &created, chap, "a", node).await
        };
        let session = log_in(&first, 0).await.expect("a login");
        let second = rotate(&fleet, &["--grace", "1h"]).await;
        assert_ne!(first.secret, second.secret);
        let shown = succeed(&fleet, &["volume", "show", "db"]).await;
        assert!(shown.contains("good for logins"), "{shown}");
        assert!(!shown.contains(&second.secret), "shown once");
        let beside = log_in(&second, 1).await.expect("the new secret");
        assert!(log_in(&first, 2).await.is_ok(), "within the grace");
        assert!(is_alive(&session).await, "sessions go on");

        let third = rotate(&fleet, &["--grace", "0"]).await;
        assert_eq!(refusal(log_in(&second, 0).await), Some((2, 1)));
        assert!(log_in(&first, 2).await.is_ok(), "its own grace goes on");
        let newest = log_in(&third, 2).await.expect("the third secret");
        assert!(is_alive(&session).await && is_alive(&beside).await);

        succeed(&fleet, &["volume", "revoke-secrets", "db"]).await;
        ends(&session).await;
        ends(&beside).await;
        assert_eq!(refusal(log_in(&first, 1).await), Some((2, 1)));
        assert!(is_alive(&newest).await, "its secret is the present one");

        let fourth = rotate(&fleet, &["--revoke"]).await;
        ends(&newest).await;
        assert_eq!(refusal(log_in(&third, 0).await), Some((2, 1)));
        assert!(log_in(&fourth, 0).await.is_ok());
    });
}

#[test]
fn a_login_is_sent_to_the_owner_where_that_is_wanted_and_served_where_it_insists() {
    alone(async |folder| {
        let fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 3).await;
        let owner = created.volume.owner.expect("an owner") as usize - 1;
        let other = (owner + 1) % 3;
        let portal = |session: &Session| session.portal();
        let served = log_in(&fleet, &created, "a", other).await.expect("a login");
        assert_eq!(
            portal(&served),
            fleet.portals()[other],
            "not unless it is wanted"
        );
        succeed(&fleet, &["volume", "redirect", "db", "owner"]).await;
        // The node that was asked has applied it, the others within moments.
        let moved = tokio::time::timeout(PATIENCE, async {
            for number in 0.. {
                let name = format!("b{number}");
                let session = log_in(&fleet, &created, &name, other).await;
                let session = session.expect("a login");
                if portal(&session) != fleet.portals()[other] {
                    return (name, session);
                }
            }
            unreachable!("the numbers do not end")
        });
        let (name, session) = moved.await.expect("a redirection");
        assert_eq!(portal(&session), fleet.portals()[owner]);
        let again = log_in(&fleet, &created, &name, other)
            .await
            .expect("a login");
        assert_eq!(portal(&again), fleet.portals()[other], "it came back");
    });
}
