//! Measures the machine and the cluster on it: each figure with the command that repeats it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::cluster::ServedDemo;
use crate::process::{cargo, release_binary, run};

const EXAMPLE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Each load gets a region of its own: it has to read as zeros at first.
const REGION_MIB: u64 = 128;

/// Disk and link latency, then the verifying load against a served demo.
pub(crate) fn run_all(directory: &Path, seconds: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    println!("durable 4 KiB writes");
    run(
        example("runtime", "disk_latency").arg("--").arg(directory),
        EXAMPLE_LIMIT,
    )?;
    println!("\nrequest and answer between two nodes");
    run(&mut example("runtime", "link_latency"), EXAMPLE_LIMIT)?;

    let demo = ServedDemo::start(&release_binary()?)?;
    for (index, (what, arguments)) in (0..).zip(loads()) {
        println!("\n{what}, five nodes, three copies, all on this machine");
        let mut load = load(&demo, seconds, index * REGION_MIB);
        load.args(arguments);
        let limit = EXAMPLE_LIMIT + Duration::from_secs(seconds);
        run(&mut load, limit).with_context(|| what.to_owned())?;
    }
    Ok(())
}

fn loads() -> [(&'static str, &'static [&'static str]); 3] {
    [
        (
            "one 4 KiB write at a time",
            &["--workers", "1", "--read-percent", "0"],
        ),
        (
            "32 writers of 4 KiB",
            &["--workers", "32", "--read-percent", "0"],
        ),
        (
            "32 workers of 4 KiB, 70 % reads",
            &["--workers", "32", "--read-percent", "70"],
        ),
    ]
}

fn example(package: &str, name: &str) -> Command {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--quiet",
        "--example",
        name,
        "--package",
    ]);
    command.arg(format!("holdfast-{package}"));
    command
}

fn load(demo: &ServedDemo, seconds: u64, region_start_mib: u64) -> Command {
    let mut command = example("initiator", "load");
    command.args(["--", "--target", &demo.ready.iqn]);
    for (option, number) in [
        ("--lun", demo.ready.lun),
        ("--seconds", seconds),
        ("--region-start-mib", region_start_mib),
        ("--region-mib", REGION_MIB),
    ] {
        command.args([option, &number.to_string()]);
    }
    for portal in &demo.ready.portals {
        command.args(["--portal", portal]);
    }
    if let Some((user, secret)) = demo.ready.username.as_ref().zip(demo.ready.secret.as_ref()) {
        command
            .args(["--chap-user", user])
            .env("CHAP_SECRET", secret);
    }
    command
}
