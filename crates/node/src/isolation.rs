//! What a node that is cut off from the cluster still serves.
//!
//! The owner of a volume and its copies may be on this node's side of the cut: then I/O goes on,
//! and hosts must not be sent away. So a node that is out of touch tries each volume by a read,
//! over and over. Only a volume whose last try has failed, since this cut began, counts as
//! unreachable: a node that merely stood still has tried nothing yet when it wakes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use futures::stream::{self, StreamExt as _};
use holdfast_runtime::PAGE_BYTES;
use holdfast_volume::Operation;
use holdfast_wire::VolumeId;

use crate::node::Node;

/// How often a node looks whether it is out of touch.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Silence after which the tries begin. They cost little where it is a leader that is replaced.
const TRIED_AFTER: Duration = Duration::from_millis(600);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);
const TRY_LIMIT: Duration = Duration::from_millis(500);
const TRIES_AT_ONCE: usize = 32;

/// Whether each volume was served at its last try in this cut.
#[derive(Debug, Default)]
pub(crate) struct Isolation {
    served: RefCell<BTreeMap<VolumeId, bool>>,
}

impl Isolation {
    /// Whether the volume has been tried in this cut, in vain.
    pub(crate) fn has_failed(&self, volume: VolumeId) -> bool {
        self.served.borrow().get(&volume) == Some(&false)
    }
}

impl Node {
    pub(crate) async fn keep_trying_volumes(self: Rc<Self>) {
        let runtime = &self.context.runtime;
        loop {
            if self.group.out_of_touch() < TRIED_AFTER {
                self.isolation.served.borrow_mut().clear();
                // Each word of the leader puts the look off: a node in touch never wakes up for it.
                let look = runtime.sleep_roughly(LOOK_EVERY);
                select(look, pin!(self.group.heard_leader())).await;
                continue;
            }
            let volumes: Vec<VolumeId> = self.state().volumes.keys().copied().collect();
            stream::iter(volumes)
                .for_each_concurrent(TRIES_AT_ONCE, |volume| self.try_volume(volume))
                .await;
            runtime.sleep(TRY_AGAIN_AFTER).await;
        }
    }

    async fn try_volume(&self, volume: VolumeId) {
        let read = self.run(volume, 0, PAGE_BYTES as u64, Operation::Read);
        let outcome = self.context.runtime.timeout(TRY_LIMIT, read).await;
        let served = matches!(outcome, Some(Ok(_)));
        if self.group.out_of_touch() >= TRIED_AFTER {
            self.isolation.served.borrow_mut().insert(volume, served);
        }
    }
}
