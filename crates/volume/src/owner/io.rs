//! The owner's front door: checks an operation, runs it at most once, and answers.

use std::time::Duration;

use bytes::Bytes;
use holdfast_reservation::Standing;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Instant, PAGE_BYTES};
use holdfast_store::OperationId;
use holdfast_wire::View;
use holdfast_wire::volume::{Io, IoKind, IoStatus};

use super::mapped::MAP_BYTES_MAX;
use super::paths::{PathKey, Verdict};
use super::writes::{Asked, Effect};
use super::{Owner, WRITE_KIB_MIN};
use crate::bounds::VolumeBounds;

/// Granularity of offsets and lengths in bytes: the smallest logical block.
const SECTOR_BYTES: u64 = 512;
/// Longest operation with data, in bytes. It becomes one record per slice, up to two blocks
/// longer, and a journal takes records of a sixteenth of its ring, up to 4 MiB.
pub(crate) const IO_BYTES_MAX: u64 = 1 << 20;
/// Longest operation without data, in bytes; it still makes one record per slice.
const ZERO_BYTES_MAX: u64 = 4 << 30;

/// How long an operation whose evidence has become old under way waits for newer. Its portal
/// sends it more often.
const EVIDENCE_PATIENCE: Duration = Duration::from_millis(1000);

/// How long an operation beyond the end that this owner knows waits for its node to know more.
const BARRIER_LIMIT: Duration = Duration::from_millis(2000);

const _: () = assert!(IO_BYTES_MAX / 1024 <= VolumeBounds::SERVICE.in_flight_kib as u64);

/// What came of an operation: status, offset of a miscompare, data of a read.
pub(crate) type IoResult = (IoStatus, u64, Bytes);

fn ended(status: IoStatus) -> IoResult {
    (status, 0, Bytes::new())
}

impl Owner {
    /// Runs one operation.
    pub async fn io(&self, io: &Io, payload: Bytes) -> (IoStatus, u64, Bytes) {
        if io.kind() == IoKind::Release {
            // In whatever view: an owner that is none any more orders nothing either.
            self.end_path(path_of(io));
            // What was ordered before is not stable yet, and so not seen; an owner that closes
            // meanwhile shows nothing any more.
            self.ordered_is_stable().await;
            return ended(IoStatus::Done);
        }
        if io.view == self.view.0 {
            self.take_evidence(io);
        }
        if !self.gate.admits() || io.view != self.view.0 {
            return ended(IoStatus::NotOwner);
        }
        if io.kind() == IoKind::Hold {
            return ended(IoStatus::Done);
        }
        self.leases.note_use(self.context.runtime.now());
        if io.kind() == IoKind::Settle {
            return ended(self.settle(io.reservation_revision).await);
        }
        if !is_well_formed(io, &payload) {
            return ended(IoStatus::Invalid);
        }
        if let Err(status) = self.check_bounds(io).await {
            return ended(status);
        }
        self.count(io);
        let standing = Standing {
            number: io.registration,
            revision: io.reservation_revision,
        };
        if !self.knows_reservations(standing.revision).await {
            return ended(IoStatus::Interrupted);
        }
        let now = self.context.runtime.now();
        self.paths.borrow_mut().note_use(now, path_of(io));
        if io.kind() == IoKind::Map {
            return match self.mapped_for(standing, io.offset, io.length).await {
                Ok(runs) => (IoStatus::Done, 0, runs),
                Err(status) => ended(status),
            };
        }
        if io.kind() == IoKind::Read {
            let read = self.read(io.offset, io.length);
            return match self.read_for(standing, read).await {
                Ok(data) => (IoStatus::Done, 0, data),
                Err(status) => ended(status),
            };
        }
        let operation = operation_of(io);
        if self.history.is_over(operation, io.floor) {
            reach::note(Row::RepeatOver);
            return ended(IoStatus::Over);
        }
        if let Some(answer) = self.history.join_running(operation)
            && !planted::is_active(Bug::RunTwiceAtOnce)
        {
            reach::note(Row::RepeatJoins);
            // Asked for again over another link: whoever runs it answers both.
            return ended(answer.await.unwrap_or(IoStatus::Interrupted));
        }
        let running = self.history.run(operation);
        if let Err(status) = self.judge_path(path_of(io)) {
            running.end(status);
            return ended(status);
        }
        let (status, offset) = self.change(io, standing, payload).await;
        running.end(status);
        (status, offset, Bytes::new())
    }

    fn count(&self, io: &Io) {
        let mut traffic = self.traffic.get();
        match io.kind() {
            IoKind::Read => {
                traffic.reads += 1;
                traffic.bytes += io.length;
            }
            IoKind::Write | IoKind::CompareAndWrite => {
                traffic.writes += 1;
                traffic.bytes += io.length;
            }
            IoKind::Zero => traffic.writes += 1,
            IoKind::Settle
            | IoKind::Learn
            | IoKind::Hold
            | IoKind::Release
            | IoKind::Map
            | IoKind::Unknown => {}
        }
        self.traffic.set(traffic);
    }

