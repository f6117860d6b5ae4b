//! Runs seeds, each a simulation of its own on one operating-system thread.
//!
//! This is the one part of the crate that lives in real time: it measures it, and starts
//! threads. Nothing of that reaches a simulation.
#![allow(
    clippy::disallowed_methods,
    reason = "seeds are run in parallel and their real cost is measured"
)]

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_runtime::planted::Bug;
use holdfast_runtime::reach;

use crate::report::{Failure, Report, SeedResult};
use crate::simulation::{Finished, Options, Simulation};
use crate::trace::TraceText;

/// Something that can be run from a seed.
pub trait Scenario: Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;
    /// Runs one seed to its verdict.
    fn run(&self, seed: u64, trace: TraceText) -> SeedResult;
}

/// What a scenario's own part of a run yields.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Operations that an oracle has judged.
    pub operations: u64,
    /// The scenario's own figures.
    pub figures: Vec<(&'static str, u64)>,
}

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many seeds.
    Seeds(u64),
    /// As many as fit into this real time; a seed that was begun is finished.
    Time(Duration),
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// First seed.
    pub start: u64,
    /// How many.
    pub amount: Amount,
    /// Operating-system threads.
    pub threads: usize,
    /// The trace's text.
    pub trace: TraceText,
    /// Run every so many-th seed twice and compare the traces; zero for none.
    pub repeat_every: u64,
    /// Stop after the first seed that fails.
    pub stop_at_failure: bool,
    /// The bug to turn on; without the feature `planted` there is none to choose.
    pub bug: Option<Bug>,
}

/// Runs a scenario's future in a world and turns whatever happens into a result. Panics of the
/// code under test are failures of the seed.
pub fn run_seed<F>(options: Options, scenario: impl FnOnce(Simulation) -> F) -> SeedResult
where
    F: Future<Output = Result<Checked, Failure>> + 'static,
{
    install_hook();
    let empty = SeedResult {
        seed: options.seed,
        failure: None,
        trace_hash: 0,
        trace_lines: Vec::new(),
        virtual_time: Duration::ZERO,
        polls: 0,
        operations: 0,
        faults: Default::default(),
        figures: Default::default(),
        reached: Default::default(),
    };
    reach::take();
    PANIC.set(Some(String::new()));
    let finished = panic::catch_unwind(AssertUnwindSafe(|| Simulation::run(options, scenario)));
    let message = PANIC.take().unwrap_or_default();
    let finished: Finished<_> = match finished {
        Ok(finished) => finished,
        Err(_payload) => {
            return SeedResult {
                failure: Some(Failure::Panicked(message)),
                ..empty
            };
        }
    };
    let (failure, checked) = match finished.result {
        Ok(Ok(checked)) => (None, checked),
        Ok(Err(failure)) => (Some(failure), Checked::default()),
        Err(halt) => (Some(halt.into()), Checked::default()),
    };
    SeedResult {
        failure,
        trace_hash: finished.trace_hash,
        trace_lines: finished.trace_lines,
        virtual_time: finished.virtual_time,
        polls: finished.polls,
        operations: checked.operations,
        faults: finished.faults,
        figures: checked.figures.into_iter().collect(),
        reached: reach::Row::ALL
            .into_iter()
            .zip(reach::take())
            .map(|(row, times)| (row.name(), times))
            .collect(),
        ..empty
    }
}

/// Runs seeds on several threads and reports. `progress` is called after each seed with the
/// number of seeds done and failed so far.
pub fn run_seeds(
    scenario: &dyn Scenario,
    plan: Plan,
    mut progress: impl FnMut(u64, usize),
) -> Report {
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let cpu = Mutex::new(Duration::ZERO);
    let stop = AtomicBool::new(false);
    let (sender, results) = mpsc::channel();
    let mut report = Report {
        scenario: scenario.name(),
        start: plan.start,
        ..Report::default()
    };
    thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            let sender = sender.clone();
            let (next, cpu, stop) = (&next, &cpu, &stop);
            scope.spawn(move || {
                activate(plan.bug);
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let wanted = match plan.amount {
                        Amount::Seeds(seeds) => number < seeds,
                        Amount::Time(time) => begin.elapsed() < time,
                    };
                    if !wanted {
                        break;
                    }
                    let result = run_one(scenario, plan, number);
                    if sender.send(result).is_err() {
                        break;
                    }
                }
                *cpu.lock().unwrap_or_else(PoisonError::into_inner) += thread_cpu_time();
            });
        }
        drop(sender);
        for (result, repeated) in results {
            report.repeated += u64::from(repeated);
            let failed = result.failure.is_some();
            stop.fetch_or(failed && plan.stop_at_failure, Ordering::Relaxed);
            report.add(result);
            progress(report.seeds, report.failed.len());
        }
    });
    report.cpu_hours = cpu
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .as_secs_f64()
        / 3600.0;
    report.wall_seconds = begin.elapsed().as_secs_f64();
    report
}

fn run_one(scenario: &dyn Scenario, plan: Plan, number: u64) -> (SeedResult, bool) {
    let seed = plan.start + number;
    let mut result = scenario.run(seed, plan.trace);
    let repeat = plan.repeat_every > 0 && number.is_multiple_of(plan.repeat_every);
    if repeat {
        let second = scenario.run(seed, TraceText::Off).trace_hash;
        let first = result.trace_hash;
        if first != second && result.failure.is_none() {
            result.failure = Some(Failure::NotDeterministic { first, second });
        }
    }
    (result, repeat)
}

/// Turns a planted bug on, or all off, for the simulations of this thread.
#[cfg(feature = "planted")]
fn activate(bug: Option<Bug>) {
    holdfast_runtime::planted::activate(bug);
}

#[cfg(not(feature = "planted"))]
fn activate(bug: Option<Bug>) {
    assert!(bug.is_none(), "this build holds no planted bugs");
}

/// Processor time of this thread so far; zero where the system does not tell.
fn thread_cpu_time() -> Duration {
    let nanoseconds = std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

thread_local! {
    /// While a simulation runs on this thread: the message of its panic, so far empty.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Lets panics inside a simulation be noted instead of printed.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let outside = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let inside = PANIC.with_borrow_mut(|message| match message {
                Some(message) if message.is_empty() => {
                    *message = info.to_string();
                    true
                }
                Some(_) => true,
                None => false,
            });
            if !inside {
                outside(info);
            }
        }));
    });
}
