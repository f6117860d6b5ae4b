//! Verification: what no client has read yet.

use super::home::filled;
use super::*;
use crate::testing::run;
use crate::{Copied, CopiedBlock, DamagedBlocks, StoreError, VerifyPosition};

/// A whole verification: bytes read, blocks found damaged.
pub(super) async fn verify_all(store: &Rc<Store>) -> (u64, u32) {
    let (mut bytes, mut damaged) = (0, 0);
    let mut from: Option<VerifyPosition> = None;
    loop {
        let step = store.verify(from).await;
        bytes += step.bytes;
        damaged += step.damaged_blocks;
        if step.next.is_none() {
            return (bytes, damaged);
        }
        assert!(step.next > from, "a verification goes forward");
        from = step.next;
    }
}

fn healing(number: u32, seq: u64, fill: u8) -> CopiedBlock {
    CopiedBlock {
        block: number,
        view: View(1),
        seq: Seq(seq),
        content: Copied::Bytes(block(fill)),
    }
}

#[test]
fn a_verification_reads_every_block_and_finds_the_damaged_one() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 1000, |number| number as u8).await;
        let all = 1000 * BLOCK_BYTES as u64;
        assert_eq!(verify_all(&store).await, (all, 0));
        assert_eq!(store.damaged_blocks(None, 10), None);
        for number in [5, 700] {
            let at = store.place_of(SLICE, number).await.unwrap();
            directory.flip("home", at + 100);
        }
        assert_eq!(verify_all(&store).await, (all, 2));
        let blocks = vec![5, 700];
        let expected = DamagedBlocks {
            slice: SLICE,
            blocks,
        };
        assert_eq!(store.damaged_blocks(None, 10), Some(expected));
        assert_eq!(store.damaged_blocks(Some((SLICE, 700)), 10), None);
        store.damage_found().await;
        // An older version heals nothing, and whoever sent it is told. What is intact here, or
        // healed, is not complained about.
        let copies = vec![healing(5, 5, 1), healing(6, 6, 1)];
        let installed = store.install(SLICE, copies).await.unwrap();
        assert_eq!(installed.still_lost, [5]);
        assert_eq!(store.damaged_block_count(), 2);
        let copies = vec![healing(5, 6, 5), healing(700, 701, 700u32 as u8)];
        let installed = store.install(SLICE, copies).await.unwrap();
        assert!(installed.still_lost.is_empty());
        assert_eq!(store.damaged_block_count(), 0);
        store.flush().await.unwrap();
        assert_eq!(verify_all(&store).await, (all, 0));
        assert_eq!(store.read(SLICE, 5, 1).await.unwrap(), block(5));
    });
}

#[test]
fn a_verification_does_not_trust_what_memory_has_of_the_map() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 900, |number| number as u8).await;
        store.compact().await.unwrap();
        store.read(SLICE, 0, 1024).await.unwrap();
        // Three pages and a bit for each extent of 256 facts: this one is of the last, of which
        // 132 blocks were written.
        let leaf = store.map_places()[1][10];
        directory.flip("home", leaf + 300);
        store.read(SLICE, 800, 1).await.unwrap();
        let (_, damaged) = verify_all(&store).await;
        assert_eq!(damaged, 256, "the blocks of one extent are lost");
        let found = store.damaged_blocks(None, 1000).unwrap();
        assert_eq!(found.blocks, (768..1024).collect::<Vec<u32>>());
        // All of them are healed, those that were never written too.
        let copies = found.blocks.iter().map(|number| match number {
            900.. => CopiedBlock {
                content: Copied::Zero,
                ..healing(*number, 0, 0)
            },
            number => healing(*number, u64::from(*number) + 1, *number as u8),
        });
        store.install(SLICE, copies.collect()).await.unwrap();
        assert_eq!(store.damaged_block_count(), 0);
        store.flush().await.unwrap();
        store.compact().await.unwrap();
        drop(store);
        directory.kill();
        let (store, report) = open(&runtime, &directory).await;
        assert!(!report.found_damage());
        assert_eq!(verify_all(&store).await.1, 0);
        assert_eq!(store.read(SLICE, 900, 1).await.unwrap(), block(0));
        assert_eq!(
            store.read(SLICE, 899, 1).await.unwrap(),
            block(899u32 as u8)
        );
    });
}

#[test]
fn what_the_disk_refuses_to_read_is_damaged_too() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = filled(&runtime, &directory, 300, |number| number as u8).await;
        let at = store.place_of(SLICE, 17).await.unwrap();
        directory.fail_reads("home", at..at + BLOCK_BYTES as u64);
        assert_eq!(verify_all(&store).await.1, 1);
        let lost = StoreError::Damaged {
            slice: SLICE,
            block: 17,
        };
        assert_eq!(store.read(SLICE, 17, 1).await, Err(lost));
        store
            .install(SLICE, vec![healing(17, 18, 17)])
            .await
            .unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.read(SLICE, 17, 1).await.unwrap(), block(17));
    });
}
