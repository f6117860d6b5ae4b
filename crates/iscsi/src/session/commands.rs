//! SCSI commands: admission, write data, execution order, responses.

use bytes::Bytes;
use holdfast_scsi::{Admission, Admitted, Completion, DataOut, Sense, Status};

use super::transfer::{Transfer, compact};
use super::{
    Action, Front, Held, IMMEDIATE_MAX, SOLICITED_BYTES_MAX, Session, SessionError, TaskId,
};
use crate::pdu::build::{self, RejectReason, Residual};
use crate::pdu::{FINAL, Pdu, RESERVED_TAG};

/// Task attribute (RFC 7143 11.3.1). The task set is the session's (TST 001b).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    /// Runs beside other simple commands.
    Simple,
    /// Runs after every older and before every younger command.
    Ordered,
    /// Runs at once; younger commands wait for it.
    HeadOfQueue,
}

impl Attribute {
    const fn from_flags(flags: u8) -> Self {
        match flags & 7 {
            2 => Self::Ordered,
            3 => Self::HeadOfQueue,
            _ => Self::Simple,
        }
    }
}

/// What the initiator announced for a command, and the tag to answer to.
#[derive(Clone, Copy, Debug)]
struct Announced {
    tag: u32,
    expected_bytes: u32,
    reads: bool,
    writes: bool,
}

/// What happens when a command's data is complete.
#[derive(Debug)]
enum Plan {
    Run {
        command: Admitted,
        data_in_bytes: u64,
    },
    /// The command has failed already; the answer waits for the unsolicited data to end.
    Refuse(Completion),
}

#[derive(Debug)]
enum Stage {
    Collecting {
        plan: Plan,
        transfer: Transfer,
    },
    Queued {
        command: Admitted,
        data: Bytes,
        data_in_bytes: u64,
    },
    Executing,
}

/// A command that has not been answered.
#[derive(Debug)]
pub(super) struct Task {
    announced: Announced,
    pub(super) lun: u64,
    pub(super) command_number: u32,
    immediate: bool,
    attribute: Attribute,
    wanted_bytes: u64,
    solicited_bytes: u64,
    bursts: u32,
    stage: Stage,
    aborted: bool,
}

impl Task {
    /// Whether the device has it.
    pub(super) fn is_executing(&self) -> bool {
        matches!(self.stage, Stage::Executing)
    }
}

impl Session {
    /// Takes the outcome of a command that an [`Action::Execute`] started.
    pub fn complete(&mut self, task: TaskId, completion: Completion) {
        let Some(done) = self.remove_task(task) else {
            return;
        };
        if done.aborted {
            self.drained(task);
        } else if !self.closing {
            self.respond(done.announced, done.wanted_bytes, done.bursts, completion);
        }
        self.schedule();
        self.ask_waiting();
    }

