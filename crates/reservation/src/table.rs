//! The reservation table and its transitions.

use imbl::shared_ptr::RcK;
use imbl::{GenericOrdMap, GenericOrdSet, GenericVector};
use serde::{Deserialize, Serialize};

use crate::nexus::Nexus;
use crate::request::{Access, Action, Effects, Notice, Refusal, Request, ReservationType};

/// Most nexuses that may be registered with one unit.
pub const REGISTRATIONS_MAX: usize = 512;

/// Notices that a table keeps: whoever looks at it after every change misses none, as one change
/// makes fewer.
pub const NOTICES_MAX: usize = 1024;

/// Numbers of aborted registrations that a table keeps. A command of an older one has long
/// ended: an initiator waits for a minute, not for so many PREEMPT AND ABORT.
pub const ABORTED_MAX: usize = 4096;

const _: () = assert!(NOTICES_MAX >= 2 * REGISTRATIONS_MAX);

/// What a nexus was to the table when its command arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// Number of its registration, or of its SPC-2 reservation; zero for a stranger.
    pub number: u64,
    /// Revision of the table that said so. Whoever has an older table cannot judge yet.
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registration {
    key: u64,
    number: u64,
}

/// Registrations and the reservation of one unit. A clone shares everything, and a change copies
/// what it changes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReservationTable {
    revision: u64,
    generation: u32,
    persist: bool,
    last_number: u64,
    registrations: GenericOrdMap<Nexus, Registration, RcK>,
    reservation: Option<(ReservationType, Nexus)>,
    /// SPC-2 reservation: its holder, and its number.
    unit: Option<(Nexus, u64)>,
    aborted: GenericOrdSet<u64, RcK>,
    resets: u64,
    notices: GenericVector<(u64, Nexus, Notice), RcK>,
    /// Revision of the newest notice that has been forgotten.
    forgotten: u64,
}

/// What a request changes about the table as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Nothing at all.
    None,
    /// The table, but not PRGENERATION.
    Reservation,
    /// PRGENERATION too.
    Generation,
}

type Applied = Result<(Change, Effects), Refusal>;

impl ReservationTable {
    /// Counts the changes of the table.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// PRGENERATION.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Every registered nexus and its key.
    pub fn registrations(&self) -> impl Iterator<Item = (&Nexus, u64)> {
        self.registrations
            .iter()
            .map(|(nexus, one)| (nexus, one.key))
    }

    /// Registrations, and what is remembered of earlier ones: what the table's size depends on.
    pub fn entries(&self) -> usize {
        self.registrations.len() + self.aborted.len() + self.notices.len()
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.registrations.is_empty()
    }

