//! The config log on disk: what a crash may leave, what rot may do, and what is refused.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{DownReason, NodeId};

use super::world::{BULK, BULK_TIMES, World, simulate};
use super::{agreed_leader, grown, grown_with, nodes, options, propose, settled};
use crate::group::{AreaError, Damage, GroupError, GroupOptions};

const NODE: NodeId = NodeId(1);
const PAGE: usize = 4096;
const HALF: usize = 128 << 10;

/// A node alone that has applied `0..=count`, killed after the last answer.
async fn alone(world: &Rc<World>, count: u64) {
    grown(world, 1).await;
    for number in 1..=count {
        propose(world, NODE, number).await;
    }
    world.kill(NODE, DownReason::Lost);
}

async fn restart(world: &Rc<World>) -> Result<Vec<u64>, GroupError> {
    let group = world.start(NODE, options()).await?;
    settled(world).await;
    Ok(group.state().0.clone())
}

/// The start of the last written page of a half.
fn last_page(world: &World, half: usize) -> usize {
    let disk = world.disk(NODE, "config");
    let bytes = disk.borrow();
    let pages = (half * HALF..(half + 1) * HALF).step_by(PAGE);
    pages
        .filter(|page| bytes[*page..page + PAGE].iter().any(|byte| *byte != 0))
        .max()
        .expect("used")
}

/// The half whose header has the larger generation.
fn live_half(world: &World) -> usize {
    let disk = world.disk(NODE, "config");
    let bytes = disk.borrow();
    let generation =
        |half: usize| u64::from_le_bytes(bytes[half * HALF + 32..][..8].try_into().expect("eight"));
    usize::from(generation(1) > generation(0))
}

fn spoil(world: &World, at: usize) {
    world.disk(NODE, "config").borrow_mut()[at] ^= 0x40;
}

fn damage(result: Result<Vec<u64>, GroupError>) -> Damage {
    match result {
        Err(GroupError::Area(AreaError::Damaged { what, .. })) => what,
        other => panic!("not refused as damaged: {other:?}"),
    }
}

#[test]
fn a_restarted_node_has_what_it_answered() {
    simulate(1, |world| async move {
        alone(&world, 9).await;
        assert_eq!(restart(&world).await, Ok((0..=9).collect()));
    });
}

#[test]
fn a_torn_record_at_the_end_is_cut_and_its_place_used_again() {
    simulate(2, |world| async move {
        alone(&world, 3).await;
        // As if the next record's write had left only parts of both copies.
        let end = last_page(&world, 0) + PAGE;
        {
            let disk = world.disk(NODE, "config");
            let mut bytes = disk.borrow_mut();
            let earlier = bytes[end - 2 * PAGE..end].to_vec();
            bytes[end..end + 2 * PAGE].copy_from_slice(&earlier);
            bytes[end + 16] ^= 0xff;
            bytes[end + PAGE + 512..end + 2 * PAGE].fill(0x5a);
        }
        assert_eq!(restart(&world).await, Ok(vec![0, 1, 2, 3]));
        propose(&world, NODE, 4).await;
        world.kill(NODE, DownReason::Lost);
        assert_eq!(restart(&world).await, Ok(vec![0, 1, 2, 3, 4]));
    });
}

#[test]
fn any_single_rotten_record_page_is_read_from_its_copy() {
    simulate(3, |world| async move {
        alone(&world, 5).await;
        let pristine = world.disk(NODE, "config").borrow().clone();
        let records = 3 * PAGE..=last_page(&world, 0);
        for page in records.step_by(PAGE) {
            *world.disk(NODE, "config").borrow_mut() = pristine.clone();
            spoil(&world, page + 40);
            assert_eq!(
                restart(&world).await,
                Ok((0..=5).collect()),
                "page {}",
                page / PAGE
            );
            world.kill(NODE, DownReason::Lost);
        }
    });
}

#[test]
fn a_record_rotten_in_both_copies_with_others_behind_it_is_refused() {
    simulate(4, |world| async move {
        alone(&world, 5).await;
        let last = last_page(&world, 0);
        spoil(&world, last - 2 * PAGE + 40);
        spoil(&world, last - 3 * PAGE + 40);
        assert_eq!(damage(restart(&world).await), Damage::Record);
    });
}

#[test]
fn a_rotten_image_is_refused() {
    simulate(5, |world| async move {
        alone(&world, 5).await;
        let live = live_half(&world) * HALF;
        spoil(&world, live + 2 * PAGE + 1);
        assert_eq!(damage(restart(&world).await), Damage::Image);
    });
}

