//! The store as its callers see it, on a simulated machine.

mod ahead;
mod basics;
mod crashes;
mod damage;
mod discard;
mod golden;
mod home;
mod inspect;
mod large;
mod mapped;
mod read_in;
mod removal;
mod resync;
mod verify;

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::Runtime;

use crate::testing::{Dice, MemoryDirectory};
use crate::{
    BLOCK_BYTES, Body, CopyState, OperationId, Record, RecoveryReport, Seq, SliceKey, Store,
    StoreBounds, StoreOptions, View,
};

const SLICE: SliceKey = SliceKey {
    volume: 7,
    slice: 2,
};
const MIB: u64 = 1 << 20;

fn options() -> StoreOptions {
    StoreOptions {
        identity: *b"a store for test",
        journal_bytes: MIB,
        home_bytes: 9 * MIB,
        home_preallocated: false,
        slice_blocks: 1024,
        bounds: StoreBounds::SERVICE,
    }
}

async fn open(runtime: &Runtime, directory: &MemoryDirectory) -> (Rc<Store>, RecoveryReport) {
    let directory = Rc::new(directory.clone());
    Store::open(runtime.clone(), directory, options())
        .await
        .expect("the store opens")
}

/// The same, and its copy of `SLICE` is in sync.
async fn open_in_sync(
    runtime: &Runtime,
    directory: &MemoryDirectory,
) -> (Rc<Store>, RecoveryReport) {
    let opened = open(runtime, directory).await;
    let in_sync = opened.0.set_copy_state(SLICE, CopyState::InSync);
    in_sync.await.unwrap();
    opened
}

fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK_BYTES])
}

fn record(slice: SliceKey, seq: u64, body: Body) -> Record {
    let operation = OperationId {
        origin: 1,
        number: seq,
    };
    Record {
        slice,
        view: View(1),
        seq: Seq(seq),
        stable: Seq(0),
        operation,
        body,
    }
}

/// Writes a hundred neighbours among the blocks that `fills` tells of anew, one by one, and brings
/// them home.
async fn overwrite_some(store: &Rc<Store>, dice: &Dice, fills: &mut [u8], seq: &mut u64, fill: u8) {
    let first = dice.below(fills.len() as u64 - 100) as u32;
    for number in first..first + 100 {
        *seq += 1;
        fills[number as usize] = fill;
        let record = write(*seq, number, fill);
        store.append(vec![record]).await.unwrap();
    }
    store.set_stable(SLICE, Seq(*seq));
    store.flush().await.unwrap();
}

/// A write of one block filled with `fill`.
fn write(seq: u64, first_block: u32, fill: u8) -> Record {
    record(
        SLICE,
        seq,
        Body::Write {
            first_block,
            data: block(fill),
        },
    )
}

fn zero(seq: u64, first_block: u32, blocks: u32) -> Record {
    record(
        SLICE,
        seq,
        Body::Zero {
            first_block,
            blocks,
        },
    )
}
