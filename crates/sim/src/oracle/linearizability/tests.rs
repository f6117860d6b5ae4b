//! Hand-made histories with their verdicts, and a comparison with exhaustive search.

use super::*;
use crate::random::Random;

const HERE: BlockAddress = BlockAddress {
    volume: 1,
    block: 0,
};

/// `w3` begins writing 3, `w3+` acknowledges it, `w3?` leaves it unknown, `w3-` refuses it, `w3!`
/// gives it up: it may take effect during the next step, and not later;
/// `s3>4` begins writing 4 if 3 is read, and goes on as `s3+` and so on, or as `s3~` if another
/// value was found; `ra` begins read a,
/// `ra=3` returns 3, `ra-` fails.
fn check(history: &str) -> Result<(), Violation> {
    let mut checker = Checker::new();
    let mut open: BTreeMap<String, Ticket> = BTreeMap::new();
    for (now_ns, step) in (0_u64..).zip(history.split_whitespace()) {
        let name: String = step
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let end = &step[name.len()..];
        if end.is_empty() {
            let ticket = match name.strip_prefix('w') {
                None if name.starts_with('s') => unreachable!("a swap has an end"),
                Some(value) => {
                    // `w0a`, `w0b`: writes of zero told apart by a letter.
                    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
                    let value = Value(digits.parse().expect("a write names its value"));
                    checker.begin_write(now_ns, 1, HERE, value)
                }
                None => checker.begin_read(now_ns, 1, HERE),
            };
            open.insert(name, ticket);
            continue;
        }
        if let Some(to) = end.strip_prefix('>') {
            let parse = |digits: &str| Value(digits.parse().expect("a value"));
            let pair = (parse(&name[1..]), parse(to));
            open.insert(name, checker.begin_swap(now_ns, 1, HERE, pair));
            continue;
        }
        let ticket = open.remove(&name).expect("begun");
        match end.split_at(1) {
            ("+", "") => checker.acknowledged(now_ns, ticket)?,
            ("?", "") => checker.unknown(now_ns, ticket)?,
            ("!", "") => checker.given_up(now_ns, ticket, now_ns + 1)?,
            ("-", "") => checker.failed(now_ns, ticket)?,
            ("~", "") => checker.differed(now_ns, ticket)?,
            ("=", value) => {
                let value = Value(value.parse().expect("a read returns a value"));
                checker.returned(now_ns, ticket, value)?;
            }
            other => panic!("{other:?} is no end"),
        }
    }
    checker.finish()
}

#[test]
fn legal_histories_pass() {
    for history in [
        "",
        "ra ra=0",
        "w1 w1+ ra ra=1",
        // A read beside a write sees either.
        "w1 ra ra=0 w1+",
        "w1 ra ra=1 w1+",
        "w1 ra rb ra=1 rb=0 w1+",
        // Concurrent writes in either order; the order need not be that of the ends.
        "w1 w2 w1+ w2+ ra ra=1 rb rb=1",
        "w1 w2 w1+ w2+ ra ra=2",
        "w1 w2 ra w1+ w2+ rb ra=1 rb=2",
        "w1 w2 ra w1+ w2+ rb ra=2 rb=1",
        // An unknown write may take effect late, or never.
        "w1 w1? ra ra=0 rb rb=1",
        "w1 w1? ra ra=0 rb rb=0",
        "w1 w1+ w2 w2? ra ra=1 w3 w3+ rb rb=2",
        // An unknown write seen by a concurrent read and not by a later write's reader.
        "w1 w1? ra w2 ra=1 w2+ rb rb=2",
        // Writes of zeroes repeat a value.
        "w1 w1+ w0a w0a+ ra ra=0",
        "w0a w0a? w0b w0b? w1 w1+ ra ra=0 w2 w2+ rb rb=0",
        "w1 w1+ w0a w0a? ra ra=1 w2 w2+ rb rb=0",
        // Failed and refused operations say nothing.
        "w1 w1- ra ra=0",
        "ra w1 w1+ ra- rb rb=1",
        // A slow read overlapping two writes.
        "ra w1 w1+ w2 w2+ ra=0",
        "ra w1 w1+ w2 w2+ ra=1",
        // Two reads inside one write that both need a concurrent unknown write in between.
        "w1 w2 ra rb w2? ra=2 rb=1 w1+",
        // Never answered.
        "w1 ra ra=1",
        "w1 ra ra=0",
    ] {
        assert_eq!(check(history), Ok(()), "{history}");
    }
}

