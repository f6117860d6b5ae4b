//! Every state that a crash can leave behind, for all short sequences of operations.
//!
//! A sequence is [played](play) once on a machine that records each write and each point at which
//! writes became durable. A *crash point* lies behind each of these events. At a crash point every
//! sector of 512 bytes of every write that is not durable may have arrived or not, in any
//! [combination](fates), and every range that was discarded since the last sync may have been
//! given back or not, in whole or in part. Each state that differs from those before is opened
//! and [judged](judge).
//!
//! Judging a state is a life of its own: the store recovers, brings everything home, compacts and
//! collects. That life has crash points too, and for sequences that are short enough their states
//! are opened and judged in turn: crashes in a recovery, and in what follows it. Many states lead
//! to the same life: what differs, recovery ignores, as it does the halves of a torn record. Of
//! those that do, [`SAME_LIVES`] are crashed again; each was opened and judged itself.

mod fates;
mod judge;
pub mod lies;
mod play;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use holdfast_runtime::PAGE_BYTES;

use self::judge::judge;
use self::play::{Begin, Life, Played, Promise, play};
use super::contents::{Contents, Sector, sectors};
use super::{Change, Event, run};

/// What a sequence is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A block that was never written.
    Write,
    /// The block that is written before each sequence begins.
    Overwrite,
    /// Zeroes over both.
    Unmap,
    /// A zero over the second alone.
    Zero,
    /// The stable point rises to the last record.
    Sync,
    /// A takeover voids the records above the stable point.
    Truncate,
    /// Time passes until the journal seals its last batch.
    Idle,
    /// What is stable goes home.
    Destage,
    /// Facts become tables.
    Compact,
    /// Segments are emptied, and given back to the device.
    Collect,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Write,
        Self::Overwrite,
        Self::Unmap,
        Self::Zero,
        Self::Sync,
        Self::Truncate,
        Self::Idle,
        Self::Destage,
        Self::Compact,
        Self::Collect,
    ];
}

/// All sequences of `length` operations.
pub fn sequences(length: u32) -> impl Iterator<Item = Vec<Operation>> {
    let kinds = Operation::ALL.len();
    (0..kinds.pow(length)).map(move |number| {
        let digit = |place| Operation::ALL[number / kinds.pow(place) % kinds];
        (0..length).map(digit).collect()
    })
}

/// Of states that lead to the same life, write by write, so many are crashed again. More than one:
/// what recovery ignores, the next one meets again, beside what was written meanwhile.
const SAME_LIVES: u8 = 8;

/// More is not looked for: what went wrong so often goes wrong everywhere.
const VIOLATIONS_MAX: usize = 50;

/// What was tried.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Sequences played.
    pub sequences: u64,
    /// Points at which each kind of operation was cut off.
    pub crash_points: BTreeMap<Operation, u64>,
    /// Points at which recoveries, and what follows them, were cut off.
    pub later_crash_points: u64,
    /// Writes begun and syncs ended in each area, in the sequences.
    pub events: BTreeMap<String, u64>,
    /// States opened and judged. The same bytes count again where other promises hold.
    pub judged: u64,
    /// What was wrong, in words.
    pub violations: Vec<String>,
}

impl Explored {
    /// Adds what another thread tried.
    pub fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.later_crash_points += other.later_crash_points;
        self.judged += other.judged;
        self.violations.extend(other.violations);
        for (operation, points) in other.crash_points {
            *self.crash_points.entry(operation).or_default() += points;
        }
        for (area, events) in other.events {
            *self.events.entry(area).or_default() += events;
        }
    }
}

/// What has been tried, by all threads.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes, promises and whether crashes of what follows were tried.
    judged: Shards,
    /// Bytes alone.
    disks: Shards,
    /// Lives that were crashed, and how often.
    lives: Mutex<BTreeMap<u128, u8>>,
}

impl Seen {
    /// How many different contents of the disks were opened.
    pub fn disks(&self) -> u64 {
        self.disks.len()
    }

    /// Whether a life is to be crashed, for all that is known of others.
    fn is_new_life(&self, life: &Life) -> bool {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let count = lives.entry(life.digest()).or_default();
        *count = count.saturating_add(1);
        *count <= SAME_LIVES
    }
}

/// A set of digests.
#[derive(Debug)]
struct Shards(Vec<Mutex<BTreeSet<u128>>>);

