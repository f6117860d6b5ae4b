//! How the owners' load is spread over the nodes, and what would make it more even.

use std::collections::BTreeMap;

use holdfast_config::state::Change;
use holdfast_node::{Effort, Scope};
use holdfast_runtime::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::administration::Administration;
use crate::problem::Problem;

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
    /// Volumes that stay because somebody has chosen their owner.
    pub placed: Vec<String>,
}

impl Administration {
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
