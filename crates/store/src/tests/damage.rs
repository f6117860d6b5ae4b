//! One test for each case of the recovery tables, and the latch of a failed write.

use std::time::Duration;

use super::*;
use crate::testing::run;
use crate::{Copied, CopiedBlock, CopyState, JournalEnd, StoreError};

const PAGE: u64 = 4096;
/// The ring begins behind two header pages; its first page is the seal of the first opening.
const FIRST_BATCH: u64 = 3 * PAGE;

async fn sealed(runtime: &Runtime) {
    runtime.sleep(Duration::from_millis(10)).await;
}

/// A store with record 1 of `SLICE`, sealed, and stopped.
async fn one_record(runtime: &Runtime) -> MemoryDirectory {
    let directory = MemoryDirectory::new(runtime.clone());
    let (store, _) = open_in_sync(runtime, &directory).await;
    store.append(vec![write(1, 5, 1)]).await.unwrap();
    sealed(runtime).await;
    drop(store);
    directory.kill();
    directory
}

/// A store whose home holds block 5 of `SLICE` in its first extent, and stopped.
async fn one_block_at_home(runtime: &Runtime) -> MemoryDirectory {
    let directory = one_record(runtime).await;
    let (store, _) = open(runtime, &directory).await;
    store.set_stable(SLICE, Seq(1));
    store.flush().await.unwrap();
    drop(store);
    directory.kill();
    directory
}

async fn refused(runtime: &Runtime, directory: &MemoryDirectory) -> StoreError {
    let directory = Rc::new(directory.clone());
    match Store::open(runtime.clone(), directory, options()).await {
        Ok(_) => panic!("the store must not open"),
        Err(error) => error,
    }
}

#[test]
fn recovery_clean_end_finds_every_record() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(
            (report.end, report.records, report.holes),
            (JournalEnd::Clean, 1, 0)
        );
        assert_eq!(store.last_seq(SLICE), Seq(1));
        assert!(!store.damaged());
    });
}

#[test]
fn recovery_torn_head_is_cut() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(2, 6, 2)]).await.unwrap();
        drop(store);
        directory.kill();
        // Seal, record 1, seal, seal of the second opening, record 2: its data page.
        directory.flip("journal", FIRST_BATCH + 5 * PAGE);
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(
            (report.end, report.damaged_records),
            (JournalEnd::TornHead, 0)
        );
        assert_eq!(store.last_seq(SLICE), Seq(1));
        store.append(vec![write(2, 6, 3)]).await.unwrap();
        drop(store);
        directory.kill();
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(report.end, JournalEnd::Clean, "a cut is decided once");
        store.set_stable(SLICE, Seq(2));
        assert_eq!(store.read(SLICE, 6, 1).await.unwrap(), block(3));
    });
}

#[test]
fn recovery_torn_header_at_the_head_is_cut() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(2, 6, 2)]).await.unwrap();
        drop(store);
        directory.kill();
        directory.flip("journal", FIRST_BATCH + 4 * PAGE + 100);
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!((report.end, report.holes), (JournalEnd::TornHead, 0));
        assert_eq!(store.last_seq(SLICE), Seq(1));
    });
}

#[test]
fn recovery_damaged_middle_data_is_unknown_until_a_copy_heals_it() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        directory.flip("journal", FIRST_BATCH + PAGE + 77);
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!((report.end, report.damaged_records), (JournalEnd::Clean, 1));
        assert_eq!(store.last_seq(SLICE), Seq(1), "unknown, never absent");
        assert!(store.tail(SLICE)[0].damaged);
        let lost = Err(StoreError::Damaged {
            slice: SLICE,
            block: 5,
        });
        assert_eq!(store.read_record(SLICE, View(1), Seq(1)).await, lost);
        store.set_stable(SLICE, Seq(1));
        let lost = Err(StoreError::Damaged {
            slice: SLICE,
            block: 5,
        });
        assert_eq!(store.read(SLICE, 5, 1).await, lost);
        assert!(store.damaged());
        store.flush().await.unwrap();
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(
            store.read(SLICE, 5, 1).await,
            lost,
            "the home keeps the knowledge"
        );
        assert_eq!(store.read(SLICE, 4, 1).await.unwrap(), block(0));
        let copied = CopiedBlock {
            block: 5,
            view: View(1),
            seq: Seq(1),
            content: Copied::Bytes(block(1)),
        };
        store.install(SLICE, vec![copied]).await.unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
        assert!(!store.damaged());
        store.flush().await.unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
    });
}

