//! So many operations in a calm cluster: `cargo xtask gate` counts the instructions of two runs.

use clap::{Parser, ValueEnum};
use holdfast_sim::scenario::cluster::gate::{self, Kind, Work};

#[derive(Parser)]
struct Command {
    kind: Wanted,
    /// How many are under way at once
    #[arg(long, default_value_t = 1)]
    depth: u64,
    /// How many in all; a multiple of the depth
    #[arg(long, default_value_t = 256)]
    operations: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Wanted {
    Write,
    Read,
}

fn main() {
    let command = Command::parse();
    let result = gate::run(Work {
        kind: match command.kind {
            Wanted::Write => Kind::Write,
            Wanted::Read => Kind::Read,
        },
        depth: command.depth,
        operations: command.operations,
    });
    if let Some(failure) = result.failure {
        eprintln!("{failure}");
        std::process::exit(1);
    }
    println!("{} polls", result.polls);
}
