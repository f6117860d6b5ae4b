//! An owner compares the copies of its streams with the config state: those of slices that have
//! changed, here or there, and all when a node has; some at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_config::state::{ClusterState, NodeRecord, Slices, VolumeRecord};
use holdfast_runtime::NodeId;

use super::Owner;
use super::slice::Slice;

/// The config state with which all slices were compared, but those that are to be again.
#[derive(Default)]
pub(super) struct Followed(RefCell<Option<Seen>>);

struct Seen {
    nodes: Rc<BTreeMap<NodeId, NodeRecord>>,
    slices: Slices,
}

impl Owner {
    /// Follows the in-sync sets of the config state, and asks that copies whose process is gone
    /// be taken out of them. Looks only at slices that have changed, here or there: at all of them
    /// when a node has.
    pub(super) async fn follow_members(self: &Rc<Self>) {
        let mut gone: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        loop {
            let Some(record) = self.record_in_office() else {
                return self.close();
            };
            let state = self.context.config.state();
            self.note_followed(&state, &record);
            let part = self.slices.take_to_follow();
            if part.is_empty() {
                break;
            }
            let is_running = |node, incarnation| state.running(node, incarnation);
            for index in part {
                let follow = |slice: &mut Slice| slice.follow(record.slices.get(index), is_running);
                for node in self.slices.with(index, follow).into_iter().flatten() {
                    gone.entry(node).or_default().push(index);
                }
            }
            tokio::task::yield_now().await;
        }
        for (node, slices) in gone {
            self.remove_copies(node, slices);
        }
    }

    /// What has changed since the last time is to be compared with the slices.
    fn note_followed(&self, state: &ClusterState, record: &VolumeRecord) {
        let mut followed = self.followed.0.borrow_mut();
        match &*followed {
            Some(seen) if Rc::ptr_eq(&seen.nodes, &state.nodes) => {
                self.slices
                    .follow(record.slices.changed_since(&seen.slices));
            }
            Some(_) | None => self.slices.follow_all(),
        }
        *followed = Some(Seen {
            nodes: state.nodes.clone(),
            slices: record.slices.clone(),
        });
    }
}
