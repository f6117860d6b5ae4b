//! Admission: what becomes of a command on arrival.
//!
//! A command passes two gates. [`Attachment::admit`] decodes it, checks everything that can be
//! checked without data, notes the standing of its nexus, answers at once what needs neither data
//! nor medium, and says how much data the rest wants. [`Attachment::execute`] checks again,
//! because the reservation or the capacity may have changed meanwhile, and then asks the device.
//!
//! This node's reservation table may lag behind. It is believed where it lets a command through,
//! since the device checks again; where it sees a conflict it is refreshed first.

use std::rc::Rc;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use holdfast_path::Path;
use thiserror::Error;

use crate::command::{self, Command, Comparison, Extent};
use crate::device::{BlockDevice, DeviceIdentity};
use crate::mode::{self, ModeSense};
use crate::nexus::{Attention, Nexus};
use crate::ports::{self, TargetPort};
use crate::reservation::{Access, Standing};
use crate::sense::Sense;
use crate::unit::LogicalUnit;
use crate::{copy, execute, inquiry, limits, log, opcodes, report};

/// SCSI status (SAM-5 table 30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Failed; the sense data says why.
    CheckCondition = 0x02,
    /// PRE-FETCH found everything in reach.
    ConditionMet = 0x04,
    /// Try again later.
    Busy = 0x08,
    /// Another nexus holds a reservation that forbids the command.
    ReservationConflict = 0x18,
    /// Too many commands.
    TaskSetFull = 0x28,
}

/// The outcome of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// SCSI status.
    pub status: Status,
    /// Encoded sense data; empty unless the status is CHECK CONDITION.
    pub sense: Bytes,
    /// Data for the initiator, already cut to the allocation length.
    pub data: Bytes,
}

impl Completion {
    /// GOOD, with data for the initiator.
    pub fn good(data: Bytes) -> Self {
        Self {
            status: Status::Good,
            sense: Bytes::new(),
            data,
        }
    }

    /// A status without sense data.
    pub fn status(status: Status) -> Self {
        Self {
            status,
            sense: Bytes::new(),
            data: Bytes::new(),
        }
    }

    /// CHECK CONDITION.
    pub fn check(sense: Sense, descriptor_format: bool) -> Self {
        let sense = sense.encode(descriptor_format);
        Self {
            status: Status::CheckCondition,
            sense,
            data: Bytes::new(),
        }
    }
}

/// The data that a command wants from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOut {
    /// None.
    None,
    /// This many bytes; if the initiator has less, the whole blocks of what it has are written.
    Blocks {
        /// Bytes wanted.
        bytes: u64,
        /// Size of a block in bytes.
        block_bytes: u32,
    },
    /// This many bytes, neither more nor less.
    Exact {
        /// Bytes wanted.
        bytes: u64,
    },
    /// A parameter list of this many bytes. What the initiator has beyond it is none of the
    /// command's.
    List {
        /// Bytes wanted.
        bytes: u64,
    },
}

impl DataOut {
    /// Bytes wanted.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Blocks { bytes, .. } | Self::Exact { bytes } | Self::List { bytes } => bytes,
        }
    }
}

/// A command that may run once its data is there, and what its nexus was on its arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    command: Command,
    standing: Standing,
}

impl From<Command> for Admitted {
    /// The command of a stranger to the reservation table.
    fn from(command: Command) -> Self {
        let standing = Standing::default();
        Self { command, standing }
    }
}

/// What becomes of a command on arrival.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is answered.
    Done(Completion),
    /// It runs once its data is there.
    Run {
        /// The command, for [`Attachment::execute`].
        command: Admitted,
        /// Data that it wants first.
        data_out: DataOut,
        /// Most bytes that it will return.
        data_in_bytes: u64,
    },
}

/// A unit, as one nexus sees it.
pub(crate) struct Link {
    pub(crate) unit: Rc<LogicalUnit>,
    pub(crate) nexus: Nexus,
    pub(crate) device: Rc<dyn BlockDevice>,
    pub(crate) port: TargetPort,
    pub(crate) path: Rc<Path>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.unit.detach(&self.nexus);
    }
}

/// Nobody can tell whether the command took effect, so no status would be true. The session has
/// to end: its initiator then looks for itself, on whichever path it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the outcome of a command is unknown")]
pub struct OutcomeUnknown;

/// Why a command did not reach GOOD.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    Sense(Sense),
    Status(Status),
    /// See [`OutcomeUnknown`].
    OutcomeUnknown,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