#[test]
fn recovery_damaged_middle_header_makes_only_unproven_slices_suspect() {
    run(1, |runtime| async move {
        let other = SliceKey {
            volume: 8,
            slice: 0,
        };
        let elsewhere = |seq: u64, fill| {
            record(
                other,
                seq,
                Body::Write {
                    first_block: 0,
                    data: block(fill),
                },
            )
        };
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        store
            .set_copy_state(other, CopyState::InSync)
            .await
            .unwrap();
        store.append(vec![elsewhere(1, 1)]).await.unwrap();
        store.append(vec![write(1, 5, 1)]).await.unwrap();
        store.append(vec![elsewhere(2, 2)]).await.unwrap();
        sealed(&runtime).await;
        drop(store);
        directory.kill();
        directory.flip("journal", FIRST_BATCH + 2 * PAGE + 40);
        for opening in 0..2 {
            let (store, report) = open(&runtime, &directory).await;
            assert_eq!(
                (report.holes, report.suspect_slices),
                (1 - opening, vec![SLICE])
            );
            assert_eq!(store.base(SLICE), Seq(0));
            let lost = Err(StoreError::Damaged {
                slice: SLICE,
                block: 0,
            });
            assert_eq!(store.read(SLICE, 0, 1).await, lost);
            store.set_stable(other, Seq(2));
            assert_eq!(store.read(other, 0, 1).await.unwrap(), block(2));
            let unknown = SliceKey {
                volume: 99,
                slice: 0,
            };
            assert!(
                store.read(unknown, 0, 1).await.is_err(),
                "it may have been in the hole"
            );
            // After this the hole has left the journal, and is remembered.
            store.flush().await.unwrap();
            drop(store);
            directory.kill();
        }
        let (store, _) = open_in_sync(&runtime, &directory).await;
        assert!(store.suspect_slices().is_empty());
        assert_eq!(store.read(SLICE, 0, 1).await.unwrap(), block(0));
    });
}

#[test]
fn recovery_overwritten_end_is_no_torn_head() {
    // The seal of record 1 went astray: over the header of that record, or over its data.
    for (page, holes, damaged_records) in [(0, 1, 0), (1, 0, 1)] {
        run(1, |runtime| async move {
            let directory = one_record(&runtime).await;
            let seal = directory.peek("journal", FIRST_BATCH + 2 * PAGE, PAGE as usize);
            directory.poke("journal", FIRST_BATCH + page * PAGE, &seal);
            directory.poke("journal", FIRST_BATCH + 2 * PAGE, &[0; PAGE as usize]);
            for opening in 0..2 {
                let (store, report) = open(&runtime, &directory).await;
                let found = (report.holes, report.damaged_records);
                // Once it is said durably that the slice is suspect, the hole is closed.
                let wanted = (holes * u64::from(opening == 0), damaged_records);
                assert_eq!(found, wanted, "{report:?}");
                store.set_stable(SLICE, Seq(1));
                let read = store.read(SLICE, 5, 1).await;
                assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
                drop(store);
                directory.kill();
            }
        });
    }
}

