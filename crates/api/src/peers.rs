//! Asks other nodes for what only they know or can do.
//!
//! How a node is, it says over its links: these are there whether or not its API serves other
//! machines, and are gone round where one is cut. An older version says it over its API.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use holdfast_config::state::{ClusterState, NodeRecord, NodeStatus as Recorded};
use holdfast_runtime::{Frame, NodeId, Rpc, Service};

use crate::client::{Client, ClientError};
use crate::problem::{Problem, ProblemKind};
use crate::types::{NodeStatus, ScrubOrder, SelfReport};

/// Longer than a healthy node takes by far, shorter than a person's patience.
const LIMIT: Duration = Duration::from_millis(800);
/// Longer than a listing waits to be up to date.
const ORDER_LIMIT: Duration = Duration::from_secs(4);
/// Nodes asked at the same time.
const AT_ONCE: usize = 16;

/// Answers other nodes that ask how this one is.
pub(crate) fn serve_reports(rpc: &Rpc, report: impl Fn() -> Option<SelfReport> + 'static) {
    rpc.serve(Service::Status, move |_asked| {
        let said = report().and_then(|report| serde_json::to_vec(&report).ok());
        Box::pin(std::future::ready(said.map(Frame::new)))
    });
}

/// The reports of the wanted nodes that are up and answer.
pub(crate) async fn reports(
    rpc: &Rpc,
    state: &ClusterState,
    wanted: impl IntoIterator<Item = NodeId>,
) -> BTreeMap<NodeId, SelfReport> {
    let asked = wanted.into_iter().filter_map(|node| {
        let record = state.nodes.get(&node)?;
        let runs = matches!(record.status, Recorded::Up | Recorded::Leaving);
        (node != rpc.local_node() && runs).then(|| (node, record.api_address.clone()))
    });
    stream::iter(asked)
        .map(async |(node, address)| {
            let report = match over_links(rpc, node).await {
                Some(report) => report,
                None if address.is_empty() => return None,
                None => {
                    let client = Client::new(&format!("http://{address}"), LIMIT).ok()?;
                    client.own_report().await.ok()?
                }
            };
            // Another node may have taken the address over.
            (report.id == node.0).then_some((node, report))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |answer| answer)
        .collect()
        .await
}

async fn over_links(rpc: &Rpc, node: NodeId) -> Option<SelfReport> {
    let asking = rpc.call(node, Service::Status, Frame::default(), LIMIT);
    let answer = asking.await.ok()?;
    serde_json::from_slice(&answer.header).ok()
}

/// Passes an order on to the node it is for.
pub(crate) async fn order_scrub(
    node: NodeId,
    record: &NodeRecord,
    order: ScrubOrder,
) -> Result<NodeStatus, Problem> {
    let hint = "ask the node itself, with --api on its machine";
    if record.api_address.is_empty() {
        let detail = format!("the API of node {node} serves its own machine only");
        return Err(Problem::new(ProblemKind::Unavailable, detail, hint));
    }
    let client = Client::new(&format!("http://{}", record.api_address), ORDER_LIMIT);
    let answer = match client {
        Ok(client) => client.order_scrub(node.0, &order).await,
        Err(error) => Err(error),
    };
    answer.map_err(|error| match error {
        ClientError::Problem(problem) => problem,
        other => Problem::new(ProblemKind::Unavailable, other.to_string(), hint),
    })
}
