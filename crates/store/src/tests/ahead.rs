//! Going through the block map in order: as much is told as leaf by leaf, with fewer reads.

use std::collections::BTreeSet;

use super::*;
use crate::testing::run;
use crate::{CopyState, VerifyPosition};

/// Blocks of an extent, and so facts of a leaf.
const EXTENT: u32 = 256;
/// Full leaves of a table.
const TABLE: u32 = 43;
const RECORD_BLOCKS: u32 = 64;

const fn slice_of(volume: u64) -> SliceKey {
    SliceKey { volume, slice: 0 }
}

async fn cold(runtime: &Runtime, directory: &MemoryDirectory) -> Rc<Store> {
    directory.kill();
    let options = StoreOptions {
        journal_bytes: 32 * MIB,
        home_bytes: 160 * MIB,
        slice_blocks: 128 * EXTENT,
        ..options()
    };
    let directory = Rc::new(directory.clone());
    let opened = Store::open(runtime.clone(), directory, options).await;
    opened.expect("the store opens").0
}

/// A store of which tables hold so many extents of volumes 1 and 2, just opened.
async fn with_extents(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    extents: [u32; 2],
) -> Rc<Store> {
    let store = cold(runtime, directory).await;
    for (volume, extents) in (1..).zip(extents) {
        let key = slice_of(volume);
        let in_sync = store.set_copy_state(key, CopyState::InSync);
        in_sync.await.unwrap();
        for number in 0..extents * EXTENT / RECORD_BLOCKS {
            let seq = u64::from(number) + 1;
            let data = vec![number as u8; RECORD_BLOCKS as usize * BLOCK_BYTES];
            let body = Body::Write {
                first_block: number * RECORD_BLOCKS,
                data: Bytes::from(data),
            };
            store.append(vec![record(key, seq, body)]).await.unwrap();
            store.set_stable(key, Seq(seq));
        }
    }
    store.flush().await.unwrap();
    store.compact().await.unwrap();
    assert_eq!(store.audit_home().await, Ok(()));
    drop(store);
    cold(runtime, directory).await
}

/// All that is known of a volume's slice, asked for in parts; how many reads of the home it took.
async fn told(
    store: &Store,
    directory: &MemoryDirectory,
    volume: u64,
    extents: std::ops::Range<u32>,
) -> (Vec<(u32, View, Seq)>, u64) {
    let reads = directory.reads("home");
    let (mut found, mut from) = (Vec::new(), extents.start * EXTENT);
    while from < extents.end * EXTENT {
        let part = store
            .changed_since(slice_of(volume), Seq(0), from, EXTENT as usize)
            .await;
        let Some((last, ..)) = part.last() else { break };
        from = last + 1;
        found.extend(part);
        let (held, bound) = store.leaf_memory();
        assert!(held <= bound, "{held} bytes of {bound}");
    }
    (found, directory.reads("home") - reads)
}

#[test]
fn the_same_is_told_with_a_read_for_a_table_as_with_one_for_each_leaf() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let extents = 2 * TABLE + 10;
        let store = with_extents(&runtime, &directory, [extents, 0]).await;
        let (ahead, reads) = told(&store, &directory, 1, 0..extents).await;
        assert_eq!(ahead.len() as u32, extents * EXTENT);
        // One, two, five leaves and so on in the first table, one for each other.
        assert!((5..=9).contains(&reads), "{reads} reads");
        drop(store);
        let store = cold(&runtime, &directory).await;
        store.set_leaf_reads(false, None);
        let (alone, reads) = told(&store, &directory, 1, 0..extents).await;
        assert_eq!(ahead, alone);
        // A leaf may lie in two segments.
        let extents = u64::from(extents);
        assert!((extents..=extents + 1).contains(&reads), "{reads} reads");
    });
}

#[test]
fn reads_here_and_there_take_a_leaf_each() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let mut store = with_extents(&runtime, &directory, [2 * TABLE, 0]).await;
        let mut reads = [0; 2];
        for (reads, ahead) in reads.iter_mut().zip([true, false]) {
            store.set_leaf_reads(ahead, None);
            let before = directory.reads("home");
            for extent in [70, 3, 50, 20, 80, 34, 12, 60] {
                let first = extent * EXTENT;
                store.read(slice_of(1), first, 1).await.unwrap();
            }
            *reads = directory.reads("home") - before;
            drop(store);
            store = cold(&runtime, &directory).await;
        }
        let [ahead, alone] = reads;
        assert_eq!(ahead, alone);
        // The block, and the leaf: in a home so small it may lie across two segments.
        assert!((16..=18).contains(&ahead), "{ahead} reads");
    });
}

#[test]
fn damage_to_one_leaf_hides_no_other_of_what_is_read_with_it() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let extents = 2 * TABLE;
        let store = with_extents(&runtime, &directory, [extents, 0]).await;
        let leaves = store.map_places()[1].clone();
        // In the middle of the first table, by a bit; in the second, where nothing can be read.
        directory.flip("home", leaves[60] + 300);
        let unreadable = leaves[200];
        directory.fail_reads("home", unreadable..unreadable + 1);
        let (found, _) = told(&store, &directory, 1, 0..extents).await;
        assert_eq!(found.len() as u32, extents * EXTENT);
        let lost = found.iter().filter(|(_, _, seq)| *seq == Seq(0));
        let lost: BTreeSet<u32> = lost.map(|(block, ..)| block / EXTENT).collect();
        // A page holds a third of a leaf, or the end of one and the begin of another.
        assert!((2..=4).contains(&lost.len()), "{lost:?}");
        drop(store);
        let store = cold(&runtime, &directory).await;
        store.set_leaf_reads(false, None);
        assert_eq!(told(&store, &directory, 1, 0..extents).await.0, found);
    });
}

#[test]
fn a_verification_does_not_trust_what_a_reader_left_behind() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let store = with_extents(&runtime, &directory, [TABLE, TABLE]).await;
        // All of the first table: the second one is on its way, and never asked for.
        told(&store, &directory, 1, 0..TABLE).await;
        runtime.sleep(std::time::Duration::from_secs(1)).await;
        store.remove_volume(1).await.unwrap();
        let second = store.map_places()[1].clone();
        directory.flip("home", second[1] + 300);
        let (mut from, mut damaged) = (None::<VerifyPosition>, 0);
        loop {
            let step = store.verify(from).await;
            damaged += step.damaged_blocks;
            from = step.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(damaged, EXTENT, "the blocks of the first leaf");
    });
}
