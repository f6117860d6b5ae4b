//! Slices and volumes that go, what is there of a volume, and truncations of nothing.

use std::time::Duration;

use super::*;
use crate::StoreError;
use crate::testing::{Dice, run};

/// Of the same volume as `SLICE`, before and behind it.
const NEIGHBOURS: [SliceKey; 2] = [
    SliceKey {
        volume: SLICE.volume,
        slice: SLICE.slice - 1,
    },
    SliceKey {
        volume: SLICE.volume,
        slice: SLICE.slice + 1,
    },
];
const BLOCKS: u32 = 40;

/// Where the blocks of a slice are when it is removed.
#[derive(Clone, Copy, Debug)]
enum Whereabouts {
    Journal,
    Deltas,
    Tables,
    /// The older half in tables, the newer in a delta and the journal.
    Everywhere,
}

const ALL: [Whereabouts; 4] = [
    Whereabouts::Journal,
    Whereabouts::Deltas,
    Whereabouts::Tables,
    Whereabouts::Everywhere,
];

fn filled(slice: SliceKey, seq: u64, first_block: u32, fill: u8) -> Record {
    let data = block(fill);
    record(slice, seq, Body::Write { first_block, data })
}

/// Three slices in sync, each with the same blocks in the same places.
async fn three_slices(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    at: Whereabouts,
) -> Rc<Store> {
    let (store, _) = open(runtime, directory).await;
    let slices = [NEIGHBOURS[0], SLICE, NEIGHBOURS[1]];
    let in_sync = slices.map(|slice| (slice, CopyState::InSync));
    store.set_copy_states(in_sync.to_vec()).await.unwrap();
    store.promise(SLICE.volume, View(4)).await.unwrap();
    for number in 0..BLOCKS {
        let seq = u64::from(number) + 1;
        for slice in slices {
            let written = filled(slice, seq, number, slice.slice as u8);
            store.append(vec![written]).await.unwrap();
            store.set_stable(slice, Seq(seq));
        }
        match (at, number) {
            (Whereabouts::Everywhere, 9) => {
                store.flush().await.unwrap();
                store.compact().await.unwrap();
            }
            (Whereabouts::Everywhere, 29) => store.flush().await.unwrap(),
            (_, _) => {}
        }
    }
    match at {
        Whereabouts::Journal | Whereabouts::Everywhere => {}
        Whereabouts::Deltas => store.flush().await.unwrap(),
        Whereabouts::Tables => {
            store.flush().await.unwrap();
            store.compact().await.unwrap();
        }
    }
    store
}

async fn check_neighbours(store: &Store) {
    for slice in NEIGHBOURS {
        assert_eq!(store.copy_state(slice), CopyState::InSync);
        store.set_stable(slice, Seq(u64::from(BLOCKS)));
        let read = store.read(slice, 0, BLOCKS).await.unwrap();
        assert!(
            read.iter().all(|byte| *byte == slice.slice as u8),
            "{slice}"
        );
    }
}

/// Nothing of `SLICE` is there.
async fn check_gone(store: &Store) {
    assert_eq!(store.copy_state(SLICE), CopyState::Absent);
    assert_eq!(store.last_seq(SLICE), Seq(0));
    assert_eq!(store.slices_of(SLICE.volume), NEIGHBOURS);
    assert_eq!(store.read(SLICE, 0, 1).await.unwrap(), block(0));
    let changed = store.changed_since(SLICE, Seq(0), 0, 100).await;
    assert_eq!(changed, []);
}

#[test]
fn a_removed_slice_is_gone_wherever_it_was_and_its_neighbours_stay() {
    for at in ALL {
        run(1, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let store = three_slices(&runtime, &directory, at).await;
            let used = store.usage().home_used_bytes;
            store.remove_slices(vec![SLICE]).await.unwrap();
            check_gone(&store).await;
            assert_eq!(store.usage().home_used_bytes, used / 3 * 2, "{at:?}");
            assert_eq!(store.promised(SLICE.volume), View(4));
            store.audit_home().await.unwrap();
            drop(store);
            directory.kill();
            let (store, report) = open(&runtime, &directory).await;
            assert!(!report.found_damage());
            check_gone(&store).await;
            check_neighbours(&store).await;
            // Deltas are joined, tables merged: it does not come back.
            store.flush().await.unwrap();
            store.compact().await.unwrap();
            drop(store);
            directory.kill();
            let (store, _) = open(&runtime, &directory).await;
            check_gone(&store).await;
            check_neighbours(&store).await;
            store.audit_home().await.unwrap();
        });
    }
}

