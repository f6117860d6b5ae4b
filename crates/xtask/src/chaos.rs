//! Faults on real processes (`crates/chaos`): as developers call it, and as CI does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use crate::process::{cargo, release_binary, run as run_within};

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Of each of CI's two parts; they are meant to take a minute and a half.
const PART_LIMIT: Duration = Duration::from_secs(6 * 60);
/// Faults are fired for so long in CI.
const MINUTES: &str = "1.2";
/// No fault lasts longer there, so that many fit in.
const LONGEST_S: &str = "6";
/// Directed scenarios that are short, each of another kind.
const SCENARIOS: [&str; 4] = [
    "paused-portal",
    "cut-off-portal",
    "cut-owner-early",
    "moved-and-killed",
];

/// Builds what is needed and passes the arguments on.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new(tool()?);
    let names_binary = |argument: &String| argument.split('=').next() == Some("--binary");
    let asks_for_help = |argument: &String| argument == "--help" || argument == "-h";
    if !arguments
        .iter()
        .any(|argument| names_binary(argument) || asks_for_help(argument))
    {
        command.arg("--binary").arg(release_binary()?);
    }
    let status = command.args(arguments).status()?;
    if !status.success() {
        bail!("chaos: {status}");
    }
    Ok(())
}

/// A short run with faults that are drawn, and the short directed scenarios.
pub(crate) fn run_for_ci(binary: &Path) -> anyhow::Result<()> {
    let tool = tool()?;
    let mut drawn = Command::new(&tool);
    drawn.arg("--binary").arg(binary);
    drawn.args(["--minutes", MINUTES, "--longest", LONGEST_S]);
    // Other steps' leftovers, and a machine of two cores: gaps are measured with `chaos` alone.
    drawn.args(["--volumes", "2", "--bounds", "lenient"]);
    run_within(&mut drawn, PART_LIMIT)?;
    let mut directed = Command::new(&tool);
    directed.arg("--binary").arg(binary);
    directed.args(["--volumes", "1", "--bounds", "lenient"]);
    for scenario in SCENARIOS {
        directed.args(["--scenario", scenario]);
    }
    run_within(&mut directed, PART_LIMIT)
}

fn tool() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "holdfast-chaos"]);
    run_within(&mut build, BUILD_LIMIT)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(Path::new(&target).join("release/holdfast-chaos"))
}
