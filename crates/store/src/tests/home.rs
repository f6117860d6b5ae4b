//! The home: space that returns, tables, and damage to each of its parts.

use std::time::Duration;

use super::*;
use crate::testing::{Dice, run};
use crate::{Copied, CopiedBlock, CopyState, StoreError};

const LOST: Result<Bytes, StoreError> = Err(StoreError::Damaged {
    slice: SLICE,
    block: 5,
});

/// Blocks 0 to `blocks` of `SLICE`, each in the home, written by as many records.
pub(super) async fn filled(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    blocks: u32,
    fill: impl Fn(u32) -> u8,
) -> Rc<Store> {
    filled_with(runtime, directory, options(), blocks, fill).await
}

/// The same, of a store with these options.
pub(super) async fn filled_with(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    options: StoreOptions,
    blocks: u32,
    fill: impl Fn(u32) -> u8,
) -> Rc<Store> {
    let directory = Rc::new(directory.clone());
    let opened = Store::open(runtime.clone(), directory, options).await;
    let (store, _) = opened.expect("the store opens");
    store
        .set_copy_state(SLICE, CopyState::InSync)
        .await
        .unwrap();
    for number in 0..blocks {
        let seq = u64::from(number) + 1;
        store
            .append(vec![write(seq, number, fill(number))])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(seq));
    }
    store.flush().await.unwrap();
    store
}

async fn restarted(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    store: Rc<Store>,
) -> (Rc<Store>, RecoveryReport) {
    drop(store);
    directory.kill();
    open(runtime, directory).await
}

/// A store of which tables hold block 5, and stopped.
async fn with_tables(runtime: &Runtime, directory: &MemoryDirectory) -> Rc<Store> {
    let store = filled(runtime, directory, 900, |number| number as u8).await;
    let tidied = async {
        while store.map_places()[2].is_empty() {
            runtime.sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let patience = std::time::Duration::from_secs(60);
    runtime
        .timeout(patience, tidied)
        .await
        .expect("recent facts become tables");
    store
}

#[test]
fn what_tables_hold_is_found_again_after_a_restart() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let mut store = with_tables(&runtime, &directory).await;
        for _ in 0..2 {
            for number in 0..900 {
                let read = store.read(SLICE, number, 1).await.unwrap();
                assert_eq!(read, block(number as u8));
            }
            assert_eq!(store.read(SLICE, 900, 1).await.unwrap(), block(0));
            let changed = store.changed_since(SLICE, Seq(880), 0, 100).await;
            assert_eq!(changed.len(), 20);
            assert_eq!(store.usage().home_used_bytes, 900 * BLOCK_BYTES as u64);
            (store, _) = restarted(&runtime, &directory, store).await;
        }
    });
}

#[test]
fn zeroed_blocks_give_their_space_back() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let mut store = filled(&runtime, &directory, 1000, |_| 7).await;
        let before = store.usage();
        store.append(vec![zero(2000, 100, 800)]).await.unwrap();
        store.set_stable(SLICE, Seq(2000));
        store.flush().await.unwrap();
        for _ in 0..2 {
            let after = store.usage();
            let freed = before.home_used_bytes - after.home_used_bytes;
            assert_eq!(freed, 800 * BLOCK_BYTES as u64);
            assert_eq!(
                store.read(SLICE, 100, 800).await.unwrap(),
                [0; 800 * BLOCK_BYTES][..]
            );
            assert_eq!(store.read(SLICE, 99, 1).await.unwrap(), block(7));
            let changed = store.changed_since(SLICE, Seq(1000), 0, 2000).await;
            assert_eq!(changed.len(), 800, "a copy that was away hears of zeroes");
            (store, _) = restarted(&runtime, &directory, store).await;
        }
    });
}

#[test]
fn the_parts_of_the_home_add_up() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 700, |_| 7).await;
        let usage = store.usage();
        let parts = usage.home_used_bytes
            + usage.home_reclaimable_bytes
            + usage.home_map_bytes
            + usage.home_free_bytes;
        assert!((7 * MIB..=9 * MIB).contains(&parts), "{usage:?}");
    });
}

