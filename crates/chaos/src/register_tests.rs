//! Histories that are right, and histories that the register has to object to.

use super::*;

const SECOND: Moment = 1_000_000;

/// A history of one block, in tenths of a second.
struct History(Register);

fn tenths(tenths: u64) -> Moment {
    tenths * SECOND / 10
}

impl History {
    fn new() -> Self {
        Self(Register::new())
    }

    fn acknowledged(mut self, value: u64, from: u64, to: u64) -> Self {
        self.0.begin_write(value, tenths(from), 0);
        self.0.end_write(value, Outcome::Acknowledged(tenths(to)));
        self
    }

    fn given_up(mut self, value: u64, from: u64, to: u64) -> Self {
        self.0.begin_write(value, tenths(from), 0);
        self.0.end_write(value, Outcome::GivenUp(tenths(to)));
        self
    }

    fn read(mut self, value: u64, from: u64, to: u64) -> Self {
        assert_eq!(self.0.read(value, tenths(from), tenths(to), 0), None);
        self
    }

    fn objections(&self) -> Vec<Objection> {
        self.0.check()
    }
}

#[test]
fn one_after_another_is_right() {
    let history = History::new()
        .read(0, 1, 2)
        .acknowledged(1, 10, 12)
        .read(1, 13, 14)
        .acknowledged(2, 20, 22)
        .read(2, 23, 24);
    assert_eq!(history.objections(), []);
}

#[test]
fn operations_at_the_same_time_may_come_in_any_order() {
    let history = History::new()
        .acknowledged(1, 10, 20)
        .acknowledged(2, 11, 19)
        .read(2, 12, 13)
        .read(1, 14, 30)
        .read(1, 31, 32);
    assert_eq!(history.objections(), []);
}

#[test]
fn a_read_may_see_a_write_that_is_under_way_and_then_it_stays() {
    let mut history = History::new().acknowledged(1, 10, 11);
    history.0.begin_write(2, tenths(20), 0);
    let history = history.read(2, 21, 22).read(2, 23, 24);
    assert_eq!(history.objections(), []);
    let history = history.read(1, 25, 26);
    let expected = Objection::Together { older: 1, newer: 2 };
    assert_eq!(history.objections(), [expected]);
}

#[test]
fn a_lost_acknowledged_write_is_objected_to() {
    let history = History::new()
        .acknowledged(1, 10, 11)
        .acknowledged(2, 20, 21)
        .read(1, 30, 31);
    let expected = Objection::Between { inner: 2, outer: 1 };
    assert_eq!(history.objections(), [expected]);
    let first = History::new().acknowledged(1, 10, 11).read(0, 30, 31);
    let expected = Objection::Between { inner: 1, outer: 0 };
    assert_eq!(first.objections(), [expected]);
}

#[test]
fn a_stale_read_beside_a_newer_one_is_objected_to() {
    let history = History::new()
        .acknowledged(1, 10, 11)
        .read(1, 12, 13)
        .acknowledged(2, 20, 21)
        .read(2, 22, 23)
        .read(1, 24, 25)
        .read(2, 26, 27);
    let expected = Objection::Together { older: 1, newer: 2 };
    assert_eq!(history.objections(), [expected]);
}

#[test]
fn a_write_whose_path_was_given_up_may_land_within_a_second_or_never() {
    let landed = History::new()
        .acknowledged(1, 10, 11)
        .given_up(2, 20, 30)
        .acknowledged(3, 31, 32)
        .read(3, 33, 34)
        .read(2, 37, 38)
        .read(2, 100, 101);
    assert_eq!(landed.objections(), []);
    let never = History::new()
        .acknowledged(1, 10, 11)
        .given_up(2, 20, 30)
        .read(1, 100, 101);
    assert_eq!(never.objections(), []);
    // Nobody looked in between: it was there in time.
    let unseen = History::new().given_up(2, 20, 30).read(2, 100, 101);
    assert_eq!(unseen.objections(), []);
}

#[test]
fn a_ghost_that_lands_after_its_second_is_objected_to() {
    let overwritten = History::new()
        .given_up(1, 20, 30)
        .acknowledged(2, 31, 32)
        .read(2, 41, 42)
        .read(1, 100, 101);
    let expected = Objection::Together { older: 2, newer: 1 };
    assert_eq!(overwritten.objections(), [expected]);
    // Written after the second was over, seen by nobody, and gone.
    let replaced = History::new()
        .given_up(1, 20, 30)
        .acknowledged(2, 41, 42)
        .read(1, 100, 101);
    let expected = Objection::Between { inner: 2, outer: 1 };
    assert_eq!(replaced.objections(), [expected]);
    // Not there after its second, and there later.
    let late = History::new()
        .acknowledged(1, 10, 11)
        .given_up(2, 20, 30)
        .read(1, 41, 42)
        .read(2, 100, 101);
    let expected = Objection::Together { older: 1, newer: 2 };
    assert_eq!(late.objections(), [expected]);
}

