//! The changes that the config group agrees on, and their outcomes.

use holdfast_reservation::{Effects, Refusal as ReservationRefusal, Request};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_wire::{View, VolumeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::front::{FrontChange, INITIATORS_MAX, RETIRING_MAX};
use super::records::{Chap, ClusterIdentity};
use super::{COPIES_PER_NODE_MAX, STATE_BYTES_MAX};

/// One copy that is to be on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyMove {
    /// The volume.
    pub volume: VolumeId,
    /// The slice.
    pub slice: u32,
    /// Where the copy is: in sync.
    pub from: NodeId,
    /// Where it is to be.
    pub to: NodeId,
}

/// One proposal. Whatever it reads (time, randomness, secrets) is in it: applying is pure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Makes the cluster, with its first node.
    Found {
        /// Who the cluster is.
        cluster: ClusterIdentity,
        /// Random number of the first node's data directory.
        uuid: [u8; 16],
        /// `host:port` of the first node for others.
        link_address: String,
    },
    /// Allows one node to join.
    AddToken {
        /// SHA-256 of the token's secret.
        secret_hash: [u8; 32],
        /// When it ends, in milliseconds since the Unix epoch.
        expires_unix_ms: u64,
    },
    /// Uses a token up and gives the joining node its number.
    Admit(Admission),
    /// A node's process has started.
    NodeStarted(NodeStart),
    /// A node's process is gone or silent.
    NodeDown {
        /// The node.
        node: NodeId,
        /// The start that is gone; a newer one is left alone.
        incarnation: Incarnation,
    },
    /// A node is about to end and gives its volumes away.
    HandOver {
        /// The node.
        node: NodeId,
        /// Its start.
        incarnation: Incarnation,
    },
    /// Makes a volume.
    CreateVolume(VolumeSpec),
    /// Deletes a volume and its data.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The owner has taken the volume over.
    Opened {
        /// The volume.
        volume: VolumeId,
        /// The view in which it was taken over.
        view: View,
        /// What the owner reconciled.
        reconciled: Reconciled,
    },
    /// An owner that has closed on its own asks for a new view; it may be appointed again.
    Resign {
        /// The volume.
        volume: VolumeId,
        /// The view of the closed owner.
        view: View,
    },
    /// The owner takes one node's copies out of in-sync sets: they fail, or their process is
    /// gone. The last in-sync copy of a slice stays.
    RemoveCopies {
        /// The volume.
        volume: VolumeId,
        /// The owner's view.
        view: View,
        /// The slices.
        slices: Vec<u32>,
        /// The node of the copies.
        node: NodeId,
    },
    /// The owner has brought a joining copy up to date.
    PromoteCopy {
        /// The volume.
        volume: VolumeId,
        /// The owner's view.
        view: View,
        /// The slice.
        slice: u32,
        /// The node of the copy.
        node: NodeId,
        /// The start of the node that was brought up to date.
        incarnation: Incarnation,
    },
    /// An initiator changes who may access a volume. The request is judged when it is applied,
    /// so that whoever comes first in the log wins, wherever each was asked.
    ChangeReservations {
        /// The volume.
        volume: VolumeId,
        /// What is asked for, and by whom.
        request: Request,
    },
    /// Makes a volume larger. Its owner opens the new range, then agrees on `Grown`; until then
    /// the volume has its old size.
    GrowVolume {
        /// The volume.
        volume: VolumeId,
        /// The size that the proposer saw; `None` if it does not matter. A proposal that was
        /// made for another size is refused.
        expected_bytes: Option<u64>,
        /// The new size in bytes, a multiple of 4096.
        size_bytes: u64,
    },
    /// The owner in office has set up the slices that a volume grows by.
    Grown {
        /// The volume.
        volume: VolumeId,
        /// The owner's view.
        view: View,
        /// What the owner set up: of the new slices only.
        reconciled: Reconciled,
    },
    /// Makes a volume of which more is wanted than its specification says.
    CreateVolumeWith {
        /// The volume.
        spec: VolumeSpec,
        /// How initiators are to reach it.
        front: FrontChange,
    },
    /// Changes how initiators reach a volume.
    ChangeFront {
        /// The volume.
        volume: VolumeId,
        /// What is to be different.
        change: FrontChange,
    },
    /// Gives a volume a new CHAP secret.
    RotateSecret {
        /// The volume.
        volume: VolumeId,
        /// The new credentials.
        chap: Chap,
        /// The proposer's wall clock, in milliseconds since the Unix epoch.
        now_unix_ms: u64,
        /// Until when the present secret is good for logins, by the same clock.
        old_until_unix_ms: u64,
        /// Whether every earlier secret is void at once and sessions that used one end.
        revoke: bool,
    },
    /// Makes one node the owner of one volume. Refused unless the node is up and holds an in-sync
    /// copy of some slice; nothing is done if it is the owner already.
    MoveVolume {
        /// The volume.
        volume: VolumeId,
        /// The owner's view that the proposer saw.
        view: View,
        /// The new owner.
        to: NodeId,
    },
    /// Takes a node out for good; its copies are made anew on other nodes.
    Evict {
        /// The node.
        node: NodeId,
    },
    /// A node's disk has failed, and its process ends.
    DiskFailed {
        /// The node.
        node: NodeId,
        /// Its start.
        incarnation: Incarnation,
        /// The node's wall clock, in milliseconds since the Unix epoch.
        now_unix_ms: u64,
    },
    /// What has run out by this clock is over for good, whatever clocks say later: replaced
    /// secrets, join tokens.
    EndGrace {
        /// The proposer's wall clock, in milliseconds since the Unix epoch.
        now_unix_ms: u64,
    },
    /// The same as `MoveVolume`, on the wish of an operator or a host: it is remembered, and no
    /// rebalancing takes the volume away from there by itself.
    PlaceVolume {
        /// The volume.
        volume: VolumeId,
        /// The owner's view that the proposer saw.
        view: View,
        /// The new owner.
        to: NodeId,
    },
    /// Whether the cluster moves volumes by itself to spread their load.
    SetRebalancing {
        /// Whether it does.
        automatic: bool,
    },
    /// Makes a volume of which the first slice is placed and nothing else: the anchor. Every
    /// other slice comes with `PlaceSlices`.
    CreateThinVolume {
        /// The volume.
        spec: VolumeSpec,
        /// How initiators are to reach it.
        front: FrontChange,
    },
    /// Makes a volume larger, at once: nothing is placed.
    ResizeVolume {
        /// The volume.
        volume: VolumeId,
        /// The size that the proposer saw; `None` if it does not matter. A proposal that was
        /// made for another size is refused.
        expected_bytes: Option<u64>,
        /// The new size in bytes, a multiple of 4096.
        size_bytes: u64,
    },
    /// The owner in office has made empty copies of slices that were not placed so far, at most
    /// `PLACED_AT_ONCE_MAX`. All of them are placed, or none.
    PlaceSlices {
        /// The volume.
        volume: VolumeId,
        /// The owner's view.
        view: View,
        /// The slices.
        slices: Vec<PlacedSlice>,
        /// The start of each of their nodes that has made the copies.
        incarnations: Vec<(NodeId, Incarnation)>,
    },
    /// The same as `PromoteCopy` for several slices, at most `PROMOTED_AT_ONCE_MAX`: all of them
    /// are promoted, or none.
    PromoteCopies {
        /// The volume.
        volume: VolumeId,
        /// The owner's view.
        view: View,
        /// The node of the copies.
        node: NodeId,
        /// The start of the node that was brought up to date.
        incarnation: Incarnation,
        /// The slices.
        slices: Vec<u32>,
    },
    /// A node is to be taken out of service without a loss of redundancy: its copies are made anew
    /// elsewhere, then taken out.
    Drain {
        /// The node.
        node: NodeId,
        /// The proposer's wall clock, in milliseconds since the Unix epoch.
        now_unix_ms: u64,
    },
    /// A node that is drained stays.
    CancelDrain {
        /// The node.
        node: NodeId,
    },
    /// Takes a node out for good that was drained and has no copy left.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Mends slices, at most `MENDED_AT_ONCE_MAX`, that lack a copy, or have one on a node that is
    /// drained or evicted. Where nothing can be mended nothing changes.
    Mend {
        /// The slices.
        slices: Vec<(VolumeId, u32)>,
    },
    /// The same as `Opened`, with as many bytes as there are nodes and ranges of copies that were
    /// left out, however many slices the volume has.
    OpenedBut {
        /// The volume.
        volume: VolumeId,
        /// The view in which it was taken over.
        view: View,
        /// How many slices were reconciled: all that are placed.
        slices: u32,
        /// The start of each node that was reconciled. In-sync copies on other nodes become stale.
        incarnations: Vec<(NodeId, Incarnation)>,
        /// In-sync copies on these nodes that were not reconciled.
        left_out: Vec<LeftOut>,
    },
    /// Copies are to be on other nodes, at most `MOVED_AT_ONCE_MAX`. A move that does not fit the
    /// slice any more is left out.
    MoveCopies {
        /// The moves.
        moves: Vec<CopyMove>,
    },
}

