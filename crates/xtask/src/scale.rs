//! What must not grow with what is provisioned (`crates/holdfast/examples/scale`): builds what is
//! needed and passes the arguments on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use crate::process::{cargo, release_binary, run as run_within};

const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--package",
        "holdfast",
        "--example",
        "scale",
    ]);
    run_within(&mut build, BUILD_LIMIT)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let mut command = Command::new(Path::new(&target).join("release/examples/scale"));
    let asks_for_help = |argument: &String| argument == "--help" || argument == "-h";
    let names_binary = |argument: &String| argument.split('=').next() == Some("--binary");
    if !arguments.iter().any(names_binary) && !arguments.iter().any(asks_for_help) {
        command.arg("--binary").arg(release_binary()?);
    }
    let status = command.args(arguments).status()?;
    if !status.success() {
        bail!("scale: {status}");
    }
    Ok(())
}
