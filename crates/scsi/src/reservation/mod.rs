//! Reservations (SPC-4 5.12, SPC-2 5.5): where a unit's table lives, and its wire format.
//!
//! The table itself is [`holdfast_reservation`]'s. The command set talks to it through
//! [`Reservations`], which decides where the table lives and when a change counts.

pub mod wire;

use std::cell::RefCell;
use std::rc::Rc;

use futures::future::{LocalBoxFuture, ready};
use thiserror::Error;

use crate::nexus::Nexus;

pub use holdfast_reservation::{
    Access, Action, Effects, Notice, Refusal, Request, ReservationTable, ReservationType, Standing,
};

/// Why a request was not answered with effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReservationError {
    /// The table refuses it; nothing changed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The unit does not exist any more; nothing changed.
    #[error("the unit no longer exists; nothing changed")]
    Gone,
    /// Whether the table changed, or every node enforces the change, is not known.
    #[error("the change may have taken effect, and may not be enforced everywhere yet")]
    Undecided,
}

/// Where a unit's reservation table lives.
pub trait Reservations {
    /// The table as this node knows it. It may lag behind that of other nodes, but has every
    /// change that was made through this one.
    fn table(&self) -> Rc<ReservationTable>;

    /// After `true`, [`Reservations::table`] has every change that was answered anywhere before
    /// the call.
    fn refresh(&self) -> LocalBoxFuture<'static, bool>;

    /// Applies a request. When it resolves to `Ok`, the change is durable, every node that
    /// executes commands enforces it, and no access that it forbids can take effect any more.
    fn apply(&self, request: Request)
    -> LocalBoxFuture<'static, Result<Effects, ReservationError>>;

    /// A nexus has no session any more; the SPC-2 reservation that it may hold ends soon.
    fn nexus_lost(&self, nexus: &Nexus);

    /// Whether the table survives the loss of power of every node.
    fn survives_power_loss(&self) -> bool;
}

/// A table in the memory of this process.
#[derive(Default)]
pub struct LocalReservations {
    table: RefCell<Rc<ReservationTable>>,
}

impl LocalReservations {
    fn change(&self, request: &Request) -> Result<Effects, Refusal> {
        Rc::make_mut(&mut self.table.borrow_mut()).apply(request)
    }
}

impl Reservations for LocalReservations {
    fn table(&self) -> Rc<ReservationTable> {
        self.table.borrow().clone()
    }

    fn refresh(&self) -> LocalBoxFuture<'static, bool> {
        Box::pin(ready(true))
    }

    fn apply(
        &self,
        request: Request,
    ) -> LocalBoxFuture<'static, Result<Effects, ReservationError>> {
        Box::pin(ready(self.change(&request).map_err(Into::into)))
    }

    fn nexus_lost(&self, nexus: &Nexus) {
        if self.table().unit_holder() == Some(nexus) {
            let release = Request {
                nexus: nexus.clone(),
                key: 0,
                action: Action::ReleaseUnit,
            };
            // The holder's own release is not refused.
            let _ = self.change(&release);
        }
    }

    fn survives_power_loss(&self) -> bool {
        false
    }
}
