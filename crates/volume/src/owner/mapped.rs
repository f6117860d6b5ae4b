//! Which parts of the volume are mapped: asked of the copies, which know it without reading data.
//!
//! A slice that nothing was ever written to is not asked about. The rest is asked copy by copy,
//! the own one first and each other node once for all slices, as a read would be: as of the
//! stable position, under leases, and of another copy where one cannot tell.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_reservation::Standing;
use holdfast_runtime::{NodeId, PAGE_BYTES};
use holdfast_wire::Seq;
use holdfast_wire::mapped::{MappedBytes, MappedRange, SliceRange};
use holdfast_wire::volume::IoStatus;
use prost::Message;

use super::Owner;

/// Most runs of one answer.
const RUNS_MAX: usize = 64;
/// Most slices that copies are asked about for one answer.
const ASKED_MAX: usize = 256;
/// Longest range of one request, in bytes. What is beyond an answer is asked for again.
pub(crate) const MAP_BYTES_MAX: u64 = 1 << 50;

/// A slice that a copy has to be asked about.
struct Asked {
    range: SliceRange,
    sources: Vec<NodeId>,
}

impl Owner {
    /// The runs from `offset` on for an initiator: a `MappedBytes`, encoded.
    pub(crate) async fn mapped_for(
        &self,
        standing: Standing,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, IoStatus> {
        let mapped = self.mapped(offset, length);
        let runs = self.read_for(standing, mapped).await?;
        Ok(runs.finish().encode_to_vec().into())
    }

    async fn mapped(&self, offset: u64, length: u64) -> Result<Runs, IoStatus> {
        let mut asked = Vec::new();
        let mut parts = Vec::new();
        let (mut at, mut end) = (offset, offset + length);
        let mut written = self
            .slices
            .within(self.slices_of(offset, length), ASKED_MAX + 1);
        if written.len() > ASKED_MAX {
            // What follows is asked for again.
            let rest = written.pop().map_or(0, u64::from);
            end = end.min(rest * self.slice_bytes);
        }
        for index in written {
            let first = u64::from(index) * self.slice_bytes;
            if first > at {
                // Slices that were never written to.
                parts.push((None, 0, first - at));
                at = first;
            }
            let start = at - first;
            let bytes = (self.slice_bytes - start).min(end - at);
            asked.extend(self.ask_about(index, start, bytes).await?);
            parts.push((Some(index), start, bytes));
            at += bytes;
        }
        if at < end {
            parts.push((None, 0, end - at));
        }
        let told = self.ask_copies(asked).await?;
        let mut runs = Runs::default();
        for (index, start, bytes) in parts {
            let complete = match index.and_then(|index| told.get(&index)) {
                None => runs.add(false, bytes),
                Some(range) => runs.add_blocks(range, start, bytes),
            };
            if !complete {
                break;
            }
        }
        // As for reads: the answer is true of one moment in this owner's office.
        self.confirm_leases(offset, runs.bytes()).await?;
        Ok(runs)
    }

    /// What has to be asked about a part of a slice: nothing if all of it was never written to.
    async fn ask_about(
        &self,
        index: u32,
        start: u64,
        bytes: u64,
    ) -> Result<Option<Asked>, IoStatus> {
        let page = PAGE_BYTES as u64;
        let first_block = (start / page) as u32;
        let end_block = (start + bytes).div_ceil(page) as u32;
        self.show_old_changes(index, (first_block, end_block))
            .await?;
        let (stable, sources) = self
            .with_slice(index, |slice| (slice.stream.stable(), slice.sources()))
            .ok_or(IoStatus::Interrupted)?;
        Ok((stable > Seq(0)).then(|| Asked {
            range: SliceRange {
                slice: index,
                stable: stable.0,
                first_block,
                blocks: end_block - first_block,
            },
            sources: self.nearest_first(sources),
        }))
    }

    /// Asks about each slice the nearest copy that can tell.
    async fn ask_copies(&self, asked: Vec<Asked>) -> Result<BTreeMap<u32, MappedRange>, IoStatus> {
        let mut told = BTreeMap::new();
        let mut left = asked;
        while !left.is_empty() {
            let mut by_node: BTreeMap<NodeId, Vec<SliceRange>> = BTreeMap::new();
            for one in &left {
                let node = one.sources.first().ok_or(IoStatus::Interrupted)?;
                by_node.entry(*node).or_default().push(one.range);
            }
            let asking = by_node
                .into_iter()
                .map(|(node, ranges)| self.ask_copy(node, ranges));
            for (slice, range) in join_all(asking).await.into_iter().flatten() {
                told.insert(slice, range);
            }
            left.retain_mut(|one| {
                one.sources.remove(0);
                !told.contains_key(&one.range.slice)
            });
        }
        Ok(told)
    }

    /// What one copy's node can tell of these ranges.
    async fn ask_copy(&self, node: NodeId, ranges: Vec<SliceRange>) -> Vec<(u32, MappedRange)> {
        let slices: Vec<u32> = ranges.iter().map(|range| range.slice).collect();
        let map = self.calls.map_request(ranges, RUNS_MAX as u32 + 1);
        let answer = if node == self.context.node() {
            self.context.holder.map_blocks(&map).await.ok()
        } else {
            self.calls.map_blocks(node, map).await
        };
        let told = answer.unwrap_or_default().ranges;
        let known = |(_, range): &(u32, MappedRange)| !range.lengths.is_empty();
        slices.into_iter().zip(told).filter(known).collect()
    }
}

/// Runs in bytes, in turn.
#[derive(Default)]
struct Runs {
    first_mapped: bool,
    lengths: Vec<u64>,
}

impl Runs {
    /// Appends bytes in one state; false if they begin a run too many.
    fn add(&mut self, mapped: bool, bytes: u64) -> bool {
        let count = self.lengths.len();
        let last_mapped = self.first_mapped ^ count.is_multiple_of(2);
        match self.lengths.last_mut() {
            None => {
                self.first_mapped = mapped;
                self.lengths.push(bytes);
            }
            Some(last) if last_mapped == mapped => *last += bytes,
            Some(_) if count == RUNS_MAX => return false,
            Some(_) => self.lengths.push(bytes),
        }
        true
    }

