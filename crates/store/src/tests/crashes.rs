//! Random work, random power cuts, and a model that knows what must have survived.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::*;
use crate::testing::{Dice, run};
use crate::{CopyState, StoreError};

const BLOCKS: u32 = 600;
const SLICES: u32 = 2;

/// What one issued record did: its view, first block, blocks, and whether it zeroed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Issued {
    view: u64,
    first: u32,
    blocks: u32,
    zero: bool,
}

#[derive(Default)]
struct SliceModel {
    /// Every record that may be found, by sequence number.
    issued: BTreeMap<u64, Vec<Issued>>,
    /// Views of the records that must be found.
    acked: BTreeMap<u64, u64>,
    stable: u64,
    next: u64,
    view: u64,
}

impl SliceModel {
    fn cut(&mut self, keep: u64) {
        self.issued.split_off(&(keep + 1));
        self.acked.split_off(&(keep + 1));
        self.next = keep + 1;
    }

    /// What a block holds at the stable point.
    fn content(&self, slice: SliceKey, block: u32) -> Bytes {
        let writer = self
            .issued
            .range(..=self.stable)
            .rev()
            .find_map(|(seq, issued)| {
                let last = issued.last().copied()?;
                (last.first..last.first + last.blocks)
                    .contains(&block)
                    .then_some((*seq, last))
            });
        match writer {
            Some((seq, issued)) if !issued.zero => content(slice, seq, issued.view, block),
            Some(_) | None => super::block(0),
        }
    }
}

type Model = Rc<RefCell<BTreeMap<SliceKey, SliceModel>>>;

fn content(slice: SliceKey, seq: u64, view: u64, block: u32) -> Bytes {
    let word = [u64::from(slice.slice) + 1, seq, view, u64::from(block)].map(u64::to_le_bytes);
    Bytes::from(word.concat().repeat(BLOCK_BYTES / 32))
}

fn body(slice: SliceKey, seq: u64, issued: Issued) -> Body {
    let Issued {
        view,
        first,
        blocks,
        zero,
    } = issued;
    if blocks == 0 {
        return Body::Nothing;
    }
    if zero {
        return Body::Zero {
            first_block: first,
            blocks,
        };
    }
    let range = first..first + blocks;
    let bytes: Vec<Bytes> = range
        .map(|block| content(slice, seq, view, block))
        .collect();
    Body::Write {
        first_block: first,
        data: Bytes::from(bytes.concat()),
    }
}

/// Works until it is dropped.
async fn work(store: Rc<Store>, model: Model, dice: Rc<Dice>, runtime: Runtime) {
    let mut appends = FuturesUnordered::new();
    loop {
        let slice = SliceKey {
            volume: 1,
            slice: dice.below(u64::from(SLICES)) as u32,
        };
        match dice.below(20) {
            0..10 => {
                let mut records = Vec::new();
                for _ in 0..=dice.below(3) {
                    let mut models = model.borrow_mut();
                    let own = models.get_mut(&slice).unwrap();
                    let seq = own.next;
                    own.next += 1;
                    let issued = match dice.below(10) {
                        0 => Issued {
                            view: own.view,
                            first: 0,
                            blocks: 0,
                            zero: false,
                        },
                        kind => {
                            let zero = kind == 1;
                            let most = if zero { 400 } else { 6 };
                            let blocks = 1 + dice.below(most) as u32;
                            let first = dice.below(u64::from(BLOCKS - blocks)) as u32;
                            Issued {
                                view: own.view,
                                first,
                                blocks,
                                zero,
                            }
                        }
                    };
                    own.issued.entry(seq).or_default().push(issued);
                    records.push(Record {
                        slice,
                        view: View(issued.view),
                        seq: Seq(seq),
                        stable: Seq(own.stable),
                        operation: OperationId {
                            origin: 1,
                            number: seq,
                        },
                        body: body(slice, seq, issued),
                    });
                }
                let seqs: Vec<(u64, u64)> = records
                    .iter()
                    .map(|record| (record.seq.0, record.view.0))
                    .collect();
                let append = store.append(records);
                appends.push(async move { (slice, seqs, append.await) });
                if appends.len() < 8 {
                    continue;
                }
                let Some((slice, seqs, outcome)) = appends.next().await else {
                    continue;
                };
                note(&model, slice, &seqs, outcome);
            }
            10..14 => {
                let mut models = model.borrow_mut();
                let own = models.get_mut(&slice).unwrap();
                let highest = own.acked.last_key_value().map_or(0, |(seq, _)| *seq);
                if highest > own.stable {
                    own.stable += 1 + dice.below(highest - own.stable);
                    store.set_stable(slice, Seq(own.stable));
                }
            }
            14..17 => {
                let first = dice.below(u64::from(BLOCKS - 8)) as u32;
                let read = store.read(slice, first, 8).await.unwrap();
                for (bytes, block) in read.chunks(BLOCK_BYTES).zip(first..) {
                    expect(bytes, &model.borrow()[&slice], slice, block);
                }
            }
            17 => runtime.sleep(Duration::from_millis(dice.below(8))).await,
            18 => {
                while let Some((slice, seqs, outcome)) = appends.next().await {
                    note(&model, slice, &seqs, outcome);
                }
                if dice.below(3) == 0 {
                    store.flush().await.unwrap();
                }
            }
            _ => {
                let keep = {
                    let mut models = model.borrow_mut();
                    let own = models.get_mut(&slice).unwrap();
                    let keep = own.stable + dice.below(own.next - own.stable);
                    // From here on what is above may be found or not.
                    own.acked.split_off(&(keep + 1));
                    own.view += 1;
                    keep
                };
                store.truncate(slice, Seq(keep)).await.unwrap();
                model.borrow_mut().get_mut(&slice).unwrap().cut(keep);
            }
        }
    }
}

