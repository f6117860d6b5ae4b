//! A portal: takes an initiator's operation at any node and sees it through at the owner.
//!
//! An operation keeps its number through every repetition, so the owner (and, by the journals,
//! its successors) runs it at most once. The portal repeats it for as long as the host holds on
//! to the path that it came by ([`attempt`] has the table), and tells the owner how fresh the
//! evidence for that is ([`stamps`]).

mod attempt;
mod stamps;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use holdfast_config::state::Owner as OwnerRecord;
use holdfast_path::{Path, Requester};
use holdfast_runtime::rpc::Incoming;
use holdfast_runtime::{Frame, NodeId, PAGE_BYTES, Service};
use holdfast_wire::VolumeId;
use holdfast_wire::volume::{Io, IoKind, IoReply, IoStatus};
use prost::Message;
use thiserror::Error;
use tokio::sync::Notify;

use crate::context::Context;
use crate::owner::{IO_BYTES_MAX, Owner, reservations_known};
use attempt::Release;
use stamps::Stamps;

pub use attempt::CUT_OFF_AFTER;

/// How long another node gets to learn of a change that its initiators are to be told of.
const LEARN_LIMIT: Duration = Duration::from_millis(500);

/// What to do.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Read bytes.
    Read,
    /// Write these bytes; there are as many as the length.
    Write(Bytes),
    /// Make them zero.
    Zero,
    /// Compare with the first half; if equal, write the second half.
    CompareAndWrite(Bytes),
    /// Tell which parts are mapped: an encoded [`holdfast_wire::mapped::MappedBytes`].
    Map,
}

/// Why an operation did not end well. Where it says that nothing was done, that holds of each
/// piece: of an operation that is longer than an owner takes at once, spans slices, or zeroes
/// parts of blocks, other pieces may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoError {
    /// No owner answered in time; nothing was done, and nothing will be.
    #[error("the volume is not available at the moment")]
    Busy,
    /// This node is cut off from the cluster; nothing was done, and nothing will be.
    #[error("the volume cannot be reached from this node")]
    Unreachable,
    /// A write was sent to an owner, and nobody answers whether it took effect. It did, or it
    /// never will.
    #[error("the outcome of the operation is unknown")]
    Unknown,
    /// The path that the operation came by has ended. A write took effect before, or never will.
    #[error("the path that the operation came by has ended")]
    PathEnded,
    /// Some copy has no space; nothing was written.
    #[error("no space is left for the volume's data")]
    Full,
    /// No copy has the data intact; nothing was changed.
    #[error("the data is damaged in every copy")]
    Damaged,
    /// The range or the operation makes no sense; nothing was changed.
    #[error("the operation is outside the volume")]
    Invalid,
    /// The comparison failed at this byte; nothing was written.
    #[error("the comparison failed at byte {0}")]
    Miscompare(u64),
    /// The volume does not exist.
    #[error("the volume does not exist")]
    Gone,
}

/// Why an initiator's operation did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// A reservation forbids it. Nothing was done; of an operation that spans slices or is
    /// longer than an owner takes at once, pieces may have been done before the reservation.
    #[error("a reservation forbids the access")]
    Reserved,
    /// It failed.
    #[error("{0}")]
    Io(#[from] IoError),
}

/// See the module's header. One per node.
pub struct Portal {
    context: Context,
    owners: Rc<RefCell<BTreeMap<VolumeId, Rc<Owner>>>>,
    origin: u64,
    next: Cell<u64>,
    under_way: RefCell<BTreeSet<u64>>,
    /// Wakes the ticker: an operation is under way.
    busy: Notify,
    /// Comes regularly while operations are under way.
    tick: Notify,
    /// Ticks in a row at which this node was out of touch with the cluster.
    silent_ticks: Cell<u32>,
    /// What the clocks of owners' nodes said.
    stamps: RefCell<Stamps>,
    /// Paths of which an owner is being told that they are held.
    vouching: RefCell<BTreeSet<(VolumeId, u64)>>,
    /// Paths of which an owner is being told that they have ended.
    releases: RefCell<BTreeMap<(VolumeId, u64, OwnerRecord), Release>>,
}