#[test]
fn a_stale_read_is_caught() {
    for history in [
        "w1 w1+ ra ra=0",
        "w1 w1+ w2 w2+ ra ra=1",
        "w1 ra ra=1 rb rb=0 w1+",
        "w1 w2 w1+ w2+ ra ra=1 rb rb=2",
        "w1 w1+ w0a w0a+ ra ra=1",
    ] {
        assert!(check(history).is_err(), "{history}");
    }
}

#[test]
fn a_lost_acknowledged_write_is_caught() {
    assert!(check("w1 w1+ w2 w2+ ra ra=2 rb rb=1").is_err());
    assert!(check("w1 w1+ w2 w2? ra ra=0").is_err());
}

#[test]
fn the_resurrection_of_an_overwritten_value_is_caught() {
    for history in [
        "w1 w1? ra ra=1 w2 w2+ rb rb=2 rc rc=1",
        "w1 w1? ra ra=1 w2 w2+ rb rb=1",
        "w1 w1? ra ra=1 rb rb=0",
        "w1 w1+ w0a w0a? ra ra=0 w2 w2+ rb rb=0",
        "w0a w0a? w1 w1+ ra ra=0 w2 w2+ rb rb=0",
    ] {
        assert!(check(history).is_err(), "{history}");
    }
}

#[test]
fn a_write_that_was_given_up_takes_effect_in_time_or_never() {
    for history in [
        "w1 w1! ra ra=1",
        "w1 w1! w9 w9- ra ra=0",
        "w1 w1! w9 w9- ra ra=1 rb rb=1",
        "w1 w1+ w2 w2! ra ra=1 w3 w3+ rb rb=3",
        // The read began in time.
        "w1 w1+ w2 w2! ra w9 w9- ra=2 rb rb=2",
        "w1 w1+ w2 w2! ra w9 w9- ra=1 rb rb=2",
        // Not read before the overwriting, which may have begun in time.
        "w1 w1! w2 w9 w9- w2+ ra ra=1",
        // Zeroes: the one that expires is used before the one that does not.
        "w0a w0a? w0b w0b! w1 w1+ ra ra=0 w2 w2+ rb rb=0 w3 w3+ rc rc=3",
    ] {
        assert_eq!(check(history), Ok(()), "{history}");
    }
    for history in [
        "w1 w1+ w2 w2! w9 w9- ra ra=1 rb rb=2",
        "w1 w1! w9 w9- w2 w2+ ra ra=1",
        "w1 w1! w9 w9- ra ra=0 rb rb=1",
        "w1 w1+ w2 w2! w9 w9- ra ra=2 rb rb=1",
        "w0a w0a! w1 w1+ w9 w9- w2 w2+ ra ra=0",
    ] {
        assert!(check(history).is_err(), "{history}");
    }
}

#[test]
fn a_compare_and_write_is_one_step() {
    for history in [
        "s0>1 s0+ ra ra=1",
        "w1 w1+ s1>2 s1- ra ra=1",
        "w1 s1>2 w1+ s1+ ra ra=2",
        "w1 w1? s1>2 s1+ ra ra=2",
        "s0>1 s1>2 s1+ s0+ ra ra=2",
        "w1 s0>2 s0+ w1+ ra ra=1",
    ] {
        assert_eq!(check(history), Ok(()), "{history}");
    }
    for history in [
        "w1 w1+ s0>2 s0+",
        "w1 w1+ s1>2 s1+ ra ra=1",
        // Two of them have seen the same.
        "w1 w1+ w2 s1>3 s1+ w2+ s2>4 s2+ ra ra=3",
        "s0>1 w2 w2+ s0+ ra ra=1",
    ] {
        assert!(check(history).is_err(), "{history}");
    }
}

