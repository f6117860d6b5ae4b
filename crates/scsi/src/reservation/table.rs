//! The reservation table and its transitions.

use std::collections::BTreeMap;

use super::{Access, Action, Effects, Refusal, Request, ReservationType};
use crate::nexus::{Attention, Nexus};

/// Most nexuses that may be registered with one unit.
pub const REGISTRATIONS_MAX: usize = 512;

/// Registrations and the reservation of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReservationTable {
    generation: u32,
    registrations: BTreeMap<Nexus, u64>,
    reservation: Option<(ReservationType, Nexus)>,
    persist: bool,
}

impl ReservationTable {
    /// PRGENERATION.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Every registered nexus and its key.
    pub fn registrations(&self) -> impl Iterator<Item = (&Nexus, u64)> {
        self.registrations.iter().map(|(nexus, key)| (nexus, *key))
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.registrations.is_empty()
    }

    /// Key of a nexus.
    pub fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrations.get(nexus).copied()
    }

    /// Type of the reservation, if there is one.
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

    /// Whether `nexus` holds the reservation.
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            Some((kind, _)) if kind.all_registrants() => self.registrations.contains_key(nexus),
            Some((_, holder)) => holder == nexus,
            None => false,
        }
    }

    /// Whether `nexus` may run a command of this kind now.
    pub fn allows(&self, nexus: &Nexus, access: Access) -> bool {
        let Some((kind, holder)) = &self.reservation else {
            return true;
        };
        let admitted = holder == nexus
            || (kind.admits_registrants() && self.registrations.contains_key(nexus));
        match access {
            Access::Free => true,
            Access::Read => admitted || !kind.restricts_reads(),
            Access::Write => admitted,
        }
    }

    /// Applies one request; a refusal leaves the table as it was.
    pub fn apply(&mut self, request: &Request) -> Result<Effects, Refusal> {
        let Request { nexus, key, action } = request;
        match *action {
            Action::Register {
                new_key,
                check_key,
                persist,
            } => self.register(nexus, check_key.then_some(*key), new_key, persist),
            Action::Reserve(kind) => self.reserve(nexus, *key, kind),
            Action::Release(kind) => self.release(nexus, *key, kind),
            Action::Clear => self.clear(nexus, *key),
            Action::Preempt {
                victim_key,
                kind,
                abort,
            } => self.preempt(nexus, *key, victim_key, kind, abort),
        }
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        expected_key: Option<u64>,
        new_key: u64,
        persist: bool,
    ) -> Result<Effects, Refusal> {
        let registered = self.key_of(nexus);
        if expected_key.is_some_and(|key| key != registered.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        let mut effects = Effects::default();
        if new_key != 0 {
            if registered.is_none() && self.registrations.len() >= REGISTRATIONS_MAX {
                return Err(Refusal::OutOfResources);
            }
            self.registrations.insert(nexus.clone(), new_key);
        } else if registered.is_some() {
            let held = self.is_holder(nexus);
            self.registrations.remove(nexus);
            self.end_reservation_after_unregistering(nexus, held, &mut effects);
        } else {
            return Ok(effects);
        }
        self.persist = persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    /// SPC-4 5.12.11.2.2: the holder's departure ends the reservation; with an all-registrants
    /// type only the last one's.
    fn end_reservation_after_unregistering(
        &mut self,
        nexus: &Nexus,
        held: bool,
        effects: &mut Effects,
    ) {
        let Some((kind, holder)) = &mut self.reservation else {
            return;
        };
        if !held {
            return;
        }
        if kind.all_registrants()
            && let Some((next, _)) = self.registrations.first_key_value()
        {
            *holder = next.clone();
            return;
        }
        if kind.admits_registrants() {
            effects.attentions =
                others(&self.registrations, nexus, Attention::ReservationsReleased);
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

    fn reserve(
        &mut self,
        nexus: &Nexus,
        key: u64,
        kind: ReservationType,
    ) -> Result<Effects, Refusal> {
        self.require_key(nexus, key)?;
        match self.reservation() {
            None => self.reservation = Some((kind, nexus.clone())),
            Some(present) if present == kind && self.is_holder(nexus) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Effects::default())
    }

    fn release(
        &mut self,
        nexus: &Nexus,
        key: u64,
        kind: ReservationType,
    ) -> Result<Effects, Refusal> {
        self.require_key(nexus, key)?;
        let mut effects = Effects::default();
        if !self.is_holder(nexus) {
            return Ok(effects);
        }
        if self.reservation() != Some(kind) {
            return Err(Refusal::InvalidRelease);
        }
        self.reservation = None;
        if kind.admits_registrants() {
            effects.attentions =
                others(&self.registrations, nexus, Attention::ReservationsReleased);
        }
        Ok(effects)
    }

    fn clear(&mut self, nexus: &Nexus, key: u64) -> Result<Effects, Refusal> {
        self.require_key(nexus, key)?;
        let attentions = others(&self.registrations, nexus, Attention::ReservationsPreempted);
        self.registrations.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects {
            attentions,
            aborts: Vec::new(),
        })
    }

    fn preempt(
        &mut self,
        nexus: &Nexus,
        key: u64,
        victim_key: u64,
        kind: ReservationType,
        abort: bool,
    ) -> Result<Effects, Refusal> {
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
        let named = |registered: u64| whole_group || registered == victim_key;
        if !whole_group
            && !self
                .registrations
                .values()
                .any(|registered| named(*registered))
        {
            return Err(Refusal::Conflict);
        }
        let victims: Vec<Nexus> = self
            .registrations
            .iter()
            .filter(|(other, registered)| *other != nexus && named(**registered))
            .map(|(other, _)| other.clone())
            .collect();
        for victim in &victims {
            self.registrations.remove(victim);
        }
        let mut attentions: Vec<_> = victims
            .iter()
            .map(|victim| (victim.clone(), Attention::RegistrationsPreempted))
            .collect();
        if takes_over {
            self.reservation = Some((kind, nexus.clone()));
            if present.is_some_and(|old| old != kind && old.admits_registrants()) {
                attentions.extend(others(
                    &self.registrations,
                    nexus,
                    Attention::ReservationsReleased,
                ));
            }
        } else if let Some((held, holder)) = &mut self.reservation
            && held.all_registrants()
            && !self.registrations.contains_key(holder)
        {
            *holder = nexus.clone();
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects {
            attentions,
            aborts: if abort { victims } else { Vec::new() },
        })
    }
}

fn others(
    registrations: &BTreeMap<Nexus, u64>,
    nexus: &Nexus,
    attention: Attention,
) -> Vec<(Nexus, Attention)> {
    registrations
        .keys()
        .filter(|other| *other != nexus)
        .map(|other| (other.clone(), attention))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::ReservationType::*;
    use super::*;

    fn nexus(name: &str) -> Nexus {
        Nexus {
            initiator: name.into(),
            isid: [0; 6],
            target_port: 1,
        }
    }

    fn register(table: &mut ReservationTable, name: &str, key: u64) {
        let action = Action::Register {
            new_key: key,
            check_key: false,
            persist: false,
        };
        table
            .apply(&Request {
                nexus: nexus(name),
                key: 0,
                action,
            })
            .unwrap();
    }

    fn act(
        table: &mut ReservationTable,
        name: &str,
        key: u64,
        action: Action,
    ) -> Result<Effects, Refusal> {
        table.apply(&Request {
            nexus: nexus(name),
            key,
            action,
        })
    }

    #[test]
    fn register_with_a_wrong_key_conflicts_and_changes_nothing() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        let before = table.clone();
        let action = Action::Register {
            new_key: 2,
            check_key: true,
            persist: false,
        };
        assert_eq!(act(&mut table, "a", 9, action), Err(Refusal::Conflict));
        assert_eq!(act(&mut table, "b", 9, action), Err(Refusal::Conflict));
        assert_eq!(table, before);
    }

    #[test]
    fn access_under_each_type_is_that_of_the_standard() {
        // (type, registrant reads, registrant writes, stranger reads, stranger writes)
        let rows = [
            (WriteExclusive, true, false, true, false),
            (ExclusiveAccess, false, false, false, false),
            (WriteExclusiveRegistrantsOnly, true, true, true, false),
            (ExclusiveAccessRegistrantsOnly, true, true, false, false),
            (WriteExclusiveAllRegistrants, true, true, true, false),
            (ExclusiveAccessAllRegistrants, true, true, false, false),
        ];
        for (kind, registrant_reads, registrant_writes, reads, writes) in rows {
            let mut table = ReservationTable::default();
            register(&mut table, "holder", 1);
            register(&mut table, "registrant", 2);
            act(&mut table, "holder", 1, Action::Reserve(kind)).unwrap();
            for (name, may_read, may_write) in [
                ("holder", true, true),
                ("registrant", registrant_reads, registrant_writes),
                ("stranger", reads, writes),
            ] {
                assert!(table.allows(&nexus(name), Access::Free));
                assert_eq!(
                    table.allows(&nexus(name), Access::Read),
                    may_read,
                    "{kind:?} {name}"
                );
                assert_eq!(
                    table.allows(&nexus(name), Access::Write),
                    may_write,
                    "{kind:?} {name}"
                );
            }
        }
    }

    #[test]
    fn reserve_again_by_the_holder_is_good_and_by_another_conflicts() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        register(&mut table, "b", 2);
        act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
        assert!(act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).is_ok());
        assert_eq!(
            act(&mut table, "a", 1, Action::Reserve(ExclusiveAccess)),
            Err(Refusal::Conflict)
        );
        assert_eq!(
            act(&mut table, "b", 2, Action::Reserve(WriteExclusive)),
            Err(Refusal::Conflict)
        );
        assert_eq!(table.generation(), 2);
    }

    #[test]
    fn unregistering_the_holder_releases_and_tells_registrants_of_a_registrants_type() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        register(&mut table, "b", 2);
        act(
            &mut table,
            "a",
            1,
            Action::Reserve(WriteExclusiveRegistrantsOnly),
        )
        .unwrap();
        let action = Action::Register {
            new_key: 0,
            check_key: true,
            persist: false,
        };
        let effects = act(&mut table, "a", 1, action).unwrap();
        assert_eq!(
            effects.attentions,
            [(nexus("b"), Attention::ReservationsReleased)]
        );
        assert_eq!(table.reservation(), None);
    }

    #[test]
    fn an_all_registrants_reservation_ends_with_its_last_registrant() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        register(&mut table, "b", 2);
        act(
            &mut table,
            "a",
            1,
            Action::Reserve(ExclusiveAccessAllRegistrants),
        )
        .unwrap();
        register(&mut table, "a", 0);
        assert_eq!(table.reservation(), Some(ExclusiveAccessAllRegistrants));
        assert!(table.is_holder(&nexus("b")));
        register(&mut table, "b", 0);
        assert_eq!(table.reservation(), None);
    }

    #[test]
    fn release_with_another_type_is_an_invalid_release() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
        assert_eq!(
            act(&mut table, "a", 1, Action::Release(ExclusiveAccess)),
            Err(Refusal::InvalidRelease)
        );
        assert!(act(&mut table, "a", 1, Action::Release(WriteExclusive)).is_ok());
        assert_eq!(table.reservation(), None);
    }

    #[test]
    fn preempt_and_abort_takes_the_reservation_and_names_the_victims() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        register(&mut table, "b", 2);
        act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
        let action = Action::Preempt {
            victim_key: 1,
            kind: ExclusiveAccess,
            abort: true,
        };
        let effects = act(&mut table, "b", 2, action).unwrap();
        assert_eq!(effects.aborts, [nexus("a")]);
        assert_eq!(
            effects.attentions,
            [(nexus("a"), Attention::RegistrationsPreempted)]
        );
        assert_eq!(table.key_of(&nexus("a")), None);
        assert_eq!(table.reservation(), Some(ExclusiveAccess));
        assert!(table.is_holder(&nexus("b")));
    }

    #[test]
    fn preempt_of_a_key_nobody_has_conflicts_and_of_zero_is_invalid() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        let preempt = |victim_key| Action::Preempt {
            victim_key,
            kind: WriteExclusive,
            abort: false,
        };
        assert_eq!(act(&mut table, "a", 1, preempt(7)), Err(Refusal::Conflict));
        assert_eq!(
            act(&mut table, "a", 1, preempt(0)),
            Err(Refusal::InvalidParameter)
        );
    }

    #[test]
    fn clear_removes_everything_and_tells_the_other_registrants() {
        let mut table = ReservationTable::default();
        register(&mut table, "a", 1);
        register(&mut table, "b", 2);
        act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
        let effects = act(&mut table, "b", 2, Action::Clear).unwrap();
        assert_eq!(
            effects.attentions,
            [(nexus("a"), Attention::ReservationsPreempted)]
        );
        assert!(table.is_empty());
        assert_eq!(table.reservation(), None);
        assert_eq!(table.generation(), 3);
    }
}
