//! Persistent reservations (SPC-4 5.12): who may access the unit.
//!
//! [`ReservationTable`] is a deterministic state machine: the same requests in the same order
//! give the same table and effects on every node, so it can be replicated. The command set talks
//! to it through [`Reservations`], which decides where the table lives and when a change counts.
//! What always holds:
//!
//! * the holder of a reservation is registered;
//! * a refused request changes nothing;
//! * the generation grows with REGISTER, CLEAR, PREEMPT and no other action.

mod table;
pub mod wire;

use std::cell::RefCell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use thiserror::Error;

pub use table::{REGISTRATIONS_MAX, ReservationTable};

use crate::nexus::{Attention, Nexus};

/// Persistent reservation type (SPC-4 table 68).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Allowed under every reservation.
    Free,
    /// Reads the medium or its parameters.
    Read,
    /// Changes the medium or its parameters.
    Write,
}

/// What a PERSISTENT RESERVE OUT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// One request to change the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub nexus: Nexus,
    /// RESERVATION KEY of the parameter list.
    pub key: u64,
    /// What it asks for.
    pub action: Action,
}

/// What follows from a change, for the unit to carry out.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Effects {
    /// Unit attentions to establish.
    pub attentions: Vec<(Nexus, Attention)>,
    /// Nexuses whose commands must be aborted before the request is answered.
    pub aborts: Vec<Nexus>,
}

/// Why a request changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
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
    /// The change could not be recorded just now: BUSY status.
    #[error("the reservation table cannot be changed now; nothing changed")]
    Busy,
}

/// Where a unit's reservation table lives.
pub trait Reservations {
    /// The committed table.
    fn table(&self) -> Rc<ReservationTable>;
    /// Applies a request; when it resolves to `Ok` every node enforces the new table.
    fn apply(&self, request: Request) -> LocalBoxFuture<'static, Result<Effects, Refusal>>;
    /// Whether the table survives the loss of power of every node.
    fn survives_power_loss(&self) -> bool;
}

/// A table in the memory of this process.
#[derive(Default)]
pub struct LocalReservations {
    table: RefCell<Rc<ReservationTable>>,
}

impl Reservations for LocalReservations {
    fn table(&self) -> Rc<ReservationTable> {
        self.table.borrow().clone()
    }

    fn apply(&self, request: Request) -> LocalBoxFuture<'static, Result<Effects, Refusal>> {
        let outcome = Rc::make_mut(&mut self.table.borrow_mut()).apply(&request);
        Box::pin(std::future::ready(outcome))
    }

    fn survives_power_loss(&self) -> bool {
        false
    }
}