/// All copies that one node has of a range of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftOut {
    /// The node.
    pub node: NodeId,
    /// The first slice.
    pub first: u32,
    /// The last slice.
    pub last: u32,
}

/// A slice that its owner has set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedSlice {
    /// Its index.
    pub index: u32,
    /// Distinct nodes with an empty copy in sync: at least one, at most the volume's copies.
    pub nodes: Vec<NodeId>,
}

/// A node asks to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// SHA-256 of the token's secret.
    pub secret_hash: [u8; 32],
    /// Random number of the node's data directory.
    pub uuid: [u8; 16],
    /// `host:port` for other nodes: they have to reach it before it can say anything.
    pub link_address: String,
    /// The proposer's wall clock, in milliseconds since the Unix epoch.
    pub now_unix_ms: u64,
}

/// A node's process has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStart {
    /// The node.
    pub node: NodeId,
    /// Random number of its data directory.
    pub uuid: [u8; 16],
    /// The new start.
    pub incarnation: Incarnation,
    /// `host:port` for other nodes.
    pub link_address: String,
    /// `host:port` of its REST API.
    pub api_address: String,
    /// `host:port` of its iSCSI portal.
    pub portal_address: String,
    /// Version of its software.
    pub version: String,
}

/// A wanted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Name: letters, digits, `-`, `.`, lower case, not at the ends a `-` or `.`.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub logical_block_bytes: u32,
    /// Copies of each slice.
    pub copies: u32,
    /// Bytes per slice, a power of two of at least 1 MiB; the default is `SLICE_BYTES`.
    pub slice_bytes: u64,
    /// Credentials; `None` lets any initiator in.
    pub chap: Option<Chap>,
    /// Random bits for the volume's NAA identifier.
    pub naa_random: u64,
    /// The proposer's wall clock, in milliseconds since the Unix epoch.
    pub now_unix_ms: u64,
}

