//! Every state that a crash can leave behind, for all short sequences of operations.
//!
//! A sequence is played once on a machine that records each write and each point at which writes
//! became durable. A *crash point* lies behind each of these events. At a crash point every write
//! that is not durable may have arrived wholly, not at all, or in any part: every subset of its
//! sectors of 512 bytes if it is a page, else every beginning of it, all but any one sector, and
//! every second one; and that combined with what may have become of the others (writes in flight
//! have no order). Each state that differs from those before is opened, and has to hold what had
//! been acknowledged:
//!
//! * the stream has every acknowledged record, and none that was not submitted;
//! * the stable point is not above the one that was announced;
//! * after a takeover at any end of the stream every block reads as its records say.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::{Buffer, Runtime};
use xxhash_rust::xxh3::Xxh3;

use super::{Event, MemoryDirectory, Pages, SECTOR_BYTES, put, run};
use crate::{
    BLOCK_BYTES, Body, CopyState, OperationId, Record, Seq, SliceKey, Store, StoreOptions, View,
};

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
    /// What is stable goes home.
    Destage,
    /// Facts become tables.
    Compact,
    /// Segments are emptied.
    Collect,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Write,
        Self::Overwrite,
        Self::Unmap,
        Self::Zero,
        Self::Sync,
        Self::Destage,
        Self::Compact,
        Self::Collect,
    ];
}

/// What was tried.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Sequences played.
    pub sequences: u64,
    /// Points at which they were cut off.
    pub crash_points: u64,
    /// Different states opened.
    pub states: u64,
    /// What was wrong, in words.
    pub violations: Vec<String>,
}

const SLICE: SliceKey = SliceKey {
    volume: 1,
    slice: 0,
};
const BLOCKS: u32 = 4;
/// More writes than this are never in flight at once in a sequence of single operations.
const PENDING_MAX: usize = 5;

fn options() -> StoreOptions {
    StoreOptions {
        identity: *b"a store to crash",
        journal_bytes: 512 << 10,
        home_bytes: 4 << 20,
        slice_blocks: 1024,
    }
}

/// All sequences of `length` operations.
pub fn sequences(length: u32) -> impl Iterator<Item = Vec<Operation>> {
    let count = (Operation::ALL.len() as u64).pow(length);
    (0..count).map(move |mut number| {
        let mut sequence = Vec::new();
        for _ in 0..length {
            sequence.push(Operation::ALL[(number % 8) as usize]);
            number /= 8;
        }
        sequence
    })
}

/// What the records of a sequence say, and what was acknowledged when.
#[derive(Clone, Default)]
struct Model {
    /// What each record makes of the blocks: block and fill, zero for zeroes.
    records: Vec<Vec<(u32, u8)>>,
    stable: u64,
}

/// The model's promises from an event on.
#[derive(Clone, Copy)]
struct Promise {
    from_event: usize,
    acknowledged: u64,
    submitted: u64,
    stable: u64,
}

impl Model {
    fn content(&self, through: u64, block: u32) -> u8 {
        let records = self.records.iter().take(through as usize).rev();
        let mut writes = records.flat_map(|record| record.iter().rev());
        writes
            .find(|(written, _)| *written == block)
            .map_or(0, |(_, fill)| *fill)
    }
}

/// Plays a sequence and tries every state that a crash in it can leave. `seen` has the states
/// that were tried before.
pub fn explore(sequence: &[Operation], seen: &mut BTreeSet<u128>, explored: &mut Explored) {
    let played = run(1, |runtime| play(runtime, sequence.to_vec()));
    explored.sequences += 1;
    let Played {
        mut areas,
        events,
        promises,
        model,
    } = played;
    let mut pending: Vec<(u64, String, u64, Buffer)> = Vec::new();
    for point in 0..=events.len() {
        explored.crash_points += 1;
        let promise = promises
            .iter()
            .rev()
            .find(|promise| promise.from_event <= point);
        let promise = *promise.expect("a promise from the beginning on");
        assert!(
            pending.len() <= PENDING_MAX,
            "{} writes in flight",
            pending.len()
        );
        for fates in combinations(&pending) {
            let mut after = areas.clone();
            for ((_, area, offset, data), fate) in pending.iter().zip(&fates) {
                let pages = &mut after.get_mut(area).expect("a known area").1;
                survive(pages, *offset, data, *fate);
            }
            if !seen.insert(fingerprint(&after, &promise, &model)) {
                continue;
            }
            explored.states += 1;
            let checked = {
                let (model, after) = (model.clone(), after);
                run(2, |runtime| check(runtime, after, promise, model))
            };
            if let Err(what) = checked {
                let place = format!("{sequence:?}, event {point}, fates {fates:?}: {what}");
                explored.violations.push(place);
            }
        }
        match events.get(point) {
            Some(Event::Begun {
                ticket,
                area,
                offset,
                data,
            }) => pending.push((*ticket, area.clone(), *offset, data.clone())),
            Some(Event::Settled(tickets)) => {
                let settled = pending.extract_if(.., |write| tickets.contains(&write.0));
                for (_, area, offset, data) in settled {
                    put(
                        &mut areas.get_mut(&area).expect("a known area").1,
                        offset,
                        &data,
                    );
                }
            }
            None => {}
        }
    }
}

