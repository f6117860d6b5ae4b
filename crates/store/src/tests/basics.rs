//! Appending, reading, truncating and removing without faults.

use std::time::Duration;

use super::*;
use crate::testing::run;
use crate::{CopyState, StoreError};

#[test]
fn a_read_shows_stable_versions_and_never_unstable_ones() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, report) = open(&runtime, &directory).await;
        assert!(report.created);
        store.append(vec![write(1, 5, 1)]).await.unwrap();
        store.append(vec![write(2, 5, 2)]).await.unwrap();
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(0));
        store.set_stable(SLICE, Seq(1));
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(1));
        store.set_stable(SLICE, Seq(2));
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(2));
        store.flush().await.unwrap();
        assert_eq!(
            store.usage().journal_used_bytes,
            0,
            "a flush empties the journal"
        );
        assert_eq!(store.read(SLICE, 4, 3).await.unwrap().to_vec(), {
            let mut bytes = vec![0; 3 * BLOCK_BYTES];
            bytes[BLOCK_BYTES..2 * BLOCK_BYTES].fill(2);
            bytes
        });
    });
}

#[test]
fn concurrent_appends_share_journal_writes_and_keep_call_order() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let before = directory.writes("journal");
        let calls: Vec<_> = (1..=32)
            .map(|seq| store.append(vec![write(seq, 9, 1)]))
            .collect();
        // Polled backwards: their order in the journal is the order of the calls.
        let outcomes = futures::future::join_all(calls.into_iter().rev()).await;
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(store.last_seq(SLICE), Seq(32));
        let seqs: Vec<u64> = store.tail(SLICE).iter().map(|entry| entry.seq.0).collect();
        assert_eq!(seqs, (1..=32).collect::<Vec<u64>>());
        assert!(
            directory.writes("journal") - before <= 4,
            "32 appends fit in few writes"
        );
    });
}

#[test]
fn records_out_of_order_or_out_of_range_are_refused_and_change_nothing() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(3, 0, 1)]).await.unwrap();
        let refused = store.append(vec![write(3, 0, 2)]).await;
        assert!(matches!(refused, Err(StoreError::OutOfOrder { .. })));
        let refused = store.append(vec![write(4, 0, 2), write(5, 1024, 2)]).await;
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })));
        assert_eq!(store.last_seq(SLICE), Seq(3));
        store.append(vec![write(4, 0, 4)]).await.unwrap();
        store.set_stable(SLICE, Seq(4));
        assert_eq!(store.read(SLICE, 0, 1).await.unwrap(), block(4));
    });
}

#[test]
fn truncation_uncovers_the_older_version_and_survives_a_restart() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store
            .append((1..=4).map(|seq| write(seq, 5, seq as u8)).collect())
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(2));
        store.truncate(SLICE, Seq(2)).await.unwrap();
        assert!(store.tail(SLICE).is_empty());
        assert_eq!(store.last_seq(SLICE), Seq(2));
        let refused = store.truncate(SLICE, Seq(1)).await;
        assert!(matches!(refused, Err(StoreError::BelowStable { .. })));
        let mut again = write(3, 6, 9);
        again.view = View(2);
        store.append(vec![again.clone()]).await.unwrap();
        drop(store);
        directory.kill();
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(report.voided_records, 2, "records 3 and 4 of view 1");
        assert_eq!(store.last_seq(SLICE), Seq(3));
        assert_eq!(store.tail(SLICE).last().unwrap().view, View(2));
        assert_eq!(
            store.read_record(SLICE, View(2), Seq(3)).await.unwrap(),
            Some(again)
        );
        assert_eq!(
            store.read_record(SLICE, View(1), Seq(3)).await.unwrap(),
            None
        );
        store.set_stable(SLICE, Seq(3));
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(2));
        assert_eq!(store.read(SLICE, 6, 1).await.unwrap(), block(9));
    });
}

