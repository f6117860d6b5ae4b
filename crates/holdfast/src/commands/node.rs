//! `holdfast node list` and `holdfast node show`.

use holdfast_api::{Knowledge, NodeStatus, SpaceLevel, StoreUsage};

use super::{facts, with_client, word};
use crate::cli::{ListArgs, ShowNodeArgs};
use crate::failure::Failure;
use crate::output::{Rows, print};
use crate::quantity::show_size;

pub(crate) fn list(args: &ListArgs) -> Result<(), Failure> {
    let nodes = with_client(&args.api, async |client| Ok(client.nodes().await?))?;
    let rows = Rows {
        columns: vec![
            "id",
            "state",
            "portal",
            "links",
            "used",
            "journal",
            "owns",
            "explanation",
        ],
        rows: nodes
            .iter()
            .map(|node| {
                let leader = if node.leader { " (leader)" } else { "" };
                vec![
                    format!("{}{leader}", node.id),
                    word(node.state),
                    node.portal_address.clone(),
                    links(node),
                    space(node),
                    usage(node, |usage| {
                        (usage.journal_used_bytes, usage.journal_bytes)
                    }),
                    node.owns.join(" "),
                    node.explanation.clone(),
                ]
            })
            .collect(),
    };
    print(args.output, &nodes, rows)
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
    let damaged = match node.damaged {
        Some(true) => "its recovery met damaged records; they are healed from other copies",
        Some(false) | None => "",
    };
    let rows = facts(vec![
        ("node", node.id.to_string()),
        ("state", word(node.state)),
        ("why", node.explanation.clone()),
        ("starts", node.incarnation.to_string()),
        ("version", node.version.clone()),
        ("leader", if node.leader { "yes" } else { "no" }.into()),
        ("owns", node.owns.join(" ")),
        ("used", space(&node)),
        ("reclaimable", reclaimable(&node)),
        (
            "journal",
            usage(&node, |usage| {
                (usage.journal_used_bytes, usage.journal_bytes)
            }),
        ),
        ("damage", damaged.into()),
        ("link address", node.link_address.clone()),
        ("API address", node.api_address.clone()),
        ("portal address", node.portal_address.clone()),
        ("links", link_lines.join("\n")),
    ]);
    print(args.list.output, &node, rows)
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
