//! The owner's front door: checks an operation, runs it at most once, and answers.

use bytes::Bytes;
use holdfast_reservation::Standing;
use holdfast_runtime::PAGE_BYTES;
use holdfast_store::OperationId;
use holdfast_wire::View;
use holdfast_wire::volume::{Io, IoKind, IoStatus};
use tokio::sync::oneshot;

use crate::owner::{IN_FLIGHT_KIB, Owner, Phase, WRITE_KIB_MIN};
use crate::writes::{Asked, Effect};

/// Granularity of offsets and lengths in bytes: the smallest logical block.
const SECTOR_BYTES: u64 = 512;
/// Longest operation with data, in bytes. It becomes one record per slice, up to two blocks
/// longer, and a journal takes records of a sixteenth of its ring, up to 4 MiB.
pub(crate) const IO_BYTES_MAX: u64 = 1 << 20;
/// Longest operation without data, in bytes; it still makes one record per slice.
const ZERO_BYTES_MAX: u64 = 4 << 30;

const _: () = assert!(IO_BYTES_MAX / 1024 <= IN_FLIGHT_KIB as u64);

/// What came of an operation: status, offset of a miscompare, data of a read.
pub(crate) type IoResult = (IoStatus, u64, Bytes);

fn ended(status: IoStatus) -> IoResult {
    (status, 0, Bytes::new())
}

impl Owner {
    /// Runs one operation.
    pub async fn io(&self, io: &Io, payload: Bytes) -> (IoStatus, u64, Bytes) {
        if self.phase.get() != Phase::Open || self.draining.get() || io.view != self.view.0 {
            return ended(IoStatus::NotOwner);
        }
        self.note_use();
        if io.kind() == IoKind::Settle {
            return ended(self.settle(io.reservation_revision).await);
        }
        if !is_well_formed(io, &payload) {
            return ended(IoStatus::Invalid);
        }
        if let Err(status) = self.check_bounds(io).await {
            return ended(status);
        }
        let standing = Standing {
            number: io.registration,
            revision: io.reservation_revision,
        };
        if !self.knows_reservations(standing.revision).await {
            return ended(IoStatus::Interrupted);
        }
        if io.kind() == IoKind::Read {
            return match self.read_for(standing, io.offset, io.length).await {
                Ok(data) => (IoStatus::Done, 0, data),
                Err(status) => ended(status),
            };
        }
        if self.is_over(io) {
            return ended(IoStatus::Over);
        }
        let operation = OperationId {
            origin: io.origin,
            number: io.operation,
        };
        if let Some(answer) = self.join_running(operation) {
            // Asked for again over another link: whoever runs it answers both.
            return ended(answer.await.unwrap_or(IoStatus::Interrupted));
        }
        let running = Running {
            owner: self,
            operation,
        };
        let (status, offset) = self.change(io, standing, payload).await;
        running.end(status);
        (status, offset, Bytes::new())
    }

    async fn change(&self, io: &Io, standing: Standing, payload: Bytes) -> (IoStatus, u64) {
        let kib = (payload.len() as u32).div_ceil(1024).max(WRITE_KIB_MIN);
        let Ok(_permit) = self.in_flight.acquire_many(kib).await else {
            return (IoStatus::Interrupted, 0);
        };
        let (offset, length) = (io.offset, io.length);
        let asked = Asked {
            operation: OperationId {
                origin: io.origin,
                number: io.operation,
            },
            first_view: View(io.first_view),
            first_floor: io.first_floor,
            standing,
        };
        let asked = &asked;
        let result = match io.kind() {
            IoKind::Write => self
                .write(asked, offset, length, Effect::Data(payload))
                .await
                .map_err(Err),
            IoKind::Zero => self
                .write(asked, offset, length, Effect::Zero)
                .await
                .map_err(Err),
            IoKind::CompareAndWrite => self.compare_and_write(asked, offset, payload).await,
            IoKind::Read | IoKind::Settle | IoKind::Learn | IoKind::Unknown => {
                Err(Err(IoStatus::Invalid))
            }
        };
        match result {
            Ok(()) => (IoStatus::Done, 0),
            Err(Ok(at)) => (IoStatus::Miscompare, at),
            Err(Err(status)) => (status, 0),
        }
    }

    /// Whether the portal has said that operations with this number have ended.
    fn is_over(&self, io: &Io) -> bool {
        let mut floors = self.floors.borrow_mut();
        let floor = floors.entry(io.origin).or_insert(io.floor);
        *floor = (*floor).max(io.floor);
        io.operation < *floor
    }

    /// Whether the operation's portal has said that it has ended.
    pub(crate) fn portal_is_past(&self, operation: OperationId) -> bool {
        let floors = self.floors.borrow();
        floors
            .get(&operation.origin)
            .is_some_and(|floor| operation.number < *floor)
    }

    /// Registers with the same operation if it is under way, else as the one that runs it.
    fn join_running(&self, operation: OperationId) -> Option<oneshot::Receiver<IoStatus>> {
        let mut running = self.running.borrow_mut();
        match running.get_mut(&operation) {
            Some(others) => {
                let (sender, receiver) = oneshot::channel();
                others.push(sender);
                Some(receiver)
            }
            None => {
                running.insert(operation, Vec::new());
                None
            }
        }
    }

    /// Cuts a range of the volume at slice borders: slice, first byte within it, bytes.
    pub(crate) fn segments(&self, offset: u64, length: u64) -> Vec<(u32, u64, u64)> {
        let mut segments = Vec::with_capacity(1);
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let start = at % self.slice_bytes;
            let bytes = (self.slice_bytes - start).min(end - at);
            segments.push(((at / self.slice_bytes) as u32, start, bytes));
            at += bytes;
        }
        segments
    }
}

fn is_well_formed(io: &Io, payload: &Bytes) -> bool {
    let bytes = payload.len() as u64;
    let (payload_fits, longest) = match io.kind() {
        IoKind::Read => (bytes == 0, IO_BYTES_MAX),
        IoKind::Write => (bytes == io.length, IO_BYTES_MAX),
        IoKind::Zero if is_whole_blocks(io) => (bytes == 0, ZERO_BYTES_MAX),
        IoKind::Zero => (bytes == 0, IO_BYTES_MAX),
        IoKind::CompareAndWrite => (bytes == io.length * 2, IO_BYTES_MAX / 2),
        IoKind::Settle | IoKind::Learn | IoKind::Unknown => (false, 0),
    };
    payload_fits
        && io.length > 0
        && io.length <= longest
        && io.offset.is_multiple_of(SECTOR_BYTES)
        && io.length.is_multiple_of(SECTOR_BYTES)
}

fn is_whole_blocks(io: &Io) -> bool {
    let page = PAGE_BYTES as u64;
    io.offset.is_multiple_of(page) && io.length.is_multiple_of(page)
}

/// An operation under way; if its future is dropped, those who joined hear "interrupted".
struct Running<'a> {
    owner: &'a Owner,
    operation: OperationId,
}

impl Running<'_> {
    fn end(self, status: IoStatus) {
        let others = self.owner.running.borrow_mut().remove(&self.operation);
        for other in others.into_iter().flatten() {
            let _ = other.send(status);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.owner.running.borrow_mut().remove(&self.operation);
        self.owner.operation_ended.notify_waiters();
    }
}
