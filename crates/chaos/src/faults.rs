//! What is done to a cluster, drawn from a seed.
//!
//! An [`Episode`] is a list of [`Act`]s of one [`Class`]. Whatever it leaves undone (a node that
//! stands still, a cut) is undone afterwards. Invariant: apart from a restart of all, no episode
//! disturbs more than two nodes, so that three copies and five nodes bear it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::cluster::Offices;
use crate::network::{Party, Way, both};
use crate::random::Random;

/// Kinds of faults, each with its own bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    /// SIGKILL, and started again later.
    Kill,
    /// SIGKILL, and started again at once.
    KillRestart,
    /// SIGKILL of two at once.
    TwoKills,
    /// SIGKILL of all at once, and started again at once.
    RestartAll,
    /// SIGSTOP, later SIGCONT.
    Silent,
    /// SIGSTOP of two at once.
    TwoSilent,
    /// SIGTERM, and started again.
    Stop,
    /// SIGTERM of two at once.
    TwoStops,
    /// A volume gets another owner.
    Move,
    /// A volume grows.
    Grow,
    /// Nothing passes between two nodes.
    Link,
    /// Nothing passes from one node to another.
    OneWay,
    /// Nothing passes between some pairs of nodes, all of them among three.
    Links,
    /// A node reaches no other node, hosts reach it.
    FromNodes,
    /// A node and hosts do not reach each other.
    FromHosts,
    /// A node reaches nobody.
    FromAll,
    /// A node's file system is full.
    Full,
    /// Several of these on top of each other.
    Mixed,
}

impl Class {
    pub(crate) const ALL: [Self; 18] = [
        Self::Kill,
        Self::KillRestart,
        Self::TwoKills,
        Self::RestartAll,
        Self::Silent,
        Self::TwoSilent,
        Self::Stop,
        Self::TwoStops,
        Self::Move,
        Self::Grow,
        Self::Link,
        Self::OneWay,
        Self::Links,
        Self::FromNodes,
        Self::FromHosts,
        Self::FromAll,
        Self::Full,
        Self::Mixed,
    ];

    /// What a healthy path may stand still: median and worst, if something is promised.
    pub(crate) fn bound(self) -> Option<(Duration, Duration)> {
        let worst = |millis| Some((Duration::from_millis(millis), Duration::from_millis(millis)));
        match self {
            Self::Kill | Self::KillRestart => worst(1000),
            Self::Silent
            | Self::Link
            | Self::OneWay
            | Self::Links
            | Self::FromNodes
            | Self::FromAll => worst(3000),
            Self::TwoSilent => Some((Duration::from_secs(3), Duration::from_secs(4))),
            Self::Stop | Self::TwoStops | Self::Move | Self::Grow => worst(200),
            Self::TwoKills | Self::RestartAll | Self::FromHosts | Self::Full | Self::Mixed => None,
        }
    }

    fn needs_cuts(self) -> bool {
        match self {
            Self::Link
            | Self::OneWay
            | Self::Links
            | Self::FromNodes
            | Self::FromHosts
            | Self::FromAll => true,
            Self::Kill
            | Self::KillRestart
            | Self::TwoKills
            | Self::RestartAll
            | Self::Silent
            | Self::TwoSilent
            | Self::Stop
            | Self::TwoStops
            | Self::Move
            | Self::Grow
            | Self::Full
            | Self::Mixed => false,
        }
    }
}

/// What this machine lets us do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    pub(crate) can_cut: bool,
    pub(crate) has_small_file_systems: bool,
}

impl Means {
    pub(crate) fn classes(self) -> Vec<Class> {
        let possible = Class::ALL.into_iter().filter(|class| {
            (self.can_cut || !class.needs_cuts())
                && (self.has_small_file_systems || *class != Class::Full)
        });
        possible.collect()
    }
}

/// One thing that is done. Nodes and volumes count from zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Kill(Vec<usize>),
    Terminate(Vec<usize>),
    Start(Vec<usize>),
    Pause(Vec<usize>),
    Resume(Vec<usize>),
    /// These ways and no others.
    Cut(BTreeSet<Way>),
    Move {
        volume: usize,
        to: usize,
    },
    Grow(usize),
    /// Fills the file system, and waits for the node to end.
    Fill(usize),
    Empty(usize),
    Wait(Duration),
}

