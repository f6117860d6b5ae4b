//! Properties of gossip among pure cores in virtual time.

mod network;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use holdfast_gossip::{Event, Health, HealthChange, Options, Proof, Status};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use network::Network;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MINUTE: Duration = Duration::from_secs(60);

fn peers(nodes: u64) -> BTreeSet<NodeId> {
    (1..=nodes).map(NodeId).collect()
}

/// A network whose nodes have met, at a random moment of their periods.
fn settled(nodes: u64, seed: u64) -> Network {
    let mut network = Network::new(nodes, seed);
    let met = network.run_until(Duration::from_secs(5), Network::all_alive);
    assert!(met.is_some(), "seed {seed}: the nodes did not meet");
    let phase = ChaCha8Rng::seed_from_u64(!seed).random_range(2_000..4_000);
    network.run_for(Duration::from_millis(phase));
    network
}

/// Least, median, 95th of 100 and most.
fn quantiles(mut times: Vec<Duration>) -> [Duration; 4] {
    times.sort();
    [0, times.len() / 2, times.len() * 95 / 100, times.len() - 1].map(|at| times[at])
}

#[test]
fn nodes_that_start_together_meet_within_a_second() {
    for nodes in [2, 3, 5, 20] {
        let mut network = Network::new(nodes, nodes);
        let met = network.run_until(Duration::from_secs(1), Network::all_alive);
        assert!(met.is_some(), "{nodes} nodes");
    }
}

#[test]
fn a_published_value_reaches_all_within_log2_n_plus_3_rounds_at_10_percent_loss() {
    let round = Options::default().exchange_period;
    for nodes in [5_u64, 10, 20] {
        let mut rounds = Vec::new();
        for seed in 0..100 {
            let mut network = settled(nodes, seed);
            network.loss_percent = 10;
            let value = Bytes::from_static(b"17");
            network
                .core_mut(1)
                .publish("load", value.clone())
                .expect("within the limits");
            let known = |network: &Network| {
                let known =
                    |node| network.core(node).read(NodeId(1), "load") == Some(value.clone());
                network.running().into_iter().all(known)
            };
            let took = network
                .run_until(MINUTE, known)
                .expect("it arrives in the end");
            rounds.push(took.as_nanos().div_ceil(round.as_nanos()) as u32);
        }
        rounds.sort_unstable();
        let (median, most) = (rounds[rounds.len() / 2], rounds[rounds.len() - 1]);
        println!("{nodes} nodes: rounds median {median}, most {most}");
        let bound = nodes.next_power_of_two().ilog2() + 3;
        assert!(
            most <= bound,
            "{nodes} nodes: {most} rounds, more than {bound}"
        );
    }
}

#[test]
fn a_silent_death_is_known_to_all_within_3_seconds_mostly_and_5_nearly_always() {
    // Nodes, loss in percent; milliseconds until all know: median, 95 of 100, slowest of 100.
    for (nodes, loss, bounds) in [
        (3, 0, [2_500, 3_000, 3_100]),
        (5, 0, [2_500, 3_500, 4_500]),
        (5, 10, [2_500, 3_500, 4_500]),
        (20, 0, [3_000, 4_000, 5_500]),
    ] {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for seed in 0..100 {
            let mut network = settled(nodes, seed);
            network.loss_percent = loss;
            network.kill_silently(NodeId(2));
            let someone = |network: &Network| {
                let down = |node| network.core(node).health()[&NodeId(2)].status == Status::Down;
                network.running().into_iter().any(down)
            };
            let everyone = |network: &Network| network.all_believe(2, 1, Status::Down);
            let first_after = network.run_until(MINUTE, someone).expect("it is noticed");
            first.push(first_after);
            last.push(first_after + network.run_until(MINUTE, everyone).expect("it spreads"));
        }
        let (first, last) = (quantiles(first), quantiles(last));
        println!("{nodes} nodes, {loss} % loss: first {first:?}, all {last:?}");
        assert!(
            first[0] >= Options::default().suspicion,
            "judged before the suspicion ended"
        );
        for (took, bound) in last[1..].iter().zip(bounds) {
            assert!(
                *took <= Duration::from_millis(bound),
                "{nodes} nodes: {took:?} > {bound} ms"
            );
        }
    }
}