impl Default for Shards {
    fn default() -> Self {
        Self((0..64).map(|_| Mutex::default()).collect())
    }
}

impl Shards {
    fn insert(&self, digest: u128) -> bool {
        let shard = &self.0[digest as usize % self.0.len()];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.insert(digest)
    }

    fn len(&self) -> u64 {
        let shards = self.0.iter();
        let sizes = shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len());
        sizes.sum::<usize>() as u64
    }
}

/// Plays a sequence and tries every state that a crash in it can leave, and if `with_later`, every
/// state that a second crash can leave: in the recovery, or in what follows it.
pub fn explore(sequence: &[Operation], with_later: bool, seen: &Seen, explored: &mut Explored) {
    explored.sequences += 1;
    let played = caught(|| run(1, |runtime| play(runtime, sequence.to_vec(), Begin::InUse)));
    let Played { life, objections } = match played {
        Ok(played) => played,
        Err(what) => return explored.violations.push(format!("{sequence:?}: {what}")),
    };
    for what in objections {
        explored.violations.push(format!("{sequence:?}: {what}"));
    }
    for event in &life.events {
        let area = match event {
            Event::Begun { area, .. } => area.clone(),
            Event::Settled(..) => "made durable".to_owned(),
        };
        *explored.events.entry(area).or_default() += 1;
    }
    let mut states = States {
        sequence,
        with_later,
        seen,
        explored,
    };
    states.of(&life, &[]);
}

/// A change that is not durable.
struct Pending {
    ticket: u64,
    area: String,
    offset: u64,
    change: Change,
}

impl Pending {
    fn apply(&self, contents: &mut Contents) {
        match &self.change {
            Change::Write(data) => contents.put(&self.area, self.offset, data),
            Change::Discard(len) => contents.discard(&self.area, self.offset, *len),
        }
    }
}

/// The sectors of these writes that would change anything.
fn undecided<'a>(durable: &Contents, pending: &'a [Pending]) -> Vec<Sector<'a>> {
    let writes = pending.iter().filter_map(|one| match &one.change {
        Change::Write(data) => Some(sectors(&one.area, one.offset, data)),
        Change::Discard(_) => None,
    });
    let sectors = writes.flatten().filter(|sector| !durable.has(sector));
    sectors.collect()
}

/// What discards that are not durable may have made of the disks: nothing, each of them for itself,
/// all of them, every other page of all. Writes that are not durable are newer than they, or of
/// other places.
fn after_discards(durable: &Contents, pending: &[Pending]) -> Vec<Contents> {
    let discards = pending.iter().filter_map(|one| match one.change {
        Change::Discard(len) => Some((one.area.as_str(), one.offset, len)),
        Change::Write(_) => None,
    });
    let discards: Vec<_> = discards.collect();
    let mut variants = vec![durable.clone()];
    let (mut all, mut half) = (durable.clone(), durable.clone());
    for (area, offset, len) in &discards {
        all.discard(area, *offset, *len);
        for at in (*offset..offset + len).step_by(2 * PAGE_BYTES) {
            half.discard(area, at, PAGE_BYTES as u64);
        }
        let mut one = durable.clone();
        one.discard(area, *offset, *len);
        variants.push(one);
    }
    variants.extend([all, half]);
    let mut seen = BTreeSet::new();
    variants.retain(|variant| seen.insert(variant.digest()));
    variants
}

/// Follows one sequence and what comes of its states.
struct States<'a> {
    sequence: &'a [Operation],
    with_later: bool,
    seen: &'a Seen,
    explored: &'a mut Explored,
}