fn note(model: &Model, slice: SliceKey, seqs: &[(u64, u64)], outcome: Result<(), StoreError>) {
    match outcome {
        Ok(()) => {
            let mut models = model.borrow_mut();
            let own = models.get_mut(&slice).unwrap();
            for (seq, view) in seqs {
                // An answer that arrives after its record was truncated promises nothing.
                if own.view == *view {
                    own.acked.insert(*seq, *view);
                }
            }
        }
        Err(StoreError::Withdrawn) => {}
        Err(error) => panic!("an append failed: {error}"),
    }
}

/// What must be found is found, and what is found was issued.
async fn check_stream(store: &Rc<Store>, slice: SliceKey, own: &SliceModel) {
    let stable = store.stable(slice).0;
    assert!(stable <= own.stable, "the stable point cannot be invented");
    let tail: BTreeMap<u64, u64> = store
        .tail(slice)
        .iter()
        .map(|entry| (entry.seq.0, entry.view.0))
        .collect();
    for (seq, view) in own.acked.range(stable + 1..) {
        assert_eq!(
            tail.get(seq),
            Some(view),
            "acknowledged record {seq} of {slice:?}"
        );
    }
    for (seq, view) in tail {
        let issued = own.issued.get(&seq).into_iter().flatten();
        let issued = *issued.rev().find(|issued| issued.view == view).unwrap();
        let found = store
            .read_record(slice, View(view), Seq(seq))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.body, body(slice, seq, issued));
    }
}

/// As a takeover does: keeps a part of the tail and makes it stable.
async fn take_over(store: &Rc<Store>, slice: SliceKey, own: &mut SliceModel, dice: &Dice) {
    let last = store.last_seq(slice).0.max(own.stable);
    let keep = own.stable + dice.below(last - own.stable + 1);
    for entry in store.tail(slice) {
        // The version that was found is the one that is there.
        let issued = own.issued.get_mut(&entry.seq.0).unwrap();
        issued.retain(|issued| issued.view == entry.view.0);
    }
    store.truncate(slice, Seq(keep)).await.unwrap();
    own.cut(keep);
    own.view += 1;
    own.stable = keep;
    store.set_stable(slice, Seq(keep));
}

fn expect(bytes: &[u8], own: &SliceModel, slice: SliceKey, block: u32) {
    let wanted = own.content(slice, block);
    assert!(
        *bytes == wanted[..],
        "block {block} of {slice:?} at {}: {:?} instead of {:?} (slice + 1, seq, view, block)",
        own.stable,
        words(bytes),
        words(&wanted),
    );
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    };
    bytes[..32].chunks(8).map(word).collect()
}

async fn check_reads(store: &Rc<Store>, slice: SliceKey, own: &SliceModel) {
    let read = store.read(slice, 0, BLOCKS).await.unwrap();
    for (bytes, block) in read.chunks(BLOCK_BYTES).zip(0..) {
        expect(bytes, own, slice, block);
    }
}

