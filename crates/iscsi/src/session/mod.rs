//! The full-feature phase of one session and its only connection, without I/O.
//!
//! PDUs and completions go in, [`Action`]s come out. What always holds:
//!
//! * commands are delivered in CmdSN order; a number outside [ExpCmdSN, MaxCmdSN] is dropped in
//!   silence, MaxCmdSN never decreases, and the window closes by the commands outstanding;
//! * every PDU with a status takes the next StatSN, in the order in which it is sent;
//! * an abort, a reset or a logout is answered only when no command that it concerns can take
//!   effect any more, and such a command is never answered itself;
//! * a logout concerns every command: nothing is taken after it and nothing sent after its answer;
//! * what the initiator makes the target hold is bounded: unsolicited data by the window and the
//!   first burst, solicited data by [`SOLICITED_BYTES_MAX`], commands ahead of their turn by the
//!   window, immediate commands by [`IMMEDIATE_MAX`].

mod commands;
mod evidence;
mod management;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_scsi::{Admission, Admitted, Completion, Sense};
use thiserror::Error;

pub use evidence::Evidence;
pub use transfer::TransferError;

use crate::login::FullFeature;
use crate::negotiation::Parameters;
use crate::pdu::build::{self, AsyncEvent, RejectReason};
use crate::pdu::{InitiatorOpcode, Pdu, RESERVED_TAG};
use crate::targets::TargetSummary;
use commands::Task;
use management::{PendingAbort, TextExchange};

/// Most data that the target asks for and holds before it executes the writes, per session.
pub const SOLICITED_BYTES_MAX: u64 = 16 << 20;

/// Most immediate commands, and most task management functions, outstanding in a session.
pub const IMMEDIATE_MAX: usize = 32;

/// Identifies a command within its session; later commands have greater ones.
pub type TaskId = u64;

/// Why a session ends at once; its commands are drained and nothing more is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// Write data for a command that has all its data.
    #[error("write data after its end")]
    DataAfterEnd,
    /// A command with data that was not negotiated.
    #[error("unsolicited data that was not negotiated")]
    UnsolicitedData,
    /// A login in the full-feature phase.
    #[error("login request after the login")]
    Login,
}

/// What the shell has to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the PDU.
    Send(Pdu),
    /// Run the command, then call [`Session::complete`].
    Execute {
        /// The command's identity.
        task: TaskId,
        /// What to run.
        command: Admitted,
        /// Its data.
        data: Bytes,
        /// Most bytes that it will return.
        data_in_bytes: u64,
    },
    /// Abort the unit's commands of every other session, reset the unit, then call
    /// [`Session::reset_done`].
    ResetUnit {
        /// Identifies the reset.
        ticket: u64,
    },
    /// The commands that [`Session::abort_for_others`] concerned can no longer take effect.
    Drained {
        /// The ticket given to it.
        ticket: u64,
    },
    /// End every session of the target (cold reset).
    DropTarget,
    /// Close the connection once everything is sent.
    Close,
}

/// What a session asks of its surroundings.
pub trait Front {
    /// Decides what becomes of a command.
    fn admit(&self, lun: u64, cdb: &[u8; 16]) -> Admission;
    /// CHECK CONDITION in the format that the host chose.
    fn check_condition(&self, sense: Sense) -> Completion;
    /// The targets to show: all that this initiator may use, or the one named if it may use it.
    fn send_targets(&self, name: Option<&str>) -> Vec<TargetSummary>;
    /// Name of the session's target; `None` in a discovery session.
    fn target(&self) -> Option<&str>;
}

/// A command that arrived before its turn, with the data that followed it.
#[derive(Debug)]
enum Held {
    Command(Pdu, Vec<Pdu>),
    /// Aborted before it arrived: its number counts as received.
    Void,
}

/// One session in the full-feature phase.
#[derive(Debug)]
pub struct Session {
    parameters: Parameters,
    discovery: bool,
    connection: u16,
    expected_command: u32,
    max_command: u32,
    window: u32,
    status_number: u32,
    held: BTreeMap<u32, Held>,
    tasks: BTreeMap<TaskId, Task>,
    by_tag: BTreeMap<u32, TaskId>,
    next_task: TaskId,
    next_transfer_tag: u32,
    outstanding: u32,
    ordered: usize,
    solicited_bytes: u64,
    waiting_for_room: VecDeque<TaskId>,
    aborts: Vec<PendingAbort>,
    next_ticket: u64,
    text: Option<TextExchange>,
    /// A logout has been taken: what comes after it is none of the session's.
    leaving: bool,
    closing: bool,
    actions: Vec<Action>,
}

