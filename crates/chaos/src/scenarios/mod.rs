//! Directed scenarios: one fault at one place, and a host that leaves at the worst moment.
//!
//! | scenario | fault | the host |
//! |---|---|---|
//! | paused-portal | its portal's node stands still for 8 s | resets after 1.3 s |
//! | closed-portal | the same | closes after 1.3 s |
//! | cut-portal | its portal's node is cut off from the others for 15 s | resets after 6 s |
//! | cut-off-portal | its portal's node is cut off from all for 6 s | resets after 1.3 s |
//! | cut-owner | the owner is cut off from all for 12 s | resets at a healthy portal after 6.3 s |
//! | cut-owner-early | the same | resets at a healthy portal after 1.3 s |
//! | moved-and-killed | the volume moves away, then its portal's node is killed | loses the path |
//! | link | owner and config leader, which has a copy, do not reach each other | none leaves |
//! | isolated-portal | a portal's node is cut off from the others, hosts reach it | stays |
//!
//! A host that leaves repeats at once through another portal what was not acknowledged, then
//! overwrites it twice. From then on the blocks are read all the time, through the healthy portals
//! and, once the fault is over, through all. The register decides (see [`crate::register`]).

mod lanes;
mod probe;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::{Either, select};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::Cluster;
use crate::faults::{Act, Means, Pace};
use crate::ledger::{Doer, span};
use crate::nemesis::Nemesis;
use crate::network::{Party, Way, both};
use crate::random::Random;
use crate::report::Strictness;
use crate::run::{end_clients, read_back, residents};
use crate::world::{Leaving, World};
use lanes::{Lanes, look, press, repeat};
use probe::{Answer, probe};

/// Load before the fault.
const WARM_UP: Duration = Duration::from_millis(700);
/// Until a host notices that the process behind its path is gone.
const LOSS_LIMIT: Duration = Duration::from_secs(20);
/// After the fault, the blocks are looked at for so long.
const WATCHED: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const LOGIN_LIMIT: Duration = Duration::from_secs(2);
/// Volumes of the directed scenarios' hosts use one host's blocks.
const HOSTS: u32 = 1;
/// Within this an isolated portal tells hosts to look elsewhere, and what it was told already has
/// an answer or has lost its session.
const ISOLATED_LIMIT: Duration = Duration::from_secs(2);
/// A probe takes its time, too.
const PROBE_SLACK: Duration = Duration::from_millis(500);
/// By then every node knows that a link is down.
const LINK_NOTICED: Duration = Duration::from_secs(8);
const LINK_TIME: Duration = Duration::from_secs(45);
const ISOLATED_TIME: Duration = Duration::from_secs(25);
/// Owner and leader have to be brought where the scenario wants them.
const ARRANGEMENTS_MAX: usize = 8;

/// See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    PausedPortal,
    ClosedPortal,
    CutPortal,
    CutOffPortal,
    CutOwner,
    CutOwnerEarly,
    MovedAndKilled,
    Link,
    IsolatedPortal,
}

impl Scenario {
    pub(crate) const ALL: [Self; 9] = [
        Self::PausedPortal,
        Self::ClosedPortal,
        Self::CutPortal,
        Self::CutOffPortal,
        Self::CutOwner,
        Self::CutOwnerEarly,
        Self::MovedAndKilled,
        Self::Link,
        Self::IsolatedPortal,
    ];
}

/// A host that gives its path up.
struct Giving {
    /// The path that it begins with; the healthy ones are all others that the fault leaves alone.
    portal: usize,
    acts: Vec<Act>,
    /// Nodes that the fault is at.
    disturbed: BTreeSet<usize>,
    /// After the acts; none for a host whose path is lost anyway.
    leaves: Option<(Duration, Leaving)>,
    /// After the acts, everything is undone.
    lasts: Duration,
}

