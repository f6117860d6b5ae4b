//! Reservations as cluster state: two initiators at different nodes of real processes.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use harness::{PATIENCE, alone, cluster, volume};
use holdfast::fleet::Fleet;
use holdfast_api::CreatedVolume;
use holdfast_initiator::{
    BlockRange, Chap, Command, Error, Secret, Session, SessionOptions, Transfer,
};
use tokio::time::{sleep, timeout};

const WRITE_EXCLUSIVE: u8 = 1;
const EXCLUSIVE_REGISTRANTS: u8 = 6;
const BLOCK: u32 = 512;

/// An initiator port logged in at one node.
struct Host {
    session: Session,
}

impl Host {
    async fn log_in(fleet: &Fleet, created: &CreatedVolume, name: &str, node: usize) -> Self {
        let initiator = format!("iqn.2026-11.io.holdfast:{name}");
        let mut options = SessionOptions::new(initiator);
        let chap = created.credentials.as_ref().expect("credentials");
        options.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
        let portal = fleet.portals()[node];
        // A node that has just started opens its portal when it knows the volumes.
        let connecting = async {
            loop {
                match Session::connect(portal, &created.volume.target, &options).await {
                    Err(Error::Connect { .. }) => sleep(Duration::from_millis(10)).await,
                    outcome => break outcome.expect("a login"),
                }
            }
        };
        let session = timeout(PATIENCE, connecting).await.expect("an open portal");
        let host = Self { session };
        host.session
            .clear_attentions(0)
            .await
            .expect("a quiet unit");
        host
    }

    async fn reserve_out(&self, action: u8, kind: u8, key: u64, service: u64) -> Result<(), Error> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, kind, 24);
        let mut list = [0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&service.to_be_bytes());
        let transfer = Transfer::Write(Bytes::copy_from_slice(&list));
        let command = Command {
            lun: 0,
            cdb,
            transfer,
        };
        self.session.execute(command).await.map(drop)
    }

    async fn register(&self, key: u64) {
        self.reserve_out(6, 0, 0, key)
            .await
            .expect("a registration");
    }

    /// Key and type that READ RESERVATION shows.
    async fn reservation(&self) -> Option<(u64, u8)> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[8]) = (0x5e, 1, 24);
        let command = Command {
            lun: 0,
            cdb,
            transfer: Transfer::Read(24),
        };
        let data = self.session.execute(command).await.expect("a report").data;
        (data.len() == 24).then(|| {
            let key = data[8..16].try_into().expect("eight bytes");
            (u64::from_be_bytes(key), data[21])
        })
    }

    async fn write(&self, first: u64, byte: u8) -> Result<(), Error> {
        let range = BlockRange { first, blocks: 8 };
        let data = vec![byte; 8 * BLOCK as usize].into();
        self.session.write(0, range, data).await
    }

    async fn read(&self, first: u64, blocks: u32) -> Result<Bytes, Error> {
        let range = BlockRange { first, blocks };
        self.session.read(0, range, BLOCK).await
    }
}

fn attention(result: Result<(), Error>) -> Option<(u8, u8)> {
    match result {
        Err(Error::CheckCondition { key: 6, asc, ascq }) => Some((asc, ascq)),
        _ => None,
    }
}