    pub(super) fn scsi_command(&mut self, pdu: Pdu, front: &dyn Front) -> Result<(), SessionError> {
        let announced = Announced {
            tag: pdu.task_tag(),
            expected_bytes: pdu.u32_at(20),
            reads: pdu.flag(0x40) && !pdu.flag(0x20),
            writes: pdu.flag(0x20),
        };
        let more_follows = !pdu.flag(FINAL);
        self.check_unsolicited(&pdu, announced, more_follows)?;
        let refusal = if self.discovery {
            Some(RejectReason::ProtocolError)
        } else if announced.tag == RESERVED_TAG || !pdu.additional.is_empty() {
            Some(RejectReason::InvalidField)
        } else if self.by_tag.contains_key(&announced.tag) {
            Some(RejectReason::TaskInProgress)
        } else if pdu.immediate()
            && self.tasks.values().filter(|task| task.immediate).count() >= IMMEDIATE_MAX
        {
            Some(RejectReason::TooManyImmediate)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.reject(reason, &pdu);
            return Ok(());
        }
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&pdu.header[32..48]);
        let (plan, accepted, wanted_bytes) = match front.admit(pdu.lun(), &cdb) {
            Admission::Done(completion) => {
                // Nothing to wait for: the common case of an inquiry or a refusal.
                if !more_follows {
                    self.respond(announced, 0, 0, completion);
                    return Ok(());
                }
                (Plan::Refuse(completion), 0, 0)
            }
            Admission::Run {
                command,
                data_out,
                data_in_bytes,
            } => match accepted_bytes(data_out, announced) {
                Some(bytes) => (
                    Plan::Run {
                        command,
                        data_in_bytes,
                    },
                    bytes,
                    data_out.bytes(),
                ),
                None => {
                    let completion = front.check_condition(mismatch(data_out));
                    (Plan::Refuse(completion), 0, data_out.bytes())
                }
            },
        };
        let limit = self
            .parameters
            .first_burst_bytes
            .min(announced.expected_bytes);
        let transfer = Transfer::new(accepted, pdu.data.clone(), more_follows.then_some(limit));
        let task = Task {
            announced,
            lun: pdu.lun(),
            command_number: pdu.command_number(),
            immediate: pdu.immediate(),
            attribute: Attribute::from_flags(pdu.header[1]),
            wanted_bytes,
            solicited_bytes: 0,
            bursts: 0,
            stage: Stage::Collecting { plan, transfer },
            aborted: false,
        };
        let id = self.insert_task(task);
        self.advance(id);
        Ok(())
    }

    /// Data that a command PDU carries or announces must have been negotiated.
    fn check_unsolicited(
        &self,
        pdu: &Pdu,
        announced: Announced,
        more_follows: bool,
    ) -> Result<(), SessionError> {
        let parameters = &self.parameters;
        let length = pdu.data.len();
        let carried = announced.writes
            && parameters.immediate_data
            && length <= parameters.first_burst_bytes as usize
            && length <= announced.expected_bytes as usize;
        if (length > 0 && !carried)
            || (more_follows && (!announced.writes || parameters.initial_r2t))
        {
            return Err(SessionError::UnsolicitedData);
        }
        Ok(())
    }

    pub(super) fn data_out(&mut self, pdu: Pdu, front: &dyn Front) -> Result<(), SessionError> {
        let tag = pdu.task_tag();
        let Some(id) = self.by_tag.get(&tag).copied() else {
            self.hold_data(pdu);
            return Ok(());
        };
        let Some(task) = self.tasks.get_mut(&id) else {
            return Ok(());
        };
        let taken = match &mut task.stage {
            Stage::Collecting { transfer, .. } => transfer.take(&pdu),
            Stage::Queued { .. } | Stage::Executing => return Err(SessionError::DataAfterEnd),
        };
        match taken {
            Ok(()) => self.advance(id),
            // What follows for this tag is dropped, as for every unknown one.
            Err(error) => self.refuse(id, front.check_condition(error.sense())),
        }
        Ok(())
    }

    /// Answers a command that the device never had.
    fn refuse(&mut self, id: TaskId, completion: Completion) {
        let Some(task) = self.remove_task(id) else {
            return;
        };
        self.respond(task.announced, task.wanted_bytes, task.bursts, completion);
        self.schedule();
        self.ask_waiting();
    }

    /// Data for a command that waits for its turn is kept with it; data for a command that is
    /// unknown belongs to one that was aborted or refused, and is dropped.
    fn hold_data(&mut self, mut pdu: Pdu) {
        let first_burst = self.parameters.first_burst_bytes as usize;
        for held in self.held.values_mut() {
            if let Held::Command(command, data) = held
                && command.task_tag() == pdu.task_tag()
            {
                let bytes: usize = data.iter().map(|pdu| pdu.data.len()).sum();
                // One PDU too much is kept, so that the transfer finds the excess.
                if bytes <= first_burst && data.len() <= first_burst / 512 {
                    pdu.data = compact(pdu.data);
                    data.push(pdu);
                }
                return;
            }
        }
    }

    fn insert_task(&mut self, task: Task) -> TaskId {
        let id = self.next_task;
        self.next_task += 1;
        self.by_tag.insert(task.announced.tag, id);
        self.outstanding += u32::from(!task.immediate);
        self.ordered += usize::from(task.attribute != Attribute::Simple);
        self.tasks.insert(id, task);
        id
    }

    pub(super) fn remove_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.by_tag.remove(&task.announced.tag);
        self.outstanding -= u32::from(!task.immediate);
        self.ordered -= usize::from(task.attribute != Attribute::Simple);
        self.solicited_bytes -= task.solicited_bytes;
        Some(task)
    }

    /// Marks a command as aborted, or forgets it if the device does not have it. Returns whether
    /// its end has to be awaited.
    pub(super) fn abort_task(&mut self, id: TaskId) -> bool {
        match self.tasks.get_mut(&id) {
            Some(task) if task.is_executing() => {
                task.aborted = true;
                true
            }
            Some(_) => {
                self.remove_task(id);
                false
            }
            None => false,
        }
    }

    /// The command with this tag.
    pub(super) fn task_by_tag(&self, tag: u32) -> Option<(TaskId, &Task)> {
        let id = self.by_tag.get(&tag)?;
        Some((*id, self.tasks.get(id)?))
    }

    /// Moves a command on as far as its data allows.
    fn advance(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let Stage::Collecting { transfer, .. } = &mut task.stage else {
            return;
        };
        if !transfer.is_complete() {
            if transfer.unasked() > 0 {
                self.ask(id);
            }
            return;
        }
        let stage = std::mem::replace(&mut task.stage, Stage::Executing);
        let Stage::Collecting { plan, transfer } = stage else {
            return;
        };
        task.bursts = transfer.bursts();
        match plan {
            Plan::Refuse(completion) => self.refuse(id, completion),
            Plan::Run {
                command,
                data_in_bytes,
            } => {
                let data = transfer.into_data();
                task.stage = Stage::Queued {
                    command,
                    data,
                    data_in_bytes,
                };
                if self.ordered == 0 {
                    self.start(id);
                } else {
                    self.schedule();
                }
            }
        }
    }

    /// Sends the next R2T of a command, or lets it wait for room behind those that wait already.
    fn ask(&mut self, id: TaskId) {
        let begun = self
            .tasks
            .get(&id)
            .is_some_and(|task| task.solicited_bytes > 0);
        if (!begun && !self.waiting_for_room.is_empty()) || !self.try_ask(id) {
            self.waiting_for_room.push_back(id);
        }
    }

    /// Sends the next R2T of a command if there is room for its data. A command that is gone
    /// needs none.
    fn try_ask(&mut self, id: TaskId) -> bool {
        let tag = self.transfer_tag();
        let Some(task) = self.tasks.get_mut(&id) else {
            return true;
        };
        let Stage::Collecting { transfer, .. } = &mut task.stage else {
            return true;
        };
        if task.solicited_bytes == 0 {
            let needed = u64::from(transfer.unasked());
            if self.solicited_bytes > 0 && self.solicited_bytes + needed > SOLICITED_BYTES_MAX {
                return false;
            }
            task.solicited_bytes = needed;
            self.solicited_bytes += needed;
        }
        let (number, offset, length) = transfer.ask(tag, self.parameters.max_burst_bytes);
        let (lun, task_tag) = (task.lun, task.announced.tag);
        self.send_without_status(build::ready_to_transfer(
            lun, task_tag, tag, number, offset, length,
        ));
        true
    }

    /// Lets commands that waited for room ask for their data, in their order.
    pub(super) fn ask_waiting(&mut self) {
        while let Some(id) = self.waiting_for_room.front().copied() {
            if !self.try_ask(id) {
                return;
            }
            self.waiting_for_room.pop_front();
        }
    }

    /// Starts every command whose turn has come (SAM-5 8.6).
    pub(super) fn schedule(&mut self) {
        let mut older = false;
        let mut barrier = false;
        let mut ready = Vec::new();
        for (id, task) in &self.tasks {
            let free = match task.attribute {
                Attribute::HeadOfQueue => true,
                Attribute::Simple => !barrier,
                Attribute::Ordered => !older,
            };
            if free && matches!(task.stage, Stage::Queued { .. }) {
                ready.push(*id);
            }
            older = true;
            barrier |= task.attribute != Attribute::Simple;
        }
        ready.into_iter().for_each(|id| self.start(id));
    }

    fn start(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let stage = std::mem::replace(&mut task.stage, Stage::Executing);
        if let Stage::Queued {
            command,
            data,
            data_in_bytes,
        } = stage
        {
            self.actions.push(Action::Execute {
                task: id,
                command,
                data,
                data_in_bytes,
            });
        }
    }

    /// Data-In PDUs with the status in the last one, or a SCSI Response.
    fn respond(
        &mut self,
        announced: Announced,
        wanted_bytes: u64,
        bursts: u32,
        completion: Completion,
    ) {
        let Completion {
            status,
            sense,
            data,
        } = completion;
        let transferred = if announced.writes {
            wanted_bytes
        } else {
            data.len() as u64
        };
        let transferred = transferred.max(wanted_bytes);
        let expected = if announced.reads || announced.writes {
            announced.expected_bytes
        } else {
            0
        };
        let residual = Residual::between(expected, transferred);
        let shown = if announced.reads {
            data.len().min(expected as usize)
        } else {
            0
        };
        let with_status = status == Status::Good;
        let pdus = self.send_data(announced.tag, data.slice(..shown), with_status, residual);
        if pdus == 0 || !with_status {
            let count = pdus + bursts;
            let response =
                build::scsi_response(announced.tag, status as u8, &sense, residual, count);
            self.send(response);
        }
    }

    /// Sends data and returns the number of PDUs it took.
    fn send_data(&mut self, tag: u32, data: Bytes, with_status: bool, residual: Residual) -> u32 {
        let piece_max = self.parameters.send_bytes_max as usize;
        let burst_max = self.parameters.max_burst_bytes as usize;
        let mut number = 0;
        let mut offset = 0;
        let mut burst_left = burst_max;
        while offset < data.len() {
            let length = (data.len() - offset).min(piece_max).min(burst_left);
            let piece = data.slice(offset..offset + length);
            burst_left -= length;
            let last = offset + length == data.len();
            let end_of_sequence = last || burst_left == 0;
            let status = (last && with_status).then_some((Status::Good as u8, residual));
            let takes_status = status.is_some();
            let mut pdu =
                build::data_in(tag, number, offset as u32, piece, end_of_sequence, status);
            self.stamp(&mut pdu, takes_status);
            if !takes_status {
                // StatSN means nothing without a status.
                pdu.put_u32(24, 0);
            }
            self.actions.push(Action::Send(pdu));
            if burst_left == 0 {
                burst_left = burst_max;
            }
            number += 1;
            offset += length;
        }
        number
    }
}