/// Whether `a` comes before `b` in serial number arithmetic (RFC 1982).
fn serial_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Session {
    /// The session after its login, with a window of so many commands.
    pub fn new(login: &FullFeature, window: u32) -> Self {
        Self {
            parameters: login.parameters,
            discovery: login.kind == crate::login::SessionKind::Discovery,
            connection: login.connection,
            expected_command: login.command_number,
            max_command: login.command_number.wrapping_add(window - 1),
            window,
            status_number: login.status_number,
            held: BTreeMap::new(),
            tasks: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            next_task: 0,
            next_transfer_tag: 0,
            outstanding: 0,
            ordered: 0,
            solicited_bytes: 0,
            waiting_for_room: VecDeque::new(),
            aborts: Vec::new(),
            next_ticket: 0,
            text: None,
            leaving: false,
            closing: false,
            actions: Vec::new(),
        }
    }

    /// MaxCmdSN as the final login response must give it.
    pub fn max_command(&self) -> u32 {
        self.max_command
    }

    /// Takes what is to be done, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Commands not yet answered.
    pub fn outstanding(&self) -> usize {
        self.tasks.len()
    }

    /// Takes a PDU of the initiator.
    pub fn receive(&mut self, pdu: Pdu, front: &dyn Front) -> Result<(), SessionError> {
        if self.leaving || self.closing {
            return Ok(());
        }
        match InitiatorOpcode::from_code(pdu.opcode()) {
            None => self.reject(RejectReason::CommandNotSupported, &pdu),
            Some(InitiatorOpcode::Login) => return Err(SessionError::Login),
            Some(InitiatorOpcode::Snack) => self.reject(RejectReason::Snack, &pdu),
            Some(InitiatorOpcode::DataOut) => return self.data_out(pdu, front),
            Some(
                InitiatorOpcode::NopOut
                | InitiatorOpcode::ScsiCommand
                | InitiatorOpcode::TaskManagement
                | InitiatorOpcode::Text
                | InitiatorOpcode::Logout,
            ) => return self.sequence(pdu, front),
        }
        Ok(())
    }

    /// Asks the initiator for a sign of life.
    pub fn ping(&mut self) {
        let tag = self.transfer_tag();
        let mut pdu = build::nop_in(0, RESERVED_TAG, tag, Bytes::new());
        self.stamp(&mut pdu, false);
        self.actions.push(Action::Send(pdu));
    }

    /// Asks the initiator to log out within so many seconds.
    pub fn request_logout(&mut self, seconds: u16) {
        self.send(build::async_message(AsyncEvent::LogoutRequest { seconds }));
    }

    /// Tells the initiator that the connection will be closed, and closes it.
    pub fn drop_connection(&mut self) {
        self.send(build::async_message(AsyncEvent::DropAll {
            wait: 0,
            retain: 0,
        }));
        self.close();
    }

    fn close(&mut self) {
        self.closing = true;
        self.actions.push(Action::Close);
    }

    fn sequence(&mut self, pdu: Pdu, front: &dyn Front) -> Result<(), SessionError> {
        if pdu.immediate() {
            return self.deliver(pdu, Vec::new(), front);
        }
        let number = pdu.command_number();
        let outside =
            serial_before(number, self.expected_command) || serial_before(self.max_command, number);
        if outside || self.held.contains_key(&number) {
            return Ok(());
        }
        if number != self.expected_command {
            self.held.insert(number, Held::Command(pdu, Vec::new()));
            return Ok(());
        }
        self.expected_command = self.expected_command.wrapping_add(1);
        self.deliver(pdu, Vec::new(), front)?;
        while !self.leaving
            && let Some(held) = self.held.remove(&self.expected_command)
        {
            self.expected_command = self.expected_command.wrapping_add(1);
            match held {
                Held::Command(pdu, data) => self.deliver(pdu, data, front)?,
                Held::Void => {}
            }
        }
        Ok(())
    }

    fn deliver(&mut self, pdu: Pdu, data: Vec<Pdu>, front: &dyn Front) -> Result<(), SessionError> {
        match InitiatorOpcode::from_code(pdu.opcode()) {
            Some(InitiatorOpcode::ScsiCommand) => {
                self.scsi_command(pdu, front)?;
                data.into_iter()
                    .try_for_each(|pdu| self.data_out(pdu, front))?;
            }
            Some(InitiatorOpcode::NopOut) => self.nop_out(&pdu),
            Some(InitiatorOpcode::TaskManagement) => self.task_management(&pdu),
            Some(InitiatorOpcode::Text) => self.text_request(&pdu, front),
            Some(InitiatorOpcode::Logout) => self.logout(&pdu),
            Some(InitiatorOpcode::Login | InitiatorOpcode::DataOut | InitiatorOpcode::Snack)
            | None => unreachable!("only numbered PDUs are sequenced"),
        }
        Ok(())
    }

    fn reject(&mut self, reason: RejectReason, offending: &Pdu) {
        self.send(build::reject(reason, offending));
    }

    /// Sends a PDU that takes a StatSN.
    fn send(&mut self, mut pdu: Pdu) {
        self.stamp(&mut pdu, true);
        self.actions.push(Action::Send(pdu));
    }

    /// Sends a PDU that shows the next StatSN but does not take it.
    fn send_without_status(&mut self, mut pdu: Pdu) {
        self.stamp(&mut pdu, false);
        self.actions.push(Action::Send(pdu));
    }

    fn stamp(&mut self, pdu: &mut Pdu, takes_status: bool) {
        let open = self.window.saturating_sub(self.outstanding);
        let max = self.expected_command.wrapping_add(open).wrapping_sub(1);
        if serial_before(self.max_command, max) {
            self.max_command = max;
        }
        build::stamp(
            pdu,
            self.status_number,
            self.expected_command,
            self.max_command,
        );
        if takes_status {
            self.status_number = self.status_number.wrapping_add(1);
        }
    }

    fn transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = if tag >= RESERVED_TAG - 1 { 0 } else { tag + 1 };
        tag
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Every command outstanding now.
    fn all_tasks(&self) -> BTreeSet<TaskId> {
        self.tasks.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