async fn new_model(store: &Rc<Store>) -> Model {
    let model = Model::default();
    for slice in 0..SLICES {
        let slice = SliceKey { volume: 1, slice };
        store
            .set_copy_state(slice, CopyState::InSync)
            .await
            .unwrap();
        let own = SliceModel {
            next: 1,
            view: 1,
            ..SliceModel::default()
        };
        model.borrow_mut().insert(slice, own);
    }
    model
}

fn survive(seed: u64, lives: u64) {
    run(seed, |runtime| async move {
        let dice = Rc::new(Dice::new(seed));
        let directory = MemoryDirectory::new(runtime.clone());
        let (mut store, _) = open(&runtime, &directory).await;
        let model = new_model(&store).await;
        for _ in 0..lives {
            let life = Duration::from_micros(dice.below(1 << (8 + dice.below(14))));
            let working = work(store.clone(), model.clone(), dice.clone(), runtime.clone());
            runtime.timeout(life, working).await;
            drop(store);
            directory.crash(&dice);
            if dice.below(4) == 0 {
                // Another crash, in the middle of recovery.
                let early = Duration::from_micros(dice.below(3000));
                let opening = open(&runtime, &directory);
                runtime.timeout(early, opening).await;
                directory.crash(&dice);
            }
            let report;
            (store, report) = open(&runtime, &directory).await;
            assert_eq!(
                (report.holes, report.damaged_records),
                (0, 0),
                "a crash is no damage"
            );
            assert!(!store.damaged());
            let mut models = model.take();
            for (slice, own) in &mut models {
                check_stream(&store, *slice, own).await;
                take_over(&store, *slice, own, &dice).await;
                check_reads(&store, *slice, own).await;
            }
            model.replace(models);
        }
        store.flush().await.unwrap();
        let models = model.take();
        for (slice, own) in &models {
            check_reads(&store, *slice, own).await;
        }
        assert!(
            store.usage().home_used_bytes <= u64::from(SLICES * BLOCKS) * BLOCK_BYTES as u64,
            "no block is leaked"
        );
    });
}

/// One flipped byte anywhere after a crash: an honest answer, never a wrong one.
fn survive_flip(seed: u64) {
    run(seed, |runtime| async move {
        let dice = Rc::new(Dice::new(seed));
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let model = new_model(&store).await;
        let life = Duration::from_micros(1000 + dice.below(1 << 20));
        let working = work(store.clone(), model.clone(), dice.clone(), runtime.clone());
        runtime.timeout(life, working).await;
        // Long enough for the last batch to be sealed.
        runtime.sleep(Duration::from_millis(20)).await;
        drop(store);
        directory.crash(&dice);
        let (area, bytes) = match dice.below(6) {
            0 => ("facts", 4096),
            1 => ("home", 64 * 1024),
            2 => ("home", 9 * MIB),
            3 => ("journal", 8192),
            _ => ("journal", MIB),
        };
        let offset = dice.below(bytes);
        directory.flip(area, offset);
        let (store, report) = open(&runtime, &directory).await;
        println!("{area} {offset}: {report:?}");
        let models = model.take();
        for (slice, own) in &models {
            let stable = store.stable(*slice).0;
            let tail = store.tail(*slice);
            for (seq, view) in own.acked.range(stable + 1..) {
                let found = tail
                    .iter()
                    .any(|entry| (entry.seq.0, entry.view.0) == (*seq, *view));
                assert!(
                    found || store.damaged(),
                    "{seq} absent: {area} {offset} {report:?}"
                );
            }
            store.set_stable(*slice, Seq(own.stable));
            for block in 0..BLOCKS {
                match store.read(*slice, block, 1).await {
                    Ok(bytes) => expect(&bytes, own, *slice, block),
                    Err(StoreError::Damaged { .. }) => assert!(store.damaged()),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
}

/// The seed is printed before its run: the last one printed by a failing test replays it.
fn for_seeds(seeds: std::ops::Range<u64>, test: impl Fn(u64)) {
    for seed in seeds {
        println!("seed {seed}");
        test(seed);
    }
}

#[test]
fn every_acknowledged_record_survives_any_crash() {
    for_seeds(0..60, |seed| survive(seed, 6));
}

#[test]
fn one_damaged_byte_never_makes_a_read_wrong() {
    for_seeds(1000..1080, survive_flip);
}
