//! The load and the verification against a disk in memory that tells the truth, and against ones
//! that do not.

use super::*;
use crate::error::LostReason;
use crate::ledger::Verdict;
use crate::verify::{VerifyOptions, VerifyProgress, VerifyReport, verify};

const BLOCKS: u64 = 512;

/// How the disk in memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Every so many writes are acknowledged and forgotten.
    ForgetsWrites(u64),
    /// Every so many writes land one block further.
    Misdirects(u64),
    /// Every so many writes leave the last sector as it was.
    Tears(u64),
    /// Every so many writes are done and then reported as failed.
    FailsDoneWrites(u64),
}

#[derive(Clone)]
struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    fault: Rc<Cell<Fault>>,
    writes: Rc<Cell<u64>>,
}

impl Memory {
    fn new(fault: Fault) -> Self {
        let bytes = vec![0; BLOCKS as usize * BLOCK_BYTES];
        Self {
            bytes: Rc::new(RefCell::new(bytes)),
            fault: Rc::new(Cell::new(fault)),
            writes: Rc::default(),
        }
    }
}

impl BlockDevice for Memory {
    fn capacity_bytes(&self) -> u64 {
        BLOCKS * BLOCK_BYTES as u64
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        let start = offset as usize;
        Ok(Bytes::copy_from_slice(
            &self.bytes.borrow()[start..start + length as usize],
        ))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        tokio::task::yield_now().await;
        let number = self.writes.get() + 1;
        self.writes.set(number);
        let mut bytes = self.bytes.borrow_mut();
        let (mut start, mut length) = (offset as usize, data.len());
        let mut result = Ok(());
        match self.fault.get() {
            Fault::ForgetsWrites(every) if number.is_multiple_of(every) => length = 0,
            Fault::Misdirects(every) if number.is_multiple_of(every) => {
                start = (start + BLOCK_BYTES).min(bytes.len() - length);
            }
            Fault::Tears(every) if number.is_multiple_of(every) => length -= 512,
            Fault::FailsDoneWrites(every) if number.is_multiple_of(every) => {
                result = Err(Error::ConnectionLost {
                    reason: LostReason::Silent,
                });
            }
            Fault::None
            | Fault::ForgetsWrites(_)
            | Fault::Misdirects(_)
            | Fault::Tears(_)
            | Fault::FailsDoneWrites(_) => {}
        }
        bytes[start..start + length].copy_from_slice(&data[..length]);
        result
    }
}

fn ledger() -> Rc<RefCell<Ledger>> {
    Rc::new(RefCell::new(Ledger::new(7, 0, BLOCKS)))
}

fn options() -> LoadOptions {
    let size = |bytes, weight| SizeWeight { bytes, weight };
    LoadOptions {
        sizes: vec![size(4096, 4), size(16_384, 1)],
        operations: Some(4000),
        ..LoadOptions::default()
    }
}

fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    tokio::task::LocalSet::new().block_on(&runtime.unwrap(), work)
}

async fn run(memory: &Memory, ledger: &Rc<RefCell<Ledger>>) -> (Statistics, VerifyReport) {
    let load = Load::start(memory.clone(), Rc::clone(ledger), options()).unwrap();
    let statistics = load.wait().await;
    let report = verify(memory, ledger, VerifyOptions::default(), |_| {})
        .await
        .unwrap();
    (statistics, report)
}

#[test]
fn an_honest_disk_is_found_clean() {
    on_one_thread(async {
        let ledger = ledger();
        let (statistics, report) = run(&Memory::new(Fault::None), &ledger).await;
        assert_eq!(statistics.operations(), 4000);
        assert!(statistics.reads > 800 && statistics.writes > 2000);
        assert_eq!(statistics.errors, 0);
        assert!(statistics.findings.is_clean(), "{:?}", statistics.findings);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.checked_blocks, BLOCKS);
        assert!(ledger.borrow().acknowledged_blocks() > BLOCKS / 2);
    });
}

#[test]
fn forgotten_writes_are_found_lost_or_stale() {
    on_one_thread(async {
        let (_, report) = run(&Memory::new(Fault::ForgetsWrites(10)), &ledger()).await;
        assert!(report.findings.stale > 0, "{report:?}");
        assert_eq!(report.findings.corrupt, 0);
        let memory = Memory::new(Fault::ForgetsWrites(1));
        let ledger = ledger();
        let (_, report) = run(&memory, &ledger).await;
        assert_eq!(report.findings.lost, ledger.borrow().acknowledged_blocks());
    });
}

#[test]
fn misdirected_and_torn_writes_are_found_corrupt() {
    on_one_thread(async {
        for fault in [Fault::Misdirects(10), Fault::Tears(10)] {
            let (statistics, report) = run(&Memory::new(fault), &ledger()).await;
            assert!(report.findings.corrupt > 0, "{fault:?}: {report:?}");
            assert!(
                statistics.findings.corrupt > 0,
                "reads under load find it too: {fault:?}"
            );
        }
    });
}

