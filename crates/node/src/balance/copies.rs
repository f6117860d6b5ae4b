//! Which copies to move so that nodes hold alike: a pure function of what they say they hold.
//!
//! Nodes hold alike if the same share of each home is filled with copies. What a node says of a
//! volume is the sum of its copies, so each of them counts with the mean.
//!
//! A copy moves from the node that is filled most to the one that is filled least and can take it,
//! and only if the second stays no fuller than the first then is: so a plan ends, and no move is
//! worth taking back. Differences below [`ALIKE_PERMILLE`] of a home are left alone.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_config::state::{ClusterState, CopyMove};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;

/// Nodes whose homes are filled alike by this much hold alike.
const ALIKE_PERMILLE: u64 = 10;
/// More moves at once are several plans.
const MOVES_MAX: usize = 512;

/// What one node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The node.
    pub node: NodeId,
    /// Its capacity for blocks.
    pub home_bytes: u64,
    /// Bytes of its copies, volume by volume.
    pub volumes: BTreeMap<VolumeId, u64>,
}

/// One move, and what it copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCopy {
    /// The move.
    pub copy: CopyMove,
    /// Bytes, about.
    pub bytes: u64,
}

/// A node while the plan is made.
struct Shelf<'a> {
    holding: &'a Holding,
    bytes: u64,
}

impl Shelf<'_> {
    fn filled_permille(&self, bytes: u64) -> u64 {
        let home = u128::from(self.holding.home_bytes.max(1));
        u64::try_from(u128::from(bytes) * 1000 / home).unwrap_or(u64::MAX)
    }
}

/// The moves to make.
pub fn plan_copies(state: &ClusterState, holdings: &[Holding]) -> Vec<PlannedCopy> {
    let mut shelves: Vec<Shelf<'_>> = holdings
        .iter()
        .map(|holding| Shelf {
            holding,
            bytes: holding.volumes.values().sum(),
        })
        .collect();
    let mut moved = BTreeSet::new();
    let mut moves = Vec::new();
    while moves.len() < MOVES_MAX {
        shelves.sort_by_key(|shelf| (shelf.filled_permille(shelf.bytes), shelf.holding.node));
        let Some((source, targets)) = shelves.split_last() else {
            break;
        };
        let found = targets.iter().enumerate().find_map(|(place, target)| {
            let planned = best_copy(state, source, target, &moved)?;
            Some((place, planned))
        });
        let Some((place, planned)) = found else {
            break;
        };
        moved.insert((planned.copy.volume, planned.copy.slice));
        moves.push(planned);
        shelves[place].bytes += planned.bytes;
        if let Some(source) = shelves.last_mut() {
            source.bytes -= planned.bytes;
        }
    }
    moves
}

/// The largest copy that can move between the two.
fn best_copy(
    state: &ClusterState,
    source: &Shelf<'_>,
    target: &Shelf<'_>,
    moved: &BTreeSet<(VolumeId, u32)>,
) -> Option<PlannedCopy> {
    let (from, to) = (source.holding.node, target.holding.node);
    let filled = source.filled_permille(source.bytes);
    if filled < target.filled_permille(target.bytes) + ALIKE_PERMILLE {
        return None;
    }
    let means = source.holding.volumes.iter().filter_map(|(volume, bytes)| {
        let copies = state.volumes.get(volume)?.slices.held_by(from).copies;
        let mean = bytes.checked_div(copies.into())?;
        let after = source.filled_permille(source.bytes.saturating_sub(mean));
        let fits = mean > 0 && target.filled_permille(target.bytes + mean) <= after;
        fits.then_some((mean, *volume))
    });
    let mut means: Vec<(u64, VolumeId)> = means.collect();
    means.sort_by_key(|(mean, volume)| (std::cmp::Reverse(*mean), *volume));
    means.into_iter().find_map(|(bytes, volume)| {
        let record = &state.volumes[&volume];
        let mut slices = record.slices.iter();
        let (slice, _) = slices.find(|(index, slice)| {
            slice.is_in_sync(from)
                && slice.status(to).is_none()
                && !moved.contains(&(volume, *index))
                && state.is_whole(record, slice)
        })?;
        let copy = CopyMove {
            volume,
            slice,
            from,
            to,
        };
        Some(PlannedCopy { copy, bytes })
    })
}