#[test]
fn a_slice_set_up_again_behind_its_removal_has_its_new_records_alone() {
    for at in ALL {
        run(1, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let store = three_slices(&runtime, &directory, at).await;
            for (life, fill) in [(1, 101), (2, 102)] {
                store.remove_slices(vec![SLICE]).await.unwrap();
                let in_sync = store.set_copy_state(SLICE, CopyState::InSync);
                in_sync.await.unwrap();
                // Lower numbers than in the life before, on a block that it had too.
                store.append(vec![filled(SLICE, 1, 7, fill)]).await.unwrap();
                store.set_stable(SLICE, Seq(1));
                if life == 2 {
                    store.flush().await.unwrap();
                }
            }
            for _ in 0..2 {
                drop(store.clone());
                directory.kill();
                let (store, _) = open(&runtime, &directory).await;
                store.set_stable(SLICE, Seq(1));
                assert_eq!(store.last_seq(SLICE), Seq(1));
                let read = store.read(SLICE, 0, BLOCKS).await.unwrap();
                for (number, bytes) in read.chunks(BLOCK_BYTES).enumerate() {
                    let fill = if number == 7 { 102 } else { 0 };
                    assert!(*bytes == block(fill)[..], "{number} {at:?}");
                }
                check_neighbours(&store).await;
                store.flush().await.unwrap();
            }
        });
    }
}

/// Lets a removal run for a while, cuts the power, and looks. Returns whether it had ended.
fn removal_cut_after(at: Whereabouts, micros: u64, whole_volume: bool) -> bool {
    run(micros, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let dice = Dice::new(micros);
        let store = three_slices(&runtime, &directory, at).await;
        let removal = async {
            match whole_volume {
                true => store.remove_volume(SLICE.volume).await.unwrap(),
                false => store.remove_slices(vec![SLICE]).await.unwrap(),
            }
            // At once.
            let in_sync = store.set_copy_state(SLICE, CopyState::InSync);
            in_sync.await.unwrap();
            store.append(vec![filled(SLICE, 1, 7, 99)]).await.unwrap();
        };
        let life = Duration::from_micros(micros);
        let ended = runtime.timeout(life, removal).await.is_some();
        drop(store);
        directory.crash(&dice);
        let (store, report) = open(&runtime, &directory).await;
        assert!(!report.found_damage());
        if whole_volume {
            for slice in NEIGHBOURS {
                let there = store.copy_state(slice) == CopyState::InSync;
                let last = store.last_seq(slice);
                assert_eq!(last, Seq(if there { u64::from(BLOCKS) } else { 0 }));
            }
        } else {
            check_neighbours(&store).await;
        }
        let last = store.last_seq(SLICE);
        store.set_stable(SLICE, last);
        let read = store.read(SLICE, 0, BLOCKS).await.unwrap();
        let expected = |number: usize| match last.0 {
            0 => 0,
            1 if number == 7 => 99,
            1 => 0,
            _ => SLICE.slice as u8,
        };
        assert!(
            [0, 1, u64::from(BLOCKS)].contains(&last.0),
            "{last:?} {micros}"
        );
        assert!(!ended || last == Seq(1));
        for (number, bytes) in read.chunks(BLOCK_BYTES).enumerate() {
            assert_eq!(
                bytes,
                &block(expected(number))[..],
                "{number} {at:?} {micros}"
            );
        }
        store.flush().await.unwrap();
        store.audit_home().await.unwrap();
        ended
    })
}

#[test]
fn a_removal_cut_off_at_any_moment_has_happened_wholly_or_not_at_all() {
    for at in ALL {
        for whole_volume in [false, true] {
            let mut micros = 1;
            while !removal_cut_after(at, micros, whole_volume) {
                // Timers of tests have a grain of 1 ms; the seed of each moment is its own.
                micros += 170;
            }
            assert!(micros > 1000, "it was never cut off");
        }
    }
}

