//! Reads: from stable data, under leases.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{NodeId, PAGE_BYTES};
use holdfast_wire::Seq;
use holdfast_wire::replica::ReplicaRefusal;
use holdfast_wire::volume::IoStatus;

use super::Owner;
use super::io::IO_BYTES_MAX;

/// How long a read waits for a lease before its portal is told to come again.
const LEASE_PATIENCE: Duration = Duration::from_millis(2500);

impl Owner {
    /// Reads a byte range of the volume. Every byte was stable, and this owner was in office,
    /// at one moment between the call and its return.
    pub(crate) async fn read(&self, offset: u64, length: u64) -> Result<Bytes, IoStatus> {
        let mut data = BytesMut::new();
        let mut single = None;
        for (index, start, bytes) in self.segments(offset, length) {
            let part = self.read_segment(index, start, bytes).await?;
            if bytes == length {
                single = Some(part);
            } else {
                data.extend_from_slice(&part);
            }
        }
        self.confirm_leases(offset, length).await?;
        Ok(single.unwrap_or_else(|| data.freeze()))
    }

    /// Waits until the leases of all slices in the range are alive at one moment.
    ///
    /// The moment lies within the read, after its data was fetched: no other owner had opened
    /// the volume then, so what was fetched was the newest stable data when it was fetched.
    pub(crate) async fn confirm_leases(&self, offset: u64, length: u64) -> Result<(), IoStatus> {
        let give_up = self.context.runtime.now() + LEASE_PATIENCE;
        loop {
            let granted = self.leases.next_grant();
            let alive = self.range_leased(offset, length);
            if alive.ok_or(IoStatus::Interrupted)? {
                return Ok(());
            }
            reach::note(Row::ReadWaitsLease);
            let left = give_up.saturating_since(self.context.runtime.now());
            if left.is_zero() || self.context.runtime.timeout(left, granted).await.is_none() {
                reach::note(Row::ReadLeaseLost);
                return Err(IoStatus::Interrupted);
            }
        }
    }

    /// Reads bytes of one slice from the nearest copy that has them intact.
    pub(crate) async fn read_segment(
        &self,
        index: u32,
        start: u64,
        bytes: u64,
    ) -> Result<Bytes, IoStatus> {
        let page = PAGE_BYTES as u64;
        let first_block = (start / page) as u32;
        let end_block = (start + bytes).div_ceil(page) as u32;
        let data = self
            .read_blocks(index, first_block, end_block - first_block)
            .await?;
        let skip = (start % page) as usize;
        Ok(data.slice(skip..skip + bytes as usize))
    }

    /// Reads whole blocks of one slice, as of its stable position at this moment or later.
    pub(crate) async fn read_blocks(
        &self,
        index: u32,
        first_block: u32,
        blocks: u32,
    ) -> Result<Bytes, IoStatus> {
        if !self.slices.contains(index) && !self.gate.is_closed() {
            reach::note(Row::ReadNeverWritten);
            return Ok(zeroes(blocks as usize * PAGE_BYTES));
        }
        self.show_old_changes(index, (first_block, first_block + blocks))
            .await?;
        let (stable, sources) = self
            .with_slice(index, |slice| (slice.stream.stable(), slice.sources()))
            .ok_or(IoStatus::Interrupted)?;
        let mut intact_elsewhere = sources.is_empty();
        for node in self.nearest_first(sources) {
            // The one before may have kept this waiting for seconds.
            if self.with_slice(index, |slice| slice.is_source(node)) != Some(true) {
                intact_elsewhere = true;
                continue;
            }
            match self
                .read_copy(index, node, stable, first_block, blocks)
                .await
            {
                Ok(data) if data.len() == blocks as usize * PAGE_BYTES => return Ok(data),
                Ok(_) => intact_elsewhere = true,
                Err(ReplicaRefusal::Damaged) => {
                    reach::note(Row::ReadOtherCopy);
                    tracing::warn!(volume = %self.volume, slice = index, first_block, %node,
                        "a copy is damaged here; reading another one");
                }
                Err(_) => intact_elsewhere = true,
            }
        }
        // A copy that did not answer may have it intact: only if all said so it is lost.
        Err(if intact_elsewhere {
            IoStatus::Interrupted
        } else {
            IoStatus::Damaged
        })
    }

    /// Waits for changes under way that the host of their path, if it has given that up, must not
    /// see come later than this read.
    pub(crate) async fn show_old_changes(
        &self,
        index: u32,
        range: (u32, u32),
    ) -> Result<(), IoStatus> {
        let now = self.context.runtime.now();
        let wait = self.with_slice(index, |slice| {
            let seq = slice.to_be_shown(now, range)?;
            Some(slice.when_stable(seq))
        });
        match wait.ok_or(IoStatus::Interrupted)? {
            Some(_) if planted::is_active(Bug::HideOldChanges) => Ok(()),
            Some(stable) => stable.await.map_err(|_| IoStatus::Interrupted),
            None => Ok(()),
        }
    }

    async fn read_copy(
        &self,
        index: u32,
        node: NodeId,
        stable: Seq,
        first_block: u32,
        blocks: u32,
    ) -> Result<Bytes, ReplicaRefusal> {
        if node == self.context.node() {
            let holder = &self.context.holder;
            return holder
                .read(self.key(index), self.view, stable, first_block, blocks)
                .await;
        }
        let wanted = (first_block, blocks);
        self.calls.read_blocks(node, index, stable, wanted).await
    }
}

/// Zeroes that take no memory of their own, up to the longest operation.
fn zeroes(bytes: usize) -> Bytes {
    static ZEROES: [u8; 2 * IO_BYTES_MAX as usize] = [0; 2 * IO_BYTES_MAX as usize];
    match bytes <= ZEROES.len() {
        true => Bytes::from_static(&ZEROES[..bytes]),
        false => Bytes::from(vec![0; bytes]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_as_many_as_were_asked_for() {
        for bytes in [0, PAGE_BYTES, 2 * IO_BYTES_MAX as usize, 9 << 20] {
            let read = zeroes(bytes);
            assert!(read.len() == bytes && read.iter().all(|byte| *byte == 0));
        }
    }
}