/// What became of one write: which of its sectors arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// By bits, the lowest for the first.
    Sectors(u64),
    First(usize),
    AllBut(usize),
    Alternate,
}

impl Fate {
    const NONE: Self = Self::First(0);
    const ALL: Self = Self::First(usize::MAX);

    fn arrived(self, sector: usize) -> bool {
        match self {
            Self::Sectors(bits) => bits >> sector & 1 == 1,
            Self::First(count) => sector < count,
            Self::AllBut(missing) => sector != missing,
            Self::Alternate => sector.is_multiple_of(2),
        }
    }

    /// Fates of a write of so many sectors: every subset where there are few.
    fn all_of(sectors: usize) -> Vec<Self> {
        if sectors <= 8 {
            return (0..1 << sectors).map(Self::Sectors).collect();
        }
        let prefixes = (0..=sectors).map(Self::First);
        let gaps = (0..sectors).map(Self::AllBut);
        prefixes.chain(gaps).chain([Self::Alternate]).collect()
    }
}

/// Fates of several writes: each in turn suffers everything, while the others suffer the usual.
fn combinations(pending: &[(u64, String, u64, Buffer)]) -> Vec<Vec<Fate>> {
    const USUAL: [Fate; 3] = [Fate::NONE, Fate::ALL, Fate::Alternate];
    if pending.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (number, (_, _, _, data)) in pending.iter().enumerate() {
        let others = pending.len() - 1;
        for fate in Fate::all_of(data.len() / SECTOR_BYTES) {
            for usual in 0..3usize.pow(others as u32) {
                let mut fates: Vec<Fate> = (0..others)
                    .map(|other| USUAL[usual / 3usize.pow(other as u32) % 3])
                    .collect();
                fates.insert(number, fate);
                all.push(fates);
            }
        }
    }
    all
}

fn survive(pages: &mut Pages, offset: u64, data: &[u8], fate: Fate) {
    for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
        if fate.arrived(number) {
            put(pages, offset + (number * SECTOR_BYTES) as u64, sector);
        }
    }
}

fn fingerprint(areas: &BTreeMap<String, (u64, Pages)>, promise: &Promise, model: &Model) -> u128 {
    let mut hash = Xxh3::new();
    for (name, (_, pages)) in areas {
        hash.update(name.as_bytes());
        for (page, bytes) in pages {
            hash.update(&page.to_le_bytes());
            hash.update(bytes);
        }
    }
    for number in [promise.acknowledged, promise.submitted, promise.stable] {
        hash.update(&number.to_le_bytes());
    }
    for record in &model.records {
        for (block, fill) in record {
            hash.update(&block.to_le_bytes());
            hash.update(&[*fill]);
        }
        hash.update(b".");
    }
    hash.digest128()
}

struct Played {
    areas: BTreeMap<String, (u64, Pages)>,
    events: Vec<Event>,
    promises: Vec<Promise>,
    model: Model,
}

async fn opened(runtime: &Runtime, directory: &MemoryDirectory) -> Result<Rc<Store>, String> {
    let opening = Store::open(runtime.clone(), Rc::new(directory.clone()), options());
    let (store, report) = opening
        .await
        .map_err(|error| format!("not opened: {error}"))?;
    if report.found_damage() || store.damaged() {
        return Err(format!("a crash is no damage: {report:?}"));
    }
    Ok(store)
}

