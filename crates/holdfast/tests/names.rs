//! iSCSI names in every spelling, through real processes (RFC 7143 4.2.7).

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use bytes::Bytes;
use harness::{PATIENCE, alone, cluster, holdfast, stderr, stdout, volume};
use holdfast::fleet::Fleet;
use holdfast_api::CreatedVolume;
use holdfast_initiator::{
    BlockRange, Chap, Command, Error, Health, Isid, Secret, Session, SessionOptions, Transfer,
};

const TARGET: &str = "iqn.2026-11.io.holdfast:db";
const SHOUTED: &str = "IQN.2026-11.IO.Holdfast:DB";
const EXCLUSIVE_REGISTRANTS: u8 = 6;

async fn log_in(
    fleet: &Fleet,
    created: &CreatedVolume,
    initiator: &str,
    target: &str,
) -> Result<Session, Error> {
    let mut options = SessionOptions::new(initiator);
    options.isid = Isid([0x80, 0, 0, 0, 0, 1]);
    let chap = created.credentials.as_ref().expect("credentials");
    options.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
    Session::connect(fleet.portals()[0], target, &options).await
}

/// A session without pending unit attentions.
async fn session(fleet: &Fleet, created: &CreatedVolume, initiator: &str, target: &str) -> Session {
    let session = log_in(fleet, created, initiator, target).await;
    let session = session.expect("a login");
    session.clear_attentions(0).await.expect("a quiet unit");
    session
}

async fn ends(session: &Session) {
    let mut health = session.health();
    let lost = health.wait_for(|health| matches!(health, Health::Lost(_)));
    let lost = tokio::time::timeout(PATIENCE, lost).await;
    assert!(lost.is_ok(), "the session goes on");
}

async fn with_list(session: &Session, prefix: &[u8], list: &[u8]) -> Result<(), Error> {
    let mut cdb = [0; 16];
    cdb[..prefix.len()].copy_from_slice(prefix);
    let transfer = Transfer::Write(Bytes::copy_from_slice(list));
    let command = Command {
        lun: 0,
        cdb,
        transfer,
    };
    session.execute(command).await.map(drop)
}

/// MODE SELECT(6) of SWP in the Control page.
async fn write_protect(session: &Session, on: bool) {
    let mut list = [0, 0, 0, 0, 0x0a, 0x0a, 0x20, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    list[8] = if on { 8 } else { 0 };
    let selected = with_list(session, &[0x15, 0x10, 0, 0, list.len() as u8], &list).await;
    selected.expect("a mode page");
}

async fn reserve_out(session: &Session, action: u8, kind: u8, keys: [u64; 2]) -> Result<(), Error> {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&keys[0].to_be_bytes());
    list[8..16].copy_from_slice(&keys[1].to_be_bytes());
    with_list(session, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24], &list).await
}

async fn write(session: &Session) -> Result<(), Error> {
    let range = BlockRange {
        first: 0,
        blocks: 8,
    };
    session.write(0, range, vec![1; 4096].into()).await
}

fn attention(result: Result<(), Error>) -> Option<(u8, u8)> {
    match result {
        Err(Error::CheckCondition { key: 6, asc, ascq }) => Some((asc, ascq)),
        _ => None,
    }
}