#[test]
fn a_living_node_is_not_called_down_in_10_minutes_of_10_percent_loss() {
    let mut network = settled(5, 3);
    network.loss_percent = 10;
    network.changes.clear();
    network.run_for(10 * MINUTE);
    let status = |status| {
        let of = |change: &&(Instant, NodeId, HealthChange)| {
            change.2.after.is_some_and(|after| after.status == status)
        };
        network.changes.iter().filter(of).count()
    };
    println!("suspected {} times", status(Status::Suspect));
    assert!(status(Status::Suspect) > 0, "the loss left no trace");
    assert_eq!(status(Status::Down), 0);
}

#[test]
fn a_refused_connection_is_proof_at_once_for_exactly_that_incarnation() {
    let mut network = settled(5, 4);
    network.deliver(NodeId(1), Event::LinkRefused(NodeId(3), Incarnation(0)));
    let health = network.core(1).health()[&NodeId(3)];
    assert_eq!(
        (health.status, health.proof),
        (Status::Alive, None),
        "an older start is gone"
    );

    network.kill_process(NodeId(3));
    network.run_for(Duration::from_millis(2));
    for observer in [1, 2, 4, 5] {
        let health = network.core(observer).health()[&NodeId(3)];
        assert_eq!(health.incarnation, Incarnation(1));
        assert_eq!(
            (health.status, health.proof),
            (Status::Down, Some(Proof::Refused))
        );
    }
    let since = network.core(1).health()[&NodeId(3)].since;
    network.run_for(MINUTE);
    assert_eq!(
        network.core(1).health()[&NodeId(3)].since,
        since,
        "since says when it was seen"
    );

    network.start(NodeId(3), Incarnation(2), peers(5));
    let back = |network: &Network| network.all_believe(3, 2, Status::Alive);
    assert!(network.run_until(Duration::from_secs(1), back).is_some());
    assert_eq!(network.core(1).health()[&NodeId(3)].proof, None);
}

#[test]
fn one_witness_of_a_refused_connection_tells_the_others() {
    let mut network = settled(5, 5);
    network.kill_silently(NodeId(3));
    network.deliver(NodeId(1), Event::LinkRefused(NodeId(3), Incarnation(1)));
    let known = |network: &Network| network.all_believe(3, 1, Status::Down);
    assert!(network.run_until(Duration::from_secs(1), known).is_some());
    assert_eq!(
        network.core(1).health()[&NodeId(3)].proof,
        Some(Proof::Refused)
    );
    assert_eq!(
        network.core(2).health()[&NodeId(3)].proof,
        None,
        "hearsay is no proof"
    );
}

#[test]
fn a_refused_peer_whose_link_comes_up_again_is_alive_again() {
    let mut network = settled(3, 6);
    network.deliver(NodeId(1), Event::LinkRefused(NodeId(3), Incarnation(1)));
    network.run_for(MINUTE);
    let health = network.core(1).health()[&NodeId(3)];
    assert_eq!(
        (health.status, health.proof),
        (Status::Down, Some(Proof::Refused))
    );
    network.deliver(NodeId(1), Event::LinkUp(NodeId(3), Incarnation(1)));
    assert!(
        network
            .run_until(Duration::from_secs(2), Network::all_alive)
            .is_some()
    );
}

#[test]
fn a_restarted_member_supersedes_its_former_self_and_its_values() {
    for seed in 0..20 {
        let mut network = settled(5, seed);
        network
            .core_mut(3)
            .publish("role", Bytes::from_static(b"old"))
            .expect("fits");
        network.run_for(MINUTE);
        assert_eq!(
            network.core(1).read(NodeId(3), "role"),
            Some(Bytes::from_static(b"old"))
        );
        network.kill_silently(NodeId(3));
        // Back before anyone noticed, or long after.
        network.run_for(Duration::from_millis(700 * seed));
        network.start(NodeId(3), Incarnation(2), peers(5));
        network
            .core_mut(3)
            .publish("load", Bytes::from_static(b"new"))
            .expect("fits");
        let back = |network: &Network| {
            let others = [1, 2, 4, 5].map(|other| network.all_believe(other, 1, Status::Alive));
            network.all_believe(3, 2, Status::Alive) && !others.contains(&false)
        };
        assert!(
            network.run_until(Duration::from_secs(3), back).is_some(),
            "seed {seed}"
        );
        network.changes.clear();
        network.run_for(MINUTE / 2);
        assert_eq!(network.changes, [], "seed {seed}: the former self haunts");
        for observer in [1, 2, 4, 5] {
            let published = &network.core(observer).snapshot()[&NodeId(3)];
            assert_eq!(published.incarnation, Incarnation(2));
            assert_eq!(
                published.values.keys().collect::<Vec<_>>(),
                ["load"],
                "seed {seed}"
            );
        }
    }
}