#[test]
fn a_rotten_header_is_refused_and_the_older_half_never_used() {
    simulate(6, |world| async move {
        alone(&world, 2).await;
        spoil(&world, 40);
        assert_eq!(
            damage(restart(&world).await),
            Damage::NoHeader,
            "the first half ever"
        );
    });
    simulate(7, |world| async move {
        // Enough for several changes of half.
        alone(&world, 60).await;
        let live = live_half(&world) * HALF;
        spoil(&world, live + 40);
        assert_eq!(damage(restart(&world).await), Damage::LiveHalfUnreadable);
    });
}

#[test]
fn another_nodes_log_is_refused() {
    simulate(8, |world| async move {
        alone(&world, 1).await;
        let log = world.disk(NODE, "config").borrow().clone();
        grown_elsewhere(&world, log).await;
    });
}

async fn grown_elsewhere(world: &Rc<World>, log: Vec<u8>) {
    world.start(NodeId(2), options()).await.expect("starts");
    world.kill(NodeId(2), DownReason::Lost);
    *world.disk(NodeId(2), "config").borrow_mut() = log;
    let result = world.start(NodeId(2), options()).await;
    let expected = AreaError::WrongNode {
        found: NODE,
        expected: NodeId(2),
    };
    assert_eq!(result.err(), Some(GroupError::Area(expected)));
}

#[test]
fn an_empty_log_is_refused_where_one_has_been() {
    simulate(9, |world| async move {
        alone(&world, 1).await;
        world.disk(NODE, "config").borrow_mut().fill(0);
        let result = world
            .start(
                NODE,
                GroupOptions {
                    may_create: false,
                    ..options()
                },
            )
            .await;
        assert_eq!(result.err(), Some(GroupError::Missing));
    });
}

fn must_exist() -> GroupOptions {
    GroupOptions {
        may_create: false,
        ..options()
    }
}

#[test]
fn a_log_that_no_leader_ever_reached_is_not_a_lost_one() {
    simulate(10, |world| async move {
        for start in 0..3 {
            let options = if start == 0 { options() } else { must_exist() };
            let started = world.start(NODE, options).await;
            started.expect("a member that nobody has spoken to");
            world.kill(NODE, DownReason::Lost);
        }
        // Wiped afterwards, it is lost as before.
        world.disk(NODE, "config").borrow_mut().fill(0);
        let result = world.start(NODE, must_exist()).await;
        assert_eq!(result.err(), Some(GroupError::Missing));
    });
}

#[test]
fn a_first_start_that_ends_between_any_two_writes_is_followed_by_another() {
    simulate(11, |world| async move {
        world.start(NODE, options()).await.expect("starts");
        world.kill(NODE, DownReason::Lost);
        let whole = world.disk(NODE, "config").borrow().clone();
        // The empty log's writes in their order: header, the other half's retirement. Its image,
        // before both, is a page of zeroes.
        let written = [0, HALF + PAGE];
        for page in written {
            assert!(whole[page..page + PAGE].iter().any(|byte| *byte != 0));
        }
        for durable in 0..=written.len() {
            for torn in [false, true] {
                let mut bytes = vec![0; whole.len()];
                for page in &written[..durable] {
                    bytes[*page..page + PAGE].copy_from_slice(&whole[*page..page + PAGE]);
                }
                if torn && let Some(page) = written.get(durable) {
                    bytes[*page..page + 16].copy_from_slice(&whole[*page..page + 16]);
                }
                *world.disk(NODE, "config").borrow_mut() = bytes;
                let started = world.start(NODE, options()).await;
                started.unwrap_or_else(|error| panic!("{durable} writes, torn {torn}: {error}"));
                world.kill(NODE, DownReason::Lost);
                let again = world.start(NODE, must_exist()).await;
                again.expect("the second start has completed it");
                world.kill(NODE, DownReason::Lost);
            }
        }
    });
}

