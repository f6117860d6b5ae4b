//! Which entries of a listing are wanted.

use clap::{Args, ValueEnum};
use holdfast_api::{VolumeState, WhichVolumes};

use super::ListArgs;

const LIST_VOLUMES_EXAMPLES: &str = "\
Options that choose are put together: a volume has to pass all of them. Volumes come in the order of
their names, and are fetched a thousand at a time: with -o json, yaml or csv they are printed as
they come.

Examples:
  holdfast volume list                               all of them
  holdfast volume list --impaired                    those that need attention, and why
  holdfast volume list --prefix web- --limit 20      the first twenty whose names begin so
  holdfast volume list --owner 3 --state open        what node 3 serves
  holdfast volume list -o json | jq -r '.[].target'";

#[derive(Clone, Debug, Args)]
#[command(after_help = LIST_VOLUMES_EXAMPLES)]
pub(crate) struct ListVolumesArgs {
    /// Show at most so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Only volumes whose name begins so
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    /// Only volumes whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) contains: Option<String>,
    /// Only volumes in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<StateChoice>,
    /// Only volumes that this node owns
    #[arg(long, value_name = "NODE")]
    pub(crate) owner: Option<u64>,
    /// Only volumes that do not serve, or lack copies
    #[arg(long)]
    pub(crate) impaired: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

impl ListVolumesArgs {
    pub(crate) fn which(&self) -> WhichVolumes {
        WhichVolumes {
            limit: None,
            cursor: None,
            prefix: self.prefix.clone(),
            contains: self.contains.clone(),
            state: self.state.map(|state| match state {
                StateChoice::Open => VolumeState::Open,
                StateChoice::TakingOver => VolumeState::TakingOver,
                StateChoice::NoOwner => VolumeState::NoOwner,
            }),
            owner: self.owner,
            impaired: self.impaired,
        }
    }
}

/// States of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StateChoice {
    /// It serves I/O
    Open,
    /// Its owner takes over; I/O waits
    TakingOver,
    /// No node is up that could own it
    NoOwner,
}

const SLICES_EXAMPLES: &str = "\
A volume is cut into slices of 1 GiB, each with its copies on nodes of its own. Listed are those
that have a place.

Examples:
  holdfast volume slices db
  holdfast volume slices db -o csv > places.csv";

#[derive(Clone, Debug, Args)]
#[command(after_help = SLICES_EXAMPLES)]
pub(crate) struct ListSlicesArgs {
    /// The volume's name
    pub(crate) name: String,
    /// Show at most so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const LIST_NODES_EXAMPLES: &str = "\
Every node is asked how it is, over the links between nodes; one that gives no answer within a
second is shown as such. `holdfast volume list --owner NODE` lists what a node owns.

Examples:
  holdfast node list
  holdfast node list --all -o json";

#[derive(Clone, Debug, Args)]
#[command(after_help = LIST_NODES_EXAMPLES)]
pub(crate) struct ListNodesArgs {
    /// Also nodes that were evicted
    #[arg(long)]
    pub(crate) all: bool,
    /// Show at most so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}