#[test]
fn a_comparison_fails_only_where_another_value_was() {
    for history in [
        "s1>2 s1~ ra ra=0",
        "w1 w1+ s0>2 s0~ ra ra=1",
        // Beside a write it finds what was before, or what comes.
        "w1 s0>2 s0~ w1+",
        "w1 s1>2 s1~ w1+",
        "s0>9 w1 w1+ w0a w0a+ s0~",
        // What nobody has answered may have been there.
        "w1 w1? s0>2 s0~ ra ra=1",
        "w1 w1? w2 w2? s0>9 s0~ ra ra=2 rb rb=1",
    ] {
        assert_eq!(check(history), Ok(()), "{history}");
    }
    for history in [
        "s0>1 s0~",
        "w1 w1+ s1>2 s1~",
        "w1 w1+ w2 w2+ s2>3 s2~",
        // The write that it must have found is seen by whoever comes after it.
        "w1 w1? s0>2 s0~ ra ra=0",
        "w1 w1! w9 w9- s0>2 s0~ ra ra=0",
    ] {
        assert!(check(history).is_err(), "{history}");
    }
}

#[test]
fn a_value_from_nowhere_or_from_a_refused_write_is_caught() {
    assert!(check("ra ra=7").is_err());
    assert!(check("w1 w1- ra ra=1").is_err());
    assert!(
        check("ra ra=1 w1 w1+").is_err(),
        "read before it was written"
    );
}

#[test]
fn the_order_seen_by_concurrent_readers_must_agree() {
    assert!(check("w1 w2 ra ra=1 rb rb=2 rc rc=1 w1+ w2+").is_err());
    assert_eq!(check("w1 w2 ra ra=1 rb rb=2 rc rc=2 w1+ w2+"), Ok(()));
}

