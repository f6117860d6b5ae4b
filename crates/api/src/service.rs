//! What is said of waits, of links that are missing, and of I/O that stands still.

use std::collections::BTreeSet;

use holdfast_node::{WaitReason, Waiting};
use holdfast_runtime::{Instant, NodeId};

use crate::types::{MissingLink, Wait, WaitKind};

/// An operation without an answer for so long: the volume's I/O stands still. Takeovers after
/// proven deaths are over long before.
pub(crate) const STANDS_STILL_MS: u64 = 2_000;

/// A wait as it goes over the wire.
pub(crate) fn wait(waiting: &Waiting, now: Instant) -> Wait {
    let (kind, nodes) = match &waiting.reason {
        WaitReason::Fence(nodes) => (WaitKind::Fence, Some(nodes)),
        WaitReason::CompleteCopy => (WaitKind::CompleteCopy, None),
        WaitReason::Reconcile => (WaitKind::Reconcile, None),
        WaitReason::CopyUnderRepair => (WaitKind::CopyUnderRepair, None),
        WaitReason::RestartedCopy => (WaitKind::RestartedCopy, None),
        WaitReason::Opening => (WaitKind::Opening, None),
        WaitReason::Placement(nodes) => (WaitKind::Placement, Some(nodes)),
        WaitReason::PlacementAgreement => (WaitKind::Placement, None),
        WaitReason::Acknowledgement(nodes) => (WaitKind::Acknowledgement, Some(nodes)),
        WaitReason::Removal(nodes) => (WaitKind::Removal, Some(nodes)),
        WaitReason::Lease(nodes) => (WaitKind::Lease, Some(nodes)),
    };
    let nodes = nodes.into_iter().flatten();
    Wait {
        kind,
        nodes: nodes.map(|node| node.0).collect(),
        for_ms: now.saturating_since(waiting.since).as_millis() as u64,
    }
}

/// A wait in words, to follow "waits for".
pub(crate) fn wait_text(waiting: &Waiting) -> String {
    match &waiting.reason {
        WaitReason::Fence(nodes) => format!("copies on {}", node_list(nodes)),
        WaitReason::CompleteCopy => {
            "a complete in-sync copy: the nodes that hold one are down. Start them".into()
        }
        WaitReason::Reconcile => "the copies to become identical".into(),
        WaitReason::CopyUnderRepair => "a copy that answers while it is reconciled".into(),
        WaitReason::RestartedCopy => "copies whose node has just restarted".into(),
        WaitReason::Opening => "the config group to agree on the opening".into(),
        WaitReason::PlacementAgreement => {
            "the config group to agree on where a part goes that is written to for the first time"
                .into()
        }
        WaitReason::Placement(nodes) => format!(
            "copies on {} of a part that is written to for the first time",
            node_list(nodes)
        ),
        WaitReason::Acknowledgement(nodes) => {
            format!("acknowledgements of copies on {}", node_list(nodes))
        }
        WaitReason::Removal(nodes) => format!(
            "the config group to agree to go on without the copies on {}",
            node_list(nodes)
        ),
        WaitReason::Lease(nodes) => format!("leases from copies on {}", node_list(nodes)),
    }
}

fn node_list(nodes: &BTreeSet<NodeId>) -> String {
    let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
    match &names[..] {
        [one] => format!("node {one}"),
        _ => format!("nodes {}", names.join(", ")),
    }
}

/// What to say of a link that is missing.
pub(crate) fn missing_link_text(link: &MissingLink) -> String {
    let [one, other] = link.nodes;
    format!(
        "nodes {one} and {other} have had no link to one another for {}; other nodes pass their \
         messages on. Check the network between the two",
        age(link.for_ms)
    )
}

/// What to say of a volume's I/O, if it stands still.
pub(crate) fn standstill_text(oldest_io_ms: Option<u64>) -> Option<String> {
    let age_ms = oldest_io_ms.filter(|age_ms| *age_ms >= STANDS_STILL_MS)?;
    Some(format!(
        "its I/O stands still: the oldest operation has waited for {}",
        age(age_ms)
    ))
}

pub(crate) fn age(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_names_its_nodes_and_its_age() {
        let now = Instant::default() + Duration::from_secs(5);
        let waiting = Waiting {
            reason: WaitReason::Acknowledgement([NodeId(2), NodeId(4)].into()),
            since: Instant::default() + Duration::from_secs(2),
        };
        let said = wait(&waiting, now);
        assert_eq!((said.kind, said.for_ms), (WaitKind::Acknowledgement, 3_000));
        assert_eq!(said.nodes, [2, 4]);
        let text = wait_text(&waiting);
        assert_eq!(text, "acknowledgements of copies on nodes 2, 4");
    }

    #[test]
    fn io_stands_still_once_an_operation_has_waited_for_long() {
        assert_eq!(standstill_text(None), None);
        assert_eq!(standstill_text(Some(STANDS_STILL_MS - 1)), None);
        let text = standstill_text(Some(3_250)).expect("long");
        assert!(text.ends_with("has waited for 3.2 s"), "{text}");
    }
}