#[cfg(test)]
mod tests {
    use holdfast_config::state::{Change, ClusterIdentity, NodeStart, Outcome, VolumeSpec};
    use holdfast_runtime::Incarnation;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Nodes that are up; two copies of each of these volumes, before the last node came.
    fn cluster(nodes: u64, volumes: u64) -> ClusterState {
        let mut state = ClusterState::default();
        let mut done = |change| {
            let outcome = state.apply(change);
            assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        };
        done(Change::Found {
            cluster: ClusterIdentity {
                id: [7; 16],
                name: "test".into(),
                authority: Vec::new(),
            },
            uuid: [1; 16],
            link_address: String::new(),
        });
        for node in 1..=nodes {
            if node == nodes {
                for number in 0..volumes {
                    done(Change::CreateVolume(VolumeSpec {
                        name: format!("v{number}"),
                        size_bytes: 1 << 30,
                        logical_block_bytes: 512,
                        copies: 2,
                        slice_bytes: 1 << 30,
                        chap: None,
                        naa_random: number,
                        now_unix_ms: 0,
                    }));
                }
            }
            let (secret_hash, uuid) = ([node as u8; 32], [node as u8; 16]);
            if node > 1 {
                done(Change::AddToken {
                    secret_hash,
                    expires_unix_ms: 10,
                });
                done(Change::Admit(holdfast_config::state::Admission {
                    secret_hash,
                    uuid,
                    link_address: String::new(),
                    now_unix_ms: 1,
                }));
            }
            done(Change::NodeStarted(NodeStart {
                node: NodeId(node),
                uuid,
                incarnation: Incarnation(1),
                link_address: String::new(),
                api_address: String::new(),
                portal_address: String::new(),
                version: String::new(),
            }));
        }
        state
    }

    fn holdings(state: &ClusterState, home_bytes: impl Fn(NodeId) -> u64) -> Vec<Holding> {
        let nodes = state.nodes.keys().map(|node| {
            let held = state.volumes.held_by(*node);
            let bytes = |id: VolumeId| {
                let copies = state.volumes[&id].slices.held_by(*node).copies;
                (id, u64::from(copies) * 10 * MIB)
            };
            Holding {
                node: *node,
                home_bytes: home_bytes(*node),
                volumes: held.map(bytes).collect(),
            }
        });
        nodes.collect()
    }

    fn bytes(holdings: &[Holding], moves: &[PlannedCopy], node: u64) -> u64 {
        let holding = holdings.iter().find(|one| one.node == NodeId(node));
        let mut bytes: u64 = holding.expect("a node").volumes.values().sum();
        for planned in moves {
            bytes += u64::from(planned.copy.to == NodeId(node)) * planned.bytes;
            bytes -= u64::from(planned.copy.from == NodeId(node)) * planned.bytes;
        }
        bytes / MIB
    }

    #[test]
    fn a_new_node_gets_its_share_and_nothing_moves_twice() {
        let state = cluster(4, 60);
        let before = holdings(&state, |_| 1 << 30);
        assert_eq!(bytes(&before, &[], 4), 0);
        let moves = plan_copies(&state, &before);
        assert!(moves.iter().all(|planned| planned.copy.to == NodeId(4)));
        let slices: BTreeSet<_> = moves.iter().map(|one| one.copy.volume).collect();
        assert_eq!(slices.len(), moves.len());
        // 1,200 MiB on four nodes.
        for node in 1..=4 {
            let after = bytes(&before, &moves, node);
            assert!((285..=315).contains(&after), "node {node}: {after}");
        }
        for planned in &moves {
            let slice = &state.volumes[&planned.copy.volume].slices[0];
            assert!(slice.is_in_sync(planned.copy.from) && slice.status(NodeId(4)).is_none());
        }
    }

    #[test]
    fn nodes_that_hold_alike_by_their_size_are_left_alone() {
        let state = cluster(3, 60);
        let alike = holdings(&state, |_| 1 << 40);
        assert_eq!(plan_copies(&state, &alike), [], "a thousandth of a home");
        // Twice the home, twice the share.
        let sized = holdings(
            &state,
            |node| if node == NodeId(1) { 4 << 30 } else { 2 << 30 },
        );
        let moves = plan_copies(&state, &sized);
        let after: Vec<u64> = (1..=3).map(|node| bytes(&sized, &moves, node)).collect();
        assert!(after[0] > after[1] && after[0] > after[2], "{after:?}");
    }

    #[test]
    fn a_slice_that_lacks_something_is_left_alone() {
        let mut state = cluster(3, 30);
        state.apply(Change::NodeDown {
            node: NodeId(1),
            incarnation: Incarnation(1),
        });
        let seen = holdings(&state, |_| 1 << 30);
        let up: Vec<Holding> = seen
            .into_iter()
            .filter(|one| one.node != NodeId(1))
            .collect();
        let moves = plan_copies(&state, &up);
        for planned in &moves {
            let slice = &state.volumes[&planned.copy.volume].slices[0];
            assert_eq!(slice.status(NodeId(1)), None);
        }
    }
}
