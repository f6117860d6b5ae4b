//! Task management, logout, pings and text.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes, BytesMut};
use holdfast_name::IscsiName;
use holdfast_scsi::attachment::is_unit_zero;

use super::{Action, Front, Held, IMMEDIATE_MAX, Session, TaskId, serial_before};
use crate::pdu::build::{self, RejectReason, TaskManagementResponse};
use crate::pdu::{CONTINUE, FINAL, Pdu, RESERVED_TAG};
use crate::text::{self, Writer};

/// Most text of one exchange, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Task management functions (RFC 7143 11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    AbortTask,
    AbortTaskSet,
    ClearAca,
    ClearTaskSet,
    LogicalUnitReset,
    TargetWarmReset,
    TargetColdReset,
    TaskReassign,
}

impl Function {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code & 0x7f {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LogicalUnitReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            _ => return None,
        })
    }
}

/// Who waits for aborted commands to end.
#[derive(Debug)]
enum Waiter {
    TaskManagement { tag: u32, cold: bool },
    Logout { tag: u32 },
    OtherSession { ticket: u64 },
}

/// An abort that has not been answered.
#[derive(Debug)]
pub(super) struct PendingAbort {
    waiter: Waiter,
    tasks: BTreeSet<TaskId>,
    /// The reset of the unit that has to be done, too.
    reset: Option<u64>,
}

/// A text negotiation of more than one PDU.
#[derive(Debug)]
pub(super) struct TextExchange {
    transfer_tag: u32,
    request: BytesMut,
    answer: Option<Bytes>,
}

impl Session {
    /// Aborts every command for another session's sake; [`Action::Drained`] with the ticket
    /// follows.
    pub fn abort_for_others(&mut self, ticket: u64) {
        let tasks = self.all_tasks();
        self.abort(tasks, Waiter::OtherSession { ticket }, None);
    }

    /// Says that the reset which an [`Action::ResetUnit`] asked for has been done.
    pub fn reset_done(&mut self, ticket: u64) {
        for pending in &mut self.aborts {
            if pending.reset == Some(ticket) {
                pending.reset = None;
            }
        }
        self.answer_aborts();
    }

    /// Notes that an aborted command can no longer take effect.
    pub(super) fn drained(&mut self, task: TaskId) {
        for pending in &mut self.aborts {
            pending.tasks.remove(&task);
        }
        self.answer_aborts();
    }

    fn abort(&mut self, tasks: BTreeSet<TaskId>, waiter: Waiter, reset: Option<u64>) {
        let tasks = tasks
            .into_iter()
            .filter(|id| self.abort_task(*id))
            .collect();
        self.aborts.push(PendingAbort {
            waiter,
            tasks,
            reset,
        });
        self.answer_aborts();
        // What waited behind the aborted commands may go on.
        self.schedule();
        self.ask_waiting();
    }

    fn answer_aborts(&mut self) {
        let done = |pending: &mut PendingAbort| pending.tasks.is_empty() && pending.reset.is_none();
        let answered: Vec<PendingAbort> = self.aborts.extract_if(.., done).collect();
        for pending in answered {
            match pending.waiter {
                Waiter::OtherSession { ticket } => self.actions.push(Action::Drained { ticket }),
                // The session is over: nobody is there to be answered.
                Waiter::TaskManagement { .. } | Waiter::Logout { .. } if self.closing => {}
                Waiter::TaskManagement { tag, cold } => {
                    self.respond_management(tag, TaskManagementResponse::Complete);
                    if cold {
                        self.actions.push(Action::DropTarget);
                    }
                }
                Waiter::Logout { tag } => {
                    self.send(build::logout_response(tag, 0));
                    self.close();
                }
            }
        }
    }

    fn respond_management(&mut self, tag: u32, response: TaskManagementResponse) {
        self.send(build::task_management_response(tag, response));
    }