impl Link {
    pub(crate) fn complete(&self, outcome: Result<Bytes, Failure>) -> Completion {
        match outcome {
            Ok(data) => Completion::good(data),
            Err(Failure::Status(status)) => Completion::status(status),
            Err(Failure::Sense(sense)) => self.check_condition(sense),
            // Nothing that is answered on arrival has an open outcome.
            Err(Failure::OutcomeUnknown) => self.check_condition(Sense::INTERNAL_FAILURE),
        }
    }

    fn check_condition(&self, sense: Sense) -> Completion {
        Completion::check(sense, self.unit.mode().descriptor_sense)
    }

    /// Checks everything that may change between admission and execution.
    pub(crate) fn check(
        &self,
        command: &Command,
        identity: &DeviceIdentity,
    ) -> Result<(), Failure> {
        let medium = command.extent().is_some()
            || matches!(
                command,
                Command::Unmap { .. }
                    | Command::ExtendedCopy { .. }
                    | Command::TestUnitReady
                    | Command::SendDiagnostic { self_test: true }
            );
        if medium && let Some(refusal) = self.port.groups.state(self.port.group).refusal() {
            return Err(refusal.into());
        }
        if let Some(extent) = command.extent() {
            check_extent(extent, identity)?;
            check_length(command, extent, identity.logical_block_bytes)?;
        }
        let writes = command.access() == Access::Write
            && medium
            && !matches!(
                command,
                Command::SynchronizeCache(_) | Command::SendDiagnostic { .. }
            );
        if writes && self.unit.mode().write_protect {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED.into());
        }
        Ok(())
    }

    /// Whether a reservation stands in the way, as far as this node knows.
    fn conflicts(&self, command: &Command, standing: Standing) -> bool {
        let table = self.unit.reservations().table();
        let excluded = table.unit_excludes(standing) && !command.ignores_simple_reservation();
        excluded || !table.admits(standing, command.access())
    }

    /// The standing in which a command may run now.
    pub(crate) async fn check_reservations(
        &self,
        command: &Command,
        standing: Standing,
    ) -> Result<Standing, Failure> {
        if !self.conflicts(command, standing) {
            return Ok(standing);
        }
        let reservations = self.unit.reservations();
        if !reservations.refresh().await {
            return Err(Failure::Status(Status::Busy));
        }
        // A registration that another nexus moved to this one may have been unknown here. Who
        // was registered is judged as that: the registration may have been taken away.
        let standing = if standing.number == 0 {
            reservations.table().standing(&self.nexus)
        } else {
            standing
        };
        if self.conflicts(command, standing) {
            return Err(Failure::Status(Status::ReservationConflict));
        }
        Ok(standing)
    }

    fn data_out(&self, command: &Command, block_bytes: u32) -> DataOut {
        let bytes = |extent: &Extent| u64::from(extent.blocks) * u64::from(block_bytes);
        match command {
            Command::Write(extent)
            | Command::OrWrite(extent)
            | Command::WriteVerify { extent, .. } => DataOut::Blocks {
                bytes: bytes(extent),
                block_bytes,
            },
            Command::Verify {
                extent,
                comparison: Comparison::Data,
            } => DataOut::Exact {
                bytes: bytes(extent),
            },
            Command::Verify {
                extent,
                comparison: Comparison::OneBlock,
            } => DataOut::Exact {
                bytes: u64::from(block_bytes.min(bytes(extent) as u32)),
            },
            Command::WriteAtomic(extent) => DataOut::Exact {
                bytes: bytes(extent),
            },
            Command::CompareAndWrite(extent) => DataOut::Exact {
                bytes: 2 * bytes(extent),
            },
            Command::WriteSame { no_data: false, .. } => DataOut::Exact {
                bytes: u64::from(block_bytes),
            },
            Command::Unmap { list_bytes, .. }
            | Command::ExtendedCopy { list_bytes }
            | Command::ModeSelect { list_bytes, .. }
            | Command::SetTargetPortGroups { list_bytes }
            | Command::PersistentOut { list_bytes, .. } => DataOut::List {
                bytes: u64::from(*list_bytes),
            },
            Command::TestUnitReady
            | Command::RequestSense { .. }
            | Command::Inquiry { .. }
            | Command::ModeSense { .. }
            | Command::LogSense { .. }
            | Command::SendDiagnostic { .. }
            | Command::Reserve
            | Command::Release
            | Command::StartStop { .. }
            | Command::PreventAllow { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::GetLbaStatus { .. }
            | Command::Read(_)
            | Command::Verify {
                comparison: Comparison::Medium,
                ..
            }
            | Command::Prefetch(_)
            | Command::SynchronizeCache(_)
            | Command::WriteSame { no_data: true, .. }
            | Command::ReadDefects { .. }
            | Command::CopyParameters { .. }
            | Command::CopyStatus { .. }
            | Command::ReportLuns { .. }
            | Command::PersistentIn { .. }
            | Command::ReportTargetPortGroups { .. }
            | Command::ReportOpcodes { .. }
            | Command::ReportTaskManagement { .. } => DataOut::None,
        }
    }

    /// The answer to a command that needs neither data nor medium; `None` for the others.
    pub(crate) fn answer(
        &self,
        command: &Command,
        identity: &DeviceIdentity,
    ) -> Option<Result<Bytes, Failure>> {
        let block_bytes = identity.logical_block_bytes;
        let blocks = identity.capacity_bytes / u64::from(block_bytes);
        let (data, allocation) = match *command {
            Command::TestUnitReady
            | Command::StartStop { .. }
            | Command::PreventAllow { .. }
            | Command::SendDiagnostic { self_test: false } => (Vec::new(), 0),
            Command::LogSense {
                request,
                allocation,
            } => match log::sense(request, self.device.available_percent()) {
                Ok(data) => (data, allocation),
                Err(sense) => return Some(Err(sense.into())),
            },
            Command::Prefetch(_) => return Some(Err(Failure::Status(Status::ConditionMet))),
            Command::RequestSense {
                descriptor_format,
                allocation,
            } => {
                let pending = self.unit.take_attention(&self.nexus);
                let sense = pending.map_or(Sense::NONE, Attention::sense);
                (sense.encode(descriptor_format).to_vec(), allocation)
            }
            Command::Inquiry { page, allocation } => match self.inquiry(page, identity, 0) {
                Ok(data) => (data, allocation),
                Err(sense) => return Some(Err(sense.into())),
            },
            Command::ReadCapacity10 => (report::capacity10(block_bytes, blocks), 8),
            Command::ReadCapacity16 { allocation } => {
                (report::capacity16(block_bytes, blocks), allocation)
            }
            Command::CopyParameters { allocation } => {
                (copy::operating_parameters(block_bytes), allocation)
            }
            Command::CopyStatus { list, allocation } => {
                match self.unit.copy_status(&self.nexus, list) {
                    Some(status) => (copy::copy_status(status), allocation),
                    None => return Some(Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2).into())),
                }
            }
            Command::ReadDefects {
                long,
                lists,
                allocation,
            } => (report::defects(long, lists), allocation),
            Command::ReportLuns {
                selection,
                allocation,
            } => (report::luns(selection), allocation),
            Command::ModeSense {
                long,
                no_descriptors,
                control,
                page,
                subpage,
                allocation,
            } => {
                let request = ModeSense {
                    long,
                    no_descriptors,
                    control,
                    page,
                    subpage,
                };
                match mode::sense(request, self.unit.mode(), block_bytes, blocks) {
                    Ok(data) => (data, allocation),
                    Err(sense) => return Some(Err(sense.into())),
                }
            }
            Command::ReportTargetPortGroups {
                extended_header,
                allocation,
            } => {
                let groups = self.port.groups.groups();
                (
                    ports::report_target_port_groups(&groups, extended_header),
                    allocation,
                )
            }
            Command::ReportOpcodes {
                selection,
                timeouts,
                allocation,
            } => match opcodes::report(selection, timeouts) {
                Ok(data) => (data, allocation),
                Err(sense) => return Some(Err(sense.into())),
            },
            Command::ReportTaskManagement { long, allocation } => {
                (opcodes::report_task_management(long), allocation)
            }
            Command::ModeSelect { .. }
            | Command::SendDiagnostic { self_test: true }
            | Command::SetTargetPortGroups { .. }
            | Command::Reserve
            | Command::Release
            | Command::PersistentIn { .. }
            | Command::GetLbaStatus { .. }
            | Command::Read(_)
            | Command::Write(_)
            | Command::WriteAtomic(_)
            | Command::OrWrite(_)
            | Command::WriteVerify { .. }
            | Command::Verify { .. }
            | Command::SynchronizeCache(_)
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::ExtendedCopy { .. }
            | Command::CompareAndWrite(_)
            | Command::PersistentOut { .. } => return None,
        };
        Some(Ok(cut(data, allocation)))
    }

    fn inquiry(
        &self,
        page: Option<u8>,
        identity: &DeviceIdentity,
        peripheral: u8,
    ) -> Result<Vec<u8>, Sense> {
        match page {
            None => Ok(inquiry::standard(identity, peripheral)),
            Some(page) => inquiry::vital_product_data(page, identity, &self.port, peripheral)
                .ok_or(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2)),
        }
    }

    /// A command to a unit that does not exist (SPC-4 5.12.1).
    fn answer_without_unit(&self, decoded: Result<Command, Sense>) -> Result<Bytes, Failure> {
        match decoded {
            Ok(Command::Inquiry { page, allocation }) => {
                let identity = self.device.identity();
                Ok(cut(
                    self.inquiry(page, &identity, inquiry::NO_UNIT)?,
                    allocation,
                ))
            }
            Ok(Command::ReportLuns {
                selection,
                allocation,
            }) => Ok(cut(report::luns(selection), allocation)),
            Ok(Command::RequestSense {
                descriptor_format,
                allocation,
            }) => {
                let sense = Sense::UNIT_NOT_SUPPORTED.encode(descriptor_format);
                Ok(cut(sense.to_vec(), allocation))
            }
            Ok(_) | Err(_) => Err(Sense::UNIT_NOT_SUPPORTED.into()),
        }
    }

    fn admit(&self, lun: u64, cdb: &[u8; 16]) -> Result<Result<Bytes, Admission>, Failure> {
        let decoded = command::decode(cdb);
        if !is_unit_zero(lun) {
            return self.answer_without_unit(decoded).map(Ok);
        }
        let identity = self.device.identity();
        self.unit.note_capacity(identity.capacity_bytes);
        self.unit.note_access(self.port.groups.fingerprint());
        let reports_attention = !decoded.as_ref().is_ok_and(Command::ignores_attention);
        if reports_attention && let Some(attention) = self.unit.take_attention(&self.nexus) {
            return Err(attention.sense().into());
        }
        let command = decoded?;
        let standing = self.unit.reservations().table().standing(&self.nexus);
        if !self.conflicts(&command, standing) {
            self.check(&command, &identity)?;
            if let Some(answer) = self.answer(&command, &identity) {
                return answer.map(Ok);
            }
        } else if let Some(extent) = command.extent() {
            // A conflict is for the execution to make sure of. Until then the command's data is
            // collected, so the limits, which no state of the unit changes, hold already now:
            // they bound the memory that a write may claim.
            check_length(&command, extent, identity.logical_block_bytes)?;
        }
        let data_out = self.data_out(&command, identity.logical_block_bytes);
        let list = matches!(
            command,
            Command::ModeSelect { .. }
                | Command::SetTargetPortGroups { .. }
                | Command::PersistentOut { .. }
                | Command::ExtendedCopy { .. }
        );
        if list && data_out.bytes() > limits::PARAMETER_LIST_BYTES_MAX {
            return Err(Sense::PARAMETER_LENGTH.into());
        }
        let data_in_bytes = if let Command::Read(extent) = command {
            u64::from(extent.blocks) * u64::from(identity.logical_block_bytes)
        } else {
            0
        };
        let command = Admitted { command, standing };
        Ok(Err(Admission::Run {
            command,
            data_out,
            data_in_bytes,
        }))
    }
}

