//! The logical unit: the state that the nexuses of one target on one node share.
//!
//! Unit attentions are kept for attached nexuses and for absent registrants; an SPC-2 reservation
//! ends with its holder's last attachment, a persistent one outlives it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use crate::attachment::{Attachment, Link};
use crate::device::BlockDevice;
use crate::mode::ModeState;
use crate::nexus::{Attention, Nexus};
use crate::ports::TargetPort;
use crate::reservation::Reservations;

/// Aborts commands of other nexuses; the transport implements it for PREEMPT AND ABORT.
pub trait TaskAborter {
    /// Resolves when no command that these nexuses had outstanding at the call can take effect
    /// any more.
    fn abort(&self, nexuses: Vec<Nexus>) -> LocalBoxFuture<'static, ()>;
}

/// Nexuses above which absent ones that are no longer registered are forgotten.
const NEXUSES_REMEMBERED_MAX: usize = 1024;

#[derive(Default)]
struct NexusState {
    attachments: u32,
    attentions: Vec<Attention>,
}

impl NexusState {
    fn establish(&mut self, attention: Attention) {
        if let Err(at) = self.attentions.binary_search(&attention) {
            self.attentions.insert(at, attention);
        }
    }
}

#[derive(Default)]
struct Shared {
    nexuses: BTreeMap<Nexus, NexusState>,
    simple_reservation: Option<Nexus>,
    mode: ModeState,
    capacity_bytes: Option<u64>,
}

/// One logical unit as this node serves it.
pub struct LogicalUnit {
    reservations: Rc<dyn Reservations>,
    shared: RefCell<Shared>,
    aborter: RefCell<Option<Rc<dyn TaskAborter>>>,
}

impl LogicalUnit {
    /// A unit with this reservation table.
    pub fn new(reservations: Rc<dyn Reservations>) -> Rc<Self> {
        Rc::new(Self {
            reservations,
            shared: RefCell::default(),
            aborter: RefCell::new(None),
        })
    }

    /// Sets who aborts the commands of preempted nexuses.
    pub fn set_aborter(&self, aborter: Rc<dyn TaskAborter>) {
        *self.aborter.borrow_mut() = Some(aborter);
    }

    /// Attaches a nexus. Its first command will report a unit attention: 29/07 if the unit knows
    /// the nexus, else 29/00.
    pub fn attach(
        self: &Rc<Self>,
        nexus: Nexus,
        device: Rc<dyn BlockDevice>,
        port: TargetPort,
    ) -> Attachment {
        let mut shared = self.shared.borrow_mut();
        let registered = self.reservations.table().key_of(&nexus).is_some();
        let known = registered || shared.nexuses.contains_key(&nexus);
        if shared.nexuses.len() > NEXUSES_REMEMBERED_MAX {
            let table = self.reservations.table();
            shared
                .nexuses
                .retain(|absent, state| state.attachments > 0 || table.key_of(absent).is_some());
        }
        let state = shared.nexuses.entry(nexus.clone()).or_default();
        state.attachments += 1;
        state.establish(if known {
            Attention::NexusLoss
        } else {
            Attention::PowerOn
        });
        drop(shared);
        let unit = self.clone();
        Attachment::new(Link {
            unit,
            nexus,
            device,
            port,
        })
    }

    /// LOGICAL UNIT RESET and target reset, once every command has been aborted (SAM-5 6.3.3):
    /// SPC-2 reservations and mode pages return to their defaults, and every nexus, that of the
    /// requester included, gets 29/03. Persistent reservations stay.
    pub fn reset(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.simple_reservation = None;
        shared.mode = ModeState::default();
        for state in shared.nexuses.values_mut() {
            state.establish(Attention::Reset);
        }
    }

    /// Establishes a unit attention for every nexus but one.
    pub fn establish(&self, attention: Attention, except: Option<&Nexus>) {
        for (nexus, state) in &mut self.shared.borrow_mut().nexuses {
            if Some(nexus) != except {
                state.establish(attention);
            }
        }
    }

    pub(crate) fn establish_for(&self, attentions: Vec<(Nexus, Attention)>) {
        let mut shared = self.shared.borrow_mut();
        for (nexus, attention) in attentions {
            if let Some(state) = shared.nexuses.get_mut(&nexus) {
                state.establish(attention);
            }
        }
    }

    pub(crate) fn reservations(&self) -> &Rc<dyn Reservations> {
        &self.reservations
    }

    pub(crate) fn aborter(&self) -> Option<Rc<dyn TaskAborter>> {
        self.aborter.borrow().clone()
    }

    pub(crate) fn mode(&self) -> ModeState {
        self.shared.borrow().mode
    }

    pub(crate) fn set_mode(&self, mode: ModeState, changer: &Nexus) {
        let changed = std::mem::replace(&mut self.shared.borrow_mut().mode, mode) != mode;
        if changed {
            self.establish(Attention::ModeParametersChanged, Some(changer));
        }
    }

    pub(crate) fn detach(&self, nexus: &Nexus) {
        let mut shared = self.shared.borrow_mut();
        let Some(state) = shared.nexuses.get_mut(nexus) else {
            return;
        };
        state.attachments -= 1;
        if state.attachments > 0 {
            return;
        }
        // A registrant must find the attentions of its absence; strangers would only pile up.
        if self.reservations.table().key_of(nexus).is_none() {
            shared.nexuses.remove(nexus);
        }
        if shared.simple_reservation.as_ref() == Some(nexus) {
            shared.simple_reservation = None;
        }
    }

    pub(crate) fn note_capacity(&self, capacity_bytes: u64) {
        let mut shared = self.shared.borrow_mut();
        let before = shared.capacity_bytes.replace(capacity_bytes);
        if before.is_some_and(|before| before != capacity_bytes) {
            for state in shared.nexuses.values_mut() {
                state.establish(Attention::CapacityChanged);
            }
        }
    }

    pub(crate) fn take_attention(&self, nexus: &Nexus) -> Option<Attention> {
        let mut shared = self.shared.borrow_mut();
        let state = shared.nexuses.get_mut(nexus)?;
        if state.attentions.is_empty() {
            None
        } else {
            Some(state.attentions.remove(0))
        }
    }

    pub(crate) fn simple_conflict(&self, nexus: &Nexus) -> bool {
        self.shared
            .borrow()
            .simple_reservation
            .as_ref()
            .is_some_and(|holder| holder != nexus)
    }

    /// RESERVE (true) or RELEASE (false), where no conflict stands in the way.
    pub(crate) fn reserve_simple(&self, nexus: &Nexus, reserve: bool) {
        let holder = &mut self.shared.borrow_mut().simple_reservation;
        if reserve {
            *holder = Some(nexus.clone());
        } else if holder.as_ref() == Some(nexus) {
            *holder = None;
        }
    }
}