/// What a takeover has brought to the same state: per slice the nodes, and their starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    /// Nodes whose copies are identical now, placed slice by placed slice, ascending by index.
    pub slices: Vec<Vec<NodeId>>,
    /// The start of each of these nodes that was reconciled.
    pub incarnations: Vec<(NodeId, Incarnation)>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Done,
    /// The joining node's number.
    Admitted(NodeId),
    /// The new volume's number.
    Created(VolumeId),
    /// Not done; the state is unchanged.
    Refused(Refusal),
    /// The volume's reservations are as asked for.
    Reserved(Effects),
    /// So many slices got another placement.
    Placed {
        /// Slices.
        slices: u32,
    },
}

/// Why a change was refused. The state is unchanged in every case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// The cluster exists already.
    #[error("this node already belongs to a cluster")]
    AlreadyFounded,
    /// The token is not known: mistyped, used up, or of another cluster.
    #[error("the join token is unknown or used up. Make a new one with `holdfast cluster token`")]
    TokenUnknown,
    /// The token's time is over.
    #[error("the join token has expired. Make a new one with `holdfast cluster token`")]
    TokenExpired,
    /// No such node.
    #[error("there is no node {0}")]
    NodeUnknown(NodeId),
    /// The node number belongs to another data directory.
    #[error(
        "node {0} belongs to another data directory: identities cannot be reused. \
         Join as a new node"
    )]
    IdentityReused(NodeId),
    /// A newer start of the node is known: this one is a copy or a ghost.
    #[error(
        "a newer start of node {0} is known: is its data directory in use twice, \
         or restored from a copy?"
    )]
    IncarnationStale(NodeId),
    /// No such volume.
    #[error("there is no volume {0}")]
    VolumeUnknown(VolumeId),
    /// The name is taken.
    #[error("a volume named {0:?} exists already")]
    NameTaken(String),
    /// The name cannot be a part of an iSCSI name.
    #[error(
        "{0:?} is no volume name: use 1 to 63 lower-case letters, digits, `-` and `.`, \
         with a letter or digit at both ends"
    )]
    NameInvalid(String),
    /// The size is out of range.
    #[error("a volume has between 1 MiB and 1 PiB in steps of 4 KiB; {0} bytes are not")]
    SizeInvalid(u64),
    /// The number of copies is out of range.
    #[error("a volume has 1 to 7 copies, not {0}")]
    CopiesInvalid(u32),
    /// The logical block size is not supported.
    #[error("logical blocks have 512 or 4096 bytes, not {0}")]
    BlockSizeInvalid(u32),
    /// The slice size is not supported.
    #[error("a slice has a power of two of bytes between 1 MiB and 64 GiB, not {0}")]
    SliceSizeInvalid(u64),
    /// Too few nodes are up to place the copies.
    #[error(
        "{wanted} copies need {wanted} nodes that are up; {up} are. \
         Start nodes or ask for fewer copies"
    )]
    TooFewNodes {
        /// Copies asked for.
        wanted: u32,
        /// Nodes up.
        up: u32,
    },
    /// The change was made for a view that is over.
    #[error("the view has changed")]
    ViewStale,
    /// It would take the last in-sync copy away.
    #[error("this is the last in-sync copy")]
    LastCopy,
    /// The volume's reservation table refuses the request.
    #[error("{0}")]
    Reservation(#[from] ReservationRefusal),
    /// Volumes do not shrink: what lies beyond the new end would be lost.
    #[error(
        "the volume has {now_bytes} bytes and cannot shrink to {wanted_bytes}: \
         what lies beyond would be lost"
    )]
    CannotShrink {
        /// The size now.
        now_bytes: u64,
        /// The size asked for.
        wanted_bytes: u64,
    },
    /// The proposer saw another size than the volume has.
    #[error("the volume has {now_bytes} bytes, not {expected_bytes}: somebody else has resized it")]
    SizeChanged {
        /// The size now.
        now_bytes: u64,
        /// The size that the proposer saw.
        expected_bytes: u64,
    },
    /// The volume grows already.
    #[error("the volume is being resized to {0} bytes")]
    GrowsAlready(u64),
    /// A text is no iSCSI name.
    #[error("{0:?} is no iSCSI name of an initiator, such as iqn.1993-08.org.debian:01:abc")]
    InitiatorInvalid(String),
    /// An access list has no more room.
    #[error("a volume's access list has at most {INITIATORS_MAX} initiators")]
    TooManyInitiators,
    /// Nobody can be taken off a list that does not exist.
    #[error("the volume has no access list: every initiator with its credentials may log in")]
    NoAccessList,
    /// The volume has no secret.
    #[error("initiators log in to the volume without CHAP: there is no secret to replace")]
    NoSecret,
    /// Too many secrets are valid at once.
    #[error("{RETIRING_MAX} earlier secrets of the volume are still valid")]
    TooManySecrets,
    /// The node runs.
    #[error("node {0} runs: stop it first, or let it be down for good before it is evicted")]
    NodeRuns(NodeId),
    /// The node was evicted.
    #[error(
        "node {0} was evicted: its copies are elsewhere. To use this machine again, let it join \
         with an empty data directory"
    )]
    Evicted(NodeId),
    /// Data would be lost.
    #[error(
        "node {node} has the only complete copy of a part of volume {volume}. Start it again, or \
         delete the volume"
    )]
    HoldsLastCopy {
        /// The node.
        node: NodeId,
        /// The volume's name.
        volume: String,
    },
    /// The wanted owner does not take part, or is about to end.
    #[error("node {0} is not up: only a node that is can own a volume")]
    SuccessorNotUp(NodeId),
    /// The wanted owner has no data of the volume.
    #[error(
        "node {0} holds no copy of the volume that is in sync: it would have to fetch every \
         block from others"
    )]
    SuccessorWithoutCopy(NodeId),
    /// A node would hold more copies than its store can keep account of.
    #[error(
        "node {node} would hold copies of more than {COPIES_PER_NODE_MAX} slices of 1 GiB: more \
         than a node keeps account of. Add nodes, or make the volume smaller"
    )]
    TooManySlices {
        /// The node.
        node: NodeId,
    },
    /// Slices cannot be placed so: on no node, more nodes than copies, one node twice, beyond the
    /// volume's end, or one slice twice.
    #[error("slice {0} cannot be placed as the change says")]
    PlacementInvalid(u32),
    /// A node gives its copies away and takes no new ones.
    #[error("node {0} is being drained: it takes no new copies and owns nothing new")]
    NodeDrains(NodeId),
    /// A change names too many slices.
    #[error("a change names at most {most} slices, not {named}: split it")]
    TooManyAtOnce {
        /// Slices named.
        named: u32,
        /// Most slices of such a change.
        most: u32,
    },
    /// The config state has no room for more volumes or slices.
    #[error(
        "the cluster's config state has {bytes} bytes of volumes and slices; {STATE_BYTES_MAX} are \
         the most. Delete volumes that are not needed: what is there can be read and written"
    )]
    StateFull {
        /// Bytes that it has.
        bytes: u64,
    },
    /// A drain would never end.
    #[error(
        "without node {node} there are {nodes} nodes for the {copies} copies of volume {volume}. \
         Add a node first"
    )]
    DrainLeavesTooFew {
        /// The node.
        node: NodeId,
        /// Nodes that are left.
        nodes: u32,
        /// The volume's name.
        volume: String,
        /// Its copies.
        copies: u32,
    },
    /// The node is not drained, or not completely.
    #[error("node {node} is not drained: it has {copies} copies of slices")]
    NotDrained {
        /// The node.
        node: NodeId,
        /// Copies that it has.
        copies: u64,
    },
    /// Without the node nothing would be left.
    #[error("no other node takes part that is not drained: node {0} is the last one")]
    LastNode(NodeId),
}
