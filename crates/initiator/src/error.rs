//! What can go wrong between this initiator and a target, typed.
//!
//! Each variant says what is known about the command that got it: *nothing happened* (the target
//! refused it or never saw it) or *unknown* (a write may or may not have taken effect, now or
//! later, until the target has fenced the session it came from).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a login, a command or a whole session failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No TCP connection. Nothing happened.
    #[error("cannot connect to portal {portal}: {kind}")]
    Connect {
        /// The portal that was tried.
        portal: SocketAddr,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// Connection and login did not finish in time. Nothing happened.
    #[error("login at portal {portal} did not finish within {limit:?}")]
    LoginTimeout {
        /// The portal that was tried.
        portal: SocketAddr,
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// The target refused the login (RFC 7143 section 11.13.5). Nothing happened.
    #[error("login refused, status {class:02x}{detail:02x}: {meaning}")]
    LoginRefused {
        /// Status class: 2 initiator error, 3 target error.
        class: u8,
        /// Status detail within the class.
        detail: u8,
        /// The standard's words for it.
        meaning: &'static str,
    },
    /// The target did not accept our name and secret, or wants some and we have none. Nothing
    /// happened.
    #[error("the target did not accept the initiator's CHAP user and secret (status 0201)")]
    AuthenticationFailed,
    /// The target could not prove that it knows its own secret (mutual CHAP). Nothing happened,
    /// no command was sent to it.
    #[error("the target did not prove its identity: {reason}")]
    TargetNotProven {
        /// What was missing or wrong.
        reason: &'static str,
    },
    /// The login options contradict each other. Nothing was sent.
    #[error("unusable login options: {reason}")]
    BadOptions {
        /// Which rule they break.
        reason: &'static str,
    },
    /// The login was redirected too often or to an address that does not resolve. Nothing
    /// happened.
    #[error("cannot follow the target's redirection to \"{address}\"")]
    BadRedirect {
        /// The address that the target named.
        address: String,
    },
    /// The target broke the protocol; the session is closed. Outcome unknown.
    #[error("the target broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The session is gone. Outcome unknown.
    #[error("the session is lost: {reason}")]
    ConnectionLost {
        /// How it was lost.
        reason: LostReason,
    },
    /// The target rejected the PDU (RFC 7143 section 11.17). Nothing happened.
    #[error("the target rejected the request, reason {reason:#04x}")]
    Rejected {
        /// The reject reason code.
        reason: u8,
    },
    /// The command ended with CHECK CONDITION. What happened follows from the sense key.
    #[error("check condition {key:02x}/{asc:02x}/{ascq:02x}: {}", sense_meaning(*key, *asc, *ascq))]
    CheckCondition {
        /// Sense key.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Additional sense code qualifier.
        ascq: u8,
    },
    /// Status BUSY or TASK SET FULL: try again later. Nothing happened.
    #[error("the target is busy (status {status:#04x})")]
    Busy {
        /// The SCSI status, 0x08 or 0x28.
        status: u8,
    },
    /// Status RESERVATION CONFLICT: another initiator holds the disk. Nothing happened.
    #[error("reservation conflict: another initiator holds the disk")]
    ReservationConflict,
    /// The task was aborted by another task management function. Outcome unknown.
    #[error("the command was aborted by the target")]
    TaskAborted,
    /// A SCSI status that this initiator does not expect. Outcome unknown.
    #[error("unexpected SCSI status {status:#04x}")]
    UnexpectedStatus {
        /// The SCSI status byte.
        status: u8,
    },
    /// The iSCSI layer of the target failed the command (response other than 0). Outcome unknown.
    #[error("the target failed the command, iSCSI response {response:#04x}")]
    TargetFailure {
        /// The response code.
        response: u8,
    },
    /// GOOD status, but fewer bytes moved than were asked for. The bytes that did move count.
    #[error("only {transferred} of {expected} bytes were transferred")]
    ShortTransfer {
        /// Bytes asked for.
        expected: u32,
        /// Bytes moved.
        transferred: u32,
    },
    /// A command's answer does not have the layout its standard demands. Nothing was changed.
    #[error("malformed answer to {command}")]
    MalformedAnswer {
        /// The SCSI command.
        command: &'static str,
    },
    /// An I/O that is not aligned to blocks or leaves the disk. Nothing was sent.
    #[error(
        "{length} bytes at offset {offset} do not fit a disk of {capacity} bytes \
             with {block_length}-byte blocks"
    )]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes on the disk.
        capacity: u64,
        /// Bytes of a logical block.
        block_length: u32,
    },
    /// A portal showed another disk than the one that was opened. Nothing was written to it.
    #[error("portal {portal} presents a different disk under the same target name and LUN")]
    WrongDisk {
        /// The portal with the other disk.
        portal: SocketAddr,
    },
    /// No portal gave a usable path within the limit. Outcome unknown for the I/O that waited.
    #[error("no usable path within {waited:?}; last failure: {last}")]
    AllPathsDown {
        /// How long the I/O waited.
        waited: Duration,
        /// The last failure of any portal.
        last: Box<Error>,
    },
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// The target closed the connection.
    #[error("the target closed the connection")]
    ClosedByTarget,
    /// The operating system reported an error.
    #[error("{0}")]
    Io(io::ErrorKind),
    /// The target announced that it drops the connection (asynchronous event 2 or 3).
    #[error("the target announced that it drops the connection")]
    Announced,
    /// This side logged out or dropped the session.
    #[error("the session was closed by this side")]
    ClosedHere,
    /// This side gave the session up because a command stayed without an answer.
    #[error("a command stayed without an answer")]
    Silent,
}