    async fn change(&self, io: &Io, standing: Standing, payload: Bytes) -> (IoStatus, u64) {
        let asked = Asked {
            operation: operation_of(io),
            first_view: View(io.first_view),
            first_floor: io.first_floor,
            standing,
            path: path_of(io),
        };
        let give_up = self.context.runtime.now() + EVIDENCE_PATIENCE;
        loop {
            let (status, at) = self.try_change(&asked, io, payload.clone()).await;
            if status != IoStatus::Stale || self.gate.is_draining() {
                return (status, at);
            }
            // It has waited here for long. Its portal sends newer evidence all the while, so its
            // data need not come again.
            let left = give_up.saturating_since(self.context.runtime.now());
            let vouched = self.vouched(asked.path);
            if left.is_zero() || self.context.runtime.timeout(left, vouched).await.is_none() {
                return (IoStatus::Stale, 0);
            }
        }
    }

    /// Resolves when the path is no longer doubtful.
    async fn vouched(&self, path: PathKey) {
        loop {
            let news = self.paths_changed.notified();
            if self.judge_path(path) != Err(IoStatus::Stale) || self.gate.is_closed() {
                return;
            }
            news.await;
        }
    }

    async fn try_change(&self, asked: &Asked, io: &Io, payload: Bytes) -> (IoStatus, u64) {
        let (offset, length) = (io.offset, io.length);
        let kib = (payload.len() as u32).div_ceil(1024).max(WRITE_KIB_MIN);
        if self.in_flight.available_permits() < kib as usize {
            reach::note(Row::WriterBlocked);
        }
        let Ok(_permit) = self.in_flight.acquire_many(kib).await else {
            return (IoStatus::Interrupted, 0);
        };
        if let Err(status) = self.judge_path(asked.path) {
            return (status, 0);
        }
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
            IoKind::Read
            | IoKind::Map
            | IoKind::Settle
            | IoKind::Learn
            | IoKind::Hold
            | IoKind::Release
            | IoKind::Unknown => Err(Err(IoStatus::Invalid)),
        };
        match result {
            Ok(()) => (IoStatus::Done, 0),
            Err(Ok(at)) => (IoStatus::Miscompare, at),
            Err(Err(status)) => (status, 0),
        }
    }

    /// Takes what the portal knows of the operation's path.
    fn take_evidence(&self, io: &Io) {
        let now = self.context.runtime.now();
        if io.path == 0 || io.stamp == 0 || io.stamp > now.as_nanos() {
            return;
        }
        let held_at = io.stamp.saturating_add_signed(io.held_after_stamp);
        let held_at = Instant::from_nanos(held_at);
        if self.paths.borrow_mut().hold(now, path_of(io), held_at) {
            self.paths_changed.notify_waiters();
        }
    }

    fn end_path(&self, path: PathKey) {
        let now = self.context.runtime.now();
        self.paths.borrow_mut().end(now, path);
        self.paths_changed.notify_waiters();
    }

    /// When the path was last known to be held, if a change may be ordered for it now.
    pub(crate) fn judge_path(&self, path: PathKey) -> Result<Instant, IoStatus> {
        let now = self.context.runtime.now();
        if planted::is_active(Bug::SkipPathCheck) {
            return Ok(now);
        }
        match self.paths.borrow().judge(now, path) {
            Verdict::Held(held_at) => Ok(held_at),
            Verdict::Doubtful => Err(IoStatus::Stale),
            Verdict::Ended => Err(IoStatus::Over),
        }
    }

    /// Whether the operation ends within the volume. Another node may have learned of a new size
    /// before this one.
    async fn check_bounds(&self, io: &Io) -> Result<(), IoStatus> {
        let Some(end) = io.offset.checked_add(io.length) else {
            return Err(IoStatus::Invalid);
        };
        if end <= self.size_bytes.get() {
            return Ok(());
        }
        if !self.context.config.read_barrier(BARRIER_LIMIT).await {
            return Err(IoStatus::Interrupted);
        }
        self.follow_size();
        let state = self.context.config.state();
        let agreed = state.volumes.get(&self.volume);
        if end <= self.size_bytes.get() {
            Ok(())
        } else if agreed.is_some_and(|record| end <= record.size_bytes) {
            // Agreed on after this owner's time.
            Err(IoStatus::Interrupted)
        } else {
            Err(IoStatus::Invalid)
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

fn operation_of(io: &Io) -> OperationId {
    OperationId {
        origin: io.origin,
        number: io.operation,
    }
}

fn path_of(io: &Io) -> PathKey {
    PathKey {
        origin: io.origin,
        number: io.path,
    }
}

fn is_well_formed(io: &Io, payload: &Bytes) -> bool {
    let bytes = payload.len() as u64;
    let (payload_fits, longest) = match io.kind() {
        IoKind::Read => (bytes == 0, IO_BYTES_MAX),
        IoKind::Map => (bytes == 0, MAP_BYTES_MAX),
        IoKind::Write => (bytes == io.length, IO_BYTES_MAX),
        IoKind::Zero if is_whole_blocks(io) => (bytes == 0, ZERO_BYTES_MAX),
        IoKind::Zero => (bytes == 0, IO_BYTES_MAX),
        IoKind::CompareAndWrite => (bytes == io.length * 2, IO_BYTES_MAX / 2),
        IoKind::Settle | IoKind::Learn | IoKind::Hold | IoKind::Release | IoKind::Unknown => {
            (false, 0)
        }
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