#[test]
fn a_partition_heals_and_values_cross_it() {
    for (one, other) in [(vec![1, 2], vec![3, 4, 5]), (vec![1], vec![2, 3, 4, 5])] {
        let mut network = settled(5, 8);
        network.partition(&one, &other);
        network.run_for(Duration::from_secs(30));
        for (observers, lost) in [(&one, &other), (&other, &one)] {
            for (observer, lost) in observers
                .iter()
                .flat_map(|o| lost.iter().map(move |l| (o, l)))
            {
                let health = network.core(*observer).health()[&NodeId(*lost)];
                assert_eq!(health.status, Status::Down, "{observer} about {lost}");
            }
        }
        network
            .core_mut(1)
            .publish("side", Bytes::from_static(b"one"))
            .expect("fits");
        network.heal();
        let healed = network.run_until(Duration::from_secs(5), Network::all_alive);
        println!("{one:?} | {other:?}: healed after {healed:?}");
        assert!(healed.is_some(), "{one:?} | {other:?}");
        network.run_for(Duration::from_secs(15));
        assert!(network.all_alive(), "it stays healed");
        assert_eq!(
            network.core(5).read(NodeId(1), "side"),
            Some(Bytes::from_static(b"one"))
        );
    }
}

#[test]
fn a_node_that_was_paused_accuses_nobody() {
    for seed in 0..20 {
        let mut network = settled(5, seed);
        network.pause(NodeId(1));
        network.run_for(Duration::from_millis(900 + 997 * seed));
        network.changes.clear();
        network.resume(NodeId(1));
        network.run_for(MINUTE);
        assert!(network.all_alive(), "seed {seed}: it is back");
        let accused = network.changes.iter().find(|(_, observer, change)| {
            let accuses = |health: Health| health.status != Status::Alive;
            *observer == NodeId(1) && change.after.is_some_and(accuses)
        });
        assert_eq!(accused, None, "seed {seed}");
    }
}

#[test]
fn a_suspect_keeps_its_time_to_refute_when_the_accuser_is_paused() {
    for seed in 0..20 {
        let mut network = settled(5, seed);
        network.partition(&[1], &[2, 3, 4, 5]);
        let suspects = |network: &Network| {
            network
                .core(1)
                .health()
                .values()
                .any(|health| health.status == Status::Suspect)
        };
        assert!(
            network
                .run_until(Duration::from_secs(2), suspects)
                .is_some(),
            "seed {seed}"
        );
        network.pause(NodeId(1));
        network.heal();
        network.run_for(Options::default().suspicion + Duration::from_secs(1));
        network.changes.clear();
        network.resume(NodeId(1));
        network.run_for(MINUTE);
        assert!(network.all_alive(), "seed {seed}: it is back");
        let condemned = network.changes.iter().find(|(_, observer, change)| {
            let down = |health: Health| health.status == Status::Down;
            *observer == NodeId(1) && change.after.is_some_and(down)
        });
        assert_eq!(condemned, None, "seed {seed}");
    }
}

#[test]
fn a_peer_never_heard_is_suspect_then_down_without_an_incarnation() {
    let mut network = Network::new(3, 9);
    network.deliver(NodeId(1), Event::Peers(peers(4)));
    let health = network.core(1).health()[&NodeId(4)];
    assert_eq!(
        (health.incarnation, health.status),
        (Incarnation(0), Status::Suspect)
    );
    network.run_for(Duration::from_secs(4));
    let health = network.core(1).health()[&NodeId(4)];
    assert_eq!(
        (health.incarnation, health.status),
        (Incarnation(0), Status::Down)
    );
    assert!(
        !network.core(2).health().contains_key(&NodeId(4)),
        "a stranger elsewhere"
    );
}

