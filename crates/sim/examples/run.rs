use clap::Parser;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: holdfast_sim::RunArgs,
}

fn main() {
    let command = Command::parse();
    match holdfast_sim::run(&command.run) {
        Ok(report) => println!("{}", holdfast_sim::cli::render(&report, command.run.output)),
        Err(error) => println!("{error}"),
    }
}