impl Portal {
    /// Starts the portal of this node, and answers portals of other nodes for the owners here.
    pub fn start(context: Context, owners: Rc<RefCell<BTreeMap<VolumeId, Rc<Owner>>>>) -> Rc<Self> {
        let (serving, own) = (owners.clone(), context.clone());
        context
            .rpc
            .serve(Service::Volume, move |incoming: Incoming| {
                let (owners, context) = (serving.clone(), own.clone());
                Box::pin(async move { answer(&context, &owners, incoming.frame).await })
            });
        // A node starts far fewer than 2^32 times, and so are there far fewer nodes.
        let origin = (context.node().0 << 32) | (context.incarnation().0 & 0xffff_ffff);
        let runtime = context.runtime.clone();
        let portal = Rc::new(Self {
            context,
            owners,
            origin,
            next: Cell::new(1),
            under_way: RefCell::default(),
            busy: Notify::new(),
            tick: Notify::new(),
            silent_ticks: Cell::default(),
            stamps: RefCell::default(),
            vouching: RefCell::default(),
            releases: RefCell::default(),
        });
        runtime.spawn("portal-tick", portal.clone().keep_ticking());
        portal
    }

    /// One timer for all operations, and none while there are none.
    async fn keep_ticking(self: Rc<Self>) {
        loop {
            self.busy.notified().await;
            while !self.under_way.borrow().is_empty() {
                self.context.runtime.sleep_roughly(attempt::TICK).await;
                let silent = self.context.config.out_of_touch() >= CUT_OFF_AFTER;
                let ticks = self.silent_ticks.get().saturating_add(1);
                self.silent_ticks.set(if silent { ticks } else { 0 });
                self.tick.notify_waiters();
            }
        }
    }

    /// Whether this node has heard nothing of a majority of the config group for so long that
    /// the others may go on without it.
    pub fn is_cut_off(&self) -> bool {
        self.silent_ticks.get() >= attempt::CUT_OFF_TICKS
            && self.context.config.out_of_touch() >= CUT_OFF_AFTER
    }

    fn lowest_under_way(&self) -> Option<u64> {
        self.under_way.borrow().first().copied()
    }

    /// Runs one operation on `length` bytes at `offset`; answers read data. What is longer than
    /// an owner takes at once runs in pieces, side by side: each block is atomic, the whole is
    /// not.
    pub async fn run(
        self: &Rc<Self>,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
        requester: &Requester,
    ) -> Result<Bytes, AccessError> {
        if let Operation::Zero = operation {
            return self.zero(volume, offset, length, requester).await;
        }
        let cut = |at: u64, bytes: u64| match &operation {
            Operation::Read => Some(Operation::Read),
            Operation::Write(data) => Some(Operation::Write(
                data.slice(at as usize..(at + bytes) as usize),
            )),
            Operation::Zero | Operation::CompareAndWrite(_) | Operation::Map => None,
        };
        if length <= IO_BYTES_MAX || cut(0, 0).is_none() {
            let piece = self.run_piece(volume, offset, length, operation, requester);
            return piece.await;
        }
        let pieces = (0..length).step_by(IO_BYTES_MAX as usize).filter_map(|at| {
            let bytes = IO_BYTES_MAX.min(length - at);
            Some(self.run_piece(volume, offset + at, bytes, cut(at, bytes)?, requester))
        });
        let mut whole = BytesMut::new();
        for piece in all_or_unknown(join_all(pieces).await)? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Zeroes in up to three pieces: parts of blocks at the ends, whole blocks between.
    async fn zero(
        self: &Rc<Self>,
        volume: VolumeId,
        offset: u64,
        length: u64,
        requester: &Requester,
    ) -> Result<Bytes, AccessError> {
        let (page, end) = (PAGE_BYTES as u64, offset + length);
        let first = offset.next_multiple_of(page).min(end);
        let last = (end - end % page).max(first);
        let pieces = [(offset, first), (first, last), (last, end)];
        let zeroing = pieces
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| self.run_piece(volume, from, to - from, Operation::Zero, requester));
        all_or_unknown(join_all(zeroing).await)?;
        Ok(Bytes::new())
    }

    /// Resolves when the owner enforces this revision of the volume's reservations, and what it
    /// let through under older ones is over. See the module `reservations`.
    pub async fn settle(self: &Rc<Self>, volume: VolumeId, revision: u64) -> Result<(), IoError> {
        let mut io = self.request(IoKind::Settle, volume, 0, 0);
        io.reservation_revision = revision;
        match self
            .see_through(volume, io, Bytes::new(), &Path::own())
            .await
        {
            Ok(_) => Ok(()),
            Err(AccessError::Io(error)) => Err(error),
            // Not an answer that this request can have.
            Err(AccessError::Reserved) => Err(IoError::Busy),
        }
    }

