//! Copying blocks from one copy to another.

use super::*;
use crate::testing::run;
use crate::{Copied, CopiedBlock, CopyState, StoreError};

fn copied(block: u32, seq: u64, data: Option<Bytes>) -> CopiedBlock {
    CopiedBlock {
        block,
        view: View(1),
        seq: Seq(seq),
        content: data.map_or(Copied::Zero, Copied::Bytes),
    }
}

#[test]
fn an_installed_block_takes_effect_only_where_it_is_newer() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        store
            .append(vec![write(10, 1, 10), write(20, 2, 20)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(10));
        let blocks = vec![
            copied(1, 9, Some(block(9))),
            copied(2, 15, Some(block(15))),
            copied(3, 15, Some(block(15))),
            copied(4, 0, None),
        ];
        store.install(SLICE, blocks).await.unwrap();
        for _ in 0..2 {
            assert_eq!(
                store.read(SLICE, 1, 1).await.unwrap(),
                block(10),
                "older: ignored"
            );
            assert_eq!(
                store.read(SLICE, 2, 1).await.unwrap(),
                block(15),
                "below the unstable"
            );
            assert_eq!(store.read(SLICE, 3, 1).await.unwrap(), block(15));
            store.flush().await.unwrap();
        }
        store.set_stable(SLICE, Seq(20));
        assert_eq!(store.read(SLICE, 2, 1).await.unwrap(), block(20));
        store.flush().await.unwrap();
        store
            .install(SLICE, vec![copied(2, 19, Some(block(19)))])
            .await
            .unwrap();
        assert_eq!(store.read(SLICE, 2, 1).await.unwrap(), block(20));
    });
}

#[test]
fn truncation_spares_installed_blocks() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(5, 1, 5)]).await.unwrap();
        store
            .install(SLICE, vec![copied(1, 4, Some(block(4)))])
            .await
            .unwrap();
        store.truncate(SLICE, Seq(3)).await.unwrap();
        assert_eq!(store.read(SLICE, 1, 1).await.unwrap(), block(4));
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(store.read(SLICE, 1, 1).await.unwrap(), block(4));
    });
}

#[test]
fn a_zeroed_block_of_a_joining_copy_is_not_brought_back_by_a_late_older_one() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        store.append(vec![zero(10, 0, 8)]).await.unwrap();
        store.set_stable(SLICE, Seq(10));
        store.flush().await.unwrap();
        store
            .install(SLICE, vec![copied(3, 5, Some(block(5)))])
            .await
            .unwrap();
        assert_eq!(store.read(SLICE, 3, 1).await.unwrap(), block(0));
        store.flush().await.unwrap();
        assert_eq!(store.read(SLICE, 3, 1).await.unwrap(), block(0));
    });
}

#[test]
fn changes_are_listed_in_pages_wherever_they_are() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        store
            .append(
                (1..=4)
                    .map(|seq| write(seq, 300 * seq as u32 - 300, 1))
                    .collect(),
            )
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(4));
        store.flush().await.unwrap();
        store
            .append(vec![zero(5, 300, 2), write(6, 1, 6), write(7, 2, 7)])
            .await
            .unwrap();
        store.set_stable(SLICE, Seq(6));
        let entry = |block, seq| (block, View(1), Seq(seq));
        let all = vec![entry(1, 6), entry(300, 5), entry(600, 3), entry(900, 4)];
        for _ in 0..2 {
            assert_eq!(store.changed_since(SLICE, Seq(2), 0, 100).await, all);
            assert_eq!(store.changed_since(SLICE, Seq(2), 0, 2).await, all[..2]);
            assert_eq!(store.changed_since(SLICE, Seq(2), 301, 2).await, all[2..]);
            assert!(store.changed_since(SLICE, Seq(6), 0, 100).await.is_empty());
            store.flush().await.unwrap();
        }
    });
}

