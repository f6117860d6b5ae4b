//! `holdfast node list`, `show`, `scrub` and `evict`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_api::{
    Integrity, Knowledge, NodeStatus, ScrubAction, ScrubOrder, ScrubPass, SpaceLevel, StoreUsage,
    WhichNodes,
};

use super::{confirm, facts, list_pages, with_client, word};
use crate::cli::{
    DrainArgs, EvictArgs, ListNodesArgs, RemoveArgs, ScrubArgs, ScrubChoice, ShowNodeArgs,
};
use crate::failure::Failure;
use crate::output::{About, Listing, print};
use crate::quantity::{show_duration, show_size};

/// Names of volumes in a line of the listing, and in the sheet of one node.
const OWNS_LISTED: usize = 3;
const OWNS_SHOWN: usize = 20;

pub(crate) fn list(args: &ListNodesArgs) -> Result<(), Failure> {
    let columns = vec![
        "id",
        "state",
        "portal",
        "links",
        "used",
        "journal",
        "owns",
        "explanation",
    ];
    let row = |node: &NodeStatus| {
        let leader = if node.leader { " (leader)" } else { "" };
        vec![
            format!("{}{leader}", node.id),
            state(node),
            node.portal_address.clone(),
            links(node),
            space(node),
            usage(node, |usage| {
                (usage.journal_used_bytes, usage.journal_bytes)
            }),
            owns(node, OWNS_LISTED),
            node.explanation.clone(),
        ]
    };
    let listing = Listing::new(args.list.output, columns);
    with_client(&args.list.api, async |client| {
        let fetch = async |limit, cursor| {
            let which = WhichNodes {
                evicted: args.all,
                limit: Some(limit),
                cursor,
            };
            let page = client.node_page(&which).await?;
            Ok((page.nodes, page.next_cursor))
        };
        list_pages(listing, args.limit, fetch, row).await
    })
}

pub(crate) fn show(args: &ShowNodeArgs) -> Result<(), Failure> {
    let node = with_client(&args.list.api, async |client| {
        Ok(client.node(args.id).await?)
    })?;
    let link_lines: Vec<String> = node
        .links
        .iter()
        .map(|link| match (&link.problem, link.up) {
            (_, true) => format!("to node {}: up", link.node),
            (Some(problem), false) => format!("to node {}: {problem}", link.node),
            (None, false) => format!("to node {}: being made", link.node),
        })
        .collect();
    let mut lines = vec![
        ("node", node.id.to_string()),
        ("state", state(&node)),
        ("why", node.explanation.clone()),
        ("starts", node.incarnation.to_string()),
        ("version", node.version.clone()),
        ("leader", if node.leader { "yes" } else { "no" }.into()),
        ("owns", owns(&node, OWNS_SHOWN)),
        ("copies", copies(&node)),
        ("used", space(&node)),
        ("reclaimable", reclaimable(&node)),
        (
            "journal",
            usage(&node, |usage| {
                (usage.journal_used_bytes, usage.journal_bytes)
            }),
        ),
        ("damage", damage(&node)),
        ("scrub", scrub_line(&node)),
        ("stalls", stalls(&node)),
        ("link address", node.link_address.clone()),
        ("API address", node.api_address.clone()),
        ("portal address", node.portal_address.clone()),
        ("links", link_lines.join("\n")),
    ];
    lines.extend(super::draining::drain_lines(&node));
    print(About::Look, args.list.output, &node, facts(lines))
}

pub(crate) fn drain(args: &DrainArgs) -> Result<(), Failure> {
    super::draining::drain(args)
}

pub(crate) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    super::draining::remove(args)
}

pub(crate) fn evict(args: &EvictArgs) -> Result<(), Failure> {
    if !args.yes {
        let what = "an evicted node's data directory is void for ever";
        let question = format!(
            "Node {}'s data directory will be void. Type the node's number to go on: ",
            args.id
        );
        confirm(what, &question, &args.id.to_string())?;
    }
    let node = with_client(&args.list.api, async |client| {
        Ok(client.evict(args.id).await?)
    })?;
    let rows = facts(vec![
        ("node", node.id.to_string()),
        ("state", word(node.state)),
        (
            "next",
            "`holdfast volume list` shows how its copies are made anew".into(),
        ),
    ]);
    let done = format!("node {} is evicted", node.id);
    print(About::Change(&done), args.list.output, &node, rows)
}

pub(crate) fn scrub(args: &ScrubArgs) -> Result<(), Failure> {
    let node = with_client(&args.list.api, async |client| {
        let action = match args.action {
            None => return Ok(client.node(args.id).await?),
            Some(ScrubChoice::Start) => ScrubAction::Start,
            Some(ScrubChoice::Pause) => ScrubAction::Pause,
            Some(ScrubChoice::Resume) => ScrubAction::Resume,
        };
        Ok(client.order_scrub(args.id, &ScrubOrder { action }).await?)
    })?;
    let last = node.integrity.and_then(|integrity| integrity.last_scrub);
    let healed = node
        .integrity
        .map_or(0, |integrity| integrity.healed_blocks);
    let rows = facts(vec![
        ("node", node.id.to_string()),
        ("scrub", scrub_line(&node)),
        (
            "last pass",
            last.map_or("none yet".into(), |pass| pass_line(&pass)),
        ),
        ("damage", damage(&node)),
        ("healed", format!("{healed} blocks since the node started")),
    ]);
    let about = match args.action {
        None => About::Look,
        Some(_) => About::Change("the scrub was told"),
    };
    print(about, args.list.output, &node, rows)
}

