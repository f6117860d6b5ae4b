//! What a store makes of a device that lies, for all short sequences of operations.
//!
//! A sequence is played from the making of the store on, and ends when its last batch is sealed.
//! Then the device turns out to have lied once, in every way and at every place in turn, and the
//! store is opened on what there is. It may refuse, it may call blocks or whole slices damaged,
//! and it may have another copy of what was lost. But what it reads is right, nothing that was
//! acknowledged is gone without a word, and a verification finds what a read would meet.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::{PAGE_BYTES, Runtime};

use super::super::contents::Contents;
use super::super::{Change, Dice, Event, MemoryDirectory, run};
use super::judge::{BLOCKS, is_block};
use super::play::{Begin, Life, Promise, SLICE, options, play};
use super::{Operation, Pending, Seen, VIOLATIONS_MAX, after_discards, caught, fates, undecided};
use crate::{Seq, Store, StoreError};

/// How a device lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// A write is acknowledged and never done.
    LostWrite,
    /// A write is done at another place of the area.
    MisdirectedWrite,
    /// A page reads as it was before its last write, for ever.
    StalePage,
    /// The same, but only the first time.
    StaleRead,
    /// A bit of a page at rest is another one.
    FlippedBit,
    /// A page cannot be read.
    UnreadablePage,
    /// A sync is acknowledged and makes nothing durable; then the power fails.
    LyingSync,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::StalePage,
        Self::StaleRead,
        Self::FlippedBit,
        Self::UnreadablePage,
        Self::LyingSync,
    ];
}

/// What the store made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything reads right: it did not need what was lost, or had it twice.
    Harmless,
    /// Some blocks are damaged.
    Damaged,
    /// Nothing of the slice is read.
    Suspect,
    /// It does not open.
    Refused,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Harmless, Self::Damaged, Self::Suspect, Self::Refused];
}

/// What was tried.
#[derive(Clone, Debug, Default)]
pub struct Lied {
    /// Lies by kind and outcome.
    pub outcomes: BTreeMap<(Lie, Verdict), u64>,
    /// What was wrong, in words.
    pub violations: Vec<String>,
}

impl Lied {
    /// Adds what another thread tried.
    pub fn add(&mut self, other: Self) {
        self.violations.extend(other.violations);
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
    }
}

/// Most other places that one write is misdirected to.
const DESTINATIONS_MAX: usize = 6;
/// Bits that are flipped in each page, one at a time.
const FLIPS: u64 = 3;

/// Disks after a lie.
struct Scene {
    lie: Lie,
    contents: Contents,
    /// A page, and what it is replaced by when it is read: once, or with an error always.
    at_read: Option<(String, u64, Option<Vec<u8>>)>,
}

/// A write, as it was done.
struct Done {
    area: String,
    offset: u64,
    data: Vec<u8>,
    /// What had been there.
    before: Vec<u8>,
}

/// Plays a sequence and tells every lie about it.
pub fn lie(sequence: &[Operation], seen: &Seen, lied: &mut Lied) {
    let mut whole = sequence.to_vec();
    whole.push(Operation::Idle);
    let life = run(1, |runtime| play(runtime, whole, Begin::Nothing)).life;
    let promise = life.promises.last().expect("promises").clone();
    let (writes, end) = done(&life);
    let mut teller = Teller {
        sequence,
        seen,
        lied,
    };
    let mut last: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    for (number, write) in writes.iter().enumerate() {
        for page in pages(write) {
            last.insert((&write.area, page), number);
        }
    }
    for (number, write) in writes.iter().enumerate() {
        let is_last = |page: &u64| last[&(write.area.as_str(), *page)] == number;
        if !pages(write).all(|page| is_last(&page)) {
            continue;
        }
        let mut without = end.clone();
        without.put(&write.area, write.offset, &write.before);
        for offset in destinations(write, &writes, &end) {
            let mut elsewhere = without.clone();
            elsewhere.put(&write.area, offset, &write.data);
            // What was written there later has replaced it.
            for later in writes[number + 1..].iter().filter(|w| w.area == write.area) {
                elsewhere.put(&later.area, later.offset, &later.data);
            }
            let place = format!("{} {} to {offset}", write.area, write.offset);
            teller.tell((Lie::MisdirectedWrite, &place), elsewhere, None, &promise);
        }
        let place = format!("{} {}", write.area, write.offset);
        teller.tell((Lie::LostWrite, &place), without, None, &promise);
    }
    for ((area, page), number) in &last {
        let write = &writes[*number];
        let within = (page * PAGE_BYTES as u64 - write.offset) as usize;
        let before = write.before[within..within + PAGE_BYTES].to_vec();
        let place = format!("{area} page {page}");
        let mut stale = end.clone();
        stale.put(area, page * PAGE_BYTES as u64, &before);
        teller.tell((Lie::StalePage, &place), stale, None, &promise);
        let once = Some(((*area).to_owned(), *page, Some(before)));
        teller.tell((Lie::StaleRead, &place), end.clone(), once, &promise);
        let never = Some(((*area).to_owned(), *page, None));
        teller.tell((Lie::UnreadablePage, &place), end.clone(), never, &promise);
        let dice = Dice::new(*page);
        for flip in 0..FLIPS {
            let mut flipped = end.clone();
            // Most structures begin a page and are short.
            let bound = if flip == 0 { 256 } else { PAGE_BYTES as u64 };
            let (byte, bit) = (dice.below(bound) as usize, dice.below(8));
            flipped.change_page(area, *page, |bytes| bytes[byte] ^= 1 << bit);
            teller.tell((Lie::FlippedBit, &place), flipped, None, &promise);
        }
    }
    teller.lying_syncs(&life);
}

