//! Taking nodes out of service.

use std::time::Duration;

use clap::Args;

use super::ListArgs;
use crate::quantity::parse_duration;

const DRAIN_HELP: &str = "\
For a node that runs and is to be taken out: a machine that is replaced, a rack that moves. Its
volumes get other owners at once. Its copies are made anew on other nodes, and each is taken out
only when the new one is in sync: I/O goes on, and no slice ever has fewer copies. Then `holdfast
node remove` takes the node out for good.

What would move is shown first, and asked about; --yes does not ask, --dry-run shows it and ends.
The drain goes on without this command: `holdfast node show` shows how far it is, and so does
`holdfast node drain ID --wait`, also later and from another machine. Ctrl-C ends that display, not
the drain. With --cancel the node stays; what has moved already stays where it is.

For a node that is lost there is `holdfast node evict`; for a restart neither is needed.

Examples:
  holdfast node drain 3 --dry-run        what would move
  holdfast node drain 3 --wait           until nothing is left on it
  holdfast node drain 3 --yes -o json    for scripts: begin, and print how far it is
  holdfast node drain 3 --cancel         it stays";

#[derive(Clone, Debug, Args)]
#[command(after_help = DRAIN_HELP)]
pub(crate) struct DrainArgs {
    /// The node's number
    pub(crate) id: u64,
    /// Show what would move, and do nothing
    #[arg(long, conflicts_with_all = ["wait", "yes"])]
    pub(crate) dry_run: bool,
    /// Let the node stay
    #[arg(long, conflicts_with_all = ["dry_run", "wait"])]
    pub(crate) cancel: bool,
    /// Show how far it is until nothing is left on the node, or for this time
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          value_parser = parse_duration)]
    pub(crate) wait: Option<Option<Duration>>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

const REMOVE_HELP: &str = "\
For a node that was drained. Its process notices that it does not belong to the cluster any more,
and ends; its data directory is refused from then on. Its machine can join again with an empty one.

Examples:
  holdfast node drain 3 --wait && holdfast node remove 3";

#[derive(Clone, Debug, Args)]
#[command(after_help = REMOVE_HELP)]
pub(crate) struct RemoveArgs {
    /// The node's number
    pub(crate) id: u64,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}
