//! Requests to copies, one function for each, with its own answer.
//!
//! A copy that has promised a later view follows a later owner, and this one can do nothing any
//! more: whatever call meets such an answer ends the office.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_replica::messages;
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{NodeId, PAGE_BYTES, Rpc, Service};
use holdfast_wire::mapped::{MapBlocks, MappedBlocks, SliceRange};
use holdfast_wire::replica::{
    BeginStreams, BlockVersion, Changed, Fence, FenceReply, FetchRecord, FinishMany, Install,
    JoinMany, JoinedSlice, ReadBlocks, ReadVersions, Reconcile, RecordHeader, ReplicaRefusal,
    ReplicaReply, SlicePosition, StreamStart, TellStable, replica_request,
};
use holdfast_wire::{Seq, View, VolumeId};
use prost::Message;

/// Time limit of a step of a takeover.
pub(crate) const STEP_LIMIT: Duration = Duration::from_millis(1500);
/// Time limit of a step of a resync.
const RESYNC_LIMIT: Duration = Duration::from_millis(3000);
const READ_LIMIT: Duration = Duration::from_millis(2000);
const TELL_LIMIT: Duration = Duration::from_millis(500);
const MAP_LIMIT: Duration = Duration::from_millis(2000);

/// Where blocks are sent: a copy, in its present stream.
#[derive(Clone, Copy)]
pub(crate) struct CopyPlace {
    pub(crate) node: NodeId,
    pub(crate) session: u64,
    pub(crate) slice: u32,
}

/// Blocks of a copy, with their data one after the other.
pub(crate) struct CopiedBlocks {
    pub(crate) blocks: Vec<BlockVersion>,
    pub(crate) data: Bytes,
    /// Nothing follows them.
    pub(crate) complete: bool,
}

/// Which blocks are wanted of a source.
#[derive(Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) slice: u32,
    /// The owner's stable position.
    pub(crate) stable: Seq,
    /// Changed after this.
    pub(crate) after: Seq,
    pub(crate) from_block: u32,
    pub(crate) limit: u32,
}

/// See the module's header.
pub(crate) struct CopyCalls {
    rpc: Rc<Rpc>,
    volume: VolumeId,
    view: View,
    on_later_view: Box<dyn Fn()>,
}

impl CopyCalls {
    /// Of the owner of `volume` in `view`.
    pub(crate) fn new(
        rpc: Rc<Rpc>,
        volume: VolumeId,
        view: View,
        on_later_view: impl Fn() + 'static,
    ) -> Self {
        Self {
            rpc,
            volume,
            view,
            on_later_view: Box::new(on_later_view),
        }
    }

    /// For the view's promise, and what the node holds of the slices named.
    pub(crate) async fn fence(
        &self,
        node: NodeId,
        fence: Fence,
        limit: Duration,
    ) -> Option<FenceReply> {
        let body = replica_request::Body::Fence(fence);
        let answer = self.ask(node, body, Bytes::new(), limit).await;
        answer.ok()?.0.fence
    }

    /// Begins streams on a node that has everything before. Answers the slices with which that
    /// worked, and the space that the node has.
    pub(crate) async fn begin_streams(
        &self,
        node: NodeId,
        slices: Vec<StreamStart>,
        fresh: bool,
    ) -> Option<(BTreeSet<u32>, u64)> {
        let begin = BeginStreams {
            volume: self.volume.0,
            view: self.view.0,
            slices,
            fresh,
        };
        let body = replica_request::Body::BeginStreams(begin);
        let (reply, _) = self.ask(node, body, Bytes::new(), STEP_LIMIT).await.ok()?;
        let free_bytes = reply.free_bytes.unwrap_or(0);
        Some((reply.begun.into_iter().collect(), free_bytes))
    }

    /// Makes a copy's tail what the message says; `None` if that did not work.
    pub(crate) async fn reconcile(
        &self,
        node: NodeId,
        message: Reconcile,
        payload: Bytes,
    ) -> Option<()> {
        let body = replica_request::Body::Reconcile(message);
        let answer = self.ask(node, body, payload, STEP_LIMIT).await;
        answer.ok().map(|_| ())
    }

    /// The data of one record of a tail.
    pub(crate) async fn fetch_record(
        &self,
        node: NodeId,
        slice: u32,
        header: &RecordHeader,
    ) -> Option<Bytes> {
        let fetch = FetchRecord {
            volume: self.volume.0,
            slice,
            view: header.view,
            seq: header.seq,
        };
        let body = replica_request::Body::FetchRecord(fetch);
        let (_, data) = self.ask(node, body, Bytes::new(), STEP_LIMIT).await.ok()?;
        (data.len() == header.blocks as usize * PAGE_BYTES).then_some(data)
    }

    /// Whole blocks: stable versions, none older than what was newest at `stable`.
    pub(crate) async fn read_blocks(
        &self,
        node: NodeId,
        slice: u32,
        stable: Seq,
        (first_block, blocks): (u32, u32),
    ) -> Result<Bytes, ReplicaRefusal> {
        let read = ReadBlocks {
            volume: self.volume.0,
            slice,
            view: self.view.0,
            stable: stable.0,
            first_block,
            blocks,
        };
        let body = replica_request::Body::ReadBlocks(read);
        Ok(self.ask(node, body, Bytes::new(), READ_LIMIT).await?.1)
    }

