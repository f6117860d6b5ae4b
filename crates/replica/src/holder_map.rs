//! The holder's answer to an owner that asks which blocks are mapped.

use holdfast_runtime::reach::Row;
use holdfast_store::MappedRun;
use holdfast_wire::mapped::{MapBlocks, MappedBlocks, MappedRange};
use holdfast_wire::replica::{ReplicaRefusal, ReplicaReply};
use holdfast_wire::{Seq, SliceKey, View};
use prost::Message;

use crate::holder::{Answer, Holder, refused};

impl Holder {
    pub(crate) async fn on_map_blocks(&self, map: &MapBlocks) -> Answer {
        let answer = self.map_blocks(map).await?;
        Ok((ReplicaReply::default(), answer.encode_to_vec().into()))
    }

    /// Which blocks are mapped, for the owner of the view: of each range as of its stable position
    /// or later. A range that this copy cannot tell of has no runs.
    pub async fn map_blocks(&self, map: &MapBlocks) -> Result<MappedBlocks, ReplicaRefusal> {
        let mut ranges = Vec::with_capacity(map.ranges.len());
        for range in &map.ranges {
            // A later view may have been promised while the range before was looked at.
            self.check_view(map.volume, map.view)?;
            let slice = SliceKey {
                volume: map.volume,
                slice: range.slice,
            };
            let (first, blocks) = (range.first_block, range.blocks);
            let stable = Seq(range.stable);
            let known = self.raise_stable(slice, View(map.view), stable);
            let told = match known.and_then(|()| self.check_complete(slice, Row::ReadJoining)) {
                Ok(()) => self
                    .store
                    .mapped(slice, first, blocks, map.runs_max as usize)
                    .await
                    .map_err(refused)
                    .and_then(|runs| {
                        self.check_complete(slice, Row::ReadGivenBack)
                            .map(|()| runs)
                    }),
                Err(refusal) => Err(refusal),
            };
            ranges.push(told.map_or_else(|_| MappedRange::default(), in_turn));
        }
        Ok(MappedBlocks { ranges })
    }
}

fn in_turn(runs: Vec<MappedRun>) -> MappedRange {
    MappedRange {
        first_mapped: runs.first().is_some_and(|run| run.mapped),
        lengths: runs.iter().map(|run| run.blocks).collect(),
    }
}
