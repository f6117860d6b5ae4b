//! Nodes that come back at other addresses, one or all of them.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use harness::{Initiator, PATIENCE, alone, cluster, options, volume};
use holdfast::fleet::Fleet;
use holdfast_initiator::Ledger;

#[test]
fn a_cluster_whose_nodes_all_have_new_addresses_finds_itself_again_through_one_of_them() {
    alone(async |folder| {
        let mut before = cluster(folder, 5).await;
        let created = volume(&before, "db", 3).await;
        let initiator = Initiator::open(&before, &created).await;
        let load = initiator.load(1);
        Initiator::progress(&load, 100).await;
        load.stop().await;
        let ledger = initiator.ledger.replace(Ledger::new(7, 0, 1));
        initiator.disk.close().await.unwrap();
        for index in 0..5 {
            before.stop(index, PATIENCE).await.unwrap();
        }
        // Held until the new ports are chosen, so that each is another one.
        let held: Vec<_> = (0..5)
            .flat_map(|index| {
                let ports = before.ports(index);
                [ports.link, ports.api, ports.portal]
            })
            .map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap())
            .collect();
        let mut after = Fleet::prepare(options(folder, 5)).unwrap();
        drop(held);
        // A chain: each knows of one other at most, and who that is nobody says.
        after.start(4, None).unwrap();
        for index in (0..4).rev() {
            let peer = format!("127.0.0.1:{}", after.ports(index + 1).link);
            after.start_with(index, None, &["--peer", &peer]).unwrap();
        }
        after.wait_until_healthy(PATIENCE).await.unwrap();
        let initiator = Initiator::with_ledger(&after, &created, ledger).await;
        assert!(initiator.verify().await.is_clean());
        // From now on they know, without being told.
        after.kill_all().await.unwrap();
        for index in 0..5 {
            after.start(index, None).unwrap();
        }
        after.wait_until_healthy(PATIENCE).await.unwrap();
    });
}
