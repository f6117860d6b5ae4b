//! How fast copies are made for nodes that are drained, as far as this node's owners make them.
//!
//! The rate is that of the last minute. It is not known before there is a measurement to compare
//! with: some seconds after a drain has begun.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use holdfast_config::state::ClusterState;
use holdfast_runtime::{Instant, NodeId, PAGE_BYTES};
use holdfast_volume::{CopiedBytes, DrainKey};
use holdfast_wire::{SliceKey, VolumeId};

use crate::node::Node;

/// For so long a measurement counts.
const COUNTS_FOR: Duration = Duration::from_secs(60);
/// A rate over less time than this would say little.
const APART_MIN: Duration = Duration::from_secs(2);

/// What one node does for a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainWork {
    /// The node that is drained.
    pub node: NodeId,
    /// Bytes that this node's owners have copied since the drain, or this node, began.
    pub copied_bytes: u64,
    /// Of those, bytes in copies that are not in sync yet.
    pub unfinished_bytes: u64,
    /// Bytes a second within the last minute; `None` if that is not known yet.
    pub bytes_per_s: Option<u64>,
}

/// Measurements of one drain, the oldest first.
#[derive(Clone, Debug, Default)]
struct Samples(VecDeque<(Instant, u64)>);

impl Samples {
    fn add(&mut self, now: Instant, bytes: u64) {
        self.0.push_back((now, bytes));
        while let [(_, _), (second, _), ..] = self.0.make_contiguous()[..]
            && now.saturating_since(second) >= COUNTS_FOR
        {
            self.0.pop_front();
        }
    }

    /// Bytes a second from the oldest measurement that counts until now.
    fn rate(&self, now: Instant, bytes: u64) -> Option<u64> {
        let (since, before) = self.0.front()?;
        let passed = now.saturating_since(*since);
        if passed < APART_MIN {
            return None;
        }
        let copied = u128::from(bytes.saturating_sub(*before));
        let rate = copied * 1_000_000 / passed.as_micros();
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub(crate) struct DrainMeter {
    samples: BTreeMap<DrainKey, Samples>,
}

impl DrainMeter {
    /// Takes a measurement of each drain, and forgets those that are over.
    pub(crate) fn measure(
        &mut self,
        now: Instant,
        draining: &BTreeMap<NodeId, u64>,
        copied: &CopiedBytes,
    ) {
        copied.retain(draining);
        self.samples
            .retain(|drain, _| draining.get(&drain.0) == Some(&drain.1));
        for (node, since) in draining {
            let drain = (*node, *since);
            let samples = self.samples.entry(drain).or_default();
            samples.add(now, copied.of(drain));
        }
    }

    fn rate(&self, now: Instant, drain: DrainKey, bytes: u64) -> Option<u64> {
        self.samples.get(&drain)?.rate(now, bytes)
    }
}

impl Node {
    /// What this node does for each node that is drained.
    pub fn drain_work(&self) -> Vec<DrainWork> {
        let state = self.state();
        if state.draining.is_empty() {
            return Vec::new();
        }
        let now = self.context.runtime.now();
        let mut unfinished = self.unfinished_bytes(&state);
        let meter = self.drain_meter.borrow();
        let drains = state.draining.iter();
        drains
            .map(|(node, since)| {
                let drain = (*node, *since);
                let copied_bytes = self.context.copied.of(drain);
                DrainWork {
                    node: *node,
                    copied_bytes,
                    unfinished_bytes: unfinished.remove(&drain).unwrap_or(0),
                    bytes_per_s: meter.rate(now, drain, copied_bytes),
                }
            })
            .collect()
    }

    fn unfinished_bytes(&self, state: &ClusterState) -> BTreeMap<DrainKey, u64> {
        let mut unfinished: BTreeMap<DrainKey, u64> = BTreeMap::new();
        for (volume, owner) in self.owners.borrow().iter() {
            let Some(record) = state.volumes.get(volume) else {
                continue;
            };
            for (slice, target, blocks) in owner.resyncs_under_way() {
                let slice = record.slices.get(slice);
                let drain = slice.and_then(|slice| CopiedBytes::drain_of(state, slice, target));
                if let Some(drain) = drain {
                    *unfinished.entry(drain).or_default() += blocks * PAGE_BYTES as u64;
                }
            }
        }
        unfinished
    }

    /// Bytes of the copies that the config state places on this node. What its store has beyond
    /// them, of copies that were given away, counts for nothing.
    pub fn copies_bytes(&self) -> u64 {
        let held = self.held_bytes();
        held.into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// The same volume by volume.
    pub fn held_bytes(&self) -> Vec<(VolumeId, u64)> {
        let state = self.state();
        let held = state.volumes.held_by(self.id()).map(|volume| {
            let slices = state.volumes[&volume].slices.iter();
            let here = slices.filter(|(_, slice)| slice.status(self.id()).is_some());
            let bytes = here.map(|(slice, _)| {
                let volume = volume.0;
                self.context.store.slice_bytes(SliceKey { volume, slice })
            });
            (volume, bytes.sum())
        });
        held.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::default() + Duration::from_secs(s)
    }

    #[test]
    fn a_rate_is_that_of_the_last_minute_and_unknown_at_first() {
        let mut samples = Samples::default();
        assert_eq!(samples.rate(at(0), 0), None);
        samples.add(at(0), 0);
        assert_eq!(samples.rate(at(1), 1_000), None, "too soon");
        assert_eq!(samples.rate(at(2), 1_000), Some(500));
        for second in (5..=100).step_by(5) {
            samples.add(at(second), second * 1_000);
        }
        assert_eq!(samples.rate(at(100), 100_000), Some(1_000));
        // It stands still: a minute later nothing is left of what it was.
        for second in (105..=160).step_by(5) {
            samples.add(at(second), 100_000);
        }
        assert_eq!(samples.rate(at(160), 100_000), Some(0));
        assert!(samples.0.len() <= 14, "{}", samples.0.len());
    }

    #[test]
    fn drains_that_are_over_or_began_again_are_measured_anew() {
        let (mut meter, copied) = (DrainMeter::default(), CopiedBytes::default());
        let draining = BTreeMap::from([(NodeId(3), 7)]);
        meter.measure(at(0), &draining, &copied);
        meter.measure(at(5), &draining, &copied);
        assert_eq!(meter.rate(at(5), (NodeId(3), 7), 50), Some(10));
        let again = BTreeMap::from([(NodeId(3), 8)]);
        meter.measure(at(10), &again, &copied);
        assert_eq!(meter.rate(at(20), (NodeId(3), 7), 50), None);
        assert_eq!(meter.rate(at(11), (NodeId(3), 8), 50), None);
    }
}
