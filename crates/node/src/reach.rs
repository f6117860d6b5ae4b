//! What a node that is cut off from the cluster still reaches.
//!
//! The owner of a volume and its copies may be on this node's side of the cut: then I/O goes on.
//! Whether they are is tried, by a read, when somebody asks, and not more often than needed: a
//! node that is not cut off tries nothing. Until a try has succeeded the answer is no.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{Instant, PAGE_BYTES};
use holdfast_volume::Operation;
use holdfast_wire::VolumeId;

use crate::node::Node;

/// A try is repeated after this long.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
const TRY_LIMIT: Duration = Duration::from_millis(1000);
/// What a try found counts for so long.
const GOOD_FOR: Duration = Duration::from_millis(2000);

#[derive(Clone, Copy, Debug)]
struct Try {
    begun: Instant,
    served: Option<Instant>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    tries: RefCell<BTreeMap<VolumeId, Try>>,
}

impl Reach {
    /// Whether the volume was served through this node a moment ago; begins another try if the
    /// last one is old.
    pub(crate) fn serves(&self, node: &Rc<Node>, volume: VolumeId) -> bool {
        let now = node.context.runtime.now();
        let mut tries = self.tries.borrow_mut();
        tries.retain(|_, known| now.saturating_since(known.begun) < GOOD_FOR + TRY_LIMIT);
        let known = tries.get(&volume).copied();
        if known.is_none_or(|known| now.saturating_since(known.begun) >= TRY_AGAIN_AFTER) {
            let served = known.and_then(|known| known.served);
            tries.insert(volume, Try { begun: now, served });
            let trying = node.clone().try_volume(volume);
            node.context.runtime.spawn("node-reach", trying);
        }
        let served = known.and_then(|known| known.served);
        served.is_some_and(|at| now.saturating_since(at) < GOOD_FOR)
    }
}

impl Node {
    async fn try_volume(self: Rc<Self>, volume: VolumeId) {
        let runtime = &self.context.runtime;
        let begun = runtime.now();
        let read = self.run(volume, 0, PAGE_BYTES as u64, Operation::Read);
        if let Some(Ok(_)) = runtime.timeout(TRY_LIMIT, read).await
            && let Some(known) = self.reach.tries.borrow_mut().get_mut(&volume)
        {
            known.served = Some(begun);
        }
    }
}
