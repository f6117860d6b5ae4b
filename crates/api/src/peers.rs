//! Asks other nodes' APIs for what only they know.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use holdfast_config::state::{ClusterState, NodeStatus};
use holdfast_runtime::NodeId;

use crate::client::Client;
use crate::types::SelfReport;

/// Longer than a healthy node takes by far, shorter than a person's patience.
const LIMIT: Duration = Duration::from_millis(800);
/// Nodes asked at the same time.
const AT_ONCE: usize = 16;

/// The reports of the wanted nodes that are up and answer.
pub(crate) async fn reports(
    state: &ClusterState,
    local: NodeId,
    wanted: impl IntoIterator<Item = NodeId>,
) -> BTreeMap<NodeId, SelfReport> {
    let asked = wanted.into_iter().filter_map(|node| {
        let record = state.nodes.get(&node)?;
        let runs = matches!(record.status, NodeStatus::Up | NodeStatus::Leaving);
        (node != local && runs && !record.api_address.is_empty())
            .then(|| (node, record.api_address.clone()))
    });
    stream::iter(asked)
        .map(async |(node, address)| {
            let client = Client::new(&format!("http://{address}"), LIMIT).ok()?;
            let report = client.own_report().await.ok()?;
            // Another node may have taken the address over.
            (report.id == node.0).then_some((node, report))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |answer| answer)
        .collect()
        .await
}
