//! Free segments go back to the device, and nothing else does.

use std::time::Duration;

use super::home::filled;
use super::*;
use crate::testing::run;

/// Time for the background to give everything back.
const LONG: Duration = Duration::from_secs(10);

/// Pages of the home that hold this byte alone.
fn pages_of(directory: &MemoryDirectory, fill: u8) -> usize {
    let home = directory.peek("home", 0, 9 * MIB as usize);
    let pages = home.chunks(BLOCK_BYTES);
    pages.filter(|page| **page == [fill; BLOCK_BYTES]).count()
}

#[test]
fn what_a_deleted_volume_held_goes_back_in_the_background() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 1000, |_| 7).await;
        runtime.sleep(LONG).await;
        assert!(pages_of(&directory, 7) >= 1000, "what is needed stays");
        store.remove_volume(SLICE.volume).await.unwrap();
        store.flush().await.unwrap();
        runtime.sleep(LONG).await;
        // One segment of 32 pages is still being filled.
        assert!(pages_of(&directory, 7) <= 32, "{}", pages_of(&directory, 7));
        assert!(!store.damaged());
    });
}

#[test]
fn segments_that_are_filled_again_and_again_keep_what_they_hold() {
    for seed in 0..8 {
        run(seed, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let mut store = filled(&runtime, &directory, 600, |_| 1).await;
            let dice = Dice::new(seed);
            let mut fills = vec![1; 600];
            let mut seq = 1000;
            for round in 2..12 {
                overwrite_some(&store, &dice, &mut fills, &mut seq, round).await;
                store.collect().await.unwrap();
                runtime.sleep(Duration::from_millis(dice.below(400))).await;
                if dice.below(3) == 0 {
                    drop(store);
                    directory.crash(&dice);
                    (store, _) = open(&runtime, &directory).await;
                    store.set_stable(SLICE, Seq(seq));
                }
                for number in 0..600 {
                    let read = store.read(SLICE, number, 1).await.unwrap();
                    assert_eq!(read, block(fills[number as usize]), "{number} in {round}");
                }
                store.audit_home().await.unwrap();
            }
            assert!(
                directory.discards("home") > 5,
                "{}",
                directory.discards("home")
            );
        });
    }
}

#[test]
fn a_device_that_takes_nothing_back_is_asked_once() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        directory.keep_all();
        let store = filled(&runtime, &directory, 1000, |_| 7).await;
        runtime.sleep(LONG).await;
        store.remove_volume(SLICE.volume).await.unwrap();
        runtime.sleep(LONG).await;
        assert_eq!(directory.discards("home"), 1);
    });
}

#[test]
fn a_discard_that_fails_stops_neither_the_store_nor_later_ones_after_a_restart() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 1000, |_| 7).await;
        runtime.sleep(LONG).await;
        let before = directory.discards("home");
        directory.fail_next_discard("home");
        store.remove_volume(SLICE.volume).await.unwrap();
        runtime.sleep(LONG).await;
        assert_eq!(directory.discards("home"), before + 1);
        let other = SliceKey {
            volume: 8,
            slice: 0,
        };
        let body = Body::Zero {
            first_block: 0,
            blocks: 1,
        };
        store.append(vec![record(other, 1, body)]).await.unwrap();
        drop(store);
        directory.kill();
        let (_store, _) = open(&runtime, &directory).await;
        runtime.sleep(LONG).await;
        assert!(directory.discards("home") > before + 1);
    });
}

#[test]
fn a_home_can_be_made_on_a_device_that_another_one_has_used() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        drop(filled(&runtime, &directory, 1000, |_| 7).await);
        // What whoever takes a device over makes sure of: its ends are zero.
        for area in ["journal", "facts"] {
            directory.cut(area, 0);
        }
        directory.kill();
        directory.poke("home", 0, &[0; 2 * BLOCK_BYTES]);
        for _ in 0..3 {
            let other = StoreOptions {
                identity: *b"some other store",
                ..options()
            };
            let opening = Store::open(runtime.clone(), Rc::new(directory.clone()), other);
            let (store, report) = opening.await.unwrap();
            assert!(!report.found_damage(), "{report:?}");
            drop(store);
            directory.kill();
        }
    });
}
