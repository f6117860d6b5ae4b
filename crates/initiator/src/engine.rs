//! A session's full feature phase as a pure state machine: commands in, PDUs out; PDUs in,
//! completions out (RFC 7143 sections 4.2, 4.5 and 11; error recovery level 0).
//!
//! Invariants
//! - A command is sent only while its CmdSN lies in the window that the target opened and fewer
//!   than `queue_depth` commands are in flight. Immediate PDUs take no CmdSN.
//! - Every submitted token is completed exactly once, unless its owner abandoned it.
//! - StatSN, DataSN, R2TSN and buffer offsets must follow one another; anything else is a
//!   [`ProtocolError`], after which the session must be dropped.
//! - GOOD is passed on only if the bytes received and the residual make the expected length.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, LostReason, ProtocolError};
use crate::exchange::{Notice, Reply, Request, Resume, Token};
use crate::login::{FIRST_CMD_SN, Outcome};
use crate::options::Negotiated;
use crate::pdu::{self, Answer, Bhs, DataIn, FINAL, NO_TAG, Numbers, Pdu, Residual, request};
use crate::scsi::{self, Command, Transfer};

#[derive(Debug)]
pub(crate) struct Engine<T> {
    agreed: Negotiated,
    queue_depth: usize,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    tasks: Vec<Option<Task<T>>>,
    free: Vec<u16>,
    generation: u16,
    /// SCSI and text requests that are in `tasks`.
    in_flight: usize,
    waiting: VecDeque<(T, Request, Instant)>,
    outgoing: VecDeque<Pdu>,
    completed: Vec<(T, Result<Reply, Error>)>,
    notices: Vec<Notice>,
}

#[derive(Debug)]
struct Task<T> {
    tag: u32,
    token: T,
    since: Instant,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Scsi { lun: [u8; 8], flow: Flow },
    Text,
    Ping,
    Logout,
}

#[derive(Debug)]
enum Flow {
    None,
    Read {
        buffer: Vec<u8>,
        received: u32,
        next_data_sn: u32,
    },
    Write {
        data: Bytes,
        next_r2t_sn: u32,
    },
}