#[test]
fn truncation_withdraws_what_waits_and_spares_what_is_submitted_after_it() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let old: Vec<_> = (1..=3)
            .map(|seq| store.append(vec![write(seq, 1, 1)]))
            .collect();
        let cut = store.truncate(SLICE, Seq(0));
        let new = store.append(vec![write(1, 2, 7)]);
        for outcome in futures::future::join_all(old).await {
            assert_eq!(outcome, Err(StoreError::Withdrawn));
        }
        cut.await.unwrap();
        new.await.unwrap();
        store.set_stable(SLICE, Seq(1));
        assert_eq!(store.read(SLICE, 1, 1).await.unwrap(), block(0));
        assert_eq!(store.read(SLICE, 2, 1).await.unwrap(), block(7));
    });
}

#[test]
fn a_full_home_refuses_new_blocks_and_takes_overwrites() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let capacity = store.usage().home_bytes / BLOCK_BYTES as u64;
        assert!(
            (1200..2048).contains(&capacity),
            "{capacity} blocks of 9 MiB"
        );
        let wide = |number: u64| SliceKey {
            volume: 1,
            slice: (number / 1024) as u32,
        };
        let body = |number: u64, fill| Body::Write {
            first_block: (number % 1024) as u32,
            data: block(fill),
        };
        for number in 0..capacity {
            let slice = wide(number);
            let written = record(slice, number + 1, body(number, 1));
            store.append(vec![written]).await.unwrap();
            store.set_stable(slice, Seq(number + 1));
        }
        let refused = store.append(vec![write(1, 0, 1)]).await;
        assert_eq!(
            refused,
            Err(StoreError::Full {
                wanted_blocks: 1,
                free_blocks: 0
            })
        );
        assert_eq!(store.last_seq(SLICE), Seq(0));
        // All of it, three times over, in another order each time.
        for round in 1..=3 {
            for step in 0..capacity {
                let number = step * 601 % capacity;
                let slice = wide(number);
                let seq = round * 10_000 + step;
                let written = record(slice, seq, body(number, round as u8 + 1));
                store.append(vec![written]).await.unwrap();
                store.set_stable(slice, Seq(seq));
            }
        }
        for number in (0..capacity).step_by(7) {
            let read = store.read(wide(number), (number % 1024) as u32, 1).await;
            assert_eq!(read.unwrap(), block(4));
        }
        store.remove_volume(1).await.unwrap();
        assert_eq!(store.usage().home_used_bytes, 0);
        store.append(vec![write(1, 0, 1)]).await.unwrap();
    });
}

#[test]
fn zeroing_is_thin_and_reads_zero() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        store
            .append(vec![zero(1, 0, 1024), write(2, 300, 3), zero(3, 290, 20)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(2));
        assert_eq!(store.read(SLICE, 300, 1).await.unwrap(), block(3));
        store.set_stable(SLICE, Seq(3));
        assert_eq!(store.read(SLICE, 300, 1).await.unwrap(), block(0));
        store.flush().await.unwrap();
        assert_eq!(store.read(SLICE, 300, 1).await.unwrap(), block(0));
        assert_eq!(
            store.usage().home_used_bytes,
            0,
            "what was written and zeroed again takes no space"
        );
        assert_eq!(store.usage().journal_used_bytes, 0);
    });
}

#[test]
fn back_pressure_waits_for_destaging_and_every_write_survives() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        // 4 MiB of writes through a ring of 1 MiB.
        for seq in 1..=1024u64 {
            let block = (seq * 37 % 1024) as u32;
            store
                .append(vec![write(seq, block, seq as u8)])
                .await
                .unwrap();
            store.set_stable(SLICE, Seq(seq));
        }
        for seq in 1..=1024u64 {
            let number = (seq * 37 % 1024) as u32;
            assert_eq!(
                store.read(SLICE, number, 1).await.unwrap(),
                block(seq as u8)
            );
        }
    });
}

#[test]
fn an_append_without_room_waits_until_the_stable_point_rises() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let all = store.append((1..=400).map(|seq| write(seq, 1, seq as u8)).collect());
        let mut all = std::pin::pin!(all);
        let early = runtime.timeout(Duration::from_secs(5), all.as_mut()).await;
        assert_eq!(early, None, "1.6 MiB of unstable records exceed the ring");
        while runtime
            .timeout(Duration::from_millis(10), all.as_mut())
            .await
            .is_none()
        {
            store.set_stable(SLICE, store.last_seq(SLICE));
        }
        assert_eq!(store.last_seq(SLICE), Seq(400));
    });
}

