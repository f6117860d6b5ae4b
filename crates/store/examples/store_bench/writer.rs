//! A client that writes.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_store::{BLOCK_BYTES, Body, OperationId, Record, Seq, Store, View};

use crate::{SLICE_BLOCKS, slice};

/// A cheap permutation-like sequence of numbers: the same on every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A client that keeps `depth` writes under way, each stable as soon as it is durable.
pub(crate) struct Writer {
    store: Rc<Store>,
    data: Bytes,
    seq: u64,
    depth: usize,
    pub(crate) latencies: Vec<Duration>,
}

impl Writer {
    pub(crate) fn new(store: &Rc<Store>, depth: usize, fill: u8) -> Self {
        Self {
            store: store.clone(),
            data: Bytes::from(vec![fill; BLOCK_BYTES]),
            seq: 0,
            depth,
            latencies: Vec::new(),
        }
    }

    pub(crate) fn record(&mut self, number: u64, blocks: Option<u32>) -> Record {
        self.seq += 1;
        let first_block = (number % u64::from(SLICE_BLOCKS)) as u32;
        let body = match blocks {
            None => Body::Write {
                first_block,
                data: self.data.clone(),
            },
            Some(blocks) => Body::Zero {
                first_block,
                blocks,
            },
        };
        Record {
            slice: slice(number),
            view: View(1),
            seq: Seq(self.seq),
            stable: Seq(0),
            operation: OperationId {
                origin: 1,
                number: self.seq,
            },
            body,
        }
    }

    /// Writes the blocks that `next` names until it names none, or the store is full. Answers
    /// how many were written.
    pub(crate) async fn write(&mut self, mut next: impl FnMut() -> Option<u64>) -> u64 {
        let mut under_way = FuturesUnordered::new();
        let mut done = 0;
        loop {
            while under_way.len() < self.depth {
                let Some(number) = next() else { break };
                let record = self.record(number, None);
                let (key, seq) = (record.slice, record.seq);
                let begun = Instant::now();
                let appended = self.store.append(vec![record]);
                under_way.push(async move { (appended.await, key, seq, begun.elapsed()) });
            }
            match under_way.next().await {
                Some((Ok(()), key, seq, took)) => {
                    self.store.set_stable(key, seq);
                    self.latencies.push(took);
                    done += 1;
                }
                Some((Err(error), ..)) => {
                    eprintln!("after {done} writes: {error}");
                    return done;
                }
                None => return done,
            }
        }
    }

    /// Overwrites so many blocks at random of the first `blocks`.
    pub(crate) async fn overwrite(&mut self, dice: &mut Dice, blocks: u64, count: u64) -> u64 {
        let mut left = count;
        self.write(|| {
            left = left.checked_sub(1)?;
            Some(dice.below(blocks))
        })
        .await
    }

    pub(crate) fn percentile_us(&mut self, share: f64) -> f64 {
        self.latencies.sort_unstable();
        let place = (self.latencies.len() as f64 * share) as usize;
        let found = self
            .latencies
            .get(place.min(self.latencies.len().saturating_sub(1)));
        found.map_or(0.0, |time| time.as_nanos() as f64 / 1000.0)
    }
}