/// The pages of a write.
fn pages(write: &Done) -> impl Iterator<Item = u64> + use<> {
    let first = write.offset / PAGE_BYTES as u64;
    first..first + (write.data.len() / PAGE_BYTES) as u64
}

/// All writes of a life in their order, and the disks at its end.
fn done(life: &Life) -> (Vec<Done>, Contents) {
    let mut contents = life.begin.clone();
    let mut writes = Vec::new();
    for event in &life.events {
        let Event::Begun {
            area,
            offset,
            change,
            ..
        } = event
        else {
            continue;
        };
        let data = match change {
            Change::Write(data) => data,
            Change::Discard(len) => {
                contents.discard(area, *offset, *len);
                continue;
            }
        };
        let before = contents.bytes(area, *offset, data.len());
        contents.put(area, *offset, data);
        writes.push(Done {
            area: area.clone(),
            offset: *offset,
            data: data.to_vec(),
            before,
        });
    }
    (writes, contents)
}

/// Where a write may go instead: a page to either side, and over others.
fn destinations(write: &Done, writes: &[Done], contents: &Contents) -> BTreeSet<u64> {
    let page = PAGE_BYTES as u64;
    let others = writes.iter().rev().filter(|other| other.area == write.area);
    let mut offsets: BTreeSet<u64> = others
        .map(|other| other.offset)
        .take(DESTINATIONS_MAX)
        .collect();
    offsets.extend([write.offset + page, write.offset.saturating_sub(page)]);
    let end = contents.areas()[&write.area].size_bytes;
    offsets.retain(|offset| *offset != write.offset && offset + write.data.len() as u64 <= end);
    offsets
}

struct Teller<'a> {
    sequence: &'a [Operation],
    seen: &'a Seen,
    lied: &'a mut Lied,
}

impl Teller<'_> {
    fn tell(
        &mut self,
        (lie, place): (Lie, &str),
        contents: Contents,
        at_read: Option<(String, u64, Option<Vec<u8>>)>,
        promise: &Promise,
    ) {
        if self.lied.violations.len() >= VIOLATIONS_MAX {
            return;
        }
        if at_read.is_none() {
            let digest = promise.digest(contents.digest(), false);
            if !self.seen.judged.insert(digest) {
                return;
            }
        }
        let scene = Scene {
            lie,
            contents,
            at_read,
        };
        let judged = caught(|| run(2, |runtime| judge(runtime, scene, promise.clone())));
        match judged.and_then(|outcome| outcome) {
            Ok(verdict) => *self.lied.outcomes.entry((lie, verdict)).or_default() += 1,
            Err(what) => {
                let sequence = self.sequence;
                let what = format!("{sequence:?}, {lie:?} of {place}: {what}");
                self.lied.violations.push(what);
            }
        }
    }

    /// Each sync in turn makes nothing durable, and what it should have made durable stays in
    /// doubt until the next sync of the area; the power fails at any point meanwhile.
    fn lying_syncs(&mut self, life: &Life) {
        let mut durable = life.begin.clone();
        let mut pending: Vec<Pending> = Vec::new();
        let synced = life.events.iter().filter_map(|event| match event {
            Event::Begun { ticket, area, .. } => (area == "home").then_some(*ticket),
            Event::Settled(..) => None,
        });
        let synced: BTreeSet<u64> = synced.collect();
        // Which tickets an earlier sync has lied about.
        let mut doubtful: Vec<u64> = Vec::new();
        for (point, event) in life.events.iter().enumerate() {
            match event {
                Event::Begun {
                    ticket,
                    area,
                    offset,
                    change,
                } => pending.push(Pending {
                    ticket: *ticket,
                    area: area.clone(),
                    offset: *offset,
                    change: change.clone(),
                }),
                Event::Settled(tickets) => {
                    let lies = tickets.iter().any(|ticket| synced.contains(ticket));
                    let settled = std::mem::take(&mut doubtful);
                    let is_settled = |one: &mut Pending| match lies {
                        true => settled.contains(&one.ticket),
                        false => tickets.contains(&one.ticket),
                    };
                    for settled in pending.extract_if(.., is_settled) {
                        settled.apply(&mut durable);
                    }
                    doubtful = if lies { tickets.clone() } else { settled };
                }
            }
            if doubtful.is_empty() {
                continue;
            }
            let promises = life.promises.iter().rev();
            let mut promises = promises.filter(|promise| promise.from_event <= point + 1);
            let promise = promises.next().expect("a promise from the beginning on");
            for disks in after_discards(&durable, &pending) {
                let undecided = undecided(&disks, &pending);
                for arrived in fates::subsets(&undecided) {
                    let chosen = (0..).zip(&undecided).filter(|(n, _)| arrived >> n & 1 == 1);
                    let chosen: Vec<_> = chosen.map(|(_, sector)| *sector).collect();
                    let mut state = disks.clone();
                    state.put_sectors(&chosen);
                    let place = format!("event {point}, arrived {arrived:x}");
                    self.tell((Lie::LyingSync, &place), state, None, promise);
                }
            }
        }
    }
}