#[test]
fn a_silent_slice_does_not_hold_the_ring_of_the_others() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let silent = SliceKey {
            volume: 9,
            slice: 0,
        };
        let body = Body::Write {
            first_block: 3,
            data: block(0xee),
        };
        let kept = record(silent, 1, body);
        store.append(vec![kept.clone()]).await.unwrap();
        for seq in 1..=2000u64 {
            store.append(vec![write(seq, 1, seq as u8)]).await.unwrap();
            store.set_stable(SLICE, Seq(seq));
        }
        assert_eq!(
            store.read_record(silent, View(1), Seq(1)).await.unwrap(),
            Some(kept.clone())
        );
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.tail(silent).len(), 1);
        assert_eq!(
            store.read_record(silent, View(1), Seq(1)).await.unwrap(),
            Some(kept)
        );
        store.truncate(silent, Seq(0)).await.unwrap();
        assert!(store.tail(silent).is_empty());
    });
}

#[test]
fn promises_never_fall_and_copy_states_survive_a_restart() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.promise(7, View(4)).await.unwrap();
        store.promise(7, View(3)).await.unwrap();
        let joining = CopyState::Joining { base: Seq(12) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        assert_eq!(store.base(SLICE), Seq(12));
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.promised(7), View(4));
        assert_eq!(store.copy_state(SLICE), joining);
        assert_eq!(store.slices(), vec![SLICE]);
    });
}

#[test]
fn the_stable_point_of_a_copy_in_sync_survives_a_restart_after_a_flush() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        let nothing = record(SLICE, 2, Body::Nothing);
        store.append(vec![write(1, 0, 1), nothing]).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        store.flush().await.unwrap();
        drop(store);
        directory.kill();
        let (store, report) = open(&runtime, &directory).await;
        assert_eq!(report.records, 0);
        assert_eq!(
            (store.stable(SLICE), store.last_seq(SLICE)),
            (Seq(2), Seq(2))
        );
        assert_eq!(store.base(SLICE), Seq(2));
        assert_eq!(store.read(SLICE, 0, 1).await.unwrap(), block(1));
    });
}

#[test]
fn a_removed_volume_stays_removed_and_its_number_can_be_used_again() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        store
            .append(vec![write(1, 0, 1), write(2, 700, 1)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(1));
        store.flush().await.unwrap();
        store.remove_volume(SLICE.volume).await.unwrap();
        assert!(store.slices().is_empty());
        store.append(vec![write(1, 700, 8)]).await.unwrap();
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.copy_state(SLICE), CopyState::Absent);
        store.set_stable(SLICE, Seq(1));
        assert_eq!(store.read(SLICE, 0, 1).await.unwrap(), block(0));
        assert_eq!(store.read(SLICE, 700, 1).await.unwrap(), block(8));
    });
}

#[test]
fn the_last_1024_operations_are_remembered_and_found_in_the_journal() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let all = (1..=1100)
            .map(|seq| record(SLICE, seq, Body::Nothing))
            .collect();
        store.append(all).await.unwrap();
        let recent = store.recent_operations(SLICE);
        assert_eq!(recent.len(), 1024);
        assert_eq!(recent[0].2, Seq(77));
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.recent_operations(SLICE), recent);
    });
}

#[test]
fn an_idle_store_arms_no_timer() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(1, 0, 1)]).await.unwrap();
        store.set_stable(SLICE, Seq(1));
        runtime.sleep(Duration::from_secs(5)).await;
        assert_eq!(
            store.usage().journal_used_bytes,
            0,
            "destaged without being asked"
        );
        let before = directory.writes("journal") + directory.writes("facts");
        runtime.sleep(Duration::from_secs(3600)).await;
        assert_eq!(
            directory.writes("journal") + directory.writes("facts"),
            before
        );
    });
}
