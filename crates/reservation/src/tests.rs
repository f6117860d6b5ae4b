//! The table, service action by service action.

use proptest::prelude::*;

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

fn told(table: &ReservationTable, since: u64) -> Vec<(Nexus, Notice)> {
    let notices = table.notices_since(since).expect("nothing is forgotten");
    notices
        .map(|(nexus, notice)| (nexus.clone(), notice))
        .collect()
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
    assert_eq!(
        act(&mut table, "a", 9, action.clone()),
        Err(Refusal::Conflict)
    );
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
    let before = table.revision();
    act(&mut table, "a", 1, action).unwrap();
    assert_eq!(
        told(&table, before),
        [(nexus("b"), Notice::ReservationsReleased)]
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
    let before = table.revision();
    let effects = act(&mut table, "b", 2, action).unwrap();
    assert_eq!(effects.aborts, [nexus("a")]);
    assert_eq!(
        told(&table, before),
        [(nexus("a"), Notice::RegistrationsPreempted)]
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

/// Registrants a with key 1, b with key 2, c with key 1; a reservation of `kind`, if any, by b.
fn three_registrants(kind: Option<ReservationType>) -> ReservationTable {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    register(&mut table, "c", 1);
    if let Some(kind) = kind {
        act(&mut table, "b", 2, Action::Reserve(kind)).unwrap();
    }
    table
}

/// SPC-4 5.12.11.2.5: "The registration is removed", and no unit attention for who asked.
#[test]
fn preempt_with_the_own_key_that_no_holder_has_removes_the_own_registration() {
    let kinds = [
        None,
        Some(WriteExclusive),
        Some(ExclusiveAccess),
        Some(WriteExclusiveRegistrantsOnly),
        Some(ExclusiveAccessRegistrantsOnly),
        Some(WriteExclusiveAllRegistrants),
        Some(ExclusiveAccessAllRegistrants),
    ];
    for (kind, abort) in kinds
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
    {
        let mut table = three_registrants(kind);
        let standing = table.standing(&nexus("a"));
        let (before, generation) = (table.revision(), table.generation());
        let action = Action::Preempt {
            victim_key: 1,
            kind: WriteExclusive,
            abort,
        };
        let effects = act(&mut table, "a", 1, action).unwrap();
        let left: Vec<_> = table.registrations().collect();
        assert_eq!(left, [(&nexus("b"), 2)], "{kind:?}");
        assert_eq!(table.reservation(), kind, "it stays as it was");
        assert_eq!(table.is_holder(&nexus("b")), kind.is_some());
        assert_eq!(
            told(&table, before),
            [(nexus("c"), Notice::RegistrationsPreempted)]
        );
        assert_eq!(table.generation(), generation + 1);
        // The transport must not abort the command that asks. Older ones of the same nexus are
        // refused from now on.
        let aborts = if abort { vec![nexus("c")] } else { Vec::new() };
        assert_eq!(effects.aborts, aborts, "{kind:?}");
        assert_eq!(table.admits(standing, Access::Free), !abort);
    }
}

#[test]
fn an_all_registrants_reservation_ends_when_its_last_registrants_preempt_themselves() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "c", 1);
    let all = Action::Reserve(ExclusiveAccessAllRegistrants);
    act(&mut table, "c", 1, all).unwrap();
    let action = Action::Preempt {
        victim_key: 1,
        kind: WriteExclusive,
        abort: false,
    };
    act(&mut table, "a", 1, action).unwrap();
    assert!(table.is_empty());
    assert_eq!(table.reservation(), None);
}

#[test]
fn preempt_with_the_holders_key_that_is_also_the_own_keeps_the_own_registration() {
    // By the holder itself, which changes the type, and by another registrant with its key.
    for (preemptor, key) in [("a", 1), ("b", 2), ("c", 1)] {
        let mut table = three_registrants(None);
        let holder = if key == 1 { "a" } else { "b" };
        act(
            &mut table,
            holder,
            key,
            Action::Reserve(WriteExclusiveRegistrantsOnly),
        )
        .unwrap();
        let before = table.revision();
        let action = Action::Preempt {
            victim_key: key,
            kind: ExclusiveAccess,
            abort: true,
        };
        act(&mut table, preemptor, key, action).unwrap();
        assert_eq!(table.key_of(&nexus(preemptor)), Some(key));
        assert!(table.is_holder(&nexus(preemptor)));
        assert_eq!(table.reservation(), Some(ExclusiveAccess));
        let others = ["a", "b", "c"]
            .into_iter()
            .filter(|name| *name != preemptor);
        let expected: Vec<_> = others
            .map(|name| {
                let has_key = (name == "b") == (key == 2);
                let notice = if has_key {
                    Notice::RegistrationsPreempted
                } else {
                    Notice::ReservationsReleased
                };
                (nexus(name), notice)
            })
            .collect();
        let mut heard = told(&table, before);
        heard.sort();
        assert_eq!(heard, expected, "{preemptor}");
    }
}

#[test]
fn preempt_with_key_zero_takes_an_all_registrants_reservation_and_is_invalid_for_others() {
    let action = Action::Preempt {
        victim_key: 0,
        kind: WriteExclusive,
        abort: false,
    };
    let mut table = three_registrants(Some(WriteExclusiveAllRegistrants));
    act(&mut table, "c", 1, action.clone()).unwrap();
    let left: Vec<_> = table.registrations().collect();
    assert_eq!(left, [(&nexus("c"), 1)]);
    assert_eq!(table.reservation(), Some(WriteExclusive));
    for kind in [
        None,
        Some(WriteExclusive),
        Some(ExclusiveAccessRegistrantsOnly),
    ] {
        let mut table = three_registrants(kind);
        let before = table.clone();
        let refused = act(&mut table, "c", 1, action.clone());
        assert_eq!(refused, Err(Refusal::InvalidParameter), "{kind:?}");
        assert_eq!(table, before);
    }
}

#[test]
fn clear_removes_everything_and_tells_the_other_registrants() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
    let before = table.revision();
    act(&mut table, "b", 2, Action::Clear).unwrap();
    assert_eq!(
        told(&table, before),
        [(nexus("a"), Notice::ReservationsPreempted)]
    );
    assert!(table.is_empty());
    assert_eq!(table.reservation(), None);
    assert_eq!(table.generation(), 3);
}

