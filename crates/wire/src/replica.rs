//! Messages to and from the holder of a copy (`Service::Replica`).
//!
//! Notices carry the write stream (`Append`, answered by cumulative `Ack`s); requests carry
//! takeover, reads, resync and leases. Everything names the volume's view; a holder refuses an
//! older one than it has promised.

use prost::{Message, Oneof};

/// One record of a slice's stream; its data, if any, is in the frame's payload.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RecordHeader {
    /// View of the owner that wrote it first.
    #[prost(uint64, tag = "1")]
    pub view: u64,
    /// Position in the stream.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Which portal issued the operation.
    #[prost(uint64, tag = "3")]
    pub origin: u64,
    /// The portal's number for it.
    #[prost(uint64, tag = "4")]
    pub operation: u64,
    /// First 4 KiB block within the slice.
    #[prost(uint32, tag = "5")]
    pub first_block: u32,
    /// Number of blocks.
    #[prost(uint32, tag = "6")]
    pub blocks: u32,
    /// The blocks become zero; there is no data.
    #[prost(bool, tag = "7")]
    pub zero: bool,
}

/// Owner to holder: journal this record.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Append {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The owner's number for this copy's stream, from `Reconcile` or `JoinMany`.
    #[prost(uint64, tag = "4")]
    pub session: u64,
    /// All in-sync copies hold the stream up to here.
    #[prost(uint64, tag = "5")]
    pub stable: u64,
    /// The record; absent in a notice that only carries `stable`.
    #[prost(message, optional, tag = "6")]
    pub record: Option<RecordHeader>,
}

/// Holder to owner: this copy holds the stream up to `durable`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Ack {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The stream's number.
    #[prost(uint64, tag = "4")]
    pub session: u64,
    /// Journaled up to here, without gaps.
    #[prost(uint64, tag = "5")]
    pub durable: u64,
    /// Bytes free for blocks never written before, beyond the holder's reserve; zero: new
    /// writes are to be refused.
    #[prost(uint64, tag = "6")]
    pub free_bytes: u64,
    /// The copy could not journal the record after `durable` and has stopped.
    #[prost(bool, tag = "7")]
    pub failed: bool,
    /// More is about to be free: something was zeroed or removed.
    #[prost(bool, tag = "8")]
    pub freeing: bool,
}

/// A notice of the replica service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplicaNotice {
    /// Which.
    #[prost(oneof = "replica_notice::Body", tags = "1, 2")]
    pub body: Option<replica_notice::Body>,
}

/// Bodies of [`ReplicaNotice`].
pub mod replica_notice {
    use super::{Ack, Append, Oneof};

    /// Which notice.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// A record, or only the stable position.
        #[prost(message, tag = "1")]
        Append(Append),
        /// A cumulative acknowledgement.
        #[prost(message, tag = "2")]
        Ack(Ack),
    }
}

/// New owner to holder: promise `view`, and say what you hold of these slices.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Fence {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The new owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// Slices of which this node has an in-sync copy.
    #[prost(uint32, repeated, tag = "3")]
    pub slices: Vec<u32>,
    /// No owner has ever opened the volume: empty copies are right, and no lease can exist.
    #[prost(bool, tag = "4")]
    pub fresh: bool,
    /// The node whose owner opened the volume last, so that nobody else can use a lease; zero if
    /// that is not known.
    #[prost(uint64, tag = "5")]
    pub predecessor: u64,
    /// The start of it that did.
    #[prost(uint64, tag = "6")]
    pub predecessor_incarnation: u64,
    /// The view that it opened it in; zero if that is not known.
    #[prost(uint64, tag = "7")]
    pub predecessor_view: u64,
}

/// Answer to [`Fence`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FenceReply {
    /// The view promised now; larger than the request's if that was refused.
    #[prost(uint64, tag = "1")]
    pub promised: u64,
    /// What this node holds, slice by slice as asked; empty if refused.
    #[prost(message, repeated, tag = "2")]
    pub copies: Vec<CopyReport>,
    /// Bytes free for blocks never written before, beyond the holder's reserve; zero: new
    /// writes are to be refused.
    #[prost(uint64, tag = "3")]
    pub free_bytes: u64,
}

/// What a node holds of one slice.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CopyReport {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// It holds everything that was ever acknowledged on it. False: some records are unknown
    /// (damaged), or the copy is lost or was never complete.
    #[prost(bool, tag = "2")]
    pub complete: bool,
    /// Known to be on all in-sync copies up to here.
    #[prost(uint64, tag = "3")]
    pub stable: u64,
    /// Journaled up to here, without gaps.
    #[prost(uint64, tag = "4")]
    pub last: u64,
    /// Records after `stable`, in order.
    #[prost(message, repeated, tag = "5")]
    pub tail: Vec<RecordHeader>,
    /// Recent operations, stable ones included, so that a retry is not run twice.
    #[prost(message, repeated, tag = "6")]
    pub operations: Vec<OperationSeq>,
    /// `operations` has every record of the stream from this position on.
    #[prost(uint64, tag = "7")]
    pub remembered_from: u64,
}

