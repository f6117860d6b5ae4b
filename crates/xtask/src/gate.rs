//! The gate: instructions of an operation, counted by valgrind, against a budget in the tree.
//!
//! One calm cluster in one process and virtual time (`holdfast-sim`'s example `gate`) does the same
//! operations in the same order every time, so the count has no noise; two runs of different length
//! tell what an operation costs without what surrounds it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use crate::process::{cargo, find, output_of, run};

const BUDGET: &str = "crates/sim/gate.json";
const EXAMPLE: &str = "target/release/examples/gate";
/// Of one run, before and beside which so much else is done.
const FEW: u64 = 512;
const MANY: u64 = 1_536;
/// So much over its budget, or below it, nothing may cost.
const TOLERANCE: f64 = 0.03;
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
const COUNT_LIMIT: Duration = Duration::from_secs(3 * 60);
const WORKS: [(&str, u64); 3] = [("write", 1), ("write", 16), ("read", 1)];

/// Compares with the budget, or makes what is measured the budget.
pub(crate) fn run_gate(set: bool) -> anyhow::Result<()> {
    find("valgrind").context("valgrind is not installed")?;
    let mut build = cargo();
    build.args(["build", "--release", "--workspace", "--example", "gate"]);
    run(&mut build, BUILD_LIMIT)?;
    let measured: BTreeMap<String, u64> = WORKS
        .into_iter()
        .map(|(kind, depth)| {
            let few = instructions(kind, depth, FEW)?;
            let many = instructions(kind, depth, MANY)?;
            let each = many.saturating_sub(few) / (MANY - FEW);
            Ok((format!("{kind}, {depth} at once"), each))
        })
        .collect::<anyhow::Result<_>>()?;
    if set {
        let text = serde_json::to_string_pretty(&measured)? + "\n";
        std::fs::write(BUDGET, text).with_context(|| format!("writing {BUDGET}"))?;
        println!("{BUDGET} is what was measured: {measured:?}");
        return Ok(());
    }
    let text = std::fs::read_to_string(BUDGET).with_context(|| format!("reading {BUDGET}"))?;
    let budget: BTreeMap<String, u64> = serde_json::from_str(&text)?;
    judge(&budget, &measured)
}

/// The same where valgrind is there.
pub(crate) fn run_if_possible() -> anyhow::Result<()> {
    if find("valgrind").is_none() && std::env::var("HOLDFAST_REQUIRE_PEERS").as_deref() != Ok("1") {
        println!("valgrind is not installed: nothing is counted");
        return Ok(());
    }
    run_gate(false)
}

fn instructions(kind: &str, depth: u64, operations: u64) -> anyhow::Result<u64> {
    if !Path::new(EXAMPLE).exists() {
        bail!("{EXAMPLE} is not there");
    }
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no"]);
    valgrind.args(["--cachegrind-out-file=/dev/null", "--log-fd=1"]);
    valgrind.args([EXAMPLE, kind, "--depth", &depth.to_string()]);
    valgrind.args(["--operations", &operations.to_string()]);
    // The C library chooses how it copies by what the processor can do: everywhere the same here.
    valgrind.env(
        "GLIBC_TUNABLES",
        "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM,-AVX_Fast_Unaligned_Load",
    );
    let said = output_of(&mut valgrind, COUNT_LIMIT)?;
    counted(&said).ok_or_else(|| anyhow!("no count of instructions in: {said}"))
}

/// The number in cachegrind's line `==1== I refs: 1,234`.
fn counted(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find(|line| line.contains(" I ") && line.contains("refs:"))?;
    line.rsplit(' ').next()?.replace(',', "").parse().ok()
}

fn judge(budget: &BTreeMap<String, u64>, measured: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    let mut breaches = Vec::new();
    println!(
        "{:<22} {:>10} {:>10} {:>7}",
        "4 KiB", "counted", "budget", "ratio"
    );
    for (work, counted) in measured {
        let Some(allowed) = budget.get(work) else {
            breaches.push(format!("{work} has no budget"));
            continue;
        };
        let ratio = *counted as f64 / *allowed as f64;
        println!("{work:<22} {counted:>10} {allowed:>10} {ratio:>7.3}");
        if ratio > 1.0 + TOLERANCE {
            breaches.push(format!("{work} costs {ratio:.3} times its budget"));
        } else if ratio < 1.0 - TOLERANCE {
            breaches.push(format!(
                "{work} costs {ratio:.3} times its budget: keep the gain"
            ));
        }
    }
    if breaches.is_empty() {
        return Ok(());
    }
    bail!(
        "{}; `cargo xtask gate --set` makes what is measured the budget",
        breaches.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(write: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([("write, 1 at once".to_owned(), write)])
    }

    #[test]
    fn three_percent_more_or_less_is_a_breach_and_so_is_what_has_no_budget() {
        let budget = costs(100_000);
        for (counted, is_kept) in [
            (100_000, true),
            (102_900, true),
            (97_100, true),
            (103_100, false),
            (96_900, false),
        ] {
            assert_eq!(
                judge(&budget, &costs(counted)).is_ok(),
                is_kept,
                "{counted}"
            );
        }
        assert!(judge(&BTreeMap::new(), &budget).is_err());
    }

    #[test]
    fn the_count_is_read_out_of_what_cachegrind_says() {
        let said = "==7== Command: gate\n46758 polls\n==7== \n==7== I   refs:      1,612,379,183\n";
        assert_eq!(counted(said), Some(1_612_379_183));
        assert_eq!(counted("46758 polls"), None);
    }
}