impl<T: Token> Engine<T> {
    /// Takes over from a finished login. `queue_depth` must be 1 to 1024.
    pub(crate) fn new(outcome: Outcome, queue_depth: usize) -> Self {
        Self {
            agreed: outcome.negotiated,
            queue_depth,
            cmd_sn: FIRST_CMD_SN,
            max_cmd_sn: outcome.max_cmd_sn,
            exp_stat_sn: outcome.exp_stat_sn,
            tasks: Vec::new(),
            free: Vec::new(),
            generation: 0,
            in_flight: 0,
            waiting: VecDeque::new(),
            outgoing: VecDeque::new(),
            completed: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Accepts a request; it is sent as soon as window and queue depth allow.
    pub(crate) fn submit(&mut self, token: T, request: Request, now: Instant) {
        match request {
            Request::Ping | Request::Logout => self.issue(token, request, now),
            Request::Scsi(_) | Request::Text { .. } => {
                self.waiting.push_back((token, request, now));
                self.pump();
            }
        }
    }

    /// Takes a PDU from the target. After an error nothing more may be submitted or handled; end
    /// with [`Self::fail`].
    pub(crate) fn handle(&mut self, pdu: Pdu) -> Result<(), ProtocolError> {
        let (numbers, answer) = pdu::parse(&pdu.bhs)?;
        self.take_numbers(&numbers, &answer)?;
        let opcode = pdu.bhs.opcode();
        let max_burst = self.agreed.max_burst;
        match answer {
            Answer::NopIn {
                task: NO_TAG,
                transfer: NO_TAG,
                ..
            } => {}
            Answer::NopIn {
                task: NO_TAG,
                transfer,
                lun,
            } => {
                self.outgoing.push_back(self.pong(transfer, lun, pdu.data));
            }
            Answer::NopIn { task, .. } => {
                let Kind::Ping = self.kind(task)? else {
                    return Err(wrong(opcode, task));
                };
                self.complete(task, Ok(Reply::Pong))?;
            }
            Answer::Scsi {
                task,
                response,
                status,
                residual,
            } => {
                let Kind::Scsi { .. } = self.kind(task)? else {
                    return Err(wrong(opcode, task));
                };
                self.end_command(task, response, status, residual, &pdu.data)?;
            }
            Answer::DataIn(header) => self.data_in(&header, &pdu.data)?,
            Answer::ReadyToTransfer {
                task,
                transfer,
                lun,
                sn,
                offset,
                length,
            } => {
                let Kind::Scsi {
                    lun: own,
                    flow: Flow::Write { data, next_r2t_sn },
                } = self.kind(task)?
                else {
                    return Err(wrong(opcode, task));
                };
                if sn != *next_r2t_sn {
                    return Err(ProtocolError::DataSn {
                        expected: *next_r2t_sn,
                        found: sn,
                    });
                }
                *next_r2t_sn = sn.wrapping_add(1);
                let end = offset
                    .checked_add(length)
                    .filter(|end| *end as usize <= data.len());
                let is_allowed = lun == *own && (1..=max_burst).contains(&length);
                let (Some(end), true) = (end, is_allowed) else {
                    return Err(ProtocolError::DataRange { offset, length });
                };
                let data = data.slice(offset as usize..end as usize);
                self.send_data(task, transfer, lun, offset, &data);
            }
            Answer::Text {
                task,
                transfer,
                lun,
                is_final,
            } => {
                let Kind::Text = self.kind(task)? else {
                    return Err(wrong(opcode, task));
                };
                let resume = (!is_final).then_some(Resume { transfer, lun });
                self.complete(
                    task,
                    Ok(Reply::Text {
                        data: pdu.data,
                        resume,
                    }),
                )?;
            }
            Answer::Logout { task, response } => {
                let Kind::Logout = self.kind(task)? else {
                    return Err(wrong(opcode, task));
                };
                self.complete(task, Ok(Reply::LoggedOut { response }))?;
            }
            Answer::Async { event, parameter3 } => match event {
                1 => self.notices.push(Notice::LogoutRequested {
                    seconds: parameter3,
                }),
                2 | 3 => self.notices.push(Notice::Dropping),
                // SCSI events, negotiation requests and vendor events change nothing here.
                _ => {}
            },
            Answer::Reject { reason } => self.reject(reason, &pdu.data)?,
        }
        self.pump();
        Ok(())
    }

    /// Ends every outstanding request with `error`.
    pub(crate) fn fail(&mut self, error: &Error) {
        let running = self.tasks.drain(..).flatten().map(|task| task.token);
        let waiting = self.waiting.drain(..).map(|(token, ..)| token);
        self.completed.extend(
            running
                .chain(waiting)
                .map(|token| (token, Err(error.clone()))),
        );
        self.free.clear();
        self.in_flight = 0;
        self.outgoing.clear();
    }

    /// The next PDU to send, in order.
    pub(crate) fn take_outgoing(&mut self) -> Option<Pdu> {
        self.outgoing.pop_front()
    }

    /// Moves the completions gathered so far into `out`.
    pub(crate) fn take_completed(&mut self, out: &mut Vec<(T, Result<Reply, Error>)>) {
        out.append(&mut self.completed);
    }

    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// When the oldest request that has no answer yet was submitted.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let running = self.tasks.iter().flatten().map(|task| task.since);
        running
            .chain(self.waiting.front().map(|(_, _, since)| *since))
            .min()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    fn window_is_open(&self) -> bool {
        is_at_or_after(self.max_cmd_sn, self.cmd_sn)
    }

    fn pump(&mut self) {
        while self.in_flight < self.queue_depth && self.window_is_open() {
            let Some((token, request, since)) = self.waiting.pop_front() else {
                return;
            };
            if !token.is_abandoned() {
                self.issue(token, request, since);
            }
        }
    }

    fn issue(&mut self, token: T, request: Request, since: Instant) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(None);
            (self.tasks.len() - 1) as u16
        });
        // A tag names its slot and, so that a late answer to an earlier task is noticed, a
        // generation. 0x7fff keeps it clear of the reserved tag.
        self.generation = self.generation.wrapping_add(1) & 0x7fff;
        let tag = u32::from(self.generation) << 16 | u32::from(slot);
        let kind = match request {
            Request::Scsi(command) => self.send_command(tag, command),
            Request::Text { text, resume } => {
                let mut bhs = self.header(request::TEXT, FINAL, tag);
                bhs = bhs.with_u32(24, self.next_cmd_sn());
                if let Some(resume) = resume {
                    bhs = bhs.with(8, &resume.lun).with_u32(20, resume.transfer);
                }
                self.outgoing.push_back(Pdu { bhs, data: text });
                self.in_flight += 1;
                Kind::Text
            }
            Request::Ping => {
                self.send_immediate(request::NOP_OUT, tag);
                Kind::Ping
            }
            Request::Logout => {
                self.send_immediate(request::LOGOUT, tag);
                Kind::Logout
            }
        };
        self.tasks[usize::from(slot)] = Some(Task {
            tag,
            token,
            since,
            kind,
        });
    }

    fn send_command(&mut self, tag: u32, command: Command) -> Kind {
        let lun = scsi::encode_lun(command.lun);
        let length = command.transfer.length();
        let direction = match &command.transfer {
            Transfer::None => 0,
            Transfer::Read(_) => 0x40,
            Transfer::Write(_) => 0x20,
        };
        let mut immediate = Bytes::new();
        let mut unsolicited = 0..0;
        if let Transfer::Write(data) = &command.transfer {
            let first_burst = self.agreed.first_burst.min(length);
            if self.agreed.immediate_data {
                immediate = data.slice(..first_burst.min(self.agreed.max_send_segment) as usize);
            }
            if !self.agreed.initial_r2t {
                unsolicited = immediate.len()..first_burst as usize;
            }
        }
        const SIMPLE: u8 = 1;
        let last = if unsolicited.is_empty() { FINAL } else { 0 };
        let bhs = self
            .header(request::SCSI_COMMAND, last | direction | SIMPLE, tag)
            .with(8, &lun)
            .with_u32(20, length)
            .with_u32(24, self.next_cmd_sn())
            .with(32, &command.cdb);
        self.outgoing.push_back(Pdu {
            bhs,
            data: immediate,
        });
        self.in_flight += 1;
        let flow = match command.transfer {
            Transfer::None => Flow::None,
            Transfer::Read(length) => Flow::Read {
                buffer: vec![0; length as usize],
                received: 0,
                next_data_sn: 0,
            },
            Transfer::Write(data) => {
                if !unsolicited.is_empty() {
                    let offset = unsolicited.start as u32;
                    self.send_data(tag, NO_TAG, lun, offset, &data.slice(unsolicited));
                }
                Flow::Write {
                    data,
                    next_r2t_sn: 0,
                }
            }
        };
        Kind::Scsi { lun, flow }
    }

    /// Sends one sequence of Data-Out PDUs.
    fn send_data(&mut self, tag: u32, transfer: u32, lun: [u8; 8], offset: u32, data: &Bytes) {
        let segment = self.agreed.max_send_segment as usize;
        let count = data.len().div_ceil(segment);
        for sn in 0..count {
            let start = sn * segment;
            let part = data.slice(start..data.len().min(start + segment));
            let last = if sn + 1 == count { FINAL } else { 0 };
            let bhs = self
                .header(request::DATA_OUT, last, tag)
                .with(8, &lun)
                .with_u32(20, transfer)
                .with_u32(36, sn as u32)
                .with_u32(40, offset + start as u32);
            self.outgoing.push_back(Pdu { bhs, data: part });
        }
    }

    fn send_immediate(&mut self, opcode: u8, tag: u32) {
        let bhs = self
            .header(opcode | request::IMMEDIATE, FINAL, tag)
            .with_u32(24, self.cmd_sn);
        // For a logout, bytes 20 to 21 are the connection id (0) and not a transfer tag.
        let bhs = if opcode == request::LOGOUT {
            bhs.with_u32(20, 0)
        } else {
            bhs
        };
        self.outgoing.push_back(Pdu {
            bhs,
            data: Bytes::new(),
        });
    }

    fn pong(&self, transfer: u32, lun: [u8; 8], data: Bytes) -> Pdu {
        let bhs = self
            .header(request::NOP_OUT | request::IMMEDIATE, FINAL, NO_TAG)
            .with(8, &lun)
            .with_u32(20, transfer)
            .with_u32(24, self.cmd_sn);
        let echoed = data.len().min(self.agreed.max_send_segment as usize);
        Pdu {
            bhs,
            data: data.slice(..echoed),
        }
    }

    fn header(&self, opcode: u8, flags: u8, tag: u32) -> Bhs {
        Bhs::new(opcode, flags)
            .with_u32(16, tag)
            .with_u32(20, NO_TAG)
            .with_u32(28, self.exp_stat_sn)
    }

    fn next_cmd_sn(&mut self) -> u32 {
        let cmd_sn = self.cmd_sn;
        self.cmd_sn = cmd_sn.wrapping_add(1);
        cmd_sn
    }

    fn take_numbers(&mut self, numbers: &Numbers, answer: &Answer) -> Result<(), ProtocolError> {
        // MaxCmdSN below ExpCmdSN - 1 is to be ignored, and it never goes back (section 4.2.2.1).
        if is_at_or_after(numbers.max_cmd_sn, numbers.exp_cmd_sn.wrapping_sub(1))
            && is_at_or_after(numbers.max_cmd_sn, self.max_cmd_sn)
        {
            self.max_cmd_sn = numbers.max_cmd_sn;
        }
        let bears_status = match answer {
            Answer::NopIn { task, .. } => *task != NO_TAG,
            Answer::DataIn(header) => header.status.is_some(),
            Answer::ReadyToTransfer { .. } => false,
            Answer::Scsi { .. }
            | Answer::Text { .. }
            | Answer::Logout { .. }
            | Answer::Async { .. }
            | Answer::Reject { .. } => true,
        };
        if bears_status {
            let (expected, found) = (self.exp_stat_sn, numbers.stat_sn);
            if expected != found {
                return Err(ProtocolError::StatSn { expected, found });
            }
            self.exp_stat_sn = expected.wrapping_add(1);
        }
        Ok(())
    }

    fn data_in(&mut self, header: &DataIn, data: &[u8]) -> Result<(), ProtocolError> {
        let task = header.task;
        let Kind::Scsi {
            flow:
                Flow::Read {
                    buffer,
                    received,
                    next_data_sn,
                },
            ..
        } = self.kind(task)?
        else {
            return Err(wrong(pdu::answer::DATA_IN, task));
        };
        if header.sn != *next_data_sn {
            return Err(ProtocolError::DataSn {
                expected: *next_data_sn,
                found: header.sn,
            });
        }
        *next_data_sn = header.sn.wrapping_add(1);
        let (offset, length) = (header.offset, data.len() as u32);
        // DataPDUInOrder and DataSequenceInOrder are Yes: no gap, no overlap.
        let end = offset as usize + data.len();
        if offset != *received || end > buffer.len() {
            return Err(ProtocolError::DataRange { offset, length });
        }
        buffer[offset as usize..end].copy_from_slice(data);
        *received = end as u32;
        match header.status {
            Some((status, residual)) => self.end_command(task, 0, status, residual, &[]),
            None => Ok(()),
        }
    }

    /// `segment` is the data segment of a SCSI Response: sense data behind its length.
    fn end_command(
        &mut self,
        task: u32,
        response: u8,
        status: u8,
        residual: Residual,
        segment: &[u8],
    ) -> Result<(), ProtocolError> {
        let result = match (response, status) {
            (0, 0x00) => Ok(()),
            (0, 0x02) => {
                let sense = segment.get(2..).unwrap_or(&[]);
                let length = segment
                    .first_chunk()
                    .map_or(0, |head| u16::from_be_bytes(*head));
                Err(scsi::sense_error(
                    sense.get(..usize::from(length)).unwrap_or(sense),
                ))
            }
            (0, 0x08 | 0x28) => Err(Error::Busy { status }),
            (0, 0x18) => Err(Error::ReservationConflict),
            (0, 0x40) => Err(Error::TaskAborted),
            (0, status) => Err(Error::UnexpectedStatus { status }),
            (response, _) => Err(Error::TargetFailure { response }),
        };
        let mut reply = Bytes::new();
        if let (
            Ok(()),
            Kind::Scsi {
                flow: Flow::Read {
                    buffer, received, ..
                },
                ..
            },
        ) = (&result, self.kind(task)?)
        {
            let missing = match residual {
                Residual::None | Residual::Overflow(_) => 0,
                Residual::Underflow(count) => count,
            };
            let (expected, received) = (buffer.len() as u32, *received);
            if received.checked_add(missing) != Some(expected) {
                return Err(ProtocolError::Residual {
                    expected,
                    received,
                    residual: missing,
                });
            }
            let mut data = std::mem::take(buffer);
            data.truncate(received as usize);
            reply = data.into();
        }
        self.complete(
            task,
            result.map(|()| Reply::Scsi {
                data: reply,
                residual,
            }),
        )
    }

    /// A rejected PDU's header is in the data segment; its task, if we have it, ends here.
    fn reject(&mut self, reason: u8, header: &[u8]) -> Result<(), ProtocolError> {
        let Some(tag) = header.get(16..20) else {
            return Ok(());
        };
        let tag = u32::from_be_bytes([tag[0], tag[1], tag[2], tag[3]]);
        match self.kind(tag) {
            Ok(_) => self.complete(tag, Err(Error::Rejected { reason })),
            Err(_) => Ok(()),
        }
    }

    fn kind(&mut self, tag: u32) -> Result<&mut Kind, ProtocolError> {
        match self.tasks.get_mut((tag & 0xffff) as usize) {
            Some(Some(task)) if task.tag == tag => Ok(&mut task.kind),
            Some(_) | None => Err(ProtocolError::UnknownTask(tag)),
        }
    }

    fn complete(&mut self, tag: u32, result: Result<Reply, Error>) -> Result<(), ProtocolError> {
        self.kind(tag)?;
        let slot = tag as u16;
        if let Some(task) = self.tasks[usize::from(slot)].take() {
            match task.kind {
                Kind::Scsi { .. } | Kind::Text => self.in_flight -= 1,
                Kind::Ping | Kind::Logout => {}
            }
            self.free.push(slot);
            self.completed.push((task.token, result));
        }
        Ok(())
    }
}

/// Serial number comparison (RFC 1982).
fn is_at_or_after(number: u32, reference: u32) -> bool {
    number.wrapping_sub(reference) < 1 << 31
}

fn wrong(opcode: u8, task: u32) -> ProtocolError {
    ProtocolError::WrongKind { opcode, task }
}

/// What a command gets that was outstanding when the session went.
pub(crate) fn lost(reason: LostReason) -> Error {
    Error::ConnectionLost { reason }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