#[test]
fn nothing_stays_of_removals_once_the_journal_does_not_need_it() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = three_slices(&runtime, &directory, Whereabouts::Everywhere).await;
        store.remove_slices(vec![SLICE]).await.unwrap();
        store.remove_volume(SLICE.volume).await.unwrap();
        assert_eq!(store.promised(SLICE.volume), View(0));
        assert!(store.volumes().is_empty());
        runtime.sleep(Duration::from_secs(5)).await;
        let left = store.inner.facts.with(Clone::clone);
        assert_eq!(left, crate::facts::FactsState::default());
        assert_eq!(store.usage().journal_used_bytes, 0);
    });
}

#[test]
fn volumes_and_slices_are_listed_wherever_the_store_knows_them_from() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = three_slices(&runtime, &directory, Whereabouts::Tables).await;
        let key = |volume, slice| SliceKey { volume, slice };
        store.promise(3, View(1)).await.unwrap();
        let in_sync = store.set_copy_state(key(9, 5), CopyState::InSync);
        in_sync.await.unwrap();
        let last = key(u64::MAX, u32::MAX);
        store.append(vec![filled(last, 1, 0, 1)]).await.unwrap();
        assert_eq!(store.volumes(), [3, 7, 9, u64::MAX]);
        assert_eq!(store.slices_of(3), []);
        assert_eq!(store.slices_of(7).len(), 3);
        assert_eq!(store.slices_of(9), [key(9, 5)]);
        assert_eq!(store.slices_of(u64::MAX), [last]);
        let all: Vec<SliceKey> = store
            .volumes()
            .into_iter()
            .flat_map(|volume| store.slices_of(volume))
            .collect();
        assert_eq!(all, store.slices());
    });
}

#[test]
fn a_truncation_of_nothing_writes_nothing() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        store
            .append(vec![write(1, 0, 1), write(2, 0, 2)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(1));
        store.flush().await.unwrap();
        runtime.sleep(Duration::from_secs(5)).await;
        let writes = || ["journal", "facts", "home"].map(|area| directory.writes(area));
        let before = writes();
        store.truncate(SLICE, Seq(2)).await.unwrap();
        store.truncate(NEIGHBOURS[0], Seq(0)).await.unwrap();
        let below = StoreError::BelowStable {
            slice: SLICE,
            stable: Seq(1),
            keep_through: Seq(0),
        };
        assert_eq!(store.truncate(SLICE, Seq(0)).await, Err(below));
        assert_eq!(writes(), before);
        store.truncate(SLICE, Seq(1)).await.unwrap();
        assert_ne!(writes(), before);
    });
}

#[test]
fn a_truncation_waits_for_records_on_their_way_and_for_earlier_truncations() {
    // How far the record came when the power is cut differs.
    for micros in (1..400).step_by(7) {
        run(micros, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let (store, _) = open_in_sync(&runtime, &directory).await;
            let on_its_way = store.append(vec![write(1, 0, 1)]);
            runtime.sleep(Duration::from_micros(micros)).await;
            // Nothing may be durable above zero, and yet the record may become so.
            drop(store.truncate(SLICE, Seq(0)));
            store.truncate(SLICE, Seq(0)).await.unwrap();
            drop(on_its_way);
            drop(store);
            directory.crash(&Dice::new(micros));
            let (store, _) = open(&runtime, &directory).await;
            assert_eq!(store.last_seq(SLICE), Seq(0), "taken back {micros}");
        });
    }
}

#[test]
fn many_copy_states_are_one_change_and_suspicion_is_asked_slice_by_slice() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let before = directory.writes("facts");
        let many: Vec<_> = (0..1000)
            .map(|slice| (SliceKey { volume: 1, slice }, CopyState::InSync))
            .collect();
        store.set_copy_states(many.clone()).await.unwrap();
        assert_eq!(
            directory.writes("facts"),
            before + 4,
            "two parts, two copies"
        );
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        for (slice, state) in many {
            assert_eq!(store.copy_state(slice), state);
            assert!(!store.is_suspect(slice));
        }
        store.set_copy_states(Vec::new()).await.unwrap();
        store.remove_slices(Vec::new()).await.unwrap();
    });
}
