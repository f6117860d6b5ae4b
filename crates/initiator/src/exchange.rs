//! What a session's engine is asked, and what it gives back.

use bytes::Bytes;

use crate::pdu::Residual;
use crate::scsi::Command;

/// What a submitter gets back with its answer.
pub(crate) trait Token {
    /// Nobody waits any longer: if the command was not sent yet, it never will be.
    fn is_abandoned(&self) -> bool;
}

/// Something to ask the target.
#[derive(Debug)]
pub(crate) enum Request {
    Scsi(Command),
    /// Text keys; `resume` goes on with an answer that was too long for one PDU.
    Text {
        text: Bytes,
        resume: Option<Resume>,
    },
    Ping,
    /// Reason 0: close the session.
    Logout,
}

/// Where a long text answer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resume {
    pub(crate) transfer: u32,
    pub(crate) lun: [u8; 8],
}

/// What a target answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Scsi { data: Bytes, residual: Residual },
    Text { data: Bytes, resume: Option<Resume> },
    Pong,
    LoggedOut { response: u8 },
}

/// Something the target says on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Log out within so many seconds.
    LogoutRequested { seconds: u16 },
    /// The connection is about to be dropped.
    Dropping,
}
