//! The logical unit: the state that the nexuses of one target on one node share.
//!
//! Unit attentions are kept for attached nexuses and for absent registrants. What another nexus
//! did to a reservation is read from the table's notices before each command, so it is reported
//! wherever the nexus is logged in. An SPC-2 reservation ends with its holder's last attachment,
//! a persistent one outlives it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use holdfast_path::Path;

use crate::attachment::{Attachment, Link};
use crate::copy::CopyStatus;
use crate::device::BlockDevice;
use crate::mode::ModeState;
use crate::nexus::{Attention, Nexus};
use crate::ports::TargetPort;
use crate::reservation::{Action, Request, Reservations};

/// Aborts commands of other nexuses; the transport implements it for PREEMPT AND ABORT.
pub trait TaskAborter {
    /// Resolves when no command that these nexuses had outstanding at the call can take effect
    /// any more.
    fn abort(&self, nexuses: Vec<Nexus>) -> LocalBoxFuture<'static, ()>;
}

/// Copies of a nexus whose end is remembered.
const COPIES_REMEMBERED_MAX: usize = 8;

/// Nexuses above which absent ones that are no longer registered are forgotten.
const NEXUSES_REMEMBERED_MAX: usize = 1024;

#[derive(Default)]
struct NexusState {
    attachments: u32,
    attentions: Vec<Attention>,
    /// How its last copies ended, oldest first.
    copies: VecDeque<CopyStatus>,
}

impl NexusState {
    fn establish(&mut self, attention: Attention) {
        if let Err(at) = self.attentions.binary_search(&attention) {
            self.attentions.insert(at, attention);
        }
    }
}

/// See [`LogicalUnit::changes_access`].
pub(crate) struct ChangingAccess {
    unit: Rc<LogicalUnit>,
    nexus: Nexus,
}

impl Drop for ChangingAccess {
    fn drop(&mut self) {
        let changing = &mut self.unit.shared.borrow_mut().changing_access;
        if let Some(at) = changing.iter().position(|nexus| *nexus == self.nexus) {
            changing.swap_remove(at);
        }
    }
}

#[derive(Default)]
struct Shared {
    nexuses: BTreeMap<Nexus, NexusState>,
    /// Revision of the reservation table up to which its notices have been passed on.
    heard: u64,
    /// Resets of the unit that have been carried out here.
    resets: u64,
    mode: ModeState,
    capacity_bytes: Option<u64>,
    /// What the port groups' states were when they were looked at last.
    access: Option<u64>,
    /// Nexuses that are having the states changed, once for each of their commands.
    changing_access: Vec<Nexus>,
}

impl Shared {
    fn reset(&mut self) {
        self.mode = ModeState::default();
        for state in self.nexuses.values_mut() {
            state.establish(Attention::Reset);
        }
    }
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
        let table = reservations.table();
        let shared = Shared {
            heard: table.revision(),
            resets: table.resets(),
            ..Shared::default()
        };
        Rc::new(Self {
            reservations,
            shared: RefCell::new(shared),
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
        path: Rc<Path>,
    ) -> Attachment {
        self.hear();
        self.note_access(port.groups.fingerprint());
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
            path,
        })
    }

    /// LOGICAL UNIT RESET and target reset, once every command has been aborted (SAM-5 6.3.3):
    /// SPC-2 reservations and mode pages return to their defaults, and every nexus, that of the
    /// requester included, gets 29/03, on every node. Persistent reservations stay.
    pub async fn reset(&self, nexus: &Nexus) {
        let request = Request {
            nexus: nexus.clone(),
            key: 0,
            action: Action::ResetUnit,
        };
        match self.reservations.apply(request).await {
            Ok(_) => self.hear(),
            // The other nodes do not hear of it, or later. Here it is done.
            Err(_) => self.shared.borrow_mut().reset(),
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

    /// Establishes what the reservation table tells nexuses since it was looked at last.
    fn hear(&self) {
        let table = self.reservations.table();
        let mut shared = self.shared.borrow_mut();
        let since = std::mem::replace(&mut shared.heard, table.revision());
        if since == table.revision() {
            return;
        }
        if std::mem::replace(&mut shared.resets, table.resets()) != table.resets() {
            shared.reset();
        }
        match table.notices_since(since) {
            Some(notices) => {
                for (nexus, notice) in notices {
                    if let Some(state) = shared.nexuses.get_mut(nexus) {
                        state.establish(notice.into());
                    }
                }
            }
            // Who was meant is forgotten: a host that looks again for nothing is not harmed.
            None => {
                for state in shared.nexuses.values_mut() {
                    state.establish(Attention::ReservationsPreempted);
                }
            }
        }
    }

    pub(crate) fn reservations(&self) -> &Rc<dyn Reservations> {
        &self.reservations
    }

    pub(crate) fn aborter(&self) -> Option<Rc<dyn TaskAborter>> {
        self.aborter.borrow().clone()
    }

    pub(crate) fn note_copy(&self, nexus: &Nexus, status: CopyStatus) {
        if let Some(state) = self.shared.borrow_mut().nexuses.get_mut(nexus) {
            state.copies.retain(|earlier| earlier.list != status.list);
            if state.copies.len() == COPIES_REMEMBERED_MAX {
                state.copies.pop_front();
            }
            state.copies.push_back(status);
        }
    }

    pub(crate) fn copy_status(&self, nexus: &Nexus, list: u8) -> Option<CopyStatus> {
        let shared = self.shared.borrow();
        let mut copies = shared.nexuses.get(nexus)?.copies.iter();
        copies.find(|copy| copy.list == list).copied()
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
        drop(shared);
        self.reservations.nexus_lost(nexus);
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

    /// Tells every nexus of a change of the port groups' states, save those that ask for one.
    pub(crate) fn note_access(&self, fingerprint: u64) {
        let mut shared = self.shared.borrow_mut();
        let before = shared.access.replace(fingerprint);
        if before.is_none_or(|before| before == fingerprint) {
            return;
        }
        let Shared {
            nexuses,
            changing_access,
            ..
        } = &mut *shared;
        for (nexus, state) in nexuses {
            if !changing_access.contains(nexus) {
                state.establish(Attention::AccessStateChanged);
            }
        }
    }

    /// The nexus asks for another state of the port groups, for as long as the answer lives.
    pub(crate) fn changes_access(self: &Rc<Self>, nexus: &Nexus) -> ChangingAccess {
        self.shared.borrow_mut().changing_access.push(nexus.clone());
        ChangingAccess {
            unit: self.clone(),
            nexus: nexus.clone(),
        }
    }

    pub(crate) fn take_attention(&self, nexus: &Nexus) -> Option<Attention> {
        self.hear();
        let mut shared = self.shared.borrow_mut();
        let state = shared.nexuses.get_mut(nexus)?;
        if state.attentions.is_empty() {
            None
        } else {
            Some(state.attentions.remove(0))
        }
    }
}
