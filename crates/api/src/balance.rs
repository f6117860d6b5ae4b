//! How the owners' load is spread over the nodes, and what would make it more even.

use std::collections::BTreeMap;

use futures::future::join_all;
use holdfast_config::state::{Change, CopyMove, MOVED_AT_ONCE_MAX, Outcome};
use holdfast_node::{Effort, Holding, PlannedCopy, Scope, plan_copies};
use holdfast_runtime::NodeId;
use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::administration::Administration;
use crate::peers;
use crate::problem::Problem;

/// What one move of an owner is reckoned to hold its volume's I/O up: 10 to 42 ms were measured
/// under load.
const MOVE_MS: u64 = 50;

/// Which volumes may move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichMoves {
    /// Also volumes whose owner somebody has chosen.
    #[serde(default)]
    #[param(required = false)]
    pub all: bool,
}

/// What is to be different about moves that spread the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalanceChange {
    /// Whether volumes move by themselves.
    pub automatic: bool,
}

/// What one node bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeBurden {
    /// The node.
    pub node: u64,
    /// Volumes that it owns.
    pub owns: u64,
    /// Its load, in microseconds of processor time a second: what its process uses or its volumes
    /// are reckoned to cost, and a little for each volume.
    pub load_us: u64,
}

/// A move that makes the load more even.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalanceMove {
    /// The volume's name.
    pub volume: String,
    /// Its view: give it back with the move, which is refused if the owner has changed since.
    pub view: u64,
    /// The owner now.
    pub from: u64,
    /// The new one.
    pub to: u64,
    /// What the volume bears, in microseconds of processor time a second.
    pub load_us: u64,
}

/// How the load is spread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// Whether volumes move by themselves.
    pub automatic: bool,
    /// The nodes that are up.
    pub nodes: Vec<NodeBurden>,
    /// The moves that would make it as even as it gets, in the order in which to make them.
    pub moves: Vec<BalanceMove>,
    /// Bytes that these moves copy: none, an owner changes and no copy.
    #[serde(default)]
    pub bytes: u64,
    /// For how long they would hold I/O up in all, one volume after the other: an estimate.
    #[serde(default)]
    pub held_up_ms: u64,
    /// Volumes that stay because somebody has chosen their owner.
    pub placed: Vec<String>,
}

/// What one node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeHolding {
    /// The node.
    pub node: u64,
    /// Copies of slices that it has.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its capacity for them.
    pub home_bytes: u64,
}

/// A copy that would be on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyBalanceMove {
    /// The volume's name.
    pub volume: String,
    /// Its number: a volume of the same name that is made later is another one.
    pub volume_id: u64,
    /// The slice.
    pub slice: u32,
    /// Where the copy is.
    pub from: u64,
    /// Where it would be.
    pub to: u64,
    /// Bytes to copy, about: the mean of the volume's copies on the node.
    pub bytes: u64,
}

/// How the copies are spread over the nodes, and what would make them more even.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyBalance {
    /// The nodes that are up and say what they hold.
    pub nodes: Vec<NodeHolding>,
    /// The moves that would make it more even.
    pub moves: Vec<CopyBalanceMove>,
    /// Bytes that they copy, about.
    pub bytes: u64,
    /// Copies that are being made already, for moves as well as for anything else. Nothing more is
    /// planned for their slices.
    pub under_way: u64,
}

/// Moves of copies that are to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyMoves {
    /// Which, as a plan has them.
    pub moves: Vec<CopyBalanceMove>,
}

/// What came of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyMovesBegun {
    /// Moves that were begun. Others did not fit any more.
    pub begun: u64,
}