#[test]
fn a_copy_made_from_listed_changes_equals_its_source() {
    run(1, |runtime| async move {
        let source_directory = MemoryDirectory::new(runtime.clone());
        let (source, _) = open(&runtime, &source_directory).await;
        source
            .set_copy_state(SLICE, CopyState::InSync)
            .await
            .unwrap();
        for seq in 1..=50u64 {
            let first = (seq * 31 % 900) as u32;
            let change = if seq % 7 == 0 {
                zero(seq, first, 90)
            } else {
                write(seq, first, 3)
            };
            source.append(vec![change]).await.unwrap();
            source.set_stable(SLICE, Seq(seq));
            if seq % 20 == 0 {
                source.flush().await.unwrap();
            }
        }
        let directory = MemoryDirectory::new(runtime.clone());
        let (target, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        target.set_copy_state(SLICE, joining).await.unwrap();
        let mut from = 0;
        loop {
            let changed = source
                .changed_since(SLICE, target.base(SLICE), from, 16)
                .await;
            let Some((last, _, _)) = changed.last() else {
                break;
            };
            from = last + 1;
            let blocks: Vec<u32> = changed.iter().map(|(block, _, _)| *block).collect();
            let versions = source.read_versions(SLICE, &blocks).await.unwrap();
            target.install(SLICE, versions).await.unwrap();
        }
        target.set_stable(SLICE, Seq(50));
        target
            .set_copy_state(SLICE, CopyState::InSync)
            .await
            .unwrap();
        drop(target);
        directory.kill();
        let (target, _) = open(&runtime, &directory).await;
        assert_eq!(target.base(SLICE), Seq(50));
        let read = target.read(SLICE, 0, 1024).await.unwrap();
        assert!(read == source.read(SLICE, 0, 1024).await.unwrap());
    });
}

#[test]
fn what_is_lost_in_every_copy_is_lost_in_a_joining_one_and_healed_by_whoever_has_it() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        let old = copied(4, 2, Some(block(2)));
        let older = copied(5, 3, Some(block(3)));
        store.install(SLICE, vec![old, older]).await.unwrap();
        let lost = |number, seq| CopiedBlock {
            content: Copied::Lost,
            ..copied(number, seq, None)
        };
        // One of which the age is known, one of which it is not, and one that is news here.
        store
            .install(SLICE, vec![lost(4, 9), lost(5, 0), lost(6, 0)])
            .await
            .unwrap();
        store
            .set_copy_state(SLICE, CopyState::InSync)
            .await
            .unwrap();
        let mut store = store;
        for _ in 0..3 {
            for number in [4, 5, 6] {
                let damaged = StoreError::Damaged {
                    slice: SLICE,
                    block: number,
                };
                assert_eq!(store.read(SLICE, number, 1).await, Err(damaged));
            }
            store.flush().await.unwrap();
            drop(store);
            directory.kill();
            (store, _) = open(&runtime, &directory).await;
        }
        let versions = store.read_versions(SLICE, &[4]).await.unwrap();
        assert_eq!(versions, vec![lost(4, 9)]);
        // What is older than what was lost heals nothing; what may be it does.
        let copies = vec![
            copied(4, 8, Some(block(8))),
            copied(5, 3, Some(block(3))),
            copied(6, 0, None),
        ];
        store.install(SLICE, copies).await.unwrap();
        assert!(store.read(SLICE, 4, 1).await.is_err());
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(3));
        assert_eq!(store.read(SLICE, 6, 1).await.unwrap(), block(0));
    });
}

/// A block was written somewhere and then zeroed, last by `seq`: who has seen `after` must hear
/// of it.
async fn is_listed_as_zeroed(store: &Store, after: u64, seq: u64) {
    store.set_stable(SLICE, Seq(seq));
    for moment in ["in the journal", "at home"] {
        let changed = store.changed_since(SLICE, Seq(after), 0, 100).await;
        assert_eq!(changed, [(3, View(1), Seq(seq))], "{moment}");
        store.flush().await.unwrap();
    }
}

#[test]
fn a_block_zeroed_again_after_a_restart_still_tells_those_who_have_what_was_written() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open_in_sync(&runtime, &directory).await;
        let history = vec![write(1, 3, 1), zero(2, 3, 1)];
        store.append(history).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        drop(store);
        directory.kill();
        let (store, _) = open(&runtime, &directory).await;
        store.recovered().await.unwrap();
        store.append(vec![zero(3, 3, 1)]).await.unwrap();
        is_listed_as_zeroed(&store, 1, 3).await;
    });
}

#[test]
fn a_block_zeroed_again_after_joining_still_tells_those_who_have_what_was_written() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        // The others have a write of it, and this copy's zero is newer than that.
        store.append(vec![zero(2, 3, 1)]).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        store
            .set_copy_state(SLICE, CopyState::InSync)
            .await
            .unwrap();
        store.append(vec![zero(3, 3, 1)]).await.unwrap();
        is_listed_as_zeroed(&store, 1, 3).await;
    });
}
