//! Which blocks are mapped, against a model: those whose newest stable record is a write.

use super::*;
use crate::testing::run;
use crate::{MappedRun, StoreError};

const BLOCKS: u32 = 1024;

fn runs(of: &[(bool, u32)]) -> Vec<MappedRun> {
    of.iter()
        .map(|(mapped, blocks)| MappedRun {
            mapped: *mapped,
            blocks: *blocks,
        })
        .collect()
}

async fn whole(store: &Store) -> Vec<MappedRun> {
    store.mapped(SLICE, 0, BLOCKS, usize::MAX).await.unwrap()
}

#[test]
fn a_block_is_mapped_from_its_write_to_its_zeroing_in_the_journal_and_in_the_home() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(whole(&store).await, runs(&[(false, BLOCKS)]));
        // Written zeroes are data as any other.
        store
            .append(vec![write(1, 5, 1), write(2, 6, 0)])
            .await
            .unwrap();
        assert_eq!(
            whole(&store).await,
            runs(&[(false, BLOCKS)]),
            "not stable yet"
        );
        store.set_stable(SLICE, Seq(2));
        let two = runs(&[(false, 5), (true, 2), (false, BLOCKS - 7)]);
        assert_eq!(whole(&store).await, two);
        store.flush().await.unwrap();
        assert_eq!(whole(&store).await, two, "in the home");
        assert_eq!(store.slice_bytes(SLICE), 2 * 4096);
        assert_eq!(
            store.mapped(SLICE, 6, 4, 8).await.unwrap(),
            runs(&[(true, 1), (false, 3)])
        );
        let first = store.mapped(SLICE, 0, BLOCKS, 1).await.unwrap();
        assert_eq!(first, runs(&[(false, 5)]), "the whole run, and no other");

        store.append(vec![zero(3, 0, 6)]).await.unwrap();
        assert_eq!(whole(&store).await, two, "not stable yet");
        store.set_stable(SLICE, Seq(3));
        let one = runs(&[(false, 6), (true, 1), (false, BLOCKS - 7)]);
        assert_eq!(whole(&store).await, one, "zeroed in the journal");
        store.flush().await.unwrap();
        assert_eq!(whole(&store).await, one, "zeroed in the home");
        drop(store);
        let (store, _) = open(&runtime, &directory).await;
        assert_eq!(whole(&store).await, one, "after a restart");
        assert_eq!(store.slice_bytes(SLICE), 4096);
        let outside = store.mapped(SLICE, BLOCKS - 1, 2, 8).await;
        assert!(matches!(outside, Err(StoreError::OutOfRange { .. })));
    });
}

/// No step of the answer looks at data: it takes no read of the disk.
#[test]
fn a_long_run_is_told_without_reading_data() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        for part in 0..75 {
            let write = Body::Write {
                first_block: part * 8,
                data: Bytes::from(vec![7; 8 * BLOCK_BYTES]),
            };
            let seq = u64::from(part) + 1;
            store.append(vec![record(SLICE, seq, write)]).await.unwrap();
            store.set_stable(SLICE, Seq(seq));
        }
        store.flush().await.unwrap();
        let before = directory.reads("home");
        assert_eq!(
            whole(&store).await,
            runs(&[(true, 600), (false, BLOCKS - 600)])
        );
        assert_eq!(directory.reads("home"), before);
    });
}

#[test]
fn mapped_is_what_was_written_last_whatever_was_destaged_or_restarted() {
    for seed in 1..=12 {
        run(seed, |runtime| async move {
            let directory = MemoryDirectory::new(runtime.clone());
            let (mut store, _) = open(&runtime, &directory).await;
            let mut model = vec![false; BLOCKS as usize];
            let mut seq = 0;
            for _ in 0..60 {
                seq += 1;
                let draw = runtime.random_u64();
                let first = (draw >> 8) as u32 % (BLOCKS - 12);
                let blocks = 1 + (draw >> 40) as u32 % 12;
                let writes = draw % 3 != 0;
                let body = if writes {
                    Body::Write {
                        first_block: first,
                        data: Bytes::from(vec![draw as u8; blocks as usize * BLOCK_BYTES]),
                    }
                } else {
                    Body::Zero {
                        first_block: first,
                        blocks,
                    }
                };
                store.append(vec![record(SLICE, seq, body)]).await.unwrap();
                store.set_stable(SLICE, Seq(seq));
                model[first as usize..(first + blocks) as usize].fill(writes);
                if draw >> 60 < 3 {
                    store.flush().await.unwrap();
                }
                if draw >> 60 == 15 {
                    drop(store);
                    store = open(&runtime, &directory).await.0;
                    store.set_stable(SLICE, Seq(seq));
                }
                let told: Vec<bool> = whole(&store)
                    .await
                    .iter()
                    .flat_map(|run| vec![run.mapped; run.blocks as usize])
                    .collect();
                assert_eq!(told, model, "seed {seed}, record {seq}");
            }
        });
    }
}
