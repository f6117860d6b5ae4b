//! A portal: takes an initiator's operation at any node and sees it through at the owner.
//!
//! An operation keeps its number through every repetition, so the owner (and, by the journals,
//! its successors) runs it at most once. The portal repeats it until it has a definite answer
//! or its patience ends; only then is the outcome of a write open.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use holdfast_config::state::{Owner as OwnerRecord, VolumeRecord};
use holdfast_reservation::Standing;
use holdfast_runtime::rpc::Incoming;
use holdfast_runtime::{Frame, NodeId, PAGE_BYTES, Service};
use holdfast_wire::volume::{Io, IoKind, IoReply, IoStatus};
use holdfast_wire::{View, VolumeId};
use prost::Message;
use thiserror::Error;

use crate::context::Context;
use crate::io::IO_BYTES_MAX;
use crate::owner::Owner;
use crate::reservations;

/// One request to an owner; a slow one is asked again and joins itself there.
const CALL_LIMIT: Duration = Duration::from_millis(4000);
/// How long a portal tries before it tells the initiator to come again. Initiators of every
/// kind wait at least 30 s for a command.
const PATIENCE: Duration = Duration::from_secs(20);
const BARRIER_LIMIT: Duration = Duration::from_millis(2000);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
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
}

/// Why an operation did not end well. Where it says that nothing was done, that holds of each
/// piece: of an operation that is longer than an owner takes at once, spans slices, or zeroes
/// parts of blocks, other pieces may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoError {
    /// No owner answered in time. A write may have taken effect, or not, but will not later
    /// than this portal's next operation on the volume.
    #[error("the volume is not available at the moment")]
    Busy,
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
        Rc::new(Self {
            context,
            owners,
            origin,
            next: Cell::new(1),
            under_way: RefCell::default(),
        })
    }

    /// Runs one operation on `length` bytes at `offset`; answers read data. What is longer than
    /// an owner takes at once runs in pieces, side by side: each block is atomic, the whole is
    /// not.
    pub async fn run(
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
        standing: Standing,
    ) -> Result<Bytes, AccessError> {
        if let Operation::Zero = operation {
            return self.zero(volume, offset, length, standing).await;
        }
        let cut = |at: u64, bytes: u64| match &operation {
            Operation::Read => Some(Operation::Read),
            Operation::Write(data) => Some(Operation::Write(
                data.slice(at as usize..(at + bytes) as usize),
            )),
            Operation::Zero | Operation::CompareAndWrite(_) => None,
        };
        if length <= IO_BYTES_MAX || cut(0, 0).is_none() {
            let piece = self.run_piece(volume, offset, length, operation, standing);
            return piece.await;
        }
        let pieces = (0..length).step_by(IO_BYTES_MAX as usize).filter_map(|at| {
            let bytes = IO_BYTES_MAX.min(length - at);
            Some(self.run_piece(volume, offset + at, bytes, cut(at, bytes)?, standing))
        });
        let mut whole = BytesMut::new();
        for piece in join_all(pieces).await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.freeze())
    }

    /// Zeroes in up to three pieces: parts of blocks at the ends, whole blocks between.
    async fn zero(
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        standing: Standing,
    ) -> Result<Bytes, AccessError> {
        let (page, end) = (PAGE_BYTES as u64, offset + length);
        let first = offset.next_multiple_of(page).min(end);
        let last = (end - end % page).max(first);
        let pieces = [(offset, first), (first, last), (last, end)];
        let zeroing = pieces
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| self.run_piece(volume, from, to - from, Operation::Zero, standing));
        for piece in join_all(zeroing).await {
            piece?;
        }
        Ok(Bytes::new())
    }

    /// Resolves when the owner enforces this revision of the volume's reservations, and what it
    /// let through under older ones is over. See the module `reservations`.
    pub async fn settle(&self, volume: VolumeId, revision: u64) -> Result<(), IoError> {
        let mut io = self.request(IoKind::Settle, volume, 0, 0);
        io.reservation_revision = revision;
        match self.see_through(volume, io, Bytes::new()).await {
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
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        operation: Operation,
        standing: Standing,
    ) -> Result<Bytes, AccessError> {
        let number = self.next.get();
        self.next.set(number + 1);
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
        };
        let io = Io {
            operation: number,
            registration: standing.number,
            reservation_revision: standing.revision,
            ..self.request(kind, volume, offset, length)
        };
        let result = self.see_through(volume, io, payload).await;
        drop(ended);
        result
    }

    async fn see_through(
        &self,
        volume: VolumeId,
        mut io: Io,
        payload: Bytes,
    ) -> Result<Bytes, AccessError> {
        let give_up = self.context.runtime.now() + PATIENCE;
        let mut watch = self.context.config.watch();
        loop {
            watch.mark_unchanged();
            io.floor = self
                .under_way
                .borrow()
                .first()
                .copied()
                .unwrap_or(io.operation);
            let (reply, data) = self.ask_owner(volume, &mut io, payload.clone()).await?;
            match reply.status() {
                IoStatus::Done => return Ok(data),
                IoStatus::Full => return Err(IoError::Full.into()),
                IoStatus::Damaged => return Err(IoError::Damaged.into()),
                IoStatus::Invalid => return Err(IoError::Invalid.into()),
                IoStatus::Miscompare => return Err(IoError::Miscompare(reply.offset).into()),
                IoStatus::Gone => return Err(IoError::Gone.into()),
                IoStatus::Uncertain => return Err(IoError::Busy.into()),
                IoStatus::Reserved => return Err(AccessError::Reserved),
                IoStatus::Unknown | IoStatus::NotOwner | IoStatus::Interrupted | IoStatus::Over => {
                }
            }
            if self.context.runtime.now() >= give_up {
                return Err(IoError::Busy.into());
            }
            let news = watch.changed();
            let _ = self.context.runtime.timeout(RETRY_PAUSE, news).await;
        }
    }

    /// Who owns the volume, and in which view, as far as this node knows. A volume that it does
    /// not know may have been created a moment ago through another node, so the config group is
    /// asked once.
    async fn office(&self, volume: VolumeId) -> Result<Option<(OwnerRecord, View)>, IoError> {
        let config = &self.context.config;
        let office = |record: &VolumeRecord| record.owner.map(|owner| (owner, record.view));
        if let Some(record) = config.state().volumes.get(&volume) {
            return Ok(office(record));
        }
        if !config.read_barrier(BARRIER_LIMIT).await {
            return Ok(None);
        }
        config
            .state()
            .volumes
            .get(&volume)
            .map(office)
            .ok_or(IoError::Gone)
    }

    /// Asks whoever owns the volume now; "not owner" if nobody does or can be reached.
    async fn ask_owner(
        &self,
        volume: VolumeId,
        io: &mut Io,
        payload: Bytes,
    ) -> Result<(IoReply, Bytes), IoError> {
        let nobody = IoReply {
            status: IoStatus::NotOwner as i32,
            offset: 0,
        };
        let Some((office, view)) = self.office(volume).await? else {
            return Ok((nobody, Bytes::new()));
        };
        io.view = view.0;
        if io.first_view == 0 {
            (io.first_view, io.first_floor) = (view.0, io.floor);
        }
        if office.node == self.context.node() {
            let owner = self.owners.borrow().get(&volume).cloned();
            let Some(owner) = owner else {
                return Ok((nobody, Bytes::new()));
            };
            let (status, offset, data) = owner.io(io, payload).await;
            return Ok((
                IoReply {
                    status: status as i32,
                    offset,
                },
                data,
            ));
        }
        let frame = Frame::with_payload(io.encode_to_vec(), payload);
        let rpc = &self.context.rpc;
        let Ok(answer) = rpc
            .call(office.node, Service::Volume, frame, CALL_LIMIT)
            .await
        else {
            return Ok((nobody, Bytes::new()));
        };
        let reply = IoReply::decode(answer.header).unwrap_or_else(|_| nobody.clone());
        let short = io.kind() == IoKind::Read
            && reply.status() == IoStatus::Done
            && answer.payload.len() as u64 != io.length;
        Ok(if short {
            (nobody, Bytes::new())
        } else {
            (reply, answer.payload)
        })
    }
}

/// Answers a portal of another node.
async fn answer(
    context: &Context,
    owners: &RefCell<BTreeMap<VolumeId, Rc<Owner>>>,
    frame: Frame,
) -> Option<Frame> {
    let io = Io::decode(frame.header).ok()?;
    if io.kind() == IoKind::Learn {
        reservations::known(context, VolumeId(io.volume), io.reservation_revision).await;
        let reply = IoReply {
            status: IoStatus::Done as i32,
            offset: 0,
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