/// Runs scenarios one after another on one cluster. Whether nothing was wrong.
pub(crate) async fn run(
    mut cluster: Cluster,
    wanted: &[Scenario],
    seed: u64,
    bounds: Strictness,
) -> anyhow::Result<bool> {
    let mut random = Random::new(seed);
    let mut wrong = Vec::new();
    let world = World::new(&cluster, random.next(), HOSTS);
    let mut clients = JoinSet::new();
    residents(&world, &mut clients, &mut random);
    for scenario in wanted {
        let before = world.ledger.violations_count();
        let outcome = Stage::run(*scenario, &mut cluster, &world, &mut random, bounds).await;
        let (note, mut failures) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => (String::new(), vec![format!("{error:#}")]),
        };
        world.ledger.check();
        let count = world.ledger.violations_count() - before;
        if count > 0 {
            let all = world.ledger.violations();
            let first = all.get(before as usize);
            let breach = first.map_or(String::new(), |first| format!(", first {:?}", first.breach));
            failures.push(format!("{count} violations{breach}"));
        }
        let result = if failures.is_empty() { "ok" } else { "FAILED" };
        println!("{scenario:?}: {result}: {note}");
        for failure in failures {
            println!("    {failure}");
            wrong.push(format!("{scenario:?}: {failure}"));
        }
    }
    end_clients(&world, clients).await?;
    read_back(&world, &mut random).await?;
    world.ledger.check();
    if wrong.is_empty() && world.ledger.violations_count() > 0 {
        wrong.push(format!("{} violations", world.ledger.violations_count()));
    }
    for found in cluster.stop_and_check().await? {
        wrong.push(format!("store check: {found}"));
    }
    println!("\n{} scenarios, {} complaints", wanted.len(), wrong.len());
    for wrong in &wrong {
        println!("  {wrong}");
    }
    Ok(wrong.is_empty())
}

struct Stage<'a> {
    nemesis: Nemesis<'a>,
    world: Rc<World>,
    bounds: Strictness,
    failures: Vec<String>,
}

impl<'a> Stage<'a> {
    /// What was seen, and what was wrong apart from the ledger's violations.
    async fn run(
        scenario: Scenario,
        cluster: &'a mut Cluster,
        world: &Rc<World>,
        random: &mut Random,
        bounds: Strictness,
    ) -> anyhow::Result<(String, Vec<String>)> {
        let means = Means {
            can_cut: cluster.network.can_cut(),
            has_small_file_systems: cluster.has_small_file_systems(),
        };
        let needs_cuts = match scenario {
            Scenario::PausedPortal | Scenario::ClosedPortal | Scenario::MovedAndKilled => false,
            Scenario::CutPortal
            | Scenario::CutOffPortal
            | Scenario::CutOwner
            | Scenario::CutOwnerEarly
            | Scenario::Link
            | Scenario::IsolatedPortal => true,
        };
        if needs_cuts && !means.can_cut {
            return Ok(("skipped: links cannot be cut here".to_owned(), Vec::new()));
        }
        let pace = Pace { longest: 0 };
        let nemesis = Nemesis::new(cluster, world, random.fork(), pace, means);
        let mut stage = Self {
            nemesis,
            world: Rc::clone(world),
            bounds,
            failures: Vec::new(),
        };
        stage.nemesis.until_whole(0).await?;
        let outcome = stage.play(scenario).await;
        // Whatever came of it: the next one begins with a whole cluster.
        let undone = world.ledger.now();
        stage.nemesis.undo().await?;
        stage.nemesis.until_whole(undone).await?;
        stage.failures.append(&mut stage.nemesis.failures);
        Ok((outcome?, stage.failures))
    }

    async fn play(&mut self, scenario: Scenario) -> anyhow::Result<String> {
        let (owner, other) = self.owner_and_other(0).await?;
        let node = Party::Node;
        let all: Vec<usize> = (0..self.world.portals.len()).collect();
        let from_nodes = |one: usize| -> BTreeSet<Way> {
            let others = all.iter().filter(|other| **other != one);
            others
                .flat_map(|other| both(node(one), node(*other)))
                .collect()
        };
        let from_all = |one: usize| {
            let mut ways = from_nodes(one);
            ways.extend(both(Party::Hosts, node(one)));
            ways
        };
        let reset = |millis| Some((Duration::from_millis(millis), Leaving::Reset));
        let giving = match scenario {
            Scenario::PausedPortal | Scenario::ClosedPortal => Giving {
                portal: other,
                acts: vec![Act::Pause(vec![other])],
                disturbed: BTreeSet::from([other]),
                leaves: match scenario {
                    Scenario::ClosedPortal => Some((Duration::from_millis(1300), Leaving::Close)),
                    _ => reset(1300),
                },
                lasts: Duration::from_secs(8),
            },
            Scenario::CutPortal => Giving {
                portal: other,
                acts: vec![Act::Cut(from_nodes(other))],
                disturbed: BTreeSet::from([other]),
                leaves: reset(6000),
                lasts: Duration::from_secs(15),
            },
            Scenario::CutOffPortal => Giving {
                portal: other,
                // The host still gets through for a moment.
                acts: vec![
                    Act::Cut(from_nodes(other)),
                    Act::Wait(Duration::from_millis(30)),
                    Act::Cut(from_all(other)),
                ],
                disturbed: BTreeSet::from([other]),
                leaves: reset(1300),
                lasts: Duration::from_secs(6),
            },
            Scenario::CutOwner | Scenario::CutOwnerEarly => Giving {
                portal: other,
                acts: vec![Act::Cut(from_all(owner))],
                disturbed: BTreeSet::from([owner]),
                leaves: reset(if scenario == Scenario::CutOwner {
                    6300
                } else {
                    1300
                }),
                lasts: Duration::from_secs(12),
            },
            Scenario::MovedAndKilled => {
                let offices = self.nemesis.cluster.offices().await?;
                let mut holders = offices.volumes[0].holders.iter().copied();
                let to = holders
                    .find(|holder| *holder != owner)
                    .context("another holder")?;
                Giving {
                    portal: owner,
                    acts: vec![Act::Move { volume: 0, to }, Act::Kill(vec![owner])],
                    disturbed: BTreeSet::from([owner]),
                    leaves: None,
                    lasts: Duration::from_secs(4),
                }
            }
            Scenario::Link => return self.link().await,
            Scenario::IsolatedPortal => return self.isolated(other, from_nodes(other)).await,
        };
        self.give_up(giving).await
    }

