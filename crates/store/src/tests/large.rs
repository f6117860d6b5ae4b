//! Homes beyond 16 TiB, where pages have numbers beyond 32 bits, on disks that hold only what was
//! written to them.

use std::time::Duration;

use super::home::filled_with;
use super::inspect::{checked, inspected, reader};
use super::verify::verify_all;
use super::*;
use crate::inspect::{CheckReport, Filter, Structure, Trust};
use crate::testing::run;
use crate::{HOME_BYTES_MAX, StoreError};

const TIB: u64 = 1 << 40;

/// A home of the usual small size that lies behind so many bytes.
fn behind(bytes: u64) -> StoreOptions {
    StoreOptions {
        home_bytes: bytes + options().home_bytes,
        bounds: StoreBounds {
            home_segments_at: bytes,
            ..StoreBounds::SERVICE
        },
        ..options()
    }
}

async fn opened(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    options: StoreOptions,
) -> Result<Rc<Store>, StoreError> {
    let directory = Rc::new(directory.clone());
    let opened = Store::open(runtime.clone(), directory, options).await?;
    assert!(!opened.1.found_damage(), "{:?}", opened.1);
    Ok(opened.0)
}

/// Writes these blocks with one record and sees them stable.
async fn put(store: &Rc<Store>, seq: u64, first_block: u32, fills: &[u8]) {
    let data = fills.iter().flat_map(|fill| vec![*fill; BLOCK_BYTES]);
    let body = Body::Write {
        first_block,
        data: data.collect(),
    };
    store
        .append(vec![record(SLICE, seq, body)])
        .await
        .expect("there is room");
    store.set_stable(SLICE, Seq(seq));
}

async fn assert_holds(store: &Store, fills: &[u8]) {
    for (fill, number) in fills.iter().zip(0..) {
        let read = store.read(SLICE, number, 1).await.unwrap();
        assert_eq!(read, block(*fill), "block {number}");
    }
}

fn assert_sound(report: &CheckReport) {
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn a_home_behind_40_tib_does_all_that_one_at_the_front_does() {
    for seed in 0..4 {
        run(seed, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let dice = Dice::new(seed);
            let high = behind(40 * TIB);
            let mut store = filled_with(&runtime, &directory, high, 900, |_| 1).await;
            let mut fills = vec![1; 900];
            let mut seq = 1000;
            for round in 2..8 {
                overwrite_some(&store, &dice, &mut fills, &mut seq, round).await;
                match dice.below(4) {
                    0 => store.compact().await.unwrap(),
                    1 => store.collect().await.unwrap(),
                    2 => store.discard().await,
                    _ => {
                        drop(store);
                        directory.crash(&dice);
                        store = opened(&runtime, &directory, high).await.unwrap();
                        store.set_stable(SLICE, Seq(seq));
                    }
                }
                assert_holds(&store, &fills).await;
                store.audit_home().await.unwrap();
            }
            assert!(store.place_of(SLICE, 5).await.unwrap() > 40 * TIB);
            let scrubbed = verify_all(&store).await;
            assert_eq!(scrubbed, (900 * BLOCK_BYTES as u64, 0));
            store.discard().await;
            assert!(directory.discards("home") > 0);
            assert_holds(&store, &fills).await;
        });
    }
}

#[test]
fn a_home_behind_40_tib_is_checked_listed_and_exported() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let fill = |number: u32| number as u8;
        let store = filled_with(&runtime, &directory, behind(40 * TIB), 900, fill).await;
        store.compact().await.unwrap();
        let damaged = store.place_of(SLICE, 5).await.unwrap();
        runtime.sleep(Duration::from_millis(500)).await;
        let report = checked(&runtime, &directory).await;
        assert_sound(&report);
        assert_eq!(report.blocks_verified, 900);
        let space = report.space.unwrap();
        assert_eq!(space.data_bytes, 900 * BLOCK_BYTES as u64);
        let one = Filter {
            block: Some(5),
            ..Filter::default()
        };
        let inspection = inspected(&runtime, &directory).await;
        let listed = inspection.dump(Structure::Map, &one).await.rows;
        let words = format!("{listed:?}");
        assert!(words.contains(&damaged.to_string()), "{words}");
        directory.flip("home", damaged);
        let found = checked(&runtime, &directory).await.findings;
        let [finding] = found.as_slice() else {
            panic!("one block is damaged: {found:#?}");
        };
        assert_eq!(finding.offset, Some(damaged));
        let reader = reader(&runtime, &directory).await;
        let blocks = reader.read(SLICE.slice, 0).await;
        assert_eq!(blocks[5].trust, Trust::Unreadable);
        assert_eq!(blocks[6].trust, Trust::Sound);
        assert_eq!(blocks[6].data, Some(block(6)));
    });
}