impl std::fmt::Display for Act {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = |nodes: &Vec<usize>| {
            let numbers: Vec<String> = nodes.iter().map(|node| (node + 1).to_string()).collect();
            numbers.join(" ")
        };
        match self {
            Self::Kill(of) => write!(formatter, "kill {}", nodes(of)),
            Self::Terminate(of) => write!(formatter, "stop {}", nodes(of)),
            Self::Start(of) => write!(formatter, "start {}", nodes(of)),
            Self::Pause(of) => write!(formatter, "pause {}", nodes(of)),
            Self::Resume(of) => write!(formatter, "resume {}", nodes(of)),
            Self::Cut(ways) if ways.is_empty() => write!(formatter, "heal all cuts"),
            Self::Cut(ways) => {
                let name = |party: Party| match party {
                    Party::Hosts => "hosts".to_owned(),
                    Party::Node(node) => (node + 1).to_string(),
                };
                let told = ways
                    .iter()
                    .map(|(from, to)| format!("{}>{}", name(*from), name(*to)));
                write!(formatter, "cut {}", told.collect::<Vec<_>>().join(" "))
            }
            Self::Move { volume, to } => write!(formatter, "move volume {volume} to {}", to + 1),
            Self::Grow(volume) => write!(formatter, "grow volume {volume}"),
            Self::Fill(node) => write!(formatter, "fill the file system of {}", node + 1),
            Self::Empty(node) => write!(formatter, "empty the file system of {}", node + 1),
            Self::Wait(time) => write!(formatter, "wait {:.1} s", time.as_secs_f64()),
        }
    }
}

impl Serialize for Act {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// See the module's header.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Episode {
    pub(crate) class: Class,
    pub(crate) acts: Vec<Act>,
    /// Nodes whose portals are no healthy paths meanwhile.
    pub(crate) disturbed: BTreeSet<usize>,
}

/// How long faults last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Milliseconds; at least what it takes to notice a silent node.
    pub(crate) longest: u64,
}

/// Draws an episode. `None` if this class finds nothing to do now.
pub(crate) fn draw(
    class: Class,
    random: &mut Random,
    offices: &Offices,
    nodes: usize,
    pace: Pace,
    means: Means,
) -> Option<Episode> {
    let mut dice = Dice {
        random,
        offices,
        nodes,
        pace,
    };
    let (acts, disturbed) = dice.acts(class, means)?;
    Some(Episode {
        class,
        acts,
        disturbed,
    })
}

struct Dice<'a> {
    random: &'a mut Random,
    offices: &'a Offices,
    nodes: usize,
    pace: Pace,
}

type Drawn = Option<(Vec<Act>, BTreeSet<usize>)>;

