//! Healing: a copy whose disk has lost blocks gets them back from another copy in sync.
//!
//! The node that found the damage asks the owner, because only the owner knows which copies have
//! the whole stable history:
//!
//! | step | damaged copy's node | owner | another copy in sync |
//! |---|---|---|---|
//! | 1 | `Heal`: these blocks are lost | | |
//! | 2 | | `ReadVersions` with its stable position | reads those that are intact |
//! | 3 | takes them unless it has newer ones | `Install` in the copy's stream | |
//! | 4 | | asks the next one for those not taken: its version was older than the lost one | |
//! | 5 | hears which were healed, and which nobody has | | |
//!
//! Safe whatever happens between: a version that was stable once stays part of the history, and
//! an older version never replaces a newer one (or one of unknown age that may be newer: the
//! source has everything up to the owner's stable position before it answers). Step 1 is
//! repeated until it is done, so nothing has to be remembered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_runtime::rpc::Incoming;
use holdfast_runtime::{Frame, NodeId, Service};
use holdfast_wire::VolumeId;
use holdfast_wire::heal::{Heal, HealReply, HealStatus};
use prost::Message;

use super::Owner;
use super::calls::CopyPlace;
use crate::context::Context;

/// Most blocks of one request.
pub const HEAL_BLOCKS_MAX: usize = 128;

/// Answers nodes that have lost blocks, for the owners here.
pub fn serve_healing(context: &Context, owners: Rc<RefCell<BTreeMap<VolumeId, Rc<Owner>>>>) {
    context.rpc.serve(Service::Heal, move |incoming: Incoming| {
        let owners = owners.clone();
        Box::pin(async move {
            let heal = Heal::decode(incoming.frame.header).ok()?;
            let owner = owners.borrow().get(&VolumeId(heal.volume)).cloned();
            let reply = match owner {
                Some(owner) => owner.heal(incoming.from, &heal).await,
                None => None,
            };
            let not_now = HealReply {
                status: HealStatus::NotNow as i32,
                ..HealReply::default()
            };
            Some(Frame::new(reply.unwrap_or(not_now).encode_to_vec()))
        })
    });
}

/// What could not be given back.
pub(crate) struct Rest {
    pub(crate) blocks: BTreeSet<u32>,
    /// Every other copy in sync said that it has lost them too, or has older versions only.
    pub(crate) all_answered: bool,
}

impl Owner {
    /// Gives the copy on `node` blocks back; `None` if that cannot be done at the moment.
    async fn heal(&self, node: NodeId, heal: &Heal) -> Option<HealReply> {
        let known = heal.blocks.iter().all(|block| *block < self.slice_blocks());
        if !self.gate.is_open() || !known || heal.blocks.len() > HEAL_BLOCKS_MAX {
            return None;
        }
        let (session, sources) = self.with_slice(heal.slice, |slice| {
            let session = slice.stream.members().get(&node)?.session;
            Some((session, slice.sources_but(node)))
        })??;
        let copy = CopyPlace {
            node,
            session,
            slice: heal.slice,
        };
        let blocks: BTreeSet<u32> = heal.blocks.iter().copied().collect();
        let asked = blocks.len();
        let rest = self.give_back(copy, blocks, sources).await?;
        let healed = asked - rest.blocks.len();
        tracing::info!(volume = %self.volume, slice = heal.slice, %node, healed,
            rest = rest.blocks.len(), "blocks given back to a copy");
        let lost = match rest.all_answered {
            true => rest.blocks.into_iter().collect(),
            false => Vec::new(),
        };
        Some(HealReply {
            status: HealStatus::Done as i32,
            healed: healed as u32,
            lost,
        })
    }

    /// Sends blocks to a copy that has lost them, from wherever they are intact. `None` if the
    /// copy does not take them.
    pub(crate) async fn give_back(
        &self,
        copy: CopyPlace,
        mut blocks: BTreeSet<u32>,
        sources: Vec<NodeId>,
    ) -> Option<Rest> {
        let mut all_answered = true;
        for source in self.nearest_first(sources) {
            if blocks.is_empty() {
                break;
            }
            let stable = self.with_slice(copy.slice, |slice| slice.stream.stable())?;
            let wanted = blocks.iter().copied().collect();
            let read = self.calls.read_versions(source, copy.slice, stable, wanted);
            let Ok(found) = read.await else {
                all_answered = false;
                continue;
            };
            let mut taken: BTreeSet<u32> = found.blocks.iter().map(|one| one.block).collect();
            for block in self.calls.install(copy, found.blocks, found.data).await? {
                taken.remove(&block);
            }
            blocks.retain(|block| !taken.contains(block));
        }
        Some(Rest {
            blocks,
            all_answered,
        })
    }
}