    /// The owner of a volume, and a node whose portal has to ask it.
    async fn owner_and_other(&self, volume: usize) -> anyhow::Result<(usize, usize)> {
        let offices = self.nemesis.cluster.offices().await?;
        let owner = offices.volumes[volume].owner.context("an owner")?;
        // One that decides nothing, so that the fault is the portal's alone.
        let mut others = (0..self.world.portals.len()).filter(|node| *node != owner);
        let other = others
            .find(|node| Some(*node) != offices.leader)
            .context("a node")?;
        Ok((owner, other))
    }

    async fn give_up(&mut self, giving: Giving) -> anyhow::Result<String> {
        let Giving {
            portal,
            acts,
            disturbed,
            leaves,
            lasts,
        } = giving;
        let world = Rc::clone(&self.world);
        let healthy: Vec<usize> = (0..world.portals.len())
            .filter(|node| *node != portal && !disturbed.contains(node))
            .collect();
        let path = world.connect(0, doer(portal), LOGIN_LIMIT).await?;
        let [next, third, ..] = healthy[..] else {
            anyhow::bail!("not enough healthy portals");
        };
        let next = world.connect(0, doer(next), LOGIN_LIMIT).await?;
        let third = world.connect(0, doer(third), LOGIN_LIMIT).await?;
        let lanes = Lanes::new();
        let mut press = std::pin::pin!(press(&world, &path, &lanes));
        let acting = async {
            sleep(WARM_UP).await;
            for act in &acts {
                self.nemesis.act(act).await?;
            }
            lanes.late.notify_waiters();
            anyhow::Ok(Instant::now())
        };
        let (fired, is_lost) = match select(&mut press, Box::pin(acting)).await {
            Either::Left((_, acting)) => (acting.await?, true),
            Either::Right((fired, _)) => (fired?, false),
        };
        let how = match leaves {
            Some((after, how)) if !is_lost => {
                // A path that is lost meanwhile is given up at once.
                let _ = timeout(after, &mut press).await;
                how
            }
            Some((_, how)) => how,
            None => {
                timeout(LOSS_LIMIT, &mut press)
                    .await
                    .context("the path is not lost")?;
                Leaving::Reset
            }
        };
        let given_up = world.leave(&path, how).await;
        let left = lanes.give_up(&world, given_up);
        let count = left.len();
        let repeated = repeat(&world, &[&next, &third], &left).await;
        let again = repeat(&world, &[&next, &third], &left).await;
        repeat(&world, &[&third, &next], &left).await;
        let told = format!(
            "{count} writes were under way, repeated after {:.2} s, overwritten after {:.2} s",
            span(given_up, repeated).as_secs_f64(),
            span(given_up, again).as_secs_f64(),
        );
        ensure!(count > 0, "nothing was under way when the host left");
        look(&world, &[&next, &third], &left, fired + lasts).await;
        let undone = world.ledger.now();
        self.nemesis.undo().await?;
        look(&world, &[&next, &third], &left, Instant::now() + WATCHED).await;
        self.nemesis.until_whole(undone).await?;
        Ok(told)
    }