/// A nexus attached to a unit; the unit forgets it when the last clone is dropped.
#[derive(Clone)]
pub struct Attachment {
    link: Rc<Link>,
}

impl Attachment {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link: Rc::new(link),
        }
    }

    /// The path that the nexus's commands come by.
    pub fn path(&self) -> &Rc<Path> {
        &self.link.path
    }

    /// The nexus.
    pub fn nexus(&self) -> &Nexus {
        &self.link.nexus
    }

    /// The unit.
    pub fn unit(&self) -> &Rc<LogicalUnit> {
        &self.link.unit
    }

    /// Decides what becomes of a command. `lun` is the 8-byte field of SAM-5 4.7, `cdb` is padded
    /// to 16 bytes.
    pub fn admit(&self, lun: u64, cdb: &[u8; 16]) -> Admission {
        match self.link.admit(lun, cdb) {
            Ok(Ok(data)) => Admission::Done(Completion::good(data)),
            Ok(Err(admission)) => admission,
            Err(failure) => Admission::Done(self.link.complete(Err(failure))),
        }
    }

    /// Runs an admitted command with the data that came for it. For [`DataOut::Blocks`] that may
    /// be fewer whole blocks than wanted, else it is exactly what was wanted.
    ///
    /// # Errors
    /// The initiator must not be answered; see [`OutcomeUnknown`].
    pub fn execute(
        &self,
        command: Admitted,
        data: Bytes,
    ) -> LocalBoxFuture<'static, Result<Completion, OutcomeUnknown>> {
        let Admitted { command, standing } = command;
        Box::pin(execute::execute(self.link.clone(), command, standing, data))
    }

    /// CHECK CONDITION in the format that the host chose.
    pub fn check_condition(&self, sense: Sense) -> Completion {
        self.link.check_condition(sense)
    }
}