#[test]
fn overwriting_without_end_takes_no_more_space() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 1000, |_| 0).await;
        let used = store.usage().home_used_bytes;
        // Twelve times the size of the home.
        for seq in 1001..30_000u64 {
            let number = (seq * 7919 % 1000) as u32;
            store
                .append(vec![write(seq, number, seq as u8)])
                .await
                .unwrap();
            store.set_stable(SLICE, Seq(seq));
        }
        store.flush().await.unwrap();
        assert_eq!(store.usage().home_used_bytes, used);
        for seq in 29_000..30_000u64 {
            let number = (seq * 7919 % 1000) as u32;
            assert_eq!(
                store.read(SLICE, number, 1).await.unwrap(),
                block(seq as u8)
            );
        }
    });
}

#[test]
fn a_damaged_block_is_healed_by_a_copy_of_the_same_version() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        let at = store.place_of(SLICE, 5).await.unwrap();
        directory.flip("home", at + 100);
        assert_eq!(store.read(SLICE, 5, 1).await, LOST);
        assert!(store.damaged());
        let healing = CopiedBlock {
            block: 5,
            view: View(1),
            seq: Seq(6),
            content: Copied::Bytes(block(5)),
        };
        store.install(SLICE, vec![healing]).await.unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(5));
        store.flush().await.unwrap();
        let (store, _) = restarted(&runtime, &directory, store).await;
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(5));
    });
}

#[test]
fn a_stale_block_is_not_taken_for_the_newest() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        let old = store.place_of(SLICE, 5).await.unwrap();
        let bytes = directory.peek("home", old, BLOCK_BYTES);
        store.append(vec![write(11, 5, 99)]).await.unwrap();
        store.set_stable(SLICE, Seq(11));
        store.flush().await.unwrap();
        let new = store.place_of(SLICE, 5).await.unwrap();
        assert_ne!(old, new);
        // As if the later write had been lost, and what stood there before had been this.
        directory.poke("home", new, &bytes);
        assert_eq!(store.read(SLICE, 5, 1).await, LOST);
    });
}

#[test]
fn a_misplaced_block_is_not_taken_for_its_neighbour() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        let from = store.place_of(SLICE, 6).await.unwrap();
        let to = store.place_of(SLICE, 5).await.unwrap();
        let bytes = directory.peek("home", from, BLOCK_BYTES);
        directory.poke("home", to, &bytes);
        assert_eq!(store.read(SLICE, 5, 1).await, LOST);
        assert_eq!(store.read(SLICE, 6, 1).await.unwrap(), block(6));
    });
}

#[test]
fn a_damaged_delta_makes_its_slices_suspect_until_they_were_copied_again() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        let at = store.map_places()[0][0];
        drop(store);
        directory.kill();
        directory.flip("home", at + 200);
        for opening in 0..2 {
            let (store, report) = open(&runtime, &directory).await;
            assert_eq!(
                (report.lost_runs, report.suspect_slices),
                (1 - opening, vec![SLICE])
            );
            assert_eq!(store.base(SLICE), Seq(0));
            assert_eq!(store.read(SLICE, 5, 1).await, LOST);
            drop(store);
            directory.kill();
        }
        let (store, _) = open(&runtime, &directory).await;
        let copies = (0..10).map(|number| CopiedBlock {
            block: number,
            view: View(1),
            seq: Seq(u64::from(number) + 1),
            content: Copied::Bytes(block(number as u8)),
        });
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        store.install(SLICE, copies.collect()).await.unwrap();
        store
            .set_copy_state(SLICE, CopyState::InSync)
            .await
            .unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(5));
    });
}

#[test]
fn a_damaged_leaf_makes_its_blocks_unknown_and_no_others() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = with_tables(&runtime, &directory).await;
        let leaves = store.map_places()[1].clone();
        let (store, _) = restarted(&runtime, &directory, store).await;
        // Blocks 0 to 255 take the first three pages and a bit of the fourth.
        directory.flip("home", leaves[0] + 300);
        assert_eq!(store.read(SLICE, 5, 1).await, LOST);
        assert!(store.damaged());
        assert_eq!(
            store.read(SLICE, 700, 1).await.unwrap(),
            block(700u32 as u8)
        );
        store.append(vec![write(1001, 5, 55)]).await.unwrap();
        store.set_stable(SLICE, Seq(1001));
        store.flush().await.unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(55));
        assert!(store.read(SLICE, 6, 1).await.is_err());
        let listed = store.changed_since(SLICE, Seq(1001), 0, 1024).await;
        assert_eq!(listed.len(), 255, "what is unknown is asked for");
    });
}