#[test]
fn a_failed_write_may_have_happened() {
    on_one_thread(async {
        let (statistics, report) = run(&Memory::new(Fault::FailsDoneWrites(10)), &ledger()).await;
        assert!(statistics.errors > 100);
        assert!(statistics.last_error.is_some());
        assert!(
            report.is_clean() && statistics.findings.is_clean(),
            "{report:?}"
        );
    });
}

#[test]
fn a_disk_that_goes_back_in_time_after_the_load_is_found_stale() {
    on_one_thread(async {
        let (memory, ledger) = (Memory::new(Fault::None), ledger());
        run(&memory, &ledger).await;
        let earlier = memory.bytes.borrow().clone();
        run(&memory, &ledger).await;
        *memory.bytes.borrow_mut() = earlier;
        let report = verify(&memory, &ledger, VerifyOptions::default(), |_| {})
            .await
            .unwrap();
        assert!(report.findings.stale > BLOCKS / 2, "{report:?}");
        let (_, verdict) = report.findings.examples[0];
        assert!(matches!(verdict, Verdict::Stale { expected, found } if found < expected));
    });
}

#[test]
fn verification_reports_progress_and_can_skip_what_was_never_written() {
    on_one_thread(async {
        let memory = Memory::new(Fault::None);
        let ledger = ledger();
        memory.bytes.borrow_mut()[9 * BLOCK_BYTES] = 1;
        let touched = VerifyOptions {
            touched_only: true,
            ..VerifyOptions::default()
        };
        let report = verify(&memory, &ledger, touched, |_| {}).await.unwrap();
        assert_eq!((report.checked_blocks, report.is_clean()), (0, true));
        let mut seen = Vec::new();
        let all = VerifyOptions {
            blocks_per_read: 200,
            ..VerifyOptions::default()
        };
        let report = verify(&memory, &ledger, all, |progress| seen.push(progress))
            .await
            .unwrap();
        assert_eq!(
            report.findings.corrupt, 1,
            "bytes where nothing was ever written"
        );
        let last = VerifyProgress {
            done_blocks: BLOCKS,
            total_blocks: BLOCKS,
            bad_blocks: 1,
        };
        assert_eq!((seen.len(), seen.last()), (3, Some(&last)));
    });
}

#[test]
fn the_rate_limit_holds() {
    on_one_thread(async {
        let options = LoadOptions {
            operations_per_second_max: Some(100.0),
            duration: Some(Duration::from_secs(10)),
            ..LoadOptions::default()
        };
        let load = Load::start(Memory::new(Fault::None), ledger(), options).unwrap();
        let statistics = load.wait().await;
        let operations = statistics.operations();
        assert!(
            (990..=1010).contains(&operations),
            "{operations} in {:?}",
            statistics.elapsed
        );
    });
}

#[test]
fn stopping_ends_a_load_without_limits() {
    on_one_thread(async {
        let options = LoadOptions {
            operations_per_second_max: Some(0.01),
            ..LoadOptions::default()
        };
        let load = Load::start(Memory::new(Fault::None), ledger(), options).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let statistics = load.stop().await;
        assert!(
            statistics.elapsed < Duration::from_secs(2),
            "{:?}",
            statistics.elapsed
        );
    });
}

#[test]
fn a_dropped_load_leaves_no_block_busy() {
    on_one_thread(async {
        let ledger = ledger();
        let load = Load::start(Memory::new(Fault::None), Rc::clone(&ledger), options()).unwrap();
        tokio::task::yield_now().await;
        drop(load);
        tokio::task::yield_now().await;
        assert!(ledger.borrow_mut().begin_write(0, BLOCKS as u32).is_some());
    });
}

#[test]
fn senseless_options_are_refused() {
    let refused = |change: fn(&mut LoadOptions)| {
        let mut options = options();
        change(&mut options);
        Load::start(Memory::new(Fault::None), ledger(), options).err()
    };
    let bad = |error| matches!(error, Some(Error::BadOptions { .. }));
    assert!(bad(refused(|options| options.workers = 0)));
    assert!(bad(refused(|options| options.sizes[0].bytes = 512)));
    assert!(bad(refused(|options| options.sizes[0].bytes = 4 << 20)));
    assert!(bad(refused(|options| options.sizes.clear())));
    assert!(bad(refused(|options| options.read_percent = 101)));
    assert!(bad(refused(
        |options| options.operations_per_second_max = Some(0.0)
    )));
    let beyond = Rc::new(RefCell::new(Ledger::new(7, 1, BLOCKS)));
    let started = Load::start(Memory::new(Fault::None), beyond, options());
    assert!(matches!(started.err(), Some(Error::OutOfRange { .. })));
}