    pub(super) fn task_management(&mut self, pdu: &Pdu) {
        let tag = pdu.task_tag();
        if self.discovery {
            return self.reject(RejectReason::ProtocolError, pdu);
        }
        if self.aborts.len() >= IMMEDIATE_MAX {
            return self.reject(RejectReason::TooManyImmediate, pdu);
        }
        let Some(function) = Function::from_code(pdu.header[1]) else {
            return self.respond_management(tag, TaskManagementResponse::Unsupported);
        };
        let for_unit = !matches!(
            function,
            Function::TargetWarmReset | Function::TargetColdReset | Function::TaskReassign
        );
        if for_unit && !is_unit_zero(pdu.lun()) {
            return self.respond_management(tag, TaskManagementResponse::NoSuchUnit);
        }
        let waiter = Waiter::TaskManagement {
            tag,
            cold: function == Function::TargetColdReset,
        };
        match function {
            Function::AbortTask => self.abort_one(pdu, waiter),
            // The task set is the session's (TST 001b), so clearing it is aborting it.
            Function::AbortTaskSet | Function::ClearTaskSet => {
                let limit = pdu.command_number();
                let tasks = self
                    .tasks
                    .iter()
                    .filter(|(_, task)| serial_before(task.command_number, limit))
                    .map(|(id, _)| *id)
                    .collect();
                self.abort(tasks, waiter, None);
            }
            Function::LogicalUnitReset | Function::TargetWarmReset | Function::TargetColdReset => {
                let ticket = self.ticket();
                self.actions.push(Action::ResetUnit { ticket });
                let tasks = self.all_tasks();
                self.abort(tasks, waiter, Some(ticket));
            }
            Function::ClearAca => self.respond_management(tag, TaskManagementResponse::Unsupported),
            Function::TaskReassign => {
                self.respond_management(tag, TaskManagementResponse::ReassignUnsupported);
            }
        }
    }

    /// ABORT TASK (RFC 7143 11.5.5).
    fn abort_one(&mut self, pdu: &Pdu, waiter: Waiter) {
        let (referenced, number) = (pdu.u32_at(20), pdu.u32_at(32));
        if let Some((id, task)) = self.task_by_tag(referenced) {
            let response = if task.lun == pdu.lun() {
                return self.abort(BTreeSet::from([id]), waiter, None);
            } else {
                TaskManagementResponse::NoSuchTask
            };
            return self.respond_management(pdu.task_tag(), response);
        }
        // Not here yet: its number counts as received, so that it is dropped if it comes.
        let in_window = !serial_before(number, self.expected_command)
            && !serial_before(self.max_command, number);
        if !in_window || number == pdu.command_number() {
            return self.respond_management(pdu.task_tag(), TaskManagementResponse::NoSuchTask);
        }
        self.held.insert(number, Held::Void);
        while matches!(self.held.get(&self.expected_command), Some(Held::Void)) {
            self.held.remove(&self.expected_command);
            self.expected_command = self.expected_command.wrapping_add(1);
        }
        self.abort(BTreeSet::new(), waiter, None);
    }

    pub(super) fn nop_out(&mut self, pdu: &Pdu) {
        // Without a task tag it answers a ping, and any PDU is a sign of life.
        if pdu.task_tag() == RESERVED_TAG {
            return;
        }
        let mut echo = pdu.data.clone();
        echo.truncate(self.parameters.send_bytes_max as usize);
        self.send(build::nop_in(pdu.lun(), pdu.task_tag(), RESERVED_TAG, echo));
    }

    pub(super) fn logout(&mut self, pdu: &Pdu) {
        const RECOVERY: u8 = 2;
        let tag = pdu.task_tag();
        // Byte 1 also has the F bit.
        match pdu.header[1] & 0x7f {
            0 => {}
            1 if pdu.u16_at(20) == self.connection => {}
            1 => return self.send(build::logout_response(tag, 1)),
            RECOVERY => return self.send(build::logout_response(tag, 2)),
            _ => return self.reject(RejectReason::InvalidField, pdu),
        }
        self.leaving = true;
        let tasks = self.all_tasks();
        self.abort(tasks, Waiter::Logout { tag }, None);
    }

