//! `holdfast node drain` and `holdfast node remove`

#![allow(
    clippy::disallowed_methods,
    reason = "a command that waits on a person's machine, by its clock"
)]

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use holdfast_api::{Client, ClientError, DrainPlan, DrainStatus, NodeState, NodeStatus};
use tokio::signal::unix::{SignalKind, signal};

use super::{confirm, facts, with_client, word};
use crate::cli::{DrainArgs, RemoveArgs};
use crate::failure::Failure;
use crate::output::{About, Format, print};
use crate::quantity::{show_duration, show_size};
use crate::standard::{self, tell};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where no terminal shows a live line, one is written this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The node that is asked may restart meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What came of a command.
enum Outcome {
    /// It was only shown.
    Planned(DrainPlan),
    Cancelled(NodeStatus),
    Begun(NodeStatus),
}

pub(super) fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let format = args.list.output;
    match with_client(&args.list.api, async |client| run(&client, args).await)? {
        Outcome::Planned(plan) => print(About::Look, format, &plan, facts(plan_lines(&plan))),
        Outcome::Cancelled(node) => {
            let done = format!("node {} stays", node.id);
            let lines = vec![
                ("node", node.id.to_string()),
                ("state", word(node.state)),
                ("copies", node.copies.to_string()),
                ("next", "what has moved already stays where it is".into()),
            ];
            print(About::Change(&done), format, &node, facts(lines))
        }
        Outcome::Begun(node) => {
            let done = format!("node {} is being drained", node.id);
            let lines = status_lines(&node);
            print(About::Change(&done), format, &node, facts(lines))
        }
    }
}

async fn run(client: &Client, args: &DrainArgs) -> Result<Outcome, Failure> {
    if args.cancel {
        return Ok(Outcome::Cancelled(client.cancel_drain(args.id).await?));
    }
    let mut node = client.node(args.id).await?;
    if node.drain.is_none() || args.dry_run {
        let plan = client.drain_plan(args.id).await?;
        if let Some(problem) = plan.refused.clone() {
            return Err(ClientError::Problem(problem).into());
        }
        if args.dry_run {
            return Ok(Outcome::Planned(plan));
        }
        if args.list.output == Format::Table {
            let lines = plan_lines(&plan).into_iter();
            for (name, value) in lines.filter(|(_, value)| !value.is_empty()) {
                tell(&format!("{name}: {value}"));
            }
        }
        if !args.yes {
            let question = format!("Type the node's number to drain node {}: ", args.id);
            confirm("a drain moves much data", &question, &args.id.to_string())?;
        }
        node = client.drain(args.id).await?;
    }
    match args.wait {
        None => Ok(Outcome::Begun(node)),
        Some(limit) => Ok(Outcome::Begun(follow(client, args.id, limit).await?)),
    }
}

/// Shows how far it is until nothing is left on the node.
async fn follow(client: &Client, id: u64, limit: Option<Duration>) -> Result<NodeStatus, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::of)?;
    let begun = Instant::now();
    let mut heard = Instant::now();
    let mut line = Line::new();
    let goes_on = |why: &str| {
        Failure::Undecided(format!(
            "{why}, and the drain goes on.\n`holdfast node drain {id} --wait` shows how far it \
             is; `holdfast node drain {id} --cancel` lets the node stay"
        ))
    };
    loop {
        match client.node(id).await {
            Ok(node) => {
                heard = Instant::now();
                let Some(drain) = &node.drain else {
                    line.end();
                    return over(node);
                };
                if drain.drained {
                    line.end();
                    return Ok(node);
                }
                line.show(&progress(id, drain), &drain.waits_for);
            }
            Err(ClientError::Unreachable { .. } | ClientError::Broken { .. })
                if heard.elapsed() < SILENCE_MAX => {}
            Err(error) => {
                line.end();
                return Err(error.into());
            }
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            line.end();
            return Err(goes_on("the time is over"));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = interrupt.recv() => {
                line.end();
                return Err(goes_on("the display was ended"));
            }
        }
    }
}

/// The node is drained no more: somebody else has done something about it.
fn over(node: NodeStatus) -> Result<NodeStatus, Failure> {
    let id = node.id;
    match node.state {
        // Removed after it was drained, or evicted: what was wanted of the drain is so.
        NodeState::Evicted => Ok(node),
        NodeState::Admitted | NodeState::Up | NodeState::Leaving | NodeState::Down => {
            Err(Failure::Failed(format!(
                "somebody has cancelled the drain: node {id} stays, with {} copies.\nWhat had \
                 moved already stays where it is",
                node.copies
            )))
        }
    }
}

/// A line that is written over on a terminal, and now and then written otherwise.
struct Line {
    live: bool,
    shown: Option<Instant>,
    waits: Vec<String>,
}

impl Line {
    fn new() -> Self {
        Self {
            live: std::io::stderr().is_terminal(),
            shown: None,
            waits: Vec::new(),
        }
    }

    fn show(&mut self, text: &str, waits: &[String]) {
        if self.waits != waits {
            self.end();
            self.shown = None;
            for wait in waits {
                tell(&format!("it waits: {wait}"));
            }
            self.waits = waits.to_vec();
        }
        if self.live {
            let over = format!("\r\x1b[K{text}");
            let _ = standard::write_all(standard::error(), over.as_bytes());
            self.shown = Some(Instant::now());
        } else if self.shown.is_none_or(|shown| shown.elapsed() >= LINE_EVERY) {
            tell(text);
            self.shown = Some(Instant::now());
        }
    }

