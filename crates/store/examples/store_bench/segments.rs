//! What the size of a home costs, whether or not anything is in it.

use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use holdfast_runtime::Runtime;
use holdfast_store::{HOME_BYTES_MAX, Store};
use serde::Serialize;

use crate::process::resident_bytes;
use crate::writer::Writer;
use crate::{Bench, HOLLOW, MIB, in_sync, print, slice};

/// Tables of a home that is full, for each TiB: 12 GiB of facts in tables of 512 KiB.
const TABLES_PER_TIB: u64 = (12 << 30) / (512 << 10);

#[derive(Serialize)]
struct Segments {
    home_tib: u64,
    /// New, and then opened again.
    created_ms: f64,
    opened_ms: f64,
    resident_mib: f64,
    /// A block is appended and brought home, on average.
    empty_round_ms: f64,
    empty_snapshot_bytes: u64,
    empty_snapshot_ms: f64,
    /// From here on all is as in a home whose segments are in use.
    segments: u32,
    tables: u64,
    full_resident_mib: f64,
    full_choice_us: f64,
    full_round_ms: f64,
    full_snapshot_bytes: u64,
    full_snapshot_ms: f64,
    /// For so long nothing else ran at most.
    full_snapshot_longest_ms: f64,
}

/// Milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) async fn measure(bench: Bench, runtime: Runtime, home: u64) {
    let before = resident_bytes();
    let resident_mib = || (resident_bytes() - before) as f64 / MIB as f64;
    let home_bytes = (home << 40).min(HOME_BYTES_MAX);
    let begun = Instant::now();
    let store = bench.open(&runtime, 64 * MIB, home_bytes).await;
    let created_ms = ms(begun.elapsed());
    in_sync(&store, 1).await;
    drop(store);
    let begun = Instant::now();
    let store = bench.open(&runtime, 64 * MIB, home_bytes).await;
    let opened_ms = ms(begun.elapsed());
    let mut writer = Writer::new(&store, 1, HOLLOW);
    let empty_resident_mib = resident_mib();
    let empty_round_ms = round_ms(&store, &mut writer).await;
    let (empty_snapshot_bytes, empty_snapshot_ms, _) = snapshot(&store).await;
    let tables = (home_bytes >> 40) * TABLES_PER_TIB;
    let segments = store.pretend_full(tables as u32);
    let full_resident_mib = resident_mib();
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(store.next_collected().is_some());
    }
    let full_choice_us = ms(begun.elapsed()) * 10.0;
    let full_round_ms = round_ms(&store, &mut writer).await;
    let (full_snapshot_bytes, full_snapshot_ms, longest) = snapshot(&store).await;
    print(&Segments {
        home_tib: home,
        created_ms,
        opened_ms,
        resident_mib: empty_resident_mib,
        empty_round_ms,
        empty_snapshot_bytes,
        empty_snapshot_ms,
        segments,
        tables,
        full_resident_mib,
        full_choice_us,
        full_round_ms,
        full_snapshot_bytes,
        full_snapshot_ms,
        full_snapshot_longest_ms: longest,
    });
    drop((writer, store));
    bench.remove();
}

/// A destage round of one block, of the average of some.
async fn round_ms(store: &Rc<Store>, writer: &mut Writer) -> f64 {
    const ROUNDS: u64 = 50;
    let begun = Instant::now();
    for number in 0..ROUNDS {
        let record = writer.record(number, None);
        let seq = record.seq;
        store.append(vec![record]).await.expect("there is room");
        store.set_stable(slice(0), seq);
        store.flush().await.expect("a round");
    }
    ms(begun.elapsed()) / ROUNDS as f64
}

/// Bytes of a snapshot, how long it took, and for how long it held the thread at most.
async fn snapshot(store: &Store) -> (u64, f64, f64) {
    let mut longest = Duration::ZERO;
    let begun = Instant::now();
    let mut turn = pin!(store.turn_manifest());
    let bytes = std::future::poll_fn(|context| {
        let begun = Instant::now();
        let polled = turn.as_mut().poll(context);
        longest = longest.max(begun.elapsed());
        match polled {
            Poll::Ready(bytes) => Poll::Ready(bytes.expect("a snapshot")),
            Poll::Pending => Poll::Pending,
        }
    });
    let bytes = bytes.await;
    (bytes, ms(begun.elapsed()), ms(longest))
}
