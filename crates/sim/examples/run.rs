//! Runs the simulator without the rest of the product: quick to build while working on it.

use clap::Parser;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: holdfast_sim::RunArgs,
    /// Name the planted bugs, one a line, and run nothing
    #[arg(long)]
    list_bugs: bool,
}

fn main() {
    let command = Command::parse();
    if command.list_bugs {
        for bug in holdfast_runtime::planted::Bug::ALL {
            println!("{}", holdfast_sim::cli::bug_name(bug));
        }
        return;
    }
    match holdfast_sim::run(&command.run) {
        Ok(report) => println!("{}", holdfast_sim::cli::render(&report, command.run.output)),
        Err(error) => println!("{error}"),
    }
}
