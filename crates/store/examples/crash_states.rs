//! Tries all crash states of all sequences of operations up to a length, and says how many there
//! were: `crash_states [LENGTH] [THREADS]`. Exit code 1 if one of them lost or invented anything.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

use std::collections::BTreeSet;
use std::process::ExitCode;

use holdfast_store::testing::states::{Explored, explore, sequences};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| {
        let given = arguments.next().map(|text| text.parse().expect("a number"));
        given.unwrap_or(default)
    };
    let (length, threads) = (number(3), number(2) as usize);
    let all: Vec<_> = (0..=length).flat_map(sequences).collect();
    let parts: Vec<Explored> = std::thread::scope(|scope| {
        let workers = (0..threads).map(|worker| {
            let part = all.iter().skip(worker).step_by(threads);
            scope.spawn(move || {
                let (mut explored, mut seen) = (Explored::default(), BTreeSet::new());
                for sequence in part {
                    explore(sequence, &mut seen, &mut explored);
                }
                explored
            })
        });
        let workers: Vec<_> = workers.collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    let sum = |of: fn(&Explored) -> u64| -> u64 { parts.iter().map(of).sum() };
    println!("sequences       {}", sum(|part| part.sequences));
    println!("crash points    {}", sum(|part| part.crash_points));
    println!("states opened   {}", sum(|part| part.states));
    let violations: Vec<&String> = parts.iter().flat_map(|part| &part.violations).collect();
    println!("violations      {}", violations.len());
    for violation in violations.iter().take(20) {
        println!("  {violation}");
    }
    if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
