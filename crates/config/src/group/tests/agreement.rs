//! Determinism; what was answered survives; nothing happens twice.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{DownReason, NodeId};

use super::world::{World, simulate};
use super::{LIMIT, agreed_leader, grown, options, propose, settled};

#[test]
fn same_seed_gives_the_same_trace() {
    let scenario = |seed| simulate(seed, |world| async move { crashes(&world, 3, 6).await }).1;
    assert_eq!(scenario(7), scenario(7));
    assert_ne!(scenario(7), scenario(8), "the hash sees something");
}

#[test]
fn a_killed_leader_is_replaced_and_what_was_answered_survives() {
    simulate(1, |world| async move {
        grown(&world, 5).await;
        for number in 1..=20 {
            propose(&world, NodeId(1 + number % 5), number).await;
        }
        let first = agreed_leader(&world).await;
        world.kill(first, DownReason::Lost);
        let second = agreed_leader(&world).await;
        assert_ne!(first, second);
        propose(&world, second, 21).await;
        world.kill(second, DownReason::Lost);
        let third = agreed_leader(&world).await;
        assert!(third != first && third != second);
        propose(&world, third, 22).await;
        settled(&world).await;
        for node in world.running() {
            assert_eq!(world.group(node).state().0, (0..=22).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_read_barrier_shows_what_another_node_was_answered() {
    simulate(2, |world| async move {
        grown(&world, 3).await;
        for number in 1..=30 {
            propose(&world, NodeId(1 + number % 3), number).await;
            let reader = NodeId(1 + (number + 1) % 3);
            let group = world.group(reader);
            let reading = async move {
                group.read_barrier(LIMIT).await.expect("reached");
                group.state().0.last().copied()
            };
            assert_eq!(
                world.run_on(reader, reading).await.expect("alive"),
                Some(number)
            );
        }
    });
}

#[test]
fn a_proposal_repeated_across_leaders_is_applied_once() {
    for seed in 0..12 {
        simulate(seed, move |world| async move {
            grown(&world, 5).await;
            for round in 0..4 {
                let leader = agreed_leader(&world).await;
                let proposer = world.running().into_iter().find(|node| *node != leader);
                let proposer = proposer.expect("others run");
                let group = world.group(proposer);
                let number = 100 + round;
                let outcome =
                    world.run_on(proposer, async move { group.propose(number, LIMIT).await });
                // Somewhere between sending the request and hearing the answer.
                world.sleep(Duration::from_micros(world.draw(4000))).await;
                world.kill(leader, DownReason::Lost);
                let position = outcome.await.expect("alive").expect("has an outcome");
                assert_eq!(world.group(proposer).state().0[position - 1], number);
                world.start(leader, options()).await.expect("starts again");
            }
            settled(&world).await;
            for node in world.running() {
                assert_eq!(
                    world.group(node).state().0,
                    [0, 100, 101, 102, 103],
                    "seed {seed}"
                );
            }
        });
    }
}

#[test]
fn crashes_at_any_moment_lose_nothing_that_was_answered() {
    for seed in seeds(24) {
        simulate(seed, |world| async move { crashes(&world, 5, 12).await });
    }
}

/// The first `count` seeds; more, or others, for whoever searches:
/// `HOLDFAST_SEEDS=1000..9000 cargo test -p holdfast-config crashes`.
#[expect(clippy::disallowed_methods, reason = "only chooses which runs to make")]
fn seeds(count: u64) -> Range<u64> {
    let range = std::env::var("HOLDFAST_SEEDS").ok().and_then(|range| {
        let (first, end) = range.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    });
    range.unwrap_or(0..count)
}

#[test]
fn lost_messages_delay_and_lose_nothing() {
    simulate(3, |world| async move {
        grown(&world, 5).await;
        world.lose(100);
        for number in 1..=40 {
            propose(&world, NodeId(1 + number % 5), number).await;
        }
        world.lose(0);
        settled(&world).await;
        for node in world.running() {
            assert_eq!(world.group(node).state().0, (0..=40).collect::<Vec<_>>());
        }
    });
}

/// Proposes from everywhere while messages are lost, links fail one way or both, and nodes, some
/// or all at once, are killed in mid-write and started again; checks every node's ledger at the
/// end.
async fn crashes(world: &Rc<World>, count: u64, rounds: u64) {
    grown(world, count).await;
    let answered: Rc<RefCell<BTreeSet<u64>>> = Rc::default();
    let mut number = 0;
    for _ in 0..rounds {
        world.lose(world.draw(2) * 50);
        for _ in 0..world.draw(4) {
            world.block(NodeId(1 + world.draw(count)), NodeId(1 + world.draw(count)));
        }
        for _ in 0..10 {
            let running = world.running();
            let node = running[world.draw(running.len() as u64) as usize];
            number += 1;
            let proposed = number;
            let (group, answered) = (world.group(node), answered.clone());
            let outcome = world.run_on(node, async move {
                if group
                    .propose(proposed, Duration::from_secs(2))
                    .await
                    .is_ok()
                {
                    answered.borrow_mut().insert(proposed);
                }
            });
            drop(outcome);
            world.sleep(Duration::from_micros(world.draw(6000))).await;
        }
        let power_cut = world.draw(4) == 0;
        let mut victims = world.running();
        while !power_cut && victims.len() as u64 > count / 2 {
            victims.remove(world.draw(victims.len() as u64) as usize);
        }
        if world.draw(2) == 0 {
            world.sleep(Duration::from_millis(world.draw(1500))).await;
        }
        for victim in &victims {
            world.kill(*victim, DownReason::Lost);
        }
        world.sleep(Duration::from_millis(world.draw(1500))).await;
        for victim in victims {
            world
                .start(victim, options())
                .await
                .expect("a crash leaves a readable log");
        }
        world.heal();
    }
    world.lose(0);
    // Every proposal has ended by then.
    world.sleep(Duration::from_secs(3)).await;
    settled(world).await;
    let expected = world.group(NodeId(1)).state();
    let distinct: BTreeSet<u64> = expected.0.iter().copied().collect();
    assert_eq!(
        distinct.len(),
        expected.0.len(),
        "a change was applied twice"
    );
    assert!(
        answered.borrow().is_subset(&distinct),
        "an answered change is lost"
    );
    assert!(
        answered.borrow().len() as u64 > rounds * 2,
        "the scenario tests something"
    );
    for node in world.running() {
        assert_eq!(world.group(node).state(), expected);
    }
}