#[test]
fn a_removed_peer_is_forgotten_and_may_return() {
    let mut network = settled(3, 10);
    network
        .core_mut(3)
        .publish("load", Bytes::from_static(b"1"))
        .expect("fits");
    network.run_for(MINUTE);
    network.deliver(NodeId(1), Event::Peers(peers(2)));
    network.run_for(MINUTE);
    assert_eq!(
        network.core(1).health().keys().collect::<Vec<_>>(),
        [&NodeId(2)]
    );
    assert_eq!(network.core(1).read(NodeId(3), "load"), None);
    assert_eq!(network.core(2).health()[&NodeId(3)].status, Status::Alive);
    network.deliver(NodeId(1), Event::Peers(peers(3)));
    assert!(
        network
            .run_until(Duration::from_secs(5), Network::all_alive)
            .is_some()
    );
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed| {
        let mut network = settled(7, seed);
        network.loss_percent = 20;
        network.run_for(MINUTE);
        network.kill_silently(NodeId(4));
        network.run_for(MINUTE);
        (
            network.sent,
            network.ticks,
            format!("{:?}", network.changes),
        )
    };
    assert_eq!(history(11), history(11));
    assert_ne!(history(11), history(12));
}

#[test]
fn five_idle_nodes_stay_quiet() {
    let mut network = settled(5, 12);
    network.run_for(MINUTE);
    let (sent, ticks) = (network.sent, network.ticks);
    network.run_for(10 * MINUTE);
    let per_node_second = |count: u64| count as f64 / 600.0 / 5.0;
    let datagrams = per_node_second(network.sent.0 - sent.0);
    let bytes = per_node_second(network.sent.1 - sent.1);
    let ticks = per_node_second(network.ticks - ticks);
    println!("a node and second: {datagrams} datagrams of {bytes} bytes in all, {ticks} ticks");
    assert!(datagrams < 6.0, "{datagrams} datagrams");
    assert!(ticks < 12.0, "{ticks} ticks");
}

#[test]
fn hostile_datagrams_never_panic_nor_add_members() {
    let mut random = ChaCha8Rng::seed_from_u64(13);
    let mut network = settled(5, 13);
    network
        .core_mut(2)
        .publish("load", Bytes::from_static(b"1"))
        .expect("fits");
    let mut samples = samples(&mut network);
    samples.extend([vec![1, 1], vec![1, 2], vec![1, 3], vec![]]);
    for round in 0..50_000 {
        let mut bytes = samples[random.random_range(0..samples.len())].clone();
        match round % 3 {
            0 => {
                let length = random.random_range(0..200);
                bytes.truncate(2);
                bytes.extend((0..length).map(|_| random.random::<u8>()));
            }
            1 => {
                for _ in 0..random.random_range(1..4) {
                    if !bytes.is_empty() {
                        let at = random.random_range(0..bytes.len());
                        bytes[at] = random.random();
                    }
                }
            }
            _ => bytes.truncate(random.random_range(0..=bytes.len())),
        }
        let from = NodeId(random.random_range(0..8));
        let incarnation = Incarnation(random.random_range(0..3));
        let event = Event::Datagram {
            from,
            incarnation,
            bytes: bytes.into(),
        };
        network.deliver(NodeId(1), event);
        if round % 100 == 0 {
            network.run_for(Duration::from_millis(10));
        }
    }
    let members: Vec<u64> = network.core(1).health().keys().map(|node| node.0).collect();
    assert_eq!(members, [2, 3, 4, 5]);
    assert!(network.core(1).snapshot().keys().all(|node| node.0 <= 5));
}

/// Real datagrams of every kind that node 1 gets in a while with loss and a death.
fn samples(network: &mut Network) -> Vec<Vec<u8>> {
    network.loss_percent = 30;
    network.record_to = Some(NodeId(1));
    network.run_for(MINUTE / 4);
    network.kill_silently(NodeId(5));
    network.run_for(MINUTE / 4);
    network.loss_percent = 0;
    network.record_to = None;
    std::mem::take(&mut network.recorded)
}