    /// Cuts the link between an owner and a config leader that holds a copy.
    async fn link(&mut self) -> anyhow::Result<String> {
        let (volume, owner, leader) = self.arrange().await?;
        let begun = self.world.ledger.now();
        let ways = both(Party::Node(owner), Party::Node(leader)).into();
        self.nemesis.act(&Act::Cut(ways)).await?;
        sleep(LINK_NOTICED).await;
        for (node, phase) in self.nemesis.cluster.phases().await {
            if phase == "healthy" {
                let node = node + 1;
                self.failures
                    .push(format!("node {node} says healthy although a link is down"));
            }
        }
        let since = span(begun, self.world.ledger.now());
        sleep(LINK_TIME.saturating_sub(since)).await;
        let ended = self.world.ledger.now();
        let gaps = &self.world.gaps;
        let others = gaps.longest(begun, ended, |portal| portal != owner && portal != leader);
        let ends = gaps.longest(begun, ended, |portal| portal == owner || portal == leader);
        let length = |gap: Option<crate::gaps::Gap>| gap.map_or(Duration::ZERO, |gap| gap.length());
        let (others, ends) = (length(others), length(ends));
        let bound = self.bounds.of(Duration::from_secs(3));
        if others > bound {
            self.failures
                .push(format!("no I/O for {:.2} s", others.as_secs_f64()));
        }
        Ok(format!(
            "volume {volume}, owner {} and leader {}: gap {:.2} s at the other portals, {:.2} s at \
             these two",
            owner + 1,
            leader + 1,
            others.as_secs_f64(),
            ends.as_secs_f64(),
        ))
    }

    /// A volume, its owner and the config leader, which is another node with a copy.
    async fn arrange(&mut self) -> anyhow::Result<(usize, usize, usize)> {
        for _ in 0..ARRANGEMENTS_MAX {
            let offices = self.nemesis.cluster.offices().await?;
            let leader = offices.leader.context("a leader")?;
            let mut volumes = offices.volumes.iter().enumerate();
            let held = volumes.find(|(_, office)| office.holders.contains(&leader));
            let Some((volume, office)) = held else {
                // Another leader; it may have a copy.
                self.nemesis.cluster.terminate(&[leader]).await?;
                self.nemesis.undo().await?;
                self.nemesis
                    .cluster
                    .until_whole(Duration::from_secs(60))
                    .await?;
                continue;
            };
            match office.owner {
                Some(owner) if owner != leader => return Ok((volume, owner, leader)),
                _ => {
                    let mut holders = office.holders.iter().copied();
                    let to = holders
                        .find(|holder| *holder != leader)
                        .context("a holder")?;
                    self.nemesis.cluster.move_volume(volume, to).await?;
                }
            }
        }
        anyhow::bail!("the leader never held a copy")
    }

    /// Cuts a portal's node off from the others, and looks at what it tells hosts.
    async fn isolated(&mut self, portal: usize, ways: BTreeSet<Way>) -> anyhow::Result<String> {
        let world = Rc::clone(&self.world);
        let staying = world.connect(0, doer(portal), LOGIN_LIMIT).await?;
        let lanes = Lanes::new();
        let press = press(&world, &staying, &lanes);
        let watch = async {
            sleep(WARM_UP).await;
            self.nemesis.act(&Act::Cut(ways)).await?;
            lanes.late.notify_waiters();
            let cut = Instant::now();
            let mut told_after = None;
            let mut last_good = Duration::ZERO;
            let mut said = Vec::new();
            while cut.elapsed() < ISOLATED_TIME {
                let answer = probe(&world, portal).await;
                let at = cut.elapsed();
                match &answer {
                    Answer::Serves(_) => {
                        told_after = None;
                        last_good = at;
                    }
                    Answer::Elsewhere(_) => {
                        told_after.get_or_insert(at);
                    }
                }
                let text = answer.to_string();
                if said.last().is_none_or(|(_, last)| *last != text) {
                    said.push((at, text));
                }
                sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok((told_after, last_good, said))
        };
        let mut press = std::pin::pin!(press);
        let watched = match select(&mut press, Box::pin(watch)).await {
            Either::Left(((), watch)) => watch.await,
            Either::Right((watched, _)) => watched,
        };
        let (told_after, last_good, said) = watched?;
        let longest = lanes.longest();
        let given_up = world.leave(&staying, Leaving::Reset).await;
        lanes.give_up(&world, given_up);
        let limit = self.bounds.of(ISOLATED_LIMIT + PROBE_SLACK);
        if told_after.is_none_or(|after| after > limit) {
            let last = last_good.as_secs_f64();
            self.failures.push(format!(
                "hosts are not told to look elsewhere, last at {last:.1} s"
            ));
        }
        if longest > limit {
            let longest = longest.as_secs_f64();
            self.failures.push(format!(
                "a command had no answer and its session lived {longest:.1} s"
            ));
        }
        let said = said
            .iter()
            .map(|(at, text)| format!("{:.1} s {text}", at.as_secs_f64()));
        let said = said.take(8).collect::<Vec<_>>().join("; ");
        Ok(format!(
            "told after {:.1} s, longest command {:.1} s; {said}",
            told_after.unwrap_or(ISOLATED_TIME).as_secs_f64(),
            longest.as_secs_f64()
        ))
    }
}

fn doer(portal: usize) -> Doer {
    Doer {
        client: 100 + portal as u16,
        portal: portal as u16,
    }
}
