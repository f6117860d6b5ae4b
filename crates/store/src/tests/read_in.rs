//! Serving before the journal is read in.

use super::*;
use crate::testing::run;
use crate::{CopyState, StoreError};

/// Records of 64 blocks each: record `n` fills the blocks of run `n`. Large enough for a scan to go
/// from header to header, and more of them than are read at once.
const RECORDS: u64 = 50;
const RUN: u32 = 64;
const STORE: StoreOptions = StoreOptions {
    identity: *b"a store for test",
    journal_bytes: 32 * MIB,
    home_bytes: 32 * MIB,
    home_preallocated: false,
    slice_blocks: 4096,
    bounds: StoreBounds::SERVICE,
};

async fn open(runtime: &Runtime, directory: &MemoryDirectory) -> (Rc<Store>, RecoveryReport) {
    let opened = Store::open(runtime.clone(), Rc::new(directory.clone()), STORE);
    opened.await.expect("the store opens")
}

/// The bytes of a run, each block with a mark of its own.
fn run_of(fill: u8) -> Bytes {
    let mut bytes = vec![fill; RUN as usize * BLOCK_BYTES];
    for (number, block) in (0..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
        block[0] = number;
    }
    Bytes::from(bytes)
}

/// Overwrites a run.
fn write_run(seq: u64, run: u32, fill: u8) -> Record {
    let first_block = run * RUN;
    let data = run_of(fill);
    record(SLICE, seq, Body::Write { first_block, data })
}

async fn read_run(store: &Store, run: u32) -> Result<Bytes, StoreError> {
    store.read(SLICE, run * RUN, RUN).await
}

/// A store that was killed with stable records in its journal, and nothing in its home.
async fn full_journal(runtime: &Runtime) -> MemoryDirectory {
    let directory = MemoryDirectory::new(runtime.clone());
    let (store, _) = open(runtime, &directory).await;
    store
        .set_copy_state(SLICE, CopyState::InSync)
        .await
        .unwrap();
    for seq in 1..=RECORDS {
        let record = Record {
            stable: Seq(seq - 1),
            ..write_run(seq, seq as u32, seq as u8)
        };
        store.append(vec![record]).await.unwrap();
    }
    drop(store);
    directory.kill();
    directory
}

fn is_unread(store: &Store) -> bool {
    !store.inner.unread.is_empty()
}

/// Flips a bit of the second block of a run, in the only place where the journal holds it.
fn damage(directory: &MemoryDirectory, fill: u8) {
    let run = run_of(fill);
    let wanted = &run[BLOCK_BYTES..2 * BLOCK_BYTES];
    let pages = (0..STORE.journal_bytes).step_by(BLOCK_BYTES);
    let mut found = pages.filter(|at| directory.peek("journal", *at, BLOCK_BYTES) == wanted);
    directory.flip("journal", found.next().unwrap() + 11);
    assert_eq!(found.next(), None);
}

#[test]
fn what_the_journal_holds_is_read_and_overwritten_before_it_is_read_in() {
    run(1, |runtime| async move {
        let directory = full_journal(&runtime).await;
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(report.records, RECORDS);
        assert_eq!(store.stable(SLICE), Seq(RECORDS - 1));
        let run = RECORDS as u32 - 1;
        let read = store.read(SLICE, run * RUN + 3, 1).await.unwrap();
        let wanted = run_of(run as u8).slice(3 * BLOCK_BYTES..4 * BLOCK_BYTES);
        assert_eq!(read, wanted);
        let home_writes = directory.writes("home");
        store
            .append(vec![write_run(RECORDS + 1, 40, 201)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(RECORDS + 1));
        assert_eq!(read_run(&store, 40).await.unwrap(), run_of(201));
        assert!(is_unread(&store), "this took no longer than the rest does");

        let recovered = async {
            store.recovered().await.unwrap();
            assert!(!is_unread(&store));
            assert_eq!(directory.writes("home"), home_writes);
        };
        let (flushed, ()) = futures::join!(store.flush(), recovered);
        flushed.unwrap();
        assert!(directory.writes("home") > home_writes);
        for run in 1..=RECORDS as u32 {
            let wanted = if run == 40 { 201 } else { run as u8 };
            assert_eq!(read_run(&store, run).await.unwrap(), run_of(wanted));
        }
        assert!(!store.damaged());
    });
}

#[test]
fn a_record_whose_data_is_lost_is_found_while_the_journal_is_read_in() {
    run(1, |runtime| async move {
        let directory = full_journal(&runtime).await;
        damage(&directory, 30);
        let block = 30 * RUN + 1;
        let lost = Err(StoreError::Damaged {
            slice: SLICE,
            block,
        });
        for is_asked_at_once in [true, false] {
            let (store, report) = open(&runtime, &directory).await;
            assert_eq!(report.damaged_records, 0, "{report:?}");
            assert!(is_unread(&store));
            if is_asked_at_once {
                assert_eq!(store.read(SLICE, block, 1).await, lost);
            }
            store.recovered().await.unwrap();
            let damaged = store.damaged_blocks(None, 10).unwrap();
            assert_eq!((damaged.slice, damaged.blocks), (SLICE, vec![block]));
            assert_eq!(store.read(SLICE, block, 1).await, lost);
            assert_eq!(read_run(&store, 31).await.unwrap(), run_of(31));
            drop(store);
            directory.kill();
        }
    });
}

#[test]
fn data_above_the_stable_point_is_verified_before_the_store_opens() {
    run(1, |runtime| async move {
        let directory = full_journal(&runtime).await;
        // Its seal proves that the last record was complete.
        let (store, _) = open(&runtime, &directory).await;
        drop(store);
        directory.kill();
        damage(&directory, RECORDS as u8);
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(report.damaged_records, 1);
        let tail = store.tail(SLICE);
        assert_eq!(tail.len(), 1);
        assert!(tail[0].damaged);
        assert!(is_unread(&store));
    });
}

#[test]
fn a_start_that_is_cut_off_while_the_journal_is_read_in_loses_nothing() {
    run(1, |runtime| async move {
        let directory = full_journal(&runtime).await;
        for start in 1..=5 {
            let (store, _) = open(&runtime, &directory).await;
            let seq = RECORDS + start;
            store
                .append(vec![write_run(seq, start as u32, 200 + start as u8)])
                .await
                .unwrap();
            store.set_stable(SLICE, Seq(seq));
            assert!(is_unread(&store));
            drop(store);
            directory.kill();
        }
        let (store, _) = open(&runtime, &directory).await;
        store.set_stable(SLICE, Seq(RECORDS + 5));
        for run in 1..=RECORDS as u32 {
            let wanted = if run <= 5 { 200 + run } else { run };
            assert_eq!(read_run(&store, run).await.unwrap(), run_of(wanted as u8));
        }
    });
}
