//! Reservations (SPC-4 5.12, SPC-2 5.5): who may access a unit.
//!
//! [`ReservationTable`] is a pure, deterministic state machine: the same requests in the same
//! order give the same table and effects on every node, so it can be replicated. What always
//! holds:
//!
//! * the holder of a reservation is registered;
//! * a refused request changes nothing, the revision included;
//! * the generation grows with REGISTER, REGISTER AND MOVE, CLEAR and PREEMPT and no other
//!   action; the revision grows with every change;
//! * registrations and an SPC-2 reservation (RESERVE) exclude each other;
//! * a registration's number names it for ever: none is given twice, also not to the same nexus.
//!
//! An access carries the [`Standing`] that its nexus had when the command arrived. So whoever
//! executes it, on whichever node and however late, can tell by the table of that moment whether
//! it may still take effect.
#![forbid(unsafe_code)]

mod nexus;
mod request;
mod table;
#[cfg(test)]
mod tests;

pub use nexus::Nexus;
pub use request::{Access, Action, Effects, Notice, Refusal, Request, ReservationType};
pub use table::{ABORTED_MAX, NOTICES_MAX, REGISTRATIONS_MAX, ReservationTable, Standing};
