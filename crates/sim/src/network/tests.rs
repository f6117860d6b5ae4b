//! Links under faults.

use std::cell::RefCell;

use super::*;
use crate::faults::FaultClass;
use crate::simulation::{Options, Simulation};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Heard = Rc<RefCell<Vec<String>>>;

/// Two nodes that keep links to each other, note what they hear, and send a numbered frame
/// every 10 ms.
struct Pair {
    simulation: Simulation,
    heard: [Heard; 2],
}

impl Pair {
    fn new(simulation: &Simulation) -> Self {
        let pair = Self {
            simulation: simulation.clone(),
            heard: Default::default(),
        };
        for node in [ONE, TWO] {
            simulation.add_host(node);
            pair.start(node);
        }
        pair
    }

    fn start(&self, node: NodeId) {
        let heard = self.heard[node.0 as usize - 1].clone();
        self.simulation.start(node, move |machine| async move {
            let peer = if node == ONE { TWO } else { ONE };
            let mut events = machine.links.take_events();
            machine.links.set_peers(vec![(peer, String::new())]);
            let (links, clock) = (machine.links.clone(), machine.runtime.clone());
            machine.runtime.spawn("sender", async move {
                for number in 0_u32.. {
                    clock.sleep(MILLISECOND * 10).await;
                    links.send(peer, Frame::new(number.to_le_bytes().to_vec()));
                }
            });
            while let Some(event) = events.recv().await {
                heard.borrow_mut().push(match event {
                    LinkEvent::Up { incarnation, .. } => format!("up {}", incarnation.0),
                    LinkEvent::Down {
                        incarnation,
                        reason,
                        ..
                    } => {
                        format!("down {} {reason:?}", incarnation.0)
                    }
                    LinkEvent::Frame {
                        incarnation, frame, ..
                    } => {
                        let number: [u8; 4] = frame
                            .header
                            .as_ref()
                            .try_into()
                            .expect("a frame is a number");
                        format!("frame {} {}", incarnation.0, u32::from_le_bytes(number))
                    }
                });
            }
        });
    }

    async fn sleep(&self, duration: Duration) {
        self.simulation.runtime().sleep(duration).await;
    }

    /// What a node heard since the last call, without frames.
    fn news(&self, node: NodeId) -> Vec<String> {
        self.all(node)
            .into_iter()
            .filter(|line| !line.starts_with("frame"))
            .collect()
    }

    /// The numbers of the frames a node heard since the last call.
    fn frames(&self, node: NodeId) -> Vec<u32> {
        let number = |line: &String| line.rsplit(' ').next().and_then(|word| word.parse().ok());
        self.all(node)
            .iter()
            .filter(|line| line.starts_with("frame"))
            .filter_map(number)
            .collect()
    }

    fn all(&self, node: NodeId) -> Vec<String> {
        self.heard[node.0 as usize - 1].take()
    }
}

/// Runs a test in several worlds.
fn in_worlds<F>(scenario: impl Fn(Pair) -> F)
where
    F: Future<Output = ()> + 'static,
{
    for seed in 0..20 {
        let finished = Simulation::run(Options::new(seed), |simulation| {
            scenario(Pair::new(&simulation))
        });
        finished.result.expect("the scenario ends");
    }
}

#[test]
fn links_come_up_and_carry_every_frame_in_order() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        let all = pair.all(ONE);
        assert_eq!(all[0], "up 1");
        pair.heard[0].borrow_mut().extend(all);
        let frames = pair.frames(ONE);
        assert!(frames.len() > 90);
        assert!(
            frames.is_sorted_by(|one, other| one + 1 == *other),
            "{frames:?}"
        );
    });
}

#[test]
fn a_killed_process_is_refused_by_its_live_host_at_once() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        pair.news(ONE);
        pair.simulation.kill(TWO);
        pair.sleep(MILLISECOND * 50).await;
        assert_eq!(pair.news(ONE), ["down 1 Refused"]);
        pair.sleep(SECOND * 5).await;
        pair.start(TWO);
        pair.sleep(SECOND).await;
        assert_eq!(pair.news(ONE), ["up 2"]);
    });
}