#[test]
fn an_unknown_key_changes_nothing_whatever_is_asked() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
    let before = table.clone();
    let preempt = |abort| Action::Preempt {
        victim_key: 1,
        kind: WriteExclusive,
        abort,
    };
    let actions = [
        Action::Reserve(WriteExclusive),
        Action::Release(WriteExclusive),
        Action::Clear,
        preempt(false),
        preempt(true),
        move_to("c", 3, false),
        Action::ReserveUnit,
        Action::ReleaseUnit,
    ];
    for action in actions {
        let refused = act(&mut table, "b", 2, action.clone());
        assert_eq!(refused, Err(Refusal::Conflict), "{action:?}");
        assert_eq!(table, before);
    }
}

#[test]
fn every_change_raises_the_revision_and_only_some_the_generation() {
    let mut table = ReservationTable::default();
    let mut counters = Vec::new();
    let register = |new_key| Action::Register {
        new_key,
        check_key: false,
        persist: true,
    };
    let steps = [
        ("a", 0, register(1)),
        ("a", 1, Action::Reserve(WriteExclusive)),
        ("a", 1, Action::Reserve(WriteExclusive)),
        ("a", 1, move_to("b", 2, false)),
        ("b", 2, Action::Release(WriteExclusive)),
        ("b", 2, Action::Release(WriteExclusive)),
        ("b", 2, Action::Clear),
        ("b", 0, register(0)),
    ];
    for (name, key, action) in steps {
        act(&mut table, name, key, action).unwrap();
        counters.push((table.revision(), table.generation()));
    }
    let expected = [
        (1, 1),
        (2, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (4, 2),
        (5, 3),
        (5, 3),
    ];
    assert_eq!(counters, expected);
    assert!(
        !table.persist(),
        "as the last of REGISTER and REGISTER AND MOVE asked"
    );
}

fn move_to(name: &str, new_key: u64, unregister: bool) -> Action {
    Action::Move {
        to: nexus(name),
        new_key,
        unregister,
        persist: false,
    }
}

#[test]
fn register_and_move_makes_another_nexus_the_holder() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    act(&mut table, "a", 1, Action::Reserve(ExclusiveAccess)).unwrap();
    act(&mut table, "a", 1, move_to("b", 2, false)).unwrap();
    assert!(table.is_holder(&nexus("b")) && !table.is_holder(&nexus("a")));
    assert_eq!(table.key_of(&nexus("b")), Some(2));
    assert_eq!(table.reservation(), Some(ExclusiveAccess));
    assert!(!table.allows(&nexus("a"), Access::Read));
    act(&mut table, "b", 2, move_to("a", 3, true)).unwrap();
    assert_eq!(table.key_of(&nexus("b")), None);
    assert_eq!(table.reservation_key(), 3);
}

