//! Which volumes to move so that the nodes bear alike: a pure function of what was measured.
//!
//! The unit of load is CPU time, in microseconds for each second. A volume bears what its reads
//! and writes are reckoned to cost its owner, and [`STANDING_US`] beside it: so idle volumes are
//! spread by number. A node bears what its process really uses, if that is more than its volumes
//! account for: there are portals and copies on it, too.
//!
//! A volume moves from the node that bears most to one that bears less, and only if the second
//! stays below what the first was at: every move makes the sum of the squares smaller, so a plan
//! ends, and no move is ever worth taking back.

use std::collections::BTreeMap;

use holdfast_runtime::NodeId;
use holdfast_wire::{View, VolumeId};

/// What a volume counts for that does nothing.
const STANDING_US: u64 = 2_000;
/// What operations are reckoned to cost their owner.
const READ_US: u64 = 40;
const WRITE_US: u64 = 100;
/// The same for so many bytes.
const BYTES_FOR_A_US: u64 = 8 << 10;
/// More moves than this are no plan but a new cluster.
const MOVES_MAX: usize = 1000;

/// What an owner has been asked for within a second, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) bytes: u64,
}

impl Rates {
    /// Microseconds of CPU time for each second.
    pub(super) fn work_us(self) -> u64 {
        self.reads * READ_US + self.writes * WRITE_US + self.bytes / BYTES_FOR_A_US
    }
}

/// One volume, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Borne {
    pub(super) volume: VolumeId,
    pub(super) view: View,
    pub(super) owner: NodeId,
    pub(super) work_us: u64,
    /// Where it may move to; empty if it has to stay.
    pub(super) targets: Vec<NodeId>,
}

/// Everything that a plan is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// The nodes that are up, with what CPU time each uses: microseconds for each second.
    pub(super) cpu_us: BTreeMap<NodeId, u64>,
    pub(super) volumes: Vec<Borne>,
}

/// How much better it has to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Somebody asked: as even as it gets.
    Thorough,
    /// By itself: only what is clearly worth it. What was measured shakes, and a volume that
    /// moved must not be worth moving back.
    Gentle,
}

impl Effort {
    /// How much less a node has to bear, beyond the volume's own weight, to take it.
    fn margin_us(self, weight_us: u64, most_us: u64) -> u64 {
        match self {
            Self::Thorough => 0,
            Self::Gentle => weight_us / 2 + most_us / 10,
        }
    }
}

/// One move that makes the load more even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's view for which the move was planned.
    pub view: View,
    /// The owner so far.
    pub from: NodeId,
    /// The new one.
    pub to: NodeId,
    /// What the volume bears, in microseconds of CPU time for each second.
    pub weight_us: u64,
}

/// What each node bears, in microseconds of CPU time for each second.
pub(super) fn loads(survey: &Survey) -> BTreeMap<NodeId, u64> {
    let load = |(node, cpu_us): (&NodeId, &u64)| {
        let owned = survey.volumes.iter().filter(|one| one.owner == *node);
        let (count, work_us) = owned.fold((0, 0), |(count, work_us), one| {
            (count + 1, work_us + one.work_us)
        });
        (*node, count * STANDING_US + work_us.max(*cpu_us))
    };
    survey.cpu_us.iter().map(load).collect()
}

/// The moves to make, the most useful first.
pub(super) fn plan(survey: &Survey, effort: Effort) -> Vec<PlannedMove> {
    let mut loads = loads(survey);
    let mut volumes = survey.volumes.clone();
    let mut moves = Vec::new();
    while moves.len() < MOVES_MAX
        && let Some((index, to)) = best_move(&loads, &volumes, effort)
    {
        let moved = &mut volumes[index];
        let weight_us = weight_us(moved);
        moves.push(PlannedMove {
            volume: moved.volume,
            view: moved.view,
            from: moved.owner,
            to,
            weight_us,
        });
        *loads.entry(moved.owner).or_default() -= weight_us;
        *loads.entry(to).or_default() += weight_us;
        moved.owner = to;
        // One move for each volume: its second one would be planned for a view of the past.
        moved.targets.clear();
    }
    moves
}

fn weight_us(volume: &Borne) -> u64 {
    STANDING_US + volume.work_us
}