#[test]
fn a_damaged_directory_makes_its_slices_suspect() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = with_tables(&runtime, &directory).await;
        let at = store.map_places()[2][0];
        drop(store);
        directory.kill();
        directory.poke("home", at, &[0; 4096]);
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!((report.lost_runs, report.suspect_slices), (1, vec![SLICE]));
        assert_eq!(store.read(SLICE, 5, 1).await, LOST);
    });
}

/// The manifest: two superblocks, then two regions.
const REGION: u64 = 2 * 4096;

#[test]
fn damage_in_the_manifest_is_refused_wherever_it_is() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        let (store, _) = restarted(&runtime, &directory, store).await;
        for seq in [11, 12, 13] {
            store.append(vec![write(seq, 5, 99)]).await.unwrap();
            store.set_stable(SLICE, Seq(seq));
            store.flush().await.unwrap();
        }
        drop(store);
        directory.kill();
        let generation = |at: u64| directory.peek("home", at + 40, 1)[0];
        let regions = [REGION, REGION + (512 << 10)];
        let newest = *regions.iter().max_by_key(|at| generation(**at)).unwrap();
        let region = directory.peek("home", newest, 512 << 10);
        let entries: Vec<u64> = (0..)
            .zip(region.chunks(4096))
            .filter(|(_, page)| page[8..14] == *b"HFHOME" && page[40] == generation(newest))
            .map(|(number, _)| newest + number * 4096)
            .collect();
        assert!(entries.len() >= 3, "a snapshot and two edits at least");
        for entry in entries {
            let good = directory.peek("home", entry, 4096);
            directory.flip("home", entry + 70);
            let refused = Store::open(runtime.clone(), Rc::new(directory.clone()), options());
            assert!(
                matches!(
                    refused.await.map(|_| ()),
                    Err(StoreError::Lost { area: "home", .. })
                ),
                "the entry at {entry}"
            );
            directory.poke("home", entry, &good);
        }
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(99));
    });
}

#[test]
fn one_superblock_is_enough_and_none_is_refused() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 10, |number| number as u8).await;
        drop(store);
        directory.kill();
        directory.flip("home", 64);
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(5));
        drop(store);
        directory.kill();
        directory.flip("home", 4096 + 64);
        let refused = Store::open(runtime.clone(), Rc::new(directory.clone()), options()).await;
        let lost = StoreError::Lost {
            area: "home",
            what: "superblocks",
        };
        assert_eq!(refused.map(|_| ()), Err(lost));
    });
}

#[test]
fn a_start_that_ends_before_its_sync_and_a_power_cut_in_the_next_leave_a_manifest() {
    // So many segments that a snapshot of the layout has several sectors: it can be torn.
    let large = StoreOptions {
        home_bytes: 64 * MIB,
        ..options()
    };
    run(1, |runtime| async move {
        let lived = MemoryDirectory::new(runtime.clone());
        let open = |directory: &MemoryDirectory| {
            Store::open(runtime.clone(), Rc::new(directory.clone()), large)
        };
        let (store, _) = open(&lived).await.unwrap();
        for number in 1..=1000 {
            let record = write(number, number as u32, 1);
            store.append(vec![record]).await.unwrap();
            store.set_stable(SLICE, Seq(number));
        }
        store.flush().await.unwrap();
        drop(store);
        lived.kill();
        let dice = Dice::new(1);
        let mut cut_off = 0;
        for _ in 0..400 {
            let directory = lived.copy();
            // The snapshot that every start writes is there for whoever reads, and not durable.
            directory.fail_next_sync("home");
            assert!(open(&directory).await.is_err());
            let cut = Duration::from_millis(dice.below(16));
            let opened = runtime.timeout(cut, open(&directory)).await;
            cut_off += u32::from(opened.is_none());
            directory.crash(&dice);
            drop(opened);
            let (store, _) = open(&directory).await.unwrap();
            assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
        }
        assert!(cut_off > 100, "{cut_off} starts were cut off");
    });
}