#[test]
fn nothing_is_written_beyond_the_largest_home_and_all_below_is_used() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let at_limit = StoreOptions {
            home_bytes: HOME_BYTES_MAX + 9 * MIB,
            ..behind(HOME_BYTES_MAX - 9 * MIB)
        };
        let capacity = |directory: MemoryDirectory, options| {
            let runtime = runtime.clone();
            async move {
                let store = opened(&runtime, &directory, options).await.unwrap();
                store.usage().home_bytes
            }
        };
        let small = capacity(MemoryDirectory::new(runtime.clone()), behind(20 * TIB)).await;
        let large = capacity(directory.clone(), at_limit).await;
        assert_eq!(
            large, small,
            "what lies beyond the limit counts for nothing"
        );
        directory.kill();
        let store = filled_with(&runtime, &directory, at_limit, 1000, |_| 1).await;
        // Nearly three times the size of the home.
        let number_of = |seq: u64| (seq * 7919 % 1000) as u32;
        for seq in 1001..7000 {
            put(&store, seq, number_of(seq), &[seq as u8]).await;
        }
        store.flush().await.unwrap();
        let fill = |number| (1001..7000).rfind(|seq| number_of(*seq) == number).unwrap() as u8;
        assert_holds(&store, &(0..1000).map(fill).collect::<Vec<_>>()).await;
        store.audit_home().await.unwrap();
        let beyond = directory.peek("home", HOME_BYTES_MAX, 9 * MIB as usize);
        assert!(beyond.iter().all(|byte| *byte == 0), "written beyond");
    });
}

/// A home of 40 TiB as it is made in service: its segments have 32 MiB.
fn of_40_tib() -> StoreOptions {
    StoreOptions {
        home_bytes: 40 * TIB,
        slice_blocks: 1 << 15,
        bounds: StoreBounds {
            collects_always: true,
            ..StoreBounds::SERVICE
        },
        ..options()
    }
}

/// More than a segment of [`of_40_tib`], of which three quarters are overwritten.
async fn with_garbage(runtime: &Runtime, directory: &MemoryDirectory) -> (Rc<Store>, Vec<u8>) {
    let store = opened(runtime, directory, of_40_tib()).await.unwrap();
    let in_sync = store.set_copy_state(SLICE, CopyState::InSync);
    in_sync.await.unwrap();
    let mut fills = vec![0; 9000];
    let mut seq = 0;
    for (fill, step) in [(1, 8), (2, 32), (3, 32), (4, 32)] {
        for first in (8 * (fill - 1)..9000).step_by(step) {
            seq += 1;
            let piece = &mut fills[first..first + 8];
            piece.fill(fill as u8);
            put(&store, seq, first as u32, piece).await;
        }
        store.flush().await.unwrap();
    }
    (store, fills)
}

#[test]
fn a_large_segment_is_collected_in_steps() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, fills) = with_garbage(&runtime, &directory).await;
        let collected = async {
            // What is needed of a whole segment, more than one step brings.
            while store.usage().home_collected_bytes < 8 * MIB {
                runtime.sleep(Duration::from_millis(1)).await;
            }
        };
        let patience = Duration::from_secs(60);
        let collected = runtime.timeout(patience, collected).await;
        collected.expect("a segment with much garbage is collected");
        store.compact().await.unwrap();
        store.audit_home().await.unwrap();
        assert_holds(&store, &fills).await;
        let usage = store.usage();
        assert_eq!(usage.home_used_bytes, 9000 * BLOCK_BYTES as u64);
        drop(store);
        directory.kill();
        let store = opened(&runtime, &directory, of_40_tib()).await.unwrap();
        assert_holds(&store, &fills).await;
        store.collect().await.unwrap();
        store.audit_home().await.unwrap();
        assert_holds(&store, &fills).await;
    });
}

#[test]
fn a_home_that_grows_beyond_16_tib_keeps_its_segments_and_is_refused_by_older_programs() {
    const PAGE: u64 = 4096;
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let of = |home_bytes| StoreOptions {
            home_bytes,
            ..options()
        };
        let format = |at: u64| directory.peek("home", at + 16, 4)[0];
        let store = filled_with(&runtime, &directory, of(16 * TIB), 100, |_| 7).await;
        let before = store.usage().home_bytes;
        let place = store.place_of(SLICE, 5).await.unwrap();
        // The first snapshot is in the second region.
        assert_eq!([format(0), format(2 * PAGE + (768 << 20))], [2, 2]);
        drop(store);
        directory.kill();
        let store = opened(&runtime, &directory, of(64 * TIB)).await.unwrap();
        assert!(store.usage().home_bytes > before / 100 * 399);
        assert_eq!(store.place_of(SLICE, 5).await, Some(place));
        put(&store, 101, 5, &[8]).await;
        store.flush().await.unwrap();
        let mut fills = vec![7; 100];
        fills[5] = 8;
        assert_holds(&store, &fills).await;
        // The superblock is for ever; whatever the manifest says from now on is of the new format.
        assert_eq!([format(0), format(2 * PAGE)], [2, 3]);
        store.audit_home().await.unwrap();
    });
}

#[test]
fn of_a_home_that_grows_more_than_its_manifest_describes_the_rest_is_unused_and_said_to_be() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let of = |home_bytes| StoreOptions {
            home_bytes,
            ..options()
        };
        let store = filled_with(&runtime, &directory, of(9 * MIB), 100, |_| 7).await;
        drop(store);
        directory.kill();
        let store = opened(&runtime, &directory, of(20 * TIB)).await.unwrap();
        let fills = [7; 100];
        assert_holds(&store, &fills).await;
        // As many segments of 128 KiB as a region of 512 KiB describes.
        let used = store.usage().home_bytes;
        assert!((1 << 30..3 << 29).contains(&used), "{used}");
        runtime.sleep(Duration::from_millis(500)).await;
        let report = checked(&runtime, &directory).await;
        assert_sound(&report);
        assert!(report.space.unwrap().rest_bytes > 20 * TIB - (3 << 29));
    });
}