/// What a command fails with if the announced data does not fit it.
fn mismatch(data_out: DataOut) -> Sense {
    match data_out {
        DataOut::None | DataOut::Blocks { .. } => Sense::INVALID_INFORMATION_UNIT,
        // The length in the CDB is as much at fault as the announced one.
        DataOut::Exact { .. } | DataOut::List { .. } => Sense::INVALID_FIELD_IN_CDB,
    }
}

/// How much of the announced data the command takes; `None` if the two do not fit together.
///
/// A write of whole blocks may be cut short by the announced length, as FCP and SRP have it; a
/// parameter list, a pattern or data to compare may not. What an initiator announces beyond a
/// parameter list is a residual (RFC 7143 11.4.5.1): how long the list is, its CDB says.
fn accepted_bytes(data_out: DataOut, announced: Announced) -> Option<u32> {
    if announced.reads && data_out.bytes() > 0 {
        return None;
    }
    let available = if announced.writes {
        announced.expected_bytes
    } else {
        0
    };
    match data_out {
        DataOut::None => Some(0),
        DataOut::Blocks { bytes, block_bytes } => {
            if bytes <= u64::from(available) {
                Some(bytes as u32)
            } else {
                available.is_multiple_of(block_bytes).then_some(available)
            }
        }
        DataOut::Exact { bytes } => (bytes == u64::from(available)).then_some(available),
        DataOut::List { bytes } => u32::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= available),
    }
}