/// Opens the disks and looks at everything.
async fn judge(runtime: Runtime, scene: Scene, promise: Promise) -> Result<Verdict, String> {
    let directory = MemoryDirectory::with_contents(runtime.clone(), &scene.contents);
    if let Some((area, page, bytes)) = &scene.at_read {
        let at = page * PAGE_BYTES as u64;
        match bytes {
            Some(bytes) => directory.read_once(area, *page, bytes),
            None => directory.fail_reads(area, at..at + PAGE_BYTES as u64),
        }
    }
    let opening = Store::open(runtime, std::rc::Rc::new(directory), options());
    let Ok((store, _report)) = opening.await else {
        return Ok(Verdict::Refused);
    };
    let (last, submitted) = (store.last_seq(SLICE).0, promise.records.len() as u64);
    if store.stable(SLICE).0 > promise.stable {
        return Err(format!("stable up to {:?}", store.stable(SLICE)));
    }
    let is_suspect = store.suspect_slices().contains(&SLICE);
    if !is_suspect && ![promise.acknowledged, submitted].contains(&last) {
        return Err(format!("the stream ends at {last} and nothing is suspect"));
    }
    for entry in store.tail(SLICE) {
        match store.read_record(SLICE, entry.view, entry.seq).await {
            Ok(found)
                if found.as_ref().map(|r| (r.view, r.body.clone()))
                    == promise.body(entry.seq.0) => {}
            Ok(found) => return Err(format!("{found:?} is another record")),
            Err(_) => {}
        }
    }
    store.set_stable(SLICE, Seq(last));
    read_all(&store, &promise, last).await?;
    store.flush().await.map_err(|error| error.to_string())?;
    let found = verified(&store).await;
    let damaged = read_all(&store, &promise, last).await?;
    if let Some(block) = damaged.difference(&found).next()
        && !is_suspect
        && scene.lie != Lie::StaleRead
    {
        return Err(format!("a verification overlooked block {block}"));
    }
    store.compact().await.map_err(|error| error.to_string())?;
    store.collect().await.map_err(|error| error.to_string())?;
    store.discard().await;
    let later = read_all(&store, &promise, last).await?;
    Ok(if is_suspect {
        Verdict::Suspect
    } else if damaged.is_empty() && later.is_empty() {
        Verdict::Harmless
    } else {
        Verdict::Damaged
    })
}

/// Reads every block. Returns those that are damaged; what is read has to be right.
async fn read_all(store: &Store, promise: &Promise, through: u64) -> Result<BTreeSet<u32>, String> {
    let mut damaged = BTreeSet::new();
    for block in 0..BLOCKS {
        match store.read(SLICE, block, 1).await {
            Ok(bytes) => {
                let fill = promise.fill(through, block);
                if !is_block(&bytes, fill) {
                    let found = bytes[0];
                    return Err(format!(
                        "block {block} at {through} reads {found}, not {fill}"
                    ));
                }
            }
            Err(StoreError::Damaged { .. }) => _ = damaged.insert(block),
            Err(error) => return Err(format!("block {block}: {error}")),
        }
    }
    Ok(damaged)
}

/// The blocks that a verification of everything finds damaged.
async fn verified(store: &Store) -> BTreeSet<u32> {
    let mut from = None;
    loop {
        from = store.verify(from).await.next;
        if from.is_none() {
            break;
        }
    }
    let found = store.damaged_blocks(None, BLOCKS as usize);
    found.map_or_else(BTreeSet::new, |found| found.blocks.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::super::sequences;
    use super::*;

    #[test]
    fn no_lie_of_the_device_is_read_as_the_truth() {
        let (seen, mut lied) = (Seen::default(), Lied::default());
        for sequence in sequences(0) {
            lie(&sequence, &seen, &mut lied);
        }
        assert_eq!(lied.violations, Vec::<String>::new());
        for lie in [
            Lie::LostWrite,
            Lie::MisdirectedWrite,
            Lie::StalePage,
            Lie::FlippedBit,
            Lie::UnreadablePage,
            Lie::LyingSync,
        ] {
            let noticed = lied
                .outcomes
                .iter()
                .filter(|((of, verdict), _)| *of == lie && *verdict != Verdict::Harmless);
            assert!(noticed.count() > 0, "{lie:?}: {:?}", lied.outcomes);
        }
    }
}