    /// Appends what a copy told of the blocks that `bytes` from `start` on lie in; false if not
    /// all of them got in.
    fn add_blocks(&mut self, range: &MappedRange, start: u64, bytes: u64) -> bool {
        let page = PAGE_BYTES as u64;
        let end = start + bytes;
        let (mut at, mut block_end) = (start, start - start % page);
        let mut mapped = range.first_mapped;
        for length in &range.lengths {
            block_end += u64::from(*length) * page;
            let upto = block_end.min(end);
            if upto > at {
                if !self.add(mapped, upto - at) {
                    return false;
                }
                at = upto;
            }
            mapped = !mapped;
        }
        at == end
    }

    fn bytes(&self) -> u64 {
        self.lengths.iter().sum()
    }

    fn finish(self) -> MappedBytes {
        MappedBytes {
            first_mapped: self.first_mapped,
            lengths: self.lengths,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(first_mapped: bool, lengths: &[u32]) -> MappedRange {
        MappedRange {
            first_mapped,
            lengths: lengths.to_vec(),
        }
    }

    #[test]
    fn runs_in_one_state_become_one_also_across_slices() {
        let mut runs = Runs::default();
        assert!(runs.add(false, 100));
        assert!(runs.add(false, 10));
        assert!(runs.add_blocks(&told(false, &[1, 2]), 0, 3 * 4096));
        assert!(runs.add_blocks(&told(true, &[4]), 0, 4 * 4096));
        assert!(!runs.first_mapped);
        assert_eq!(runs.lengths, [4206, 6 * 4096]);
    }

    #[test]
    fn the_runs_of_blocks_are_cut_to_the_bytes_asked_for() {
        let mut runs = Runs::default();
        assert!(runs.add_blocks(&told(true, &[1, 1]), 512, 4096));
        assert!(runs.first_mapped);
        assert_eq!(runs.lengths, [3584, 512]);
    }

    #[test]
    fn an_answer_ends_where_a_copy_ended_or_where_a_run_is_too_many() {
        let mut runs = Runs::default();
        assert!(
            !runs.add_blocks(&told(true, &[1]), 0, 2 * 4096),
            "told too little"
        );
        assert_eq!(runs.bytes(), 4096);
        let mut runs = Runs::default();
        let many: Vec<u32> = vec![1; RUNS_MAX + 1];
        let bytes = 4096 * (RUNS_MAX as u64 + 1);
        assert!(!runs.add_blocks(&told(false, &many), 0, bytes));
        assert_eq!(runs.lengths.len(), RUNS_MAX);
        assert_eq!(runs.bytes(), bytes - 4096);
    }
}