    pub(super) fn text_request(&mut self, pdu: &Pdu, front: &dyn Front) {
        let tag = pdu.task_tag();
        let more = pdu.flag(CONTINUE);
        if tag == RESERVED_TAG || (more && pdu.flag(FINAL)) {
            return self.reject(RejectReason::InvalidField, pdu);
        }
        let transfer_tag = pdu.u32_at(20);
        let mut exchange = match self.text.take() {
            // A request without a transfer tag begins anew.
            Some(exchange) if transfer_tag == exchange.transfer_tag => exchange,
            Some(_) | None if transfer_tag != RESERVED_TAG => {
                return self.reject(RejectReason::InvalidField, pdu);
            }
            Some(_) | None => TextExchange {
                transfer_tag: self.transfer_tag(),
                request: BytesMut::new(),
                answer: None,
            },
        };
        if exchange.request.len() + pdu.data.len() > TEXT_BYTES_MAX {
            return self.reject(RejectReason::InvalidField, pdu);
        }
        if exchange.answer.is_none() {
            exchange.request.extend_from_slice(&pdu.data);
        }
        if more {
            let response = build::text_response(tag, exchange.transfer_tag, false, Bytes::new());
            self.text = Some(exchange);
            return self.send(response);
        }
        let answer = match exchange.answer.take() {
            Some(answer) => answer,
            None => match self.answer_text(&exchange.request, front) {
                Some(answer) => answer,
                None => return self.reject(RejectReason::ProtocolError, pdu),
            },
        };
        self.send_text(tag, exchange, answer);
    }

    fn send_text(&mut self, tag: u32, mut exchange: TextExchange, mut answer: Bytes) {
        let limit = self.parameters.send_bytes_max as usize;
        if answer.len() <= limit {
            return self.send(build::text_response(tag, RESERVED_TAG, false, answer));
        }
        let part = answer.slice(..limit);
        answer.advance(limit);
        exchange.answer = Some(answer);
        let response = build::text_response(tag, exchange.transfer_tag, true, part);
        self.text = Some(exchange);
        self.send(response);
    }

    /// The answer to a whole text; `None` if it breaks the protocol, or if nothing in it is
    /// understood: a request that asks for nothing gets no answer that looks like one.
    fn answer_text(&mut self, request: &[u8], front: &dyn Front) -> Option<Bytes> {
        let mut writer = Writer::default();
        let pairs = text::parse(request).ok()?;
        let mut understood = pairs.is_empty();
        for pair in pairs {
            let unknown = crate::negotiation::Negotiation::new(false).offer(&pair.key, &pair.value)
                == crate::negotiation::Reply::NotUnderstood;
            understood |= !unknown;
            match pair.key.as_str() {
                "SendTargets" => {
                    let named = IscsiName::new(&pair.value);
                    let name = match (pair.value.as_str(), front.target()) {
                        ("All", None) => None,
                        // RFC 7143 appendix C has no All here; initiators send it all the same,
                        // and the session's own target is no news to it.
                        ("All" | "", target) => target,
                        (_, _) => Some(named.as_deref().ok()?),
                    };
                    for target in front.send_targets(name) {
                        writer.put("TargetName", &target.iqn);
                        for portal in &target.portals {
                            writer.put("TargetAddress", portal);
                        }
                    }
                }
                "MaxRecvDataSegmentLength" => {
                    let length = text::parse_number(&pair.value);
                    match length.filter(|length| (512..1 << 24).contains(length)) {
                        Some(length) => {
                            let length = length.min(crate::negotiation::SEND_BYTES_MAX);
                            self.parameters.send_bytes_max = length;
                        }
                        None => writer.put(&pair.key, "Reject"),
                    }
                }
                "InitiatorAlias" => {}
                // Everything else is settled by the login.
                key if unknown => writer.put(key, "NotUnderstood"),
                key => writer.put(key, "Reject"),
            }
        }
        understood.then(|| writer.finish())
    }
}