#[test]
fn reservations_bind_initiators_at_every_node_and_outlive_all_of_them() {
    alone(async |folder| {
        let mut fleet = cluster(folder, 5).await;
        let created = volume(&fleet, "db", 3).await;
        let first = Host::log_in(&fleet, &created, "a", 0).await;
        let second = Host::log_in(&fleet, &created, "b", 3).await;
        first.register(1).await;
        let taken = first.reserve_out(1, EXCLUSIVE_REGISTRANTS, 1, 0).await;
        taken.expect("a reservation");
        // At once, though the nodes of the other initiator and of the owner may lag behind.
        let shown = second.reservation().await;
        assert_eq!(shown, Some((1, EXCLUSIVE_REGISTRANTS)));
        assert!(matches!(
            second.write(0, 2).await,
            Err(Error::ReservationConflict)
        ));
        assert!(matches!(
            second.read(0, 8).await,
            Err(Error::ReservationConflict)
        ));
        second.register(2).await;
        second.write(0, 2).await.expect("a registrant writes");
        let preempted = second.reserve_out(5, WRITE_EXCLUSIVE, 2, 1).await;
        preempted.expect("a preemption");
        let told = attention(first.session.test_unit_ready(0).await);
        assert_eq!(told, Some((0x2a, 0x05)));
        assert!(matches!(
            first.write(0, 1).await,
            Err(Error::ReservationConflict)
        ));
        assert_eq!(
            first.read(0, 8).await.expect("reads are free"),
            vec![2; 4096]
        );

        fleet.kill_all().await.unwrap();
        for index in 0..5 {
            fleet.start(index, None).unwrap();
        }
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let first = Host::log_in(&fleet, &created, "a", 1).await;
        assert_eq!(first.reservation().await, Some((2, WRITE_EXCLUSIVE)));
        assert!(matches!(
            first.write(0, 1).await,
            Err(Error::ReservationConflict)
        ));
    });
}

/// The victim keeps writes under way at a node that does not own the volume. Whatever of them
/// the preemptor sees right after PREEMPT is what it sees for ever.
#[test]
fn no_write_of_a_preempted_initiator_lands_after_preempt_was_answered() {
    const WRITES: u64 = 24;
    alone(async |folder| {
        let fleet = cluster(folder, 5).await;
        let created = volume(&fleet, "db", 3).await;
        for round in 0..10_u8 {
            let victim_node = usize::from(round) % 5;
            let name = format!("a{round}");
            let victim = Rc::new(Host::log_in(&fleet, &created, &name, victim_node).await);
            let judge = Host::log_in(&fleet, &created, "b", (victim_node + 2) % 5).await;
            victim.register(1).await;
            judge.register(2).await;
            let held = victim.reserve_out(1, EXCLUSIVE_REGISTRANTS, 1, 0).await;
            held.expect("a reservation");
            let writer = victim.clone();
            let writing = tokio::task::spawn_local(async move {
                let mut acknowledged = 0;
                for generation in 0.. {
                    let byte = (generation % 250) as u8 + 1;
                    let batch = (0..WRITES).map(|index| writer.write(index * 8, byte));
                    let outcomes = join_all(batch).await;
                    acknowledged += outcomes.iter().filter(|one| one.is_ok()).count();
                    let refused = |one: &Result<(), Error>| {
                        matches!(one, Err(Error::ReservationConflict)) || is_attention(one)
                    };
                    if outcomes.iter().all(refused) {
                        break;
                    }
                }
                acknowledged
            });
            while judge.read(0, 8).await.expect("a registrant reads")[0] == 0 {}
            let action = if round % 2 == 0 { 4 } else { 5 };
            let taken = judge.reserve_out(action, WRITE_EXCLUSIVE, 2, 1).await;
            taken.expect("a preemption");
            let seen = judge.read(0, WRITES as u32 * 8).await.expect("a read");
            assert!(writing.await.expect("the writer ends") > 0);
            let later = judge.read(0, WRITES as u32 * 8).await.expect("a read");
            assert!(seen == later, "a write landed after the preemption");
            judge.reserve_out(3, 0, 2, 0).await.expect("a clean table");
            let zeroes = vec![0; WRITES as usize * 4096].into();
            let range = BlockRange {
                first: 0,
                blocks: WRITES as u32 * 8,
            };
            judge.session.write(0, range, zeroes).await.expect("zeroes");
        }
    });
}

fn is_attention(one: &Result<(), Error>) -> bool {
    matches!(one, Err(Error::CheckCondition { key: 6, .. }))
}
