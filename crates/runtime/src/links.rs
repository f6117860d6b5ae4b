//! Links between nodes: best-effort, framed, with news of a peer's death.

use std::fmt;

use bytes::Bytes;
use tokio::sync::mpsc;

/// A node's number, given by the config group when the node joins, never reused. Zero is none.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// Which start of a node's process: strictly larger at every start of the same node.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// One message between nodes: an encoded header and the bulk data beside it, uncopied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Encoded message.
    pub header: Bytes,
    /// Bulk data (block contents), possibly empty.
    pub payload: Bytes,
}

impl Frame {
    /// A frame without bulk data.
    pub fn new(header: impl Into<Bytes>) -> Self {
        Self {
            header: header.into(),
            payload: Bytes::new(),
        }
    }

    /// A frame with bulk data.
    pub fn with_payload(header: impl Into<Bytes>, payload: Bytes) -> Self {
        Self {
            header: header.into(),
            payload,
        }
    }
}

/// Why a link went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// The peer's live host refused the connection: the process of that incarnation is gone.
    Refused,
    /// The connection broke or timed out: the peer may be alive.
    Lost,
}

/// What a node hears from its links.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// The peer answered the handshake; `incarnation` is its current start.
    Up {
        /// The peer.
        peer: NodeId,
        /// Its current start.
        incarnation: Incarnation,
    },
    /// The link broke. Frames in flight in either direction may be lost.
    /// A `Lost` may be followed by a `Refused` for the same incarnation, once that is known.
    Down {
        /// The peer.
        peer: NodeId,
        /// The start that was last seen on this link.
        incarnation: Incarnation,
        /// What is known of the peer.
        reason: DownReason,
    },
    /// A frame came in.
    Frame {
        /// Sender.
        from: NodeId,
        /// The sender's start.
        incarnation: Incarnation,
        /// The message.
        frame: Frame,
    },
}

/// A node's links to all its peers. Sending never blocks; a frame to a peer without a link is
/// dropped (the layers above repeat what matters).
pub trait Links {
    /// This node.
    fn local_node(&self) -> NodeId;
    /// This start of this node.
    fn local_incarnation(&self) -> Incarnation;
    /// Sets the peers to keep links to, with `host:port` each. Peers left out are disconnected.
    fn set_peers(&self, peers: Vec<(NodeId, String)>);
    /// Queues a frame for `to`, in order with earlier frames to it while the link lasts.
    fn send(&self, to: NodeId, frame: Frame);
    /// The stream of events. Can be taken once; panics the second time.
    fn take_events(&self) -> mpsc::UnboundedReceiver<LinkEvent>;
}
