//! Execution of the commands that touch the medium or that change reservations.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::{self, StreamExt as _};
use holdfast_path::Requester;

use crate::attachment::{Completion, Failure, Link, OutcomeUnknown, Status, check_extent, cut};
use crate::command::{Command, Comparison, Extent};
use crate::copy::{self, CopyStatus, Plan, Segment};
use crate::device::{CompareOutcome, DeviceError, DeviceIdentity};
use crate::ports::{self, NotOptimized};
use crate::reservation::{Action, Refusal, Request, ReservationError, Standing, wire};
use crate::sense::Sense;
use crate::{limits, mode, provisioning};

pub(crate) async fn execute(
    link: Rc<Link>,
    command: Command,
    standing: Standing,
    data: Bytes,
) -> Result<Completion, OutcomeUnknown> {
    match run(&link, command, standing, data).await {
        Err(Failure::OutcomeUnknown) => Err(OutcomeUnknown),
        outcome @ (Ok(_) | Err(Failure::Sense(_) | Failure::Status(_))) => {
            Ok(link.complete(outcome))
        }
    }
}

async fn run(
    link: &Link,
    command: Command,
    standing: Standing,
    data: Bytes,
) -> Result<Bytes, Failure> {
    let identity = link.device.identity();
    let standing = link.check_reservations(&command, standing).await?;
    link.check(&command, &identity)?;
    // A conflict that turned out to be none has kept it from being answered on arrival.
    if let Some(answer) = link.answer(&command, &identity) {
        return answer;
    }
    let medium = Medium {
        link,
        requester: Requester {
            standing,
            path: link.path.clone(),
        },
        begun: Cell::new(false),
        block_bytes: u64::from(identity.logical_block_bytes),
    };
    match command {
        Command::Read(extent) => return medium.read(extent).await,
        Command::Write(extent) | Command::WriteAtomic(extent) => {
            medium.write(extent, data).await?;
        }
        Command::OrWrite(extent) => medium.or_write(extent, &data).await?,
        Command::WriteVerify { extent, comparison } => {
            medium.write(extent, data.clone()).await?;
            let written = Extent {
                blocks: (data.len() as u64 / medium.block_bytes) as u32,
                ..extent
            };
            medium.verify(written, comparison, &data).await?;
        }
        Command::Verify { extent, comparison } => medium.verify(extent, comparison, &data).await?,
        Command::SynchronizeCache(_) => {
            link.device
                .flush()
                .await
                .map_err(|error| medium.write_failure(error))?;
        }
        Command::WriteSame { extent, .. } => medium.write_same(extent, &data).await?,
        Command::Unmap { .. } => medium.unmap(&data, &identity).await?,
        Command::ExtendedCopy { list_bytes: 0 } => {}
        Command::ExtendedCopy { .. } => {
            let plan = copy::parse(&data, &identity)?;
            let (status, outcome) = medium.copy(plan, &identity).await;
            link.unit.note_copy(&link.nexus, status);
            outcome?;
        }
        Command::CompareAndWrite(extent) => medium.compare_and_write(extent, data).await?,
        Command::GetLbaStatus { block, allocation } => {
            return medium.lba_status(block, allocation, &identity).await;
        }
        Command::ModeSelect { long, save, .. } => {
            let unit = &link.unit;
            let block_bytes = identity.logical_block_bytes;
            let state = mode::select(long, save, &data, unit.mode(), block_bytes)?;
            unit.set_mode(state, &link.nexus);
        }
        Command::SendDiagnostic { .. } => medium.test().await?,
        Command::SetTargetPortGroups { .. } => set_port_groups(link, &data).await?,
        Command::Reserve => change_reservations(link, 0, Action::ReserveUnit).await?,
        Command::Release => change_reservations(link, 0, Action::ReleaseUnit).await?,
        Command::PersistentIn { action, allocation } => {
            let reservations = link.unit.reservations();
            if !reservations.refresh().await {
                return Err(Failure::Status(Status::Busy));
            }
            let durable = reservations.survives_power_loss();
            let report = wire::report_in(action, &reservations.table(), durable);
            return Ok(cut(report, allocation));
        }
        Command::PersistentOut { action, kind, .. } => {
            let durable = link.unit.reservations().survives_power_loss();
            let (key, action) = wire::parse_out(action, kind, durable, &data)?;
            change_reservations(link, key, action).await?;
        }
        Command::TestUnitReady
        | Command::RequestSense { .. }
        | Command::Inquiry { .. }
        | Command::ModeSense { .. }
        | Command::LogSense { .. }
        | Command::StartStop { .. }
        | Command::PreventAllow { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::Prefetch(_)
        | Command::ReadDefects { .. }
        | Command::CopyParameters { .. }
        | Command::CopyStatus { .. }
        | Command::ReportLuns { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::ReportOpcodes { .. }
        | Command::ReportTaskManagement { .. } => {
            unreachable!("{command:?} has been answered")
        }
    }
    Ok(Bytes::new())
}

/// The nexus that asks is not told of the change: GOOD is its answer.
async fn set_port_groups(link: &Link, list: &[u8]) -> Result<(), Failure> {
    let groups = &link.port.groups;
    let Some(wanted) = ports::parse_set_target_port_groups(list, &groups.groups())? else {
        return Ok(());
    };
    let _asking = link.unit.changes_access(&link.nexus);
    let path = &link.path;
    let held = path.confirm(CONFIRMED_WITHIN).await;
    held.map_err(|_| Failure::OutcomeUnknown)?;
    let outcome = match select(groups.optimize(wanted), pin!(path.ended())).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => return Err(Failure::OutcomeUnknown),
    };
    link.unit.note_access(groups.fingerprint());
    outcome.map_err(|NotOptimized| Sense::SET_PORT_GROUPS_FAILED.into())
}

/// How old the evidence that the host still holds on to the path may be when it changes
/// reservations.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(600);

async fn change_reservations(link: &Link, key: u64, action: Action) -> Result<(), Failure> {
    let unit = &link.unit;
    if let Action::Move { to, .. } = &action {
        let groups = link.port.groups.groups();
        if !groups
            .iter()
            .any(|group| group.ports.contains(&to.target_port))
        {
            return Err(Sense::INVALID_PARAMETER.at_parameter_byte(18).into());
        }
    }
    let request = Request {
        nexus: link.nexus.clone(),
        key,
        action,
    };
    // A host that has given this path up may have changed its mind about who may write, too.
    let path = &link.path;
    let held = path.confirm(CONFIRMED_WITHIN).await;
    held.map_err(|_| Failure::OutcomeUnknown)?;
    let applied = unit.reservations().apply(request);
    let effects = match select(applied, pin!(path.ended())).await {
        Either::Left((effects, _)) => effects,
        Either::Right(_) => return Err(Failure::OutcomeUnknown),
    };
    let effects = effects.map_err(reservation_failure)?;
    if !effects.aborts.is_empty()
        && let Some(aborter) = unit.aborter()
    {
        aborter.abort(effects.aborts).await;
    }
    Ok(())
}

fn reservation_failure(error: ReservationError) -> Failure {
    match error {
        ReservationError::Refused(refusal) => match refusal {
            Refusal::Conflict => Failure::Status(Status::ReservationConflict),
            Refusal::InvalidParameter => Sense::INVALID_PARAMETER.into(),
            Refusal::InvalidRelease => Sense::INVALID_RELEASE.into(),
            Refusal::OutOfResources => Sense::REGISTRATION_RESOURCES.into(),
        },
        ReservationError::Gone => Sense::UNIT_NOT_SUPPORTED.into(),
        ReservationError::Undecided => Sense::INTERNAL_FAILURE.into(),
    }
}

/// Extents of one UNMAP that are zeroed side by side.
const UNMAPS_AT_ONCE: usize = 16;

/// The medium behind a link, addressed in bytes.
struct Medium<'a> {
    link: &'a Link,
    requester: Requester,
    block_bytes: u64,
    /// A part of the command has changed the medium, or may have.
    begun: Cell<bool>,
}

