//! `holdfast cluster rebalance`

#![allow(
    clippy::disallowed_methods,
    reason = "a command that waits on a person's machine, by its clock"
)]

use std::time::{Duration, Instant};

use holdfast_api::{
    Balance, BalanceChange, BalanceMove, Client, ClientError, NewOwner, NodeBurden, ProblemKind,
    VolumeState, WhichMoves,
};
use serde::Serialize;

use super::with_client;
use crate::cli::RebalanceArgs;
use crate::failure::Failure;
use crate::output::{About, Format, Rows, print};
use crate::standard::tell;

/// A moved volume is waited for this long before the next one moves.
const OPENING_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What became of a planned move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    /// It was only shown.
    Planned,
    Moved,
    /// The volume's owner had changed, or the volume was gone, before it was its turn.
    Skipped,
}

#[derive(Debug, Serialize)]
struct Move {
    #[serde(flatten)]
    planned: BalanceMove,
    fate: Fate,
}

/// What is printed for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    automatic: bool,
    moves: Vec<Move>,
    /// Bytes that the moves copy.
    bytes: u64,
    /// For how long the moves hold I/O up in all, about.
    held_up_ms: u64,
    /// The nodes afterwards.
    nodes: Vec<NodeBurden>,
    placed: Vec<String>,
}

pub(super) fn rebalance(args: &RebalanceArgs) -> Result<(), Failure> {
    let outcome = with_client(&args.list.api, async |client| run(&client, args).await)?;
    let rows = Rows {
        columns: vec!["volume", "from", "to", "load", "fate"],
        rows: (outcome.moves.iter())
            .map(|one| {
                let Move { planned, fate } = one;
                let fate = super::word(fate);
                let (from, to) = (planned.from.to_string(), planned.to.to_string());
                vec![
                    planned.volume.clone(),
                    from,
                    to,
                    load(planned.load_us),
                    fate,
                ]
            })
            .collect(),
    };
    if args.list.output == Format::Table {
        explain(&outcome, args);
        if outcome.moves.is_empty() {
            return Ok(());
        }
    }
    let moved = outcome.moves.iter().filter(|one| one.fate == Fate::Moved);
    let done = match (args.automatic, moved.count()) {
        (Some(_), _) => Some("whether volumes move by themselves is set".to_owned()),
        (None, 0) => None,
        (None, moved) => Some(format!("{moved} volumes were moved")),
    };
    let about = done.as_deref().map_or(About::Look, About::Change);
    print(about, args.list.output, &outcome, rows)
}

async fn run(client: &Client, args: &RebalanceArgs) -> Result<Outcome, Failure> {
    if let Some(automatic) = args.automatic {
        let balance = client.change_balance(&BalanceChange { automatic }).await?;
        return Ok(outcome(balance, Vec::new()));
    }
    let which = WhichMoves { all: args.all };
    let balance = client.balance(which).await?;
    let planned = balance.moves.clone();
    let cost = (balance.bytes, balance.held_up_ms);
    if args.dry_run {
        let shown = planned.into_iter().map(|planned| Move {
            planned,
            fate: Fate::Planned,
        });
        return Ok(outcome(balance, shown.collect()));
    }
    let (mut moves, count) = (Vec::new(), planned.len());
    for (number, planned) in (1..).zip(planned) {
        let BalanceMove {
            volume, from, to, ..
        } = &planned;
        tell(&format!(
            "{number} of {count}: {volume} from node {from} to node {to}"
        ));
        let fate = make(client, &planned).await?;
        moves.push(Move { planned, fate });
    }
    let mut outcome = outcome(client.balance(which).await?, moves);
    (outcome.bytes, outcome.held_up_ms) = cost;
    Ok(outcome)
}

/// Makes one move and waits until the new owner serves.
async fn make(client: &Client, planned: &BalanceMove) -> Result<Fate, Failure> {
    let wanted = NewOwner {
        node: planned.to,
        view: Some(planned.view),
        balance: true,
    };
    let mut volume = match client.move_volume(&planned.volume, &wanted).await {
        Ok(volume) => volume,
        Err(ClientError::Problem(problem))
            if matches!(problem.kind, ProblemKind::Conflict | ProblemKind::Unknown) =>
        {
            tell(&format!("{} stays: {problem}", planned.volume));
            return Ok(Fate::Skipped);
        }
        Err(error) => return Err(error.into()),
    };
    let begun = Instant::now();
    while volume.state != VolumeState::Open {
        if begun.elapsed() >= OPENING_LIMIT {
            return Err(Failure::Undecided(format!(
                "{} does not serve yet: {}.\nNothing else is moved before it does",
                planned.volume, volume.explanation
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        volume = client.volume(&planned.volume).await?;
    }
    Ok(Fate::Moved)
}

fn outcome(balance: Balance, moves: Vec<Move>) -> Outcome {
    Outcome {
        automatic: balance.automatic,
        bytes: balance.bytes,
        held_up_ms: balance.held_up_ms,
        moves,
        nodes: balance.nodes,
        placed: balance.placed,
    }
}

fn explain(outcome: &Outcome, args: &RebalanceArgs) {
    for burden in &outcome.nodes {
        let NodeBurden { node, owns, .. } = burden;
        tell(&format!(
            "node {node} owns {owns}, load {}",
            load(burden.load_us)
        ));
    }
    let placed = outcome.placed.len();
    if placed > 0 && args.automatic.is_none() {
        tell(&format!(
            "{placed} volumes stay where somebody has put them; --all moves them, too"
        ));
    }
    let automatic = match outcome.automatic {
        true => "on",
        false => "off",
    };
    tell(&format!("volumes move by themselves: {automatic}"));
    let (moves, held_up_ms) = (outcome.moves.len(), outcome.held_up_ms);
    if moves > 0 {
        tell(&format!(
            "{moves} moves: {} bytes are copied; I/O is held up for about {held_up_ms} ms in all, \
             one volume after the other",
            outcome.bytes
        ));
    }
    if outcome.moves.is_empty() && args.automatic.is_none() {
        tell("no move would make the load more even");
    }
}

/// In percent of one processor.
fn load(load_us: u64) -> String {
    format!("{}.{} %", load_us / 10_000, load_us / 1_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_shown_in_percent_of_one_processor() {
        assert_eq!(load(2_000), "0.2 %");
        assert_eq!(load(1_234_567), "123.4 %");
    }
}