impl States<'_> {
    /// All states that a crash in this life can leave. `earlier` names the crash that it began
    /// with, if one: the event and which sectors arrived.
    fn of(&mut self, life: &Life, earlier: &[(usize, u128)]) {
        let mut durable = life.begin.clone();
        let mut pending: Vec<Pending> = Vec::new();
        for point in 0..=life.events.len() {
            let promises = life.promises.iter().rev();
            let promise = promises
                .into_iter()
                .find(|promise| promise.from_event <= point)
                .expect("a promise from the beginning on");
            match (earlier, promise.operation) {
                ([], Some(operation)) => {
                    *self.explored.crash_points.entry(operation).or_default() += 1;
                }
                ([], None) => {}
                ([..], _) => self.explored.later_crash_points += 1,
            }
            self.at(&durable, &pending, promise, (earlier, point));
            match life.events.get(point) {
                Some(Event::Begun {
                    ticket,
                    area,
                    offset,
                    change,
                }) => pending.push(Pending {
                    ticket: *ticket,
                    area: area.clone(),
                    offset: *offset,
                    change: change.clone(),
                }),
                Some(Event::Settled(tickets)) => {
                    let is_settled = |one: &mut Pending| tickets.contains(&one.ticket);
                    for settled in pending.extract_if(.., is_settled) {
                        settled.apply(&mut durable);
                    }
                }
                None => {}
            }
        }
    }

    /// All states that a crash can leave while these changes are pending.
    fn at(
        &mut self,
        durable: &Contents,
        pending: &[Pending],
        promise: &Promise,
        crash: (&[(usize, u128)], usize),
    ) {
        for disks in after_discards(durable, pending) {
            self.after(&disks, pending, promise, crash);
        }
    }

    /// The same, with what became of the discards among them decided.
    fn after(
        &mut self,
        durable: &Contents,
        pending: &[Pending],
        promise: &Promise,
        (earlier, point): (&[(usize, u128)], usize),
    ) {
        let mut undecided = undecided(durable, pending);
        undecided.sort_by_key(|sector| (sector.page().0, sector.offset));
        let overlap =
            |pair: &[Sector<'_>]| (pair[0].area, pair[0].offset) == (pair[1].area, pair[1].offset);
        assert!(
            !undecided.windows(2).any(overlap),
            "a write over one that is not durable: {:?}",
            self.sequence
        );
        for arrived in fates::subsets(&undecided) {
            if self.explored.violations.len() >= VIOLATIONS_MAX {
                return;
            }
            let chosen = (0..).zip(&undecided).filter(|(n, _)| arrived >> n & 1 == 1);
            let chosen: Vec<Sector<'_>> = chosen.map(|(_, sector)| *sector).collect();
            let mut state = durable.clone();
            state.put_sectors(&chosen);
            let with_later = self.with_later && earlier.is_empty();
            let digest = promise.digest(state.digest(), with_later);
            if !self.seen.judged.insert(digest) {
                continue;
            }
            self.seen.disks.insert(state.digest());
            self.explored.judged += 1;
            let judged = caught(|| {
                let (state, promise) = (state.clone(), promise.clone());
                run(2, |runtime| judge(runtime, state, promise, with_later))
            });
            let crashes: Vec<_> = earlier.iter().copied().chain([(point, arrived)]).collect();
            match judged.and_then(|outcome| outcome) {
                Ok(life) if with_later && self.seen.is_new_life(&life) => self.of(&life, &crashes),
                Ok(_) => {}
                Err(what) => {
                    let place = format!("{:?}, crashes {crashes:x?}: {what}", self.sequence);
                    self.explored.violations.push(place);
                }
            }
        }
    }
}

/// The outcome, or the words of a panic.
pub(super) fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panic: {}", text.unwrap_or("without words"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_crash_in_a_short_sequence_or_after_it_loses_or_invents_anything() {
        let (seen, mut explored) = (Seen::default(), Explored::default());
        for sequence in (0..=1).flat_map(sequences) {
            explore(&sequence, sequence.is_empty(), &seen, &mut explored);
        }
        assert_eq!(explored.violations, Vec::<String>::new());
        assert!(seen.disks() > 500, "{} {explored:?}", seen.disks());
        assert!(explored.later_crash_points > 20, "{explored:?}");
        for area in ["journal", "facts", "home", "made durable"] {
            assert!(explored.events.contains_key(area), "{explored:?}");
        }
    }

    #[test]
    fn what_a_panic_says_is_a_violation() {
        let caught: Result<(), String> = caught(|| panic!("{} on purpose", "failed"));
        assert_eq!(caught, Err("panic: failed on purpose".to_owned()));
    }

    #[test]
    fn sequences_are_all_different_and_of_every_operation() {
        let all: BTreeSet<Vec<Operation>> = sequences(2).collect();
        assert_eq!(all.len(), Operation::ALL.len().pow(2));
        let used: BTreeSet<Operation> = all.into_iter().flatten().collect();
        assert_eq!(used, BTreeSet::from(Operation::ALL));
    }
}