#[test]
fn recovery_follows_the_journal_around_its_end_and_stops_at_the_last_lap() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        // Each append takes 8 KiB of a ring of 1 MiB: records 101 to 160 lie across its end.
        for seq in 1..=160u64 {
            store
                .append(vec![write(seq, seq as u32, seq as u8)])
                .await
                .unwrap();
            if seq == 100 {
                store.set_stable(SLICE, Seq(100));
                store.flush().await.unwrap();
            }
        }
        sealed(&runtime).await;
        drop(store);
        directory.kill();
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!((report.end, report.records), (JournalEnd::Clean, 60));
        assert_eq!(store.tail(SLICE).len(), 60);
        for entry in store.tail(SLICE) {
            let found = store.read_record(SLICE, View(1), entry.seq).await.unwrap();
            assert_eq!(
                found,
                Some(write(entry.seq.0, entry.seq.0 as u32, entry.seq.0 as u8))
            );
        }
        assert_eq!(store.read(SLICE, 100, 1).await.unwrap(), block(100));
    });
}

#[test]
fn recovery_one_torn_header_page_uses_the_other_and_repairs_it() {
    run(1, |runtime| async move {
        let directory = one_block_at_home(&runtime).await;
        for page in 0..2 {
            directory.flip("journal", page * PAGE + 40);
            let (store, report) = open(&runtime, &directory).await;
            assert!(report.header_page_lost);
            assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
            drop(store);
            directory.kill();
        }
    });
}

#[test]
fn recovery_two_torn_header_pages_are_refused() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        directory.flip("journal", 40);
        directory.flip("journal", PAGE + 40);
        let lost = StoreError::Lost {
            area: "journal",
            what: "header pages",
        };
        assert_eq!(refused(&runtime, &directory).await, lost);
    });
}

#[test]
fn recovery_one_lost_copy_of_the_facts_uses_the_other_and_two_are_refused() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        for copy in 0..2 {
            directory.flip("facts", copy * crate::facts::COPY_BYTES + 70);
            let (store, report) = open(&runtime, &directory).await;
            assert!(report.facts_copy_lost);
            assert_eq!(store.copy_state(SLICE), CopyState::InSync);
            drop(store);
            directory.kill();
        }
        directory.flip("facts", 70);
        directory.flip("facts", crate::facts::COPY_BYTES + 70);
        let lost = StoreError::Lost {
            area: "facts",
            what: "durable facts",
        };
        assert_eq!(refused(&runtime, &directory).await, lost);
        directory.poke("facts", 0, &vec![0; 2 * MIB as usize]);
        assert_eq!(
            refused(&runtime, &directory).await,
            lost,
            "wiped facts are not a new store"
        );
    });
}

#[test]
fn areas_of_another_store_are_refused() {
    run(1, |runtime| async move {
        let directory = one_record(&runtime).await;
        let other = StoreOptions {
            identity: [9; 16],
            ..options()
        };
        let directory = Rc::new(directory);
        let opened = Store::open(runtime.clone(), directory, other).await;
        assert!(matches!(
            opened,
            Err(StoreError::Foreign {
                what: "identity",
                ..
            })
        ));
    });
}

#[test]
fn a_damaged_home_block_is_an_error_and_never_wrong_bytes() {
    run(1, |runtime| async move {
        let directory = one_block_at_home(&runtime).await;
        let (store, report) = open(&runtime, &directory).await;
        let at = store.place_of(SLICE, 5).await.unwrap();
        directory.flip("home", at + 9);
        assert_eq!(report.records, 0, "the journal no longer has it");
        let lost = Err(StoreError::Damaged {
            slice: SLICE,
            block: 5,
        });
        assert_eq!(store.read(SLICE, 5, 1).await, lost);
        assert_eq!(store.read(SLICE, 6, 1).await.unwrap(), block(0));
        store.append(vec![write(2, 5, 2)]).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(2));
    });
}