    /// Key of a nexus.
    pub fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrations.get(nexus).map(|one| one.key)
    }

    /// Type of the persistent reservation, if there is one.
    pub fn reservation(&self) -> Option<ReservationType> {
        self.reservation.as_ref().map(|(kind, _)| *kind)
    }

    /// Key shown by READ RESERVATION: the holder's, or zero if all registrants hold.
    pub fn reservation_key(&self) -> u64 {
        match &self.reservation {
            Some((kind, holder)) if !kind.all_registrants() => self.key_of(holder).unwrap_or(0),
            Some(_) | None => 0,
        }
    }

    /// Whether the last REGISTER asked to keep the table through a power loss (APTPL).
    pub fn persist(&self) -> bool {
        self.persist
    }

    /// Whether `nexus` holds the persistent reservation.
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            Some((kind, _)) if kind.all_registrants() => self.registrations.contains_key(nexus),
            Some((_, holder)) => holder == nexus,
            None => false,
        }
    }

    /// Holder of the SPC-2 reservation.
    pub fn unit_holder(&self) -> Option<&Nexus> {
        self.unit.as_ref().map(|(holder, _)| holder)
    }

    /// Counts the resets of the unit, which every node has to carry out.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// What a nexus is to the table now.
    pub fn standing(&self, nexus: &Nexus) -> Standing {
        let registered = self.registrations.get(nexus).map(|one| one.number);
        let holds = self.unit.as_ref().filter(|(holder, _)| holder == nexus);
        Standing {
            number: registered.or(holds.map(|held| held.1)).unwrap_or(0),
            revision: self.revision,
        }
    }

    /// Whether a command that arrived with this standing may run now. SPC-2 reservations
    /// restrict every access that is not [`Access::Free`].
    pub fn admits(&self, standing: Standing, access: Access) -> bool {
        if self.aborted.contains(&standing.number) {
            return false;
        }
        if access == Access::Free {
            return true;
        }
        if let Some((_, number)) = &self.unit {
            return *number == standing.number;
        }
        let Some((kind, holder)) = &self.reservation else {
            return true;
        };
        if access == Access::Read && !kind.restricts_reads() {
            return true;
        }
        let is = |one: &Registration| one.number == standing.number;
        if kind.admits_registrants() {
            self.registrations.values().any(is)
        } else {
            self.registrations.get(holder).is_some_and(is)
        }
    }

    /// Whether another nexus holds an SPC-2 reservation.
    pub fn unit_excludes(&self, standing: Standing) -> bool {
        self.unit
            .as_ref()
            .is_some_and(|held| held.1 != standing.number)
    }

    /// Whether `nexus` may run a command of this kind now.
    pub fn allows(&self, nexus: &Nexus, access: Access) -> bool {
        self.admits(self.standing(nexus), access)
    }

    /// The notices of changes after `revision`, oldest first; `None` if some are forgotten.
    pub fn notices_since(&self, revision: u64) -> Option<impl Iterator<Item = (&Nexus, Notice)>> {
        if revision < self.forgotten {
            return None;
        }
        let later = self
            .notices
            .iter()
            .filter(move |(made, _, _)| *made > revision);
        Some(later.map(|(_, nexus, notice)| (nexus, *notice)))
    }

    /// Applies one request; a refusal leaves the table as it was.
    pub fn apply(&mut self, request: &Request) -> Result<Effects, Refusal> {
        let Request { nexus, key, action } = request;
        let persistent = !matches!(
            action,
            Action::ReserveUnit | Action::ReleaseUnit | Action::ResetUnit
        );
        // SPC-2 5.5.1: while one kind of reservation exists the other conflicts.
        if persistent && self.unit.is_some() {
            return Err(Refusal::Conflict);
        }
        // Notices bear the revision that the request is about to make.
        let (change, effects) = match action {
            Action::Register {
                new_key,
                check_key,
                persist,
            } => self.register(nexus, check_key.then_some(*key), *new_key, *persist),
            Action::Reserve(kind) => self.reserve(nexus, *key, *kind),
            Action::Release(kind) => self.release(nexus, *key, *kind),
            Action::Clear => self.clear(nexus, *key),
            Action::Preempt {
                victim_key,
                kind,
                abort,
            } => self.preempt(nexus, *key, *victim_key, *kind, *abort),
            Action::Move {
                to,
                new_key,
                unregister,
                persist,
            } => self.move_to(nexus, *key, to, *new_key, *unregister, *persist),
            Action::ReserveUnit => self.reserve_unit(nexus),
            Action::ReleaseUnit => Ok((self.release_unit(nexus)?, Effects::default())),
            Action::ResetUnit => {
                self.unit = None;
                self.resets += 1;
                Ok((Change::Reservation, Effects::default()))
            }
        }?;
        match change {
            Change::None => {}
            Change::Reservation => self.revision += 1,
            Change::Generation => {
                self.revision += 1;
                self.generation = self.generation.wrapping_add(1);
            }
        }
        Ok(effects)
    }

    /// The cluster takes every nexus of a target port for lost: an SPC-2 reservation of one of
    /// them ends (SPC-2 5.5.1), persistent ones stay.
    pub fn lose_port(&mut self, target_port: u16) {
        let holder = self.unit.as_ref().map(|(holder, _)| holder.clone());
        if let Some(holder) = holder.filter(|holder| holder.target_port == target_port) {
            self.unit = None;
            self.tell(holder, Notice::NexusLost);
            self.revision += 1;
        }
    }

    /// Notes for a nexus what the change under way does to it.
    fn tell(&mut self, nexus: Nexus, notice: Notice) {
        self.notices.push_back((self.revision + 1, nexus, notice));
        while self.notices.len() > NOTICES_MAX {
            let oldest = self.notices.pop_front();
            self.forgotten = oldest.map_or(self.forgotten, |(made, _, _)| made);
        }
    }

    fn tell_others(&mut self, nexus: &Nexus, notice: Notice) {
        let registrants = self.registrations.keys();
        let others: Vec<Nexus> = registrants.filter(|one| *one != nexus).cloned().collect();
        for other in others {
            self.tell(other, notice);
        }
    }

    fn enter(&mut self, nexus: &Nexus, key: u64) -> Result<(), Refusal> {
        if let Some(present) = self.registrations.get_mut(nexus) {
            present.key = key;
            return Ok(());
        }
        if self.registrations.len() >= REGISTRATIONS_MAX {
            return Err(Refusal::OutOfResources);
        }
        self.last_number += 1;
        let number = self.last_number;
        let registration = Registration { key, number };
        self.registrations.insert(nexus.clone(), registration);
        Ok(())
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        expected_key: Option<u64>,
        new_key: u64,
        persist: bool,
    ) -> Applied {
        let registered = self.key_of(nexus);
        if expected_key.is_some_and(|key| key != registered.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        if new_key != 0 {
            self.enter(nexus, new_key)?;
        } else if registered.is_some() {
            self.leave(nexus);
        } else {
            return Ok((Change::None, Effects::default()));
        }
        self.persist = persist;
        Ok((Change::Generation, Effects::default()))
    }

    /// Unregisters. The holder's departure ends the reservation; with an all-registrants type
    /// only the last one's (SPC-4 5.12.11.2.2).
    fn leave(&mut self, nexus: &Nexus) {
        let held = self.is_holder(nexus);
        self.registrations.remove(nexus);
        let Some((kind, holder)) = &mut self.reservation else {
            return;
        };
        if !held {
            return;
        }
        if kind.all_registrants()
            && let Some((next, _)) = self.registrations.get_min()
        {
            *holder = next.clone();
            return;
        }
        if kind.admits_registrants() {
            self.tell_others(nexus, Notice::ReservationsReleased);
        }
        self.reservation = None;
    }

    fn require_key(&self, nexus: &Nexus, key: u64) -> Result<(), Refusal> {
        if self.key_of(nexus) == Some(key) {
            Ok(())
        } else {
            Err(Refusal::Conflict)
        }
    }

    fn reserve(&mut self, nexus: &Nexus, key: u64, kind: ReservationType) -> Applied {
        self.require_key(nexus, key)?;
        let change = match self.reservation() {
            None => {
                self.reservation = Some((kind, nexus.clone()));
                Change::Reservation
            }
            Some(present) if present == kind && self.is_holder(nexus) => Change::None,
            Some(_) => return Err(Refusal::Conflict),
        };
        Ok((change, Effects::default()))
    }

    fn release(&mut self, nexus: &Nexus, key: u64, kind: ReservationType) -> Applied {
        self.require_key(nexus, key)?;
        if !self.is_holder(nexus) {
            return Ok((Change::None, Effects::default()));
        }
        if self.reservation() != Some(kind) {
            return Err(Refusal::InvalidRelease);
        }
        self.reservation = None;
        if kind.admits_registrants() {
            self.tell_others(nexus, Notice::ReservationsReleased);
        }
        Ok((Change::Reservation, Effects::default()))
    }

    fn clear(&mut self, nexus: &Nexus, key: u64) -> Applied {
        self.require_key(nexus, key)?;
        self.tell_others(nexus, Notice::ReservationsPreempted);
        self.registrations.clear();
        self.reservation = None;
        Ok((Change::Generation, Effects::default()))
    }

    /// SPC-4 5.12.11.2. What happens depends on whose key is named:
    ///
    /// | reservation | key | others with the key | own registration | reservation |
    /// |---|---|---|---|---|
    /// | all registrants | zero | all leave | stays | becomes the preemptor's |
    /// | all registrants | any other | leave | leaves if it has the key | stays while any is left |
    /// | other types | zero | - | - | invalid |
    /// | other types | the holder's | leave | stays | becomes the preemptor's |
    /// | other types, or none | any other | leave | leaves if it has the key | stays |
    ///
    /// Who asks is never told of it, and its own command is not among those that are aborted.
    fn preempt(
        &mut self,
        nexus: &Nexus,
        key: u64,
        victim_key: u64,
        kind: ReservationType,
        abort: bool,
    ) -> Applied {
        self.require_key(nexus, key)?;
        let present = self.reservation();
        let whole_group = present.is_some_and(ReservationType::all_registrants) && victim_key == 0;
        if victim_key == 0 && !whole_group {
            return Err(Refusal::InvalidParameter);
        }
        let takes_over = match &self.reservation {
            Some((held, _)) if held.all_registrants() => whole_group,
            Some((_, holder)) => self.key_of(holder) == Some(victim_key),
            None => false,
        };
        let named = |one: &Registration| whole_group || one.key == victim_key;
        if !whole_group && !self.registrations.values().any(named) {
            return Err(Refusal::Conflict);
        }
        let leaves = |(one, registration): &(&Nexus, &Registration)| {
            named(registration) && !(takes_over && *one == nexus)
        };
        let victims = self.registrations.iter().filter(leaves);
        let victims: Vec<(Nexus, Registration)> = victims
            .map(|(one, registration)| (one.clone(), *registration))
            .collect();
        for (victim, _) in &victims {
            self.registrations.remove(victim);
        }
        for (victim, registration) in &victims {
            if victim != nexus {
                self.tell(victim.clone(), Notice::RegistrationsPreempted);
            }
            if abort {
                self.aborted.insert(registration.number);
            }
        }
        while self.aborted.len() > ABORTED_MAX {
            self.aborted.remove_min();
        }
        if takes_over {
            self.reservation = Some((kind, nexus.clone()));
            if present.is_some_and(|old| old != kind && old.admits_registrants()) {
                self.tell_others(nexus, Notice::ReservationsReleased);
            }
        } else if let Some((held, holder)) = &mut self.reservation
            && held.all_registrants()
            && !self.registrations.contains_key(holder)
        {
            let left = self.registrations.get_min();
            if self.registrations.contains_key(nexus) {
                *holder = nexus.clone();
            } else if let Some((next, _)) = left {
                *holder = next.clone();
            } else {
                self.reservation = None;
            }
        }
        let victims = victims.into_iter().map(|(victim, _)| victim);
        let aborts = if abort {
            victims.filter(|victim| victim != nexus).collect()
        } else {
            Vec::new()
        };
        Ok((Change::Generation, Effects { aborts }))
    }

    /// REGISTER AND MOVE (SPC-4 5.12.8).
    fn move_to(
        &mut self,
        nexus: &Nexus,
        key: u64,
        to: &Nexus,
        new_key: u64,
        unregister: bool,
        persist: bool,
    ) -> Applied {
        self.require_key(nexus, key)?;
        if new_key == 0 || to == nexus {
            return Err(Refusal::InvalidParameter);
        }
        let Some((kind, holder)) = &self.reservation else {
            return Err(Refusal::Conflict);
        };
        if kind.all_registrants() || holder != nexus {
            return Err(Refusal::Conflict);
        }
        let kind = *kind;
        self.enter(to, new_key)?;
        self.reservation = Some((kind, to.clone()));
        if unregister {
            self.registrations.remove(nexus);
        }
        self.persist = persist;
        Ok((Change::Generation, Effects::default()))
    }

    /// RESERVE(6) and (10), with the compatible handling of SPC-4 5.12.3: whom a persistent
    /// reservation lets in anyway hears GOOD, and nothing changes.
    fn reserve_unit(&mut self, nexus: &Nexus) -> Applied {
        let unchanged = Ok((Change::None, Effects::default()));
        if !self.registrations.is_empty() {
            let registered = self.registrations.contains_key(nexus);
            let compatible = registered && self.reservation.is_some();
            return if compatible && self.allows(nexus, Access::Write) {
                unchanged
            } else {
                Err(Refusal::Conflict)
            };
        }
        match &self.unit {
            Some((holder, _)) if holder == nexus => unchanged,
            Some(_) => Err(Refusal::Conflict),
            None => {
                self.last_number += 1;
                self.unit = Some((nexus.clone(), self.last_number));
                Ok((Change::Reservation, Effects::default()))
            }
        }
    }

    /// RELEASE(6) and (10): without a reservation of one's own it is GOOD and does nothing.
    fn release_unit(&mut self, nexus: &Nexus) -> Result<Change, Refusal> {
        if !self.registrations.is_empty() {
            let registered = self.registrations.contains_key(nexus);
            return registered.then_some(Change::None).ok_or(Refusal::Conflict);
        }
        Ok(if self.unit_holder() == Some(nexus) {
            self.end_unit()
        } else {
            Change::None
        })
    }

    fn end_unit(&mut self) -> Change {
        match self.unit.take() {
            Some(_) => Change::Reservation,
            None => Change::None,
        }
    }
}
