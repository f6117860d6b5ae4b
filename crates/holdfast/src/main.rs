//! The `holdfast` command. See [`holdfast::run`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Page-aligned buffers come and go with every block: the C library's allocator spends a fifth of
/// the processor time of a busy node on them (docs/data-path.md has the figures).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    holdfast::run()
}