    /// Waits a moment for these nodes to learn this revision of the volume's reservations, so
    /// that their initiators are told with their next command. Safety does not rest on it.
    pub async fn spread(
        &self,
        volume: VolumeId,
        revision: u64,
        nodes: impl Iterator<Item = NodeId>,
    ) {
        let mut io = self.request(IoKind::Learn, volume, 0, 0);
        io.reservation_revision = revision;
        let frame = Frame::new(io.encode_to_vec());
        let rpc = &self.context.rpc;
        let telling = nodes
            .filter(|node| *node != self.context.node())
            .map(|node| rpc.call(node, Service::Volume, frame.clone(), LEARN_LIMIT));
        // A node that does not answer learns of it when it can.
        join_all(telling).await;
    }

    fn request(&self, kind: IoKind, volume: VolumeId, offset: u64, length: u64) -> Io {
        Io {
            volume: volume.0,
            origin: self.origin,
            kind: kind as i32,
            offset,
            length,
            ..Io::default()
        }
    }

    async fn run_piece(
        self: &Rc<Self>,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
        requester: &Requester,
    ) -> Result<Bytes, AccessError> {
        let number = self.next.get();
        self.next.set(number + 1);
        if self.under_way.borrow().is_empty() {
            self.busy.notify_one();
        }
        self.under_way.borrow_mut().insert(number);
        let ended = UnderWay {
            portal: self,
            number,
        };
        let (kind, payload) = match operation {
            Operation::Read => (IoKind::Read, Bytes::new()),
            Operation::Write(data) => (IoKind::Write, data),
            Operation::Zero => (IoKind::Zero, Bytes::new()),
            Operation::CompareAndWrite(data) => (IoKind::CompareAndWrite, data),
            Operation::Map => (IoKind::Map, Bytes::new()),
        };
        let io = Io {
            operation: number,
            registration: requester.standing.number,
            reservation_revision: requester.standing.revision,
            ..self.request(kind, volume, offset, length)
        };
        let result = self.see_through(volume, io, payload, &requester.path).await;
        drop(ended);
        result
    }
}

/// What pieces of one operation came to together. "Not done" is true of the whole only if it is
/// of every piece.
fn all_or_unknown(pieces: Vec<Result<Bytes, AccessError>>) -> Result<Vec<Bytes>, AccessError> {
    let begun = pieces.iter().any(|piece| match piece {
        Ok(data) => data.is_empty(),
        Err(_) => false,
    });
    let unknown = AccessError::Io(IoError::Unknown);
    if pieces.iter().any(|piece| *piece == Err(unknown)) {
        return Err(unknown);
    }
    let whole: Result<Vec<Bytes>, AccessError> = pieces.into_iter().collect();
    whole.map_err(|error| match error {
        AccessError::Io(IoError::Busy | IoError::Unreachable) if begun => IoError::Unknown.into(),
        other => other,
    })
}

/// Answers a portal of another node.
async fn answer(
    context: &Context,
    owners: &RefCell<BTreeMap<VolumeId, Rc<Owner>>>,
    frame: Frame,
) -> Option<Frame> {
    let io = Io::decode(frame.header).ok()?;
    if io.kind() == IoKind::Learn {
        reservations_known(context, VolumeId(io.volume), io.reservation_revision).await;
        let reply = IoReply {
            status: IoStatus::Done as i32,
            offset: 0,
            stamp: 0,
        };
        return Some(Frame::new(reply.encode_to_vec()));
    }
    let owner = owners.borrow().get(&VolumeId(io.volume)).cloned();
    let (status, offset, data) = match owner {
        Some(owner) => owner.io(&io, frame.payload).await,
        None => (IoStatus::NotOwner, 0, Bytes::new()),
    };
    let reply = IoReply {
        status: status as i32,
        offset,
        stamp: context.runtime.now().as_nanos(),
    };
    Some(Frame::with_payload(reply.encode_to_vec(), data))
}

/// Takes the operation's number out of those under way when dropped.
struct UnderWay<'a> {
    portal: &'a Portal,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.portal.under_way.borrow_mut().remove(&self.number);
    }
}