/// Of the moves away from the node that bears most of those that have one, the one that leaves
/// the smaller maximum of the two nodes; among equals the one to the node that bears least.
fn best_move(
    loads: &BTreeMap<NodeId, u64>,
    volumes: &[Borne],
    effort: Effort,
) -> Option<(usize, NodeId)> {
    let mut sources: Vec<(&NodeId, &u64)> = loads.iter().collect();
    sources.sort_by_key(|(node, load)| (std::cmp::Reverse(**load), **node));
    sources.into_iter().find_map(|(source, most_us)| {
        let owned = volumes.iter().enumerate();
        let owned = owned.filter(|(_, one)| one.owner == *source);
        let moves = owned.flat_map(|(index, one)| {
            let weight_us = weight_us(one);
            let margin_us = effort.margin_us(weight_us, *most_us);
            let targets = one.targets.iter().filter_map(move |to| {
                let load = *loads.get(to).filter(|_| to != source)?;
                let after = (most_us.checked_sub(weight_us)?).max(load + weight_us);
                (load + weight_us + margin_us < *most_us).then_some((after, load, index, *to))
            });
            targets.collect::<Vec<_>>()
        });
        moves.min().map(|(.., index, to)| (index, to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(owned: &[(u64, &[u64])]) -> Survey {
        let nodes: Vec<NodeId> = owned.iter().map(|(node, _)| NodeId(*node)).collect();
        let mut survey = Survey::default();
        for (node, works) in owned {
            survey.cpu_us.insert(NodeId(*node), 0);
            for work_us in *works {
                survey.volumes.push(Borne {
                    volume: VolumeId(survey.volumes.len() as u64 + 1),
                    view: View(7),
                    owner: NodeId(*node),
                    work_us: *work_us,
                    targets: nodes.clone(),
                });
            }
        }
        survey
    }

    /// How many volumes each node owns once the plan is carried out.
    fn carried_out(survey: &Survey, moves: &[PlannedMove]) -> Survey {
        let mut survey = survey.clone();
        for planned in moves {
            let mut volumes = survey.volumes.iter_mut();
            let moved = volumes.find(|one| one.volume == planned.volume);
            let moved = moved.expect("a volume of the survey");
            assert_eq!(moved.owner, planned.from);
            moved.owner = planned.to;
        }
        survey
    }

    fn counts(survey: &Survey) -> Vec<usize> {
        let owned = |node: &NodeId| {
            let volumes = survey.volumes.iter();
            volumes.filter(|one| one.owner == *node).count()
        };
        survey.cpu_us.keys().map(owned).collect()
    }

    #[test]
    fn idle_volumes_are_spread_by_number() {
        let uneven = survey(&[
            (1, &[]),
            (2, &[]),
            (3, &[0; 4]),
            (4, &[0; 10]),
            (5, &[0; 26]),
        ]);
        let moves = plan(&uneven, Effort::Thorough);
        assert_eq!(counts(&carried_out(&uneven, &moves)), [8; 5]);
        assert_eq!(moves.len(), 20, "no volume moves in vain");
        assert_eq!(plan(&carried_out(&uneven, &moves), Effort::Thorough), []);
    }

    #[test]
    fn what_volumes_do_counts_and_not_only_their_number() {
        let uneven = survey(&[(1, &[90_000, 80_000, 0]), (2, &[0, 0, 0]), (3, &[0, 0, 0])]);
        let moves = plan(&uneven, Effort::Thorough);
        let after = loads(&carried_out(&uneven, &moves));
        assert!(after.values().max() <= Some(&(92_000 + 2_000)), "{after:?}");
        assert!(
            moves[0].weight_us > 80_000,
            "the heaviest part first: {moves:?}"
        );
        // The only volume of a node has nowhere better to be.
        assert_eq!(
            plan(&survey(&[(1, &[90_000]), (2, &[])]), Effort::Thorough),
            []
        );
    }

    #[test]
    fn a_node_whose_processor_is_busy_otherwise_gets_none_and_gives_some() {
        let mut busy = survey(&[(1, &[0, 0, 0, 0]), (2, &[0, 0, 0, 0]), (3, &[])]);
        busy.cpu_us.insert(NodeId(3), 700_000);
        assert_eq!(plan(&busy, Effort::Thorough), []);
        busy.cpu_us.insert(NodeId(1), 700_000);
        let moves = plan(&busy, Effort::Gentle);
        assert!(
            moves
                .iter()
                .all(|one| (one.from, one.to) == (NodeId(1), NodeId(2)))
        );
        assert_eq!(moves.len(), 4);
    }

    #[test]
    fn small_differences_move_nothing_by_themselves() {
        for even in [
            survey(&[(1, &[0; 5]), (2, &[0; 4]), (3, &[0; 3])]),
            survey(&[(1, &[50_000, 50_000]), (2, &[45_000, 40_000])]),
        ] {
            assert_eq!(plan(&even, Effort::Gentle), []);
        }
        // A node that comes back gets its share.
        let back = survey(&[(1, &[0; 9]), (2, &[0; 9]), (3, &[])]);
        let moves = plan(&back, Effort::Gentle);
        let counts = counts(&carried_out(&back, &moves));
        assert!(counts[2] >= 4 && counts[0] <= 7, "{counts:?}");
    }

    #[test]
    fn no_gentle_plan_is_worth_taking_back_even_if_what_is_measured_shakes() {
        let mut draw = 1_u64;
        let mut random = |below: u64| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (draw >> 33) % below
        };
        for _ in 0..500 {
            let mut before = survey(&[(1, &[]), (2, &[]), (3, &[]), (4, &[])]);
            for volume in 1..=random(30) {
                before.volumes.push(Borne {
                    volume: VolumeId(volume),
                    view: View(1),
                    owner: NodeId(1 + random(4)),
                    work_us: random(3) * random(60_000),
                    targets: (1..=4).map(NodeId).collect(),
                });
            }
            let Some(first) = plan(&before, Effort::Gentle).first().copied() else {
                continue;
            };
            let mut after = carried_out(&before, &[first]);
            for one in &mut after.volumes {
                one.work_us += one.work_us * random(10) / 100;
            }
            let back = plan(&after, Effort::Gentle);
            let back = back
                .iter()
                .find(|one| (one.volume, one.to) == (first.volume, first.from));
            assert_eq!(back, None, "{before:?}");
        }
    }

    #[test]
    fn volumes_that_have_to_stay_do_and_are_counted() {
        let mut uneven = survey(&[(1, &[0; 6]), (2, &[])]);
        for one in &mut uneven.volumes[..5] {
            one.targets.clear();
        }
        let moves = plan(&uneven, Effort::Thorough);
        assert_eq!(moves.len(), 1);
        assert_eq!(moves[0].volume, VolumeId(6));
    }
}
