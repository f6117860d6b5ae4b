//! Sees to it that blocks which this node's disk has lost come back from another copy.
//!
//! The store knows which blocks are lost: reads and the [scrub](crate::scrub) found them so. The
//! volume's owner gives them back. Until then reads of them are served from another copy.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use holdfast_runtime::{Frame, NodeId, Service};
use holdfast_store::DamagedBlocks;
use holdfast_volume::HEAL_BLOCKS_MAX;
use holdfast_wire::heal::{Heal, HealReply, HealStatus};
use holdfast_wire::{SliceKey, VolumeId};
use prost::Message;

use crate::node::Node;

/// How long an owner may take over one request.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Pause before an owner that could not help is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause before blocks that no copy has are asked for again.
const LOST_PAUSE: Duration = Duration::from_secs(60);

/// What healing has come to since the node started.
#[derive(Default)]
pub(crate) struct Healing {
    pub(crate) healed: Cell<u64>,
    /// Blocks that no other copy had when they were last asked for.
    pub(crate) lost: RefCell<BTreeMap<SliceKey, Vec<u32>>>,
}

/// What a request left to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    /// Blocks that nobody has.
    Lost,
    /// Somebody could not answer.
    Waiting,
}

impl Node {
    /// Asks for lost blocks as they are found.
    pub(crate) async fn keep_healing(self: Rc<Self>) {
        let mut state = self.group.watch();
        loop {
            state.mark_unchanged();
            let found = self.context.store.damage_found();
            let pause = match self.heal_all().await {
                Left::Nothing => {
                    found.await;
                    continue;
                }
                Left::Waiting => RETRY_PAUSE,
                Left::Lost => LOST_PAUSE,
            };
            // A copy that has come into sync may have what the others have lost.
            let news = select(Box::pin(found), Box::pin(state.changed()));
            self.context.runtime.timeout(pause, news).await;
        }
    }

    async fn heal_all(&self) -> Left {
        let mut left = Left::Nothing;
        let mut lost = BTreeMap::new();
        let mut after = None;
        let store = &self.context.store;
        while let Some(DamagedBlocks { slice, blocks }) =
            store.damaged_blocks(after, HEAL_BLOCKS_MAX)
        {
            after = blocks.last().map(|block| (slice, *block));
            left = left.max(self.heal_some(slice, blocks, &mut lost).await);
        }
        *self.healing.lost.borrow_mut() = lost;
        left
    }

    async fn heal_some(
        &self,
        slice: SliceKey,
        blocks: Vec<u32>,
        lost: &mut BTreeMap<SliceKey, Vec<u32>>,
    ) -> Left {
        let Some(owner) = self.owner_to_ask(slice) else {
            // A copy that is out of sync is brought back first, and that replaces much of it.
            return Left::Waiting;
        };
        let asked = blocks.len();
        let heal = Heal {
            volume: slice.volume,
            slice: slice.slice,
            blocks,
        };
        let frame = Frame::new(heal.encode_to_vec());
        let rpc = &self.context.rpc;
        let answer = rpc.call(owner, Service::Heal, frame, CALL_LIMIT).await;
        let reply = answer
            .ok()
            .and_then(|frame| HealReply::decode(frame.header).ok());
        let Some(reply) = reply.filter(|reply| reply.status() == HealStatus::Done) else {
            return Left::Waiting;
        };
        let healed = &self.healing.healed;
        healed.set(healed.get() + u64::from(reply.healed));
        let all = reply.healed as usize + reply.lost.len() == asked;
        if reply.lost.is_empty() {
            return if all { Left::Nothing } else { Left::Waiting };
        }
        tracing::error!(%slice, blocks = ?reply.lost,
            "blocks are lost on this disk, and no other copy in sync has them. They read as \
             errors until they are written again");
        lost.entry(slice).or_default().extend(reply.lost);
        if all { Left::Lost } else { Left::Waiting }
    }

    /// The owner of the volume, if this node has a copy of the slice that counts.
    fn owner_to_ask(&self, slice: SliceKey) -> Option<NodeId> {
        let state = self.group.state();
        let record = state.volumes.get(&VolumeId(slice.volume))?;
        let counts = record.slices.get(slice.slice)?.is_in_sync(self.id());
        counts.then_some(record.owner?.node)
    }
}