impl Administration {
    /// What would move for nodes to hold alike.
    pub(crate) async fn copy_balance(&self) -> CopyBalance {
        self.confirm().await;
        let state = self.node().state();
        let rpc = &self.node().context().rpc;
        let others = state.placeable().into_iter();
        let others = others.filter(|node| *node != self.node().id());
        let asked = others.map(|node| async move {
            let answer = peers::holdings(rpc, node).await.ok()?;
            Some((node, answer.report?.usage.home_bytes, answer.holdings))
        });
        let own = (
            self.node().id(),
            self.node().report().usage.home_bytes,
            self.node().held_bytes(),
        );
        let takes = state.placeable().contains(&own.0);
        let heard = join_all(asked).await.into_iter().flatten();
        let mut holdings: Vec<Holding> = heard
            .chain(takes.then_some(own))
            .map(|(node, home_bytes, volumes)| Holding {
                node,
                home_bytes,
                volumes: volumes.into_iter().collect(),
            })
            .collect();
        holdings.sort_by_key(|holding| holding.node);
        let moves = plan_copies(&state, &holdings);
        let records = state.volumes.values();
        let stale = records.flat_map(|record| record.slices.holders());
        CopyBalance {
            nodes: holdings
                .iter()
                .map(|holding| NodeHolding {
                    node: holding.node.0,
                    copies: state.copies_on(holding.node),
                    bytes: holding.volumes.values().sum(),
                    home_bytes: holding.home_bytes,
                })
                .collect(),
            bytes: moves.iter().map(|planned| planned.bytes).sum(),
            moves: moves
                .iter()
                .filter_map(|PlannedCopy { copy, bytes }| {
                    Some(CopyBalanceMove {
                        volume: state.volumes.get(&copy.volume)?.name.clone(),
                        volume_id: copy.volume.0,
                        slice: copy.slice,
                        from: copy.from.0,
                        to: copy.to.0,
                        bytes: *bytes,
                    })
                })
                .collect(),
            under_way: stale
                .map(|held| u64::from(held.copies - held.in_sync))
                .sum(),
        }
    }

    pub(crate) async fn move_copies(&self, wanted: CopyMoves) -> Result<CopyMovesBegun, Problem> {
        let moves = wanted.moves.into_iter().map(|wanted| CopyMove {
            volume: VolumeId(wanted.volume_id),
            slice: wanted.slice,
            from: NodeId(wanted.from),
            to: NodeId(wanted.to),
        });
        let moves: Vec<CopyMove> = moves.collect();
        let mut begun = 0;
        for moves in moves.chunks(MOVED_AT_ONCE_MAX) {
            let moves = moves.to_vec();
            if let Outcome::Placed { slices } = self.propose(Change::MoveCopies { moves }).await? {
                begun += u64::from(slices);
            }
        }
        Ok(CopyMovesBegun { begun })
    }

    pub(crate) async fn balance(&self, which: WhichMoves) -> Balance {
        self.confirm().await;
        let scope = match which.all {
            true => Scope::All,
            false => Scope::Unplaced,
        };
        let state = self.node().state();
        let report = self.node().balance(scope, Effort::Thorough);
        let name = |volume| {
            let record = state.volumes.get(&volume);
            record.map(|record| record.name.clone())
        };
        let mut owns: BTreeMap<NodeId, u64> = BTreeMap::new();
        for owner in state.volumes.values().filter_map(|record| record.owner) {
            *owns.entry(owner.node).or_default() += 1;
        }
        Balance {
            automatic: report.automatic,
            bytes: 0,
            held_up_ms: report.moves.len() as u64 * MOVE_MS,
            nodes: (report.loads_us.iter())
                .map(|(node, load_us)| NodeBurden {
                    node: node.0,
                    owns: owns.get(node).copied().unwrap_or(0),
                    load_us: *load_us,
                })
                .collect(),
            moves: (report.moves.iter())
                .filter_map(|planned| {
                    Some(BalanceMove {
                        volume: name(planned.volume)?,
                        view: planned.view.0,
                        from: planned.from.0,
                        to: planned.to.0,
                        load_us: planned.weight_us,
                    })
                })
                .collect(),
            placed: report.placed.into_iter().filter_map(name).collect(),
        }
    }

    pub(crate) async fn change_balance(&self, wanted: BalanceChange) -> Result<Balance, Problem> {
        let automatic = wanted.automatic;
        self.propose(Change::SetRebalancing { automatic }).await?;
        Ok(self.balance(WhichMoves::default()).await)
    }
}
