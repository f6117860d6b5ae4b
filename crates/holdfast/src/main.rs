//! The `holdfast` command. See [`holdfast::run`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::run()
}
