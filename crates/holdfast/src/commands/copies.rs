//! `holdfast cluster rebalance --copies`

use std::collections::BTreeMap;

use holdfast_api::{CopyBalance, CopyMoves};
use serde::Serialize;

use super::with_client;
use crate::cli::RebalanceArgs;
use crate::failure::Failure;
use crate::output::{About, Format, Rows, print};
use crate::quantity::show_size;
use crate::standard::tell;

/// What is printed for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    plan: CopyBalance,
    /// Moves that were begun; absent if they were only shown.
    begun: Option<u64>,
}

pub(super) fn rebalance(args: &RebalanceArgs) -> Result<(), Failure> {
    let outcome = with_client(&args.list.api, async |client| {
        let plan = client.copy_balance().await?;
        let moves = plan.moves.clone();
        let begun = match args.yes && !moves.is_empty() {
            true => Some(client.move_copies(&CopyMoves { moves }).await?.begun),
            false => None,
        };
        Ok(Outcome { plan, begun })
    })?;
    if args.list.output == Format::Table {
        explain(&outcome);
        if outcome.plan.moves.is_empty() {
            return Ok(());
        }
    }
    let rows = rows(&outcome.plan);
    let done = outcome
        .begun
        .map(|begun| format!("{begun} moves have begun"));
    let about = done.as_deref().map_or(About::Look, About::Change);
    print(about, args.list.output, &outcome, rows)
}

/// The moves, from node to node.
fn rows(plan: &CopyBalance) -> Rows {
    let mut between: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    for planned in &plan.moves {
        let (copies, bytes) = between.entry((planned.from, planned.to)).or_default();
        *copies += 1;
        *bytes += planned.bytes;
    }
    let rows = between.into_iter().map(|((from, to), (copies, bytes))| {
        vec![
            from.to_string(),
            to.to_string(),
            copies.to_string(),
            show_size(bytes),
        ]
    });
    Rows {
        columns: vec!["from", "to", "copies", "bytes"],
        rows: rows.collect(),
    }
}

fn explain(outcome: &Outcome) {
    let plan = &outcome.plan;
    for node in &plan.nodes {
        tell(&format!(
            "node {} holds {} copies, {} of {}",
            node.node,
            node.copies,
            show_size(node.bytes),
            show_size(node.home_bytes)
        ));
    }
    if plan.under_way > 0 {
        tell(&format!(
            "{} copies are being made already: ask again when they are in sync",
            plan.under_way
        ));
    }
    let (moves, bytes) = (plan.moves.len(), show_size(plan.bytes));
    match outcome.begun {
        _ if moves == 0 => tell("no move would make the nodes hold more alike"),
        None => tell(&format!(
            "{moves} copies would move, {bytes} in all; how long that takes is not known before it \
             runs. --yes moves them"
        )),
        Some(begun) => tell(&format!(
            "{begun} of {moves} moves have begun, {bytes} in all. They go on by themselves: say \
             the same without --yes to see how many copies are being made"
        )),
    }
}