/// Where in the stream an operation was recorded.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OperationSeq {
    /// Which portal issued it.
    #[prost(uint64, tag = "1")]
    pub origin: u64,
    /// The portal's number for it.
    #[prost(uint64, tag = "2")]
    pub operation: u64,
    /// Its position.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// View of the record.
    #[prost(uint64, tag = "4")]
    pub view: u64,
}

/// New owner to holder: send one record of the tail.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FetchRecord {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// View of the record.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// Position of the record.
    #[prost(uint64, tag = "4")]
    pub seq: u64,
}

/// New owner to holder: make the tail this, and expect the stream from `next`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Reconcile {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The new owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// Records after this position are dropped first.
    #[prost(uint64, tag = "4")]
    pub keep_through: u64,
    /// Records to append, in order; their data one after the other in the payload.
    #[prost(message, repeated, tag = "5")]
    pub records: Vec<RecordHeader>,
    /// The stream's number.
    #[prost(uint64, tag = "6")]
    pub session: u64,
    /// First position of the new stream, if this is the last of the slice's reconcile messages;
    /// zero otherwise.
    #[prost(uint64, tag = "7")]
    pub next: u64,
}

/// Where one slice's stream begins.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StreamStart {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// The stream's number.
    #[prost(uint64, tag = "2")]
    pub session: u64,
    /// First position of the new stream. Records from there on are dropped first.
    #[prost(uint64, tag = "3")]
    pub next: u64,
}

/// Owner to holder: expect the streams of these slices, of which you have everything before. What
/// [`Reconcile`] does, for copies that lack nothing. The answer names the slices that it was done
/// for ([`ReplicaReply::begun`]).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BeginStreams {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// The slices.
    #[prost(message, repeated, tag = "3")]
    pub slices: Vec<StreamStart>,
    /// Nothing was ever written to them: copies of them come into being here, empty and in sync.
    #[prost(bool, tag = "4")]
    pub fresh: bool,
}

/// A position in one slice's stream.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SlicePosition {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// Position.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

/// Owner to holder: the stable positions of idle streams. The answer names the slices whose copy
/// knows it now ([`ReplicaReply::begun`]).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TellStable {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// The slices, and up to where all in-sync copies hold their streams.
    #[prost(message, repeated, tag = "3")]
    pub slices: Vec<SlicePosition>,
}

/// Owner to stale copies on one node: become joining ones. The answer says which did, and their
/// bases ([`ReplicaReply::bases`]).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JoinMany {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// Where each slice's stream begins for the copy. Nothing of it is dropped but what is not
    /// stable.
    #[prost(message, repeated, tag = "3")]
    pub slices: Vec<StreamStart>,
}

/// One copy of a [`FinishMany`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct JoinedSlice {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// The stream's number.
    #[prost(uint64, tag = "2")]
    pub session: u64,
    /// The owner's stable position.
    #[prost(uint64, tag = "3")]
    pub stable: u64,
}

/// Owner to joining copies on one node: they hold everything up to `stable` now. The answer names
/// the slices that are in sync now ([`ReplicaReply::begun`]).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FinishMany {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// The copies.
    #[prost(message, repeated, tag = "3")]
    pub slices: Vec<JoinedSlice>,
}

/// Owner to holder: read blocks, nothing newer than `stable`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadBlocks {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The owner's stable position.
    #[prost(uint64, tag = "4")]
    pub stable: u64,
    /// First block.
    #[prost(uint32, tag = "5")]
    pub first_block: u32,
    /// Number of blocks.
    #[prost(uint32, tag = "6")]
    pub blocks: u32,
}

/// Owner to an in-sync copy: which blocks changed after a position?
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Changed {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The owner's stable position.
    #[prost(uint64, tag = "4")]
    pub stable: u64,
    /// Blocks whose newest stable version is later than this.
    #[prost(uint64, tag = "5")]
    pub after: u64,
    /// Blocks from this number on.
    #[prost(uint32, tag = "6")]
    pub from_block: u32,
    /// At most so many, with their contents.
    #[prost(uint32, tag = "7")]
    pub limit: u32,
}

/// One block with its version; its 4 KiB are in the payload unless it is zero.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BlockVersion {
    /// Block within the slice.
    #[prost(uint32, tag = "1")]
    pub block: u32,
    /// View of the version.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// Position of the version.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// The block is zero.
    #[prost(bool, tag = "4")]
    pub zero: bool,
    /// The block is damaged in every copy that was asked; there is no data.
    #[prost(bool, tag = "5")]
    pub lost: bool,
}

/// Owner to a copy that is joining or has lost blocks: these are the newest stable versions of
/// some blocks.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Install {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The stream's number.
    #[prost(uint64, tag = "4")]
    pub session: u64,
    /// The blocks, ascending.
    #[prost(message, repeated, tag = "5")]
    pub blocks: Vec<BlockVersion>,
}

/// Owner to an in-sync copy: these blocks are lost elsewhere; send those that are intact.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadVersions {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The owner's view.
    #[prost(uint64, tag = "3")]
    pub view: u64,
    /// The owner's stable position.
    #[prost(uint64, tag = "4")]
    pub stable: u64,
    /// The blocks, ascending.
    #[prost(uint32, repeated, tag = "5")]
    pub blocks: Vec<u32>,
}