#[test]
fn only_the_single_holder_moves_a_reservation_and_not_to_itself() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    let conflict = Err(Refusal::Conflict);
    assert_eq!(act(&mut table, "a", 1, move_to("c", 3, false)), conflict);
    let all = Action::Reserve(WriteExclusiveAllRegistrants);
    act(&mut table, "a", 1, all).unwrap();
    assert_eq!(act(&mut table, "a", 1, move_to("c", 3, false)), conflict);
    let release = Action::Release(WriteExclusiveAllRegistrants);
    act(&mut table, "a", 1, release).unwrap();
    act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
    assert_eq!(act(&mut table, "b", 2, move_to("c", 3, false)), conflict);
    let invalid = Err(Refusal::InvalidParameter);
    assert_eq!(act(&mut table, "a", 1, move_to("a", 3, false)), invalid);
    assert_eq!(act(&mut table, "a", 1, move_to("c", 0, false)), invalid);
}

#[test]
fn a_command_of_a_removed_registration_is_judged_as_that_of_a_stranger() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    let old = table.standing(&nexus("a"));
    let preempt = Action::Preempt {
        victim_key: 1,
        kind: WriteExclusive,
        abort: false,
    };
    act(&mut table, "b", 2, preempt).unwrap();
    assert!(
        table.admits(old, Access::Write),
        "no reservation forbids it"
    );
    let reserve = Action::Reserve(WriteExclusiveRegistrantsOnly);
    act(&mut table, "b", 2, reserve).unwrap();
    register(&mut table, "a", 1);
    assert!(table.allows(&nexus("a"), Access::Write));
    assert!(!table.admits(old, Access::Write), "registered anew since");
}

#[test]
fn an_aborted_command_never_runs_whatever_is_reserved() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    let old = table.standing(&nexus("a"));
    let preempt = Action::Preempt {
        victim_key: 1,
        kind: WriteExclusive,
        abort: true,
    };
    act(&mut table, "b", 2, preempt).unwrap();
    assert_eq!(table.reservation(), None);
    assert!(!table.admits(old, Access::Read));
    assert!(table.allows(&nexus("a"), Access::Write));
}

#[test]
fn the_table_is_full_at_its_limit_and_a_registrant_may_still_change_its_key() {
    let mut table = ReservationTable::default();
    for index in 0..REGISTRATIONS_MAX {
        register(&mut table, &format!("host-{index}"), 1);
    }
    let action = Action::Register {
        new_key: 1,
        check_key: false,
        persist: false,
    };
    let refused = act(&mut table, "one-more", 0, action);
    assert_eq!(refused, Err(Refusal::OutOfResources));
    register(&mut table, "host-7", 9);
    assert_eq!(table.key_of(&nexus("host-7")), Some(9));
}

#[test]
fn notices_that_are_forgotten_are_not_passed_over_in_silence() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    for _ in 0..NOTICES_MAX {
        register(&mut table, "b", 2);
        act(&mut table, "a", 1, Action::Clear).unwrap();
        register(&mut table, "a", 1);
    }
    assert!(table.notices_since(0).is_some());
    register(&mut table, "b", 2);
    act(&mut table, "a", 1, Action::Clear).unwrap();
    assert!(table.notices_since(0).is_none());
    let last = told(&table, table.revision() - 1);
    assert_eq!(last, [(nexus("b"), Notice::ReservationsPreempted)]);
}

#[test]
fn reserve_excludes_others_from_everything_until_release() {
    let mut table = ReservationTable::default();
    act(&mut table, "a", 0, Action::ReserveUnit).unwrap();
    act(&mut table, "a", 0, Action::ReserveUnit).unwrap();
    let conflict = Err(Refusal::Conflict);
    assert_eq!(act(&mut table, "b", 0, Action::ReserveUnit), conflict);
    assert!(table.allows(&nexus("a"), Access::Write));
    assert!(!table.allows(&nexus("b"), Access::Read));
    act(&mut table, "b", 0, Action::ReleaseUnit).unwrap();
    assert!(!table.allows(&nexus("b"), Access::Read));
    act(&mut table, "a", 0, Action::ReleaseUnit).unwrap();
    assert!(table.allows(&nexus("b"), Access::Write));
}

