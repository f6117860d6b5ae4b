//! One block: which states can it be in, given everything observed so far?
//!
//! The checker keeps every *configuration* that some legal order of the operations leads to: the
//! register's value, and which of the open operations have taken effect. An order can always be
//! changed so that each operation takes effect as late as possible, right before the end of
//! some operation (Lowe, "Testing for linearizability", 2016), so configurations change at ends
//! only. Four rules keep them few and lose nothing:
//!
//! * a read takes effect as soon as the register holds its value: it changes nothing; so does a
//!   comparison that failed, as soon as the register holds another value than it compared with;
//! * an unknown write takes effect before the operation that ends only if a waiting one wants
//!   its value: unseen, it might as well not have happened yet;
//! * of unknown writes of equal value (zeroes) the free one that expires first stands for all;
//! * a configuration is dropped if another one with the same value and the same acknowledged
//!   writes done has no read less and no unknown write more done.
//!
//! An unknown write may expire: after that moment it takes effect no more. Every configuration
//! without it then goes on twice, with the write done right before and with it gone for ever.
//!
//! An operation takes part only once its outcome is known: events wait in order until then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::oracle::content::Value;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write(Value),
    /// Writes `to` if the register holds `from`.
    Swap {
        from: Value,
        to: Value,
    },
    Read,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A write took effect.
    Acknowledged,
    /// A write may have taken effect, or may yet, at any time.
    Unknown,
    /// A write has taken effect, or does so up to this time, or never.
    UnknownUntil(u64),
    /// A write has no effect; a read has no data.
    Void,
    /// A read's data.
    Returned(Value),
    /// A swap found another value than the one that it was to replace.
    Differed,
}

/// A set of places.
type Places = u128;

#[derive(Debug)]
pub(super) struct Register {
    next_number: u64,
    /// Begins and ends that have not been taken in yet.
    waiting: VecDeque<Event>,
    /// When unknown writes expire that have not yet: time and number.
    expiring: BTreeSet<(u64, u64)>,
    /// Operations with an event in `waiting`.
    operations: BTreeMap<u64, Operation>,
    /// Operations taken in: acknowledged writes, reads and failed swaps until their end, unknown
    /// writes until every configuration has them done.
    open: Vec<Option<Open>>,
    configurations: Vec<Configuration>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin(u64),
    End(u64),
    /// An unknown write takes effect no more.
    Expired(u64),
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: Kind,
    outcome: Option<Outcome>,
    place: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Write(Value),
    Swap {
        from: Value,
        to: Value,
    },
    UnknownWrite(Unknown),
    Read(Value),
    /// A swap that found another value.
    Other(Value),
}