/// A volume in a view.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VolumeView {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
}

/// Owner to holder: do not answer a later view's fence for these volumes for a lease's time
/// (`release` false), or no longer wait for me (`release` true).
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Lease {
    /// The volumes that the sender owns.
    #[prost(message, repeated, tag = "1")]
    pub volumes: Vec<VolumeView>,
    /// Gives the leases back.
    #[prost(bool, tag = "2")]
    pub release: bool,
    /// The clock that the newest answer from here said, zero if none has come. A sender that
    /// hears nothing gets no lease. Older versions of this program leave it out.
    #[prost(uint64, optional, tag = "3")]
    pub heard: Option<u64>,
}

/// A request of the replica service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplicaRequest {
    /// Which.
    #[prost(
        oneof = "replica_request::Body",
        tags = "1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15"
    )]
    pub body: Option<replica_request::Body>,
}

/// Bodies of [`ReplicaRequest`].
pub mod replica_request {
    use super::{
        BeginStreams, Changed, Fence, FetchRecord, FinishMany, Install, JoinMany, Lease, Oneof,
        ReadBlocks, ReadVersions, Reconcile, TellStable,
    };

    /// Which request.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// Takeover, first step.
        #[prost(message, tag = "1")]
        Fence(Fence),
        /// Takeover, second step.
        #[prost(message, tag = "2")]
        FetchRecord(FetchRecord),
        /// Takeover, third step.
        #[prost(message, tag = "3")]
        Reconcile(Reconcile),
        /// Read for the owner.
        #[prost(message, tag = "4")]
        ReadBlocks(ReadBlocks),
        /// Resync: the difference.
        #[prost(message, tag = "6")]
        Changed(Changed),
        /// Resync: copied blocks.
        #[prost(message, tag = "7")]
        Install(Install),
        /// Leases of the owner.
        #[prost(message, tag = "9")]
        Lease(Lease),
        /// Healing: blocks for another copy.
        #[prost(message, tag = "10")]
        ReadVersions(ReadVersions),
        /// Which blocks are mapped.
        #[prost(message, tag = "11")]
        MapBlocks(crate::mapped::MapBlocks),
        /// Streams of many slices begin.
        #[prost(message, tag = "12")]
        BeginStreams(BeginStreams),
        /// Stable positions of many idle slices.
        #[prost(message, tag = "13")]
        TellStable(TellStable),
        /// Resync of many copies, first step.
        #[prost(message, tag = "14")]
        JoinMany(JoinMany),
        /// Resync of many copies, last step.
        #[prost(message, tag = "15")]
        FinishMany(FinishMany),
    }
}

/// Why a holder did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ReplicaRefusal {
    /// Not refused.
    None = 0,
    /// The holder has promised a later view: the sender is no longer the owner.
    ViewStale = 1,
    /// The stream's number is not the current one.
    SessionStale = 2,
    /// The holder has no such record or copy.
    Absent = 3,
    /// The data is damaged here.
    Damaged = 4,
    /// No space.
    Full = 5,
    /// The holder's store has failed.
    StoreFailed = 6,
    /// The message makes no sense to this version.
    Unknown = 7,
}

/// An answer of the replica service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplicaReply {
    /// Why not, if not.
    #[prost(enumeration = "ReplicaRefusal", tag = "1")]
    pub refusal: i32,
    /// The view the holder has promised.
    #[prost(uint64, tag = "2")]
    pub promised: u64,
    /// Answer to `Fence`.
    #[prost(message, optional, tag = "3")]
    pub fence: Option<FenceReply>,
    /// Answer to `FetchRecord`.
    #[prost(message, optional, tag = "4")]
    pub record: Option<RecordHeader>,
    /// Answer to `Changed`, and to `ReadVersions`: of those asked for, the intact ones.
    #[prost(message, repeated, tag = "6")]
    pub blocks: Vec<BlockVersion>,
    /// Answer to `Changed`: nothing follows these blocks.
    #[prost(bool, tag = "7")]
    pub complete: bool,
    /// Answer to `Lease`: granted.
    #[prost(message, repeated, tag = "8")]
    pub granted: Vec<VolumeView>,
    /// Answer to `Lease`: bytes free for blocks never written before.
    #[prost(uint64, optional, tag = "9")]
    pub free_bytes: Option<u64>,
    /// Answer to `Install`: blocks that are lost there and stay so, because the versions sent
    /// are older than what was lost. Older versions of this program leave it empty.
    #[prost(uint32, repeated, tag = "10")]
    pub not_taken: Vec<u32>,
    /// Answer to `Lease`: the clock here, which the next request repeats.
    #[prost(uint64, tag = "11")]
    pub clock: u64,
    /// Answer to `BeginStreams`, `TellStable` and `FinishMany`: the slices that it was done for.
    #[prost(uint32, repeated, tag = "12")]
    pub begun: Vec<u32>,
    /// Answer to `JoinMany`: the copies that join, and up to where each holds everything.
    #[prost(message, repeated, tag = "13")]
    pub bases: Vec<SlicePosition>,
}
