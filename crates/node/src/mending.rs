//! The leader sees to it that copies which are missing, or on nodes that are drained or evicted,
//! are made elsewhere: it looks for them, some slices at a time, and proposes what it finds part by
//! part, until it finds nothing. Then it waits for nodes to change: one that came up can take
//! copies for which there was no place.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use holdfast_config::group::ProposeError;
use holdfast_config::state::{Change, ClusterState, MENDED_AT_ONCE_MAX, NodeRecord, Outcome};
use holdfast_runtime::NodeId;
use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::VolumeId;
use tokio::task::yield_now;

use crate::node::Node;

const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Slices that are looked at before others have their turn: some ten microseconds.
const LOOKED_AT_ONCE: usize = 256;
const _: () = assert!(LOOKED_AT_ONCE <= MENDED_AT_ONCE_MAX);

/// What decides whether there is something to do.
struct Occasion {
    nodes: Rc<BTreeMap<NodeId, NodeRecord>>,
    draining: BTreeMap<NodeId, u64>,
}

impl Occasion {
    fn of(state: &ClusterState) -> Self {
        Self {
            nodes: state.nodes.clone(),
            draining: state.draining.clone(),
        }
    }

    fn is_still(&self, state: &ClusterState) -> bool {
        let is_same =
            Rc::ptr_eq(&self.nodes, &state.nodes) || planted::is_active(Bug::MendWithoutNews);
        is_same && self.draining == state.draining
    }
}

impl Node {
    pub(crate) async fn keep_mending(self: Rc<Self>) {
        let mut watch = self.group.watch();
        let mut done: Option<Occasion> = None;
        loop {
            watch.mark_unchanged();
            let leader = self.group.leader();
            let elected = self.group.leader_changed(leader);
            let news = select(Box::pin(elected), Box::pin(watch.changed()));
            let state = self.state();
            let is_done = done.as_ref().is_some_and(|done| done.is_still(&state));
            if is_done || !self.group.is_leader() || !state.has_to_mend() {
                drop(state);
                news.await;
                continue;
            }
            let occasion = Occasion::of(&state);
            drop(state);
            match self.mend_all().await {
                Ok(0) => done = Some(occasion),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "mending copies again");
                    self.context.runtime.sleep_roughly(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Goes once through all slices of the volumes with something to mend. Answers how many were
    /// mended.
    async fn mend_all(&self) -> Result<u64, ProposeError> {
        let (mut mended, mut found) = (0, Vec::new());
        let volumes = self.state().volumes_to_mend();
        for volume in volumes {
            let mut next = Some(0);
            while let Some(first) = next {
                let part = self.state().look_to_mend(volume, first, LOOKED_AT_ONCE);
                found.extend(part.found.into_iter().map(|slice| (volume, slice)));
                next = part.next;
                if found.len() + LOOKED_AT_ONCE > MENDED_AT_ONCE_MAX {
                    mended += self.mend_some(std::mem::take(&mut found)).await?;
                }
                yield_now().await;
            }
        }
        Ok(mended + self.mend_some(found).await?)
    }

    async fn mend_some(&self, slices: Vec<(VolumeId, u32)>) -> Result<u64, ProposeError> {
        if slices.is_empty() {
            return Ok(0);
        }
        let change = Change::Mend { slices };
        match self.group.propose(change, PROPOSAL_LIMIT).await? {
            Outcome::Placed { slices } => Ok(slices.into()),
            Outcome::Done
            | Outcome::Admitted(_)
            | Outcome::Created(_)
            | Outcome::Reserved(_)
            | Outcome::Refused(_) => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_something_to_do_again_when_nodes_or_the_drained_ones_have_changed() {
        let mut state = ClusterState::default();
        state.draining.insert(NodeId(1), 0);
        let done = Occasion::of(&state);
        assert!(done.is_still(&state.clone()));
        let mut other = state.clone();
        other.draining.insert(NodeId(2), 0);
        assert!(!done.is_still(&other));
        Rc::make_mut(&mut state.nodes).clear();
        assert!(!done.is_still(&state));
    }
}
