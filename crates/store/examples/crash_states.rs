//! Tries all crash states, and all lies of a device, for all sequences of operations up to a
//! length, and says how many there were. Exit code 1 if one of them lost or invented anything, or
//! if there were fewer than there should be.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use holdfast_runtime::planted::{Bug, Finder};
use holdfast_store::testing::states::lies::{Lie, Lied, Verdict, lie};
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
    /// Longest sequence that a device lies about
    #[arg(long, default_value_t = 1)]
    lies: u32,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Fail if there are fewer different contents of the disks
    #[arg(long, default_value_t = 0, value_name = "N")]
    states_min: u64,
    /// Fail if any kind of operation is cut off at fewer points
    #[arg(long, default_value_t = 0, value_name = "N")]
    points_min: u64,
    /// Turn a planted bug on (needs a build with the feature `planted`), and stop when it is found
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Name the planted bugs that are to be found here, one a line, and try nothing
    #[arg(long)]
    list_bugs: bool,
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    if cfg!(not(feature = "planted")) {
        return Err("this build holds no planted bugs".to_owned());
    }
    let found = Bug::ALL.into_iter().find(|bug| bug.name() == name);
    found.ok_or_else(|| "there is no such bug".to_owned())
}

/// Turns a planted bug on for this thread.
#[cfg(feature = "planted")]
fn activate(bug: Option<Bug>) {
    holdfast_runtime::planted::activate(bug);
}

#[cfg(not(feature = "planted"))]
fn activate(bug: Option<Bug>) {
    assert!(bug.is_none(), "this build holds no planted bugs");
}

/// Violations that are printed.
const SHOWN: usize = 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list_bugs {
        let all = Bug::ALL.into_iter();
        all.filter(|bug| bug.finder() == Finder::CrashStates)
            .for_each(|bug| println!("{}", bug.name()));
        return ExitCode::SUCCESS;
    }
    if arguments.bug.is_some() {
        return hunt(&arguments);
    }
    let begin = Instant::now();
    let seen = Seen::default();
    let explored = crash_all(&arguments, &seen);
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
    let lied = lie_all(&arguments);
    println!(
        "\n{:<18} {:>9} {:>9} {:>9} {:>9}",
        "lie", "harmless", "damaged", "suspect", "refused"
    );
    for lie in Lie::ALL {
        let count = |verdict| lied.outcomes.get(&(lie, verdict)).copied().unwrap_or(0);
        let [harmless, damaged, suspect, refused] = Verdict::ALL.map(count);
        let name = format!("{lie:?}");
        println!("{name:<18} {harmless:>9} {damaged:>9} {suspect:>9} {refused:>9}");
    }
    println!("violations         {:>9}", lied.violations.len());
    println!("seconds            {:>9.1}", begin.elapsed().as_secs_f64());
    let violations: Vec<&String> = explored.violations.iter().chain(&lied.violations).collect();
    for violation in violations.iter().take(SHOWN) {
        println!("  {violation}");
    }
    let lacking = lacking(&arguments, &seen, &explored);
    for what in &lacking {
        println!("too little was tried: {what}");
    }
    if violations.is_empty() && lacking.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Looks for a planted bug, and says after how many states it was found, and what was wrong: first
/// in what a device lies about, which is little, then in crash states.
fn hunt(arguments: &Arguments) -> ExitCode {
    let lied = lie_all(arguments);
    let mut states: u64 = lied.outcomes.values().sum();
    let mut found = lied.violations.into_iter().next();
    if found.is_none() {
        let explored = crash_all(arguments, &Seen::default());
        states += explored.judged;
        found = explored.violations.into_iter().next();
    }
    match found {
        Some(what) => println!("{states} {what}"),
        None => println!("{states}"),
    }
    ExitCode::SUCCESS
}

/// What can be tried on several threads.
trait Tried: Default + Send {
    fn add(&mut self, other: Self);
    fn is_wrong(&self) -> bool;
}

impl Tried for Explored {
    fn add(&mut self, other: Self) {
        self.add(other);
    }

    fn is_wrong(&self) -> bool {
        !self.violations.is_empty()
    }
}

impl Tried for Lied {
    fn add(&mut self, other: Self) {
        self.add(other);
    }

    fn is_wrong(&self) -> bool {
        !self.violations.is_empty()
    }
}

/// Tries all sequences of up to `length` operations, the short ones first.
fn all<T: Tried>(
    arguments: &Arguments,
    length: u32,
    act: impl Fn(&[Operation], &mut T) + Sync,
) -> T {
    let all: Vec<_> = (0..=length).flat_map(sequences).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        activate(arguments.bug);
        let mut tried = T::default();
        while let Some(sequence) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            act(sequence, &mut tried);
            if arguments.bug.is_some() && tried.is_wrong() {
                break;
            }
        }
        tried
    };
    let mut together = T::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            together.add(worker.join().expect("a panic of the store is a violation"));
        }
    });
    together
}

fn crash_all(arguments: &Arguments, seen: &Seen) -> Explored {
    all(arguments, arguments.length, |sequence, explored| {
        let with_later = sequence.len() <= arguments.later as usize;
        explore(sequence, with_later, seen, explored);
    })
}

fn lie_all(arguments: &Arguments) -> Lied {
    let seen = Seen::default();
    all(arguments, arguments.lies, |sequence, lied| {
        lie(sequence, &seen, lied);
    })
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
