//! What is asked of a table, and what comes of it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::nexus::Nexus;

/// Persistent reservation type (SPC-4 table 68).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum ReservationType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly = 5,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Only registrants write, and each of them is a holder.
    WriteExclusiveAllRegistrants = 7,
    /// Only registrants read and write, and each of them is a holder.
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationType {
    /// The type with this code.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// Whether every registrant is a holder.
    pub const fn all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether registrants that are not the holder have the holder's access.
    pub const fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether reads are restricted too.
    pub const fn restricts_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// What a command does, as far as reservations care (SPC-4 tables 63 and 64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Allowed under every persistent reservation.
    Free,
    /// Reads the medium or its parameters.
    Read,
    /// Changes the medium or its parameters.
    Write,
}

/// What is asked for: the service actions of PERSISTENT RESERVE OUT, and what concerns SPC-2
/// reservations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// REGISTER; `check_key` is false for REGISTER AND IGNORE EXISTING KEY.
    Register {
        /// New key; zero unregisters.
        new_key: u64,
        /// Whether the given key must match the registered one.
        check_key: bool,
        /// APTPL: keep the table through a power loss.
        persist: bool,
    },
    /// RESERVE.
    Reserve(ReservationType),
    /// RELEASE.
    Release(ReservationType),
    /// CLEAR.
    Clear,
    /// PREEMPT; `abort` for PREEMPT AND ABORT.
    Preempt {
        /// Key whose registrations to remove.
        victim_key: u64,
        /// Type of the reservation to establish.
        kind: ReservationType,
        /// Whether the commands of the removed nexuses are aborted.
        abort: bool,
    },
    /// REGISTER AND MOVE.
    Move {
        /// The nexus that becomes registered and the holder.
        to: Nexus,
        /// Its key.
        new_key: u64,
        /// UNREG: remove the registration of who asks.
        unregister: bool,
        /// APTPL: keep the table through a power loss.
        persist: bool,
    },
    /// RESERVE(6) and RESERVE(10).
    ReserveUnit,
    /// RELEASE(6) and RELEASE(10).
    ReleaseUnit,
    /// The unit is reset: an SPC-2 reservation ends, whoever holds it.
    ResetUnit,
}

/// One request to change the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub nexus: Nexus,
    /// RESERVATION KEY of the parameter list.
    pub key: u64,
    /// What it asks for.
    pub action: Action,
}

/// What another nexus did to the one that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Notice {
    /// It cleared the reservation (2A/03).
    ReservationsPreempted,
    /// It ended the reservation of which the other is a registrant (2A/04).
    ReservationsReleased,
    /// It removed the other's registration (2A/05).
    RegistrationsPreempted,
    /// The cluster took the nexus for lost and ended its SPC-2 reservation (29/07).
    NexusLost,
}

/// What follows from a change, beside the notices that the table keeps.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Effects {
    /// Nexuses whose commands must be aborted before the request is answered.
    pub aborts: Vec<Nexus>,
}

/// Why a request changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// RESERVATION CONFLICT status.
    #[error("reservation conflict; nothing changed")]
    Conflict,
    /// 05/26/00.
    #[error("invalid field in the parameter list; nothing changed")]
    InvalidParameter,
    /// 05/26/04.
    #[error("the reservation has another type; nothing changed")]
    InvalidRelease,
    /// 05/55/04.
    #[error("no room for another registration; nothing changed")]
    OutOfResources,
}
