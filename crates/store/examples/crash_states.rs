//! Tries all crash states of all sequences of operations up to a length, and says how many there
//! were. Exit code 1 if one of them lost or invented anything, or if there were fewer than there
//! should be.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use holdfast_store::testing::states::{Explored, Operation, Seen, explore, sequences};

/// States are opened in memory, a few MiB each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Opens every state that a crash can leave of a store.
#[derive(Parser)]
struct Arguments {
    /// Longest sequence of operations
    #[arg(long, default_value_t = 2)]
    length: u32,
    /// Longest sequence after whose crashes the store is crashed again: in its recovery, and in
    /// what follows it
    #[arg(long, default_value_t = 0)]
    later: u32,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Fail if there are fewer different contents of the disks
    #[arg(long, default_value_t = 0, value_name = "N")]
    states_min: u64,
    /// Fail if any kind of operation is cut off at fewer points
    #[arg(long, default_value_t = 0, value_name = "N")]
    points_min: u64,
}

/// Violations that are printed.
const SHOWN: usize = 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let seen = Seen::default();
    let explored = all(&arguments, &seen);
    println!("sequences                {:>9}", explored.sequences);
    for (operation, points) in &explored.crash_points {
        let name = format!("{operation:?}");
        println!("  crash points: {name:<8} {points:>9}");
    }
    for (area, events) in &explored.events {
        println!("  events: {area:<14} {events:>9}");
    }
    println!(
        "crash points afterwards  {:>9}",
        explored.later_crash_points
    );
    println!("states judged            {:>9}", explored.judged);
    println!("different disks          {:>9}", seen.disks());
    println!("violations               {:>9}", explored.violations.len());
    println!(
        "seconds                  {:>9.1}",
        begin.elapsed().as_secs_f64()
    );
    for violation in explored.violations.iter().take(SHOWN) {
        println!("  {violation}");
    }
    let lacking = lacking(&arguments, &seen, &explored);
    for what in &lacking {
        println!("too little was tried: {what}");
    }
    if explored.violations.is_empty() && lacking.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// All sequences, the short ones first.
fn all(arguments: &Arguments, seen: &Seen) -> Explored {
    let all: Vec<_> = (0..=arguments.length).flat_map(sequences).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut explored = Explored::default();
        while let Some(sequence) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let with_later = sequence.len() <= arguments.later as usize;
            explore(sequence, with_later, seen, &mut explored);
        }
        explored
    };
    let mut explored = Explored::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            explored.add(worker.join().expect("a panic of the store is a violation"));
        }
    });
    explored
}

/// What was tried less than it should be: a smaller exploration must not pass for the whole.
fn lacking(arguments: &Arguments, seen: &Seen, explored: &Explored) -> Vec<String> {
    let mut lacking = Vec::new();
    let operations = Operation::ALL.len() as u64;
    let wanted: u64 = (0..=arguments.length)
        .map(|length| operations.pow(length))
        .sum();
    if explored.sequences < wanted {
        lacking.push(format!("{} of {wanted} sequences", explored.sequences));
    }
    if seen.disks() < arguments.states_min {
        let (found, wanted) = (seen.disks(), arguments.states_min);
        lacking.push(format!("{found} different disks, not {wanted}"));
    }
    for operation in Operation::ALL {
        let points = explored.crash_points.get(&operation).copied().unwrap_or(0);
        if points < arguments.points_min {
            let wanted = arguments.points_min;
            lacking.push(format!(
                "{points} crash points in {operation:?}, not {wanted}"
            ));
        }
    }
    lacking
}