#[test]
fn every_spelling_of_a_targets_name_is_one_unit_which_ends_with_the_volume() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        let created = volume(&fleet, "db", 1).await;
        assert_eq!(created.volume.target, TARGET);
        let (a, b) = ("iqn.2026-11.io.holdfast:a", "iqn.2026-11.io.holdfast:b");
        let plain = session(&fleet, &created, a, TARGET).await;
        let shouted = session(&fleet, &created, b, SHOUTED).await;

        let names = [
            plain.inquiry_page(0, 0x83).await,
            shouted.inquiry_page(0, 0x83).await,
        ];
        let [one, other] = names.map(|page| page.expect("a page"));
        assert_eq!(one, other, "one identity");
        let found = shouted.send_targets(SHOUTED).await.expect("an answer");
        let found: Vec<_> = found.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(found, [TARGET]);

        write_protect(&plain, true).await;
        let told = attention(shouted.test_unit_ready(0).await);
        assert_eq!(told, Some((0x2a, 0x01)), "mode parameters changed");
        let protected = write(&shouted).await;
        let is_protected = |error: &Error| {
            matches!(
                error,
                Error::CheckCondition {
                    key: 7,
                    asc: 0x27,
                    ascq: 2
                }
            )
        };
        assert!(protected.as_ref().is_err_and(is_protected), "{protected:?}");
        write_protect(&plain, false).await;

        // The same port of the initiator, both names spelled otherwise: session reinstatement.
        let again = session(&fleet, &created, "IQN.2026-11.io.holdfast:A", SHOUTED).await;
        ends(&plain).await;

        let deleted = holdfast(&fleet, &["volume", "delete", "db", "--yes"]).await;
        assert!(deleted.status.success(), "{}", stderr(&deleted));
        ends(&again).await;
        ends(&shouted).await;
    });
}

#[test]
fn a_host_is_known_by_its_name_however_it_spells_it() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        let created = volume(&fleet, "db", 1).await;
        let spelled = "iqn.2026-11.io.holdfast:HostX";
        let host = session(&fleet, &created, spelled, TARGET).await;
        let other = session(&fleet, &created, "iqn.2026-11.io.holdfast:y", TARGET).await;
        reserve_out(&host, 0, 0, [0, 1])
            .await
            .expect("a registration");
        let held = reserve_out(&host, 1, EXCLUSIVE_REGISTRANTS, [1, 0]).await;
        held.expect("a reservation");
        host.logout().await.expect("a logout");
        let host = session(&fleet, &created, "iqn.2026-11.io.holdfast:hostx", TARGET).await;
        write(&host).await.expect("the holder writes");
        let excluded = write(&other).await;
        assert!(
            matches!(excluded, Err(Error::ReservationConflict)),
            "{excluded:?}"
        );

        let allow = [
            "volume",
            "access",
            "db",
            "--allow",
            "IQN.2026-11.IO.HOLDFAST:HostX",
        ];
        let allowed = holdfast(&fleet, &allow).await;
        assert!(allowed.status.success(), "{}", stderr(&allowed));
        let shown = stdout(&allowed);
        assert!(shown.contains("iqn.2026-11.io.holdfast:hostx"), "{shown}");
        ends(&other).await;
        host.test_unit_ready(0)
            .await
            .expect("a session that goes on");
        for odd in ["hostx", "iqn.2026-11.io.holdfast:host_x", "eui.123"] {
            let refused = holdfast(&fleet, &["volume", "access", "db", "--allow", odd]).await;
            assert!(!refused.status.success(), "{odd:?} was taken");
            assert!(stderr(&refused).contains("no name"), "{}", stderr(&refused));
        }
    });
}

#[test]
fn what_is_no_name_does_not_log_in() {
    alone(async |folder| {
        let fleet = cluster(folder, 1).await;
        let created = volume(&fleet, "db", 1).await;
        let refusal =
            async |initiator: &str, target: &str| match log_in(&fleet, &created, initiator, target)
                .await
            {
                Err(Error::LoginRefused { class, detail, .. }) => (class, detail),
                Err(error) => panic!("{error}"),
                Ok(_) => (0, 0),
            };
        for odd in [
            "host",
            "iqn.host",
            "iqn.2026-11.example:a b",
            "eui.0123",
            "naa.x",
        ] {
            assert_eq!(refusal(odd, TARGET).await, (2, 0), "initiator {odd:?}");
        }
        let name = "iqn.2026-11.example:a";
        assert_eq!(refusal(name, TARGET).await, (0, 0));
        assert_eq!(refusal(name, "db").await, (2, 3));
        assert_eq!(refusal(name, "iqn.2026-11.io.holdfast:d_b").await, (2, 3));
    });
}
