//! The target's PDUs, without sequence numbers: the session stamps those when it sends them.

use bytes::{BufMut, Bytes, BytesMut};

use super::{CONTINUE, FINAL, Pdu, RESERVED_TAG, TargetOpcode};

/// The difference between what the initiator expected to transfer and what the command wanted
/// (RFC 7143 11.4.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// They agree.
    None,
    /// Bytes that the initiator expected and the command did not transfer.
    Underflow(u32),
    /// Bytes that the command could not transfer because the initiator expected fewer.
    Overflow(u32),
}

impl Residual {
    /// The residual of a command that wanted `wanted` bytes where `expected` were announced.
    pub fn between(expected: u32, wanted: u64) -> Self {
        if wanted > u64::from(expected) {
            let over = wanted - u64::from(expected);
            Self::Overflow(u32::try_from(over).unwrap_or(u32::MAX))
        } else if wanted < u64::from(expected) {
            Self::Underflow(expected - wanted as u32)
        } else {
            Self::None
        }
    }

    fn put(self, pdu: &mut Pdu) {
        let (flag, count) = match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (0x02, count),
            Self::Overflow(count) => (0x04, count),
        };
        pdu.header[1] |= flag;
        pdu.put_u32(44, count);
    }
}

/// Reasons of a Reject (RFC 7143 11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// SNACK is not supported at error recovery level 0.
    Snack = 0x03,
    /// The PDU does not belong here.
    ProtocolError = 0x04,
    /// The opcode is not supported.
    CommandNotSupported = 0x05,
    /// Too many immediate commands.
    TooManyImmediate = 0x06,
    /// A task with this tag is running.
    TaskInProgress = 0x07,
    /// A field of the PDU is invalid.
    InvalidField = 0x09,
}

/// Responses to a task management request (RFC 7143 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskManagementResponse {
    /// Done; the tasks concerned can no longer take effect.
    Complete = 0,
    /// The task is not known.
    NoSuchTask = 1,
    /// The logical unit does not exist.
    NoSuchUnit = 2,
    /// Tasks cannot be reassigned.
    ReassignUnsupported = 4,
    /// The function is not supported.
    Unsupported = 5,
    /// Refused.
    Rejected = 255,
}

/// Asynchronous events (RFC 7143 11.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The initiator must log out within this many seconds.
    LogoutRequest {
        /// Seconds until the target closes the connection itself.
        seconds: u16,
    },
    /// The target drops every connection of the session.
    DropAll {
        /// Seconds to wait before logging in again.
        wait: u16,
        /// Seconds for which the session's tasks are kept.
        retain: u16,
    },
}

/// Overwrites StatSN, ExpCmdSN and MaxCmdSN, which are at the same place in every target PDU.
pub fn stamp(pdu: &mut Pdu, status: u32, expected_command: u32, max_command: u32) {
    pdu.put_u32(24, status);
    pdu.put_u32(28, expected_command);
    pdu.put_u32(32, max_command);
}

fn start(opcode: TargetOpcode, task_tag: u32) -> Pdu {
    let mut pdu = Pdu::new(opcode as u8);
    pdu.header[1] = FINAL;
    pdu.put_u32(16, task_tag);
    pdu
}

fn put_lun(pdu: &mut Pdu, lun: u64) {
    pdu.header[8..16].copy_from_slice(&lun.to_be_bytes());
}

/// SCSI Response; `data_pdus` counts the Data-In and R2T PDUs sent for the task.
pub fn scsi_response(
    task_tag: u32,
    status: u8,
    sense: &[u8],
    residual: Residual,
    data_pdus: u32,
) -> Pdu {
    let mut pdu = start(TargetOpcode::ScsiResponse, task_tag);
    pdu.header[3] = status;
    pdu.put_u32(36, data_pdus);
    residual.put(&mut pdu);
    if !sense.is_empty() {
        let mut data = BytesMut::with_capacity(2 + sense.len());
        data.put_u16(sense.len() as u16);
        data.put_slice(sense);
        pdu.data = data.freeze();
    }
    pdu
}

/// SCSI Data-In. `status` is present in the last PDU of a task that ends with GOOD.
pub fn data_in(
    task_tag: u32,
    data_number: u32,
    offset: u32,
    data: Bytes,
    end_of_sequence: bool,
    status: Option<(u8, Residual)>,
) -> Pdu {
    /// The S bit: the PDU carries the status.
    const STATUS: u8 = 0x01;
    let mut pdu = start(TargetOpcode::DataIn, task_tag);
    pdu.header[1] = if end_of_sequence { FINAL } else { 0 };
    pdu.put_u32(20, RESERVED_TAG);
    pdu.put_u32(36, data_number);
    pdu.put_u32(40, offset);
    if let Some((status, residual)) = status {
        pdu.header[1] |= STATUS;
        pdu.header[3] = status;
        residual.put(&mut pdu);
    }
    pdu.data = data;
    pdu
}

