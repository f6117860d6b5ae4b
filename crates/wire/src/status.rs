//! Questions how a node is, and what an operator orders it to do (`Service::Status`).
//!
//! A node is asked for a summary of itself, and for what it does as the owner of volumes that are
//! named: the answer's size follows from the question. Older versions ask with an empty message
//! and answer with JSON, which begins with `{`; no message here does.

use prost::{Message, Oneof};

/// A question or an order.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusRequest {
    /// Which; never absent, so that no request is empty.
    #[prost(oneof = "status_request::Body", tags = "1, 2, 3")]
    pub body: Option<status_request::Body>,
}

/// Bodies of [`StatusRequest`].
pub mod status_request {
    use super::{ForgetStalls, Look, Oneof, OrderScrub};

    /// Which request.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// How is this node? Answered by a `StatusReply`.
        #[prost(message, tag = "1")]
        Look(Look),
        /// What the scrub shall do. Answered by a `StatusReply` with a summary.
        #[prost(message, tag = "2")]
        OrderScrub(OrderScrub),
        /// Begin anew with the longest stalls. Answered by a `StatusReply` with a summary.
        #[prost(message, tag = "3")]
        ForgetStalls(ForgetStalls),
    }
}

/// What is wanted of a [`StatusReply`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Look {
    /// The summary.
    #[prost(bool, tag = "1")]
    pub summary: bool,
    /// What the node does as the owner of these; those that it does not own are left out.
    #[prost(uint64, repeated, tag = "2")]
    pub volumes: Vec<u64>,
    /// What its copies of each volume take.
    #[prost(bool, tag = "3")]
    pub holdings: bool,
    /// In the summary: what its copies take together. Costs a look-up for each of them.
    #[prost(bool, tag = "4")]
    pub copies: bool,
}

/// What a scrub can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ScrubAction {
    /// Not known to this version: nothing is done.
    Unknown = 0,
    /// Begin a pass now, from the start.
    Start = 1,
    /// Stand still until told to go on.
    Pause = 2,
    /// Go on.
    Resume = 3,
}

/// Tells the node's scrub what to do.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OrderScrub {
    /// What.
    #[prost(enumeration = "ScrubAction", tag = "1")]
    pub action: i32,
}

/// Forgets the stalls measured so far.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ForgetStalls {}

/// Answer to [`StatusRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct StatusReply {
    /// The summary, if it was wanted.
    #[prost(message, optional, tag = "1")]
    pub summary: Option<NodeSummary>,
    /// Of the volumes that were named, those that the node owns.
    #[prost(message, repeated, tag = "2")]
    pub owners: Vec<OwnerStatus>,
    /// What its copies of each volume take, if that was wanted.
    #[prost(message, repeated, tag = "3")]
    pub holdings: Vec<Holding>,
}

/// What a node's copies of one volume take.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Holding {
    /// The volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// A node in brief. Sizes in bytes.
#[derive(Clone, PartialEq, Message)]
pub struct NodeSummary {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Which start of it.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Whether the config group counts this start as running.
    #[prost(bool, tag = "3")]
    pub registered: bool,
    /// How full its store is.
    #[prost(message, optional, tag = "4")]
    pub usage: Option<StoreUsage>,
    /// What its disk has lost.
    #[prost(message, optional, tag = "5")]
    pub integrity: Option<Integrity>,
    /// Whether its home fills up: 0 enough, 1 low, 2 critical.
    #[prost(uint32, tag = "6")]
    pub space: u32,
    /// Its links.
    #[prost(message, repeated, tag = "7")]
    pub links: Vec<LinkStatus>,
    /// Volumes whose initiators have waited longest for an answer, longest first; the sender
    /// bounds how many.
    #[prost(message, repeated, tag = "8")]
    pub oldest_io: Vec<OldestIo>,
    /// Volumes that it owns.
    #[prost(uint64, tag = "9")]
    pub owned: u64,
    /// Those among them that it serves.
    #[prost(uint64, tag = "10")]
    pub serving: u64,
    /// How long its thread was held.
    #[prost(message, optional, tag = "11")]
    pub stalls: Option<Stalls>,
    /// Bytes of the copies that the cluster places on it; absent from an older version.
    #[prost(uint64, optional, tag = "12")]
    pub copies_bytes: Option<u64>,
    /// What it does for nodes that are drained.
    #[prost(message, repeated, tag = "13")]
    pub drains: Vec<DrainShare>,
}

/// What a node does for one that is drained.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DrainShare {
    /// The node that is drained.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Bytes copied by the sender's owners.
    #[prost(uint64, tag = "2")]
    pub copied_bytes: u64,
    /// Of those, bytes in copies that are not in sync yet.
    #[prost(uint64, tag = "3")]
    pub unfinished_bytes: u64,
    /// Bytes a second, within the last minute; absent if that is not known yet.
    #[prost(uint64, optional, tag = "4")]
    pub bytes_per_s: Option<u64>,
}