    /// What comes next is on a line of its own.
    fn end(&mut self) {
        if self.live && self.shown.is_some() {
            tell("");
        }
    }
}

/// How far it is, in a line.
fn progress(id: u64, drain: &DrainStatus) -> String {
    let left = drain
        .bytes_left
        .map_or(String::new(), |bytes| format!(" of {}", show_size(bytes)));
    let owned = match drain.owned_left {
        0 => String::new(),
        owned => format!(", {owned} volumes to hand over"),
    };
    format!(
        "node {id}: {} copies{left} left{owned}, {} copied, {}",
        drain.copies_left,
        show_size(drain.bytes_moved),
        time_left(drain)
    )
}

fn time_left(drain: &DrainStatus) -> String {
    match (drain.bytes_per_s, drain.ends_in_s) {
        (None, _) => "how long it takes is not known yet".into(),
        (Some(0), _) => "nothing was copied within the last minute".into(),
        (Some(rate), None) => format!("{}/s", show_size(rate)),
        (Some(rate), Some(seconds)) => format!(
            "{}/s, {} to go",
            show_size(rate),
            show_duration(Duration::from_secs(seconds))
        ),
    }
}

fn plan_lines(plan: &DrainPlan) -> Vec<(&'static str, String)> {
    let bytes = plan
        .bytes
        .map_or("the node does not say how much they hold".into(), |bytes| {
            format!("{} to copy", show_size(bytes))
        });
    let targets = plan.targets.iter().map(|target| match target.free_bytes {
        Some(free) => format!("node {} ({} free)", target.node, show_size(free)),
        None => format!("node {}", target.node),
    });
    let time = match (plan.copies, plan.bytes) {
        (0, _) | (_, Some(0)) => "at once",
        _ => "not known yet: it is measured while it goes on",
    };
    vec![
        ("node", plan.node.to_string()),
        ("copies", format!("{}, {bytes}", plan.copies)),
        ("volumes", format!("{} get another owner", plan.owned)),
        ("to", targets.collect::<Vec<_>>().join(", ")),
        ("time", time.into()),
        ("waits for", plan.waits_for.join("\n")),
    ]
}

/// How far a node is drained, for its sheet: nothing if it is not.
pub(super) fn drain_lines(node: &NodeStatus) -> Vec<(&'static str, String)> {
    let Some(drain) = &node.drain else {
        return Vec::new();
    };
    let since = super::node::ago(drain.since_unix_ms);
    let far = match drain.drained {
        true => "nothing is left on it".to_owned(),
        false => progress(node.id, drain),
    };
    vec![
        ("drained since", since),
        ("drain", far),
        ("drain waits for", drain.waits_for.join("\n")),
    ]
}

fn status_lines(node: &NodeStatus) -> Vec<(&'static str, String)> {
    let id = node.id;
    let drained = node.drain.as_ref().is_some_and(|drain| drain.drained);
    let next = match (node.state, drained) {
        (NodeState::Evicted, _) => "it is out of the cluster".into(),
        (_, true) => format!(
            "`holdfast node remove {id}` takes it out for good, `holdfast node drain {id} \
             --cancel` lets it stay"
        ),
        (_, false) => format!(
            "`holdfast node drain {id} --wait` shows how far it is, `holdfast node drain {id} \
             --cancel` lets it stay"
        ),
    };
    let mut lines = vec![("node", id.to_string()), ("state", word(node.state))];
    lines.extend(drain_lines(node));
    lines.push(("next", next));
    lines
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    if !args.yes {
        let what = "a removed node's data directory is void for ever";
        let question = format!(
            "Node {} leaves for good. Type the node's number to go on: ",
            args.id
        );
        confirm(what, &question, &args.id.to_string())?;
    }
    let node = with_client(&args.list.api, async |client| {
        Ok(client.remove_node(args.id).await?)
    })?;
    let rows = facts(vec![
        ("node", node.id.to_string()),
        ("state", word(node.state)),
        (
            "next",
            "its process ends by itself; its data directory can be deleted".into(),
        ),
    ]);
    let done = format!("node {} is removed", node.id);
    print(About::Change(&done), args.list.output, &node, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_says_what_is_known_and_nothing_else() {
        let mut drain = DrainStatus {
            copies_left: 120,
            owned_left: 2,
            bytes_moved: 3 << 30,
            ..DrainStatus::default()
        };
        assert_eq!(
            progress(3, &drain),
            "node 3: 120 copies left, 2 volumes to hand over, 3 GiB copied, how long it takes is \
             not known yet"
        );
        drain.owned_left = 0;
        drain.bytes_left = Some(2 << 30);
        drain.bytes_per_s = Some(64 << 20);
        drain.ends_in_s = Some(32);
        assert_eq!(
            progress(3, &drain),
            "node 3: 120 copies of 2 GiB left, 3 GiB copied, 64 MiB/s, 32 s to go"
        );
        (drain.bytes_per_s, drain.ends_in_s) = (Some(0), None);
        assert!(progress(3, &drain).ends_with("nothing was copied within the last minute"));
    }
}