#[test]
fn a_value_from_nowhere_or_from_the_future_is_objected_to() {
    let mut register = Register::new();
    let nowhere = Objection::FromNowhere { value: 7 };
    assert_eq!(register.read(7, 1, 2, 0), Some(nowhere.clone()));
    register.begin_write(7, 10, 0);
    assert_eq!(register.read(7, 8, 9, 0), Some(nowhere));
}

#[test]
fn a_refused_write_that_took_effect_is_objected_to_in_either_order() {
    let expected = Some(Objection::RefusedTookEffect { value: 1 });
    let mut register = Register::new();
    register.begin_write(1, 10, 0);
    assert_eq!(register.read(1, 11, 12, 0), None);
    assert_eq!(register.end_write(1, Outcome::Refused(13)), expected);
    let mut register = Register::new();
    register.begin_write(1, 10, 0);
    assert_eq!(register.end_write(1, Outcome::Refused(13)), None);
    assert_eq!(register.read(1, 20, 21, 0), expected);
}

#[test]
fn what_was_retired_is_remembered_and_what_may_still_be_there_is_kept() {
    let mut history = History::new()
        .acknowledged(1, 10, 11)
        .given_up(2, 20, 30)
        .acknowledged(3, 50, 51)
        .given_up(4, 60, 70);
    history.0.retire(tenths(100));
    let numbers: Vec<u64> = history.0.values.iter().map(|value| value.number).collect();
    // 4 may have replaced 3, or not.
    assert_eq!(numbers, [3, 4]);
    let retired = |value| Some(Objection::Retired { value });
    assert_eq!(history.0.read(1, tenths(110), tenths(111), 0), retired(1));
    assert_eq!(history.0.read(2, tenths(110), tenths(111), 0), retired(2));
    assert_eq!(history.read(3, 110, 111).objections(), []);
}

/// Every assignment of moments to a small history, tried one by one: slow and plain.
fn is_right_by_trial(values: &[Value]) -> bool {
    fn place(left: &mut Vec<Operation>, now: Moment, held: u64) -> bool {
        if left.iter().all(|operation| operation.is_optional) {
            return true;
        }
        for index in 0..left.len() {
            let operation = left[index];
            let fits = left
                .iter()
                .all(|other| other.is_optional || other.to >= operation.from.max(now));
            let sees = operation.is_write || operation.value == held;
            let at = now.max(operation.from);
            if !fits || !sees || at > operation.to {
                continue;
            }
            left.remove(index);
            let held = if operation.is_write {
                operation.value
            } else {
                held
            };
            if place(left, at, held) {
                return true;
            }
            left.insert(index, operation);
        }
        false
    }
    let mut left = Vec::new();
    for value in values {
        let (to, is_optional) = match value.outcome {
            Outcome::Acknowledged(at) => (at, false),
            Outcome::GivenUp(at) => (at + GHOST_LIMIT, true),
            Outcome::UnderWay => (Moment::MAX, true),
            Outcome::Refused(_) => continue,
        };
        if value.number != NEVER_WRITTEN {
            left.push(Operation {
                value: value.number,
                from: value.began,
                to,
                is_write: true,
                is_optional,
            });
        }
        // The tests below read a value at most once.
        if let (Some((from, _)), Some(to)) = (value.last_read, value.first_read) {
            left.push(Operation {
                value: value.number,
                from,
                to,
                is_write: false,
                is_optional: false,
            });
        }
    }
    place(&mut left, 0, NEVER_WRITTEN)
}

#[derive(Clone, Copy)]
struct Operation {
    value: u64,
    from: Moment,
    to: Moment,
    is_write: bool,
    is_optional: bool,
}

#[test]
fn the_zones_agree_with_trying_every_order() {
    // A small generator of its own: the numbers only have to be different every time.
    let mut state = 1_u64;
    let mut below = move |limit: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..20_000 {
        let mut register = Register::new();
        let values = 1 + below(4);
        for number in 1..=values {
            // No two moments are the same, so that nothing depends on what equal ones mean.
            let unique = |at: u64, index: u64| (at * 16 + number * 3 + index) * 100_003;
            let from = below(30);
            let to = from + below(12);
            register.begin_write(number, unique(from, 0), 0);
            match below(3) {
                0 => register.end_write(number, Outcome::GivenUp(unique(to, 1))),
                1 => None,
                _ => register.end_write(number, Outcome::Acknowledged(unique(to, 1))),
            };
            if below(3) > 0 {
                let from = below(40);
                let to = from + below(8);
                let (from, to) = (unique(from, 2), unique(to + 1, 2));
                if to > register.value(number).unwrap().began {
                    assert_eq!(register.read(number, from, to, 0), None);
                }
            }
        }
        let is_right = register.check().is_empty();
        let expected = is_right_by_trial(&register.values);
        assert_eq!(is_right, expected, "{:#?}", register.values);
        *(if is_right { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 1000 && wrong > 1000, "{right} right, {wrong} wrong");
}
