//! Reads a ledger's whole region back and judges every block.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;

use crate::error::Error;
use crate::ledger::{BLOCK_BYTES, Ledger};
use crate::load::{BlockDevice, region_fits};
use crate::statistics::Findings;

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// Blocks of one read.
    pub blocks_per_read: u32,
    /// Reads outstanding at once.
    pub depth: usize,
    /// Skip parts of the region (16 MiB each) in which nothing was ever written; otherwise
    /// these must read as zeros.
    pub touched_only: bool,
}

impl Default for VerifyOptions {
    /// 1 MiB reads, four at once, the whole region.
    fn default() -> Self {
        Self {
            blocks_per_read: 256,
            depth: 4,
            touched_only: false,
        }
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Blocks read, or found unreadable.
    pub done_blocks: u64,
    /// Blocks to read in all.
    pub total_blocks: u64,
    /// Bad blocks so far.
    pub bad_blocks: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks read and judged.
    pub checked_blocks: u64,
    /// Blocks whose read failed.
    pub unreadable_blocks: u64,
    /// The latest error of a read.
    pub last_error: Option<Error>,
    /// Lost, stale and corrupt blocks.
    pub findings: Findings,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// Every block was read and is right.
    pub fn is_clean(&self) -> bool {
        self.unreadable_blocks == 0 && self.findings.is_clean()
    }
}

/// Reads back everything and tells `progress` after each read. Errors of reads are part of the
/// report, not of the result.
///
/// # Errors
/// [`Error::BadOptions`] or [`Error::OutOfRange`]; nothing was read.
pub async fn verify<D: BlockDevice>(
    device: &D,
    ledger: &Rc<RefCell<Ledger>>,
    options: VerifyOptions,
    mut progress: impl FnMut(VerifyProgress),
) -> Result<VerifyReport, Error> {
    // The length of a read in bytes has to fit 32 bits.
    if options.depth == 0 || !(1..=1 << 16).contains(&options.blocks_per_read) {
        let reason = "verification needs a depth and reads of 1 to 65536 blocks";
        return Err(Error::BadOptions { reason });
    }
    region_fits(&ledger.borrow(), device.capacity_bytes())?;
    let begun = Instant::now();
    let ranges = plan(&ledger.borrow(), &options);
    let total_blocks = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
    let mut report = VerifyReport {
        checked_blocks: 0,
        unreadable_blocks: 0,
        last_error: None,
        findings: Findings::default(),
        elapsed: Duration::ZERO,
    };
    let mut reads = futures::stream::iter(ranges)
        .map(async |(first, count)| {
            let ticket = ledger.borrow().begin_read(first, count);
            let bytes = count * BLOCK_BYTES as u32;
            (
                count,
                ticket,
                device.read(first * BLOCK_BYTES as u64, bytes).await,
            )
        })
        .buffer_unordered(options.depth);
    while let Some((count, ticket, result)) = reads.next().await {
        match result {
            Ok(data) => {
                ledger
                    .borrow_mut()
                    .end_read(ticket, &data, &mut report.findings);
                report.checked_blocks += u64::from(count);
            }
            Err(error) => {
                report.unreadable_blocks += u64::from(count);
                report.last_error = Some(error);
            }
        }
        let findings = &report.findings;
        progress(VerifyProgress {
            done_blocks: report.checked_blocks + report.unreadable_blocks,
            total_blocks,
            bad_blocks: findings.lost + findings.stale + findings.corrupt,
        });
    }
    report.elapsed = begun.elapsed();
    Ok(report)
}

fn plan(ledger: &Ledger, options: &VerifyOptions) -> Vec<(u64, u32)> {
    let step = u64::from(options.blocks_per_read);
    let end = ledger.first_block() + ledger.blocks();
    (0..ledger.blocks().div_ceil(step))
        .map(|index| ledger.first_block() + index * step)
        .map(|first| (first, step.min(end - first) as u32))
        .filter(|(first, count)| {
            !options.touched_only || ledger.may_be_touched(*first, u64::from(*count))
        })
        .collect()
}