    /// Tells a node the stable positions of slices; answers which of its copies know theirs now.
    pub(crate) async fn tell_stable(
        &self,
        node: NodeId,
        slices: Vec<SlicePosition>,
    ) -> BTreeSet<u32> {
        let tell = TellStable {
            volume: self.volume.0,
            view: self.view.0,
            slices,
        };
        let body = replica_request::Body::TellStable(tell);
        let answer = self.ask(node, body, Bytes::new(), TELL_LIMIT).await;
        let told = answer.map(|(reply, _)| reply.begun).unwrap_or_default();
        told.into_iter().collect()
    }

    /// Makes copies joining ones. Answers those that are, and up to where each holds everything.
    pub(crate) async fn join(&self, node: NodeId, slices: Vec<StreamStart>) -> BTreeMap<u32, Seq> {
        let join = JoinMany {
            volume: self.volume.0,
            view: self.view.0,
            slices,
        };
        let body = replica_request::Body::JoinMany(join);
        let answer = self.ask(node, body, Bytes::new(), RESYNC_LIMIT).await;
        let bases = answer.map(|(reply, _)| reply.bases).unwrap_or_default();
        let bases = bases.into_iter();
        bases.map(|base| (base.slice, Seq(base.seq))).collect()
    }

    /// Says to joining copies that they hold everything; answers those that are in sync now.
    pub(crate) async fn finish(&self, node: NodeId, slices: Vec<JoinedSlice>) -> BTreeSet<u32> {
        let finish = FinishMany {
            volume: self.volume.0,
            view: self.view.0,
            slices,
        };
        let body = replica_request::Body::FinishMany(finish);
        let answer = self.ask(node, body, Bytes::new(), RESYNC_LIMIT).await;
        let begun = answer.map(|(reply, _)| reply.begun).unwrap_or_default();
        begun.into_iter().collect()
    }

    /// The next blocks that changed.
    pub(crate) async fn changed(
        &self,
        source: NodeId,
        wanted: Difference,
    ) -> Result<CopiedBlocks, ReplicaRefusal> {
        let changed = Changed {
            volume: self.volume.0,
            slice: wanted.slice,
            view: self.view.0,
            stable: wanted.stable.0,
            after: wanted.after.0,
            from_block: wanted.from_block,
            limit: wanted.limit,
        };
        let body = replica_request::Body::Changed(changed);
        self.copied(source, body).await
    }

    /// Of these blocks those that are intact.
    pub(crate) async fn read_versions(
        &self,
        source: NodeId,
        slice: u32,
        stable: Seq,
        blocks: Vec<u32>,
    ) -> Result<CopiedBlocks, ReplicaRefusal> {
        let read = ReadVersions {
            volume: self.volume.0,
            slice,
            view: self.view.0,
            stable: stable.0,
            blocks,
        };
        let body = replica_request::Body::ReadVersions(read);
        self.copied(source, body).await
    }

    async fn copied(
        &self,
        source: NodeId,
        body: replica_request::Body,
    ) -> Result<CopiedBlocks, ReplicaRefusal> {
        let (reply, data) = self.ask(source, body, Bytes::new(), RESYNC_LIMIT).await?;
        Ok(CopiedBlocks {
            blocks: reply.blocks,
            data,
            complete: reply.complete,
        })
    }

    /// Sends blocks to a copy, and their data; `None` if it does not answer. Answers the blocks
    /// that it has lost and did not take, because it had lost newer ones.
    pub(crate) async fn install(
        &self,
        copy: CopyPlace,
        blocks: Vec<BlockVersion>,
        payload: Bytes,
    ) -> Option<Vec<u32>> {
        if blocks.is_empty() {
            return Some(Vec::new());
        }
        let install = Install {
            volume: self.volume.0,
            slice: copy.slice,
            view: self.view.0,
            session: copy.session,
            blocks,
        };
        let body = replica_request::Body::Install(install);
        let answer = self.ask(copy.node, body, payload, RESYNC_LIMIT).await;
        answer.ok().map(|(reply, _)| reply.not_taken)
    }

    /// A request for which parts of slices are mapped.
    pub(crate) fn map_request(&self, ranges: Vec<SliceRange>, runs_max: u32) -> MapBlocks {
        MapBlocks {
            volume: self.volume.0,
            view: self.view.0,
            ranges,
            runs_max,
        }
    }

    /// The answer of another node's copies.
    pub(crate) async fn map_blocks(&self, node: NodeId, map: MapBlocks) -> Option<MappedBlocks> {
        let body = replica_request::Body::MapBlocks(map);
        let answer = self.ask(node, body, Bytes::new(), MAP_LIMIT).await;
        MappedBlocks::decode(answer.ok()?.1).ok()
    }

    /// One request to a copy; refusals are errors.
    async fn ask(
        &self,
        node: NodeId,
        body: replica_request::Body,
        payload: Bytes,
        limit: Duration,
    ) -> Result<(ReplicaReply, Bytes), ReplicaRefusal> {
        let frame = messages::request(body, payload);
        let answer = self.rpc.call(node, Service::Replica, frame, limit).await;
        let answer = answer.map_err(|_| ReplicaRefusal::Unknown)?;
        let reply = ReplicaReply::decode(answer.header).map_err(|_| ReplicaRefusal::Unknown)?;
        match reply.refusal() {
            ReplicaRefusal::None => Ok((reply, answer.payload)),
            refusal => {
                if View(reply.promised) > self.view {
                    reach::note(Row::LaterView);
                    (self.on_later_view)();
                }
                Err(refusal)
            }
        }
    }
}