impl Medium<'_> {
    fn offset(&self, extent: Extent) -> u64 {
        extent.block * self.block_bytes
    }

    fn length(&self, extent: Extent) -> u64 {
        u64::from(extent.blocks) * self.block_bytes
    }

    fn failure(&self, error: DeviceError, medium_error: Sense) -> Failure {
        match error {
            // Both say that nothing was done. Of a command in several parts that may be untrue.
            DeviceError::Busy | DeviceError::Unreachable if self.begun.get() => {
                Failure::OutcomeUnknown
            }
            DeviceError::Busy => Failure::Status(Status::Busy),
            DeviceError::Full => Sense::SPACE_ALLOCATION_FAILED.into(),
            DeviceError::Medium { offset } => medium_error
                .with_information(offset / self.block_bytes)
                .into(),
            DeviceError::Reserved => Failure::Status(Status::ReservationConflict),
            DeviceError::Gone => Sense::UNIT_NOT_SUPPORTED.into(),
            DeviceError::Unreachable => Sense::PORT_UNAVAILABLE.into(),
            DeviceError::Unknown => Failure::OutcomeUnknown,
            DeviceError::Internal => Sense::INTERNAL_FAILURE.into(),
        }
    }

    fn read_failure(&self, error: DeviceError) -> Failure {
        self.failure(error, Sense::UNRECOVERED_READ)
    }

    fn write_failure(&self, error: DeviceError) -> Failure {
        self.failure(error, Sense::WRITE_ERROR)
    }

    /// The outcome of a part that changes the medium.
    fn changed<T>(&self, outcome: Result<T, DeviceError>) -> Result<T, Failure> {
        let failed = match outcome {
            Ok(done) => {
                self.begun.set(true);
                return Ok(done);
            }
            Err(error) => error,
        };
        let failure = self.write_failure(failed);
        if failed == DeviceError::Unknown {
            self.begun.set(true);
        }
        Err(failure)
    }

    async fn read_bytes(&self, offset_bytes: u64, length_bytes: u32) -> Result<Bytes, Failure> {
        let read = self
            .link
            .device
            .read(self.requester.clone(), offset_bytes, length_bytes)
            .await;
        let data = read.map_err(|error| self.read_failure(error))?;
        assert_eq!(
            data.len(),
            length_bytes as usize,
            "a device read returns what was asked for"
        );
        Ok(data)
    }

    async fn read(&self, extent: Extent) -> Result<Bytes, Failure> {
        if extent.blocks == 0 {
            return Ok(Bytes::new());
        }
        // The length was checked against TRANSFER_BYTES_MAX, which fits.
        self.read_bytes(self.offset(extent), self.length(extent) as u32)
            .await
    }

    async fn write(&self, extent: Extent, data: Bytes) -> Result<(), Failure> {
        assert!(
            data.len() as u64 <= self.length(extent),
            "the transport cuts data to the command"
        );
        if data.is_empty() {
            return Ok(());
        }
        self.write_bytes(self.offset(extent), data).await
    }

    async fn write_bytes(&self, offset_bytes: u64, data: Bytes) -> Result<(), Failure> {
        let device = &self.link.device;
        let written = device
            .write(self.requester.clone(), offset_bytes, data)
            .await;
        self.changed(written)
    }

    /// EXTENDED COPY: segment by segment, and within one piece by piece.
    async fn copy(
        &self,
        plan: Plan,
        identity: &DeviceIdentity,
    ) -> (CopyStatus, Result<(), Failure>) {
        let mut status = CopyStatus {
            list: plan.list,
            complete: false,
            segments: 0,
            kib: 0,
        };
        for segment in plan.segments {
            if let Err(failure) = self.copy_segment(segment, identity).await {
                return (status, Err(failure));
            }
            status.segments += 1;
            status.kib += (self.length(segment.source) / 1024) as u32;
        }
        status.complete = true;
        (status, Ok(()))
    }

    async fn copy_segment(
        &self,
        segment: Segment,
        identity: &DeviceIdentity,
    ) -> Result<(), Failure> {
        let Segment {
            source,
            destination,
        } = segment;
        let target = Extent {
            block: destination,
            ..source
        };
        for extent in [source, target] {
            check_extent(extent, identity).map_err(|_| Sense::COPY_ABORTED)?;
        }
        let length = self.length(source);
        let mut done = 0;
        while done < length {
            let bytes = (length - done).min(limits::PIECE_BYTES);
            let data = self
                .read_bytes(self.offset(source) + done, bytes as u32)
                .await?;
            self.write_bytes(self.offset(target) + done, data).await?;
            done += bytes;
        }
        Ok(())
    }

    /// ORWRITE: each piece is read and replaced as one action.
    async fn or_write(&self, extent: Extent, data: &Bytes) -> Result<(), Failure> {
        let (start, length) = (self.offset(extent), data.len() as u64);
        let mut done = 0;
        while done < length {
            let offset = start + done;
            let room = limits::OR_WRITE_BYTES - offset % limits::OR_WRITE_BYTES;
            let bytes = room.min(length - done);
            let present = self.read_bytes(offset, bytes as u32).await?;
            let added = &data[done as usize..][..bytes as usize];
            let pairs = present.iter().zip(added);
            let merged = pairs.map(|(old, new)| old | new).collect();
            let outcome = self
                .link
                .device
                .compare_and_write(self.requester.clone(), offset, present, merged)
                .await;
            let outcome = outcome.map_err(|error| self.write_failure(error))?;
            match outcome {
                CompareOutcome::Written => {
                    self.begun.set(true);
                    done += bytes;
                }
                // Somebody else wrote there in between: again.
                CompareOutcome::Miscompare { .. } => {}
            }
        }
        Ok(())
    }

    /// Reads a range piece by piece and compares it with `data`, repeated if it is one block.
    async fn verify(
        &self,
        extent: Extent,
        comparison: Comparison,
        data: &Bytes,
    ) -> Result<(), Failure> {
        let (start, length) = (self.offset(extent), self.length(extent));
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(limits::PIECE_BYTES);
            let read = self.read_bytes(start + done, piece as u32).await?;
            let difference = match comparison {
                Comparison::Medium => None,
                Comparison::Data => difference(&read, &data[done as usize..]),
                Comparison::OneBlock => read.chunks(self.block_bytes as usize).zip(0..).find_map(
                    |(block, index): (_, u64)| {
                        Some(index * self.block_bytes + difference(block, data)?)
                    },
                ),
            };
            if let Some(at) = difference {
                return Err(Sense::MISCOMPARE.with_information(done + at).into());
            }
            done += piece;
        }
        Ok(())
    }

    async fn zero(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), Failure> {
        if length_bytes == 0 {
            return Ok(());
        }
        let zeroed = self
            .link
            .device
            .zero(self.requester.clone(), offset_bytes, length_bytes)
            .await;
        self.changed(zeroed)
    }

    /// WRITE SAME: zeroes need no data on the medium, with or without the UNMAP bit; any other
    /// pattern is written, also with the UNMAP bit (SBC-3 5.49).
    async fn write_same(&self, extent: Extent, pattern: &Bytes) -> Result<(), Failure> {
        let (start, length) = (self.offset(extent), self.length(extent));
        if pattern.iter().all(|byte| *byte == 0) {
            return self.zero(start, length).await;
        }
        let piece_bytes = length.min(limits::PIECE_BYTES);
        let piece = Bytes::from(pattern.repeat((piece_bytes / self.block_bytes) as usize));
        let mut done = 0;
        while done < length {
            let bytes = (length - done).min(piece_bytes);
            let piece = piece.slice(..bytes as usize);
            self.write_bytes(start + done, piece).await?;
            done += bytes;
        }
        Ok(())
    }

    /// Nothing is unmapped unless every descriptor lies within the capacity.
    async fn unmap(&self, list: &[u8], identity: &DeviceIdentity) -> Result<(), Failure> {
        let extents = provisioning::parse_unmap(list, identity.logical_block_bytes)?;
        for extent in &extents {
            check_extent(*extent, identity)?;
        }
        let zeroing = provisioning::merge(extents)
            .into_iter()
            .map(|extent| self.zero(self.offset(extent), self.length(extent)));
        // All of them are awaited, also after a failure: what has begun may still take effect.
        let outcomes = stream::iter(zeroing).buffer_unordered(UNMAPS_AT_ONCE);
        let outcomes: Vec<Result<(), Failure>> = outcomes.collect().await;
        let begun = self.begun.get();
        let failures = outcomes.into_iter().filter_map(Result::err);
        let told = failures.reduce(|first, next| match (first, next) {
            (_, Failure::OutcomeUnknown) => next,
            _ => first,
        });
        match told {
            None => Ok(()),
            Some(Failure::Status(Status::Busy)) if begun => Err(Failure::OutcomeUnknown),
            Some(failure) => Err(failure),
        }
    }

    /// The default self-test: whether the way to the data is there, shown by a read of the first
    /// block. All others are the scrub's.
    async fn test(&self) -> Result<(), Failure> {
        let device = &self.link.device;
        let read = device
            .read(self.requester.clone(), 0, self.block_bytes as u32)
            .await;
        let tested = read.map_err(|error| self.failure(error, Sense::SELF_TEST_FAILED));
        tested.map(drop)
    }

    async fn compare_and_write(&self, extent: Extent, data: Bytes) -> Result<(), Failure> {
        if extent.blocks == 0 {
            return Ok(());
        }
        let half = self.length(extent) as usize;
        let (compare, write) = (data.slice(..half), data.slice(half..));
        let outcome = self
            .link
            .device
            .compare_and_write(self.requester.clone(), self.offset(extent), compare, write)
            .await;
        match outcome.map_err(|error| self.write_failure(error))? {
            CompareOutcome::Written => Ok(()),
            CompareOutcome::Miscompare { offset_bytes } => Err(Sense::MISCOMPARE
                .with_information(u64::from(offset_bytes))
                .into()),
        }
    }

    async fn lba_status(
        &self,
        block: u64,
        allocation: u32,
        identity: &DeviceIdentity,
    ) -> Result<Bytes, Failure> {
        /// Descriptors in one answer; a host asks again from where the last one ended.
        const RUNS_MAX: u32 = 64;
        // A descriptor counts blocks in 32 bits.
        let run_bytes_max = u64::from(u32::MAX) * self.block_bytes;
        if allocation < 24 {
            return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(10).into());
        }
        let runs_max = ((allocation - 8) / 16).min(RUNS_MAX) as usize;
        let offset = block * self.block_bytes;
        let rest = (identity.capacity_bytes - offset).min(run_bytes_max);
        let device = &self.link.device;
        let runs = device
            .mapped_extents(self.requester.clone(), offset, rest)
            .await;
        let mut runs = runs.map_err(|error| self.read_failure(error))?;
        runs.truncate(runs_max);
        let mut bytes = provisioning::lba_status(block, identity.logical_block_bytes, &runs);
        bytes.truncate(allocation as usize);
        Ok(bytes.into())
    }
}

/// Offset of the first byte of `read` that differs from `expected`.
fn difference(read: &[u8], expected: &[u8]) -> Option<u64> {
    if read == &expected[..read.len()] {
        return None;
    }
    read.iter()
        .zip(expected)
        .position(|(left, right)| left != right)
        .map(|at| at as u64)
}