/// Whether a LUN field addresses unit 0, by peripheral or by flat addressing (SAM-5 4.7.7).
pub fn is_unit_zero(lun: u64) -> bool {
    lun == 0 || lun == 0x4000_0000_0000_0000
}

pub(crate) fn cut(mut data: Vec<u8>, allocation: u32) -> Bytes {
    data.truncate(allocation as usize);
    data.into()
}

pub(crate) fn check_extent(extent: Extent, identity: &DeviceIdentity) -> Result<(), Sense> {
    let capacity_blocks = identity.capacity_bytes / u64::from(identity.logical_block_bytes);
    let end = extent.block.checked_add(u64::from(extent.blocks));
    if end.is_some_and(|end| end <= capacity_blocks) {
        return Ok(());
    }
    let first_outside = extent.block.max(capacity_blocks);
    Err(Sense::ADDRESS_OUT_OF_RANGE.with_information(first_outside))
}

fn check_length(command: &Command, extent: Extent, block_bytes: u32) -> Result<(), Sense> {
    let (limit, length_byte) = match command {
        Command::Read(_)
        | Command::Write(_)
        | Command::OrWrite(_)
        | Command::WriteVerify { .. }
        | Command::Verify {
            comparison: Comparison::Data,
            ..
        } => (limits::TRANSFER_BYTES_MAX, 10),
        Command::Verify {
            comparison: Comparison::Medium | Comparison::OneBlock,
            ..
        } => (limits::VERIFY_BYTES_MAX, 10),
        Command::WriteAtomic(_) => (limits::ATOMIC_BYTES_MAX, 12),
        Command::WriteSame { .. } => (limits::WRITE_SAME_BYTES_MAX, 10),
        Command::CompareAndWrite(_) => (limits::COMPARE_AND_WRITE_BYTES_MAX, 13),
        // The rest transfers nothing in proportion to the range.
        Command::Prefetch(_)
        | Command::SynchronizeCache(_)
        | Command::GetLbaStatus { .. }
        | Command::TestUnitReady
        | Command::RequestSense { .. }
        | Command::Inquiry { .. }
        | Command::ModeSense { .. }
        | Command::ModeSelect { .. }
        | Command::LogSense { .. }
        | Command::SendDiagnostic { .. }
        | Command::Reserve
        | Command::Release
        | Command::StartStop { .. }
        | Command::PreventAllow { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::ReadDefects { .. }
        | Command::ExtendedCopy { .. }
        | Command::CopyParameters { .. }
        | Command::CopyStatus { .. }
        | Command::Unmap { .. }
        | Command::ReportLuns { .. }
        | Command::PersistentIn { .. }
        | Command::PersistentOut { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::SetTargetPortGroups { .. }
        | Command::ReportOpcodes { .. }
        | Command::ReportTaskManagement { .. } => return Ok(()),
    };
    let length = u64::from(extent.blocks) * u64::from(block_bytes);
    if length > limit {
        return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(length_byte));
    }
    if matches!(command, Command::WriteAtomic(_)) {
        // The range may lie anywhere; borders are powers of two, so what wraps keeps its place
        // between them.
        let start = extent.block.wrapping_mul(u64::from(block_bytes));
        let within = start % limits::ATOMIC_BORDER_BYTES + length <= limits::ATOMIC_BORDER_BYTES;
        if !start.is_multiple_of(limits::ATOMIC_GRANULARITY_BYTES) || !within {
            return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2));
        }
        if !length.is_multiple_of(limits::ATOMIC_GRANULARITY_BYTES) {
            return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(length_byte));
        }
    }
    Ok(())
}