async fn play(runtime: Runtime, sequence: Vec<Operation>) -> Played {
    let directory = MemoryDirectory::new(runtime.clone());
    let store = opened(&runtime, &directory)
        .await
        .expect("a new store opens");
    store
        .set_copy_state(SLICE, CopyState::InSync)
        .await
        .expect("a new store works");
    let mut model = Model::default();
    // What each sequence finds: a block at home, another only in the journal.
    append(&store, &mut model, Operation::Overwrite).await;
    model.stable = 1;
    store.set_stable(SLICE, Seq(1));
    store.flush().await.expect("a new store works");
    append(&store, &mut model, Operation::Overwrite).await;
    let areas = directory.record();
    let mut promises = vec![promise(&directory, &model)];
    for operation in sequence {
        match operation {
            Operation::Write | Operation::Overwrite | Operation::Unmap | Operation::Zero => {
                let submitted = model.records.len() as u64 + 1;
                promises.push(Promise {
                    submitted,
                    ..promise(&directory, &model)
                });
                append(&store, &mut model, operation).await;
            }
            Operation::Sync => {
                model.stable = model.records.len() as u64;
                promises.push(promise(&directory, &model));
                store.set_stable(SLICE, Seq(model.stable));
            }
            Operation::Destage => store.flush().await.expect("a whole disk"),
            Operation::Compact => store.compact().await.expect("a whole disk"),
            Operation::Collect => store.collect().await.expect("a whole disk"),
        }
        promises.push(promise(&directory, &model));
    }
    let events = directory.take_events();
    Played {
        areas,
        events,
        promises,
        model,
    }
}

fn promise(directory: &MemoryDirectory, model: &Model) -> Promise {
    Promise {
        from_event: directory.recorded(),
        acknowledged: model.records.len() as u64,
        submitted: model.records.len() as u64,
        stable: model.stable,
    }
}

async fn append(store: &Rc<Store>, model: &mut Model, operation: Operation) {
    let seq = model.records.len() as u64 + 1;
    let fill = seq as u8;
    let (writes, body) = match operation {
        Operation::Write => (vec![(2, fill)], written(2, fill)),
        Operation::Unmap => (
            vec![(1, 0), (2, 0)],
            Body::Zero {
                first_block: 1,
                blocks: 2,
            },
        ),
        Operation::Zero => (
            vec![(2, 0)],
            Body::Zero {
                first_block: 2,
                blocks: 1,
            },
        ),
        Operation::Overwrite
        | Operation::Sync
        | Operation::Destage
        | Operation::Compact
        | Operation::Collect => (vec![(1, fill)], written(1, fill)),
    };
    model.records.push(writes);
    let record = Record {
        slice: SLICE,
        view: View(1),
        seq: Seq(seq),
        stable: Seq(model.stable),
        operation: OperationId {
            origin: 1,
            number: seq,
        },
        body,
    };
    store.append(vec![record]).await.expect("a whole disk");
}

fn written(first_block: u32, fill: u8) -> Body {
    Body::Write {
        first_block,
        data: Bytes::from(vec![fill; BLOCK_BYTES]),
    }
}

async fn check(
    runtime: Runtime,
    areas: BTreeMap<String, (u64, Pages)>,
    promise: Promise,
    model: Model,
) -> Result<(), String> {
    let directory = MemoryDirectory::with_areas(runtime.clone(), &areas);
    let store = opened(&runtime, &directory).await?;
    let last = store.last_seq(SLICE).0;
    if last < promise.acknowledged || last > promise.submitted {
        return Err(format!("the stream ends at {last}"));
    }
    let stable = store.stable(SLICE).0;
    if stable > promise.stable {
        return Err(format!("stable up to {stable}"));
    }
    for entry in store.tail(SLICE) {
        let found = store.read_record(SLICE, entry.view, entry.seq).await;
        if !matches!(found, Ok(Some(_))) {
            return Err(format!("record {:?} cannot be read", entry.seq));
        }
    }
    // As it is, and once all of it is stable and at home.
    for through in [stable.max(promise.stable.min(last)), last] {
        store.set_stable(SLICE, Seq(through));
        for block in 0..BLOCKS {
            let read = store.read(SLICE, block, 1).await;
            let read = read.map_err(|error| format!("block {block}: {error}"))?;
            let wanted = model.content(through, block);
            if read.iter().any(|byte| *byte != wanted) {
                return Err(format!("block {block} at {through} reads {}", read[0]));
            }
        }
    }
    store.flush().await.map_err(|error| error.to_string())?;
    for block in 0..BLOCKS {
        let read = store.read(SLICE, block, 1).await;
        let read = read.map_err(|error| format!("block {block} at home: {error}"))?;
        if read.iter().any(|byte| *byte != model.content(last, block)) {
            return Err(format!("block {block} at home reads {}", read[0]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_crash_in_a_short_sequence_loses_or_invents_anything() {
        let mut explored = Explored::default();
        let mut seen = BTreeSet::new();
        for sequence in (0..=1).flat_map(sequences) {
            explore(&sequence, &mut seen, &mut explored);
        }
        assert_eq!(explored.violations, Vec::<String>::new());
        assert!(explored.states > 100, "{explored:?}");
    }
}