/// How full a store is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StoreUsage {
    /// Capacity for block data.
    #[prost(uint64, tag = "1")]
    pub home: u64,
    /// Part of it in use.
    #[prost(uint64, tag = "2")]
    pub home_used: u64,
    /// Space of blocks that were overwritten or unmapped.
    #[prost(uint64, tag = "3")]
    pub home_reclaimable: u64,
    /// Space of the map of blocks.
    #[prost(uint64, tag = "4")]
    pub home_map: u64,
    /// Space that holds nothing.
    #[prost(uint64, tag = "5")]
    pub home_free: u64,
    /// Moved by collecting since the node's start.
    #[prost(uint64, tag = "6")]
    pub home_collected: u64,
    /// Size of the journal.
    #[prost(uint64, tag = "7")]
    pub journal: u64,
    /// Part of it that cannot be reused yet.
    #[prost(uint64, tag = "8")]
    pub journal_used: u64,
}

/// What a disk has lost, and the scrub that looks for it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Integrity {
    /// Something is damaged.
    #[prost(bool, tag = "1")]
    pub damaged: bool,
    /// Blocks known to be damaged.
    #[prost(uint64, tag = "2")]
    pub damaged_blocks: u64,
    /// Of those, blocks that no other copy has.
    #[prost(uint64, tag = "3")]
    pub lost_blocks: u64,
    /// Blocks that other copies gave back.
    #[prost(uint64, tag = "4")]
    pub healed_blocks: u64,
    /// Whether an operator has stopped the scrub.
    #[prost(bool, tag = "5")]
    pub scrub_paused: bool,
    /// The pass under way.
    #[prost(message, optional, tag = "6")]
    pub scrub: Option<ScrubPass>,
    /// The pass before.
    #[prost(message, optional, tag = "7")]
    pub last_scrub: Option<ScrubPass>,
}

/// One pass of the scrub. Times in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ScrubPass {
    /// When it began.
    #[prost(uint64, tag = "1")]
    pub begun_unix_ms: u64,
    /// When it ended.
    #[prost(uint64, optional, tag = "2")]
    pub ended_unix_ms: Option<u64>,
    /// Bytes read.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// Blocks found damaged.
    #[prost(uint64, tag = "4")]
    pub damaged_blocks: u64,
}

/// One link of a node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinkStatus {
    /// The node at the other end.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Whether it is up.
    #[prost(bool, tag = "2")]
    pub up: bool,
    /// Why it is not.
    #[prost(string, optional, tag = "3")]
    pub problem: Option<String>,
}

/// The oldest operation on a volume that one node has not answered.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OldestIo {
    /// The volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// How long ago it arrived.
    #[prost(uint64, tag = "2")]
    pub age_ms: u64,
}

/// How long single steps have held a node's thread.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Stalls {
    /// The longest.
    #[prost(uint64, tag = "1")]
    pub longest_us: u64,
    /// In which task.
    #[prost(string, tag = "2")]
    pub longest_in: String,
    /// How many held it for longer than the bound.
    #[prost(uint64, tag = "3")]
    pub count: u64,
    /// Since when, by the node's clock.
    #[prost(uint64, tag = "4")]
    pub measured_ms: u64,
}

/// What an owner is doing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OwnerStatus {
    /// The volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The view in which it took office.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// Whether it serves.
    #[prost(bool, tag = "3")]
    pub open: bool,
    /// What it waits for.
    #[prost(message, optional, tag = "4")]
    pub waiting: Option<Waiting>,
    /// Time since it took office.
    #[prost(uint64, tag = "5")]
    pub age_ms: u64,
    /// Time from taking office to serving.
    #[prost(uint64, optional, tag = "6")]
    pub takeover_ms: Option<u64>,
    /// Copies being brought back, and some that were; the sender bounds how many.
    #[prost(message, repeated, tag = "7")]
    pub resyncs: Vec<Resync>,
    /// All copies being brought back.
    #[prost(uint64, tag = "8")]
    pub resyncs_under_way: u64,
    /// All copies brought back in this view.
    #[prost(uint64, tag = "9")]
    pub resyncs_finished: u64,
    /// Bytes copied by all of them.
    #[prost(uint64, tag = "10")]
    pub resynced_bytes: u64,
}

/// What an owner waits for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Waiting {
    /// In words, to follow "waits for".
    #[prost(string, tag = "1")]
    pub text: String,
    /// The API's word for the kind; one that the reader does not know leaves the text.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// The nodes that it depends on.
    #[prost(uint64, repeated, tag = "3")]
    pub nodes: Vec<u64>,
    /// For how long.
    #[prost(uint64, tag = "4")]
    pub for_ms: u64,
}

/// One copy that is, or was, brought back.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Resync {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// Where the copy is.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// Bytes copied.
    #[prost(uint64, tag = "3")]
    pub copied_bytes: u64,
    /// Whether the copy is in sync again.
    #[prost(bool, tag = "4")]
    pub finished: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_is_empty_and_no_reply_looks_like_json() {
        let bodies = [
            status_request::Body::Look(Look::default()),
            status_request::Body::OrderScrub(OrderScrub::default()),
            status_request::Body::ForgetStalls(ForgetStalls {}),
        ];
        for body in bodies {
            let request = StatusRequest { body: Some(body) };
            assert!(!request.encode_to_vec().is_empty(), "{request:?}");
        }
        let reply = StatusReply {
            summary: Some(NodeSummary::default()),
            owners: vec![OwnerStatus::default()],
            holdings: Vec::new(),
        };
        assert_ne!(reply.encode_to_vec().first(), Some(&b'{'));
        assert!(StatusReply::default().encode_to_vec().is_empty());
    }
}