/// Its state, and whether it is drained.
fn state(node: &NodeStatus) -> String {
    let state = word(node.state);
    match &node.drain {
        None => state,
        Some(drain) if drain.drained => format!("{state}, drained"),
        Some(_) => format!("{state}, draining"),
    }
}

/// The copies that a node has.
fn copies(node: &NodeStatus) -> String {
    match node.copies_bytes {
        Some(bytes) => format!("{} of {}", node.copies, show_size(bytes)),
        None => node.copies.to_string(),
    }
}

/// The volumes that a node owns, by name as long as they are few.
fn owns(node: &NodeStatus, names_max: usize) -> String {
    let named = node.owns.iter().take(names_max).cloned();
    let named: Vec<String> = named.collect();
    match node.owned.saturating_sub(named.len() as u64) {
        0 => named.join(" "),
        _ if named.is_empty() => node.owned.to_string(),
        more => format!("{} and {more} more", named.join(" ")),
    }
}

/// For how long single steps have held the node's thread.
fn stalls(node: &NodeStatus) -> String {
    let Some(stalls) = &node.stalls else {
        return "unknown".into();
    };
    let within = show_duration(Duration::from_millis(stalls.measured_ms));
    if stalls.longest_us == 0 {
        return format!("none in {within}");
    }
    format!(
        "{} longer than 20 ms in {within}; the longest {}.{} ms, in {}",
        stalls.count,
        stalls.longest_us / 1000,
        stalls.longest_us % 1000 / 100,
        stalls.longest_in
    )
}

fn damage(node: &NodeStatus) -> String {
    let Some(integrity) = node.integrity else {
        return "unknown".into();
    };
    let Integrity {
        damaged_blocks,
        lost_blocks,
        ..
    } = integrity;
    match (damaged_blocks, lost_blocks, integrity.damaged) {
        (0, _, false) => "none known".into(),
        (0, _, true) => "of the map or the journal; what it concerns is copied again".into(),
        (_, 0, _) => format!("{damaged_blocks} blocks, being healed from other copies"),
        _ => format!(
            "{damaged_blocks} blocks; {lost_blocks} of them no copy has: they read as errors until \
             they are written again"
        ),
    }
}

fn scrub_line(node: &NodeStatus) -> String {
    match node.integrity {
        None => "unknown".into(),
        Some(integrity) if integrity.scrub_paused => "paused".into(),
        Some(integrity) => match (integrity.scrub, integrity.last_scrub) {
            (Some(pass), _) => {
                let of = node.usage.map_or(0, |usage| usage.home_used_bytes);
                format!("under way, {}, of {}", pass_line(&pass), show_size(of))
            }
            (None, Some(_)) => "waits for the next week".into(),
            (None, None) => "about to begin".into(),
        },
    }
}

fn pass_line(pass: &ScrubPass) -> String {
    let ScrubPass {
        bytes,
        damaged_blocks,
        ..
    } = pass;
    let when = match pass.ended_unix_ms {
        Some(ended) => format!("ended {}", ago(ended)),
        None => format!("begun {}", ago(pass.begun_unix_ms)),
    };
    format!(
        "{when}: {} read, {damaged_blocks} blocks damaged",
        show_size(*bytes)
    )
}

/// How long ago a moment was.
pub(super) fn ago(unix_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let age = now.saturating_sub(Duration::from_millis(unix_ms));
    format!("{} ago", show_duration(age))
}

fn links(node: &NodeStatus) -> String {
    match node.told {
        Knowledge::Unknown => "unknown".into(),
        Knowledge::Known => {
            let up = node.links.iter().filter(|link| link.up).count();
            format!("{up} of {}", node.links.len())
        }
    }
}

/// What was overwritten or unmapped and comes back when segments are collected.
fn reclaimable(node: &NodeStatus) -> String {
    let usage = node.usage.as_ref();
    usage.map_or("unknown".into(), |usage| {
        show_size(usage.home_reclaimable_bytes)
    })
}

/// How full the home is, with a word if it fills up.
fn space(node: &NodeStatus) -> String {
    let used = usage(node, |usage| (usage.home_used_bytes, usage.home_bytes));
    match node.space {
        Some(level @ (SpaceLevel::Low | SpaceLevel::Critical)) => {
            format!("{used} ({})", word(level))
        }
        Some(SpaceLevel::Enough) | None => used,
    }
}

fn usage(node: &NodeStatus, part: impl Fn(&StoreUsage) -> (u64, u64)) -> String {
    match &node.usage {
        None => "unknown".into(),
        Some(usage) => {
            let (used, of) = part(usage);
            format!("{} of {}", show_size(used), show_size(of))
        }
    }
}