#[test]
fn an_unreadable_home_block_does_not_hide_its_neighbours() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store
            .append((1..=3).map(|seq| write(seq, seq as u32, 1)).collect())
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(3));
        store.flush().await.unwrap();
        let at = store.place_of(SLICE, 2).await.unwrap();
        directory.fail_reads("home", at..at + PAGE);
        let lost = Err(StoreError::Damaged {
            slice: SLICE,
            block: 2,
        });
        assert_eq!(store.read(SLICE, 1, 3).await, lost);
        assert_eq!(store.read(SLICE, 1, 1).await.unwrap(), block(1));
        assert_eq!(store.read(SLICE, 3, 1).await.unwrap(), block(1));
    });
}

#[test]
fn one_failed_journal_write_poisons_the_store() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(1, 5, 1)]).await.unwrap();
        directory.fail_write_after("journal", 0);
        let both = futures::join!(
            store.append(vec![write(2, 5, 2)]),
            store.append(vec![write(3, 5, 3)])
        );
        assert!(matches!(
            both,
            (
                Err(StoreError::Poisoned { .. }),
                Err(StoreError::Poisoned { .. })
            )
        ));
        let poisoned = |outcome| matches!(outcome, Err(StoreError::Poisoned { .. }));
        assert!(poisoned(store.append(vec![write(4, 5, 4)]).await));
        assert!(poisoned(store.truncate(SLICE, Seq(1)).await));
        assert!(poisoned(store.promise(7, View(1)).await));
        assert!(poisoned(
            store.set_copy_state(SLICE, CopyState::InSync).await
        ));
        assert!(poisoned(store.remove_volume(7).await));
        assert!(poisoned(store.flush().await));
        store.set_stable(SLICE, Seq(1));
        assert_eq!(
            store.read(SLICE, 5, 1).await.unwrap(),
            block(1),
            "reads go on"
        );
    });
}

#[test]
fn one_failed_home_sync_poisons_the_store_and_recovery_has_everything() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(1, 5, 1)]).await.unwrap();
        store.set_stable(SLICE, Seq(1));
        directory.fail_next_sync("home");
        assert!(matches!(
            store.flush().await,
            Err(StoreError::Poisoned { .. })
        ));
        let later = store.append(vec![write(2, 5, 2)]).await;
        assert!(matches!(later, Err(StoreError::Poisoned { .. })));
        drop(store);
        directory.crash(&crate::testing::Dice::new(5));
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(
            store.stable(SLICE),
            Seq(1),
            "known before the home was touched"
        );
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
    });
}

#[test]
fn a_run_that_no_edit_named_is_not_taken_for_one_whose_write_was_lost() {
    run(1, |runtime| async move {
        let before = one_block_at_home(&runtime).await;
        let (store, _) = open(&runtime, &before).await;
        store.append(vec![write(2, 4, 2)]).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        // The machine stops between the writes of a round and the edit that names them.
        let stopped = before.copy();
        store.flush().await.unwrap();
        let regions = 258 * PAGE;
        let segments = (options().home_bytes - regions) as usize;
        let written = before.peek("home", regions, segments);
        stopped.poke("home", regions, &written);

        let (store, _) = open(&runtime, &stopped).await;
        store.append(vec![write(3, 5, 3)]).await.unwrap();
        store.set_stable(SLICE, Seq(3));
        store.flush().await.unwrap();
        drop(store);
        stopped.kill();
        let is_run = |page: &[u8]| page[8..16] == *b"HFMAPRUN";
        let lost = written.chunks(PAGE as usize).rposition(is_run);
        let lost = lost.expect("a run of the map") * PAGE as usize;
        let at = regions + lost as u64;
        let page = &written[lost..lost + PAGE as usize];
        assert!(
            is_run(&stopped.peek("home", at, PAGE as usize)),
            "both lie there"
        );
        stopped.poke("home", at, page);

        let (store, _) = open(&runtime, &stopped).await;
        let read = store.read(SLICE, 5, 1).await;
        assert!(
            matches!(read, Err(StoreError::Damaged { .. })),
            "{:?}",
            read.map(|data| data[0])
        );
    });
}