/// A rule of RFC 7143 that the target broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// An opcode that no target may send, or not in this phase.
    #[error("unexpected opcode {0:#04x}")]
    Opcode(u8),
    /// A data segment beyond the length we declared.
    #[error("data segment of {length} bytes exceeds the declared {limit}")]
    DataSegmentTooLong {
        /// Its length in bytes.
        length: u32,
        /// What we declared.
        limit: u32,
    },
    /// CRC32C over the header does not match.
    #[error("header digest mismatch")]
    HeaderDigest,
    /// CRC32C over the data segment does not match.
    #[error("data digest mismatch")]
    DataDigest,
    /// An initiator task tag that belongs to no outstanding task.
    #[error("unknown task tag {0:#010x}")]
    UnknownTask(u32),
    /// A PDU of the wrong kind for its task.
    #[error("opcode {opcode:#04x} does not answer task {task:#010x}")]
    WrongKind {
        /// The PDU's opcode.
        opcode: u8,
        /// Its task tag.
        task: u32,
    },
    /// StatSN skipped or repeated (section 4.2.2.2).
    #[error("StatSN {found} where {expected} was due")]
    StatSn {
        /// The number that was due.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// DataSN or R2TSN skipped or repeated (section 4.2.2.3).
    #[error("DataSN or R2TSN {found} where {expected} was due")]
    DataSn {
        /// The number that was due.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// An offset or length outside the command's buffer, or out of order.
    #[error("data range {offset}+{length} does not fit the command")]
    DataRange {
        /// First byte.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// GOOD status, but data and residual do not add up to the expected length.
    #[error("{received} bytes and a residual of {residual} do not make {expected}")]
    Residual {
        /// Expected data transfer length.
        expected: u32,
        /// Bytes that came.
        received: u32,
        /// Underflow that the target reported.
        residual: u32,
    },
    /// A login answer that contradicts the offer or the stage.
    #[error("login: {0}")]
    Login(&'static str),
    /// Login or text keys that do not parse.
    #[error("malformed text keys")]
    Text,
}

impl Error {
    /// Whether the session that returned this is gone, so that another must be made.
    pub fn is_session_lost(&self) -> bool {
        matches!(self, Self::ConnectionLost { .. } | Self::Protocol(_))
    }

    /// Whether the sense key is UNIT ATTENTION: the command was not executed, and the next one
    /// will be.
    pub fn is_unit_attention(&self) -> bool {
        matches!(self, Self::CheckCondition { key: 0x06, .. })
    }
}

/// The standard's words for a login status (RFC 7143 section 11.13.5).
pub(crate) fn login_status_meaning(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 0) => "initiator error",
        (2, 1) => "authentication failed",
        (2, 2) => "not allowed to use this target",
        (2, 3) => "target not found",
        (2, 4) => "target removed",
        (2, 5) => "unsupported version",
        (2, 6) => "too many connections",
        (2, 7) => "missing parameter",
        (2, 8) => "cannot be included in the session",
        (2, 9) => "session type not supported",
        (2, 0x0a) => "session does not exist",
        (2, 0x0b) => "invalid request during login",
        (2, _) => "unknown initiator error",
        (3, 0) => "target error",
        (3, 1) => "service unavailable",
        (3, 2) => "out of resources",
        (3, _) => "unknown target error",
        _ => "unknown status class",
    }
}

fn sense_meaning(key: u8, asc: u8, ascq: u8) -> &'static str {
    match (key, asc, ascq) {
        (_, 0x04, 0x01) => "becoming ready",
        (_, 0x04, 0x0a) => "path in transition",
        (_, 0x04, 0x0b) => "path on standby",
        (_, 0x04, 0x0c) => "path unavailable",
        (_, 0x0c, _) => "write error",
        (_, 0x11, _) => "unrecovered read error",
        (_, 0x1d, _) => "miscompare",
        (_, 0x20, _) => "command not supported",
        (_, 0x21, _) => "block address out of range",
        (_, 0x24, _) => "invalid field in command",
        (_, 0x25, _) => "no such logical unit",
        (_, 0x26, _) => "invalid parameter",
        (_, 0x27, 0x07) => "no space left",
        (_, 0x27, _) => "write protected",
        (_, 0x44, _) => "internal target failure",
        (0x02, ..) => "not ready",
        (0x03, ..) => "medium error",
        (0x04, ..) => "hardware error",
        (0x05, ..) => "illegal request",
        (0x06, ..) => "unit attention",
        (0x07, ..) => "data protect",
        (0x0b, ..) => "aborted command",
        _ => "see the SCSI standard",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_code_and_its_meaning() {
        let refused = Error::LoginRefused {
            class: 3,
            detail: 1,
            meaning: login_status_meaning(3, 1),
        };
        assert_eq!(
            refused.to_string(),
            "login refused, status 0301: service unavailable"
        );
        let full = Error::CheckCondition {
            key: 7,
            asc: 0x27,
            ascq: 7,
        };
        assert_eq!(full.to_string(), "check condition 07/27/07: no space left");
    }

    #[test]
    fn only_a_lost_session_or_a_broken_protocol_ends_the_session() {
        assert!(
            Error::ConnectionLost {
                reason: LostReason::Announced
            }
            .is_session_lost()
        );
        assert!(Error::Protocol(ProtocolError::HeaderDigest).is_session_lost());
        assert!(!Error::Busy { status: 8 }.is_session_lost());
        assert!(
            !Error::CheckCondition {
                key: 6,
                asc: 0x29,
                ascq: 0
            }
            .is_session_lost()
        );
    }
}