/// Ready To Transfer.
pub fn ready_to_transfer(
    lun: u64,
    task_tag: u32,
    transfer_tag: u32,
    number: u32,
    offset: u32,
    length: u32,
) -> Pdu {
    let mut pdu = start(TargetOpcode::ReadyToTransfer, task_tag);
    put_lun(&mut pdu, lun);
    pdu.put_u32(20, transfer_tag);
    pdu.put_u32(36, number);
    pdu.put_u32(40, offset);
    pdu.put_u32(44, length);
    pdu
}

/// Task Management Function Response.
pub fn task_management_response(task_tag: u32, response: TaskManagementResponse) -> Pdu {
    let mut pdu = start(TargetOpcode::TaskManagement, task_tag);
    pdu.header[2] = response as u8;
    pdu
}

/// NOP-In: an echo, or a ping if `transfer_tag` is given.
pub fn nop_in(lun: u64, task_tag: u32, transfer_tag: u32, data: Bytes) -> Pdu {
    let mut pdu = start(TargetOpcode::NopIn, task_tag);
    put_lun(&mut pdu, lun);
    pdu.put_u32(20, transfer_tag);
    pdu.data = data;
    pdu
}

/// Text Response; it is the last one if `transfer_tag` is the reserved one.
pub fn text_response(task_tag: u32, transfer_tag: u32, more: bool, data: Bytes) -> Pdu {
    let mut pdu = start(TargetOpcode::Text, task_tag);
    pdu.header[1] = match (transfer_tag == RESERVED_TAG, more) {
        (true, _) => FINAL,
        (false, true) => CONTINUE,
        (false, false) => 0,
    };
    pdu.put_u32(20, transfer_tag);
    pdu.data = data;
    pdu
}

/// Logout Response: 0 closed, 1 no such connection, 2 recovery not supported.
pub fn logout_response(task_tag: u32, response: u8) -> Pdu {
    let mut pdu = start(TargetOpcode::Logout, task_tag);
    pdu.header[2] = response;
    // Time2Wait 0: come back at once; Time2Retain 0: no task survives.
    pdu
}

/// Reject, with the header of the offending PDU.
pub fn reject(reason: RejectReason, offending: &Pdu) -> Pdu {
    let mut pdu = start(TargetOpcode::Reject, RESERVED_TAG);
    pdu.header[2] = reason as u8;
    pdu.data = Bytes::copy_from_slice(&offending.header);
    pdu
}

/// Asynchronous Message that is not about a SCSI event.
pub fn async_message(event: AsyncEvent) -> Pdu {
    let mut pdu = start(TargetOpcode::AsyncMessage, RESERVED_TAG);
    match event {
        AsyncEvent::LogoutRequest { seconds } => {
            pdu.header[36] = 1;
            pdu.put_u16(42, seconds);
        }
        AsyncEvent::DropAll { wait, retain } => {
            pdu.header[36] = 3;
            pdu.put_u16(40, wait);
            pdu.put_u16(42, retain);
        }
    }
    pdu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_are_exact_and_flagged() {
        assert_eq!(Residual::between(512, 512), Residual::None);
        assert_eq!(Residual::between(10_000, 512), Residual::Underflow(9488));
        assert_eq!(Residual::between(200, 512), Residual::Overflow(312));
        let pdu = scsi_response(7, 2, &[0x70, 0], Residual::Underflow(5), 3);
        assert_eq!(pdu.header[1], 0x82);
        assert_eq!((pdu.u32_at(36), pdu.u32_at(44)), (3, 5));
        assert_eq!(pdu.data[..], [0, 2, 0x70, 0]);
    }

    #[test]
    fn status_rides_in_the_last_data_in() {
        let pdu = data_in(
            7,
            1,
            512,
            Bytes::from_static(b"abcd"),
            true,
            Some((0, Residual::None)),
        );
        assert_eq!(pdu.header[..2], [0x25, 0x81]);
        assert_eq!(pdu.u32_at(20), RESERVED_TAG);
        let pdu = data_in(7, 0, 0, Bytes::new(), false, None);
        assert_eq!(pdu.header[1], 0);
    }
}