#[test]
fn both_kinds_of_reservation_exclude_each_other() {
    let mut table = ReservationTable::default();
    act(&mut table, "a", 0, Action::ReserveUnit).unwrap();
    let action = Action::Register {
        new_key: 1,
        check_key: false,
        persist: false,
    };
    let refused = act(&mut table, "a", 0, action);
    assert_eq!(refused, Err(Refusal::Conflict));
    act(&mut table, "b", 0, Action::ResetUnit).unwrap();
    register(&mut table, "a", 1);
    let refused = act(&mut table, "a", 0, Action::ReserveUnit);
    assert_eq!(refused, Err(Refusal::Conflict));
}

#[test]
fn reserve_by_a_nexus_that_has_access_anyway_is_good_and_does_nothing() {
    let mut table = ReservationTable::default();
    register(&mut table, "a", 1);
    register(&mut table, "b", 2);
    act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
    let before = table.clone();
    act(&mut table, "a", 0, Action::ReserveUnit).unwrap();
    act(&mut table, "b", 0, Action::ReleaseUnit).unwrap();
    assert_eq!(table, before);
    let refused = act(&mut table, "b", 0, Action::ReserveUnit);
    assert_eq!(refused, Err(Refusal::Conflict));
}

#[test]
fn a_lost_port_ends_the_reserve_of_its_nexus_and_no_persistent_reservation() {
    let mut table = ReservationTable::default();
    act(&mut table, "a", 0, Action::ReserveUnit).unwrap();
    table.lose_port(2);
    assert_eq!(table.unit_holder(), Some(&nexus("a")));
    table.lose_port(1);
    assert_eq!(table.unit_holder(), None);
    assert_eq!(told(&table, 1), [(nexus("a"), Notice::NexusLost)]);
    register(&mut table, "a", 1);
    act(&mut table, "a", 1, Action::Reserve(WriteExclusive)).unwrap();
    table.lose_port(1);
    assert!(table.is_holder(&nexus("a")));
}

fn any_action() -> impl Strategy<Value = Action> {
    let kind = prop_oneof![
        Just(WriteExclusive),
        Just(ExclusiveAccess),
        Just(WriteExclusiveRegistrantsOnly),
        Just(ExclusiveAccessRegistrantsOnly),
        Just(WriteExclusiveAllRegistrants),
        Just(ExclusiveAccessAllRegistrants),
    ];
    prop_oneof![
        (0..4_u64, any::<bool>()).prop_map(|(new_key, check_key)| Action::Register {
            new_key,
            check_key,
            persist: false
        }),
        kind.clone().prop_map(Action::Reserve),
        kind.clone().prop_map(Action::Release),
        Just(Action::Clear),
        (0..4_u64, kind, any::<bool>()).prop_map(|(victim_key, kind, abort)| Action::Preempt {
            victim_key,
            kind,
            abort
        }),
        (0..4_u8, 0..4_u64, any::<bool>()).prop_map(|(to, key, unregister)| move_to(
            &format!("host-{to}"),
            key,
            unregister
        )),
        Just(Action::ReserveUnit),
        Just(Action::ReleaseUnit),
        Just(Action::ResetUnit),
    ]
}

proptest! {
    #[test]
    fn any_requests_keep_the_invariants(
        requests in prop::collection::vec((0..4_u8, 0..4_u64, any_action()), 0..64),
    ) {
        let mut table = ReservationTable::default();
        let mut numbers = std::collections::BTreeMap::new();
        for (name, key, action) in requests {
            let before = table.clone();
            let outcome = act(&mut table, &format!("host-{name}"), key, action);
            prop_assert_eq!(table.revision() > before.revision(), table != before);
            prop_assert!(outcome.is_ok() || table == before);
            prop_assert!(table.is_empty() || table.unit_holder().is_none());
            let holders = table.registrations().filter(|(nexus, _)| table.is_holder(nexus));
            prop_assert_eq!(table.reservation().is_some(), holders.count() > 0);
            for (nexus, _) in table.registrations() {
                let number = table.standing(nexus).number;
                prop_assert_eq!(numbers.entry(number).or_insert(nexus.clone()), nexus);
            }
        }
    }
}