#[test]
fn a_violation_names_block_operation_and_history() {
    let violation = check("w1 w1+ ra ra=0").expect_err("stale");
    let text = violation.to_string();
    for part in [
        "block 0 of volume 1",
        "#2",
        "the block held 1",
        "client 1 writes 1",
        "returned 0",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[test]
fn many_unknown_writes_cost_little() {
    let mut checker = Checker::new();
    for value in 1..=100 {
        let ticket = checker.begin_write(value, 1, HERE, Value(value));
        checker.unknown(value, ticket).expect("no claim");
    }
    for value in (1..=100).rev() {
        let first = checker.begin_read(value, 1, HERE);
        let second = checker.begin_read(value, 2, HERE);
        checker
            .returned(value, first, Value(value))
            .expect("it may take effect now");
        checker
            .returned(value, second, Value(value))
            .expect("and stays");
    }
    let ticket = checker.begin_read(0, 1, HERE);
    checker
        .returned(0, ticket, Value(50))
        .expect_err("it was overwritten");
}

/// An operation of a random history: begin and end are positions in it.
#[derive(Clone, Copy, Debug)]
struct Planned {
    kind: Kind,
    outcome: Outcome,
    begin: usize,
    end: usize,
}

/// Whether some order of the operations explains the history, by trying all.
fn explained(history: &[Planned], done: u32, value: Value, newest_begin: usize) -> bool {
    let has_end = |operation: &Planned| match operation.outcome {
        Outcome::Acknowledged | Outcome::Returned(_) | Outcome::Differed => true,
        Outcome::Unknown | Outcome::UnknownUntil(_) | Outcome::Void => false,
    };
    let expired = |operation: &Planned| match operation.outcome {
        Outcome::UnknownUntil(until) => (until as usize) < newest_begin,
        Outcome::Acknowledged
        | Outcome::Returned(_)
        | Outcome::Differed
        | Outcome::Unknown
        | Outcome::Void => false,
    };
    let left = || (0..history.len()).filter(|index| done >> index & 1 == 0);
    let deadline = left()
        .filter(|index| has_end(&history[*index]))
        .map(|index| history[index].end)
        .min();
    let Some(deadline) = deadline else {
        return true;
    };
    left().any(|index| {
        let operation = &history[index];
        let next = match (operation.kind, operation.outcome) {
            (_, Outcome::Void) => return false,
            (Kind::Write(written), _) => written,
            (Kind::Swap { from, to }, Outcome::Acknowledged) if from == value => to,
            (Kind::Swap { from, .. }, Outcome::Differed) if from != value => value,
            (Kind::Swap { .. }, _) => return false,
            (Kind::Read, outcome) if outcome == Outcome::Returned(value) => value,
            (Kind::Read, _) => return false,
        };
        let newest_begin = newest_begin.max(operation.begin);
        operation.begin < deadline
            && !expired(operation)
            && explained(history, done | 1 << index, next, newest_begin)
    })
}

fn random_history(random: &Random) -> Vec<Planned> {
    let count = random.between(2, 7) as usize;
    let mut positions: Vec<usize> = (0..count * 2).collect();
    // Partly sorted, so that operations overlap a little rather than all.
    for _ in 0..random.below(count as u64 * 3) {
        let place = random.below(positions.len() as u64 - 1) as usize;
        positions.swap(place, place + 1);
    }
    let values: Vec<u64> = (0..count as u64)
        .map(|value| value * random.below(4).min(1))
        .collect();
    // What a real register would have held at each position, for plausible reads.
    let mut moments = Vec::new();
    let mut history: Vec<Planned> = Vec::new();
    for index in 0..count {
        let (first, second) = (positions[index * 2], positions[index * 2 + 1]);
        let (begin, end) = (first.min(second), first.max(second));
        let moment = random.between(begin as u64 * 8 + 1, end as u64 * 8);
        let write = random.chance(550_000);
        let value = Value(values[index]);
        let outcome = match (write, random.below(10)) {
            (true, 0..6) => Outcome::Acknowledged,
            (true, 6) => Outcome::Unknown,
            (true, 7..9) => Outcome::UnknownUntil(end as u64 + random.below(4)),
            (true, _) => Outcome::Void,
            (false, 0) => Outcome::Void,
            (false, _) => Outcome::Returned(Value::ZERO),
        };
        let kind = if write {
            Kind::Write(value)
        } else {
            Kind::Read
        };
        if write && outcome != Outcome::Void && random.chance(800_000) {
            moments.push((moment, value));
        }
        history.push(Planned {
            kind,
            outcome,
            begin,
            end,
        });
        if !write && outcome != Outcome::Void {
            moments.push((moment, Value(u64::MAX - index as u64)));
        }
    }
    moments.sort_unstable();
    let mut held = Value::ZERO;
    for (_, value) in moments {
        let index = (u64::MAX - value.0) as usize;
        match history.get_mut(index) {
            Some(read) => read.outcome = Outcome::Returned(held),
            None => held = value,
        }
    }
    if random.chance(800_000) {
        let wrong = Value(random.below(count as u64 + 1));
        let index = random.below(count as u64) as usize;
        if let Outcome::Returned(value) = &mut history[index].outcome {
            *value = wrong;
        }
    }
    for operation in &mut history {
        if let Outcome::Returned(value) = operation.outcome
            && random.chance(300_000)
        {
            let from = match random.chance(300_000) {
                true => value,
                false => Value(random.below(count as u64 + 1)),
            };
            let to = Value(1_000);
            operation.kind = Kind::Swap { from, to };
            operation.outcome = Outcome::Differed;
        }
    }
    history
}

fn verdict(history: &[Planned]) -> bool {
    let mut events: Vec<(usize, usize, bool)> = Vec::new();
    for (index, operation) in history.iter().enumerate() {
        events.push((operation.begin, index, true));
        events.push((operation.end, index, false));
    }
    events.sort_unstable();
    let mut register = Register::default();
    let mut numbers = vec![0; history.len()];
    for (now, index, begins) in events {
        let now_ns = now as u64;
        if begins {
            numbers[index] = register.begin(now_ns, history[index].kind);
        } else if register
            .end(now_ns, numbers[index], history[index].outcome)
            .is_err()
        {
            return false;
        }
    }
    register.finish().is_ok()
}

#[test]
fn the_verdict_is_that_of_exhaustive_search() {
    let random = Random::new(0x1196);
    let (mut legal, mut illegal) = (0, 0);
    for _ in 0..60_000 {
        let history = random_history(&random);
        let expected = explained(&history, 0, Value::ZERO, 0);
        assert_eq!(verdict(&history), expected, "{history:#?}");
        if expected {
            legal += 1;
        } else {
            illegal += 1;
        }
    }
    assert!(
        legal > 10_000 && illegal > 10_000,
        "{legal} legal, {illegal} illegal: one-sided"
    );
}