impl Dice<'_> {
    fn acts(&mut self, class: Class, means: Means) -> Drawn {
        let one = self.important();
        let two = vec![one, self.other_than(one)];
        let only = BTreeSet::from([one]);
        let pair: BTreeSet<usize> = two.iter().copied().collect();
        let long = self.long();
        let short = self.random.millis(200, 3000);
        let drawn = match class {
            Class::Kill => (
                vec![
                    Act::Kill(vec![one]),
                    Act::Wait(short),
                    Act::Start(vec![one]),
                ],
                only,
            ),
            Class::KillRestart => (vec![Act::Kill(vec![one]), Act::Start(vec![one])], only),
            Class::TwoKills => (
                vec![Act::Kill(two.clone()), Act::Wait(short), Act::Start(two)],
                pair,
            ),
            Class::RestartAll => {
                let all: Vec<usize> = (0..self.nodes).collect();
                (
                    vec![Act::Kill(all.clone()), Act::Start(all.clone())],
                    all.into_iter().collect(),
                )
            }
            Class::Silent => {
                // Now and then too short to be noticed.
                let time = if self.random.percent(25) { short } else { long };
                (
                    vec![
                        Act::Pause(vec![one]),
                        Act::Wait(time),
                        Act::Resume(vec![one]),
                    ],
                    only,
                )
            }
            Class::TwoSilent => (
                vec![Act::Pause(two.clone()), Act::Wait(long), Act::Resume(two)],
                pair,
            ),
            Class::Stop => (
                vec![
                    Act::Terminate(vec![one]),
                    Act::Wait(short),
                    Act::Start(vec![one]),
                ],
                only,
            ),
            Class::TwoStops => (
                vec![
                    Act::Terminate(two.clone()),
                    Act::Wait(short),
                    Act::Start(two),
                ],
                pair,
            ),
            Class::Move => (vec![self.movement()?], BTreeSet::new()),
            Class::Grow => {
                let volume = self.random.below(self.offices.volumes.len());
                (vec![Act::Grow(volume)], BTreeSet::new())
            }
            Class::Link => {
                let (a, b) = self.link();
                let ways = both(Party::Node(a), Party::Node(b)).into();
                (
                    vec![Act::Cut(ways), Act::Wait(long)],
                    BTreeSet::from([a, b]),
                )
            }
            Class::OneWay => {
                let (a, b) = self.link();
                let ways = BTreeSet::from([(Party::Node(a), Party::Node(b))]);
                (
                    vec![Act::Cut(ways), Act::Wait(long)],
                    BTreeSet::from([a, b]),
                )
            }
            Class::Links => self.links(long),
            Class::FromNodes => (
                vec![Act::Cut(self.isolation_of(one)), Act::Wait(long)],
                only,
            ),
            Class::FromHosts => {
                let ways = both(Party::Hosts, Party::Node(one)).into();
                (vec![Act::Cut(ways), Act::Wait(long)], only)
            }
            Class::FromAll => {
                let mut ways = self.isolation_of(one);
                ways.extend(both(Party::Hosts, Party::Node(one)));
                (vec![Act::Cut(ways), Act::Wait(long)], only)
            }
            Class::Full => {
                let acts = vec![
                    Act::Fill(one),
                    Act::Wait(short),
                    Act::Empty(one),
                    Act::Start(vec![one]),
                ];
                (acts, only)
            }
            Class::Mixed => (self.mixed(&two, means), pair),
        };
        Some(drawn)
    }

    /// Two nodes, and more than one thing that happens to them, with moves in between.
    fn mixed(&mut self, two: &[usize], means: Means) -> Vec<Act> {
        let mut acts = Vec::new();
        let steps = 3 + self.random.below(3);
        for _ in 0..steps {
            let node = two[self.random.below(2)];
            let pause = self.random.millis(50, 2500);
            let mut more = match self.random.below(if means.can_cut { 7 } else { 4 }) {
                0 => vec![Act::Kill(vec![node]), Act::Start(vec![node])],
                1 => vec![
                    Act::Pause(vec![node]),
                    Act::Wait(pause),
                    Act::Resume(vec![node]),
                ],
                2 => vec![
                    Act::Pause(vec![node]),
                    Act::Wait(self.long()),
                    Act::Resume(vec![node]),
                ],
                3 => vec![Act::Terminate(vec![node]), Act::Start(vec![node])],
                4 => vec![Act::Cut(self.isolation_of(node)), Act::Wait(pause)],
                5 => {
                    let other = self.other_than(node);
                    vec![Act::Cut(both(Party::Node(node), Party::Node(other)).into())]
                }
                _ => vec![Act::Cut(both(Party::Hosts, Party::Node(node)).into())],
            };
            if self.random.percent(50) {
                let at = self.random.below(more.len() + 1);
                more.splice(at..at, self.movement());
            }
            acts.extend(more);
            acts.push(Act::Wait(self.random.millis(0, 1500)));
        }
        acts
    }

    /// Some pairs among three nodes, of which one is important. Two nodes keep all their links.
    fn links(&mut self, long: Duration) -> (Vec<Act>, BTreeSet<usize>) {
        let one = self.important();
        let mut others: Vec<usize> = (0..self.nodes).filter(|node| *node != one).collect();
        self.random.shuffle(&mut others);
        let (second, third) = (others[0], others[1]);
        let mut pairs = vec![(one, second), (one, third), (second, third)];
        self.random.shuffle(&mut pairs);
        pairs.truncate(2 + self.random.below(2));
        let ways = pairs
            .iter()
            .flat_map(|(a, b)| both(Party::Node(*a), Party::Node(*b)));
        let acts = vec![Act::Cut(ways.collect()), Act::Wait(long)];
        (acts, BTreeSet::from([one, second, third]))
    }

    fn isolation_of(&self, node: usize) -> BTreeSet<Way> {
        let others = (0..self.nodes).filter(|other| *other != node);
        others
            .flat_map(|other| both(Party::Node(node), Party::Node(other)))
            .collect()
    }

    /// Longer than it takes to notice.
    fn long(&mut self) -> Duration {
        self.random
            .millis(4000.min(self.pace.longest), self.pace.longest)
    }

    /// More often one that matters.
    fn important(&mut self) -> usize {
        let owners = self.owners();
        let chosen = match self.random.below(10) {
            0..6 => self.random.choose(&owners),
            6..8 => self.offices.leader,
            _ => None,
        };
        chosen.unwrap_or_else(|| self.random.below(self.nodes))
    }

    fn owners(&self) -> Vec<usize> {
        self.offices
            .volumes
            .iter()
            .filter_map(|volume| volume.owner)
            .collect()
    }

    fn other_than(&mut self, node: usize) -> usize {
        let other = self.random.below(self.nodes - 1);
        if other < node { other } else { other + 1 }
    }

    /// Owner and leader, owner and holder of a copy, or any two.
    fn link(&mut self) -> (usize, usize) {
        let volume = self.random.below(self.offices.volumes.len().max(1));
        let office = self.offices.volumes.get(volume);
        let owner = office.and_then(|office| office.owner);
        let other = match self.random.below(10) {
            0..4 => self.offices.leader,
            4..7 => {
                let holders = office
                    .map(|office| office.holders.clone())
                    .unwrap_or_default();
                self.random.choose(&holders)
            }
            _ => None,
        };
        let owner = owner.unwrap_or_else(|| self.random.below(self.nodes));
        let other = other.filter(|other| *other != owner);
        (owner, other.unwrap_or_else(|| self.other_than(owner)))
    }

    fn movement(&mut self) -> Option<Act> {
        let volume = self.random.below(self.offices.volumes.len());
        let office = &self.offices.volumes[volume];
        let holders = office.holders.iter().copied();
        let others: Vec<usize> = holders
            .filter(|holder| Some(*holder) != office.owner)
            .collect();
        let to = self.random.choose(&others)?;
        Some(Act::Move { volume, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Office;

    fn offices() -> Offices {
        let office = |owner| Office {
            owner: Some(owner),
            holders: vec![owner, (owner + 1) % 5, (owner + 2) % 5],
        };
        Offices {
            leader: Some(3),
            volumes: vec![office(0), office(2)],
        }
    }

    const MEANS: Means = Means {
        can_cut: true,
        has_small_file_systems: true,
    };

    fn drawn(class: Class, seed: u64) -> Episode {
        let pace = Pace { longest: 12_000 };
        draw(class, &mut Random::new(seed), &offices(), 5, pace, MEANS).unwrap()
    }

    /// Nodes that an act does something to; ends of links do not count, both of them live.
    fn harmed(act: &Act) -> Vec<usize> {
        match act {
            Act::Kill(nodes) | Act::Terminate(nodes) | Act::Pause(nodes) => nodes.clone(),
            Act::Fill(node) => vec![*node],
            Act::Start(_)
            | Act::Resume(_)
            | Act::Cut(_)
            | Act::Move { .. }
            | Act::Grow(_)
            | Act::Empty(_)
            | Act::Wait(_) => Vec::new(),
        }
    }

    #[test]
    fn no_episode_disturbs_more_than_the_copies_can_bear() {
        for class in Class::ALL {
            for seed in 0..200 {
                let episode = drawn(class, seed);
                let harmed: BTreeSet<usize> = episode.acts.iter().flat_map(harmed).collect();
                assert!(harmed.is_subset(&episode.disturbed), "{episode:?}");
                assert!(
                    harmed.len() <= 2 || class == Class::RestartAll,
                    "{episode:?}"
                );
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_episode() {
        for class in Class::ALL {
            assert_eq!(drawn(class, 5).acts, drawn(class, 5).acts);
        }
    }

    #[test]
    fn without_namespaces_nothing_is_cut() {
        let means = Means {
            can_cut: false,
            has_small_file_systems: false,
        };
        assert!(!means.classes().contains(&Class::Link));
        assert!(!means.classes().contains(&Class::Full));
        assert_eq!(MEANS.classes(), Class::ALL);
        let pace = Pace { longest: 8000 };
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let episode = draw(Class::Mixed, &mut random, &offices(), 5, pace, means).unwrap();
            let cuts = episode.acts.iter().filter(|act| matches!(act, Act::Cut(_)));
            assert_eq!(cuts.count(), 0);
        }
    }

    #[test]
    fn cut_links_leave_a_majority_whole() {
        for seed in 0..200 {
            let episode = drawn(Class::Links, seed);
            assert_eq!(episode.disturbed.len(), 3);
            let told = episode.acts[0].to_string();
            assert!(told.starts_with("cut ") && told.contains('>'), "{told}");
        }
    }
}