#[test]
fn kills_at_any_moment_of_many_changes_of_half_leave_a_readable_log() {
    for seed in 0..6 {
        simulate(seed, |world| async move {
            grown(&world, 1).await;
            let mut answered = vec![0];
            for number in 1..=150 {
                let group = world.group(NODE);
                let limit = Duration::from_secs(2);
                let mut outcome =
                    Box::pin(world.run_on(NODE, async move { group.propose(number, limit).await }));
                if world.draw(5) == 0 {
                    world.sleep(Duration::from_micros(world.draw(5000))).await;
                    world.kill(NODE, DownReason::Lost);
                    if let Some(Ok(_)) = outcome.as_mut().await {
                        answered.push(number);
                    }
                    restart(&world).await.expect("readable");
                } else {
                    outcome.await.expect("alive").expect("has an outcome");
                    answered.push(number);
                }
            }
            let state = world.group(NODE).state();
            assert!(
                answered.iter().all(|number| state.0.contains(number)),
                "seed {seed}"
            );
            assert!(state.0.is_sorted_by(|a, b| a < b), "once each, in order");
        });
    }
}

/// A snapshot every few changes.
fn often() -> GroupOptions {
    GroupOptions {
        snapshot_after: 3,
        ..options()
    }
}

/// A state of some megabytes in a log that began small.
async fn grown_large(world: &Rc<World>, node: NodeId, from: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    for step in 0..14 {
        let number = BULK + from + step;
        propose(world, node, number).await;
        numbers.extend(vec![number; BULK_TIMES]);
    }
    numbers
}

async fn restart_often(world: &Rc<World>) -> Vec<u64> {
    let group = world.start(NODE, often()).await.expect("readable");
    settled(world).await;
    group.state().0.clone()
}

#[test]
fn kills_at_any_moment_while_the_halves_double_leave_a_readable_log() {
    let mut grown_to = BTreeSet::new();
    for seed in 0..24 {
        let (sizes, _) = simulate(seed, |world| async move {
            grown_with(&world, 1, often()).await;
            let mut sizes = BTreeSet::new();
            for step in 0..14 {
                let group = world.group(NODE);
                let limit = Duration::from_secs(2);
                let number = BULK + step;
                let proposing = async move { group.propose(number, limit).await };
                let outcome = world.run_on(NODE, proposing);
                if step > 2 && world.draw(2) == 0 {
                    world.sleep(Duration::from_micros(world.draw(30_000))).await;
                    world.kill(NODE, DownReason::Lost);
                    restart_often(&world).await;
                } else {
                    outcome.await.expect("alive").expect("has an outcome");
                    let held = world.group(NODE).state().0.clone();
                    assert!(held.contains(&number), "seed {seed}");
                }
                sizes.insert(world.disk(NODE, "config").borrow().len());
            }
            world.kill(NODE, DownReason::Lost);
            let held = restart_often(&world).await;
            assert!(held.is_sorted(), "once each, in order");
            sizes
        });
        grown_to.extend(sizes);
    }
    assert!(grown_to.len() > 3, "{grown_to:?}");
}

#[test]
fn a_large_state_is_sent_chunk_by_chunk_and_goes_on_where_it_was_cut_off() {
    for lost in [0, 100] {
        simulate(12, |world| async move {
            grown_with(&world, 3, often()).await;
            let leader = agreed_leader(&world).await;
            let mut others = nodes(3).into_iter().filter(|node| *node != leader);
            let absent = others.next().expect("others");
            world.kill(absent, DownReason::Lost);
            let mut expected = vec![0];
            expected.extend(grown_large(&world, leader, 0).await);
            let term = world.group(leader).term();
            world.lose(lost);
            world.start(absent, often()).await.expect("starts");
            world.sleep(Duration::from_secs(30)).await;
            world.lose(0);
            settled(&world).await;
            assert_eq!(world.group(absent).state().0, expected);
            if lost == 0 {
                assert_eq!(world.group(leader).term(), term, "nobody lost patience");
            }
            world.kill(absent, DownReason::Lost);
            world.start(absent, often()).await.expect("starts");
            assert!(world.group(absent).state().0.len() > expected.len() / 2);
        });
    }
}

#[test]
fn a_node_far_behind_is_sent_the_state() {
    simulate(10, |world| async move {
        grown(&world, 3).await;
        let leader = agreed_leader(&world).await;
        let absent = nodes(3)
            .into_iter()
            .find(|node| *node != leader)
            .expect("others");
        world.kill(absent, DownReason::Lost);
        for number in 1..=200 {
            propose(&world, leader, number).await;
        }
        world.start(absent, options()).await.expect("starts");
        settled(&world).await;
        assert_eq!(world.group(absent).state().0, (0..=200).collect::<Vec<_>>());
        // What it was sent is its own now.
        world.kill(absent, DownReason::Lost);
        world.start(absent, options()).await.expect("starts");
        assert!(world.group(absent).state().0.len() > 100);
    });
}