impl Open {
    /// Whether the operation may have seen this value, and changes nothing.
    fn sees(self, value: Value) -> bool {
        match self {
            Self::Read(seen) => seen == value,
            Self::Other(compared) => compared != value,
            Self::Write(_) | Self::Swap { .. } | Self::UnknownWrite(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unknown {
    number: u64,
    value: Value,
    /// `u64::MAX` if never.
    expires_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    value: Value,
    done: Places,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            next_number: 1,
            waiting: VecDeque::new(),
            expiring: BTreeSet::new(),
            operations: BTreeMap::new(),
            open: Vec::new(),
            configurations: vec![Configuration {
                value: Value::ZERO,
                done: 0,
            }],
        }
    }
}

impl Register {
    /// Takes the begin of an operation and gives it a number.
    pub(super) fn begin(&mut self, now_ns: u64, kind: Kind) -> u64 {
        self.expire_before(now_ns);
        let number = self.next_number;
        self.next_number += 1;
        self.operations.insert(
            number,
            Operation {
                kind,
                outcome: None,
                place: None,
            },
        );
        self.waiting.push_back(Event::Begin(number));
        number
    }

    /// Takes an outcome. The error is the number of an operation that cannot be explained.
    pub(super) fn end(&mut self, now_ns: u64, number: u64, outcome: Outcome) -> Result<(), u64> {
        self.expire_before(now_ns);
        let operation = self
            .operations
            .get_mut(&number)
            .expect("an operation ends once");
        assert!(
            operation.outcome.replace(outcome).is_none(),
            "an operation ends once"
        );
        match outcome {
            Outcome::Acknowledged | Outcome::Returned(_) | Outcome::Differed => {
                self.waiting.push_back(Event::End(number));
            }
            Outcome::UnknownUntil(until_ns) => {
                self.expiring.insert((until_ns, number));
            }
            Outcome::Unknown | Outcome::Void => {}
        }
        self.take_in()
    }

    /// Puts the ends of those that have expired before whatever happens now.
    fn expire_before(&mut self, now_ns: u64) {
        while let Some((until_ns, number)) = self.expiring.first().copied() {
            if until_ns >= now_ns {
                return;
            }
            self.expiring.pop_first();
            self.waiting.push_back(Event::Expired(number));
        }
    }

    /// Gives operations without outcome the one that allows most.
    pub(super) fn finish(&mut self) -> Result<(), u64> {
        for operation in self.operations.values_mut() {
            if operation.outcome.is_none() {
                operation.outcome = Some(match operation.kind {
                    Kind::Write(_) | Kind::Swap { .. } => Outcome::Unknown,
                    Kind::Read => Outcome::Void,
                });
            }
        }
        self.take_in()
    }

    /// Events that wait for the outcome of an earlier operation.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The values that the register may hold at the last event taken in.
    pub(super) fn present_values(&self) -> Vec<Value> {
        let values: BTreeSet<Value> = self
            .configurations
            .iter()
            .map(|configuration| configuration.value)
            .collect();
        values.into_iter().collect()
    }

    fn take_in(&mut self) -> Result<(), u64> {
        while let Some(event) = self.waiting.front().copied() {
            match event {
                Event::Begin(number) => {
                    let operation = self.operations[&number];
                    let Some(outcome) = operation.outcome else {
                        return Ok(());
                    };
                    self.take_begin(number, operation.kind, outcome);
                }
                Event::End(number) => self.take_end(number)?,
                Event::Expired(number) => self.take_expiry(number),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn take_begin(&mut self, number: u64, kind: Kind, outcome: Outcome) {
        let open = match (kind, outcome) {
            (Kind::Write(value), Outcome::Acknowledged) => Open::Write(value),
            (Kind::Swap { from, to }, Outcome::Acknowledged) => Open::Swap { from, to },
            // What it compared with is forgotten: it may take effect more often than it does.
            (Kind::Write(value) | Kind::Swap { to: value, .. }, Outcome::Unknown) => {
                Open::UnknownWrite(Unknown {
                    number,
                    value,
                    expires_ns: u64::MAX,
                })
            }
            (
                Kind::Write(value) | Kind::Swap { to: value, .. },
                Outcome::UnknownUntil(expires_ns),
            ) => Open::UnknownWrite(Unknown {
                number,
                value,
                expires_ns,
            }),
            (Kind::Read, Outcome::Returned(value)) => Open::Read(value),
            (Kind::Swap { from, .. }, Outcome::Differed) => Open::Other(from),
            (_, Outcome::Void) => {
                self.operations.remove(&number);
                return;
            }
            (kind, outcome) => panic!("{kind:?} cannot end with {outcome:?}"),
        };
        let place = self.place(open);
        for configuration in &mut self.configurations {
            if open.sees(configuration.value) {
                configuration.done |= 1 << place;
            }
        }
        match open {
            Open::UnknownWrite(_) => {
                self.operations.remove(&number);
            }
            Open::Write(_) | Open::Swap { .. } | Open::Read(_) | Open::Other(_) => {
                if let Some(operation) = self.operations.get_mut(&number) {
                    operation.place = Some(place);
                }
            }
        }
    }

    fn take_end(&mut self, number: u64) -> Result<(), u64> {
        let place = self.operations[&number]
            .place
            .expect("its begin was taken in");
        let mut reached = BTreeSet::new();
        for configuration in &self.configurations {
            self.explain(*configuration, place, &mut reached);
        }
        if reached.is_empty() {
            return Err(number);
        }
        self.operations.remove(&number);
        self.open[place] = None;
        self.configurations = reached
            .into_iter()
            .map(|configuration| Configuration {
                done: configuration.done & !(1 << place),
                ..configuration
            })
            .collect();
        self.drop_dominated();
        self.free_used();
        Ok(())
    }

    /// From here on the write is done, or never will be.
    fn take_expiry(&mut self, number: u64) {
        let is_it = |open: &Option<Open>| match open {
            Some(Open::UnknownWrite(unknown)) => unknown.number == number,
            Some(Open::Write(_) | Open::Swap { .. } | Open::Read(_) | Open::Other(_)) | None => {
                false
            }
        };
        // If every configuration had it done, its place is free already.
        let Some(place) = self.open.iter().position(is_it) else {
            return;
        };
        let mut reached = BTreeSet::new();
        for configuration in &self.configurations {
            reached.insert(*configuration);
            self.explain(*configuration, place, &mut reached);
        }
        self.open[place] = None;
        let forget = |configuration: Configuration| Configuration {
            done: configuration.done & !(1 << place),
            ..configuration
        };
        let configurations: BTreeSet<Configuration> = reached.into_iter().map(forget).collect();
        self.configurations = configurations.into_iter().collect();
        self.drop_dominated();
        self.free_used();
    }

    /// Adds every configuration with `target` done that can follow from `from`.
    fn explain(&self, from: Configuration, target: usize, reached: &mut BTreeSet<Configuration>) {
        let mut seen = BTreeSet::new();
        let mut stack = vec![from];
        while let Some(configuration) = stack.pop() {
            if configuration.done >> target & 1 == 1 {
                reached.insert(configuration);
                continue;
            }
            if !seen.insert(configuration) {
                continue;
            }
            // By value, the one that expires first.
            let mut unknown: BTreeMap<Value, (u64, usize)> = BTreeMap::new();
            for (place, open) in self.open.iter().enumerate() {
                if configuration.done >> place & 1 == 1 {
                    continue;
                }
                match open {
                    Some(Open::Write(value)) => {
                        stack.push(self.after(configuration, place, *value))
                    }
                    Some(Open::Swap { from, to }) => {
                        if *from == configuration.value {
                            stack.push(self.after(configuration, place, *to));
                        }
                    }
                    Some(Open::UnknownWrite(write)) if place == target => {
                        stack.push(self.after(configuration, place, write.value));
                    }
                    Some(Open::UnknownWrite(write)) => {
                        if self.is_wanted(configuration, write.value) {
                            let this = (write.expires_ns, place);
                            let first = unknown.entry(write.value).or_insert(this);
                            *first = this.min(*first);
                        }
                    }
                    Some(Open::Read(_) | Open::Other(_)) | None => {}
                }
            }
            for (value, (_, place)) in unknown {
                stack.push(self.after(configuration, place, value));
            }
        }
    }

    /// Whether an operation that is not done waits for the register to hold this value.
    fn is_wanted(&self, configuration: Configuration, value: Value) -> bool {
        let wants = |open: Open| match open {
            Open::Swap { from, .. } => from == value,
            Open::Read(_) | Open::Other(_) => open.sees(value),
            Open::Write(_) | Open::UnknownWrite(_) => false,
        };
        self.places(wants) & !configuration.done != 0
    }

    /// The write at `place` takes effect, and with it the reads that wait for its value.
    fn after(&self, from: Configuration, place: usize, value: Value) -> Configuration {
        let reads = self.places(|open| open.sees(value));
        Configuration {
            value,
            done: from.done | 1 << place | reads,
        }
    }

    fn places(&self, wanted: impl Fn(Open) -> bool) -> Places {
        self.open
            .iter()
            .enumerate()
            .fold(0, |places, (place, open)| match open {
                Some(open) if wanted(*open) => places | 1 << place,
                Some(_) | None => places,
            })
    }

    fn place(&mut self, open: Open) -> usize {
        let free = self.open.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        assert!(
            place < Places::BITS as usize,
            "more than {} open or unknown operations on one block",
            Places::BITS
        );
        self.open[place] = Some(open);
        place
    }

    fn drop_dominated(&mut self) {
        let writes = self.places(|open| matches!(open, Open::Write(_) | Open::Swap { .. }));
        let unknown = self.places(|open| matches!(open, Open::UnknownWrite(_)));
        let reads = self.places(|open| matches!(open, Open::Read(_) | Open::Other(_)));
        let dominates = |better: &Configuration, worse: &Configuration| {
            better.value == worse.value
                && better.done & writes == worse.done & writes
                && better.done & unknown & !worse.done == 0
                && worse.done & reads & !better.done == 0
        };
        let mut kept: Vec<Configuration> = Vec::new();
        for candidate in std::mem::take(&mut self.configurations) {
            if !kept.iter().any(|better| dominates(better, &candidate)) {
                kept.retain(|worse| !dominates(&candidate, worse));
                kept.push(candidate);
            }
        }
        self.configurations = kept;
    }

    /// Unknown writes that have taken effect in every configuration need no place any more.
    fn free_used(&mut self) {
        let used = self
            .configurations
            .iter()
            .fold(Places::MAX, |used, configuration| used & configuration.done);
        let freed = used & self.places(|open| matches!(open, Open::UnknownWrite(_)));
        if freed == 0 {
            return;
        }
        for (place, open) in self.open.iter_mut().enumerate() {
            if freed >> place & 1 == 1 {
                *open = None;
            }
        }
        for configuration in &mut self.configurations {
            configuration.done &= !freed;
        }
    }
}