#[test]
fn a_host_without_power_is_silence_and_never_refuses() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        pair.news(ONE);
        pair.simulation.cut_power(&[TWO]);
        pair.sleep(MILLISECOND * 1_900).await;
        assert!(pair.news(ONE).is_empty(), "silence has to be noticed first");
        pair.sleep(MILLISECOND * 700).await;
        assert_eq!(pair.news(ONE), ["down 1 Lost"]);
        pair.sleep(SECOND * 3).await;
        assert!(pair.news(ONE).is_empty());
        pair.simulation.restore_power(TWO);
        pair.sleep(SECOND).await;
        assert_eq!(pair.news(ONE), ["down 1 Refused"], "now the host can tell");
    });
}

#[test]
fn a_paused_process_is_lost_and_comes_back_as_the_same_incarnation() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        pair.news(ONE);
        pair.news(TWO);
        pair.simulation.pause(TWO);
        pair.sleep(SECOND * 4).await;
        assert_eq!(pair.news(ONE), ["down 1 Lost"]);
        pair.simulation.resume(TWO);
        pair.sleep(SECOND).await;
        assert_eq!(pair.news(ONE), ["up 1"]);
        assert_eq!(pair.news(TWO), ["down 1 Lost", "up 1"]);
    });
}

#[test]
fn a_short_partition_delays_frames_and_loses_none() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        let before = pair.frames(TWO);
        let block = |conditions: &mut Conditions| {
            conditions.blocked = Some(FaultClass::OneWayPartition);
        };
        pair.simulation.network().change(ONE, TWO, block);
        pair.sleep(SECOND).await;
        assert!(pair.frames(TWO).is_empty());
        pair.simulation.network().heal();
        pair.sleep(SECOND).await;
        let after = pair.frames(TWO);
        let joint = [before, after].concat();
        assert!(
            joint.is_sorted_by(|one, other| one + 1 == *other),
            "{joint:?}"
        );
        assert!(pair.simulation.faults().get(FaultClass::OneWayPartition) > 50);
    });
}

#[test]
fn a_long_partition_loses_the_link_in_both_directions() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        pair.news(ONE);
        pair.news(TWO);
        // Only the way back is cut: without answers the link is dead all the same.
        pair.simulation.network().change(TWO, ONE, |conditions| {
            conditions.blocked = Some(FaultClass::OneWayPartition);
        });
        pair.sleep(SECOND * 4).await;
        assert_eq!(pair.news(ONE), ["down 1 Lost"]);
        assert_eq!(pair.news(TWO), ["down 1 Lost"]);
        pair.simulation.network().heal();
        pair.sleep(SECOND).await;
        assert_eq!(pair.news(ONE), ["up 1"]);
    });
}

#[test]
fn frames_for_a_dead_process_do_not_reach_its_successor() {
    in_worlds(|pair| async move {
        pair.sleep(SECOND).await;
        pair.simulation.network().change(ONE, TWO, |conditions| {
            conditions.extra_delay_ns = 1_000_000_000;
        });
        pair.sleep(MILLISECOND * 500).await;
        let last = pair.frames(TWO).last().copied();
        pair.simulation.kill(TWO);
        pair.start(TWO);
        pair.simulation.network().heal();
        pair.sleep(SECOND * 3).await;
        let first = pair.frames(TWO).first().copied();
        assert!(
            first > last.map(|last| last + 40),
            "{first:?} came after {last:?}"
        );
    });
}

#[test]
fn loss_duplication_and_reordering_happen_when_asked_for() {
    in_worlds(|pair| async move {
        pair.simulation.network().change(ONE, TWO, |conditions| {
            conditions.loss_ppm = 200_000;
            conditions.duplicate_ppm = 200_000;
            conditions.reorder_ppm = 200_000;
            conditions.extra_delay_ns = 50_000_000;
        });
        pair.sleep(SECOND * 5).await;
        let frames = pair.frames(TWO);
        let mut distinct = frames.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let sent = frames.iter().max().map_or(0, |newest| *newest as usize);
        assert!(distinct.len() < frames.len(), "none twice");
        assert!(distinct.len() < sent - 20, "none lost");
        assert!(!frames.is_sorted(), "none overtaken");
        let counts = pair.simulation.faults();
        for class in [
            FaultClass::Loss,
            FaultClass::Duplication,
            FaultClass::Reordering,
        ] {
            assert!(counts.get(class) > 20, "{class}");
        }
    });
}
